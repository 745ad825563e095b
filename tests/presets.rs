//! The presets of `presets/`: found, taken whole, and good for any model.

mod common;

use std::path::PathBuf;
use std::sync::Once;

use common::*;
use gst::glib;
use gst::prelude::*;

fn folder() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/presets"))
}

/// An element with the tiny model that knows the presets.
fn element() -> gst::Element {
    static ONCE: Once = Once::new();
    init();
    ONCE.call_once(|| gst::Preset::set_app_dir(folder()).unwrap());
    make(&[])
}

/// A preset as it is written.
struct Preset {
    name: String,
    properties: Vec<(String, String)>,
    comment: String,
}

/// All of the file.
fn written() -> Vec<Preset> {
    let file = glib::KeyFile::new();
    file.load_from_file(
        folder().join("GstStreamDiffusion.prs"),
        glib::KeyFileFlags::NONE,
    )
    .unwrap();
    let element_name = file.string("_presets_", "element-name").unwrap();
    assert_eq!(element_name, "GstStreamDiffusion");
    let version = file.string("_presets_", "version").unwrap();
    assert_eq!(version, env!("CARGO_PKG_VERSION"));
    let groups = file.groups();
    let presets = groups.iter().map(|group| group.as_str());
    presets
        .filter(|name| *name != "_presets_")
        .map(|name| {
            let mut properties = Vec::new();
            for key in file.keys(name).unwrap().iter().map(|key| key.as_str()) {
                if !key.starts_with("_meta/") {
                    let value = file.value(name, key).unwrap();
                    properties.push((key.to_owned(), value.to_string()));
                }
            }
            let comment = file.string(name, "_meta/comment").unwrap();
            Preset {
                name: name.to_owned(),
                properties,
                comment: comment.to_string(),
            }
        })
        .collect()
}

#[test]
fn every_property_of_a_preset_is_taken() {
    let presets = written();
    assert!(presets.len() >= 6);
    for Preset {
        name,
        properties,
        comment,
    } in presets
    {
        let element = element();
        let preset = element.dynamic_cast_ref::<gst::Preset>().unwrap();
        assert!(preset.preset_names().contains(&name.as_str().into()));
        assert_eq!(preset.meta(&name, "comment").unwrap(), comment, "{name}");
        assert!(!properties.is_empty(), "{name}");
        // Values that none of them has, so that what is not taken shows.
        for (property, value) in &properties {
            let other = match property.as_str() {
                "steps" => "7",
                "mode" if value == "img2img" => "txt2img",
                "mode" => "img2img",
                "noise" => "fresh",
                "timing" if value == "content" => "immediate",
                "timing" => "content",
                "similarity-filter" | "add-noise" if value == "true" => "false",
                "similarity-filter" | "add-noise" => "true",
                "frame-buffer-size" | "pipeline-depth" => "3",
                "late-policy" => "passthrough",
                "while-loading" if value == "block" => "passthrough",
                "while-loading" => "block",
                "prompt-transition" | "max-lateness" | "latency" => "123456789",
                "noise-walk-frames" | "ssf-max-skip" => "17",
                "strength" | "ssf-threshold" => "0.123",
                // A value for a new one belongs here.
                _ => panic!("{name}: {property} is not known to this test"),
            };
            element.set_property_from_str(property, other);
        }
        preset.load_preset(&name).unwrap();
        for (property, value) in &properties {
            let kind = element.find_property(property).unwrap().value_type();
            let wanted = glib::Value::deserialize(value, kind);
            let wanted = wanted.unwrap_or_else(|e| panic!("{name}: {property}={value}: {e}"));
            let is = element.property_value(property);
            assert!(
                wanted.compare(&is) == Some(std::cmp::Ordering::Equal),
                "{name}: {property} is {is:?}, not {value}"
            );
        }
    }
}

