//! A GPU's primary context, its compute stream and its memory.

use std::sync::Arc;

use cudarc::driver::{CudaContext, CudaEvent, CudaStream, DriverError, result, sys};

use super::pool::Pool;
use crate::error::{Error, Result};

/// The oldest driver that has all that is called here: CUDA 12.0's.
const OLDEST_DRIVER: i32 = 12_000;

/// A GPU that is ready for use. One stream orders all that is done on it.
pub(super) struct Gpu {
    pub(super) context: Arc<CudaContext>,
    pub(super) stream: Arc<CudaStream>,
    pub(super) pool: Pool,
    pub(super) name: String,
    /// Whether frames are made graphs.
    pub(super) graphs: bool,
}

/// Set to 0, frames are not made graphs: to measure what that saves, or to look at them in a profiler.
const GRAPHS: &str = "STREAMDIFFUSION_CUDA_GRAPHS";

impl Gpu {
    /// The GPU with this number, counted from 0.
    pub(super) fn new(ordinal: usize) -> Result<Self> {
        let count = count()?;
        if ordinal >= count {
            return Err(Error::setting(
                "device-id",
                format!("there is no GPU {ordinal}; {}", have(count)),
            ));
        }
        let failed = |what: &'static str| move |e| failed(what, e);
        // The primary context: engines work in it too, and so nothing has to be copied between contexts.
        let context = CudaContext::new(ordinal).map_err(failed("open the GPU"))?;
        // Not in step with the default stream, on which other threads (ONNX Runtime's) may work while a graph is captured.
        let stream = context.new_stream().map_err(failed("make a stream"))?;
        let name = context.name().map_err(failed("read the GPU's name"))?;
        Ok(Self {
            pool: Pool::new(context.clone()),
            context,
            stream,
            name,
            graphs: std::env::var_os(GRAPHS).is_none_or(|value| value != "0"),
        })
    }

    /// Makes its context that of the calling thread.
    pub(super) fn enter(&self) -> Result<()> {
        (self.context.bind_to_thread()).map_err(|e| failed("enter the GPU's context", e))
    }

    /// Marks what was put on the stream so far. To be called where nobody else puts anything there: the stream may be
    /// captured by another thread a moment later, and must not be waited for then. Marks may.
    pub(super) fn mark(&self) -> Result<Mark> {
        let flags = Some(sys::CUevent_flags::CU_EVENT_DISABLE_TIMING);
        let event = self.context.new_event(flags);
        let event = event.map_err(|e| failed("make an event", e))?;
        (event.record(&self.stream)).map_err(|e| failed("record an event", e))?;
        Ok(Mark(event))
    }
}

/// A point on the stream.
pub(super) struct Mark(CudaEvent);

impl Mark {
    /// Waits until the GPU has come that far.
    pub(super) fn wait(self) -> Result<()> {
        (self.0.synchronize()).map_err(|e| failed("finish its work", e))
    }
}

/// Gives a thread back the context that it had. Threads that start and stop elements are an application's, which may
/// work with a context of its own.
#[derive(Default)]
pub(super) struct Restore(Option<sys::CUcontext>);

// SAFETY: a handle, which is used on the thread that saved it.
unsafe impl Send for Restore {}
// SAFETY: as above.
unsafe impl Sync for Restore {}

impl Restore {
    /// Gives the calling thread's context back when this is dropped. The driver must be there.
    pub(super) fn new() -> Self {
        let mut restore = Self::default();
        restore.save();
        restore
    }

    /// The same, for one that was made earlier: as the last field of what is about to be dropped.
    pub(super) fn save(&mut self) {
        // An error is that of a driver that was not started yet: the thread has no context.
        let current = result::ctx::get_current().ok().flatten();
        self.0 = Some(current.unwrap_or(std::ptr::null_mut()));
    }
}

impl Drop for Restore {
    fn drop(&mut self) {
        if let Some(context) = self.0 {
            // SAFETY: it was the thread's own; null is none. Nobody could be told of an error.
            let _ = unsafe { result::ctx::set_current(context) };
        }
    }
}

/// The compute capability of a GPU. The driver must have been started, by [`count`].
pub(super) fn compute_capability(ordinal: usize) -> Result<(u32, u32)> {
    let number = i32::try_from(ordinal).unwrap_or(i32::MAX);
    let device = result::device::get(number).map_err(|e| failed("find the GPU", e))?;
    let ask = |attribute| {
        // SAFETY: the driver gave the device.
        let value = unsafe { result::device::get_attribute(device, attribute) };
        let value = value.map_err(|e| failed("tell its compute capability", e))?;
        Ok(u32::try_from(value).unwrap_or(0))
    };
    use sys::CUdevice_attribute as Attribute;
    Ok((
        ask(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
        ask(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
    ))
}

/// How many GPUs there are; an error that says what is missing where there is no driver.
pub(super) fn count() -> Result<usize> {
    // SAFETY: looks for a shared library; its constructors are the driver's.
    if !unsafe { sys::is_culib_present() } {
        return Err(Error::Library(
            "CUDA's driver library (libcuda.so.1) was not found; it comes with NVIDIA's driver"
                .into(),
        ));
    }
    result::init().map_err(|e| match e.0 {
        sys::CUresult::CUDA_ERROR_NO_DEVICE => {
            Error::Library("NVIDIA's driver is there, but it finds no GPU".into())
        }
        _ => failed("start", e),
    })?;
    let mut version = 0;
    // SAFETY: writes one number.
    (unsafe { sys::cuDriverGetVersion(&mut version) }.result())
        .map_err(|e| failed("tell its version", e))?;
    if version < OLDEST_DRIVER {
        return Err(Error::Library(format!(
            "NVIDIA's driver is for CUDA {}.{}; expected one for CUDA {}.{} or newer",
            version / 1000,
            version % 1000 / 10,
            OLDEST_DRIVER / 1000,
            OLDEST_DRIVER % 1000 / 10
        )));
    }
    let count = result::device::get_count().map_err(|e| failed("count the GPUs", e))?;
    Ok(usize::try_from(count).unwrap_or(0))
}

fn have(count: usize) -> String {
    match count {
        0 => "none was found".into(),
        1 => "there is one, number 0".into(),
        _ => format!("there are {count}, numbers 0 to {}", count - 1),
    }
}

/// The error of a driver call that was to `what`.
pub(super) fn failed(what: &str, error: DriverError) -> Error {
    let text = |text: std::result::Result<&std::ffi::CStr, DriverError>| {
        text.map_or_else(|_| String::new(), |t| t.to_string_lossy().into_owned())
    };
    let (name, said) = (text(error.error_name()), text(error.error_string()));
    Error::engine("CUDA", format!("could not {what}: {said} ({name})"))
}
