//! Which frames come too late to be worth the work: by what the sink says (QoS), and, in a live pipeline, by the clock,
//! since many sinks do not synchronise and so never say anything.

use std::time::Duration;

use gst::ClockTime;

/// All frames late for this long, and no better at its end: it is upstream that is late, and dropping does not help.
const HOPELESS: i64 = Duration::from_secs(1).as_nanos() as i64;

/// Whether upstream is live, as it answers the LATENCY query.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Upstream {
    /// It has not been asked yet.
    #[default]
    Unknown,
    /// It waits for us.
    Waits,
    /// It does not wait; frames get here this much after their time.
    Live(ClockTime),
}

/// What is known about lateness. All times are running times.
#[derive(Debug, Default)]
pub struct Lateness {
    pub upstream: Upstream,
    /// The sink has no use for frames up to this one.
    earliest: Option<ClockTime>,
    proportion: f64,
    /// The least that frames were behind what upstream had announced, in nanoseconds: that much is not our doing.
    baseline: i64,
    /// Since when frames were found late without a break, and how late the first of them was, in nanoseconds.
    late_since: Option<(i64, i64)>,
}

/// How a frame is late.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Late {
    /// By how many nanoseconds.
    pub jitter: i64,
    /// The proportion that the sink asked for, as in the QoS event; 1 if it said nothing.
    pub proportion: f64,
}

impl Lateness {
    /// Takes over what a QoS event of the sink says: the frame of `time` came `diff` nanoseconds late (early: negative).
    pub fn report(&mut self, proportion: f64, diff: i64, time: Option<ClockTime>) {
        self.proportion = proportion;
        self.earliest = time.map(|time| match ClockTime::from_nseconds(diff.unsigned_abs()) {
            early if diff < 0 => time.saturating_sub(early),
            late => time.saturating_add(late),
        });
    }

    /// Forgets what belongs to the time before a flush or a start.
    pub fn reset(&mut self) {
        *self = Self {
            upstream: self.upstream,
            ..Self::default()
        };
    }

    /// Whether the frame of `time`, which came at `now`, is later than `allowed` by the clock, or too late for the sink.
    pub fn judge(
        &mut self,
        time: ClockTime,
        now: Option<ClockTime>,
        allowed: Option<ClockTime>,
    ) -> Option<Late> {
        if let Some(earliest) = self.earliest.filter(|earliest| time <= *earliest) {
            return Some(Late {
                jitter: nanoseconds(earliest) - nanoseconds(time),
                proportion: self.proportion,
            });
        }
        let (Some(now), Some(allowed), Upstream::Live(announced)) = (now, allowed, self.upstream)
        else {
            return None;
        };
        let late = nanoseconds(now) - nanoseconds(time) - nanoseconds(announced);
        self.by_clock(late, nanoseconds(now), nanoseconds(allowed))
            .then_some(Late {
                jitter: late - self.baseline,
                proportion: 1.0,
            })
    }

    fn by_clock(&mut self, late: i64, now: i64, allowed: i64) -> bool {
        // What upstream never catches up on is its own latency, which it has not announced.
        self.baseline = match self.baseline {
            0 => 0,
            baseline => baseline.min(late.max(0)),
        };
        if late - self.baseline <= allowed {
            self.late_since = None;
            return false;
        }
        let (since, first) = *self.late_since.get_or_insert((now, late));
        if now - since < HOPELESS {
            return true;
        }
        if late < first {
            self.late_since = Some((now, late));
            return true;
        }
        self.baseline = late;
        self.late_since = None;
        false
    }
}

fn nanoseconds(time: ClockTime) -> i64 {
    i64::try_from(time.nseconds()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(ms: u64) -> ClockTime {
        ClockTime::from_mseconds(ms)
    }

    fn live(announced: u64) -> Lateness {
        Lateness {
            upstream: Upstream::Live(ms(announced)),
            ..Lateness::default()
        }
    }

    fn is_late(lateness: &mut Lateness, time: u64, now: u64, allowed: u64) -> bool {
        lateness
            .judge(ms(time), Some(ms(now)), Some(ms(allowed)))
            .is_some()
    }

    #[test]
    fn the_clock_counts_in_live_pipelines_only() {
        for upstream in [Upstream::Unknown, Upstream::Waits] {
            let mut lateness = Lateness {
                upstream,
                ..Lateness::default()
            };
            assert!(!is_late(&mut lateness, 0, 100_000, 10));
        }
        let mut lateness = live(30);
        assert!(!is_late(&mut lateness, 0, 40, 10));
        assert!(is_late(&mut lateness, 0, 41, 10));
        assert_eq!(lateness.judge(ms(0), None, Some(ms(10))), None);
        assert_eq!(lateness.judge(ms(0), Some(ms(500)), None), None);
    }

    #[test]
    fn what_the_sink_says_counts_everywhere() {
        let mut lateness = Lateness::default();
        lateness.report(2.0, 25_000_000, Some(ms(100)));
        let late = lateness.judge(ms(120), None, None).unwrap();
        assert_eq!((late.jitter, late.proportion), (5_000_000, 2.0));
        assert!(lateness.judge(ms(126), None, None).is_none());
        lateness.report(0.5, -25_000_000, Some(ms(100)));
        assert!(lateness.judge(ms(75), None, None).is_some());
        assert!(lateness.judge(ms(76), None, None).is_none());
        lateness.reset();
        assert!(lateness.judge(ms(75), None, None).is_none());
        lateness.report(0.5, i64::MIN, Some(ms(100)));
        lateness.report(0.5, i64::MAX, Some(ms(u64::from(u32::MAX))));
        assert!(lateness.judge(ms(1), None, None).is_some());
    }

    /// Frames that are always 300 ms late whatever we do are shown all the same, after a second.
    #[test]
    fn an_upstream_that_is_always_late_does_not_stop_the_show() {
        let mut lateness = live(0);
        let late: Vec<_> = (0..200)
            .map(|k| is_late(&mut lateness, k * 33, k * 33 + 300, 66))
            .collect();
        let first = late.iter().position(|late| !late).unwrap();
        assert!((30..32).contains(&first), "{first}");
        assert!(late[first..].iter().all(|late| !late));
        // More than that is late again, and an upstream that got better is believed at once.
        assert!(is_late(&mut lateness, 7000, 7000 + 367, 66));
        assert!(!is_late(&mut lateness, 7033, 7033 + 10, 66));
        assert!(is_late(&mut lateness, 7066, 7066 + 80, 66));
    }

    /// A backlog that gets shorter is worked off to its end, however long that takes.
    #[test]
    fn a_backlog_is_dropped_to_its_end() {
        let mut lateness = live(0);
        // 5 s behind; each frame takes 10 ms to get here and is 33 ms on.
        for k in 0..214 {
            let (time, now) = (k * 33, 5000 + k * 10);
            assert!(is_late(&mut lateness, time, now, 66), "{k}");
        }
        assert!(!is_late(&mut lateness, 216 * 33, 5000 + 216 * 10, 66));
        assert_eq!(lateness.baseline, 0);
    }
}
