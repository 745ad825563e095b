//! Who gives and who reads the tensors of a graph.

use std::collections::{HashMap, HashSet};

use super::details::{Attributes, Details};
use super::infer::{Fact, Facts};
use crate::model::scan::{Node, Source};

/// The most nodes on the way from one part of a pattern to the next: no exporter writes a dozen.
pub(super) const STEPS: usize = 64;

/// A graph, and what is known of it.
pub(super) struct Links<'a> {
    pub source: &'a Source,
    pub details: &'a Details,
    pub facts: &'a Facts<'a>,
    /// Which node gives a tensor.
    givers: HashMap<&'a str, usize>,
    /// Which nodes read a tensor.
    readers: HashMap<&'a str, Vec<usize>>,
    /// The graph's inputs and outputs.
    inputs: HashSet<&'a str>,
    outputs: HashSet<&'a str>,
}

impl<'a> Links<'a> {
    /// `None` unless every tensor is made before it is read, as ONNX has it. So what is followed up and down has an end.
    pub fn new(source: &'a Source, details: &'a Details, facts: &'a Facts<'a>) -> Option<Self> {
        let mut links = Self {
            source,
            details,
            facts,
            givers: HashMap::new(),
            readers: HashMap::new(),
            inputs: source.inputs.iter().map(|i| i.name.as_str()).collect(),
            outputs: source.outputs.iter().map(|o| o.name.as_str()).collect(),
        };
        for (i, node) in source.nodes.iter().enumerate() {
            for name in node.outputs.iter().filter(|name| !name.is_empty()) {
                links.givers.insert(name, i);
            }
            for name in node.inputs.iter().chain(&node.inner.reads) {
                links.readers.entry(name).or_default().push(i);
            }
        }
        let nodes = source.nodes.iter().enumerate();
        let mut reads = nodes.flat_map(|(i, node)| node.inputs.iter().map(move |name| (i, name)));
        let in_order = reads.all(|(i, name)| links.giver(name).is_none_or(|giver| giver < i));
        in_order.then_some(links)
    }

    /// The node with this number.
    pub fn node(&self, number: usize) -> &'a Node {
        &self.source.nodes[number]
    }

    /// The attributes of the node with this number.
    pub fn attributes(&self, number: usize) -> &'a Attributes {
        &self.details.nodes[number]
    }

    /// What is known of the tensor `name`.
    pub fn fact(&self, name: &str) -> &Fact {
        self.facts.get(name)
    }

    /// The node that gives `name`, if any does.
    pub fn giver(&self, name: &str) -> Option<usize> {
        self.givers.get(name).copied()
    }

    /// The nodes that read the values of `name`, not its shape alone; `None` if the graph gives it to who runs it.
    pub fn readers(&self, name: &str) -> Option<impl Iterator<Item = usize>> {
        if self.outputs.contains(name) {
            return None;
        }
        let readers = self.readers.get(name).into_iter().flatten().copied();
        let of_values = move |i: &usize| self.source.nodes[*i].standard() != Some("Shape");
        Some(readers.filter(of_values))
    }

    /// The only node that reads the values of `name`.
    pub fn reader(&self, name: &str) -> Option<usize> {
        let mut readers = self.readers(name)?;
        match (readers.next(), readers.next()) {
            (Some(only), None) => Some(only),
            _ => None,
        }
    }

    /// Whether `name` is a stored tensor, in another type perhaps: it is never worked out anew.
    pub fn is_constant(&self, mut name: &'a str) -> bool {
        for _ in 0..STEPS {
            let Some(giver) = self.giver(name) else {
                return self.details.constants.contains_key(name) && !self.inputs.contains(name);
            };
            let node = self.node(giver);
            match (node.standard(), &node.inputs[..]) {
                (Some("Constant"), _) => return true,
                (Some("Identity" | "Cast"), [of]) => name = of,
                _ => return false,
            }
        }
        false
    }

    /// Whether some tensor has this name.
    pub fn is_taken(&self, name: &str) -> bool {
        self.givers.contains_key(name)
            || self.readers.contains_key(name)
            || self.inputs.contains(name)
    }
}
