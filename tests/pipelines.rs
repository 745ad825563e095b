//! The pipelines that people type, in the real `gst-launch-1.0`, each with a file, a server or a client at its other end
//! that says what came out. Cameras and screens are replaced, nothing else.

mod common;

use std::io::{BufRead, BufReader};
use std::net::{TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use common::*;
use gst::prelude::*;

/// In the place of a camera: as live as one, but it ends.
const CAMERA: &str =
    "videotestsrc is-live=true num-buffers=20 ! video/x-raw,width=160,height=128,framerate=15/1";
/// In the place of a screen.
const SCREEN: &str = "fakevideosink";

const PLUGINS: [&str; 27] = [
    "app",
    "audioconvert",
    "audioresample",
    "audiotestsrc",
    "compositor",
    "coreelements",
    "coretracers",
    "debugutilsbad",
    "flv",
    "isomp4",
    "libav",
    "mpegtsdemux",
    "mpegtsmux",
    "playback",
    "rtmp2",
    "rtp",
    "rtpmanager",
    "rtsp",
    "rtspclientsink",
    "srt",
    "tcp",
    "typefindfunctions",
    "udp",
    "videoconvertscale",
    "videoparsersbad",
    "videotestsrc",
    "x264",
];

/// A program with these plugins, which is ended if it hangs.
fn program(name: &str, folder: &Folder) -> Command {
    let mut command = tool("timeout", folder, &PLUGINS);
    command
        // In the foreground, signals go to the program once, not to its group once more.
        .args(["--foreground", "--signal=KILL", "120", name])
        .env("GST_STREAMDIFFUSION_MODELS", repository().join("models"))
        .env("GST_DEBUG", "2")
        .env("GST_DEBUG_NO_COLOR", "1")
        // What networks and codecs warn about is not ours.
        .env_remove("G_DEBUG");
    command
}

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).to_owned()
}

/// The shell command that starts a pipeline, as people type it.
fn typed(pipeline: &str, folder: &Folder) -> Command {
    let mut command = program("sh", folder);
    command
        .args(["-c", &format!("exec gst-launch-1.0 {pipeline}")])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// A pipeline that was started must end well, and nothing may have been warned of about our element.
#[track_caller]
fn ends_well(child: Child, pipeline: &str) {
    ended(child, pipeline, "Got EOS");
}

/// The same, with this said at the end.
#[track_caller]
fn ended(child: Child, pipeline: &str, said: &str) {
    let output = child.wait_with_output().unwrap();
    let text = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(
        output.status.success(),
        "{pipeline}: {:?}\n{text}",
        output.status
    );
    assert!(text.contains(said), "{pipeline}\n{text}");
    let of_ours = |line: &&str| {
        let level = [" WARN ", " ERROR ", "WARNING", "ERROR", "CRITICAL"];
        line.contains("streamdiffusion") && level.iter().any(|level| line.contains(level))
    };
    let warned: Vec<_> = text.lines().filter(of_ours).collect();
    assert!(warned.is_empty(), "{pipeline}\n{}", warned.join("\n"));
}

#[track_caller]
fn runs(pipeline: &str, folder: &Folder) {
    ends_well(typed(pipeline, folder).spawn().unwrap(), pipeline);
}

/// Frames of video and buffers of audio in a file.
fn count(file: &Path) -> (u64, u64) {
    let line = format!(
        "filesrc location={} ! decodebin name=d  d. ! video/x-raw ! fakesink name=v signal-handoffs=true  \
         d. ! audio/x-raw ! fakesink name=a signal-handoffs=true",
        file.display()
    );
    let pipeline = gst::parse::launch(&line).unwrap();
    let pipeline = pipeline.downcast::<gst::Pipeline>().unwrap();
    let counted = ["v", "a"].map(|name| {
        let seen = std::sync::Arc::new(std::sync::atomic::AtomicU64::new(0));
        let pad = pipeline.by_name(name).unwrap().static_pad("sink").unwrap();
        let counter = seen.clone();
        pad.add_probe(gst::PadProbeType::BUFFER, move |_, _| {
            counter.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            gst::PadProbeReturn::Ok
        });
        seen
    });
    pipeline.set_state(gst::State::Playing).unwrap();
    let ends = [gst::MessageType::Eos, gst::MessageType::Error];
    let end = pipeline.bus().unwrap().timed_pop_filtered(PATIENCE, &ends);
    pipeline.set_state(gst::State::Null).unwrap();
    let end = end.expect("the file does not end");
    assert_eq!(end.type_(), gst::MessageType::Eos, "{end:?}");
    let [video, audio] = counted.map(|seen| seen.load(std::sync::atomic::Ordering::Relaxed));
    (video, audio)
}

#[test]
fn camera_to_screen() {
    for pipeline in [
        // The first one that people try, without any other element.
        format!("{CAMERA} ! streamdiffusion prompt=\"oil painting\" ! {SCREEN}"),
        format!(
            "{CAMERA} ! videoconvert ! queue leaky=downstream max-size-buffers=1 ! \
             streamdiffusion prompt=\"oil painting\" ! videoconvert ! {SCREEN}"
        ),
        // To a virtual camera, for which there is no device here.
        format!("{CAMERA} ! videoconvert ! streamdiffusion ! videoconvert ! {SCREEN}"),
        format!(
            "{CAMERA} ! tee name=t t. ! queue ! streamdiffusion ! videoconvert ! c.sink_0 t. ! queue ! \
             videoconvert ! c.sink_1 compositor name=c sink_1::xpos=512 ! videoconvert ! {SCREEN}"
        ),
        format!(
            "{CAMERA} ! streamdiffusion mode=txt2img noise=walk prompt=\"oil painting\" ! videoconvert ! {SCREEN}"
        ),
    ] {
        runs(&pipeline, &Folder::new());
    }
}

#[test]
fn tracers_look_at_it() {
    let folder = Folder::new();
    let pipeline = format!("{CAMERA} ! streamdiffusion ! {SCREEN}");
    let mut command = typed(&pipeline, &folder);
    command.env("GST_DEBUG", "GST_TRACER:7").env(
        "GST_TRACERS",
        "latency(flags=element+pipeline);stats;rusage",
    );
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}");
    for record in [
        "element-latency",
        "element=(string)streamdiffusion0",
        "thread-rusage",
    ] {
        assert!(text.contains(record), "no {record}");
    }
}

