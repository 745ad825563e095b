//! Fused operators in the place of attentions, and what is left of the graph then.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::path::Path;

use super::find::Attention;
use crate::error::Result;
use crate::model::assemble::Choice;
use crate::model::scan::{Node, Source};
use crate::model::write::Message;

/// Domain of ONNX Runtime's own operators.
const DOMAIN: &str = "com.microsoft";
/// The version of that set.
const VERSION: i64 = 1;
/// The operator, in ONNX Runtime since 1.14. It takes queries, keys and values `[rows, places, channels]`.
const OPERATOR: &str = "MultiHeadAttention";

/// How often attentions may be given up because of others: no exporter's are tangled up at all.
const ROUNDS: usize = 64;

/// Puts the operator in the place of each of `attentions` and takes out what nobody needs any more. An attention of which
/// something else needs a part stays as it is. Gives the number of those that were fused.
pub(super) fn rewrite(source: &mut Source, attentions: Vec<Attention>) -> usize {
    let mut at: HashMap<usize, Attention> = attentions.into_iter().map(|a| (a.giver, a)).collect();
    // A function of that name would be called in its place.
    if (source.functions.iter()).any(|f| f.domain == DOMAIN && f.name == OPERATOR) {
        at.clear();
    }
    let mut rounds = 0;
    let needed = loop {
        let needed = needed(source, &at);
        let before = at.len();
        rounds += 1;
        if rounds == ROUNDS {
            at.clear();
        }
        at.retain(|giver, attention| {
            let mut inside = attention.inside.iter().filter(|node| *node != giver);
            needed[*giver] && inside.all(|node| !needed[*node])
        });
        if at.len() == before {
            break needed;
        }
    };
    let nodes = std::mem::take(&mut source.nodes);
    let nodes = nodes.into_iter().zip(needed).enumerate();
    source.nodes = nodes
        .filter(|(_, (_, needed))| *needed)
        .map(|(i, (node, _))| at.get(&i).map_or(node, operator))
        .collect();
    if !at.is_empty() && !source.domains.iter().any(|domain| domain == DOMAIN) {
        let mut import = Message::default();
        import.string(1, DOMAIN);
        import.integer(2, VERSION);
        source.model.message(8, import);
        source.domains.push(DOMAIN.to_owned());
    }
    at.len()
}

/// Which nodes the graph's outputs need, with operators in the place of the nodes in `at`.
fn needed(source: &Source, at: &HashMap<usize, Attention>) -> Vec<bool> {
    let mut wanted: HashSet<&str> = source.outputs.iter().map(|o| o.name.as_str()).collect();
    let mut needed = vec![false; source.nodes.len()];
    // From the last to the first: nodes are in the order of use.
    for (i, node) in source.nodes.iter().enumerate().rev() {
        needed[i] = node
            .outputs
            .iter()
            .any(|name| wanted.contains(name.as_str()));
        match at.get(&i) {
            _ if !needed[i] => {}
            Some(attention) => wanted.extend(attention.reads()),
            None => wanted.extend(node.reads()),
        }
    }
    needed
}

/// The operator for `attention`.
fn operator(attention: &Attention) -> Node {
    let name = format!("{}.attention", attention.output);
    let mut content = Message::default();
    for input in attention.reads() {
        content.string(1, input);
    }
    content.string(2, &attention.output);
    content.string(3, &name);
    content.string(4, OPERATOR);
    // Field numbers of an attribute: 1 its name, 20 its kind, which is 1 for a float (2) and 2 for a whole number (3).
    let mut heads = Message::default();
    heads.string(1, "num_heads");
    heads.integer(3, attention.heads);
    heads.integer(20, 2);
    content.message(5, heads);
    if let Some(factor) = attention.scale {
        let mut scale = Message::default();
        scale.string(1, "scale");
        scale.float(2, factor);
        scale.integer(20, 1);
        content.message(5, scale);
    }
    content.string(7, DOMAIN);
    let mut bytes = Message::default();
    bytes.message(1, content);
    Node {
        name,
        op: OPERATOR.to_owned(),
        domain: DOMAIN.to_owned(),
        inputs: attention.reads().map(str::to_owned).into(),
        outputs: vec![attention.output.clone()],
        bytes,
        ..Node::default()
    }
}

impl Attention {
    fn reads(&self) -> [&str; 3] {
        [&self.queries, &self.keys, &self.values]
    }
}

impl Node {
    fn reads(&self) -> impl Iterator<Item = &str> {
        let names = self.inputs.iter().chain(&self.inner.reads);
        names.map(String::as_str).filter(|name| !name.is_empty())
    }
}

/// The bytes of a model of `source`, which was read from `file` at `path`, without weights that no node reads.
pub(super) fn model(source: &Source, file: &File, path: &Path) -> Result<Vec<u8>> {
    let nodes: Vec<usize> = (0..source.nodes.len()).collect();
    let mut read: HashSet<&str> = source.nodes.iter().flat_map(Node::reads).collect();
    read.extend(source.outputs.iter().map(|output| output.name.as_str()));
    let weights = 0..source.initializers.len();
    let is_read = |i: &usize| read.contains(source.initializers[*i].name.as_str());
    let (initializers, unread): (Vec<usize>, Vec<usize>) = weights.partition(is_read);
    // Before format version 4, weights were inputs too.
    let unread = unread.iter().map(|i| source.initializers[*i].name.as_str());
    let unread: HashSet<&str> = unread.collect();
    let mut ports = Message::default();
    let inputs = source.inputs.iter();
    for input in inputs.filter(|input| !unread.contains(input.name.as_str())) {
        ports.copy(&input.range);
    }
    for output in &source.outputs {
        ports.copy(&output.range);
    }
    let choice = Choice {
        nodes: &nodes,
        initializers: &initializers,
        ports,
        // An output has one entry.
        inputs: source.outputs.iter().map(|o| o.name.as_str()).collect(),
    };
    source.assemble(choice, file, path)
}
