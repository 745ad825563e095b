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
use half::f16;

use super::details::dtype;
use super::links::Links;
use super::node::{DOMAIN, NewNode};
use super::replace::Replacement;

/// The operator, in ONNX Runtime since 1.14. It takes queries, keys and values `[rows, places, channels]`.
const OPERATOR: &str = "MultiHeadAttention";

/// What takes the place of the attentions of a graph that can be told for sure.
pub(super) fn find(links: &Links) -> Vec<Replacement> {
    let found = find::find(links).into_iter();
    let has_names = |attention: &Attention| {
        [".factor", ".queries"]
            .iter()
            .all(|role| !links.is_taken(&format!("{}.attention{role}", attention.output)))
    };
    found.filter(has_names).map(of).collect()
}

fn of(attention: Attention) -> Replacement {
    let name = |role: &str| format!("{}.attention{role}", attention.output);
    let (mut nodes, mut queries) = (Vec::new(), attention.queries.clone());
    // The operator has an attribute for it, of which one of its kernels knows nothing.
    if let Some(factor) = attention.scale {
        let bytes = match attention.dtype {
            dtype::F16 => f16::from_f32(factor).to_le_bytes().to_vec(),
            _ => factor.to_le_bytes().to_vec(),
        };
        let constant = NewNode::new("Constant", "", &name(".factor"))
            .output(&name(".factor"))
            .tensor("value", attention.dtype, 1, &bytes);
        let scaled = NewNode::new("Mul", "", &name(".queries"))
            .input(&queries)
            .input(&name(".factor"))
            .output(&name(".queries"));
        nodes.extend([constant.build(), scaled.build()]);
        queries = name(".queries");
    }
    let node = NewNode::new(OPERATOR, DOMAIN, &name(""))
        .input(&queries)
        .input(&attention.keys)
        .input(&attention.values)
        .output(&attention.output)
        .integer("num_heads", attention.heads);
    nodes.push(node.build());
    Replacement {
        giver: attention.giver,
        absorbed: attention.inside.into(),
        nodes,
    }
}
