//! What is wrong is told, once, by a GStreamer error that says what and where; and the element works when it is put right.

mod common;

use std::ffi::CStr;
use std::fs;

use common::*;
use gst::glib;
use gst::glib::translate::{ToGlibPtr, ToGlibPtrMut};
use gst::prelude::*;

/// Where an error belongs.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Domain {
    Resource,
    Stream,
    Library,
}

fn domain(error: &glib::Error) -> Option<Domain> {
    if error.is::<gst::ResourceError>() {
        Some(Domain::Resource)
    } else if error.is::<gst::StreamError>() {
        Some(Domain::Stream)
    } else if error.is::<gst::LibraryError>() {
        Some(Domain::Library)
    } else {
        None
    }
}

/// When something wrong is found out.
#[derive(Clone, Copy, Debug, PartialEq)]
enum When {
    /// By the change of state, which fails.
    AtStart,
    /// By the first frame, which is refused.
    AtFirstFrame,
}

/// The element must refuse to work with an error of this domain that has all `parts`, and work after `repair`.
#[track_caller]
fn refuses(rig: &Rig, when: When, expected: Domain, parts: &[&str], repair: impl Fn()) {
    match when {
        When::AtStart => assert!(rig.element.set_state(gst::State::Playing).is_err()),
        When::AtFirstFrame => {
            rig.play(&rgb());
            assert_eq!(rig.src.push(frame(0)), Err(gst::FlowError::Error));
        }
    }
    let error = rig.error();
    let text = error.message();
    assert_eq!(domain(&error), Some(expected), "{text}");
    for part in parts {
        assert!(text.contains(part), "{text:?} lacks {part:?}");
    }
    rig.stop();
    let more = rig.errors();
    assert!(more.is_empty(), "told more than once: {more:?}");
    assert!(rig.frames().is_empty());
    repair();
    rig.play(&rgb());
    rig.push_frames(0..3);
    rig.end();
    assert_eq!(rig.frames().len(), 3);
    assert!(rig.errors().is_empty());
}

#[test]
fn settings_that_cannot_be() {
    for (name, bad, good, parts) in [
        ("t-index-list", "50", "49", &["50", "0 to 49"][..]),
        ("t-index-list", "45,32", "32,45", &["32", "45", "ascending"]),
        ("t-index-list", "32,x", "32", &["32,x", "whole numbers"]),
        ("t-index-list", "32,-1", "32", &["-1", "whole numbers"]),
        (
            "t-index-list",
            "99999999999999999999999",
            "32",
            &["whole numbers"],
        ),
        ("num-inference-steps", "51", "50", &["51", "1 to 50"]),
        ("width", "100", "96", &["100", "multiple of 16"]),
        ("height", "8", "16", &["8", "multiple of 16"]),
    ] {
        let rig = Rig::new(&[(name, bad)], Neighbours::default());
        let parts = [&[name][..], parts].concat();
        // What sizes a model can do is known when it is loaded.
        let when = match name {
            "width" | "height" => When::AtFirstFrame,
            _ => When::AtStart,
        };
        refuses(&rig, when, Domain::Library, &parts, || {
            set(&rig.element, &[(name, good)]);
        });
    }
}

/// What nothing is made of yet is no mistake yet.
#[test]
fn bypassed_frames_need_no_steps() {
    let settings = [("t-index-list", "999"), ("bypass", "true")];
    let rig = Rig::playing(&settings, &rgb());
    rig.push_frames(0..2);
    assert_eq!(rig.frames().len(), 2);
    set(&rig.element, &[("t-index-list", "35"), ("bypass", "false")]);
    rig.push_frames(2..4);
    rig.end();
    assert_eq!(rig.frames().len(), 2);
    assert!(rig.errors().is_empty());
}

/// Spoils a model folder.
type Spoil = fn(&Folder);

#[test]
fn model_folders_that_cannot_be() {
    use Domain::{Resource, Stream};
    let cases: [(Spoil, Domain, &[&str]); 8] = [
        (
            |folder| fs::remove_dir_all(folder.path()).unwrap(),
            Resource,
            &["model folder"],
        ),
        (
            |folder| {
                fs::remove_dir_all(folder.path()).unwrap();
                fs::write(folder.path(), "a file").unwrap();
            },
            Stream,
            &["folder, found a file"],
        ),
        (
            |folder| fs::remove_file(folder.file("unet/model.onnx")).unwrap(),
            Resource,
            &["unet/model.onnx"],
        ),
        (
            |folder| {
                let file = folder.file("unet/model.onnx");
                let whole = fs::read(&file).unwrap();
                fs::write(file, &whole[..whole.len() / 2]).unwrap();
            },
            Stream,
            &["unet/model.onnx"],
        ),
        (
            |folder| fs::write(folder.file("vae_decoder/model.onnx"), [0xff; 5000]).unwrap(),
            Stream,
            &["vae_decoder/model.onnx"],
        ),
        (
            |folder| fs::write(folder.file("model_index.json"), "{\"a\": ").unwrap(),
            Stream,
            &["model_index.json", "JSON"],
        ),
        (
            |folder| fs::write(folder.file("streamdiffusion.toml"), "nmae = 1").unwrap(),
            Stream,
            &["streamdiffusion.toml", "nmae"],
        ),
        (
            // As if the tokenizer were that of a model with more words.
            |folder| {
                let file = folder.file("text_encoder/config.json");
                let text = fs::read_to_string(&file).unwrap();
                let fewer = text.replace("\"vocab_size\": 526", "\"vocab_size\": 300");
                assert_ne!(text, fewer);
                fs::write(file, fewer).unwrap();
            },
            Stream,
            &["tokenizer/tokenizer.json", "belongs to another model"],
        ),
    ];
    for (spoil, expected, parts) in cases {
        let folder = Folder::model();
        spoil(&folder);
        let path = folder.path().to_str().unwrap();
        let rig = Rig::new(&[("model", path)], Neighbours::default());
        let parts = [&[path][..], parts].concat();
        refuses(&rig, When::AtStart, expected, &parts, || {
            set(&rig.element, &[("model", parity().to_str().unwrap())]);
        });
        let _ = fs::remove_file(folder.path());
    }
}

