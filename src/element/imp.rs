//! The element as GStreamer sees it: object, states, caps, allocation, events, queries.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock, OnceLock};

use gst::glib;
use gst::prelude::*;
use gst::subclass::prelude::*;
use gst_base::prelude::*;
use gst_base::subclass::base_transform::GenerateOutputSuccess;
use gst_base::subclass::prelude::*;
use parking_lot::Mutex;

use super::cues::Cues;
use super::latency::Latency;
use super::lateness::{Lateness, Upstream};
use super::preload::{Preload, Settled};
use super::runtime::LoadedModel;
use super::settings::Settings;
use super::state::State;
use super::stats::{Now, Stats};
use super::story::Story;
use super::venue::Venue;
use super::worker::{Interrupt, Worker};
use super::{CAT, caps, cue_pad, metas, navigation, properties, signals};
use crate::model::Manifest;

/// The element. No lock is held while it pushes, posts, queries a neighbour or waits for the worker.
#[derive(Default)]
pub struct StreamDiffusion {
    /// The properties as set.
    pub(super) settings: Mutex<Settings>,
    /// What the loaded model's folder says, for properties that are not set.
    pub(super) manifest: Mutex<Manifest>,
    /// Keeps the model loaded until the element goes to NULL, so that READY and back is quick.
    pub(super) kept: Mutex<Option<LoadedModel>>,
    /// Where it computes, once that is decided.
    pub(super) venue: Mutex<Option<Venue>>,
    /// Whether it is being decided, which may ask neighbours, who may ask back.
    pub(super) deciding: AtomicBool,
    /// The CUDA context that a neighbour or the application gave.
    #[cfg(feature = "cuda")]
    pub(super) given: Mutex<Option<super::cuda::Context>>,
    /// Ends waits of the streaming thread.
    pub(super) interrupt: Interrupt,
    /// What the streaming thread works with. Before the worker, which does not end while somebody can ask it.
    pub(super) state: Mutex<State>,
    /// The worker's thread while the element is started.
    pub(super) worker: Mutex<Option<Worker>>,
    /// Where a model went that could not be loaded where it was to be, until NULL.
    pub(super) settled: Mutex<Option<Settled>>,
    /// The worker that loads a model before the element starts.
    pub(super) preload: Mutex<Option<Preload>>,
    /// Whether the next frame is to begin anew.
    pub(super) reset_asked: AtomicBool,
    pub(super) latency: Mutex<Latency>,
    pub(super) lateness: Mutex<Lateness>,
    /// Timed prompts, if the pad for them has been asked for.
    pub(super) cues: Arc<Cues>,
    pub(super) stats: Arc<Mutex<Stats>>,
    /// Frames under way, while anybody wants to hear of them.
    pub(super) story: Story,
}

/// The type, once it is registered by this copy of the code.
pub(super) static TYPE: OnceLock<glib::Type> = OnceLock::new();

#[glib::object_subclass]
impl ObjectSubclass for StreamDiffusion {
    const NAME: &'static str = "GstStreamDiffusion";
    type Type = super::StreamDiffusion;
    type ParentType = gst_base::BaseTransform;
    type Interfaces = (gst::Preset,);

    fn type_init(_: &mut glib::subclass::InitializingType<Self>) {
        // It has just got the name, and comes here once.
        if let Some(own) = glib::Type::from_name(Self::NAME) {
            let _ = TYPE.set(own);
        }
    }
}

