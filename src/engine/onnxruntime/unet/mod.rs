//! The U-Net: as it is, or split into what runs once per prompt and step list and what runs for every frame.

mod given;
#[cfg(feature = "tensorrt")]
mod live;
pub(in crate::engine) mod parts;
pub(in crate::engine) mod plan;
mod trial;

use std::sync::Arc;

use super::OnnxModel;
use super::fusing::Told;
use super::provider::Providers;
use super::session::{Input, Session, Values};
use crate::device::HostTensor;
use crate::engine::{Denoise, Numbers, Wording};
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

/// What a row is given for a role.
pub(in crate::engine) type Valued<'a> = dyn Fn(Role) -> Result<Numbers> + 'a;

/// The slow part on the device's stream, and the role of each of its inputs.
#[cfg(feature = "cuda")]
pub(in crate::engine) type SlowProgram<'a> = (Arc<dyn crate::engine::cuda::Program>, &'a [Role]);

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

    /// The slow part as a program on the device's compute stream, and the role of each of its inputs; why it only runs beside
    /// that stream, if so. `None` if there is no such part.
    #[cfg(feature = "cuda")]
    pub fn program(&self) -> std::result::Result<Option<SlowProgram<'_>>, String> {
        let Some(slow) = &self.slow else {
            return Ok(None);
        };
        let common = |feed: &&Feed| {
            matches!(feed.source, Source::Computed(_)) && feed.rows == parts::Rows::Common
        };
        if self.feeds.iter().any(|feed| common(&feed)) {
            return Err("rows must have a tensor of it in common".into());
        }
        slow.program().map(Some)
    }

    /// Two made-up rows, to try the slow part with one after the other.
    #[cfg(feature = "cuda")]
    pub fn made_up(&self, folder: &ModelFolder) -> Option<[Box<Valued<'_>>; 2]> {
        let made_up = Arc::new(self.given.smallest(folder)?.apart());
        Some([0, 1].map(|row| {
            let made_up = made_up.clone();
            Box::new(move |role| made_up.value(&self.given, role, row).map(Numbers::from))
                as Box<Valued<'_>>
        }))
    }

    /// What the slow part gives in main memory for a row that is given `value`; nothing where there is no such part.
    pub fn compute(&self, value: &Valued) -> Result<Vec<HostTensor>> {
        let value = |role| value(role).map(Numbers::into_tensor);
        (self.slow.as_ref()).map_or(Ok(Vec::new()), |slow| slow.run(value))
    }

    /// See [`Model::precompute`](crate::engine::Model::precompute). `compute` runs the slow part for a row that is given a
    /// value for each role. `keep` puts tensors where the device wants them: those of one context, each with the number of
    /// the input of the live part that it is for; all of them before the slow part is run again.
    pub fn precompute<V, C: From<Numbers>>(
        &self,
        timesteps: &[u32],
        text: &Wording,
        size: (usize, usize),
        like: Option<&Context<V>>,
        compute: impl Fn(&Valued) -> Result<Vec<C>>,
        keep: impl Fn(Vec<(usize, C)>) -> Result<Vec<V>>,
    ) -> Result<Vec<Context<V>>> {
        let mut contexts: Vec<Context<V>> = Vec::with_capacity(timesteps.len());
        for timestep in timesteps {
            let value = |role| self.given.value(role, *timestep, text, size);
            let mut computed: Vec<_> = compute(&value)?.into_iter().map(Some).collect();
            let like = like.or(contexts.first());
            let (mut shared, mut new) = (Vec::with_capacity(self.feeds.len()), Vec::new());
            for (i, feed) in self.feeds.iter().enumerate() {
                let same = like.filter(|_| !feed.of_timestep);
                shared.push(same.map(|like| like.0[i].clone()));
                if same.is_none() {
                    new.push((
                        i,
                        match feed.source {
                            Source::Given(role) => value(role)?.into(),
                            Source::Computed(output) => (computed.get_mut(output))
                                .and_then(Option::take)
                                .ok_or_else(|| self.given.error("its parts do not fit together"))?,
                        },
                    ));
                }
            }
            let mut kept = keep(new)?.into_iter().map(Arc::new);
            let tensors = shared
                .into_iter()
                .map(|shared| shared.or_else(|| kept.next()));
            let tensors = tensors.collect::<Option<_>>();
            contexts.push(Context(tensors.ok_or_else(|| {
                self.given.error("fewer tensors were kept than it takes")
            })?));
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
