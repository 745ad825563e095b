//! The latency the element reports: frames it holds back, and the time it needs for one.

use std::collections::VecDeque;
use std::time::Duration;

use gst::ClockTime;
use gst::prelude::*;

/// Frames whose processing time is averaged.
const AVERAGED: usize = 10;
/// The first frames after a start are slower (memory, caches) and say nothing.
const WARM_UP: u32 = 2;

/// What is known about the element's latency, and what it last told the pipeline.
#[derive(Debug, Default)]
pub struct Latency {
    /// By the stream, and at most by the pipeline's depth.
    held_back: usize,
    depth: usize,
    /// Frames that are computed together, in the time of `processing`.
    group: u32,
    frame_duration: Option<ClockTime>,
    /// Distances of the last timestamps, where caps name no frame rate, and what they were taken to mean.
    distances: VecDeque<ClockTime>,
    measured: ClockTime,
    last_pts: Option<ClockTime>,
    took: VecDeque<Duration>,
    seen: u32,
    processing: ClockTime,
    announced: ClockTime,
    /// What is told instead of what is known.
    pinned: Option<ClockTime>,
    /// Whether it has been said that this is too little.
    warned: bool,
}

impl Latency {
    /// Has this told instead of what is known, or that again. Whether the pipeline must be told.
    pub fn pin(&mut self, latency: Option<ClockTime>) -> bool {
        self.pinned = latency;
        self.warned = false;
        self.own() != self.announced
    }

    /// Takes the frame duration from the caps; zero frame rate means unknown.
    pub fn set_frame_rate(&mut self, rate: gst::Fraction) {
        self.distances.clear();
        self.measured = ClockTime::ZERO;
        self.last_pts = None;
        self.frame_duration = (rate.numer() > 0).then(|| {
            ClockTime::SECOND
                .mul_div_round(rate.denom() as u64, rate.numer() as u64)
                .unwrap_or_default()
        });
    }

    /// Notes an input timestamp, to learn the frame rate where caps do not name it.
    pub fn see(&mut self, pts: Option<ClockTime>) {
        if let (Some(last), Some(pts)) = (self.last_pts, pts)
            && pts > last
        {
            if self.distances.len() == 8 {
                self.distances.pop_front();
            }
            self.distances.push_back(pts - last);
            let mut sorted: Vec<_> = self.distances.iter().copied().collect();
            sorted.sort_unstable();
            let median = sorted[sorted.len() / 2];
            let apart = median.nseconds().abs_diff(self.measured.nseconds());
            if apart * 4 > self.measured.nseconds() {
                self.measured = median;
            }
        }
        self.last_pts = pts.or(self.last_pts);
    }

    /// Notes how many frames the stream holds back, how many more the worker may have, how many are computed together, and
    /// how long these took if they were. Whether the pipeline must be told.
    ///
    /// The processing time told is the mean with 5 % to spare, and it changes only when it was too small or is over a
    /// quarter too large; a measured frame duration only when it is a quarter off. So a pipeline is not reconfigured for
    /// jitter.
    pub fn update(
        &mut self,
        held_back: usize,
        depth: usize,
        group: usize,
        took: Option<Duration>,
    ) -> bool {
        self.held_back = held_back;
        self.depth = depth;
        self.group = u32::try_from(group).unwrap_or(u32::MAX);
        if let Some(took) = took {
            self.took(took);
        }
        self.own() != self.announced
    }

    fn took(&mut self, took: Duration) {
        self.seen = self.seen.saturating_add(1);
        if self.seen <= WARM_UP {
            return;
        }
        if self.took.len() == AVERAGED {
            self.took.pop_front();
        }
        self.took.push_back(took);
        let mean = self.took.iter().sum::<Duration>() / self.took.len() as u32;
        let mean = ClockTime::from_nseconds(mean.as_nanos() as u64);
        let settled = self.took.len() >= AVERAGED.min(3);
        if settled && (mean > self.processing || mean * 4 < self.processing * 3) {
            self.processing = mean + mean / 20;
        }
    }

    /// How many frames are held back at most.
    pub fn held_back(&self) -> usize {
        self.held_back + self.depth
    }

    /// How many frames come in before the worker has finished one: it leaves with the next one after that.
    fn waits(&self) -> u64 {
        let duration = self.duration().nseconds().max(1);
        let meanwhile = self.processing.nseconds().div_ceil(duration).max(1);
        meanwhile.min(self.depth as u64)
    }

    /// What the element adds to the pipeline's latency: the frames held back, and the time for one. Where that is longer
    /// than a frame lasts, late ones are dropped upstream and the next frame, which lets one held back go, comes no sooner.
    pub fn own(&self) -> ClockTime {
        self.pinned.unwrap_or_else(|| self.known())
    }

