//! The U-Net: as it is, or split into what runs once per prompt and step list and what runs for every frame.

use std::sync::Arc;

use super::session::{Input, Session, Values};
use crate::device::HostTensor;
use crate::engine::{Context, Denoise, Text};
use crate::error::{Error, Result};
use crate::model::{Boundary, ComponentFile, ModelFolder, Port, Role, SIZE_IDS, Split, TensorType};

/// What a guidance-distilled U-Net is told its guidance scale is, where the manifest does not say: diffusers' default
/// for latent consistency models.
const GUIDANCE_EMBEDDING: f64 = 8.5;

/// A U-Net, ready to run.
pub(super) struct Unet {
    file: ComponentFile,
    /// How much is computed ahead, for people.
    precomputed: String,
    /// What is run once per timestep, text and size, where there is such a part.
    slow: Option<Slow>,
    /// What is run for every frame.
    live: Session,
    /// Where in `live`'s inputs the latent goes.
    sample: usize,
    /// How `live`'s other inputs are fed, in their order.
    feeds: Vec<Feed>,
    latent_scale: usize,
    guidance_embedding: f64,
}

/// The part of a U-Net that does not depend on the latent.
struct Slow {
    session: Session,
    /// The role of each of its inputs.
    roles: Vec<Role>,
}

/// Where an input of the live part gets its values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    /// It is an input of the whole U-Net.
    Given(Role),
    /// It is an output of the slow part.
    Computed(usize),
}

/// An input of the live part, other than the latent.
#[derive(Debug)]
struct Feed {
    source: Source,
    /// Whether it differs between timesteps.
    of_timestep: bool,
    rows: Rows,
}

/// How the rows of a call are put together in one tensor.
#[derive(Debug, PartialEq, Eq)]
enum Rows {
    /// One below the other.
    Stacked,
    /// One below the other, or once for all rows where they have it in common.
    Broadcast(Boundary),
    /// Once: only rows that agree on it can be in one call.
    Common,
}

/// One frame at one step.
struct Unit<'a> {
    sample: &'a [f32],
    context: &'a Context<HostTensor>,
}

impl Unet {
    /// Loads the U-Net of `folder`, in two parts if it can be and `split` asks for it.
    pub fn open(folder: &ModelFolder, split: bool) -> Result<Self> {
        let file = folder.unet().clone();
        let parts = match split {
            true => in_parts(&file),
            false => Err("as asked".into()),
        };
        let (precomputed, slow, live, feeds) = match parts {
            Ok(parts) => parts,
            // Whatever is wrong with it as a whole comes out here.
            Err(why) => (
                format!("nothing: {why}"),
                None,
                Session::open(&file)?,
                whole(&file),
            ),
        };
        let name = file.input(Role::Sample).map(|p| &p.name);
        let sample = live.inputs().iter().position(|p| Some(&p.name) == name);
        Ok(Self {
            sample: sample.unwrap_or(0),
            precomputed,
            slow,
            live,
            feeds,
            latent_scale: folder.latent_scale(),
            guidance_embedding: (folder.manifest().unet.guidance_embedding)
                .unwrap_or(GUIDANCE_EMBEDDING),
            file,
        })
    }

    /// How much is computed ahead, or why nothing is, for people.
    pub fn precomputed(&self) -> &str {
        &self.precomputed
    }

    /// See [`Model::precompute`](crate::engine::Model::precompute).
    pub fn precompute(
        &self,
        timesteps: &[u32],
        text: &Text<HostTensor>,
        size: (usize, usize),
    ) -> Result<Vec<Context<HostTensor>>> {
        let mut contexts: Vec<Context<HostTensor>> = Vec::with_capacity(timesteps.len());
        for timestep in timesteps {
            let value = |role| self.value(role, *timestep, text, size);
            let mut computed = match &self.slow {
                Some(slow) => slow.run(self.file.batch().unwrap_or(1), value)?,
                None => Vec::new(),
            };
            let first = contexts.first();
            let tensors = self.feeds.iter().enumerate().map(|(i, feed)| {
                Ok(match (first, feed.source) {
                    (Some(first), _) if !feed.of_timestep => first.tensors[i].clone(),
                    (_, Source::Given(role)) => Arc::new(value(role)?),
                    (_, Source::Computed(output)) => Arc::new(std::mem::replace(
                        &mut computed[output],
                        HostTensor::new(&[0], Vec::new()),
                    )),
                })
            });
            let tensors = tensors.collect::<Result<_>>()?;
            contexts.push(Context { tensors });
        }
        Ok(contexts)
    }

