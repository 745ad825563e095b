//! The two parts of a split U-Net, or its one part, and how the live one is fed.

use std::sync::Arc;

use super::given::Given;
use super::trial;
use crate::device::HostTensor;
use crate::engine::onnxruntime::fusing::{self, Attempt, Told};
use crate::engine::onnxruntime::provider::{Provider, Providers};
use crate::engine::onnxruntime::session::{Input, Session, Values};
use crate::error::{Error, Result};
use crate::model::{Boundary, ComponentFile, Fused, ModelFolder, Port, Role, Split, TensorType};

/// How far a row in a batch may be from the same row alone, as a share of the largest value: sums in f16 differ by that.
const TOLERANCE: f32 = 1e-2;

/// The sessions of a U-Net.
pub(super) struct Parts {
    /// How much is computed ahead, or why nothing is, for people.
    pub precomputed: String,
    /// What is run once per timestep, text and size, where there is such a part.
    pub slow: Option<Slow>,
    /// What is run for every frame.
    pub live: Arc<Session>,
    /// How `live`'s inputs but the latent are fed, in their order.
    pub feeds: Vec<Feed>,
    /// What was made faster in its graph.
    pub told: Told,
}

/// A U-Net cut in two, of which the slow part is ready to run.
pub(super) struct Cut {
    /// What gives the live part's graph.
    pub split: Split,
    /// What is run once per timestep, text and size.
    pub slow: Slow,
    /// The types of what the slow part gives.
    pub types: Vec<TensorType>,
    /// How the live part's inputs but the latent are fed, in their order.
    pub feeds: Vec<Feed>,
}

/// The part of a U-Net that does not depend on the latent.
pub struct Slow {
    session: Arc<Session>,
    /// The role of each of its inputs.
    roles: Vec<Role>,
    /// The batch that it takes one row of.
    rows: usize,
}

/// An input of the live part, other than the latent.
#[derive(Debug)]
pub struct Feed {
    /// Where its values come from.
    pub source: Source,
    /// Whether it differs between timesteps.
    pub of_timestep: bool,
    /// How those of several rows go together.
    pub rows: Rows,
}

/// Where an input of the live part gets its values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// It is an input of the whole U-Net.
    Given(Role),
    /// It is an output of the slow part.
    Computed(usize),
}

/// How the rows of a call are put together in one tensor.
#[derive(Debug, PartialEq, Eq)]
pub enum Rows {
    /// One below the other.
    Stacked,
    /// One below the other, or once for all rows where they have it in common.
    Broadcast(Boundary),
    /// Once: only rows that agree on it can be in one call.
    Common,
}

impl Parts {
    /// Loads the U-Net of `folder`, in two parts if it can be and `split` asks for it, and made faster as `providers` ask.
    /// What cannot be had so is had as it was exported.
    pub fn open(
        folder: &ModelFolder,
        given: &Given,
        split: bool,
        providers: &Providers,
    ) -> Result<Self> {
        let file = folder.unet();
        // Why it is in one piece.
        let mut whole = "as asked".to_owned();
        if split {
            let mut why = None;
            for fusions in fusing::attempts(providers.fusions) {
                let fused = fusing::fused(file, fusions);
                match fused.and_then(|fused| Self::split(folder, given, Some(fused), providers)) {
                    Ok(parts) => return Ok(parts.less(file, why)),
                    Err(said) => why = why.or(Some(said)),
                }
            }
            match Self::split(folder, given, None, providers) {
                Ok(parts) => return Ok(parts.less(file, why)),
                Err(said) => whole = said,
            }
        }
        let others = file.inputs.iter().filter(|(role, _)| *role != Role::Sample);
        let feeds: Vec<_> = others
            .map(|(role, port)| Feed::given(*role, port))
            .collect();
        let call = |live: &Session| trial::call(folder, given, live, &feeds, None);
        let (live, told) = fusing::open(file, providers.fusions, &providers.frames, call)?;
        Ok(Self {
            precomputed: format!("nothing: {whole}"),
            slow: None,
            live: Arc::new(live),
            feeds,
            told,
        })
    }

    /// The same, which could not be had as it was wanted if a reason is given.
    fn less(mut self, file: &ComponentFile, why: Option<String>) -> Self {
        self.told = self.told.less(file, why);
        self
    }

