//! Memory of other CUDA contexts, which kernels of ours may not read.

use std::ffi::c_void;
use std::sync::Arc;

use cudarc::driver::{CudaContext, sys};

use super::context::{Restore, failed};
use super::tensor::Element;
use super::{Cuda, CudaTensor};
use crate::error::Result;

/// Keeps a GPU's primary context alive, and nothing else that is in it.
pub struct KeptContext {
    _context: Arc<CudaContext>,
    restore: Restore,
}

impl Drop for KeptContext {
    fn drop(&mut self) {
        self.restore.save();
    }
}

impl Cuda {
    /// Keeps the primary context alive for others.
    pub fn keep_context(&self) -> KeptContext {
        KeptContext {
            _context: self.0.gpu.context.clone(),
            restore: Restore::default(),
        }
    }

    /// A copy of `size` bytes at `base`, which belong to another `context` (a `CUcontext`) of this or another GPU. It is
    /// made on the stream; what is put there next finds it done.
    ///
    /// # Safety
    /// `context` is valid, and the bytes may be read until what is on the stream [`so far`](Self::so_far) is done.
    pub unsafe fn copy_from(
        &self,
        context: *mut c_void,
        base: u64,
        size: usize,
    ) -> Result<CudaTensor> {
        let copy = self.empty(&[size.div_ceil(Element::I64.size())], Element::I64)?;
        let gpu = &self.0.gpu;
        gpu.enter()?;
        let _submission = self.0.submission.lock();
        // SAFETY: the caller's word for the source; the copy is as large.
        unsafe {
            sys::cuMemcpyPeerAsync(
                copy.pointer(),
                gpu.context.cu_ctx(),
                base,
                context.cast(),
                size,
                gpu.stream.cu_stream(),
            )
        }
        .result()
        .map_err(|e| failed("copy a frame from another context", e))?;
        Ok(copy)
    }
}
