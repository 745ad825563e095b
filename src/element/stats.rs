//! The `stats` property.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::runtime::LoadedModel;
use super::settings::Prompts;
use crate::device::Device;
use crate::engine::Model;
use crate::stream::{Counters, Stage, StageTimes, Stream};

/// Frames over which the frame rate is taken.
const KEPT: usize = 64;

/// What is known about the running stream.
#[derive(Default)]
pub struct Stats {
    model: Option<String>,
    backend: Option<String>,
    backend_reason: String,
    device: String,
    precomputed: Option<String>,
    engines: Option<String>,
    launched: String,
    size: (usize, usize),
    counters: Counters,
    times: StageTimes,
    dropped: u64,
    repeated: u64,
    passed: u64,
    output: u64,
    left: Rate,
    came: Rate,
    loading: Duration,
    /// The prompts in force.
    pub(super) prompts: Option<Arc<Prompts>>,
}

/// What is known elsewhere, at the time of asking.
#[derive(Debug, Clone, Copy, Default)]
pub struct Now {
    /// The latency that the element reports.
    pub latency: gst::ClockTime,
    /// Bytes of the GPU's memory that are in use, by whomever; 0 on the CPU.
    pub vram: u64,
}

/// How often something happens.
#[derive(Default)]
struct Rate(VecDeque<Instant>);

impl Rate {
    /// It has happened.
    fn tick(&mut self, now: Instant) {
        if self.0.len() == KEPT {
            self.0.pop_front();
        }
        self.0.push_back(now);
    }

    /// Times a second, over the last ones.
    fn per_second(&self) -> f64 {
        match (self.0.front(), self.0.back()) {
            (Some(first), Some(last)) if last > first => {
                (self.0.len() - 1) as f64 / (*last - *first).as_secs_f64()
            }
            _ => 0.0,
        }
    }
}

impl Stats {
    /// Of an element that has just started: `device` was chosen for `reason`.
    pub fn started(device: String, reason: String) -> Self {
        Self {
            backend_reason: reason,
            device,
            ..Self::default()
        }
    }

    /// Notes that the model is tried on another `device`, for `reason`.
    pub fn moved(&mut self, device: String, reason: String) {
        (self.device, self.backend_reason) = (device, reason);
    }

    /// What the model runs on, for people.
    pub fn device(&self) -> &str {
        &self.device
    }

    /// Notes what was loaded, and how long that took.
    pub fn loaded(&mut self, loaded: &LoadedModel, took: Duration) {
        self.loading = took;
        self.model = Some(loaded.folder().name());
        self.backend = Some(loaded.backend().to_owned());
        self.precomputed = Some(loaded.precomputed().to_owned());
        self.engines = Some(loaded.engines().to_owned());
    }

    /// Takes over the stream's figures.
    pub fn update<D: Device, M: Model<Tensor = D::Tensor>, T>(
        &mut self,
        stream: &Stream<D, M, T>,
        size: (usize, usize),
        launched: String,
    ) {
        self.size = size;
        self.launched = launched;
        self.counters = stream.counters();
        self.times.clone_from(stream.times());
    }

    /// Notes that a frame left the element.
    pub fn frame_left(&mut self) {
        self.output += 1;
        self.left.tick(Instant::now());
    }

    /// Notes that a frame came in, whatever becomes of it.
    pub fn frame_came(&mut self) {
        self.came.tick(Instant::now());
    }

    /// Notes that a frame was left out because it was late.
    pub fn frame_dropped(&mut self) {
        self.dropped += 1;
    }

    /// Notes that a late frame was given the picture before it.
    pub fn frame_repeated(&mut self) {
        self.repeated += 1;
    }

    /// Notes that a frame passed as it was.
    pub fn frame_passed(&mut self) {
        self.passed += 1;
    }

    /// Frames that left, and frames left out.
    pub fn processed_and_dropped(&self) -> (u64, u64) {
        (self.output, self.dropped)
    }

    /// The figures as the property shows them.
    pub fn structure(&self, now: Now) -> gst::Structure {
        let ms = |time: Duration| time.as_secs_f64() * 1e3;
        let (prompt, negative) = match self.prompts.as_deref() {
            Some(Prompts {
                prompt, negative, ..
            }) => (&prompt[..], negative.as_deref()),
            None => ("", None),
        };
        let mut stats = gst::Structure::builder("streamdiffusion-stats")
            .field("processed", self.counters.processed)
            .field("skipped", self.counters.skipped)
            .field("dropped", self.dropped)
            .field("repeated", self.repeated)
            .field("passed", self.passed)
            .field("output", self.output)
            .field("fps", self.left.per_second())
            .field("in-fps", self.came.per_second())
            .field("latency-ns", now.latency.nseconds())
            .field("width", self.size.0 as u32)
            .field("height", self.size.1 as u32)
            .field("model", self.model.as_deref().unwrap_or(""))
            .field("backend", self.backend.as_deref().unwrap_or(""))
            .field("backend-reason", self.backend_reason.as_str())
            .field("device", self.device.as_str())
            .field("precomputed", self.precomputed.as_deref().unwrap_or(""))
            .field("engines", self.engines.as_deref().unwrap_or(""))
            .field("launched", self.launched.as_str())
            .field("vram", now.vram)
            .field("load-time-ns", self.loading.as_nanos() as u64)
            .field("prompt", prompt)
            .field("negative-prompt", negative.unwrap_or(""))
            .build();
        for (name, stage) in [
            ("encode", Stage::Encode),
            ("denoise", Stage::Denoise),
            ("decode", Stage::Decode),
        ] {
            stats.set(
                format!("{name}-ms-p50"),
                ms(self.times.quantile(stage, 0.5)),
            );
            stats.set(
                format!("{name}-ms-p95"),
                ms(self.times.quantile(stage, 0.95)),
            );
        }
        stats
    }
}
