//! The `streamdiffusion` element: GStreamer on this side, the stream on the other.

use std::sync::LazyLock;

use gst::glib;
use gst::prelude::*;

pub use model_path::bundled as bundled_model;

#[cfg(all(feature = "cuda", feature = "tensorrt"))]
mod building;
mod caps;
mod choice;
mod continuity;
#[cfg(feature = "cuda")]
mod cuda;
mod cue_pad;
mod cues;
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

/// Registers the element. Touches no model, no library, no thread.
pub fn register(plugin: &gst::Plugin) -> Result<(), glib::BoolError> {
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
    gst::Element::register(
        Some(plugin),
        "streamdiffusion",
        gst::Rank::NONE,
        StreamDiffusion::static_type(),
    )
}
