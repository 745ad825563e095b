//! The pipelines of the documents: each parses, or the documents say where to get what it needs; and those between a camera
//! and a screen play.

mod common;

use std::path::Path;
use std::process::Command;

use common::*;
use gst::prelude::*;

/// A document and the pipelines in it, by the language of the block they are in.
fn blocks(document: &str) -> Vec<(String, String)> {
    let text = read(document);
    let mut found = Vec::new();
    let mut language: Option<String> = None;
    for line in text.lines() {
        match (line.strip_prefix("```"), &language) {
            (Some(name), None) => language = Some(name.to_owned()),
            (Some(_), Some(_)) => language = None,
            (None, Some(language)) => found.push((language.clone(), line.to_owned())),
            (None, None) => {}
        }
    }
    assert_eq!(language, None, "{document}: a block has no end");
    found
}

fn read(document: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(document);
    std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// What `gst-launch-1.0` gets of a command line for a shell, without its options.
fn words(line: &str) -> Vec<String> {
    let folder = Folder::new();
    let stand_in = folder.file("gst-launch-1.0");
    std::fs::write(&stand_in, "#!/bin/sh\nprintf '%s\\n' \"$@\"\n").unwrap();
    std::fs::set_permissions(
        &stand_in,
        std::os::unix::fs::PermissionsExt::from_mode(0o755),
    )
    .unwrap();
    let path = format!(
        "{}:{}",
        folder.path().display(),
        std::env::var("PATH").unwrap()
    );
    let output = Command::new("sh")
        .args(["-c", line])
        .env("PATH", path)
        .output()
        .unwrap();
    assert!(output.status.success(), "{line}: {output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    let is_option = |word: &&str| !word.starts_with('-');
    text.lines().filter(is_option).map(str::to_owned).collect()
}

/// Whether the pipeline parses; `Err` names the elements that are not installed. Anything else that is wrong panics.
fn parse(line: &str, words: &[String]) -> Result<(), Vec<String>> {
    init();
    let words: Vec<_> = words.iter().map(String::as_str).collect();
    let mut context = gst::ParseContext::new();
    match gst::parse::launchv_full(&words, Some(&mut context), gst::ParseFlags::FATAL_ERRORS) {
        Ok(pipeline) => {
            pipeline.set_state(gst::State::Null).unwrap();
            Ok(())
        }
        Err(error) => {
            let missing: Vec<_> = context
                .missing_elements()
                .iter()
                .map(|name| name.to_string())
                .collect();
            assert!(!missing.is_empty(), "{line}: {error}");
            Err(missing)
        }
    }
}

#[test]
fn every_pipeline_parses_or_says_what_it_needs() {
    let embedding = read("docs/embedding.md");
    let (mut parsed, mut lacking) = (0, Vec::new());
    for document in ["README.md", "docs/embedding.md"] {
        for (language, line) in blocks(document) {
            let words = match language.as_str() {
                "sh" if line.contains("gst-launch-1.0 ") && !line.contains('…') => words(&line),
                // As the host puts them between its own elements.
                "obs-filter" => words(&format!(
                    "gst-launch-1.0 videotestsrc ! videoconvert ! {line} ! videoconvert ! fakesink"
                )),
                "obs-source" => words(&format!("gst-launch-1.0 fakesink name=video {line}")),
                _ => continue,
            };
            assert!(words.iter().any(|word| word == "!"), "{document}: {line}");
            match parse(&line, &words) {
                Ok(()) => parsed += 1,
                Err(missing) => lacking.extend(missing),
            }
        }
    }
    // With what scripts/setup installs; only these may be missing.
    assert!(parsed >= 20, "{parsed} parsed, {lacking:?} are not there");
    let (_, table) = embedding
        .split_once("## Elements that are not everywhere")
        .unwrap();
    for element in lacking {
        let cell = format!("`{element}`");
        let listed = table.lines().any(|line| {
            line.split('|')
                .nth(1)
                .is_some_and(|names| names.contains(&cell))
        });
        assert!(
            listed,
            "docs/embedding.md does not say where to get {element}"
        );
        let foreign = [
            "webrtcsink",
            "ndisrc",
            "ndisrcdemux",
            "ndisink",
            "nvh264dec",
            "nvh264enc",
        ];
        assert!(
            foreign.contains(&element.as_str()),
            "scripts/setup should have installed {element}"
        );
    }
}

/// Cameras and screens are replaced, and pictures made small and few; nothing else of a line.
#[test]
fn pipelines_from_cameras_to_screens_play() {
    let camera = "videotestsrc is-live=true num-buffers=6 ! video/x-raw,width=64,height=64,framerate=10/1 ! identity";
    let mut played = 0;
    for document in ["README.md", "docs/embedding.md"] {
        for (language, line) in blocks(document) {
            let Some((_, pipeline)) = line.split_once("gst-launch-1.0 ") else {
                continue;
            };
            // Those that need a GPU name a model.
            if language != "sh"
                || !pipeline.ends_with("autovideosink")
                || pipeline.contains("model=")
            {
                continue;
            }
            let begins = ["v4l2src ", "videotestsrc is-live=true "];
            let Some(begin) = begins.iter().find(|begin| pipeline.starts_with(**begin)) else {
                continue;
            };
            let pipeline = pipeline
                .replacen(begin, &format!("{camera} "), 1)
                .replace("width=512,height=512", "width=64,height=64")
                .replace("autovideosink", "fakesink sync=true silent=false");
            plays(&line, &pipeline);
            played += 1;
        }
    }
    assert!(played >= 5, "{played}");
}

/// Plays it as it would be typed, up to its end.
#[track_caller]
fn plays(line: &str, pipeline: &str) {
    let folder = Folder::new();
    let plugins = [
        "compositor",
        "coreelements",
        "debugutilsbad",
        "videoconvertscale",
        "videotestsrc",
    ];
    let output = tool("timeout", &folder, &plugins)
        .args(["--signal=KILL", "120", "sh", "-c"])
        .arg(format!("exec gst-launch-1.0 -v {pipeline}"))
        .env(
            "GST_STREAMDIFFUSION_MODELS",
            Path::new(env!("CARGO_MANIFEST_DIR")).join("models"),
        )
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{line}\n{said}{errors}");
    assert!(said.contains("Got EOS"), "{line}\n{said}");
    assert!(
        said.contains("last-message = chain "),
        "{line}: no picture came\n{said}"
    );
}

/// The lines that start an example name files that are there.
#[test]
fn every_example_that_is_named_exists() {
    let text = read("docs/embedding.md");
    let mut count = 0;
    for word in text.split(|c: char| c.is_whitespace() || "`()[]".contains(c)) {
        let word = word
            .strip_prefix("../")
            .unwrap_or(word)
            .trim_end_matches([',', '.']);
        if word.starts_with("examples/") {
            let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(word);
            assert!(path.exists(), "{word}");
            count += 1;
        }
    }
    assert!(count > 10, "{count}");
}

/// Links within the document lead to a heading.
#[test]
fn every_anchor_has_its_heading() {
    let text = read("docs/embedding.md");
    let anchor = |heading: &str| -> String {
        let heading = heading.trim_start_matches('#').trim().to_lowercase();
        let kept = heading
            .chars()
            .filter(|c| c.is_alphanumeric() || *c == ' ' || *c == '-');
        kept.map(|c| if c == ' ' { '-' } else { c }).collect()
    };
    let anchors: Vec<_> = text
        .lines()
        .filter(|line| line.starts_with('#'))
        .map(anchor)
        .collect();
    for link in text.split("](#").skip(1) {
        let link = link.split(')').next().unwrap();
        assert!(
            anchors.iter().any(|anchor| anchor == link),
            "#{link} in {anchors:?}"
        );
    }
}
