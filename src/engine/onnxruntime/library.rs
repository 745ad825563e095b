//! Finds and opens the ONNX Runtime shared library.
//!
//! `ort` panics when it has to load the library itself and cannot, so the library is looked for, opened and asked
//! its version here, and `ort` is only told of one that will do.

use std::error::Error as _;
use std::ffi::{CStr, OsStr};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock, PoisonError};

use libloading::Library;
use ort::environment::{Environment, GlobalThreadPoolOptions};

use super::log;
use crate::error::{Error, Result};
use crate::location;

/// The environment variable that names the library, or a folder it is in.
const VARIABLE: &str = "ORT_DYLIB_PATH";
/// The element's property that names it.
const PROPERTY: &str = "onnxruntime-library";
/// What the system's loader is asked for.
const SYSTEM_NAMES: &[&str] = if cfg!(windows) {
    &["onnxruntime.dll"]
} else if cfg!(target_os = "macos") {
    &["libonnxruntime.dylib"]
} else {
    &["libonnxruntime.so", "libonnxruntime.so.1"]
};

/// An open library.
#[derive(Debug)]
pub(super) struct Runtime {
    /// What sessions are made in. `ort` allows one per process, so it is never dropped.
    pub environment: Environment,
    /// Where the library is.
    pub path: PathBuf,
    /// Its version.
    pub version: String,
}

/// The library once it is open. A process can have one only.
static RUNTIME: OnceLock<Runtime> = OnceLock::new();
static OPENING: Mutex<()> = Mutex::new(());

/// The process's ONNX Runtime, opened on first use. A failure is not remembered: the user may install the library
/// and try again.
pub(super) fn runtime() -> Result<&'static Runtime> {
    if let Some(runtime) = RUNTIME.get() {
        return Ok(runtime);
    }
    let _guard = OPENING.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(runtime) = RUNTIME.get() {
        return Ok(runtime);
    }
    let named = std::env::var_os(VARIABLE);
    load(find(named.as_deref(), &location::beside("onnxruntime"))?)
}

/// Opens the ONNX Runtime at `path`, a file or the folder it is in, for the whole process. Nothing else is searched.
///
/// # Errors
/// [`Error::Setting`] of the property [`PROPERTY`] if it is no ONNX Runtime that will do, or the process has opened another
/// one already.
pub fn open_at(path: &Path) -> Result<()> {
    let failed = |what: String| {
        let what = format!("{} cannot be used: {what}", path.display());
        Error::setting(PROPERTY, what)
    };
    let _guard = OPENING.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(runtime) = RUNTIME.get() {
        return match location::names(path, &runtime.path) {
            true => Ok(()),
            false => Err(failed(format!(
                "this process has opened {} already, and can have one only",
                runtime.path.display()
            ))),
        };
    }
    let found = file_of(path).and_then(|file| examine(&file));
    load(found.map_err(failed)?).map(drop)
}

/// The library that `path` names: itself, or the newest in it if it is a folder.
fn file_of(path: &Path) -> std::result::Result<PathBuf, String> {
    if !path.is_dir() {
        return Ok(std::path::absolute(path).unwrap_or_else(|_| path.to_owned()));
    }
    let newest = libraries(path).into_iter().next();
    newest.ok_or_else(|| format!("the folder holds no {}", SYSTEM_NAMES[0]))
}

/// Has `ort` use this library; the caller holds [`OPENING`].
fn load((path, version): (PathBuf, String)) -> Result<&'static Runtime> {
    let failed = |e: &dyn std::fmt::Display| {
        Error::Library(format!("ONNX Runtime at {}: {e}", path.display()))
    };
    let builder = ort::init_from(&path).map_err(|e| failed(&e))?;
    // One pool of threads for all sessions: with one pool each, the threads of the component that has just run
    // would spin beside those of the one that runs now.
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get());
    let pool = GlobalThreadPoolOptions::default()
        .with_intra_threads(threads)
        .map_err(|e| failed(&e))?;
    let environment = builder
        .with_name("gst-plugin-streamdiffusion")
        .with_telemetry(false)
        .with_global_thread_pool(pool)
        .with_logger(log::logger())
        .build()
        .map_err(|e| failed(&e))?;
    environment.set_log_level(log::LEAST);
    Ok(RUNTIME.get_or_init(|| Runtime {
        environment,
        path,
        version,
    }))
}

