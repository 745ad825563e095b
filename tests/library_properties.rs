//! ONNX Runtime as the property names it. Alone in its program, because a process opens one library only.

mod common;

use common::*;
use gst::prelude::*;

const PROPERTY: &str = "onnxruntime-library";

#[test]
fn the_library_that_is_named_is_used_or_the_error_says_why_not() {
    let rig = Rig::new(&[], Neighbours::default());
    let real = std::env::var("ORT_DYLIB_PATH")
        .expect("ORT_DYLIB_PATH names the folder of ONNX Runtime, as scripts/test sets it");
    // SAFETY: this program's only test, and nothing else reads or writes the environment now.
    unsafe { std::env::set_var("ORT_DYLIB_PATH", "/no/such/libonnxruntime.so") };
    let empty = Folder::new();
    let refused = |path: &str, parts: &[&str]| {
        rig.element.set_property(PROPERTY, path);
        assert_eq!(rig.element.property::<String>(PROPERTY), path);
        assert!(rig.element.set_state(gst::State::Paused).is_err());
        let error = rig.error();
        assert!(error.matches(gst::LibraryError::Settings), "{error}");
        let text = error.to_string();
        for part in [&["property onnxruntime-library: ", path], parts].concat() {
            assert!(text.contains(part), "{text:?} lacks {part:?}");
        }
        rig.element.set_state(gst::State::Null).unwrap();
    };
    refused("/no/such/file.so", &["cannot be opened"]);
    refused(empty.path().to_str().unwrap(), &["the folder holds no lib"]);
    // Any other library will do for one that is not ONNX Runtime.
    #[cfg(target_os = "linux")]
    refused(&loaded_library("libgobject"), &["is not ONNX Runtime"]);

    // The property goes before the environment.
    rig.element.set_property(PROPERTY, &real);
    rig.play(&rgb());
    rig.push_frames(0..2);
    assert!(rig.errors().is_empty());
    rig.stop();
    rig.element.set_state(gst::State::Null).unwrap();

    // One that is open stays open.
    refused("/no/such/file.so", &["has opened", &real, "one only"]);
    for again in ["", &real] {
        rig.element.set_property(PROPERTY, again);
        rig.play(&rgb());
        rig.push_frames(0..2);
        rig.element.set_state(gst::State::Null).unwrap();
    }
    assert!(rig.errors().is_empty());
}
