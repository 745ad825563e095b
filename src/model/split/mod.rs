//! A graph split by what depends on its live input.
//!
//! Of a U-Net's inputs only the latent changes with every frame. What depends on the others alone (keys and values of
//! the text, projections of the timestep) is put into a graph of its own, the *slow* one, to be run when one of them
//! changes. What is left is the *fast* graph, which takes the live input and the *boundary* tensors.
//!
//! Both are pieces of the original file: nodes and weights are copied byte by byte and never parsed.

mod plan;
#[cfg(test)]
mod tests;

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::path::{Path, PathBuf};

use parking_lot::Mutex;

use self::plan::{Plan, Side};
use super::assemble::Choice;
use super::graph::FILE_LIMIT;
use super::scan::{Named, Source};
use super::wire::Reader;
use super::write::Message;
use crate::error::{Error, Result};

/// A tensor that the fast graph takes besides the live input.
///
/// The slow graph is run for one row at a time (or for the batch that the graph fixes), and the rows are stacked along
/// axis 0. That is right where axis 0 is the batch, or starts with it (heads merged into it, say):
/// [`stacks`](Self::stacks). Else only rows for which the tensor is equal can go together, as with the unsplit graph.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Boundary {
    /// Its name, in the original graph and in both halves.
    pub name: String,
    /// The inputs whose *values* it depends on, in the graph's order; those of which only the shape matters are
    /// left out.
    pub from: Vec<String>,
    /// Whether it is itself an input of the original graph. If so the slow graph does not give it.
    pub is_input: bool,
    /// Whether all that reads it broadcasts it over the batch. See [`does_for_all`](Self::does_for_all).
    pub broadcasts: bool,
}

impl Boundary {
    /// Whether tensors of several rows can be stacked along axis 0, judged by their shape for one row and for two.
    ///
    /// A tensor without a batch, of a timestep common to all rows for instance, keeps its shape.
    pub fn stacks(one: &[usize], two: &[usize]) -> bool {
        match (one, two) {
            ([first, rest @ ..], [both, other @ ..]) => {
                first.checked_mul(2) == Some(*both) && *first > 0 && rest == other
            }
            _ => false,
        }
    }

    /// Whether the tensor of one row, of shape `dims`, may be given as it is for a batch of rows that share it.
    /// Where it may not, the shared row must be repeated.
    pub fn does_for_all(&self, dims: &[usize]) -> bool {
        // With two dimensions or one, axis 0 can be an operand's own, such as a matrix's rows, and not the batch.
        self.broadcasts && dims.len() >= 3 && dims[0] == 1
    }
}

/// Type of a boundary tensor, as the slow graph's engine tells it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorType {
    /// The tensor's name.
    pub name: String,
    /// Type of its values, by its ONNX number (1: f32, 7: i64, 10: f16).
    pub elem_type: i32,
    /// Its dimensions, outermost first, `None` for those that vary; `None` if even their number is unknown. The first
    /// is taken to vary whatever is given.
    pub dims: Option<Vec<Option<i64>>>,
}

/// A graph that can be split. The file stays open.
#[derive(Debug)]
pub struct Split {
    path: PathBuf,
    /// Reading moves its position.
    file: Mutex<File>,
    source: Source,
    plan: Plan,
}

impl Split {
    /// Works out how to split the ONNX file at `path`, which [`Graph::open`](super::Graph::open) has checked, at its
    /// input `live`, leaving out what its output `output` does not need. Reads no weights.
    ///
    /// `None` if it is not worth it: nothing costly is independent of `live`, or the output does not depend on it.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`] if the file cannot be read, [`Error::Invalid`] if it is not a graph by ONNX's rules: each
    /// tensor made once, and before it is read.
    pub fn open(path: &Path, live: &str, output: &str) -> Result<Option<Self>> {
        let mut reader = Reader::open(path, FILE_LIMIT)?;
        let source = Source::read(&mut reader)?;
        Self::of(path.to_owned(), reader.into_file(), source, live, output)
    }

    /// The same for the graph `source`, which was read from `file` at `path`, with nodes that it does not have perhaps.
    pub(super) fn of(
        path: PathBuf,
        file: File,
        source: Source,
        live: &str,
        output: &str,
    ) -> Result<Option<Self>> {
        let plan = plan::plan(&source, live, output);
        let plan = plan.map_err(|what| Error::invalid(&path, what))?;
        Ok(plan.map(|plan| Self {
            path,
            file: Mutex::new(file),
            source,
            plan,
        }))
    }

