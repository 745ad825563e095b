//! A library that stands in for NVIDIA's driver, for tests on machines without one and with one.
//!
//! The loader reads its path when a process starts, so a test runs again in a process of its own. There the stand-in goes
//! before whatever is installed; behind it is a driver that ends the process, so that a test fails on every machine where
//! something would find the installed one.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Set in such a process: where the stand-in is.
const VARIABLE: &str = "STREAMDIFFUSION_TEST_STANDIN";
/// What our code looks for first.
const DRIVER: &str = "libcuda.so";
/// What all others look for.
const DRIVER_OF_ALL: &str = "libcuda.so.1";
/// The driver of the machine, which must not be asked.
const MACHINE: &str = r#"
#include <unistd.h>
__attribute__((constructor)) static void opened(void)
{
    static const char said[] = "the machine's own driver was opened\n";
    if (write(2, said, sizeof said - 1))
        _exit(99);
    _exit(98);
}
"#;

/// For whom there is a GPU.
#[derive(Clone, Copy, PartialEq)]
#[allow(dead_code)] // Not every test program has both.
pub enum Seen {
    /// For whoever looks for a driver.
    ByAll,
    /// For our code alone: TensorRT and GStreamer find no driver.
    ByUs,
}

/// The stand-in, in a process that has one.
pub fn library() -> Option<PathBuf> {
    std::env::var_os(VARIABLE).map(PathBuf::from)
}

/// Runs the test of this program that is called `name`, with the stand-in made of these sources, and with whatever else
/// `set` sets, which gets the command and a folder to use. The test must go well.
#[track_caller]
pub fn run(name: &str, sources: &[&str], seen: Seen, set: impl FnOnce(&mut Command, &Path)) {
    let folder = Folder::new();
    let (ours, machine) = (folder.0.join("stand-in"), folder.0.join("machine"));
    for folder in [&ours, &machine] {
        std::fs::create_dir(folder).unwrap();
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let sources: Vec<_> = sources.iter().map(|source| root.join(source)).collect();
    let library = ours.join(DRIVER);
    // Of what two sources have, the first one's counts. A source may be a library, also if it is for weak symbols only.
    let linked = ["-Wl,-z,muldefs", "-Wl,--no-as-needed"];
    compile(&library, &sources, &linked);
    let other = ours.join(DRIVER_OF_ALL);
    match seen {
        // The same file, so that it is one library.
        Seen::ByAll => std::os::unix::fs::symlink(&library, other).unwrap(),
        // The loader stops at a file that is none.
        Seen::ByUs => std::fs::write(other, "").unwrap(),
    }
    let source = folder.0.join("machine.c");
    std::fs::write(&source, MACHINE).unwrap();
    compile(&machine.join(DRIVER), &[source], &[]);
    std::os::unix::fs::symlink(machine.join(DRIVER), machine.join(DRIVER_OF_ALL)).unwrap();

    let mut path = OsString::from(&ours);
    path.push(":");
    path.push(&machine);
    if let Some(rest) = std::env::var_os("LD_LIBRARY_PATH").filter(|rest| !rest.is_empty()) {
        path.push(":");
        path.push(rest);
    }
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", "--nocapture", name])
        .env(VARIABLE, &library)
        .env("LD_LIBRARY_PATH", path)
        .env("NVRTC_DYLIB_PATH", &library)
        .env("XDG_CACHE_HOME", folder.0.join("cache"));
    set(&mut command, &folder.0);
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && text.contains("1 passed"),
        "{}: {text}{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
}

fn compile(library: &Path, sources: &[PathBuf], more: &[&str]) {
    let built = Command::new("cc")
        .args(["-shared", "-fPIC", "-O1", "-w"])
        .args(more)
        .arg("-o")
        .arg(library)
        .args(sources)
        .arg("-lpthread")
        .status();
    assert!(built.expect("a C compiler is needed").success());
}

/// Removed when dropped.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("streamdiffusion-standin-{}-{count}", std::process::id());
        let path = std::env::temp_dir().join(name);
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
