//! Timed prompts: cues that wait for the frame they are for, and the frames that wait for cues.

use std::collections::VecDeque;
use std::sync::Arc;

use parking_lot::{Condvar, Mutex};

use super::worker::{Interrupt, Unanswered};

/// Cues that may wait for their frames; whoever brings more waits.
const ROOM: usize = 16;

/// A prompt that comes into force at a time and stays until the next one does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cue {
    /// Running time; `None`: at once.
    pub time: Option<gst::ClockTime>,
    /// The prompt; empty: the `prompt` property's.
    pub text: String,
}

impl std::fmt::Display for Cue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.time {
            Some(time) => write!(f, "the cue at {time}"),
            None => write!(f, "a cue without a time"),
        }
    }
}

/// Why no cue can be brought.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    /// The pad is being flushed, stopped or taken away.
    Flushing,
    /// After the end of the stream.
    Ended,
}

/// The cues of one element, between the thread that brings them and the one that brings frames.
#[derive(Default)]
pub struct Cues {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// Whether somebody may bring cues.
    linked: bool,
    /// Whether either side is known to be live, and nobody waits for cues therefore.
    live: Option<bool>,
    flushing: bool,
    ended: bool,
    /// Whether no frame comes any more that cues could wait for.
    video_ended: bool,
    /// All cues before this running time are known.
    reached: Option<gst::ClockTime>,
    /// Whether cues come without times, which tell nothing of what is still to come.
    untimed: bool,
    /// Cues that are not due yet, by their times.
    waiting: VecDeque<Arc<Cue>>,
    /// The one that was due last, and whether the property has been set since.
    last: Option<Arc<Cue>>,
    overruled: bool,
    /// How often the property had been set when a frame asked last.
    set: Option<u64>,
    /// Whether the wait of a frame has been ended from outside.
    interrupted: bool,
}

impl Cues {
    /// At the start of the element.
    pub fn start(&self) {
        let mut state = self.state.lock();
        *state = State {
            linked: state.linked,
            ..State::default()
        };
    }

    /// Somebody is there to bring cues, or is not any more.
    pub fn link(&self, linked: bool) {
        self.state.lock().linked = linked;
        self.changed.notify_all();
    }

    /// From now on nobody waits to bring a cue.
    pub fn begin_flush(&self) {
        self.state.lock().flushing = true;
        self.changed.notify_all();
    }

    /// Cues are forgotten, the one in force too, and may be brought again.
    pub fn end_flush(&self) {
        let mut state = self.state.lock();
        *state = State {
            linked: state.linked,
            live: state.live,
            video_ended: state.video_ended,
            set: state.set,
            interrupted: state.interrupted,
            ..State::default()
        };
    }

    /// A stream begins; there is more to come after an end.
    pub fn begin_stream(&self) {
        let mut state = self.state.lock();
        state.ended = false;
        state.live = None;
    }

    /// No cue comes any more.
    pub fn end_stream(&self) {
        self.state.lock().ended = true;
        self.changed.notify_all();
    }

    /// The video has ended, and so nobody waits to bring a cue, or goes on.
    pub fn set_video_ended(&self, ended: bool) {
        self.state.lock().video_ended = ended;
        self.changed.notify_all();
    }

    /// Whether frames may come that cues are for.
    pub fn expect_frames(&self) -> bool {
        !self.state.lock().video_ended
    }

    /// Cues to come have no times.
    pub fn begin_untimed(&self) {
        self.state.lock().untimed = true;
        self.changed.notify_all();
    }

    /// Any cue to come is for this running time or later.
    pub fn reach(&self, time: gst::ClockTime) {
        let mut state = self.state.lock();
        state.reached = state.reached.max(Some(time));
        state.untimed = false;
        self.changed.notify_all();
    }

    /// Waits until there is room for a cue.
    pub fn wait_for_room(&self) -> Result<(), Refused> {
        let mut state = self.state.lock();
        loop {
            if state.flushing {
                return Err(Refused::Flushing);
            }
            if state.ended {
                return Err(Refused::Ended);
            }
            if state.waiting.len() < ROOM || state.video_ended {
                return Ok(());
            }
            self.changed.wait(&mut state);
        }
    }

    /// Brings a cue, for which there is room; without it the one goes that is due first.
    pub fn bring(&self, cue: Arc<Cue>) {
        let mut state = self.state.lock();
        match cue.time {
            // Another one may be for the same time, but not for an earlier one.
            Some(time) => {
                state.reached = state
                    .reached
                    .max(Some(time.saturating_add(gst::ClockTime::NSECOND)));
            }
            None => state.untimed = true,
        }
        let place = state
            .waiting
            .partition_point(|other| other.time <= cue.time);
        state.waiting.insert(place, cue);
        if state.waiting.len() > ROOM {
            state.waiting.pop_front();
        }
        self.changed.notify_all();
    }

