//! The pad `prompt`: text with times in, cues out.

use std::sync::Arc;

use gst::prelude::*;
use gst::subclass::prelude::*;
use gst_base::prelude::*;

use super::CAT;
use super::cues::{Cue, Refused};
use super::imp::StreamDiffusion;
use super::worker::{Moment, Unanswered};

/// Name of the pad and of its template.
pub const NAME: &str = "prompt";
/// The longest cue, in bytes, as for prompts.
const LONGEST: usize = 64 << 10;

/// The template of the pad.
pub fn template() -> Option<gst::PadTemplate> {
    let caps = gst::Caps::builder("text/x-raw")
        .field("format", "utf8")
        .build();
    let presence = gst::PadPresence::Request;
    gst::PadTemplate::new(NAME, gst::PadDirection::Sink, presence, &caps).ok()
}

/// A pad that brings its element cues. Nothing that comes in by it goes on to the source pad.
pub fn new(template: &gst::PadTemplate) -> gst::Pad {
    gst::Pad::builder_from_template(template)
        .name(NAME)
        .chain_function(|pad, parent, buffer| {
            StreamDiffusion::catch_panic_pad_function(
                parent,
                || Err(gst::FlowError::Error),
                |imp| imp.take_cue(pad, &buffer),
            )
        })
        .event_function(|pad, parent, event| {
            StreamDiffusion::catch_panic_pad_function(
                parent,
                || false,
                |imp| imp.take_cue_event(pad, &event),
            )
        })
        .query_function(|pad, parent, query| match query.view() {
            gst::QueryView::Caps(_) | gst::QueryView::AcceptCaps(_) => {
                gst::Pad::query_default(pad, parent, query)
            }
            _ => false,
        })
        .link_function(|_, parent, _| {
            StreamDiffusion::catch_panic_pad_function(
                parent,
                || Err(gst::PadLinkError::Refused),
                |imp| {
                    imp.cues.link(true);
                    Ok(gst::PadLinkSuccess)
                },
            )
        })
        .unlink_function(|_, parent| {
            StreamDiffusion::catch_panic_pad_function(parent, || (), |imp| imp.cues.link(false));
        })
        .iterate_internal_links_function(|_, _| gst::Iterator::from_vec(Vec::new()))
        .build()
}

impl StreamDiffusion {
    /// Takes in a cue; waits while there are too many.
    fn take_cue(
        &self,
        pad: &gst::Pad,
        buffer: &gst::BufferRef,
    ) -> Result<gst::FlowSuccess, gst::FlowError> {
        let (time, early) = match (segment(pad), buffer.pts()) {
            (Some(segment), Some(start)) => {
                let Some((time, early)) = cue_time(&segment, start, buffer.duration()) else {
                    gst::debug!(CAT, obj = pad, "No cue: {buffer:?} is not in the segment");
                    return Ok(gst::FlowSuccess::Ok);
                };
                (Some(time), early)
            }
            _ => (None, false),
        };
        let cue = match text(buffer) {
            Ok(text) => Arc::new(Cue { time, text }),
            Err(what) => {
                let cue = Cue {
                    time,
                    text: String::new(),
                };
                gst::element_imp_warning!(
                    self,
                    gst::StreamError::Decode,
                    ("{cue} {what}; the old prompt stays in force")
                );
                return Ok(gst::FlowSuccess::Ok);
            }
        };
        self.cues.wait_for_room().map_err(|refused| match refused {
            Refused::Flushing => gst::FlowError::Flushing,
            Refused::Ended => gst::FlowError::Eos,
        })?;
        gst::debug!(CAT, obj = pad, "{cue}: {:?}", cue.text);
        let asker = self.state.lock().asker.clone();
        // Of many from before the segment only the last is for a frame.
        if let Some(asker) = asker
            && !(cue.text.is_empty() || early)
            && self.cues.expect_frames()
        {
            asker.prepare(self.settings.lock().clone(), cue.clone());
        }
        self.cues.bring(cue, early);
        Ok(gst::FlowSuccess::Ok)
    }

    fn take_cue_event(&self, pad: &gst::Pad, event: &gst::Event) -> bool {
        use gst::EventView;
        gst::log!(CAT, obj = pad, "Event {event:?}");
        match event.view() {
            EventView::FlushStart(_) => self.cues.begin_flush(),
            EventView::FlushStop(_) => self.cues.end_flush(),
            EventView::StreamStart(_) => self.cues.begin_stream(),
            EventView::Eos(_) => self.cues.end_stream(),
            EventView::Segment(segment) => {
                let segment = segment.segment();
                match segment.downcast_ref::<gst::ClockTime>() {
                    Some(segment) => self.cues.reach(begin(segment).unwrap_or_default()),
                    // Bytes, say: of somebody who types.
                    None => self.cues.begin_untimed(),
                }
            }
            EventView::Gap(gap) => {
                let (start, duration) = gap.get();
                let end = segment(pad).and_then(|segment| gap_end(&segment, start, duration));
                if let Some(end) = end {
                    self.cues.reach(end);
                }
            }
            _ => {}
        }
        true
    }

    /// The running time of the next frame, as far as it is known.
    fn frame_time(&self, input: &gst::BufferRef) -> Option<gst::ClockTime> {
        let segment = self.obj().segment();
        let running = segment
            .downcast_ref::<gst::ClockTime>()
            .and_then(|segment| segment.to_running_time(input.pts()));
        let mut state = self.state.lock();
        let duration = input.duration().or_else(|| state.frame_duration());
        state.clock.see(running, duration)
    }

