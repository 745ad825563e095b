//! Files that appear whole or not at all, and locks.

use std::collections::BTreeSet;
use std::ffi::CString;
use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::{Mutex, MutexGuard};

use super::companion::EXTENSION;
use crate::error::{Error, Result};

/// What is to be removed if the process ends before it is done.
static TEMPORARY: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());

/// Removes all that builds under way have written, and keeps them from writing more. To be called right before the
/// process ends; nothing in this module returns any more.
pub fn abandon() {
    let temporary = TEMPORARY.lock();
    for path in temporary.iter() {
        let _ = std::fs::remove_file(path);
        let _ = std::fs::remove_dir_all(path);
    }
    // Whoever is about to rename a file waits for this lock until the process is gone.
    MutexGuard::leak(temporary);
}

/// A file or folder that goes when this is dropped, unless it is kept.
struct Temporary(PathBuf);

impl Temporary {
    /// Notes that `path` is about to be made.
    fn new(path: PathBuf) -> Self {
        TEMPORARY.lock().insert(path.clone());
        Self(path)
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if TEMPORARY.lock().remove(&self.0) {
            let _ = std::fs::remove_file(&self.0);
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }
}

/// A folder for the time of a build.
pub struct WorkFolder {
    temporary: Temporary,
    /// Locked, so that nobody takes it for a leftover.
    _open: Option<File>,
}

impl WorkFolder {
    pub(super) fn new(parent: &Path) -> Result<Self> {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = parent.join(format!(".build-{}-{count}.part", std::process::id()));
        // One that a killed process of the same number left.
        let _ = std::fs::remove_dir_all(&path);
        let temporary = Temporary::new(path);
        let path = &temporary.0;
        let made = DirBuilder::new().mode(0o700).create(path);
        made.map_err(|e| unwritable(path, &e))?;
        let open = File::open(path).ok();
        let _open = open.filter(|open| open.try_lock().is_ok());
        Ok(Self { temporary, _open })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.temporary.0
    }
}

fn unwritable(path: &Path, e: &std::io::Error) -> Error {
    Error::not_found(path, format!("cannot be written: {e}"))
}

/// Makes the folder, for the user alone.
pub(super) fn make_folder(path: &Path) -> Result<()> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.map_err(|e| {
        Error::not_found(
            path,
            format!("cannot be made, for the built engines: {e}; another folder can be named"),
        )
    })
}

/// The lock file at `path`, locked; `None` if someone else has it.
pub(super) fn try_lock(path: &Path) -> Result<Option<File>> {
    let mut options = OpenOptions::new();
    options.write(true).create(true).mode(0o600);
    let options = options.custom_flags(libc::O_NOFOLLOW | libc::O_CLOEXEC);
    loop {
        let file = options.open(path).map_err(|e| unwritable(path, &e))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Ok(None),
            Err(TryLockError::Error(e)) => {
                return Err(Error::not_found(path, format!("cannot be locked: {e}")));
            }
        }
        // Whoever had it may have removed the file, and a third may hold the new one.
        let same = match (file.metadata(), std::fs::metadata(path)) {
            (Ok(ours), Ok(there)) => (ours.dev(), ours.ino()) == (there.dev(), there.ino()),
            _ => false,
        };
        if same {
            return Ok(Some(file));
        }
    }
}

/// Removes what a build that was killed has left at `path`; an error if it is not over.
pub(super) fn remove_left(path: &Path) -> Result<()> {
    let open = File::open(path).map_err(|e| unwritable(path, &e))?;
    if let Err(TryLockError::WouldBlock) = open.try_lock() {
        return Err(Error::invalid(path, "is in use by a build"));
    }
    let removed = match path.is_dir() {
        true => std::fs::remove_dir_all(path),
        false => std::fs::remove_file(path),
    };
    removed.map_err(|e| Error::not_found(path, format!("cannot be removed: {e}")))
}

/// Removes what builds of `stem` that were killed have left. The caller holds its lock.
pub(super) fn remove_parts(folder: &Path, stem: &str) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let Some(name) = name.to_str() else { continue };
        if name.ends_with(".part") && name.starts_with(&format!(".{stem}.")) {
            let _ = std::fs::remove_file(entry.path());
        }
    }
}

