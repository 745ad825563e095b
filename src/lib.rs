//! StreamDiffusion (arXiv 2312.12491) as a GStreamer element.

pub mod device;
pub mod engine;
pub mod error;
pub mod model;
pub mod stream;
