//! ONNX Runtime: the embedded default, on any CPU; with its CUDA provider, on NVIDIA GPUs.

#[cfg(feature = "cuda")]
mod cuda;
mod geometry;
mod library;
mod model;
mod provider;
mod session;
mod text;
mod unet;

#[cfg(feature = "cuda")]
pub use cuda::{CudaOnnxModel, Kept};
pub use model::OnnxModel;
pub use unet::Context;
#[cfg(feature = "tensorrt")]
pub use unet::{LiveInput, LivePart};
