//! The sets of buffers that a program is bound to.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use super::{Bound, Program};
use crate::device::cuda::Cuda;
use crate::error::Result;

/// How many sets of buffers a program keeps for a thread, of the shapes used last.
const KEPT: usize = 16;

/// A program's sets of buffers, each for one shape and thread, with what its user keeps of it.
pub struct Bounds<S> {
    cuda: Cuda,
    program: Arc<dyn Program>,
    /// The one used last at the back.
    entries: Mutex<Vec<Entry<S>>>,
    /// The most runs that followed each other in one frame.
    runs: AtomicUsize,
}

struct Entry<S> {
    /// The thread that uses it. Threads note down frames independently of each other, so what one has written to a set last
    /// could be overwritten by another one before its frame is run.
    thread: Weak<()>,
    key: Key,
    bound: Arc<dyn Bound>,
    /// What its user noted down while the device had as many failures as `failures`.
    state: S,
    failures: u64,
}

#[derive(PartialEq, Eq)]
struct Key {
    number: usize,
    inputs: Vec<Vec<usize>>,
}

thread_local! {
    /// Lives as long as its thread.
    static ALIVE: Arc<()> = Arc::new(());
}

impl<S: Default> Bounds<S> {
    /// None yet, of `program`.
    pub fn new(cuda: &Cuda, program: &Arc<dyn Program>) -> Self {
        Self {
            cuda: cuda.clone(),
            program: program.clone(),
            entries: Mutex::default(),
            runs: AtomicUsize::new(1),
        }
    }

    /// The program.
    pub fn program(&self) -> &Arc<dyn Program> {
        &self.program
    }

    /// Calls `work` with the set for inputs of the shapes `inputs`, and with what is kept of it. Its outputs have the shapes
    /// `outputs`. Sets with different `number`s are different ones, for runs that follow each other in one frame.
    pub fn with<R>(
        &self,
        number: usize,
        inputs: Vec<Vec<usize>>,
        outputs: &[Vec<usize>],
        work: impl FnOnce(&Arc<dyn Bound>, &mut S) -> Result<R>,
    ) -> Result<R> {
        let thread = ALIVE.with(Arc::downgrade);
        let mut entries = self.entries.lock();
        entries.retain(|entry| entry.thread.strong_count() > 0);
        let key = Key { number, inputs };
        let mine = |entry: &Entry<S>| entry.thread.ptr_eq(&thread);
        let known = (entries.iter()).position(|entry| mine(entry) && entry.key == key);
        let mut entry = match known {
            Some(index) => entries.remove(index),
            None => Entry {
                bound: (self.program.clone()).bind(&self.cuda, &key.inputs, outputs)?,
                state: S::default(),
                failures: 0,
                thread: thread.clone(),
                key,
            },
        };
        let failures = self.cuda.failures();
        if std::mem::replace(&mut entry.failures, failures) != failures {
            entry.state = S::default();
        }
        let result = work(&entry.bound, &mut entry.state);
        // Those of a whole frame, at least: else each would make room for the next, and none would be there again.
        let runs = self
            .runs
            .fetch_max(number + 1, Ordering::Relaxed)
            .max(number + 1);
        if entries.iter().filter(|entry| mine(entry)).count() >= KEPT.max(2 * runs)
            && let Some(oldest) = entries.iter().position(mine)
        {
            entries.remove(oldest);
        }
        entries.push(entry);
        result
    }
}
