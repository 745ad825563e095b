//! Putting on a GPU what was noted down, and waiting for it: on the same thread or on another one.

use std::sync::atomic::Ordering;
use std::time::Duration;

use super::Cuda;
use super::context::{Mark, Restore};
use super::list::List;
use crate::error::Result;

/// The outcome of `wait`, which is done once more if it fails: an error can be one of the context's from before, which is told
/// once, and then nothing was waited for.
pub(super) fn twice<E>(
    wait: impl Fn() -> std::result::Result<(), E>,
) -> std::result::Result<(), E> {
    wait().or_else(|_| wait())
}

/// Work that was put on a GPU. It goes on when this is dropped.
pub struct Submitted {
    begun: Option<Mark>,
    end: Mark,
    restore: Restore,
}

impl Submitted {
    /// Whether there is nothing to wait for any more.
    pub fn is_over(&self) -> bool {
        // The thread is somebody else's.
        let _restore = Restore::new();
        self.end.is_past()
    }

    /// Waits for it, on any thread; how long it took since [`Cuda::begin`], if that was called.
    ///
    /// # Errors
    /// [`Error::Engine`](crate::error::Error::Engine) when the driver fails.
    pub fn wait(&self) -> Result<Option<Duration>> {
        let _restore = Restore::new();
        self.end.wait()?;
        Ok((self.begun.as_ref()).and_then(|begun| begun.until(&self.end)))
    }
}

impl Drop for Submitted {
    fn drop(&mut self) {
        self.restore.save();
    }
}

impl Cuda {
    /// Waits for what the calling thread submitted before. What it submits next is timed from here on.
    ///
    /// # Errors
    /// [`Error::Engine`](crate::error::Error::Engine) when what was submitted failed, or the driver fails.
    pub fn begin(&self) -> Result<()> {
        let list = self.list();
        let mut list = list.lock();
        self.settle(&mut list)?;
        self.0.gpu.enter()?;
        let _submission = self.0.submission.lock();
        list.begin_at(self.0.gpu.mark()?);
        Ok(())
    }

    /// Puts on the GPU what the calling thread noted down, after all that is there, and does not wait for it. What the thread
    /// submitted before is waited for: graphs read their parameters in one place.
    ///
    /// # Errors
    /// [`Error::Engine`](crate::error::Error::Engine) when it cannot be put there, or what was submitted before failed. Then
    /// what was noted down is gone.
    pub fn submit(&self) -> Result<Submitted> {
        let end = self.put()?;
        let begun = self.list().lock().take_begun();
        Ok(Submitted {
            begun,
            end,
            restore: Restore::default(),
        })
    }

    /// All that whichever thread has put on the compute stream so far. What is noted down is not among it.
    ///
    /// # Errors
    /// [`Error::Engine`](crate::error::Error::Engine) when the driver fails.
    pub fn so_far(&self) -> Result<Submitted> {
        self.0.gpu.enter()?;
        let _submission = self.0.submission.lock();
        Ok(Submitted {
            begun: None,
            end: self.0.gpu.mark()?,
            restore: Restore::default(),
        })
    }

    /// As [`submit`](Self::submit), for something on the way: what is timed goes on. Where it ends.
    pub(super) fn put(&self) -> Result<Mark> {
        let list = self.list();
        let mut list = list.lock();
        if let Err(error) = self.settle(&mut list) {
            list.abandon();
            return Err(error);
        }
        self.0.gpu.enter()?;
        let (submitted, end) = {
            let _submission = self.0.submission.lock();
            let submitted = list.submit(&self.0.gpu, &self.0.kernels);
            let end = self.0.gpu.mark().inspect_err(|_| {
                // Nothing could be waited for later. Nobody captures the stream while it is ours.
                let _ = twice(|| self.0.gpu.stream.synchronize());
            });
            (submitted, end)
        };
        if let Ok(end) = &end {
            list.end_at(end.clone());
        }
        let result = submitted.and(end);
        if result.is_err() {
            self.count_failure();
            // What is there of it is done before anything it uses goes; the first error is the one to tell.
            let _ = self.settle(&mut list);
        }
        result
    }

    /// Does what the calling thread noted down, and waits for it.
    ///
    /// # Errors
    /// As [`submit`](Self::submit), and when it fails.
    pub fn finish(&self) -> Result<()> {
        self.submit()?;
        let list = self.list();
        let mut list = list.lock();
        self.settle(&mut list)
    }

    /// Waits for what was submitted of a list.
    pub(super) fn settle(&self, list: &mut List) -> Result<()> {
        let Some(end) = list.take_end() else {
            return Ok(());
        };
        let ended = end.wait();
        // An error can be one of the context's from before, which is told once, and then nothing was waited for.
        if ended.is_ok() || end.wait().is_ok() {
            list.done();
        }
        // Else what it keeps may still be in use.
        ended.inspect_err(|_| self.count_failure())
    }

    /// What was noted down was not done.
    fn count_failure(&self) {
        self.0.failures.fetch_add(1, Ordering::Relaxed);
    }
}
