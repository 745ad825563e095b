//! Video frames in and out, at once and not as part of a list: their memory is another one each time.

use cudarc::driver::{result, sys};
use parking_lot::Mutex;

use super::context::{Mark, failed};
use super::kernels::{FrameToTensor, TensorToFrame};
use super::pinned::Pinned;
use super::tensor::Element;
use super::{Cuda, CudaTensor};
use crate::device::video::{Colour, VideoLayout};
use crate::error::{Error, Result};

/// The main memory that frames come from and go to.
#[derive(Default)]
pub(super) struct Frames {
    up: Mutex<Option<Staging>>,
    down: Mutex<Option<Staging>>,
}

/// Page-locked memory, and the point on the stream from which on it may be used again.
struct Staging {
    memory: Pinned,
    free: cudarc::driver::CudaEvent,
}

impl Cuda {
    /// The picture `[1, 3, height, width]` in [-1, 1] of a frame in main memory, converted and resized to
    /// `size` (width, height). `bytes` have been read when it returns.
    pub fn import_host(
        &self,
        bytes: &[u8],
        layout: &VideoLayout,
        colour: Colour,
        size: (usize, usize),
    ) -> Result<CudaTensor> {
        let Some(bytes) = bytes.get(..layout.size()) else {
            return Err(too_short(bytes.len(), layout));
        };
        let gpu = &self.0.gpu;
        gpu.enter()?;
        let raw = gpu.pool.take(bytes.len())?;
        let stream = gpu.stream.cu_stream();
        {
            let mut staging = self.0.frames.up.lock();
            let staging = self.staging(&mut staging, bytes.len())?;
            let memory = &mut staging.memory.bytes()[..bytes.len()];
            memory.copy_from_slice(bytes);
            let _submission = self.0.submission.lock();
            // SAFETY: the buffer is as large, and the event tells when the memory is free again.
            unsafe { result::memcpy_htod_async(raw.pointer(), memory, stream) }
                .and_then(|()| staging.free.record(&gpu.stream))
                .map_err(|e| failed("upload a frame", e))?;
        }
        // SAFETY: the buffer holds such a frame; what uses its memory next comes later on the stream.
        unsafe { self.import_device(raw.pointer(), layout, colour, size) }
    }

    /// The picture `[1, 3, height, width]` in [-1, 1] of a frame in device memory, converted and resized to
    /// `size` (width, height).
    ///
    /// # Safety
    /// `base` is the address of `layout.size()` bytes that work of the primary context may read until
    /// [`finish`](Self::finish) has returned.
    pub unsafe fn import_device(
        &self,
        base: u64,
        layout: &VideoLayout,
        colour: Colour,
        size: (usize, usize),
    ) -> Result<CudaTensor> {
        let plan = FrameToTensor::new(layout, colour, size)?;
        let (width, height) = size;
        let picture = self.empty(&[1, 3, height, width], Element::F16)?;
        self.0.gpu.enter()?;
        let _submission = self.0.submission.lock();
        let stream = self.0.gpu.stream.cu_stream();
        // SAFETY: the caller's word for the frame, and the picture has just been made.
        unsafe { (self.0.kernels).frame_to_tensor(stream, &plan, base, picture.pointer()) }?;
        Ok(picture)
    }

    /// Writes a picture `[1, 3, H, W]` to a frame in main memory, converted and resized; done when it returns, as is what
    /// the calling thread noted down. Bytes between the frame's rows stay as they are.
    pub fn export_host(
        &self,
        picture: &CudaTensor,
        bytes: &mut [u8],
        layout: &VideoLayout,
        colour: Colour,
    ) -> Result<()> {
        let length = bytes.len();
        let Some(bytes) = bytes.get_mut(..layout.size()) else {
            return Err(too_short(length, layout));
        };
        self.finish()?;
        let gpu = &self.0.gpu;
        let raw = gpu.pool.take(bytes.len())?;
        let mut staging = self.0.frames.down.lock();
        let staging = self.staging(&mut staging, bytes.len())?;
        let memory = &mut staging.memory.bytes()[..bytes.len()];
        let stream = gpu.stream.cu_stream();
        // SAFETY: the buffer is as large as the layout says.
        unsafe { self.launch_export(picture, raw.pointer(), layout, colour) }?;
        let mark = {
            let _submission = self.0.submission.lock();
            // SAFETY: as large as the buffer; waited for before it is read.
            unsafe { result::memcpy_dtoh_async(memory, raw.pointer(), stream) }
                .and_then(|()| staging.free.record(&gpu.stream))
                .map_err(|e| failed("download a frame", e))?;
            gpu.mark()?
        };
        mark.wait()?;
        for (i, plane) in layout.format().planes().iter().enumerate() {
            let (row, rows) = layout.plane_size(plane);
            for y in 0..rows {
                let at = layout.offsets()[i] + y * layout.strides()[i];
                bytes[at..][..row].copy_from_slice(&memory[at..][..row]);
            }
        }
        Ok(())
    }

    /// Writes a picture `[1, 3, H, W]` to a frame in device memory, converted and resized; done when it returns, as is what
    /// the calling thread noted down.
    ///
    /// # Safety
    /// `base` is the address of `layout.size()` bytes that work of the primary context may write.
    pub unsafe fn export_device(
        &self,
        picture: &CudaTensor,
        base: u64,
        layout: &VideoLayout,
        colour: Colour,
    ) -> Result<()> {
        self.finish()?;
        // SAFETY: the caller's word.
        unsafe { self.launch_export(picture, base, layout, colour) }?.wait()
    }

    /// # Safety
    /// As for [`Self::export_device`].
    unsafe fn launch_export(
        &self,
        picture: &CudaTensor,
        base: u64,
        layout: &VideoLayout,
        colour: Colour,
    ) -> Result<Mark> {
        let (&[1, 3, height, width], Element::F16) = (picture.shape(), picture.element()) else {
            return Err(Error::engine(
                "output",
                format!("{picture:?} is no picture, expected [1, 3, height, width] in f16"),
            ));
        };
        let plan = TensorToFrame::new((width, height), layout, colour)?;
        self.0.gpu.enter()?;
        let _submission = self.0.submission.lock();
        let stream = self.0.gpu.stream.cu_stream();
        // SAFETY: the caller's word for the frame; the picture is one.
        unsafe { (self.0.kernels).tensor_to_frame(stream, &plan, picture.pointer(), base) }?;
        self.0.gpu.mark()
    }

    /// Staging memory of at least `size` bytes that nothing uses any more.
    fn staging<'a>(&self, kept: &'a mut Option<Staging>, size: usize) -> Result<&'a mut Staging> {
        let gpu = &self.0.gpu;
        if let Some(staging) = &*kept {
            (staging.free.synchronize()).map_err(|e| failed("copy a frame", e))?;
        }
        let staging = match kept.take() {
            Some(staging) if staging.memory.size() >= size => staging,
            _ => {
                let flags = Some(sys::CUevent_flags::CU_EVENT_DISABLE_TIMING);
                Staging {
                    memory: Pinned::new(gpu, size)?,
                    free: (gpu.context.new_event(flags)).map_err(|e| failed("make an event", e))?,
                }
            }
        };
        Ok(kept.insert(staging))
    }
}

fn too_short(length: usize, layout: &VideoLayout) -> Error {
    Error::engine(
        "video frame",
        format!("{length} bytes, expected {} or more", layout.size()),
    )
}
