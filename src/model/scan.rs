//! What the nodes of an ONNX file read and give, and where everything lies in the file. Weights are passed by.

use std::collections::HashSet;
use std::ops::Range;

use super::wire::{Field, Reader};
use super::write::Message;
use crate::error::Result;

/// The most nodes, subgraphs' included: the largest diffusion graphs have tens of thousands.
const NODES: usize = 1 << 18;
/// The most names of tensors, each mention counted.
const NAMES: usize = 1 << 21;

/// A part of the file that has a name.
#[derive(Debug)]
pub(super) struct Named {
    pub name: String,
    /// Its bytes, the tag included.
    pub range: Range<u64>,
}

/// A node of the outermost graph.
#[derive(Debug, Default)]
pub(super) struct Node {
    pub name: String,
    pub op: String,
    pub domain: String,
    /// Names of the tensors it reads; an empty one is an optional input left out.
    pub inputs: Vec<String>,
    /// Names of the tensors it gives; an empty one is not wanted.
    pub outputs: Vec<String>,
    /// Where each of its attributes is in the file.
    pub attributes: Vec<Range<u64>>,
    /// What its subgraphs, if any, name.
    pub inner: Inner,
    /// Its bytes, the tag included: those of the file, or of a node that is new.
    pub bytes: Message,
}

impl Node {
    /// Its operator, if it is one of the standard set.
    pub fn standard(&self) -> Option<&str> {
        is_standard(&self.domain).then_some(self.op.as_str())
    }
}

/// What is inside a node or a function.
#[derive(Debug, Default)]
pub(super) struct Inner {
    /// Tensors that nodes of it read, or that it gives.
    pub reads: HashSet<String>,
    /// Tensors that are made in it.
    pub makes: HashSet<String>,
    /// Operators in it.
    pub ops: HashSet<String>,
}

/// A function that the model defines.
#[derive(Debug, Default)]
pub(super) struct Function {
    pub domain: String,
    pub name: String,
    pub ops: HashSet<String>,
}

/// An ONNX file, taken apart.
#[derive(Debug, Default)]
pub(super) struct Source {
    /// Parts of the model besides its graph: versions, operator sets, functions, metadata.
    pub model: Message,
    /// The operator sets that it names besides the standard one, by domain.
    pub domains: Vec<String>,
    /// Name and metadata of the graph.
    pub header: Vec<Range<u64>>,
    pub nodes: Vec<Node>,
    pub inputs: Vec<Named>,
    pub outputs: Vec<Named>,
    pub initializers: Vec<Named>,
    /// Types that the graph states of tensors inside it.
    pub value_info: Vec<Named>,
    pub functions: Vec<Function>,
    graphs: usize,
    names: usize,
    nodes_seen: usize,
}

fn is_standard(domain: &str) -> bool {
    domain.is_empty() || domain == "ai.onnx"
}

// Field numbers are those of onnx.proto.
impl Source {
    /// Takes the file in `reader` apart.
    pub fn read(reader: &mut Reader) -> Result<Self> {
        let mut source = Self::default();
        let end = reader.size();
        reader.message(end, |r, field| source.part(r, field))?;
        if source.graphs != 1 {
            return Err(reader.invalid(format!(
                "not an ONNX graph: expected one graph, found {}",
                source.graphs
            )));
        }
        Ok(source)
    }

    fn part(&mut self, r: &mut Reader, field: Field) -> Result<()> {
        match field.number {
            7 => {
                self.graphs += 1;
                let end = r.enter(field)?;
                return r.message(end, |r, field| self.graph(r, field));
            }
            // Remarks, and training graphs, which mean nothing without the graph they were made for.
            6 | 20 => return r.skip(field),
            25 => {
                let function = self.function(r, field)?;
                self.functions.push(function);
            }
            8 => {
                let domain = self.text_at(r, field, 1)?;
                self.domains.push(domain);
            }
            _ => r.skip(field)?,
        }
        self.model.copy(&r.range(field));
        Ok(())
    }

