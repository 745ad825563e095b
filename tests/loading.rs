//! A flush and a stop while the model loads. Alone in its program, because the environment and the library belong to the
//! whole process.

mod common;

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};

use common::*;
use gst::prelude::*;

type Flow = Result<gst::FlowSuccess, gst::FlowError>;

/// A thread that pushes a frame when it is told to, and tells what came of it. It is there from the start: the loader
/// lets no thread start while it opens a library.
struct Pusher {
    go: Sender<()>,
    flow: Receiver<Flow>,
    inside: Arc<AtomicBool>,
}

impl Pusher {
    fn new(rig: &Rig) -> Self {
        let (go, told) = channel();
        let (tell, flow) = channel();
        let inside = Arc::new(AtomicBool::new(false));
        let pad = rig.element.static_pad("sink").unwrap();
        pad.add_probe(gst::PadProbeType::BUFFER, {
            let inside = inside.clone();
            move |_, _| {
                inside.store(true, Ordering::SeqCst);
                gst::PadProbeReturn::Ok
            }
        });
        let src = rig.src.clone();
        std::thread::spawn(move || {
            for () in told {
                let _ = tell.send(src.push(frame(0)));
            }
        });
        Self { go, flow, inside }
    }

    /// Has a frame pushed, and waits until it is in the element.
    fn push(&self) {
        self.inside.store(false, Ordering::SeqCst);
        self.go.send(()).unwrap();
        wait_until("the frame is in", || self.inside.load(Ordering::SeqCst));
        assert!(self.flow.try_recv().is_err(), "the frame did not wait");
    }

    fn flow(&self) -> Flow {
        self.flow.recv_timeout(PATIENCE.into()).expect("no end of the wait")
    }
}

#[test]
fn a_flush_and_a_stop_end_the_wait_for_the_model() {
    let rig = Rig::new(&[], Neighbours::default());
    let real = std::env::var_os("ORT_DYLIB_PATH");
    // A library that is a pipe: opening it lasts until this test closes its end.
    let folder = Folder::new();
    let pipe = folder.file("libonnxruntime.so");
    let path = std::ffi::CString::new(pipe.to_str().unwrap()).unwrap();
    // SAFETY: the path is a null-terminated string.
    assert_eq!(unsafe { libc::mkfifo(path.as_ptr(), 0o600) }, 0);
    // SAFETY: this program's only test, and nothing else reads or writes the environment now.
    unsafe { std::env::set_var("ORT_DYLIB_PATH", &pipe) };

    let pusher = Pusher::new(&rig);
    let (stop, told) = channel::<()>();
    let element = rig.element.clone();
    let stopping = std::thread::spawn(move || {
        told.recv().unwrap();
        element.set_state(gst::State::Null)
    });
    rig.play(&rgb());
    let mut held = None;
    let start = std::time::Instant::now();
    // It can be opened once the loader has it open, so that the model is known to be loading from here on.
    while held.is_none() {
        assert!(
            start.elapsed() < std::time::Duration::from(PATIENCE),
            "nothing is loaded"
        );
        let mut options = OpenOptions::new();
        options.write(true).custom_flags(libc::O_NONBLOCK);
        held = options.open(&pipe).ok();
        std::thread::sleep(std::time::Duration::from_millis(1));
    }

    for _ in 0..3 {
        pusher.push();
        assert!(rig.event(gst::event::FlushStart::new()));
        assert_eq!(pusher.flow(), Err(gst::FlowError::Flushing));
        assert!(rig.event(gst::event::FlushStop::new(true)));
        assert!(rig.segment());
    }
    // Properties and latency can be asked for meanwhile.
    assert_eq!(stat(&rig.element, "output"), 0);
    assert!(rig.sink.peer_query(&mut gst::query::Latency::new()));
    set(&rig.element, &[("prompt", "another")]);

    // A stop ends it too; it then waits itself for the loader, which cannot be interrupted.
    pusher.push();
    stop.send(()).unwrap();
    assert_eq!(pusher.flow(), Err(gst::FlowError::Flushing));
    drop(held);
    stopping.join().unwrap().unwrap();
    rig.stop();

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
}
