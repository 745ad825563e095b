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
