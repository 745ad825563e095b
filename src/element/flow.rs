//! The way of a buffer into the element and through it, on the streaming thread; `departure.rs` is its way out.

use std::ops::ControlFlow;

use gst::prelude::*;
use gst::subclass::prelude::*;
use gst_base::prelude::*;
use gst_base::subclass::prelude::*;

use super::frame_clock::FrameClock;
use super::imp::StreamDiffusion;
use super::late::Fate;
use super::runtime::Input;
use super::settings::Settings;
use super::state::UnderWay;
use super::worker::{Finished, Frame, Moment, Restyled, Stamp, Unanswered};
use super::{CAT, Timing, errors};
use crate::error::Error;

impl StreamDiffusion {
    /// Takes in a frame: has it restyled, or whatever else becomes of it.
    pub(super) fn accept(&self, input: gst::Buffer) -> Result<(), gst::FlowError> {
        let settings = self.settings.lock().clone();
        if self.state.lock().timing() != settings.timing {
            self.drain()?;
            self.state.lock().switch_timing(settings.timing);
        }
        self.heed_jump(&input)?;
        self.latency.lock().see(input.pts());
        let fate = self.fate(&input, &settings)?;
        self.reset_if_asked()?;
        self.heed_bypass(settings.bypass)?;
        if fate != Fate::Restyle && !settings.bypass {
            self.let_go_of_held()?;
        }
        if fate != Fate::Restyle {
            self.pass_cues(&input);
        }
        match fate {
            Fate::Restyle => {
                let stamps = self.stamps(&input)?;
                return self.restyle(&input, stamps, settings);
            }
            Fate::Drop => self.state.lock().left_out = true,
            Fate::Repeat => {
                let stamps = self.stamps(&input)?;
                self.state.lock().timeline.again(stamps);
            }
            Fate::Pass => {
                let stamps = self.stamps(&input)?;
                self.stats.lock().frame_passed();
                let mut state = self.state.lock();
                let pixels = match state.is_empty() {
                    // It leaves before this call ends.
                    true => input,
                    false => input.copy_deep().map_err(|_| gst::FlowError::Error)?,
                };
                state.timeline.pass(stamps, pixels);
            }
        }
        self.state.lock().restyled_last = false;
        self.collect(usize::MAX)
    }

    /// Lets go of what is under way when frames begin to be bypassed: it would wait for ever for others to follow.
    fn heed_bypass(&self, bypass: bool) -> Result<(), gst::FlowError> {
        let was = std::mem::replace(&mut self.state.lock().bypassing, bypass);
        if was || !bypass {
            return Ok(());
        }
        self.drain()?;
        let mut state = self.state.lock();
        if state.timing() == Timing::Immediate {
            // Something has been shown for each of them already.
            state.reset();
        }
        Ok(())
    }

    /// Finishes the frames that are held back when as many others in a row were not restyled: what is shown for those
    /// waits for them, and only restyled ones would move them on.
    fn let_go_of_held(&self) -> Result<(), gst::FlowError> {
        let held_back = self.latency.lock().held_back();
        let drains = {
            let mut state = self.state.lock();
            state.passed_over += 1;
            state.passed_over > held_back + 1 && state.timeline.has_frames()
        };
        match drains {
            true => self.drain(),
            false => Ok(()),
        }
    }

    /// Has the worker restyle a frame, and puts what became ready on the timeline.
    fn restyle(
        &self,
        input: &gst::Buffer,
        stamps: gst::Buffer,
        settings: Settings,
    ) -> Result<(), gst::FlowError> {
        let Some(asker) = self.state.lock().asker.clone() else {
            return Err(gst::FlowError::Flushing);
        };
        // The worker may still be busy with the frames before it.
        let moment = self
            .moment(input)
            .map_err(|unanswered| self.unanswered(unanswered))?;
        let (picture, frame) = self.import(input, stamps, settings, moment)?;
        // Before the frames before it are waited for: it may be compared meanwhile.
        asker.expect(frame.ticket, picture);
        let depth = self.state.lock().depth();
        self.collect(depth.saturating_sub(1))?;
        // The next one to leave is written before the worker is busy again. No more than that: downstream's pool may have
        // no more buffers until that one has been pushed.
        while self.state.lock().outgoing.is_empty()
            && let Some(outgoing) = self.depart()?
        {
            self.state.lock().outgoing.push_back(outgoing);
        }
        let (ticket, immediate) = (frame.ticket, frame.prime);
        let answer = asker
            .restyle(&self.interrupt, frame)
            .map_err(|unanswered| self.unanswered(unanswered))?;
        {
            let mut state = self.state.lock();
            state.passed_over = 0;
            state.restyled_last = true;
            (state.under_way).push_back(UnderWay::new(answer, ticket, immediate));
        }
        self.collect(depth)
    }

