//! When the similarity filter skips and when it does not, as people would say it: not frame by frame.

/// Frames in a row that differ from the one before, after which the picture has begun to move again. Frames that the filter
/// lets pass by chance, or because it has skipped its most, are none of these.
const MOVING: u32 = 5;

/// A beginning or an end.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Change {
    /// The filter began to skip.
    Skipping {
        /// How alike the frame was to the last one processed (cosine).
        similarity: f32,
        /// Frames skipped with this one.
        skipped: u64,
    },
    /// The picture moves again.
    Resumed {
        /// How alike the frame was to the last one processed, if they were compared.
        similarity: Option<f32>,
        /// Frames skipped since the filter began to.
        skipped: u64,
    },
}

/// What the frames so far amount to.
#[derive(Debug, Default)]
pub struct Skipping {
    /// While it skips: how many frames it has.
    skipped: Option<u64>,
    /// Frames in a row that it could not have skipped.
    moving: u32,
}

impl Skipping {
    /// Notes `frames` that were skipped together.
    pub fn skipped(&mut self, frames: u64, similarity: f32) -> Option<Change> {
        self.moving = 0;
        if let Some(skipped) = &mut self.skipped {
            *skipped += frames;
            return None;
        }
        self.skipped = Some(frames);
        Some(Change::Skipping {
            similarity,
            skipped: frames,
        })
    }

    /// Notes frames that were processed together, which might have been skipped or not.
    pub fn processed(&mut self, similarity: Option<f32>, alike: bool) -> Option<Change> {
        let skipped = self.skipped?;
        self.moving = if alike { 0 } else { self.moving + 1 };
        if self.moving < MOVING {
            return None;
        }
        *self = Self::default();
        Some(Change::Resumed {
            similarity,
            skipped,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn beginnings_and_ends_are_told_once() {
        let mut skipping = Skipping::default();
        for _ in 0..10 {
            assert_eq!(skipping.processed(Some(0.5), false), None);
        }
        let began = Change::Skipping {
            similarity: 0.99,
            skipped: 2,
        };
        assert_eq!(skipping.skipped(2, 0.99), Some(began));
        for _ in 0..4 {
            assert_eq!(skipping.skipped(2, 0.99), None);
        }
        let ended = Change::Resumed {
            similarity: Some(0.2),
            skipped: 10,
        };
        for i in 1..=MOVING {
            let change = skipping.processed(Some(0.2), false);
            assert_eq!(change, (i == MOVING).then_some(ended));
        }
        assert_eq!(skipping.processed(None, false), None);
        assert!(skipping.skipped(1, 1.0).is_some());
    }

    /// A picture that stands still is processed now and then; one that is skipped every other frame is not told of.
    #[test]
    fn frames_processed_in_between_end_nothing() {
        let mut skipping = Skipping::default();
        assert!(skipping.skipped(1, 1.0).is_some());
        for _ in 0..100 {
            for _ in 0..2 * MOVING {
                assert_eq!(skipping.processed(Some(0.99), true), None);
            }
            for _ in 1..MOVING {
                assert_eq!(skipping.processed(Some(0.2), false), None);
            }
            assert_eq!(skipping.skipped(1, 0.98), None);
        }
        let ended = (0..MOVING).find_map(|_| skipping.processed(None, false));
        let expected = Change::Resumed {
            similarity: None,
            skipped: 101,
        };
        assert_eq!(ended, Some(expected));
    }
}
