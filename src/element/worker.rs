//! The worker: one thread that loads the model, owns the stream and does all the computing.
//!
//! The streaming thread asks it for one thing at a time and waits; a flush or a stop ends the wait at once.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Duration;

use parking_lot::Mutex;

#[cfg(all(feature = "cuda", feature = "tensorrt"))]
use super::building;
#[cfg(feature = "cuda")]
use super::runtime::cuda::CudaRuntime;
use super::runtime::host::HostRuntime;
use super::runtime::{Input, LoadedModel, Output, Picture, Runtime};
use super::settings::Settings;
use super::stats::Stats;
use super::studio::Studio;
use super::venue::Venue;
#[cfg(all(feature = "cuda", feature = "tensorrt"))]
use crate::engine::BuildProgress;
use crate::error::{Error, Result};

/// A picture to restyle.
pub struct Frame {
    /// What it shows.
    pub input: Input,
    /// Its name on its way through.
    pub ticket: u64,
    /// The properties at the time it came in.
    pub settings: Arc<Settings>,
    /// Whether a stream that holds nothing is first filled with copies of this picture, so that one comes out at once.
    pub prime: bool,
}

/// A picture for one input frame.
pub struct Finished {
    /// The restyled picture; frames may share one.
    pub picture: Picture,
    /// The input frame's name.
    pub ticket: u64,
}

/// What a frame led to.
pub struct Restyled {
    /// Pictures that are ready, in the order of their frames.
    pub finished: Vec<Finished>,
    /// How many frames the stream holds back.
    pub delay: usize,
    /// How long it took.
    pub took: Duration,
}

pub(super) enum Job {
    /// Wait for the model.
    Model(Reply<LoadedModel>),
    /// Restyle a frame.
    Frame(Box<Frame>, Reply<Restyled>),
    /// Write a picture into a frame.
    Write(Picture, Box<Output>, Reply<gst::Buffer>),
    /// Finish all frames.
    Drain(Reply<Vec<Finished>>),
    /// Forget all frames.
    Reset,
}

/// What comes back for a job.
pub(super) enum Answer<R> {
    Done(Result<R>),
    /// The wait was ended from outside.
    Interrupted,
    /// The worker ended before it got to the job.
    Gone,
}

/// Where the answer to a job goes. A job that is dropped unanswered says so, so that nobody waits for ever.
pub(super) struct Reply<R>(Option<mpsc::Sender<Answer<R>>>);

impl<R> Reply<R> {
    pub(super) fn send(mut self, result: Result<R>) {
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
pub trait Observer: Send + Sync + 'static {
    /// The model could not be loaded, or the worker broke down: it does nothing more.
    fn failed(&self, error: &Error);
    /// A live change could not be taken over; the old values stay in force.
    fn change_refused(&self, error: &Error);
    /// Something is done in part only.
    fn warned(&self, error: &Error);
    /// Engines are being built while the model loads. Called on any thread.
    #[cfg(all(feature = "cuda", feature = "tensorrt"))]
    fn building(&self, progress: &BuildProgress);
}

/// A handle to the worker's thread, which ends when this is dropped.
pub struct Worker {
    jobs: Option<mpsc::Sender<Job>>,
    thread: Option<JoinHandle<()>>,
    /// Ends what takes long while the model loads.
    stop: Arc<AtomicBool>,
}

impl Worker {
    /// Starts the thread, which loads the model in `model` at once.
    pub fn new(
        model: PathBuf,
        venue: Venue,
        stats: Arc<Mutex<Stats>>,
        observer: impl Observer,
    ) -> std::io::Result<Self> {
        let (jobs, received) = mpsc::channel();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let observer = Arc::new(observer);
        let thread = std::thread::Builder::new()
            .name("sd-worker".into())
            .spawn(move || {
                match venue {
                    Venue::Cpu => {
                        let load = || HostRuntime::load(&model);
                        work(load, &received, &stats, &stopped, &*observer);
                    }
                    #[cfg(feature = "cuda")]
                    Venue::Gpu(gpu) => {
                        let load = || CudaRuntime::load(&model, gpu);
                        work(load, &received, &stats, &stopped, &*observer);
                    }
                    #[cfg(all(feature = "cuda", feature = "tensorrt"))]
                    Venue::TensorRt(gpu, request) => {
                        let building = building::building(&observer, stopped.clone());
                        let load = || CudaRuntime::load_engines(&model, gpu, &request, building);
                        work(load, &received, &stats, &stopped, &*observer);
                    }
                }
                // Jobs that nobody got to are dropped, and so answered, only now: the reason has been told.
                drop(received);
            })?;
        Ok(Self {
            jobs: Some(jobs),
            thread: Some(thread),
            stop,
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
        self.stop.store(true, Ordering::SeqCst);
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
    pub fn model(&self, interrupt: &Interrupt) -> std::result::Result<LoadedModel, Unanswered> {
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

    /// Has a picture written into a frame.
    pub fn write(
        &self,
        interrupt: &Interrupt,
        picture: Picture,
        output: Output,
    ) -> std::result::Result<gst::Buffer, Unanswered> {
        self.ask(interrupt, |reply| {
            Job::Write(picture, Box::new(output), reply)
        })
    }

    /// Has all frames finished.
    pub fn drain(&self, interrupt: &Interrupt) -> std::result::Result<Vec<Finished>, Unanswered> {
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

/// All that the thread does: loads a model, then does jobs with it until nobody can ask for any more.
fn work<R: Runtime>(
    load: impl FnOnce() -> Result<R>,
    jobs: &mpsc::Receiver<Job>,
    stats: &Mutex<Stats>,
    stopped: &AtomicBool,
    observer: &impl Observer,
) {
    match guarded(|| Studio::new(load()?, stats)) {
        Ok(mut studio) => studio.serve(jobs, stats, observer),
        // What was ended on purpose is no failure, and nobody waits for the model any more.
        Err(_) if stopped.load(Ordering::SeqCst) => {}
        Err(error) => observer.failed(&error),
    }
}

/// Turns a panic into an error, so that it ends a frame and not a thread that others wait for.
pub(super) fn guarded<R>(work: impl FnOnce() -> Result<R>) -> Result<R> {
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(work))
        .unwrap_or_else(|_| Err(Error::engine("worker", "panicked; this is a bug")))
}
