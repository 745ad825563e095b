//! Where an element computes: decided when it starts, or when a neighbour asks for a CUDA context before.

#[cfg(feature = "cuda")]
use std::sync::Arc;
use std::sync::atomic::Ordering;

#[cfg(feature = "cuda")]
use gst::prelude::*;
use gst::subclass::prelude::*;

use super::choice::{self, Choice, Machine, Place};
#[cfg(feature = "cuda")]
use super::cuda::{self, Gpu, Sharing};
use super::imp::StreamDiffusion;
use super::{Backend, CAT};
#[cfg(feature = "cuda")]
use crate::device::cuda::Cuda;
#[cfg(feature = "cuda")]
use crate::engine::onnxruntime::CudaOnnxModel;
#[cfg(not(feature = "cuda"))]
use crate::error::Error;
use crate::error::Result;

/// What an element computes on.
#[derive(Clone)]
pub enum Venue {
    /// The CPU.
    Cpu,
    /// A GPU.
    #[cfg(feature = "cuda")]
    Gpu(Arc<Gpu>),
}

impl Venue {
    /// Its name, for people.
    pub fn name(&self) -> String {
        match self {
            Self::Cpu => "CPU".into(),
            #[cfg(feature = "cuda")]
            Self::Gpu(gpu) => format!("{} (GPU {})", gpu.cuda.name(), gpu.cuda.ordinal()),
        }
    }
}

impl Venue {
    /// Bytes of the GPU's memory that are in use, by whomever; 0 on the CPU, and where the driver does not say.
    pub fn memory_in_use(&self) -> u64 {
        match self {
            Self::Cpu => 0,
            #[cfg(feature = "cuda")]
            Self::Gpu(gpu) => {
                let memory = gpu.cuda.memory();
                memory.map_or(0, |(free, total)| total.saturating_sub(free) as u64)
            }
        }
    }
}

/// The machine that this runs on, and the element's neighbours.
struct Here<'a>(&'a StreamDiffusion);

#[cfg(feature = "cuda")]
impl Machine for Here<'_> {
    fn gpus(&self) -> Result<usize> {
        Cuda::count()
    }

    fn neighbours(&self) -> Option<usize> {
        let given = || self.0.given.lock().clone();
        let context = cuda::look_for_context(self.0.obj().upcast_ref(), given)?;
        let device = context.device();
        // The pipeline has one, and needs to be told of no other.
        *self.0.given.lock() = Some(context);
        Some(device)
    }

    fn runtime(&self) -> Result<()> {
        CudaOnnxModel::available()
    }
}

#[cfg(not(feature = "cuda"))]
impl Machine for Here<'_> {
    fn gpus(&self) -> Result<usize> {
        let _ = self.0;
        Err(Error::Library(
            "this plugin was built without the feature cuda".into(),
        ))
    }

    fn neighbours(&self) -> Option<usize> {
        None
    }

    fn runtime(&self) -> Result<()> {
        Ok(())
    }
}

impl StreamDiffusion {
    /// Decides where to compute, by the properties and by what is there; and says why, for people.
    pub(super) fn decide(&self) -> Result<(Venue, String)> {
        self.deciding.store(true, Ordering::SeqCst);
        let decided = self.choose();
        self.deciding.store(false, Ordering::SeqCst);
        let (venue, reason) = decided?;
        gst::info!(CAT, imp = self, "Runs on the {}: {reason}", venue.name());
        *self.venue.lock() = Some(venue.clone());
        Ok((venue, reason))
    }

    fn choose(&self) -> Result<(Venue, String)> {
        let (backend, device) = {
            let settings = self.settings.lock();
            (settings.backend, settings.device())
        };
        let Choice { place, reason } = choice::choose(backend, device, &Here(self))?;
        match place {
            Place::Cpu => Ok((Venue::Cpu, reason)),
            Place::Cuda(number) => match open(number) {
                Ok(venue) => Ok((venue, reason)),
                Err(error) if backend == Backend::Auto => {
                    let reason = format!("GPU {number} cannot be used: {error}");
                    Ok((Venue::Cpu, reason))
                }
                Err(error) => Err(error),
            },
        }
    }

    /// Whether frames in a GPU's memory can come and go. Until that is decided, what the properties say counts.
    pub(super) fn takes_cuda_memory(&self) -> bool {
        match &*self.venue.lock() {
            #[cfg(feature = "cuda")]
            Some(Venue::Gpu(gpu)) => gpu.sharing.is_some(),
            Some(_) => false,
            None => {
                cfg!(feature = "cuda") && self.settings.lock().backend != Backend::OnnxRuntimeCpu
            }
        }
    }

    /// The way to share a GPU's memory, if one is used.
    #[cfg(feature = "cuda")]
    pub(super) fn sharing(&self) -> Option<Sharing> {
        match &*self.venue.lock() {
            Some(Venue::Gpu(gpu)) => gpu.sharing.clone(),
            _ => None,
        }
    }

    /// Tells the pipeline of our CUDA context, unless it has one.
    #[cfg(feature = "cuda")]
    pub(super) fn publish_context(&self) {
        if let Some(sharing) = self.sharing()
            && self.given.lock().is_none()
        {
            cuda::publish(self.obj().upcast_ref(), sharing.context());
        }
    }

    /// Answers a neighbour's question for a CUDA context with ours; so it works in the context that we work in, and
    /// nothing has to be copied. `false` if it asks for something else, or if no GPU is used.
    #[cfg(feature = "cuda")]
    pub(super) fn answer_context(&self, query: &mut gst::query::Context) -> bool {
        if query.context_type() != cuda::TYPE {
            return false;
        }
        if self.venue.lock().is_none() {
            // While this element looks for a context itself, it has none to give.
            if self.deciding.load(Ordering::SeqCst) {
                return false;
            }
            if let Err(error) = self.decide() {
                gst::debug!(CAT, imp = self, "No CUDA context to give: {error}");
            }
        }
        let Some(sharing) = self.sharing() else {
            return false;
        };
        let context = sharing.context().message(query.context_owned());
        query.set_context(&context);
        true
    }
}

#[cfg(feature = "cuda")]
fn open(number: usize) -> Result<Venue> {
    let gpu = Gpu::open(number)?;
    Ok(Venue::Gpu(gpu))
}

#[cfg(not(feature = "cuda"))]
fn open(number: usize) -> Result<Venue> {
    Err(Error::setting(
        "device-id",
        format!("GPU {number} cannot be used without the feature cuda"),
    ))
}
