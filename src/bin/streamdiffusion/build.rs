//! `streamdiffusion build`: makes a model's TensorRT engines ahead of time. No GPU is needed.

use std::fmt::Write;
use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use gststreamdiffusion::engine::cache::{Cache, Hashes, Key, Order, Outcome, free};
use gststreamdiffusion::engine::tensorrt::builder::{self, ComputeCapability};
use gststreamdiffusion::engine::tensorrt::{
    Cost, Part, Profile, Recipe, Severity, Span, library, parser, set_sink,
};
use gststreamdiffusion::error::Error;
use gststreamdiffusion::model::{Component, ModelFolder};
use parking_lot::{Condvar, Mutex};

use crate::failure::Failure;
use crate::interrupt;
use crate::memory;
use crate::printing::{bytes, print, shown};
use crate::progress::Progress;

/// Rows that a U-Net call has at most with one frame at a time: four steps, each with a negative prompt.
const ROWS: usize = 8;
/// Time between two looks at the builds.
const PAUSE: Duration = Duration::from_millis(100);

/// Build the TensorRT engines of a model ahead of time. No GPU is needed.
///
/// Engines are kept in the user's cache folder, where the element finds them; those that are there already are left as they
/// are. One engine serves all GPUs from compute capability 8.0 (RTX 30) on, unless --compute-capability chooses.
#[derive(clap::Args)]
pub struct Args {
    /// Model folder; the bundled demo model if left out
    folder: Option<PathBuf>,
    /// Picture size, such as 512x512, or a range of it: 384..1024 for both sides, or 512x384..1024x768. The model's
    /// own if left out
    #[arg(long, value_name = "SIZE", value_parser = sizes)]
    size: Option<Sizes>,
    /// Rows of a U-Net call, as a range. It takes as many as there are steps, twice as many with cfg-type=full, and that
    /// times frame-buffer-size. The default, 1..8 times --frame-buffer-size, covers up to four steps in all modes
    #[arg(long, value_name = "MIN..MAX", value_parser = range)]
    batch: Option<(usize, usize)>,
    /// The element's frame-buffer-size, at most
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = count)]
    frame_buffer_size: usize,
    /// Length of prompts, in chunks of the text encoder (75 words or so), as a range. Longer prompts are cut. 1 if left out
    #[arg(long, value_name = "MIN..MAX", value_parser = range)]
    chunks: Option<(usize, usize)>,
    /// Which components, with commas between: unet, vae_encoder, vae_decoder. All if left out
    #[arg(long, value_name = "LIST", value_delimiter = ',', value_parser = component)]
    components: Vec<Component>,
    /// GPUs to build for, by compute capability, with commas between, such as 8.9 for RTX 40 and 12.0 for RTX 50. RTX 20
    /// (7.5) is not among those that are served without it
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    compute_capability: Vec<ComputeCapability>,
    /// Folder for the engines; the user's cache folder if left out
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Components built at the same time, as far as there is memory
    #[arg(short, long, value_name = "N", default_value_t = 1, value_parser = count)]
    jobs: usize,
    /// Only say what would be built, and what it would take
    #[arg(long)]
    dry_run: bool,
}

/// Widths and heights, from and to.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Sizes {
    width: (usize, usize),
    height: (usize, usize),
}

fn sizes(text: &str) -> Result<Sizes, String> {
    let expected = || {
        "expected WIDTHxHEIGHT in pixels, such as 512x512, or MIN..MAX for both sides, such as 384..1024"
            .to_owned()
    };
    let side = |text: &str| text.parse().ok().filter(|side| (8..=8192).contains(side));
    let pair = |text: &str| match text.split_once('x') {
        Some((width, height)) => Some((side(width)?, side(height)?)),
        None => side(text).map(|side| (side, side)),
    };
    let (from, to) = match text.split_once("..") {
        Some((from, to)) => (pair(from), pair(to)),
        // A single number would leave open which side it is.
        None if text.contains('x') => (pair(text), pair(text)),
        None => (None, None),
    };
    let ((w, h), (width, height)) = from.zip(to).ok_or_else(expected)?;
    match w <= width && h <= height {
        true => Ok(Sizes {
            width: (w, width),
            height: (h, height),
        }),
        false => Err("expected the smaller size first".into()),
    }
}

