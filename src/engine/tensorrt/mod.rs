//! TensorRT: engines built from a model's graphs, ahead of time and on any machine, for NVIDIA GPUs.

pub mod builder;
#[cfg(feature = "cuda")]
pub mod execution;
mod gate;
mod library;
mod log;
mod recipe;

pub use library::{FLAVOUR, Library, VARIABLE, Version, library, parser};
pub use log::{Severity, set_sink};
pub use recipe::{Part, Profile, Recipe, Span};
