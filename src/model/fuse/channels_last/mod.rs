//! Pictures with their channels last: what a GPU's convolutions compute with.
//!
//! ONNX has the channels of a picture before its rows and columns. A GPU's matrix units take them last, so that cuDNN
//! turns the picture around before each convolution, and back after it, which takes as long as the convolution. ONNX
//! Runtime has convolutions and group normalisations that take pictures with their channels last. They take the place of
//! those in the graph, each between two transpositions: ONNX Runtime's own optimiser takes out those that undo each
//! other, and moves the others past what lies between.

mod conv;
mod norm;
mod resize;

use std::iter;

use super::details::dtype;
use super::links::Links;
use super::node::NewNode;
use super::replace::Replacement;
use crate::model::scan::Node;

/// The axes of a picture, or of a convolution's weights, with the channels last.
const LAST: [i64; 4] = [0, 2, 3, 1];
/// The same, with the channels before rows and columns again.
const FIRST: [i64; 4] = [0, 3, 1, 2];

/// What takes the place of what.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// Of convolutions.
    pub convolutions: Vec<Replacement>,
    /// Of what is between them.
    pub others: Vec<Replacement>,
}

impl Found {
    /// All of it.
    pub fn all(self) -> impl Iterator<Item = Replacement> {
        iter::chain(self.convolutions, self.others)
    }
}

/// What of a graph can be done with the channels last; nothing, if no convolution can.
pub(super) fn find(links: &Links) -> Found {
    let nodes = || 0..links.source.nodes.len();
    let convolutions: Vec<_> = nodes().filter_map(|node| conv::at(links, node)).collect();
    if convolutions.is_empty() {
        return Found::default();
    }
    let norms = nodes().filter_map(|node| norm::at(links, node));
    let resizes = nodes().filter_map(|node| resize::at(links, node));
    Found {
        others: norms.chain(resizes).collect(),
        convolutions,
    }
}

/// Whether the tensors `names` are of one type that the operators take.
fn are_floats<'a>(links: &Links, names: impl IntoIterator<Item = &'a str>) -> bool {
    let mut types = names.into_iter().map(|name| links.fact(name).dtype);
    match types.next() {
        Some(first @ (dtype::F16 | dtype::F32)) => types.all(|other| other == first),
        _ => false,
    }
}

/// Nodes that are put together for the output `of` of a graph, whose tensors are named after it.
struct Chain<'a> {
    links: &'a Links<'a>,
    of: &'a str,
    nodes: Vec<Node>,
    /// Whether one of its names is that of another tensor.
    taken: bool,
}

impl<'a> Chain<'a> {
    fn new(links: &'a Links<'a>, of: &'a str) -> Self {
        Self {
            links,
            of,
            nodes: Vec::new(),
            taken: false,
        }
    }

    /// A node that gives a tensor of its own, named after `role`; gives that name. `make` adds inputs and attributes.
    fn node(
        &mut self,
        op: &str,
        domain: &str,
        role: &str,
        make: impl FnOnce(NewNode) -> NewNode,
    ) -> String {
        let name = format!("{}.channels_last.{role}", self.of);
        self.taken |= self.links.is_taken(&name);
        let node = make(NewNode::new(op, domain, &name)).output(&name);
        self.nodes.push(node.build());
        name
    }

    /// The tensor `name` with its channels last.
    fn last(&mut self, name: &str, role: &str) -> String {
        self.node("Transpose", "", role, |node| {
            node.input(name).integers("perm", &LAST)
        })
    }

    /// What takes the place of `giver`, which gave the chain's output: the tensor `name` with its channels before rows and
    /// columns again. `None` if names clash.
    fn end(mut self, name: &str, giver: usize, absorbed: Vec<usize>) -> Option<Replacement> {
        let node = NewNode::new("Transpose", "", &format!("{}.channels_last", self.of))
            .input(name)
            .integers("perm", &FIRST)
            .output(self.of);
        self.nodes.push(node.build());
        (!self.taken).then_some(Replacement {
            giver,
            absorbed,
            nodes: self.nodes,
        })
    }
}
