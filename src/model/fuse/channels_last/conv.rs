//! Convolutions of pictures.

use super::{Chain, are_floats};
use crate::model::fuse::links::Links;
use crate::model::fuse::node::DOMAIN;
use crate::model::fuse::replace::Replacement;

/// The operator, in ONNX Runtime since 1.15. It takes a picture and weights with their channels last, and what a Conv takes
/// besides.
const OPERATOR: &str = "NhwcConv";

/// The same convolution, if the node with this number is one in two dimensions, of all channels together, with weights
/// that are stored: they are turned around once, when ONNX Runtime loads the graph.
pub(super) fn at(links: &Links, number: usize) -> Option<Replacement> {
    let node = links.node(number);
    let (Some("Conv"), [picture, weights, bias @ ..], [output]) =
        (node.standard(), &node.inputs[..], &node.outputs[..])
    else {
        return None;
    };
    let attributes = links.attributes(number);
    let usual = attributes.integer("group", 1) == Some(1)
        && attributes.text("auto_pad", "NOTSET") == Some("NOTSET")
        && attributes.integers("kernel_shape").map(<[i64]>::len) == Some(2);
    let rank = links.fact(weights).rank();
    let read = node.inputs.iter().map(String::as_str);
    if !usual
        || rank != Some(4)
        || !links.is_constant(weights)
        || !are_floats(links, read.filter(|name| !name.is_empty()))
    {
        return None;
    }
    let mut chain = Chain::new(links, output);
    let weights = chain.last(weights, "weights");
    let picture = chain.last(picture, "picture");
    let result = chain.node(OPERATOR, DOMAIN, "result", |new| {
        let new = new.input(&picture).input(&weights);
        (bias.iter().fold(new, |new, bias| new.input(bias))).attributes(&node.attributes)
    });
    chain.end(&result, number, Vec::new())
}
