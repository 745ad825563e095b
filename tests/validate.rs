//! The scenarios of `tests/validate/`, for GStreamer's own checker of pipelines, gst-validate.

mod common;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::str::FromStr;

use common::*;
use gst::glib;
use gst::prelude::*;

/// What a scenario may do, with what it must say. All of these are in GStreamer 1.22. (Not `set-property`: its actions are
/// carried out before all others, where the element is there from the start.)
const ACTIONS: [(&str, &[&str]); 8] = [
    ("play", &[]),
    ("pause", &[]),
    ("stop", &[]),
    ("wait", &[]),
    ("seek", &["start", "flags"]),
    ("check-position", &["expected-position"]),
    ("set-properties", &[]),
    ("check-properties", &[]),
];

fn scenarios() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/validate");
    let mut files: Vec<_> = std::fs::read_dir(&folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|e| e == "validatetest"))
        .collect();
    files.sort();
    assert_eq!(files.len(), 6, "{files:?}");
    files
}

/// The structures of a scenario, as gst-validate takes them apart: one a line, which goes on in the next after a comma, an
/// opening bracket or a backslash, and after nothing else.
fn structures(text: &str) -> Vec<gst::Structure> {
    let mut structures = Vec::new();
    let mut pending = String::new();
    for line in text.lines().map(str::trim_start) {
        if line.starts_with('#') || (line.is_empty() && pending.is_empty()) {
            continue;
        }
        pending.push_str(line.trim_end_matches('\\'));
        if line.ends_with([',', '{', '[', '\\']) {
            continue;
        }
        let structure = gst::Structure::from_str(&pending);
        structures.push(structure.unwrap_or_else(|e| panic!("{pending}: {e}")));
        pending.clear();
    }
    assert_eq!(pending, "");
    structures
}

/// The pipeline that a scenario is about.
fn pipeline(meta: &gst::Structure) -> gst::Pipeline {
    let args = meta.get::<gst::List>("args").unwrap();
    let [line] = args.as_slice() else {
        panic!("{meta}")
    };
    let line = line.get::<String>().unwrap();
    assert!(line.contains("$(videosink)"), "{line}");
    let line = line.replace("$(videosink)", "fakesink");
    let pipeline = gst::parse::launch(&line).unwrap_or_else(|e| panic!("{line}: {e}"));
    pipeline.downcast().unwrap()
}

/// That the element has the property, and that the property may take the value.
fn check_property(
    pipeline: &gst::Pipeline,
    element: &str,
    property: &str,
    value: &glib::SendValue,
) {
    let element = pipeline.by_name(element);
    let element = element.unwrap_or_else(|| panic!("no element for {property}"));
    let spec = element.find_property(property);
    let spec = spec.unwrap_or_else(|| panic!("{} has no {property}", element.name()));
    let text = match value.get::<String>() {
        Ok(text) => text,
        Err(_) => value.serialize().unwrap().into(),
    };
    let wanted = glib::Value::deserialize(&text, spec.value_type());
    let wanted = wanted.unwrap_or_else(|e| panic!("{property}={text}: {e}"));
    element.set_property_from_value(property, &wanted);
    assert_eq!(
        element.property_value(property).compare(&wanted),
        Some(std::cmp::Ordering::Equal),
        "{property}={text}"
    );
}

#[test]
fn scenarios_are_well_formed() {
    init();
    for file in scenarios() {
        let name = file.display();
        let text = std::fs::read_to_string(&file).unwrap();
        assert!(text.starts_with("# "), "{name} says nothing of its purpose");
        let mut structures = structures(&text).into_iter();
        let meta = structures.next().unwrap();
        assert_eq!(meta.name(), "meta", "{name}");
        assert_eq!(meta.get("handles-states"), Ok(true), "{name}");
        let pipeline = pipeline(&meta);
        let mut last = None;
        for action in structures {
            let known = ACTIONS.iter().find(|(known, _)| *known == action.name());
            let (_, needed) = known.unwrap_or_else(|| panic!("{name}: {action}"));
            for field in *needed {
                assert!(action.has_field(*field), "{name}: {action} lacks {field}");
            }
            match action.name().as_str() {
                "set-properties" | "check-properties" => {
                    for (field, value) in action.iter() {
                        let (element, property) = field.as_str().split_once("::").unwrap();
                        check_property(&pipeline, element, property, value);
                    }
                }
                "wait" => assert!(
                    action.has_field("duration") || action.has_field("message-type"),
                    "{name}: {action}"
                ),
                _ => {}
            }
            last = Some(action.name().to_string());
        }
        assert_eq!(last.as_deref(), Some("stop"), "{name}");
    }
}

#[test]
fn a_broken_scenario_is_told() {
    init();
    let unfinished = "meta,\n    args = {\n        \"a ! b\"\n    },\n    seek = true\n";
    for text in [
        "play, =",
        "meta,\n    args = {\n",
        "wait, duration=0.5,",
        unfinished,
    ] {
        assert!(
            std::panic::catch_unwind(|| structures(text)).is_err(),
            "{text}"
        );
    }
    let read = structures(
        "# note\nmeta,\n    args = {\n        \"a ! b\",\n    },\n    seek = true\n\nplay\n",
    );
    assert_eq!(read.len(), 2);
    assert_eq!(read[0].get("seek"), Ok(true));
}

#[test]
#[ignore = "needs gst-validate, which Debian 12 does not package"]
fn scenarios_pass() {
    for file in scenarios() {
        let output = Command::new("gst-validate-1.0")
            .args(["--use-fakesinks", "--set-test-file"])
            .arg(&file)
            .env("GST_PLUGIN_PATH", plugin().parent().unwrap())
            .output()
            .expect("gst-validate-1.0, of gst-devtools, is needed");
        assert!(output.status.success(), "{}: {output:?}", file.display());
    }
}