impl ObjectImpl for StreamDiffusion {
    fn properties() -> &'static [glib::ParamSpec] {
        &properties::PROPERTIES
    }

    fn signals() -> &'static [glib::subclass::Signal] {
        &signals::SIGNALS
    }

    fn constructed(&self) {
        self.parent_constructed();
        self.obj().set_qos(true);
        self.obj().set_gap_aware(true);
    }

    fn set_property(&self, _id: usize, value: &glib::Value, pspec: &glib::ParamSpec) {
        let result = properties::set(&mut self.settings.lock(), pspec.name(), value);
        // What was decided early, for a neighbour that asked, is decided anew.
        if matches!(
            pspec.name(),
            "backend"
                | "device-id"
                | "build-engines"
                | "model"
                | "onnxruntime-library"
                | "tensorrt-library"
        ) && self.worker.lock().is_none()
        {
            *self.venue.lock() = None;
        }
        if pspec.name() == "latency" {
            let latency = self.settings.lock().latency;
            self.pin_latency(latency);
        }
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
            // The driver is asked without a lock.
            let venue = self.venue.lock().clone();
            // The model may have gone on to the CPU.
            let venue = venue.filter(|venue| self.stats.lock().device() == venue.name());
            let now = Now {
                latency: self.latency.lock().own(),
                vram: venue.map_or(0, |venue| venue.memory_in_use()),
            };
            return self.stats.lock().structure(now).to_value();
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
            .chain(cue_pad::template())
            .collect()
        });
        &TEMPLATES
    }

    fn request_new_pad(
        &self,
        template: &gst::PadTemplate,
        _name: Option<&str>,
        _caps: Option<&gst::Caps>,
    ) -> Option<gst::Pad> {
        if self.obj().static_pad(cue_pad::NAME).is_some() {
            gst::warning!(CAT, imp = self, "There is a pad {} already", cue_pad::NAME);
            return None;
        }
        let pad = cue_pad::new(template);
        if self.obj().current_state() > gst::State::Ready && pad.set_active(true).is_err() {
            return None;
        }
        self.obj().add_pad(&pad).ok()?;
        Some(pad)
    }

    fn release_pad(&self, pad: &gst::Pad) {
        self.cues.link(false);
        // Ends a wait under the pad's stream lock, which deactivating it takes.
        self.cues.begin_flush();
        let deactivated = pad.set_active(false);
        let removed = self.obj().remove_pad(pad);
        if deactivated.is_err() || removed.is_err() {
            gst::warning!(CAT, imp = self, "Pad {} not released", pad.name());
        }
        // What it brought goes with it.
        self.cues.end_flush();
    }

    fn change_state(
        &self,
        transition: gst::StateChange,
    ) -> Result<gst::StateChangeSuccess, gst::StateChangeError> {
        if transition == gst::StateChange::PausedToReady {
            // Pads are deactivated under the stream lock: a streaming thread that waits for the worker must let go.
            self.interrupt.begin();
            self.cues.begin_flush();
        }
        let success = self.parent_change_state(transition)?;
        if transition == gst::StateChange::ReadyToNull {
            self.forget_preload();
            let settled = self.settled.lock().take();
            drop(settled);
            *self.kept.lock() = None;
            *self.venue.lock() = None;
            #[cfg(feature = "cuda")]
            {
                *self.given.lock() = None;
            }
        }
        Ok(success)
    }

    #[cfg(feature = "cuda")]
    fn set_context(&self, context: &gst::Context) {
        if let Some(context) = super::cuda::Context::given(context) {
            *self.given.lock() = Some(context);
        }
        self.parent_set_context(context);
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
        let worker = self.loading_worker(&settings)?;
        self.reset_asked.store(false, Ordering::SeqCst);
        self.story.forget();
        *self.latency.lock() = Latency::default();
        *self.lateness.lock() = Lateness::default();
        self.pin_latency(settings.latency);
        #[cfg(feature = "cuda")]
        self.publish_context();
        self.cues.start();
        *self.state.lock() = State::new(settings, worker.asker());
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
        *self.venue.lock() = None;
        Ok(())
    }

    fn transform_caps(
        &self,
        direction: gst::PadDirection,
        caps: &gst::Caps,
        filter: Option<&gst::Caps>,
    ) -> Option<gst::Caps> {
        Some(caps::transform(
            direction,
            caps,
            filter,
            self.takes_cuda_memory(),
        ))
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
        self.state.lock().set_video(input, output);
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
        #[cfg(feature = "cuda")]
        self.propose_cuda_memory(query)?;
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
        #[cfg(feature = "cuda")]
        if let Some(caps) = &caps
            && caps::Memory::of_caps(caps) == caps::Memory::Cuda
        {
            self.decide_cuda_memory(query, caps, offered, had_entry)?;
            return self.parent_decide_allocation(query);
        }
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

    fn transform_meta<'a>(
        &self,
        outbuf: &mut gst::BufferRef,
        meta: gst::MetaRef<'a, gst::Meta>,
        inbuf: &'a gst::BufferRef,
    ) -> bool {
        let element = self.obj();
        match metas::pass_on(&meta, outbuf, element.sink_pad(), element.src_pad()) {
            metas::Passed::Copy => true,
            metas::Passed::Done => false,
            metas::Passed::Foreign => self.parent_transform_meta(outbuf, meta, inbuf),
        }
    }

    fn query(&self, direction: gst::PadDirection, query: &mut gst::QueryRef) -> bool {
        #[cfg(feature = "cuda")]
        if let gst::QueryViewMut::Context(context) = query.view_mut()
            && self.answer_context(context)
        {
            return true;
        }
        match query.view_mut() {
            gst::QueryViewMut::Latency(query) if direction == gst::PadDirection::Src => {
                self.answer_latency(query)
            }
            gst::QueryViewMut::Drain(_) if direction == gst::PadDirection::Sink => {
                // Upstream wants its buffers back; those of frames under way may still be read.
                if let Err(flow) = self.drain() {
                    gst::debug!(CAT, imp = self, "Draining ended with {flow:?}");
                }
                BaseTransformImplExt::parent_query(self, direction, query)
            }
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
                    // Nobody takes them, and what comes now may be of another size.
                    self.abandon();
                }
                match event.view() {
                    EventView::StreamStart(_) => {
                        self.renew();
                        self.cues.set_video_ended(false);
                    }
                    EventView::Eos(_) => self.cues.set_video_ended(true),
                    EventView::Gap(gap) => self.pass_gap(gap),
                    _ => {}
                }
            }
            EventView::Segment(segment)
                if !same_but_position(segment.segment(), &self.obj().segment()) =>
            {
                if let Err(flow) = self.drain() {
                    gst::debug!(CAT, imp = self, "Draining ended with {flow:?}");
                }
            }
            _ if event.is_serialized() => {
                let mut state = self.state.lock();
                if !state.is_empty() {
                    state.timeline.event(event);
                    return true;
                }
            }
            _ => {}
        }
        self.parent_sink_event(event)
    }

    /// What the sink says of late frames is ours to act on: the base class could only drop them.
    fn src_event(&self, event: gst::Event) -> bool {
        use gst::EventView;
        match event.view() {
            EventView::Qos(qos) => {
                if self.obj().is_qos() {
                    let (_, proportion, diff, time) = qos.get();
                    self.lateness.lock().report(proportion, diff, time);
                }
                self.obj().sink_pad().push_event(event)
            }
            EventView::Navigation(_) => {
                let element = self.obj();
                let (sink, src) = (element.sink_pad(), element.src_pad());
                self.parent_src_event(navigation::upstream(event, sink, src))
            }
            EventView::Seek(_) => {
                // Cues are to be had for where the video goes.
                if let Some(pad) = self.obj().static_pad(cue_pad::NAME)
                    && !pad.push_event(event.clone())
                {
                    gst::debug!(CAT, imp = self, "Cues cannot be sought in");
                }
                self.parent_src_event(event)
            }
            EventView::Latency(_) => {
                // The pipeline has changed; upstream is asked again.
                self.lateness.lock().upstream = Upstream::Unknown;
                self.parent_src_event(event)
            }
            _ => self.parent_src_event(event),
        }
    }

    fn submit_input_buffer(
        &self,
        is_discont: bool,
        inbuf: gst::Buffer,
    ) -> Result<gst::FlowSuccess, gst::FlowError> {
        if is_discont {
            self.state.lock().marks_discont = true;
        }
        self.parent_submit_input_buffer(is_discont, inbuf)
    }

    fn before_transform(&self, inbuf: &gst::BufferRef) {
        self.stats.lock().frame_came();
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
            while let Some(buffer) = self.next_out()? {
                if self.is_marked_rightly(&buffer) {
                    return Ok(GenerateOutputSuccess::Buffer(buffer));
                }
                self.obj().src_pad().push(buffer)?;
            }
            let Some(input) = self.take_queued_buffer() else {
                self.state.lock().continuity.rest(std::time::Instant::now());
                return Ok(GenerateOutputSuccess::NoOutput);
            };
            let accepted = self.accept(input);
            if accepted == Err(gst::FlowError::Error) {
                self.abandon();
            }
            accepted?;
        }
    }
}

impl StreamDiffusion {
    /// Whether the base class may push this buffer. After a discontinuity it marks the next buffer that it is given,
    /// which may be one from before.
    fn is_marked_rightly(&self, buffer: &gst::BufferRef) -> bool {
        let mut state = self.state.lock();
        if state.marks_discont && buffer.flags().contains(gst::BufferFlags::DISCONT) {
            state.marks_discont = false;
        }
        !state.marks_discont
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
