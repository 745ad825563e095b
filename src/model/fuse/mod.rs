//! Graphs made faster: operators that do at once what an exporter has written as many, and pictures kept with their
//! channels last, as GPUs compute them.
//!
//! Everything is told from the graph itself; what cannot be told for sure stays as it is. Weights are never parsed.

mod attention;
mod channels_last;
mod details;
mod fold;
mod gates;
mod infer;
mod links;
mod node;
mod replace;
mod size;

use std::collections::HashSet;
use std::fs::File;
use std::path::{Path, PathBuf};

use self::details::Details;
use self::infer::Facts;
use self::links::Links;
use super::graph::{FILE_LIMIT, Graph};
use super::scan::Source;
use super::split::Split;
use super::wire::Reader;
use crate::error::Result;

/// What is to be made faster, besides that floats are written in that a graph works out from sizes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fusions {
    /// One operator for each attention.
    pub attention: bool,
    /// Convolutions, and what is between them, on pictures whose channels are last.
    pub channels_last: bool,
    /// One operator for each gated linear unit.
    pub gates: bool,
}

impl Fusions {
    /// Nothing else.
    pub const NONE: Self = Self {
        attention: false,
        channels_last: false,
        gates: false,
    };
    /// One operator for each attention.
    pub const ATTENTION: Self = Self {
        attention: true,
        channels_last: false,
        gates: false,
    };
    /// All there are.
    pub const ALL: Self = Self {
        attention: true,
        channels_last: true,
        gates: true,
    };
}

/// How much of a graph was made faster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// Attentions that are one operator now.
    pub attentions: usize,
    /// Softmaxes that the graph had, each of which is an attention at most.
    pub softmaxes: usize,
    /// Convolutions of pictures whose channels are last now.
    pub channels_last: usize,
    /// Convolutions that the graph had.
    pub convolutions: usize,
    /// Gated linear units that are one operator now.
    pub gates: usize,
}

impl std::ops::Add for Counts {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            attentions: self.attentions + other.attentions,
            softmaxes: self.softmaxes + other.softmaxes,
            channels_last: self.channels_last + other.channels_last,
            convolutions: self.convolutions + other.convolutions,
            gates: self.gates + other.gates,
        }
    }
}

/// A graph with fused operators. The file that it was made of stays open.
#[derive(Debug)]
pub struct Fused {
    path: PathBuf,
    file: File,
    source: Source,
    counts: Counts,
}

impl Fused {
    /// Makes what `fusions` say of the ONNX file at `path`, whose header is `graph`. Its inputs have the rows of a call along
    /// their first dimension, unless it is fixed. What none of its outputs needs then is left out.
    ///
    /// `None` if there is nothing to be done.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`](crate::error::Error::NotFound) if the file cannot be read,
    /// [`Error::Invalid`](crate::error::Error::Invalid) if it is not an ONNX graph.
    pub fn open(path: &Path, graph: &Graph, fusions: Fusions) -> Result<Option<Self>> {
        let details = Details::read(&mut Reader::open(path, FILE_LIMIT)?)?;
        let mut reader = Reader::open(path, FILE_LIMIT)?;
        let mut source = Source::read(&mut reader)?;
        if details.nodes.len() != source.nodes.len() {
            return Err(reader.invalid("has changed while it was read"));
        }
        let count = |op: &str| {
            let nodes = source.nodes.iter();
            nodes.filter(|node| node.standard() == Some(op)).count()
        };
        let mut counts = Counts {
            softmaxes: count("Softmax"),
            convolutions: count("Conv"),
            ..Counts::default()
        };
        let (attentions, gates, others, constants) = {
            let facts = Facts::new(&source, &details, graph);
            let Some(links) = Links::new(&source, &details, &facts) else {
                return Ok(None);
            };
            let attentions = match fusions.attention {
                true => attention::find(&links),
                false => Vec::new(),
            };
            let others = match fusions.channels_last {
                true => channels_last::find(&links),
                false => channels_last::Found::default(),
            };
            let gates = match fusions.gates {
                true => gates::find(&links),
                false => Vec::new(),
            };
            (attentions, gates, others, fold::find(&source, &facts))
        };
        let folded = constants.len();
        for (i, constant) in constants {
            source.nodes[i] = constant;
        }
        let givers = |found: &[replace::Replacement]| -> HashSet<usize> {
            found.iter().map(|replacement| replacement.giver).collect()
        };
        let (of_attentions, of_gates) = (givers(&attentions), givers(&gates));
        let of_convolutions = givers(&others.convolutions);
        let all = attentions.into_iter().chain(gates).chain(others.all());
        let made = replace::replace(&mut source, all.collect());
        counts.attentions = made.intersection(&of_attentions).count();
        counts.gates = made.intersection(&of_gates).count();
        counts.channels_last = made.intersection(&of_convolutions).count();
        Ok((made.len() + folded > 0).then(|| Self {
            path: path.to_owned(),
            file: reader.into_file(),
            source,
            counts,
        }))
    }

    /// How much was made faster.
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// The number of nodes that are left.
    pub fn nodes(&self) -> usize {
        self.source.nodes.len()
    }

    /// The graph as the bytes of an ONNX model. External data is where the original has it, relative to its folder.
    pub fn model(&self) -> Result<Vec<u8>> {
        replace::model(&self.source, &self.file, &self.path)
    }

    /// The same split in two, as [`Split::open`] does it to a file.
    pub fn split(self, live: &str, output: &str) -> Result<Option<Split>> {
        Split::of(self.path, self.file, self.source, live, output)
    }
}
