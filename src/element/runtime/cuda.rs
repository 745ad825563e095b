//! An NVIDIA GPU: pictures stay in its memory from the frame that comes in to the frame that goes out.
//!
//! All that touches the GPU happens on the worker's thread, because its context is that thread's.

use std::path::Path;
use std::sync::Arc;

use parking_lot::Mutex;

use super::{Input, LoadedModel, Output, Picture, Runtime};
use crate::device::cuda::{Cuda, CudaTensor, Launches};
use crate::device::video::{Colour, VideoLayout};
use crate::element::cuda::{Gpu, Mapped, is_cuda};
use crate::element::layout::{colour, layout};
use crate::engine::onnxruntime::CudaOnnxModel;
use crate::engine::shared::{self, Loaded};
use crate::error::{Error, Result};

/// Copies of frames that are kept for the next ones: one is read while the next is written.
const KEPT_COPIES: usize = 2;

/// The worker's half.
pub struct CudaRuntime {
    gpu: Arc<Gpu>,
    loaded: Arc<Loaded<CudaOnnxModel>>,
    /// What the GPU may still be reading.
    reading: Vec<Mapped>,
}

/// A frame on its way to the GPU.
pub struct CudaInput {
    source: Source,
    layout: VideoLayout,
    colour: Colour,
    size: (usize, usize),
}

enum Source {
    /// A copy in main memory.
    System(Copied),
    /// In a GPU's memory, ours or another one.
    Gpu(Mapped),
}

impl CudaInput {
    /// Width and height of the picture that it becomes.
    pub fn size(&self) -> (usize, usize) {
        self.size
    }
}

impl CudaRuntime {
    /// Loads the model in the folder `model` onto a GPU.
    pub fn load(model: &Path, gpu: Arc<Gpu>) -> Result<Self> {
        Ok(Self {
            loaded: shared::load_cuda(model, &gpu.cuda)?,
            gpu,
            reading: Vec::new(),
        })
    }
}

impl Runtime for CudaRuntime {
    type Device = Cuda;
    type Model = CudaOnnxModel;

    fn device(&self) -> Cuda {
        self.gpu.cuda.clone()
    }

    fn loaded(&self) -> &Arc<Loaded<CudaOnnxModel>> {
        &self.loaded
    }

    fn handle(&self) -> LoadedModel {
        LoadedModel::Cuda(self.loaded.clone(), self.gpu.clone())
    }

    fn import(&mut self, input: Input) -> Result<CudaTensor> {
        let Input::Cuda(input) = input else {
            return Err(super::foreign());
        };
        let CudaInput {
            source,
            layout,
            colour,
            size,
        } = *input;
        let cuda = &self.gpu.cuda;
        match source {
            Source::System(copied) => cuda.import_host(copied.bytes(), &layout, colour, size),
            Source::Gpu(mapped) => {
                let context = match &self.gpu.sharing {
                    Some(sharing) => sharing.context_of(&mapped),
                    None => return Err(super::foreign()),
                };
                let base = mapped.base();
                let bytes = mapped.size();
                // Kept until the GPU has read it, whatever happens now.
                self.reading.push(mapped);
                if context == cuda.context_handle() {
                    // SAFETY: mapped in the primary context, as large as the layout says, and kept until `finish`.
                    return unsafe { cuda.import_device(base, &layout, colour, size) };
                }
                // SAFETY: mapped in that context, and kept until `finish`. The copy's memory is used again only by what
                // comes later on the stream.
                unsafe {
                    let copy = cuda.copy_from(context, base, bytes)?;
                    cuda.import_device(copy.pointer(), &layout, colour, size)
                }
            }
        }
    }

    fn finish(&mut self) -> Result<()> {
        let finished = self.gpu.cuda.finish();
        self.reading.clear();
        finished
    }

    fn launched(&self) -> String {
        let cuda = &self.gpu.cuda;
        let Launches { graphs, eager } = cuda.launches();
        let mut text = format!("{graphs} as one graph, {eager} command by command");
        match (cuda.refusal(), graphs) {
            (Some(refusal), _) => text += &format!(" ({refusal})"),
            (None, 0) => text += &format!(" ({})", self.loaded.model.graphs()),
            _ => {}
        }
        text
    }

    fn picture(picture: Arc<CudaTensor>) -> Picture {
        Picture::Cuda(picture)
    }

