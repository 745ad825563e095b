//! Device memory that is used again: a frame allocates nothing once its first ones have gone through.

use std::collections::HashMap;
use std::sync::Arc;

use cudarc::driver::{CudaContext, result, sys};
use parking_lot::Mutex;

use super::context::{Restore, failed};
use crate::error::{Error, Result};

/// Sizes are rounded up to this, in bytes, so that tensors of nearly the same size share buffers.
const GRAIN: usize = 512;

/// Buffers that wait for their next use, by size.
///
/// A buffer may be handed out while work on its old content is still under way on the GPU: whatever is done with it next
/// comes later on the same stream.
#[derive(Clone)]
pub(super) struct Pool(Arc<Shared>);

struct Shared {
    context: Arc<CudaContext>,
    state: Mutex<State>,
    restore: Restore,
}

#[derive(Default)]
struct State {
    free: HashMap<usize, Vec<sys::CUdeviceptr>>,
    /// Bytes that the pool has from the driver, in use or not.
    total: usize,
}

/// A piece of device memory; goes back to its pool when dropped.
pub(super) struct Buffer {
    pointer: sys::CUdeviceptr,
    size: usize,
    pool: Arc<Shared>,
}

impl Pool {
    pub(super) fn new(context: Arc<CudaContext>) -> Self {
        Self(Arc::new(Shared {
            context,
            state: Mutex::default(),
            restore: Restore::default(),
        }))
    }

    /// Bytes that it has from the driver.
    pub(super) fn total(&self) -> usize {
        self.0.state.lock().total
    }

    /// Gives the driver back what is not in use.
    pub(super) fn trim(&self) {
        if self.0.context.bind_to_thread().is_ok() {
            self.0.state.lock().release();
        }
    }

    /// At least `bytes` bytes, aligned to 256, of whatever they held before.
    pub(super) fn take(&self, bytes: usize) -> Result<Buffer> {
        let size = bytes.max(1).next_multiple_of(GRAIN);
        let mut state = self.0.state.lock();
        let free = state.free.get_mut(&size).and_then(Vec::pop);
        let pointer = match free {
            Some(pointer) => pointer,
            None => self.allocate(&mut state, size)?,
        };
        Ok(Buffer {
            pointer,
            size,
            pool: self.0.clone(),
        })
    }

    /// The same of memory that nothing has used before: for work on other streams, which need not wait for this one then.
    pub(super) fn fresh(&self, bytes: usize) -> Result<Buffer> {
        let size = bytes.max(1).next_multiple_of(GRAIN);
        let pointer = self.allocate(&mut self.0.state.lock(), size)?;
        Ok(Buffer {
            pointer,
            size,
            pool: self.0.clone(),
        })
    }

    fn allocate(&self, state: &mut State, size: usize) -> Result<sys::CUdeviceptr> {
        let context = &self.0.context;
        context
            .bind_to_thread()
            .map_err(|e| failed("enter the GPU's context", e))?;
        // SAFETY: an allocation of its own; it is freed with the pool, or below when nobody uses it.
        let mut found = unsafe { result::malloc_sync(size) };
        if found.is_err() {
            // Buffers of other sizes may be what is in the way. The driver waits for work on them.
            state.release();
            // SAFETY: as above.
            found = unsafe { result::malloc_sync(size) };
        }
        let pointer = found.map_err(|e| match e.0 {
            sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY => {
                let free = context.mem_get_info().map_or(0, |(free, _)| free);
                Error::engine(
                    "CUDA",
                    format!(
                        "the GPU's memory is used up: {} are needed, {} are free; a smaller model, size or number of steps needs less",
                        megabytes(size),
                        megabytes(free)
                    ),
                )
            }
            _ => failed("allocate memory", e),
        })?;
        state.total += size;
        Ok(pointer)
    }
}

impl State {
    /// Gives back what is not in use.
    fn release(&mut self) {
        for (size, pointers) in self.free.drain() {
            for pointer in pointers {
                self.total -= size;
                // SAFETY: came from malloc_sync, and no buffer holds it. An error can only be an earlier one of the
                // context's, which whoever made it was told.
                let _ = unsafe { result::free_sync(pointer) };
            }
        }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.restore.save();
        if self.context.bind_to_thread().is_ok() {
            self.state.get_mut().release();
        }
    }
}

impl Buffer {
    /// Where it is.
    pub(super) fn pointer(&self) -> sys::CUdeviceptr {
        self.pointer
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let mut state = self.pool.state.lock();
        state.free.entry(self.size).or_default().push(self.pointer);
    }
}

fn megabytes(bytes: usize) -> String {
    format!("{:.1} MB", bytes as f64 / 1e6)
}