    /// What crosses from the slow graph to the fast one, in the order of the file: inputs first.
    pub fn boundary(&self) -> &[Boundary] {
        &self.plan.boundary
    }

    /// The inputs of the slow graph. The live one may be among them: then its shape counts, not its values.
    pub fn slow_inputs(&self) -> impl Iterator<Item = &str> {
        self.given(&self.plan.slow).map(|input| input.name.as_str())
    }

    /// Nodes of the original graph, the slow one and the fast one. What depends on shapes alone can be in both, and
    /// what the output does not need is in neither.
    pub fn node_counts(&self) -> [usize; 3] {
        let plan = &self.plan;
        [
            self.source.nodes.len(),
            plan.slow.nodes.len(),
            plan.fast.nodes.len(),
        ]
    }

    /// The slow graph, as the bytes of an ONNX model. It gives the boundary tensors that are not inputs; their types
    /// are left for the engine to infer. External data is where the original has it, relative to its folder.
    pub fn slow(&self) -> Result<Vec<u8>> {
        let mut ports = Message::default();
        for input in &self.plan.slow.inputs {
            ports.copy(&self.source.inputs[*input].range);
        }
        for tensor in self.plan.boundary.iter().filter(|b| !b.is_input) {
            let mut output = Message::default();
            output.string(1, &tensor.name);
            ports.message(12, output);
        }
        self.model(&self.plan.slow, ports, HashSet::new())
    }

    /// The fast graph, as the bytes of an ONNX model. `types` has at least the boundary tensors that the slow graph
    /// gives.
    pub fn fast(&self, types: &[TensorType]) -> Result<Vec<u8>> {
        let types: HashMap<&str, &TensorType> =
            types.iter().map(|t| (t.name.as_str(), t)).collect();
        let mut ports = Message::default();
        for input in &self.plan.fast.inputs {
            ports.copy(&self.source.inputs[*input].range);
        }
        for tensor in &self.plan.boundary {
            if tensor.is_input {
                let inputs = &mut self.source.inputs.iter();
                inputs
                    .filter(|i| i.name == tensor.name)
                    .for_each(|i| ports.copy(&i.range));
                continue;
            }
            let found = types.get(tensor.name.as_str()).ok_or_else(|| {
                Error::invalid(
                    &self.path,
                    format!("the type of its tensor {:?} is not known", tensor.name),
                )
            })?;
            ports.message(11, value_info(found));
        }
        ports.copy(&self.source.outputs[self.plan.output].range);
        let boundary = self.plan.boundary.iter().map(|b| b.name.as_str());
        self.model(&self.plan.fast, ports, boundary.collect())
    }

    /// The inputs of `side` that must be given.
    fn given<'a>(&'a self, side: &'a Side) -> impl Iterator<Item = &'a Named> {
        let weights: HashSet<&str> = side
            .initializers
            .iter()
            .map(|i| self.source.initializers[*i].name.as_str())
            .collect();
        side.inputs
            .iter()
            .map(|i| &self.source.inputs[*i])
            .filter(move |input| !weights.contains(input.name.as_str()))
    }

    /// A model of what `side` names and of `ports`, its inputs and outputs.
    fn model(&self, side: &Side, ports: Message, inputs: HashSet<&str>) -> Result<Vec<u8>> {
        let choice = Choice {
            nodes: &side.nodes,
            initializers: &side.initializers,
            ports,
            inputs,
        };
        self.source.assemble(choice, &self.file.lock(), &self.path)
    }
}

/// The entry of an input of this type.
fn value_info(tensor: &TensorType) -> Message {
    let mut kind = Message::default();
    kind.integer(1, i64::from(tensor.elem_type));
    if let Some(dims) = &tensor.dims {
        let mut shape = Message::default();
        for (i, size) in dims.iter().enumerate() {
            let mut dim = Message::default();
            match size {
                Some(size) if i > 0 => dim.integer(1, *size),
                // A name of its own: nothing is claimed of it.
                _ => dim.string(2, &format!("{}.{i}", tensor.name)),
            }
            shape.message(1, dim);
        }
        kind.message(2, shape);
    }
    let mut of_tensor = Message::default();
    of_tensor.message(1, kind);
    let mut info = Message::default();
    info.string(1, &tensor.name);
    info.message(2, of_tensor);
    info
}
