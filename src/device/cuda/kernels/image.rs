//! From source to a module on a GPU: PTX that was built in, else what NVRTC makes, now or at an earlier start.

use std::ffi::c_void;

use cudarc::driver::sys;

use super::cache::{self, Cache};
use super::failed;
use super::nvrtc::{Code, Nvrtc, dotted};
use crate::error::{Error, Result};

/// All kernels, as one translation unit.
pub const SOURCE: &str = include_str!(concat!(env!("OUT_DIR"), "/kernels.cu"));
/// The same as PTX; empty where the plugin was built without nvcc.
const PTX: &str = include_str!(concat!(env!("OUT_DIR"), "/kernels.ptx"));
/// Names the source in the cache's keys.
const SOURCE_HASH: u64 = cache::hash(SOURCE.as_bytes());

/// Loads the kernels into the current context, whose GPU has this compute capability (major, minor). Gives the module and
/// where it came from, for people.
pub fn load((major, minor): (i32, i32)) -> Result<(sys::CUmodule, String)> {
    let number = |n: i32| u32::try_from(n).unwrap_or(0);
    let capability = number(major) * 10 + number(minor);
    let mut refused = None;
    if !PTX.is_empty() {
        let mut text = PTX.as_bytes().to_vec();
        text.push(0);
        match module(&text) {
            Ok(module) => return Ok((module, "PTX built in".to_owned())),
            Err(e) => refused = Some(e),
        }
    }
    let compiled = from_nvrtc(capability);
    compiled.map_err(|error| match (refused, error) {
        (Some(refused), Error::Library(text)) => Error::Library(format!(
            "{text}. The kernels that the plugin was built with do not suit this driver, a newer one may take them: {refused}"
        )),
        (_, error) => error,
    })
}

fn from_nvrtc(capability: u32) -> Result<(sys::CUmodule, String)> {
    let driver = driver()?;
    let nvrtc = Nvrtc::find(driver)?;
    let (major, minor) = nvrtc.version;
    let name = format!("NVRTC {major}.{minor}");
    let key = format!("source {SOURCE_HASH:016x}, {name}, compute capability {capability}");
    let cache = Cache::of_user();
    if let Some(code) = cache.as_ref().and_then(|c| c.get(&key))
        && let Ok(module) = module(&code)
    {
        return Ok((module, format!("{name}, from the cache")));
    }
    let (Code::Cubin(code) | Code::Ptx(code)) = nvrtc.compile(SOURCE, capability)?;
    let module = module(&code)?;
    let stored = match cache.map(|c| c.put(&key, &code)) {
        Some(Ok(())) => "stored in the cache".to_owned(),
        Some(Err(e)) => format!("not stored: {e}"),
        None => "not stored: no HOME".to_owned(),
    };
    Ok((module, format!("{name}, {stored}")))
}

/// What NVRTC makes of the kernels for a GPU of this compute capability (major·10 + minor) and a driver of this major
/// version of CUDA: a sentence for people. Needs no GPU and no driver, and leaves the cache alone.
///
/// # Errors
/// When there is no library, or it does not take the source.
pub fn compile(capability: u32, driver: u32) -> Result<String> {
    let nvrtc = Nvrtc::find(driver)?;
    let (kind, bytes) = match nvrtc.compile(SOURCE, capability)? {
        Code::Cubin(code) => ("machine code", code.len()),
        Code::Ptx(code) => ("PTX", code.len()),
    };
    let (major, minor) = nvrtc.version;
    Ok(format!(
        "NVRTC {major}.{minor}: {bytes} bytes of {kind} for {}",
        dotted(capability)
    ))
}

/// The major version of CUDA that the driver is for.
fn driver() -> Result<u32> {
    let mut version = 0;
    // SAFETY: writes one int; there is a context, so there is a driver.
    unsafe { sys::cuDriverGetVersion(&mut version) }
        .result()
        .map_err(|e| failed("the driver's version", e))?;
    Ok(u32::try_from(version / 1000).unwrap_or(0))
}

/// Loads PTX (ended by a null byte) or machine code into the current context.
fn module(code: &[u8]) -> Result<sys::CUmodule> {
    let mut log = vec![0u8; 4096];
    let mut options = [
        sys::CUjit_option::CU_JIT_ERROR_LOG_BUFFER,
        sys::CUjit_option::CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES,
    ];
    let mut values = [
        log.as_mut_ptr().cast::<c_void>(),
        // The driver takes this pointer for a number.
        std::ptr::without_provenance_mut(log.len()),
    ];
    let mut module = std::ptr::null_mut();
    // SAFETY: the code is whole, and log and options outlive the call.
    let status = unsafe {
        sys::cuModuleLoadDataEx(
            &mut module,
            code.as_ptr().cast(),
            options.len() as u32,
            options.as_mut_ptr(),
            values.as_mut_ptr(),
        )
    };
    status.result().map_err(|e| {
        let end = log.iter().position(|b| *b == 0).unwrap_or(log.len());
        let log = String::from_utf8_lossy(&log[..end]);
        let said = if log.trim().is_empty() {
            "loading the kernels".to_owned()
        } else {
            format!("loading the kernels ({})", log.trim())
        };
        failed(&said, e)
    })?;
    Ok(module)
}
