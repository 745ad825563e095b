//! Where frames in main memory are on their way to the GPU and back, beside what is computed there.
//!
//! Copies have streams of their own, one for each way, so that the next frame comes up and the last one goes down while the
//! one between is computed. Each frame on its way has a block of page-locked memory and one on the GPU, and two events put
//! the streams in order: `copied` follows what the copying stream did with the block, `used` what the compute stream did.

use std::collections::VecDeque;
use std::sync::Arc;

use cudarc::driver::{CudaEvent, CudaStream, DriverError};
use parking_lot::Mutex;

use super::context::{Gpu, Restore, failed};
use super::pinned::Pinned;
use super::pool::Buffer;
use super::submitted::twice;
use crate::error::Result;

/// Blocks kept for one way while no frame is in them, at least: as many as one element commonly has on that way at once.
const KEPT: usize = 4;

/// A frame's memory on both sides.
pub(super) struct Staging {
    /// In main memory. The copying stream reads or writes it until `copied`.
    pub(super) memory: Pinned,
    /// On the GPU, as large.
    pub(super) raw: Buffer,
    /// After the last copy from one to the other.
    pub(super) copied: CudaEvent,
    /// After the compute stream's last use of `raw`.
    pub(super) used: CudaEvent,
    /// The stream that copies.
    stream: Arc<CudaStream>,
    /// By which the blocks of its way are counted.
    _counted: Arc<()>,
    restore: Restore,
}

impl Staging {
    /// At least `size` bytes. Nothing has to be waited for, the compute stream least of all, which another element may be
    /// keeping busy: an event that was never recorded is past.
    fn new(gpu: &Gpu, stream: &Arc<CudaStream>, size: usize, counted: Arc<()>) -> Result<Self> {
        let event = || {
            let event = gpu.context.new_event(None);
            event.map_err(|e| failed("make an event", e))
        };
        Ok(Self {
            memory: Pinned::new(gpu, size)?,
            raw: gpu.pool.fresh(size)?,
            copied: event()?,
            used: event()?,
            stream: stream.clone(),
            _counted: counted,
            restore: Restore::default(),
        })
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        self.restore.save();
        // The pool gives its memory to the compute stream, which knows nothing of copies; and the GPU has to be done with
        // the other one.
        let _ = twice(|| self.stream.synchronize());
    }
}

/// The blocks of one way.
#[derive(Default)]
pub(super) struct Shelf(Mutex<Blocks>);

#[derive(Default)]
struct Blocks {
    /// Those that no frame is in, the one that was used last at the back.
    free: VecDeque<Staging>,
    /// All that there are have a clone of it.
    counted: Arc<()>,
    /// How many frames were on this way at once, at most: so many blocks are kept, or every further element would make new
    /// ones all the time.
    most: usize,
}

impl Shelf {
    /// A block of at least `size` bytes whose main memory nothing uses any more. Its other half may be in use yet: `used`
    /// and `copied` say until when. The GPU's context must be the thread's. It is to be [`put`](Self::put) back.
    pub(super) fn take(&self, gpu: &Gpu, stream: &Arc<CudaStream>, size: usize) -> Result<Staging> {
        let copying = |e: DriverError| failed("copy a frame", e);
        let (kept, counted) = {
            let mut blocks = self.0.lock();
            let mut free = None;
            for (index, staging) in blocks.free.iter().enumerate() {
                if staging.memory.size() >= size
                    && staging.copied.try_is_complete().map_err(copying)?
                {
                    free = Some(index);
                    break;
                }
            }
            let kept = free.and_then(|index| blocks.free.remove(index));
            // This one, and those that others have, but not what holds the count itself.
            let counted = blocks.counted.clone();
            let out = Arc::strong_count(&counted) - 2 - blocks.free.len();
            blocks.most = blocks.most.max(out + usize::from(kept.is_none()));
            (kept, counted)
        };
        match kept {
            Some(staging) => Ok(staging),
            None => Staging::new(gpu, stream, size, counted),
        }
    }

    /// Keeps a block for the next frame. Its last copy and use must have been recorded.
    pub(super) fn put(&self, staging: Staging) {
        let oldest = {
            let mut blocks = self.0.lock();
            blocks.free.push_back(staging);
            match blocks.free.len() > blocks.most.max(KEPT) {
                true => blocks.free.pop_front(),
                false => None,
            }
        };
        // Waits for the copies, and so without the lock.
        drop(oldest);
    }
}
