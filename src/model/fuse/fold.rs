//! Floats that are worked out from sizes, written in as numbers.
//!
//! Exporters that trace a model work out an attention's factor from the shape of its operand. On a GPU the shape is in
//! main memory, and so is what becomes of it, until a tensor is multiplied with it: that moves the factor over in every
//! run.

use std::collections::HashSet;

use half::f16;

use super::details::dtype;
use super::infer::{Facts, Known};
use crate::model::scan::{Node, Source};
use crate::model::write::Message;

/// The nodes, by number, that work out floats which are known, from sizes, and constants to put in their place.
pub(super) fn find(source: &Source, facts: &Facts) -> Vec<(usize, Node)> {
    let mut of_sizes: HashSet<&str> = HashSet::new();
    let mut found = Vec::new();
    for (i, node) in source.nodes.iter().enumerate() {
        let reads = |name: &String| of_sizes.contains(name.as_str());
        if node.standard() != Some("Shape") && !node.inputs.iter().any(reads) {
            continue;
        }
        of_sizes.extend(node.outputs.iter().map(String::as_str));
        if let [output] = &node.outputs[..]
            && let Some(tensor) = tensor(facts, output)
        {
            found.push((i, constant(output, tensor)));
        }
    }
    found
}

/// The known floats `name` as a tensor of ONNX.
fn tensor(facts: &Facts, name: &str) -> Option<Message> {
    let fact = facts.get(name);
    let Known::Floats(values) = &fact.values else {
        return None;
    };
    let mut bytes = Vec::new();
    for value in values {
        match fact.dtype {
            dtype::F16 => bytes.extend(f16::from_f64(*value).to_le_bytes()),
            dtype::F32 => bytes.extend((*value as f32).to_le_bytes()),
            _ => return None,
        }
    }
    // Field numbers are those of onnx.proto.
    let (mut tensor, mut count) = (Message::default(), 1);
    for size in fact.dims.as_ref()? {
        let size = size.number()?;
        count *= usize::try_from(size).ok().filter(|n| *n <= values.len())?;
        tensor.integer(1, size);
    }
    tensor.integer(2, fact.dtype);
    tensor.data(9, &bytes);
    (count == values.len()).then_some(tensor)
}

fn constant(output: &str, tensor: Message) -> Node {
    let name = format!("{output}.constant");
    let mut value = Message::default();
    value.string(1, "value");
    value.message(5, tensor);
    // The kind of attribute that a tensor is.
    value.integer(20, 4);
    let mut content = Message::default();
    content.string(2, output);
    content.string(3, &name);
    content.string(4, "Constant");
    content.message(5, value);
    let mut bytes = Message::default();
    bytes.message(1, content);
    Node {
        name,
        op: "Constant".to_owned(),
        outputs: vec![output.to_owned()],
        bytes,
        ..Node::default()
    }
}
