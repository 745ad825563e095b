//! Built engines, kept on disk.
//!
//! An engine is found by its [`Key`], all that it depends on; with anything else it is another engine, so none is ever
//! used for what it was not built for. Beside each lies a *record* (`.toml`) that says what it is. An engine is code, so
//! it is used only if it and the folder belong to the user (or to root), nobody else may write them, and its content has
//! the hash that the record gives. The record is written last: without one, an engine is not whole.
//!
//! Whoever builds an engine holds its lock; others who want the same one wait for it.

mod companion;
mod files;
mod hashes;
mod key;
mod record;
mod trust;

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

pub use companion::Companion;
pub use files::{WorkFolder, abandon, free};
pub use hashes::{Hashes, same as same_file};
pub use key::Key;
pub use record::{Made, Record};

use crate::error::{Error, Result};

/// The environment variable that names the folder of built engines.
pub const VARIABLE: &str = "GST_STREAMDIFFUSION_ENGINES";
/// How long to wait between two looks at a lock.
const PAUSE: Duration = Duration::from_millis(100);

/// A folder of built engines. It need not exist.
#[derive(Debug, Clone)]
pub struct Cache {
    folder: PathBuf,
}

/// An engine from the cache, checked.
#[derive(Debug)]
pub struct Cached {
    /// Its bytes, as the builder gave them.
    pub bytes: Vec<u8>,
    /// What it is.
    pub record: Record,
    /// Where it is.
    pub path: PathBuf,
}

/// How [`Cache::build`] came by an engine.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// It was there, and is as it was written.
    Present(Record),
    /// It was built now.
    Built {
        /// What was written about it.
        record: Record,
        /// Why it had to be.
        why: String,
    },
}

/// What a build needs beside the engine's bytes.
#[derive(Debug)]
pub struct Order<'a> {
    /// What the engine depends on.
    pub key: &'a Key,
    /// The model folder, for people.
    pub model: &'a Path,
    /// Bytes that the engine may take, to see whether there is room for them.
    pub room: u64,
    /// The calls it is for, as [`Record::serves`] has them.
    pub serves: BTreeMap<String, (usize, usize)>,
}

/// An entry of the folder.
#[derive(Debug)]
pub struct Entry {
    /// The engine, or what is left of one.
    pub path: PathBuf,
    /// Its size in bytes.
    pub size: u64,
    /// Its record, or why it cannot be used.
    pub record: Result<Record>,
}

impl Cache {
    /// The cache in `folder`, which need not exist; else where the environment says, else in the user's cache folder.
    ///
    /// # Errors
    /// [`Error::Library`] if nothing says where.
    pub fn new(folder: Option<&Path>) -> Result<Self> {
        let named = |variable| std::env::var_os(variable).filter(|v| !v.is_empty());
        let folder = match (folder, named(VARIABLE)) {
            (Some(folder), _) => folder.to_owned(),
            (None, Some(folder)) => PathBuf::from(folder),
            (None, None) => {
                // By the XDG base directory specification a relative path in it does not count.
                let xdg = named("XDG_CACHE_HOME").map(PathBuf::from);
                let xdg = xdg.filter(|path| path.is_absolute());
                let base = xdg.or_else(|| Some(PathBuf::from(named("HOME")?).join(".cache")));
                base.ok_or_else(|| {
                    Error::Library(format!(
                        "no folder for built engines: expected HOME, XDG_CACHE_HOME or {VARIABLE} in the environment"
                    ))
                })?
                .join("gst-plugin-streamdiffusion/engines")
            }
        };
        let folder = std::path::absolute(&folder).unwrap_or(folder);
        Ok(Self { folder })
    }

    /// Where it is.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Where the engine of `key` is, or would be.
    pub fn path(&self, key: &Key) -> PathBuf {
        self.folder.join(format!("{}.engine", key.stem()))
    }

