//! Which engines run on a GPU.

use super::super::builder::{self, ComputeCapability};
use super::super::library::{self, FLAVOUR};
use crate::error::{Error, Result};

/// A GPU's compute capability, whether TensorRT knows it or not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Gpu {
    /// Before the point.
    pub major: u32,
    /// After it.
    pub minor: u32,
}

impl std::fmt::Display for Gpu {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

impl Gpu {
    /// This one.
    pub fn new(major: u32, minor: u32) -> Self {
        Self { major, minor }
    }

    /// Whether engines run on it that were built for `capabilities`, as a [`Key`] has them.
    pub fn runs(self, capabilities: &str) -> bool {
        match capabilities {
            // Those that an engine is for with the compute capability left open, as TensorRT for RTX itself says.
            "any" => {
                [Self::new(8, 0), Self::new(8, 6), Self::new(8, 9)].contains(&self)
                    || self >= Self::new(12, 0)
            }
            "8.0 and later" => self >= Self::new(8, 0),
            some => some.split(' ').any(|one| one == self.to_string()),
        }
    }

    /// What an engine is built for that is to run on it, for [`Recipe::key`].
    ///
    /// # Errors
    /// [`Error::Library`] if this TensorRT has no engines for it.
    pub fn capabilities(self) -> Result<Vec<ComputeCapability>> {
        if self.runs(&builder::capabilities_name(&[])) {
            return Ok(Vec::new());
        }
        match self.to_string().parse() {
            Ok(one) if FLAVOUR == "rtx" => Ok(vec![one]),
            _ => Err(Error::Library(format!(
                "{} does not serve GPUs of compute capability {self}",
                library::library()?
            ))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn engines_run_on_the_gpus_that_they_are_for() {
        let runs = |major, minor, what| Gpu::new(major, minor).runs(what);
        for (major, minor, any, later) in [
            (7, 5, false, false),
            (8, 0, true, true),
            (8, 6, true, true),
            (8, 7, false, true),
            (8, 9, true, true),
            (9, 0, false, true),
            (10, 0, false, true),
            (12, 0, true, true),
            (12, 1, true, true),
            (13, 0, true, true),
        ] {
            assert_eq!(runs(major, minor, "any"), any, "{major}.{minor}");
            assert_eq!(
                runs(major, minor, "8.0 and later"),
                later,
                "{major}.{minor}"
            );
        }
        assert!(runs(8, 9, "8.6 8.9"));
        assert!(!runs(8, 0, "8.6 8.9"));
        assert!(!runs(12, 0, "12.1"));
    }
}
