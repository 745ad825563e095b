//! The worker: one thread that loads the model, owns the stream and does all the computing.
//!
//! The streaming thread asks it for one thing at a time and waits; a flush or a stop ends the wait at once.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::prompts::PromptEncoder;
use super::settings::{Prompts, Settings};
use super::stats::Stats;
use crate::device::{Host, HostTensor};
use crate::engine::onnxruntime::OnnxModel;
use crate::engine::shared::{self, Loaded};
use crate::error::{Error, Result};
use crate::stream::{Conditioning, Shown, Stream};

/// A picture to restyle.
pub struct Frame {
    /// `[1, 3, H, W]` in [-1, 1].
    pub picture: HostTensor,
    /// Its name on its way through.
    pub ticket: u64,
    /// The properties at the time it came in.
    pub settings: Arc<Settings>,
    /// Whether a stream that holds nothing is first filled with copies of this picture, so that one comes out at once.
    pub prime: bool,
}

/// What a frame led to.
pub struct Restyled {
    /// Pictures that are ready, in the order of their frames.
    pub shown: Vec<Shown<HostTensor, u64>>,
    /// How many frames the stream holds back.
    pub delay: usize,
    /// How long it took.
    pub took: Duration,
}

enum Job {
    /// Wait for the model.
    Model(Reply<Arc<Loaded>>),
    /// Restyle a frame.
    Frame(Box<Frame>, Reply<Restyled>),
    /// Finish all frames.
    Drain(Reply<Vec<Shown<HostTensor, u64>>>),
    /// Forget all frames.
    Reset,
}

/// What comes back for a job.
enum Answer<R> {
    Done(Result<R>),
    /// The wait was ended from outside.
    Interrupted,
    /// The worker ended before it got to the job.
    Gone,
}

/// Where the answer to a job goes. A job that is dropped unanswered says so, so that nobody waits for ever.
struct Reply<R>(Option<mpsc::Sender<Answer<R>>>);

impl<R> Reply<R> {
    fn send(mut self, result: Result<R>) {
        if let Some(sender) = self.0.take() {
            // After a flush nobody listens any more.
            let _ = sender.send(Answer::Done(result));
        }
    }
}

impl<R> Drop for Reply<R> {
    fn drop(&mut self) {
        if let Some(sender) = self.0.take() {
            let _ = sender.send(Answer::Gone);
        }
    }
}

/// Why there is no answer.
#[derive(Debug)]
pub enum Unanswered {
    /// A flush or a stop ended the wait.
    Flushing,
    /// The work failed; the error has not been posted yet.
    Failed(Error),
    /// The worker has ended, which it only does after it has told its observer why.
    Gone,
}

/// Ends waits for the worker from another thread.
#[derive(Default)]
pub struct Interrupt(Mutex<Waiting>);

#[derive(Default)]
struct Waiting {
    flushing: bool,
    wake: Option<Box<dyn FnOnce() + Send>>,
}

impl Interrupt {
    /// From now on no wait lasts, and one that is under way ends.
    pub fn begin(&self) {
        let mut waiting = self.0.lock();
        waiting.flushing = true;
        if let Some(wake) = waiting.wake.take() {
            wake();
        }
    }

    /// Waits last again.
    pub fn end(&self) {
        self.0.lock().flushing = false;
    }
}

/// What the worker tells of its own accord.
pub trait Observer: Send + 'static {
    /// The model could not be loaded, or the worker broke down: it does nothing more.
    fn failed(&self, error: &Error);
    /// A live change could not be taken over; the old values stay in force.
    fn change_refused(&self, error: &Error);
    /// Something is done in part only.
    fn warned(&self, error: &Error);
}

/// A handle to the worker's thread, which ends when this is dropped.
pub struct Worker {
    jobs: Option<mpsc::Sender<Job>>,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    /// Starts the thread, which loads the model in `model` at once.
    pub fn new(
        model: PathBuf,
        stats: Arc<Mutex<Stats>>,
        observer: impl Observer,
    ) -> std::io::Result<Self> {
        let (jobs, received) = mpsc::channel();
        let thread = std::thread::Builder::new()
            .name("sd-worker".into())
            .spawn(move || {
                match guarded(|| Studio::new(&model, &stats)) {
                    Ok(mut studio) => studio.serve(&received, &stats, &observer),
                    Err(error) => observer.failed(&error),
                }
                // Jobs that nobody got to are dropped, and so answered, only now: the reason has been told.
                drop(received);
            })?;
        Ok(Self {
            jobs: Some(jobs),
            thread: Some(thread),
        })
    }

