//! ONNX Runtime: the embedded default, on any CPU.

mod library;
mod model;
mod session;
mod text;
mod unet;

pub use model::OnnxModel;
pub use unet::Context;
