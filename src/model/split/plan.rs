//! Which node goes to which graph, and what crosses between them.

use std::collections::{HashMap, HashSet};

use super::Boundary;
use crate::model::scan::{Node, Source};

/// What a tensor depends on; nothing: it is a constant.
///
/// Shapes are told apart from values because the two graphs run with different batches: a whole number worked out
/// from a shape is right only in the graph that it is worked out in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Class(u8);

impl Class {
    /// Values of the live input.
    const LIVE: Self = Self(1);
    /// The shape of a tensor that depends on the live input.
    const LIVE_SHAPE: Self = Self(2);
    /// Values of another input.
    const SLOW: Self = Self(4);
    /// The shape of an input, or of a tensor that depends on none but slow ones.
    const SHAPE: Self = Self(8);

    fn has(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Whether only the fast graph can work it out.
    fn is_fast(self) -> bool {
        self.has(Self::LIVE.and(Self::LIVE_SHAPE))
    }

    /// Whether it is the slow graph's to work out.
    fn is_slow(self) -> bool {
        !self.is_fast() && self.has(Self::SLOW)
    }

    /// The class of the shape of a tensor of this class, if it is no input.
    fn of_shape(self) -> Self {
        if self.is_fast() {
            Self::LIVE_SHAPE
        } else if self.has(Self::SLOW) {
            Self::SHAPE
        } else {
            self
        }
    }
}

/// Where a tensor comes from: an index into the source's list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Origin {
    Input(usize),
    Initializer(usize),
    Node(usize),
}

#[derive(Debug)]
struct Tensor {
    origin: Origin,
    class: Class,
    /// The inputs whose values it depends on, the live one excluded: a bit for each.
    from: u64,
    /// Whether it is an input, or one in another type: its shape can be had in either graph.
    shaped_as_input: bool,
}

/// What one of the two graphs is made of: indices into the source's lists, ascending.
#[derive(Debug, Default, Clone)]
pub(super) struct Side {
    pub nodes: Vec<usize>,
    pub inputs: Vec<usize>,
    pub initializers: Vec<usize>,
}

/// The split, worked out.
#[derive(Debug)]
pub(super) struct Plan {
    pub slow: Side,
    pub fast: Side,
    pub boundary: Vec<Boundary>,
    /// Index of the output that the fast graph gives.
    pub output: usize,
}

/// Operators that make the slow graph worth a session.
const HEAVY: &[&str] = &["MatMul", "Gemm", "Conv", "Attention", "Einsum"];
/// Operators that give other values each time.
const RANDOM: &[&str] = &[
    "RandomNormal",
    "RandomNormalLike",
    "RandomUniform",
    "RandomUniformLike",
    "Multinomial",
    "Bernoulli",
];
/// Operators that give what cannot be an input or output of a component: sequences and optional values.
const UNPORTABLE: &[&str] = &[
    "SplitToSequence",
    "SequenceConstruct",
    "SequenceEmpty",
    "SequenceErase",
    "SequenceInsert",
    "SequenceMap",
    "Optional",
];
/// The most boundary tensors: the largest U-Nets have some two hundred.
const CROSSINGS: usize = 4096;
/// Operators whose operands are broadcast against each other.
const BROADCASTING: &[&str] = &["Add", "Sub", "Mul", "Div", "Pow", "Where"];
/// Operators that keep the shape of their operand.
const UNARY: &[&str] = &["Cast", "Identity", "Neg", "Sqrt"];

