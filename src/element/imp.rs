//! The element itself: states, events, queries, and the way of a buffer through it.

use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::sync::{Arc, LazyLock};

use gst::glib;
use gst::prelude::*;
use gst::subclass::prelude::*;
use gst_base::prelude::*;
use gst_base::subclass::base_transform::{
    GenerateOutputSuccess, InputBuffer, PrepareOutputBufferSuccess,
};
use gst_base::subclass::prelude::*;
use gst_video::prelude::*;
use parking_lot::Mutex;

use super::convert::{Exporter, Importer};
use super::latency::Latency;
use super::settings::Settings;
use super::stats::Stats;
use super::timeline::{Departure, Timeline};
use super::worker::{Asker, Frame, Interrupt, Observer, Unanswered, Worker};
use super::{Timing, caps, errors, model_path, properties};
use crate::device::HostTensor;
use crate::engine::Model;
use crate::engine::shared::Loaded;
use crate::error::Error;
use crate::model::Manifest;
use crate::stream::Shown;

static CAT: LazyLock<gst::DebugCategory> = LazyLock::new(|| {
    gst::DebugCategory::new(
        "streamdiffusion",
        gst::DebugColorFlags::empty(),
        Some("StreamDiffusion live restyling"),
    )
});

/// The element. No lock is held while it pushes, posts, queries a neighbour or waits for the worker.
#[derive(Default)]
pub struct StreamDiffusion {
    /// The properties as set.
    settings: Mutex<Settings>,
    /// What the loaded model's folder says, for properties that are not set.
    manifest: Mutex<Manifest>,
    /// Keeps the model loaded until the element goes to NULL, so that READY and back is quick.
    kept: Mutex<Option<Arc<Loaded>>>,
    /// Ends waits of the streaming thread.
    interrupt: Interrupt,
    /// The worker's thread while the element is started.
    worker: Mutex<Option<Worker>>,
    /// What the streaming thread works with.
    state: Mutex<State>,
    latency: Mutex<Latency>,
    stats: Arc<Mutex<Stats>>,
}

/// The streaming thread's state, from start to stop.
#[derive(Default)]
struct State {
    /// Properties that are read when the element starts.
    at_start: Settings,
    asker: Option<Asker>,
    loaded: Option<Arc<Loaded>>,
    video: Option<Video>,
    timeline: Timeline,
    /// The last properties that were sent to the worker, to share them while they don't change.
    sent: Option<Arc<Settings>>,
    /// The picture that left last and its memory, which frames that share the picture share too.
    last: Option<(Arc<HostTensor>, gst::Buffer)>,
    /// In immediate timing: pictures finished but not shown yet, and the one shown last.
    waiting: VecDeque<Arc<HostTensor>>,
    last_shown: Option<Arc<HostTensor>>,
}

/// What the caps say, and the conversions that follow from it.
struct Video {
    input: gst_video::VideoInfo,
    output: gst_video::VideoInfo,
    /// Made at the first frame, when the model is known.
    converters: Option<(Importer, Exporter)>,
}

#[glib::object_subclass]
impl ObjectSubclass for StreamDiffusion {
    const NAME: &'static str = "GstStreamDiffusion";
    type Type = super::StreamDiffusion;
    type ParentType = gst_base::BaseTransform;
    type Interfaces = (gst::Preset,);
}

impl ObjectImpl for StreamDiffusion {
    fn properties() -> &'static [glib::ParamSpec] {
        &properties::PROPERTIES
    }

    fn constructed(&self) {
        self.parent_constructed();
        self.obj().set_qos(true);
    }

    fn set_property(&self, _id: usize, value: &glib::Value, pspec: &glib::ParamSpec) {
        let result = properties::set(&mut self.settings.lock(), pspec.name(), value);
        if let Err(what) = result {
            gst::element_imp_warning!(
                self,
                gst::LibraryError::Settings,
                ("property {}: {what}; the old value stays", pspec.name())
            );
        }
    }

    fn property(&self, _id: usize, pspec: &glib::ParamSpec) -> glib::Value {
        if pspec.name() == "stats" {
            return self.stats.lock().structure().to_value();
        }
        let settings = self.settings.lock();
        properties::get(&settings, &self.manifest.lock(), pspec.name())
            .unwrap_or_else(|| pspec.default_value().clone())
    }
}

impl GstObjectImpl for StreamDiffusion {}
impl PresetImpl for StreamDiffusion {}

