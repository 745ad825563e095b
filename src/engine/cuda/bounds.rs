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
    /// `outputs`. Sets with different `number`s are different ones, for runs that follow each other in one frame. `work` must not
    /// ask for the same set.
    pub fn with<R>(
        &self,
        number: usize,
        inputs: Vec<Vec<usize>>,
        outputs: &[Vec<usize>],
        work: impl FnOnce(&Arc<dyn Bound>, &mut S) -> Result<R>,
    ) -> Result<R> {
        let thread = ALIVE.with(Arc::downgrade);
        let key = Key { number, inputs };
        let mine = |entry: &Entry<S>| entry.thread.ptr_eq(&thread);
        let (known, gone) = {
            let mut entries = self.entries.lock();
            let known = (entries.iter()).position(|entry| mine(entry) && entry.key == key);
            let known = known.map(|index| entries.remove(index));
            let alive = |entry: &Entry<S>| entry.thread.strong_count() > 0;
            let (left, gone): (Vec<_>, Vec<_>) = entries.drain(..).partition(alive);
            *entries = left;
            (known, gone)
        };
        // Nobody waits while memory is given back, or had, or an engine made ready: an entry is its thread's alone.
        drop(gone);
        let mut entry = match known {
            Some(entry) => entry,
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
        let oldest = {
            let mut entries = self.entries.lock();
            let full = entries.iter().filter(|entry| mine(entry)).count() >= KEPT.max(2 * runs);
            let oldest = entries.iter().position(mine).filter(|_| full);
            let oldest = oldest.map(|index| entries.remove(index));
            entries.push(entry);
            oldest
        };
        drop(oldest);
        result
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use std::sync::mpsc::{self, Receiver, Sender};

    use super::*;
    use crate::computing::{self, When};
    use crate::device::cuda::{CudaTensor, Element, Work};
    use crate::engine::cuda;
    use crate::model::Component;

    /// A program that says when it is being bound to an input of one element, and waits then.
    struct Slow {
        begun: Mutex<Sender<()>>,
        go_on: Mutex<Receiver<()>>,
        count: AtomicUsize,
    }

    struct Nothing;

    impl Program for Slow {
        fn component(&self) -> Component {
            Component::Unet
        }

        fn elements(&self) -> Result<Vec<Element>> {
            Ok(vec![Element::F32])
        }

        fn bind(
            self: Arc<Self>,
            _: &Cuda,
            inputs: &[Vec<usize>],
            _: &[Vec<usize>],
        ) -> Result<Arc<dyn cuda::Bound>> {
            self.count.fetch_add(1, Ordering::Relaxed);
            if inputs[0] == [1] {
                self.begun.lock().send(()).unwrap();
                self.go_on.lock().recv().unwrap();
            }
            Ok(Arc::new(Nothing))
        }
    }

    impl cuda::Bound for Nothing {
        fn inputs(&self) -> &[CudaTensor] {
            &[]
        }

        fn outputs(&self) -> &[CudaTensor] {
            &[]
        }
    }

    impl Work for Nothing {
        fn enqueue(&self) -> Result<()> {
            Ok(())
        }

        fn capturable(&self) -> bool {
            false
        }
    }

    /// While a set is made for one thread, others use theirs.
    #[test]
    fn making_a_set_holds_up_nobody() {
        let name = "engine::cuda::bounds::tests::making_a_set_holds_up_nobody";
        computing::run(name, &[], &[When::Late], || {
            let cuda = Cuda::new(0).unwrap();
            let ((begun, is_begun), (goes_on, go_on)) = (mpsc::channel(), mpsc::channel());
            let slow = Arc::new(Slow {
                begun: Mutex::new(begun),
                go_on: Mutex::new(go_on),
                count: AtomicUsize::new(0),
            });
            let program: Arc<dyn Program> = slow.clone();
            let bounds: Bounds<usize> = Bounds::new(&cuda, &program);
            let times = |side: usize| {
                let shapes = [vec![side]];
                let with = bounds.with(0, shapes.to_vec(), &shapes, |_, times| {
                    *times += 1;
                    Ok(*times)
                });
                with.unwrap()
            };
            std::thread::scope(|scope| {
                let first = scope.spawn(|| (times(1), times(1)));
                is_begun.recv().unwrap();
                // It would wait for ever.
                assert_eq!((times(2), times(2), times(3)), (1, 2, 1));
                goes_on.send(()).unwrap();
                assert_eq!(first.join().unwrap(), (1, 2));
            });
            // Its thread has ended; those of this one are still there, as many as are kept.
            assert_eq!(times(2), 3);
            assert_eq!(slow.count.load(Ordering::Relaxed), 3);
            assert_eq!(bounds.entries.lock().len(), 2);
            (4..4 + KEPT).for_each(|side| assert_eq!(times(side), 1));
            assert_eq!(bounds.entries.lock().len(), KEPT);
            assert_eq!((times(2), times(3 + KEPT)), (1, 2));
        });
    }
}