    /// Puts on the timeline what is finished, and waits until no more than `left` frames are under way. What ends a wait for
    /// the worker does not end one for a GPU, which lasts until the frame and what was put there before it is done.
    fn collect(&self, left: usize) -> Result<(), gst::FlowError> {
        loop {
            let (first, many) = {
                let mut state = self.state.lock();
                let many = state.under_way.len() > left;
                (state.under_way.pop_front(), many)
            };
            let Some(mut under_way) = first else {
                return Ok(());
            };
            if !many && !under_way.is_over() {
                self.state.lock().under_way.push_front(under_way);
                return Ok(());
            }
            let (ticket, immediate) = (under_way.ticket, under_way.immediate);
            let restyled = (under_way.wait(&self.interrupt))
                .map_err(|unanswered| self.unanswered(unanswered))?;
            gst::trace!(
                CAT,
                imp = self,
                "Frame {ticket}: {} ready",
                restyled.finished.len()
            );
            self.take_in(restyled, ticket, immediate)?;
        }
    }

    /// Puts on the timeline what a frame led to.
    fn take_in(
        &self,
        restyled: Restyled,
        ticket: u64,
        immediate: bool,
    ) -> Result<(), gst::FlowError> {
        let took = (restyled.computing.wait()).map_err(|error| self.fail(&error))?;
        let took = took.filter(|_| restyled.processed);
        let (held_back, depth) = match immediate {
            true => (0, 0),
            false => (restyled.delay, self.state.lock().depth()),
        };
        self.tell_latency((held_back, depth), restyled.group, took);
        let mut state = self.state.lock();
        if !immediate {
            state.timeline.finish(restyled.finished);
            return Ok(());
        }
        match state.pick(restyled.finished) {
            Some(picture) => {
                state.timeline.finish(vec![Finished { picture, ticket }]);
                Ok(())
            }
            None => {
                drop(state);
                Err(self.fail(&Error::engine(
                    "stream",
                    "gave no picture for the first frame",
                )))
            }
        }
    }

    /// Whether the model is loaded; waits for it if `wait` says so.
    pub(super) fn model_is_loaded(&self, wait: bool) -> Result<bool, gst::FlowError> {
        let (asker, asked) = {
            let mut state = self.state.lock();
            if state.loaded.is_some() {
                return Ok(true);
            }
            (state.asker.clone(), state.loading.take())
        };
        let asker = asker.ok_or(gst::FlowError::Flushing)?;
        let loading = match asked {
            Some(loading) => loading,
            None => asker
                .model(&self.interrupt)
                .map_err(|unanswered| self.unanswered(unanswered))?,
        };
        let answered = match loading.poll() {
            Some(answered) => answered,
            None if wait => loading.wait(&self.interrupt),
            None => {
                self.state.lock().loading = Some(loading);
                return Ok(false);
            }
        };
        let loaded = answered.map_err(|unanswered| self.unanswered(unanswered))?;
        gst::info!(
            CAT,
            imp = self,
            "Model {} is loaded",
            loaded.folder().name()
        );
        self.manifest.lock().clone_from(loaded.folder().manifest());
        *self.kept.lock() = Some(loaded.clone());
        self.state.lock().loaded = Some(loaded);
        Ok(true)
    }

    /// Timestamps, flags and metas of a frame, without its memory.
    fn stamps(&self, input: &gst::Buffer) -> Result<gst::Buffer, gst::FlowError> {
        let mut stamps = without_memory(input)?;
        if std::mem::take(&mut self.state.lock().left_out) {
            stamps.make_mut().set_flags(gst::BufferFlags::DISCONT);
        }
        Ok(stamps)
    }