/// Path and version of the first library that will do: the one `named` by the user, else one in `folders`, else
/// the system's.
fn find(named: Option<&OsStr>, folders: &[PathBuf]) -> Result<(PathBuf, String)> {
    if let Some(named) = named.filter(|n| !n.is_empty()) {
        // The user's word is final: a library found elsewhere would hide the mistake.
        let path = Path::new(named);
        return file_of(path)
            .and_then(|file| examine(&file))
            .map_err(|e| missing(&format!("{VARIABLE} is {}, but {e}", path.display())));
    }
    let mut searched = Vec::new();
    for folder in folders {
        let files = libraries(folder);
        if files.is_empty() {
            searched.push(format!("nothing in {}", folder.display()));
        }
        for file in files {
            match examine(&file) {
                Ok(found) => return Ok(found),
                Err(e) => searched.push(e),
            }
        }
    }
    for name in SYSTEM_NAMES {
        match examine(Path::new(name)) {
            Ok(found) => return Ok(found),
            Err(e) => searched.push(format!("the system's {e}")),
        }
    }
    Err(missing(&searched.join("; ")))
}

fn missing(searched: &str) -> Error {
    Error::Library(format!(
        "ONNX Runtime 1.{} or later is needed and was not found ({searched}). Run scripts/get-onnxruntime, which puts it \
         beside the plugin, or \"pip install onnxruntime\" and set {VARIABLE}, or the property {PROPERTY}, to its onnxruntime/capi folder",
        ort::MINOR_VERSION
    ))
}

/// Opens the library at `path`; where it is and its version if it will do, else why not.
fn examine(path: &Path) -> std::result::Result<(PathBuf, String), String> {
    // SAFETY: runs the library's initialisers; which library that is, the user or the installation says.
    let library = unsafe { Library::new(path) }.map_err(|e| match e.source() {
        // The loader's own words: which library or symbol is missing.
        Some(reason) => format!("{} cannot be opened: {reason}", path.display()),
        None => format!("{} cannot be opened: {e}", path.display()),
    })?;
    // Never closed: it starts threads and registers exit handlers, and `ort` shall get this very one.
    let library = std::mem::ManuallyDrop::new(library);
    // SAFETY: the type is the one ONNX Runtime's C API gives this function in every version.
    let base = unsafe {
        library.get::<unsafe extern "system" fn() -> *const ort::sys::OrtApiBase>(c"OrtGetApiBase")
    }
    .map_err(|_| {
        format!(
            "{} is not ONNX Runtime: it has no OrtGetApiBase",
            path.display()
        )
    })?;
    // SAFETY: takes no arguments, and gives null or a pointer to a static.
    let Some(api) = (unsafe { base().as_ref() }) else {
        return Err(format!("{} gives no interface", path.display()));
    };
    // SAFETY: gives a pointer to a static, null-terminated string.
    let version = unsafe { CStr::from_ptr((api.GetVersionString)()) }.to_string_lossy();
    let mut numbers = version.split('.').map(|n| n.parse::<u32>().unwrap_or(0));
    let (major, minor) = (numbers.next(), numbers.next());
    let new_enough = major == Some(1) && minor >= Some(ort::MINOR_VERSION);
    // SAFETY: gives null for a version it does not know. Asked last, because an old library prints then.
    if !new_enough || unsafe { (api.GetApi)(ort::sys::ORT_API_VERSION) }.is_null() {
        return Err(format!(
            "{} is version {version}, expected 1.{} or later",
            path.display(),
            ort::MINOR_VERSION
        ));
    }
    // A bare name was resolved by the system's loader; `ort` must not resolve it another way.
    let found = if path.is_absolute() {
        path.to_owned()
    } else {
        location::object_of(*base as *const ()).unwrap_or_else(|| path.to_owned())
    };
    Ok((found, version.into_owned()))
}

