//! Where code was loaded from.

use std::path::{Path, PathBuf};

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

/// Whether `path`, a file or a folder, is `file` or the folder it is in, whatever links lead there.
pub fn names(path: &Path, file: &Path) -> bool {
    let file = file.canonicalize();
    let folder = file.as_deref().ok().and_then(Path::parent);
    match (path.canonicalize(), &file) {
        (Ok(path), Ok(file)) => path == *file || Some(path.as_path()) == folder,
        _ => false,
    }
}

/// The folders that count as "beside the plugin", and the folder `name` in each.
pub fn beside(name: &str) -> Vec<PathBuf> {
    let object = object();
    let mut folders = Vec::new();
    let mut add = |folder: Option<&Path>| {
        if let Some(folder) = folder {
            folders.push(folder.to_owned());
            folders.push(folder.join(name));
        }
    };
    let folder = object.as_deref().and_then(Path::parent);
    add(folder);
    let program = std::env::current_exe().and_then(|path| path.canonicalize());
    if (object.is_some() && object == program.ok())
        || folder.is_some_and(|folder| folder.ends_with("deps"))
    {
        // Linked into a program, as tests are, which cargo puts one folder below the plugin; or the plugin's own copy
        // there, which GStreamer may come upon first.
        add(folder.and_then(Path::parent));
    }
    if let Some(prefix) = folder.filter(|f| f.ends_with("bin")).and_then(Path::parent) {
        // The program that is installed with the plugin, which is in PREFIX/lib/gstreamer-1.0, PREFIX/lib64/gstreamer-1.0
        // or PREFIX/lib/TRIPLET/gstreamer-1.0.
        let lib = prefix.join("lib");
        let triplets = std::fs::read_dir(&lib).into_iter().flatten().flatten();
        let triplets = triplets.map(|entry| entry.path());
        for libraries in [lib.clone(), prefix.join("lib64")]
            .into_iter()
            .chain(triplets)
        {
            let plugins = libraries.join("gstreamer-1.0");
            if plugins.is_dir() {
                add(Some(&plugins));
            }
        }
    }
    folders
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_named_by_itself_its_folder_and_links() {
        let folder = std::env::temp_dir().join(format!("location-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let file = folder.join("lib.so.1");
        std::fs::write(&file, "").unwrap();
        let link = folder.join("lib.so");
        #[cfg(unix)]
        std::os::unix::fs::symlink("lib.so.1", &link).unwrap();
        assert!(names(&file, &file) && names(&folder, &file));
        #[cfg(unix)]
        assert!(names(&link, &file) && names(&file, &link));
        assert!(!names(&std::env::temp_dir(), &file));
        assert!(!names(&folder.join("other.so"), &file));
        std::fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn a_test_program_is_beside_itself() {
        let program = std::env::current_exe().unwrap();
        let folder = program.parent().unwrap();
        let beside = beside("onnxruntime");
        assert!(beside.contains(&folder.to_owned()), "{beside:?}");
        assert!(beside.contains(&folder.join("onnxruntime")));
        assert!(beside.contains(&folder.parent().unwrap().to_owned()));
    }
}
