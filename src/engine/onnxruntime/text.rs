//! Texts to embeddings: one text encoder, or the two of Stable Diffusion XL.

use super::provider::Provider;
use super::session::{Session, Values};
use crate::device::HostTensor;
use crate::engine::{Telling, Text};
use crate::error::Result;
use crate::model::{Chunk, ComponentFile, ModelFolder, Role, TextEncoder, Tokenizer, weigh};

/// The text encoders of a model.
pub(in crate::engine) struct Texts {
    encoders: Vec<Encoder>,
    /// Whether no text is embeddings of zeros.
    zeros_for_none: bool,
}

struct Encoder {
    session: Session,
    file: ComponentFile,
    tokenizer: Tokenizer,
}

impl Texts {
    /// Loads the text encoders of `folder`, after `tell` has been told of each.
    pub(in crate::engine::onnxruntime) fn open(
        folder: &ModelFolder,
        provider: &Provider,
        tell: Telling<'_>,
    ) -> Result<Self> {
        let encoder = |encoder: &TextEncoder| {
            tell(encoder.file.component)?;
            Ok(Encoder {
                session: Session::open(&encoder.file, provider)?,
                file: encoder.file.clone(),
                tokenizer: encoder.tokenizer.clone(),
            })
        };
        let encoders = folder.text_encoders();
        Ok(Self {
            zeros_for_none: folder.zero_negative(),
            encoders: encoders.iter().map(encoder).collect::<Result<_>>()?,
        })
    }

    /// How many chunks `text` takes.
    pub fn chunks(&self, text: &str) -> Result<usize> {
        let mut most = 1;
        for encoder in &self.encoders {
            // Vocabularies may differ, if only in what they pad with.
            most = most.max(encoder.tokenizer.chunks(text)?.len());
        }
        Ok(most)
    }

    /// `text` in `chunks` chunks; see [`Model::encode_text`](crate::engine::Model::encode_text).
    pub fn encode(&self, text: Option<&str>, chunks: usize) -> Result<Text<HostTensor>> {
        let mut parts = Vec::new();
        let mut pooled = None;
        for encoder in &self.encoders {
            let (embedding, of_first) = encoder.encode(text.unwrap_or_default(), chunks)?;
            parts.push(embedding);
            pooled = of_first;
        }
        let mut encoded = Text {
            embedding: side_by_side(parts),
            pooled,
        };
        if self.zeros_for_none && text.is_none() {
            encoded.embedding.data_mut().fill(0.0);
            if let Some(pooled) = &mut encoded.pooled {
                pooled.data_mut().fill(0.0);
            }
        }
        Ok(encoded)
    }
}

impl Encoder {
    /// The embedding `[1, chunks·l, D]` of `text`, and the pooled one `[1, P]` of its first chunk where there is one.
    fn encode(&self, text: &str, chunks: usize) -> Result<(HostTensor, Option<HostTensor>)> {
        let nothing = self.tokenizer.empty();
        let mut rows = self.tokenizer.chunks(text)?;
        rows.resize(chunks, nothing.clone());
        let mut data = Vec::new();
        let mut width = 0;
        let mut pooled = None;
        let mut empty = None;
        for chunk in rows {
            let (embedding, of_chunk) = self.run(&chunk)?;
            pooled = pooled.or(of_chunk);
            width = embedding.shape()[2];
            let mut embedding = embedding.into_data();
            if chunk.is_weighted() {
                let empty = match &empty {
                    Some(empty) => empty,
                    None => empty.insert(self.run(&nothing)?.0),
                };
                weigh(&mut embedding, empty.data(), &chunk.weights);
            }
            data.extend(embedding);
        }
        let length = chunks * self.tokenizer.length();
        Ok((HostTensor::new(&[1, length, width], data), pooled))
    }

    /// The embedding `[1, l, D]` of a chunk, and the pooled one `[1, P]`.
    fn run(&self, chunk: &Chunk) -> Result<(HostTensor, Option<HostTensor>)> {
        let length = chunk.ids.len();
        let rows = self.file.batch().unwrap_or(1);
        let ids = chunk.ids.repeat(rows);
        let ones = vec![1; ids.len()];
        let positions: Vec<i64> = (0..length as i64).collect::<Vec<_>>().repeat(rows);
        let shape = [rows, length];
        let inputs: Vec<_> = self
            .file
            .inputs
            .iter()
            .map(|(role, _)| match role {
                Role::AttentionMask => &ones,
                Role::PositionIds => &positions,
                _ => &ids,
            })
            .map(|values| (&shape[..], Values::Integers(values)))
            .collect();
        let mut outputs = self.session.run(&inputs)?.into_iter();
        let embedding = match outputs.next() {
            Some(output) if matches!(*output.shape(), [r, l, _] if [r, l] == shape) => {
                first_row(output)
            }
            other => {
                return Err(self.session.error(format!(
                    "gave a text embedding of shape {:?}, expected [{rows}, {length}, width]",
                    other.as_ref().map(HostTensor::shape)
                )));
            }
        };
        match outputs.next() {
            Some(output) if matches!(*output.shape(), [r, _] if r == rows) => {
                Ok((embedding, Some(first_row(output))))
            }
            Some(other) => Err(self.session.error(format!(
                "gave a pooled text embedding of shape {:?}, expected [{rows}, width]",
                other.shape()
            ))),
            None => Ok((embedding, None)),
        }
    }
}

/// The first row `[1, …]` of a tensor `[k, …]`.
fn first_row(tensor: HostTensor) -> HostTensor {
    let mut shape = tensor.shape().to_vec();
    shape[0] = 1;
    let mut data = tensor.into_data();
    data.truncate(shape.iter().product());
    HostTensor::new(&shape, data)
}

/// One embedding `[1, L, ΣD]` of embeddings `[1, L, D]`.
fn side_by_side(mut parts: Vec<HostTensor>) -> HostTensor {
    if parts.len() == 1 {
        return parts.remove(0);
    }
    let length = parts[0].shape()[1];
    let width = parts.iter().map(|p| p.shape()[2]).sum();
    let mut data = Vec::with_capacity(length * width);
    for token in 0..length {
        for part in &parts {
            let width = part.shape()[2];
            data.extend_from_slice(&part.data()[token * width..][..width]);
        }
    }
    HostTensor::new(&[1, length, width], data)
}
