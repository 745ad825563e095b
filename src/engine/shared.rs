//! Loaded models, shared by everything in the process that wants the same one.

use std::collections::HashMap;
use std::fs::Metadata;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock, Weak};
use std::time::{Duration, SystemTime};

use parking_lot::{Condvar, Mutex, MutexGuard};

#[cfg(feature = "cuda")]
use super::cuda::CudaModel;
use super::onnxruntime::OnnxModel;
#[cfg(all(feature = "cuda", feature = "tensorrt"))]
use super::tensorrt::{Building, Gpu, Supply, Wanted};
use super::{Telling, Waiting, patient, silent};
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

/// The time between two questions whether a wait goes on.
const PAUSE: Duration = Duration::from_millis(20);

/// A model that is loaded once, whoever wants it. No lock is held while it loads: whoever is told of it may do anything,
/// such as stop others that wait for the same one.
struct Slot<M> {
    state: Mutex<State<M>>,
    changed: Condvar,
}

struct State<M> {
    /// Whether someone loads it now.
    loading: bool,
    loaded: Weak<Loaded<M>>,
}

impl<M> Default for Slot<M> {
    fn default() -> Self {
        Self {
            state: Mutex::new(State {
                loading: false,
                loaded: Weak::new(),
            }),
            changed: Condvar::new(),
        }
    }
}

impl<M> Slot<M> {
    /// The model, if it is in use; else the turn to load it, which is waited for while someone else does. `waits` may end
    /// that wait.
    fn take(&self, waits: Waiting<'_>) -> Result<std::result::Result<Arc<Loaded<M>>, Turn<'_, M>>> {
        let mut state = self.state.lock();
        loop {
            if let Some(loaded) = state.loaded.upgrade() {
                return Ok(Ok(loaded));
            }
            if !state.loading {
                state.loading = true;
                return Ok(Err(Turn(self)));
            }
            self.changed.wait_for(&mut state, PAUSE);
            MutexGuard::unlocked(&mut state, waits)?;
        }
    }

    /// Whether somebody uses it. Who loads it or waits for it holds the slot.
    fn is_used(&self) -> bool {
        self.state.lock().loaded.strong_count() > 0
    }
}

/// The turn to load a model. However it ends, the next in line is woken.
struct Turn<'a, M>(&'a Slot<M>);

impl<M> Turn<'_, M> {
    /// It is loaded.
    fn done(self, loaded: &Arc<Loaded<M>>) {
        self.0.state.lock().loaded = Arc::downgrade(loaded);
    }
}

impl<M> Drop for Turn<'_, M> {
    fn drop(&mut self) {
        self.0.state.lock().loading = false;
        self.0.changed.notify_all();
    }
}

/// The loaded models of one kind of engine.
struct Cache<M>(LazyLock<Mutex<HashMap<Key, Arc<Slot<M>>>>>);

impl<M> Cache<M> {
    const fn new() -> Self {
        Self(LazyLock::new(Mutex::default))
    }

    /// The model in the folder at `path`: the one in use if there is one, else what `open` makes of the folder. While
    /// someone else makes it, that is waited for, as long as `waits` lets it.
    fn get(
        &self,
        path: &Path,
        device: usize,
        waits: Waiting<'_>,
        open: impl FnOnce(&ModelFolder) -> Result<M>,
    ) -> Result<Arc<Loaded<M>>> {
        self.get_with(path, device, &[], waits, open)
    }

    /// The same of a model that depends on these files too.
    fn get_with(
        &self,
        path: &Path,
        device: usize,
        more: &[PathBuf],
        waits: Waiting<'_>,
        open: impl FnOnce(&ModelFolder) -> Result<M>,
    ) -> Result<Arc<Loaded<M>>> {
        let mut key = key(path, device)?;
        more.iter().for_each(|file| note(file, &mut key.files));
        let slot = {
            let mut models = self.0.lock();
            // Forget what nobody uses or loads.
            models.retain(|_, slot| Arc::strong_count(slot) > 1 || slot.is_used());
            models.entry(key).or_default().clone()
        };
        let turn = match slot.take(waits)? {
            Ok(loaded) => return Ok(loaded),
            Err(turn) => turn,
        };
        let folder = ModelFolder::open(path)?;
        let model = Arc::new(open(&folder)?);
        let new = Arc::new(Loaded { folder, model });
        turn.done(&new);
        Ok(new)
    }
}

static HOST: Cache<OnnxModel> = Cache::new();

/// The model in the folder at `path`, run by ONNX Runtime on the CPU: the one in use elsewhere in the process if there
/// is one, else loaded now, which takes seconds for a big one. It is unloaded when its last user drops it. Failures are
/// not remembered.
pub fn load(path: &Path) -> Result<Arc<Loaded>> {
    load_telling(path, &silent, &patient)
}

