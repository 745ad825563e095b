//! The stand-in that computes: what is launched on it runs the real kernels, compiled for the CPU (`kernels/host`).
//!
//! Streams, events, graphs and memory are those of `driver.c`, and so device memory is main memory, in which ONNX Runtime's
//! CPU provider runs models.

use std::collections::hash_map::DefaultHasher;
use std::fs;
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;

use gststreamdiffusion::device::cuda::kernels::SOURCE;
use gststreamdiffusion::engine::onnxruntime;
use gststreamdiffusion::error::Error;
use libloading::Library;
use parking_lot::Mutex;

use super::standin::{self, Seen};

/// The streams that a device makes, in this order: for computing, and for frames that come and go.
const STREAMS: [i32; 3] = [0, 1, 2];
/// Compiled once, with what they include.
const COMPILED: [&str; 3] = [
    "kernels/host/launch.cpp",
    "kernels/host/threads.cpp",
    "tests/standin/kernels.cpp",
];
const INCLUDED: [&str; 3] = [
    "kernels/host/cuda.h",
    "kernels/host/launch.h",
    "kernels/host/threads.h",
];

/// When streams do their work.
#[derive(Clone, Copy)]
#[allow(dead_code)] // Not every test program has all.
pub enum When {
    /// When something waits for it.
    Late,
    /// As early as events allow.
    Early,
    /// Frames come and go early, and are computed late: so they meet others that are on their way.
    CopiesEarly,
}

impl When {
    /// Whether the stream with this number does its work early.
    fn is_early(self, stream: i32) -> bool {
        match self {
            Self::Late => false,
            Self::Early => true,
            Self::CopiesEarly => stream != STREAMS[0],
        }
    }
}

/// Runs `scenario`, the body of the test called `name`, in a process that has this stand-in, and whose environment has
/// `variables` besides: once for each way of the streams. It may leave nothing on the device, nor have asked it for what makes
/// no sense.
#[track_caller]
pub fn run(name: &str, variables: &[(&str, &str)], ways: &[When], scenario: impl Fn()) {
    if standin::library().is_none() {
        let kernels = KERNELS.to_str().expect("a path that is text");
        let sources = ["tests/standin/driver.c", kernels];
        return standin::run(name, &sources, Seen::ByAll, |command, _| {
            command.envs(variables.iter().copied());
        });
    }
    // SAFETY: the stand-in's memory is main memory.
    unsafe { onnxruntime::put_processor_in_place(failing) };
    let library = standin::library().expect("the stand-in");
    // SAFETY: it has no initialisers, and cudarc opens it too.
    let library = unsafe { Library::new(library) }.unwrap();
    // SAFETY: as their source has them.
    let (eager, live, misused) = unsafe {
        (
            library.get::<unsafe extern "C" fn(i32, i32)>(c"standin_eager"),
            library.get::<unsafe extern "C" fn() -> i64>(c"standin_live"),
            library.get::<unsafe extern "C" fn() -> i64>(c"standin_misused"),
        )
    };
    let (eager, live, misused) = (eager.unwrap(), live.unwrap(), misused.unwrap());
    for when in ways {
        for stream in STREAMS {
            // SAFETY: says how streams are that are made from now on.
            unsafe { eager(stream, when.is_early(stream).into()) };
        }
        scenario();
        // SAFETY: they read numbers.
        let (live, misused) = unsafe { (live(), misused()) };
        assert_eq!((live, misused), (0, 0), "left on the device, and misuses");
    }
}

/// What the last run that failed said, and forgets it.
#[allow(dead_code)]
pub fn failed() -> Option<String> {
    FAILED.lock().take()
}

static FAILED: Mutex<Option<String>> = Mutex::new(None);

/// Of a run that failed: the error sticks to the context, as one on a GPU would.
fn failing(error: &Error) {
    eprintln!("{error}");
    *FAILED.lock() = Some(error.to_string());
    let library = standin::library().expect("the stand-in");
    // SAFETY: it is open, and its source has this function, which sets a number: a failed launch.
    unsafe {
        let library = Library::new(library).unwrap();
        let fail = library.get::<unsafe extern "C" fn(i32)>(c"standin_fail");
        fail.unwrap()(719);
    }
}

/// Cargo's folder for what tests make, of which it tells those in tests/ only: target/tmp, for a program in target/debug/deps.
fn folder() -> PathBuf {
    let program = std::env::current_exe().unwrap();
    let target = program.ancestors().nth(3).expect("a folder of cargo's");
    option_env!("CARGO_TARGET_TMPDIR").map_or(target.join("tmp"), PathBuf::from)
}

/// The kernels as a library that has `standin_launch`, made once and again when a source changes: that takes seconds.
static KERNELS: LazyLock<PathBuf> = LazyLock::new(|| {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let folder = folder();
    fs::create_dir_all(&folder).unwrap();
    let compiler = std::env::var_os("CXX").unwrap_or_else(|| "c++".into());
    let flags = "-std=c++17 -O2 -shared -fPIC -fvisibility=hidden -fno-strict-aliasing -w";
    let mut hasher = DefaultHasher::new();
    (&compiler, flags, SOURCE).hash(&mut hasher);
    for file in COMPILED.iter().chain(&INCLUDED) {
        fs::read(root.join(file)).unwrap().hash(&mut hasher);
    }
    let name = format!("standin-kernels-{:016x}", hasher.finish());
    let library = folder.join(&name).with_extension("so");
    if library.is_file() {
        return library;
    }
    // Other test programs may be making it too.
    let mine = |extension: &str| folder.join(format!("{name}-{}.{extension}", std::process::id()));
    let (source, made) = (mine("cu"), mine("so"));
    fs::write(&source, SOURCE).unwrap();
    let built = Command::new(&compiler)
        .args(flags.split(' '))
        .arg(format!("-DKERNELS=\"{}\"", source.display()))
        .args(COMPILED.map(|file| root.join(file)))
        .arg("-o")
        .arg(&made)
        .status();
    assert!(built.expect("a C++ compiler is needed").success());
    fs::remove_file(&source).unwrap();
    fs::rename(&made, &library).unwrap();
    library
});
