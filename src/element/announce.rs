//! What the pipeline is told of the element's latency, and when.

use std::time::Duration;

use gst::prelude::*;
use gst::subclass::prelude::*;
use gst_base::prelude::*;

use super::CAT;
use super::imp::StreamDiffusion;
use super::lateness::Upstream;

impl StreamDiffusion {
    /// Tells the pipeline when the latency has changed enough.
    pub(super) fn tell_latency(
        &self,
        (held_back, depth): (usize, usize),
        group: usize,
        took: Option<Duration>,
    ) {
        let (announced, short) = {
            let mut latency = self.latency.lock();
            let announced = latency
                .update(held_back, depth, group, took)
                .then(|| latency.announce());
            (announced, latency.too_little_pinned())
        };
        if let Some(known) = short {
            gst::warning!(
                CAT,
                imp = self,
                "The latency property is set to less than it takes, which is {known}"
            );
        }
        if let Some(announced) = announced {
            self.post_latency(announced);
        }
    }

    fn post_latency(&self, announced: gst::ClockTime) {
        gst::debug!(CAT, imp = self, "Latency is now {announced}");
        let message = gst::message::Latency::builder().src(&*self.obj()).build();
        if self.obj().post_message(message).is_err() {
            gst::debug!(CAT, imp = self, "No bus to tell the latency to");
        }
    }

    /// Has a fixed latency told to the pipeline, in nanoseconds; -1: what is known of it.
    pub(super) fn pin_latency(&self, latency: i64) {
        let pinned = u64::try_from(latency)
            .ok()
            .map(gst::ClockTime::from_nseconds);
        let announced = {
            let mut latency = self.latency.lock();
            latency.pin(pinned).then(|| latency.announce())
        };
        if let Some(announced) = announced {
            self.post_latency(announced);
        }
    }

    pub(super) fn answer_latency(&self, query: &mut gst::query::Latency) -> bool {
        let mut upstream = gst::query::Latency::new();
        if !self.obj().sink_pad().peer_query(&mut upstream) {
            return false;
        }
        let (live, min, max) = upstream.result();
        self.lateness.lock().upstream = Upstream::of((live, min, max));
        let (own, held) = {
            let latency = self.latency.lock();
            (latency.own(), latency.held())
        };
        // Frames held back are copies, so they are capacity that upstream does not need to have.
        query.set(live, min + own, max.map(|max| max + held));
        true
    }
}