/// Works out the split of `source` at the input `live`; `None` if it is not worth it, an error (what is wrong) if
/// `source` breaks ONNX's rules.
pub(super) fn plan(source: &Source, live: &str, output: &str) -> Result<Option<Plan>, String> {
    let Some(graph) = Analysis::new(source, live)? else {
        return Ok(None);
    };
    let output_index = source
        .outputs
        .iter()
        .position(|o| o.name == output)
        .ok_or_else(|| format!("has no output {output:?}"))?;
    match graph.tensors.get(output) {
        None => return Err(format!("its output {output:?} is computed by no node")),
        Some(t) if !matches!(t.origin, Origin::Node(_)) || !t.class.is_fast() => return Ok(None),
        Some(_) => {}
    }
    let mut crossing = Vec::new();
    let fast = graph.side(&[output], |name, tensor| {
        let crosses = match tensor.origin {
            Origin::Input(_) => name != live,
            Origin::Initializer(_) => false,
            Origin::Node(n) => tensor.class.is_slow() && !is_one_of(&source.nodes[n], UNPORTABLE),
        };
        if crosses {
            crossing.push(name.to_owned());
        }
        crosses
    });
    if crossing.len() > CROSSINGS {
        return Ok(None);
    }
    // In the order of the file, so that the same file gives the same graphs.
    let place = |name: &String| match graph.tensors[name.as_str()].origin {
        Origin::Input(i) => (0, i),
        Origin::Initializer(i) => (1, i),
        Origin::Node(i) => (2, i),
    };
    crossing.sort_by_cached_key(|name| {
        let node = match place(name) {
            (2, n) => source.nodes[n].outputs.iter().position(|o| o == name),
            _ => None,
        };
        (place(name), node)
    });
    let computed: Vec<&str> = crossing
        .iter()
        .filter(|name| place(name).0 == 2)
        .map(String::as_str)
        .collect();
    let slow = graph.side(&computed, |_, _| false);
    let any_heavy = |ops: &HashSet<String>| ops.iter().any(|op| is_heavy(op));
    let heavy_functions: HashSet<(&str, &str)> = source
        .functions
        .iter()
        .filter(|f| any_heavy(&f.ops))
        .map(|f| (f.domain.as_str(), f.name.as_str()))
        .collect();
    let worth_it = slow.nodes.iter().map(|n| &source.nodes[*n]).any(|node| {
        is_heavy(&node.op)
            || any_heavy(&node.inner.ops)
            || heavy_functions.contains(&(node.domain.as_str(), node.op.as_str()))
    });
    if !worth_it {
        return Ok(None);
    }
    let readers = graph.readers(&fast);
    let boundary = crossing
        .iter()
        .map(|name| {
            let tensor = &graph.tensors[name.as_str()];
            Boundary {
                name: name.clone(),
                from: (graph.seldom.iter().enumerate())
                    .filter(|(i, _)| tensor.from >> i & 1 == 1)
                    .map(|(_, name)| (*name).to_owned())
                    .collect(),
                is_input: matches!(tensor.origin, Origin::Input(_)),
                broadcasts: graph.broadcasts(name, output, &readers),
            }
        })
        .collect();
    Ok(Some(Plan {
        slow,
        fast,
        boundary,
        output: output_index,
    }))
}

fn is_heavy(op: &str) -> bool {
    HEAVY.iter().any(|heavy| op.contains(heavy))
}

fn is_one_of(node: &Node, ops: &[&str]) -> bool {
    node.standard().is_some_and(|op| ops.contains(&op))
}

struct Analysis<'a> {
    source: &'a Source,
    tensors: HashMap<&'a str, Tensor>,
    /// What each node reads, that which its subgraphs take from around them included.
    reads: Vec<Vec<&'a str>>,
    /// The inputs besides the live one.
    seldom: Vec<&'a str>,
}

impl<'a> Analysis<'a> {
    /// Follows every tensor through the graph; `None` where random numbers make that impossible.
    fn new(source: &'a Source, live: &str) -> Result<Option<Self>, String> {
        let is_random = |op: &str| RANDOM.contains(&op);
        if source
            .functions
            .iter()
            .any(|f| f.ops.iter().any(|op| is_random(op)))
        {
            return Ok(None);
        }
        let mut graph = Self {
            source,
            tensors: HashMap::new(),
            reads: Vec::with_capacity(source.nodes.len()),
            seldom: Vec::new(),
        };
        for (i, initializer) in source.initializers.iter().enumerate() {
            let origin = Origin::Initializer(i);
            graph.add(&initializer.name, origin, Class::default(), 0, false)?;
        }
        let mut has_live = false;
        for (i, input) in source.inputs.iter().enumerate() {
            // Before format version 4, weights were inputs too.
            let known = graph.tensors.get(input.name.as_str());
            if known.is_some_and(|t| matches!(t.origin, Origin::Initializer(_))) {
                continue;
            }
            let (class, from) = if input.name == live {
                has_live = true;
                (Class::LIVE, 0)
            } else {
                let bit = 1u64.checked_shl(graph.seldom.len() as u32);
                graph.seldom.push(&input.name);
                (
                    Class::SLOW,
                    bit.ok_or("has more than 64 inputs besides weights, which no component does")?,
                )
            };
            graph.add(&input.name, Origin::Input(i), class, from, true)?;
        }
        if !has_live {
            return Err(format!("has no input {live:?}"));
        }
        for (i, node) in source.nodes.iter().enumerate() {
            let of_shape = is_one_of(node, &["Shape", "Size"]);
            let mut class = Class::default();
            let mut from = 0;
            let mut shaped_as_input = is_one_of(node, &["Cast", "Identity"]);
            let reads = graph.reads(node)?;
            for name in &reads {
                let tensor = graph.tensors.get(*name).ok_or_else(|| {
                    format!(
                        "its node {:?} ({}) reads {name:?}, which nothing before it gives; expected nodes in the order of use",
                        node.name, node.op
                    )
                })?;
                if of_shape {
                    class = class.and(match tensor.shaped_as_input {
                        true => Class::SHAPE,
                        false => tensor.class.of_shape(),
                    });
                } else {
                    class = class.and(tensor.class);
                    from |= tensor.from;
                    shaped_as_input &= tensor.shaped_as_input;
                }
            }
            if is_one_of(node, RANDOM) || node.inner.ops.iter().any(|op| is_random(op)) {
                class = Class::LIVE;
            }
            graph.reads.push(reads);
            for output in node.outputs.iter().filter(|o| !o.is_empty()) {
                graph.add(output, Origin::Node(i), class, from, shaped_as_input)?;
            }
        }
        Ok(Some(graph))
    }

