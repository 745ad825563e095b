//! The engines that serve what a model is asked to do: found among those that were built, or built now.

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::builder::{self, ComputeCapability};
use super::library::{self, FLAVOUR};
use super::recipe::{Cost, Part, Profile, Recipe, Span};
use crate::engine::built::{ANY, ROWS};
use crate::engine::cache::{Cache, Hashes, Key, Order, Outcome, Record};
use crate::engine::{BuildProgress, Built, Calls};
use crate::error::{Error, Result};
use crate::model::{Component, ModelFolder};

/// Side of a picture where neither the model nor the user says it.
const SIDE: usize = 512;
/// The least time between two reports of how far a build is.
const PAUSE: Duration = Duration::from_millis(250);

/// A GPU's compute capability, whether TensorRT knows it or not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Gpu {
    /// Before the point.
    pub major: u32,
    /// After it.
    pub minor: u32,
}

impl std::fmt::Display for Gpu {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

impl Gpu {
    /// This one.
    pub fn new(major: u32, minor: u32) -> Self {
        Self { major, minor }
    }

    /// Whether engines run on it that were built for `capabilities`, as a [`Key`] has them.
    pub fn runs(self, capabilities: &str) -> bool {
        match capabilities {
            // Those that an engine is for with the compute capability left open, as TensorRT for RTX itself says.
            "any" => {
                [Self::new(8, 0), Self::new(8, 6), Self::new(8, 9)].contains(&self)
                    || self >= Self::new(12, 0)
            }
            "8.0 and later" => self >= Self::new(8, 0),
            some => some.split(' ').any(|one| one == self.to_string()),
        }
    }

    /// What an engine is built for that is to run on it, for [`Recipe::key`].
    ///
    /// # Errors
    /// [`Error::Library`] if this TensorRT has no engines for it.
    pub fn capabilities(self) -> Result<Vec<ComputeCapability>> {
        if self.runs(&builder::capabilities_name(&[])) {
            return Ok(Vec::new());
        }
        match self.to_string().parse() {
            Ok(one) if FLAVOUR == "rtx" => Ok(vec![one]),
            _ => Err(Error::Library(format!(
                "{} does not serve GPUs of compute capability {self}",
                library::library()?
            ))),
        }
    }
}

/// What a model is asked to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wanted {
    /// Its U-Net calls.
    pub calls: Calls,
    /// The width that frames are processed at; `None` where that is for the engines to say.
    pub width: Option<usize>,
    /// The height, likewise.
    pub height: Option<usize>,
}

/// The engines to run a model with, in the order of [`Recipe::COMPONENTS`].
#[derive(Debug, Clone)]
pub struct Supply {
    /// What each is found by.
    pub engines: [Key; 3],
    /// What they were built for.
    pub built: Built,
    /// Where they come from, for people.
    pub origin: String,
}

/// How engines that are missing are built.
#[derive(Clone)]
pub struct Building {
    /// Is told how far it is, on any thread.
    pub tell: Arc<dyn Fn(BuildProgress) + Send + Sync>,
    /// Ends it when it is set.
    pub stop: Arc<AtomicBool>,
}

impl Profile {
    /// The size that frames of the model are processed at where nobody says: width and height in pixels.
    pub fn own_size(folder: &ModelFolder) -> (usize, usize) {
        let defaults = &folder.manifest().defaults;
        let multiple = folder.multiple();
        let own = |side: Option<usize>, fixed: Option<usize>| {
            let side = side.or(defaults.size).unwrap_or(SIDE);
            fixed.unwrap_or_else(|| (side / multiple).max(1) * multiple)
        };
        let fixed = folder.fixed_size();
        (
            own(defaults.width, fixed.map(|(width, _)| width)),
            own(defaults.height, fixed.map(|(_, height)| height)),
        )
    }

    /// What engines are built for that are to do this, and what is usual beside it.
    pub fn for_wanted(folder: &ModelFolder, wanted: &Wanted) -> Self {
        let (width, height) = Self::own_size(folder);
        let Calls { frames, rows, .. } = wanted.calls;
        Self {
            rows: Span::new(1, rows, rows.max(ROWS * frames)),
            frames: Span::new(1, frames, frames),
            width: Span::of(wanted.width.unwrap_or(width)),
            height: Span::of(wanted.height.unwrap_or(height)),
            chunks: Span::of(1),
        }
    }