impl ElementImpl for StreamDiffusion {
    fn metadata() -> Option<&'static gst::subclass::ElementMetadata> {
        static METADATA: LazyLock<gst::subclass::ElementMetadata> = LazyLock::new(|| {
            gst::subclass::ElementMetadata::new(
                "StreamDiffusion live restyling",
                "Filter/Effect/Video",
                "Restyles live video to a text prompt with a diffusion model (StreamDiffusion)",
                "gst-plugin-streamdiffusion developers <gst-plugin-streamdiffusion@users.noreply.github.com>",
            )
        });
        Some(&METADATA)
    }

    fn pad_templates() -> &'static [gst::PadTemplate] {
        static TEMPLATES: LazyLock<Vec<gst::PadTemplate>> = LazyLock::new(|| {
            let caps = caps::template();
            [
                ("sink", gst::PadDirection::Sink),
                ("src", gst::PadDirection::Src),
            ]
            .into_iter()
            .filter_map(|(name, direction)| {
                gst::PadTemplate::new(name, direction, gst::PadPresence::Always, &caps).ok()
            })
            .collect()
        });
        &TEMPLATES
    }

    fn change_state(
        &self,
        transition: gst::StateChange,
    ) -> Result<gst::StateChangeSuccess, gst::StateChangeError> {
        if transition == gst::StateChange::PausedToReady {
            // Pads are deactivated under the stream lock: a streaming thread that waits for the worker must let go.
            self.interrupt.begin();
        }
        let success = self.parent_change_state(transition)?;
        if transition == gst::StateChange::ReadyToNull {
            *self.kept.lock() = None;
        }
        Ok(success)
    }
}

impl BaseTransformImpl for StreamDiffusion {
    const MODE: gst_base::subclass::BaseTransformMode =
        gst_base::subclass::BaseTransformMode::NeverInPlace;
    const PASSTHROUGH_ON_SAME_CAPS: bool = false;
    const TRANSFORM_IP_ON_PASSTHROUGH: bool = false;

    fn start(&self) -> Result<(), gst::ErrorMessage> {
        self.interrupt.end();
        let settings = self.settings.lock().clone();
        let model = match &settings.model {
            Some(model) => model.clone(),
            None => model_path::bundled().map_err(|error| errors::message(&error))?,
        };
        gst::info!(CAT, imp = self, "Loading model {}", model.display());
        *self.stats.lock() = Stats::default();
        *self.latency.lock() = Latency::default();
        let observer = ElementObserver(self.obj().downgrade());
        let worker = Worker::new(model, self.stats.clone(), observer)
            .map_err(|err| gst::error_msg!(gst::LibraryError::Init, ("no worker thread: {err}")))?;
        *self.state.lock() = State {
            at_start: settings,
            asker: worker.asker(),
            ..State::default()
        };
        *self.worker.lock() = Some(worker);
        Ok(())
    }

    fn stop(&self) -> Result<(), gst::ErrorMessage> {
        self.interrupt.begin();
        *self.state.lock() = State::default();
        // Waits for the worker to finish what it is doing.
        let worker = self.worker.lock().take();
        drop(worker);
        *self.manifest.lock() = Manifest::default();
        Ok(())
    }

    fn transform_caps(
        &self,
        direction: gst::PadDirection,
        caps: &gst::Caps,
        filter: Option<&gst::Caps>,
    ) -> Option<gst::Caps> {
        Some(caps::transform(direction, caps, filter))
    }

    fn fixate_caps(
        &self,
        _direction: gst::PadDirection,
        caps: &gst::Caps,
        othercaps: gst::Caps,
    ) -> gst::Caps {
        caps::fixate(caps, othercaps)
    }

    fn set_caps(&self, incaps: &gst::Caps, outcaps: &gst::Caps) -> Result<(), gst::LoggableError> {
        let (Some(input), Some(output)) = (caps::video_info(incaps), caps::video_info(outcaps))
        else {
            return Err(gst::loggable_error!(
                CAT,
                "Not raw video: {incaps} to {outcaps}"
            ));
        };
        gst::debug!(CAT, imp = self, "Input {incaps}, output {outcaps}");
        self.latency.lock().set_frame_rate(input.fps());
        let mut state = self.state.lock();
        state.last = None;
        if !state
            .video
            .as_ref()
            .is_some_and(|video| video.input == input)
        {
            // Pictures of the old size fit no frame of the new one.
            state.waiting.clear();
            state.last_shown = None;
            if let Some(asker) = &state.asker {
                asker.reset();
            }
        }
        state.video = Some(Video {
            input,
            output,
            converters: None,
        });
        Ok(())
    }

