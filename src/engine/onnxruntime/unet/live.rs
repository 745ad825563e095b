//! The live part of a U-Net as a graph with known inputs, for another engine to run. The slow part stays here.

use super::given::{Given, TRIED};
use super::parts::{Cut, Rows, Source};
use crate::device::HostTensor;
use crate::engine::Numbers;
use crate::engine::onnxruntime::library;
use crate::engine::onnxruntime::provider::Provider;
use crate::error::Result;
use crate::model::{Dtype, ModelFolder, Split, TensorType};

/// The part of a U-Net that is run for every frame.
pub struct LivePart {
    split: Split,
    types: Vec<TensorType>,
    /// What it takes besides the latent, in its order.
    pub inputs: Vec<LiveInput>,
}

/// An input of the live part.
#[derive(Debug, Clone, PartialEq)]
pub struct LiveInput {
    /// Its name.
    pub name: String,
    /// Type of its values.
    pub dtype: Dtype,
    /// Whether those of several rows are stacked along the first axis; if not, only rows that agree on it can be in one
    /// call.
    pub stacked: bool,
    /// Its shape for one row, at each of the sizes that were asked for.
    pub shapes: Vec<Vec<usize>>,
}

impl LivePart {
    /// Cuts the U-Net of `folder` in two, and runs the slow part to see what the live one takes at each of `sizes`: chunks
    /// of text, and height and width of a latent.
    ///
    /// Why the U-Net can only be run whole, if so.
    ///
    /// # Errors
    /// [`Error::Library`](crate::error::Error::Library) without ONNX Runtime: then nothing can be said of the U-Net.
    pub fn open(
        folder: &ModelFolder,
        sizes: &[(usize, (usize, usize))],
    ) -> Result<std::result::Result<Self, String>> {
        library::runtime()?;
        Ok(Self::cut(folder, sizes))
    }

    fn cut(
        folder: &ModelFolder,
        sizes: &[(usize, (usize, usize))],
    ) -> std::result::Result<Self, String> {
        let given = Given::new(folder);
        let cut = Cut::open(folder, &given, None, &Provider::Cpu)?;
        let length = folder.text_encoders()[0].tokenizer.length();
        let mut shapes = vec![Vec::new(); cut.feeds.len()];
        for (chunks, size) in sizes {
            let texts = given.two_texts(length * chunks);
            let [text, _] =
                texts.ok_or("the graph does not tell how wide the text embedding is")?;
            let value = |role| -> Result<HostTensor> {
                let value = given.value(role, TRIED[0], &text, *size);
                value.map(Numbers::into_tensor)
            };
            let computed = cut.slow.run(value).map_err(|e| e.to_string())?;
            for (feed, shapes) in cut.feeds.iter().zip(&mut shapes) {
                shapes.push(match feed.source {
                    Source::Given(role) => {
                        let value = value(role).map_err(|e| e.to_string())?;
                        value.shape().to_vec()
                    }
                    Source::Computed(output) => computed[output].shape().to_vec(),
                });
            }
        }
        let dtype = |name: &str| {
            let outputs = cut.slow.outputs().iter();
            let inputs = folder.unet().inputs.iter().map(|(_, port)| port);
            let mut ports = outputs.chain(inputs);
            ports.find(|port| port.name == name).map(|port| port.dtype)
        };
        let names = cut.split.boundary().iter().map(|b| &b.name);
        let inputs = names.zip(&cut.feeds).zip(shapes);
        let inputs = inputs.map(|((name, feed), shapes)| {
            Some(LiveInput {
                name: name.clone(),
                dtype: dtype(name)?,
                stacked: feed.rows != Rows::Common,
                shapes,
            })
        });
        Ok(Self {
            inputs: inputs
                .collect::<Option<_>>()
                .ok_or("its parts do not fit together")?,
            split: cut.split,
            types: cut.types,
        })
    }

    /// Its graph, as the bytes of an ONNX model. External data is where the U-Net has it, relative to its folder.
    pub fn graph(&self) -> Result<Vec<u8>> {
        self.split.fast(&self.types)
    }
}
