//! The RTSP server, and the program that watches a camera which goes away.

use std::path::PathBuf;
use std::process::Command;
use std::sync::LazyLock;

use crate::process::*;
use crate::{SMALL, Watch, channel_means};

/// The server. `scripts/test` has built it with the rest of the workspace; a plain `cargo test` does not, because that
/// takes GStreamer's RTSP server to do.
static SERVER: LazyLock<PathBuf> = LazyLock::new(|| {
    let server = built().join("streamdiffusion-rtsp-server");
    if !server.exists() {
        let output = Command::new(env!("CARGO"))
            .args([
                "build",
                "--locked",
                "--package",
                "streamdiffusion-rtsp-server",
                "--target-dir",
            ])
            .arg(built().parent().unwrap())
            .output()
            .unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(
            output.status.success(),
            "{errors}\nscripts/setup --tests installs what is missing"
        );
    }
    server
});

/// Starts the server with these arguments; with its address.
fn serve(arguments: &[&str]) -> (Process, String) {
    let mut command = program(&*SERVER);
    command.args(["--size", "128x128", "--fps", "10"]);
    let mut server = Process::start(command.args(arguments));
    let address = server.wait_until("its address", |line| line.starts_with("rtsp://"));
    (server, address)
}

fn watch(address: &str) -> Watch {
    Watch::new(&format!(
        "rtspsrc location={address} latency=0 protocols=tcp ! rtph264depay"
    ))
}

fn is_night_vision(rgb: &[u8]) -> bool {
    let [r, g, b] = channel_means(rgb);
    g > r + 40.0 && g > b + 40.0
}

fn is_blueprint(rgb: &[u8]) -> bool {
    let [r, g, b] = channel_means(rgb);
    b > r + 60.0 && b > g + 30.0
}

#[test]
fn two_clients_of_the_server_share_one_pipeline() {
    let arguments = ["--port", "0", "--prompt", "night vision"];
    let (mut server, address) = serve(&[&SMALL[..], &arguments].concat());
    let first = watch(&address);
    first.wait_for("night vision", is_night_vision);
    let second = watch(&address);
    second.wait_for("night vision", is_night_vision);
    server.type_line("a blueprint");
    first.wait_for("blueprint", is_blueprint);
    second.wait_for("blueprint", is_blueprint);
    drop(first);
    // The one that stays is not disturbed.
    for _ in 0..20 {
        assert!(is_blueprint(&second.next().unwrap()));
    }
    drop(second);
    server.wait_for("is taken down");
    // Whoever comes later sees what the last prompt was.
    let third = watch(&address);
    third.wait_for("blueprint", is_blueprint);
    server.wait_for("pipeline 2 is built");
    assert_eq!(server.count("is built"), 2, "{}", server.told());
}

#[test]
fn the_server_says_what_is_wrong() {
    for (arguments, code, part) in [
        (&["--set", "stepps=1"][..], 1, "no property 'stepps'"),
        (&["--set", "steps=many"], 1, "property steps: 'many'"),
        (
            &["--address", "nowhere.invalid"],
            1,
            "cannot listen on nowhere.invalid",
        ),
        (&["--input", "film"], 2, "expected test, camera"),
        (&["--size", "127x128"], 2, "both even"),
        (&["--mount", "live"], 2, "expected a path such as /live"),
    ] {
        let mut server = Process::start(program(&*SERVER).args(arguments));
        assert_eq!(server.finish().code(), Some(code), "{}", server.told());
        assert_eq!(server.count(part), 1, "{}", server.told());
    }
}

