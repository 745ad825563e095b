//! ONNX Runtime: the embedded default, on any CPU; with its CUDA provider, on NVIDIA GPUs.

#[cfg(feature = "cuda")]
mod cuda;
mod fusing;
mod geometry;
mod library;
pub(crate) mod log;
mod model;
mod provider;
mod session;
mod text;
mod unet;

#[cfg(all(feature = "cuda", feature = "tensorrt"))]
pub(super) use cuda::Rarely;
#[cfg(feature = "cuda")]
#[doc(hidden)]
pub use cuda::processor::put_in_place as put_processor_in_place;
#[cfg(feature = "cuda")]
pub use cuda::{
    available as cuda_available, open as open_cuda, open_exported as open_cuda_exported,
    open_telling as open_cuda_telling, open_whole as open_cuda_whole,
};
#[cfg(feature = "cuda")]
pub(super) use geometry::Geometry;
pub use library::open_at;
pub use log::{Severity, set_sink};
pub use model::OnnxModel;
#[cfg(feature = "cuda")]
pub(super) use text::Texts;
pub use unet::Context;
#[cfg(feature = "cuda")]
pub(super) use unet::{Ahead, Valued, parts, plan};
#[cfg(feature = "tensorrt")]
pub use unet::{LiveInput, LivePart};
