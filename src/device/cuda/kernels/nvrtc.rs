//! NVIDIA's run-time compiler, opened when there is something to compile.
//!
//! cudarc's own loader looks for fewer names, and panics where it finds none.

use std::error::Error as _;
use std::ffi::{CStr, CString, OsStr, c_char, c_int};
use std::path::{Path, PathBuf};

use libloading::Library;

use crate::error::{Error, Result};
use crate::location;

/// The environment variable that names the library, or a folder it is in.
const VARIABLE: &str = "NVRTC_DYLIB_PATH";

/// File names by the major version of CUDA, newest first. 11.2 is the name of all of CUDA 11 from there on.
const NAMES: &[(u32, &str)] = if cfg!(windows) {
    &[
        (13, "nvrtc64_130_0.dll"),
        (12, "nvrtc64_120_0.dll"),
        (11, "nvrtc64_112_0.dll"),
    ]
} else {
    &[
        (13, "libnvrtc.so.13"),
        (12, "libnvrtc.so.12"),
        (11, "libnvrtc.so.11.2"),
        (0, "libnvrtc.so"),
    ]
};

type Program = *mut std::ffi::c_void;
type Status = c_int;

/// What it makes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Code {
    /// Machine code for one architecture.
    Cubin(Vec<u8>),
    /// Text that the driver makes machine code of; ends with a null byte.
    Ptx(Vec<u8>),
}

/// An open library.
pub struct Nvrtc {
    library: &'static Library,
    /// Where it is, or the name it was found under.
    pub path: PathBuf,
    /// Major and minor version of its CUDA.
    pub version: (u32, u32),
}

impl Nvrtc {
    /// The first library that a driver for this major version of CUDA takes code from: the one that the user names, else
    /// one beside the plugin, the system's, or one in the usual folders.
    pub fn find(driver: u32) -> Result<Self> {
        let named = std::env::var_os(VARIABLE).filter(|n| !n.is_empty());
        search(driver, named.as_deref(), &folders())
    }

    /// The newest architecture that it knows and a GPU of this compute capability runs, as major·10 + minor.
    fn architecture(&self, capability: u32) -> Result<u32> {
        let mut count: c_int = 0;
        let number = self
            .function::<unsafe extern "C" fn(*mut c_int) -> Status>(c"nvrtcGetNumSupportedArchs")?;
        // SAFETY: writes one int.
        self.check("the architectures", unsafe { number(&mut count) })?;
        let mut known = vec![0 as c_int; usize::try_from(count).unwrap_or(0)];
        let list =
            self.function::<unsafe extern "C" fn(*mut c_int) -> Status>(c"nvrtcGetSupportedArchs")?;
        // SAFETY: writes as many ints as it said.
        self.check("the architectures", unsafe { list(known.as_mut_ptr()) })?;
        let known = || known.iter().filter_map(|a| u32::try_from(*a).ok());
        known().filter(|a| *a <= capability).max().ok_or_else(|| {
            let oldest = known().min().unwrap_or(0);
            self.error(format!(
                "this GPU has compute capability {}, but CUDA {} serves {} and later",
                dotted(capability),
                self.version.0,
                dotted(oldest)
            ))
        })
    }

    /// Code for a GPU of compute capability `capability` (major·10 + minor) of CUDA C++ without includes: its own machine
    /// code, or PTX where the library is older than the GPU.
    pub fn compile(&self, source: &str, capability: u32) -> Result<Code> {
        let architecture = self.architecture(capability)?;
        let exact = architecture == capability;
        let kind = if exact { "sm" } else { "compute" };
        let options = [
            format!("--gpu-architecture={kind}_{architecture}"),
            "--std=c++17".to_owned(),
        ];
        let program = self.program(source)?;
        let run = self
            .function::<unsafe extern "C" fn(Program, c_int, *const *const c_char) -> Status>(
                c"nvrtcCompileProgram",
            )?;
        let options = options.map(|o| CString::new(o).unwrap_or_default());
        let options = options.each_ref().map(|o| o.as_ptr());
        // SAFETY: the program is alive, and the options outlive the call.
        let status = unsafe { run(program.handle, options.len() as c_int, options.as_ptr()) };
        if status != 0 {
            let log = program
                .output(c"nvrtcGetProgramLogSize", c"nvrtcGetProgramLog")
                .unwrap_or_default();
            let log = String::from_utf8_lossy(&log);
            let log = log.trim_end_matches('\0').trim();
            return Err(self.error(format!("{}: {log}", self.text(status))));
        }
        if exact {
            let code = program.output(c"nvrtcGetCUBINSize", c"nvrtcGetCUBIN")?;
            Ok(Code::Cubin(code))
        } else {
            let code = program.output(c"nvrtcGetPTXSize", c"nvrtcGetPTX")?;
            Ok(Code::Ptx(code))
        }
    }