    /// The same as engines would have it, with the command that builds them.
    fn built(&self, command: String) -> Built {
        let both = |span: Span| (span.min, span.max);
        Built {
            width: both(self.width),
            height: both(self.height),
            rows: both(self.rows),
            frames: both(self.frames),
            chunks: both(self.chunks),
            command,
        }
    }
}

impl Supply {
    /// The engines in `cache` that let the model in `folder` do what is `wanted` on `gpu`. No engine is read, and files of
    /// the model only if they have to be hashed to tell whether engines are theirs.
    ///
    /// # Errors
    /// [`Error::Setting`] that names the property at fault, what engines there are, and the command that builds others;
    /// [`Error::Library`] without TensorRT.
    pub fn find(folder: &ModelFolder, wanted: &Wanted, gpu: Gpu, cache: &Cache) -> Result<Self> {
        let builder = format!("{FLAVOUR} {}", library::library()?.version);
        let command = command(folder, gpu)?;
        let (mut records, mut refused) = (Vec::new(), None);
        for entry in cache.entries()? {
            match entry.record {
                // A pair that was given another's name is nobody's.
                Ok(record) if entry.path == cache.path(&record.key) => records.push(record),
                Ok(_) => {}
                Err(error) => refused = refused.or(Some(error)),
            }
        }
        let mut hashes = Hashes::open(cache);
        let mut usable = Vec::new();
        for component in Recipe::COMPONENTS {
            let (of_component, why) =
                usable_of(folder, component, &records, &builder, gpu, &mut hashes)?;
            if of_component.is_empty() {
                hashes.save();
                let why = match &refused {
                    Some(error) => format!("{why} ({error})"),
                    None => why,
                };
                let built = Profile::for_wanted(folder, wanted).built(command);
                return Err(Error::setting(
                    "backend",
                    format!(
                        "tensorrt cannot be had: {why}. \"{}\" builds what is missing, and so does build-engines=auto when the element starts",
                        built.build_command()
                    ),
                ));
            }
            usable.push(of_component);
        }
        hashes.save();
        let [unet, encoder, decoder] = &usable[..] else {
            return Err(Error::engine("engines", "are not three; this is a bug"));
        };
        choose([unet, encoder, decoder], wanted, &command)
    }

    /// The same, and if there are none, built now if that is asked for.
    ///
    /// # Errors
    /// As [`find`](Self::find) without `building`, else what building gives; an [`Error::Engine`] if it was ended.
    pub fn provide(
        folder: &ModelFolder,
        wanted: &Wanted,
        gpu: Gpu,
        cache: &Cache,
        building: Option<&Building>,
    ) -> Result<Self> {
        let missing = match (Self::find(folder, wanted, gpu, cache), building) {
            (Err(error @ Error::Setting { .. }), Some(building)) => (error, building),
            (found, _) => return found,
        };
        let (why, building) = missing;
        (building.tell)(BuildProgress::Begun(why.to_string()));
        let built = build(folder, wanted, gpu, cache, building);
        (building.tell)(match &built {
            Ok(_) => BuildProgress::Complete,
            Err(_) if building.stop.load(Ordering::SeqCst) => BuildProgress::Cancelled,
            Err(error) => BuildProgress::Failed(error.clone()),
        });
        built
    }
}

/// The command that builds engines of the model for the GPU, less the options that say for what.
fn command(folder: &ModelFolder, gpu: Gpu) -> Result<String> {
    let path = std::path::absolute(folder.path()).unwrap_or_else(|_| folder.path().to_owned());
    let mut text = format!("streamdiffusion build {}", shell_word(&path));
    let capabilities = gpu.capabilities()?;
    if !capabilities.is_empty() {
        text += &format!(
            " --compute-capability {}",
            builder::capabilities_name(&capabilities)
        );
    }
    Ok(text)
}

/// A path as a shell takes it for one word.
fn shell_word(path: &Path) -> String {
    let text = path.display().to_string();
    let plain = |c: char| c.is_alphanumeric() || "/._-+@:,".contains(c);
    match text.chars().all(plain) {
        true => text,
        false => format!("'{}'", text.replace('\'', "'\\''")),
    }
}

