//! Frames in the GPU's memory, shared with GStreamer's other CUDA elements.

mod allocation;
#[cfg(all(test, target_os = "linux"))]
mod calls;
mod context;
mod library;
#[cfg(test)]
mod lost;
mod memory;
#[cfg(all(test, target_os = "linux"))]
mod overlap;
#[cfg(all(test, target_os = "linux"))]
mod standin;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::ffi::c_void;
use std::sync::{Arc, LazyLock, Weak};

use gst::prelude::*;
use parking_lot::Mutex;

pub use context::{Context, TYPE};
pub use memory::{Mapped, is_cuda};

use super::CAT;
use crate::device::cuda::Cuda;
use crate::error::Result;
use library::Functions;

/// A GPU that elements compute on, and the way to share its memory with neighbours, where there is one.
pub struct Gpu {
    pub cuda: Cuda,
    pub sharing: Option<Sharing>,
}

impl Gpu {
    /// The GPU with this number: the one in use elsewhere in the process if it is, because models that are shared work on
    /// its stream.
    pub fn open(number: usize) -> Result<Arc<Self>> {
        static OPEN: LazyLock<Mutex<HashMap<usize, Weak<Gpu>>>> = LazyLock::new(Mutex::default);
        let mut open = OPEN.lock();
        if let Some(gpu) = open.get(&number).and_then(Weak::upgrade) {
            // Others still have what was lost with it.
            gpu.cuda.check()?;
            return Ok(gpu);
        }
        let cuda = Cuda::new(number)?;
        let sharing = Sharing::new(&cuda)
            .inspect_err(|error| gst::info!(CAT, "Frames stay in main memory: {error}"))
            .ok();
        let gpu = Arc::new(Self { cuda, sharing });
        open.insert(number, Arc::downgrade(&gpu));
        Ok(gpu)
    }
}

/// The GPU's memory as GStreamer's CUDA elements have it.
#[derive(Clone)]
pub struct Sharing {
    functions: &'static Functions,
    context: Context,
}

impl Sharing {
    /// Of the primary context of `cuda`.
    ///
    /// # Errors
    /// When GStreamer's CUDA library is missing or unfit: frames then come and go in main memory.
    pub fn new(cuda: &Cuda) -> Result<Self> {
        let functions = Functions::get()?;
        let keep = || cuda.keep_context();
        let context = Context::primary(functions, cuda.ordinal(), cuda.context_handle(), keep)?;
        Ok(Self { functions, context })
    }

    /// The context that frames are in.
    pub fn context(&self) -> &Context {
        &self.context
    }

    /// `pool` if it gives frames in our context, else a pool that does, set up for frames of `caps`; and the size of its
    /// buffers.
    pub fn pool(
        &self,
        offered: Option<gst::BufferPool>,
        caps: &gst::Caps,
        (size, min, max): (u32, u32, u32),
    ) -> Result<(gst::BufferPool, u32)> {
        let ours = offered.filter(|pool| memory::is_pool_of(self.functions, pool, &self.context));
        let pool = match ours {
            Some(pool) => pool,
            None => memory::pool(self.functions, &self.context)?,
        };
        let size = memory::configure(&pool, caps, size, min, max)?;
        Ok((pool, size))
    }

    /// Maps a buffer for reading by the GPU.
    pub fn map(&self, buffer: gst::Buffer) -> Result<Mapped> {
        Mapped::for_reading(self.functions, buffer)
    }

    /// The context that a mapped buffer is in (a `CUcontext`).
    pub fn context_of(&self, mapped: &Mapped) -> *mut c_void {
        mapped.context(self.functions)
    }
}

/// The context that the element's neighbours use: asks them, and then the application.
///
/// Whoever has one sets it on the element, or answers the query; `given` is what was set.
pub fn look_for_context(
    element: &gst::Element,
    given: impl Fn() -> Option<Context>,
) -> Option<Context> {
    if let Some(context) = given() {
        return Some(context);
    }
    for name in ["src", "sink"] {
        let mut query = gst::query::Context::new(TYPE);
        if let Some(pad) = element.static_pad(name)
            && pad.peer_query(&mut query)
            && let Some(context) = query.context_owned().as_ref().and_then(Context::given)
        {
            return Some(context);
        }
    }
    let message = gst::message::NeedContext::builder(TYPE)
        .src(element)
        .build();
    // Without a bus there is nobody to ask.
    let _ = element.post_message(message);
    given()
}

/// Tells the application and the rest of the pipeline of our context.
pub fn publish(element: &gst::Element, context: &Context) {
    let message = gst::message::HaveContext::builder(context.message(None))
        .src(element)
        .build();
    // Without a bus there is nobody to tell.
    let _ = element.post_message(message);
}
