//! Turns prompts into what the U-Net needs of them, on a thread of its own: a new prompt never holds up a frame.

use std::collections::VecDeque;
use std::sync::Arc;
use std::thread::JoinHandle;

use parking_lot::{Condvar, Mutex};

use super::settings::Prompts;
use crate::device::HostTensor;
use crate::engine::{Model, Text};
use crate::error::{Error, Result};
use crate::stream::{Conditioning, Contexts, Needs};

/// Texts whose embeddings are kept.
const CACHED: usize = 64;

/// What became of a pair of prompts.
struct Encoded<M: Model> {
    prompts: Prompts,
    result: Result<Conditioning<M>>,
}

struct State<M: Model> {
    /// The prompts asked for last, and the stream they are for, if there is one yet.
    wanted: Option<(Prompts, Option<Needs>)>,
    encoded: Option<Encoded<M>>,
    /// What has been left out of a prompt, until somebody is told.
    cut: Option<Error>,
    /// Whether `encoded` has not been taken by [`PromptEncoder::take_new`] yet.
    fresh: bool,
    closed: bool,
}

struct Shared<M: Model> {
    state: Mutex<State<M>>,
    changed: Condvar,
}

/// The encoding thread. Of prompts that change faster than they can be encoded only the last one counts.
pub struct PromptEncoder<M: Model> {
    shared: Arc<Shared<M>>,
    thread: Option<JoinHandle<()>>,
}

impl<M: Model> PromptEncoder<M> {
    /// Starts the thread.
    pub fn new(model: Arc<M>) -> Result<Self> {
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

    /// Asks for these prompts, instead of any asked for before, ready for a stream with these needs if there is one yet.
    pub fn want(&self, prompts: Prompts, needs: Option<Needs>) {
        self.shared.state.lock().wanted = Some((prompts, needs));
        self.shared.changed.notify_all();
    }

    /// Waits until these prompts, which were asked for, are encoded.
    pub fn wait_for(&self, prompts: &Prompts) -> Result<Conditioning<M>> {
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

    /// The prompts encoded since the last call, if any were, and what became of them; an error, once, if the thread has ended.
    pub fn take_new(&self) -> Option<Result<(Prompts, Conditioning<M>)>> {
        let mut state = self.shared.state.lock();
        if std::mem::take(&mut state.fresh) {
            return state.encoded.as_ref().map(|encoded| {
                let conditioning = encoded.result.clone()?;
                Ok((encoded.prompts.clone(), conditioning))
            });
        }
        (state.closed && state.wanted.take().is_some()).then(|| Err(ended()))
    }
}

impl<M: Model> Drop for PromptEncoder<M> {
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
struct Closing<'a, M: Model>(&'a Shared<M>);

impl<M: Model> Drop for Closing<'_, M> {
    fn drop(&mut self) {
        self.0.state.lock().closed = true;
        self.0.changed.notify_all();
    }
}

fn encode_all<M: Model>(shared: &Shared<M>, model: &M) {
    let _closing = Closing(shared);
    let mut cache = Cache {
        model,
        entries: VecDeque::new(),
    };
    let mut last: Option<Conditioning<M>> = None;
    loop {
        let (prompts, needs) = {
            let mut state = shared.state.lock();
            loop {
                if state.closed {
                    return;
                }
                if let Some(wanted) = state.wanted.take() {
                    break wanted;
                }
                shared.changed.wait(&mut state);
            }
        };
        let mut cut = None;
        let result = (|| {
            let (chunks, too_long) = chunks(model, &prompts)?;
            cut = too_long;
            let mut conditioning = Conditioning {
                prompt: Contexts::new(cache.encode(Some(&prompts.prompt), chunks)?),
                negative: Contexts::new(
                    cache
                        .encode(prompts.negative.as_deref(), chunks)
                        .map_err(of_negative)?,
                ),
            };
            if let Some(last) = &last {
                keep(&mut conditioning.prompt, &last.prompt);
                keep(&mut conditioning.negative, &last.negative);
            }
            // A stream that is not there yet has nothing to show meanwhile, and prepares them itself.
            if let Some(needs) = &needs {
                conditioning.prepare(model, needs)?;
            }
            last = Some(conditioning.clone());
            Ok(conditioning)
        })();
        let mut state = shared.state.lock();
        state.encoded = Some(Encoded { prompts, result });
        state.cut = cut;
        state.fresh = true;
        shared.changed.notify_all();
    }
}

/// How many chunks both prompts are encoded in, as rows of one call must be of one length; an error for people if that
/// leaves some of them out.
fn chunks<M: Model>(model: &M, prompts: &Prompts) -> Result<(usize, Option<Error>)> {
    let negative = prompts.negative.as_deref().unwrap_or_default();
    let negative = model.chunks(negative).map_err(of_negative)?;
    let wanted = model.chunks(&prompts.prompt)?.max(negative);
    let chunks = model.limits().chunks.unwrap_or(wanted);
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

/// What `before` has ready serves `new` too, if the text is the same.
fn keep<M: Model>(new: &mut Contexts<M>, before: &Contexts<M>) {
    if Arc::ptr_eq(new.text(), before.text()) {
        new.clone_from(before);
    }
}

/// What an encoded text was made from: the text, if any, and the number of chunks.
type Key = (Option<String>, usize);

/// The texts used last, encoded, the newest at the back.
struct Cache<'a, M: Model> {
    model: &'a M,
    entries: VecDeque<(Key, Arc<Text<HostTensor>>)>,
}

impl<M: Model> Cache<'_, M> {
    fn encode(&mut self, text: Option<&str>, chunks: usize) -> Result<Arc<Text<HostTensor>>> {
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
