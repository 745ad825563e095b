//! Engines that are built while a model loads.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::super::builder;
use super::super::library;
use super::super::recipe::{Cost, Part, Profile, Recipe};
use super::command::command;
use super::{Building, Gpu, Supply, Wanted, told};
use crate::engine::BuildProgress;
use crate::engine::built::ANY;
use crate::engine::cache::{Cache, Hashes, Order, Outcome};
use crate::error::{Error, Result};
use crate::model::ModelFolder;

/// The least time between two reports of how far a build is.
const PAUSE: Duration = Duration::from_millis(250);

/// How far a build of several engines is.
struct Watch {
    building: Building,
    /// What is built now, for people.
    name: String,
    /// Seconds that it will take, that those before it were to take, and all.
    seconds: f64,
    before: f64,
    all: f64,
    start: Instant,
    told: Mutex<Option<Instant>>,
}

impl builder::Progress for Watch {
    fn step(&self, phase: &str, _: usize, _: usize) -> ControlFlow<()> {
        if self.building.stop.load(Ordering::SeqCst) {
            return ControlFlow::Break(());
        }
        let now = Instant::now();
        let mut told = self.told.lock();
        if told.is_none_or(|told| now >= told + PAUSE) {
            *told = Some(now);
            drop(told);
            // TensorRT tells phases, of which one takes most of the time: it goes by the time that was expected.
            let gone = (now - self.start).as_secs_f64().min(0.97 * self.seconds);
            let percent = (100.0 * (self.before + gone) / self.all.max(1e-3)) as u32;
            let what = format!("building the engine of {}: {phase}", self.name);
            (self.building.tell)(BuildProgress::Continues(what, percent.min(99)));
        }
        ControlFlow::Continue(())
    }
}

/// Builds the engines of all components for what is wanted.
pub(super) fn build(
    folder: &ModelFolder,
    wanted: &Wanted,
    gpu: Gpu,
    cache: &Cache,
    building: &Building,
) -> Result<Supply> {
    library::parser()?;
    let ended = || match building.stop.load(Ordering::SeqCst) {
        true => Err(Error::engine("engines", "the build was ended, as asked")),
        false => Ok(()),
    };
    let capabilities = gpu.capabilities()?;
    let profile = Profile::for_wanted(folder, wanted);
    let mut recipes = Vec::new();
    for component in Recipe::COMPONENTS {
        ended()?;
        recipes.push(Recipe::new(folder, component, &profile)?);
    }
    let all = Cost::sum(recipes.iter().map(Recipe::cost)).seconds;
    let model = std::path::absolute(folder.path()).unwrap_or_else(|_| folder.path().to_owned());
    let (mut keys, mut origins, mut before) = (Vec::new(), Vec::new(), 0.0);
    for recipe in &recipes {
        ended()?;
        let name = match recipe.part() {
            Part::Live => format!("{} (live part)", recipe.component().folder()),
            Part::Whole => recipe.component().folder().to_owned(),
        };
        let percent = (100.0 * before / all.max(1e-3)) as u32;
        let tell = |what: String| (building.tell)(BuildProgress::Continues(what, percent));
        tell(format!("reading {name}"));
        let mut hashes = Hashes::open(cache);
        let key = recipe.key(&capabilities, &mut hashes, &mut |_| ())?;
        let cost = recipe.cost();
        let order = Order {
            key: &key,
            model: &model,
            room: cost.disk,
            serves: recipe.serves().clone(),
        };
        let mut waiting = false;
        let waits = || {
            if !std::mem::replace(&mut waiting, true) {
                tell(format!("waiting for another build of {name}"));
            }
            ended()
        };
        let make = || {
            ended()?;
            // The folder is there now.
            hashes.save();
            let watch = Watch {
                building: building.clone(),
                name: name.clone(),
                seconds: cost.seconds,
                before,
                all,
                start: Instant::now(),
                told: Mutex::new(None),
            };
            let engine = recipe.build_for(&key, &capabilities, cache, Arc::new(watch))?;
            // What is ended now is not stored.
            ended()?;
            Ok(engine)
        };
        origins.push(match cache.build(&order, waits, make)? {
            Outcome::Present(record) => told(&record, "found"),
            Outcome::Built { record, why } => {
                format!(
                    "{} ({why})",
                    told(&record, "built when the model was loaded")
                )
            }
        });
        keys.push(key);
        before += cost.seconds;
    }
    let mut built = profile.built(command(folder, gpu)?);
    // What the graph fixes is no limit of the engines.
    for (recipe, range) in [(0, &mut built.rows), (1, &mut built.frames)] {
        let name = ["rows", "frames"][recipe];
        if !recipes[recipe].serves().contains_key(name) {
            *range = (1, ANY);
        }
    }
    if !recipes[0].serves().contains_key("chunks") {
        built.chunks = (1, ANY);
    }
    let engines = keys.try_into();
    Ok(Supply {
        engines: engines.map_err(|_| Error::engine("engines", "are not three; this is a bug"))?,
        built,
        origin: origins.join("; "),
    })
}
