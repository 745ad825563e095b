//! As much of ONNX files as tells which node reads what, for tests that follow tensors through a graph. Independent of
//! the code under test. Field numbers are those of onnx.proto.

// Each test program uses a part of it.
#![allow(dead_code)]

pub mod run;

use std::collections::{BTreeMap, BTreeSet, HashSet};

/// A graph's nodes and the names of its tensors.
#[derive(Debug, Default)]
pub struct Graph {
    /// In the order of the file, which is that of use.
    pub nodes: Vec<Node>,
    /// Without those that are weights too.
    pub inputs: Vec<String>,
    pub outputs: Vec<String>,
    weights: HashSet<String>,
}

#[derive(Debug, Default)]
pub struct Node {
    pub op: String,
    /// What it reads, what the graphs in it take from around them included.
    pub reads: Vec<String>,
    pub gives: Vec<String>,
    /// Whether it multiplies matrices or convolves, or a graph or function in it does.
    pub heavy: bool,
}

/// What multiplies matrices or convolves.
const HEAVY: [&str; 5] = [
    "MatMul",
    "FusedMatMul",
    "MultiHeadAttention",
    "Gemm",
    "Conv",
];

/// Sets of names by the name of a tensor.
pub type Reach = BTreeMap<String, BTreeSet<String>>;

impl Graph {
    /// The graph of a model's bytes.
    pub fn of(model: &[u8]) -> Self {
        let mut graph = Self::default();
        let mut heavy_functions = Vec::new();
        for (number, content) in fields(model) {
            match number {
                7 => graph.read(content),
                25 => {
                    let nodes = fields(content).into_iter().filter(|(n, _)| *n == 7);
                    let heavy = nodes.into_iter().any(|(_, node)| Node::of(node).heavy);
                    heavy_functions.extend(names(content, 1).into_iter().filter(|_| heavy));
                }
                _ => {}
            }
        }
        for node in &mut graph.nodes {
            node.heavy |= heavy_functions.contains(&node.op);
        }
        assert!(!graph.nodes.is_empty());
        graph
    }

    fn read(&mut self, bytes: &[u8]) {
        for (number, content) in fields(bytes) {
            match number {
                1 => self.nodes.push(Node::of(content)),
                5 => self.weights.extend(names(content, 8)),
                15 => {
                    let values = fields(content).into_iter().filter(|(n, _)| *n == 1);
                    self.weights.extend(values.flat_map(|(_, v)| names(v, 8)));
                }
                11 => self.inputs.extend(names(content, 1)),
                12 => self.outputs.extend(names(content, 1)),
                _ => {}
            }
        }
        let weights = &self.weights;
        self.inputs.retain(|name| !weights.contains(name));
    }

    /// What its nodes take from around it.
    fn outer(self) -> Vec<String> {
        let mut own = self.weights;
        own.extend(self.inputs);
        let mut outer = Vec::new();
        for node in self.nodes {
            outer.extend(node.reads.into_iter().filter(|name| !own.contains(name)));
            own.extend(node.gives);
        }
        // An output may be a tensor from around it too.
        outer.extend(self.outputs.into_iter().filter(|name| !own.contains(name)));
        outer
    }

    /// For each tensor, the inputs that it depends on; with `values`, not those of which only a shape is looked at.
    pub fn depends(&self, values: bool) -> Reach {
        let own = |name: &String| (name.clone(), BTreeSet::from([name.clone()]));
        let mut found: Reach = self.inputs.iter().map(own).collect();
        for node in &self.nodes {
            let shape_only = values && ["Shape", "Size"].contains(&&node.op[..]);
            let mut from = BTreeSet::new();
            if !shape_only {
                from.extend(
                    node.reads
                        .iter()
                        .filter_map(|r| found.get(r))
                        .flatten()
                        .cloned(),
                );
            }
            for name in &node.gives {
                found.insert(name.clone(), from.clone());
            }
        }
        found
    }

    /// The nodes that lead to one of `outputs`, each by what it gives.
    pub fn needed(&self, outputs: &[String]) -> BTreeSet<&[String]> {
        let mut wanted: HashSet<&String> = outputs.iter().collect();
        let mut found = BTreeSet::new();
        for node in self.nodes.iter().rev() {
            if node.gives.iter().any(|name| wanted.contains(name)) {
                wanted.extend(&node.reads);
                found.insert(&node.gives[..]);
            }
        }
        found
    }
}

impl Node {
    fn of(bytes: &[u8]) -> Self {
        let mut node = Self::default();
        for (number, content) in fields(bytes) {
            match number {
                1 => node.reads.push(text(content)),
                2 => node.gives.push(text(content)),
                4 => node.op = text(content),
                // The branches of an `If`, the body of a `Loop`.
                5 => {
                    for (_, graph) in fields(content)
                        .into_iter()
                        .filter(|(n, _)| [6, 11].contains(n))
                    {
                        let mut inner = Graph::default();
                        inner.read(graph);
                        node.heavy |= inner.nodes.iter().any(|node| node.heavy);
                        node.reads.extend(inner.outer());
                    }
                }
                _ => {}
            }
        }
        node.heavy |= HEAVY.contains(&&node.op[..]);
        // Operands that are left out.
        node.reads.retain(|name| !name.is_empty());
        node.gives.retain(|name| !name.is_empty());
        node
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// The text fields `number` of a message.
fn names(bytes: &[u8], number: u64) -> Vec<String> {
    let fields = fields(bytes).into_iter();
    fields
        .filter(|(n, _)| *n == number)
        .map(|(_, content)| text(content))
        .collect()
}

/// Number and content of each field of a message that has a length; numbers are left out.
fn fields(mut bytes: &[u8]) -> Vec<(u64, &[u8])> {
    let mut found = Vec::new();
    while !bytes.is_empty() {
        let key = varint(&mut bytes);
        match key & 7 {
            0 => drop(varint(&mut bytes)),
            1 => bytes = &bytes[8..],
            5 => bytes = &bytes[4..],
            2 => {
                let length = varint(&mut bytes) as usize;
                let (content, rest) = bytes.split_at(length);
                found.push((key >> 3, content));
                bytes = rest;
            }
            other => panic!("wire type {other}"),
        }
    }
    found
}

fn varint(bytes: &mut &[u8]) -> u64 {
    let mut value = 0;
    for shift in (0..).step_by(7) {
        let byte = bytes[0];
        *bytes = &bytes[1..];
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            break;
        }
    }
    value
}
