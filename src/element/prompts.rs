//! Turns prompts into embeddings, on a thread of its own: a new prompt never holds up a frame.

use std::collections::VecDeque;
use std::sync::Arc;
use std::thread::JoinHandle;

use parking_lot::{Condvar, Mutex};

use super::settings::Prompts;
use crate::engine::{Model, Text};
use crate::error::{Error, Result};
use crate::stream::Conditioning;

/// Texts whose embeddings are kept.
const CACHED: usize = 64;

/// What became of a pair of prompts.
struct Encoded<X> {
    prompts: Prompts,
    result: Result<Conditioning<X>>,
}

struct State<X> {
    wanted: Option<Prompts>,
    encoded: Option<Encoded<X>>,
    /// What has been left out of a prompt, until somebody is told.
    cut: Option<Error>,
    /// Whether `encoded` has not been taken by [`PromptEncoder::take_new`] yet.
    fresh: bool,
    closed: bool,
}

struct Shared<X> {
    state: Mutex<State<X>>,
    changed: Condvar,
}

/// The encoding thread. Of prompts that change faster than they can be encoded only the last one counts.
pub struct PromptEncoder<X> {
    shared: Arc<Shared<X>>,
    thread: Option<JoinHandle<()>>,
}

impl<X: Send + Sync + 'static> PromptEncoder<X> {
    /// Starts the thread.
    pub fn new(model: Arc<dyn Model<Tensor = X>>) -> Result<Self> {
        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                wanted: None,
                encoded: None,
                cut: None,
                fresh: false,
                closed: false,
            }),
            changed: Condvar::new(),
        });
        let thread = std::thread::Builder::new()
            .name("sd-prompt".into())
            .spawn({
                let shared = shared.clone();
                move || encode_all(&shared, &*model)
            })
            .map_err(|err| Error::engine("text_encoder", format!("no thread: {err}")))?;
        Ok(Self {
            shared,
            thread: Some(thread),
        })
    }

    /// Asks for these prompts, instead of any asked for before.
    pub fn want(&self, prompts: Prompts) {
        self.shared.state.lock().wanted = Some(prompts);
        self.shared.changed.notify_all();
    }

    /// Waits until these prompts, which were asked for, are encoded.
    pub fn wait_for(&self, prompts: &Prompts) -> Result<Conditioning<X>> {
        let mut state = self.shared.state.lock();
        loop {
            if let Some(encoded) = &state.encoded
                && encoded.prompts == *prompts
            {
                let result = encoded.result.clone();
                state.fresh = false;
                return result;
            }
            if state.closed {
                return Err(ended());
            }
            self.shared.changed.wait(&mut state);
        }
    }

    /// What was left out of the prompts encoded since the last call, if anything was.
    pub fn take_cut(&self) -> Option<Error> {
        self.shared.state.lock().cut.take()
    }

    /// What became of the prompts encoded since the last call, if any were; an error, once, if the thread has ended.
    pub fn take_new(&self) -> Option<Result<Conditioning<X>>> {
        let mut state = self.shared.state.lock();
        if std::mem::take(&mut state.fresh) {
            return state.encoded.as_ref().map(|encoded| encoded.result.clone());
        }
        (state.closed && state.wanted.take().is_some()).then(|| Err(ended()))
    }
}

impl<X> Drop for PromptEncoder<X> {
    fn drop(&mut self) {
        self.shared.state.lock().closed = true;
        self.shared.changed.notify_all();
        if let Some(thread) = self.thread.take() {
            // After a panic in there, whoever wants a prompt has been told that the thread has ended.
            let _ = thread.join();
        }
    }
}

fn ended() -> Error {
    Error::engine("text_encoder", "its thread has ended; this is a bug")
}

/// Marks the encoder closed when its thread ends, also by a panic, so that nobody waits for it for ever.
struct Closing<'a, X>(&'a Shared<X>);

impl<X> Drop for Closing<'_, X> {
    fn drop(&mut self) {
        self.0.state.lock().closed = true;
        self.0.changed.notify_all();
    }
}

fn encode_all<X>(shared: &Shared<X>, model: &dyn Model<Tensor = X>) {
    let _closing = Closing(shared);
    let mut cache = Cache {
        model,
        entries: VecDeque::new(),
    };
    loop {
        let prompts = {
            let mut state = shared.state.lock();
            loop {
                if state.closed {
                    return;
                }
                if let Some(prompts) = state.wanted.take() {
                    break prompts;
                }
                shared.changed.wait(&mut state);
            }
        };
        let mut cut = None;
        let result = (|| {
            // Rows of one call must be of one length.
            let chunks = model.chunks(&prompts.prompt)?;
            let negative = prompts.negative.as_deref();
            let wanted = chunks.max(model.chunks(negative.unwrap_or_default())?);
            let chunks = wanted.min(model.limits().most_chunks);
            if chunks < wanted {
                cut = Some(Error::setting(
                    "prompt",
                    format!(
                        "too long: it takes {wanted} chunks, this model has room for {chunks}, and the rest is left out"
                    ),
                ));
            }
            Ok(Conditioning {
                prompt: cache.encode(Some(&prompts.prompt), chunks)?,
                negative: cache.encode(negative, chunks)?,
            })
        })();
        let mut state = shared.state.lock();
        state.encoded = Some(Encoded { prompts, result });
        state.cut = cut;
        state.fresh = true;
        shared.changed.notify_all();
    }
}

/// What an encoded text was made from: the text, if any, and the number of chunks.
type Key = (Option<String>, usize);

/// The texts used last, encoded, the newest at the back.
struct Cache<'a, X> {
    model: &'a dyn Model<Tensor = X>,
    entries: VecDeque<(Key, Arc<Text<X>>)>,
}

impl<X> Cache<'_, X> {
    fn encode(&mut self, text: Option<&str>, chunks: usize) -> Result<Arc<Text<X>>> {
        let key = (text.map(str::to_owned), chunks);
        let known = self.entries.iter().position(|(known, _)| *known == key);
        let encoded = match known.and_then(|index| self.entries.remove(index)) {
            Some((_, encoded)) => encoded,
            None => Arc::new(self.model.encode_text(text, chunks)?),
        };
        if self.entries.len() == CACHED {
            self.entries.pop_front();
        }
        self.entries.push_back((key, encoded.clone()));
        Ok(encoded)
    }
}
