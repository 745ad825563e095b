//! A component that turns one tensor into another, on a GPU.

use std::sync::Arc;

use super::bound::Bounds;
use crate::device::Device;
use crate::device::cuda::{Cuda, CudaTensor};
use crate::engine::onnxruntime::provider::Provider;
use crate::engine::onnxruntime::session::Session;
use crate::error::{Error, Result};
use crate::model::ComponentFile;

/// The image encoder or the image decoder.
pub struct Transform {
    cuda: Cuda,
    bounds: Bounds<()>,
    /// The number of rows it takes, where it fixes it.
    batch: Option<usize>,
}

impl Transform {
    /// Loads it.
    pub fn open(file: &ComponentFile, cuda: &Cuda, provider: &Provider) -> Result<Self> {
        let session = Arc::new(Session::open(file, provider)?);
        Ok(Self {
            cuda: cuda.clone(),
            bounds: Bounds::new(cuda, &session),
            batch: file.batch(),
        })
    }

    /// An error of this component.
    pub fn error(&self, what: impl Into<String>) -> Error {
        self.bounds.session().error(what)
    }

    /// The session.
    pub fn session(&self) -> &Session {
        self.bounds.session()
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
        let (rows, batch) = (shape[0], self.batch.unwrap_or(shape[0]));
        let parts = match rows == batch {
            true => vec![input.clone()],
            false => self.cuda.unstack(input.clone()),
        };
        let mut outputs = Vec::new();
        for (number, given) in parts.chunks(batch.max(1)).enumerate() {
            let shapes = vec![[&[batch], &shape[1..]].concat()];
            let output = [batch, row[0], row[1], row[2]];
            let output = self.bounds.with(number, shapes, &output, |bound, ()| {
                let mut from: Vec<&CudaTensor> = given.iter().collect();
                if rows != batch {
                    // Filled up with the last row.
                    from.resize(batch, &given[given.len() - 1]);
                }
                self.cuda.copy(&from, &bound.inputs()[0], scale, shift)?;
                self.cuda.run(bound.clone())?;
                Ok(bound.output().clone())
            })?;
            match rows == batch {
                true => outputs.push(output),
                false => outputs.extend(self.cuda.unstack(output).into_iter().take(given.len())),
            }
        }
        Ok(outputs)
    }
}
