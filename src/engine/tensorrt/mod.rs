//! TensorRT: engines built from a model's graphs, ahead of time and on any machine, for NVIDIA GPUs.

pub mod builder;
#[cfg(feature = "cuda")]
pub mod execution;
mod gate;
mod library;
mod log;
#[cfg(feature = "cuda")]
mod model;
mod recipe;
mod supply;

pub use library::{FLAVOUR, Library, PROPERTY, VARIABLE, Version, library, library_at, parser};
pub use log::{Severity, set_sink};
#[cfg(feature = "cuda")]
pub use model::open;
pub use recipe::{Cost, Part, Profile, Recipe, Span};
pub use supply::{Building, Gpu, Supply, Wanted};
