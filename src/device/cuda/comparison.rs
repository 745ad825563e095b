//! How alike two tensors are: worked out at once, beside what is noted down, and read when it is wanted.
//!
//! So a frame can be compared behind the one that is being computed, and what came of it is there when its turn comes.

use cudarc::driver::{CudaEvent, result};
use parking_lot::Mutex;

use super::context::{Gpu, Restore, failed};
use super::kernels::{COSINE_PARTIAL_BYTES, CosineRow, Kernel, Row};
use super::pinned::Pinned;
use super::pool::Buffer;
use super::submitted::twice;
use super::{Cuda, CudaTensor, half_alike, length};
use crate::error::{Error, Result};

/// Where in a block what is: the kernel's row, its count of blocks that are done, what it gives, and its working memory.
const FINISHED: usize = size_of::<CosineRow>();
const SUMS: usize = FINISHED + 16;
const PARTIAL: usize = SUMS + 16;
/// Bytes of the three sums.
const SUMS_BYTES: usize = 12;

/// A comparison that is under way. It may be dropped without being read.
pub struct Comparison {
    block: Option<Block>,
    /// What is compared, which stays where it is until then.
    _tensors: [CudaTensor; 2],
    cuda: Cuda,
}

/// The memory of a comparison.
struct Block {
    device: Buffer,
    /// What goes there and comes back, as far as that is the same.
    staging: Pinned,
    /// When it has come back.
    copied: CudaEvent,
    restore: Restore,
}

/// Blocks for further use: as many as were in use at once.
#[derive(Default)]
pub(super) struct Shelf(Mutex<Vec<Block>>);

impl Cuda {
    /// Begins to compare two f16 tensors of one length. What the calling thread noted down is put on the GPU before, for which
    /// what it submitted before is waited for.
    pub(super) fn begin_comparison(&self, a: &CudaTensor, b: &CudaTensor) -> Result<Comparison> {
        half_alike("compare", &[a, b])?;
        let noted = !self.list().lock().is_empty();
        if noted {
            self.put()?;
        }
        let (gpu, failed) = (&self.0.gpu, |e| failed("compare frames", e));
        gpu.enter()?;
        let mut block = self.0.comparisons.take(gpu)?;
        let base = block.device.pointer();
        let row = CosineRow {
            a: a.pointer(),
            b: b.pointer(),
            out: base + SUMS as u64,
            partial: base + PARTIAL as u64,
            finished: base + FINISHED as u64,
            len: length(a)?,
            unused: 0,
        };
        let (up, down) = block.staging.bytes().split_at_mut(SUMS);
        up[..FINISHED].copy_from_slice(Row::bytes(&[row]));
        up[FINISHED..].fill(0);
        let mut put = || {
            let stream = gpu.stream.cu_stream();
            // SAFETY: the block is as large, and stays where it is until `copied`, as do the tensors, whose memory only what
            // comes later on the stream uses for something else.
            unsafe {
                result::memcpy_htod_async(base, up, stream).map_err(failed)?;
                (self.0.kernels).launch(Kernel::Cosine, stream, base, 1, row.len)?;
                result::memcpy_dtoh_async(&mut down[..SUMS_BYTES], row.out, stream).map_err(failed)
            }
        };
        {
            let _submission = self.0.submission.lock();
            let put = put();
            // Also after an error, before the block goes.
            let recorded = block.copied.record(&gpu.stream).map_err(failed);
            if recorded.is_err() {
                // Nothing could be waited for later. Nobody captures the stream while it is ours.
                let _ = twice(|| gpu.stream.synchronize());
            }
            put.and(recorded)?;
        }
        Ok(Comparison {
            block: Some(block),
            _tensors: [a.clone(), b.clone()],
            cuda: self.clone(),
        })
    }
}

impl Comparison {
    /// The cosine of the angle between the two; waits for it.
    pub(super) fn cosine(mut self) -> Result<f32> {
        let Some(mut block) = self.block.take() else {
            return Err(Error::engine("CUDA", "gave no cosine"));
        };
        (block.copied.synchronize()).map_err(|e| failed("compare frames", e))?;
        let sums = &block.staging.bytes()[SUMS..][..SUMS_BYTES];
        let mut sums = sums.chunks_exact(4).map(|sum| {
            let sum: [u8; 4] = sum.try_into().unwrap_or_default();
            f64::from(f32::from_ne_bytes(sum))
        });
        let mut next = || sums.next().unwrap_or_default();
        let (ab, aa, bb) = (next(), next(), next());
        self.cuda.0.comparisons.put(block);
        if aa == 0.0 && bb == 0.0 {
            return Ok(1.0);
        }
        Ok((ab / (aa * bb).sqrt().max(1e-12)) as f32)
    }
}

impl Drop for Comparison {
    fn drop(&mut self) {
        if let Some(block) = self.block.take() {
            let _restore = Restore::new();
            self.cuda.0.comparisons.put(block);
        }
    }
}

impl Shelf {
    /// A block that nothing uses. The GPU's context must be the thread's.
    fn take(&self, gpu: &Gpu) -> Result<Block> {
        let kept = {
            let mut blocks = self.0.lock();
            let past = |block: &Block| block.copied.try_is_complete().unwrap_or(false);
            let free = blocks.iter().position(past);
            free.map(|index| blocks.swap_remove(index))
        };
        match kept {
            Some(block) => Ok(block),
            None => Block::new(gpu),
        }
    }

    /// Keeps a block, whose last use must have been recorded.
    fn put(&self, block: Block) {
        self.0.lock().push(block);
    }
}

impl Block {
    fn new(gpu: &Gpu) -> Result<Self> {
        let event = gpu.context.new_event(None);
        Ok(Self {
            device: gpu.pool.take(PARTIAL + COSINE_PARTIAL_BYTES)?,
            staging: Pinned::new(gpu, SUMS + SUMS_BYTES)?,
            copied: event.map_err(|e| failed("make an event", e))?,
            restore: Restore::default(),
        })
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        self.restore.save();
        // The GPU may still write to what is about to be given back. An error is told by what comes next.
        let _ = twice(|| self.copied.synchronize());
    }
}
