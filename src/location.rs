//! Where code was loaded from.

use std::path::PathBuf;

/// The file this code is in: the plugin's shared object, or the program it is linked into.
pub fn object() -> Option<PathBuf> {
    // For a main program the loader may give a name as it was typed, which need not lead anywhere.
    object_of(object as *const ())
        .and_then(|path| path.canonicalize().ok())
        .or_else(|| std::env::current_exe().ok())
}

/// The file of the shared object or program that holds `address`, as the loader names it.
#[cfg(unix)]
pub fn object_of(address: *const ()) -> Option<PathBuf> {
    use std::ffi::{CStr, OsStr};
    use std::os::unix::ffi::OsStrExt;

    // SAFETY: all-zero is a valid value of this plain C struct.
    let mut info: libc::Dl_info = unsafe { std::mem::zeroed() };
    // SAFETY: any address may be asked about; `info` outlives the call.
    let known = unsafe { libc::dladdr(address.cast(), &mut info) } != 0;
    if !known || info.dli_fname.is_null() {
        return None;
    }
    // SAFETY: non-null means a null-terminated string that lives as long as the object is loaded, which it is.
    let name = unsafe { CStr::from_ptr(info.dli_fname) };
    Some(PathBuf::from(OsStr::from_bytes(name.to_bytes())))
}

/// There is no portable way to tell.
#[cfg(not(unix))]
pub fn object_of(_: *const ()) -> Option<PathBuf> {
    None
}
