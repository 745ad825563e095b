//! A processor in the place of a GPU: for tests, on a stand-in for the driver whose device memory is main memory.
//!
//! A processor runs a session when it is told to, and a stream may put work off. So runs are host functions of the stream,
//! which come in their turn, in graphs too.

use std::ffi::c_void;
use std::sync::OnceLock;

use cudarc::driver::sys;

use crate::device::cuda::Cuda;
use crate::error::{Error, Result};

/// What runs sessions instead of a GPU.
#[derive(Debug, Clone, Copy)]
pub struct Processor {
    /// Told of runs that failed, on whatever thread: a host function has no one else to tell. It must not ask the driver for
    /// anything.
    pub failing: fn(&Error),
}

static IN_PLACE: OnceLock<Processor> = OnceLock::new();

/// From now on, all sessions of this process that are made for a GPU are run by a processor, in their turn on the device's
/// stream: for tests without a GPU. `failing` is told of runs that failed; it must not ask the driver for anything.
///
/// # Safety
/// The memory of every device must be main memory.
pub unsafe fn put_in_place(failing: fn(&Error)) {
    IN_PLACE.get_or_init(|| Processor { failing });
}

impl Processor {
    /// The one in the place of GPUs, where a test has put one.
    pub fn in_place() -> Option<Self> {
        IN_PLACE.get().copied()
    }
}

/// What is run in its turn on a stream.
pub trait Turn: Sync {
    /// Runs it. It must not ask the driver for anything.
    fn run(&self);
}

/// Has `turn` run when all is done that is on the compute stream now; each time anew where the stream is captured.
///
/// # Safety
/// `turn` must stay until it has been run for the last time.
pub unsafe fn put<T: Turn>(cuda: &Cuda, turn: &T) -> Result<()> {
    let data = std::ptr::from_ref(turn).cast_mut().cast::<c_void>();
    // SAFETY: the stream lives as long as `cuda`, and the function takes a `T`; the rest is the caller's word.
    unsafe { sys::cuLaunchHostFunc(cuda.stream().cast(), Some(run::<T>), data) }
        .result()
        .map_err(|e| Error::engine("CUDA", format!("could not put a run on its stream: {e}")))
}

/// # Safety
/// `turn` must be the address of a `T` that is there.
unsafe extern "C" fn run<T: Turn>(turn: *mut c_void) {
    // SAFETY: the caller's word.
    unsafe { &*turn.cast::<T>() }.run();
}