    /// What it comes to, if less has been pinned and that has not been said yet.
    pub fn too_little_pinned(&mut self) -> Option<ClockTime> {
        let known = self.known();
        let short = self.pinned.is_some_and(|pinned| pinned < known) && !self.warned;
        self.warned |= short;
        short.then_some(known)
    }

    /// What it comes to, whatever is told.
    fn known(&self) -> ClockTime {
        let each = self.processing / u64::from(self.group.max(1));
        self.duration().max(each) * (self.held_back as u64 + self.waits()) + self.processing
    }

    /// How long the frames held back last, which is how much data the element can buffer.
    pub fn held(&self) -> ClockTime {
        self.duration() * self.held_back() as u64
    }

    /// Notes that the pipeline has been told.
    pub fn announce(&mut self) -> ClockTime {
        self.announced = self.own();
        self.announced
    }

    /// How long a frame lasts, by the caps or by the timestamps; zero if neither says.
    pub fn duration(&self) -> ClockTime {
        self.frame_duration.unwrap_or(self.measured)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn frames_held_back_count_by_frame_rate_or_by_timestamps() {
        let mut latency = Latency::default();
        latency.set_frame_rate(gst::Fraction::new(25, 1));
        assert!(latency.update(3, 0, 1, Some(MS)));
        assert_eq!(latency.held(), ClockTime::from_mseconds(120));
        latency.set_frame_rate(gst::Fraction::new(0, 1));
        for pts in [0, 40, 78, 200, 243] {
            latency.see(Some(ClockTime::from_mseconds(pts)));
        }
        assert_eq!(latency.held(), ClockTime::from_mseconds(120));
        latency.announce();
        for i in 0..50 {
            latency.see(Some(ClockTime::from_mseconds(300 + 40 * i + i % 4)));
            assert!(!latency.update(3, 0, 1, Some(Duration::ZERO)), "jitter");
        }
    }

    /// A frame leaves with the first one that comes in after it was finished.
    #[test]
    fn depth_counts_as_far_as_it_is_used() {
        for (took, waits) in [(1, 1), (9, 1), (15, 2), (100, 3)] {
            let mut latency = Latency::default();
            latency.set_frame_rate(gst::Fraction::new(100, 1));
            for _ in 0..10 {
                latency.update(0, 3, 1, Some(MS * took));
            }
            let processing = ClockTime::from_useconds(u64::from(took) * 1050);
            let each = processing.max(ClockTime::from_mseconds(10));
            assert_eq!(latency.own(), each * waits + processing, "{took} ms");
            assert_eq!(latency.held(), ClockTime::from_mseconds(30));
        }
    }

    /// What was not computed, as frames that fill up a group, says nothing about how long it takes.
    #[test]
    fn groups_count_whole() {
        let mut latency = Latency::default();
        latency.set_frame_rate(gst::Fraction::new(100, 1));
        for i in 0..40 {
            let took = (i % 4 == 3).then_some(MS * 100);
            latency.update(7, 0, 4, took);
        }
        // A group takes 105 ms with its reserve, a frame of it a quarter of that.
        let expected = ClockTime::from_useconds(7 * 26_250 + 105_000);
        assert_eq!(latency.announce(), expected);
        for i in 0..40 {
            assert!(!latency.update(7, 0, 4, (i % 4 == 3).then_some(MS * 100)));
        }
    }

    #[test]
    fn a_pinned_latency_that_is_too_little_is_said_once() {
        let mut latency = Latency::default();
        assert!(latency.pin(Some(ClockTime::from_mseconds(50))));
        assert_eq!(latency.announce(), ClockTime::from_mseconds(50));
        assert_eq!(latency.too_little_pinned(), None);
        for _ in 0..10 {
            latency.update(0, 0, 1, Some(MS * 100));
        }
        assert_eq!(latency.own(), ClockTime::from_mseconds(50));
        let known = Some(ClockTime::from_mseconds(105));
        assert_eq!(latency.too_little_pinned(), known);
        assert_eq!(latency.too_little_pinned(), None);
        assert!(latency.pin(None));
        assert_eq!(Some(latency.announce()), known);
        assert_eq!(latency.too_little_pinned(), None);
    }

    #[test]
    fn jitter_is_not_announced() {
        let mut latency = Latency::default();
        for _ in 0..10 {
            latency.update(0, 0, 1, Some(MS * 100));
        }
        assert_eq!(latency.announce(), ClockTime::from_mseconds(105));
        for i in 0..50u32 {
            assert!(!latency.update(0, 0, 1, Some(MS * (96 + i % 8))), "{i}");
        }
        latency.update(2, 0, 1, Some(MS * 100));
        assert_eq!(latency.announce(), ClockTime::from_mseconds(3 * 105));
        let slower = (0..10).any(|_| latency.update(0, 0, 1, Some(MS * 150)));
        assert!(slower);
        latency.announce();
        let faster = (0..10).any(|_| latency.update(0, 0, 1, Some(MS * 50)));
        assert!(faster);
    }
}
