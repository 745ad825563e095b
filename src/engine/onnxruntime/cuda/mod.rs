//! ONNX Runtime's CUDA provider: models run on an NVIDIA GPU, on the CUDA device's own stream.

mod binding;
mod bound;
mod model;
mod options;
mod transform;
mod unet;

pub use model::CudaOnnxModel;
pub(super) use options::CudaProvider;
pub use unet::Kept;