    /// A way to ask that needs no hold on this handle.
    pub fn asker(&self) -> Option<Asker> {
        self.jobs.clone().map(Asker)
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            // Panics in there have been turned into errors.
            let _ = thread.join();
        }
    }
}

/// Asks the worker.
#[derive(Clone)]
pub struct Asker(mpsc::Sender<Job>);

impl Asker {
    /// Waits for the model.
    pub fn model(&self, interrupt: &Interrupt) -> std::result::Result<Arc<Loaded>, Unanswered> {
        self.ask(interrupt, Job::Model)
    }

    /// Has a frame restyled.
    pub fn restyle(
        &self,
        interrupt: &Interrupt,
        frame: Frame,
    ) -> std::result::Result<Restyled, Unanswered> {
        self.ask(interrupt, |reply| Job::Frame(Box::new(frame), reply))
    }

    /// Has all frames finished.
    pub fn drain(
        &self,
        interrupt: &Interrupt,
    ) -> std::result::Result<Vec<Shown<HostTensor, u64>>, Unanswered> {
        self.ask(interrupt, Job::Drain)
    }

    /// Has all frames forgotten, without waiting for it.
    pub fn reset(&self) {
        // A worker that is gone holds no frames.
        let _ = self.0.send(Job::Reset);
    }

    fn ask<R: Send + 'static>(
        &self,
        interrupt: &Interrupt,
        job: impl FnOnce(Reply<R>) -> Job,
    ) -> std::result::Result<R, Unanswered> {
        let (sender, answer) = mpsc::channel();
        {
            let mut waiting = interrupt.0.lock();
            if waiting.flushing {
                return Err(Unanswered::Flushing);
            }
            let sender = sender.clone();
            waiting.wake = Some(Box::new(move || {
                let _ = sender.send(Answer::Interrupted);
            }));
        }
        // A job that cannot be sent is dropped with the error, and so answers.
        let _ = self.0.send(job(Reply(Some(sender))));
        let answer = answer.recv().unwrap_or(Answer::Gone);
        interrupt.0.lock().wake = None;
        match answer {
            Answer::Done(Ok(result)) => Ok(result),
            Answer::Done(Err(error)) => Err(Unanswered::Failed(error)),
            Answer::Interrupted => Err(Unanswered::Flushing),
            Answer::Gone => Err(Unanswered::Gone),
        }
    }
}

/// Turns a panic into an error, so that it ends a frame and not a thread that others wait for.
fn guarded<R>(work: impl FnOnce() -> Result<R>) -> Result<R> {
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(work))
        .unwrap_or_else(|_| Err(Error::engine("worker", "panicked; this is a bug")))
}

/// What the thread works with.
struct Studio {
    loaded: Arc<Loaded>,
    prompts: PromptEncoder<OnnxModel>,
    /// The prompts asked for last.
    wanted: Option<Prompts>,
    /// The properties looked at last.
    applied: Option<Arc<Settings>>,
    /// The properties in force: those looked at last, unless they could not be taken over.
    in_force: Option<Arc<Settings>>,
    /// The prompts in force.
    conditioning: Option<Conditioning<OnnxModel>>,
    running: Option<Running>,
}

type HostStream = Stream<Host, OnnxModel, u64>;

/// A stream and what it was made for.
struct Running {
    stream: HostStream,
    /// Width and height.
    size: (usize, usize),
    primed: bool,
}

impl Studio {
    /// Loads the model.
    fn new(model: &Path, stats: &Mutex<Stats>) -> Result<Self> {
        let loaded = shared::load(model)?;
        stats.lock().loaded(&loaded);
        Ok(Self {
            prompts: PromptEncoder::new(loaded.model.clone())?,
            loaded,
            wanted: None,
            applied: None,
            in_force: None,
            conditioning: None,
            running: None,
        })
    }

