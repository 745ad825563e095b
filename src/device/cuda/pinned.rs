//! Page-locked main memory, which a GPU reads and writes by itself.

use std::ffi::c_void;
use std::sync::Arc;

use cudarc::driver::{CudaContext, result};

use super::context::{Gpu, Restore, failed};
use crate::error::Result;

/// A block of page-locked memory.
pub(super) struct Pinned {
    pointer: *mut c_void,
    size: usize,
    context: Arc<CudaContext>,
    restore: Restore,
}

// SAFETY: plain memory; what refers to it is behind references to `self`.
unsafe impl Send for Pinned {}

impl Pinned {
    /// `size` bytes, all 0.
    pub(super) fn new(gpu: &Gpu, size: usize) -> Result<Self> {
        gpu.enter()?;
        // SAFETY: an allocation of its own, freed on drop.
        let pointer = unsafe { result::malloc_host(size.max(1), 0) }
            .map_err(|e| failed("allocate page-locked memory", e))?;
        // SAFETY: as many bytes were just allocated.
        unsafe { pointer.cast::<u8>().write_bytes(0, size) };
        Ok(Self {
            pointer,
            size,
            context: gpu.context.clone(),
            restore: Restore::default(),
        })
    }

    /// How many bytes it has.
    pub(super) fn size(&self) -> usize {
        self.size
    }

    /// Its bytes. Nothing on the GPU may be reading or writing them.
    pub(super) fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: that many bytes, which `new` initialised; `self` is borrowed for as long.
        unsafe { std::slice::from_raw_parts_mut(self.pointer.cast(), self.size) }
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        self.restore.save();
        if self.context.bind_to_thread().is_ok() {
            // SAFETY: from malloc_host, not used any more; an error can only be an earlier one of the context's.
            let _ = unsafe { result::free_host(self.pointer) };
        }
    }
}
