//! libgstcuda, looked for at run time: the plugin must load where it is missing.
//!
//! The library calls itself unstable and has changed the arguments of a function under one name before
//! (`gst_cuda_allocator_alloc`, between 1.22 and 1.24, which is therefore not used here). The functions below are the
//! same from 1.22 to 1.28; what came later is optional.

use std::error::Error as _;
use std::ffi::{c_int, c_void};
use std::sync::OnceLock;

use gst::ffi::{GstBufferPool, GstMemory};
use gst::glib::ffi::{GType, gboolean};
use libloading::Library;

use crate::error::{Error, Result};

/// The library's file, as the system's loader knows it.
const NAME: &str = if cfg!(windows) {
    "gstcuda-1.0-0.dll"
} else {
    "libgstcuda-1.0.so.0"
};

/// A `GstCudaContext`, a GObject.
pub type RawContext = gst::ffi::GstObject;

/// Declares the table: functions that must be there, and those that came later.
macro_rules! table {
    (
        required { $($name:ident: $type:ty,)* }
        later { $($later:ident: $later_type:ty,)* }
    ) => {
        /// The library's functions, as its headers declare them.
        pub struct Functions {
            $(pub $name: $type,)*
            $(pub $later: Option<$later_type>,)*
        }

        impl Functions {
            /// Those of `library`, which stays open for ever: it registers types.
            fn of(library: &'static Library) -> std::result::Result<Self, String> {
                let mut missing = Vec::new();
                // SAFETY: the types are those of the headers of all versions that have the functions.
                $(let $name = unsafe { library.get::<$type>(stringify!($name)) };
                if $name.is_err() {
                    missing.push(stringify!($name));
                })*
                match ($($name,)*) {
                    ($(Ok($name),)*) => Ok(Self {
                        $($name: *$name,)*
                        // SAFETY: as above.
                        $($later: unsafe { library.get::<$later_type>(stringify!($later)) }
                            .ok()
                            .map(|function| *function),)*
                    }),
                    _ => Err(format!("it has no {}", missing.join(", "))),
                }
            }
        }
    };
}

table! {
    required {
        gst_cuda_load_library: unsafe extern "C" fn() -> gboolean,
        gst_cuda_memory_init_once: unsafe extern "C" fn(),
        gst_cuda_context_new_wrapped: unsafe extern "C" fn(*mut c_void, c_int) -> *mut RawContext,
        gst_cuda_context_get_handle: unsafe extern "C" fn(*mut RawContext) -> *mut c_void,
        gst_cuda_buffer_pool_get_type: unsafe extern "C" fn() -> GType,
        gst_cuda_buffer_pool_new: unsafe extern "C" fn(*mut RawContext) -> *mut GstBufferPool,
    }
    later {
        // 1.24: waits for what the memory's producer still has under way on its stream.
        gst_cuda_memory_sync: unsafe extern "C" fn(*mut GstMemory),
    }
}

impl Functions {
    /// The system's library, opened on first use. A failure is not remembered.
    ///
    /// # Errors
    /// [`Error::Library`] when it is missing or lacks a function.
    pub fn get() -> Result<&'static Self> {
        static FOUND: OnceLock<Functions> = OnceLock::new();
        if let Some(found) = FOUND.get() {
            return Ok(found);
        }
        let opened = Self::open(NAME)?;
        Ok(FOUND.get_or_init(|| opened))
    }

    /// The library in the file `name`.
    fn open(name: &str) -> Result<Self> {
        let failed = |what: String| {
            Error::Library(format!(
                "{NAME} (GStreamer's CUDA library, 1.22 or later, in Debian's libgstreamer-plugins-bad1.0-0): {what}"
            ))
        };
        // SAFETY: runs its initialisers, which register nothing and open no driver.
        let library = unsafe { Library::new(name) }.map_err(|e| {
            // The loader's own words: which library or symbol is missing.
            failed(
                e.source()
                    .map_or_else(|| e.to_string(), |reason| reason.to_string()),
            )
        })?;
        Self::of(Box::leak(Box::new(library))).map_err(failed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;
    use std::process::Command;

    /// A library with these functions, each of which gives 7.
    fn stub(name: &str, functions: &[&str]) -> PathBuf {
        let folder = std::env::temp_dir().join(format!("gstcuda-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let (source, library) = (folder.join("stub.c"), folder.join("stub.so"));
        let body: String = functions
            .iter()
            .map(|function| format!("long {function}(void) {{ return 7; }}\n"))
            .collect();
        std::fs::write(&source, body).unwrap();
        let status = Command::new("cc")
            .args(["-shared", "-fPIC", "-o"])
            .args([&library, &source])
            .status()
            .expect("a C compiler is needed");
        assert!(status.success());
        library
    }

    const REQUIRED: [&str; 6] = [
        "gst_cuda_load_library",
        "gst_cuda_memory_init_once",
        "gst_cuda_context_new_wrapped",
        "gst_cuda_context_get_handle",
        "gst_cuda_buffer_pool_get_type",
        "gst_cuda_buffer_pool_new",
    ];

    #[test]
    fn old_and_new_libraries_will_do() {
        let old = stub("old", &REQUIRED);
        let functions = Functions::open(old.to_str().unwrap()).unwrap();
        assert!(functions.gst_cuda_memory_sync.is_none());
        // SAFETY: takes nothing, gives a number.
        assert_eq!(unsafe { (functions.gst_cuda_load_library)() }, 7);
        let new = stub("new", &[&REQUIRED[..], &["gst_cuda_memory_sync"]].concat());
        let functions = Functions::open(new.to_str().unwrap()).unwrap();
        assert!(functions.gst_cuda_memory_sync.is_some());
        for library in [old, new] {
            let _ = std::fs::remove_dir_all(library.parent().unwrap());
        }
    }

    /// Debian has it in a package that the other plugins need.
    #[test]
    fn the_systems_library_will_do() {
        let functions = Functions::get().unwrap();
        assert!(std::ptr::eq(functions, Functions::get().unwrap()));
    }

    #[test]
    fn what_a_library_lacks_is_named() {
        let library = stub("part", &REQUIRED[2..]);
        let error = Functions::open(library.to_str().unwrap()).err().unwrap();
        for part in [
            "no gst_cuda_load_library, gst_cuda_memory_init_once",
            NAME,
            "1.22",
        ] {
            assert!(error.to_string().contains(part), "{error}");
        }
        let _ = std::fs::remove_dir_all(library.parent().unwrap());
        let error = Functions::open("/no/such/library.so").err().unwrap();
        assert!(error.to_string().contains("/no/such/library.so"), "{error}");
    }
}