/// The records of engines of a component, in the state that its files are in, that run on `gpu` and were made by `builder`;
/// and if there are none, why.
fn usable_of<'a>(
    folder: &ModelFolder,
    component: Component,
    records: &'a [Record],
    builder: &str,
    gpu: Gpu,
    hashes: &mut Hashes,
) -> Result<(Vec<&'a Record>, String)> {
    let none = |why: String| {
        let name = component.folder();
        Ok((Vec::new(), format!("no engine of {name} is there: {why}")))
    };
    let absolute = std::path::absolute(folder.path()).unwrap_or_else(|_| folder.path().to_owned());
    let all = records.iter().filter(|record| {
        record.key.component == component.folder()
            && record.key.revision == Key::new("", "").revision
    });
    let all: Vec<&Record> = all.collect();
    let of_builder = |record: &&&Record| record.key.builder == builder;
    let built: Vec<&Record> = all.iter().filter(of_builder).copied().collect();
    // Only now are files hashed, which can take seconds.
    let source = match built.is_empty() {
        true => None,
        false => {
            let file = match component {
                Component::Unet => folder.unet(),
                Component::VaeEncoder => folder.vae_encoder(),
                _ => folder.vae_decoder(),
            };
            Some(hashes.component(file, &mut |_| ())?)
        }
    };
    let of_source = |record: &&Record| Some(&record.key.source) == source.as_ref();
    let same: Vec<&Record> = built.iter().copied().filter(of_source).collect();
    let runs = |record: &&Record| gpu.runs(&record.key.compute_capability);
    let usable: Vec<&Record> = same.iter().copied().filter(runs).collect();
    if !usable.is_empty() {
        return Ok((usable, String::new()));
    }
    let of_folder = |record: &&&Record| Path::new(&record.made.model) == absolute;
    if let Some(record) = same.first() {
        return none(format!(
            "those that were built are for compute capability {}, this GPU has {gpu}",
            record.key.compute_capability
        ));
    }
    if built.iter().any(|record| of_folder(&record)) {
        return none("the model's files have changed since it was built".into());
    }
    match all.iter().find(of_folder) {
        Some(record) => none(format!(
            "it was built by {}, now {builder}",
            record.key.builder
        )),
        None => none("none has been built".into()),
    }
}

/// What an engine was built for. Whatever its record does not say is no limit.
fn built_of(record: &Record, command: &str) -> Built {
    let range = |name| record.serves.get(name).copied().unwrap_or((1, ANY));
    Built {
        width: range("width"),
        height: range("height"),
        rows: range("rows"),
        frames: range("frames"),
        chunks: range("chunks"),
        command: command.to_owned(),
    }
}

/// Whether an engine does what is wanted of it; the error says what it cannot do.
fn serves(built: &Built, wanted: &Wanted) -> Result<()> {
    built.check_size(
        wanted.width.unwrap_or(built.width.0),
        wanted.height.unwrap_or(built.height.0),
    )?;
    built.check_calls(wanted.calls)
}

/// Of the engines of each component, three that do what is wanted, together.
fn choose(usable: [&[&Record]; 3], wanted: &Wanted, command: &str) -> Result<Supply> {
    type Candidate<'a> = (&'a Record, Built);
    let mut fit: Vec<Vec<Candidate>> = Vec::new();
    for of_component in usable {
        let all = of_component.iter().map(|r| (*r, built_of(r, command)));
        let (mut good, mut refusals) = (Vec::new(), Vec::new());
        for (record, built) in all {
            match serves(&built, wanted) {
                Ok(()) => good.push((record, built)),
                // What is of the right size comes nearest.
                Err(error) => refusals.push((wrong_size(&error), error)),
            }
        }
        if good.is_empty() {
            refusals.sort_by_key(|(wrong_size, _)| *wrong_size);
            let first = refusals.into_iter().next().map(|(_, error)| error);
            return Err(first.unwrap_or_else(|| Error::engine("engines", "are none")));
        }
        // An engine for one size and few rows is the fastest for them.
        let spread = |(least, most): (usize, usize)| match most {
            // Nothing that an engine was made for.
            ANY => 0,
            most => most.saturating_sub(least),
        };
        good.sort_by_key(|(record, built)| {
            (
                record.key.part != "live",
                spread(built.width) + spread(built.height),
                spread(built.rows) + spread(built.frames),
            )
        });
        fit.push(good);
    }
    let [unets, encoders, decoders] = &fit[..] else {
        return Err(Error::engine("engines", "are not three; this is a bug"));
    };
    for (unet, of_unet) in unets {
        // Where nobody says the size, the U-Net's engine does.
        let side = |wanted: Option<usize>, built| wanted.map_or(built, |side| (side, side));
        let width = side(wanted.width, of_unet.width);
        let height = side(wanted.height, of_unet.height);
        let within = |a: (usize, usize), b: (usize, usize)| b.0 <= a.0 && a.1 <= b.1;
        let covers =
            |(_, built): &&Candidate| within(width, built.width) && within(height, built.height);
        let found = (encoders.iter().find(covers)).zip(decoders.iter().find(covers));
        if let Some(((encoder, of_encoder), (decoder, of_decoder))) = found {
            let records = [*unet, *encoder, *decoder];
            let frames = (
                of_encoder.frames.0.max(of_decoder.frames.0),
                of_encoder.frames.1.min(of_decoder.frames.1),
            );
            return Ok(Supply {
                engines: records.map(|record| record.key.clone()),
                built: Built {
                    width,
                    height,
                    frames,
                    ..of_unet.clone()
                },
                origin: records.map(|r| told(r, "found")).join("; "),
            });
        }
    }
    let (_, built) = &unets[0];
    Err(Error::setting(
        "backend",
        format!(
            "tensorrt cannot be had: the engines of the U-Net and of the autoencoder are for different sizes. \"{}\" builds those that are missing",
            built.build_command()
        ),
    ))
}

