//! Text to token ids, as CLIP's tokenizer makes them.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;

use serde::Deserialize;
use serde_json::{Value, json};

use super::prompt::{self, Piece};
use super::read;
use crate::error::{Error, Result};

/// The longest text that is tokenised, in bytes: a chunk of 77 tokens has some 400.
const TEXT_LIMIT: usize = 64 << 10;
/// The most chunks of a prompt: the U-Net's work grows with their number.
const CHUNK_LIMIT: usize = 32;
/// CLIP's own length, where nothing says another.
const CLIP_LENGTH: usize = 77;
const START: &str = "<|startoftext|>";
const END: &str = "<|endoftext|>";
/// How CLIP cuts text into words.
const WORDS: &str =
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+";

/// A model folder's tokenizer. A clone shares the vocabulary.
#[derive(Clone)]
pub struct Tokenizer {
    inner: Arc<tokenizers::Tokenizer>,
    length: usize,
    start: i64,
    end: i64,
    pad: i64,
}

/// As much of a prompt as the text encoder takes at once: start token, text, end token, padding.
#[derive(Debug, Clone, PartialEq)]
pub struct Chunk {
    /// Token ids, [`Tokenizer::length`] of them.
    pub ids: Vec<i64>,
    /// The weight of each token; 1 for start, end and padding.
    pub weights: Vec<f32>,
}

impl Chunk {
    /// Whether a token has another weight than 1.
    pub fn is_weighted(&self) -> bool {
        self.weights.iter().any(|w| *w != 1.0)
    }
}

/// `tokenizer_config.json` and `special_tokens_map.json`.
#[derive(Default, Deserialize)]
struct Special {
    /// A float, because "no limit" is written as 10³⁰.
    model_max_length: Option<f64>,
    bos_token: Option<Token>,
    eos_token: Option<Token>,
    pad_token: Option<Token>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Token {
    Text(String),
    Object { content: String },
}

impl Token {
    fn into_text(self) -> String {
        match self {
            Self::Text(text) | Self::Object { content: text } => text,
        }
    }
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokenizer")
            .field("length", &self.length)
            .finish_non_exhaustive()
    }
}

impl Tokenizer {
    /// Opens the tokenizer in `folder`. `fixed_length` is the only length the text encoder takes, `max_length` the
    /// longest, and `vocab_size` the number of tokens it knows, each where it says so.
    pub(super) fn open(
        folder: &Path,
        fixed_length: Option<usize>,
        max_length: Option<usize>,
        vocab_size: Option<usize>,
    ) -> Result<Self> {
        let config_path = folder.join("tokenizer_config.json");
        let config: Special = read::json_or_default(&config_path, read::CONFIG_LIMIT)?;
        let map: Special =
            read::json_or_default(&folder.join("special_tokens_map.json"), read::CONFIG_LIMIT)?;
        let text = |a: Option<Token>, b: Option<Token>| a.or(b).map(Token::into_text);
        let start = text(config.bos_token, map.bos_token).unwrap_or_else(|| START.into());
        let end = text(config.eos_token, map.eos_token).unwrap_or_else(|| END.into());
        let pad = text(config.pad_token, map.pad_token).unwrap_or_else(|| end.clone());

        let file = folder.join("tokenizer.json");
        let (path, bytes) = if file.exists() {
            let bytes = read::bytes(&file, read::VOCABULARY_LIMIT)?;
            (file, bytes)
        } else {
            let vocab = folder.join("vocab.json");
            if !vocab.exists() {
                return Err(Error::not_found(
                    folder,
                    "expected tokenizer.json, or vocab.json and merges.txt, found neither",
                ));
            }
            let bytes = clip(&vocab, &folder.join("merges.txt"), [&start, &end, &pad])?;
            (vocab, bytes)
        };
        let mut inner = guarded(|| tokenizers::Tokenizer::from_bytes(bytes)).map_err(|e| {
            Error::invalid(&path, format!("not the tokenizer that was expected: {e}"))
        })?;
        inner.with_padding(None);
        // Removing the truncation cannot fail.
        let _ = inner.with_truncation(None);

        let id = |name: &str, token: &str| {
            inner.token_to_id(token).map(i64::from).ok_or_else(|| {
                Error::invalid(&path, format!("expected the {name} token {token:?} in it"))
            })
        };
        let (start, end, pad) = (id("start", &start)?, id("end", &end)?, id("padding", &pad)?);
        if let Some(size) = vocab_size {
            let last = inner.get_vocab(true).into_values().max().unwrap_or(0);
            if last as usize >= size {
                return Err(Error::invalid(
                    &path,
                    format!(
                        "has token ids up to {last}, expected them below {size}, the vocab_size of the text encoder: the tokenizer belongs to another model"
                    ),
                ));
            }
        }

        let said = config
            .model_max_length
            .or(map.model_max_length)
            .filter(|l| *l <= 4096.0)
            .map(|l| l as usize);
        let length = fixed_length.unwrap_or_else(|| {
            [said, max_length]
                .into_iter()
                .flatten()
                .min()
                .unwrap_or(CLIP_LENGTH)
        });
        if max_length.is_some_and(|max| length > max) {
            return Err(Error::invalid(
                folder,
                format!(
                    "texts have {length} tokens, more than the text encoder's max_position_embeddings"
                ),
            ));
        }
        if length < 2 {
            return Err(Error::invalid(
                &config_path,
                format!("texts have {length} tokens, expected at least the start and end token"),
            ));
        }
        Ok(Self {
            inner: Arc::new(inner),
            length,
            start,
            end,
            pad,
        })
    }

