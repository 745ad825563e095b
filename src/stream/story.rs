//! What happens to frames on their way, for whoever wants to hear of it.

use std::sync::Arc;
use std::time::Duration;

use super::slot::Slot;

/// Something that has just happened. Durations are those of [`Device::timed`](crate::device::Device::timed): where work is
/// put off, they are of the time before.
#[derive(Debug)]
pub enum Happening<'a, T> {
    /// The similarity filter compared frames that came in with those that entered last.
    Compared {
        /// Their tags.
        frames: &'a [T],
        /// Cosine of the two.
        similarity: f32,
        /// Whether they are skipped.
        skipped: bool,
    },
    /// The image encoder made latents of frames.
    Encoded {
        /// Their tags.
        frames: &'a [T],
        /// How long it took.
        took: Option<Duration>,
    },
    /// One U-Net call took frames one step further.
    Stepped {
        /// The steps, those of the newest frames first.
        steps: Vec<Stepped<'a, T>>,
        /// How many rows the call had: one for each of these, and those with the negative prompt.
        rows: usize,
        /// How long it took.
        took: Option<Duration>,
    },
    /// The image decoder made pictures of frames that were through their steps.
    Decoded {
        /// Their tags.
        frames: &'a [T],
        /// How long it took.
        took: Option<Duration>,
    },
}

/// A step of some frames.
#[derive(Debug)]
pub struct Stepped<'a, T> {
    /// Their tags.
    pub frames: &'a [T],
    /// Which step it was, counted from 1.
    pub step: usize,
    /// How many they go through.
    pub of: usize,
    /// Its timestep.
    pub timestep: u32,
}

/// Hears of what happens, on the thread that it happens on.
pub type Listener<T> = Arc<dyn Fn(Happening<'_, T>) + Send + Sync>;

/// The tags of the frames that `slot` was made of.
pub(super) fn frames<X, T>(slot: &Slot<X, T>) -> &[T] {
    slot.shown_for.first().map_or(&[], Vec::as_slice)
}
