//! Ctrl-C: ends the program between two files, never within one.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use crate::failure::Failure;

/// Held while a file is written.
static WRITING: Mutex<()> = Mutex::new(());

/// Has SIGINT, SIGTERM and SIGHUP end the program as soon as no file is being written. To be called before there are other
/// threads, so that they leave these signals alone too.
pub fn watch() -> Result<(), Failure> {
    // SAFETY: all-zero is a valid value of this plain C type, which outlives the calls; they cannot fail with signals
    // that exist.
    let signals = unsafe {
        let mut signals: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut signals);
        for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
            libc::sigaddset(&mut signals, signal);
        }
        libc::pthread_sigmask(libc::SIG_BLOCK, &signals, std::ptr::null_mut());
        signals
    };
    std::thread::Builder::new()
        .name("signals".into())
        .spawn(move || {
            let mut signal = 0;
            // SAFETY: both outlive the call.
            while unsafe { libc::sigwait(&signals, &mut signal) } != 0 {}
            let _guard = WRITING.lock();
            // SAFETY: ends the process, no file is half written. `exit` would run the exit handlers of libraries whose
            // threads still compute.
            unsafe { libc::_exit(128 + signal) }
        })
        .map(|_| ())
        .map_err(|error| Failure::new(format!("no thread for signals: {error}")))
}

/// Writes `content` to `path`: whole, or not at all.
pub fn write(path: &Path, content: &[u8]) -> Result<(), Failure> {
    let _guard = WRITING.lock();
    let part = part(path);
    let written = File::create(&part)
        .and_then(|mut file| file.write_all(content).and_then(|()| file.sync_all()))
        .and_then(|()| std::fs::rename(&part, path));
    written.map_err(|error| {
        let _ = std::fs::remove_file(&part);
        Failure::new(format!("{} cannot be written: {error}", path.display()))
    })
}

/// The name under which a file is written before it gets its own, in the same folder.
fn part(path: &Path) -> PathBuf {
    let mut name = std::ffi::OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(format!(".{}.part", std::process::id()));
    path.with_file_name(name)
}
