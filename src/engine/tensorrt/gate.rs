//! Which builds may be under way at the same time.

use std::ops::ControlFlow;
use std::time::Duration;

use parking_lot::{Condvar, Mutex, MutexGuard};

use super::builder::ComputeCapability;

/// TensorRT keeps the GPUs that it builds for in one place for the whole process: builds for others at the same time fail
/// now and then ("Target SM 80 is not found in the accelerator list").
static GATE: Gate = Gate {
    state: Mutex::new((Vec::new(), 0)),
    changed: Condvar::new(),
};

/// The time between two questions whether a wait goes on.
const PAUSE: Duration = Duration::from_millis(100);

struct Gate {
    /// What the builds under way are for, and how many they are.
    state: Mutex<(Vec<ComputeCapability>, usize)>,
    changed: Condvar,
}

/// A build that is under way, until this is dropped.
pub(super) struct Pass(());

/// Waits until no build for other GPUs is under way; `None` if `waits`, which is asked again and again, ends the wait.
pub(super) fn pass(
    capabilities: &[ComputeCapability],
    waits: impl Fn() -> ControlFlow<()>,
) -> Option<Pass> {
    let mut state = GATE.state.lock();
    while state.1 > 0 && state.0 != capabilities {
        GATE.changed.wait_for(&mut state, PAUSE);
        if MutexGuard::unlocked(&mut state, &waits).is_break() {
            return None;
        }
    }
    if state.1 == 0 {
        state.0 = capabilities.to_vec();
    }
    state.1 += 1;
    Some(Pass(()))
}

impl Drop for Pass {
    fn drop(&mut self) {
        let mut state = GATE.state.lock();
        state.1 -= 1;
        GATE.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn builds_for_the_same_gpus_go_together_and_others_wait() {
        let one = [ComputeCapability::ALL[1]];
        let (through, asked) = (AtomicBool::new(false), AtomicUsize::new(0));
        let patient = || ControlFlow::Continue(());
        let counted = || {
            asked.fetch_add(1, Ordering::SeqCst);
            ControlFlow::Continue(())
        };
        std::thread::scope(|scope| {
            let passes = [pass(&one, patient), pass(&one, patient)];
            scope.spawn(|| {
                let _pass = pass(&[], counted);
                through.store(true, Ordering::SeqCst);
            });
            while asked.load(Ordering::SeqCst) < 2 {
                std::thread::yield_now();
            }
            assert!(!through.load(Ordering::SeqCst));
            // Who is not wanted any more does not wait for the end of another build.
            assert!(pass(&[], || ControlFlow::Break(())).is_none());
            drop(passes);
        });
        assert!(through.load(Ordering::SeqCst));
    }
}