    /// Notes a frame that no prompt is for. Cues that are due go by with it, and whoever brings them goes on.
    pub(super) fn pass_cues(&self, input: &gst::BufferRef) {
        let time = self.frame_time(input);
        let set = self.settings.lock().prompt_set;
        self.cues.shown(time, set);
    }

    /// Has the cues go by that are due in a gap of the video.
    pub(super) fn pass_gap(&self, gap: &gst::event::Gap) {
        let (start, duration) = gap.get();
        let segment = self.obj().segment();
        let end = segment
            .downcast_ref::<gst::ClockTime>()
            .and_then(|segment| gap_end(segment, start, duration));
        if let Some(end) = end {
            let set = self.settings.lock().prompt_set;
            self.cues.shown(Some(end), set);
        }
    }

    /// The time of a frame and the prompt for it, once all cues are known that may be for it.
    pub(super) fn moment(&self, input: &gst::BufferRef) -> Result<Moment, Unanswered> {
        let time = self.frame_time(input);
        let set = self.settings.lock().prompt_set;
        if self.cues.must_wait(time) && self.has_untimed_source() {
            self.cues.begin_untimed();
        }
        if self.cues.must_wait(time) && !self.is_live() {
            gst::log!(CAT, imp = self, "The frame at {time:?} waits for cues");
            self.cues.wait_for(time, set, &self.interrupt)?;
        }
        // After the last of cues it matters once more, and is known from before.
        let live = match self.cues.are_used() {
            true => self.is_live(),
            false => self.cues.is_live() == Some(true),
        };
        Ok(Moment {
            time,
            cue: self.cues.shown(time, set),
            exact: !live,
        })
    }

    /// Whether what comes by the pad for prompts will be in bytes, as from somebody who types: their source sends a segment
    /// with the first of them only.
    fn has_untimed_source(&self) -> bool {
        let Some(pad) = self.obj().static_pad(NAME) else {
            return false;
        };
        let answers = |format: gst::Format| pad.peer_query(&mut gst::query::Seeking::new(format));
        pad.sticky_event::<gst::event::Segment>(0).is_none()
            && !answers(gst::Format::Time)
            && answers(gst::Format::Bytes)
    }

    /// Whether video or cues come in real time, so that neither may hold up the other.
    fn is_live(&self) -> bool {
        if let Some(live) = self.cues.is_live() {
            return live;
        }
        let pads = [
            Some(self.obj().sink_pad().clone()),
            self.obj().static_pad(NAME),
        ];
        let mut known = true;
        for pad in pads.into_iter().flatten() {
            let mut query = gst::query::Latency::new();
            match pad.peer_query(&mut query) {
                true if query.result().0 => {
                    self.cues.set_live(true);
                    return true;
                }
                answered => known &= answered,
            }
        }
        if known {
            self.cues.set_live(false);
        }
        false
    }
}

fn segment(pad: &gst::Pad) -> Option<gst::FormattedSegment<gst::ClockTime>> {
    let event = pad.sticky_event::<gst::event::Segment>(0)?;
    event.segment().downcast_ref::<gst::ClockTime>().cloned()
}

/// The running time that a segment begins at: backwards that of its end.
fn begin(segment: &gst::FormattedSegment<gst::ClockTime>) -> Option<gst::ClockTime> {
    segment.to_running_time(match segment.rate() >= 0.0 {
        true => segment.start(),
        false => segment.stop(),
    })
}

/// The running time at which a gap is over: backwards that of its start.
fn gap_end(
    segment: &gst::FormattedSegment<gst::ClockTime>,
    start: gst::ClockTime,
    duration: Option<gst::ClockTime>,
) -> Option<gst::ClockTime> {
    let end = start.saturating_add(duration.unwrap_or_default());
    segment.to_running_time(match segment.rate() >= 0.0 {
        true => segment.stop().map_or(end, |stop| end.min(stop)),
        false => segment.start().map_or(start, |first| start.max(first)),
    })
}

/// The running time from which on a cue is in force, and whether it is from before the first frame that it can be for: as it
/// holds until the next one, it counts from the segment's beginning on then, or from 0, which an offset of the pad may put
/// later. `None` if no frame of the segment can be for it. Backwards it is met at its end.
fn cue_time(
    segment: &gst::FormattedSegment<gst::ClockTime>,
    start: gst::ClockTime,
    duration: Option<gst::ClockTime>,
) -> Option<(gst::ClockTime, bool)> {
    let (first, stop) = (segment.start().unwrap_or_default(), segment.stop());
    let end = start.saturating_add(duration.unwrap_or_default());
    let (inside, at, early) = match segment.rate() >= 0.0 {
        true => {
            let inside = stop.is_none_or(|stop| start < stop);
            (inside, start.max(first), start < first)
        }
        false => (end >= first, stop.map_or(end, |stop| end.min(stop)), false),
    };
    let time = segment.to_running_time(at);
    inside.then(|| (time.unwrap_or_default(), early || time.is_none()))
}

/// The prompt in a buffer, on one line and without control characters, which no message could quote; an error for people.
fn text(buffer: &gst::BufferRef) -> Result<String, String> {
    if buffer.size() > LONGEST {
        return Err(format!(
            "has {} bytes, expected {LONGEST} at most",
            buffer.size()
        ));
    }
    let bytes = buffer
        .map_readable()
        .map_err(|_| "cannot be read".to_owned())?;
    let text = std::str::from_utf8(&bytes).map_err(|err| format!("is not UTF-8 text: {err}"))?;
    // Some editors begin files with a mark of the byte order.
    let text = text.trim_start_matches('\u{feff}');
    let words = text.split(|c: char| c.is_whitespace() || c.is_control());
    let words = words.filter(|word| !word.is_empty());
    Ok(words.collect::<Vec<_>>().join(" "))
}
