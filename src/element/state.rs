//! What the streaming thread works with, from start to stop.

use std::collections::VecDeque;
use std::sync::Arc;

use super::continuity::Continuity;
use super::frame_clock::FrameClock;
#[cfg(feature = "cuda")]
use super::runtime::cuda::Door;
use super::runtime::host::{Converters, Passage};
use super::runtime::{Input, LoadedModel, Output, Picture, Written};
use super::settings::Settings;
use super::timeline::Timeline;
use super::worker::{Asker, Finished, Interrupt, Pending, Restyled, Unanswered};
use super::{CAT, Timing};
use crate::error::Error;

/// The streaming thread's state, from start to stop.
#[derive(Default)]
pub(super) struct State {
    /// Properties that are read when the element starts.
    at_start: Settings,
    timing: Timing,
    pub(super) asker: Option<Asker>,
    /// The model, once it has been asked for, until it is there.
    pub(super) loading: Option<Pending<LoadedModel>>,
    pub(super) loaded: Option<LoadedModel>,
    video: Option<Video>,
    pub(super) timeline: Timeline,
    /// Frames that the worker was asked for, and that are not on the timeline yet.
    pub(super) under_way: VecDeque<UnderWay>,
    /// What has been written and not been pushed yet.
    pub(super) outgoing: VecDeque<Outgoing>,
    /// Whether a frame was left out since the last one that came in.
    pub(super) left_out: bool,
    /// How many frames in a row were not restyled, and whether the last one was.
    pub(super) passed_over: usize,
    pub(super) restyled_last: bool,
    /// Whether frames are being bypassed.
    pub(super) bypassing: bool,
    /// Whether the base class will mark the next buffer that it is given as discontinuous.
    pub(super) marks_discont: bool,
    /// Whether frames follow one another in time.
    pub(super) continuity: Continuity,
    pub(super) clock: FrameClock,
    /// The last properties that were sent to the worker, to share them while they don't change.
    sent: Option<Arc<Settings>>,
    /// What left last, for frames that show the same.
    pub(super) last: Option<Last>,
    /// In immediate timing: pictures finished but not shown yet, and the one shown last.
    waiting: VecDeque<Picture>,
    last_shown: Option<Picture>,
}

/// A frame that the worker has.
pub(super) struct UnderWay {
    stage: Stage,
    pub(super) ticket: u64,
    /// Whether a picture is shown for it at once.
    pub(super) immediate: bool,
}

/// How far the worker has come with a frame.
enum Stage {
    Asked(Pending<Restyled>),
    /// The device may still be at it.
    Answered(Result<Restyled, Unanswered>),
}

/// Something that leaves.
pub(super) enum Outgoing {
    Frame(Written),
    Event(gst::Event),
}

/// What left last.
pub(super) struct Last {
    /// The picture, if it was a restyled one.
    pub(super) picture: Option<Picture>,
    /// The buffer, whose memory frames that show the same share.
    pub(super) buffer: gst::Buffer,
}

/// What the caps say, and the conversions that follow from it.
struct Video {
    input: gst_video::VideoInfo,
    output: gst_video::VideoInfo,
    /// From one to the other, made when a frame passes as it is.
    passage: Option<Passage>,
    /// Made at the first frame, when the model is known.
    conversion: Option<Conversion>,
}

/// The ways of frames to the device and back, as far as they are the streaming thread's.
enum Conversion {
    /// It converts frames itself.
    Host(Box<Converters>),
    /// The worker converts frames on its GPU.
    #[cfg(feature = "cuda")]
    Cuda(Box<Door>),
}

/// What became of a picture to write.
pub(super) enum Exported {
    /// The frame is complete.
    Complete(gst::Buffer),
    /// The worker is to write it.
    #[cfg_attr(not(feature = "cuda"), expect(dead_code))]
    Asked(Output),
}

impl UnderWay {
    /// A frame that the worker was asked for just now.
    pub(super) fn new(answer: Pending<Restyled>, ticket: u64, immediate: bool) -> Self {
        Self {
            stage: Stage::Asked(answer),
            ticket,
            immediate,
        }
    }

