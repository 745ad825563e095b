//! The element with TensorRT on a machine that seems to have a GPU: engines are built with the real library while the model
//! loads, and what cannot run there is told, or goes on elsewhere. A stand-in for NVIDIA's driver has the GPU.
#![cfg(all(
    feature = "tensorrt",
    feature = "cuda",
    target_os = "linux",
    not(feature = "tensorrt-enterprise")
))]

mod common;
mod standin;

use std::fs;
use std::path::Path;
use std::sync::{Arc, mpsc};

use common::*;
use gst::ProgressType;
use gst::prelude::*;
use gst_video::VideoFrameRef;
use gst_video::prelude::*;
use gststreamdiffusion::engine::cache::Cache;
use parking_lot::Mutex;
use standin::Seen;

/// Where TensorRT is, for a process that is not told of it in the usual way.
const REAL: &str = "STREAMDIFFUSION_TEST_TENSORRT";

/// Whether the test `name` is to go on here. Elsewhere it has run in a process of its own, where TensorRT and GStreamer find
/// no driver.
#[track_caller]
fn inside(name: &str) -> bool {
    inside_with(name, Seen::ByUs, &[])
}

/// The same with a GPU for these, and these variables in its environment.
#[track_caller]
fn inside_with(name: &str, seen: Seen, variables: &[(&str, &str)]) -> bool {
    if standin::library().is_some() {
        return true;
    }
    let sources = ["tests/standin/gpu.c", "src/element/cuda/standin.c"];
    standin::run(name, &sources, seen, |command, _| {
        command
            .env_remove("GST_STREAMDIFFUSION_ENGINES")
            .envs(variables.iter().copied());
    });
    false
}

/// What is done at a message, once it comes.
type Hook = Box<dyn FnMut(&gst::MessageRef) -> bool + Send>;

/// The element in a rig that keeps all its messages.
struct Place {
    rig: Rig,
    messages: Arc<Mutex<Vec<gst::Message>>>,
    /// Called with each message until it says that it is done.
    hook: Arc<Mutex<Option<Hook>>>,
}

impl std::ops::Deref for Place {
    type Target = Rig;

    fn deref(&self) -> &Rig {
        &self.rig
    }
}

/// A message of progress: kind, code and text.
type Told = (ProgressType, String, String);

fn told(message: &gst::MessageRef) -> Option<Told> {
    match message.view() {
        gst::MessageView::Progress(progress) => {
            let (kind, code, text) = progress.get();
            Some((kind, code.into(), text.into()))
        }
        _ => None,
    }
}

/// Whether an engine is being built now.
fn builds(message: &gst::MessageRef) -> bool {
    told(message).is_some_and(|(_, _, text)| text.contains("building the engine of unet"))
}

impl Place {
    /// With engines that are built when they are missing.
    fn new(settings: &[Setting]) -> Self {
        let element = make(&[("backend", "tensorrt"), ("build-engines", "auto")]);
        set(&element, settings);
        let rig = Rig::with(element, Neighbours::default());
        let (messages, hook): (Arc<Mutex<Vec<_>>>, Arc<Mutex<Option<Hook>>>) = Default::default();
        rig.bus.set_sync_handler({
            let (messages, hook) = (messages.clone(), hook.clone());
            move |_, message| {
                messages.lock().push(message.clone());
                // Not under the lock: it may wait.
                let taken = hook.lock().take();
                if let Some(mut taken) = taken
                    && !taken(message)
                {
                    *hook.lock() = Some(taken);
                }
                gst::BusSyncReply::Pass
            }
        });
        Self {
            rig,
            messages,
            hook,
        }
    }

    /// Holds the thread up that tells of the next step of a build: the first has something when it got there, and it goes
    /// on when the second is dropped.
    fn hold(&self) -> (mpsc::Receiver<()>, mpsc::Sender<()>) {
        let (here, begun) = mpsc::channel();
        let (go_on, wait) = mpsc::channel::<()>();
        *self.hook.lock() = Some(Box::new(move |message| {
            if builds(message) {
                here.send(()).unwrap();
                let _ = wait.recv();
                return true;
            }
            false
        }));
        (begun, go_on)
    }

