//! What is written about an engine.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::hashes::{self, Hashes};
use super::key::{Key, hexadecimal};
use crate::error::{Error, Result};

/// The version of the record's layout.
const FORMAT: u32 = 2;
/// The most bytes a record may have; the inputs of the largest U-Nets take some 20 KiB.
const LIMIT: u64 = 1 << 20;

/// What an engine is, as the file beside it says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    format: u32,
    /// Its size in bytes.
    pub size: u64,
    /// SHA-256 of its bytes, as hexadecimal digits.
    pub sha256: String,
    /// Where it came from, for people.
    pub made: Made,
    /// What it depends on.
    pub key: Key,
    /// The calls it was built for: of each quantity that its shapes follow from, the smallest and the largest. What they
    /// are called is the builder's business.
    #[serde(default)]
    pub serves: BTreeMap<String, (usize, usize)>,
}

/// Where an engine came from. Nothing is decided by it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Made {
    /// The model folder.
    pub model: String,
    /// When: date and time, UTC.
    pub at: String,
    /// How long it took.
    pub took_seconds: f64,
    /// The program, with version.
    pub by: String,
}

impl Record {
    /// The record of an engine.
    pub(in crate::engine) fn new(
        key: &Key,
        serves: &BTreeMap<String, (usize, usize)>,
        bytes: &[u8],
        made: Made,
    ) -> Self {
        Self {
            format: FORMAT,
            size: bytes.len() as u64,
            sha256: hexadecimal(&Sha256::digest(bytes)),
            made,
            key: key.clone(),
            serves: serves.clone(),
        }
    }

    /// As it goes to a file.
    pub(super) fn text(&self) -> Result<String> {
        let body = toml::to_string(self)
            .map_err(|e| Error::engine(&self.key.component, format!("its record: {e}")))?;
        Ok(format!(
            "# What the engine beside this file is. Written by streamdiffusion, and read before the engine is used.\n\n{body}"
        ))
    }

    /// Reads one from `file`, which is at `path`.
    pub(super) fn read(file: File, path: &Path) -> Result<Self> {
        let mut text = String::new();
        let failed = |e: std::io::Error| Error::invalid(path, format!("cannot be read: {e}"));
        file.take(LIMIT + 1)
            .read_to_string(&mut text)
            .map_err(failed)?;
        let stranger = |what: String| {
            Error::invalid(
                path,
                format!(
                    "is not a record that this version wrote: {what}; remove it with \"streamdiffusion engines prune\", and build the engine again"
                ),
            )
        };
        if text.len() as u64 > LIMIT {
            return Err(stranger(format!("it is larger than {LIMIT} bytes")));
        }
        // The version first: other versions may have other fields.
        let table: toml::Table = text
            .parse()
            .map_err(|e: toml::de::Error| stranger(e.message().to_owned()))?;
        let format = table.get("format").and_then(toml::Value::as_integer);
        if format != Some(i64::from(FORMAT)) {
            let found = format.map_or("none".into(), |f| f.to_string());
            return Err(stranger(format!(
                "its format is {found}, expected {FORMAT}"
            )));
        }
        let record: Self = table
            .try_into()
            .map_err(|e: toml::de::Error| stranger(e.message().to_owned()))?;
        Ok(record)
    }

    /// Reads the engine from `file`, which is at `path`, and checks that it is the one that was written; its bytes if
    /// `keep`. Where `hashes` has noted that this very file has the right hash and it has not changed since, which only its
    /// owner can bring about unseen, it is not hashed again.
    pub(super) fn check_content(
        &self,
        mut file: File,
        path: &Path,
        keep: bool,
        hashes: Option<&mut Hashes>,
    ) -> Result<Vec<u8>> {
        let failed = |e: std::io::Error| Error::not_found(path, format!("cannot be read: {e}"));
        let wrong = |what: String| {
            Error::invalid(
                path,
                format!("is not the engine that was built: {what}; build it again"),
            )
        };
        let before = file.metadata().map_err(failed)?;
        let size = before.len();
        let known = |hashes: &&mut Hashes| hashes.knows(path, &before, &self.sha256);
        let known = hashes.as_ref().is_some_and(known);
        if size != self.size {
            return Err(wrong(format!(
                "it has {size} bytes, expected {}",
                self.size
            )));
        }
        let mut hash = Sha256::new();
        let mut bytes = Vec::new();
        if keep {
            bytes.try_reserve_exact(size as usize).map_err(|_| {
                Error::engine(
                    &self.key.component,
                    format!("no memory for the engine of {size} bytes"),
                )
            })?;
        }
        let mut block = vec![0; 1 << 20];
        let mut left = size;
        while left > 0 {
            let most = left.min(block.len() as u64) as usize;
            let n = file.read(&mut block[..most]).map_err(failed)?;
            if n == 0 {
                break;
            }
            left -= n as u64;
            if !known {
                hash.update(&block[..n]);
            }
            if keep {
                // What was hashed is what is used, whatever happens to the file.
                bytes.extend_from_slice(&block[..n]);
            }
        }
        let after = file.metadata().map_err(failed)?;
        if known {
            return match left == 0 && hashes::same(&before, &after) {
                true => Ok(bytes),
                false => Err(wrong("it changed while it was read".into())),
            };
        }
        let found = hexadecimal(&hash.finalize());
        if left > 0 || found != self.sha256 {
            return Err(wrong(format!(
                "its SHA-256 is {found}, expected {}",
                self.sha256
            )));
        }
        if let Some(hashes) = hashes {
            hashes.note(path, &before, &after, &self.sha256);
        }
        Ok(bytes)
    }
}

/// Date and time, UTC, as RFC 3339 has it.
pub(super) fn timestamp(time: SystemTime) -> String {
    let seconds = time.duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    // Years that begin in March put the leap day last; 400 of them have 146,097 days.
    let shifted = days + 719_468;
    let (era, day) = (shifted / 146_097, shifted % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let of_year = day - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    let of_month = of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = era * 400 + year + u64::from(month <= 2);
    let (h, m, s) = (rest / 3600, rest / 60 % 60, rest % 60);
    format!("{year:04}-{month:02}-{of_month:02}T{h:02}:{m:02}:{s:02}Z")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// Checked with `date -u -d @N`.
    #[test]
    fn times_are_dates() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_399, "2000-02-28T23:59:59Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (951_868_800, "2000-03-01T00:00:00Z"),
            (1_709_164_800, "2024-02-29T00:00:00Z"),
            (1_767_225_599, "2025-12-31T23:59:59Z"),
            (4_107_542_399, "2100-02-28T23:59:59Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
        ] {
            assert_eq!(timestamp(UNIX_EPOCH + Duration::from_secs(seconds)), text);
        }
    }
}
