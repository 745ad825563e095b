//! An NVIDIA GPU: pictures stay in its memory from the frame that comes in to the frame that goes out.
//!
//! All that touches the GPU happens on the worker's thread, because its context is that thread's.

use std::path::Path;
use std::sync::Arc;

use parking_lot::Mutex;

use super::{Input, LoadedModel, Output, Picture, Runtime};
use crate::device::cuda::{Cuda, CudaTensor, Launches};
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
    /// In main memory.
    System(Lent),
    /// In a GPU's memory, ours or another one.
    Gpu(Mapped),
}

impl CudaInput {
    /// Width and height of the picture that it becomes.
    pub fn size(&self) -> (usize, usize) {
        self.size
    }

    /// Whether the frame's memory was lent and has been taken back.
    pub fn is_gone(&self) -> bool {
        matches!(&self.source, Source::System(lent) if lent.0.lock().is_none())
    }

    /// What ends the loan of the frame's memory, if it is lent.
    pub fn loan(&self) -> Option<Loan> {
        match &self.source {
            Source::System(lent) => Some(Loan(lent.clone())),
            Source::Gpu(_) => None,
        }
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
        let loaded = shared::load_cuda(model, &gpu.cuda, tell, waits)?;
        Ok(Self::new(loaded, gpu))
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
        let loaded = shared::load_tensorrt(model, &gpu.cuda, wanted, building, tell, waits)?;
        Ok(Self::new(loaded, gpu))
    }

    fn new(loaded: Arc<Loaded<CudaModel>>, gpu: Arc<Gpu>) -> Self {
        Self {
            loaded,
            gpu,
            reading: Vec::new(),
        }
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
            Source::System(lent) => {
                lent.read(|bytes| cuda.import_host(bytes, &layout, colour, size))
            }
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
        self.gpu.cuda.finish()?;
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

    /// A frame for the worker.
    pub fn import(&self, frame: &gst::Buffer) -> Result<Input> {
        let (source, layout) = match &self.gpu.sharing {
            Some(sharing) if is_cuda(frame) => {
                let mapped = sharing.map(frame.clone())?;
                let layout = layout(&self.input, frame, Some(mapped.planes()), mapped.size())?;
                (Source::Gpu(mapped), layout)
            }
            _ => {
                let lent = Lent::new(frame)?;
                let layout = layout(&self.input, frame, None, lent.size())?;
                (Source::System(lent), layout)
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

/// A frame in main memory, lent to the worker, which copies it to where the GPU reads it. What an application lends to
/// GStreamer is its own again when the frame has been taken in, so the loan ends before that, also when nobody waits for
/// the worker any more.
#[derive(Clone)]
struct Lent(Arc<Mutex<Option<gst::MappedBuffer<gst::buffer::Readable>>>>);

/// A loan, which ends when this is dropped: at once, or, if the frame is just being read, right after that.
pub struct Loan(Lent);

impl Lent {
    fn new(frame: &gst::Buffer) -> Result<Self> {
        let mapped = (frame.clone().into_mapped_buffer_readable())
            .map_err(|_| Error::engine("input", "the buffer cannot be read"))?;
        Ok(Self(Arc::new(Mutex::new(Some(mapped)))))
    }

    /// Its size in bytes.
    fn size(&self) -> usize {
        self.0.lock().as_ref().map_or(0, |frame| frame.len())
    }

    /// Reads the frame, once.
    fn read<R>(&self, work: impl FnOnce(&[u8]) -> Result<R>) -> Result<R> {
        let mut lent = self.0.lock();
        let result = match lent.as_ref() {
            Some(frame) => work(frame),
            None => Err(Error::engine("input", "was taken back by a flush")),
        };
        *lent = None;
        result
    }
}

impl Drop for Loan {
    fn drop(&mut self) {
        self.0.0.lock().take();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame() -> gst::Buffer {
        gst::init().unwrap();
        gst::Buffer::from_slice([1, 2, 3])
    }

    #[test]
    fn a_frame_is_read_once_and_let_go() {
        let frame = frame();
        let lent = Lent::new(&frame).unwrap();
        let _loan = Loan(lent.clone());
        assert_eq!(lent.size(), 3);
        assert!(!frame.is_writable());
        assert_eq!(lent.read(|bytes| Ok(bytes.to_vec())).unwrap(), [1, 2, 3]);
        assert!(frame.is_writable(), "still held");
        assert!(lent.read(|_| Ok(())).is_err());
    }

    #[test]
    fn a_loan_that_ended_is_not_read() {
        let frame = frame();
        let lent = Lent::new(&frame).unwrap();
        drop(Loan(lent.clone()));
        assert!(frame.is_writable());
        let error = lent.read(|_| Ok(())).unwrap_err().to_string();
        assert!(error.contains("taken back"), "{error}");
    }

    #[test]
    fn a_loan_lasts_while_the_frame_is_read() {
        let lent = Lent::new(&frame()).unwrap();
        let loan = Loan(lent.clone());
        let (reading, started) = std::sync::mpsc::channel();
        let done = std::sync::atomic::AtomicBool::new(false);
        let order = std::sync::atomic::Ordering::SeqCst;
        std::thread::scope(|scope| {
            scope.spawn(|| {
                lent.read(|bytes| {
                    reading.send(()).unwrap();
                    std::thread::sleep(std::time::Duration::from_millis(30));
                    done.store(true, order);
                    assert_eq!(bytes, [1, 2, 3]);
                    Ok(())
                })
                .unwrap();
            });
            started.recv().unwrap();
            drop(loan);
            assert!(done.load(order));
        });
    }
}
