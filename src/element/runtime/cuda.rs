//! An NVIDIA GPU: pictures stay in its memory from the frame that comes in to the frame that goes out.
//!
//! The worker's thread computes. The streaming thread has frames in main memory copied up while the worker is still busy with
//! the one before, and takes them when they have come down while it is busy with the next.

use std::path::Path;
use std::sync::Arc;

use super::{Computing, Input, LoadedModel, Output, Picture, Runtime, Written};
use crate::device::cuda::{Cuda, CudaTensor, Download, Launches, Submitted, Upload};
use crate::device::video::{Colour, VideoLayout};
#[cfg(feature = "tensorrt")]
use crate::element::building::Request;
use crate::element::cuda::{Gpu, Mapped, is_cuda};
use crate::element::layout::{colour, layout};
use crate::engine::cuda::CudaModel;
use crate::engine::shared::{self, Loaded};
#[cfg(feature = "tensorrt")]
use crate::engine::tensorrt::Building;
use crate::engine::{Telling, Waiting};
use crate::error::{Error, Result};

/// The worker's half.
pub struct CudaRuntime {
    // Before the GPU that it is on.
    loaded: Arc<Loaded<CudaModel>>,
    gpu: Arc<Gpu>,
    /// What the GPU may still be reading, and when it has.
    reading: Vec<Mapped>,
    read: Option<Submitted>,
}

/// A frame on its way to the GPU.
pub struct CudaInput {
    source: Source,
    colour: Colour,
    size: (usize, usize),
}

enum Source {
    /// In main memory, and on its way.
    System(Upload),
    /// In a GPU's memory, ours or another one.
    Gpu(Mapped, VideoLayout),
}

impl CudaInput {
    /// Width and height of the picture that it becomes.
    pub fn size(&self) -> (usize, usize) {
        self.size
    }
}

impl CudaRuntime {
    /// Loads the model in the folder `model` onto a GPU, to be run by ONNX Runtime, telling of each component; waits for
    /// another element that does.
    pub fn load(
        model: &Path,
        gpu: Arc<Gpu>,
        tell: Telling<'_>,
        waits: Waiting<'_>,
    ) -> Result<Self> {
        Self::new(shared::load_cuda(model, &gpu.cuda, tell, waits), gpu)
    }

    /// The same, to be run by TensorRT's engines, which are built if the request says so and they are missing.
    #[cfg(feature = "tensorrt")]
    pub fn load_engines(
        model: &Path,
        gpu: Arc<Gpu>,
        request: &Request,
        building: Building,
        tell: Telling<'_>,
        waits: Waiting<'_>,
    ) -> Result<Self> {
        let building = request.build.then_some(&building);
        let wanted = &request.wanted;
        let loaded = shared::load_tensorrt(model, &gpu.cuda, wanted, building, tell, waits);
        Self::new(loaded, gpu)
    }

    fn new(loaded: Result<Arc<Loaded<CudaModel>>>, gpu: Arc<Gpu>) -> Result<Self> {
        // Models are tried when they are loaded, by this thread.
        let loaded = loaded.inspect_err(|_| gpu.cuda.release_thread())?;
        Ok(Self {
            loaded,
            gpu,
            reading: Vec::new(),
            read: None,
        })
    }
}

impl Runtime for CudaRuntime {
    type Device = Cuda;
    type Model = CudaModel;

    fn device(&self) -> Cuda {
        self.gpu.cuda.clone()
    }

    fn loaded(&self) -> &Arc<Loaded<CudaModel>> {
        &self.loaded
    }

    fn handle(&self) -> LoadedModel {
        LoadedModel::Cuda(self.loaded.clone(), self.gpu.clone())
    }

    fn begin(&mut self) -> Result<()> {
        self.gpu.cuda.begin()
    }

    fn import(&mut self, input: Input) -> Result<CudaTensor> {
        let Input::Cuda(input) = input else {
            return Err(super::foreign());
        };
        let CudaInput {
            source,
            colour,
            size,
        } = *input;
        let cuda = &self.gpu.cuda;
        match source {
            Source::System(upload) => cuda.import_upload(upload, colour, size),
            Source::Gpu(mapped, layout) => {
                let context = match &self.gpu.sharing {
                    Some(sharing) => sharing.context_of(&mapped),
                    None => return Err(super::foreign()),
                };
                let base = mapped.base();
                let bytes = mapped.size();
                // Kept until the GPU has read it, whatever happens now.
                self.reading.push(mapped);
                let ours = context == cuda.context_handle();
                // SAFETY: mapped in that context, as large as the layout says, and kept until it has been read. The copy's
                // memory is used again only by what comes later on the stream.
                let picture = unsafe {
                    if ours {
                        cuda.import_device(base, &layout, colour, size)?
                    } else {
                        let copy = cuda.copy_from(context, base, bytes)?;
                        cuda.import_device(copy.pointer(), &layout, colour, size)?
                    }
                };
                self.read = Some(cuda.so_far()?);
                Ok(picture)
            }
        }
    }

    fn submit(&mut self) -> Result<Computing> {
        let submitted = self.gpu.cuda.submit()?;
        // Its producer may have few of these, and this takes no longer than to convert a frame: the rest comes behind it.
        if let Some(read) = self.read.take() {
            read.wait()?;
            self.reading.clear();
        }
        Ok(Computing::Cuda(submitted))
    }

    fn finish(&mut self) -> Result<()> {
        self.gpu.cuda.finish()?;
        self.read = None;
        self.reading.clear();
        Ok(())
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

    fn write(&mut self, picture: &Picture, output: Output) -> Result<Written> {
        let Picture::Cuda(picture) = picture else {
            return Err(super::foreign());
        };
        let Output { buffer, info } = output;
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
            let buffer = mapped.into_buffer().ok_or_else(super::foreign)?;
            return Ok(buffer.into());
        }
        let layout = layout(&info, &buffer, None, buffer.size())?;
        let download = cuda.download_frame(picture, &layout, colour)?;
        Ok(Written::coming(buffer, download))
    }
}

/// Waits for a frame that comes down, and writes it to the buffer that it is for.
pub(super) fn arrive(download: Download, buffer: &mut gst::BufferRef) -> Result<()> {
    let mut map = (buffer.map_writable()).map_err(|e| Error::engine("output", e.to_string()))?;
    download.finish(&mut map)
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
        }
    }

    /// A frame for the worker. What is in main memory has been read when this returns.
    pub fn import(&self, frame: &gst::Buffer) -> Result<Input> {
        let source = match &self.gpu.sharing {
            Some(sharing) if is_cuda(frame) => {
                let mapped = sharing.map(frame.clone())?;
                let layout = layout(&self.input, frame, Some(mapped.planes()), mapped.size())?;
                Source::Gpu(mapped, layout)
            }
            _ => {
                let map = (frame.map_readable())
                    .map_err(|_| Error::engine("input", "the buffer cannot be read"))?;
                let layout = layout(&self.input, frame, None, map.size())?;
                Source::System(self.gpu.cuda.upload_frame(&map, &layout)?)
            }
        };
        Ok(Input::Cuda(Box::new(CudaInput {
            source,
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
