//! What lies between tensors, one kernel for all that is asked for at once.

use super::kernels::{self, InterpolateRow, Kernel};
use super::{Cuda, CudaTensor, Element, length};
use crate::device::Interpolation;
use crate::error::{Error, Result};

/// A tensor that lies between two others.
#[derive(Debug, Clone)]
pub struct Interpolated {
    /// Where the way begins: f32.
    pub from: CudaTensor,
    /// Where it ends: f32, of the same shape.
    pub to: CudaTensor,
    /// How much of the way is gone: 0…1.
    pub share: f64,
    /// How the vectors along the last axis are blended, each by itself.
    pub how: Interpolation,
    /// What is written: f16 or f32, as many elements, none of which is part of the other two.
    pub out: CudaTensor,
}

impl Cuda {
    /// Whether [`interpolate`](Self::interpolate) gives values of this type.
    pub fn interpolates(to: Element) -> bool {
        to.float().is_some()
    }

    /// Notes down: writes what lies between tensors, in as few launches as there are types. At a share of 0 and 1 it is the ends
    /// themselves, but for the rounding to f16.
    ///
    /// # Errors
    /// [`Error::Engine`] when tensors do not fit together, or are too large for a kernel.
    pub fn interpolate(&self, wanted: &[Interpolated]) -> Result<()> {
        let mut kinds: Vec<(kernels::Element, Vec<InterpolateRow>)> = Vec::new();
        for wanted in wanted {
            let Interpolated {
                from,
                to,
                share,
                how,
                out,
            } = wanted;
            let fits = [from, to].iter().all(|end| end.element() == Element::F32)
                && from.shape() == to.shape()
                && from.len() == out.len();
            let Some(element) = out.element().float().filter(|_| fits) else {
                return Err(Error::engine(
                    "CUDA",
                    format!("nothing of {out:?} lies between {from:?} and {to:?}"),
                ));
            };
            if out.is_empty() {
                continue;
            }
            let width = from.shape().last().copied().unwrap_or(1);
            let row = InterpolateRow {
                a: from.pointer(),
                b: to.pointer(),
                out: out.pointer(),
                t: *share as f32,
                // No longer than the tensor.
                width: width as u32,
                len: length(from)?,
                spherical: (*how == Interpolation::Spherical).into(),
            };
            match kinds.iter_mut().find(|(kind, _)| *kind == element) {
                Some((_, rows)) => rows.push(row),
                None => kinds.push((element, vec![row])),
            }
        }
        let list = self.list();
        let mut list = list.lock();
        for (element, rows) in &kinds {
            let vectors = rows.iter().map(|row| row.len / row.width).max();
            list.launch(Kernel::interpolate(*element), rows, vectors.unwrap_or(0));
        }
        for Interpolated { from, to, out, .. } in wanted {
            for tensor in [from, to, out] {
                list.keep(tensor);
            }
        }
        Ok(())
    }
}