    /// The texts of the warnings, or errors, so far.
    fn texts(&self, wanted: gst::MessageType) -> Vec<String> {
        let messages = self.messages.lock();
        let of_type = messages.iter().filter(|message| message.type_() == wanted);
        of_type
            .map(|message| match message.view() {
                gst::MessageView::Error(error) => error.error().to_string(),
                gst::MessageView::Warning(warning) => warning.error().to_string(),
                other => panic!("{other:?}"),
            })
            .collect()
    }

    /// Nothing was complained of so far.
    #[track_caller]
    fn is_well(&self) {
        for wanted in [gst::MessageType::Error, gst::MessageType::Warning] {
            assert_eq!(self.texts(wanted), [""; 0]);
        }
    }

    /// The kinds of the messages of progress with this code so far, without repetitions.
    fn kinds(&self, code: &str) -> Vec<ProgressType> {
        let messages = self.messages.lock();
        let all = messages.iter().filter_map(|message| told(message));
        let of_code = all.filter(|(_, found, _)| found == code);
        let mut kinds: Vec<_> = of_code.map(|(kind, ..)| kind).collect();
        kinds.dedup();
        kinds
    }

    /// Stops it, and forgets what it said.
    fn rest(&self) {
        self.element.set_state(gst::State::Null).unwrap();
        self.messages.lock().clear();
        self.rig.errors();
    }
}

fn engines() -> Cache {
    Cache::new(None).unwrap()
}

/// The files in the folder of engines, but for locks and notes.
fn files() -> Vec<String> {
    let entries = fs::read_dir(engines().folder()).into_iter().flatten();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names
        .filter(|name| !name.ends_with(".lock") && name != "sources.toml")
        .collect()
}

/// The engines of all components are there, whole, with what they were asked for.
#[track_caller]
fn all_built() {
    let entries = engines().entries().unwrap();
    let mut components: Vec<_> = entries
        .iter()
        .map(|entry| engines().verify(&entry.path).unwrap().key.component)
        .collect();
    components.sort();
    assert_eq!(components, ["unet", "vae_decoder", "vae_encoder"]);
    assert_eq!(files().len(), 6, "{:?}", files());
}

#[test]
fn engines_are_built_while_frames_pass_and_what_fails_then_is_told() {
    if !inside("engines_are_built_while_frames_pass_and_what_fails_then_is_told") {
        return;
    }
    let place = Place::new(&[("while-loading", "passthrough")]);
    let (begun, go_on) = place.hold();
    place.play(&rgb());
    begun.recv_timeout(PATIENCE.into()).unwrap();
    place.push_frames(0..3);
    for (k, shown) in (0..).zip(place.pictures()) {
        assert_eq!(shown, picture(k), "frame {k}");
    }
    assert_eq!(stat(&place.element, "passed"), 3);
    // Properties can be set meanwhile.
    let settings = [("prompt", "another"), ("while-loading", "block")];
    set(&place.element, &settings);
    let src = place.src.clone();
    let waiting = std::thread::spawn(move || src.push(frame(3)));
    drop(go_on);
    let error = place.error();
    let text = error.to_string();
    for part in [
        "TensorRT for RTX ",
        " cannot run ",
        " on stand-in: ",
        "backend=onnxruntime-cuda runs it without TensorRT",
    ] {
        assert!(text.contains(part), "{text:?} lacks {part:?}");
    }
    assert!(error.matches(gst::StreamError::Failed), "{error:?}");
    assert_eq!(waiting.join().unwrap(), Err(gst::FlowError::Error));
    use ProgressType::{Complete, Continue, Error, Start};
    assert_eq!(place.kinds("build"), [Start, Continue, Complete]);
    wait_until("the end of loading is told", || {
        place.kinds("loading").last() == Some(&Error)
    });
    let begins = place.messages.lock().iter().find_map(|message| {
        let (_, code, text) = told(message)?;
        (code == "build").then_some(text)
    });
    let begins = begins.unwrap();
    assert!(begins.contains("no engine of unet is there"), "{begins}");
    all_built();

    // What is there is not built again.
    place.rest();
    place.play(&rgb());
    assert_eq!(place.error().to_string(), text);
    assert!(place.kinds("build").is_empty());
    // An engine whose content changed is never run.
    place.rest();
    let entries = engines().entries().unwrap();
    let of_unet = |path: &Path| path.to_string_lossy().contains("/unet-");
    let broken = entries.iter().find(|entry| of_unet(&entry.path)).unwrap();
    let broken = &broken.path;
    let mut bytes = fs::read(broken).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(broken, bytes).unwrap();
    place.play(&rgb());
    let text = place.error().to_string();
    for part in [
        broken.to_str().unwrap(),
        "is not the engine that was built",
        "build it again",
    ] {
        assert!(text.contains(part), "{text:?} lacks {part:?}");
    }
    // It can be had another way at once.
    place.rest();
    set(&place.element, &[("backend", "onnxruntime-cpu")]);
    place.play(&rgb());
    place.push_frames(0..2);
    place.is_well();
}