fn count(text: &str) -> Result<usize, String> {
    let number = text.parse().ok().filter(|n| (1..=64).contains(n));
    number.ok_or_else(|| "expected a whole number from 1 to 64".into())
}

fn range(text: &str) -> Result<(usize, usize), String> {
    let (from, to) = text.split_once("..").unwrap_or((text, text));
    let number = |text: &str| text.parse().ok().filter(|n| (1..=256).contains(n));
    match (number(from), number(to)) {
        (Some(from), Some(to)) if from <= to => Ok((from, to)),
        _ => Err("expected MIN..MAX, from 1 to 256, such as 1..4".into()),
    }
}

fn component(text: &str) -> Result<Component, String> {
    let mut all = Recipe::COMPONENTS.into_iter();
    let found = all.find(|component| component.folder() == text);
    found.ok_or_else(|| "expected unet, vae_encoder or vae_decoder".into())
}

/// Runs the command; says what TensorRT says, if `verbose`.
pub fn build(args: &Args, verbose: bool) -> Result<ExitCode, Failure> {
    interrupt::watch()?;
    if verbose {
        set_sink(|severity, message| {
            if severity <= Severity::Info {
                eprintln!("TensorRT: {}", shown(message.trim_end()));
            }
        });
    }
    let path = match &args.folder {
        Some(folder) => folder.clone(),
        None => gststreamdiffusion::bundled_model()?,
    };
    let folder = ModelFolder::open(&path)?;
    let profile = profile(args, &folder);
    profile.check(&folder)?;
    let tensorrt = library()?;
    parser()?;
    let cache = Cache::new(args.out.as_deref())?;

    let plans = plans(args, &folder, &profile, &cache)?;
    let missing = plans.iter().filter(|plan| !plan.path.exists());
    let cost = Cost::sum(missing.map(|plan| plan.cost));
    print(&report(
        &format!("{tensorrt} ({})", tensorrt.path.display()),
        &folder,
        &profile,
        &cache,
        &plans,
        args.jobs,
    ))?;
    if args.dry_run {
        return Ok(ExitCode::SUCCESS);
    }
    let room = nearest(cache.folder()).and_then(|folder| free(&folder));
    if let Some(room) = room.filter(|room| *room < cost.disk) {
        return Err(Failure::new(format!(
            "{} has too little room: {} are free, {} may be needed; --out names another folder",
            cache.folder().display(),
            bytes(room),
            bytes(cost.disk)
        )));
    }
    let largest = plans.iter().map(|plan| plan.cost.memory).max().unwrap_or(0);
    let available = memory::available();
    if available.is_some_and(|available| available < largest) {
        eprintln!(
            "streamdiffusion: {} of memory may be needed, {} are available: this may be slow, or be ended by the system",
            bytes(largest),
            bytes(available.unwrap_or(0))
        );
    }

    let results = run(args, &path, &cache, &plans, available);
    let mut failed = false;
    for (plan, result) in plans.iter().zip(results) {
        match result {
            Ok(outcome) => print(&told(plan, &outcome))?,
            Err(error) => {
                failed = true;
                eprintln!("streamdiffusion: {error}");
            }
        }
    }
    Ok(match failed {
        true => ExitCode::FAILURE,
        false => ExitCode::SUCCESS,
    })
}

