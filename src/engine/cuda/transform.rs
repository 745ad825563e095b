//! A component that turns one tensor into another, on a GPU.

use std::sync::Arc;

use super::bounds::Bounds;
use super::{Program, RowRange};
use crate::device::Device;
use crate::device::cuda::{Cuda, CudaTensor};
use crate::error::{Error, Result};

/// The image encoder or the image decoder.
pub struct Transform {
    cuda: Cuda,
    bounds: Bounds<()>,
    rows: RowRange,
}

impl Transform {
    /// Run by `program`, which takes `rows` at once.
    pub fn new(program: &Arc<dyn Program>, cuda: &Cuda, rows: RowRange) -> Self {
        Self {
            cuda: cuda.clone(),
            bounds: Bounds::new(cuda, program),
            rows,
        }
    }

    /// An error of this component.
    pub fn error(&self, what: impl Into<String>) -> Error {
        self.bounds.program().error(what.into())
    }

    /// Records runs over all rows of `input`, each value `x` of which goes in as `scale·x + shift`. What they give is in the
    /// tensors that come back, one below the other, until the next call; a row of it has the shape `row`.
    pub fn run(
        &self,
        input: &CudaTensor,
        scale: f32,
        shift: f32,
        row: [usize; 3],
    ) -> Result<Vec<CudaTensor>> {
        let shape = input.shape();
        if shape.first().is_none_or(|rows| *rows == 0) {
            return Err(self.error("was given no frames"));
        }
        let rows = shape[0];
        // All of them in one run, as they are.
        let at_once = (self.rows.least..=self.rows.most).contains(&rows);
        let (parts, most) = match at_once {
            true => (vec![input.clone()], 1),
            false => (self.cuda.unstack(input.clone()), self.rows.most.max(1)),
        };
        let mut outputs = Vec::new();
        for (number, given) in parts.chunks(most).enumerate() {
            let batch = match at_once {
                true => rows,
                false => self.rows.filled(given.len()),
            };
            let shapes = vec![[&[batch], &shape[1..]].concat()];
            let output = vec![batch, row[0], row[1], row[2]];
            let output = self.bounds.with(number, shapes, &[output], |bound, ()| {
                let mut from: Vec<&CudaTensor> = given.iter().collect();
                if !at_once {
                    // Filled up with the last row.
                    from.resize(batch, &given[given.len() - 1]);
                }
                self.cuda.copy(&from, &bound.inputs()[0], scale, shift)?;
                self.cuda.run(bound.clone())?;
                Ok(bound.outputs()[0].clone())
            })?;
            match at_once {
                true => outputs.push(output),
                false => outputs.extend(self.cuda.unstack(output).into_iter().take(given.len())),
            }
        }
        Ok(outputs)
    }
}