#[test]
fn a_stop_during_a_build_leaves_nothing_half_made() {
    if !inside("a_stop_during_a_build_leaves_nothing_half_made") {
        return;
    }
    use ProgressType::{Canceled, Continue, Start};
    let place = Place::new(&[]);
    for _ in 0..2 {
        let (begun, go_on) = place.hold();
        place.play(&rgb());
        begun.recv_timeout(PATIENCE.into()).unwrap();
        let src = place.src.clone();
        let waiting = std::thread::spawn(move || src.push(frame(0)));
        let element = place.element.clone();
        let stopping = std::thread::spawn(move || element.set_state(gst::State::Null));
        // The frame is let go before the build has noticed anything.
        assert_eq!(waiting.join().unwrap(), Err(gst::FlowError::Flushing));
        drop(go_on);
        stopping.join().unwrap().unwrap();
        place.is_well();
        for code in ["build", "loading"] {
            assert_eq!(place.kinds(code).last(), Some(&Canceled), "{code}");
        }
        assert_eq!(place.kinds("build"), [Start, Continue, Canceled]);
        assert!(files().is_empty(), "{:?}", files());
        place.rest();
    }
    // A handler of messages may stop it too, on the thread that builds.
    let (stopped, stop) = mpsc::channel();
    let element = place.element.clone();
    *place.hook.lock() = Some(Box::new(move |message| {
        let stops = told(message)
            .is_some_and(|(kind, code, _)| (kind, code.as_str()) == (Continue, "build"));
        if stops {
            stopped.send(element.set_state(gst::State::Null)).unwrap();
        }
        stops
    }));
    place.play(&rgb());
    stop.recv_timeout(PATIENCE.into()).unwrap().unwrap();
    wait_until("the loading is canceled", || {
        place.kinds("loading").last() == Some(&Canceled)
    });
    place.is_well();
    assert_eq!(place.kinds("build").last(), Some(&Canceled));
    assert!(files().is_empty(), "{:?}", files());
}

