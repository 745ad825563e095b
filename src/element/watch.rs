//! What is worth telling of frames as they enter the stream: prompts that take effect, pictures that stand still.

use std::sync::Arc;

use super::settings::Prompts;
use super::skipping::Skipping;
use super::worker::{Observer, Stamp};
use crate::stream::Counters;

/// What has to be told of the prompts, with a frame that enters.
#[derive(Clone, Copy, Default)]
enum Change {
    /// Nothing more.
    #[default]
    None,
    /// That the ones in force begin to turn into them, over this many nanoseconds.
    Begins(u64),
    /// Nothing, until they are there.
    UnderWay,
    /// That they are in force.
    Ends,
}

/// Watches frames enter. It goes on from one stream to the next.
#[derive(Default)]
pub struct Watch {
    /// The prompts in force, or those that they are turning into.
    prompts: Option<Arc<Prompts>>,
    change: Change,
    skipping: Skipping,
    /// The first of the frames that wait for their group to be complete.
    first: Option<Stamp>,
    /// The stream's counts so far.
    counted: Counters,
}

impl Watch {
    /// The prompts in force begin to turn into these ones, over this many nanoseconds of the frames' time.
    pub fn turns(&mut self, prompts: Prompts, length: u64) {
        self.change = Change::Begins(length);
        self.prompts = Some(Arc::new(prompts));
    }

    /// The prompts decided on last are in force, and no others.
    pub fn turned(&mut self) {
        if let Change::Begins(_) | Change::UnderWay = self.change {
            self.change = Change::Ends;
        }
    }

    /// The prompts in force, or those that they are turning into, if there are any yet.
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
        let Some(prompts) = &self.prompts else {
            return;
        };
        self.change = match self.change {
            Change::Begins(length) => {
                observer.prompts_turn(prompts, length, stamp);
                Change::UnderWay
            }
            Change::Ends => {
                observer.prompts_applied(prompts, stamp);
                Change::None
            }
            other => other,
        };
    }

    /// The stream has counted so many frames by now. Of the group that came in last: how alike it was to the one that had
    /// entered before, if they were compared, and whether it could have been skipped for that; `None` if that is not known,
    /// as they were not compared though the filter is on.
    pub fn look(
        &mut self,
        counters: Counters,
        similarity: Option<f32>,
        alike: Option<bool>,
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
            true => alike.and_then(|alike| self.skipping.processed(similarity, alike)),
            // Those that were not compared fill a gap.
            false => similarity.and_then(|s| self.skipping.skipped(skipped, s)),
        };
        if let Some(change) = change {
            observer.skipping(change, first);
        }
    }
}