    /// The frame as the worker wants it; notes it on the timeline.
    ///
    /// The pixels are copied, but for those in a GPU's memory: from there on only timestamps, flags and metas of the
    /// input are kept, so that a camera's or a decoder's buffer goes back at once, and one that wraps an application's
    /// memory is not touched again.
    fn import(
        &self,
        input: &gst::Buffer,
        stamps: gst::Buffer,
        settings: Settings,
        moment: Moment,
    ) -> Result<(Input, Frame), gst::FlowError> {
        let result = {
            let mut state = self.state.lock();
            let Some(loaded) = state.loaded.clone() else {
                return Err(gst::FlowError::Flushing);
            };
            state.import(&loaded, input, settings)
        };
        match result {
            Ok((content, settings, prime)) => {
                let stamp = self.stamp(input);
                // How livesync and videorate mark what they insert.
                let again = input.flags().contains(gst::BufferFlags::GAP)
                    && self.state.lock().restyled_last;
                let ticket = self.state.lock().timeline.frame(stamps);
                self.story.came(self, ticket, input);
                let frame = Frame {
                    ticket,
                    stamp,
                    settings,
                    moment,
                    prime,
                    again,
                };
                Ok((content, frame))
            }
            Err(error) => Err(self.fail(&error)),
        }
    }

    /// What a frame is known by outside.
    fn stamp(&self, input: &gst::BufferRef) -> Stamp {
        let segment = self.obj().segment();
        let segment = segment.downcast_ref::<gst::ClockTime>();
        Stamp {
            pts: input.pts(),
            running_time: segment.and_then(|segment| segment.to_running_time(input.pts())),
        }
    }

    /// Finishes and pushes all frames under way, so that what comes next does not overtake them.
    pub(super) fn drain(&self) -> Result<(), gst::FlowError> {
        self.collect(0)?;
        let asker = {
            let state = self.state.lock();
            match &state.asker {
                Some(asker) if !state.is_empty() => asker.clone(),
                _ => return Ok(()),
            }
        };
        let finished = asker
            .drain(&self.interrupt)
            .map_err(|unanswered| self.unanswered(unanswered))?;
        gst::debug!(CAT, imp = self, "Drained {} frames", finished.len());
        self.state.lock().timeline.finish(finished);
        while let Some(buffer) = self.next_out()? {
            self.obj().src_pad().push(buffer)?;
        }
        self.state.lock().marks_discont = false;
        Ok(())
    }

    /// After an error: forgets the frames under way, which the worker has lost too, so that what comes next, if anything
    /// does, is not taken for them.
    pub(super) fn abandon(&self) {
        let events = self.state.lock().clear();
        self.story.forget();
        for event in events {
            self.parent_sink_event(event);
        }
    }

    /// Forgets all frames, at FLUSH_STOP.
    pub(super) fn flush(&self) {
        let events = {
            let mut state = self.state.lock();
            state.clock = FrameClock::default();
            state.clear()
        };
        for event in events.iter().filter(|event| event.is_sticky()) {
            // Those that would not have been flushed downstream either stay known there.
            if let Err(flow) = self.obj().src_pad().store_sticky_event(event) {
                gst::debug!(CAT, imp = self, "{event:?} not kept: {flow:?}");
            }
        }
        self.lateness.lock().reset();
        self.story.forget();
        self.cues.set_video_ended(false);
        self.interrupt.end();
    }

    /// What a wait without an answer comes to; posts the error if nobody has.
    pub(super) fn unanswered(&self, unanswered: Unanswered) -> gst::FlowError {
        match unanswered {
            Unanswered::Flushing => gst::FlowError::Flushing,
            Unanswered::Gone => gst::FlowError::Error,
            Unanswered::Failed(error) => self.fail(&error),
        }
    }

    pub(super) fn fail(&self, error: &Error) -> gst::FlowError {
        self.post_error_message(errors::message(error));
        gst::FlowError::Error
    }
}

/// Timestamps, flags and metas of a buffer, without its memory.
fn without_memory(buffer: &gst::Buffer) -> Result<gst::Buffer, gst::FlowError> {
    let parts =
        gst::BufferCopyFlags::FLAGS | gst::BufferCopyFlags::TIMESTAMPS | gst::BufferCopyFlags::META;
    let mut copy = buffer
        .copy_region(parts, ..)
        .map_err(|_| gst::FlowError::Error)?;
    // Some metas hold on to memory, as that of a parent buffer does.
    copy.make_mut().foreach_meta_mut(|meta| {
        ControlFlow::Continue(match meta.has_tag::<gst::meta::tags::MemoryReference>() {
            true => gst::buffer::BufferMetaForeachAction::Remove,
            false => gst::buffer::BufferMetaForeachAction::Keep,
        })
    });
    Ok(copy)
}
