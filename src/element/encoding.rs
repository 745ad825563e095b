//! Prompts to what the stream needs of them: mixes taken apart, texts encoded in one number of chunks, and blended.

use std::collections::VecDeque;
use std::sync::Arc;

use super::settings::Prompts;
use crate::device::HostTensor;
use crate::engine::{Model, Text};
use crate::error::{Error, Result};
use crate::model::mix::{self, Part};
use crate::stream::{Conditioning, Contexts, Filler, Interpolation, Target};

/// Texts whose embeddings are kept, and the bytes that these may take: long prompts of large models are some 20 MB each.
const CACHED: usize = 64;
const CACHED_BYTES: usize = 64 << 20;

/// What became of a pair of prompts.
pub struct Encoded<M: Model> {
    pub prompts: Prompts,
    pub result: Result<Target<M>>,
    /// What has been left out of them, if anything was.
    pub cut: Option<Error>,
}

impl<M: Model> Clone for Encoded<M> {
    fn clone(&self) -> Self {
        Self {
            prompts: self.prompts.clone(),
            result: self.result.clone(),
            cut: self.cut.clone(),
        }
    }
}

/// Encodes prompts; remembers the texts it encoded last.
pub struct Encoder<'a, M: Model> {
    model: &'a M,
    known: Known,
}

/// Texts by what they were made from, the newest at the back.
type Known = VecDeque<(Key, Arc<Text<HostTensor>>)>;

/// What an encoded text was made from.
#[derive(PartialEq)]
struct Key {
    text: Option<String>,
    chunks: usize,
    /// How it was blended, if it is a mix.
    mixed: Option<Interpolation>,
}

impl<'a, M: Model> Encoder<'a, M> {
    pub fn new(model: &'a M) -> Self {
        Self {
            model,
            known: VecDeque::new(),
        }
    }

    /// Encodes `prompts`. Nothing is prepared for a stream yet.
    pub fn encode(&mut self, prompts: &Prompts) -> Encoded<M> {
        let mut cut = None;
        let result = self.target(prompts, &mut cut);
        Encoded {
            prompts: prompts.clone(),
            result,
            cut,
        }
    }

    fn target(&mut self, prompts: &Prompts, cut: &mut Option<Error>) -> Result<Target<M>> {
        let negative = prompts.negative.as_deref();
        let parts = mix::parse(&prompts.prompt)?;
        let negative_parts = mix::parse(negative.unwrap_or_default()).map_err(of_negative)?;
        let (chunks, too_long) = self.chunks(&parts, &negative_parts)?;
        *cut = too_long;
        let blend = prompts.interpolation;
        let text = self.mix(&prompts.prompt, &parts, chunks, blend)?;
        let negative_text = match negative {
            Some(negative) => self.mix(negative, &negative_parts, chunks, blend),
            None => self.text(None, chunks),
        };
        let negative_text = negative_text.map_err(of_negative)?;
        let fillers = [
            self.filler(Some(""), &text)?,
            self.filler(negative.map(|_| ""), &negative_text)?,
        ];
        Ok(Target {
            conditioning: Conditioning {
                prompt: Contexts::new(text),
                negative: Contexts::new(negative_text),
            },
            fillers,
        })
    }

    /// How many chunks all texts are encoded in, as rows of one call and parts of one mix must be of one length; an error
    /// for people if that leaves some of them out.
    fn chunks(&self, parts: &[Part], negative: &[Part]) -> Result<(usize, Option<Error>)> {
        let negative = self.most(negative).map_err(of_negative)?;
        let wanted = self.most(parts)?.max(negative);
        let chunks = self.model.limits().chunks.unwrap_or(wanted);
        let cut = (chunks < wanted).then(|| {
            let property = match negative == wanted {
                true => "negative-prompt",
                false => "prompt",
            };
            Error::setting(
                property,
                format!("too long: it takes {wanted} chunks, this model has room for {chunks}, and the rest is left out"),
            )
        });
        Ok((chunks, cut))
    }

    /// The number of chunks of the longest part.
    fn most(&self, parts: &[Part]) -> Result<usize> {
        let mut most = 1;
        for (i, part) in parts.iter().enumerate() {
            let chunks = self.model.chunks(part.text);
            most = most.max(match parts.len() {
                1 => chunks?,
                _ => chunks.map_err(|error| of_part(i + 1, error))?,
            });
        }
        Ok(most)
    }