/// The calls to build for: what was asked for, else what the model says, else what is usual.
fn profile(args: &Args, folder: &ModelFolder) -> Profile {
    let defaults = &folder.manifest().defaults;
    let (width, height) = Profile::own_size(folder);
    let sizes = args.size.unwrap_or(Sizes {
        width: (width, width),
        height: (height, height),
    });
    let frames = args.frame_buffer_size;
    let (min, max) = args.batch.unwrap_or((1, ROWS * frames));
    let steps = match &defaults.t_index_list {
        Some(list) => list.len(),
        None => defaults.steps.unwrap_or(2),
    };
    let usual = frames
        * match defaults.cfg_type.as_deref() {
            Some("full") => 2 * steps,
            Some("initialize") => steps + 1,
            _ => steps,
        };
    let (chunks, most) = args.chunks.unwrap_or((1, 1));
    Profile {
        rows: Span::new(min, usual, max),
        frames: Span::new(1, frames, frames),
        width: Span::new(sizes.width.0, width, sizes.width.1),
        height: Span::new(sizes.height.0, height, sizes.height.1),
        chunks: Span::new(chunks, chunks, most),
    }
}

/// An engine to build.
struct Plan<'a> {
    recipe: Recipe<'a>,
    key: Key,
    path: PathBuf,
    cost: Cost,
}

impl Plan<'_> {
    fn name(&self) -> String {
        let component = self.recipe.component();
        match self.recipe.part() {
            Part::Whole => component.to_string(),
            Part::Live => format!("{component} (live part)"),
        }
    }
}

fn plans<'a>(
    args: &Args,
    folder: &'a ModelFolder,
    profile: &Profile,
    cache: &Cache,
) -> Result<Vec<Plan<'a>>, Failure> {
    let mut components = match args.components.is_empty() {
        true => Recipe::COMPONENTS.to_vec(),
        false => args.components.clone(),
    };
    components.sort_by_key(|component| *component as usize);
    components.dedup();
    let mut recipes = Vec::new();
    for component in components {
        recipes.push(Recipe::new(folder, component, profile)?);
    }
    let total = recipes.iter().map(Recipe::weights).sum();
    let mut progress = Progress::new(total);
    let mut hashes = Hashes::open(cache);
    let mut done = 0;
    let mut plans = Vec::new();
    for recipe in recipes {
        let name = format!("reading {}", recipe.component());
        let mut tell = |bytes| {
            done += bytes;
            progress.show(done, &name);
        };
        let key = recipe.key(&args.compute_capability, &mut hashes, &mut tell)?;
        plans.push(Plan {
            path: cache.path(&key),
            cost: recipe.cost(),
            key,
            recipe,
        });
    }
    hashes.save();
    Ok(plans)
}

/// What will be built, before it is.
fn report(
    tensorrt: &str,
    folder: &ModelFolder,
    profile: &Profile,
    cache: &Cache,
    plans: &[Plan],
    jobs: usize,
) -> String {
    let mut text = String::new();
    // Writing to a string cannot fail.
    let mut row = |key: &str, value: &str| {
        let _ = writeln!(text, "  {key:<11} {}", shown(value));
    };
    row("model", &folder.path().display().to_string());
    row("builder", tensorrt);
    row("engines", &cache.folder().display().to_string());
    row(
        "size",
        &match (profile.width, profile.height) {
            (w, h) if w.min == w.max && h.min == h.max => format!("{}x{}", w.min, h.min),
            (w, h) => format!("{}x{} to {}x{}", w.min, h.min, w.max, h.max),
        },
    );
    row("U-Net rows", &profile.rows.to_string());
    row(
        "GPUs",
        &match plans
            .first()
            .map(|plan| plan.key.compute_capability.as_str())
        {
            Some("any") => "compute capability 8.0 and later".into(),
            Some(some) => format!("compute capability {some}"),
            None => "none".into(),
        },
    );
    for plan in plans {
        let state = match plan.path.exists() {
            true => "there already".into(),
            false => format!(
                "about {} s, {} of memory, {} on disk",
                plan.cost.seconds.ceil(),
                bytes(plan.cost.memory),
                bytes(plan.cost.disk)
            ),
        };
        row(&plan.recipe.component().to_string(), &state);
        if let Some(why) = &plan.recipe.why_whole {
            row("", &format!("in one piece: {why}"));
        }
    }
    let missing = plans.iter().filter(|plan| !plan.path.exists());
    let cost = Cost::sum(missing.map(|plan| plan.cost));
    if cost.disk > 0 && plans.len() > 1 {
        let times = match jobs {
            1 => format!("about {} s", cost.seconds.ceil()),
            _ => format!("about {} s in turns", cost.seconds.ceil()),
        };
        row("in all", &format!("{times}, {} on disk", bytes(cost.disk)));
    }
    text
}

