//! Dependencies point one way: the element uses the stream, the stream uses devices and engines, and none of these knows
//! who uses it.

use std::fs;
use std::path::{Path, PathBuf};

const GSTREAMER: &[&str] = &["gst::", "gst_base", "gst_video", "glib"];
const RUNTIME: &[&str] = &["ort::", "trtx::"];

/// Folders of `src`, and what no code in them may name.
const RULES: &[(&str, &[&[&str]])] = &[
    (
        "stream",
        &[
            GSTREAMER,
            RUNTIME,
            &["element", "engine::onnxruntime", "engine::tensorrt"],
        ],
    ),
    (
        "model",
        &[
            GSTREAMER,
            RUNTIME,
            &["crate::element", "crate::stream", "crate::engine"],
        ],
    ),
    (
        "device",
        &[
            GSTREAMER,
            RUNTIME,
            &[
                "crate::element",
                "crate::stream",
                "crate::engine",
                "crate::model",
            ],
            &["guidance", "Guidance", "cfg_type", "CfgType", "similarity"],
        ],
    ),
    ("engine", &[GSTREAMER, &["crate::element", "crate::stream"]]),
    ("element", &[RUNTIME]),
];

fn sources(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
    found
}

#[test]
fn layers_know_only_what_is_below_them() {
    for (folder, forbidden) in RULES {
        let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
        let files = sources(&src.join(folder));
        assert!(files.len() >= 3, "{folder}: {files:?}");
        for file in files {
            let text = fs::read_to_string(&file).unwrap();
            let code = (1..)
                .zip(text.lines())
                .filter(|(_, line)| !line.trim_start().starts_with("//"));
            for (number, line) in code {
                for word in forbidden.iter().copied().flatten() {
                    let clean = !line.contains(word);
                    assert!(clean, "{}:{number}: {word}: {line}", file.display());
                }
            }
        }
    }
}
