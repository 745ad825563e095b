//! New nodes in the place of others, and what is left of the graph then.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::path::Path;

use super::node::{DOMAIN, VERSION};
use crate::error::Result;
use crate::model::assemble::Choice;
use crate::model::scan::{Node, Source};
use crate::model::write::Message;

/// How often replacements may be given up because of others: no exporter's are tangled up at all.
const ROUNDS: usize = 64;

/// Nodes that take the place of others.
#[derive(Debug)]
pub(super) struct Replacement {
    /// The node whose place they take, which gave what they give.
    pub giver: usize,
    /// Nodes that must not be needed any more, or nothing is gained.
    pub absorbed: Vec<usize>,
    /// In the order of use.
    pub nodes: Vec<Node>,
}

impl Replacement {
    /// The tensors that are read and not made among its nodes.
    fn reads(&self) -> impl Iterator<Item = &str> {
        let made: HashSet<&str> = (self.nodes.iter())
            .flat_map(|node| node.outputs.iter().map(String::as_str))
            .collect();
        let reads = self.nodes.iter().flat_map(Node::reads);
        reads.filter(move |name| !made.contains(name))
    }
}

/// Makes `replacements`, each for a giver of its own, and takes out what nobody needs any more. One that something else
/// needs a part of is not made. Gives the givers of those that are.
pub(super) fn replace(source: &mut Source, replacements: Vec<Replacement>) -> HashSet<usize> {
    let mut at: HashMap<usize, Replacement> =
        replacements.into_iter().map(|r| (r.giver, r)).collect();
    // Functions of an operator's name would be called in its place.
    let own: HashSet<&str> = (source.functions.iter())
        .filter(|function| function.domain == DOMAIN)
        .map(|function| function.name.as_str())
        .collect();
    at.retain(|_, replacement| {
        let mut new = replacement.nodes.iter();
        new.all(|node| node.domain != DOMAIN || !own.contains(node.op.as_str()))
    });
    let mut rounds = 0;
    let needed = loop {
        let needed = needed(source, &at);
        let before = at.len();
        rounds += 1;
        if rounds == ROUNDS {
            at.clear();
        }
        at.retain(|giver, replacement| {
            let mut absorbed = replacement.absorbed.iter().filter(|node| *node != giver);
            needed[*giver] && absorbed.all(|node| !needed[*node])
        });
        if at.len() == before {
            break needed;
        }
    };
    let made: HashSet<usize> = at.keys().copied().collect();
    let nodes = std::mem::take(&mut source.nodes);
    let nodes = nodes.into_iter().zip(needed).enumerate();
    source.nodes = nodes
        .filter(|(_, (_, needed))| *needed)
        .flat_map(|(i, (node, _))| match at.remove(&i) {
            Some(replacement) => replacement.nodes,
            None => vec![node],
        })
        .collect();
    if !made.is_empty() && !source.domains.iter().any(|domain| domain == DOMAIN) {
        let mut import = Message::default();
        import.string(1, DOMAIN);
        import.integer(2, VERSION);
        source.model.message(8, import);
        source.domains.push(DOMAIN.to_owned());
    }
    made
}

/// Which nodes the graph's outputs need, with replacements for the nodes in `at`.
fn needed(source: &Source, at: &HashMap<usize, Replacement>) -> Vec<bool> {
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
            Some(replacement) => wanted.extend(replacement.reads()),
            None => wanted.extend(node.reads()),
        }
    }
    needed
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
