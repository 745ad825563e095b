//! The plugin as GStreamer's tools and the system's loader see it.

mod common;

use std::process::Command;

use common::*;

const PROPERTIES: [&str; 23] = [
    "model",
    "backend",
    "device-id",
    "prompt",
    "negative-prompt",
    "steps",
    "strength",
    "t-index-list",
    "num-inference-steps",
    "guidance-scale",
    "delta",
    "cfg-type",
    "seed",
    "add-noise",
    "frame-buffer-size",
    "similarity-filter",
    "ssf-threshold",
    "ssf-max-skip",
    "mix",
    "width",
    "height",
    "timing",
    "stats",
];

/// What gst-inspect-1.0 prints about the element in an environment that holds nothing else.
fn inspect() -> String {
    let folder = Folder::new();
    let mut tool = tool("gst-inspect-1.0", &folder, &["coreelements"]);
    let kept: Vec<_> = tool
        .get_envs()
        .filter_map(|(name, value)| Some((name.to_owned(), value?.to_owned())))
        .collect();
    let output = tool
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap())
        .envs(kept)
        .arg("streamdiffusion")
        .output()
        .unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && errors.is_empty(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn gst_inspect_shows_the_element_anywhere() {
    let text = inspect();
    let lines: Vec<_> = text.lines().map(str::trim).collect();
    for name in PROPERTIES {
        let listed = lines
            .iter()
            .filter_map(|line| line.split_once(':'))
            .any(|(left, right)| left.trim() == name && !right.trim().is_empty());
        assert!(listed, "no property {name} in {text}");
    }
    let value = |field: &str| {
        let line = lines.iter().find(|line| line.starts_with(field));
        let line = line.unwrap_or_else(|| panic!("no {field} in {text}"));
        line[field.len()..].trim().to_owned()
    };
    assert_eq!(value("License"), "MIT/X11");
    assert_eq!(value("Klass"), "Filter/Effect/Video");
    assert!(value("Version").starts_with(env!("CARGO_PKG_VERSION")));
    for part in [
        "GstBaseTransform",
        "GstPreset",
        "SINK template",
        "SRC template",
        "Element Actions",
        "\"reset\"",
        "\"load\"",
    ] {
        assert!(text.contains(part), "no {part} in {text}");
    }
}

/// Looking at the element opens neither a driver nor a runtime.
#[test]
#[cfg(target_os = "linux")]
fn gst_inspect_opens_no_gpu() {
    let folder = Folder::new();
    let log = folder.file("libraries");
    let output = tool("gst-inspect-1.0", &folder, &["coreelements"])
        .env("LD_DEBUG", "files")
        .env("LD_DEBUG_OUTPUT", &log)
        .arg("streamdiffusion")
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let mut opened = String::new();
    // One for each process: the scanner has its own.
    for entry in std::fs::read_dir(folder.path()).unwrap().flatten() {
        if entry.file_name().to_string_lossy().starts_with("libraries") {
            opened += &std::fs::read_to_string(entry.path()).unwrap();
        }
    }
    assert!(opened.contains("libgststreamdiffusion.so"), "{opened}");
    for library in ["libcuda.so", "libgstcuda", "libonnxruntime", "libnvrtc"] {
        let line = opened.lines().find(|line| line.contains(library));
        assert_eq!(line, None);
    }
}

/// Nothing that an engine needs is needed to load the plugin.
#[test]
fn the_plugin_is_linked_to_no_engine() {
    let output = Command::new("readelf")
        .arg("-d")
        .arg(plugin())
        .output()
        .expect("readelf, of binutils, is needed");
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    let needed: Vec<_> = text.lines().filter(|l| l.contains("(NEEDED)")).collect();
    assert!(
        needed.iter().any(|line| line.contains("libgstvideo-1.0")),
        "{text}"
    );
    for engine in ["onnx", "cuda", "nv", "tensorrt", "trt"] {
        let linked = needed
            .iter()
            .find(|line| line.to_lowercase().contains(engine));
        assert_eq!(linked, None);
    }
}