    /// Number of tokens of every text.
    pub fn length(&self) -> usize {
        self.length
    }

    /// The token ids of `text` as it stands, without the syntax of prompts, [`length`](Self::length) of them: start
    /// token, text (cut if it is too long), end token, padding. Fails only for texts of more than 64 KiB.
    pub fn encode(&self, text: &str) -> Result<Vec<i64>> {
        check_size(text)?;
        let mut tokens = self.words(text)?.concat();
        tokens.truncate(self.room());
        let tokens: Vec<_> = tokens.into_iter().map(|id| (id, 1.0)).collect();
        Ok(self.chunk(&tokens).ids)
    }

    /// The chunks of a prompt with [weights and breaks](prompt), at least one and at most 32.
    ///
    /// Each part is tokenised on its own. A prompt that is too long for one chunk goes on in the next; a word (what stands
    /// between spaces in one part) is cut in two only if a whole chunk cannot hold it. Plain text that one chunk can hold
    /// has the ids [`encode`](Self::encode) gives.
    ///
    /// # Errors
    /// [`Error::Setting`] of `prompt`: more than 64 KiB of text, more than 32 chunks, a weight that is out of range.
    pub fn chunks(&self, text: &str) -> Result<Vec<Chunk>> {
        check_size(text)?;
        let pieces = prompt::parse(text)?;
        if self.room() == 0 {
            return Ok(vec![self.empty()]);
        }
        let mut filling = Filling {
            tokenizer: self,
            full: Vec::new(),
            tokens: Vec::new(),
        };
        for piece in pieces {
            match piece {
                Piece::Break => filling.close()?,
                Piece::Part { text, weight } => {
                    for word in self.words(&text)? {
                        filling.add(&word, weight)?;
                    }
                }
            }
        }
        filling.finish()
    }

    /// The chunk of the empty text.
    pub fn empty(&self) -> Chunk {
        self.chunk(&[])
    }

    /// Tokens of text that a chunk can hold.
    fn room(&self) -> usize {
        self.length - 2
    }

    /// A chunk of at most [`room`](Self::room) tokens and their weights.
    fn chunk(&self, tokens: &[(i64, f32)]) -> Chunk {
        let (ids, weights): (Vec<_>, Vec<_>) = [(self.start, 1.0)]
            .iter()
            .chain(tokens)
            .chain(&[(self.end, 1.0)])
            .copied()
            .unzip();
        let mut chunk = Chunk { ids, weights };
        chunk.ids.resize(self.length, self.pad);
        chunk.weights.resize(self.length, 1.0);
        chunk
    }

    /// The token ids of `text`, word by word. Tokenised in one go, as not every tokenizer starts afresh after a space.
    fn words(&self, text: &str) -> Result<Vec<Vec<i64>>> {
        let encoding = guarded(|| self.inner.encode(text, false))
            .map_err(|e| Error::setting("prompt", format!("cannot be tokenised: {e}")))?;
        let mut words: Vec<Vec<i64>> = Vec::new();
        let mut last = 0;
        for (id, &(start, end)) in encoding.get_ids().iter().zip(encoding.get_offsets()) {
            // A token may hold the space before it.
            let own = text.get(start..end).unwrap_or_default();
            let start = start + own.len() - own.trim_start().len();
            let after_space = text
                .get(last..start)
                .is_some_and(|between| between.contains(char::is_whitespace));
            last = start;
            match words.last_mut() {
                Some(word) if !after_space => word.push(i64::from(*id)),
                _ => words.push(vec![i64::from(*id)]),
            }
        }
        Ok(words)
    }
}

