//! Finds and opens TensorRT's shared libraries.
//!
//! Two are needed: the library itself, and to build engines its ONNX parser, which comes with it. Both are opened and
//! asked their version here, before the bindings hear of them.

use std::error::Error as _;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use libloading::Library as Object;
use parking_lot::Mutex;

use crate::error::{Error, Result};
use crate::location;

/// The environment variable that names the library, or the folder it is in.
pub const VARIABLE: &str = "TENSORRT_LIBRARY_PATH";
/// The element's property that names it.
pub const PROPERTY: &str = "tensorrt-library";
/// Which of NVIDIA's two products this was built for, as the cache writes it.
pub const FLAVOUR: &str = if ENTERPRISE { "enterprise" } else { "rtx" };

const ENTERPRISE: bool = cfg!(feature = "tensorrt-enterprise");
/// What people call it.
const NAME: &str = if ENTERPRISE {
    "TensorRT"
} else {
    "TensorRT for RTX"
};
/// File names, less the version at their end.
const STEM: &str = if ENTERPRISE {
    "libnvinfer.so"
} else {
    "libtensorrt_rtx.so"
};
const PARSER_STEM: &str = if ENTERPRISE {
    "libnvonnxparser.so"
} else {
    "libtensorrt_onnxparser_rtx.so"
};

/// A version of TensorRT.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    /// Interfaces break between these.
    pub major: u32,
    /// Interfaces grow between these.
    pub minor: u32,
    /// Corrections.
    pub patch: u32,
    /// NVIDIA's number of the build.
    pub build: u32,
}

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            major,
            minor,
            patch,
            build,
        } = self;
        write!(f, "{major}.{minor}.{patch}.{build}")
    }
}

impl Version {
    /// The oldest that will do: the one whose interfaces the bindings were made from.
    fn wanted() -> Self {
        // SAFETY: they take nothing and give constants of the headers that the bindings were built with.
        let (major, minor) = unsafe {
            (
                trtx::trtx_sys::get_tensorrt_major_version(),
                trtx::trtx_sys::get_tensorrt_minor_version(),
            )
        };
        Self {
            major,
            minor,
            patch: 0,
            build: 0,
        }
    }

    /// Whether a library of this version has all that the bindings call.
    fn will_do(self, wanted: Self) -> bool {
        self.major == wanted.major && self >= wanted
    }
}

/// The open library. It stays open until the process ends.
#[derive(Debug)]
pub struct Library {
    /// Where it is.
    pub path: PathBuf,
    /// Its version.
    pub version: Version,
}

impl std::fmt::Display for Library {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{NAME} {}", self.version)
    }
}

/// The library once it is open. A process can have one only.
static OPEN: Mutex<Option<&'static Library>> = Mutex::new(None);

/// The process's TensorRT, opened on first use. A failure is not remembered: the user may install the library and try
/// again.
///
/// # Errors
/// [`Error::Library`] if there is none that will do; it names all places that were searched.
pub fn library() -> Result<&'static Library> {
    let mut open = OPEN.lock();
    if let Some(library) = *open {
        return Ok(library);
    }
    let named = std::env::var_os(VARIABLE);
    let library = find(named.as_deref(), &location::beside("tensorrt"))?;
    load(library, &mut open)
}

/// The process's TensorRT, which is to be the one at `path`: a file, or the folder it is in. Nothing else is searched.
///
/// # Errors
/// [`Error::Setting`] of the property [`PROPERTY`] if it is no TensorRT that will do, or the process has opened another one
/// already.
pub fn library_at(path: &Path) -> Result<&'static Library> {
    let failed = |what: String| {
        let what = format!("{} cannot be used: {what}", path.display());
        Error::setting(PROPERTY, what)
    };
    let mut open = OPEN.lock();
    if let Some(library) = *open {
        return match location::names(path, &library.path) {
            true => Ok(library),
            false => Err(failed(format!(
                "this process has opened {} already, and can have one only",
                library.path.display()
            ))),
        };
    }
    let library = file_of(path).and_then(|file| examine(&file));
    load(library.map_err(&failed)?, &mut open).map_err(|error| failed(error.to_string()))
}

