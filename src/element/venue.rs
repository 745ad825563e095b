//! Where an element computes: decided when it starts, or when a neighbour asks for a CUDA context before.

#[cfg(all(feature = "cuda", feature = "tensorrt"))]
use std::cell::Cell;
use std::path::Path;
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
use super::settings::Settings;
use super::{Backend, CAT, runtime_log};
#[cfg(all(feature = "cuda", feature = "tensorrt"))]
use super::{
    building::{self, Request},
    model_path,
};
#[cfg(feature = "cuda")]
use crate::device::cuda::Cuda;
use crate::engine::onnxruntime;
#[cfg(all(feature = "cuda", feature = "tensorrt"))]
use crate::engine::{
    cache::Cache as EngineCache,
    tensorrt::{self, Supply},
};
use crate::error::{Error, Result};
#[cfg(all(feature = "cuda", feature = "tensorrt"))]
use crate::model::ModelFolder;

/// What an element computes on.
#[derive(Clone)]
pub enum Venue {
    /// The CPU.
    Cpu,
    /// A GPU, by ONNX Runtime.
    #[cfg(feature = "cuda")]
    Gpu(Arc<Gpu>),
    /// A GPU, by TensorRT, for what is asked of it.
    #[cfg(all(feature = "cuda", feature = "tensorrt"))]
    TensorRt(Arc<Gpu>, Request),
}

impl Venue {
    /// Its name, for people.
    pub fn name(&self) -> String {
        match self {
            Self::Cpu => "CPU".into(),
            #[cfg(feature = "cuda")]
            Self::Gpu(gpu) => name_of(gpu),
            #[cfg(all(feature = "cuda", feature = "tensorrt"))]
            Self::TensorRt(gpu, _) => name_of(gpu),
        }
    }

    /// What runs the model there, as `backend` calls it.
    pub fn backend(&self) -> &'static str {
        match self {
            Self::Cpu => "onnxruntime-cpu",
            #[cfg(feature = "cuda")]
            Self::Gpu(_) => "onnxruntime-cuda",
            #[cfg(all(feature = "cuda", feature = "tensorrt"))]
            Self::TensorRt(..) => "tensorrt",
        }
    }

    /// Whether it does what is asked for now, with the model in the folder `model`: engines are made for a size and for
    /// steps.
    pub fn still_does(&self, settings: &Settings, model: &Path) -> bool {
        #[cfg(all(feature = "cuda", feature = "tensorrt"))]
        if let Self::TensorRt(_, request) = self {
            let now = ModelFolder::open(model).and_then(|folder| Request::new(settings, &folder));
            return now.is_ok_and(|now| now == *request);
        }
        let _ = (settings, model);
        true
    }

    /// Where the model in the folder `model` is tried next, and why, when it could not be loaded here and the backend is for
    /// us to choose; `None` if nowhere.
    #[cfg(feature = "cuda")]
    pub fn after(&self, error: &Error, model: &Path) -> Option<(Self, String)> {
        let Choice { place, reason } =
            choice::after(self.place(), error, model, onnxruntime::cuda_available)?;
        match (place, self.gpu()) {
            (Place::Cuda(_), Some(gpu)) => Some((Self::Gpu(gpu.clone()), reason)),
            _ => Some((Self::Cpu, reason)),
        }
    }

    /// The CPU comes last.
    #[cfg(not(feature = "cuda"))]
    pub fn after(&self, _: &Error, _: &Path) -> Option<(Self, String)> {
        None
    }

    /// `error`, which comes of loading the model here, with what else could be asked for.
    pub fn advise(&self, error: Error) -> Error {
        let otherwise: Option<&str> = match self {
            Self::Cpu => None,
            #[cfg(feature = "cuda")]
            Self::Gpu(_) => Some("backend=onnxruntime-cpu runs it on the CPU"),
            #[cfg(all(feature = "cuda", feature = "tensorrt"))]
            Self::TensorRt(..) => Some("backend=onnxruntime-cuda runs it without TensorRT"),
        };
        match (error, otherwise) {
            (Error::Engine { component, what }, Some(otherwise)) => Error::Engine {
                component,
                what: format!("{what}; {otherwise}"),
            },
            (error, _) => error,
        }
    }

    #[cfg(feature = "cuda")]
    fn place(&self) -> Place {
        match self {
            Self::Cpu => Place::Cpu,
            Self::Gpu(gpu) => Place::Cuda(gpu.cuda.ordinal()),
            #[cfg(feature = "tensorrt")]
            Self::TensorRt(gpu, _) => Place::TensorRt(gpu.cuda.ordinal()),
        }
    }

    /// The GPU, if it is one.
    #[cfg(feature = "cuda")]
    fn gpu(&self) -> Option<&Arc<Gpu>> {
        match self {
            Self::Cpu => None,
            Self::Gpu(gpu) => Some(gpu),
            #[cfg(feature = "tensorrt")]
            Self::TensorRt(gpu, _) => Some(gpu),
        }
    }
}

