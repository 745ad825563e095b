//! Turns prompts into what the U-Net needs of them, on a thread of its own: no frame waits until a new prompt is
//! encoded.

use std::collections::VecDeque;
use std::sync::Arc;
use std::thread::JoinHandle;

use parking_lot::{Condvar, Mutex};

use super::encoding::{Encoded, Encoder};
use super::settings::Prompts;
use crate::engine::Model;
use crate::error::{Error, Result};
use crate::stream::{Needs, Target};

/// Prompts encoded ahead that are kept until they are asked for.
const AHEAD: usize = 32;

struct State<M: Model> {
    /// The prompts asked for last, and the stream they are for, if there is one yet.
    wanted: Option<(Prompts, Option<Needs>)>,
    /// Whether such prompts are being encoded.
    busy: bool,
    encoded: Option<Encoded<M>>,
    /// Whether `encoded` has not been taken by [`PromptEncoder::take_new`] yet.
    fresh: bool,
    /// Counts what makes prompts that are being encoded not count any more.
    superseded: u64,
    /// Prompts to encode when nothing else is to be done, and what became of such.
    ahead: VecDeque<Prompts>,
    ready: VecDeque<Encoded<M>>,
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
                busy: false,
                encoded: None,
                fresh: false,
                superseded: 0,
                ahead: VecDeque::new(),
                ready: VecDeque::new(),
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

    /// Waits until these prompts, which were asked for, are encoded, and takes them.
    pub fn wait_for(&self, prompts: &Prompts) -> Result<Encoded<M>> {
        let mut state = self.shared.state.lock();
        loop {
            // The same may have been encoded before; what was asked for is still to come then.
            if state.wanted.is_none()
                && !state.busy
                && let Some(encoded) = &state.encoded
                && encoded.prompts == *prompts
            {
                let encoded = encoded.clone();
                state.fresh = false;
                return Ok(encoded);
            }
            if state.closed {
                return Err(ended());
            }
            self.shared.changed.wait(&mut state);
        }
    }

    /// What became of the prompts encoded since the last call, if any were; an error, once, if the thread has ended.
    pub fn take_new(&self) -> Option<Result<Encoded<M>>> {
        let mut state = self.shared.state.lock();
        if std::mem::take(&mut state.fresh) {
            return state.encoded.clone().map(Ok);
        }
        let unserved = state.wanted.is_some() || state.busy;
        (state.closed && unserved).then(|| {
            (state.wanted, state.busy) = (None, false);
            Err(ended())
        })
    }

    /// Has prompts encoded that will be asked for some time, when there is nothing else to do.
    pub fn prepare(&self, prompts: Prompts) {
        let mut state = self.shared.state.lock();
        let known = state.ahead.contains(&prompts)
            || state.ready.iter().any(|ready| ready.prompts == prompts);
        if !known {
            if state.ahead.len() == AHEAD {
                state.ahead.pop_front();
            }
            state.ahead.push_back(prompts);
            self.shared.changed.notify_all();
        }
    }

    /// Takes these prompts, instead of any asked for before, if they have been encoded ahead.
    pub fn take_prepared(&self, prompts: &Prompts) -> Option<Encoded<M>> {
        let mut state = self.shared.state.lock();
        let place = state
            .ready
            .iter()
            .position(|ready| ready.prompts == *prompts)?;
        state.wanted = None;
        state.fresh = false;
        state.superseded += 1;
        state.ready.remove(place)
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

/// Has the model forget the thread when it ends, also by a panic.
struct Leaving<'a, M: Model>(&'a M);

impl<M: Model> Drop for Leaving<'_, M> {
    fn drop(&mut self) {
        self.0.release_thread();
    }
}

/// What the thread does next.
enum Task {
    /// Encode what is wanted, unless that changes meanwhile.
    Wanted(Prompts, Option<Needs>, u64),
    /// Encode what will be.
    Ahead(Prompts),
}

fn encode_all<M: Model>(shared: &Shared<M>, model: &M) {
    let _closing = Closing(shared);
    let _leaving = Leaving(model);
    let mut encoder = Encoder::new(model);
    let mut last: Option<Target<M>> = None;
    loop {
        let task = {
            let mut state = shared.state.lock();
            loop {
                if state.closed {
                    return;
                }
                if let Some((prompts, needs)) = state.wanted.take() {
                    state.busy = true;
                    break Task::Wanted(prompts, needs, state.superseded);
                }
                if let Some(prompts) = state.ahead.pop_front() {
                    break Task::Ahead(prompts);
                }
                shared.changed.wait(&mut state);
            }
        };
        match task {
            Task::Wanted(prompts, needs, superseded) => {
                let mut encoded = encoder.encode(&prompts);
                encoded.result = encoded.result.and_then(|mut target| {
                    prepare(&mut target, last.as_ref(), model, needs.as_ref())?;
                    last = Some(target.clone());
                    Ok(target)
                });
                let mut state = shared.state.lock();
                state.busy = false;
                state.fresh = state.superseded == superseded;
                state.encoded = Some(encoded);
            }
            Task::Ahead(prompts) => {
                let encoded = encoder.encode(&prompts);
                let mut state = shared.state.lock();
                if state.ready.len() == AHEAD {
                    state.ready.pop_front();
                }
                state.ready.push_back(encoded);
            }
        }
        shared.changed.notify_all();
    }
}