    /// The engine of `key`, read and checked. One that was hashed before and has not changed since is not hashed again.
    ///
    /// # Errors
    /// [`Error::NotFound`] if there is none, with the reason as far as there is one; [`Error::Invalid`] if what is there
    /// must not be used.
    pub fn load(&self, key: &Key) -> Result<Cached> {
        let path = self.path(key);
        let mut hashes = Hashes::open(self);
        let found = self.check(&path, key, true, Some(&mut hashes))?;
        hashes.save();
        match found {
            Some((record, bytes)) => Ok(Cached {
                bytes,
                record,
                path,
            }),
            None => Err(Error::not_found(&path, self.why_missing(key))),
        }
    }

    /// Whether the engine of `key` is there and as it was written. Reads all of it.
    ///
    /// # Errors
    /// [`Error::Invalid`] if what is there must not be used.
    pub fn holds(&self, key: &Key) -> Result<bool> {
        Ok(self.check(&self.path(key), key, false, None)?.is_some())
    }

    /// Why there is no engine of `key`: how the one that is nearest to it differs.
    pub fn why_missing(&self, key: &Key) -> String {
        let records = self.entries().unwrap_or_default();
        let records = records.into_iter().filter_map(|entry| entry.record.ok());
        let nearest = records
            .map(|record| record.key.differences(key))
            .filter(|differences| !differences.is_empty() && key.is_of_its_kind(differences))
            .min_by_key(Vec::len);
        match nearest {
            None => "no engine for it has been built".into(),
            Some(differences) => {
                format!(
                    "the engine that was built is another one: {}",
                    differences.join("; ")
                )
            }
        }
    }

    /// The engine of `order`, built by `make` unless it is there. Whoever comes second waits for the first; `waits` is
    /// asked meanwhile, again and again, and an error that it gives ends the wait.
    ///
    /// # Errors
    /// What `make` and `waits` give; [`Error::Invalid`] if the folder is not the user's alone, [`Error::NotFound`] if it
    /// cannot be written or there is too little room.
    pub fn build<B: AsRef<[u8]>>(
        &self,
        order: &Order,
        mut waits: impl FnMut() -> Result<()>,
        make: impl FnOnce() -> Result<B>,
    ) -> Result<Outcome> {
        files::make_folder(&self.folder)?;
        trust::check_folder(&self.folder)?;
        let key = order.key;
        let path = self.path(key);
        // What is there needs no lock, which a folder that only an administrator can write would not give.
        if let Ok(Some((record, _))) = self.check(&path, key, false, None) {
            return Ok(Outcome::Present(record));
        }
        let _lock = self.lock(key, &mut waits)?;
        let why = match self.check(&path, key, false, None) {
            Ok(Some((record, _))) => return Ok(Outcome::Present(record)),
            Ok(None) => self.why_missing(key),
            Err(error) => error.to_string(),
        };
        files::remove_parts(&self.folder, &key.stem());
        files::remove_companions(&path);
        files::check_room(&self.folder, order.room)?;
        let start = Instant::now();
        let bytes = make()?;
        let record = Record::new(
            key,
            &order.serves,
            bytes.as_ref(),
            Made {
                model: order.model.display().to_string(),
                at: record::timestamp(SystemTime::now()),
                took_seconds: (start.elapsed().as_secs_f64() * 10.0).round() / 10.0,
                by: concat!(env!("CARGO_PKG_NAME"), " ", env!("CARGO_PKG_VERSION")).into(),
            },
        );
        files::store(&path, bytes.as_ref(), record.text()?.as_bytes())?;
        Ok(Outcome::Built { record, why })
    }

    /// A folder for the time of a build, gone when it is dropped.
    pub fn work_folder(&self) -> Result<WorkFolder> {
        files::make_folder(&self.folder)?;
        WorkFolder::new(&self.folder)
    }

