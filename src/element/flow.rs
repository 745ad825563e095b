//! The way of a buffer through the element, on the streaming thread.

use std::ops::ControlFlow;

use gst::prelude::*;
use gst::subclass::prelude::*;
use gst_base::prelude::*;
use gst_base::subclass::base_transform::{InputBuffer, PrepareOutputBufferSuccess};
use gst_base::subclass::prelude::*;
use gst_video::prelude::*;

use super::imp::StreamDiffusion;
use super::runtime::Picture;
use super::state::Written;
use super::timeline::Departure;
use super::worker::{Asker, Finished, Frame, Unanswered};
use super::{CAT, errors};
use crate::error::Error;

impl StreamDiffusion {
    /// Has the worker restyle a frame, and puts what became ready on the timeline.
    pub(super) fn restyle(&self, input: gst::Buffer) -> Result<(), gst::FlowError> {
        let Some(asker) = self.state.lock().asker.clone() else {
            return Err(gst::FlowError::Flushing);
        };
        self.wait_for_model(&asker)?;
        let timing = self.settings.lock().timing;
        if self.state.lock().timing() != timing {
            self.drain()?;
            self.state.lock().switch_timing(timing);
        }
        let frame = self.import(input)?;
        let (ticket, immediate) = (frame.ticket, frame.prime);
        // Ends with this call, whatever becomes of it.
        #[cfg(feature = "cuda")]
        let _loan = frame.input.loan();
        let restyled = asker
            .restyle(&self.interrupt, frame)
            .map_err(|unanswered| self.unanswered(unanswered))?;
        gst::trace!(
            CAT,
            imp = self,
            "Frame {ticket}: {} ready after {:?}",
            restyled.finished.len(),
            restyled.took
        );
        self.tell_latency(if immediate { 0 } else { restyled.delay }, restyled.took);
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
    fn tell_latency(&self, held_back: usize, took: std::time::Duration) {
        let announced = {
            let mut latency = self.latency.lock();
            latency.update(held_back, took).then(|| latency.announce())
        };
        if let Some(announced) = announced {
            gst::debug!(CAT, imp = self, "Latency is now {announced}");
            let message = gst::message::Latency::builder().src(&*self.obj()).build();
            if self.obj().post_message(message).is_err() {
                gst::debug!(CAT, imp = self, "No bus to tell the latency to");
            }
        }
    }

    /// Waits until the model is loaded.
    fn wait_for_model(&self, asker: &Asker) -> Result<(), gst::FlowError> {
        if self.state.lock().loaded.is_some() {
            return Ok(());
        }
        let loaded = asker
            .model(&self.interrupt)
            .map_err(|unanswered| self.unanswered(unanswered))?;
        gst::info!(
            CAT,
            imp = self,
            "Model {} is loaded",
            loaded.folder().name()
        );
        self.manifest.lock().clone_from(loaded.folder().manifest());
        *self.kept.lock() = Some(loaded.clone());
        self.state.lock().loaded = Some(loaded);
        Ok(())
    }

    /// The frame as the worker wants it; notes it on the timeline.
    ///
    /// The pixels are copied: from here on only timestamps, flags and metas of the input are kept, so that a camera's or
    /// a decoder's buffer goes back at once, and one that wraps an application's memory is not touched again.
    fn import(&self, input: gst::Buffer) -> Result<Frame, gst::FlowError> {
        self.latency.lock().see(input.pts());
        let settings = self.settings.lock().clone();
        let result = {
            let mut state = self.state.lock();
            let Some(loaded) = state.loaded.clone() else {
                return Err(gst::FlowError::Flushing);
            };
            state.import(&loaded, &input, settings)
        };
        match result {
            Ok((content, settings, prime)) => {
                let input = without_memory(&input)?;
                Ok(Frame {
                    input: content,
                    ticket: self.state.lock().timeline.frame(input),
                    settings,
                    prime,
                })
            }
            Err(error) => Err(self.fail(&error)),
        }
    }

    /// The next buffer whose turn it is, after the events before it.
    pub(super) fn depart(&self) -> Result<Option<gst::Buffer>, gst::FlowError> {
        loop {
            let departure = self.state.lock().timeline.depart();
            match departure {
                Some(Departure::Event(event)) => {
                    self.parent_sink_event(event);
                }
                Some(Departure::Frame { input, picture }) => {
                    return self.export(&input, &picture).map(Some);
                }
                None => return Ok(None),
            }
        }
    }

    /// An output buffer that shows `picture` with the timestamps, flags and metas of `input`.
    fn export(
        &self,
        input: &gst::Buffer,
        picture: &Picture,
    ) -> Result<gst::Buffer, gst::FlowError> {
        let shared = match &self.state.lock().last {
            Some((last, buffer)) if last.is(picture) => Some(buffer.copy()),
            _ => None,
        };
        let mut output = match shared {
            Some(mut output) => {
                self.parent_copy_metadata(input, output.make_mut())
                    .map_err(|err| {
                        err.log_with_imp(self);
                        gst::FlowError::Error
                    })?;
                output
            }
            None => {
                let output = match self
                    .parent_prepare_output_buffer(InputBuffer::Readable(input))?
                {
                    PrepareOutputBufferSuccess::Buffer(output) => output,
                    PrepareOutputBufferSuccess::InputBuffer => return Err(gst::FlowError::Error),
                };
                let output = self.write(picture, output)?;
                // Only the filter makes frames share a picture; without it the pool's memory goes straight back.
                self.state.lock().last = match self.settings.lock().similarity_filter {
                    true => memory_only(&output).map(|memory| (picture.clone(), memory)),
                    false => None,
                };
                output
            }
        };
        let flags = gst_video::VideoBufferFlags::INTERLACED
            | gst_video::VideoBufferFlags::TFF
            | gst_video::VideoBufferFlags::RFF
            | gst_video::VideoBufferFlags::ONEFIELD;
        output.make_mut().unset_video_flags(flags);
        self.stats.lock().frame_left();
        Ok(output)
    }

    /// Writes a picture into an output buffer: this thread or, on a GPU, the worker.
    fn write(&self, picture: &Picture, output: gst::Buffer) -> Result<gst::Buffer, gst::FlowError> {
        let (written, asker) = {
            let mut state = self.state.lock();
            (state.export(picture, output), state.asker.clone())
        };
        match written.map_err(|error| self.fail(&error))? {
            Written::Complete(output) => Ok(output),
            Written::Asked(output) => {
                let asker = asker.ok_or(gst::FlowError::Flushing)?;
                asker
                    .write(&self.interrupt, picture.clone(), output)
                    .map_err(|unanswered| self.unanswered(unanswered))
            }
        }
    }

    /// Finishes and pushes all frames under way, so that what comes next does not overtake them.
    pub(super) fn drain(&self) -> Result<(), gst::FlowError> {
        let asker = {
            let state = self.state.lock();
            match &state.asker {
                Some(asker) if !state.timeline.is_empty() => asker.clone(),
                _ => return Ok(()),
            }
        };
        let finished = asker
            .drain(&self.interrupt)
            .map_err(|unanswered| self.unanswered(unanswered))?;
        gst::debug!(CAT, imp = self, "Drained {} frames", finished.len());
        self.state.lock().timeline.finish(finished);
        while let Some(buffer) = self.depart()? {
            self.obj().src_pad().push(buffer)?;
        }
        Ok(())
    }

    /// Forgets all frames, at FLUSH_STOP.
    pub(super) fn flush(&self) {
        let events = self.state.lock().timeline.clear();
        for event in events.iter().filter(|event| event.is_sticky()) {
            // Those that would not have been flushed downstream either stay known there.
            if let Err(flow) = self.obj().src_pad().store_sticky_event(event) {
                gst::debug!(CAT, imp = self, "{event:?} not kept: {flow:?}");
            }
        }
        self.state.lock().reset();
        self.interrupt.end();
    }

    pub(super) fn answer_latency(&self, query: &mut gst::query::Latency) -> bool {
        let mut upstream = gst::query::Latency::new();
        if !self.obj().sink_pad().peer_query(&mut upstream) {
            return false;
        }
        let (live, min, max) = upstream.result();
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
