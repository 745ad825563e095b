//! Which builds may be under way at the same time.

use parking_lot::{Condvar, Mutex};

use super::builder::ComputeCapability;

/// TensorRT keeps the GPUs that it builds for in one place for the whole process: builds for others at the same time fail
/// now and then ("Target SM 80 is not found in the accelerator list").
static GATE: Gate = Gate {
    state: Mutex::new((Vec::new(), 0)),
    changed: Condvar::new(),
};

struct Gate {
    /// What the builds under way are for, and how many they are.
    state: Mutex<(Vec<ComputeCapability>, usize)>,
    changed: Condvar,
}

/// A build that is under way, until this is dropped.
pub(super) struct Pass(());

/// Waits until no build for other GPUs is under way.
pub(super) fn pass(capabilities: &[ComputeCapability]) -> Pass {
    let mut state = GATE.state.lock();
    while state.1 > 0 && state.0 != capabilities {
        GATE.changed.wait(&mut state);
    }
    if state.1 == 0 {
        state.0 = capabilities.to_vec();
    }
    state.1 += 1;
    Pass(())
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
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::time::Duration;

    use super::*;

    #[test]
    fn builds_for_the_same_gpus_go_together_and_others_wait() {
        let one = [ComputeCapability::ALL[1]];
        let through = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let passes = [pass(&one), pass(&one)];
            scope.spawn(|| {
                let _pass = pass(&[]);
                through.store(true, Ordering::SeqCst);
            });
            std::thread::sleep(Duration::from_millis(50));
            assert!(!through.load(Ordering::SeqCst));
            drop(passes);
        });
        assert!(through.load(Ordering::SeqCst));
    }
}