    /// All that is in the folder, by name; nothing if there is no folder. Reads no engine.
    pub fn entries(&self) -> Result<Vec<Entry>> {
        let listing = match std::fs::read_dir(&self.folder) {
            Ok(listing) => listing,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => {
                return Err(Error::not_found(
                    &self.folder,
                    format!("cannot be read: {e}"),
                ));
            }
        };
        let mut paths: Vec<_> = listing.flatten().map(|entry| entry.path()).collect();
        paths.sort();
        let is = |path: &Path, extension: &str| path.extension().is_some_and(|e| e == extension);
        let size = |path: &Path| std::fs::symlink_metadata(path).map_or(0, |meta| meta.len());
        let mut entries = Vec::new();
        for path in paths {
            if is(&path, "engine") {
                entries.push(Entry {
                    size: size(&path),
                    record: self.record(&path),
                    path,
                });
            } else if is(&path, "part")
                || (is(&path, "toml")
                    && !hashes::is_of_ours(&path)
                    && !path.with_extension("engine").exists())
            {
                entries.push(Entry {
                    size: size(&path),
                    record: Err(Error::invalid(&path, "is left from a build that was ended")),
                    path,
                });
            }
        }
        Ok(entries)
    }

    /// Checks the engine at `path` against its record. Reads all of it.
    ///
    /// # Errors
    /// [`Error::Invalid`] says why it must not be used.
    pub fn verify(&self, path: &Path) -> Result<Record> {
        let record = self.record(path)?;
        match self.check(path, &record.key, false, None)? {
            Some((record, _)) => Ok(record),
            None => Err(Error::not_found(path, "is gone")),
        }
    }

    /// Removes an engine and its record, or what is left of one, unless it is being built now.
    pub fn remove(&self, path: &Path) -> Result<()> {
        if path.extension().is_some_and(|e| e == "part") {
            return files::remove_left(path);
        }
        let lock = path.with_extension("lock");
        let _held = match files::try_lock(&lock)? {
            Some(held) => held,
            None => return Err(Error::invalid(path, "is being built by another process")),
        };
        files::remove_companions(path);
        // The record first: an engine without one is not whole.
        for path in [&path.with_extension("toml"), path] {
            match std::fs::remove_file(path) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                    return Err(Error::not_found(path, format!("cannot be removed: {e}")));
                }
                _ => {}
            }
        }
        let _ = std::fs::remove_file(lock);
        Ok(())
    }

    /// The record of the engine at `path`.
    fn record(&self, path: &Path) -> Result<Record> {
        trust::check_folder(&self.folder)?;
        let record = path.with_extension("toml");
        let file = match trust::open(&record)? {
            Some(file) => file,
            None => {
                return Err(Error::invalid(
                    path,
                    "has no record beside it, as if its build had been ended",
                ));
            }
        };
        Record::read(file, &record)
    }

    /// The record, and the bytes if `keep`, of the engine of `key` at `path`; `None` if there is nothing, or no whole one.
    /// With `hashes`, what is noted there need not be hashed again.
    fn check(
        &self,
        path: &Path,
        key: &Key,
        keep: bool,
        hashes: Option<&mut Hashes>,
    ) -> Result<Option<(Record, Vec<u8>)>> {
        if !self.folder.exists() {
            return Ok(None);
        }
        trust::check_folder(&self.folder)?;
        let record = path.with_extension("toml");
        let (Some(engine), Some(file)) = (trust::open(path)?, trust::open(&record)?) else {
            return Ok(None);
        };
        let found = Record::read(file, &record)?;
        let differences = found.key.differences(key);
        if !differences.is_empty() {
            return Err(Error::invalid(
                &record,
                format!("is of another engine: {}", differences.join("; ")),
            ));
        }
        let bytes = found.check_content(engine, path, keep, hashes)?;
        Ok(Some((found, bytes)))
    }

    /// The lock of `key`, once nobody else has it.
    fn lock(&self, key: &Key, waits: &mut impl FnMut() -> Result<()>) -> Result<File> {
        let path = self.folder.join(format!("{}.lock", key.stem()));
        loop {
            if let Some(lock) = files::try_lock(&path)? {
                return Ok(lock);
            }
            waits()?;
            std::thread::sleep(PAUSE);
        }
    }
}
