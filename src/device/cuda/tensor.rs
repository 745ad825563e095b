//! A tensor in a GPU's memory.

use std::sync::Arc;

use super::kernels;
use super::pool::Buffer;
use crate::error::{Error, Result};

/// Types of tensor elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Element {
    /// IEEE 754 half precision: what the stream's tensors are.
    F16,
    /// Single precision.
    F32,
    /// Whole numbers, as graphs want timesteps and token ids.
    I64,
    /// Whole numbers.
    I32,
}

impl Element {
    /// Bytes of one.
    pub fn size(self) -> usize {
        match self {
            Self::F16 => 2,
            Self::F32 | Self::I32 => 4,
            Self::I64 => 8,
        }
    }

    /// What kernels that compute with it call it.
    pub(super) fn float(self) -> Option<kernels::Element> {
        match self {
            Self::F16 => Some(kernels::Element::F16),
            Self::F32 => Some(kernels::Element::F32),
            Self::I64 | Self::I32 => None,
        }
    }
}

/// Bytes of a tensor of this shape. Shapes come from model folders, so the product may be anything.
pub(super) fn size(shape: &[usize], element: Element) -> Result<usize> {
    let count = (shape.iter()).try_fold(element.size(), |size, side| size.checked_mul(*side));
    match count {
        // Sizes are rounded up, and addresses end somewhere.
        Some(size) if size <= isize::MAX as usize => Ok(size),
        _ => Err(Error::engine(
            "CUDA",
            format!("a tensor of shape {shape:?} is larger than any memory"),
        )),
    }
}

/// A dense, row-major tensor in device memory. Clones share the memory, which nothing writes to a second time but the
/// operation that is told to.
#[derive(Clone)]
pub struct CudaTensor {
    shape: Vec<usize>,
    element: Element,
    buffer: Arc<Buffer>,
    /// In bytes, from the buffer's start.
    offset: usize,
}

impl CudaTensor {
    /// A tensor at the start of `buffer`, which must be large enough.
    pub(super) fn new(shape: &[usize], element: Element, buffer: Buffer) -> Self {
        Self {
            shape: shape.to_vec(),
            element,
            buffer: Arc::new(buffer),
            offset: 0,
        }
    }

    /// Its dimensions, outermost first.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The type of its elements.
    pub fn element(&self) -> Element {
        self.element
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether it has no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Its size in bytes.
    pub fn bytes(&self) -> usize {
        self.len() * self.element.size()
    }

    /// The device address of its first element (a `CUdeviceptr`), valid while a clone of it lives.
    pub fn pointer(&self) -> u64 {
        self.buffer.pointer() + self.offset as u64
    }

    /// Its rows `[1, …]`, in its memory.
    pub(super) fn rows(&self) -> Vec<Self> {
        let Some((&count, _)) = self.shape.split_first() else {
            return vec![self.clone()];
        };
        let mut shape = self.shape.clone();
        shape[0] = 1;
        let size = shape.iter().product::<usize>() * self.element.size();
        let row = |i| Self {
            shape: shape.clone(),
            element: self.element,
            buffer: self.buffer.clone(),
            offset: self.offset + i * size,
        };
        (0..count).map(row).collect()
    }
}

impl std::fmt::Debug for CudaTensor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "CudaTensor({:?} {:?})", self.shape, self.element)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_that_no_memory_has_is_an_error() {
        assert_eq!(size(&[2, 3, 4], Element::F16).unwrap(), 48);
        assert_eq!(size(&[0, usize::MAX], Element::I64).unwrap(), 0);
        // Its product is 0 in 64 bits.
        let error = size(&[1 << 32, 1 << 31, 2], Element::F16).unwrap_err();
        assert!(
            error.to_string().contains("[4294967296, 2147483648, 2]"),
            "{error}"
        );
        assert!(size(&[usize::MAX / 8], Element::F32).is_ok());
        assert!(size(&[usize::MAX / 8], Element::I64).is_err());
    }
}
