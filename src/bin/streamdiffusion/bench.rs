//! `streamdiffusion bench`: how fast a model folder runs here.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use gst::prelude::*;
use gststreamdiffusion::model::ModelFolder;
use serde_json::{Value, json};

use crate::device::Device;
use crate::failure::Failure;
use crate::gauge::{Gauge, Reading};
use crate::interrupt;
use crate::player::{Player, own_size};
use crate::printing::{bytes, print, shown};
use crate::progress::Progress;
use crate::settings::{Setting, size};

/// Rounds of a comparison: an odd number, so that one of them is the median.
const ROUNDS: usize = 5;

const EXAMPLES: &str = "\
Examples:
  streamdiffusion bench
  streamdiffusion bench models/sd-turbo --size 512x512 --frames 20 --set steps=1
  streamdiffusion bench models/sd-turbo --device cuda --frames 200 --warmup 30
  streamdiffusion bench --compare cfg-type=none,full
  streamdiffusion bench --compare 't-index-list=32,45|20,30,40'
  streamdiffusion bench models/sd-turbo --compare similarity-filter=false,true --still --rate 30 --power";

/// Measure how fast a model runs on this machine.
///
/// Frames of a moving pattern go through the element one after the other, as fast as it takes them; conversion from and
/// to video frames is included.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Model folder; the bundled demo model if left out
    #[arg(conflicts_with = "model")]
    folder: Option<PathBuf>,
    /// The same as FOLDER
    #[arg(short, long, value_name = "FOLDER")]
    model: Option<PathBuf>,
    /// Size of the frames, and that they are processed at; the model's own if left out, else 512x512
    #[arg(long, value_name = "WxH", value_parser = size)]
    size: Option<(u32, u32)>,
    /// Frames that are measured
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    frames: u32,
    /// Frames before them that are not
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    warmup: u32,
    /// What runs the model, or nothing is measured: cpu, cuda, or cuda:N for the GPU with this number (as the properties backend
    /// and device-id do); the element's choice if left out
    #[arg(long, value_name = "DEVICE", value_parser = Device::parse)]
    device: Option<Device>,
    /// Any property of the element; may be given several times
    #[arg(long, value_name = "PROPERTY=VALUE", value_parser = Setting::parse)]
    set: Vec<Setting>,
    /// Measure these values of a property in turns; | between values that have commas themselves
    #[arg(long, value_name = "PROPERTY=A,B", value_parser = Setting::parse)]
    compare: Option<Setting>,
    /// Let all frames show the same picture, instead of a moving one
    #[arg(long)]
    still: bool,
    /// Let so many frames come in a second, instead of as many as are taken
    #[arg(long, value_name = "FPS", value_parser = rate)]
    rate: Option<f64>,
    /// Ask nvidia-smi what this GPU draws and does meanwhile, by its number there (which is not always device-id's)
    #[arg(long, value_name = "GPU", num_args = 0..=1, require_equals = true, default_missing_value = "0")]
    power: Option<usize>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// A number of frames in a second.
fn rate(text: &str) -> Result<f64, String> {
    text.parse()
        .ok()
        .filter(|rate| (0.01..=10_000.0).contains(rate))
        .ok_or_else(|| "expected frames in a second, 0.01 to 10000".into())
}

/// An element with its settings, ready to be measured.
struct Lane {
    player: Player,
    size: (u32, u32),
    next: u64,
    still: bool,
    /// What it must run on.
    device: Option<Device>,
    /// Time from one frame to the next, if they don't come as fast as they are taken.
    pace: Option<Duration>,
    /// Frames that go through the model together.
    group: usize,
    loading: Duration,
    first_frame: Duration,
}

/// What was measured on one lane in one round.
struct Round {
    /// Time of each frame, or of each group over its frames.
    times: Vec<Duration>,
    /// From first to last, waits between frames included.
    took: Duration,
    gpu: Option<Reading>,
}

impl Round {
    fn fps(&self) -> f64 {
        let total: Duration = self.times.iter().sum();
        self.times.len() as f64 / total.as_secs_f64()
    }
}