    fn add(
        &mut self,
        name: &'a str,
        origin: Origin,
        class: Class,
        from: u64,
        shaped_as_input: bool,
    ) -> Result<(), String> {
        let tensor = Tensor {
            origin,
            class,
            from,
            shaped_as_input,
        };
        if name.is_empty() || self.tensors.insert(name, tensor).is_some() {
            return Err(format!(
                "gives the tensor {name:?} more than once, or one without a name; expected every tensor to have its own"
            ));
        }
        Ok(())
    }

    /// The tensors that `node` reads, those that its subgraphs take from around them included.
    fn reads(&self, node: &'a Node) -> Result<Vec<&'a str>, String> {
        let mut reads: Vec<&str> = node
            .inputs
            .iter()
            .map(String::as_str)
            .filter(|name| !name.is_empty())
            .collect();
        for name in node.inner.reads.iter().filter(|name| !name.is_empty()) {
            // A name that a subgraph makes for itself may be one of the graph's too: then it counts as read, which is
            // never wrong.
            if self.tensors.contains_key(name.as_str()) {
                reads.push(name);
            } else if !node.inner.makes.contains(name) {
                return Err(format!(
                    "a graph inside its node {:?} ({}) reads {name:?}, which nothing before it gives",
                    node.name, node.op
                ));
            }
        }
        Ok(reads)
    }

    /// What it takes to work out `wanted` from inputs, initializers and the tensors at which `stops` says so. It is
    /// asked once for each tensor that is needed.
    fn side(&self, wanted: &[&'a str], mut stops: impl FnMut(&str, &Tensor) -> bool) -> Side {
        let source = self.source;
        let mut nodes = vec![false; source.nodes.len()];
        let mut inputs = vec![false; source.inputs.len()];
        let mut initializers = vec![false; source.initializers.len()];
        let mut seen: HashSet<&str> = wanted.iter().copied().collect();
        let mut waiting: Vec<&str> = wanted.to_vec();
        while let Some(name) = waiting.pop() {
            let tensor = &self.tensors[name];
            if stops(name, tensor) {
                continue;
            }
            match tensor.origin {
                Origin::Input(i) => inputs[i] = true,
                Origin::Initializer(i) => initializers[i] = true,
                Origin::Node(i) if !std::mem::replace(&mut nodes[i], true) => {
                    waiting.extend(self.reads[i].iter().filter(|name| seen.insert(name)));
                }
                Origin::Node(_) => {}
            }
        }
        // An initializer that may be given as an input stays one.
        for (input, used) in source.inputs.iter().zip(&mut inputs) {
            if let Origin::Initializer(i) = self.tensors[input.name.as_str()].origin {
                *used = initializers[i];
            }
        }
        let indices = |used: Vec<bool>| (0..used.len()).filter(|i| used[*i]).collect();
        Side {
            nodes: indices(nodes),
            inputs: indices(inputs),
            initializers: indices(initializers),
        }
    }

    /// The nodes of `side` by what they read.
    fn readers(&self, side: &Side) -> HashMap<&'a str, Vec<usize>> {
        let mut readers: HashMap<&str, Vec<usize>> = HashMap::new();
        for i in &side.nodes {
            for name in &self.reads[*i] {
                readers.entry(*name).or_default().push(*i);
            }
        }
        readers
    }

    /// Whether one row of `name` does for a whole batch: whoever reads it broadcasts it against the batch.
    fn broadcasts(&self, name: &str, output: &str, readers: &HashMap<&str, Vec<usize>>) -> bool {
        let mut waiting = vec![name];
        let mut seen = HashSet::from([name]);
        while let Some(name) = waiting.pop() {
            if name == output {
                return false;
            }
            for i in readers.get(name).into_iter().flatten() {
                let node = &self.source.nodes[*i];
                let meets_the_batch = node
                    .inputs
                    .iter()
                    .filter_map(|name| self.tensors.get(name.as_str()))
                    .any(|t| t.class.has(Class::LIVE));
                let keeps_shape = is_one_of(node, BROADCASTING) || is_one_of(node, UNARY);
                if is_one_of(node, &["MatMul"]) && meets_the_batch {
                    continue;
                }
                if !keeps_shape {
                    return false;
                }
                if !meets_the_batch {
                    // Still a single row, scaled perhaps.
                    let outputs = node.outputs.iter().map(String::as_str);
                    waiting.extend(outputs.filter(|name| seen.insert(name)));
                }
            }
        }
        true
    }
}