    fn unit_size(&self, caps: &gst::Caps) -> Option<usize> {
        caps::video_info(caps).map(|info| info.size())
    }

    fn propose_allocation(
        &self,
        decide_query: Option<&gst::query::Allocation>,
        query: &mut gst::query::Allocation,
    ) -> Result<(), gst::LoggableError> {
        self.parent_propose_allocation(decide_query, query)?;
        query.add_allocation_meta::<gst_video::VideoMeta>(None);
        Ok(())
    }

    /// Always settles on a pool: output buffers cannot be sized from inputs whose memory is gone.
    fn decide_allocation(
        &self,
        query: &mut gst::query::Allocation,
    ) -> Result<(), gst::LoggableError> {
        let (caps, _) = query.get_owned();
        let Some(info) = caps.as_ref().and_then(caps::video_info) else {
            return Err(gst::loggable_error!(CAT, "Allocation of no raw video"));
        };
        let has_meta = query
            .find_allocation_meta::<gst_video::VideoMeta>()
            .is_some();
        let offered = query
            .allocation_pools()
            .into_iter()
            .find_map(|(pool, size, min, max)| pool.map(|pool| (pool, size, min, max)));
        let had_entry = query.allocation_pools().len() > 0;
        let (pool, size, min, max) = match offered {
            Some(offered) => offered,
            None => {
                let pool = gst_video::VideoBufferPool::new().upcast::<gst::BufferPool>();
                (pool, info.size() as u32, 0, 0)
            }
        };
        let size = size.max(info.size() as u32);
        let mut config = pool.config();
        config.set_params(caps.as_ref(), size, min, max);
        if has_meta {
            config.add_option(gst_video::BUFFER_POOL_OPTION_VIDEO_META);
        }
        if pool.set_config(config).is_err() {
            // The pool has its own idea of a configuration; that is the one it was asked for with the changes it needs.
            gst::debug!(
                CAT,
                imp = self,
                "Downstream's pool adjusted the configuration"
            );
        }
        if had_entry {
            query.set_nth_allocation_pool(0, Some(&pool), size, min, max);
        } else {
            query.add_allocation_pool(Some(&pool), size, min, max);
        }
        self.parent_decide_allocation(query)
    }

    /// What belongs to the picture's content or time stays with it; what is about its memory, size or colours does not.
    fn transform_meta<'a>(
        &self,
        outbuf: &mut gst::BufferRef,
        meta: gst::MetaRef<'a, gst::Meta>,
        inbuf: &'a gst::BufferRef,
    ) -> bool {
        if meta.tags().iter().all(|tag| tag == "video") {
            return true;
        }
        self.parent_transform_meta(outbuf, meta, inbuf)
    }

    fn query(&self, direction: gst::PadDirection, query: &mut gst::QueryRef) -> bool {
        if direction != gst::PadDirection::Src {
            return BaseTransformImplExt::parent_query(self, direction, query);
        }
        match query.view_mut() {
            gst::QueryViewMut::Latency(query) => self.answer_latency(query),
            _ => BaseTransformImplExt::parent_query(self, direction, query),
        }
    }

    fn sink_event(&self, event: gst::Event) -> bool {
        use gst::EventView;
        gst::log!(CAT, imp = self, "Event {event:?}");
        match event.view() {
            EventView::FlushStart(_) => self.interrupt.begin(),
            EventView::FlushStop(_) => self.flush(),
            EventView::Caps(caps)
                if self.obj().sink_pad().current_caps().as_deref() == Some(caps.caps()) => {}
            EventView::StreamStart(_)
            | EventView::StreamGroupDone(_)
            | EventView::SegmentDone(_)
            | EventView::Caps(_)
            | EventView::Eos(_)
            | EventView::Gap(_) => {
                if let Err(flow) = self.drain() {
                    gst::debug!(CAT, imp = self, "Draining ended with {flow:?}");
                }
                if let EventView::StreamStart(_) = event.view() {
                    self.reset_stream();
                }
            }
            EventView::Segment(segment) => {
                if !same_but_position(segment.segment(), &self.obj().segment())
                    && let Err(flow) = self.drain()
                {
                    gst::debug!(CAT, imp = self, "Draining ended with {flow:?}");
                }
            }
            _ if event.is_serialized() => {
                let mut state = self.state.lock();
                if !state.timeline.is_empty() {
                    state.timeline.event(event);
                    return true;
                }
            }
            _ => {}
        }
        self.parent_sink_event(event)
    }

    fn before_transform(&self, inbuf: &gst::BufferRef) {
        let time = self
            .obj()
            .segment()
            .downcast_ref::<gst::ClockTime>()
            .and_then(|segment| segment.to_stream_time(inbuf.pts()));
        if let Some(time) = time
            && let Err(err) = self.obj().sync_values(time)
        {
            gst::warning!(CAT, imp = self, "Controlled properties not set: {err}");
        }
    }

    fn generate_output(&self) -> Result<GenerateOutputSuccess, gst::FlowError> {
        loop {
            if let Some(buffer) = self.depart()? {
                return Ok(GenerateOutputSuccess::Buffer(buffer));
            }
            let Some(input) = self.take_queued_buffer() else {
                return Ok(GenerateOutputSuccess::NoOutput);
            };
            self.restyle(input)?;
        }
    }
}