    /// Whether there is nothing to wait for.
    pub(super) fn is_over(&mut self) -> bool {
        if let Stage::Asked(answer) = &self.stage
            && let Some(answered) = answer.poll()
        {
            self.stage = Stage::Answered(answered);
        }
        match &self.stage {
            Stage::Asked(_) => false,
            Stage::Answered(Ok(restyled)) => restyled.computing.is_over(),
            Stage::Answered(Err(_)) => true,
        }
    }

    /// Waits for the worker's answer.
    pub(super) fn wait(self, interrupt: &Interrupt) -> Result<Restyled, Unanswered> {
        match self.stage {
            Stage::Asked(answer) => answer.wait(interrupt),
            Stage::Answered(answered) => answered,
        }
    }
}

impl State {
    /// The state of an element that has just started, with the properties that are read then.
    pub(super) fn new(at_start: Settings, asker: Option<Asker>) -> Self {
        Self {
            timing: at_start.timing,
            at_start,
            asker,
            ..Self::default()
        }
    }

    /// Whether nothing waits to leave.
    pub(super) fn is_empty(&self) -> bool {
        self.timeline.is_empty() && self.outgoing.is_empty()
    }

    /// The timing in force.
    pub(super) fn timing(&self) -> Timing {
        self.timing
    }

    /// How long a frame is shown, as the caps say.
    pub(super) fn frame_duration(&self) -> Option<gst::ClockTime> {
        let fps = self.video.as_ref()?.input.fps();
        let (frames, seconds) = (
            u64::try_from(fps.numer()).ok()?,
            u64::try_from(fps.denom()).ok()?,
        );
        let duration = gst::ClockTime::SECOND.nseconds().checked_mul(seconds)?;
        Some(gst::ClockTime::from_nseconds(duration.checked_div(frames)?))
    }

    /// Goes over to another timing. Frames held back must have left before: those still in flight are forgotten, since in
    /// immediate timing something has been shown for each of them already.
    pub(super) fn switch_timing(&mut self, timing: Timing) {
        self.reset();
        self.timing = timing;
    }

    /// Takes over new caps. Pictures of an input that was another fit no frame of the new one.
    pub(super) fn set_video(&mut self, input: gst_video::VideoInfo, output: gst_video::VideoInfo) {
        self.last = None;
        if !self.video.as_ref().is_some_and(|old| old.input == input) {
            self.reset();
        }
        self.video = Some(Video {
            input,
            output,
            passage: None,
            conversion: None,
        });
    }

    /// How many frames the worker may have while the streaming thread goes on.
    pub(super) fn depth(&self) -> usize {
        match self.timing {
            Timing::Content => self.at_start.pipeline_depth as usize,
            Timing::Immediate => 0,
        }
    }

    /// Whether there is, or will be when its turn comes, a picture to show again.
    pub(super) fn can_repeat(&self) -> bool {
        self.last.is_some() || self.timeline.has_frames()
    }

    /// Writes the input's frame in `pixels` into an output buffer.
    pub(super) fn pass(
        &mut self,
        pixels: &gst::BufferRef,
        output: &mut gst::BufferRef,
    ) -> Result<(), Error> {
        let Some(video) = &mut self.video else {
            return Err(Error::engine("input", "a frame came before its caps"));
        };
        let passage = match &mut video.passage {
            Some(passage) => passage,
            none => none.insert(Passage::new(&video.input, &video.output)?),
        };
        passage.convert(pixels, output)
    }

    /// Forgets all that is under way, as a flush does; gives the events that had not left.
    pub(super) fn clear(&mut self) -> Vec<gst::Event> {
        self.under_way.clear();
        self.left_out = false;
        self.marks_discont = false;
        self.reset();
        let complete = self.outgoing.drain(..);
        let events = complete.filter_map(|outgoing| match outgoing {
            Outgoing::Event(event) => Some(event),
            Outgoing::Frame(_) => None,
        });
        events.chain(self.timeline.clear()).collect()
    }

