//! What can be told of a graph's tensors without running it: types, sizes, and the values of small ones that are worked
//! out from sizes and constants.
//!
//! One pass in the order of use. What no rule here covers is unknown, and unknown sizes are equal to nothing but
//! themselves.

mod arithmetic;
pub(super) mod shapes;

use std::collections::HashMap;

use super::details::{Attributes, Constant, Details, Values, dtype};
use super::size::Size;
use crate::model::graph::Graph;
use crate::model::scan::{Node, Source};

/// The most dimensions of a tensor that are followed.
const RANK: usize = 8;

/// What is known of a tensor.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Fact {
    /// Type of its values, by its ONNX number; 0 if unknown.
    pub dtype: i64,
    /// Its dimensions, outermost first.
    pub dims: Option<Vec<Size>>,
    /// Its values.
    pub values: Known,
}

/// Known values of a tensor.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) enum Known {
    /// None.
    #[default]
    Nothing,
    /// Whole numbers, some of which may be unknown, of a tensor with one dimension or none.
    Integers(Vec<Option<Size>>),
    /// Floats.
    Floats(Vec<f64>),
    /// All are 0, however many there are.
    Zeros,
}

impl Fact {
    /// Its number of dimensions, if it is known.
    pub fn rank(&self) -> Option<usize> {
        self.dims.as_ref().map(Vec::len)
    }

    /// Its value, if it is a single known float.
    pub fn float(&self) -> Option<f64> {
        match &self.values {
            Known::Floats(values) if values.len() == 1 => Some(values[0]),
            _ => None,
        }
    }

    /// Its values, if they are known floats.
    pub fn floats(&self) -> Option<&[f64]> {
        match &self.values {
            Known::Floats(values) => Some(values),
            _ => None,
        }
    }

    /// Its values, if they are whole numbers.
    fn integers(&self) -> Option<&[Option<Size>]> {
        match &self.values {
            Known::Integers(values) => Some(values),
            _ => None,
        }
    }

    /// Its values, if they are whole numbers that are all known.
    pub fn numbers(&self) -> Option<Vec<i64>> {
        let values = self.integers()?.iter();
        values.map(|v| v.as_ref()?.number()).collect()
    }

    fn of(constant: &Constant) -> Self {
        Self {
            dtype: constant.dtype,
            dims: Some(constant.dims.iter().map(|d| Size::known(*d)).collect()),
            values: match &constant.values {
                Some(Values::Integers(values)) if constant.dims.len() <= 1 => {
                    let values = values.iter().map(|v| Some(Size::known(*v)));
                    Known::Integers(values.collect())
                }
                Some(Values::Floats(values)) => Known::Floats(values.clone()),
                _ => Known::Nothing,
            },
        }
    }
}

/// What is known of a graph's tensors, by name.
#[derive(Debug, Default)]
pub(super) struct Facts<'a> {
    tensors: HashMap<&'a str, Fact>,
    /// Names given to sizes so far.
    names: u32,
    nothing: Fact,
}

/// A node and what its rules look at.
struct Case<'a, 'b> {
    node: &'a Node,
    attributes: &'a Attributes,
    inputs: Vec<&'b Fact>,
}

impl Case<'_, '_> {
    /// Its input `i`, if it is given.
    fn input(&self, i: usize) -> Option<&Fact> {
        let is_given = self.node.inputs.get(i).is_some_and(|name| !name.is_empty());
        self.inputs.get(i).copied().filter(|_| is_given)
    }
}

impl<'a> Facts<'a> {
    /// Works them out for the graph `source`, whose header is `graph`. Inputs have the rows of a call along their first
    /// dimension, unless it is fixed.
    pub fn new(source: &'a Source, details: &'a Details, graph: &Graph) -> Self {
        let mut facts = Self {
            names: Size::ROWS,
            ..Self::default()
        };
        for weight in &source.initializers {
            if let Some(constant) = details.constants.get(&weight.name)
                && constant.dims.len() <= RANK
            {
                facts.tensors.insert(&weight.name, Fact::of(constant));
            }
        }
        let ports = graph.inputs.iter().map(|port| (port.name.as_str(), port));
        let ports: HashMap<_, _> = ports.collect();
        for input in &source.inputs {
            let Some(port) = ports.get(input.name.as_str()) else {
                continue;
            };
            let size = |(i, size): (usize, &Option<usize>)| match size {
                Some(size) => Size::known(*size as i64),
                None if i == 0 => Size::named(Size::ROWS),
                None => new_name(&mut facts.names),
            };
            let fact = Fact {
                dtype: i64::from(port.dtype.number()),
                dims: Some(port.dims.iter().enumerate().map(size).collect()),
                values: Known::Nothing,
            };
            facts.tensors.insert(&input.name, fact);
        }
        for (node, attributes) in source.nodes.iter().zip(&details.nodes) {
            facts.add(node, attributes);
        }
        facts
    }