impl StreamDiffusion {
    /// Has the worker restyle a frame, and puts what became ready on the timeline.
    fn restyle(&self, input: gst::Buffer) -> Result<(), gst::FlowError> {
        let Some(asker) = self.state.lock().asker.clone() else {
            return Err(gst::FlowError::Flushing);
        };
        self.wait_for_model(&asker)?;
        let frame = self.import(input)?;
        let (ticket, immediate) = (frame.ticket, frame.prime);
        let restyled = asker
            .restyle(&self.interrupt, frame)
            .map_err(|unanswered| self.unanswered(unanswered))?;
        gst::trace!(
            CAT,
            imp = self,
            "Frame {ticket}: {} ready after {:?}",
            restyled.shown.len(),
            restyled.took
        );
        self.tell_latency(if immediate { 0 } else { restyled.delay }, restyled.took);
        let mut state = self.state.lock();
        if !immediate {
            state.timeline.finish(restyled.shown);
            return Ok(());
        }
        match state.pick(restyled.shown) {
            Some(picture) => {
                let tag = ticket;
                state.timeline.finish(vec![Shown { picture, tag }]);
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
        gst::info!(CAT, imp = self, "Model {} is loaded", loaded.folder.name());
        self.manifest.lock().clone_from(loaded.folder.manifest());
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
            Ok((picture, settings, prime)) => {
                let input = without_memory(&input)?;
                Ok(Frame {
                    picture,
                    ticket: self.state.lock().timeline.frame(input),
                    settings,
                    prime,
                })
            }
            Err(error) => Err(self.fail(&error)),
        }
    }

    /// The next buffer whose turn it is, after the events before it.
    fn depart(&self) -> Result<Option<gst::Buffer>, gst::FlowError> {
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
        picture: &Arc<HostTensor>,
    ) -> Result<gst::Buffer, gst::FlowError> {
        let shared = match &self.state.lock().last {
            Some((last, buffer)) if Arc::ptr_eq(last, picture) => Some(buffer.copy()),
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
                let mut output = match self
                    .parent_prepare_output_buffer(InputBuffer::Readable(input))?
                {
                    PrepareOutputBufferSuccess::Buffer(output) => output,
                    PrepareOutputBufferSuccess::InputBuffer => return Err(gst::FlowError::Error),
                };
                let mut state = self.state.lock();
                if let Err(error) = state.export(picture, output.make_mut()) {
                    drop(state);
                    return Err(self.fail(&error));
                }
                // Only the filter makes frames share a picture; without it the pool's memory goes straight back.
                state.last = match self.settings.lock().similarity_filter {
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

    /// Finishes and pushes all frames under way, so that what comes next does not overtake them.
    fn drain(&self) -> Result<(), gst::FlowError> {
        let asker = {
            let state = self.state.lock();
            match &state.asker {
                Some(asker) if !state.timeline.is_empty() => asker.clone(),
                _ => return Ok(()),
            }
        };
        let shown = asker
            .drain(&self.interrupt)
            .map_err(|unanswered| self.unanswered(unanswered))?;
        gst::debug!(CAT, imp = self, "Drained {} frames", shown.len());
        self.state.lock().timeline.finish(shown);
        while let Some(buffer) = self.depart()? {
            self.obj().src_pad().push(buffer)?;
        }
        Ok(())
    }

    /// Forgets all frames, at FLUSH_STOP.
    fn flush(&self) {
        let events = self.state.lock().timeline.clear();
        for event in events.iter().filter(|event| event.is_sticky()) {
            // Those that would not have been flushed downstream either stay known there.
            if let Err(flow) = self.obj().src_pad().store_sticky_event(event) {
                gst::debug!(CAT, imp = self, "{event:?} not kept: {flow:?}");
            }
        }
        self.reset_stream();
        self.interrupt.end();
    }

    fn reset_stream(&self) {
        let mut state = self.state.lock();
        state.waiting.clear();
        state.last_shown = None;
        state.last = None;
        if let Some(asker) = &state.asker {
            asker.reset();
        }
    }

    fn answer_latency(&self, query: &mut gst::query::Latency) -> bool {
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

impl State {
    /// The picture of a frame, the properties that go with it, and whether a stream that holds nothing is primed.
    fn import(
        &mut self,
        loaded: &Loaded,
        input: &gst::Buffer,
        settings: Settings,
    ) -> Result<(HostTensor, Arc<Settings>, bool), Error> {
        let Some(video) = &mut self.video else {
            return Err(Error::engine("input", "a frame came before its caps"));
        };
        let (importer, _) = video.converters(loaded, &self.at_start)?;
        let picture = importer.import(input).map_err(|err| {
            Error::engine(
                "input",
                format!("the buffer does not hold a frame of its caps: {err}"),
            )
        })?;
        let settings = Settings {
            frame_buffer_size: self.at_start.frame_buffer_size,
            ..settings
        };
        let settings = match &self.sent {
            Some(sent) if **sent == settings => sent.clone(),
            _ => self.sent.insert(Arc::new(settings)).clone(),
        };
        Ok((picture, settings, self.at_start.timing == Timing::Immediate))
    }

    /// Writes a picture into an output buffer.
    fn export(&mut self, picture: &HostTensor, output: &mut gst::BufferRef) -> Result<(), Error> {
        let (Some(video), Some(loaded)) = (&mut self.video, &self.loaded) else {
            return Err(Error::engine("output", "a picture came before its caps"));
        };
        let (_, exporter) = video.converters(loaded, &self.at_start)?;
        exporter
            .export(picture, output)
            .map_err(|err| Error::engine("output", err.to_string()))
    }

    /// The picture to show now in immediate timing: the oldest one that has not been shown, else the last one again.
    fn pick(&mut self, shown: Vec<Shown<HostTensor, u64>>) -> Option<Arc<HostTensor>> {
        for Shown { picture, .. } in shown {
            let known = self.waiting.back().or(self.last_shown.as_ref());
            if !known.is_some_and(|known| Arc::ptr_eq(known, &picture)) {
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
    fn converters(
        &mut self,
        loaded: &Loaded,
        settings: &Settings,
    ) -> Result<&mut (Importer, Exporter), Error> {
        if let Some(ref mut converters) = self.converters {
            return Ok(converters);
        }
        let frame = (self.input.width() as usize, self.input.height() as usize);
        let limits = loaded.model.limits();
        let size = settings.processing_size(loaded.folder.manifest(), limits, frame);
        limits.check_size(size.0, size.1)?;
        gst::info!(CAT, "Processing at {}x{}", size.0, size.1);
        let failed = |err: glib::BoolError| Error::engine("video converter", err.to_string());
        Ok(self.converters.insert((
            Importer::new(&self.input, size).map_err(failed)?,
            Exporter::new(size, &self.output).map_err(failed)?,
        )))
    }
}

/// Posts what the worker tells, as long as the element exists.
struct ElementObserver(glib::WeakRef<super::StreamDiffusion>);

impl Observer for ElementObserver {
    fn failed(&self, error: &Error) {
        if let Some(element) = self.0.upgrade() {
            gst::error!(CAT, obj = element, "{error}");
            element.post_error_message(errors::message(error));
        }
    }

    fn change_refused(&self, error: &Error) {
        if let Some(element) = self.0.upgrade() {
            gst::element_warning!(
                element,
                gst::LibraryError::Settings,
                ("{error}; the old value stays in force")
            );
        }
    }
}

/// Whether two segments differ in nothing but their position.
fn same_but_position(a: &gst::Segment, b: &gst::Segment) -> bool {
    let mut a = a.clone();
    let format = a.format();
    if format == b.format() {
        a.set_position(b.position());
    }
    a == *b
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
