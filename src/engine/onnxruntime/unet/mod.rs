//! The U-Net: as it is, or split into what runs once per prompt and step list and what runs for every frame.

mod given;
#[cfg(feature = "tensorrt")]
mod live;
pub(in crate::engine) mod parts;
pub(in crate::engine) mod plan;

use std::sync::Arc;

use super::OnnxModel;
use super::fusing::Told;
use super::provider::Providers;
use super::session::{Input, Session, Values};
use crate::device::HostTensor;
use crate::engine::{Denoise, Text};
use crate::error::Result;
use crate::model::{ModelFolder, Role};
use given::Given;
use parts::{Feed, Parts, Slow, Source};

#[cfg(feature = "tensorrt")]
pub use live::{LiveInput, LivePart};
pub use plan::Context;
use plan::{filled, runs, stacked_shape, together};

/// What a U-Net's rows are given besides latents, whatever runs its live part.
pub(in crate::engine) struct Ahead {
    given: Given,
    slow: Option<Slow>,
    /// How the live part's inputs but the latent are fed, in their order.
    pub feeds: Vec<Feed>,
    /// How much is computed ahead, or why nothing is, for people.
    pub precomputed: String,
}

/// A U-Net, ready to run.
pub(super) struct Unet {
    pub(super) ahead: Ahead,
    /// What is run for every frame.
    pub(super) live: Arc<Session>,
    /// Where in the live part's inputs the latent goes.
    pub(super) sample: usize,
    /// The rows a call must have, where the graph fixes it.
    pub(super) batch: Option<usize>,
    /// What was made faster in its graph.
    pub(super) told: Told,
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
        let Parts {
            precomputed,
            slow,
            live,
            feeds,
            told,
        } = Parts::open(folder, &given, split, providers)?;
        let file = folder.unet();
        let name = file.input(Role::Sample).map(|p| &p.name);
        let sample = live.inputs().iter().position(|p| Some(&p.name) == name);
        Ok(Self {
            sample: sample.unwrap_or(0),
            batch: file.batch(),
            live,
            told,
            ahead: Ahead {
                given,
                slow,
                feeds,
                precomputed,
            },
        })
    }

    /// See [`Model::denoise`](crate::engine::Model::denoise).
    pub fn denoise(&self, rows: &[Denoise<'_, OnnxModel>]) -> Result<Vec<HostTensor>> {
        let shapes = rows.iter().map(|r| (r.sample.shape(), r.context.0.len()));
        self.ahead.check_rows(&shapes.collect::<Vec<_>>())?;
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
        for run in runs(&contexts, &self.ahead.feeds, self.batch) {
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
            .ahead
            .feeds
            .iter()
            .enumerate()
            .map(|(i, feed)| {
                let parts: Vec<_> = chosen.iter().map(|u| &u.context.0[i]).collect();
                let parts = together(&feed.rows, &parts).ok_or_else(|| self.ahead.mismatch())?;
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
        let output = self.live.run_one(&inputs)?;
        expect(&self.live, &output, &sample_shape)?;
        Ok(output)
    }
}

impl Ahead {
    /// What rows of the U-Net of `folder` are given where another engine runs it, or its live part if `live`; what that
    /// takes, by name, in the order of the feeds with the latent among them; and which of them that is. There, all that can
    /// be stacked is: an engine knows one number of rows for all its inputs.
    #[cfg(all(feature = "cuda", feature = "tensorrt"))]
    pub(super) fn open(
        folder: &ModelFolder,
        live: bool,
        provider: &super::provider::Provider,
    ) -> Result<(Self, Vec<String>, usize)> {
        let given = Given::new(folder);
        let file = folder.unet();
        let name = file.input(Role::Sample).map_or("", |port| &port.name);
        if !live {
            let names = file.inputs.iter().map(|(_, port)| port.name.clone());
            let names: Vec<_> = names.collect();
            let sample = names.iter().position(|input| input == name).unwrap_or(0);
            let others = file.inputs.iter().filter(|(role, _)| *role != Role::Sample);
            let ahead = Self {
                feeds: others
                    .map(|(role, port)| Feed::given(*role, port))
                    .collect(),
                precomputed: "nothing: the engine is of the whole U-Net".into(),
                slow: None,
                given,
            };
            return Ok((ahead, names, sample));
        }
        let cut = parts::Cut::open(folder, &given, None, provider).map_err(|why| {
            given.error(&format!(
                "its engine leaves out what is computed ahead, and that cannot be done here: {why}"
            ))
        })?;
        let precomputed = cut.told();
        let names = cut.split.boundary().iter().map(|b| b.name.clone());
        let names = [name.to_owned()].into_iter().chain(names).collect();
        let mut feeds = cut.feeds;
        for feed in &mut feeds {
            if let parts::Rows::Broadcast(_) = feed.rows {
                feed.rows = parts::Rows::Stacked;
            }
        }
        let ahead = Self {
            slow: Some(cut.slow),
            feeds,
            precomputed,
            given,
        };
        Ok((ahead, names, 0))
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
            let mut computed = match &self.slow {
                Some(slow) => slow.run(value)?,
                None => Vec::new(),
            };
            let like = like.or(contexts.first());
            let tensors = self.feeds.iter().enumerate().map(|(i, feed)| {
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
                && *tensors == self.feeds.len()
        };
        if rows.first().is_none_or(|(shape, _)| shape.len() == 4) && rows.iter().all(fits) {
            return Ok(());
        }
        Err(self.given.error(
            "was given rows of different shapes, or not [frames, C, h, w] with a context of its own",
        ))
    }

    /// An error for rows that cannot be put together.
    pub fn mismatch(&self) -> crate::error::Error {
        self.given.error("was given texts of different lengths")
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
