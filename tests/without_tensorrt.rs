//! A build without TensorRT says how to get one with it. The element's words are in `backend.rs`.
#![cfg(all(not(feature = "tensorrt"), feature = "program"))]

use std::process::Command;

#[test]
fn the_program_says_how_to_get_one_that_builds_engines() {
    for args in [
        &["build"][..],
        &["build", "models/demo", "--size", "512x512", "-j", "2"],
        &["engines", "list"],
    ] {
        let output = Command::new(env!("CARGO_BIN_EXE_streamdiffusion"))
            .args(args)
            .output()
            .unwrap();
        let errors = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{errors}");
        assert_eq!(errors.lines().count(), 1, "{errors}");
        for part in [
            "built without TensorRT",
            "cargo build --release --features tensorrt",
        ] {
            assert!(errors.contains(part), "{errors:?} lacks {part:?}");
        }
    }
}
