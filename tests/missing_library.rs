//! ONNX Runtime that is not there at first. Alone in its program, because the environment and the library belong to
//! the whole process.

use std::path::Path;

use gststreamdiffusion::engine::shared;
use gststreamdiffusion::error::Error;

#[test]
fn a_missing_library_is_an_error_until_it_is_there() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/odd");
    let real = std::env::var_os("ORT_DYLIB_PATH");
    for bad in ["/no/such/libonnxruntime.so", "/", "/dev/null"] {
        // SAFETY: this program's only test; nothing else reads or writes the environment.
        unsafe { std::env::set_var("ORT_DYLIB_PATH", bad) };
        let Err(error) = shared::load(&folder) else {
            panic!("it loaded with {bad}");
        };
        assert!(matches!(error, Error::Library(_)), "{error}");
        let message = error.to_string();
        for part in [bad, "ORT_DYLIB_PATH", "scripts/get-onnxruntime"] {
            assert!(message.contains(part), "{message:?} lacks {part:?}");
        }
    }
    // SAFETY: as above.
    match real {
        Some(real) => unsafe { std::env::set_var("ORT_DYLIB_PATH", real) },
        None => unsafe { std::env::remove_var("ORT_DYLIB_PATH") },
    }
    // What failed before works now, in the same process.
    shared::load(&folder).unwrap();
}
