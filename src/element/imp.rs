//! The element as GStreamer sees it: object, states, caps, allocation, events, queries.

use std::sync::atomic::AtomicBool;
use std::sync::{Arc, LazyLock};

use gst::glib;
use gst::prelude::*;
use gst::subclass::prelude::*;
use gst_base::prelude::*;
use gst_base::subclass::base_transform::GenerateOutputSuccess;
use gst_base::subclass::prelude::*;
use parking_lot::Mutex;

#[cfg(all(feature = "cuda", feature = "tensorrt"))]
use super::building;
use super::latency::Latency;
use super::runtime::LoadedModel;
use super::settings::Settings;
use super::state::State;
use super::stats::Stats;
use super::venue::Venue;
use super::worker::{Interrupt, Observer, Worker};
use super::{CAT, caps, errors, model_path, properties};
#[cfg(all(feature = "cuda", feature = "tensorrt"))]
use crate::engine::BuildProgress;
use crate::error::Error;
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
    /// The worker's thread while the element is started.
    pub(super) worker: Mutex<Option<Worker>>,
    /// What the streaming thread works with.
    pub(super) state: Mutex<State>,
    pub(super) latency: Mutex<Latency>,
    pub(super) stats: Arc<Mutex<Stats>>,
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
        // What was decided early, for a neighbour that asked, is decided anew.
        if matches!(
            pspec.name(),
            "backend" | "device-id" | "build-engines" | "model"
        ) && self.worker.lock().is_none()
        {
            *self.venue.lock() = None;
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
        let model = match &settings.model {
            Some(model) => model.clone(),
            None => model_path::bundled().map_err(|error| errors::message(&error))?,
        };
        gst::info!(CAT, imp = self, "Loading model {}", model.display());
        let (venue, reason) = self.decide().map_err(|error| errors::message(&error))?;
        *self.stats.lock() = Stats::started(venue.name(), reason);
        *self.latency.lock() = Latency::default();
        let observer = ElementObserver(self.obj().downgrade());
        #[cfg(feature = "cuda")]
        self.publish_context();
        let worker = Worker::new(model, venue, self.stats.clone(), observer)
            .map_err(|err| gst::error_msg!(gst::LibraryError::Init, ("no worker thread: {err}")))?;
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
                    self.state.lock().reset();
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

    fn warned(&self, error: &Error) {
        if let Some(element) = self.0.upgrade() {
            gst::element_warning!(element, gst::LibraryError::Settings, ("{error}"));
        }
    }

    #[cfg(all(feature = "cuda", feature = "tensorrt"))]
    fn building(&self, progress: &BuildProgress) {
        if let Some(element) = self.0.upgrade() {
            building::post(&element, progress);
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
