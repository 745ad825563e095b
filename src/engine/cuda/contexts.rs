//! What a U-Net's rows are given beside latents, computed where its frames are, and kept there.

use std::collections::HashMap;

use parking_lot::Mutex;

use super::bounds::Bounds;
use crate::device::HostTensor;
use crate::device::cuda::{Cuda, CudaTensor, Element};
use crate::engine::Text;
use crate::engine::onnxruntime::parts::{Rows, close};
use crate::engine::onnxruntime::plan::Value;
use crate::engine::onnxruntime::{Ahead, Context, Valued};
use crate::error::Result;
use crate::model::{ModelFolder, Role};

/// How often a program is tried: often enough for the device to make a graph of it.
const TRIALS: usize = 8;

/// A tensor of a context, in the type that the live part of the U-Net takes.
#[derive(Debug)]
pub struct Kept {
    /// The tensor.
    pub(super) tensor: CudaTensor,
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

impl Context<Kept> {
    /// The device memory that it keeps, part of which it may share with others of the same text.
    pub fn bytes(&self) -> usize {
        self.0.iter().map(|kept| kept.tensor.bytes()).sum()
    }
}

/// Makes contexts, on the GPU itself where that can be, else through main memory.
pub struct Contexts {
    cuda: Cuda,
    /// What is computed ahead, and how the live part is fed.
    pub(super) ahead: Ahead,
    /// The types of the live part's inputs but the latent.
    elements: Vec<Element>,
    slow: Option<Slow>,
    told: String,
}

/// The slow part, on the compute stream.
struct Slow {
    bounds: Bounds<Filled>,
    /// Of each of its inputs.
    roles: Vec<Role>,
    /// The shapes of outputs by those of inputs, which no graph tells: those that came out in main memory.
    shapes: Mutex<HashMap<Shapes, Shapes>>,
}

type Shapes = Vec<Vec<usize>>;
/// What inputs were filled with last.
type Filled = Vec<Option<HostTensor>>;

/// What the slow part has computed.
enum Computed {
    Here(HostTensor),
    /// Until the slow part is run again.
    There(CudaTensor),
}

impl From<HostTensor> for Computed {
    fn from(tensor: HostTensor) -> Self {
        Self::Here(tensor)
    }
}

impl Contexts {
    /// For the U-Net of `folder`, whose live part takes `elements` beside the latent. The slow part is tried with made-up
    /// rows: what it gives on the GPU must be what it gives in main memory.
    pub fn new(folder: &ModelFolder, cuda: &Cuda, ahead: Ahead, elements: Vec<Element>) -> Self {
        let (slow, why) = match Slow::open(folder, cuda, &ahead) {
            Ok(slow) => (slow, None),
            Err(why) => (None, Some(why)),
        };
        let why = why.map(|why| format!("; they go through main memory: {why}"));
        Self {
            told: format!("{}{}", ahead.precomputed, why.unwrap_or_default()),
            cuda: cuda.clone(),
            ahead,
            elements,
            slow,
        }
    }

    /// How much is computed ahead, or why nothing is, for people.
    pub fn told(&self) -> &str {
        &self.told
    }

    /// See [`Model::precompute`](crate::engine::Model::precompute). What it gives is ready for any thread.
    pub fn make(
        &self,
        timesteps: &[u32],
        text: &Text<HostTensor>,
        size: (usize, usize),
        like: Option<&Context<Kept>>,
    ) -> Result<Vec<Context<Kept>>> {
        let compute = |value: &Valued| self.compute(value);
        let keep = |tensors| self.keep(tensors);
        let contexts = (self.ahead).precompute(timesteps, text, size, like, compute, keep)?;
        if self.slow.is_some() {
            // Other threads have other lists.
            self.cuda.finish()?;
        }
        Ok(contexts)
    }

    fn compute(&self, value: &Valued) -> Result<Vec<Computed>> {
        let Some(slow) = &self.slow else {
            let computed = self.ahead.compute(value)?;
            return Ok(computed.into_iter().map(Computed::Here).collect());
        };
        let given = slow.given(value)?;
        if let Some(computed) = slow.run(&self.cuda, &given)? {
            return Ok(computed.into_iter().map(Computed::There).collect());
        }
        let computed = self.ahead.compute(value)?;
        slow.learn(&given, &computed);
        Ok(computed.into_iter().map(Computed::Here).collect())
    }

