//! Loaded models, shared by everything in the process that wants the same one.

use std::collections::HashMap;
use std::fs::Metadata;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock, Mutex, PoisonError, Weak};
use std::time::SystemTime;

#[cfg(feature = "cuda")]
use super::cuda::CudaModel;
use super::onnxruntime::OnnxModel;
#[cfg(all(feature = "cuda", feature = "tensorrt"))]
use super::tensorrt::{Building, Gpu, Supply, Wanted};
use super::{Telling, silent};
#[cfg(feature = "cuda")]
use crate::device::cuda::Cuda;
use crate::error::{Error, Result};
use crate::model::{Component, ModelFolder};

/// A model folder and its components, ready to run by one kind of engine.
pub struct Loaded<M = OnnxModel> {
    /// What the folder says.
    pub folder: ModelFolder,
    /// Its components.
    pub model: Arc<M>,
}

/// A folder in one state of its files, on one device: a folder that was changed is another model, and so is one on
/// another GPU.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Key {
    path: PathBuf,
    files: Vec<(PathBuf, u64, Option<SystemTime>)>,
    /// The identity of the GPU, of which one that was opened anew has another; 0 for the host, which there is one of.
    device: usize,
}

/// Held while its model loads, so that whoever wants the same one waits for it, and nobody else does.
type Slot<M> = Arc<Mutex<Weak<Loaded<M>>>>;

/// The loaded models of one kind of engine.
struct Cache<M>(LazyLock<Mutex<HashMap<Key, Slot<M>>>>);

impl<M> Cache<M> {
    const fn new() -> Self {
        Self(LazyLock::new(Mutex::default))
    }

    /// The model in the folder at `path`: the one in use if there is one, else what `open` makes of the folder.
    fn get(
        &self,
        path: &Path,
        device: usize,
        open: impl FnOnce(&ModelFolder) -> Result<M>,
    ) -> Result<Arc<Loaded<M>>> {
        self.get_with(path, device, &[], open)
    }

    /// The same of a model that depends on these files too.
    fn get_with(
        &self,
        path: &Path,
        device: usize,
        more: &[PathBuf],
        open: impl FnOnce(&ModelFolder) -> Result<M>,
    ) -> Result<Arc<Loaded<M>>> {
        let mut key = key(path, device)?;
        more.iter().for_each(|file| note(file, &mut key.files));
        let slot = {
            let mut models = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            // Forget what nobody uses or loads.
            models.retain(|_, slot| {
                Arc::strong_count(slot) > 1 || slot.try_lock().is_ok_and(|s| s.strong_count() > 0)
            });
            models.entry(key).or_default().clone()
        };
        let mut loaded = slot.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(loaded) = loaded.upgrade() {
            return Ok(loaded);
        }
        let folder = ModelFolder::open(path)?;
        let model = Arc::new(open(&folder)?);
        let new = Arc::new(Loaded { folder, model });
        *loaded = Arc::downgrade(&new);
        Ok(new)
    }
}

static HOST: Cache<OnnxModel> = Cache::new();

/// The model in the folder at `path`, run by ONNX Runtime on the CPU: the one in use elsewhere in the process if there
/// is one, else loaded now, which takes seconds for a big one. It is unloaded when its last user drops it. Failures are
/// not remembered.
pub fn load(path: &Path) -> Result<Arc<Loaded>> {
    load_telling(path, &silent)
}

/// The same, telling of each component; of none where the model is in use already.
pub fn load_telling(path: &Path, tell: Telling<'_>) -> Result<Arc<Loaded>> {
    HOST.get(path, 0, |folder| OnnxModel::open_telling(folder, tell))
}

#[cfg(feature = "cuda")]
static CUDA: Cache<CudaModel> = Cache::new();

/// The same, run by ONNX Runtime on a GPU.
#[cfg(feature = "cuda")]
pub fn load_cuda(path: &Path, gpu: &Cuda, tell: Telling<'_>) -> Result<Arc<Loaded<CudaModel>>> {
    CUDA.get(path, gpu.identity(), |folder| {
        super::onnxruntime::open_cuda_telling(folder, gpu, tell)
    })
}

#[cfg(all(feature = "cuda", feature = "tensorrt"))]
static TENSORRT: Cache<CudaModel> = Cache::new();

/// The same, run by TensorRT's engines: those in the user's cache that let it do what is `wanted`, else some that are built
/// now if `building` is given. Models with other engines are others.
#[cfg(all(feature = "cuda", feature = "tensorrt"))]
pub fn load_tensorrt(
    path: &Path,
    gpu: &Cuda,
    wanted: &Wanted,
    building: Option<&Building>,
    tell: Telling<'_>,
) -> Result<Arc<Loaded<CudaModel>>> {
    let (major, minor) = Cuda::compute_capability(gpu.ordinal())?;
    let engines = super::cache::Cache::new(None)?;
    let folder = ModelFolder::open(path)?;
    let capability = Gpu::new(major, minor);
    let supply = Supply::provide(&folder, wanted, capability, &engines, building)?;
    let files = supply.engines.iter().map(|key| engines.path(key));
    let files: Vec<_> = files.collect();
    TENSORRT.get_with(path, gpu.identity(), &files, |folder| {
        super::tensorrt::open(folder, gpu, &supply, &engines, tell)
    })
}

fn key(path: &Path, device: usize) -> Result<Key> {
    let canonical = path.canonicalize().map_err(|e| {
        Error::not_found(
            path,
            format!("cannot be opened: {e}; expected a model folder"),
        )
    })?;
    let mut files = Vec::new();
    list(&canonical, &mut files);
    for folder in Component::ALL.map(Component::folder).iter().chain(&[
        "tokenizer",
        "tokenizer_2",
        "scheduler",
    ]) {
        list(&canonical.join(folder), &mut files);
    }
    files.sort();
    Ok(Key {
        path: canonical,
        files,
        device,
    })
}

/// Notes the files in `folder`, not those in folders below it. What cannot be read is for loading to complain about.
fn list(folder: &Path, files: &mut Vec<(PathBuf, u64, Option<SystemTime>)>) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        note(&entry.path(), files);
    }
}

/// Notes a file, if it is one.
fn note(path: &Path, files: &mut Vec<(PathBuf, u64, Option<SystemTime>)>) {
    // Follows links, as loading does: download caches keep the files elsewhere.
    if let Some(meta) = std::fs::metadata(path).ok().filter(Metadata::is_file) {
        files.push((path.to_owned(), meta.len(), meta.modified().ok()));
    }
}