/// The ONNX Runtime libraries in `folder`, newest version first.
fn libraries(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(folder) else {
        return Vec::new();
    };
    let mut found: Vec<(Vec<u32>, PathBuf)> = entries
        .flatten()
        .filter_map(|entry| {
            let name = entry.file_name();
            Some((library_version(name.to_str()?)?, entry.path()))
        })
        .collect();
    found.sort_by(|a, b| b.cmp(a));
    found.into_iter().map(|(_, path)| path).collect()
}

/// The version in the name of an ONNX Runtime library, `None` for other names. A name without one counts as newest.
fn library_version(name: &str) -> Option<Vec<u32>> {
    if cfg!(windows) {
        return (name == "onnxruntime.dll").then(Vec::new);
    }
    let rest = name.strip_prefix("libonnxruntime.")?;
    let version = if cfg!(target_os = "macos") {
        rest.strip_suffix("dylib")?.trim_end_matches('.')
    } else {
        rest.strip_prefix("so")?.trim_start_matches('.')
    };
    if version.is_empty() {
        return Some(vec![u32::MAX]);
    }
    version.split('.').map(|n| n.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder with these files in it, all of the same content; removed when dropped.
    struct Folder(PathBuf);

    impl Folder {
        fn new(test: &str, files: &[&str]) -> Self {
            let name = format!("onnxruntime-{test}-{}", std::process::id());
            let path = std::env::temp_dir().join(name);
            std::fs::create_dir_all(&path).unwrap();
            for file in files {
                std::fs::write(path.join(file), "not a library").unwrap();
            }
            Self(path)
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    #[track_caller]
    fn fails(named: Option<&Path>, folders: &[PathBuf], parts: &[&str]) {
        // Where the system has the library, finding it is right.
        match find(named.map(Path::as_os_str), folders) {
            Ok(_) => assert!(named.is_none()),
            Err(error) => {
                let message = error.to_string();
                for part in parts.iter().chain(&["get-onnxruntime", "pip install"]) {
                    assert!(message.contains(part), "{message:?} lacks {part:?}");
                }
            }
        }
    }

    #[test]
    fn a_library_named_by_the_user_is_the_only_one_tried() {
        let folder = Folder::new("named", &[]);
        let missing = folder.0.join("none.so");
        fails(Some(&missing), &[], &[VARIABLE, "none.so"]);
        fails(
            Some(&folder.0),
            &[],
            &[VARIABLE, "the folder holds no libonnxruntime"],
        );
        let folder = Folder::new("garbage", &["libonnxruntime.so.1.99.0"]);
        fails(Some(&folder.0), &[], &["so.1.99.0", "cannot be opened"]);
        // Any other library of the system will do for one that is not ONNX Runtime.
        #[cfg(target_os = "linux")]
        fails(Some(Path::new("/proc/self/exe")), &[], &["/proc/self/exe"]);
        #[cfg(target_os = "linux")]
        {
            let libc = location::object_of(libc::getpid as *const ()).unwrap();
            fails(Some(&libc), &[], &["is not ONNX Runtime"]);
        }
    }

    #[test]
    fn all_places_that_were_searched_are_named() {
        let (a, b) = (
            Folder::new("a", &["libonnxruntime.so.1.99.0"]),
            Folder::new("b", &[]),
        );
        let folders = [a.0.clone(), b.0.clone()];
        let parts = [a.0.to_str().unwrap(), b.0.to_str().unwrap(), "the system's"];
        fails(None, &folders, &parts);
        fails(None, &[], &["1.17 or later"]);
    }

    #[test]
    fn the_newest_library_of_a_folder_comes_first() {
        let files = [
            "libonnxruntime.so.1.9.0",
            "libonnxruntime.so.1.31.1",
            "libonnxruntime.so",
            "libonnxruntime.so.1",
            "libonnxruntime.so.old",
            "libonnxruntime_providers_shared.so",
        ];
        let folder = Folder::new("order", &files);
        let found = libraries(&folder.0);
        if cfg!(target_os = "linux") {
            let order = [files[2], files[1], files[0], files[3]];
            assert_eq!(found, order.map(|f| folder.0.join(f)));
        }
    }
}
