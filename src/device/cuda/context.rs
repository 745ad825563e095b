//! A GPU's primary context, its streams and its memory.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use cudarc::driver::{CudaContext, CudaEvent, CudaStream, DriverError, result, sys};
use parking_lot::Mutex;

use super::pool::Pool;
use crate::error::{Error, Result};

/// The oldest driver that has all that is called here: CUDA 12.0's.
const OLDEST_DRIVER: i32 = 12_000;

/// A GPU that is ready for use. One stream orders all that is computed on it.
pub(super) struct Gpu {
    pub(super) context: Arc<CudaContext>,
    pub(super) stream: Arc<CudaStream>,
    /// Those that copy frames from and to main memory meanwhile.
    pub(super) upload: Arc<CudaStream>,
    pub(super) download: Arc<CudaStream>,
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
        let context = primary(ordinal)?;
        // Not in step with the default stream, on which other threads (ONNX Runtime's) may work while a graph is captured.
        let stream = || context.new_stream().map_err(failed("make a stream"));
        let (stream, upload, download) = (stream()?, stream()?, stream()?);
        let name = context.name().map_err(failed("read the GPU's name"))?;
        Ok(Self {
            pool: Pool::new(context.clone()),
            context,
            stream,
            upload,
            download,
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
        let event = self
            .context
            .new_event(Some(sys::CUevent_flags::CU_EVENT_DEFAULT));
        let event = event.map_err(|e| failed("make an event", e))?;
        (event.record(&self.stream)).map_err(|e| failed("record an event", e))?;
        Ok(Mark(Arc::new(event)))
    }
}

/// The primary context of the GPU with this number, one for everyone who uses it.
///
/// An error that sticks to a context ends with the context, so one that is lost is not handed out. It goes when all that
/// was in it has gone, which must not touch the one that follows it: its handle and addresses may be the same.
fn primary(ordinal: usize) -> Result<Arc<CudaContext>> {
    static USED: Mutex<BTreeMap<usize, Weak<CudaContext>>> = Mutex::new(BTreeMap::new());
    let mut used = USED.lock();
    if let Some(context) = used.get(&ordinal).and_then(Weak::upgrade) {
        return match lost(&context) {
            Some(error) => Err(Error::engine(
                "CUDA",
                format!(
                    "GPU {ordinal} failed before ({}), and what was on it then is still there: stop all that uses it \
                     (state NULL) before it is used again",
                    named(error)
                ),
            )),
            None => Ok(context),
        };
    }
    let open = || {
        let context = CudaContext::new(ordinal)?;
        context.mem_get_info()?;
        Ok(context)
    };
    let context = match open() {
        // Nothing of ours is in it any more, but libraries that engines use hold it until the process ends.
        Err(error) if sticks(error) => reset(ordinal).and_then(|()| open()).map_err(|_| {
            Error::engine(
                "CUDA",
                format!(
                    "GPU {ordinal} failed before ({}), and its driver gives this program no new context: start the \
                     program again",
                    named(error)
                ),
            )
        }),
        other => other.map_err(|e| failed("open the GPU", e)),
    }?;
    used.insert(ordinal, Arc::downgrade(&context));
    Ok(context)
}

/// Gives the GPU a new primary context in the place of the one that it has.
fn reset(ordinal: usize) -> std::result::Result<(), DriverError> {
    let device = result::device::get(i32::try_from(ordinal).unwrap_or(i32::MAX))?;
    // SAFETY: the driver gave the device. Nothing of ours is in the context, and nothing in it works for anyone.
    unsafe { sys::cuDevicePrimaryCtxReset_v2(device) }.result()
}

/// The error that a context is lost by, if it is.
pub(super) fn lost(context: &CudaContext) -> Option<DriverError> {
    let found = context.mem_get_info().err();
    found.filter(|error| sticks(*error))
}

/// Whether all that is done in a context after this error fails too.
fn sticks(error: DriverError) -> bool {
    use sys::CUresult as Code;
    matches!(
        error.0,
        Code::CUDA_ERROR_ECC_UNCORRECTABLE
            | Code::CUDA_ERROR_NVLINK_UNCORRECTABLE
            | Code::CUDA_ERROR_ILLEGAL_ADDRESS
            | Code::CUDA_ERROR_LAUNCH_TIMEOUT
            | Code::CUDA_ERROR_CONTEXT_IS_DESTROYED
            | Code::CUDA_ERROR_ASSERT
            | Code::CUDA_ERROR_HARDWARE_STACK_ERROR
            | Code::CUDA_ERROR_ILLEGAL_INSTRUCTION
            | Code::CUDA_ERROR_MISALIGNED_ADDRESS
            | Code::CUDA_ERROR_INVALID_ADDRESS_SPACE
            | Code::CUDA_ERROR_INVALID_PC
            | Code::CUDA_ERROR_LAUNCH_FAILED
            | Code::CUDA_ERROR_EXTERNAL_DEVICE
    )
}

/// A point on the stream. Clones are the same one.
#[derive(Clone)]
pub(super) struct Mark(Arc<CudaEvent>);

impl Mark {
    /// Waits until the GPU has come that far.
    pub(super) fn wait(&self) -> Result<()> {
        (self.0.synchronize()).map_err(|e| failed("finish its work", e))
    }

    /// Whether the GPU has come that far, or never will. Makes its context that of the calling thread.
    pub(super) fn is_past(&self) -> bool {
        let entered = self.0.context().bind_to_thread();
        let past = entered.and_then(|()| self.0.try_is_complete());
        past.unwrap_or(true)
    }

    /// The time from here to `end`, both of which are past.
    pub(super) fn until(&self, end: &Self) -> Option<Duration> {
        let elapsed = self.0.elapsed_ms(&end.0).ok()?;
        Duration::try_from_secs_f32(elapsed / 1e3).ok()
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
    let then = match sticks(error) {
        true => {
            "; nothing more can be done on this GPU until all that uses it is stopped (state NULL) and started again, and \
             where its driver does not allow that, not before the program is started again"
        }
        false => "",
    };
    Error::engine("CUDA", format!("could not {what}: {}{then}", named(error)))
}

/// An error in the driver's words.
fn named(error: DriverError) -> String {
    let text = |text: std::result::Result<&std::ffi::CStr, DriverError>| {
        text.map_or_else(|_| String::new(), |t| t.to_string_lossy().into_owned())
    };
    let (name, said) = (text(error.error_name()), text(error.error_string()));
    format!("{said} ({name})")
}