#[test]
fn file_to_file_with_sound() {
    let folder = Folder::new();
    runs(
        "videotestsrc num-buffers=24 ! video/x-raw,width=160,height=128,framerate=24/1 ! x264enc ! h264parse ! \
         mp4mux name=m ! filesink location=in.mp4 audiotestsrc num-buffers=40 ! audioconvert ! avenc_aac ! m.",
        &folder,
    );
    let before = count(&folder.file("in.mp4"));
    assert_eq!(before.0, 24);
    let second = Folder::new();
    runs(
        &format!(
            "uridecodebin3 uri=file://{} name=d d. ! queue ! videoconvert ! streamdiffusion ! videoconvert ! \
             x264enc ! h264parse ! mp4mux name=m ! filesink location=out.mp4 d. ! queue ! audioconvert ! \
             avenc_aac ! m.",
            folder.file("in.mp4").display()
        ),
        &second,
    );
    let after = count(&second.file("out.mp4"));
    assert_eq!(after.0, before.0, "frames");
    // The encoder starts with one of its own.
    assert!(after.1.abs_diff(before.1) <= 2, "{after:?}, was {before:?}");
}

/// Whether somebody listens on a port: what the system's table says, so that nobody is disturbed by a question.
fn listens(table: &str, port: u16) -> bool {
    let text = std::fs::read_to_string(format!("/proc/net/{table}")).unwrap_or_default();
    let address = format!(":{port:04X} ");
    let local = |line: &str| line.split_whitespace().nth(1).map(|a| format!("{a} "));
    text.lines()
        .filter(|line| table == "udp" || line.contains(" 0A "))
        .filter_map(local)
        .any(|local| local.ends_with(&address))
}

fn free_port() -> u16 {
    let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
    tcp.local_addr().unwrap().port()
}

/// A test server, ended when dropped.
struct Server(Child);

impl Server {
    fn new(script: &str, folder: &Folder, arguments: &[&str]) -> Self {
        // The system's Python: apt installs the bindings for that one.
        let mut command = program("/usr/bin/python3", folder);
        let child = command
            .arg(repository().join("tests/servers").join(script))
            .args(arguments)
            .env("GST_DEBUG", "0")
            .stdout(Stdio::piped())
            .spawn();
        Self(child.unwrap())
    }

    /// The next line that it prints.
    fn line(&mut self) -> String {
        let mut line = String::new();
        let output = self.0.stdout.as_mut().unwrap();
        BufReader::new(output).read_line(&mut line).unwrap();
        line.trim().to_owned()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        signal(&self.0, libc::SIGTERM);
        let _ = self.0.wait();
    }
}