    fn write(&mut self, picture: &Picture, output: Output) -> Result<gst::Buffer> {
        let Picture::Cuda(picture) = picture else {
            return Err(super::foreign());
        };
        let Output { mut buffer, info } = output;
        let (cuda, colour) = (&self.gpu.cuda, colour(&info));
        if let (true, Some(sharing)) = (is_cuda(&buffer), &self.gpu.sharing) {
            let mapped = Mapped::for_writing(buffer)?;
            if sharing.context_of(&mapped) != cuda.context_handle() {
                return Err(Error::engine(
                    "output",
                    "the pool's memory is in another CUDA context than ours",
                ));
            }
            let planes = Some(mapped.planes());
            let layout = match mapped.buffer() {
                Some(buffer) => layout(&info, buffer, planes, mapped.size())?,
                None => return Err(super::foreign()),
            };
            // SAFETY: mapped in the primary context, and as large as the layout says.
            unsafe { cuda.export_device(picture, mapped.base(), &layout, colour) }?;
            return mapped.into_buffer().ok_or_else(super::foreign);
        }
        {
            let size = buffer.size();
            let layout = layout(&info, &buffer, None, size)?;
            let mut map = buffer
                .make_mut()
                .map_writable()
                .map_err(|err| Error::engine("output", err.to_string()))?;
            cuda.export_host(picture, &mut map, &layout, colour)?;
        }
        Ok(buffer)
    }
}

impl Drop for CudaRuntime {
    fn drop(&mut self) {
        if !self.reading.is_empty() {
            // An error here has no frame any more to be told of.
            let _ = self.gpu.cuda.finish();
        }
        self.gpu.cuda.release_thread();
    }
}

/// The streaming thread's half: hands frames over.
pub struct Door {
    gpu: Arc<Gpu>,
    input: gst_video::VideoInfo,
    output: gst_video::VideoInfo,
    size: (usize, usize),
    copies: Copies,
}

impl Door {
    /// For frames of `input`, pictures of `size` (width, height) and frames of `output`.
    pub fn new(
        gpu: Arc<Gpu>,
        input: &gst_video::VideoInfo,
        size: (usize, usize),
        output: &gst_video::VideoInfo,
    ) -> Self {
        Self {
            gpu,
            input: input.clone(),
            output: output.clone(),
            size,
            copies: Copies::default(),
        }
    }

    /// A frame for the worker: itself if it is in a GPU's memory, else a copy, because what an application lends is its
    /// own again when the frame has been taken in.
    pub fn import(&self, frame: &gst::Buffer) -> Result<Input> {
        let (source, layout) = match &self.gpu.sharing {
            Some(sharing) if is_cuda(frame) => {
                let mapped = sharing.map(frame.clone())?;
                let layout = layout(&self.input, frame, Some(mapped.planes()), mapped.size())?;
                (Source::Gpu(mapped), layout)
            }
            _ => {
                let map = frame
                    .map_readable()
                    .map_err(|err| Error::engine("input", err.to_string()))?;
                let layout = layout(&self.input, frame, None, map.len())?;
                (Source::System(self.copies.of(&map)), layout)
            }
        };
        Ok(Input::Cuda(Box::new(CudaInput {
            source,
            layout,
            colour: colour(&self.input),
            size: self.size,
        })))
    }

    /// A buffer for the worker to write to.
    pub fn output(&self, buffer: gst::Buffer) -> Output {
        Output {
            buffer,
            info: self.output.clone(),
        }
    }
}

/// Memory for copies of frames, used again and again.
#[derive(Clone, Default)]
struct Copies(Arc<Mutex<Vec<Vec<u8>>>>);

/// A copy of a frame; its memory goes back when it is dropped.
struct Copied {
    bytes: Vec<u8>,
    home: Copies,
}

impl Copies {
    fn of(&self, frame: &[u8]) -> Copied {
        let mut bytes = self.0.lock().pop().unwrap_or_default();
        bytes.clear();
        bytes.extend_from_slice(frame);
        Copied {
            bytes,
            home: self.clone(),
        }
    }
}

impl Copied {
    fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Copied {
    fn drop(&mut self) {
        let mut kept = self.home.0.lock();
        if kept.len() < KEPT_COPIES {
            kept.push(std::mem::take(&mut self.bytes));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_use_the_same_memory_again() {
        let copies = Copies::default();
        let first = copies.of(&[1, 2, 3]);
        let pointer = first.bytes().as_ptr();
        drop(first);
        let second = copies.of(&[4, 5]);
        assert_eq!(second.bytes(), [4, 5]);
        assert_eq!(second.bytes().as_ptr(), pointer);
        let more: Vec<_> = (0..9).map(|i| copies.of(&[i])).collect();
        drop(more);
        assert_eq!(copies.0.lock().len(), KEPT_COPIES);
    }
}
