//! Execution providers: what sessions run on.

use ort::session::builder::SessionBuilder;

#[cfg(feature = "cuda")]
use super::cuda::{CudaProvider, Graphs};
use crate::model::Fusions;

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
    /// Text encoders, which run on the prompt's thread, with tensors in main memory.
    pub texts: Provider,
    /// What of the U-Net runs when a prompt or the steps change.
    pub contexts: Provider,
    /// Those that run for every frame.
    pub frames: Provider,
    /// What is made faster in the graphs of the latter; `None` if they run as they were exported.
    pub fusions: Option<Fusions>,
}

/// Chooses [`Fusions`] by name, for measurements, on any provider: `attention`, `channels-last` and `gates`, with commas between, or
/// `exported`.
const FUSIONS: &str = "STREAMDIFFUSION_ONNXRUNTIME_FUSIONS";

/// `usual`, or what the environment asks for.
pub(super) fn fusions_or_asked(usual: Option<Fusions>) -> Option<Fusions> {
    choose(&std::env::var(FUSIONS).unwrap_or_default(), usual)
}

fn choose(named: &str, usual: Option<Fusions>) -> Option<Fusions> {
    let named: Vec<_> = named.split(',').map(str::trim).collect();
    let chosen = Fusions {
        attention: named.contains(&"attention"),
        channels_last: named.contains(&"channels-last"),
        gates: named.contains(&"gates"),
    };
    match named[..] {
        ["exported"] => None,
        _ if chosen == Fusions::NONE => usual,
        _ => Some(chosen),
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

    /// Keeps others from the stream that sessions run on, where that is others' too, as long as it is held.
    #[cfg(feature = "cuda")]
    pub fn alone(&self) -> Option<parking_lot::MutexGuard<'_, ()>> {
        match self {
            Self::Cpu => None,
            Self::Cuda(provider) => provider.alone(),
        }
    }

    /// Whether sessions run in the order of what the device computes.
    #[cfg(feature = "cuda")]
    pub fn is_on_stream(&self) -> bool {
        match self {
            Self::Cpu => false,
            Self::Cuda(provider) => provider.is_on_stream(),
        }
    }

    /// Whether fused graphs are tried on it: a GPU may not have what they need, and one that makes graphs of sessions by
    /// itself runs them at fixed addresses only.
    pub fn tries(&self) -> bool {
        match self {
            Self::Cpu => false,
            #[cfg(feature = "cuda")]
            Self::Cuda(provider) => provider.is_on_stream() && provider.graphs != Graphs::Session,
        }
    }

    /// Whether a processor runs them.
    pub fn is_processor(&self) -> bool {
        match self {
            Self::Cpu => true,
            #[cfg(feature = "cuda")]
            Self::Cuda(provider) => provider.processor().is_some(),
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
    fn graphs_are_made_faster_as_asked() {
        for usual in [Some(Fusions::ALL), None] {
            assert_eq!(choose("", usual), usual);
            assert_eq!(choose("other", usual), usual);
            assert_eq!(choose("exported", usual), None);
            assert_eq!(choose("attention", usual), Some(Fusions::ATTENTION));
            assert_eq!(
                choose("channels-last, gates,attention", usual),
                Some(Fusions::ALL)
            );
            let only = choose("channels-last", usual).unwrap();
            assert!(only.channels_last && !only.attention);
        }
    }
}
