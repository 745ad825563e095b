//! What runs the stream: a device, a model on it, and the ways of a video frame onto the device and back.
//!
//! The stream is generic over these; the element is not. [`Input`], [`Picture`] and [`LoadedModel`] are what passes
//! between the two.

mod convert;
#[cfg(feature = "cuda")]
pub mod cuda;
pub mod host;

use std::sync::Arc;
use std::time::Duration;

#[cfg(feature = "cuda")]
use super::cuda::Gpu;
#[cfg(feature = "cuda")]
use crate::device::cuda::{CudaTensor, Download, Submitted};
use crate::device::{Device, HostTensor};
#[cfg(feature = "cuda")]
use crate::engine::cuda::CudaModel;
use crate::engine::shared::Loaded;
use crate::engine::{Limits, Model};
use crate::error::{Error, Result};
use crate::model::ModelFolder;

/// A tensor of a runtime's device.
pub type TensorOf<R> = <<R as Runtime>::Device as Device>::Tensor;

/// What the worker's thread runs the stream on. Everything is called on that thread.
pub trait Runtime {
    /// Where tensors live.
    type Device: Device;
    /// What computes on them.
    type Model: Model<Tensor = TensorOf<Self>>;

    /// The device, for one more stream.
    fn device(&self) -> Self::Device;

    /// The model.
    fn loaded(&self) -> &Arc<Loaded<Self::Model>>;

    /// The model as the element knows it.
    fn handle(&self) -> LoadedModel;

    /// Waits for what was submitted before. What is computed from here on is what [`submit`](Self::submit) times.
    fn begin(&mut self) -> Result<()>;

    /// The picture `[1, 3, H, W]` of an input frame, on the device. It may be still on its way until what is submitted next is
    /// done.
    fn import(&mut self, input: Input) -> Result<TensorOf<Self>>;

    /// How the calling thread's frames were put on the device so far, for people; empty where there is nothing to tell.
    fn launched(&self) -> String {
        String::new()
    }

    /// Has the device do all it was asked for, and does not wait for it.
    fn submit(&mut self) -> Result<Computing>;

    /// Waits until the device has done all it was asked for, and lets go of what came in for it.
    fn finish(&mut self) -> Result<()>;

    /// A picture that the stream made, for the element.
    fn picture(picture: Arc<TensorOf<Self>>) -> Picture;

    /// Writes a picture into a frame, and gives that back, which may be on its way still.
    fn write(&mut self, picture: &Picture, output: Output) -> Result<Written>;
}

/// What a device is doing for a frame, for whoever needs what comes of it. A GPU goes on by itself.
pub enum Computing {
    /// It is done; how long it took.
    Done(Duration),
    /// A GPU is at it.
    #[cfg(feature = "cuda")]
    Cuda(Submitted),
}

impl Computing {
    /// Whether there is nothing to wait for any more.
    pub fn is_over(&self) -> bool {
        match self {
            Self::Done(_) => true,
            #[cfg(feature = "cuda")]
            Self::Cuda(submitted) => submitted.is_over(),
        }
    }

    /// Waits until it is done; how long it took, if that is known, but for what was done when the picture came. Nothing ends this
    /// wait before the device is through with what it was given.
    pub fn wait(self) -> Result<Option<Duration>> {
        match self {
            Self::Done(took) => Ok(Some(took)),
            #[cfg(feature = "cuda")]
            Self::Cuda(submitted) => submitted.wait(),
        }
    }
}

/// A frame that a picture is to be written to.
#[cfg_attr(
    not(feature = "cuda"),
    expect(
        dead_code,
        reason = "the streaming thread writes what comes from the CPU"
    )
)]
pub struct Output {
    /// The frame, held by nobody else.
    pub buffer: gst::Buffer,
    /// What its caps say.
    pub info: gst_video::VideoInfo,
}

/// A frame that a picture was written to, by whomever. What comes from a GPU may still be on its way to it.
pub struct Written {
    buffer: gst::Buffer,
    #[cfg(feature = "cuda")]
    coming: Option<Box<Download>>,
}

impl From<gst::Buffer> for Written {
    /// A frame that is complete.
    fn from(buffer: gst::Buffer) -> Self {
        Self {
            buffer,
            #[cfg(feature = "cuda")]
            coming: None,
        }
    }
}