#[cfg(feature = "cuda")]
fn name_of(gpu: &Gpu) -> String {
    format!("{} (GPU {})", gpu.cuda.name(), gpu.cuda.ordinal())
}

impl Venue {
    /// Bytes of the GPU's memory that are in use, by whomever; 0 on the CPU, and where the driver does not say.
    pub fn memory_in_use(&self) -> u64 {
        #[cfg(feature = "cuda")]
        if let Some(gpu) = self.gpu() {
            let memory = gpu.cuda.memory();
            return memory.map_or(0, |(free, total)| total.saturating_sub(free) as u64);
        }
        0
    }
}

/// What was decided.
pub struct Decision {
    /// Where the model runs.
    pub venue: Venue,
    /// Why, for people.
    pub reason: String,
    /// Whether that is not what was chosen, because a GPU with all that it needs could not be opened.
    pub instead: bool,
}

impl Decision {
    fn of(venue: Venue, reason: String) -> Self {
        Self {
            venue,
            reason,
            instead: false,
        }
    }
}

/// The machine that this runs on, and the element with its neighbours.
struct Here<'a> {
    element: &'a StreamDiffusion,
    #[cfg(all(feature = "cuda", feature = "tensorrt"))]
    settings: &'a Settings,
    /// What TensorRT is asked for, once that was looked into.
    #[cfg(all(feature = "cuda", feature = "tensorrt"))]
    request: Cell<Option<Request>>,
}

#[cfg(feature = "cuda")]
impl Machine for Here<'_> {
    fn gpus(&self) -> Result<usize> {
        Cuda::count()
    }

    fn neighbours(&self) -> Option<usize> {
        let given = || self.element.given.lock().clone();
        let context = cuda::look_for_context(self.element.obj().upcast_ref(), given)?;
        let device = context.device();
        // The pipeline has one, and needs to be told of no other.
        *self.element.given.lock() = Some(context);
        Some(device)
    }

    #[cfg(feature = "tensorrt")]
    fn tensorrt(&self) -> Result<()> {
        building::listen_to_tensorrt();
        match &self.settings.tensorrt_library {
            Some(path) => tensorrt::library_at(path),
            None => tensorrt::library(),
        }
        .map(drop)
    }

    #[cfg(not(feature = "tensorrt"))]
    fn tensorrt(&self) -> Result<()> {
        has_tensorrt()
    }

    #[cfg(feature = "tensorrt")]
    fn engines(&self, gpu: usize) -> Result<()> {
        let (major, minor) = Cuda::compute_capability(gpu)?;
        let capability = tensorrt::Gpu::new(major, minor);
        capability.capabilities()?;
        let path = match &self.settings.model {
            Some(path) => path.clone(),
            None => model_path::bundled()?,
        };
        let folder = ModelFolder::open(&path)?;
        let request = Request::new(self.settings, &folder)?;
        match request.build {
            true => tensorrt::parser()?,
            false => {
                let engines = EngineCache::new(None)?;
                Supply::find(&folder, &request.wanted, capability, &engines)?;
            }
        }
        self.request.set(Some(request));
        Ok(())
    }

    #[cfg(not(feature = "tensorrt"))]
    fn engines(&self, _: usize) -> Result<()> {
        has_tensorrt()
    }

    fn runtime(&self) -> Result<()> {
        onnxruntime::cuda_available()
    }
}

