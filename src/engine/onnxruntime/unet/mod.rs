//! The U-Net: as it is, or split into what runs once per prompt and step list and what runs for every frame.

mod given;
mod parts;

use std::sync::Arc;

use super::OnnxModel;
use super::session::{Input, Session, Values};
use crate::device::HostTensor;
use crate::engine::{Denoise, Text};
use crate::error::Result;
use crate::model::{ModelFolder, Role};
use given::Given;
use parts::{Parts, Rows, Source};

/// What the live part of the U-Net takes beside the latent, for one row: keys, values and time embeddings, or timestep
/// and text themselves if nothing is computed ahead. In the order of its inputs.
#[derive(Debug, Clone)]
pub struct Context(Vec<Arc<HostTensor>>);

impl Context {
    /// The memory that it keeps, part of which it may share with others of the same text.
    pub fn bytes(&self) -> usize {
        let values: usize = self.0.iter().map(|tensor| tensor.data().len()).sum();
        values * size_of::<f32>()
    }
}

/// A U-Net, ready to run.
pub(super) struct Unet {
    given: Given,
    parts: Parts,
    /// Where in the live part's inputs the latent goes.
    sample: usize,
    /// The rows a call must have, where the graph fixes it.
    batch: Option<usize>,
}

/// One frame at one step.
struct Unit<'a> {
    sample: &'a [f32],
    context: &'a Context,
}

impl Unet {
    /// Loads the U-Net of `folder`, in two parts if it can be and `split` asks for it.
    pub fn open(folder: &ModelFolder, split: bool) -> Result<Self> {
        let given = Given::new(folder);
        let parts = Parts::open(folder, &given, split)?;
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

    /// See [`Model::precompute`](crate::engine::Model::precompute).
    pub fn precompute(
        &self,
        timesteps: &[u32],
        text: &Text<HostTensor>,
        size: (usize, usize),
        like: Option<&Context>,
    ) -> Result<Vec<Context>> {
        let mut contexts: Vec<Context> = Vec::with_capacity(timesteps.len());
        for timestep in timesteps {
            let value = |role| self.given.value(role, *timestep, text, size);
            let mut computed = match &self.parts.slow {
                Some(slow) => slow.run(value)?,
                None => Vec::new(),
            };
            let like = like.or(contexts.first());
            let tensors = self.parts.feeds.iter().enumerate().map(|(i, feed)| {
                Ok(match (like, feed.source) {
                    (Some(like), _) if !feed.of_timestep => like.0[i].clone(),
                    (_, Source::Given(role)) => Arc::new(value(role)?),
                    (_, Source::Computed(output)) => Arc::new(std::mem::replace(
                        &mut computed[output],
                        HostTensor::new(&[0], Vec::new()),
                    )),
                })
            });
            let context = Context(tensors.collect::<Result<_>>()?);
            contexts.push(context);
        }
        Ok(contexts)
    }

    /// See [`Model::denoise`](crate::engine::Model::denoise).
    pub fn denoise(&self, rows: &[Denoise<'_, OnnxModel>]) -> Result<Vec<HostTensor>> {
        let Some(first) = rows.first() else {
            return Ok(Vec::new());
        };
        let sample = first.sample.shape();
        let fits = |r: &Denoise<OnnxModel>| {
            matches!(r.sample.shape(), [f, rest @ ..] if *f > 0 && rest == &sample[1..])
                && r.context.0.len() == self.parts.feeds.len()
        };
        if sample.len() != 4 || !rows.iter().all(fits) {
            return Err(self.parts.live.error(
                "was given rows of different shapes, or not [frames, C, h, w] with a context of its own",
            ));
        }
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
        let mut outputs = vec![Vec::new(); units.len()];
        for group in self.groups(&units) {
            for batch in group.chunks(self.batch.unwrap_or(group.len())) {
                let output = self.call(&units, batch, &sample[1..])?;
                for (i, data) in batch.iter().zip(output.data().chunks(size)) {
                    outputs[*i] = data.to_vec();
                }
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

    /// The units, by which can be in one call.
    fn groups(&self, units: &[Unit]) -> Vec<Vec<usize>> {
        let agree = |a: &Unit, b: &Unit| {
            let pairs = a.context.0.iter().zip(&b.context.0);
            self.parts.feeds.iter().zip(pairs).all(|(feed, (a, b))| {
                feed.rows != Rows::Common || Arc::ptr_eq(a, b) || a.data() == b.data()
            })
        };
        let mut groups: Vec<Vec<usize>> = Vec::new();
        for (i, unit) in units.iter().enumerate() {
            match groups.iter_mut().find(|g| agree(&units[g[0]], unit)) {
                Some(group) => group.push(i),
                None => groups.push(vec![i]),
            }
        }
        groups
    }

    /// One run over the units that `batch` names, filled up to the batch the graph fixes.
    fn call(&self, units: &[Unit], batch: &[usize], sample: &[usize]) -> Result<HostTensor> {
        let rows = self.batch.unwrap_or(batch.len());
        let filler = batch.last().into_iter().cycle();
        let chosen: Vec<&Unit> = (batch.iter().chain(filler).take(rows))
            .map(|i| &units[*i])
            .collect();
        let samples: Vec<f32> = chosen.iter().flat_map(|u| u.sample).copied().collect();
        let sample_shape = [&[rows], sample].concat();
        let others = self
            .parts
            .feeds
            .iter()
            .enumerate()
            .map(|(i, feed)| {
                let parts: Vec<_> = chosen.iter().map(|u| &u.context.0[i]).collect();
                self.put_together(&feed.rows, &parts)
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

    /// One input of a call from what each of its rows has for it.
    fn put_together(&self, rows: &Rows, parts: &[&Arc<HostTensor>]) -> Result<Arc<HostTensor>> {
        let first = parts[0];
        let shared = || parts.iter().all(|part| Arc::ptr_eq(part, first));
        let once = match rows {
            Rows::Stacked => parts.len() == 1,
            Rows::Broadcast(tensor) => {
                parts.len() == 1 || (tensor.does_for_all(first.shape()) && shared())
            }
            Rows::Common => true,
        };
        if once {
            return Ok(first.clone());
        }
        let mut shape = first.shape().to_vec();
        if shape.is_empty() || !parts.iter().all(|part| part.shape() == shape) {
            return Err(self
                .parts
                .live
                .error("was given texts of different lengths"));
        }
        shape[0] *= parts.len();
        let mut data = Vec::with_capacity(shape.iter().product());
        for part in parts {
            data.extend_from_slice(part.data());
        }
        Ok(Arc::new(HostTensor::new(&shape, data)))
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