    /// Whether a frame of this time has to wait, for cues that may be for it, unless something is live.
    pub fn must_wait(&self, time: Option<gst::ClockTime>) -> bool {
        self.state.lock().must_wait(time)
    }

    /// Whether there are cues, or may be.
    pub fn are_used(&self) -> bool {
        let state = self.state.lock();
        state.linked || state.last.is_some()
    }

    /// Whether something is live, once that is known.
    pub fn is_live(&self) -> Option<bool> {
        self.state.lock().live
    }

    /// Tells whether something is live.
    pub fn set_live(&self, live: bool) {
        self.state.lock().live = Some(live);
    }

    /// Waits until all cues are known that may be for a frame of this time. `set` is that of [`Self::shown`].
    pub fn wait_for(
        self: &Arc<Self>,
        time: Option<gst::ClockTime>,
        set: u64,
        interrupt: &Interrupt,
    ) -> Result<(), Unanswered> {
        self.state.lock().interrupted = false;
        let cues = self.clone();
        interrupt.arm(move || {
            cues.state.lock().interrupted = true;
            cues.changed.notify_all();
        })?;
        let interrupted = {
            let mut state = self.state.lock();
            state.see(set);
            while !state.interrupted && state.must_wait(time) {
                // Cues that are due make room for those that the frame waits for.
                state.take_due(time);
                self.changed.notify_all();
                self.changed.wait(&mut state);
            }
            state.interrupted
        };
        interrupt.disarm();
        match interrupted {
            true => Err(Unanswered::Flushing),
            false => Ok(()),
        }
    }

    /// The cue whose prompt is in force for a frame of this time, `None` where the property's is; without a time cues are due
    /// at once. `set` counts how often the property has been set: the newest change wins.
    pub fn shown(&self, time: Option<gst::ClockTime>, set: u64) -> Option<Arc<Cue>> {
        let mut state = self.state.lock();
        state.see(set);
        state.take_due(time);
        self.changed.notify_all();
        let cue = state.last.clone();
        cue.filter(|cue| !state.overruled && !cue.text.is_empty())
    }
}

impl State {
    fn must_wait(&self, time: Option<gst::ClockTime>) -> bool {
        let known = || time.is_none_or(|time| self.reached.is_some_and(|reached| time < reached));
        self.linked && self.live != Some(true) && !self.ended && !self.untimed && !known()
    }

    /// Takes note of how often the property has been set.
    fn see(&mut self, set: u64) {
        if self.set.replace(set).is_some_and(|before| before != set) {
            self.overruled = true;
        }
    }