    /// Does jobs until nobody can ask for any more.
    fn serve(
        &mut self,
        jobs: &mpsc::Receiver<Job>,
        stats: &Mutex<Stats>,
        observer: &impl Observer,
    ) {
        for job in jobs {
            match job {
                Job::Model(reply) => reply.send(Ok(self.loaded.clone())),
                Job::Frame(frame, reply) => {
                    let restyled = guarded(|| self.restyle(*frame, observer));
                    self.tell(stats);
                    reply.send(restyled);
                }
                Job::Drain(reply) => {
                    let shown = guarded(|| match &mut self.running {
                        Some(running) => running.stream.drain(),
                        None => Ok(Vec::new()),
                    });
                    self.tell(stats);
                    reply.send(shown);
                }
                Job::Reset => {
                    if let Some(running) = &mut self.running {
                        running.stream.reset();
                        running.primed = false;
                    }
                }
            }
        }
    }

    fn tell(&self, stats: &Mutex<Stats>) {
        if let Some(running) = &self.running {
            stats.lock().update(&running.stream, running.size);
        }
    }

    fn restyle(&mut self, frame: Frame, observer: &impl Observer) -> Result<Restyled> {
        let start = Instant::now();
        let Frame {
            picture,
            ticket,
            settings,
            prime,
        } = frame;
        let size = match picture.shape() {
            &[_, _, height, width] => (width, height),
            shape => return Err(Error::engine("worker", format!("no picture: {shape:?}"))),
        };
        self.want_prompts(&settings);
        let mut running = match self.running.take() {
            Some(running) if running.size == size => running,
            _ => self.start(size, &settings)?,
        };
        self.apply(&mut running.stream, &settings, observer);
        if prime && !running.primed {
            running.stream.prime(&picture, &ticket)?;
            running.primed = true;
        }
        let shown = running.stream.submit(picture, ticket)?;
        let delay = running.stream.delay();
        self.running = Some(running);
        Ok(Restyled {
            shown,
            delay,
            took: start.elapsed(),
        })
    }

    fn want_prompts(&mut self, settings: &Settings) {
        let prompts = settings.prompts(self.loaded.folder.manifest());
        if self.wanted.as_ref() != Some(&prompts) {
            self.wanted = Some(prompts.clone());
            let needs = self.running.as_ref().map(|running| running.stream.needs());
            self.prompts.want(prompts, needs);
        }
    }

    /// A new stream, with the properties in force if there are any: newer ones are for [`Self::apply`] to take over or
    /// refuse. Frames wait for prompts only if there are none in force yet.
    fn start(&mut self, size: (usize, usize), settings: &Arc<Settings>) -> Result<Running> {
        let conditioning = match (&self.conditioning, &self.wanted) {
            (Some(conditioning), _) => conditioning.clone(),
            (None, Some(prompts)) => self.prompts.wait_for(prompts)?,
            (None, None) => return Err(Error::engine("text_encoder", "was asked for no prompt")),
        };
        self.conditioning = Some(conditioning.clone());
        let settings = self.in_force.clone().unwrap_or_else(|| settings.clone());
        let folder = &self.loaded.folder;
        let stream = Stream::new(
            Host,
            self.loaded.model.clone(),
            folder.scheduler().clone(),
            size,
            settings.frame_buffer_size as usize,
            settings.stream(folder.manifest(), folder.scheduler().method)?,
            conditioning,
        )?;
        if self.in_force.is_none() {
            self.in_force = Some(settings.clone());
            self.applied = Some(settings);
        }
        Ok(Running {
            stream,
            size,
            primed: false,
        })
    }

    /// Takes over live changes. What cannot be done is told once and leaves the old values in force.
    fn apply(
        &mut self,
        stream: &mut HostStream,
        settings: &Arc<Settings>,
        observer: &impl Observer,
    ) {
        if self.applied.as_ref() != Some(settings) {
            self.applied = Some(settings.clone());
            let folder = &self.loaded.folder;
            let changed = settings.stream(folder.manifest(), folder.scheduler().method);
            match changed.and_then(|settings| stream.configure(&settings)) {
                Ok(()) => self.in_force = Some(settings.clone()),
                Err(error) => observer.change_refused(&error),
            }
        }
        match self.prompts.take_new() {
            Some(Ok(conditioning)) => {
                self.conditioning = Some(conditioning.clone());
                stream.set_conditioning(conditioning);
            }
            Some(Err(error)) => observer.change_refused(&error),
            None => {}
        }
        if let Some(cut) = self.prompts.take_cut() {
            observer.warned(&cut);
        }
    }
}