    /// Puts tensors, each with the number of its input, into memory of their own.
    fn keep(&self, tensors: Vec<(usize, Computed)>) -> Result<Vec<Kept>> {
        let mut copies = Vec::new();
        let keep = |(i, computed): (usize, Computed)| {
            let element = self.elements[i];
            Ok(match computed {
                Computed::Here(values) => {
                    let shape = values.shape();
                    let tensor = self.cuda.upload_as(shape, values.data(), element)?;
                    let common = self.ahead.feeds[i].rows == Rows::Common;
                    Kept {
                        tensor,
                        values: common.then_some(values),
                    }
                }
                Computed::There(from) => {
                    let tensor = self.cuda.empty(from.shape(), element)?;
                    copies.push((from, tensor.clone()));
                    Kept {
                        tensor,
                        values: None,
                    }
                }
            })
        };
        let kept = tensors.into_iter().map(keep).collect::<Result<_>>()?;
        self.cuda.copy_each(&copies)?;
        Ok(kept)
    }
}

impl Slow {
    /// The slow part, ready and tried; `None` if there is none, an error says why it does not run on the compute stream.
    fn open(
        folder: &ModelFolder,
        cuda: &Cuda,
        ahead: &Ahead,
    ) -> std::result::Result<Option<Self>, String> {
        let Some((program, roles)) = ahead.program()? else {
            return Ok(None);
        };
        let slow = Self {
            bounds: Bounds::new(cuda, &program),
            roles: roles.to_vec(),
            shapes: Mutex::default(),
        };
        let rows = (ahead.made_up(folder)).ok_or("nothing is known to try it with")?;
        slow.try_out(cuda, ahead, &rows)?;
        Ok(Some(slow))
    }

    /// An error unless what it gives for two rows by turns is what it gives in main memory, as often as it takes for it to
    /// become a graph.
    fn try_out(
        &self,
        cuda: &Cuda,
        ahead: &Ahead,
        rows: &[Box<Valued<'_>>; 2],
    ) -> std::result::Result<(), String> {
        let said = |e: crate::error::Error| e.to_string();
        let mut expected = Vec::with_capacity(rows.len());
        for row in rows {
            let (given, computed) = (self.given(row), ahead.compute(row).map_err(said)?);
            let given = given.map_err(said)?;
            self.learn(&given, &computed);
            expected.push((given, computed));
        }
        for trial in 0..TRIALS {
            let (given, expected) = &expected[trial % rows.len()];
            let found = self.run(cuda, given).map_err(said)?;
            let found = found.ok_or("the shapes of what it gives are not known")?;
            // Waits for it, so that errors are its own.
            cuda.finish().map_err(said)?;
            if trial + rows.len() < TRIALS {
                continue;
            }
            for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
                let found = cuda.download(found).map_err(said)?;
                if !close(expected, &found) {
                    return Err(format!("its tensor number {i} came out wrong there"));
                }
            }
        }
        Ok(())
    }

    /// What it is given, in the order of its inputs.
    fn given(&self, value: &Valued) -> Result<Vec<HostTensor>> {
        self.roles.iter().map(|role| value(*role)).collect()
    }

    /// Remembers the shapes of what came out.
    fn learn(&self, given: &[HostTensor], computed: &[HostTensor]) {
        self.shapes.lock().insert(shapes(given), shapes(computed));
    }

    /// Records a run; what it gives is in the tensors that come back until the next one. `None` if their shapes are not known.
    fn run(&self, cuda: &Cuda, given: &[HostTensor]) -> Result<Option<Vec<CudaTensor>>> {
        let inputs = shapes(given);
        let Some(outputs) = self.shapes.lock().get(&inputs).cloned() else {
            return Ok(None);
        };
        self.bounds.with(0, inputs, &outputs, |bound, filled| {
            filled.resize(given.len(), None);
            let mut copies = Vec::new();
            // As a rule, runs that follow each other differ in the timestep alone.
            for ((values, filled), to) in given.iter().zip(filled).zip(bound.inputs()) {
                if filled.as_ref() != Some(values) {
                    let from = cuda.upload_as(values.shape(), values.data(), to.element())?;
                    copies.push((from, to.clone()));
                    *filled = Some(values.clone());
                }
            }
            cuda.copy_each(&copies)?;
            cuda.run(bound.clone())?;
            Ok(Some(bound.outputs().to_vec()))
        })
    }
}

fn shapes(tensors: &[HostTensor]) -> Shapes {
    tensors.iter().map(|t| t.shape().to_vec()).collect()
}
