//! Video frames in and out, at once and not as part of a list: their memory is another one each time.
//!
//! Frames in main memory are copied beside the computing (see [`staging`](super::staging)). What is computed waits for its own
//! frame to have come up, a copy down for its own picture to be there, and neither for the frames before or after.

use std::sync::Arc;

use cudarc::driver::{DriverError, result};

use super::context::{Restore, failed};
use super::kernels::{FrameToTensor, TensorToFrame};
use super::staging::{Shelf, Staging};
use super::tensor::Element;
use super::{Cuda, CudaTensor};
use crate::device::video::{Colour, VideoLayout};
use crate::error::{Error, Result};

/// The memory that frames in main memory are copied through, of either way.
#[derive(Default)]
pub(super) struct Frames {
    up: Shelf,
    down: Shelf,
}

/// A frame on its way up to the GPU. It may be dropped without being imported.
pub struct Upload {
    staging: Option<Staging>,
    layout: VideoLayout,
    cuda: Cuda,
}

/// A frame on its way down from the GPU. It may be dropped without being read.
pub struct Download {
    staging: Option<Staging>,
    layout: VideoLayout,
    cuda: Cuda,
}

impl Cuda {
    /// Begins to copy a frame in main memory to the GPU, on any thread and beside what is computed there. `bytes` have been
    /// read when it returns.
    ///
    /// # Errors
    /// [`Error::Engine`] when `bytes` are fewer than the layout says, when memory is used up, or when the driver fails.
    pub fn upload_frame(&self, bytes: &[u8], layout: &VideoLayout) -> Result<Upload> {
        let Some(bytes) = bytes.get(..layout.size()) else {
            return Err(too_short(bytes.len(), layout));
        };
        // The thread is somebody else's.
        let _restore = Restore::new();
        let gpu = &self.0.gpu;
        gpu.enter()?;
        let shelf = &self.0.frames.up;
        let mut staging = shelf.take(gpu, &gpu.upload, bytes.len())?;
        let raw = staging.raw.pointer();
        let memory = &mut staging.memory.bytes()[..bytes.len()];
        memory.copy_from_slice(bytes);
        (gpu.upload.wait(&staging.used))
            // SAFETY: the buffer is as large; `copied` says when the memory is free again.
            .and_then(|()| unsafe {
                result::memcpy_htod_async(raw, memory, gpu.upload.cu_stream())
            })
            .and_then(|()| staging.copied.record(&gpu.upload))
            .map_err(|e| failed("upload a frame", e))?;
        Ok(Upload {
            staging: Some(staging),
            layout: *layout,
            cuda: self.clone(),
        })
    }

    /// The picture `[1, 3, height, width]` in [-1, 1] of a frame that is coming up, converted and resized to `size` (width,
    /// height). Computing waits for the copy on the GPU; nothing waits here.
    ///
    /// # Errors
    /// [`Error::Engine`] for sizes out of range, when memory is used up, or when the driver fails.
    pub fn import_upload(
        &self,
        mut upload: Upload,
        colour: Colour,
        size: (usize, usize),
    ) -> Result<CudaTensor> {
        if !Arc::ptr_eq(&self.0, &upload.cuda.0) {
            return Err(Error::engine("input", "is on its way to another device"));
        }
        let Some(staging) = upload.staging.take() else {
            return Err(Error::engine("input", "was taken in before"));
        };
        let (gpu, failed) = (&self.0.gpu, |e: DriverError| failed("take in a frame", e));
        gpu.enter()?;
        // Until the end, an error drops the block, which waits for the copy.
        {
            let _submission = self.0.submission.lock();
            gpu.stream.wait(&staging.copied).map_err(failed)?;
        }
        // SAFETY: the frame is there before what comes next on the stream; the block is kept until `used`.
        let picture =
            unsafe { self.import_device(staging.raw.pointer(), &upload.layout, colour, size) }?;
        {
            let _submission = self.0.submission.lock();
            staging.used.record(&gpu.stream).map_err(failed)?;
        }
        self.0.frames.up.put(staging);
        Ok(picture)
    }

    /// The picture `[1, 3, height, width]` in [-1, 1] of a frame in main memory, converted and resized to
    /// `size` (width, height). `bytes` have been read when it returns.
    pub fn import_host(
        &self,
        bytes: &[u8],
        layout: &VideoLayout,
        colour: Colour,
        size: (usize, usize),
    ) -> Result<CudaTensor> {
        self.import_upload(self.upload_frame(bytes, layout)?, colour, size)
    }

