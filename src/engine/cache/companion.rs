//! A file that goes with an engine on one kind of GPU.

use std::io::Read;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::{files, trust};
use crate::error::{Error, Result};

/// Bytes of the hash that the file begins with.
const HASH: usize = 32;
/// The most bytes it may have.
const LIMIT: u64 = 1 << 30;
/// What its name ends in.
pub(super) const EXTENSION: &str = "kernels";

/// Code that was made for an engine on one kind of GPU, in a file beside it. It is trusted as the engine is, and losing it
/// costs only the time to make it again.
#[derive(Debug)]
pub struct Companion(PathBuf);

impl Companion {
    /// That of the engine at `engine`, on a GPU of this name.
    pub fn new(engine: &Path, gpu: &str) -> Self {
        let plain = |c: char| if c.is_ascii_alphanumeric() { c } else { '-' };
        let gpu: String = gpu.chars().take(64).map(plain).collect();
        Self(engine.with_extension(format!("{gpu}.{EXTENSION}")))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Its content; `None` unless it is there, the user's alone, and as it was written.
    pub fn read(&self) -> Option<Vec<u8>> {
        trust::check_folder(self.0.parent()?).ok()?;
        let file = trust::open(&self.0).ok()??;
        let mut bytes = Vec::new();
        file.take(LIMIT).read_to_end(&mut bytes).ok()?;
        if bytes.len() < HASH {
            return None;
        }
        let content = bytes.split_off(HASH);
        (bytes[..] == Sha256::digest(&content)[..]).then_some(content)
    }

    /// Writes it, whole or not at all.
    pub fn write(&self, content: &[u8]) -> Result<()> {
        let failed = |e| Error::not_found(&self.0, format!("cannot be written: {e}"));
        trust::check_folder(self.0.parent().unwrap_or(Path::new("")))?;
        let mut bytes = Sha256::digest(content).to_vec();
        bytes.extend_from_slice(content);
        files::replace(&self.0, &bytes).map_err(failed)
    }
}