    /// Forgets all pictures, here and in the worker's stream.
    pub(super) fn reset(&mut self) {
        self.waiting.clear();
        self.last_shown = None;
        self.last = None;
        self.restyled_last = false;
        self.passed_over = 0;
        self.continuity.forget();
        if let Some(asker) = &self.asker {
            asker.reset();
        }
    }

    /// The picture of a frame, the properties that go with it, and whether a stream that holds nothing is primed.
    pub(super) fn import(
        &mut self,
        loaded: &LoadedModel,
        input: &gst::Buffer,
        settings: Settings,
    ) -> Result<(Input, Arc<Settings>, bool), Error> {
        let Some(video) = &mut self.video else {
            return Err(Error::engine("input", "a frame came before its caps"));
        };
        let picture = match video.conversion(loaded, &self.at_start)? {
            Conversion::Host(converters) => converters.import(input)?,
            #[cfg(feature = "cuda")]
            Conversion::Cuda(door) => door.import(input)?,
        };
        let settings = Settings {
            frame_buffer_size: self.at_start.frame_buffer_size,
            ..settings
        };
        let settings = match &self.sent {
            Some(sent) if **sent == settings => sent.clone(),
            _ => self.sent.insert(Arc::new(settings)).clone(),
        };
        Ok((picture, settings, self.timing == Timing::Immediate))
    }

    /// Writes a picture into an output buffer, or says what the worker needs to do so.
    pub(super) fn export(
        &mut self,
        picture: &Picture,
        mut output: gst::Buffer,
    ) -> Result<Exported, Error> {
        let (Some(video), Some(loaded)) = (&mut self.video, &self.loaded) else {
            return Err(Error::engine("output", "a picture came before its caps"));
        };
        match (video.conversion(loaded, &self.at_start)?, picture) {
            (Conversion::Host(converters), Picture::Host(picture)) => {
                converters.export(picture, output.make_mut())?;
                Ok(Exported::Complete(output))
            }
            #[cfg(feature = "cuda")]
            (Conversion::Cuda(door), Picture::Cuda(_)) => Ok(Exported::Asked(door.output(output))),
            #[cfg(feature = "cuda")]
            _ => Err(Error::engine(
                "output",
                "a picture is on another device; this is a bug",
            )),
        }
    }

    /// The picture to show now in immediate timing: the oldest one that has not been shown, else the last one again.
    pub(super) fn pick(&mut self, finished: Vec<Finished>) -> Option<Picture> {
        for Finished { picture, .. } in finished {
            let known = self.waiting.back().or(self.last_shown.as_ref());
            if !known.is_some_and(|known| known.is(&picture)) {
                self.waiting.push_back(picture);
            }
        }
        // One group may wait its turn; more would be a delay that grows.
        while self.waiting.len() > self.at_start.frame_buffer_size as usize {
            self.waiting.pop_front();
        }
        if let Some(next) = self.waiting.pop_front() {
            self.last_shown = Some(next);
        }
        self.last_shown.clone()
    }
}

impl Video {
    /// The conversions to and from the size that frames are processed at.
    fn conversion(
        &mut self,
        loaded: &LoadedModel,
        settings: &Settings,
    ) -> Result<&mut Conversion, Error> {
        if let Some(ref mut conversion) = self.conversion {
            return Ok(conversion);
        }
        let frame = (self.input.width() as usize, self.input.height() as usize);
        let limits = loaded.limits();
        let size = settings.processing_size(loaded.folder().manifest(), limits, frame);
        limits.check_size(size.0, size.1)?;
        gst::info!(CAT, "Processing at {}x{}", size.0, size.1);
        let conversion = match loaded {
            LoadedModel::Host(_) => {
                let converters = Converters::new(&self.input, size, &self.output)?;
                Conversion::Host(Box::new(converters))
            }
            #[cfg(feature = "cuda")]
            LoadedModel::Cuda(_, gpu) => {
                let door = Door::new(gpu.clone(), &self.input, size, &self.output);
                Conversion::Cuda(Box::new(door))
            }
        };
        Ok(self.conversion.insert(conversion))
    }
}