/// Whoever tries one after the other gets what each says, whatever came before.
#[test]
fn a_preset_leaves_nothing_of_another() {
    // `strength` has no value that means the model's own, so presets that want that cannot give it back; the others mean
    // nothing where noise does not walk and nothing is skipped.
    let own = |property: &str| {
        [
            "strength",
            "noise-walk-frames",
            "ssf-threshold",
            "ssf-max-skip",
        ]
        .contains(&property)
    };
    let sets = |preset: &Preset| {
        let names = preset.properties.iter().map(|(name, _)| name.clone());
        let mut names: Vec<_> = names.filter(|name| !own(name)).collect();
        names.sort();
        names
    };
    let presets = written();
    let all = sets(&presets[0]);
    for preset in &presets {
        assert_eq!(sets(preset), all, "{}", preset.name);
        let value = |name: &str| preset.properties.iter().find(|(key, _)| key == name);
        for (switch, on, needed) in [
            ("noise", "walk", "noise-walk-frames"),
            ("similarity-filter", "true", "ssf-threshold"),
            ("similarity-filter", "true", "ssf-max-skip"),
        ] {
            let is_on = value(switch).is_some_and(|(_, value)| value == on);
            assert_eq!(value(needed).is_some(), is_on, "{}: {needed}", preset.name);
        }
    }
}

/// Nothing in a preset may depend on the model or the machine.
#[test]
fn presets_leave_model_machine_and_words_alone() {
    for Preset {
        name, properties, ..
    } in written()
    {
        for (property, _) in properties {
            let own = [
                "model",
                "backend",
                "device-id",
                "prompt",
                "negative-prompt",
                "width",
                "height",
                "seed",
                "t-index-list",
                "scheduler",
            ];
            assert!(!own.contains(&property.as_str()), "{name}: {property}");
        }
    }
}

#[test]
fn frames_go_through_with_every_preset() {
    keep_model();
    for Preset { name, .. } in written() {
        let element = element();
        let preset = element.dynamic_cast_ref::<gst::Preset>().unwrap();
        preset.load_preset(&name).unwrap();
        let rig = Rig::with(element, Neighbours::default());
        rig.play(&rgb());
        rig.push_frames(0..6);
        rig.end();
        let frames = rig.frames();
        assert_eq!(frames.len(), 6, "{name}");
        let times: Vec<_> = frames.iter().map(|frame| frame.pts().unwrap()).collect();
        assert_eq!(times, (0..6).map(time).collect::<Vec<_>>(), "{name}");
        let told = rig.errors();
        assert!(told.is_empty(), "{name}: {told:?}");
    }
}

#[test]
fn the_readme_lists_them() {
    let readme = concat!(env!("CARGO_MANIFEST_DIR"), "/README.md");
    let readme = std::fs::read_to_string(readme).unwrap();
    let (_, table) = readme.split_once("| preset | what for |").unwrap();
    let (table, _) = table.split_once("\n\n").unwrap();
    let rows = table.lines().skip(2);
    let listed: Vec<_> = rows
        .map(|row| row.split('`').nth(1).unwrap_or(row).to_owned())
        .collect();
    let names: Vec<_> = written().into_iter().map(|preset| preset.name).collect();
    assert_eq!(listed, names);
}

/// In the build tree: `GST_PRESET_PATH=presets`.
#[test]
fn gst_inspect_lists_them() {
    let scratch = Folder::new();
    let output = tool("gst-inspect-1.0", &scratch, &["coreelements"])
        .env("GST_PRESET_PATH", folder())
        .env("XDG_DATA_HOME", scratch.path())
        .arg("streamdiffusion")
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    let listed = text.split("Presets:").nth(1);
    let listed = listed.unwrap_or_else(|| panic!("no presets in {text}"));
    for Preset { name, comment, .. } in written() {
        let line = format!("\"{name}\": {comment}");
        assert!(listed.contains(&line), "no {line} in {listed}");
    }
}

#[test]
fn gst_launch_takes_one() {
    let launch = |preset: &str| {
        let scratch = Folder::new();
        tool(
            "gst-launch-1.0",
            &scratch,
            &["coreelements", "videotestsrc"],
        )
        .env("GST_PRESET_PATH", folder())
        .env("XDG_DATA_HOME", scratch.path())
        .args(["-v", "videotestsrc", "num-buffers=3", "!"])
        .arg("video/x-raw,format=RGB,width=64,height=64,framerate=25/1")
        .args(["!", "streamdiffusion", "backend=onnxruntime-cpu"])
        .arg(format!("model={}", parity().display()))
        .arg(format!("@preset={preset}"))
        .args(["!", "fakesink", "silent=false"])
        .output()
        .unwrap()
    };
    let output = launch("fast");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{output:?}");
    assert_eq!(text.matches("last-message = chain").count(), 3, "{text}");
    // So a name that is none would not go unnoticed above.
    let output = launch("no-such-preset");
    let told = [output.stdout, output.stderr].concat();
    let told = String::from_utf8_lossy(&told);
    assert!(told.contains("no-such-preset"), "{told}");
}
