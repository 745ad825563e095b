//! The errors of everything below the element: each names the file, component or property at fault and what was expected.

use std::path::{Path, PathBuf};

/// `Result` with this crate's [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

/// What can go wrong while a model is loaded or run. The element turns each kind into a GStreamer error domain.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// A file or folder is missing or cannot be read.
    #[error("{}: {what}", path.display())]
    NotFound { path: PathBuf, what: String },
    /// A file is there, but its content is not what a model folder must hold.
    #[error("{}: {what}", path.display())]
    Invalid { path: PathBuf, what: String },
    /// A property has a value that this model, schedule or frame size cannot serve.
    #[error("property {property}: {what}")]
    Setting {
        property: &'static str,
        what: String,
    },
    /// A shared library that an engine needs (ONNX Runtime) is missing or unfit.
    #[error("{0}")]
    Library(String),
    /// A component failed while it was made ready or while it ran.
    #[error("{component}: {what}")]
    Engine { component: String, what: String },
}

impl Error {
    /// A missing or unreadable file.
    pub fn not_found(path: &Path, what: impl Into<String>) -> Self {
        Self::NotFound {
            path: path.to_owned(),
            what: what.into(),
        }
    }

    /// A file with unexpected content.
    pub fn invalid(path: &Path, what: impl Into<String>) -> Self {
        Self::Invalid {
            path: path.to_owned(),
            what: what.into(),
        }
    }

    /// A property value that cannot be served.
    pub fn setting(property: &'static str, what: impl Into<String>) -> Self {
        Self::Setting {
            property,
            what: what.into(),
        }
    }

    /// A component that failed.
    pub fn engine(component: impl Into<String>, what: impl Into<String>) -> Self {
        Self::Engine {
            component: component.into(),
            what: what.into(),
        }
    }
}