    fn program(&self, source: &str) -> Result<Source<'_>> {
        type Create = unsafe extern "C" fn(
            *mut Program,
            *const c_char,
            *const c_char,
            c_int,
            *const *const c_char,
            *const *const c_char,
        ) -> Status;
        let text = CString::new(source).map_err(|e| self.error(e.to_string()))?;
        let create = self.function::<Create>(c"nvrtcCreateProgram")?;
        let mut handle = std::ptr::null_mut();
        // SAFETY: the strings outlive the call, which copies them; there are no headers.
        let status = unsafe {
            create(
                &mut handle,
                text.as_ptr(),
                c"kernels.cu".as_ptr(),
                0,
                std::ptr::null(),
                std::ptr::null(),
            )
        };
        self.check("the source", status)?;
        Ok(Source {
            nvrtc: self,
            handle,
        })
    }

    fn function<T: Copy>(&self, name: &CStr) -> Result<T> {
        // SAFETY: the callers' types are those of NVRTC's C interface, from CUDA 11.2 on.
        let symbol = unsafe { self.library.get::<T>(name) };
        symbol.map(|s| *s).map_err(|_| {
            self.error(format!(
                "it has no {}, expected CUDA 11.2 or later",
                name.to_string_lossy()
            ))
        })
    }

    fn check(&self, what: &str, status: Status) -> Result<()> {
        match status {
            0 => Ok(()),
            _ => Err(self.error(format!("{what}: {}", self.text(status)))),
        }
    }

    fn text(&self, status: Status) -> String {
        let explain =
            self.function::<unsafe extern "C" fn(Status) -> *const c_char>(c"nvrtcGetErrorString");
        match explain {
            // SAFETY: gives a static string for any number.
            Ok(explain) => unsafe { CStr::from_ptr(explain(status)) }
                .to_string_lossy()
                .into_owned(),
            Err(_) => format!("error {status}"),
        }
    }

    fn error(&self, what: String) -> Error {
        Error::engine(
            "CUDA kernels",
            format!(
                "NVRTC {}.{} ({}): {what}",
                self.version.0,
                self.version.1,
                self.path.display()
            ),
        )
    }
}

/// A program that is being compiled.
struct Source<'a> {
    nvrtc: &'a Nvrtc,
    handle: Program,
}

impl Source<'_> {
    /// What this pair of functions gives: a size, and as many bytes.
    fn output(&self, size: &CStr, get: &CStr) -> Result<Vec<u8>> {
        let size = self
            .nvrtc
            .function::<unsafe extern "C" fn(Program, *mut usize) -> Status>(size)?;
        let mut bytes = 0;
        // SAFETY: writes one size.
        self.nvrtc
            .check("the output", unsafe { size(self.handle, &mut bytes) })?;
        let get = self
            .nvrtc
            .function::<unsafe extern "C" fn(Program, *mut c_char) -> Status>(get)?;
        let mut output = vec![0u8; bytes];
        // SAFETY: writes as many bytes as it said.
        let status = unsafe { get(self.handle, output.as_mut_ptr().cast()) };
        self.nvrtc.check("the output", status)?;
        Ok(output)
    }
}

impl Drop for Source<'_> {
    fn drop(&mut self) {
        let destroy = self
            .nvrtc
            .function::<unsafe extern "C" fn(*mut Program) -> Status>(c"nvrtcDestroyProgram");
        if let Ok(destroy) = destroy {
            // SAFETY: created by this library, and destroyed once.
            unsafe { destroy(&mut self.handle) };
        }
    }
}

/// NVRTC opens a second library by its name alone, so where both are outside the loader's path (as in Python packages)
/// it does not find what lies beside it. A library that is open already is found.
fn open_builtins(path: &Path, (major, minor): (u32, u32), address: *const ()) {
    let itself = if path.is_absolute() {
        Some(path.to_owned())
    } else {
        location::object_of(address)
    };
    let folder = itself.as_deref().and_then(Path::parent);
    if let Some(folder) = folder.filter(|_| !cfg!(windows)) {
        let beside = folder.join(format!("libnvrtc-builtins.so.{major}.{minor}"));
        if beside.exists() {
            // SAFETY: runs the library's initialisers; it belongs to the one that is open already.
            // Where this fails, NVRTC says so when it compiles.
            if let Ok(library) = unsafe { Library::new(&beside) } {
                std::mem::forget(library);
            }
        }
    }
}

/// A compute capability as it is written.
pub fn dotted(capability: u32) -> String {
    format!("{}.{}", capability / 10, capability % 10)
}

/// Where the library may lie beside what the system's loader finds: beside the plugin, and where CUDA is installed.
fn folders() -> Vec<PathBuf> {
    let beside = location::object().and_then(|path| path.parent().map(Path::to_owned));
    let installed = ["CUDA_PATH", "CUDA_HOME"]
        .into_iter()
        .filter_map(std::env::var_os)
        .map(PathBuf::from)
        .chain(["/usr/local/cuda", "/opt/cuda"].map(PathBuf::from))
        .flat_map(|root| ["lib64", "lib", "bin"].map(|sub| root.join(sub)));
    beside.into_iter().chain(installed).collect()
}

