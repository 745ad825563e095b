//! What a frame asks of the driver, counted by the stand-in for it.

use std::ffi::{CString, c_char};

use gst::prelude::*;
use gst_check::Harness;
use gst_video::VideoInfo;
use libloading::Library;

use super::tests::{caps, element, gpu, paint, sharing, source};
use crate::computing::{self, When};
use crate::element::caps::Memory;
use crate::standin;

/// Frames after which what comes again and again is a graph.
const SETTLED: u64 = 12;
/// Frames that are counted.
const COUNTED: i64 = 10;
/// What costs a frame time, and no frame may ask for: memory, graphs that are made anew, and waits for more than an event.
const NEVER: [&str; 7] = [
    "cuMemAlloc_v2",
    "cuMemFree_v2",
    "cuMemHostAlloc",
    "cuMemFreeHost",
    "cuGraphInstantiateWithFlags",
    "cuStreamSynchronize",
    "cuCtxSynchronize",
];

/// The counters of the stand-in.
pub(super) struct Calls(Library);

impl Calls {
    pub(super) fn open() -> Self {
        let library = standin::library().unwrap();
        // SAFETY: it is open already.
        Self(unsafe { Library::new(library) }.unwrap())
    }

    pub(super) fn of(&self, name: &str) -> i64 {
        type Count = unsafe extern "C" fn(*const c_char) -> i64;
        let text = CString::new(name).unwrap();
        // SAFETY: as its source has it; the text ends in zero.
        let count = unsafe { self.0.get::<Count>(c"standin_count").unwrap()(text.as_ptr()) };
        assert_ne!(count, -1, "{name} is not counted");
        count
    }

    /// How often each of `names` is called while `work` is done.
    fn during<const N: usize>(&self, names: [&str; N], work: impl FnOnce()) -> [i64; N] {
        let before = names.map(|name| self.of(name));
        work();
        std::array::from_fn(|i| self.of(names[i]) - before[i])
    }
}

/// Frames that come and go in the GPU's memory.
struct Clip {
    harness: Harness,
    /// Painted, and in the GPU's memory already.
    frames: Vec<gst::Buffer>,
    next: u64,
}

impl Clip {
    fn push(&mut self, count: u64) {
        for _ in 0..count {
            let mut buffer = self.frames[self.next as usize % self.frames.len()].copy();
            let time = gst::ClockTime::from_mseconds(40 * self.next);
            buffer.make_mut().set_pts(time);
            self.harness.push(buffer).unwrap();
            self.next += 1;
            while self.harness.try_pull().is_some() {}
        }
    }

    /// That each frame is `graphs` graphs, two kernels (one that takes it in, and one that hands it out), and as many copies of
    /// parameters, besides `uploads`; and a kernel with its parameters and its outcome if it is `compared`. No tensor goes to
    /// main memory.
    fn check(&mut self, graphs: i64, uploads: i64, compared: bool, what: &str) {
        let asked = [
            "cuGraphLaunch",
            "cuLaunchKernel",
            "cuMemcpyHtoDAsync_v2",
            "cuMemcpyDtoHAsync_v2",
        ];
        let calls = Calls::open();
        let mut found = [0; 4];
        let never = calls.during(NEVER, || {
            found = calls.during(asked, || self.push(COUNTED as u64));
        });
        assert_eq!(never, [0; NEVER.len()], "{what}: {NEVER:?}");
        let compared = i64::from(compared);
        let expected = [graphs, 2 + compared, graphs + uploads + compared, compared];
        let expected = expected.map(|count| COUNTED * count);
        assert_eq!(found, expected, "{what}: {asked:?}");
    }
}

#[test]
fn a_frame_is_one_graph() {
    let name = "element::cuda::calls::a_frame_is_one_graph";
    computing::run(name, &[], &[When::Late], || {
        let machine = gpu();
        let gpu = machine.open();
        let caps = caps("NV12", (64, 64), Memory::Cuda);
        let element = element("onnxruntime-cuda");
        element.set_property_from_str("cfg-type", "full");
        let pool = source(sharing(&gpu), &caps);
        let info = VideoInfo::from_caps(&caps).unwrap();
        let frame = |k| {
            let mut buffer = pool.acquire_buffer(None).unwrap();
            paint(buffer.get_mut().unwrap(), &info, k);
            buffer
        };
        let mut harness = Harness::with_element(&element, Some("sink"), Some("src"));
        harness.set_sink_caps(caps.clone());
        harness.set_src_caps(caps.clone());
        harness.play();
        let mut clip = Clip {
            frames: (0..4).map(frame).collect(),
            harness,
            next: 0,
        };
        clip.push(SETTLED);
        clip.check(1, 0, false, "settled");

        // Live changes are numbers in what the graph reads.
        element.set_property("guidance-scale", 1.7f64);
        element.set_property("delta", 0.5f64);
        element.set_property("t-index-list", "30,44");
        element.set_property("seed", 7u64);
        clip.push(4);
        clip.check(1, 0, false, "after live changes");

        // Another number of steps is another graph, made once.
        element.set_property("t-index-list", "45");
        clip.push(SETTLED);
        clip.check(1, 0, false, "with one step");

        // Frames are compared, and none is skipped.
        element.set_property("ssf-threshold", 1.0f64);
        element.set_property("similarity-filter", true);
        clip.push(SETTLED);
        clip.check(1, 0, true, "with the similarity filter");
        // And skipped: what shows them shares a buffer's memory.
        element.set_property("ssf-threshold", 0.0f64);
        clip.push(SETTLED);
        let calls = Calls::open();
        let graphs = calls.of("cuGraphLaunch");
        assert_eq!(calls.during(NEVER, || clip.push(40)), [0; NEVER.len()]);
        assert!(calls.of("cuGraphLaunch") - graphs < 30, "none was skipped");
        element.set_property("similarity-filter", false);

        // On the way to another prompt, a graph more for what is computed of each frame's text, which is blended on the GPU:
        // both ends are there.
        let bus = gst::Bus::new();
        element.set_bus(Some(&bus));
        element.set_property("prompt-transition", 40_000_000 * 100u64);
        element.set_property("prompt", "a frozen lake");
        let begun = || {
            let message = bus.pop_filtered(&[gst::MessageType::Element]);
            let name = message.and_then(|m| m.structure().map(|s| s.name().to_string()));
            name.as_deref() == Some("streamdiffusion-prompt-transition")
        };
        // The prompt is encoded beside frames.
        (0..10_000)
            .take_while(|_| !begun())
            .for_each(|_| clip.push(1));
        clip.push(SETTLED);
        clip.check(2, 0, false, "in a transition");
        element.set_state(gst::State::Null).unwrap();
        element.set_bus(None);
    });
}
