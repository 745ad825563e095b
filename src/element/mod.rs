//! The `streamdiffusion` element: GStreamer on this side, the stream on the other.

use std::sync::LazyLock;

use gst::glib;
use gst::prelude::*;

use crate::stream::CfgType;

mod caps;
mod convert;
mod errors;
mod flow;
mod imp;
mod latency;
mod model_path;
mod prompts;
mod properties;
mod settings;
mod state;
mod stats;
mod timeline;
mod worker;

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

/// What runs the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, glib::Enum)]
#[enum_type(name = "GstStreamDiffusionBackend")]
pub enum Backend {
    /// The best one this machine has.
    #[default]
    #[enum_value(name = "Auto: the best backend this machine has", nick = "auto")]
    Auto,
    /// ONNX Runtime on the CPU.
    #[enum_value(name = "ONNX Runtime on the CPU", nick = "onnxruntime")]
    OnnxRuntime,
}

/// Where the guidance term comes from; see [`CfgType`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, glib::Enum)]
#[enum_type(name = "GstStreamDiffusionCfgType")]
pub enum CfgTypeProperty {
    /// No guidance.
    #[enum_value(name = "None: no guidance", nick = "none")]
    None,
    /// Classifier-free guidance.
    #[enum_value(
        name = "Full: classifier-free guidance, a second U-Net row per row",
        nick = "full"
    )]
    Full,
    /// Self-negative residual guidance.
    #[default]
    #[enum_value(
        name = "Self: residual guidance against the input, at no extra cost",
        nick = "self"
    )]
    SelfNegative,
    /// Onetime-negative residual guidance.
    #[enum_value(
        name = "Initialize: residual guidance against the negative prompt, one extra row per frame",
        nick = "initialize"
    )]
    Initialize,
}

impl From<CfgTypeProperty> for CfgType {
    fn from(value: CfgTypeProperty) -> Self {
        match value {
            CfgTypeProperty::None => Self::None,
            CfgTypeProperty::Full => Self::Full,
            CfgTypeProperty::SelfNegative => Self::SelfNegative,
            CfgTypeProperty::Initialize => Self::Initialize,
        }
    }
}

impl From<CfgType> for CfgTypeProperty {
    fn from(value: CfgType) -> Self {
        match value {
            CfgType::None => Self::None,
            CfgType::Full => Self::Full,
            CfgType::SelfNegative => Self::SelfNegative,
            CfgType::Initialize => Self::Initialize,
        }
    }
}

/// Which time an output frame carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, glib::Enum)]
#[enum_type(name = "GstStreamDiffusionTiming")]
pub enum Timing {
    /// The time of the frame it shows.
    #[default]
    #[enum_value(
        name = "Content: a frame keeps the time of the picture it shows; it comes out steps x frame-buffer-size - 1 frames later",
        nick = "content"
    )]
    Content,
    /// The time of the frame that just came in.
    #[enum_value(
        name = "Immediate: one frame out for each frame in, at once, with that frame's time",
        nick = "immediate"
    )]
    Immediate,
}

/// Registers the element. Touches no model, no library, no thread.
pub fn register(plugin: &gst::Plugin) -> Result<(), glib::BoolError> {
    for enumeration in [
        Backend::static_type(),
        CfgTypeProperty::static_type(),
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
