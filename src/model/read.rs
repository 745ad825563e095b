//! Reading the small text files of a model folder: capped in size, errors that name the file.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use serde::de::DeserializeOwned;

use crate::error::{Error, Result};

/// The most bytes a configuration file may have.
pub(super) const CONFIG_LIMIT: u64 = 1 << 20;
/// The most bytes a vocabulary or tokenizer file may have.
pub(super) const VOCABULARY_LIMIT: u64 = 64 << 20;

/// The bytes of the regular file at `path`, `limit` at most.
pub(super) fn bytes(path: &Path, limit: u64) -> Result<Vec<u8>> {
    let failed = |e: std::io::Error| Error::not_found(path, format!("cannot be read: {e}"));
    let meta = std::fs::metadata(path).map_err(failed)?;
    if !meta.is_file() {
        return Err(Error::invalid(path, "expected a regular file"));
    }
    let mut data = Vec::new();
    // The size may grow between the two calls, so the limit is kept by the reader, not by the metadata.
    File::open(path)
        .and_then(|f| f.take(limit + 1).read_to_end(&mut data))
        .map_err(failed)?;
    if data.len() as u64 > limit {
        return Err(Error::invalid(
            path,
            format!("is larger than the {limit} bytes expected at most"),
        ));
    }
    Ok(data)
}

/// The UTF-8 text of the file at `path`.
pub(super) fn text(path: &Path, limit: u64) -> Result<String> {
    String::from_utf8(bytes(path, limit)?)
        .map_err(|e| Error::invalid(path, format!("expected UTF-8 text: {e}")))
}

/// The JSON document at `path`.
pub(super) fn json<T: DeserializeOwned>(path: &Path, limit: u64) -> Result<T> {
    serde_json::from_slice(&bytes(path, limit)?)
        .map_err(|e| Error::invalid(path, format!("not the JSON that was expected: {e}")))
}

/// The JSON document at `path`, or `T`'s default where there is no such file.
pub(super) fn json_or_default<T: DeserializeOwned + Default>(path: &Path, limit: u64) -> Result<T> {
    if path.exists() {
        json(path, limit)
    } else {
        Ok(T::default())
    }
}

/// Whether `path` is named as weights of PyTorch are.
pub(super) fn holds_weights(path: &Path) -> bool {
    let extension = path.extension().and_then(|e| e.to_str());
    extension.is_some_and(|e| {
        ["safetensors", "ckpt", "pt", "pth", "bin"].contains(&&*e.to_ascii_lowercase())
    })
}