fn load(library: Library, open: &mut Option<&'static Library>) -> Result<&'static Library> {
    trtx::dynamically_load_tensorrt(Some(&library.path))
        .map_err(|e| Error::Library(format!("{NAME} at {}: {e}", library.path.display())))?;
    Ok(open.insert(Box::leak(Box::new(library))))
}

/// The library that `path` names: itself, or the newest in it if it is a folder.
fn file_of(path: &Path) -> std::result::Result<PathBuf, String> {
    if !path.is_dir() {
        return Ok(std::path::absolute(path).unwrap_or_else(|_| path.to_owned()));
    }
    let newest = libraries(path, STEM).into_iter().next();
    newest.ok_or_else(|| format!("the folder holds no {STEM}"))
}

/// Opens the ONNX parser that belongs to [`library`]: the one in the same folder, else the system's.
///
/// # Errors
/// [`Error::Library`] if there is none.
pub fn parser() -> Result<()> {
    static OPEN: Mutex<bool> = Mutex::new(false);
    let library = library()?;
    let mut open = OPEN.lock();
    if *open {
        return Ok(());
    }
    let folder = library.path.parent().unwrap_or(Path::new(""));
    let mut files = libraries(folder, PARSER_STEM);
    files.extend(system_names(PARSER_STEM));
    let mut searched = Vec::new();
    for file in files {
        match open_object(&file).and_then(|object| parser_in(object, &file)) {
            Ok(()) => {
                trtx::dynamically_load_tensorrt_onnxparser(Some(&file)).map_err(|e| {
                    Error::Library(format!("{NAME}'s ONNX parser at {}: {e}", file.display()))
                })?;
                *open = true;
                return Ok(());
            }
            Err(e) => searched.push(e),
        }
    }
    Err(Error::Library(format!(
        "{NAME}'s ONNX parser, {PARSER_STEM}.{}, which building engines takes, was not found beside {} ({}). Running engines that are built already does not need it",
        library.version.major,
        library.path.display(),
        searched.join("; ")
    )))
}

/// The first library that will do: the one `named` by the user, else one in `folders`, else the system's.
fn find(named: Option<&OsStr>, folders: &[PathBuf]) -> Result<Library> {
    if let Some(named) = named.filter(|n| !n.is_empty()) {
        // The user's word is final: a library found elsewhere would hide the mistake.
        let path = Path::new(named);
        return file_of(path)
            .and_then(|file| examine(&file))
            .map_err(|e| missing(&format!("{VARIABLE} is {}, but {e}", path.display())));
    }
    let mut searched = Vec::new();
    for folder in folders {
        let files = libraries(folder, STEM);
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
    for name in system_names(STEM) {
        match examine(&name) {
            Ok(found) => return Ok(found),
            Err(e) => searched.push(format!("the system's {e}")),
        }
    }
    Err(missing(&searched.join("; ")))
}

fn missing(searched: &str) -> Error {
    let wanted = Version::wanted();
    let how = if ENTERPRISE {
        format!(
            "Install it from NVIDIA's package index, or set {VARIABLE}, or the property {PROPERTY}, to its folder"
        )
    } else {
        format!(
            "Run scripts/get-tensorrt, which puts it beside the plugin, or \"pip install tensorrt-rtx-cu13-libs\" and set {VARIABLE}, or the property {PROPERTY}, to the folder its libraries went to"
        )
    };
    Error::Library(format!(
        "{NAME} {}.{} or a later {}.x is needed and was not found ({searched}). {how}",
        wanted.major, wanted.minor, wanted.major
    ))
}

/// Opens the library at `path`, if it will do; else why not.
fn examine(path: &Path) -> std::result::Result<Library, String> {
    let object = open_object(path)?;
    let number = |name: &[u8]| {
        // SAFETY: these functions have had this type since they came with TensorRT 10 and TensorRT for RTX 1.0.
        let function = unsafe { object.get::<unsafe extern "C" fn() -> i32>(name) };
        let function =
            function.map_err(|_| format!("{} is not {NAME}: it has no version", path.display()))?;
        // SAFETY: takes no arguments and reads a constant.
        Ok::<u32, String>(u32::try_from(unsafe { function() }).unwrap_or(0))
    };
    // The two products share names of functions, but not numbers of versions.
    let version = Version {
        major: number(b"getInferLibMajorVersion\0")?,
        minor: number(b"getInferLibMinorVersion\0")?,
        patch: number(b"getInferLibPatchVersion\0")?,
        build: number(b"getInferLibBuildVersion\0")?,
    };
    let wanted = Version::wanted();
    if !version.will_do(wanted) {
        return Err(format!(
            "{} is version {version}, expected {}.{} or a later {}.x",
            path.display(),
            wanted.major,
            wanted.minor,
            wanted.major
        ));
    }
    // A bare name was resolved by the system's loader; the bindings must not resolve it another way.
    let found = if path.is_absolute() {
        path.to_owned()
    } else {
        // SAFETY: only the address counts; it is never called as this type.
        let address = unsafe { object.get::<*const ()>(b"createInferRuntime_INTERNAL\0") };
        let address = address.map_err(|e| format!("{}: {e}", path.display()))?;
        location::object_of(*address).unwrap_or_else(|| path.to_owned())
    };
    Ok(Library {
        path: found,
        version,
    })
}

fn parser_in(object: &Object, path: &Path) -> std::result::Result<(), String> {
    // SAFETY: it is only looked for, not called.
    let found = unsafe { object.get::<*const ()>(b"createNvOnnxParser_INTERNAL\0") };
    found.map(|_| ()).map_err(|_| {
        format!(
            "{} is not {NAME}'s ONNX parser: it has no createNvOnnxParser_INTERNAL",
            path.display()
        )
    })
}

/// Opens a shared library for as long as the process lives: what starts threads and registers exit handlers must not
/// be closed.
fn open_object(path: &Path) -> std::result::Result<&'static Object, String> {
    // SAFETY: runs the library's initialisers; which library that is, the user or the installation says.
    let object = unsafe { Object::new(path) }.map_err(|e| match e.source() {
        // The loader's own words: which library or symbol is missing.
        Some(reason) => format!("{} cannot be opened: {reason}", path.display()),
        None => format!("{} cannot be opened: {e}", path.display()),
    })?;
    Ok(Box::leak(Box::new(object)))
}

/// What the system's loader is asked for.
fn system_names(stem: &str) -> [PathBuf; 2] {
    let major = Version::wanted().major;
    [format!("{stem}.{major}"), stem.to_owned()].map(PathBuf::from)
}

/// The libraries in `folder` whose names are `stem` and a version, newest first.
fn libraries(folder: &Path, stem: &str) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(folder) else {
        return Vec::new();
    };
    let mut found: Vec<(Vec<u32>, PathBuf)> = entries
        .flatten()
        .filter_map(|entry| {
            let name = entry.file_name();
            let version = name.to_str()?.strip_prefix(stem)?;
            let version = match version.strip_prefix('.') {
                Some(numbers) => numbers.split('.').map(|n| n.parse().ok()).collect(),
                // A name without a version counts as newest.
                None => version.is_empty().then(|| vec![u32::MAX]),
            };
            Some((version?, entry.path()))
        })
        .collect();
    found.sort_by(|a, b| b.cmp(a));
    found.into_iter().map(|(_, path)| path).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version(major: u32, minor: u32, patch: u32, build: u32) -> Version {
        Version {
            major,
            minor,
            patch,
            build,
        }
    }

    #[test]
    fn later_versions_of_one_major_number_will_do() {
        let wanted = version(1, 7, 0, 0);
        for (found, expected) in [
            (version(1, 7, 0, 0), true),
            (version(1, 7, 1, 116), true),
            (version(1, 12, 0, 1), true),
            (version(1, 6, 9, 999), false),
            (version(2, 0, 0, 0), false),
            (version(10, 7, 0, 0), false),
        ] {
            assert_eq!(found.will_do(wanted), expected, "{found}");
        }
        assert_eq!(version(1, 7, 1, 116).to_string(), "1.7.1.116");
    }

    #[test]
    fn the_newest_library_of_a_folder_comes_first() {
        let folder = std::env::temp_dir().join(format!("tensorrt-order-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        for name in [".1.6.3", ".1.10.0", ".1", ".old", "x"] {
            std::fs::write(folder.join(format!("{STEM}{name}")), "").unwrap();
        }
        let names: Vec<_> = libraries(&folder, STEM)
            .iter()
            .map(|p| p.file_name().unwrap().to_str().unwrap().to_owned())
            .collect();
        std::fs::remove_dir_all(&folder).unwrap();
        let expected = [".1.10.0", ".1.6.3", ".1"].map(|v| format!("{STEM}{v}"));
        assert_eq!(names, expected);
    }

    /// In this process, whichever library it has by then.
    #[test]
    fn a_library_that_is_named_is_the_one_or_an_error_of_the_property() {
        let nothing = Path::new("/nonexistent/none.so");
        let refused = |path: &Path, parts: &[&str]| {
            let text = library_at(path).unwrap_err().to_string();
            for part in [&["property tensorrt-library: ", "cannot be used"], parts].concat() {
                assert!(text.contains(part), "{text:?} lacks {part:?}");
            }
        };
        refused(nothing, &["/nonexistent/none.so"]);
        let ours = library().unwrap();
        assert!(std::ptr::eq(library_at(&ours.path).unwrap(), ours));
        let folder = ours.path.parent().unwrap();
        assert!(std::ptr::eq(library_at(folder).unwrap(), ours));
        let open = ours.path.to_str().unwrap();
        refused(nothing, &["has opened", open, "one only"]);
    }

    #[test]
    fn every_place_that_was_searched_is_named() {
        let nowhere = Path::new("/nonexistent/none.so");
        let text = find(Some(nowhere.as_os_str()), &[])
            .unwrap_err()
            .to_string();
        for part in [VARIABLE, "/nonexistent/none.so", "cannot be opened", NAME] {
            assert!(text.contains(part), "{text:?} lacks {part:?}");
        }
        // Any other library of the system will do for one that is not TensorRT.
        let libc = location::object_of(libc::getpid as *const ()).unwrap();
        let text = find(Some(libc.as_os_str()), &[]).unwrap_err().to_string();
        assert!(text.contains("is not TensorRT"), "{text}");
        // Where the system has the library, finding it is right.
        let folder = std::env::temp_dir();
        if let Err(error) = find(None, std::slice::from_ref(&folder)) {
            let text = error.to_string();
            let place = format!("nothing in {}", folder.display());
            assert!(
                text.contains(&place) && text.contains("the system's"),
                "{text}"
            );
        }
    }
}
