//! Models on NVIDIA GPUs, whatever runs their graphs: rows, runs and buffers, on the CUDA device.
//!
//! An engine supplies a [`Program`] for each component. The rest is the same for all of them: which rows go into one run,
//! what is copied where before and after it, and which buffers a run has.

mod bounds;
mod contexts;
mod ends;
mod model;
mod transform;
mod unet;

use std::sync::Arc;

pub use contexts::Kept;
pub use model::CudaModel;
pub(super) use model::Engines;
pub(super) use transform::Transform;
pub(super) use unet::CudaUnet;

use crate::device::cuda::{Cuda, CudaTensor, Element, Work};
use crate::error::{Error, Result};
use crate::model::Component;

/// A component's graph, or a part of it, made runnable on a GPU.
pub trait Program: Send + Sync {
    /// Which component it is, or is a part of.
    fn component(&self) -> Component;

    /// The types of its inputs, in the order in which [`bind`](Self::bind) takes them.
    fn elements(&self) -> Result<Vec<Element>>;

    /// It, with memory for inputs and outputs of these shapes.
    ///
    /// # Errors
    /// [`Error::Engine`] if it cannot take or give such shapes, or there is no memory.
    fn bind(
        self: Arc<Self>,
        cuda: &Cuda,
        inputs: &[Vec<usize>],
        outputs: &[Vec<usize>],
    ) -> Result<Arc<dyn Bound>>;

    /// An error of this component.
    fn error(&self, what: String) -> Error {
        Error::engine(self.component().folder(), what)
    }
}

/// A program at fixed addresses, for one set of shapes.
pub trait Bound: Work {
    /// Its inputs, in the program's order. Written by copies that are noted down before a run.
    fn inputs(&self) -> &[CudaTensor];

    /// What a run writes, at least one tensor, in the program's order. The next one writes there too.
    fn outputs(&self) -> &[CudaTensor];
}

/// How many rows a program takes at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RowRange {
    /// At least so many; calls with fewer are filled up.
    pub least: usize,
    /// At most so many; calls with more are done in several runs.
    pub most: usize,
}

impl RowRange {
    /// Any number, or the one that the graph fixes.
    pub fn of_graph(batch: Option<usize>) -> Self {
        match batch {
            Some(batch) => Self {
                least: batch,
                most: batch.max(1),
            },
            None => Self {
                least: 1,
                most: usize::MAX,
            },
        }
    }

    /// The rows of a run that has `rows` to do, at most [`Self::most`].
    pub fn filled(self, rows: usize) -> usize {
        rows.max(self.least)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_have_as_many_rows_as_the_program_takes() {
        let fixed = RowRange::of_graph(Some(4));
        assert_eq!((fixed.filled(1), fixed.filled(4), fixed.most), (4, 4, 4));
        let any = RowRange::of_graph(None);
        assert_eq!((any.filled(1), any.filled(40)), (1, 40));
        let built = RowRange { least: 2, most: 8 };
        assert_eq!((built.filled(1), built.filled(5)), (2, 5));
    }
}
