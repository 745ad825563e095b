//! Whether the files of a model folder are the ones that its export wrote.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use gststreamdiffusion::error::Error;
use gststreamdiffusion::model::Export;
use sha2::{Digest, Sha256};

use crate::progress::Progress;

/// Reads all files that `export` lists and tells which differ; none if all are as they were written.
pub fn verify(folder: &Path, export: &Export) -> Vec<Error> {
    let size = |name: &String| std::fs::metadata(folder.join(name)).map_or(0, |meta| meta.len());
    let total = export.files.keys().map(size).sum();
    let mut progress = Progress::new(total);
    let mut done = 0;
    let mut wrong = Vec::new();
    for (name, expected) in &export.files {
        let path = folder.join(name);
        if !path.exists() {
            // Looking at the folder has told that already.
            continue;
        }
        let mut tell = |bytes: usize| {
            done += bytes as u64;
            progress.show(done, name);
        };
        match hash(&path, &mut tell) {
            Ok(found) if found.eq_ignore_ascii_case(expected) => {}
            Ok(found) => wrong.push(Error::invalid(
                &path,
                format!(
                    "is not the file that was exported: its SHA-256 is {found}, expected {expected}; fetch or export it again"
                ),
            )),
            Err(error) => {
                wrong.push(Error::not_found(&path, format!("cannot be read: {error}")));
            }
        }
    }
    wrong
}

/// SHA-256 of a file, as hexadecimal digits.
fn hash(path: &Path, tell: &mut dyn FnMut(usize)) -> std::io::Result<String> {
    let mut file = File::open(path)?;
    if !file.metadata()?.is_file() {
        return Err(std::io::Error::other("expected a regular file"));
    }
    let mut hash = Sha256::new();
    let mut block = vec![0; 1 << 20];
    loop {
        let n = file.read(&mut block)?;
        if n == 0 {
            break;
        }
        hash.update(&block[..n]);
        tell(n);
    }
    Ok(hash.finalize().iter().map(|b| format!("{b:02x}")).collect())
}