/// Sends a signal; `timeout`, which programs run under, passes it on.
fn signal(child: &Child, signal: libc::c_int) {
    // SAFETY: to a child that has not been waited for, whose number is still its own.
    unsafe { libc::kill(child.id() as libc::pid_t, signal) };
}

#[test]
fn to_an_rtmp_server() {
    let port = free_port();
    let url = format!("rtmp://127.0.0.1:{port}/live/key");
    let mut server = Server::new("rtmp.py", &Folder::new(), &[&url]);
    wait_until("the server listens", || listens("tcp", port));
    runs(
        &format!(
            "{CAMERA} ! videoconvert ! streamdiffusion ! videoconvert ! x264enc tune=zerolatency ! \
             flvmux streamable=true ! rtmp2sink location={url}"
        ),
        &Folder::new(),
    );
    let packets: u64 = server.line().parse().unwrap();
    assert!(packets > 4, "{packets} packets");
}

#[test]
fn as_an_srt_server() {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let port = socket.local_addr().unwrap().port();
    drop(socket);
    let pipeline = format!(
        "{CAMERA} ! videoconvert ! streamdiffusion ! videoconvert ! x264enc tune=zerolatency ! mpegtsmux ! \
         srtsink uri=srt://:{port}"
    );
    let (here, there) = (Folder::new(), Folder::new());
    let sender = typed(&pipeline, &here).spawn().unwrap();
    wait_until("it listens", || {
        listens("udp", port) || listens("udp6", port)
    });
    let player = format!(
        "srtsrc uri=srt://127.0.0.1:{port} ! filesink location=got.ts buffer-mode=unbuffered"
    );
    let mut player = typed(&player, &there)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    ends_well(sender, &pipeline);
    // It would wait for another sender.
    signal(&player, libc::SIGTERM);
    player.wait().unwrap();
    let got = std::fs::read(there.file("got.ts")).unwrap();
    assert!(got.len() > 20 * 188, "{} bytes", got.len());
    assert_eq!(got[0], 0x47, "not a transport stream");
}

#[test]
fn from_rtsp_to_rtsp() {
    let folder = Folder::new();
    let file = folder.file("out.h264");
    // Longer than it takes, as a camera is.
    let launch = "( videotestsrc is-live=true ! video/x-raw,width=160,height=128,framerate=15/1 ! \
                  x264enc tune=zerolatency key-int-max=15 ! rtph264pay name=pay0 )";
    let mut server = Server::new("rtsp.py", &folder, &[launch, file.to_str().unwrap()]);
    let port = server.line();
    let pipeline = format!(
        "rtspsrc location=rtsp://127.0.0.1:{port}/in latency=100 ! decodebin3 ! videoconvert ! \
         queue leaky=downstream max-size-buffers=1 ! streamdiffusion ! videoconvert ! \
         x264enc tune=zerolatency ! rtspclientsink location=rtsp://127.0.0.1:{port}/out"
    );
    let here = Folder::new();
    let sender = typed(&pipeline, &here).spawn().unwrap();
    let size = || std::fs::metadata(&file).map_or(0, |file| file.len());
    wait_until("the server gets video", || size() > 4_000);
    // Ctrl-C: a camera does not end. (With gst-launch-1.0's -e, rtspclientsink 1.22 waits for an end of its RTCP session,
    // which does not always come.)
    signal(&sender, libc::SIGINT);
    ended(sender, &pipeline, "handling interrupt");
    let got = std::fs::read(&file).unwrap();
    assert_eq!(got[..3], [0, 0, 0], "not H.264 as in a file");
}

/// In the place of `test-launch`, which comes with no package.
#[test]
fn inside_an_rtsp_server() {
    let folder = Folder::new();
    let file = folder.file("out.h264");
    let launch = "( videotestsrc is-live=true num-buffers=60 ! video/x-raw,width=160,height=128,framerate=15/1 ! \
                  streamdiffusion ! videoconvert ! x264enc tune=zerolatency ! rtph264pay name=pay0 )";
    let mut server = Server::new("rtsp.py", &folder, &[launch, file.to_str().unwrap()]);
    let port = server.line();
    let player = format!(
        "rtspsrc location=rtsp://127.0.0.1:{port}/in latency=100 ! decodebin3 ! identity eos-after=10 ! {SCREEN}"
    );
    runs(&player, &Folder::new());
}