    /// What is known of the tensor `name`.
    pub fn get(&self, name: &str) -> &Fact {
        self.tensors.get(name).unwrap_or(&self.nothing)
    }

    fn add(&mut self, node: &'a Node, attributes: &'a Attributes) {
        let mut names = self.names;
        let case = Case {
            node,
            attributes,
            inputs: node.inputs.iter().map(|name| self.get(name)).collect(),
        };
        let mut found = case.outputs(&mut || new_name(&mut names));
        self.names = names;
        found.resize(node.outputs.len(), Fact::default());
        for (name, mut fact) in node.outputs.iter().zip(found) {
            if fact.rank().is_some_and(|rank| rank > RANK) {
                fact = Fact::default();
            }
            if !name.is_empty() {
                self.tensors.insert(name, fact);
            }
        }
    }
}

/// A size that is equal to no other.
fn new_name(names: &mut u32) -> Size {
    *names += 1;
    Size::named(*names)
}

/// Makes names for sizes.
type Fresh<'a> = &'a mut dyn FnMut() -> Size;

impl Case<'_, '_> {
    /// What is known of its outputs.
    fn outputs(&self, fresh: Fresh) -> Vec<Fact> {
        let Some(op) = self.node.standard() else {
            return Vec::new();
        };
        if op == "Split" {
            return self.split(fresh);
        }
        let found = match op {
            "Constant" => self.constant(),
            "Shape" => self.shape(),
            "Identity" => self.input(0).cloned(),
            "Cast" => self.cast(),
            "Gather" => self.gather(),
            "Slice" => self.slice(fresh),
            "Unsqueeze" => self.unsqueeze(),
            "Squeeze" => self.squeeze(),
            "Flatten" => self.flatten(fresh),
            "Concat" => self.concat(fresh),
            "ConstantOfShape" => self.constant_of_shape(fresh),
            "Equal" => self.equal(fresh),
            "Where" => self.chosen(fresh),
            "Add" | "Sub" | "Mul" | "Div" | "Pow" | "Sqrt" | "Reciprocal" => {
                self.arithmetic(op, fresh)
            }
            "Neg"
            | "Exp"
            | "Erf"
            | "Tanh"
            | "Sigmoid"
            | "Relu"
            | "Gelu"
            | "Softmax"
            | "Sin"
            | "Cos"
            | "Clip"
            | "Softplus"
            | "Log"
            | "Abs"
            | "LayerNormalization"
            | "InstanceNormalization"
            | "GroupNormalization" => self.like_the_first(),
            "MatMul" => self.matmul(fresh),
            "Gemm" => self.gemm(),
            "Conv" => self.conv(fresh),
            "Transpose" => self.transpose(),
            "Reshape" => self.reshape(fresh),
            "Expand" => self.expand(fresh),
            "Resize" => self.resize(fresh),
            "Pad" => self.pad(fresh),
            "DepthToSpace" => self.depth_to_space(fresh),
            "AveragePool" | "MaxPool" => self.pool(fresh),
            _ => None,
        };
        found.into_iter().collect()
    }

    fn like_the_first(&self) -> Option<Fact> {
        Some(Fact {
            values: Known::Nothing,
            ..self.input(0)?.clone()
        })
    }
}

/// `value` as a tensor of type `kind` holds it.
fn rounded(value: f64, kind: i64) -> Option<f64> {
    match kind {
        dtype::F16 => Some(half::f16::from_f64(value).to_f64()),
        dtype::F32 => Some(f64::from(value as f32)),
        dtype::F64 => Some(value),
        _ => None,
    }
}