    /// The two parts; an error says why there are none.
    fn split(
        folder: &ModelFolder,
        given: &Given,
        fused: Option<Fused>,
        providers: &Providers,
    ) -> Attempt<Self> {
        let file = folder.unet();
        let told = fused.as_ref().map(Told::of);
        let tried = fused.is_some() && providers.frames.tries();
        let cut = Cut::open(folder, given, fused, &providers.contexts)?;
        let name = file.input(Role::Sample).map_or("", |port| &port.name);
        let others = cut.split.boundary().iter().map(|b| b.name.as_str());
        let inputs: Vec<&str> = [name].into_iter().chain(others).collect();
        let (outputs, on) = ([file.output.name.as_str()], &providers.frames);
        let live = (cut.split.fast(&cut.types))
            .and_then(|bytes| Session::from_memory(file, &bytes, &inputs, &outputs, on))
            .map_err(|e| e.to_string())?;
        if tried {
            fusing::try_out(&live, || {
                trial::call(folder, given, &live, &cut.feeds, Some(&cut.slow))
            })?;
        }
        Ok(Self {
            precomputed: cut.told(),
            feeds: cut.feeds,
            slow: Some(cut.slow),
            live: Arc::new(live),
            told: told.unwrap_or_default(),
        })
    }
}

impl Cut {
    /// Cuts the U-Net of `folder`, or that which `fused` is made of it, in two and loads the slow part; an error says why it
    /// cannot be done.
    pub fn open(
        folder: &ModelFolder,
        given: &Given,
        fused: Option<Fused>,
        provider: &Provider,
    ) -> Attempt<Self> {
        let file = folder.unet();
        let said = |e: Error| e.to_string();
        let name = |role| file.input(role).map_or("", |port| &port.name);
        let (live, output) = (name(Role::Sample), &file.output.name);
        let split = match fused {
            Some(fused) => fused.split(live, output),
            None => Split::open(&file.path, live, output),
        };
        let split = split
            .map_err(said)?
            .ok_or("all that costs time depends on the latent")?;
        Session::can_read_parts_of(file)?;
        let inputs: Vec<&str> = split.slow_inputs().collect();
        let computed: Vec<_> = split.boundary().iter().filter(|b| !b.is_input).collect();
        let outputs: Vec<&str> = computed.iter().map(|b| b.name.as_str()).collect();
        // The bytes, which may hold all weights, go before the live part's come.
        let slow = (split.slow())
            .and_then(|bytes| Session::from_memory(file, &bytes, &inputs, &outputs, provider))
            .map_err(said)?;
        let slow = Slow::new(slow, file);
        let (shapes, stacks) = slow.try_out(folder, given)?;

        // Types are the graph's, and so is the number of dimensions; which of them vary is not known.
        let types = slow.session.outputs().iter().zip(&shapes);
        let types: Vec<_> = types
            .map(|(port, shape)| TensorType {
                name: port.name.clone(),
                elem_type: port.dtype.number(),
                dims: Some(vec![None; shape.len()]),
            })
            .collect();
        let feed = |boundary: &Boundary| {
            let mut given = file.inputs.iter();
            if let Some((role, port)) = given.find(|(_, port)| port.name == boundary.name) {
                return Some(Feed::given(*role, port));
            }
            let output = outputs.iter().position(|name| *name == boundary.name)?;
            Some(Feed {
                source: Source::Computed(output),
                of_timestep: (boundary.from.iter()).any(|from| from == name(Role::Timestep)),
                rows: match stacks[output] {
                    false => Rows::Common,
                    true if boundary.broadcasts => Rows::Broadcast(boundary.clone()),
                    true => Rows::Stacked,
                },
            })
        };
        let feeds = split.boundary().iter().map(feed).collect::<Option<_>>();
        Ok(Self {
            feeds: feeds.ok_or("its parts do not fit together")?,
            split,
            slow,
            types,
        })
    }
}

impl Cut {
    /// How much is computed ahead, for people.
    pub fn told(&self) -> String {
        let [all, ahead, _] = self.split.node_counts();
        format!("{ahead} of {all} nodes, {} tensors kept", self.feeds.len())
    }
}

impl Feed {
    /// That of an input that the whole U-Net has too.
    pub fn given(role: Role, port: &Port) -> Self {
        let one_for_all = port.rank() == 0 || port.fixed(0) == Some(1);
        Self {
            source: Source::Given(role),
            of_timestep: role == Role::Timestep,
            rows: match role {
                Role::Timestep if one_for_all => Rows::Common,
                _ => Rows::Stacked,
            },
        }
    }
}

impl Slow {
    fn new(session: Session, file: &ComponentFile) -> Self {
        let role = |port: &Port| {
            let mut inputs = file.inputs.iter();
            let input = inputs.find(|(_, p)| p.name == port.name);
            input.map(|(role, _)| *role)
        };
        Self {
            roles: session.inputs().iter().filter_map(role).collect(),
            session: Arc::new(session),
            rows: file.batch().unwrap_or(1),
        }
    }

    /// What its outputs are, in the order [`run`](Self::run) gives them.
    #[cfg(feature = "tensorrt")]
    pub fn outputs(&self) -> &[Port] {
        self.session.outputs()
    }

