//! The properties' enumerations.

use gst::glib;

use crate::stream::{CfgType, Interpolation};

/// What runs the model.
///
/// Since: 0.1.0
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, glib::Enum)]
#[enum_type(name = "GstStreamDiffusionBackend")]
pub enum Backend {
    /// The best one this machine has.
    #[default]
    #[enum_value(
        name = "Auto: a GPU if there is one with all that it needs, else the CPU",
        nick = "auto"
    )]
    Auto,
    /// ONNX Runtime on the CPU.
    #[enum_value(name = "ONNX Runtime on the CPU", nick = "onnxruntime-cpu")]
    OnnxRuntimeCpu,
    /// ONNX Runtime's CUDA provider.
    #[enum_value(name = "ONNX Runtime on an NVIDIA GPU", nick = "onnxruntime-cuda")]
    OnnxRuntimeCuda,
    /// TensorRT's engines.
    #[enum_value(
        name = "TensorRT on an NVIDIA GPU, with engines built for the model",
        nick = "tensorrt"
    )]
    TensorRt,
}

/// What becomes of TensorRT engines that are missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, glib::Enum)]
#[enum_type(name = "GstStreamDiffusionBuildEngines")]
pub enum BuildEngines {
    /// They stay missing.
    #[default]
    #[enum_value(
        name = "Never: without engines TensorRT is not used; an error tells the command that builds them",
        nick = "never"
    )]
    Never,
    /// They are built.
    #[enum_value(
        name = "Auto: they are built when the model is loaded, which takes from seconds to a minute",
        nick = "auto"
    )]
    Auto,
}

/// Where the guidance term comes from; see [`CfgType`].
///
/// Since: 0.1.0
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
///
/// Since: 0.1.0
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

/// What becomes of a frame that comes too late.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, glib::Enum)]
#[enum_type(name = "GstStreamDiffusionLatePolicy")]
pub enum LatePolicy {
    /// It is left out.
    #[default]
    #[enum_value(name = "Drop it", nick = "drop")]
    Drop,
    /// The one before it is shown again.
    #[enum_value(
        name = "Show the last restyled picture again, which keeps the frame rate",
        nick = "repeat"
    )]
    Repeat,
    /// It is shown as it came.
    #[enum_value(name = "Let it pass as it is, not restyled", nick = "passthrough")]
    Passthrough,
    /// It is restyled all the same.
    #[enum_value(
        name = "None: restyle it all the same, however late it gets",
        nick = "none"
    )]
    None,
}

/// What becomes of frames that come while the model is being loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, glib::Enum)]
#[enum_type(name = "GstStreamDiffusionWhileLoading")]
pub enum WhileLoading {
    /// They wait.
    #[default]
    #[enum_value(name = "Hold frames back until the model is there", nick = "block")]
    Block,
    /// They are shown as they came.
    #[enum_value(
        name = "Let frames pass as they are, not restyled",
        nick = "passthrough"
    )]
    Passthrough,
}

/// What a frame starts from.
///
/// Since: 0.1.0
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, glib::Enum)]
#[enum_type(name = "GstStreamDiffusionMode")]
pub enum Mode {
    /// The input's picture.
    #[default]
    #[enum_value(name = "Restyle the input's pictures", nick = "img2img")]
    ImageToImage,
    /// Noise.
    #[enum_value(
        name = "Draw new pictures from noise; the input only gives size and time",
        nick = "txt2img"
    )]
    TextToImage,
}

/// How the noise that frames start with changes from frame to frame.
///
/// Since: 0.1.0
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, glib::Enum)]
#[enum_type(name = "GstStreamDiffusionNoise")]
pub enum Noise {
    /// It does not.
    #[default]
    #[enum_value(name = "The seed's noise for every frame", nick = "fixed")]
    Fixed,
    /// Every frame takes the next seed's.
    #[enum_value(name = "Another seed's noise for every frame", nick = "fresh")]
    Fresh,
    /// It turns smoothly from one seed's to the next one's.
    #[enum_value(
        name = "A smooth walk from one seed's noise to the next one's in noise-walk-frames frames",
        nick = "walk"
    )]
    Walk,
}

/// What lies between two prompts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, glib::Enum)]
#[enum_type(name = "GstStreamDiffusionPromptInterpolation")]
pub enum PromptInterpolation {
    /// Weighted means.
    #[default]
    #[enum_value(name = "Linear: weighted means of embeddings", nick = "linear")]
    Linear,
    /// Arcs.
    #[enum_value(
        name = "Spherical: along the arc between embeddings, token by token",
        nick = "slerp"
    )]
    Slerp,
}

impl From<PromptInterpolation> for Interpolation {
    fn from(value: PromptInterpolation) -> Self {
        match value {
            PromptInterpolation::Linear => Self::Linear,
            PromptInterpolation::Slerp => Self::Spherical,
        }
    }
}

/// How one step leads to the next.
///
/// Since: 0.1.0
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, glib::Enum)]
#[enum_type(name = "GstStreamDiffusionScheduler")]
pub enum Scheduler {
    /// As the model folder's scheduler configuration says.
    #[default]
    #[enum_value(name = "Auto: the one the model folder names", nick = "auto")]
    Auto,
    /// Latent consistency models.
    #[enum_value(name = "Latent consistency (LCM, Turbo)", nick = "lcm")]
    Lcm,
    /// Trajectory consistency distillation.
    #[enum_value(name = "Trajectory consistency (TCD, Hyper-SD)", nick = "tcd")]
    Tcd,
}