    /// Puts the last cue in force that is for `time` or earlier.
    fn take_due(&mut self, time: Option<gst::ClockTime>) {
        let due = |cue: &Arc<Cue>| time.is_none() || cue.time <= time;
        while self.waiting.front().is_some_and(due) {
            let Some(cue) = self.waiting.pop_front() else {
                return;
            };
            // One that comes after a later one has been in force is a thing of the past.
            let late = self
                .last
                .as_ref()
                .is_some_and(|last| cue.time.is_some() && cue.time < last.time);
            if !late {
                self.last = Some(cue);
                self.overruled = false;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(time: u64) -> gst::ClockTime {
        gst::ClockTime::from_mseconds(time)
    }

    fn bring(cues: &Cues, time: impl Into<Option<u64>>, text: &str) {
        cues.wait_for_room().unwrap();
        cues.bring(Arc::new(Cue {
            time: time.into().map(ms),
            text: text.into(),
        }));
    }

    /// The prompt of a frame.
    fn shown(cues: &Cues, time: u64, set: u64) -> Option<String> {
        let cue = cues.shown(Some(ms(time)), set);
        cue.map(|cue| cue.text.clone())
    }

    fn text(text: &str) -> Option<String> {
        Some(text.into())
    }

    #[test]
    fn a_cue_is_in_force_from_its_time_until_the_next() {
        let cues = Cues::default();
        bring(&cues, 100, "a");
        bring(&cues, 200, "b");
        bring(&cues, 200, "c");
        bring(&cues, 250, "d");
        bring(&cues, 300, "");
        assert_eq!(shown(&cues, 99, 0), None);
        assert_eq!(shown(&cues, 100, 0), text("a"));
        assert_eq!(shown(&cues, 199, 0), text("a"));
        assert_eq!(shown(&cues, 260, 0), text("d"));
        assert_eq!(shown(&cues, 299, 0), text("d"));
        assert_eq!(shown(&cues, 300, 0), None);
        assert_eq!(shown(&cues, 400, 0), None);
    }

    #[test]
    fn the_newest_change_wins() {
        let cues = Cues::default();
        bring(&cues, 100, "a");
        bring(&cues, 200, "b");
        assert_eq!(shown(&cues, 100, 3), text("a"));
        assert_eq!(shown(&cues, 110, 4), None);
        assert_eq!(shown(&cues, 199, 4), None);
        // For the same frame it is the cue, which names it.
        assert_eq!(shown(&cues, 200, 5), text("b"));
        assert_eq!(shown(&cues, 210, 5), text("b"));
    }

    #[test]
    fn cues_out_of_order_find_their_places() {
        let cues = Cues::default();
        bring(&cues, 300, "c");
        bring(&cues, 100, "a");
        bring(&cues, 200, "b");
        assert_eq!(shown(&cues, 150, 0), text("a"));
        assert_eq!(shown(&cues, 350, 0), text("c"));
        bring(&cues, 320, "d");
        bring(&cues, 250, "late");
        assert_eq!(shown(&cues, 360, 0), text("d"));
        bring(&cues, 310, "late");
        assert_eq!(shown(&cues, 370, 0), text("d"));
        bring(&cues, None, "now");
        assert_eq!(shown(&cues, 380, 0), text("now"));
        // A frame without a time takes what is there.
        bring(&cues, 900, "e");
        assert_eq!(cues.shown(None, 0).unwrap().text, "e");
    }

    #[test]
    fn frames_wait_only_for_what_may_be_for_them() {
        let cues = Cues::default();
        let waits = |time| cues.must_wait(Some(ms(time)));
        assert!(!waits(0), "nobody is there to bring cues");
        cues.link(true);
        assert!(waits(0));
        cues.reach(ms(50));
        assert!(!waits(49) && waits(50));
        bring(&cues, 100, "a");
        assert!(!waits(100) && waits(101));
        cues.reach(ms(80));
        assert!(!waits(100));
        assert!(!cues.must_wait(None));
        cues.end_stream();
        assert!(!waits(999));
        assert_eq!(cues.wait_for_room(), Err(Refused::Ended));
        cues.begin_stream();
        assert!(waits(999));
        cues.set_live(true);
        assert!(!waits(999));
        cues.set_live(false);
        bring(&cues, None, "by hand");
        assert!(!waits(999));
        bring(&cues, 200, "timed again");
        cues.reach(ms(200));
        assert!(waits(999));
        cues.link(false);
        assert!(!waits(999));
    }

    #[test]
    fn a_flush_forgets_all_cues() {
        let cues = Cues::default();
        cues.link(true);
        bring(&cues, 100, "a");
        bring(&cues, 200, "b");
        assert_eq!(shown(&cues, 100, 0), text("a"));
        cues.begin_flush();
        assert_eq!(cues.wait_for_room(), Err(Refused::Flushing));
        cues.end_flush();
        assert!(cues.must_wait(Some(ms(100))));
        assert_eq!(shown(&cues, 500, 0), None);
        assert_eq!(shown(&cues, 500, 0), None);
        bring(&cues, 50, "a");
        assert_eq!(shown(&cues, 500, 0), text("a"));
    }

    #[test]
    fn whoever_brings_too_many_waits_for_a_frame() {
        let cues = Arc::new(Cues::default());
        for k in 0..ROOM as u64 {
            bring(&cues, k * 10, "x");
        }
        let bringing = std::thread::spawn({
            let cues = cues.clone();
            move || bring(&cues, 5000, "last")
        });
        assert_eq!(shown(&cues, 0, 0), text("x"));
        bringing.join().unwrap();
        assert_eq!(cues.state.lock().waiting.len(), ROOM);
        let bringing = std::thread::spawn({
            let cues = cues.clone();
            move || cues.wait_for_room()
        });
        cues.begin_flush();
        assert_eq!(bringing.join().unwrap(), Err(Refused::Flushing));
    }

    /// Neither side waits for the other when more cues than there is room for are all due.
    #[test]
    fn a_frame_that_waits_makes_room() {
        let cues = Arc::new(Cues::default());
        cues.link(true);
        let bringing = std::thread::spawn({
            let cues = cues.clone();
            move || {
                for k in 0..10 * ROOM as u64 {
                    bring(&cues, k, &k.to_string());
                }
                cues.end_stream();
            }
        });
        let interrupt = Interrupt::default();
        cues.wait_for(Some(ms(5000)), 0, &interrupt).unwrap();
        bringing.join().unwrap();
        let last = (10 * ROOM - 1).to_string();
        assert_eq!(shown(&cues, 5000, 0), Some(last));
    }

    #[test]
    fn a_wait_ends_when_it_is_interrupted() {
        let cues = Arc::new(Cues::default());
        cues.link(true);
        let interrupt = Arc::new(Interrupt::default());
        let waiting = std::thread::spawn({
            let (cues, interrupt) = (cues.clone(), interrupt.clone());
            move || cues.wait_for(Some(ms(0)), 0, &interrupt)
        });
        interrupt.begin();
        let flushed = |result| matches!(result, Err(Unanswered::Flushing));
        assert!(flushed(waiting.join().unwrap()));
        assert!(flushed(cues.wait_for(Some(ms(0)), 0, &interrupt)));
        interrupt.end();
        cues.end_stream();
        assert!(cues.wait_for(Some(ms(0)), 0, &interrupt).is_ok());
    }
}
