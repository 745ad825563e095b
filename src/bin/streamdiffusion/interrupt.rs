//! Ctrl-C: ends the program between two files, never within one.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::sync::Mutex;

use crate::failure::Failure;

/// Held while a file is written.
static WRITING: Mutex<()> = Mutex::new(());

/// Has SIGINT, SIGTERM and SIGHUP end the program as soon as no file is being written; those that were ignored when it
/// was started, as `nohup` has it, stay ignored. To be called before there are other threads, so that they leave these
/// signals alone too.
pub fn watch() -> Result<(), Failure> {
    let watched = [libc::SIGINT, libc::SIGTERM, libc::SIGHUP];
    let watched: Vec<_> = watched.into_iter().filter(|s| !is_ignored(*s)).collect();
    if watched.is_empty() {
        return Ok(());
    }
    // SAFETY: all-zero is a valid value of this plain C type, which outlives the calls; they cannot fail with signals
    // that exist.
    let signals = unsafe {
        let mut signals: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut signals);
        for signal in watched {
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
            #[cfg(feature = "tensorrt")]
            gststreamdiffusion::engine::cache::abandon();
            // SAFETY: ends the process, no file is half written. `exit` would run the exit handlers of libraries whose
            // threads still compute.
            unsafe { libc::_exit(128 + signal) }
        })
        .map(|_| ())
        .map_err(|error| Failure::new(format!("no thread for signals: {error}")))
}

/// Whether `signal` was ignored when the program was started.
fn is_ignored(signal: libc::c_int) -> bool {
    // SAFETY: all-zero is a valid value of this plain C type, which outlives the call; with nothing to set, it only
    // looks.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        libc::sigaction(signal, std::ptr::null(), &mut action) == 0
            && action.sa_sigaction == libc::SIG_IGN
    }
}

/// Writes `content` to `path`: whole, or not at all.
pub fn write(path: &Path, content: &[u8]) -> Result<(), Failure> {
    let _guard = WRITING.lock();
    // In the same folder, so that it can be renamed; one name will do, as one file is written at a time.
    let part = path.with_file_name(format!(".streamdiffusion-{}.part", std::process::id()));
    // One that a killed process left behind.
    let _ = std::fs::remove_file(&part);
    let written = File::create_new(&part)
        .and_then(|mut file| file.write_all(content).and_then(|()| file.sync_all()))
        .and_then(|()| std::fs::rename(&part, path));
    written.map_err(|error| {
        let _ = std::fs::remove_file(&part);
        Failure::new(format!("{} cannot be written: {error}", path.display()))
    })
}