/// The nearest folder above `path` that is there.
fn nearest(path: &Path) -> Option<PathBuf> {
    let mut above = path.ancestors();
    above.find(|path| path.is_dir()).map(Path::to_owned)
}

/// What a build shows of itself.
#[derive(Default)]
struct State {
    start: Option<Instant>,
    done: bool,
    phase: String,
}

struct Watch(Arc<Mutex<State>>);

impl builder::Progress for Watch {
    fn step(&self, phase: &str, _: usize, _: usize) -> ControlFlow<()> {
        let mut state = self.0.lock();
        state.phase.clear();
        state.phase.push_str(phase);
        ControlFlow::Continue(())
    }
}

/// Builds what is missing, several at a time as far as memory goes; what came of each.
fn run(
    args: &Args,
    model: &Path,
    cache: &Cache,
    plans: &[Plan],
    available: Option<u64>,
) -> Vec<Result<Outcome, Error>> {
    let states: Vec<Arc<Mutex<State>>> = plans.iter().map(|_| Arc::default()).collect();
    let results: Vec<Mutex<Option<Result<Outcome, Error>>>> =
        plans.iter().map(|_| Mutex::new(None)).collect();
    let queue = Queue::new(plans.iter().map(|plan| plan.cost.memory), available);
    std::thread::scope(|scope| {
        for _ in 0..args.jobs.min(plans.len()) {
            scope.spawn(|| {
                while let Some(i) = queue.take() {
                    let work = || one(args, model, cache, &plans[i], &states[i]);
                    // Else the bar, and builds that wait for memory, would wait for ever.
                    let result = catch_unwind(AssertUnwindSafe(work))
                        .unwrap_or_else(|_| Err(Error::engine("build", "panicked; this is a bug")));
                    *results[i].lock() = Some(result);
                    states[i].lock().done = true;
                    queue.give_back(i);
                }
            });
        }
        show(plans, &states);
    });
    let results = results.into_iter().map(Mutex::into_inner);
    results
        .map(|result| {
            result.unwrap_or_else(|| Err(Error::engine("build", "ended without a result")))
        })
        .collect()
}

fn one(
    args: &Args,
    model: &Path,
    cache: &Cache,
    plan: &Plan,
    state: &Arc<Mutex<State>>,
) -> Result<Outcome, Error> {
    state.lock().start = Some(Instant::now());
    let model = std::path::absolute(model).unwrap_or_else(|_| model.to_owned());
    let order = Order {
        key: &plan.key,
        model: &model,
        room: plan.cost.disk,
        serves: plan.recipe.serves().clone(),
    };
    let waits = || {
        state.lock().phase = "waiting for another build of it".into();
        Ok(())
    };
    cache.build(&order, waits, || {
        let mut now = state.lock();
        now.start = Some(Instant::now());
        now.phase = "reading".into();
        drop(now);
        let watch = Arc::new(Watch(state.clone()));
        (plan.recipe).build_for(&plan.key, &args.compute_capability, cache, watch)
    })
}

