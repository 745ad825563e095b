//! ONNX Runtime: the embedded default, on any CPU.

mod library;
mod model;
mod session;

pub use model::OnnxModel;
