//! How sessions are set up for a GPU, and whether they can be.

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use libloading::Library;
use ort::ep::cuda::ConvAlgorithmSearch;
use ort::ep::{ArenaExtendStrategy, CUDA, ExecutionProvider};
use ort::logging::LogLevel;
use ort::session::Session;
use ort::session::builder::SessionBuilder;
use parking_lot::MutexGuard;

use super::processor::Processor;
use crate::device::cuda::Cuda;
use crate::engine::onnxruntime::library::Runtime;
use crate::engine::onnxruntime::log;
use crate::error::{Error, Result};

/// Chooses [`Graphs`] by name, for measurements: `frame`, `session` or `none`.
const GRAPHS: &str = "STREAMDIFFUSION_ONNXRUNTIME_GRAPHS";
/// Provider options to set besides ours, for measurements: `key=value`, separated by commas.
const OPTIONS: &str = "STREAMDIFFUSION_ONNXRUNTIME_CUDA_OPTIONS";
/// Weights are no part of the arena, which is for what is computed, and so grows by what is needed only.
const WEIGHTS_APART: (&str, &str) = ("session.use_device_allocator_for_initializers", "1");
/// What ONNX Runtime logs of a graph in which tensors go between the GPU and main memory. There is no call that tells it in
/// all versions.
const COPIES: &str = "Memcpy nodes are added";
/// From this version on, kernels keep what they copy from main memory in its place when they are captured.
const CAPTURES: (u32, u32) = (1, 30);

/// Libraries that the provider opens only once it needs them.
const CUDNN: &str = if cfg!(windows) {
    "cudnn64_9.dll"
} else {
    "libcudnn.so.9"
};

/// How runs get to the GPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Graphs {
    /// Captured into the graph of the whole frame, with the device's own operations.
    Frame,
    /// Each session captures a graph for itself.
    Session,
    /// Kernel by kernel, and why.
    None(&'static str),
}

impl Graphs {
    /// What this version of ONNX Runtime can do, or what the environment asks for.
    pub fn of(runtime: &Runtime) -> Self {
        let named = std::env::var(GRAPHS).unwrap_or_default();
        Self::choose(&named, &runtime.version)
    }

    fn choose(named: &str, version: &str) -> Self {
        let mut numbers = version.split('.').map(|n| n.parse::<u32>().unwrap_or(0));
        let mut number = || numbers.next().unwrap_or(0);
        match named {
            "session" => Self::Session,
            "none" => Self::None("as asked"),
            _ if (number(), number()) >= CAPTURES => Self::Frame,
            _ => Self::None("ONNX Runtime before 1.30 cannot be captured safely"),
        }
    }
}

impl fmt::Display for Graphs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Frame => f.write_str("in the frame's CUDA graph"),
            Self::Session => f.write_str("in a CUDA graph of each component"),
            Self::None(why) => write!(f, "kernel by kernel: {why}"),
        }
    }
}

/// A GPU that sessions run on.
#[derive(Clone)]
pub struct CudaProvider {
    cuda: Cuda,
    /// Whether it runs on the device's stream, not on streams of its own.
    on_stream: bool,
    /// How runs get to the GPU.
    pub graphs: Graphs,
    /// Whether the session's graph moves tensors between the GPU and main memory.
    copies: Arc<AtomicBool>,
    /// What runs it in the GPU's place.
    processor: Option<Processor>,
}

impl CudaProvider {
    /// For what runs beside frames, mostly on the prompt's thread.
    pub fn of_texts(cuda: &Cuda) -> Self {
        Self {
            cuda: cuda.clone(),
            on_stream: false,
            graphs: Graphs::None("it runs rarely"),
            copies: Arc::default(),
            processor: Processor::in_place(),
        }
    }

    /// For what runs in the order of what the device computes, that is all that a frame needs.
    pub fn of_frames(cuda: &Cuda, graphs: Graphs) -> Self {
        Self {
            cuda: cuda.clone(),
            on_stream: true,
            graphs,
            copies: Arc::default(),
            processor: Processor::in_place(),
        }
    }

    /// For what a frame needs and only a new prompt or new steps change, of a graph that fixes its rows to `rows`, if it does.
    pub fn of_contexts(cuda: &Cuda, graphs: Graphs, rows: Option<usize>) -> Self {
        match (graphs, rows) {
            // Such sessions run at fixed addresses only.
            (Graphs::Session, _) => Self::of_texts(cuda),
            (_, None | Some(1)) => Self::of_frames(cuda, graphs),
            // What has one row of several goes through main memory, and so had better not keep frames waiting.
            _ => Self::of_texts(cuda),
        }
    }