    /// The picture `[1, 3, height, width]` in [-1, 1] of a frame in device memory, converted and resized to
    /// `size` (width, height).
    ///
    /// # Safety
    /// `base` is the address of `layout.size()` bytes that work of the primary context may read until what is on the stream
    /// [`so far`](Self::so_far) is done.
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
        self.download_frame(picture, layout, colour)?.finish(bytes)
    }

    /// Begins to write a picture `[1, 3, H, W]` to a frame of `layout`, converted and resized, and to copy that to main
    /// memory. What the calling thread noted down is done when it returns; what is computed from then on does not wait for
    /// the copy, nor the copy for it.
    ///
    /// # Errors
    /// [`Error::Engine`] when `picture` is none, when memory is used up, or when the driver fails.
    pub fn download_frame(
        &self,
        picture: &CudaTensor,
        layout: &VideoLayout,
        colour: Colour,
    ) -> Result<Download> {
        self.finish_noted()?;
        let (gpu, size) = (&self.0.gpu, layout.size());
        gpu.enter()?;
        let shelf = &self.0.frames.down;
        let mut staging = shelf.take(gpu, &gpu.download, size)?;
        let raw = staging.raw.pointer();
        {
            let _submission = self.0.submission.lock();
            // SAFETY: the buffer is as large as the layout says.
            unsafe { self.launch_export(picture, raw, layout, colour) }?;
            (staging.used.record(&gpu.stream)).map_err(|e| failed("hand out a frame", e))?;
        }
        let memory = &mut staging.memory.bytes()[..size];
        (gpu.download.wait(&staging.used))
            // SAFETY: as large as the buffer; `copied` is waited for before it is read.
            .and_then(|()| unsafe {
                result::memcpy_dtoh_async(memory, raw, gpu.download.cu_stream())
            })
            .and_then(|()| staging.copied.record(&gpu.download))
            .map_err(|e| failed("download a frame", e))?;
        Ok(Download {
            staging: Some(staging),
            layout: *layout,
            cuda: self.clone(),
        })
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
        self.finish_noted()?;
        let mark = {
            let _submission = self.0.submission.lock();
            // SAFETY: the caller's word.
            unsafe { self.launch_export(picture, base, layout, colour) }?;
            self.0.gpu.mark()?
        };
        mark.wait()
    }

    /// Does what the calling thread noted down, if it has. Work that others have on the stream is not waited for.
    fn finish_noted(&self) -> Result<()> {
        let list = self.list();
        let noted = !list.lock().is_empty();
        if noted { self.finish() } else { Ok(()) }
    }

    /// Puts a conversion on the compute stream, of which nobody else may make use meanwhile.
    ///
    /// # Safety
    /// As for [`Self::export_device`].
    unsafe fn launch_export(
        &self,
        picture: &CudaTensor,
        base: u64,
        layout: &VideoLayout,
        colour: Colour,
    ) -> Result<()> {
        let (&[1, 3, height, width], Element::F16) = (picture.shape(), picture.element()) else {
            return Err(Error::engine(
                "output",
                format!("{picture:?} is no picture, expected [1, 3, height, width] in f16"),
            ));
        };
        let plan = TensorToFrame::new((width, height), layout, colour)?;
        self.0.gpu.enter()?;
        let stream = self.0.gpu.stream.cu_stream();
        // SAFETY: the caller's word for the frame; the picture is one.
        unsafe { (self.0.kernels).tensor_to_frame(stream, &plan, picture.pointer(), base) }
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        if let Some(staging) = self.staging.take() {
            let _restore = Restore::new();
            self.cuda.0.frames.up.put(staging);
        }
    }
}

impl Download {
    /// Waits until the frame is there, and writes it to `bytes`, on any thread. Bytes between its rows stay as they are.
    ///
    /// # Errors
    /// [`Error::Engine`] when `bytes` are fewer than the layout says, or when the driver fails.
    pub fn finish(mut self, bytes: &mut [u8]) -> Result<()> {
        let (length, layout) = (bytes.len(), self.layout);
        let Some(bytes) = bytes.get_mut(..layout.size()) else {
            return Err(too_short(length, &layout));
        };
        let Some(mut staging) = self.staging.take() else {
            return Ok(());
        };
        let _restore = Restore::new();
        (staging.copied.synchronize()).map_err(|e| failed("download a frame", e))?;
        let memory = staging.memory.bytes();
        for (i, plane) in layout.format().planes().iter().enumerate() {
            let (row, rows) = layout.plane_size(plane);
            for y in 0..rows {
                let at = layout.offsets()[i] + y * layout.strides()[i];
                bytes[at..][..row].copy_from_slice(&memory[at..][..row]);
            }
        }
        self.cuda.0.frames.down.put(staging);
        Ok(())
    }
}

impl Drop for Download {
    fn drop(&mut self) {
        if let Some(staging) = self.staging.take() {
            let _restore = Restore::new();
            self.cuda.0.frames.down.put(staging);
        }
    }
}

fn too_short(length: usize, layout: &VideoLayout) -> Error {
    Error::engine(
        "video frame",
        format!("{length} bytes, expected {} or more", layout.size()),
    )
}