/// Runs the command.
pub fn bench(args: &Args) -> Result<ExitCode, Failure> {
    interrupt::watch()?;
    let values = match &args.compare {
        Some(setting) => {
            let values = compared(setting)?;
            values.into_iter().map(Some).collect()
        }
        None => vec![None],
    };
    let mut named = args.set.iter().chain(&args.compare);
    let twice = named.find(|setting| ["backend", "device-id"].contains(&&*setting.name));
    if let (Some(_), Some(setting)) = (args.device, twice) {
        return Err(Failure::usage(format!(
            "--device stands for the property {}, which is set as well; expected one of the two",
            setting.name
        )));
    }
    // Values that cannot be are told before anything is loaded.
    for value in &values {
        Player::new(model(args), &settings(args, value.as_ref()))?;
    }
    let rounds = if values.len() > 1 { ROUNDS } else { 1 };
    let frames = (args.frames as usize).div_ceil(rounds);
    let total = values.len() * (args.warmup as usize + rounds * frames);
    let mut progress = Progress::new(total as u64);
    progress.show(0, "loading");
    let gauge = args.power.map(Gauge::new).transpose()?;
    let mut lanes = Vec::new();
    for value in &values {
        let mut lane = Lane::new(args, value.as_ref())?;
        lane.warm_up(args.warmup as usize, &mut progress)?;
        lanes.push(lane);
    }
    let mut measured: Vec<Vec<Round>> = lanes.iter().map(|_| Vec::new()).collect();
    let mut done = values.len() * args.warmup as usize;
    for _ in 0..rounds {
        // In turns, so that what else the machine does hits all of them alike.
        for (lane, measured) in lanes.iter_mut().zip(&mut measured) {
            let start = Instant::now();
            let mut round = lane.measure(frames, &mut |n| {
                progress.show((done + n) as u64, "measuring")
            })?;
            round.gpu = gauge.as_ref().map(|gauge| gauge.since(start));
            measured.push(round);
            done += frames;
        }
    }
    drop(progress);
    let results: Vec<Value> = lanes
        .iter()
        .zip(&values)
        .zip(&measured)
        .map(|((lane, value), rounds)| lane.result(args, value.as_ref(), rounds))
        .collect();
    print(&match args.json {
        true => document(args, &results, &measured)?,
        false => report(args, &results, &measured),
    })?;
    Ok(ExitCode::SUCCESS)
}

fn model(args: &Args) -> Option<&Path> {
    args.folder.as_deref().or(args.model.as_deref())
}

fn settings(args: &Args, compared: Option<&Setting>) -> Vec<Setting> {
    let mut settings = args.device.map_or(Vec::new(), Device::settings);
    if let Some((width, height)) = args.size {
        settings.push(Setting::new("width", width));
        settings.push(Setting::new("height", height));
    }
    settings.extend(args.set.iter().cloned());
    settings.extend(compared.cloned());
    settings
}

/// One setting for each of the values that are compared.
fn compared(setting: &Setting) -> Result<Vec<Setting>, Failure> {
    let separator = if setting.value.contains('|') {
        '|'
    } else {
        ','
    };
    let values: Vec<_> = setting.value.split(separator).map(str::trim).collect();
    if values.len() < 2 {
        return Err(Failure::usage(format!(
            "--compare {}={}: expected two values or more, with commas between",
            setting.name, setting.value
        )));
    }
    let setting = |value| Setting::new(&setting.name, value);
    Ok(values.into_iter().map(setting).collect())
}

impl Lane {
    /// Nothing is loaded yet.
    fn new(args: &Args, compared: Option<&Setting>) -> Result<Self, Failure> {
        let player = Player::new(model(args), &settings(args, compared))?;
        let folder = ModelFolder::open(&player.model()?)?;
        let size = args.size.unwrap_or_else(|| own_size(&folder));
        let group = player.element().property::<u32>("frame-buffer-size") as usize;
        Ok(Self {
            player,
            size,
            next: 0,
            still: args.still,
            device: args.device,
            pace: args.rate.map(|rate| Duration::from_secs_f64(1.0 / rate)),
            group,
            loading: Duration::ZERO,
            first_frame: Duration::ZERO,
        })
    }

    fn caps(&self) -> gst::Caps {
        gst::Caps::builder("video/x-raw")
            .field("format", "RGB")
            .field("width", self.size.0 as i32)
            .field("height", self.size.1 as i32)
            .field("framerate", gst::Fraction::new(30, 1))
            .build()
    }