/// An error that says how to get it.
#[cfg(not(all(feature = "cuda", feature = "tensorrt")))]
fn has_tensorrt() -> Result<()> {
    Err(Error::Library(
        "this plugin was built without TensorRT; \"cargo build --release --features tensorrt\" builds one with it".into(),
    ))
}

#[cfg(not(feature = "cuda"))]
impl Machine for Here<'_> {
    fn gpus(&self) -> Result<usize> {
        let _ = self.element;
        Err(Error::Library(
            "this plugin was built without the feature cuda".into(),
        ))
    }

    fn neighbours(&self) -> Option<usize> {
        None
    }

    fn tensorrt(&self) -> Result<()> {
        has_tensorrt()
    }

    fn engines(&self, _: usize) -> Result<()> {
        has_tensorrt()
    }

    fn runtime(&self) -> Result<()> {
        Ok(())
    }
}

impl StreamDiffusion {
    /// Decides where to compute, by the properties and by what is there.
    pub(super) fn decide(&self) -> Result<Decision> {
        self.deciding.store(true, Ordering::SeqCst);
        let decided = self.choose();
        self.deciding.store(false, Ordering::SeqCst);
        let decision = decided?;
        let Decision { venue, reason, .. } = &decision;
        gst::info!(CAT, imp = self, "Runs on the {}: {reason}", venue.name());
        *self.venue.lock() = Some(venue.clone());
        Ok(decision)
    }

    fn choose(&self) -> Result<Decision> {
        let settings = self.settings.lock().clone();
        let backend = settings.backend;
        runtime_log::listen_to_onnxruntime();
        if let Some(path) = &settings.onnxruntime_library {
            // Every backend needs it: text is encoded by it.
            onnxruntime::open_at(path)?;
        }
        let here = Here {
            element: self,
            #[cfg(all(feature = "cuda", feature = "tensorrt"))]
            settings: &settings,
            #[cfg(all(feature = "cuda", feature = "tensorrt"))]
            request: Cell::new(None),
        };
        let Choice { place, reason } = choice::choose(backend, settings.device(), &here)?;
        let (number, opened) = match place {
            Place::Cpu => return Ok(Decision::of(Venue::Cpu, reason)),
            Place::Cuda(number) => (number, open(number)),
            #[cfg(all(feature = "cuda", feature = "tensorrt"))]
            Place::TensorRt(number) => {
                let request = here
                    .request
                    .take()
                    .ok_or_else(|| Error::engine("tensorrt", "was chosen unasked; this is a bug"));
                let venue = || Ok(Venue::TensorRt(Gpu::open(number)?, request?));
                (number, venue())
            }
            #[cfg(not(all(feature = "cuda", feature = "tensorrt")))]
            Place::TensorRt(number) => (number, has_tensorrt().map(|()| Venue::Cpu)),
        };
        match opened {
            Ok(venue) => Ok(Decision::of(venue, reason)),
            Err(error) if backend == Backend::Auto => Ok(Decision {
                instead: true,
                ..Decision::of(Venue::Cpu, format!("GPU {number} cannot be used: {error}"))
            }),
            Err(error) => Err(error),
        }
    }

    /// Whether frames in a GPU's memory can come and go. Until that is decided, what the properties say counts.
    pub(super) fn takes_cuda_memory(&self) -> bool {
        match &*self.venue.lock() {
            #[cfg(feature = "cuda")]
            Some(venue) => venue.gpu().is_some_and(|gpu| gpu.sharing.is_some()),
            #[cfg(not(feature = "cuda"))]
            Some(_) => false,
            None => {
                cfg!(feature = "cuda") && self.settings.lock().backend != Backend::OnnxRuntimeCpu
            }
        }
    }

    /// The way to share a GPU's memory, if one is used.
    #[cfg(feature = "cuda")]
    pub(super) fn sharing(&self) -> Option<Sharing> {
        let venue = self.venue.lock();
        venue.as_ref()?.gpu()?.sharing.clone()
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