#[test]
fn a_camera_that_goes_away_is_found_again_without_a_reload() {
    let (camera, address) = serve(&["--no-restyle", "--port", "0"]);
    let port = address.split(['/', ':']).nth(4).unwrap().to_owned();
    let mut command = python();
    command.args([
        "examples/python/reconnect.py",
        &address,
        "--tcp",
        "--output",
        "null",
        "--size",
        "128x128",
    ]);
    command.args(["--wait", "0.2", "--longest-wait", "1", "--stats", "0.2"]);
    let mut relay = Process::start(command.args(SMALL));
    let frames = |line: &str| -> Option<u64> {
        let rest = line.strip_prefix("stats: ")?;
        rest.split(' ').next()?.parse().ok()
    };
    relay.wait_for("the camera is there");
    let line = relay.wait_until("frames", |line| frames(line).is_some_and(|n| n >= 5));
    let mut seen = frames(&line).unwrap();
    let mut camera = Some(camera);
    for _ in 0..2 {
        camera.take().unwrap().kill();
        relay.wait_for("no camera: ");
        // It knocks at a door that nobody opens.
        relay.wait_for("no camera: ");
        let (again, at) = serve(&["--no-restyle", "--port", &port]);
        assert_eq!(at, address);
        camera = Some(again);
        relay.wait_for("the camera is there");
        let line = relay.wait_until("more frames", |line| {
            frames(line).is_some_and(|n| n >= seen + 10)
        });
        seen = frames(&line).unwrap();
    }
    // One element, that was started once.
    assert_eq!(relay.count("Loading model"), 1, "{}", relay.told());
    assert_eq!(relay.count("is loaded"), 1, "{}", relay.told());
    relay.interrupt();
    assert!(relay.finish().success(), "{}", relay.told());
}

#[test]
fn a_camera_that_is_not_there_yet_is_waited_for() {
    let (probe, address) = serve(&["--no-restyle", "--port", "0"]);
    let port = address.split(['/', ':']).nth(4).unwrap().to_owned();
    probe.kill();
    let mut command = python();
    command.args([
        "examples/python/reconnect.py",
        &address,
        "--tcp",
        "--output",
        "null",
        "--size",
        "128x128",
    ]);
    command.args(["--wait", "0.2", "--longest-wait", "1", "--stats", "0.2"]);
    let mut relay = Process::start(command.args(SMALL));
    relay.wait_for("no camera: ");
    relay.wait_for("no camera: ");
    let (_camera, _) = serve(&["--no-restyle", "--port", &port]);
    relay.wait_for("the camera is there");
    let some = |line: &str| line.starts_with("stats: ") && !line.starts_with("stats: 0 ");
    relay.wait_until("frames", some);
    relay.interrupt();
    assert!(relay.finish().success(), "{}", relay.told());
}

/// Starts a server that takes streams; with its address.
fn record(port: &str) -> (Process, String) {
    let mut command = python();
    let mut server = Process::start(command.args(["tests/examples/recorder.py", port]));
    let address = server.wait_until("its address", |line| line.starts_with("rtsp://"));
    (server, address)
}

fn port(address: &str) -> String {
    address.split(['/', ':']).nth(4).unwrap().to_owned()
}

#[test]
fn what_goes_out_by_rtsp_outlives_the_camera_and_is_sent_again_after_a_loss() {
    let (camera, from) = serve(&["--no-restyle", "--port", "0"]);
    let (mut recorder, to) = record("0");
    let mut command = python();
    command.args([
        "examples/python/reconnect.py",
        &from,
        "--tcp",
        "--output",
        &to,
    ]);
    command.args([
        "--size",
        "128x128",
        "--wait",
        "0.2",
        "--longest-wait",
        "1",
        "--stats",
        "0",
    ]);
    let mut relay = Process::start(command.args(SMALL));
    recorder.wait_for("stream 1: 10 frames");
    camera.kill();
    relay.wait_for("no camera: ");
    let (_camera, _) = serve(&["--no-restyle", "--port", &port(&from)]);
    relay.wait_for("the camera is there");
    // The viewers of the output stay: it is the same stream that goes on.
    recorder.wait_until("more of it", |line| {
        let frames = line.strip_prefix("stream 1: ");
        frames.is_some_and(|rest| rest != "10 frames" && rest != "20 frames")
    });
    recorder.kill();
    relay.wait_for("no output: ");
    let (mut recorder, _) = record(&port(&to));
    recorder.wait_for("stream 1: 20 frames");
    relay.interrupt();
    assert!(relay.finish().success(), "{}", relay.told());
}
