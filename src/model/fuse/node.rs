//! Nodes that are new in a graph.

use std::ops::Range;

use crate::model::scan::Node;
use crate::model::write::Message;

/// Domain of ONNX Runtime's own operators.
pub(super) const DOMAIN: &str = "com.microsoft";
/// The version of that set.
pub(super) const VERSION: i64 = 1;

/// Kinds of attributes: numbers of onnx.proto.
mod kind {
    pub const FLOAT: i64 = 1;
    pub const INTEGER: i64 = 2;
    pub const TENSOR: i64 = 4;
    pub const INTEGERS: i64 = 7;
}

/// A node in the making.
pub(super) struct NewNode {
    node: Node,
    attributes: Message,
}

// Field numbers are those of onnx.proto.
impl NewNode {
    /// One that does `op` of the operator set `domain`; that of ONNX is "".
    pub fn new(op: &str, domain: &str, name: &str) -> Self {
        Self {
            node: Node {
                name: name.to_owned(),
                op: op.to_owned(),
                domain: domain.to_owned(),
                ..Node::default()
            },
            attributes: Message::default(),
        }
    }

    /// Reads the tensor `name` next; "" is an optional input left out.
    pub fn input(mut self, name: &str) -> Self {
        self.node.inputs.push(name.to_owned());
        self
    }

    /// Gives the tensor `name` next.
    pub fn output(mut self, name: &str) -> Self {
        self.node.outputs.push(name.to_owned());
        self
    }

    /// Sets an attribute to a whole number.
    pub fn integer(self, name: &str, value: i64) -> Self {
        self.attribute(name, kind::INTEGER, |a| a.integer(3, value))
    }

    /// Sets an attribute to a number.
    pub fn float(self, name: &str, value: f32) -> Self {
        self.attribute(name, kind::FLOAT, |a| a.float(2, value))
    }

    /// Sets an attribute to whole numbers.
    pub fn integers(self, name: &str, values: &[i64]) -> Self {
        self.attribute(name, kind::INTEGERS, |a| {
            values.iter().for_each(|value| a.integer(8, *value));
        })
    }

    /// Sets an attribute to a tensor of one dimension whose values, of the type with the number `dtype`, are `bytes`.
    pub fn tensor(self, name: &str, dtype: i64, length: usize, bytes: &[u8]) -> Self {
        let mut tensor = Message::default();
        tensor.integer(1, length as i64);
        tensor.integer(2, dtype);
        tensor.data(9, bytes);
        self.attribute(name, kind::TENSOR, |a| a.message(5, tensor))
    }

    /// Has attributes as they are in the source file.
    pub fn attributes(mut self, ranges: &[Range<u64>]) -> Self {
        for range in ranges {
            self.attributes.copy(range);
        }
        self
    }

    /// The node.
    pub fn build(self) -> Node {
        let Self {
            mut node,
            attributes,
        } = self;
        let mut content = Message::default();
        for input in &node.inputs {
            content.string(1, input);
        }
        for output in &node.outputs {
            content.string(2, output);
        }
        content.string(3, &node.name);
        content.string(4, &node.op);
        content.append(attributes);
        if !node.domain.is_empty() {
            content.string(7, &node.domain);
        }
        node.bytes.message(1, content);
        node
    }

    fn attribute(mut self, name: &str, kind: i64, value: impl FnOnce(&mut Message)) -> Self {
        let mut attribute = Message::default();
        attribute.string(1, name);
        value(&mut attribute);
        attribute.integer(20, kind);
        self.attributes.message(5, attribute);
        self
    }
}
