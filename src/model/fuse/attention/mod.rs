//! Attention that is written out in a graph, put together again.
//!
//! Exporters write scaled dot-product attention as a product of matrices, a softmax and another product. Run like that,
//! each is a pass over a matrix of places × places for every head. ONNX Runtime has one operator for the whole,
//! `com.microsoft.MultiHeadAttention`, which never writes that matrix to memory. Here the three are found, with what
//! exporters put around them, and the operator takes their place.
//!
//! That is done only where the graph itself proves that both give the same: heads, channels of a head, factor, axes and
//! types are followed through it. What cannot be told, such as an attention with a mask, stays as it is.

mod find;
mod layout;
#[cfg(test)]
mod tests;

use self::find::Attention;
use super::links::Links;
use super::node::{DOMAIN, NewNode};
use super::replace::Replacement;

/// The operator, in ONNX Runtime since 1.14. It takes queries, keys and values `[rows, places, channels]`.
const OPERATOR: &str = "MultiHeadAttention";

/// What takes the place of the attentions of a graph that can be told for sure.
pub(super) fn find(links: &Links) -> Vec<Replacement> {
    find::find(links).into_iter().map(of).collect()
}

fn of(attention: Attention) -> Replacement {
    let mut node = NewNode::new(OPERATOR, DOMAIN, &format!("{}.attention", attention.output));
    for input in [&attention.queries, &attention.keys, &attention.values] {
        node = node.input(input);
    }
    node = node
        .output(&attention.output)
        .integer("num_heads", attention.heads);
    if let Some(factor) = attention.scale {
        node = node.float("scale", factor);
    }
    Replacement {
        giver: attention.giver,
        absorbed: attention.inside.into(),
        nodes: vec![node.build()],
    }
}