impl Written {
    /// A frame that `download` is for.
    #[cfg(feature = "cuda")]
    pub fn coming(buffer: gst::Buffer, download: Download) -> Self {
        Self {
            buffer,
            coming: Some(Box::new(download)),
        }
    }

    /// The frame, for what is not its pixels.
    pub fn buffer_mut(&mut self) -> &mut gst::Buffer {
        &mut self.buffer
    }

    /// The frame, complete. Waits for a copy that is under way at most, not for what is computed meanwhile.
    pub fn complete(&mut self) -> Result<&gst::Buffer> {
        #[cfg(feature = "cuda")]
        if let Some(download) = self.coming.take() {
            cuda::arrive(*download, self.buffer.make_mut())?;
        }
        Ok(&self.buffer)
    }

    /// The frame, complete.
    pub fn into_buffer(mut self) -> Result<gst::Buffer> {
        self.complete()?;
        Ok(self.buffer)
    }
}

/// What comes of one runtime's things in another one.
fn foreign() -> Error {
    Error::engine("worker", "was given what another device has; this is a bug")
}

/// The picture of a frame on its way to the worker.
pub enum Input {
    /// On the host.
    Host(HostTensor),
    /// For a GPU.
    #[cfg(feature = "cuda")]
    Cuda(Box<cuda::CudaInput>),
}

impl Input {
    /// Width and height of the picture that it becomes.
    pub fn size(&self) -> Result<(usize, usize)> {
        match self {
            Self::Host(picture) => match picture.shape() {
                &[1, 3, height, width] => Ok((width, height)),
                shape => Err(Error::engine("worker", format!("no picture: {shape:?}"))),
            },
            #[cfg(feature = "cuda")]
            Self::Cuda(input) => Ok(input.size()),
        }
    }
}

/// A finished picture, wherever it lies. Clones are the same picture.
#[derive(Clone)]
pub enum Picture {
    /// On the host.
    Host(Arc<HostTensor>),
    /// On a GPU.
    #[cfg(feature = "cuda")]
    Cuda(Arc<CudaTensor>),
}

impl Picture {
    /// Whether both are the same picture, not two that look alike.
    pub fn is(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Host(a), Self::Host(b)) => Arc::ptr_eq(a, b),
            #[cfg(feature = "cuda")]
            (Self::Cuda(a), Self::Cuda(b)) => Arc::ptr_eq(a, b),
            #[cfg(feature = "cuda")]
            _ => false,
        }
    }
}

/// A loaded model, whatever runs it.
#[derive(Clone)]
pub enum LoadedModel {
    /// By ONNX Runtime on the CPU.
    Host(Arc<Loaded>),
    /// On a GPU, by ONNX Runtime or TensorRT.
    #[cfg(feature = "cuda")]
    Cuda(Arc<Loaded<CudaModel>>, Arc<Gpu>),
}

impl LoadedModel {
    /// What its folder says.
    pub fn folder(&self) -> &ModelFolder {
        match self {
            Self::Host(loaded) => &loaded.folder,
            #[cfg(feature = "cuda")]
            Self::Cuda(loaded, _) => &loaded.folder,
        }
    }

    /// What it can do.
    pub fn limits(&self) -> &Limits {
        match self {
            Self::Host(loaded) => loaded.model.limits(),
            #[cfg(feature = "cuda")]
            Self::Cuda(loaded, _) => loaded.model.limits(),
        }
    }

    /// What runs it, for people.
    pub fn backend(&self) -> &str {
        match self {
            Self::Host(loaded) => loaded.model.backend(),
            #[cfg(feature = "cuda")]
            Self::Cuda(loaded, _) => loaded.model.backend(),
        }
    }

    /// Where the engines come from that were built ahead, for people; empty where there are none.
    pub fn engines(&self) -> &str {
        match self {
            Self::Host(_) => "",
            #[cfg(feature = "cuda")]
            Self::Cuda(loaded, _) => loaded.model.origin(),
        }
    }

    /// How much of the U-Net is computed ahead, for people.
    pub fn precomputed(&self) -> &str {
        match self {
            Self::Host(loaded) => loaded.model.precomputed(),
            #[cfg(feature = "cuda")]
            Self::Cuda(loaded, _) => loaded.model.precomputed(),
        }
    }
}
