//! Frames in a GPU's memory: buffers that are mapped for the GPU, and pools of them.

use std::ffi::c_void;
use std::mem::MaybeUninit;

use gst::ffi::{GstMapFlags, GstMapInfo, GstMemory};
use gst::glib;
use gst::glib::translate::{FromGlibPtrFull, ToGlibPtr, from_glib};
use gst::prelude::*;

use super::context::Context;
use super::library::{Functions, RawContext};
use crate::element::caps::{self, CUDA_FORMATS};
use crate::error::{Error, Result};

/// `GstMemory::allocator::mem_type` of frames in a GPU's memory.
const MEMORY_TYPE: &str = "gst.cuda.memory";
/// `GST_MAP_CUDA`: maps for the GPU. OpenGL's and HIP's memory have the same flag, so that the memory's type is to be
/// looked at first.
const MAP_CUDA: GstMapFlags = gst::ffi::GST_MAP_FLAG_LAST << 1;

/// The part of `GstCudaMemory` that is public and the same in all versions.
#[repr(C)]
struct RawMemory {
    memory: GstMemory,
    context: *mut RawContext,
    info: gst_video::ffi::GstVideoInfo,
}

/// The same of `GstCudaBufferPool`.
#[repr(C)]
struct RawPool {
    pool: gst::ffi::GstBufferPool,
    context: *mut RawContext,
}

/// A buffer whose frame is mapped for the GPU, until this is dropped.
pub struct Mapped {
    buffer: Option<gst::Buffer>,
    memory: *mut GstMemory,
    map: GstMapInfo,
}

// SAFETY: buffers and memory may be used on any thread; a map may be ended on another one than it was made on.
unsafe impl Send for Mapped {}

impl Mapped {
    /// Maps `buffer` for reading, when what is written to it has arrived there.
    ///
    /// # Errors
    /// When it is not one frame in a GPU's memory.
    pub fn for_reading(functions: &Functions, buffer: gst::Buffer) -> Result<Self> {
        let mapped = Self::new(buffer, gst::ffi::GST_MAP_READ)?;
        if let Some(sync) = functions.gst_cuda_memory_sync {
            // SAFETY: CUDA memory, by its type.
            unsafe { sync(mapped.memory) };
        }
        Ok(mapped)
    }

    /// Maps `buffer`, which must be held by nobody else, for writing.
    ///
    /// # Errors
    /// When it is not one frame in a GPU's memory, or is in use elsewhere.
    pub fn for_writing(mut buffer: gst::Buffer) -> Result<Self> {
        if buffer.get_mut().is_none() {
            return Err(failed("is in use elsewhere"));
        }
        Self::new(buffer, gst::ffi::GST_MAP_WRITE)
    }

    fn new(buffer: gst::Buffer, flags: GstMapFlags) -> Result<Self> {
        if !is_cuda(&buffer) {
            return Err(failed("is not one piece of a GPU's memory"));
        }
        // SAFETY: the buffer has a memory, which lives as long as the reference that is taken to it. It is CUDA memory,
        // for which the flag means what is meant here.
        unsafe {
            let memory = gst::ffi::gst_buffer_peek_memory(buffer.as_mut_ptr(), 0);
            gst::ffi::gst_mini_object_ref(memory.cast());
            let mut map = MaybeUninit::zeroed();
            if gst::ffi::gst_memory_map(memory, map.as_mut_ptr(), flags | MAP_CUDA)
                == glib::ffi::GFALSE
            {
                gst::ffi::gst_mini_object_unref(memory.cast());
                return Err(failed("cannot be mapped for the GPU"));
            }
            Ok(Self {
                buffer: Some(buffer),
                memory,
                map: map.assume_init(),
            })
        }
    }

    /// The device address of its first byte (a `CUdeviceptr`).
    pub fn base(&self) -> u64 {
        self.map.data as u64
    }

    /// Its size in bytes.
    pub fn size(&self) -> usize {
        self.map.size
    }

    /// The buffer.
    pub fn buffer(&self) -> Option<&gst::BufferRef> {
        self.buffer.as_deref()
    }

    /// The driver's handle of the context that it was allocated in (a `CUcontext`).
    pub fn context(&self, functions: &Functions) -> *mut c_void {
        // SAFETY: CUDA memory, by its type; it holds its context.
        unsafe {
            let context = (*self.memory.cast::<RawMemory>()).context;
            (functions.gst_cuda_context_get_handle)(context)
        }
    }