/// Shows how far the builds are until all are done. TensorRT tells phases, of which one takes most of the time, so the
/// bar goes by the time that was expected.
fn show(plans: &[Plan], states: &[Arc<Mutex<State>>]) {
    let expected = |plan: &Plan| (plan.cost.seconds * 1000.0) as u64;
    let mut progress = Progress::new(plans.iter().map(expected).sum());
    loop {
        let (mut sum, mut all, mut what) = (0, true, String::new());
        for (plan, state) in plans.iter().zip(states) {
            let state = state.lock();
            let gone = state
                .start
                .map_or(0, |start| start.elapsed().as_millis() as u64);
            sum += match state.done {
                true => expected(plan),
                // It may take longer.
                false => gone.min(expected(plan) * 97 / 100),
            };
            all &= state.done;
            if !state.done && state.start.is_some() {
                what = format!("{}: {}", plan.recipe.component(), state.phase);
            }
        }
        if all {
            return;
        }
        progress.show(sum, &what);
        std::thread::sleep(PAUSE);
    }
}

fn told(plan: &Plan, outcome: &Outcome) -> String {
    let path = plan.path.display();
    let name = plan.name();
    match outcome {
        Outcome::Present(record) => {
            format!("{name}: there already, {}, {path}\n", bytes(record.size))
        }
        Outcome::Built { record, why } => format!(
            "{name}: built in {:.1} s, {}, {path}\n  ({})\n",
            record.made.took_seconds,
            bytes(record.size),
            shown(why)
        ),
    }
}

/// Jobs in turn, the largest first, of which as many run as memory allows.
struct Queue {
    waiting: Mutex<Waiting>,
    changed: Condvar,
    memory: Vec<u64>,
    available: u64,
}

struct Waiting {
    jobs: Vec<usize>,
    used: u64,
}

impl Queue {
    fn new(memory: impl Iterator<Item = u64>, available: Option<u64>) -> Self {
        let memory: Vec<u64> = memory.collect();
        let mut jobs: Vec<usize> = (0..memory.len()).collect();
        jobs.sort_by_key(|job| std::cmp::Reverse(memory[*job]));
        Self {
            waiting: Mutex::new(Waiting { jobs, used: 0 }),
            changed: Condvar::new(),
            memory,
            available: available.unwrap_or(u64::MAX),
        }
    }

    /// The next job that fits beside those that run, waited for; `None` when none is left.
    fn take(&self) -> Option<usize> {
        let mut waiting = self.waiting.lock();
        loop {
            if waiting.jobs.is_empty() {
                return None;
            }
            let (used, fits) = (waiting.used, |job: &usize| {
                // One that never fits runs alone.
                waiting.used == 0 || waiting.used + self.memory[*job] <= self.available
            });
            if let Some(i) = waiting.jobs.iter().position(fits) {
                let job = waiting.jobs.remove(i);
                waiting.used = used + self.memory[job];
                return Some(job);
            }
            self.changed.wait(&mut waiting);
        }
    }

    fn give_back(&self, job: usize) {
        self.waiting.lock().used -= self.memory[job];
        self.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_one_or_a_range() {
        let of = |w, h| Sizes {
            width: w,
            height: h,
        };
        assert_eq!(sizes("512x384"), Ok(of((512, 512), (384, 384))));
        assert_eq!(sizes("384..1024"), Ok(of((384, 1024), (384, 1024))));
        assert_eq!(sizes("512x384..1024x768"), Ok(of((512, 1024), (384, 768))));
        for wrong in [
            "",
            "512",
            "x",
            "0x8",
            "1024..512",
            "512x",
            "8x9000",
            "1..2..3",
            "64x64..32x64",
        ] {
            assert!(sizes(wrong).is_err(), "{wrong}");
        }
        assert_eq!(range("1..4"), Ok((1, 4)));
        assert_eq!(range("3"), Ok((3, 3)));
        for wrong in ["", "0..4", "4..1", "a", "1..", "1..999"] {
            assert!(range(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn jobs_run_together_only_as_far_as_memory_goes() {
        let queue = Queue::new([2, 9, 4].into_iter(), Some(6));
        // The largest does not fit at all, so it runs alone.
        assert_eq!(queue.take(), Some(1));
        queue.give_back(1);
        assert_eq!(queue.take(), Some(2));
        assert_eq!(queue.take(), Some(0));
        queue.give_back(2);
        queue.give_back(0);
        assert_eq!(queue.take(), None);
    }
}
