//! The U-Net on a GPU.

use std::sync::Arc;

use super::bounds::Bounds;
use super::contexts::{Contexts, Kept};
use super::{CudaModel, Program, RowRange};
use crate::device::Device;
use crate::device::cuda::{Cuda, CudaTensor, Element};
use crate::engine::Denoise;
use crate::engine::onnxruntime::parts::Feed;
use crate::engine::onnxruntime::plan::{filled, runs, stacked_shape, together};
use crate::engine::onnxruntime::{Ahead, Context};
use crate::error::Result;
use crate::model::ModelFolder;

/// What an input of a run was put together from. Kept alive, so that another tensor is never taken for it.
type Filled = Vec<Vec<Arc<Kept>>>;

/// A U-Net, ready to run.
pub struct CudaUnet {
    cuda: Cuda,
    contexts: Contexts,
    bounds: Bounds<Filled>,
    /// Where in the program's inputs the latent goes.
    sample: usize,
    rows: RowRange,
}

impl CudaUnet {
    /// That of `folder`, run by `program`, which takes `rows` at once and the latent as its input number `sample`; its other
    /// inputs are fed as `ahead` says, in its order.
    pub fn new(
        folder: &ModelFolder,
        program: &Arc<dyn Program>,
        ahead: Ahead,
        sample: usize,
        cuda: &Cuda,
        rows: RowRange,
    ) -> Result<Self> {
        let mut elements = program.elements()?;
        elements.remove(sample);
        Ok(Self {
            cuda: cuda.clone(),
            bounds: Bounds::new(cuda, program),
            contexts: Contexts::new(folder, cuda, ahead, elements),
            sample,
            rows,
        })
    }

    /// What its rows are given beside latents.
    pub fn contexts(&self) -> &Contexts {
        &self.contexts
    }

    /// See [`Model::denoise`](crate::engine::Model::denoise).
    pub fn denoise(&self, rows: &[Denoise<'_, CudaModel>]) -> Result<Vec<CudaTensor>> {
        let shapes = rows.iter().map(|r| (r.sample.shape(), r.context.0.len()));
        self.contexts
            .ahead
            .check_rows(&shapes.collect::<Vec<_>>())?;
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
        let runs = runs(&contexts, &self.contexts.ahead.feeds, Some(self.rows.most));
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
            let parts =
                together(&feed.rows, &parts).ok_or_else(|| self.contexts.ahead.mismatch())?;
            Ok(parts.into_iter().cloned().collect())
        };
        let feeds = self.contexts.ahead.feeds.iter().enumerate();
        let parts: Filled = feeds.map(feed).collect::<Result<_>>()?;
        let shape = [&[frames.len()], sample].concat();
        let mut shapes: Vec<_> = (parts.iter())
            .map(|parts| stacked_shape(&parts.iter().collect::<Vec<_>>()))
            .collect();
        shapes.insert(self.sample, shape.clone());
        self.bounds.with(number, shapes, &[shape], |bound, filled| {
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
            Ok(bound.outputs()[0].clone())
        })
    }
}