/// Makes ready what a stream needs. What `before` has ready serves `target` too, where the text is the same. A stream that is
/// not there yet has nothing to show meanwhile, and prepares them itself.
fn prepare<M: Model>(
    target: &mut Target<M>,
    before: Option<&Target<M>>,
    model: &M,
    needs: Option<&Needs>,
) -> Result<()> {
    let conditioning = &mut target.conditioning;
    if let Some(Target {
        conditioning: before,
        ..
    }) = before
    {
        conditioning.prompt.inherit(&before.prompt);
        conditioning.negative.inherit(&before.negative);
    }
    needs.map_or(Ok(()), |needs| conditioning.prepare(model, needs))
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;
    use crate::device::HostTensor;
    use crate::engine::{Denoise, Limits, Text, Wording};

    /// Encodes texts when it is let; panics at one that says so.
    struct Slow {
        begun: mpsc::Sender<String>,
        let_go: Mutex<mpsc::Receiver<()>>,
    }

    const LIMITS: Limits = Limits {
        latent_channels: 1,
        latent_scale: 1,
        multiple: 1,
        fixed_size: None,
        chunks: Some(1),
        samples_posterior: false,
        built: None,
    };

    impl Model for Slow {
        type Tensor = HostTensor;
        type Context = ();

        fn limits(&self) -> &Limits {
            &LIMITS
        }

        fn chunks(&self, _: &str) -> Result<usize> {
            Ok(1)
        }

        fn encode_text(&self, text: Option<&str>, _: usize) -> Result<Text<HostTensor>> {
            let embedding = HostTensor::new(&[1, 1, 1], vec![0.0]);
            let pooled = None;
            // There is no negative prompt.
            let Some(text) = text else {
                return Ok(Text { embedding, pooled });
            };
            self.begun.send(text.into()).unwrap();
            assert!(text != "panic", "as the test asked for");
            // Nobody holds it back after the test.
            let _ = self.let_go.lock().recv();
            Ok(Text { embedding, pooled })
        }

        fn precompute(
            &self,
            timesteps: &[u32],
            _: &Wording,
            _: (usize, usize),
            _: Option<&()>,
        ) -> Result<Vec<()>> {
            Ok(vec![(); timesteps.len()])
        }

        fn encode(&self, _: &HostTensor, _: Option<&HostTensor>) -> Result<HostTensor> {
            unreachable!("no frames here")
        }

        fn denoise(&self, _: &[Denoise<'_, Self>]) -> Result<Vec<HostTensor>> {
            unreachable!("no frames here")
        }

        fn decode(&self, _: &HostTensor) -> Result<HostTensor> {
            unreachable!("no frames here")
        }
    }

    fn prompts(prompt: &str) -> Prompts {
        Prompts {
            prompt: prompt.into(),
            ..Prompts::default()
        }
    }

    /// An encoder, the texts that it begins with, and what lets it go on.
    fn slow() -> (
        PromptEncoder<Slow>,
        mpsc::Receiver<String>,
        mpsc::Sender<()>,
    ) {
        let (begun, texts) = mpsc::channel();
        let (go, let_go) = mpsc::channel();
        let let_go = Mutex::new(let_go);
        let encoder = PromptEncoder::new(Arc::new(Slow { begun, let_go })).unwrap();
        (encoder, texts, go)
    }

    #[test]
    fn of_prompts_that_change_faster_the_last_one_counts() {
        let (encoder, begun, go) = slow();
        encoder.want(prompts("a"), None);
        assert_eq!(begun.recv().unwrap(), "a");
        for prompt in ["b", "c", "d"] {
            encoder.want(prompts(prompt), None);
        }
        assert!(encoder.take_new().is_none());
        go.send(()).unwrap();
        assert_eq!(begun.recv().unwrap(), "d");
        // What there is meanwhile is shown meanwhile.
        let new = encoder.take_new().unwrap().unwrap();
        assert_eq!(new.prompts, prompts("a"));
        go.send(()).unwrap();
        let encoded = encoder.wait_for(&prompts("d")).unwrap();
        assert!(encoded.result.is_ok());
        assert!(encoder.take_new().is_none(), "it has been taken");
    }

    #[test]
    fn what_was_prepared_comes_before_what_is_under_way() {
        let (encoder, begun, go) = slow();
        encoder.prepare(prompts("cue"));
        encoder.prepare(prompts("cue"));
        assert_eq!(begun.recv().unwrap(), "cue");
        assert!(encoder.take_prepared(&prompts("cue")).is_none());
        encoder.want(prompts("typed"), None);
        go.send(()).unwrap();
        assert_eq!(begun.recv().unwrap(), "typed");
        assert!(encoder.take_prepared(&prompts("cue")).is_some());
        assert!(encoder.take_prepared(&prompts("cue")).is_none(), "once");
        go.send(()).unwrap();
        encoder.want(prompts("last"), None);
        assert_eq!(begun.recv().unwrap(), "last");
        assert!(encoder.take_new().is_none(), "the cue is newer");
    }

    /// Whoever asked for a prompt is told once that none comes, not left with the old one in silence.
    #[test]
    fn a_thread_that_breaks_down_is_told_of() {
        let (encoder, begun, go) = slow();
        encoder.want(prompts("panic"), None);
        assert_eq!(begun.recv().unwrap(), "panic");
        let error = encoder.wait_for(&prompts("panic")).err().unwrap();
        assert!(error.to_string().contains("its thread has ended"));
        assert!(encoder.take_new().is_some_and(|told| told.is_err()));
        assert!(encoder.take_new().is_none(), "once");
        encoder.want(prompts("a"), None);
        assert!(encoder.wait_for(&prompts("a")).is_err());
        drop(go);
    }
}