#[test]
fn auto_goes_on_to_what_can_run_the_model() {
    if !inside("auto_goes_on_to_what_can_run_the_model") {
        return;
    }
    let place = Place::new(&[("backend", "auto")]);
    place.play(&rgb());
    place.push_frames(0..3);
    place.end();
    assert_eq!(place.pictures(), restyled(&[], 0..3));
    all_built();
    let stats = place.element.property::<gst::Structure>("stats");
    assert_eq!(stats.get::<&str>("device"), Ok("CPU"));
    assert!(stats.get::<&str>("backend").unwrap().ends_with("(CPU)"));
    let reason = stats.get::<String>("backend-reason").unwrap();
    for part in [
        "tensorrt could not load the model: ",
        " on stand-in: ",
        "nor is there onnxruntime-cuda: ",
    ] {
        assert!(reason.contains(part), "{reason:?} lacks {part:?}");
    }
    assert!(!reason.contains("backend="), "{reason}");
    let warnings = place.texts(gst::MessageType::Warning);
    let [warning] = &warnings[..] else {
        panic!("{warnings:?}");
    };
    for part in [&reason, "Now onnxruntime-cpu tries it, on the CPU"] {
        assert!(warning.contains(part), "{warning:?} lacks {part:?}");
    }
    assert_eq!(place.texts(gst::MessageType::Error), [""; 0]);
    let loaded = place.messages.lock().iter().find_map(|message| {
        let named = message.has_name("streamdiffusion-model-loaded");
        named.then(|| message.structure().unwrap().to_owned())
    });
    let loaded = loaded.unwrap();
    assert_eq!(loaded.get::<&str>("device"), Ok("CPU"));
    assert_eq!(loaded.get::<&str>("reason"), Ok(reason.as_str()));
    use ProgressType::{Complete, Continue, Start};
    assert_eq!(place.kinds("loading"), [Start, Continue, Complete]);

    // It stays there until NULL, where all is tried again.
    place.src.set_active(false).unwrap();
    place.element.set_state(gst::State::Ready).unwrap();
    let warnings = |state| {
        place.messages.lock().clear();
        place.element.set_state(state).unwrap();
        place.play(&rgb());
        place.push_frames(0..1);
        let stats = place.element.property::<gst::Structure>("stats");
        assert_eq!(stats.get::<&str>("device"), Ok("CPU"));
        assert_eq!(stats.get::<u64>("vram"), Ok(0));
        assert_eq!(stats.get::<String>("backend-reason").as_ref(), Ok(&reason));
        place.texts(gst::MessageType::Warning).len()
    };
    assert_eq!(warnings(gst::State::Ready), 0);
    assert_eq!(warnings(gst::State::Null), 1);
}

#[test]
fn the_library_that_is_named_is_used_or_the_error_says_why_not() {
    // The property goes before the environment.
    let real = gststreamdiffusion::engine::tensorrt::library().map(|library| library.path.clone());
    let name = "the_library_that_is_named_is_used_or_the_error_says_why_not";
    let variables = match &real {
        Ok(path) => [
            ("TENSORRT_LIBRARY_PATH", "/no/such/library.so"),
            (REAL, path.to_str().unwrap()),
        ],
        // Inside.
        Err(_) => [(REAL, ""); 2],
    };
    if !inside_with(name, Seen::ByUs, &variables) {
        return;
    }
    let place = Place::new(&[("build-engines", "never")]);
    let refused = |library: &str, backends: &[&str], parts: &[&str]| {
        place.element.set_property("tensorrt-library", library);
        for backend in backends {
            set(&place.element, &[("backend", backend)]);
            let started = place.element.set_state(gst::State::Paused);
            assert!(started.is_err(), "{backend}");
            let error = place.error();
            assert!(error.matches(gst::LibraryError::Settings), "{error}");
            let text = error.to_string();
            for part in parts {
                assert!(text.contains(part), "{text:?} lacks {part:?}");
            }
            place.rest();
        }
    };
    let both = &["tensorrt", "auto"][..];
    let property = "property tensorrt-library: ";
    let missing = "/no/such/file.so";
    refused(missing, both, &[property, missing, "cannot be opened"]);
    let other = loaded_library("libgobject");
    refused(&other, both, &[property, &other, "is not TensorRT"]);
    let folder = Folder::new();
    let here = folder.path().to_str().unwrap().to_owned();
    refused(&here, both, &[property, &here, "the folder holds no lib"]);
    let old = folder.file("libtensorrt_rtx.so.1");
    tensorrt_of_version(&old, 1, 6);
    refused(&here, both, &[property, "version 1.6.0.0, expected 1.7"]);
    // Without the property, the environment counts.
    refused(
        "",
        &["tensorrt"],
        &["TENSORRT_LIBRARY_PATH is /no/such/library.so"],
    );
    let real = std::env::var(REAL).unwrap();
    refused(&real, &["tensorrt"], &["no engine of unet is there"]);
    refused(missing, both, &[property, "has opened", &real, "one only"]);
}

