//! Engines that are built while the model loads, as the application hears of them; and what TensorRT says.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use super::{BuildEngines, settings::Settings, worker::Observer};
use crate::engine::BuildProgress;
use crate::engine::tensorrt::{self, Building, Severity, Wanted};
use crate::error::Result;
use crate::model::ModelFolder;

/// The code of the progress messages.
pub const CODE: &str = "build";

/// How far a build is, as progress messages say it.
pub fn told(progress: &BuildProgress) -> (gst::ProgressType, String) {
    match progress {
        BuildProgress::Begun(why) => (
            gst::ProgressType::Start,
            format!("Building TensorRT engines: {why}"),
        ),
        BuildProgress::Continues(what, percent) => {
            (gst::ProgressType::Continue, format!("{what}, {percent} %"))
        }
        BuildProgress::Complete => (
            gst::ProgressType::Complete,
            "TensorRT engines are built".into(),
        ),
        BuildProgress::Cancelled => (
            gst::ProgressType::Canceled,
            "The build of TensorRT engines was ended".into(),
        ),
        BuildProgress::Failed(error) => (
            gst::ProgressType::Error,
            format!("TensorRT engines cannot be built: {error}"),
        ),
    }
}

/// A build that tells `observer` and ends when `stop` is set.
pub fn building(observer: &Arc<impl Observer>, stop: Arc<AtomicBool>) -> Building {
    let observer = observer.clone();
    Building {
        tell: Arc::new(move |progress| observer.building(&progress)),
        stop,
    }
}

/// What TensorRT is to do, and whether engines that are missing are built.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Request {
    /// What the model is asked to do.
    pub wanted: Wanted,
    /// Whether missing engines are built.
    pub build: bool,
}

impl Request {
    /// What these properties come to with the model in `folder`.
    ///
    /// # Errors
    /// When `t-index-list` is no list of numbers.
    pub fn new(settings: &Settings, folder: &ModelFolder) -> Result<Self> {
        let manifest = folder.manifest();
        let stream = settings.stream(manifest, folder.scheduler().method)?;
        let side = |set: u32, other: u32, own: Option<usize>, fixed: Option<usize>| match set {
            // With one side given, the other follows from the frames' shape.
            0 if other > 0 => fixed,
            0 => fixed.or(own),
            side => Some(side as usize),
        };
        let defaults = &manifest.defaults;
        let own = defaults.width.zip(defaults.height);
        let fixed = folder.fixed_size();
        let (width, height) = (settings.width, settings.height);
        Ok(Self {
            wanted: Wanted {
                calls: stream.calls(settings.frame_buffer_size as usize),
                width: side(
                    width,
                    height,
                    own.map(|own| own.0),
                    fixed.map(|size| size.0),
                ),
                height: side(
                    height,
                    width,
                    own.map(|own| own.1),
                    fixed.map(|size| size.1),
                ),
            },
            build: settings.build_engines == BuildEngines::Auto,
        })
    }
}

/// Has what TensorRT says go to a debug category of its own, from now on.
pub fn listen_to_tensorrt() {
    use std::sync::{LazyLock, Once};

    static TENSORRT: LazyLock<gst::DebugCategory> = LazyLock::new(|| {
        gst::DebugCategory::new(
            "streamdiffusion-tensorrt",
            gst::DebugColorFlags::empty(),
            Some("What TensorRT says"),
        )
    });
    static LISTENING: Once = Once::new();
    LISTENING.call_once(|| {
        // Known before anything is said in it.
        LazyLock::force(&TENSORRT);
        tensorrt::set_sink(|severity, message| {
            let message = message.trim_end();
            match severity {
                Severity::InternalError | Severity::Error => gst::error!(TENSORRT, "{message}"),
                Severity::Warning => gst::warning!(TENSORRT, "{message}"),
                Severity::Info => gst::info!(TENSORRT, "{message}"),
                Severity::Verbose => gst::log!(TENSORRT, "{message}"),
            }
        });
    });
}

#[cfg(test)]
mod tests {
    use std::ops::ControlFlow;
    use std::path::Path;

    use gst::prelude::*;
    use parking_lot::Mutex;

    use super::*;
    use crate::element::StreamDiffusion;
    use crate::element::messages::ElementObserver;
    use crate::element::preload::Order;
    use crate::engine::Calls;
    use crate::engine::tensorrt::builder::{self, Job, Source};
    use crate::error::Error;
    use crate::stream::CfgType;