    /// What one row of the graph is given for `role`.
    fn value(
        &self,
        role: Role,
        timestep: u32,
        text: &Text<HostTensor>,
        (height, width): (usize, usize),
    ) -> Result<HostTensor> {
        let port = self.file.input(role);
        Ok(match role {
            Role::Text => text.embedding.clone(),
            Role::Pooled => text.pooled.clone().ok_or_else(|| {
                self.live.error("wants a pooled text embedding, and the text has none")
            })?,
            Role::Timestep => {
                let rank = port.map_or(1, |p| p.rank());
                HostTensor::new(&vec![1; rank], vec![timestep as f32])
            }
            Role::SizeIds => {
                let (height, width) = (height * self.latent_scale, width * self.latent_scale);
                let (h, w) = (height as f32, width as f32);
                // Original size, no crop, target size: as diffusers fills them in.
                HostTensor::new(&[1, SIZE_IDS], vec![h, w, 0.0, 0.0, h, w])
            }
            Role::GuidanceEmbedding => {
                let width = port.and_then(|p| p.fixed(1));
                let width = width.or(self.file.config.time_cond_proj_dim).ok_or_else(|| {
                    self.live.error(
                        "wants a guidance embedding of unknown width; expected time_cond_proj_dim in its config.json",
                    )
                })?;
                let values = guidance_embedding(self.guidance_embedding, width);
                HostTensor::new(&[1, width], values)
            }
            // For its shape only.
            _ => {
                let channels = port.and_then(|p| p.fixed(1)).unwrap_or(1);
                HostTensor::new(
                    &[1, channels, height, width],
                    vec![0.0; channels * height * width],
                )
            }
        })
    }