    fn graph(&mut self, r: &mut Reader, field: Field) -> Result<()> {
        match field.number {
            1 => {
                let mut node = self.node(r, field)?;
                node.bytes.copy(&r.range(field));
                self.nodes.push(node);
            }
            2 | 16 => {
                r.skip(field)?;
                self.header.push(r.range(field));
            }
            5 | 11 | 12 | 13 | 15 => {
                let name = match field.number {
                    5 => self.text_at(r, field, 8)?,
                    15 => self.sparse(r, field)?,
                    _ => self.text_at(r, field, 1)?,
                };
                let range = r.range(field);
                let list = match field.number {
                    11 => &mut self.inputs,
                    12 => &mut self.outputs,
                    13 => &mut self.value_info,
                    _ => &mut self.initializers,
                };
                list.push(Named { name, range });
            }
            _ => r.skip(field)?,
        }
        Ok(())
    }

    fn node(&mut self, r: &mut Reader, field: Field) -> Result<Node> {
        self.nodes_seen += 1;
        if self.nodes_seen > NODES {
            return Err(r.invalid(format!(
                "has more than {NODES} nodes, which no component does"
            )));
        }
        let mut node = Node::default();
        let end = r.enter(field)?;
        r.message(end, |r, field| {
            match field.number {
                1 => node.inputs.push(self.name(r, field)?),
                2 => node.outputs.push(self.name(r, field)?),
                3 => node.name = r.string(field)?,
                4 => node.op = r.string(field)?,
                5 => {
                    let end = r.enter(field)?;
                    r.message(end, |r, field| match field.number {
                        6 | 11 => self.subgraph(r, field, &mut node.inner),
                        _ => r.skip(field),
                    })?;
                    node.attributes.push(r.range(field));
                }
                7 => node.domain = r.string(field)?,
                _ => r.skip(field)?,
            }
            Ok(())
        })?;
        Ok(node)
    }

    fn subgraph(&mut self, r: &mut Reader, field: Field, inner: &mut Inner) -> Result<()> {
        let end = r.enter(field)?;
        r.message(end, |r, field| {
            match field.number {
                1 => self.inner_node(r, field, inner)?,
                5 => drop(inner.makes.insert(self.text_at(r, field, 8)?)),
                11 => drop(inner.makes.insert(self.text_at(r, field, 1)?)),
                12 => drop(inner.reads.insert(self.text_at(r, field, 1)?)),
                15 => drop(inner.makes.insert(self.sparse(r, field)?)),
                _ => r.skip(field)?,
            }
            Ok(())
        })
    }

    fn inner_node(&mut self, r: &mut Reader, field: Field, inner: &mut Inner) -> Result<()> {
        let node = self.node(r, field)?;
        inner.ops.insert(node.op);
        inner.reads.extend(node.inputs);
        inner.makes.extend(node.outputs);
        inner.ops.extend(node.inner.ops);
        inner.reads.extend(node.inner.reads);
        inner.makes.extend(node.inner.makes);
        Ok(())
    }

    fn function(&mut self, r: &mut Reader, field: Field) -> Result<Function> {
        let (mut function, mut inner) = (Function::default(), Inner::default());
        let end = r.enter(field)?;
        r.message(end, |r, field| {
            match field.number {
                1 => function.name = r.string(field)?,
                7 => self.inner_node(r, field, &mut inner)?,
                10 => function.domain = r.string(field)?,
                _ => r.skip(field)?,
            }
            Ok(())
        })?;
        function.ops = inner.ops;
        Ok(function)
    }

    /// The name of the sparse tensor in `field`, which is that of its values.
    fn sparse(&mut self, r: &mut Reader, field: Field) -> Result<String> {
        let mut name = String::new();
        let end = r.enter(field)?;
        r.message(end, |r, field| {
            match field.number {
                1 => name = self.text_at(r, field, 8)?,
                _ => r.skip(field)?,
            }
            Ok(())
        })?;
        Ok(name)
    }

    /// The text at field `number` of the message in `field`; everything else in it is passed by.
    fn text_at(&mut self, r: &mut Reader, field: Field, number: u64) -> Result<String> {
        let mut text = String::new();
        let end = r.enter(field)?;
        r.message(end, |r, field| {
            if field.number == number {
                text = self.name(r, field)?;
                return Ok(());
            }
            r.skip(field)
        })?;
        Ok(text)
    }

    fn name(&mut self, r: &mut Reader, field: Field) -> Result<String> {
        self.names += 1;
        if self.names > NAMES {
            return Err(r.invalid(format!(
                "names tensors more than {NAMES} times, which no component does"
            )));
        }
        r.string(field)
    }
}