    /// What runs sessions in the GPU's place, if something does.
    pub fn processor(&self) -> Option<Processor> {
        self.processor
    }

    /// The same for one session more.
    pub fn for_session(&self) -> Self {
        Self {
            copies: Arc::default(),
            ..self.clone()
        }
    }

    /// Whether the session's graph moves tensors between the GPU and main memory; known once the session is made.
    pub fn copies(&self) -> bool {
        self.copies.load(Ordering::Relaxed)
    }

    /// Keeps others from the stream that a session runs on which is not noted down there, as long as it is held.
    pub fn alone(&self) -> Option<MutexGuard<'_, ()>> {
        self.on_stream.then(|| self.cuda.exclusive())
    }

    /// Whether it runs on the device's stream.
    pub fn is_on_stream(&self) -> bool {
        self.on_stream
    }

    /// The GPU's number.
    pub fn device(&self) -> i32 {
        number(&self.cuda)
    }

    /// Sets up the session.
    pub fn configure(&self, builder: SessionBuilder) -> ort::Result<SessionBuilder> {
        if self.processor.is_some() {
            return Ok(builder);
        }
        let mut provider = CUDA::default()
            .with_device_id(self.device())
            // The device's pool shares the memory, so the arena takes no more than it needs.
            .with_arena_extend_strategy(ArenaExtendStrategy::SameAsRequested)
            // An exhaustive search holds up the stream for seconds at every new number of rows.
            .with_conv_algorithm_search(ConvAlgorithmSearch::Heuristic)
            .with_tf32(true);
        if self.on_stream {
            // SAFETY: whoever holds this provider, and so each session that it is for, holds the stream's device.
            provider = unsafe { provider.with_compute_stream(self.cuda.stream().cast()) };
        }
        if self.graphs == Graphs::Session {
            provider = provider.with_cuda_graph(true);
        }
        for (key, value) in options(&std::env::var(OPTIONS).unwrap_or_default()) {
            use ort::ep::ArbitrarilyConfigurableExecutionProvider as _;
            provider = provider.with_arbitrary_config(key, value);
        }
        let copies = self.copies.clone();
        let mut builder = builder
            // A pattern is one block for all that is computed, beside the pieces that the first run has left in the arena.
            .with_memory_pattern(false)?
            .with_config_entry(WEIGHTS_APART.0, WEIGHTS_APART.1)?
            .with_log_level(LogLevel::Warning)?
            .with_logger(Arc::new(
                move |level: LogLevel, _: &str, _: &str, location: &str, said: &str| {
                    if said.contains(COPIES) {
                        copies.store(true, Ordering::Relaxed);
                    }
                    log::tell(level, location, said);
                },
            ))?;
        provider.register(&mut builder)?;
        Ok(builder)
    }
}

fn number(cuda: &Cuda) -> i32 {
    i32::try_from(cuda.ordinal()).unwrap_or(i32::MAX)
}

/// Keys and values of `text`.
fn options(text: &str) -> impl Iterator<Item = (&str, &str)> {
    let pairs = text.split(',').filter_map(|pair| pair.split_once('='));
    pairs.map(|(key, value)| (key.trim(), value.trim()))
}

/// An error that says what is missing, unless this ONNX Runtime can run sessions on NVIDIA's GPUs.
pub fn check(runtime: &Runtime) -> Result<()> {
    if Processor::in_place().is_some() {
        return Ok(());
    }
    let available = CUDA::is_available().unwrap_or(false);
    let missing = missing(&runtime.path, available, |name| {
        // SAFETY: runs the initialisers of a library that the provider would open itself.
        let library = unsafe { Library::new(name) }?;
        // Never closed, as the provider would not close it.
        std::mem::forget(library);
        Ok(())
    });
    let missing = missing.or_else(|| {
        let mut builder = Session::builder(&runtime.environment).ok()?;
        let said = CUDA::default().register(&mut builder).err()?.to_string();
        // After where in its sources that is, the loader's words.
        let said = said.split("with error: ").last().unwrap_or(&said).trim();
        Some(format!(
            "its CUDA provider cannot be loaded: {said}. It needs the libraries of the CUDA version that it was built for \
             (pip install \"onnxruntime-gpu[cuda,cudnn]\") on the library path"
        ))
    });
    match missing {
        None => Ok(()),
        Some(what) => Err(Error::Library(format!(
            "ONNX Runtime {} at {} cannot use the GPU: {what}",
            runtime.version,
            runtime.path.display()
        ))),
    }
}