/// Removes what belongs to the engine at `engine` on single GPUs. The caller holds its lock.
pub(super) fn remove_companions(engine: &Path) {
    let (Some(folder), Some(stem)) = (engine.parent(), engine.file_stem()) else {
        return;
    };
    let stem = format!("{}.", stem.to_string_lossy());
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        let name = entry.file_name();
        if path.extension().is_some_and(|e| e == EXTENSION)
            && name.to_str().is_some_and(|name| name.starts_with(&stem))
        {
            let _ = std::fs::remove_file(path);
        }
    }
}

/// An error unless `folder` has room for `bytes` more.
pub(super) fn check_room(folder: &Path, bytes: u64) -> Result<()> {
    match free(folder) {
        Some(free) if free < bytes => Err(Error::not_found(
            folder,
            format!(
                "has too little room: {} MiB are free, {} MiB may be needed",
                free >> 20,
                bytes.div_ceil(1 << 20)
            ),
        )),
        // Where it cannot be told, writing will.
        _ => Ok(()),
    }
}

/// Bytes that the user may still write in `folder`.
#[allow(clippy::unnecessary_cast)]
pub fn free(folder: &Path) -> Option<u64> {
    let path = CString::new(folder.as_os_str().as_bytes()).ok()?;
    // SAFETY: all-zero is a valid value of this plain C struct; path and struct outlive the call.
    let info = unsafe {
        let mut info: libc::statvfs = std::mem::zeroed();
        (libc::statvfs(path.as_ptr(), &mut info) == 0).then_some(info)
    }?;
    // The fields' types differ between platforms.
    Some((info.f_bavail as u64).saturating_mul(info.f_frsize as u64))
}

/// Puts an engine at `path` and its record beside it. Whatever happens, there is the old pair, the new one, or none.
pub(super) fn store(path: &Path, engine: &[u8], record: &[u8]) -> Result<()> {
    let (folder, stem) = (
        path.parent().unwrap_or(Path::new("")),
        path.file_stem().unwrap_or_default().to_string_lossy(),
    );
    let part = |what| {
        let name = format!(".{stem}.{}.{what}.part", std::process::id());
        Temporary::new(folder.join(name))
    };
    let record_path = path.with_extension("toml");
    let (new_engine, new_record) = (part("engine"), part("toml"));
    // Open and locked until they have their names, so that nobody takes them for leftovers.
    let _engine = write(&new_engine.0, engine)?;
    let _record = write(&new_record.0, record)?;
    let mut temporary = TEMPORARY.lock();
    let renamed = match std::fs::remove_file(&record_path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(e),
        _ => std::fs::rename(&new_engine.0, path),
    };
    renamed.map_err(|e| unwritable(path, &e))?;
    temporary.remove(&new_engine.0);
    // Last: it makes the engine whole.
    std::fs::rename(&new_record.0, &record_path).map_err(|e| unwritable(&record_path, &e))?;
    temporary.remove(&new_record.0);
    drop(temporary);
    // So that the names outlast a loss of power too; a file system that cannot do it has said so nowhere before.
    let _ = File::open(folder).and_then(|folder| folder.sync_all());
    Ok(())
}

/// Puts `content` at `path` in place of what is there, whole or not at all. For files that are no engines.
pub(super) fn replace(path: &Path, content: &[u8]) -> std::io::Result<()> {
    static COUNT: AtomicUsize = AtomicUsize::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    // No two threads or processes that write the same file get in each other's way.
    let part = format!(".{name}.{}-{count}.part", std::process::id());
    let part = Temporary::new(path.with_file_name(part));
    let _open = write_new(&part.0, content)?;
    let mut temporary = TEMPORARY.lock();
    std::fs::rename(&part.0, path)?;
    temporary.remove(&part.0);
    Ok(())
}

fn write(path: &Path, content: &[u8]) -> Result<File> {
    write_new(path, content).map_err(|e| unwritable(path, &e))
}

/// Writes a new file, for the user alone. It is locked as long as it is open.
pub(super) fn write_new(path: &Path, content: &[u8]) -> std::io::Result<File> {
    // One that a killed process of the same number left.
    let _ = std::fs::remove_file(path);
    let mut options = OpenOptions::new();
    let mut file = options
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?;
    file.lock()?;
    file.write_all(content)?;
    file.sync_all()?;
    Ok(file)
}