    #[test]
    fn properties_say_what_engines_have_to_do() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/demo");
        let folder = ModelFolder::open(&folder).unwrap();
        let wanted = |settings: &Settings| Request::new(settings, &folder).unwrap().wanted;
        let mut settings = Settings {
            steps: Some(4),
            cfg_type: Some(CfgType::Full),
            guidance_scale: Some(1.5),
            frame_buffer_size: 2,
            ..Settings::default()
        };
        let calls = Calls {
            steps: 4,
            frames: 2,
            rows: 16,
        };
        assert_eq!(wanted(&settings).calls, calls);
        assert!(!Request::new(&settings, &folder).unwrap().build);
        settings.build_engines = BuildEngines::Auto;
        assert!(Request::new(&settings, &folder).unwrap().build);
        settings.t_index_list = Some("1,2,3".into());
        settings.cfg_type = Some(CfgType::Initialize);
        assert_eq!(wanted(&settings).calls.rows, 8);
        // The model names a size for both sides together, which frames may fall short of.
        let size = |settings: &Settings| {
            let wanted = wanted(settings);
            (wanted.width, wanted.height)
        };
        assert_eq!(size(&settings), (None, None));
        settings.width = 512;
        assert_eq!(size(&settings), (Some(512), None));
        settings.height = 384;
        assert_eq!(size(&settings), (Some(512), Some(384)));
        settings.width = 0;
        assert_eq!(size(&settings), (None, Some(384)));
        settings.t_index_list = Some("x".into());
        let error = Request::new(&settings, &folder).unwrap_err().to_string();
        assert!(error.contains("property t-index-list"), "{error}");
    }

    #[test]
    fn progress_is_posted_as_messages() {
        gst::init().unwrap();
        let element = gst::glib::Object::new::<StreamDiffusion>();
        let bus = gst::Bus::new();
        element.set_bus(Some(&bus));
        let observer =
            ElementObserver::new(&element, Order::default(), String::new(), String::new());
        let continues = BuildProgress::Continues("unet".into(), 43);
        let failed = BuildProgress::Failed(Error::engine("unet", "no"));
        for (progress, kind, part) in [
            (
                BuildProgress::Begun("missing".into()),
                gst::ProgressType::Start,
                "missing",
            ),
            (continues, gst::ProgressType::Continue, "unet, 43 %"),
            (
                BuildProgress::Complete,
                gst::ProgressType::Complete,
                "built",
            ),
            (
                BuildProgress::Cancelled,
                gst::ProgressType::Canceled,
                "ended",
            ),
            (failed, gst::ProgressType::Error, "unet: no"),
        ] {
            observer.building(&progress);
            let message = bus.pop_filtered(&[gst::MessageType::Progress]).unwrap();
            let gst::MessageView::Progress(message) = message.view() else {
                panic!("{message:?}");
            };
            let (found, code, text) = message.get();
            assert_eq!((found, code), (kind, "build"));
            assert!(text.contains(part), "{text}");
        }
        element.set_bus(None);
    }

    /// With the real library.
    #[test]
    fn what_tensorrt_says_goes_to_a_category_of_its_own() {
        struct GoOn;
        impl builder::Progress for GoOn {
            fn step(&self, _: &str, _: usize, _: usize) -> ControlFlow<()> {
                ControlFlow::Continue(())
            }
        }
        gst::init().unwrap();
        listen_to_tensorrt();
        let category = gst::DebugCategory::get("streamdiffusion-tensorrt").unwrap();
        category.set_threshold(gst::DebugLevel::Log);
        let heard: Arc<Mutex<Vec<gst::DebugLevel>>> = Arc::default();
        let function = gst::log::add_log_function({
            let heard = heard.clone();
            move |category, level, _, _, _, _, _| {
                if category.name() == "streamdiffusion-tensorrt" {
                    heard.lock().push(level);
                }
            }
        });
        let job = Job {
            name: "unet",
            source: Source::Memory(b"no graph"),
            inputs: &[],
            capabilities: &[],
        };
        builder::build(&job, Arc::new(GoOn)).unwrap_err();
        gst::log::remove_log_function(function);
        category.set_threshold(gst::DebugLevel::None);
        let heard = heard.lock();
        assert!(heard.contains(&gst::DebugLevel::Error), "{heard:?}");
    }
}