/// What is missing, as far as it can be told from outside. `open` tries to open a library.
fn missing(
    library: &Path,
    available: bool,
    open: impl Fn(&str) -> std::result::Result<(), libloading::Error>,
) -> Option<String> {
    const INSTALL: &str =
        "Run \"pip install onnxruntime-gpu\" and set ORT_DYLIB_PATH to its onnxruntime/capi folder";
    if !available {
        return Some(format!("it is built without the CUDA provider. {INSTALL}"));
    }
    let folder = library.parent().unwrap_or(Path::new(""));
    for part in ["shared", "cuda"] {
        let (prefix, suffix) = (std::env::consts::DLL_PREFIX, std::env::consts::DLL_SUFFIX);
        let name = format!("{prefix}onnxruntime_providers_{part}{suffix}");
        if !folder.join(&name).is_file() {
            return Some(format!("{name} is not beside it. {INSTALL}"));
        }
    }
    open(CUDNN).err().map(|e| {
        use std::error::Error as _;
        let said = e.source().map_or_else(|| e.to_string(), ToString::to_string);
        format!(
            "cuDNN 9 cannot be opened ({said}). Run \"pip install nvidia-cudnn-cu13\" (-cu12 for CUDA 12) and put its \
             nvidia/cudnn/lib folder on the library path"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn graphs_need_a_version_that_can_be_captured() {
        assert_eq!(Graphs::choose("", "1.31.1"), Graphs::Frame);
        assert_eq!(Graphs::choose("frame", "1.30.0"), Graphs::Frame);
        assert_eq!(Graphs::choose("", "2.0.0"), Graphs::Frame);
        for old in ["1.29.2", "1.9.0", "", "nonsense"] {
            let Graphs::None(why) = Graphs::choose("frame", old) else {
                panic!("{old}");
            };
            assert!(why.contains("1.30"), "{why}");
        }
        assert_eq!(Graphs::choose("session", "1.20.0"), Graphs::Session);
        assert_eq!(Graphs::choose("none", "1.31.1"), Graphs::None("as asked"));
    }

    #[test]
    fn the_library_in_use_says_what_it_lacks() {
        let runtime = crate::engine::onnxruntime::library::runtime().unwrap();
        let Err(error) = check(runtime) else {
            // All is there, which needs a driver too.
            assert!(Cuda::count().is_ok());
            return;
        };
        assert!(matches!(error, Error::Library(_)));
        let said = error.to_string();
        for part in [
            runtime.path.to_str().unwrap(),
            &runtime.version,
            "cannot use the GPU",
            "pip install",
        ] {
            assert!(said.contains(part), "{said:?} lacks {part:?}");
        }
    }

    #[test]
    fn options_are_pairs() {
        let found: Vec<_> = options("prefer_nhwc=1, use_tf32 = 0,,nonsense").collect();
        assert_eq!(found, [("prefer_nhwc", "1"), ("use_tf32", "0")]);
        assert_eq!(options("").count(), 0);
    }

    #[test]
    fn what_is_missing_is_named() {
        let folder = std::env::temp_dir().join(format!("providers-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let library = folder.join("libonnxruntime.so.1.31.1");
        let open = |name: &str| {
            // SAFETY: there is no such library.
            unsafe { Library::new(format!("no-such-folder/{name}")) }.map(drop)
        };
        let said = |available| missing(&library, available, open).unwrap();
        let add = |part: &str| {
            let (prefix, suffix) = (std::env::consts::DLL_PREFIX, std::env::consts::DLL_SUFFIX);
            let name = format!("{prefix}onnxruntime_providers_{part}{suffix}");
            std::fs::write(folder.join(&name), "").unwrap();
            name
        };
        let without = said(false);
        assert!(
            without.contains("built without the CUDA provider"),
            "{without}"
        );
        assert!(without.contains("pip install onnxruntime-gpu"), "{without}");
        assert!(said(true).contains("onnxruntime_providers_shared"));
        add("shared");
        let cuda = said(true);
        let name = add("cuda");
        assert!(cuda.contains(&format!("{name} is not beside it")), "{cuda}");
        let cudnn = said(true);
        assert!(cudnn.contains(CUDNN), "{cudnn}");
        assert!(cudnn.contains("nvidia-cudnn"), "{cudnn}");
        assert_eq!(missing(&library, true, |_| Ok(())), None);
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
