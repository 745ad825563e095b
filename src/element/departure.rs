//! The way of a frame out of the element: a buffer is written for it, with what belongs to it.

use gst_base::subclass::base_transform::{InputBuffer, PrepareOutputBufferSuccess};
use gst_base::subclass::prelude::*;
use gst_video::prelude::*;

use super::imp::StreamDiffusion;
use super::runtime::{Picture, Written};
use super::state::{Exported, Last, Outgoing};
use super::timeline::{Departure, Shown};

impl StreamDiffusion {
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

    /// What comes next on the timeline, if its turn has come. A frame from a GPU may still be on its way.
    pub(super) fn depart(&self) -> Result<Option<Outgoing>, gst::FlowError> {
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
        let picture = match &shown {
            Shown::Picture(picture) => Some(picture.clone()),
            _ => None,
        };
        let (shared, gone) = {
            let mut state = self.state.lock();
            let same = (state.last.as_ref()).filter(|last| match (&shown, &last.picture) {
                (Shown::Again, _) => true,
                (Shown::Picture(picture), Some(known)) => known.is(picture),
                _ => false,
            });
            let shared = same.and_then(|last| memory_only(&last.buffer));
            // Where something else takes its place: the pool may have to have it back for that.
            let gone = state.last.take_if(|_| shared.is_none());
            (shared, gone)
        };
        drop(gone);
        let fresh = shared.is_none();
        let mut output: Written = match (shared, shown) {
            (Some(mut output), _) => {
                self.parent_copy_metadata(input, output.make_mut())
                    .map_err(|err| {
                        err.log_with_imp(self);
                        gst::FlowError::Error
                    })?;
                output.into()
            }
            (None, Shown::Picture(picture)) => self.write(&picture, self.room(input)?)?,
            (None, Shown::Input(pixels)) => {
                let mut output = self.room(input)?;
                let passed = self.state.lock().pass(&pixels, output.make_mut());
                passed.map_err(|error| self.fail(&error))?;
                output.into()
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
        if fresh {
            self.remember(picture, &mut output)?;
        }
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

    /// Keeps `output` for frames that show the same, for which it must be complete. It is the buffer itself that is kept, which
    /// nobody may write to from here on: a pool takes back no buffer whose memory something else has, and would make a new one
    /// for each frame.
    fn remember(
        &self,
        picture: Option<Picture>,
        output: &mut Written,
    ) -> Result<(), gst::FlowError> {
        let shared = {
            let settings = self.settings.lock();
            settings.similarity_filter || settings.repeats_late()
        };
        if shared {
            let buffer = output.complete().map_err(|error| self.fail(&error))?;
            let buffer = buffer.clone();
            self.state.lock().last = Some(Last { picture, buffer });
        }
        Ok(())
    }

    /// Writes a picture into an output buffer: this thread or, on a GPU, the worker.
    fn write(&self, picture: &Picture, output: gst::Buffer) -> Result<Written, gst::FlowError> {
        let (export, asker) = {
            let mut state = self.state.lock();
            (state.export(picture, output), state.asker.clone())
        };
        match export.map_err(|error| self.fail(&error))? {
            Exported::Complete(output) => Ok(output.into()),
            Exported::Asked(output) => {
                let asker = asker.ok_or(gst::FlowError::Flushing)?;
                asker
                    .write(&self.interrupt, picture.clone(), output)
                    .map_err(|unanswered| self.unanswered(unanswered))
            }
        }
    }
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
