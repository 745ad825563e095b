//! The examples, each run as its users run it: as a program of its own, with the plugin and the bundled model.

mod common;
#[path = "examples/process.rs"]
mod process;
#[path = "examples/rtsp.rs"]
mod rtsp;

use common::*;
use process::*;

/// What makes the bundled model fast enough for debug builds on a slow machine.
const SMALL: [&str; 4] = ["--set", "width=64", "--set", "height=64"];

/// The three numbers behind red, green and blue in a line of `appsink`.
fn means(line: &str) -> [f64; 3] {
    ["red ", "green ", "blue "].map(|name| {
        let (_, rest) = line.split_once(name).unwrap();
        rest.split(',').next().unwrap().parse().unwrap()
    })
}

#[test]
fn appsink_gets_every_picture_back_and_changes_the_prompt() {
    let folder = Folder::new();
    let mut command = program(built().join("examples/appsink"));
    let arguments = [
        "--frames",
        "16",
        "--side",
        "98",
        "--prompt",
        "night vision",
        "--then",
        "a blueprint",
        "--output",
    ];
    let mut example = Process::start(command.args(arguments).arg(folder.path()));
    let status = example.finish();
    assert!(status.success(), "{}", example.told());
    let is_picture = |line: &&String| line.starts_with("picture ");
    let pictures: Vec<_> = example
        .said
        .iter()
        .filter(is_picture)
        .map(|l| means(l))
        .collect();
    assert_eq!(pictures.len(), 16);
    let [r, g, b] = pictures[0];
    assert!(g > r + 40.0 && g > b + 40.0, "night vision: {r} {g} {b}");
    let [r, g, b] = pictures[15];
    assert!(b > r + 60.0 && b > g + 30.0, "blueprint: {r} {g} {b}");
    let last = std::fs::read(folder.file("0015.ppm")).unwrap();
    let header = b"P6 98 98 255\n";
    assert!(last.starts_with(header));
    assert_eq!(last.len(), header.len() + 98 * 98 * 3);
}

#[test]
fn appsink_says_why_it_fails() {
    let mut command = program(built().join("examples/appsink"));
    let mut example = Process::start(command.env("ORT_DYLIB_PATH", "/no/such/library.so"));
    assert_eq!(example.finish().code(), Some(1), "{}", example.told());
    let reason = |line: &&String| line.starts_with("appsink: ") && line.contains("/no/such/");
    assert_eq!(
        example.said.iter().filter(reason).count(),
        1,
        "{}",
        example.told()
    );
}

/// The Python player.
fn restyle(arguments: &[&str]) -> Process {
    let mut command = python();
    command
        .arg("examples/python/restyle.py")
        .args(["--size", "128x128"]);
    Process::start(command.args(arguments))
}

#[test]
fn restyle_takes_prompts_while_it_plays_and_stops_at_ctrl_c() {
    let folder = Folder::new();
    let file = folder.file("out.mp4");
    let arguments = [
        "--prompt",
        "night vision",
        "--stats",
        "0.5",
        "--output",
        file.to_str().unwrap(),
    ];
    let mut player = restyle(&[&SMALL[..], &arguments].concat());
    player.wait_for("prompt: night vision");
    player.wait_for("playing");
    let frames = |line: &str| -> Option<u64> {
        let rest = line.strip_prefix("stats: ")?;
        rest.split(' ').next()?.parse().ok()
    };
    player.wait_until("ten frames", |line| frames(line).is_some_and(|n| n >= 10));
    player.type_line("a blueprint");
    player.wait_for("prompt: a blueprint");
    let before = frames(&player.wait_for("stats: ")).unwrap();
    let line = player.wait_until("more frames", |line| {
        frames(line).is_some_and(|n| n >= before + 20)
    });
    assert!(line.contains("at 64x64 on CPU"), "{line}");
    player.interrupt();
    player.wait_for("stopping");
    player.wait_for("the end");
    assert!(player.finish().success(), "{}", player.told());
    assert_eq!(player.count("is loaded"), 1, "{}", player.told());

    // What was written is whole, and shows both.
    let pictures = decoded(&format!(
        "filesrc location={} ! qtdemux ! h264parse",
        file.display()
    ));
    let [r, g, b] = channel_means(&pictures[0]);
    assert!(g > r + 40.0 && g > b + 40.0, "night vision: {r} {g} {b}");
    let [r, g, b] = channel_means(pictures.last().unwrap());
    assert!(b > r + 60.0 && b > g + 30.0, "blueprint: {r} {g} {b}");
}