/// As after an error that sticks, where the driver gives the process no other context: every start says so.
#[test]
fn a_gpu_that_cannot_be_opened_is_told() {
    if !inside("a_gpu_that_cannot_be_opened_is_told") {
        return;
    }
    // SAFETY: the stand-in, which has no initialisers.
    let driver = unsafe { libloading::Library::new(standin::library().unwrap()) }.unwrap();
    // SAFETY: as its source has it.
    let lose = unsafe { driver.get::<unsafe extern "C" fn(i32)>(c"standin_lose") }.unwrap();
    // SAFETY: sets a number: an illegal address.
    unsafe { lose(700) };
    let parts = ["GPU 0 failed before", "start the program again"];
    let place = Place::new(&[]);
    for _ in 0..2 {
        let started = place.element.set_state(gst::State::Paused);
        assert!(started.is_err());
        let error = place.error();
        assert!(error.matches(gst::StreamError::Failed), "{error:?}");
        for part in parts {
            assert!(error.to_string().contains(part), "{error}");
        }
        place.rest();
    }
    set(&place.element, &[("backend", "auto")]);
    for _ in 0..2 {
        place.play(&rgb());
        place.push_frames(0..3);
        place.end();
        assert_eq!(place.pictures(), restyled(&[], 0..3));
        let warnings = place.texts(gst::MessageType::Warning);
        let [warning] = &warnings[..] else {
            panic!("{warnings:?}");
        };
        for part in parts
            .iter()
            .chain(&["Now onnxruntime-cpu tries it, on the CPU"])
        {
            assert!(warning.contains(part), "{warning:?} lacks {part:?}");
        }
        let stats = place.element.property::<gst::Structure>("stats");
        assert_eq!(stats.get::<&str>("device"), Ok("CPU"));
        let reason = stats.get::<String>("backend-reason").unwrap();
        assert!(warning.starts_with(&reason), "{reason}");
        assert_eq!(place.texts(gst::MessageType::Error), [""; 0]);
        place.stop();
        place.rest();
    }
}

/// What was agreed on with the neighbours before the model was loaded stays.
#[test]
fn frames_in_the_gpus_memory_are_restyled_on_the_cpu_then() {
    let name = "frames_in_the_gpus_memory_are_restyled_on_the_cpu_then";
    if !inside_with(name, Seen::ByAll, &[]) {
        return;
    }
    let place = Place::new(&[("backend", "auto")]);
    let mut cuda = rgb();
    let memory = gst::CapsFeatures::new(["memory:CUDAMemory"]);
    cuda.make_mut().set_features_simple(Some(memory));
    place.play(&cuda);
    let mut query = gst::query::Allocation::new(Some(&cuda), true);
    assert!(place.src.peer_query(&mut query));
    let pool = query.allocation_pools().into_iter().find_map(|pool| pool.0);
    let pool = pool.expect("the element offers a pool of the GPU's memory");
    let mut config = pool.config();
    let (_, size, ..) = config.params().unwrap();
    config.set_params(Some(&cuda), size, 0, 0);
    pool.set_config(config).unwrap();
    pool.set_active(true).unwrap();
    for k in 0..3 {
        let mut lent = pool.acquire_buffer(None).unwrap();
        let buffer = lent.get_mut().unwrap();
        buffer.set_pts(time(k));
        buffer.set_duration(time(1));
        write(buffer, &picture(k));
        place.push(lent);
    }
    place.end();
    assert!(
        place.output_caps().is_subset(&cuda),
        "{}",
        place.output_caps()
    );
    let frames = place.frames();
    let shown: Vec<_> = frames.iter().map(|frame| pixels(frame, &rgb())).collect();
    assert_eq!(shown, restyled(&[], 0..3));
    let stats = place.element.property::<gst::Structure>("stats");
    assert_eq!(stats.get::<&str>("device"), Ok("CPU"));
    assert_eq!(place.texts(gst::MessageType::Warning).len(), 1);
    pool.set_active(false).unwrap();
}

/// Writes a tight 64x64 RGB picture into a frame, wherever that is.
fn write(buffer: &mut gst::BufferRef, rgb: &[u8]) {
    let info = info(&common::rgb());
    let mut frame = VideoFrameRef::from_buffer_ref_writable(buffer, &info).unwrap();
    let stride = frame.plane_stride()[0] as usize;
    let rows = frame.plane_data_mut(0).unwrap().chunks_mut(stride);
    for (to, from) in rows.zip(rgb.chunks(64 * 3)) {
        to[..64 * 3].copy_from_slice(from);
    }
}
