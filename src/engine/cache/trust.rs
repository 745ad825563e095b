//! Whether a file may be run: an engine is code.

use std::fs::{File, Metadata, OpenOptions};
use std::io::ErrorKind;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use crate::error::{Error, Result};

/// Refuses the folder at `path` unless it is the user's, or root's, and nobody else may write it.
pub(super) fn check_folder(path: &Path) -> Result<()> {
    let meta = std::fs::metadata(path)
        .map_err(|e| Error::not_found(path, format!("cannot be opened: {e}")))?;
    if !meta.is_dir() {
        return Err(Error::invalid(
            path,
            "is no folder, expected that of built engines",
        ));
    }
    check(path, &meta)
}

/// Opens the regular file at `path` for reading, `None` if there is none; refuses it unless it is the user's, or root's,
/// and nobody else may write it.
pub(super) fn open(path: &Path) -> Result<Option<File>> {
    // A link could lead to a file of someone else; a pipe would block.
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_CLOEXEC;
    let file = match OpenOptions::new().read(true).custom_flags(flags).open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
        Err(e) if e.raw_os_error() == Some(libc::ELOOP) => {
            return Err(Error::invalid(
                path,
                "is a symbolic link, expected a regular file",
            ));
        }
        Err(e) => return Err(Error::not_found(path, format!("cannot be opened: {e}"))),
    };
    let failed = |e: std::io::Error| Error::not_found(path, format!("cannot be opened: {e}"));
    // Of the open file, not of the path, which may be another by now.
    let meta = file.metadata().map_err(failed)?;
    if !meta.is_file() {
        return Err(Error::invalid(path, "expected a regular file"));
    }
    check(path, &meta)?;
    Ok(Some(file))
}

fn check(path: &Path, meta: &Metadata) -> Result<()> {
    // SAFETY: takes nothing and cannot fail.
    let user = unsafe { libc::geteuid() };
    match refusal(user, meta.uid(), meta.mode()) {
        None => Ok(()),
        Some(what) => Err(Error::invalid(path, what)),
    }
}

/// Why what belongs to `owner` and has these permissions must not be run by `user`.
fn refusal(user: u32, owner: u32, mode: u32) -> Option<String> {
    if owner != user && owner != 0 {
        return Some(format!(
            "belongs to user {owner}, expected user {user} or root: engines of others are not run"
        ));
    }
    (mode & 0o022 != 0).then(|| {
        format!(
            "may be written by others (mode {:o}), expected by its owner only: such engines are not run; if you trust it, \"chmod go-w\" helps",
            mode & 0o7777
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_the_user_or_root_alone_can_write_is_run() {
        assert_eq!(refusal(1000, 1000, 0o100600), None);
        assert_eq!(refusal(1000, 1000, 0o100644), None);
        assert_eq!(refusal(1000, 0, 0o040755), None);
        assert_eq!(refusal(0, 0, 0o100600), None);
        for (user, owner, mode, part) in [
            (1000, 1001, 0o100600, "belongs to user 1001"),
            // Not even root runs what a user may have made.
            (0, 1000, 0o100600, "belongs to user 1000"),
            (1000, 1000, 0o100620, "mode 620"),
            (1000, 1000, 0o100602, "mode 602"),
            (1000, 0, 0o041777, "mode 1777"),
        ] {
            let text = refusal(user, owner, mode).unwrap();
            assert!(text.contains(part), "{text}");
        }
    }
}