#[test]
fn restyle_plays_a_file_to_its_end() {
    let input = root().join("examples/media/photos.mp4");
    let output = [
        "--output", "null", "--stats", "0", "--prompt", "neon", "--prompt", "mosaic", "--every",
        "1",
    ];
    let mut player = restyle(&[&[input.to_str().unwrap()], &SMALL[..], &output].concat());
    player.wait_for("prompt: mosaic");
    player.wait_for("prompt: neon");
    player.interrupt();
    assert!(player.finish().success(), "{}", player.told());
}

#[test]
fn restyle_says_what_is_wrong() {
    for (arguments, code, part) in [
        (&["--set", "stepps=1"][..], 1, "no property 'stepps'"),
        (
            &["--set", "steps=99"],
            1,
            "a whole number from 1 to 8, not '99'",
        ),
        (
            &["--set", "cfg-type=most"],
            1,
            "one of none, full, self, initialize",
        ),
        (&["--set", "steps"], 2, "PROPERTY=VALUE"),
        (&["--size", "15x15"], 2, "WIDTHxHEIGHT"),
        (
            &["/no/such/file.mp4", "--output", "null"],
            1,
            "error from source",
        ),
    ] {
        let mut player = restyle(arguments);
        assert_eq!(player.finish().code(), Some(code), "{}", player.told());
        assert!(player.count(part) > 0, "{}", player.told());
    }
}

#[test]
fn every_python_example_has_help() {
    for (script, option) in [
        ("python/restyle.py", "--prompt"),
        ("python/reconnect.py", "--longest-wait"),
        ("web/server.py", "--port"),
    ] {
        let mut command = python();
        let mut example = Process::start(
            command
                .arg(root().join("examples").join(script))
                .arg("--help"),
        );
        assert!(example.finish().success(), "{}", example.told());
        assert!(example.count(option) > 0, "{}", example.told());
    }
}

#[test]
fn the_web_page_works_in_a_browser() {
    let mut command = python();
    let mut tests = Process::start(
        command
            .arg(root().join("tests/examples/test_web.py"))
            .arg("-v"),
    );
    // They have limits of their own for each thing that must happen.
    let status = tests.finish_within(10 * std::time::Duration::from(PATIENCE));
    assert!(status.success(), "{}", tests.told());
    assert!(tests.count("Ran 5 tests") == 1, "{}", tests.told());
}

/// All pictures of an H.264 stream: RGB of 128x128.
fn decoded(stream: &str) -> Vec<Vec<u8>> {
    let watch = Watch::new(stream);
    std::iter::from_fn(|| watch.next()).collect()
}

/// Mean of red, green and blue.
fn channel_means(rgb: &[u8]) -> [f64; 3] {
    let mut sums = [0.0; 3];
    for pixel in rgb.chunks(3) {
        for (sum, value) in sums.iter_mut().zip(pixel) {
            *sum += f64::from(*value) * 3.0 / rgb.len() as f64;
        }
    }
    sums
}

/// Someone who watches an H.264 stream of 128x128.
struct Watch {
    pipeline: gst::Pipeline,
    sink: gst_app::AppSink,
}

impl Watch {
    /// `stream` is the beginning of a pipeline that ends in H.264.
    fn new(stream: &str) -> Self {
        use gst::prelude::*;
        init();
        let line = format!(
            "{stream} ! avdec_h264 ! videoconvert ! video/x-raw,format=RGB,width=128,height=128 ! appsink name=sink sync=false"
        );
        let pipeline = gst::parse::launch(&line).unwrap();
        let pipeline = pipeline.downcast::<gst::Pipeline>().unwrap();
        let sink = pipeline.by_name("sink").unwrap().downcast().unwrap();
        pipeline.set_state(gst::State::Playing).unwrap();
        Self { pipeline, sink }
    }

    /// The next picture; none after the last one.
    #[track_caller]
    fn next(&self) -> Option<Vec<u8>> {
        use gst::prelude::*;
        let Some(sample) = self.sink.try_pull_sample(PATIENCE) else {
            assert!(
                self.sink.is_eos(),
                "no picture: {:?}",
                self.pipeline.bus().unwrap().pop()
            );
            return None;
        };
        let map = sample.buffer().unwrap().map_readable().unwrap();
        Some(map.to_vec())
    }

    /// Waits for a picture that `is` is true of.
    #[track_caller]
    fn wait_for(&self, what: &str, is: impl Fn(&[u8]) -> bool) {
        for _ in 0..2000 {
            let picture = self
                .next()
                .unwrap_or_else(|| panic!("the end came before: {what}"));
            if is(&picture) {
                return;
            }
        }
        panic!("2000 pictures came, but not: {what}");
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        use gst::prelude::*;
        let _ = self.pipeline.set_state(gst::State::Null);
    }
}