    /// Runs frames that are not measured, and starts anew with clean statistics.
    fn warm_up(&mut self, frames: usize, progress: &mut Progress) -> Result<(), Failure> {
        let start = Instant::now();
        self.start()?;
        // Chosen already; and once more, as loading may have moved on.
        self.check_device()?;
        self.player.wait_for_model()?;
        self.check_device()?;
        self.loading = start.elapsed();
        let mut first = None;
        let mut n = 0;
        // A stream holds frames back, so that it may take more until the first is seen.
        while n < frames || (first.is_none() && n < 8 * 16) {
            self.push()?;
            n += 1;
            if !self.player.take().is_empty() {
                first.get_or_insert_with(|| start.elapsed());
            }
            progress.show(n.min(frames) as u64, "warming up");
        }
        self.first_frame = first.ok_or_else(|| Failure::new("no frame came out of the element"))?;
        self.player.stop();
        self.start()?;
        // The stream fills: these frames cost less than those after them.
        while self.player.take().is_empty() {
            self.push()?;
        }
        Ok(())
    }

    fn check_device(&self) -> Result<(), Failure> {
        let check = |device: Device| device.check(self.player.element());
        self.device.map_or(Ok(()), check)
    }

    fn start(&mut self) -> Result<(), Failure> {
        self.player.start()?;
        self.player.set_caps(&self.caps())
    }

    /// Pushes the next frame; how long the element took for it.
    fn push(&mut self) -> Result<Duration, Failure> {
        let mut buffer =
            gst::Buffer::from_mut_slice(pattern(self.size, if self.still { 0 } else { self.next }));
        if let Some(buffer) = buffer.get_mut() {
            buffer.set_pts(gst::ClockTime::from_useconds(self.next * 33_333));
            buffer.set_duration(gst::ClockTime::from_useconds(33_333));
        }
        self.next += 1;
        let start = Instant::now();
        self.player.push(buffer)?;
        Ok(start.elapsed())
    }

    fn measure(&mut self, frames: usize, tell: &mut dyn FnMut(usize)) -> Result<Round, Failure> {
        let mut times = Vec::new();
        let (start, mut pushed) = (Instant::now(), 0);
        // Whole groups: the last frame of a group has the work of all of them.
        for n in 0..frames.div_ceil(self.group) {
            let mut time = Duration::ZERO;
            for _ in 0..self.group {
                if let Some(pace) = self.pace {
                    std::thread::sleep((pace * pushed).saturating_sub(start.elapsed()));
                }
                time += self.push()?;
                pushed += 1;
            }
            self.player.take();
            times.push(time / self.group as u32);
            tell(((n + 1) * self.group).min(frames));
        }
        Ok(Round {
            times,
            took: start.elapsed(),
            gpu: None,
        })
    }

    fn result(&self, args: &Args, compared: Option<&Setting>, rounds: &[Round]) -> Value {
        let stats = self.player.element().property::<gst::Structure>("stats");
        let number = |name: &str| stats.get::<f64>(name).unwrap_or(0.0);
        let stage = |name: &str| json!({"p50": number(&format!("{name}-ms-p50")), "p95": number(&format!("{name}-ms-p95"))});
        let side = |name: &str| stats.get::<u32>(name).unwrap_or(0);
        let text = |name: &str| stats.get::<String>(name).unwrap_or_default();
        let mut times: Vec<Duration> = rounds
            .iter()
            .flat_map(|r| r.times.iter().copied())
            .collect();
        times.sort_unstable();
        let mut rates: Vec<f64> = rounds.iter().map(Round::fps).collect();
        let p50 = |name: &str| number(&format!("{name}-ms-p50"));
        // Of a group, what one frame has of it.
        let engines = (p50("encode") + p50("denoise") + p50("decode")) / self.group as f64;
        let middle = ms(quantile(&times, 0.5));
        let settings: serde_json::Map<String, Value> = settings(args, compared)
            .into_iter()
            .map(|setting| (setting.name, json!(setting.value)))
            .collect();
        let mut result = json!({
            "model": text("model"),
            "backend": text("backend"),
            "device": text("device"),
            "launched": text("launched"),
            "precomputed": text("precomputed"),
            "settings": settings,
            "frame_size": [self.size.0, self.size.1],
            "size": [side("width"), side("height")],
            "frames": times.len() * self.group,
            "skipped": stats.get::<u64>("skipped").unwrap_or(0),
            "load_ms": ms(self.loading),
            "first_frame_ms": ms(self.first_frame),
            "encode_ms": stage("encode"),
            "denoise_ms": stage("denoise"),
            "decode_ms": stage("decode"),
            "frame_ms": {"p50": middle, "p95": ms(quantile(&times, 0.95))},
            "fps": median(&mut rates),
        });
        // Of frames that were skipped nothing is the networks'.
        if result["skipped"] == 0 {
            result["outside_ms"] = json!((middle - engines).max(0.0));
        }
        let readings: Vec<_> = rounds.iter().filter_map(|r| Some((r, r.gpu?))).collect();
        if !readings.is_empty() {
            let took: f64 = readings.iter().map(|(r, _)| r.took.as_secs_f64()).sum();
            // Over time: a round that took longer counts more.
            let mean = |of: fn(&Reading) -> f64| {
                let sum = readings
                    .iter()
                    .map(|(r, gpu)| of(gpu) * r.took.as_secs_f64());
                sum.sum::<f64>() / took
            };
            let frames: usize = readings
                .iter()
                .map(|(r, _)| r.times.len() * self.group)
                .sum();
            let power = mean(|gpu| gpu.power);
            result["gpu"] = json!({
                "power_w": power,
                "energy_per_frame_j": power * took / frames as f64,
                "use_percent": mean(|gpu| gpu.busy),
                "memory_mib": mean(|gpu| gpu.memory),
            });
        }
        result
    }
}

