//! The worker: one thread that loads the model, owns the stream and does all the computing.
//!
//! The streaming thread asks it for one thing after the other; a flush or a stop ends its waits for an answer at once. What is
//! answered of a frame on a GPU may still be computed.

use std::cell::Cell;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

#[cfg(all(feature = "cuda", feature = "tensorrt"))]
use super::building;
use super::cues::Cue;
#[cfg(feature = "cuda")]
use super::runtime::cuda::CudaRuntime;
use super::runtime::host::HostRuntime;
use super::runtime::{Computing, Input, LoadedModel, Output, Picture, Runtime, Written};
use super::settings::{Prompts, Settings};
use super::skipping::Change;
use super::stats::Stats;
use super::studio::Studio;
use super::venue::Venue;
#[cfg(all(feature = "cuda", feature = "tensorrt"))]
use crate::engine::BuildProgress;
use crate::engine::{self, Telling};
use crate::error::{Error, Result};
use crate::model::Component;

/// What a frame is known by outside.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stamp {
    /// Its time in the stream.
    pub pts: Option<gst::ClockTime>,
    /// Its running time.
    pub running_time: Option<gst::ClockTime>,
}

/// A frame to restyle, whose picture has been announced.
pub struct Frame {
    /// Its name on its way through.
    pub ticket: u64,
    /// Its name outside.
    pub stamp: Stamp,
    /// The properties at the time it came in.
    pub settings: Arc<Settings>,
    /// Its time, and the prompt for it.
    pub moment: Moment,
    /// Whether a stream that holds nothing is first filled with copies of this picture, so that one comes out at once.
    pub prime: bool,
    /// Whether it shows what the frame before it showed.
    pub again: bool,
}

/// When a frame is shown, and what timed prompts say about it.
pub struct Moment {
    /// Running time, if it is known.
    pub time: Option<gst::ClockTime>,
    /// The cue whose prompt is in force instead of the property's.
    pub cue: Option<Arc<Cue>>,
    /// Whether a change of cues takes effect at this very frame, which waits for the prompt to be encoded.
    pub exact: bool,
}

/// A picture for one input frame.
pub struct Finished {
    /// The restyled picture; frames may share one.
    pub picture: Picture,
    /// The input frame's name.
    pub ticket: u64,
}

/// What a frame leads to.
pub struct Restyled {
    /// Pictures, in the order of their frames.
    pub finished: Vec<Finished>,
    /// How many frames the stream holds back.
    pub delay: usize,
    /// How many frames are computed together.
    pub group: usize,
    /// Whether it went through the U-Net, and was not skipped.
    pub processed: bool,
    /// What is still being done: the pictures are ready after that.
    pub computing: Computing,
}

pub(super) enum Job {
    /// Wait for the model.
    Model(Reply<LoadedModel>),
    /// A picture has come, for the frame with this ticket, which is asked for next.
    Expect(u64, Input),
    /// Restyle a frame.
    Frame(Box<Frame>, Reply<Restyled>),
    /// Write a picture into a frame.
    Write(Picture, Box<Output>, Reply<Written>),
    /// Finish all frames.
    Drain(Reply<Vec<Finished>>),
    /// Forget all frames.
    Reset,
    /// Forget all that frames have left behind.
    Renew,
    /// Encode the prompt of a cue that is to come.
    Prepare(Box<Settings>, Arc<Cue>),
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
pub(super) struct Reply<R> {
    sender: Option<mpsc::Sender<Answer<R>>>,
    /// Lives as long as somebody waits.
    wanted: Weak<()>,
}

impl<R> Reply<R> {
    /// Whether somebody still waits for it.
    pub(super) fn is_wanted(&self) -> bool {
        self.wanted.strong_count() > 0
    }