    /// It as a program on the device's compute stream, and the role of each of its inputs; why it is none, if so.
    #[cfg(feature = "cuda")]
    pub fn program(&self) -> std::result::Result<super::SlowProgram<'_>, String> {
        if self.rows != 1 {
            return Err(format!("its graph takes {} rows", self.rows));
        }
        if !self.session.provider().is_on_stream() {
            return Err("ONNX Runtime runs it beside the GPU's frames".into());
        }
        Ok((self.session.clone(), &self.roles))
    }

    /// Its outputs for one row; `value` tells what the row is given for a role.
    pub fn run(&self, value: impl Fn(Role) -> Result<HostTensor>) -> Result<Vec<HostTensor>> {
        let outputs = self.run_rows(self.rows, |role, _| value(role))?.into_iter();
        outputs.map(|output| self.one_of(output)).collect()
    }

    /// The shapes of its outputs for one row, and whether those of several rows are those of each, stacked. Tried, as no
    /// graph says it; an error if rows mix in a way that cannot be undone.
    fn try_out(
        &self,
        folder: &ModelFolder,
        given: &Given,
    ) -> std::result::Result<(Vec<Vec<usize>>, Vec<bool>), String> {
        let said = |e: Error| e.to_string();
        let made_up = given.smallest(folder);
        let made_up = made_up.ok_or("the graph does not tell how wide the text embedding is")?;
        let value = |role, row: usize| made_up.value(given, role, row.min(1));
        let first = self.run(|role| value(role, 0)).map_err(said)?;
        let second = self.run(|role| value(role, 1)).map_err(said)?;
        // The first row, then as many of the second as the batch has room for.
        let rows = self.rows.max(2);
        let both = self.run_rows(rows, value).map_err(said)?;

        let mut stacks = Vec::new();
        for (port, ((first, second), both)) in
            (self.session.outputs().iter()).zip(first.iter().zip(&second).zip(&both))
        {
            let stacked = stacked(first, second, rows);
            stacks.push(match stacked {
                Some(stacked) if stacked.shape() == both.shape() => {
                    if !close(&stacked, both) {
                        return Err(format!("rows mix in its tensor {:?}", port.name));
                    }
                    true
                }
                _ if self.rows == 1 => false,
                _ => return Err(format!("its tensor {:?} has no rows", port.name)),
            });
        }
        Ok((first.iter().map(|t| t.shape().to_vec()).collect(), stacks))
    }

    /// Its outputs for `rows` rows; `value` tells what each is given for a role.
    fn run_rows(
        &self,
        rows: usize,
        value: impl Fn(Role, usize) -> Result<HostTensor>,
    ) -> Result<Vec<HostTensor>> {
        let given = self.roles.iter().zip(self.session.inputs());
        let given: Vec<HostTensor> = given
            .map(|(role, port)| {
                let first = value(*role, 0)?;
                let mut shape = first.shape().to_vec();
                // A timestep that all rows share stays one.
                if shape.is_empty() || port.fixed(0) == Some(shape[0]) {
                    return Ok(first);
                }
                let mut data = first.into_data();
                for row in 1..rows {
                    data.extend(value(*role, row)?.into_data());
                }
                shape[0] *= rows;
                Ok(HostTensor::new(&shape, data))
            })
            .collect::<Result<_>>()?;
        let inputs: Vec<Input> = (given.iter())
            .map(|t| (t.shape(), Values::Floats(t.data())))
            .collect();
        self.session.run(&inputs)
    }

    /// What belongs to one row of an output for all of them.
    fn one_of(&self, output: HostTensor) -> Result<HostTensor> {
        if self.rows == 1 || output.shape().is_empty() {
            return Ok(output);
        }
        let mut shape = output.shape().to_vec();
        if !shape[0].is_multiple_of(self.rows) {
            return Err(self.session.error(format!(
                "a tensor of shape {shape:?} in it cannot be told apart by its {} rows",
                self.rows
            )));
        }
        shape[0] /= self.rows;
        let mut data = output.into_data();
        data.truncate(shape.iter().product());
        Ok(HostTensor::new(&shape, data))
    }
}

/// A row, then others, one below the other; `None` where they have no first axis.
fn stacked(first: &HostTensor, other: &HostTensor, rows: usize) -> Option<HostTensor> {
    let mut shape = first.shape().to_vec();
    *shape.first_mut()? *= rows;
    let others = std::iter::repeat_n(other.data(), rows - 1);
    let data = [first.data()].into_iter().chain(others).flatten();
    let data: Vec<f32> = data.copied().collect();
    (data.len() == shape.iter().product::<usize>()).then(|| HostTensor::new(&shape, data))
}

/// Whether two tensors are the same but for the order of sums.
pub fn close(a: &HostTensor, b: &HostTensor) -> bool {
    let largest = a.data().iter().fold(0f32, |most, x| most.max(x.abs()));
    let pairs = a.data().iter().zip(b.data());
    // Not "no pair differs more": that would take NaN for equal.
    pairs
        .into_iter()
        .all(|(a, b)| (a - b).abs() <= TOLERANCE * largest.max(f32::MIN_POSITIVE))
}
