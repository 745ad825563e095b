//! Execution providers: what sessions run on.

use ort::session::builder::SessionBuilder;

#[cfg(feature = "cuda")]
use super::cuda::CudaProvider;

/// What a session runs on.
#[derive(Clone)]
pub(super) enum Provider {
    /// The host's processor.
    Cpu,
    /// A GPU of NVIDIA's.
    #[cfg(feature = "cuda")]
    Cuda(CudaProvider),
}

/// What the sessions of a model run on.
pub(super) struct Providers {
    /// Those that run when a prompt or the steps change, on the prompt's thread, with tensors in main memory.
    pub texts: Provider,
    /// Those that run for every frame.
    pub frames: Provider,
    /// How the U-Net's attentions are run.
    pub attention: Attention,
}

/// Chooses [`Attention`] by name, for measurements: `fused` or `exported`, on any provider.
const ATTENTION: &str = "STREAMDIFFUSION_ONNXRUNTIME_ATTENTION";

/// How attentions are run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Attention {
    /// By one operator each, as far as they can be told in the graph.
    Fused,
    /// As the graph has them.
    Exported,
}

impl Attention {
    /// `usual`, or what the environment asks for.
    pub fn or_asked(usual: Self) -> Self {
        Self::choose(&std::env::var(ATTENTION).unwrap_or_default(), usual)
    }

    fn choose(named: &str, usual: Self) -> Self {
        match named {
            "fused" => Self::Fused,
            "exported" => Self::Exported,
            _ => usual,
        }
    }
}

impl Provider {
    /// The same for one session more.
    pub fn for_session(&self) -> Self {
        match self {
            Self::Cpu => Self::Cpu,
            #[cfg(feature = "cuda")]
            Self::Cuda(provider) => Self::Cuda(provider.for_session()),
        }
    }

    /// Sets up the session.
    pub fn configure(&self, builder: SessionBuilder) -> ort::Result<SessionBuilder> {
        match self {
            Self::Cpu => Ok(builder.with_memory_pattern(true)?),
            #[cfg(feature = "cuda")]
            Self::Cuda(provider) => provider.configure(builder),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attentions_are_run_as_asked() {
        use Attention::{Exported, Fused};
        for usual in [Fused, Exported] {
            assert_eq!(Attention::choose("", usual), usual);
            assert_eq!(Attention::choose("other", usual), usual);
            assert_eq!(Attention::choose("fused", usual), Fused);
            assert_eq!(Attention::choose("exported", usual), Exported);
        }
    }
}