/// Chunks in the making.
struct Filling<'a> {
    tokenizer: &'a Tokenizer,
    full: Vec<Chunk>,
    /// Tokens and weights of the chunk at hand.
    tokens: Vec<(i64, f32)>,
}

impl Filling<'_> {
    /// Adds a word to the chunk at hand, or to the next one if that can hold it whole.
    fn add(&mut self, mut word: &[i64], weight: f32) -> Result<()> {
        let room = self.tokenizer.room();
        if word.len() > room - self.tokens.len() && word.len() <= room {
            self.close()?;
        }
        while !word.is_empty() {
            if self.tokens.len() == room {
                self.close()?;
            }
            let (now, later) = word.split_at(word.len().min(room - self.tokens.len()));
            self.tokens.extend(now.iter().map(|id| (*id, weight)));
            word = later;
        }
        Ok(())
    }

    /// Ends the chunk at hand, even an empty one.
    fn close(&mut self) -> Result<()> {
        if self.full.len() == CHUNK_LIMIT {
            let room = self.tokenizer.room();
            return Err(Error::setting(
                "prompt",
                format!("is too long, expected at most {CHUNK_LIMIT} chunks of {room} tokens"),
            ));
        }
        self.full.push(self.tokenizer.chunk(&self.tokens));
        self.tokens.clear();
        Ok(())
    }

    fn finish(mut self) -> Result<Vec<Chunk>> {
        if !self.tokens.is_empty() || self.full.is_empty() {
            self.close()?;
        }
        Ok(self.full)
    }
}

fn check_size(text: &str) -> Result<()> {
    if text.len() > TEXT_LIMIT {
        return Err(Error::setting(
            "prompt",
            format!("has {} bytes, expected at most {TEXT_LIMIT}", text.len()),
        ));
    }
    Ok(())
}

/// The tokenizer library is handed files that nobody vouches for; should one make it panic, that is an error.
fn guarded<T>(f: impl FnOnce() -> tokenizers::Result<T>) -> std::result::Result<T, String> {
    match catch_unwind(AssertUnwindSafe(f)) {
        Ok(result) => result.map_err(|e| e.to_string()),
        Err(_) => Err("the tokenizer panicked".into()),
    }
}

/// A `tokenizer.json` of CLIP's kind from its two older files.
fn clip(vocab_path: &Path, merges_path: &Path, special: [&str; 3]) -> Result<Vec<u8>> {
    let vocab: Value = read::json(vocab_path, read::VOCABULARY_LIMIT)?;
    let merges = read::text(merges_path, read::VOCABULARY_LIMIT)?;
    let merges: Vec<&str> = merges
        .lines()
        .enumerate()
        .filter(|(i, line)| !line.is_empty() && (*i > 0 || !line.starts_with("#version")))
        .map(|(_, line)| line)
        .collect();
    if let Some(line) = merges.iter().find(|line| line.split(' ').count() != 2) {
        return Err(Error::invalid(
            merges_path,
            format!("has the line {line:?}, expected two pieces with one space between them"),
        ));
    }
    let mut added = Vec::new();
    // The padding token too: a "!" in a text is Stable Diffusion 2's padding, as its own tokenizer has it.
    for token in special {
        let id = vocab.get(token).and_then(Value::as_u64).ok_or_else(|| {
            Error::invalid(vocab_path, format!("expected the token {token:?} in it"))
        })?;
        added.push(json!({
            "id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true,
        }));
    }
    let tokenizer = json!({
        "version": "1.0",
        "added_tokens": added,
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "NFC"},
            {"type": "Replace", "pattern": {"Regex": r"\s+"}, "content": " "},
            {"type": "Lowercase"},
        ]},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": WORDS}, "behavior": "Removed", "invert": true},
            {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        ]},
        "model": {
            "type": "BPE", "unk_token": special[1], "continuing_subword_prefix": "", "end_of_word_suffix": "</w>",
            "fuse_unk": false, "vocab": vocab, "merges": merges,
        },
    });
    Ok(tokenizer.to_string().into_bytes())
}
