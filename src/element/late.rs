//! What becomes of a frame that came in: it is restyled, or left out, or shown otherwise.

use gst::prelude::*;
use gst::subclass::prelude::*;
use gst_base::prelude::*;

use super::imp::StreamDiffusion;
use super::lateness::{Late, Upstream};
use super::settings::Settings;
use super::{CAT, LatePolicy, WhileLoading};

/// What becomes of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    /// It is restyled.
    Restyle,
    /// It is left out.
    Drop,
    /// What the frame before it shows is shown for it.
    Repeat,
    /// It is shown as it came.
    Pass,
}

impl StreamDiffusion {
    /// What becomes of the frame `input`. Waits for the model where frames wait for it.
    pub(super) fn fate(
        &self,
        input: &gst::Buffer,
        settings: &Settings,
    ) -> Result<Fate, gst::FlowError> {
        if settings.bypass {
            return Ok(Fate::Pass);
        }
        if !self.model_is_loaded(settings.while_loading == WhileLoading::Block)? {
            return Ok(Fate::Pass);
        }
        if settings.late_policy == LatePolicy::None {
            return Ok(Fate::Restyle);
        }
        let Some(late) = self.lateness_of(input, settings) else {
            return Ok(Fate::Restyle);
        };
        gst::log!(CAT, imp = self, "{:?} is late: {late:?}", input.pts());
        Ok(match settings.late_policy {
            LatePolicy::None => Fate::Restyle,
            LatePolicy::Passthrough => Fate::Pass,
            _ if settings.repeats_late() => match self.state.lock().can_repeat() {
                true => Fate::Repeat,
                false => Fate::Restyle,
            },
            LatePolicy::Repeat | LatePolicy::Drop => {
                self.tell_dropped(input, late);
                Fate::Drop
            }
        })
    }

    /// How late a frame is, if it is.
    fn lateness_of(&self, input: &gst::Buffer, settings: &Settings) -> Option<Late> {
        let segment = self.obj().segment();
        let segment = segment.downcast_ref::<gst::ClockTime>()?;
        let time = segment.to_running_time(input.pts())?;
        if self.lateness.lock().upstream == Upstream::Unknown {
            let mut query = gst::query::Latency::new();
            let upstream = match self.obj().sink_pad().peer_query(&mut query) {
                true => Upstream::of(query.result()),
                false => Upstream::Waits,
            };
            self.lateness.lock().upstream = upstream;
        }
        let allowed = match u64::try_from(settings.max_lateness) {
            Ok(allowed) => Some(gst::ClockTime::from_nseconds(allowed)),
            // Nobody knows yet how long a frame is.
            Err(_) => Some(self.latency.lock().duration() * 2).filter(|two| !two.is_zero()),
        };
        // On its way to PLAYING the element has the base time of before.
        let now = match self.obj().current_state() {
            gst::State::Playing => self.obj().current_running_time(),
            _ => None,
        };
        let heeds_sink = self.obj().is_qos();
        let mut lateness = self.lateness.lock();
        if !heeds_sink {
            lateness.report(1.0, 0, None);
        }
        lateness.judge(time, now, allowed)
    }

    /// Tells the application of a frame that was left out.
    fn tell_dropped(&self, input: &gst::Buffer, late: Late) {
        let (processed, dropped) = {
            let mut stats = self.stats.lock();
            stats.frame_dropped();
            stats.processed_and_dropped()
        };
        let live = matches!(self.lateness.lock().upstream, Upstream::Live(_));
        let segment = self.obj().segment();
        let segment = segment.downcast_ref::<gst::ClockTime>();
        let message = gst::message::Qos::builder(live)
            .src(&*self.obj())
            .running_time(segment.and_then(|segment| segment.to_running_time(input.pts())))
            .stream_time(segment.and_then(|segment| segment.to_stream_time(input.pts())))
            .timestamp(input.pts())
            .duration(input.duration())
            // Millionths of full quality.
            .values(late.jitter, late.proportion, 1_000_000)
            .stats(
                gst::format::Buffers::from_u64(processed),
                gst::format::Buffers::from_u64(dropped),
            )
            .build();
        if self.obj().post_message(message).is_err() {
            gst::debug!(CAT, imp = self, "No bus to tell of a dropped frame");
        }
    }
}

impl Upstream {
    /// What upstream answered: whether it is live, and its least and most latency.
    pub(super) fn of((live, least, _): (bool, gst::ClockTime, Option<gst::ClockTime>)) -> Self {
        match live {
            true => Self::Live(least),
            false => Self::Waits,
        }
    }
}
