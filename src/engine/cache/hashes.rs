//! Hashes of files: a component's, and engines. They have gigabytes, so what was hashed is noted, with what tells whether
//! the file is still the same.

use std::collections::BTreeMap;
use std::fs::{File, Metadata};
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::key::hexadecimal;
use super::{Cache, trust};
use crate::error::{Error, Result};
use crate::model::ComponentFile;

/// The file that the notes are in, in the folder of the engines.
const NAME: &str = "sources.toml";
/// The most notes that are kept.
const NOTES: usize = 256;
/// A file that changed this short a time before it was hashed is not noted: it could change again without looking so.
const SETTLED_NS: i128 = 2_000_000_000;

/// What tells whether a file is the one that was hashed. A write changes the change time, which nobody can set.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Note {
    size: u64,
    inode: u64,
    device: u64,
    modified_ns: String,
    changed_ns: String,
    sha256: String,
}

impl Note {
    fn new(meta: &Metadata, sha256: String) -> Self {
        Self {
            size: meta.size(),
            inode: meta.ino(),
            device: meta.dev(),
            modified_ns: nanoseconds(meta.mtime(), meta.mtime_nsec()).to_string(),
            changed_ns: nanoseconds(meta.ctime(), meta.ctime_nsec()).to_string(),
            sha256,
        }
    }
}

fn nanoseconds(seconds: i64, rest: i64) -> i128 {
    i128::from(seconds) * 1_000_000_000 + i128::from(rest)
}

/// Whether both are of one file in one state.
pub fn same(a: &Metadata, b: &Metadata) -> bool {
    Note::new(a, String::new()) == Note::new(b, String::new())
}

/// What a file is noted as.
fn name_of(path: &Path) -> String {
    let name = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    name.to_string_lossy().into_owned()
}

/// Whether `path` is the file of the notes.
pub(super) fn is_of_ours(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name == NAME)
}

/// Hashes of files, those known from before included.
#[derive(Debug)]
pub struct Hashes {
    path: PathBuf,
    notes: BTreeMap<String, Note>,
    changed: bool,
}

impl Hashes {
    /// Those that are noted in the folder of `cache`. Notes that cannot be read or trusted are none.
    pub fn open(cache: &Cache) -> Self {
        let path = cache.folder().join(NAME);
        let read = || {
            trust::check_folder(cache.folder()).ok()?;
            let mut text = String::new();
            let file = trust::open(&path).ok()??;
            file.take(1 << 20).read_to_string(&mut text).ok()?;
            toml::from_str(&text).ok()
        };
        Self {
            notes: read().unwrap_or_default(),
            path,
            changed: false,
        }
    }

    /// SHA-256 over all files of a component: its graph, then those that its weights are in, by name. `tell` is given
    /// the bytes that were read.
    ///
    /// # Errors
    /// [`Error::NotFound`] if one cannot be read.
    pub fn component(&mut self, file: &ComponentFile, tell: &mut dyn FnMut(u64)) -> Result<String> {
        let folder = file.path.parent().unwrap_or(Path::new(""));
        let mut others: Vec<&PathBuf> = file.graph.external_files.iter().collect();
        others.sort();
        let mut all = Sha256::new();
        for path in [&file.path].into_iter().chain(others) {
            // As the graph names it, so that a folder may be moved.
            let name = path.strip_prefix(folder).unwrap_or(path);
            let name = name.to_string_lossy();
            all.update((name.len() as u64).to_le_bytes());
            all.update(name.as_bytes());
            all.update(self.file(path, tell)?);
        }
        Ok(hexadecimal(&all.finalize()))
    }

    /// SHA-256 of a file, as hexadecimal digits.
    fn file(&mut self, path: &Path, tell: &mut dyn FnMut(u64)) -> Result<String> {
        let failed = |e: std::io::Error| Error::not_found(path, format!("cannot be read: {e}"));
        let mut file = File::open(path).map_err(failed)?;
        let meta = file.metadata().map_err(failed)?;
        if !meta.is_file() {
            return Err(Error::invalid(path, "expected a regular file"));
        }
        if let Some(note) = self.notes.get(&name_of(path))
            && *note == Note::new(&meta, note.sha256.clone())
        {
            tell(meta.size());
            return Ok(note.sha256.clone());
        }
        let mut hash = Sha256::new();
        let mut block = vec![0; 1 << 20];
        loop {
            let n = file.read(&mut block).map_err(failed)?;
            if n == 0 {
                break;
            }
            hash.update(&block[..n]);
            tell(n as u64);
        }
        let sha256 = hexadecimal(&hash.finalize());
        let after = file.metadata().map_err(failed)?;
        self.note(path, &meta, &after, &sha256);
        Ok(sha256)
    }

    /// Whether the file at `path`, which is open and has `meta`, is noted as having this hash and has not changed since.
    pub(super) fn knows(&self, path: &Path, meta: &Metadata, sha256: &str) -> bool {
        let note = self.notes.get(&name_of(path));
        note.is_some_and(|note| *note == Note::new(meta, sha256.to_owned()))
    }

    /// Notes the hash of the file at `path`, which was `before` when it began to be read and `after` then, unless it may
    /// have changed meanwhile, or could change now without looking so.
    pub(super) fn note(&mut self, path: &Path, before: &Metadata, after: &Metadata, sha256: &str) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let now = now.map_or(0, |d| d.as_nanos() as i128);
        let changed = nanoseconds(after.ctime(), after.ctime_nsec());
        if same(before, after) && now - changed > SETTLED_NS {
            if self.notes.len() >= NOTES {
                self.notes.clear();
            }
            let note = Note::new(after, sha256.to_owned());
            self.notes.insert(name_of(path), note);
            self.changed = true;
        }
    }

    /// Notes what was hashed since. Where that cannot be written, files are hashed again the next time.
    pub fn save(&mut self) {
        if !std::mem::take(&mut self.changed) {
            return;
        }
        let Ok(text) = toml::to_string(&self.notes) else {
            return;
        };
        let _ = super::files::replace(&self.path, text.as_bytes());
    }
}