    pub(super) fn send(mut self, result: Result<R>) {
        if let Some(sender) = self.sender.take() {
            // After a flush nobody listens any more.
            let _ = sender.send(Answer::Done(result));
        }
    }
}

impl<R> Drop for Reply<R> {
    fn drop(&mut self) {
        if let Some(sender) = self.sender.take() {
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

/// An answer that is still to come.
pub struct Pending<R> {
    /// Another end for [`Interrupt`] to send through.
    sender: mpsc::Sender<Answer<R>>,
    answer: mpsc::Receiver<Answer<R>>,
    _wanted: Arc<()>,
}

impl<R: Send + 'static> Pending<R> {
    /// Waits for it.
    pub fn wait(self, interrupt: &Interrupt) -> std::result::Result<R, Unanswered> {
        let sender = self.sender;
        interrupt.arm(move || drop(sender.send(Answer::Interrupted)))?;
        let answer = self.answer.recv().unwrap_or(Answer::Gone);
        interrupt.disarm();
        answer.into()
    }

    /// It, if it is there.
    pub fn poll(&self) -> Option<std::result::Result<R, Unanswered>> {
        self.answer.try_recv().ok().map(Answer::into)
    }
}

impl<R> From<Answer<R>> for std::result::Result<R, Unanswered> {
    fn from(answer: Answer<R>) -> Self {
        match answer {
            Answer::Done(Ok(result)) => Ok(result),
            Answer::Done(Err(error)) => Err(Unanswered::Failed(error)),
            Answer::Interrupted => Err(Unanswered::Flushing),
            Answer::Gone => Err(Unanswered::Gone),
        }
    }
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

    /// Has `wake` called when a wait that begins now is to end; no wait may begin if this fails. Each is followed by
    /// [`Self::disarm`].
    pub fn arm(&self, wake: impl FnOnce() + Send + 'static) -> std::result::Result<(), Unanswered> {
        let mut waiting = self.0.lock();
        if waiting.flushing {
            return Err(Unanswered::Flushing);
        }
        waiting.wake = Some(Box::new(wake));
        Ok(())
    }

    /// A wait is over.
    pub fn disarm(&self) {
        self.0.lock().wake = None;
    }

    /// Waits last again.
    pub fn end(&self) {
        self.0.lock().flushing = false;
    }
}

/// How far the loading of the model is. Every start has one end: complete, canceled or failed.
pub enum Loading<'a> {
    /// It begins.
    Started,
    /// This component is next.
    Component(Component),
    /// It has ended well, after this time.
    Complete(&'a LoadedModel, Duration),
    /// It has ended because the element was stopped.
    Canceled,
    /// It has ended with this error, which has been told before.
    Failed(&'a Error),
}

/// Takes in what happens to frames, line by line.
pub type Teller = Arc<dyn Fn(std::fmt::Arguments<'_>) + Send + Sync>;

/// What the worker tells of its own accord.
pub trait Observer: Send + Sync + 'static {
    /// The model is being loaded.
    fn loading(&self, loading: Loading<'_>);
    /// The prompts in force begin to turn into these ones, over `length` nanoseconds from this frame on.
    fn prompts_turn(&self, prompts: &Prompts, length: u64, first: Stamp);
    /// These prompts are in force, and no others; the frame is the first that goes through all its steps with them alone.
    fn prompts_applied(&self, prompts: &Prompts, first: Stamp);
    /// The similarity filter began to skip frames, or stopped, with this one.
    fn skipping(&self, change: Change, with: Stamp);
    /// Who takes in what happens to frames, if anybody wants to hear of it now.
    fn teller(&self) -> Option<Teller>;
    /// The model could not be loaded where that was tried first; it is tried in `venue` now, for `reason`.
    fn moved(&self, venue: &Venue, reason: &str);
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

thread_local! {
    /// The worker for which this thread tells how far a build is, by the address of what cancels it. The thread may be one of
    /// TensorRT's, which the worker's own waits for.
    static TELLS: Cell<usize> = const { Cell::new(0) };
}

/// A handle to the worker's thread, which ends when this is dropped.
pub struct Worker {
    jobs: Option<mpsc::Sender<Job>>,
    thread: Option<JoinHandle<()>>,
    fate: Arc<Fate>,
}

/// How the loading goes on.
#[derive(Default)]
struct Fate {
    /// It is to end before the next component.
    canceled: Arc<AtomicBool>,
    /// It has failed.
    failed: AtomicBool,
}

impl Worker {
    /// Starts the thread, which loads the model in `model` at once; `observer` has been told that it begins when this
    /// returns. Where it cannot be loaded in `venue` and `elsewhere` is true, what comes after that is tried.
    pub fn new(
        model: PathBuf,
        venue: Venue,
        elsewhere: bool,
        stats: Arc<Mutex<Stats>>,
        observer: impl Observer,
    ) -> std::io::Result<Self> {
        let (jobs, received) = mpsc::channel();
        let fate = Arc::new(Fate::default());
        let shared = fate.clone();
        let observer = Arc::new(observer);
        let told = observer.clone();
        // Now, not from the thread: who waits for progress to end should know of it before the state has changed.
        observer.loading(Loading::Started);
        let thread = std::thread::Builder::new()
            .name("sd-worker".into())
            .spawn(move || {
                let begin = Instant::now();
                let mut venue = venue;
                loop {
                    let work = Work {
                        begin,
                        fate: &shared,
                        jobs: &received,
                        stats: &stats,
                        observer: &observer,
                    };
                    let Err(error) = work.at(&venue, &model) else {
                        break;
                    };
                    let next = elsewhere.then(|| venue.after(&error, &model)).flatten();
                    let Some((next, reason)) = next else {
                        let error = venue.advise(error);
                        shared.failed.store(true, Ordering::SeqCst);
                        observer.failed(&error);
                        observer.loading(Loading::Failed(&error));
                        break;
                    };
                    stats.lock().moved(next.name(), reason.clone());
                    observer.moved(&next, &reason);
                    venue = next;
                }
                // Jobs that nobody got to are dropped, and so answered, only now: the reason has been told.
                drop(received);
            })
            .inspect_err(|error| {
                let error = Error::engine("worker", format!("no thread: {error}"));
                told.loading(Loading::Failed(&error));
            })?;
        Ok(Self {
            jobs: Some(jobs),
            thread: Some(thread),
            fate,
        })
    }

    /// Whether the model could not be loaded, which its observer has been told or is just being told.
    pub fn failed(&self) -> bool {
        self.fate.failed.load(Ordering::SeqCst)
    }

    /// A way to ask that needs no hold on this handle.
    pub fn asker(&self) -> Option<Asker> {
        self.jobs.clone().map(Asker)
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.jobs = None;
        self.fate.canceled.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            // What it tells may have the element stopped, on this very thread or on one that it waits for; then it ends by
            // itself.
            let tells = TELLS.get() == Arc::as_ptr(&self.fate.canceled) as usize;
            if !tells && thread.thread().id() != std::thread::current().id() {
                // Panics in there have been turned into errors.
                let _ = thread.join();
            }
        }
    }
}

/// Asks the worker.
#[derive(Clone)]
pub struct Asker(mpsc::Sender<Job>);

impl Asker {
    /// Asks for the model.
    pub fn model(
        &self,
        interrupt: &Interrupt,
    ) -> std::result::Result<Pending<LoadedModel>, Unanswered> {
        self.ask(interrupt, Job::Model)
    }

    /// Announces the picture of the frame that is restyled next, while the one before may still be under way.
    pub fn expect(&self, ticket: u64, input: Input) {
        // A worker that is gone is found out when the frame is asked for.
        let _ = self.0.send(Job::Expect(ticket, input));
    }

    /// Has a frame restyled, whose picture was announced.
    pub fn restyle(
        &self,
        interrupt: &Interrupt,
        frame: Frame,
    ) -> std::result::Result<Pending<Restyled>, Unanswered> {
        self.ask(interrupt, |reply| Job::Frame(Box::new(frame), reply))
    }

    /// Has a picture written into a frame, and waits for it, but not for its way from a GPU to main memory.
    pub fn write(
        &self,
        interrupt: &Interrupt,
        picture: Picture,
        output: Output,
    ) -> std::result::Result<Written, Unanswered> {
        self.ask(interrupt, |reply| {
            Job::Write(picture, Box::new(output), reply)
        })?
        .wait(interrupt)
    }

    /// Has all frames finished, and waits for it.
    pub fn drain(&self, interrupt: &Interrupt) -> std::result::Result<Vec<Finished>, Unanswered> {
        self.ask(interrupt, Job::Drain)?.wait(interrupt)
    }

    /// Has all frames forgotten, without waiting for it.
    pub fn reset(&self) {
        // A worker that is gone holds no frames.
        let _ = self.0.send(Job::Reset);
    }

    /// Has all that frames have left behind forgotten, as if a stream began, without waiting for it.
    pub fn renew(&self) {
        let _ = self.0.send(Job::Renew);
    }

    /// Has the prompt of a cue that is to come encoded, without waiting for it.
    pub fn prepare(&self, settings: Settings, cue: Arc<Cue>) {
        // A worker that is gone needs no prompts.
        let _ = self.0.send(Job::Prepare(Box::new(settings), cue));
    }

    fn ask<R: Send + 'static>(
        &self,
        interrupt: &Interrupt,
        job: impl FnOnce(Reply<R>) -> Job,
    ) -> std::result::Result<Pending<R>, Unanswered> {
        if interrupt.0.lock().flushing {
            return Err(Unanswered::Flushing);
        }
        let (sender, answer) = mpsc::channel();
        let wanted = Arc::new(());
        let reply = Reply {
            sender: Some(sender.clone()),
            wanted: Arc::downgrade(&wanted),
        };
        // A job that cannot be sent is dropped with the error, and so answers.
        let _ = self.0.send(job(reply));
        Ok(Pending {
            sender,
            answer,
            _wanted: wanted,
        })
    }
}

/// What the thread works with.
struct Work<'a, O> {
    /// Since when the model is being loaded.
    begin: Instant,
    fate: &'a Fate,
    jobs: &'a mpsc::Receiver<Job>,
    stats: &'a Mutex<Stats>,
    observer: &'a Arc<O>,
}

impl<O: Observer> Work<'_, O> {
    /// Loads the model in the folder `model` in `venue` and does jobs with it, until nobody can ask for any more. An error
    /// if it cannot be loaded there; a loading that was canceled is none.
    fn at(&self, venue: &Venue, model: &Path) -> Result<()> {
        match venue {
            Venue::Cpu => self.run(|tell, waits| HostRuntime::load(model, tell, waits)),
            #[cfg(feature = "cuda")]
            Venue::Gpu(gpu) => {
                self.run(|tell, waits| CudaRuntime::load(model, gpu.clone(), tell, waits))
            }
            #[cfg(all(feature = "cuda", feature = "tensorrt"))]
            Venue::TensorRt(gpu, request) => self.run(|tell, waits| {
                let canceled = self.fate.canceled.clone();
                let worker = Arc::as_ptr(&canceled) as usize;
                let mut building = building::building(self.observer, canceled);
                let post = building.tell;
                building.tell = Arc::new(move |progress| {
                    let before = TELLS.replace(worker);
                    post(progress);
                    TELLS.set(before);
                });
                CudaRuntime::load_engines(model, gpu.clone(), request, building, tell, waits)
            }),
        }
    }

    fn run<R: Runtime>(
        &self,
        load: impl FnOnce(Telling<'_>, engine::Waiting<'_>) -> Result<R>,
    ) -> Result<()> {
        let canceled = || self.fate.canceled.load(Ordering::SeqCst);
        let waits = || match canceled() {
            true => Err(Error::engine("model", "is not wanted any more")),
            false => Ok(()),
        };
        let tell = |component| {
            waits()?;
            self.observer.loading(Loading::Component(component));
            // Who was told may have stopped it.
            waits()
        };
        match guarded(|| Studio::new(load(&tell, &waits)?)) {
            Ok(_) if canceled() => {
                self.observer.loading(Loading::Canceled);
                Ok(())
            }
            Ok(mut studio) => {
                let (loaded, took) = (studio.loaded(), self.begin.elapsed());
                self.stats.lock().loaded(&loaded, took);
                self.observer.loading(Loading::Complete(&loaded, took));
                drop(loaded);
                studio.serve(self.jobs, self.stats, &**self.observer);
                Ok(())
            }
            Err(_) if canceled() => {
                self.observer.loading(Loading::Canceled);
                Ok(())
            }
            Err(error) => Err(error),
        }
    }
}

/// Turns a panic into an error, so that it ends a frame and not a thread that others wait for.
pub(super) fn guarded<R>(work: impl FnOnce() -> Result<R>) -> Result<R> {
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(work))
        .unwrap_or_else(|_| Err(Error::engine("worker", "panicked; this is a bug")))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// As by a bus handler on a thread that the worker's own waits for.
    #[test]
    fn a_worker_that_is_told_of_is_not_waited_for() {
        let (go_on, wait) = mpsc::channel::<()>();
        let worker = Worker {
            jobs: None,
            thread: Some(std::thread::spawn(move || {
                let _ = wait.recv();
            })),
            fate: Arc::default(),
        };
        let fate = worker.fate.clone();
        let (here, dropped) = mpsc::channel();
        std::thread::spawn(move || {
            TELLS.set(Arc::as_ptr(&worker.fate.canceled) as usize);
            drop(worker);
            let _ = here.send(());
        });
        let dropped = dropped.recv_timeout(Duration::from_secs(60));
        drop(go_on);
        assert_eq!(dropped, Ok(()));
        assert!(fate.canceled.load(Ordering::SeqCst));
    }
}
