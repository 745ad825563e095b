//! What is worth telling of frames as they enter the stream: prompts that take effect, pictures that stand still.

use std::sync::Arc;

use super::settings::Prompts;
use super::skipping::Skipping;
use super::worker::{Observer, Stamp};
use crate::stream::Counters;

/// Watches frames enter. It goes on from one stream to the next.
#[derive(Default)]
pub struct Watch {
    /// The prompts in force.
    prompts: Option<Arc<Prompts>>,
    /// Whether no frame has entered with them yet.
    new: bool,
    skipping: Skipping,
    /// The first of the frames that wait for their group to be complete.
    first: Option<Stamp>,
    /// The stream's counts so far.
    counted: Counters,
}

impl Watch {
    /// These prompts were put in force.
    pub fn applied(&mut self, prompts: Prompts) {
        self.new = true;
        self.prompts = Some(Arc::new(prompts));
    }

    /// The prompts in force, if there are any yet.
    pub fn prompts(&self) -> Option<&Arc<Prompts>> {
        self.prompts.as_ref()
    }

    /// A stream begins, which has counted nothing.
    pub fn begin(&mut self) {
        self.counted = Counters::default();
        self.first = None;
    }

    /// Frames that wait for their group are forgotten.
    pub fn forget(&mut self) {
        self.first = None;
    }

    /// A frame is about to be submitted.
    pub fn come(&mut self, stamp: Stamp) {
        self.first.get_or_insert(stamp);
    }

    /// A frame entered the stream, whether or not that is counted.
    pub fn entered(&mut self, stamp: Stamp, observer: &impl Observer) {
        if std::mem::take(&mut self.new)
            && let Some(prompts) = &self.prompts
        {
            observer.prompts_applied(prompts, stamp);
        }
    }

    /// The stream has counted so many frames by now. Of the group that came in last: how alike it was to the one that had
    /// entered before, if they were compared, and whether it could have been skipped for that.
    pub fn look(
        &mut self,
        counters: Counters,
        similarity: Option<f32>,
        alike: bool,
        observer: &impl Observer,
    ) {
        let before = std::mem::replace(&mut self.counted, counters);
        let skipped = counters.skipped.saturating_sub(before.skipped);
        let processed = counters.processed > before.processed;
        if skipped == 0 && !processed {
            // The group is not complete.
            return;
        }
        let first = self.first.take().unwrap_or_default();
        if processed {
            self.entered(first, observer);
        }
        let change = match processed {
            true => self.skipping.processed(similarity, alike),
            false => self.skipping.skipped(skipped, similarity.unwrap_or(1.0)),
        };
        if let Some(change) = change {
            observer.skipping(change, first);
        }
    }
}
