//! What a GPU draws and does while something is measured, as nvidia-smi tells it.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::failure::Failure;

/// Milliseconds between two samples; the driver takes new ones about that often.
const INTERVAL: u32 = 50;
/// How long the first sample may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// What the GPU told at one moment.
#[derive(Debug, Clone, Copy)]
struct Sample {
    at: Instant,
    reading: Reading,
}

/// Power in W, use in % (time in which anything ran on it), memory in use in MiB; of the whole GPU.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Reading {
    pub power: f64,
    pub busy: f64,
    pub memory: f64,
}

/// Asks nvidia-smi from now on, until it is dropped.
pub struct Gauge {
    process: Child,
    samples: Arc<Mutex<Vec<Sample>>>,
    reader: Option<JoinHandle<()>>,
}

impl Gauge {
    /// For this GPU; returns when the first sample is there.
    pub fn new(gpu: usize) -> Result<Self, Failure> {
        let mut process = Command::new("nvidia-smi")
            .arg(format!("--id={gpu}"))
            .arg("--query-gpu=power.draw,utilization.gpu,memory.used")
            .arg("--format=csv,noheader,nounits")
            .arg(format!("--loop-ms={INTERVAL}"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|error| {
                Failure::new(format!(
                    "--power: nvidia-smi, which comes with NVIDIA's driver, cannot be run: {error}"
                ))
            })?;
        let samples = Arc::new(Mutex::new(Vec::new()));
        let output = process.stdout.take();
        let reader = std::thread::Builder::new().name("gauge".into()).spawn({
            let samples = samples.clone();
            move || {
                let lines = output.map(|output| BufReader::new(output).lines());
                for line in lines.into_iter().flatten().map_while(Result::ok) {
                    if let Some(reading) = Reading::parse(&line) {
                        let at = Instant::now();
                        lock(&samples).push(Sample { at, reading });
                    }
                }
            }
        });
        let mut gauge = Self {
            process,
            samples,
            reader: None,
        };
        gauge.reader = Some(
            reader.map_err(|error| Failure::new(format!("no thread for nvidia-smi: {error}")))?,
        );
        gauge.wait_for_a_sample(gpu)?;
        Ok(gauge)
    }

    fn wait_for_a_sample(&self, gpu: usize) -> Result<(), Failure> {
        let start = Instant::now();
        while lock(&self.samples).is_empty() {
            let ended = self.reader.as_ref().is_none_or(JoinHandle::is_finished);
            if ended || start.elapsed() > PATIENCE {
                return Err(Failure::new(format!(
                    "--power: nvidia-smi says nothing about power, use and memory of GPU {gpu}"
                )));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// The mean over what was sampled between `start` and now; the last sample if that was too short for one.
    pub fn since(&self, start: Instant) -> Reading {
        let samples = lock(&self.samples);
        let since: Vec<_> = samples.iter().filter(|s| s.at >= start).collect();
        let used = match (since.is_empty(), samples.last()) {
            (false, _) => since,
            (true, Some(last)) => vec![last],
            (true, None) => return Reading::default(),
        };
        let mean = |of: fn(&Reading) -> f64| {
            used.iter().map(|s| of(&s.reading)).sum::<f64>() / used.len() as f64
        };
        Reading {
            power: mean(|r| r.power),
            busy: mean(|r| r.busy),
            memory: mean(|r| r.memory),
        }
    }
}

impl Drop for Gauge {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
    }
}

impl Reading {
    /// From a line such as "267.12, 98, 4021"; none where the GPU does not tell one of them.
    fn parse(line: &str) -> Option<Self> {
        let mut fields = line.split(',').map(|field| field.trim().parse().ok());
        let mut next = || fields.next().flatten();
        Some(Self {
            power: next()?,
            busy: next()?,
            memory: next()?,
        })
    }
}

fn lock(samples: &Mutex<Vec<Sample>>) -> MutexGuard<'_, Vec<Sample>> {
    samples.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_nvidia_smi() {
        let reading = Reading {
            power: 267.12,
            busy: 98.0,
            memory: 4021.0,
        };
        assert_eq!(Reading::parse("267.12, 98, 4021"), Some(reading));
        assert_eq!(Reading::parse("[N/A], 98, 4021"), None);
        assert_eq!(Reading::parse("267.12, 98"), None);
        assert_eq!(Reading::parse("No devices were found"), None);
    }
}