/// The same, telling of each component; of none where the model is in use already. `waits` is asked while someone else
/// loads it.
pub fn load_telling(path: &Path, tell: Telling<'_>, waits: Waiting<'_>) -> Result<Arc<Loaded>> {
    HOST.get(path, 0, waits, |folder| {
        OnnxModel::open_telling(folder, tell)
    })
}

#[cfg(feature = "cuda")]
static CUDA: Cache<CudaModel> = Cache::new();

/// The same, run by ONNX Runtime on a GPU.
#[cfg(feature = "cuda")]
pub fn load_cuda(
    path: &Path,
    gpu: &Cuda,
    tell: Telling<'_>,
    waits: Waiting<'_>,
) -> Result<Arc<Loaded<CudaModel>>> {
    CUDA.get(path, gpu.identity(), waits, |folder| {
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
    waits: Waiting<'_>,
) -> Result<Arc<Loaded<CudaModel>>> {
    let (major, minor) = Cuda::compute_capability(gpu.ordinal())?;
    let engines = super::cache::Cache::new(None)?;
    let folder = ModelFolder::open(path)?;
    let capability = Gpu::new(major, minor);
    let supply = Supply::provide(&folder, wanted, capability, &engines, building)?;
    let files = supply.engines.iter().map(|key| engines.path(key));
    let files: Vec<_> = files.collect();
    TENSORRT.get_with(path, gpu.identity(), &files, waits, |folder| {
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

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
    use std::sync::mpsc;

    use super::*;

    /// Far longer than anything here takes.
    const PATIENCE: Duration = Duration::from_secs(60);

    fn folder() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/odd")
    }

    /// As a handler of messages may do: stop one element while it is told that another loads the same model.
    #[test]
    fn a_wait_can_be_ended_by_who_is_told_of_the_loading() {
        static MODELS: Cache<u32> = Cache::new();
        let (stop, waiting) = (Arc::new(AtomicBool::new(false)), Arc::default());
        let told = |_: Component| -> Result<()> {
            let (ended, end) = mpsc::channel();
            let (stopped, asked): (Arc<AtomicBool>, Arc<AtomicUsize>) =
                (stop.clone(), Arc::clone(&waiting));
            let thread = std::thread::spawn(move || {
                let waits = || {
                    asked.fetch_add(1, Ordering::SeqCst);
                    match stopped.load(Ordering::SeqCst) {
                        true => Err(Error::engine("model", "is not wanted any more")),
                        false => Ok(()),
                    }
                };
                let second = MODELS.get(&folder(), 0, &waits, |_| Ok(2));
                let _ = ended.send(second.map(|loaded| *loaded.model));
            });
            while waiting.load(Ordering::SeqCst) == 0 && !thread.is_finished() {
                std::thread::yield_now();
            }
            stop.store(true, Ordering::SeqCst);
            let second = end.recv_timeout(PATIENCE).expect("the wait has an end");
            assert!(second.unwrap_err().to_string().contains("not wanted"));
            Ok(())
        };
        let open = |_: &ModelFolder| told(Component::Unet).map(|()| 1);
        let first = MODELS.get(&folder(), 0, &patient, open).unwrap();
        assert_eq!(*first.model, 1);
    }

    #[test]
    fn who_comes_second_gets_the_same_model_or_loads_it_if_the_first_failed() {
        static MODELS: Cache<u32> = Cache::new();
        for broken in [None, Some(false), Some(true)] {
            let (here, begun) = mpsc::channel();
            let (go_on, wait) = mpsc::channel::<()>();
            let first = std::thread::spawn(move || {
                let opened = MODELS.get(&folder(), 0, &patient, |_| {
                    here.send(()).unwrap();
                    wait.recv().unwrap();
                    match broken {
                        None => Ok(1),
                        Some(false) => Err(Error::engine("model", "no memory")),
                        Some(true) => panic!("a bug"),
                    }
                });
                opened.ok()
            });
            begun.recv().unwrap();
            let asked = AtomicUsize::new(0);
            let go_on = Mutex::new(Some(go_on));
            let waits = || {
                // Only now does the first go on.
                if asked.fetch_add(1, Ordering::SeqCst) == 1 {
                    let _ = go_on.lock().take().map(|go_on| go_on.send(()));
                }
                Ok(())
            };
            let second = MODELS.get(&folder(), 0, &waits, |_| Ok(2)).unwrap();
            let first = first.join().ok().flatten();
            match broken {
                None => assert!(Arc::ptr_eq(&first.unwrap(), &second)),
                Some(_) => assert_eq!((first.is_none(), *second.model), (true, 2)),
            }
        }
    }
}
