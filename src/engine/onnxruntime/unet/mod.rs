//! The U-Net: as it is, or split into what runs once per prompt and step list and what runs for every frame.

mod given;
#[cfg(feature = "tensorrt")]
mod live;
pub(super) mod parts;
pub(super) mod plan;

use std::sync::Arc;

use super::OnnxModel;
use super::provider::Providers;
use super::session::{Input, Session, Values};
use crate::device::HostTensor;
use crate::engine::{Denoise, Text};
use crate::error::Result;
use crate::model::{ModelFolder, Role};
use given::Given;
use parts::{Parts, Source};

#[cfg(feature = "tensorrt")]
pub use live::{LiveInput, LivePart};
pub use plan::Context;
use plan::{filled, runs, stacked_shape, together};

/// A U-Net, ready to run.
pub(super) struct Unet {
    given: Given,
    pub(super) parts: Parts,
    /// Where in the live part's inputs the latent goes.
    pub(super) sample: usize,
    /// The rows a call must have, where the graph fixes it.
    pub(super) batch: Option<usize>,
}

/// One frame at one step.
struct Unit<'a> {
    sample: &'a [f32],
    context: &'a Context,
}

impl Unet {
    /// Loads the U-Net of `folder`, in two parts if it can be and `split` asks for it.
    pub fn open(folder: &ModelFolder, split: bool, providers: &Providers) -> Result<Self> {
        let given = Given::new(folder);
        let parts = Parts::open(folder, &given, split, providers)?;
        let file = folder.unet();
        let name = file.input(Role::Sample).map(|p| &p.name);
        let mut inputs = parts.live.inputs().iter();
        let sample = inputs.position(|p| Some(&p.name) == name);
        Ok(Self {
            given,
            sample: sample.unwrap_or(0),
            batch: file.batch(),
            parts,
        })
    }

    /// How much is computed ahead, or why nothing is, for people.
    pub fn precomputed(&self) -> &str {
        &self.parts.precomputed
    }

    /// See [`Model::precompute`](crate::engine::Model::precompute). `keep` puts what was computed for an input of the live
    /// part, given by number, where the device wants it.
    pub fn precompute<V>(
        &self,
        timesteps: &[u32],
        text: &Text<HostTensor>,
        size: (usize, usize),
        like: Option<&Context<V>>,
        keep: impl Fn(usize, HostTensor) -> Result<V>,
    ) -> Result<Vec<Context<V>>> {
        let mut contexts: Vec<Context<V>> = Vec::with_capacity(timesteps.len());
        for timestep in timesteps {
            let value = |role| self.given.value(role, *timestep, text, size);
            let mut computed = match &self.parts.slow {
                Some(slow) => slow.run(value)?,
                None => Vec::new(),
            };
            let like = like.or(contexts.first());
            let tensors = self.parts.feeds.iter().enumerate().map(|(i, feed)| {
                let tensor = match (like, feed.source) {
                    (Some(like), _) if !feed.of_timestep => return Ok(like.0[i].clone()),
                    (_, Source::Given(role)) => value(role)?,
                    (_, Source::Computed(output)) => {
                        std::mem::replace(&mut computed[output], HostTensor::new(&[0], Vec::new()))
                    }
                };
                Ok(Arc::new(keep(i, tensor)?))
            });
            let context = Context(tensors.collect::<Result<_>>()?);
            contexts.push(context);
        }
        Ok(contexts)
    }

    /// An error unless these are the shapes of samples, and the numbers of tensors of contexts, that can be in one call.
    pub fn check_rows(&self, rows: &[(&[usize], usize)]) -> Result<()> {
        let fits = |(shape, tensors): &(&[usize], usize)| {
            matches!(shape, [f, rest @ ..] if *f > 0 && rest == &rows[0].0[1..])
                && *tensors == self.parts.feeds.len()
        };
        if rows.first().is_none_or(|(shape, _)| shape.len() == 4) && rows.iter().all(fits) {
            return Ok(());
        }
        Err(self.parts.live.error(
            "was given rows of different shapes, or not [frames, C, h, w] with a context of its own",
        ))
    }

    /// An error for rows that cannot be put together.
    pub fn mismatch(&self) -> crate::error::Error {
        let live = &self.parts.live;
        live.error("was given texts of different lengths")
    }

    /// See [`Model::denoise`](crate::engine::Model::denoise).
    pub fn denoise(&self, rows: &[Denoise<'_, OnnxModel>]) -> Result<Vec<HostTensor>> {
        let shapes = rows.iter().map(|r| (r.sample.shape(), r.context.0.len()));
        self.check_rows(&shapes.collect::<Vec<_>>())?;
        let Some(first) = rows.first() else {
            return Ok(Vec::new());
        };
        let sample = first.sample.shape();
        let size: usize = sample[1..].iter().product();
        // One entry per frame of every row.
        let units: Vec<Unit> = rows
            .iter()
            .flat_map(|row| {
                row.sample.data().chunks(size).map(|sample| Unit {
                    sample,
                    context: row.context,
                })
            })
            .collect();
        let contexts: Vec<_> = units.iter().map(|unit| unit.context).collect();
        let mut outputs = vec![Vec::new(); units.len()];
        for run in runs(&contexts, &self.parts.feeds, self.batch) {
            let output = self.run(&units, &run, &sample[1..])?;
            for (i, data) in run.iter().zip(output.data().chunks(size)) {
                outputs[*i] = data.to_vec();
            }
        }
        let mut outputs = outputs.into_iter();
        Ok(rows
            .iter()
            .map(|row| {
                let data = outputs.by_ref().take(row.sample.shape()[0]).flatten();
                HostTensor::new(row.sample.shape(), data.collect())
            })
            .collect())
    }

    /// One run over the units that `run` names.
    fn run(&self, units: &[Unit], run: &[usize], sample: &[usize]) -> Result<HostTensor> {
        let chosen: Vec<&Unit> = filled(run, self.batch).map(|i| &units[i]).collect();
        let samples: Vec<f32> = chosen.iter().flat_map(|u| u.sample).copied().collect();
        let sample_shape = [&[chosen.len()], sample].concat();
        let others = self
            .parts
            .feeds
            .iter()
            .enumerate()
            .map(|(i, feed)| {
                let parts: Vec<_> = chosen.iter().map(|u| &u.context.0[i]).collect();
                let parts = together(&feed.rows, &parts).ok_or_else(|| self.mismatch())?;
                Ok(match *parts {
                    [only] => only.clone(),
                    _ => {
                        let data = parts.iter().flat_map(|part| part.data()).copied();
                        let shape = stacked_shape(&parts);
                        Arc::new(HostTensor::new(&shape, data.collect()))
                    }
                })
            })
            .collect::<Result<Vec<_>>>()?;
        let mut inputs: Vec<Input> = (others.iter())
            .map(|t| (t.shape(), Values::Floats(t.data())))
            .collect();
        inputs.insert(self.sample, (&sample_shape, Values::Floats(&samples)));
        let output = self.parts.live.run_one(&inputs)?;
        expect(&self.parts.live, &output, &sample_shape)?;
        Ok(output)
    }
}

/// An error unless `output` has the shape `shape`.
pub(super) fn expect(session: &Session, output: &HostTensor, shape: &[usize]) -> Result<()> {
    if output.shape() == shape {
        Ok(())
    } else {
        Err(session.error(format!(
            "gave a tensor of shape {:?}, expected {shape:?}",
            output.shape()
        )))
    }
}
