//! What happens while the model loads: frames wait or pass, a flush and a stop end the wait, also before the element has
//! started. Alone in its program, because the environment and the library belong to the
//! whole process.

mod common;

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use common::*;
use gst::prelude::*;

type Flow = Result<gst::FlowSuccess, gst::FlowError>;

/// Pushes a frame from another thread, and waits until it is in the element.
fn push(rig: &Rig) -> JoinHandle<Flow> {
    let inside = Arc::new(AtomicBool::new(false));
    let pad = rig.element.static_pad("sink").unwrap();
    let probe = pad.add_probe(gst::PadProbeType::BUFFER, {
        let inside = inside.clone();
        move |_, _| {
            inside.store(true, Ordering::SeqCst);
            gst::PadProbeReturn::Ok
        }
    });
    let src = rig.src.clone();
    let pushing = std::thread::spawn(move || src.push(frame(0)));
    wait_until("the frame is in", || inside.load(Ordering::SeqCst));
    pad.remove_probe(probe.unwrap());
    assert!(!pushing.is_finished(), "the frame did not wait");
    pushing
}

/// The kinds of the messages of progress so far.
fn progress(rig: &Rig) -> Vec<gst::ProgressType> {
    let messages = rig.messages(&[gst::MessageType::Progress]);
    let kind = |message: &gst::Message| match message.view() {
        gst::MessageView::Progress(progress) => progress.type_(),
        _ => unreachable!(),
    };
    messages.iter().map(kind).collect()
}

/// Opens `pipe`, which can be done once the library has it open: the model is known to be loading, and goes on when what
/// this gives is dropped.
#[track_caller]
fn hold(pipe: &Path) -> File {
    let start = std::time::Instant::now();
    loop {
        let mut options = OpenOptions::new();
        options.write(true).custom_flags(libc::O_NONBLOCK);
        match options.open(pipe) {
            Ok(held) => return held,
            Err(_) => assert!(
                start.elapsed() < std::time::Duration::from(PATIENCE),
                "nothing is loaded"
            ),
        }
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
}

/// A library that is no ONNX Runtime, but says so only after `pipe` is closed. It closes it too: who is left with it open would
/// be taken for one that opens it next.
fn slow_library(folder: &Folder, pipe: &Path) -> PathBuf {
    let source = folder.file("slow.c");
    let code = format!(
        "int open(const char *, int, ...);
         long read(int, void *, unsigned long);
         int close(int);
         void *OrtGetApiBase(void) {{ int pipe = open({pipe:?}, 0); char c; read(pipe, &c, 1); close(pipe); return 0; }}"
    );
    fs::write(&source, code).unwrap();
    let library = folder.file("libonnxruntime.so");
    let output = Command::new("cc")
        .args(["-shared", "-fPIC", "-o"])
        .args([&library, &source])
        .output()
        .expect("cc, which Rust links with, is needed");
    assert!(output.status.success(), "{output:?}");
    library
}

#[test]
fn while_the_model_loads_frames_pass_or_wait_until_a_flush_or_a_stop() {
    let rig = Rig::new(&[], Neighbours::default());
    let real = std::env::var_os("ORT_DYLIB_PATH");
    let folder = Folder::new();
    let pipe = folder.file("pipe");
    let path = std::ffi::CString::new(pipe.to_str().unwrap()).unwrap();
    // SAFETY: the path is a null-terminated string.
    assert_eq!(unsafe { libc::mkfifo(path.as_ptr(), 0o600) }, 0);
    let library = slow_library(&folder, &pipe);
    // SAFETY: this program's only test, and nothing else reads or writes the environment now.
    unsafe { std::env::set_var("ORT_DYLIB_PATH", library) };

    // Asked for in READY it is given up in NULL, which waits for the loader.
    rig.element.set_state(gst::State::Ready).unwrap();
    assert!(rig.element.emit_by_name::<bool>("load", &[]));
    let held = hold(&pipe);
    assert!(!rig.element.emit_by_name::<bool>("load", &[]), "twice");
    let element = rig.element.clone();
    let stopping = std::thread::spawn(move || element.set_state(gst::State::Null));
    drop(held);
    stopping.join().unwrap().unwrap();
    let progress = progress(&rig);
    assert_eq!(progress.first(), Some(&gst::ProgressType::Start));
    // The library may have been found out before the element was stopped.
    let last = [gst::ProgressType::Canceled, gst::ProgressType::Error];
    assert!(progress.last().is_some_and(|end| last.contains(end)));
    rig.errors();

    rig.play(&rgb());
    let held = hold(&pipe);

    set(&rig.element, &[("while-loading", "passthrough")]);
    rig.push_frames(0..3);
    for (k, shown) in (0..).zip(rig.pictures()) {
        assert_eq!(shown, picture(k), "frame {k}");
    }
    assert_eq!(stat(&rig.element, "passed"), 3);
    set(&rig.element, &[("while-loading", "block")]);

    for _ in 0..3 {
        let pushing = push(&rig);
        assert!(rig.event(gst::event::FlushStart::new()));
        assert_eq!(pushing.join().unwrap(), Err(gst::FlowError::Flushing));
        assert!(rig.event(gst::event::FlushStop::new(true)));
        assert!(rig.segment());
    }
    // Properties and latency can be asked for meanwhile.
    assert_eq!(stat(&rig.element, "output"), 3);
    assert!(rig.sink.peer_query(&mut gst::query::Latency::new()));
    set(&rig.element, &[("prompt", "another")]);

    // A stop ends it too; it then waits itself for the loader, which cannot be interrupted.
    let pushing = push(&rig);
    let element = rig.element.clone();
    let stopping = std::thread::spawn(move || element.set_state(gst::State::Null));
    assert_eq!(pushing.join().unwrap(), Err(gst::FlowError::Flushing));
    // Frames are let go just before the worker is told: its progress then ends, but not as a failure.
    wait_until("the element stops", || {
        let (_, _, pending) = rig.element.state(gst::ClockTime::ZERO);
        pending == gst::State::Null
    });
    drop(held);
    stopping.join().unwrap().unwrap();
    rig.stop();
    let progress = self::progress(&rig);
    assert_eq!(progress.first(), Some(&gst::ProgressType::Start));
    let ends = |kind: &&gst::ProgressType| {
        !matches!(kind, gst::ProgressType::Start | gst::ProgressType::Continue)
    };
    assert_eq!(progress.iter().filter(ends).count(), 1, "{progress:?}");

    // SAFETY: as above; the loader has been joined.
    match real {
        Some(real) => unsafe { std::env::set_var("ORT_DYLIB_PATH", real) },
        None => unsafe { std::env::remove_var("ORT_DYLIB_PATH") },
    }
    // The library that was none is an error nobody waits for any more.
    rig.errors();
    rig.play(&rgb());
    rig.push_frames(0..3);
    rig.end();
    assert_eq!(rig.frames().len(), 3);
    assert!(rig.errors().is_empty());

    // Frames pass until the model is there, then they are restyled.
    rig.stop();
    set(&rig.element, &[("while-loading", "passthrough")]);
    rig.play(&rgb());
    let mut pushed = 0;
    wait_until("frames are restyled", || {
        rig.push(frame(pushed));
        pushed += 1;
        stat(&rig.element, "processed") > 1
    });
    rig.end();
    let shown = rig.pictures();
    assert_eq!(shown.len() as u64, pushed);
    let passed = stat(&rig.element, "passed");
    for (k, shown) in (0..).zip(&shown) {
        assert_eq!(*shown == picture(k), k < passed, "frame {k} of {pushed}");
    }
    assert!(rig.errors().is_empty());
}