    /// The text that is made of `parts`.
    fn mix(
        &mut self,
        text: &str,
        parts: &[Part],
        chunks: usize,
        interpolation: Interpolation,
    ) -> Result<Arc<Text<HostTensor>>> {
        if let [_] = parts {
            return self.text(Some(text), chunks);
        }
        let key = Key {
            text: Some(text.into()),
            chunks,
            mixed: Some(interpolation),
        };
        self.remember(key, |encoder| {
            let texts = parts
                .iter()
                .map(|part| encoder.text(Some(part.text), chunks));
            let texts = texts.collect::<Result<Vec<_>>>()?;
            let shares = parts.iter().map(|part| part.share);
            let shares: Vec<_> = shares.zip(texts.iter().map(|text| &**text)).collect();
            let mixed = Text::mix(&shares, interpolation);
            mixed.ok_or_else(|| Error::setting("prompt", "is a mix of nothing"))
        })
    }

    /// A text that is no mix, or none.
    fn text(&mut self, text: Option<&str>, chunks: usize) -> Result<Arc<Text<HostTensor>>> {
        let key = Key {
            text: text.map(str::to_owned),
            chunks,
            mixed: None,
        };
        self.remember(key, |encoder| encoder.model.encode_text(text, chunks))
    }

    /// What `filled` is filled up with to more chunks, if it ever is: an empty chunk of the same kind.
    fn filler(&mut self, empty: Option<&str>, filled: &Filler) -> Result<Filler> {
        match self.model.limits().chunks {
            Some(_) => Ok(filled.clone()),
            None => self.text(empty, 1),
        }
    }

    fn remember(
        &mut self,
        key: Key,
        make: impl FnOnce(&mut Self) -> Result<Text<HostTensor>>,
    ) -> Result<Arc<Text<HostTensor>>> {
        let known = self.known.iter().position(|(known, _)| *known == key);
        let text = match known.and_then(|index| self.known.remove(index)) {
            Some((_, text)) => text,
            None => Arc::new(make(self)?),
        };
        self.known.push_back((key, text.clone()));
        forget_oldest(&mut self.known, CACHED, CACHED_BYTES);
        Ok(text)
    }
}

/// Keeps at most so many texts, of so many bytes together; the newest in any case.
fn forget_oldest(known: &mut Known, most: usize, most_bytes: usize) {
    let size = |text: &Text<HostTensor>| {
        let tensors = [Some(&text.embedding), text.pooled.as_ref()];
        let values = tensors.into_iter().flatten().map(|t| t.data().len());
        values.sum::<usize>() * size_of::<f32>()
    };
    let mut bytes: usize = known.iter().map(|(_, text)| size(text)).sum();
    while known.len() > most || (bytes > most_bytes && known.len() > 1) {
        if let Some((_, text)) = known.pop_front() {
            bytes -= size(&text);
        }
    }
}

/// An error about a prompt, told of the negative one.
fn of_negative(error: Error) -> Error {
    match error {
        Error::Setting {
            property: "prompt",
            what,
        } => Error::setting("negative-prompt", what),
        other => other,
    }
}

/// An error about a prompt, told of a part of a mix.
fn of_part(number: usize, error: Error) -> Error {
    match error {
        Error::Setting { property, what } => {
            Error::setting(property, format!("part {number} {what}"))
        }
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_kept_by_number_and_size() {
        let mut known = Known::new();
        let mut add = |chunks: usize, most, most_bytes| {
            let text = Text {
                embedding: HostTensor::new(&[1, chunks, 2], vec![0.0; 2 * chunks]),
                pooled: Some(HostTensor::new(&[1, 2], vec![0.0; 2])),
            };
            let key = Key {
                text: None,
                chunks,
                mixed: None,
            };
            known.push_back((key, Arc::new(text)));
            forget_oldest(&mut known, most, most_bytes);
            known.iter().map(|(key, _)| key.chunks).collect::<Vec<_>>()
        };
        // A text of n chunks takes 8·(n + 1) bytes here.
        assert_eq!(add(1, 3, 100), [1]);
        assert_eq!(add(2, 3, 100), [1, 2]);
        assert_eq!(add(3, 3, 100), [1, 2, 3]);
        assert_eq!(add(1, 3, 100), [2, 3, 1]);
        assert_eq!(add(6, 3, 100), [1, 6]);
        assert_eq!(add(3, 3, 8 * (7 + 4)), [6, 3]);
        assert_eq!(add(3, 3, 8 * (7 + 4)), [3, 3]);
        assert_eq!(add(50, 3, 100), [50]);
        assert_eq!(add(1, 3, 100), [1]);
    }
}
