//! Loaded models, shared by everything in the process that wants the same one.

use std::collections::HashMap;
use std::fs::Metadata;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock, Mutex, PoisonError, Weak};
use std::time::SystemTime;

use super::onnxruntime::OnnxModel;
use crate::error::{Error, Result};
use crate::model::{Component, ModelFolder};

/// A model folder and its components, ready to run.
pub struct Loaded {
    /// What the folder says.
    pub folder: ModelFolder,
    /// Its components.
    pub model: Arc<OnnxModel>,
}

/// A folder in one state of its files: a folder that was changed is another model.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Key {
    path: PathBuf,
    files: Vec<(PathBuf, u64, Option<SystemTime>)>,
}

/// Held while its model loads, so that whoever wants the same one waits for it, and nobody else does.
type Slot = Arc<Mutex<Weak<Loaded>>>;

static MODELS: LazyLock<Mutex<HashMap<Key, Slot>>> = LazyLock::new(Mutex::default);

/// The model in the folder at `path`: the one in use elsewhere in the process if there is one, else loaded now, which
/// takes seconds for a big one. It is unloaded when its last user drops it. Failures are not remembered.
pub fn load(path: &Path) -> Result<Arc<Loaded>> {
    let key = key(path)?;
    let slot = {
        let mut models = MODELS.lock().unwrap_or_else(PoisonError::into_inner);
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
    let model = Arc::new(OnnxModel::open(&folder)?);
    let new = Arc::new(Loaded { folder, model });
    *loaded = Arc::downgrade(&new);
    Ok(new)
}

fn key(path: &Path) -> Result<Key> {
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
    })
}

/// Notes the files in `folder`, not those in folders below it. What cannot be read is for loading to complain about.
fn list(folder: &Path, files: &mut Vec<(PathBuf, u64, Option<SystemTime>)>) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        // Follows links, as loading does: download caches keep the files elsewhere.
        let path = entry.path();
        if let Some(meta) = std::fs::metadata(&path).ok().filter(Metadata::is_file) {
            files.push((path, meta.len(), meta.modified().ok()));
        }
    }
}
