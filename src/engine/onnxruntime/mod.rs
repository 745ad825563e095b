//! ONNX Runtime: the embedded default, on any CPU.

mod geometry;
mod library;
mod model;
mod provider;
mod session;
mod text;
mod unet;

pub use model::OnnxModel;
pub use unet::Context;