/// Frame `k` of a pattern that moves all over, so that no two frames are alike: RGB, rows padded to four bytes.
fn pattern((width, height): (u32, u32), k: u64) -> Vec<u8> {
    let stride = (width as usize * 3).next_multiple_of(4);
    let mut pixels = vec![0; stride * height as usize];
    let k = k as u32;
    for (y, row) in (0u32..).zip(pixels.chunks_exact_mut(stride)) {
        for (x, pixel) in (0u32..).zip(row.chunks_exact_mut(3).take(width as usize)) {
            let (right, down) = (
                x.wrapping_add(k.wrapping_mul(17)),
                y.wrapping_sub(k.wrapping_mul(11)),
            );
            let square = ((right >> 5) ^ (down >> 5)) & 1;
            pixel[0] = (right ^ down) as u8;
            pixel[1] = (square * 190 + (down & 63)) as u8;
            pixel[2] = right.wrapping_add(down).wrapping_mul(3) as u8;
        }
    }
    pixels
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// The `share` quantile of sorted times.
fn quantile(times: &[Duration], share: f64) -> Duration {
    let index = (times.len().saturating_sub(1) as f64 * share).round() as usize;
    times.get(index).copied().unwrap_or_default()
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(0.0)
}

/// How much faster each lane is than the first: the median over the rounds.
fn ratios(measured: &[Vec<Round>]) -> Vec<f64> {
    let first = measured.first().map_or(&[][..], Vec::as_slice);
    measured
        .iter()
        .map(|rounds| {
            let pairs = rounds.iter().zip(first);
            median(&mut pairs.map(|(a, b)| a.fps() / b.fps()).collect::<Vec<_>>())
        })
        .collect()
}

/// The processor's name and the number of its cores that this process may use.
fn machine() -> (String, usize) {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = text.lines().find_map(|line| {
        let (key, value) = line.split_once(':')?;
        (key.trim() == "model name").then(|| value.trim().to_owned())
    });
    let cores = std::thread::available_parallelism().map_or(1, |n| n.get());
    (name.unwrap_or_else(|| std::env::consts::ARCH.into()), cores)
}

/// The most memory the process ever had, in bytes, where the system tells.
fn peak_memory() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

fn document(args: &Args, results: &[Value], measured: &[Vec<Round>]) -> Result<String, Failure> {
    let (cpu, cores) = machine();
    let mut document = json!({
        "machine": {"cpu": cpu, "cores": cores},
        "version": env!("CARGO_PKG_VERSION"),
        "peak_memory_bytes": peak_memory(),
        "results": results,
    });
    if let Some(setting) = &args.compare {
        document["compared"] = json!(setting.name);
        document["ratios"] = json!(ratios(measured));
    }
    serde_json::to_string_pretty(&document)
        .map(|text| text + "\n")
        .map_err(|error| Failure::new(error.to_string()))
}

fn report(args: &Args, results: &[Value], measured: &[Vec<Round>]) -> String {
    let mut text = String::new();
    let number = |value: &Value| value.as_f64().unwrap_or(0.0);
    let word = |value: &Value| value.as_str().map(shown).unwrap_or_default();
    let (cpu, cores) = machine();
    for (result, ratio) in results.iter().zip(ratios(measured)) {
        if let Some(setting) = &args.compare {
            let value = word(&result["settings"][&setting.name]);
            text += &format!("{} = {value}\n", setting.name);
        }
        let mut row = |name: &str, value: String| text += &format!("  {name:<12} {value}\n");
        row("model", word(&result["model"]));
        row(
            "size",
            format!("{}x{}", result["size"][0], result["size"][1]),
        );
        row("ahead", word(&result["precomputed"]));
        // Lanes of one model share it, so only the first loads it.
        if number(&result["load_ms"]) >= 1.0 {
            row("loading", format!("{:.0} ms", number(&result["load_ms"])));
        }
        row(
            "first frame",
            format!(
                "{:.0} ms after the start, loading included",
                number(&result["first_frame_ms"])
            ),
        );
        for (name, key) in [
            ("encode", "encode_ms"),
            ("denoise", "denoise_ms"),
            ("decode", "decode_ms"),
            ("frame", "frame_ms"),
        ] {
            let times = &result[key];
            let (p50, p95) = (number(&times["p50"]), number(&times["p95"]));
            row(name, format!("{p50:8.2} ms p50 {p95:9.2} ms p95"));
        }
        if let Some(outside) = result.get("outside_ms") {
            let outside = number(outside);
            row(
                "outside",
                format!("{outside:8.2} ms of a frame is not the networks'"),
            );
        }
        if let Some(gpu) = result.get("gpu") {
            row(
                "GPU",
                format!(
                    "{:.1} W, {:.3} J a frame, {:.0} % in use, {:.0} MiB",
                    number(&gpu["power_w"]),
                    number(&gpu["energy_per_frame_j"]),
                    number(&gpu["use_percent"]),
                    number(&gpu["memory_mib"])
                ),
            );
        }
        if result["launched"] != "" {
            row("launched", word(&result["launched"]));
        }
        if result["skipped"] != 0 {
            row(
                "skipped",
                format!("{} frames, by the similarity filter", result["skipped"]),
            );
        }
        let mut rate = format!(
            "{:.2} frames/s over {} frames",
            number(&result["fps"]),
            result["frames"]
        );
        if results.len() > 1 {
            rate += &format!(", {ratio:.3} of the first (median of {ROUNDS} rounds in turns)");
        }
        row("rate", rate);
        text.push('\n');
    }
    if let Some(peak) = peak_memory() {
        text += &format!("Peak memory {}. ", bytes(peak));
    }
    let backend = results
        .first()
        .map(|r| word(&r["backend"]))
        .unwrap_or_default();
    text += &format!("{cpu}, {cores} cores, {backend}.\n");
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_of_the_pattern_differ_widely() {
        let (a, b) = (pattern((67, 33), 0), pattern((67, 33), 1));
        assert_eq!(a.len(), 204 * 33);
        let different = a
            .iter()
            .zip(&b)
            .filter(|(a, b)| a.abs_diff(**b) > 16)
            .count();
        assert!(different * 2 > a.len(), "{different} of {}", a.len());
    }

    #[test]
    fn middles() {
        assert_eq!(median(&mut [3.0, 1.0, 2.0]), 2.0);
        let times: Vec<_> = (1..=100).map(Duration::from_millis).collect();
        assert_eq!(ms(quantile(&times, 0.95)), 95.0);
        assert_eq!(quantile(&[], 0.5), Duration::ZERO);
        let values = |text| {
            let setting = Setting::parse(text).unwrap();
            compared(&setting).map(|all| all.into_iter().map(|s| s.value).collect::<Vec<_>>())
        };
        assert_eq!(values("steps=1,2").unwrap(), ["1", "2"]);
        assert_eq!(values("t-index-list=1,2|3").unwrap(), ["1,2", "3"]);
        assert!(values("steps=1").is_err());
    }
}
