//! The way of a buffer through the element, on the streaming thread.

use std::ops::ControlFlow;
use std::time::Duration;

use gst::prelude::*;
use gst::subclass::prelude::*;
use gst_base::prelude::*;
use gst_base::subclass::base_transform::{InputBuffer, PrepareOutputBufferSuccess};
use gst_base::subclass::prelude::*;
use gst_video::prelude::*;

use super::frame_clock::FrameClock;
use super::imp::StreamDiffusion;
use super::late::Fate;
use super::lateness::Upstream;
use super::runtime::{Picture, Written};
use super::settings::Settings;
use super::state::{Export, Last, Outgoing, UnderWay};
use super::timeline::{Departure, Shown};
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
        let frame = self.import(input, stamps, settings, moment)?;
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
            state.under_way.push_back(UnderWay {
                answer,
                ticket,
                immediate,
            });
        }
        self.collect(depth)
    }

    /// Puts on the timeline what the worker has finished, and waits until it has no more than `left` frames.
    fn collect(&self, left: usize) -> Result<(), gst::FlowError> {
        loop {
            let (under_way, answered) = {
                let mut state = self.state.lock();
                let Some(first) = state.under_way.front() else {
                    return Ok(());
                };
                let answered = first.answer.poll();
                if answered.is_none() && state.under_way.len() <= left {
                    return Ok(());
                }
                match state.under_way.pop_front() {
                    Some(first) => (first, answered),
                    None => return Ok(()),
                }
            };
            let UnderWay {
                answer,
                ticket,
                immediate,
            } = under_way;
            let restyled = answered
                .unwrap_or_else(|| answer.wait(&self.interrupt))
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
        let (held_back, depth) = match immediate {
            true => (0, 0),
            false => (restyled.delay, self.state.lock().depth()),
        };
        self.tell_latency((held_back, depth), restyled.group, restyled.took);
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

    /// Tells the pipeline when the latency has changed enough.
    fn tell_latency(
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
    /// The pixels are copied or lent for a while: from there on only timestamps, flags and metas of the input are kept,
    /// so that a camera's or a decoder's buffer goes back at once, and one that wraps an application's memory is not
    /// touched again.
    fn import(
        &self,
        input: &gst::Buffer,
        stamps: gst::Buffer,
        settings: Settings,
        moment: Moment,
    ) -> Result<Frame, gst::FlowError> {
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
                Ok(Frame {
                    input: content,
                    ticket,
                    stamp,
                    settings,
                    moment,
                    prime,
                    again,
                })
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

    /// The next buffer to push, after the events before it.
    pub(super) fn next_out(&self) -> Result<Option<gst::Buffer>, gst::FlowError> {
        loop {
            let complete = self.state.lock().outgoing.pop_front();
            let next = match complete {
                Some(outgoing) => Some(outgoing),
                None => self.depart()?,
            };
            match next {
                Some(Outgoing::Event(event)) => {
                    self.parent_sink_event(event);
                }
                Some(Outgoing::Frame(written)) => {
                    let buffer = written.into_buffer().map_err(|error| self.fail(&error))?;
                    return Ok(Some(buffer));
                }
                None => return Ok(None),
            }
        }
    }

    /// What comes next on the timeline, if its turn has come, complete.
    fn depart(&self) -> Result<Option<Outgoing>, gst::FlowError> {
        loop {
            let departure = self.state.lock().timeline.depart();
            return Ok(match departure {
                Some(Departure::Event(event)) => Some(Outgoing::Event(event)),
                Some(Departure::Frame { input, shown }) => match self.export(&input, shown)? {
                    Some(written) => Some(Outgoing::Frame(written)),
                    None => continue,
                },
                None => None,
            });
        }
    }

    /// An output buffer with the timestamps, flags and metas of `input`; none if there is nothing to show for it.
    fn export(&self, input: &gst::Buffer, shown: Shown) -> Result<Option<Written>, gst::FlowError> {
        let repeats = matches!(shown, Shown::Again);
        let shared = match (&self.state.lock().last, &shown) {
            (Some(last), Shown::Again) => Some(last.memory.copy()),
            (Some(last), Shown::Picture(picture)) => match &last.picture {
                Some(known) if known.is(picture) => Some(last.memory.copy()),
                _ => None,
            },
            _ => None,
        };
        let mut output = match (shared, shown) {
            (Some(mut output), _) => {
                self.parent_copy_metadata(input, output.make_mut())
                    .map_err(|err| {
                        err.log_with_imp(self);
                        gst::FlowError::Error
                    })?;
                output.into()
            }
            (None, Shown::Picture(picture)) => {
                let mut output = self.write(&picture, self.room(input)?)?;
                self.remember(Some(picture), &mut output)?;
                output
            }
            (None, Shown::Input(pixels)) => {
                let mut output = self.room(input)?;
                let passed = self.state.lock().pass(&pixels, output.make_mut());
                passed.map_err(|error| self.fail(&error))?;
                let mut output = output.into();
                self.remember(None, &mut output)?;
                output
            }
            (None, Shown::Again) => {
                // Pictures stopped being kept for it meanwhile.
                self.state.lock().left_out = true;
                return Ok(None);
            }
        };
        let flags = gst_video::VideoBufferFlags::INTERLACED
            | gst_video::VideoBufferFlags::TFF
            | gst_video::VideoBufferFlags::RFF
            | gst_video::VideoBufferFlags::ONEFIELD;
        (output.buffer_mut().make_mut()).unset_video_flags(flags);
        self.story.leaves(self, input.pts());
        let mut stats = self.stats.lock();
        stats.frame_left();
        if repeats {
            stats.frame_repeated();
        }
        drop(stats);
        Ok(Some(output))
    }

    /// An output buffer for `input`, with nothing in it yet.
    fn room(&self, input: &gst::Buffer) -> Result<gst::Buffer, gst::FlowError> {
        match self.parent_prepare_output_buffer(InputBuffer::Readable(input))? {
            PrepareOutputBufferSuccess::Buffer(output) => Ok(output),
            PrepareOutputBufferSuccess::InputBuffer => Err(gst::FlowError::Error),
        }
    }

    /// Keeps what is in `output` for frames that show the same, for which it must be complete; without such the pool's memory
    /// goes straight back.
    fn remember(
        &self,
        picture: Option<Picture>,
        output: &mut Written,
    ) -> Result<(), gst::FlowError> {
        let shared = {
            let settings = self.settings.lock();
            settings.similarity_filter || settings.repeats_late()
        };
        let last = match shared {
            true => {
                let buffer = output.complete().map_err(|error| self.fail(&error))?;
                memory_only(buffer).map(|memory| Last { picture, memory })
            }
            false => None,
        };
        self.state.lock().last = last;
        Ok(())
    }

    /// Writes a picture into an output buffer: this thread or, on a GPU, the worker.
    fn write(&self, picture: &Picture, output: gst::Buffer) -> Result<Written, gst::FlowError> {
        let (export, asker) = {
            let mut state = self.state.lock();
            (state.export(picture, output), state.asker.clone())
        };
        match export.map_err(|error| self.fail(&error))? {
            Export::Complete(output) => Ok(output.into()),
            Export::Asked(output) => {
                let asker = asker.ok_or(gst::FlowError::Flushing)?;
                asker
                    .write(&self.interrupt, picture.clone(), output)
                    .map_err(|unanswered| self.unanswered(unanswered))
            }
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
        self.interrupt.end();
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

    /// What a wait without an answer comes to; posts the error if nobody has.
    fn unanswered(&self, unanswered: Unanswered) -> gst::FlowError {
        match unanswered {
            Unanswered::Flushing => gst::FlowError::Flushing,
            Unanswered::Gone => gst::FlowError::Error,
            Unanswered::Failed(error) => self.fail(&error),
        }
    }

    fn fail(&self, error: &Error) -> gst::FlowError {
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

/// The memory of a buffer (not a copy of it) and its layout, without what belongs to one frame only.
fn memory_only(buffer: &gst::Buffer) -> Option<gst::Buffer> {
    let mut copy = buffer.copy_region(gst::BufferCopyFlags::MEMORY, ..).ok()?;
    if let Some(layout) = buffer.meta::<gst_video::VideoMeta>() {
        gst_video::VideoMeta::add_full(
            copy.make_mut(),
            gst_video::VideoFrameFlags::empty(),
            layout.format(),
            layout.width(),
            layout.height(),
            layout.offset(),
            layout.stride(),
        )
        .ok()?;
    }
    Some(copy)
}