/// Sets a string property to any bytes, as programs in C can.
fn set_bytes(element: &gst::Element, name: &CStr, bytes: &CStr) {
    let mut value = glib::Value::from_type(glib::Type::STRING);
    // SAFETY: the value is a string's, both strings are null-terminated, the element lives.
    unsafe {
        glib::gobject_ffi::g_value_set_string(value.to_glib_none_mut().0, bytes.as_ptr());
        glib::gobject_ffi::g_object_set_property(
            element.as_ptr().cast(),
            name.as_ptr(),
            value.to_glib_none().0,
        );
    }
}

#[test]
fn a_model_path_may_be_any_bytes() {
    use std::os::unix::ffi::OsStringExt;
    let rig = Rig::new(&[], Neighbours::default());
    set_bytes(&rig.element, c"model", c"/no/such/\xff\xfe");
    assert!(
        rig.element
            .property::<String>("model")
            .starts_with("/no/such/")
    );
    let folder = Folder::model();
    let mut name = folder.path().as_os_str().to_owned().into_vec();
    name.extend(b"/\xff\xfe");
    let odd = std::path::PathBuf::from(std::ffi::OsString::from_vec(name.clone()));
    std::os::unix::fs::symlink(parity(), odd).unwrap();
    let odd = std::ffi::CString::new(name).unwrap();
    refuses(
        &rig,
        When::AtStart,
        Domain::Resource,
        &["/no/such/"],
        || {
            set_bytes(&rig.element, c"model", &odd);
        },
    );
}

#[test]
fn a_prompt_must_be_utf8() {
    let rig = Rig::playing(&[("prompt", "a neon cat")], &rgb());
    for name in [c"prompt", c"negative-prompt", c"t-index-list"] {
        set_bytes(&rig.element, name, c"ink \xff\xfe");
        let warnings = rig.errors();
        assert_eq!(warnings.len(), 1, "{warnings:?}");
        let gst::MessageView::Warning(warning) = warnings[0].view() else {
            panic!("{warnings:?}");
        };
        assert_eq!(domain(&warning.error()), Some(Domain::Library));
        let text = warning.error().to_string();
        for part in [name.to_str().unwrap(), "UTF-8"] {
            assert!(text.contains(part), "{text:?} lacks {part:?}");
        }
    }
    assert_eq!(rig.element.property::<String>("prompt"), "a neon cat");
    rig.push_frames(0..2);
    assert!(rig.errors().is_empty());
    let expected = restyled(&[("prompt", "a neon cat")], 0..2);
    rig.end();
    let found = rig.pictures();
    assert_eq!(found.len(), 2);
    same(&found[0], &expected[0], "with the old prompt");
}

#[test]
fn a_bad_live_change_is_a_warning_and_changes_nothing() {
    for (name, bad, good) in [
        ("t-index-list", "45,32", "35"),
        ("t-index-list", "77", "35"),
        ("t-index-list", "a,b", "35"),
        ("num-inference-steps", "900", "50"),
    ] {
        let rig = Rig::playing(TWO_STEPS, &rgb());
        let expected = restyled(TWO_STEPS, 0..6);
        rig.push_frames(0..2);
        set(&rig.element, &[(name, bad)]);
        rig.push_frames(2..6);
        let warnings = rig.errors();
        assert_eq!(warnings.len(), 1, "once, not for every frame");
        let gst::MessageView::Warning(warning) = warnings[0].view() else {
            panic!("{warnings:?}");
        };
        assert_eq!(domain(&warning.error()), Some(Domain::Library));
        let text = warning.error().to_string();
        assert!(text.contains(name), "{text}");
        // Not even a change of the size makes it an error.
        let large = caps("RGB", 96, 64);
        assert!(rig.caps(&large));
        let found = rig.frames();
        assert_eq!(found.len(), 6);
        for (found, expected) in found.iter().zip(&expected) {
            same(&pixels(found, &rgb()), expected, "with the old values");
        }
        rig.push(noise(&large, 6));
        set(&rig.element, &[(name, good)]);
        rig.push(noise(&large, 7));
        rig.end();
        let expected = restyle(TWO_STEPS, &large, vec![noise(&large, 6)]);
        let found = rig.pictures();
        assert_eq!(found.len(), 2);
        same(
            &found[0],
            &expected[0],
            "with the old values, at another size",
        );
    }
}

#[test]
fn an_element_without_a_model_says_where_it_looked() {
    init();
    // Beside a test program there is none; there may be one in the source tree.
    let bundled = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("models/demo");
    let element = gst::ElementFactory::make("streamdiffusion")
        .build()
        .unwrap();
    let bus = gst::Bus::new();
    element.set_bus(Some(&bus));
    let started = element.set_state(gst::State::Paused);
    assert_eq!(started.is_ok(), bundled.join("model_index.json").exists());
    if started.is_err() {
        let message = bus.pop_filtered(&[gst::MessageType::Error]).unwrap();
        let gst::MessageView::Error(error) = message.view() else {
            unreachable!()
        };
        assert_eq!(domain(&error.error()), Some(Domain::Resource));
        assert!(error.error().to_string().contains("model"));
    }
    element.set_state(gst::State::Null).unwrap();
}
