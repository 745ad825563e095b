//! The U-Net on a GPU.

use std::sync::Arc;

use super::bounds::Bounds;
use super::{CudaModel, Program, RowRange};
use crate::device::cuda::{Cuda, CudaTensor, Element};
use crate::device::{Device, HostTensor};
use crate::engine::onnxruntime::parts::{Feed, Rows};
use crate::engine::onnxruntime::plan::{Value, filled, runs, stacked_shape, together};
use crate::engine::onnxruntime::{Ahead, Context};
use crate::engine::{Denoise, Text};
use crate::error::Result;

/// A tensor of a context, in the type that the live part of the U-Net takes.
#[derive(Debug)]
pub struct Kept {
    tensor: CudaTensor,
    /// The same in main memory, where rows must have it in common: it has to be compared.
    values: Option<HostTensor>,
}

impl Value for Kept {
    fn shape(&self) -> &[usize] {
        self.tensor.shape()
    }

    fn same(&self, other: &Self) -> bool {
        self.values.is_some() && self.values == other.values
    }
}

/// What an input of a run was put together from. Kept alive, so that another tensor is never taken for it.
type Filled = Vec<Vec<Arc<Kept>>>;

/// A U-Net, ready to run.
pub struct CudaUnet {
    cuda: Cuda,
    ahead: Ahead,
    bounds: Bounds<Filled>,
    /// Where in the program's inputs the latent goes.
    sample: usize,
    rows: RowRange,
}

impl CudaUnet {
    /// Run by `program`, which takes `rows` at once and the latent as its input number `sample`; its other inputs are
    /// fed as `ahead` says, in its order.
    pub fn new(
        program: &Arc<dyn Program>,
        ahead: Ahead,
        sample: usize,
        cuda: &Cuda,
        rows: RowRange,
    ) -> Self {
        Self {
            cuda: cuda.clone(),
            bounds: Bounds::new(cuda, program),
            ahead,
            sample,
            rows,
        }
    }

    /// How much is computed ahead, or why nothing is, for people.
    pub fn precomputed(&self) -> &str {
        &self.ahead.precomputed
    }

    /// See [`Model::precompute`](crate::engine::Model::precompute).
    pub fn precompute(
        &self,
        timesteps: &[u32],
        text: &Text<HostTensor>,
        size: (usize, usize),
        like: Option<&Context<Kept>>,
    ) -> Result<Vec<Context<Kept>>> {
        let mut elements = self.bounds.program().elements()?;
        elements.remove(self.sample);
        let feeds = &self.ahead.feeds;
        (self.ahead).precompute(timesteps, text, size, like, |i, values| {
            let tensor = self
                .cuda
                .upload_as(values.shape(), values.data(), elements[i])?;
            let common = feeds[i].rows == Rows::Common;
            Ok(Kept {
                tensor,
                values: common.then_some(values),
            })
        })
    }

    /// See [`Model::denoise`](crate::engine::Model::denoise).
    pub fn denoise(&self, rows: &[Denoise<'_, CudaModel>]) -> Result<Vec<CudaTensor>> {
        let shapes = rows.iter().map(|r| (r.sample.shape(), r.context.0.len()));
        self.ahead.check_rows(&shapes.collect::<Vec<_>>())?;
        let Some(first) = rows.first() else {
            return Ok(Vec::new());
        };
        let sample = &first.sample.shape()[1..];
        // One entry per frame of every row.
        let (mut frames, mut contexts) = (Vec::new(), Vec::new());
        for row in rows {
            let unstacked = self.cuda.unstack(row.sample.clone());
            contexts.resize(contexts.len() + unstacked.len(), row.context);
            frames.extend(unstacked);
        }
        let mut outputs: Vec<Option<CudaTensor>> = vec![None; frames.len()];
        let runs = runs(&contexts, &self.ahead.feeds, Some(self.rows.most));
        for (number, run) in runs.iter().enumerate() {
            let batch = self.rows.filled(run.len());
            let chosen: Vec<usize> = filled(run, Some(batch)).collect();
            let frames: Vec<_> = chosen.iter().map(|i| &frames[*i]).collect();
            let contexts: Vec<_> = chosen.iter().map(|i| contexts[*i]).collect();
            let output = self.run(number, &frames, &contexts, sample)?;
            for (i, output) in run.iter().zip(self.cuda.unstack(output)) {
                outputs[*i] = Some(output);
            }
        }
        // The next call writes where this one's runs wrote, so what they gave is taken from there.
        let parts: Vec<&CudaTensor> = outputs.iter().flatten().collect();
        let shape = [&[parts.len()], sample].concat();
        let all = self.cuda.empty(&shape, Element::F16)?;
        self.cuda.copy(&parts, &all, 1.0, 0.0)?;
        if rows.len() == 1 {
            return Ok(vec![all]);
        }
        let mut outputs = self.cuda.unstack(all).into_iter();
        rows.iter()
            .map(|row| {
                let frames = outputs.by_ref().take(row.sample.shape()[0]);
                self.cuda.stack(frames.collect())
            })
            .collect()
    }

    /// Records one run over `frames`, each with a context of its own; gives the run's own output, in the order of `frames`.
    fn run(
        &self,
        number: usize,
        frames: &[&CudaTensor],
        contexts: &[&Context<Kept>],
        sample: &[usize],
    ) -> Result<CudaTensor> {
        let feed = |(i, feed): (usize, &Feed)| {
            let parts: Vec<_> = contexts.iter().map(|context| &context.0[i]).collect();
            let parts = together(&feed.rows, &parts).ok_or_else(|| self.ahead.mismatch())?;
            Ok(parts.into_iter().cloned().collect())
        };
        let feeds = self.ahead.feeds.iter().enumerate();
        let parts: Filled = feeds.map(feed).collect::<Result<_>>()?;
        let shape = [&[frames.len()], sample].concat();
        let mut shapes: Vec<_> = (parts.iter())
            .map(|parts| stacked_shape(&parts.iter().collect::<Vec<_>>()))
            .collect();
        shapes.insert(self.sample, shape.clone());
        self.bounds.with(number, shapes, &shape, |bound, filled| {
            let mut inputs: Vec<_> = bound.inputs().iter().collect();
            let latents = inputs.remove(self.sample);
            // Contexts stay as long as prompts and steps do: what is in place already is not copied again.
            filled.resize(parts.len(), Vec::new());
            for ((parts, filled), to) in parts.into_iter().zip(filled).zip(inputs) {
                let same = |(a, b): (&Arc<Kept>, &Arc<Kept>)| Arc::ptr_eq(a, b);
                if parts.len() != filled.len() || !parts.iter().zip(&*filled).all(same) {
                    let from: Vec<_> = parts.iter().map(|part| &part.tensor).collect();
                    self.cuda.copy(&from, to, 1.0, 0.0)?;
                    *filled = parts;
                }
            }
            self.cuda.copy(frames, latents, 1.0, 0.0)?;
            self.cuda.run(bound.clone())?;
            Ok(bound.output().clone())
        })
    }
}

impl Context<Kept> {
    /// The device memory that it keeps, part of which it may share with others of the same text.
    pub fn bytes(&self) -> usize {
        self.0.iter().map(|kept| kept.tensor.bytes()).sum()
    }
}