fn search(driver: u32, named: Option<&OsStr>, folders: &[PathBuf]) -> Result<Nvrtc> {
    // Code of a newer CUDA than the driver's is refused, so libraries that would make it are not asked.
    let names = || NAMES.iter().filter(|(major, _)| *major <= driver);
    if let Some(named) = named {
        // The user's word is final: a library found elsewhere would hide the mistake.
        let path = Path::new(named);
        let found = if path.is_dir() {
            names()
                .map(|(_, name)| path.join(name))
                .find(|file| file.exists())
        } else {
            Some(path.to_owned())
        };
        let said =
            |what: String| missing(driver, &format!("{VARIABLE} is {}, {what}", path.display()));
        let found = found.ok_or_else(|| said("which holds none that fits".into()))?;
        return open(&found, driver).map_err(|e| said(format!("but {e}")));
    }
    let (beside, installed) = folders.split_at(folders.len().min(1));
    let inside = |folders: &[PathBuf]| -> Vec<PathBuf> {
        let all = folders
            .iter()
            .flat_map(|folder| names().map(|(_, name)| folder.join(name)));
        all.filter(|file| file.exists()).collect()
    };
    let system = names().map(|(_, name)| PathBuf::from(name));
    let mut refused = Vec::new();
    for path in inside(beside)
        .into_iter()
        .chain(system)
        .chain(inside(installed))
    {
        match open(&path, driver) {
            Ok(nvrtc) => return Ok(nvrtc),
            Err(e) => refused.push(e),
        }
    }
    Err(missing(driver, &refused.join("; ")))
}

fn missing(driver: u32, why: &str) -> Error {
    Error::Library(format!(
        "NVIDIA's run-time compiler (NVRTC) for CUDA {driver} or older is needed to compile the kernels, and was not found: \
         {why}. Run \"pip install {}\" and set {VARIABLE} to the folder that holds its libnvrtc.so, or install the CUDA toolkit",
        match driver {
            13.. => "nvidia-cuda-nvrtc",
            12 => "nvidia-cuda-nvrtc-cu12",
            _ => "nvidia-cuda-nvrtc-cu11",
        }
    ))
}

/// Opens the library at `path` if a driver for this major version takes what it makes, else says why not.
fn open(path: &Path, driver: u32) -> std::result::Result<Nvrtc, String> {
    // SAFETY: runs the library's initialisers; which library that is, the user or the installation says.
    let library = unsafe { Library::new(path) }.map_err(|e| match e.source() {
        // The loader's own words: which library or symbol is missing.
        Some(reason) => format!("{} cannot be opened: {reason}", path.display()),
        None => format!("{} cannot be opened: {e}", path.display()),
    })?;
    // SAFETY: the type is the one of NVRTC's C interface.
    let tell = unsafe {
        library.get::<unsafe extern "C" fn(*mut c_int, *mut c_int) -> Status>(c"nvrtcVersion")
    };
    let tell = tell
        .map(|f| *f)
        .map_err(|_| format!("{} is not NVRTC: it has no nvrtcVersion", path.display()))?;
    let (mut major, mut minor) = (0, 0);
    // SAFETY: writes two ints.
    if unsafe { tell(&mut major, &mut minor) } != 0 {
        return Err(format!("{} does not tell its version", path.display()));
    }
    let number = |n: c_int| u32::try_from(n).unwrap_or(0);
    let version = (number(major), number(minor));
    if version.0 > driver || version < (11, 2) {
        return Err(format!(
            "{} is of CUDA {major}.{minor}, expected 11.2 to {driver}.x",
            path.display()
        ));
    }
    open_builtins(path, version, tell as *const ());
    Ok(Nvrtc {
        // Never closed: it has handlers that run when the process exits.
        library: Box::leak(Box::new(library)),
        path: path.to_owned(),
        version,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn fails(driver: u32, named: Option<&Path>, parts: &[&str]) {
        let error = search(driver, named.map(Path::as_os_str), &[]).err();
        let message = error.map(|e| e.to_string()).unwrap_or_default();
        for part in parts {
            assert!(message.contains(part), "{message:?} lacks {part:?}");
        }
    }

    #[test]
    fn a_library_that_will_not_do_is_refused_and_says_what_to_install() {
        let folder = std::env::temp_dir().join(format!("nvrtc-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        fails(
            13,
            Some(&folder),
            &[VARIABLE, "holds none", "pip install nvidia-cuda-nvrtc\""],
        );
        std::fs::write(folder.join("libnvrtc.so.12"), "no library").unwrap();
        #[cfg(target_os = "linux")]
        fails(
            12,
            Some(&folder),
            &["libnvrtc.so.12 cannot be opened", "nvidia-cuda-nvrtc-cu12"],
        );
        // Too new for the driver, so not even looked at.
        fails(11, Some(&folder), &["holds none", "nvidia-cuda-nvrtc-cu11"]);
        #[cfg(target_os = "linux")]
        {
            let libc = location::object_of(libc::getpid as *const ()).unwrap();
            fails(13, Some(&libc), &["is not NVRTC"]);
        }
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
