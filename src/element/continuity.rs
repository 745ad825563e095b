//! Whether a frame follows the one before it in time, or the source has jumped.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use gst::ClockTime;
use gst::prelude::*;
use gst::subclass::prelude::*;
use gst_base::prelude::*;

use super::CAT;
use super::imp::StreamDiffusion;

/// No jump is shorter. What network buffers, decoders and leaky queues leave out is; seeks, cuts and reconnects rarely are.
const LEAST: ClockTime = ClockTime::from_seconds(1);
/// Nor is one shorter than this many times what usually lies between frames, so that slow sources are left alone.
const USUAL: u64 = 8;
/// Distances of which the median is the usual one.
const KEPT: usize = 5;

/// Looks at the running times of the frames that come in.
///
/// A frame that is marked as a discontinuity may well follow: a leaky queue in front of an element that is not fast enough
/// marks every frame. So the mark does not count, but the distance in time, either way; and of it not what the element
/// itself was busy for, during which a live source had to leave out frames.
#[derive(Debug, Default)]
pub(super) struct Continuity {
    last: Option<ClockTime>,
    distances: VecDeque<ClockTime>,
    /// When the last frame came in, and when all was done that came of it.
    came: Option<Instant>,
    rested: Option<Instant>,
}

impl Continuity {
    /// A frame of this running time comes in. Whether the source has jumped before it.
    pub(super) fn frame(&mut self, time: Option<ClockTime>, now: Instant) -> bool {
        let busy = match (self.came, self.rested) {
            (Some(came), Some(rested)) => rested.saturating_duration_since(came),
            _ => Duration::ZERO,
        };
        self.came = Some(now);
        self.rested = None;
        let Some(time) = time else {
            return false;
        };
        let Some(last) = self.last.replace(time) else {
            return false;
        };
        let distance = time.max(last) - time.min(last);
        let usual = self.usual();
        if self.distances.len() == KEPT {
            self.distances.pop_front();
        }
        self.distances.push_back(distance);
        // After the first frame nothing is usual yet.
        usual.is_some_and(|usual| {
            let busy = ClockTime::try_from(busy).unwrap_or(ClockTime::MAX);
            distance > LEAST.max(usual.saturating_mul(USUAL)).saturating_add(busy)
        })
    }

    /// All is done that came of the last frame.
    pub(super) fn rest(&mut self, now: Instant) {
        self.rested.get_or_insert(now);
    }

    /// What comes next follows nothing.
    pub(super) fn forget(&mut self) {
        self.last = None;
    }

    fn usual(&self) -> Option<ClockTime> {
        let mut sorted: Vec<_> = self.distances.iter().copied().collect();
        sorted.sort_unstable();
        sorted.get(sorted.len() / 2).copied()
    }
}

impl StreamDiffusion {
    /// Starts afresh where the source has jumped before `input`: frames under way leave now instead of one by one with
    /// frames of another time, and nothing of what was shown before is shown or compared with from here on.
    pub(super) fn heed_jump(&self, input: &gst::Buffer) -> Result<(), gst::FlowError> {
        let segment = self.obj().segment();
        let time = segment
            .downcast_ref::<ClockTime>()
            .and_then(|segment| segment.to_running_time(input.pts()));
        let now = Instant::now();
        if self.state.lock().continuity.frame(time, now) {
            gst::debug!(
                CAT,
                imp = self,
                "The source has jumped to {}",
                time.display()
            );
            self.drain()?;
            let mut state = self.state.lock();
            state.reset();
            state.continuity.frame(time, now);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    /// Which of the frames, that come in at these times and keep the element busy for so long (milliseconds), are jumps.
    fn jumps(frames: &[(u64, u64)]) -> Vec<usize> {
        let mut continuity = Continuity::default();
        let mut now = Instant::now();
        let mut found = Vec::new();
        for (k, (time, busy)) in frames.iter().enumerate() {
            if continuity.frame(Some(ClockTime::from_nseconds(time * MS)), now) {
                found.push(k);
            }
            now += Duration::from_millis(*busy);
            continuity.rest(now);
            continuity.rest(now + Duration::from_secs(100));
        }
        found
    }

    #[test]
    fn jumps_go_either_way_and_are_long() {
        let steady = [(0, 5), (40, 5), (80, 5), (120, 5)];
        let then = |rest: &[(u64, u64)]| jumps(&[&steady[..], rest].concat());
        assert!(then(&[(160, 5), (200, 5)]).is_empty());
        assert!(then(&[(1100, 5), (1140, 5)]).is_empty(), "under a second");
        assert_eq!(then(&[(1200, 5), (1240, 5)]), [4]);
        assert_eq!(then(&[(9000, 5), (0, 5), (40, 5)]), [4, 5]);
    }

    #[test]
    fn slow_sources_do_not_jump() {
        assert!(jumps(&[(0, 5), (10_000, 5), (20_000, 5), (75_000, 5)]).is_empty());
        assert_eq!(jumps(&[(0, 5), (1_000, 5), (2_000, 5), (11_000, 5)]), [3]);
    }

    /// A leaky queue in front: what comes next is as much later as the last frame took.
    #[test]
    fn what_the_element_was_busy_for_is_no_jump() {
        let slow = |took: u64| [(0, 10), (40, 10), (80, 10), (120, took), (200 + took, 10)];
        for took in [10, 900, 6_000, 60_000] {
            assert!(jumps(&slow(took)).is_empty(), "{took}");
        }
        assert_eq!(jumps(&[(0, 10), (40, 10), (80, 500), (1700, 10)]), [3]);
    }

    #[test]
    fn frames_without_time_say_nothing() {
        let mut continuity = Continuity::default();
        let now = Instant::now();
        for k in 0..5 {
            assert!(!continuity.frame(Some(k * 40 * ClockTime::MSECOND), now));
        }
        assert!(!continuity.frame(None, now));
        assert!(!continuity.frame(Some(200 * ClockTime::MSECOND), now));
        continuity.forget();
        assert!(!continuity.frame(Some(90 * ClockTime::SECOND), now));
        assert!(continuity.frame(Some(ClockTime::ZERO), now));
    }
}