    /// Where its planes are when no video meta says so: as its allocator laid them out, which no caps can tell.
    pub fn planes(&self) -> ([usize; 4], [i32; 4]) {
        // SAFETY: CUDA memory, by its type.
        let info = unsafe { &(*self.memory.cast::<RawMemory>()).info };
        (info.offset, info.stride)
    }

    /// Ends the mapping.
    pub fn into_buffer(mut self) -> Option<gst::Buffer> {
        self.buffer.take()
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        // SAFETY: mapped and referenced in `new`, once.
        unsafe {
            gst::ffi::gst_memory_unmap(self.memory, &mut self.map);
            gst::ffi::gst_mini_object_unref(self.memory.cast());
        }
    }
}

/// Whether a buffer is one piece of a GPU's memory.
pub fn is_cuda(buffer: &gst::BufferRef) -> bool {
    buffer.n_memory() == 1 && buffer.peek_memory(0).is_type(MEMORY_TYPE)
}

fn failed(what: &str) -> Error {
    Error::engine("CUDA memory", format!("the buffer {what}"))
}

/// A pool of frames in the memory of `context`'s GPU.
pub fn pool(functions: &Functions, context: &Context) -> Result<gst::BufferPool> {
    // SAFETY: a GstCudaContext; what it gives is a new pool or nothing.
    let pool = unsafe { (functions.gst_cuda_buffer_pool_new)(context.as_ptr()) };
    if pool.is_null() {
        return Err(Error::engine("CUDA memory", "no pool could be made"));
    }
    // SAFETY: the library sinks the reference, which is ours.
    Ok(unsafe { gst::BufferPool::from_glib_full(pool) })
}

/// Whether `pool` gives frames in the memory of this very context.
pub fn is_pool_of(functions: &Functions, pool: &gst::BufferPool, context: &Context) -> bool {
    // SAFETY: registers a type.
    let expected: glib::Type = unsafe { from_glib((functions.gst_cuda_buffer_pool_get_type)()) };
    if !pool.type_().is_a(expected) {
        return false;
    }
    let raw: *mut gst::ffi::GstBufferPool = pool.to_glib_none().0;
    // SAFETY: of that type, whose public part this is.
    let found = unsafe { (*raw.cast::<RawPool>()).context };
    found == context.as_ptr()
}

/// Sets a pool up for frames of `caps`, with video metas; gives the size of its buffers, which the pool decides.
pub fn configure(
    pool: &gst::BufferPool,
    caps: &gst::Caps,
    size: u32,
    min: u32,
    max: u32,
) -> Result<u32> {
    let format = caps::video_info(caps).map(|info| info.format());
    if !format.is_some_and(|format| CUDA_FORMATS.contains(&format)) {
        return Err(Error::engine(
            "CUDA memory",
            format!("cannot hold frames of {caps}"),
        ));
    }
    let mut config = pool.config();
    config.set_params(Some(caps), size, min, max);
    config.add_option(gst_video::BUFFER_POOL_OPTION_VIDEO_META);
    // A pool that would have it otherwise says so, and then holds the configuration that it would take.
    if pool.set_config(config).is_err() && pool.set_config(pool.config()).is_err() {
        return Err(Error::engine(
            "CUDA memory",
            format!("the pool refuses frames of {caps}"),
        ));
    }
    let (_, size, _, _) = pool.config().params().ok_or_else(|| {
        Error::engine(
            "CUDA memory",
            "the pool does not tell the size of its frames",
        )
    })?;
    Ok(size)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn main_memory_is_never_mapped_for_a_gpu() {
        gst::init().unwrap();
        let buffer = gst::Buffer::with_size(64).unwrap();
        let error = Mapped::for_writing(buffer.clone()).err().unwrap();
        assert!(error.to_string().contains("in use"), "{error}");
        let error = Mapped::new(buffer, gst::ffi::GST_MAP_READ).err().unwrap();
        assert!(error.to_string().contains("not one piece"), "{error}");
        assert!(!is_cuda(&gst::Buffer::new()));
    }

    #[test]
    fn the_flag_is_the_one_of_the_headers() {
        assert_eq!(MAP_CUDA, 0x20000);
    }
}