fn wrong_size(error: &Error) -> bool {
    matches!(error, Error::Setting { property, .. } if ["width", "height"].contains(property))
}

/// Where an engine comes from, for people.
fn told(record: &Record, how: &str) -> String {
    let part = match record.key.part.as_str() {
        "whole" => "",
        _ => " (live part)",
    };
    format!(
        "{}{part}: {how}, built {} in {:.1} s",
        record.key.component, record.made.at, record.made.took_seconds
    )
}

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
fn build(
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::engine::cache::Made;

    #[test]
    fn engines_run_on_the_gpus_that_they_are_for() {
        let runs = |major, minor, what| Gpu::new(major, minor).runs(what);
        for (major, minor, any, later) in [
            (7, 5, false, false),
            (8, 0, true, true),
            (8, 6, true, true),
            (8, 7, false, true),
            (8, 9, true, true),
            (9, 0, false, true),
            (10, 0, false, true),
            (12, 0, true, true),
            (12, 1, true, true),
            (13, 0, true, true),
        ] {
            assert_eq!(runs(major, minor, "any"), any, "{major}.{minor}");
            assert_eq!(
                runs(major, minor, "8.0 and later"),
                later,
                "{major}.{minor}"
            );
        }
        assert!(runs(8, 9, "8.6 8.9"));
        assert!(!runs(8, 0, "8.6 8.9"));
        assert!(!runs(12, 0, "12.1"));
    }

    #[test]
    fn paths_are_words_of_a_shell() {
        assert_eq!(
            shell_word(Path::new("/models/sd-turbo_1.5")),
            "/models/sd-turbo_1.5"
        );
        assert_eq!(
            shell_word(Path::new("/my models/it's")),
            "'/my models/it'\\''s'"
        );
    }

    fn record(component: &str, part: &str, serves: &[(&str, (usize, usize))]) -> Record {
        let serves = serves
            .iter()
            .map(|(name, range)| ((*name).to_owned(), *range));
        let serves: BTreeMap<_, _> = serves.collect();
        let mut key = Key::new(component, part);
        key.inputs = vec![format!("{serves:?}")];
        let made = Made {
            model: "/m".into(),
            at: "2026-01-02T03:04:05Z".into(),
            took_seconds: 2.0,
            by: "a test".into(),
        };
        Record::new(&key, &serves, b"engine", made)
    }

    fn unet(width: (usize, usize), rows: usize) -> Record {
        let serves = [
            ("width", width),
            ("height", (512, 512)),
            ("rows", (1, rows)),
            ("chunks", (1, 1)),
        ];
        record("unet", "live", &serves)
    }

    fn coders(width: (usize, usize), frames: usize) -> [Record; 2] {
        let serves = [
            ("width", width),
            ("height", (512, 512)),
            ("frames", (1, frames)),
        ];
        ["vae_encoder", "vae_decoder"].map(|name| record(name, "whole", &serves))
    }

    fn wanted(rows: usize, frames: usize, width: Option<usize>) -> Wanted {
        Wanted {
            calls: Calls {
                steps: rows / frames,
                frames,
                rows,
            },
            width,
            height: width.map(|_| 512),
        }
    }

    fn chosen(unets: &[Record], coders: &[[Record; 2]], wanted: &Wanted) -> Result<Supply> {
        let unets: Vec<&Record> = unets.iter().collect();
        let [encoders, decoders] = [0, 1].map(|i| coders.iter().map(|c| &c[i]).collect::<Vec<_>>());
        choose(
            [&unets, &encoders, &decoders],
            wanted,
            "streamdiffusion build m",
        )
    }

    #[test]
    fn the_nearest_engines_that_do_together_are_taken() {
        let unets = [
            unet((384, 1024), 8),
            unet((640, 640), 8),
            unet((512, 512), 16),
            unet((512, 512), 8),
        ];
        let coders = [coders((384, 1024), 2), coders((512, 512), 1)];
        let found = |wanted: &Wanted| chosen(&unets, &coders, wanted).unwrap();
        let serving = |supply: &Supply| supply.engines.clone().map(|key| key.inputs[0].clone());
        let inputs = |record: &Record| record.key.inputs[0].clone();
        // One size and few rows before a range and many.
        let first = found(&wanted(8, 1, Some(512)));
        assert_eq!(
            serving(&first),
            [
                inputs(&unets[3]),
                inputs(&coders[1][0]),
                inputs(&coders[1][1])
            ]
        );
        assert_eq!((first.built.width, first.built.rows), ((512, 512), (1, 8)));
        assert!(
            first.origin.starts_with(
                "unet (live part): found, built 2026-01-02T03:04:05Z in 2.0 s; vae_encoder: found"
            ),
            "{}",
            first.origin
        );
        assert_eq!(found(&wanted(12, 1, Some(512))).engines[0], unets[2].key);
        assert_eq!(found(&wanted(8, 1, Some(768))).engines[0], unets[0].key);
        let two = found(&wanted(4, 2, Some(640)));
        assert_eq!(two.engines[0], unets[1].key);
        assert_eq!((two.built.width, two.built.frames), ((640, 640), (1, 2)));
        // Without a size, the U-Net's engine says it, and the others have to cover it.
        let open = found(&wanted(8, 1, None));
        assert!(
            [(640, 640), (512, 512)].contains(&open.built.width),
            "{:?}",
            open.built
        );
        let only = chosen(&unets[..1], &coders, &wanted(8, 1, None)).unwrap();
        assert_eq!(
            (only.built.width, &only.engines[1]),
            ((384, 1024), &coders[0][0].key)
        );
    }

    #[test]
    fn what_no_engine_does_is_told_by_property() {
        let unets = [unet((512, 512), 8), unet((384, 640), 4)];
        let both = [coders((384, 640), 1)];
        let refused = |wanted: &Wanted, parts: &[&str]| {
            let text = chosen(&unets, &both, wanted).unwrap_err().to_string();
            for part in parts {
                assert!(text.contains(part), "{text:?} lacks {part:?}");
            }
        };
        // Of engines that are too small in one way each, the one of the right size is told of.
        refused(
            &wanted(8, 1, Some(640)),
            &[
                "property steps",
                "for 4 at most",
                "--size 384x512..640x512\"",
            ],
        );
        refused(
            &wanted(8, 1, Some(768)),
            &["property width", "768x512", "--size 768x512"],
        );
        refused(
            &wanted(9, 1, Some(512)),
            &["property steps", "--batch 1..9"],
        );
        refused(
            &wanted(4, 2, Some(512)),
            &[
                "property frame-buffer-size",
                "2 cannot be served",
                "--frame-buffer-size 2",
            ],
        );
        // Each does, but not together.
        let apart = chosen(
            &[unet((512, 512), 8)],
            &[coders((640, 640), 1)],
            &wanted(2, 1, None),
        );
        let text = apart.unwrap_err().to_string();
        assert!(
            text.contains("different sizes") && text.contains("--size 512x512"),
            "{text}"
        );
        // What a graph fixes is no limit.
        let fixed = record(
            "unet",
            "whole",
            &[("width", (512, 512)), ("height", (512, 512))],
        );
        let supply = chosen(
            &[fixed],
            &[coders((512, 512), 1)],
            &wanted(40, 1, Some(512)),
        )
        .unwrap();
        assert_eq!(supply.built.rows, (1, ANY));
    }
}