    /// See [`Model::denoise`](crate::engine::Model::denoise).
    pub fn denoise(&self, rows: &[Denoise<'_, HostTensor>]) -> Result<Vec<HostTensor>> {
        let Some(first) = rows.first() else {
            return Ok(Vec::new());
        };
        let sample = first.sample.shape();
        let fits = |r: &Denoise<HostTensor>| {
            matches!(r.sample.shape(), [f, rest @ ..] if *f > 0 && rest == &sample[1..])
                && r.context.tensors.len() == self.feeds.len()
        };
        if sample.len() != 4 || !rows.iter().all(fits) {
            return Err(self.live.error(
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
            for batch in group.chunks(self.file.batch().unwrap_or(group.len())) {
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
            let pairs = a.context.tensors.iter().zip(&b.context.tensors);
            self.feeds
                .iter()
                .zip(pairs)
                .all(|(feed, (a, b))| feed.rows != Rows::Common || a.data() == b.data())
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
        let rows = self.file.batch().unwrap_or(batch.len());
        let filler = batch.last().into_iter().cycle();
        let chosen: Vec<&Unit> = (batch.iter().chain(filler).take(rows))
            .map(|i| &units[*i])
            .collect();
        let samples: Vec<f32> = chosen.iter().flat_map(|u| u.sample).copied().collect();
        let sample_shape = [&[rows], sample].concat();
        let others = self
            .feeds
            .iter()
            .enumerate()
            .map(|(i, feed)| {
                let parts: Vec<_> = chosen.iter().map(|u| &u.context.tensors[i]).collect();
                self.put_together(&feed.rows, &parts)
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
            return Err(self.live.error("was given texts of different lengths"));
        }
        shape[0] *= parts.len();
        let mut data = Vec::with_capacity(shape.iter().product());
        for part in parts {
            data.extend_from_slice(part.data());
        }
        Ok(Arc::new(HostTensor::new(&shape, data)))
    }
}

/// The feeds of a U-Net that runs as it is.
fn whole(file: &ComponentFile) -> Vec<Feed> {
    let others = file.inputs.iter().filter(|(role, _)| *role != Role::Sample);
    others.map(|(role, port)| given(*role, port)).collect()
}

/// The feed of an input that the whole U-Net has too.
fn given(role: Role, port: &Port) -> Feed {
    let one_for_all = port.rank() == 0 || port.fixed(0) == Some(1);
    Feed {
        source: Source::Given(role),
        of_timestep: role == Role::Timestep,
        rows: match role {
            Role::Timestep if one_for_all => Rows::Common,
            _ => Rows::Stacked,
        },
    }
}

/// A U-Net in two parts: how much is computed ahead, what does it, the live part, and its feeds.
type Parts = (String, Option<Slow>, Session, Vec<Feed>);

/// The two parts of a U-Net; an error says why there are none.
fn in_parts(file: &ComponentFile) -> std::result::Result<Parts, String> {
    let said = |e: Error| e.to_string();
    let role = |name: &str| {
        let mut inputs = file.inputs.iter();
        inputs.find(|(_, port)| port.name == name)
    };
    let name = |role| file.input(role).map_or("", |port| &port.name);
    let (sample, timestep) = (name(Role::Sample), name(Role::Timestep));
    let split = Split::open(&file.path, sample, &file.output.name).map_err(said)?;
    let split = split.ok_or("all that costs time depends on the latent")?;
    if !file.graph.external_files.is_empty() && !Session::finds_external_data().map_err(said)? {
        return Err("ONNX Runtime before 1.21 cannot read parts of a graph with external data".into());
    }
    let inputs: Vec<&str> = split.slow_inputs().collect();
    let computed = split.boundary().iter().filter(|b| !b.is_input);
    let outputs: Vec<&str> = computed.map(|b| b.name.as_str()).collect();
    let slow = split.slow().map_err(said)?;
    let slow = Session::from_memory(file, &slow, &inputs, &outputs).map_err(said)?;
    let types: Vec<TensorType> = slow.outputs().iter().map(tensor_type).collect();

    let others = split.boundary().iter().map(|b| b.name.as_str());
    let inputs: Vec<&str> = [sample].into_iter().chain(others).collect();
    let output = [file.output.name.as_str()];
    let live = split.fast(&types).map_err(said)?;
    let live = Session::from_memory(file, &live, &inputs, &output).map_err(said)?;

    let mut feeds = Vec::new();
    for boundary in split.boundary() {
        let position = outputs.iter().position(|name| *name == boundary.name);
        feeds.push(match (role(&boundary.name), position) {
            (Some((role, port)), _) => given(*role, port),
            (None, Some(output)) => Feed {
                source: Source::Computed(output),
                of_timestep: boundary.from.iter().any(|name| name == timestep),
                rows: match slow.outputs()[output].rank() {
                    0 => Rows::Common,
                    _ if boundary.broadcasts => Rows::Broadcast(boundary.clone()),
                    _ => Rows::Stacked,
                },
            },
            (None, None) => return Err(format!("{} comes from nowhere", boundary.name)),
        });
    }
    let [all, ahead, _] = split.node_counts();
    let kept = split.boundary().len();
    let slow = Slow {
        roles: roles_of(&slow, file),
        session: slow,
    };
    Ok((
        format!("{ahead} of {all} nodes, {kept} tensors kept"),
        Some(slow),
        live,
        feeds,
    ))
}

impl Slow {
    /// Its outputs for one row, of `rows` equal ones; `value` tells what a row is given for a role.
    fn run(
        &self,
        rows: usize,
        value: impl Fn(Role) -> Result<HostTensor>,
    ) -> Result<Vec<HostTensor>> {
        let given = self.roles.iter().zip(self.session.inputs());
        let given: Vec<HostTensor> = given
            .map(|(role, port)| {
                let tensor = value(*role)?;
                let mut shape = tensor.shape().to_vec();
                // A timestep that all rows share stays one.
                if shape.is_empty() || port.fixed(0) == Some(shape[0]) {
                    return Ok(tensor);
                }
                shape[0] *= rows;
                Ok(HostTensor::new(&shape, tensor.data().repeat(rows)))
            })
            .collect::<Result<_>>()?;
        let inputs: Vec<Input> = (given.iter())
            .map(|t| (t.shape(), Values::Floats(t.data())))
            .collect();
        let outputs = self.session.run(&inputs)?.into_iter();
        outputs.map(|output| self.one_of(output, rows)).collect()
    }

    /// The part of `output` that belongs to one of `rows` equal rows.
    fn one_of(&self, output: HostTensor, rows: usize) -> Result<HostTensor> {
        if rows == 1 || output.shape().is_empty() {
            return Ok(output);
        }
        let mut shape = output.shape().to_vec();
        if !shape[0].is_multiple_of(rows) {
            return Err(self.session.error(format!(
                "a tensor of shape {shape:?} in it cannot be told apart by its {rows} rows"
            )));
        }
        shape[0] /= rows;
        let mut data = output.into_data();
        data.truncate(shape.iter().product());
        Ok(HostTensor::new(&shape, data))
    }
}

/// What roles the inputs of a part of `file` have.
fn roles_of(part: &Session, file: &ComponentFile) -> Vec<Role> {
    let role = |port: &Port| {
        let mut inputs = file.inputs.iter();
        inputs.find(|(_, p)| p.name == port.name).map(|(role, _)| *role)
    };
    part.inputs().iter().filter_map(role).collect()
}

/// Name and type of a tensor, as the graph's format has them.
fn tensor_type(port: &Port) -> TensorType {
    let dims = port.dims.iter().map(|d| d.and_then(|d| i64::try_from(d).ok()));
    TensorType {
        name: port.name.clone(),
        elem_type: port.dtype.number(),
        dims: Some(dims.collect()),
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

/// The embedding of the guidance scale `scale` in `width` values: sines, then cosines, of w = 1000·(scale − 1) at
/// frequencies from 1 down to 10⁻⁴ (arXiv 2310.04378 §4.3, as diffusers computes it).
fn guidance_embedding(scale: f64, width: usize) -> Vec<f32> {
    let half = width / 2;
    let w = 1000.0 * (scale - 1.0);
    let falloff = 10_000f64.ln() / half.saturating_sub(1).max(1) as f64;
    let angles = (0..half).map(|i| w * (-falloff * i as f64).exp());
    let sines = angles.clone().map(|a| a.sin() as f32);
    let mut values: Vec<f32> = sines.chain(angles.map(|a| a.cos() as f32)).collect();
    // An odd width ends in a zero.
    values.resize(width, 0.0);
    values
}
