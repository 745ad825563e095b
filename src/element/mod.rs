//! The `streamdiffusion` element: GStreamer on this side, the stream on the other.

use std::sync::LazyLock;

/**
 * SECTION:element-streamdiffusion
 * @title: streamdiffusion
 * @short_description: restyles live video to a prompt
 * @see_also: compositor, videoconvert
 *
 * Restyles video with a diffusion model, by the method of StreamDiffusion (arXiv 2312.12491): the denoising steps of
 * several frames go through the model together, each frame at a step of its own.
 *
 * Without #streamdiffusion:model, a small demo model is used that knows a dozen styles. Model folders are in the ONNX
 * layout that Optimum writes. Raw video goes in and comes out in any format and size, on NVIDIA GPUs also as CUDA memory.
 *
 * With #streamdiffusion:timing content, the default, a frame keeps the time of the picture it shows and comes out
 * steps x frame-buffer-size - 1 frames later, which the element reports as latency. With immediate, one frame comes out
 * for each frame that goes in, at once.
 *
 * Properties that are live take effect at the next frame; numeric ones of these can be driven by a controller. The
 * element implements #GstPreset and comes with presets: fast, quality, dreamy, energy-saver, obs and others.
 *
 * ## A camera, as an oil painting
 * |[
 * gst-launch-1.0 v4l2src ! videoconvert ! queue leaky=downstream max-size-buffers=1 ! streamdiffusion prompt="oil painting" ! videoconvert ! autovideosink
 * ]|
 *
 * ## The preset that saves work on pictures that stand still
 * |[
 * gst-launch-1.0 v4l2src ! videoconvert ! streamdiffusion @preset=energy-saver ! videoconvert ! autovideosink
 * ]|
 *
 * ## Pictures from the prompt alone, that turn into one another
 * |[
 * gst-launch-1.0 videotestsrc is-live=true ! video/x-raw,width=512,height=512 ! streamdiffusion mode=txt2img noise=walk prompt="oil painting" ! videoconvert ! autovideosink
 * ]|
 *
 * ## Subtitles that drive a show
 * |[
 * gst-launch-1.0 videotestsrc ! streamdiffusion name=s prompt-transition=1000000000 ! videoconvert ! autovideosink  filesrc location=show.srt ! subparse ! s.prompt
 * ]|
 * The request pad prompt takes text. Each subtitle is the prompt from its time on, until the next one; an empty one gives way
 * to #streamdiffusion:prompt. Text without times, such as lines that are typed into fdsrc, takes effect at once.
 *
 * ## Messages
 * While a model loads, messages of progress have the code loading (build for engines). Element messages are
 * streamdiffusion-model-loaded, -prompt-transition and -prompt-applied (with the first frame that shows a prompt alone), and
 * -skipping and -resumed of the similarity filter.
 *
 * ## Before and after, side by side
 * |[
 * gst-launch-1.0 videotestsrc is-live=true ! tee name=t  t. ! queue ! streamdiffusion ! videoconvert ! c.sink_0  t. ! queue ! videoconvert ! c.sink_1  compositor name=c sink_1::xpos=320 ! videoconvert ! autovideosink
 * ]|
 *
 * Since: 0.1.0
 */
use gst::glib;
use gst::glib::subclass::prelude::*;
use gst::prelude::*;
use parking_lot::Mutex;

pub use model_path::bundled as bundled_model;

mod announce;
#[cfg(all(feature = "cuda", feature = "tensorrt"))]
mod building;
mod caps;
mod choice;
mod continuity;
#[cfg(feature = "cuda")]
mod cuda;
mod cue_pad;
mod cues;
mod departure;
mod encoding;
mod enums;
mod errors;
mod flow;
mod frame_clock;
mod imp;
mod late;
mod latency;
mod lateness;
#[cfg(feature = "cuda")]
mod layout;
mod messages;
mod metas;
mod model_path;
mod navigation;
mod preload;
mod prompts;
mod properties;
mod runtime;
mod runtime_log;
mod settings;
mod signals;
mod skipping;
mod state;
mod stats;
mod story;
mod studio;
mod timeline;
mod venue;
mod watch;
mod worker;

pub use enums::{
    Backend, BuildEngines, CfgTypeProperty, LatePolicy, Mode, Noise, PromptInterpolation,
    Scheduler, Timing, WhileLoading,
};

/// The element's debug category.
static CAT: LazyLock<gst::DebugCategory> = LazyLock::new(|| {
    gst::DebugCategory::new(
        "streamdiffusion",
        gst::DebugColorFlags::empty(),
        Some("StreamDiffusion live restyling"),
    )
});

glib::wrapper! {
    /// The element. Made by name: `gst::ElementFactory::make("streamdiffusion")`.
    pub struct StreamDiffusion(ObjectSubclass<imp::StreamDiffusion>)
        @extends gst_base::BaseTransform, gst::Element, gst::Object,
        @implements gst::Preset;
}

impl StreamDiffusion {
    /// The element's type, which GLib knows from the first call on; `gst::init` may come later.
    ///
    /// # Errors
    /// When there is another type of this name in the process: that of another copy of this code, as in a program that has
    /// the element itself and lets GStreamer load the plugin too. The first to come has the name.
    pub fn register_type() -> Result<glib::Type, glib::BoolError> {
        static ASKED: Mutex<()> = Mutex::new(());
        let _one_at_a_time = ASKED.lock();
        match glib::Type::from_name(imp::StreamDiffusion::NAME) {
            Some(found) if imp::TYPE.get() != Some(&found) => Err(glib::bool_error!(
                "another copy of the plugin streamdiffusion is in this process already, and has the type {}",
                imp::StreamDiffusion::NAME
            )),
            _ => Ok(Self::static_type()),
        }
    }
}

/// Registers the element. Touches no model, no library, no thread.
///
/// # Errors
/// As [`StreamDiffusion::register_type`].
pub fn register(plugin: &gst::Plugin) -> Result<(), glib::BoolError> {
    let element = StreamDiffusion::register_type()?;
    for enumeration in [
        Backend::static_type(),
        BuildEngines::static_type(),
        CfgTypeProperty::static_type(),
        LatePolicy::static_type(),
        Mode::static_type(),
        Noise::static_type(),
        PromptInterpolation::static_type(),
        Scheduler::static_type(),
        Timing::static_type(),
        WhileLoading::static_type(),
    ] {
        enumeration.mark_as_plugin_api(gst::PluginAPIFlags::empty());
    }
    gst::Element::register(Some(plugin), "streamdiffusion", gst::Rank::NONE, element)
}
