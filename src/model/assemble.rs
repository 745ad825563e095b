//! A model put together from parts of a file.

use std::collections::HashSet;
use std::fs::File;
use std::path::Path;

use super::scan::Source;
use super::write::Message;
use crate::error::{Error, Result};

/// What of a source goes into a model: indices into its lists, ascending.
pub(super) struct Choice<'a> {
    pub nodes: &'a [usize],
    pub initializers: &'a [usize],
    /// The entries of inputs and outputs.
    pub ports: Message,
    /// Tensors that have an entry there although nodes make them elsewhere.
    pub inputs: HashSet<&'a str>,
}

impl Source {
    /// The bytes of a model of `choice`; `file`, at `path`, is what this was read from.
    pub fn assemble(&self, choice: Choice, file: &File, path: &Path) -> Result<Vec<u8>> {
        let mut graph = Message::default();
        for node in choice.nodes {
            graph.append(self.nodes[*node].bytes.clone());
        }
        for range in &self.header {
            graph.copy(range);
        }
        for initializer in choice.initializers {
            graph.copy(&self.initializers[*initializer].range);
        }
        graph.append(choice.ports);
        // Types that the file states hold in each part, which runs with a batch that the whole graph takes too. An
        // output has one entry and an input too, so those of the boundary are left out.
        let made: HashSet<&str> = choice
            .nodes
            .iter()
            .flat_map(|i| &self.nodes[*i].outputs)
            .map(String::as_str)
            .filter(|name| !choice.inputs.contains(name))
            .collect();
        let stated = self.value_info.iter();
        for value in stated.filter(|v| made.contains(v.name.as_str())) {
            graph.copy(&value.range);
        }
        let mut model = self.model.clone();
        model.message(7, graph);
        model
            .build(file)
            .map_err(|e| Error::not_found(path, format!("cannot be read, or has changed: {e}")))
    }
}
