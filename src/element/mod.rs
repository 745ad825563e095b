//! The `streamdiffusion` element: GStreamer on this side, the stream on the other.

use std::sync::LazyLock;

use gst::glib;
use gst::prelude::*;

pub use model_path::bundled as bundled_model;

#[cfg(all(feature = "cuda", feature = "tensorrt"))]
mod building;
mod caps;
mod choice;
#[cfg(feature = "cuda")]
mod cuda;
mod enums;
mod errors;
mod flow;
mod imp;
mod latency;
#[cfg(feature = "cuda")]
mod layout;
mod model_path;
mod prompts;
mod properties;
mod runtime;
mod settings;
mod state;
mod stats;
mod studio;
mod timeline;
mod venue;
mod worker;

pub use enums::{Backend, BuildEngines, CfgTypeProperty, Mode, Noise, Scheduler, Timing};

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
        Mode::static_type(),
        Noise::static_type(),
        Scheduler::static_type(),
        Timing::static_type(),
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
