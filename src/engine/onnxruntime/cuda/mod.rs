//! ONNX Runtime's CUDA provider: models run on an NVIDIA GPU, on the CUDA device's own stream.

mod binding;
mod bound;
mod model;
mod options;
pub(super) mod processor;
#[cfg(feature = "tensorrt")]
mod rarely;

pub use model::{available, open, open_exported, open_telling, open_whole};
pub(super) use options::{CudaProvider, Graphs};
#[cfg(feature = "tensorrt")]
pub(in crate::engine) use rarely::Rarely;
