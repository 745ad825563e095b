//! Attention that is written out in a graph, put together again.
//!
//! Exporters write scaled dot-product attention as a product of matrices, a softmax and another product. Run like that,
//! each is a pass over a matrix of places × places for every head. ONNX Runtime has one operator for the whole,
//! `com.microsoft.MultiHeadAttention`, which never writes that matrix to memory. Here the three are found, with what
//! exporters put around them, and the operator takes their place.
//!
//! That is done only where the graph itself proves that both give the same: heads, channels of a head, factor, axes and
//! types are followed through it. What cannot be told, such as an attention with a mask, stays as it is.

mod details;
mod find;
mod fold;
mod infer;
mod layout;
mod rewrite;
mod size;
#[cfg(test)]
mod tests;

use std::fs::File;
use std::path::{Path, PathBuf};

use self::details::Details;
use self::infer::Facts;
use super::graph::{FILE_LIMIT, Graph};
use super::scan::Source;
use super::split::Split;
use super::wire::Reader;
use crate::error::Result;

/// A graph with fused attentions, and with floats written in that it worked out from sizes. The file that it was made of stays open.
#[derive(Debug)]
pub struct Fused {
    path: PathBuf,
    file: File,
    source: Source,
    fused: usize,
    softmaxes: usize,
}

impl Fused {
    /// Fuses what attentions can be told for sure in the ONNX file at `path`, whose header is `graph`, and writes in floats
    /// that it works out from sizes. Its inputs have the rows of a call along their first dimension, unless it is fixed.
    /// What none of its outputs needs then is left out.
    ///
    /// `None` if there is nothing to be done.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`](crate::error::Error::NotFound) if the file cannot be read,
    /// [`Error::Invalid`](crate::error::Error::Invalid) if it is not an ONNX graph.
    pub fn open(path: &Path, graph: &Graph) -> Result<Option<Self>> {
        Self::rewritten(path, graph, true)
    }

    /// The same with attentions left as they are, for heads that are too large to gain by it.
    ///
    /// # Errors
    ///
    /// As for [`open`](Self::open).
    pub fn open_unfused(path: &Path, graph: &Graph) -> Result<Option<Self>> {
        Self::rewritten(path, graph, false)
    }

    fn rewritten(path: &Path, graph: &Graph, fuses: bool) -> Result<Option<Self>> {
        let details = Details::read(&mut Reader::open(path, FILE_LIMIT)?)?;
        let mut reader = Reader::open(path, FILE_LIMIT)?;
        let mut source = Source::read(&mut reader)?;
        if details.nodes.len() != source.nodes.len() {
            return Err(reader.invalid("has changed while it was read"));
        }
        let (attentions, constants) = {
            let facts = Facts::new(&source, &details, graph);
            let attentions = match fuses {
                true => find::find(&source, &details, &facts),
                false => Vec::new(),
            };
            (attentions, fold::find(&source, &facts))
        };
        let is_softmax = |node: &&super::scan::Node| node.standard() == Some("Softmax");
        let softmaxes = source.nodes.iter().filter(is_softmax).count();
        let folded = constants.len();
        for (i, constant) in constants {
            source.nodes[i] = constant;
        }
        let fused = rewrite::rewrite(&mut source, attentions);
        Ok((fused + folded > 0).then(|| Self {
            path: path.to_owned(),
            file: reader.into_file(),
            source,
            fused,
            softmaxes,
        }))
    }

    /// How many attentions are fused, and how many softmaxes the graph had, each of which is one at most.
    pub fn counts(&self) -> [usize; 2] {
        [self.fused, self.softmaxes]
    }

    /// The number of nodes that are left.
    pub fn nodes(&self) -> usize {
        self.source.nodes.len()
    }

    /// The graph as the bytes of an ONNX model. External data is where the original has it, relative to its folder.
    pub fn model(&self) -> Result<Vec<u8>> {
        rewrite::model(&self.source, &self.file, &self.path)
    }

    /// The same split in two, as [`Split::open`] does it to a file.
    pub fn split(self, live: &str, output: &str) -> Result<Option<Split>> {
        Split::of(self.path, self.file, self.source, live, output)
    }
}
