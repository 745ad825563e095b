//! Frames in a GPU's memory, through the element: on an NVIDIA GPU, with an ONNX Runtime for it, and on the stand-in that
//! computes. GStreamer's CUDA library is needed for both.

#[macro_use]
#[path = "../../../tests/standin/twins.rs"]
mod twins;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use gst::prelude::*;
use gst_check::Harness;
use gst_video::prelude::*;
use gst_video::{VideoFrameRef, VideoInfo};

use super::{Context, Gpu, Mapped, Sharing, TYPE, context, is_cuda};
#[cfg(target_os = "linux")]
use crate::computing;
use crate::device::cuda::Cuda;
use crate::element::caps::{CUDA_FORMATS, Memory};
#[cfg(target_os = "linux")]
use crate::standin;

const FRAMES: u64 = 5;

pub(super) fn model() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/parity/model")
}

/// Held by every test: what one has on the GPU counts in the next.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Held by tests that compare runs with one another exactly: graphs run as they were exported meanwhile, as sums of fused
/// group normalisations are in no fixed order.
struct Exported;

impl Exported {
    const VARIABLE: &str = "STREAMDIFFUSION_ONNXRUNTIME_FUSIONS";

    fn new(_alone: &MutexGuard<'_, ()>) -> Self {
        // SAFETY: no other test of this kind runs, and what it started has ended.
        unsafe { std::env::set_var(Self::VARIABLE, "exported") };
        Self
    }
}

impl Drop for Exported {
    fn drop(&mut self) {
        // SAFETY: as above.
        unsafe { std::env::remove_var(Self::VARIABLE) };
    }
}

pub(super) fn init() {
    gst::init().unwrap();
    // Again is an error that says nothing here.
    let _ = crate::plugin_register_static();
}

pub(super) fn element(backend: &str) -> gst::Element {
    init();
    gst::ElementFactory::make("streamdiffusion")
        .property("model", model().to_str())
        .property_from_str("backend", backend)
        .property("t-index-list", "32,45")
        .build()
        .unwrap()
}

pub(super) fn caps(format: &str, (width, height): (i32, i32), memory: Memory) -> gst::Caps {
    let mut caps = gst::Caps::builder("video/x-raw")
        .field("format", format)
        .field("width", width)
        .field("height", height)
        .field("framerate", gst::Fraction::new(25, 1))
        .build();
    caps.make_mut().set_features_simple(Some(memory.features()));
    caps
}

/// The rows of all planes of a frame in main memory or a GPU's, without what pads them.
fn pixels(buffer: &gst::BufferRef, info: &VideoInfo) -> Vec<u8> {
    let frame = VideoFrameRef::from_buffer_ref_readable(buffer, info).unwrap();
    let mut pixels = Vec::new();
    for (plane, (row, rows)) in planes(info).into_iter().enumerate() {
        let stride = frame.plane_stride()[plane] as usize;
        let data = frame.plane_data(plane as u32).unwrap();
        for y in 0..rows {
            pixels.extend_from_slice(&data[y * stride..][..row]);
        }
    }
    pixels
}

/// Bytes of a row and rows of each plane.
fn planes(info: &VideoInfo) -> Vec<(usize, usize)> {
    let buffer = gst::Buffer::with_size(info.size()).unwrap();
    let layout = crate::element::layout::layout(info, &buffer, None, info.size()).unwrap();
    let planes = layout.format().planes().iter();
    planes.map(|plane| layout.plane_size(plane)).collect()
}

/// Writes frame `k` of a moving picture, with smooth colours and an edge, into a buffer of either kind.
pub(super) fn paint(buffer: &mut gst::BufferRef, info: &VideoInfo, k: u64) {
    buffer.set_pts(gst::ClockTime::from_mseconds(40 * k));
    buffer.set_duration(gst::ClockTime::from_mseconds(40));
    let all = planes(info);
    let mut frame = VideoFrameRef::from_buffer_ref_writable(buffer, info).unwrap();
    for (plane, (row, rows)) in all.into_iter().enumerate() {
        let stride = frame.plane_stride()[plane] as usize;
        let data = frame.plane_data_mut(plane as u32).unwrap();
        for y in 0..rows {
            for x in 0..row {
                let edge = if (x + 5 * k as usize) % row > row / 2 {
                    70
                } else {
                    0
                };
                data[y * stride + x] = (40 + y * 90 / rows + x * 40 / row + edge + plane * 9) as u8;
            }
        }
    }
}

/// Buffers of these caps, in the memory that they name.
pub(super) fn source(sharing: &Sharing, caps: &gst::Caps) -> gst::BufferPool {
    let info = VideoInfo::from_caps(caps).unwrap();
    let pool = match Memory::of_caps(caps) {
        Memory::Cuda => {
            sharing
                .pool(None, caps, (info.size() as u32, 0, 0))
                .unwrap()
                .0
        }
        Memory::System => {
            let pool = gst_video::VideoBufferPool::new();
            let mut config = pool.config();
            config.set_params(Some(caps), info.size() as u32, 0, 0);
            pool.set_config(config).unwrap();
            pool.upcast()
        }
    };
    pool.set_active(true).unwrap();
    pool
}

/// What `element` makes of the moving picture, of `input` caps in buffers of `pool`, as `output` caps.
fn restyle(
    element: &gst::Element,
    pool: &gst::BufferPool,
    input: &gst::Caps,
    output: &gst::Caps,
) -> Vec<Vec<u8>> {
    restyle_some(FRAMES, element, pool, input, output)
}

/// The same of so many frames.
fn restyle_some(
    frames: u64,
    element: &gst::Element,
    pool: &gst::BufferPool,
    input: &gst::Caps,
    output: &gst::Caps,
) -> Vec<Vec<u8>> {
    let mut harness = Harness::with_element(element, Some("sink"), Some("src"));
    harness.set_sink_caps(output.clone());
    harness.set_src_caps(input.clone());
    harness.play();
    let info = VideoInfo::from_caps(input).unwrap();
    for k in 0..frames {
        let mut buffer = pool.acquire_buffer(None).unwrap();
        paint(buffer.get_mut().unwrap(), &info, k);
        assert_eq!(is_cuda(&buffer), Memory::of_caps(input) == Memory::Cuda);
        harness.push(buffer).unwrap();
    }
    assert!(harness.push_event(gst::event::Eos::new()));
    let info = VideoInfo::from_caps(output).unwrap();
    (0..frames)
        .map(|k| {
            let buffer = harness.pull().unwrap();
            assert_eq!(buffer.pts(), Some(gst::ClockTime::from_mseconds(40 * k)));
            assert_eq!(is_cuda(&buffer), Memory::of_caps(output) == Memory::Cuda);
            pixels(&buffer, &info)
        })
        .collect()
}

/// How far two clips are apart: at most, and on average.
fn distance(a: &[Vec<u8>], b: &[Vec<u8>]) -> (u8, f64) {
    assert_eq!(a.len(), b.len());
    let (a, b) = (a.concat(), b.concat());
    assert_eq!(a.len(), b.len());
    let apart = || a.iter().zip(&b).map(|(a, b)| a.abs_diff(*b));
    let sum: f64 = apart().map(f64::from).sum();
    (apart().max().unwrap(), sum / a.len() as f64)
}

#[track_caller]
fn alike(a: &[Vec<u8>], b: &[Vec<u8>], tolerance: u8, what: &str) {
    let (most, mean) = distance(a, b);
    assert!(
        most <= tolerance,
        "{what}: differs by {most}, {mean} on average"
    );
}

/// Frames by the upper bytes of their samples, where these have two.
fn rough(format: &str, frames: Vec<Vec<u8>>) -> Vec<Vec<u8>> {
    match format {
        "P010_10LE" => {
            let upper = |frame: Vec<u8>| frame.chunks_exact(2).map(|sample| sample[1]).collect();
            frames.into_iter().map(upper).collect()
        }
        _ => frames,
    }
}

/// The GPU, or what stands in for it, for one test alone.
pub(super) struct Machine {
    alone: MutexGuard<'static, ()>,
}

impl Machine {
    pub(super) fn open(&self) -> Arc<Gpu> {
        Gpu::open(0).unwrap()
    }
}

pub(super) fn gpu() -> Machine {
    let alone = alone();
    init();
    Machine { alone }
}

/// `size` on a GPU, and `smaller` on the stand-in, where each pixel takes long.
fn or_smaller(size: (i32, i32), smaller: (i32, i32)) -> (i32, i32) {
    if is_standing_in() { smaller } else { size }
}

/// Whether this process has the stand-in.
fn is_standing_in() -> bool {
    #[cfg(target_os = "linux")]
    return standin::library().is_some();
    #[cfg(not(target_os = "linux"))]
    return false;
}

pub(super) fn sharing(gpu: &Gpu) -> &Sharing {
    gpu.sharing
        .as_ref()
        .expect("GStreamer's CUDA library is needed")
}

twins! {
    [Late]
    every_format_goes_through_gpu_memory
    starting_and_stopping_leaves_nothing_behind
    frames_are_skipped_alike_at_every_depth
    frames_that_are_read_go_back_to_their_pool
    a_gpu_that_stays_open_gets_back_what_elements_had
}

twins! {
    [Early]
    the_kind_of_memory_does_not_change_the_picture
}

twins! {
    [Late Early]
    the_gpu_and_the_cpu_make_the_same_picture
    frames_of_another_context_are_copied
    neighbours_get_our_context_and_pools
    two_elements_share_the_gpu_and_the_model
    a_flush_in_the_middle_lets_go_of_everything
    maps_see_the_same_frame
}

fn the_kind_of_memory_does_not_change_the_picture(machine: &Machine) {
    let gpu = machine.open();
    let sharing = sharing(&gpu);
    use Memory::{Cuda, System};
    for (format, size) in [
        ("NV12", (64, 64)),
        ("RGBA", (64, 64)),
        ("I420", (98, 70)),
        ("BGRx", (131, 77)),
        ("P010_10LE", or_smaller((320, 180), (160, 90))),
    ] {
        let run = |from: Memory, to: Memory| {
            let (input, output) = (caps(format, size, from), caps(format, size, to));
            let element = element("onnxruntime-cuda");
            let pictures = restyle(&element, &source(sharing, &input), &input, &output);
            element.set_state(gst::State::Null).unwrap();
            rough(format, pictures)
        };
        let expected = run(System, System);
        assert!(
            expected.iter().all(|p| p.iter().any(|x| *x != p[0])),
            "{format}: flat"
        );
        for (from, to) in [(Cuda, Cuda), (Cuda, System), (System, Cuda)] {
            let what = format!("{format} {from:?} to {to:?}");
            alike(&run(from, to), &expected, 2, &what);
        }
    }
}

fn the_gpu_and_the_cpu_make_the_same_picture(machine: &Machine) {
    let gpu = machine.open();
    for (format, tolerance) in [("RGB", 2.0), ("NV12", 4.0)] {
        let caps = caps(format, (64, 64), Memory::System);
        let run = |backend: &str| {
            let element = element(backend);
            let pictures = restyle(&element, &source(sharing(&gpu), &caps), &caps, &caps);
            let stats = element.property::<gst::Structure>("stats");
            let device = stats.get::<String>("device").unwrap();
            assert_eq!(device == "CPU", backend == "onnxruntime-cpu", "{device}");
            element.set_state(gst::State::Null).unwrap();
            pictures
        };
        // Half precision through two steps; and the two place colours of half size differently between pixels, which
        // shows at edges.
        let (most, mean) = distance(&run("onnxruntime-cuda"), &run("onnxruntime-cpu"));
        assert!(
            mean <= tolerance,
            "{format}: {mean} on average, {most} at most"
        );
    }
}

fn every_format_goes_through_gpu_memory(machine: &Machine) {
    let gpu = machine.open();
    let sharing = sharing(&gpu);
    for format in CUDA_FORMATS {
        let caps = caps(format.to_str(), (96, 64), Memory::Cuda);
        let element = element("onnxruntime-cuda");
        restyle(&element, &source(sharing, &caps), &caps, &caps);
        element.set_state(gst::State::Null).unwrap();
    }
}

fn frames_of_another_context_are_copied(machine: &Machine) {
    let gpu = machine.open();
    let _exported = Exported::new(&machine.alone);
    let size = or_smaller((320, 240), (128, 96));
    let input = caps("NV12", size, Memory::Cuda);
    let output = caps("RGB", size, Memory::System);
    let run = |sharing: &Sharing| {
        let element = element("onnxruntime-cuda");
        let pictures = restyle(&element, &source(sharing, &input), &input, &output);
        element.set_state(gst::State::Null).unwrap();
        pictures
    };
    let ours = run(sharing(&gpu));
    let foreign = context::tests::foreign(&gpu.cuda);
    let foreign = Sharing {
        functions: sharing(&gpu).functions,
        context: foreign,
    };
    assert_ne!(foreign.context.as_ptr(), sharing(&gpu).context.as_ptr());
    alike(&run(&foreign), &ours, 0, "foreign context");
}

fn neighbours_get_our_context_and_pools(machine: &Machine) {
    let gpu = machine.open();
    let sharing = sharing(&gpu);
    // Already before it starts: encoders open their context on the way to READY.
    let element = element("onnxruntime-cuda");
    for pad in ["src", "sink"] {
        let mut query = gst::query::Context::new(TYPE);
        assert!(element.static_pad(pad).unwrap().query(&mut query));
        let context = query.context_owned().unwrap();
        assert!(!context.is_persistent());
        assert_eq!(context.structure().get::<u32>("cuda-device-id"), Ok(0));
        let object = Context::given(&context).unwrap();
        assert!(object == sharing.context);
        assert_eq!(object.device(), 0);
    }
    let caps = caps("NV12", or_smaller((320, 240), (128, 96)), Memory::Cuda);
    let mut harness = Harness::with_element(&element, Some("sink"), Some("src"));
    harness.set_sink_caps(caps.clone());
    harness.set_src_caps(caps.clone());
    harness.play();
    let pool = source(sharing, &caps);
    let mut buffer = pool.acquire_buffer(None).unwrap();
    paint(
        buffer.get_mut().unwrap(),
        &VideoInfo::from_caps(&caps).unwrap(),
        0,
    );
    harness.push(buffer).unwrap();
    let mut query = gst::query::Allocation::new(Some(&caps), true);
    assert!(element.static_pad("sink").unwrap().query(&mut query));
    let offered = query
        .allocation_pools()
        .next()
        .and_then(|(pool, ..)| pool)
        .unwrap();
    assert!(super::memory::is_pool_of(
        sharing.functions,
        &offered,
        &sharing.context
    ));
    assert!(
        query
            .find_allocation_meta::<gst_video::VideoMeta>()
            .is_some()
    );
    element.set_state(gst::State::Null).unwrap();
}

fn two_elements_share_the_gpu_and_the_model(machine: &Machine) {
    let gpu = machine.open();
    let _exported = Exported::new(&machine.alone);
    let caps = caps("RGBA", (64, 64), Memory::Cuda);
    let elements = [element("onnxruntime-cuda"), element("onnxruntime-cuda")];
    let sharing = sharing(&gpu);
    let alone = restyle(&elements[0], &source(sharing, &caps), &caps, &caps);
    let before = gpu.cuda.memory().unwrap().0;
    let both: Vec<_> = std::thread::scope(|scope| {
        let runs = elements
            .each_ref()
            .map(|element| scope.spawn(|| restyle(element, &source(sharing, &caps), &caps, &caps)));
        runs.into_iter().map(|run| run.join().unwrap()).collect()
    });
    for pictures in both {
        alike(&pictures, &alone, 0, "beside another");
    }
    let more = before.saturating_sub(gpu.cuda.memory().unwrap().0);
    assert!(
        more < 256 << 20,
        "the second element took {more} bytes more"
    );
    for element in elements {
        element.set_state(gst::State::Null).unwrap();
    }
}

fn starting_and_stopping_leaves_nothing_behind(machine: &Machine) {
    // Of the process, not of an element: the driver and ONNX Runtime keep what they loaded.
    let kept = Cuda::new(0).unwrap();
    let caps = caps("NV12", or_smaller((320, 240), (96, 64)), Memory::Cuda);
    let mut free = Vec::new();
    let mut contexts = Vec::new();
    let rounds = if is_standing_in() { 12 } else { 50 };
    for round in 0..rounds {
        let element = element("onnxruntime-cuda");
        let weak = element.downgrade();
        {
            let gpu = machine.open();
            let sharing = sharing(&gpu);
            contexts.push(sharing.context.weak());
            restyle(&element, &source(sharing, &caps), &caps, &caps);
        }
        element.set_state(gst::State::Null).unwrap();
        drop(element);
        assert!(
            weak.upgrade().is_none(),
            "round {round}: the element is still there"
        );
        let context = &contexts[round];
        assert!(
            context.upgrade().is_none(),
            "round {round}: the context is still there"
        );
        free.push(kept.memory().unwrap().0);
    }
    let (early, late) = (free[9], free[rounds - 1]);
    // Others may use a GPU too; nobody uses the stand-in.
    let others = if is_standing_in() { 0 } else { 32 << 20 };
    assert!(
        late + others >= early,
        "{early} bytes were free, then {late}: {free:?}"
    );
}

/// All threads of an element that asked the GPU for something give it back, while something else keeps the GPU open.
fn a_gpu_that_stays_open_gets_back_what_elements_had(machine: &Machine) {
    let gpu = machine.open();
    let caps = caps("NV12", (96, 64), Memory::System);
    let info = VideoInfo::from_caps(&caps).unwrap();
    let pool = source(sharing(&gpu), &caps);
    let mut had = Vec::new();
    for _ in 0..4 {
        let element = element("onnxruntime-cuda");
        let mut harness = Harness::with_element(&element, Some("sink"), Some("src"));
        harness.set_sink_caps(caps.clone());
        harness.set_src_caps(caps.clone());
        harness.play();
        let mut push = |k| {
            let mut buffer = pool.acquire_buffer(None).unwrap();
            paint(buffer.get_mut().unwrap(), &info, k);
            harness.push(buffer).unwrap();
            while harness.try_pull().is_some() {}
        };
        push(0);
        // Encoded and made ready beside the frames that go on.
        element.set_property("prompt", "a frozen lake");
        let in_force = |element: &gst::Element| {
            let stats = element.property::<gst::Structure>("stats");
            stats.get::<String>("prompt") == Ok("a frozen lake".into())
        };
        let mut frames = (1..10_000).take_while(|_| !in_force(&element));
        frames.by_ref().for_each(&mut push);
        assert!(in_force(&element));
        element.set_state(gst::State::Null).unwrap();
        had.push(gpu.cuda.allocated());
    }
    // A thread's list has as much, and what frames are copied through is less.
    assert!(had[3] < had[0] + (1 << 16), "{had:?}");
}

/// What the similarity filter decides does not depend on what is computed meanwhile.
fn frames_are_skipped_alike_at_every_depth(machine: &Machine) {
    let _exported = Exported::new(&machine.alone);
    let gpu = machine.open();
    for memory in [Memory::Cuda, Memory::System] {
        let caps = caps("NV12", (64, 64), memory);
        let run = |depth: u32| {
            let element = element("onnxruntime-cuda");
            element.set_property("pipeline-depth", depth);
            element.set_property("similarity-filter", true);
            // Between frames of one half of the clip, and of the other.
            element.set_property("ssf-threshold", 0.2f64);
            let pictures = restyle_some(24, &element, &source(sharing(&gpu), &caps), &caps, &caps);
            let stats = element.property::<gst::Structure>("stats");
            let count = |name| stats.get::<u64>(name).unwrap();
            let counts = (count("processed"), count("skipped"));
            element.set_state(gst::State::Null).unwrap();
            (pictures, counts)
        };
        let (expected, (processed, skipped)) = run(0);
        assert_eq!(processed + skipped, 24);
        assert!(processed > 3 && skipped > 3, "{processed} and {skipped}");
        for depth in 1..=2 {
            let (pictures, counts) = run(depth);
            assert_eq!(counts, (processed, skipped), "{memory:?}, {depth} deep");
            assert!(pictures == expected, "{memory:?}, {depth} deep");
        }
    }
}

fn a_flush_in_the_middle_lets_go_of_everything(machine: &Machine) {
    for (depth, filter) in [(0, false), (2, true)] {
        flush_in_the_middle(machine, depth, filter);
    }
}

fn flush_in_the_middle(machine: &Machine, depth: u32, filter: bool) {
    let gpu = machine.open();
    let caps = caps("NV12", or_smaller((640, 480), (320, 240)), Memory::Cuda);
    let element = element("onnxruntime-cuda");
    element.set_property("pipeline-depth", depth);
    element.set_property("similarity-filter", filter);
    let pool = source(sharing(&gpu), &caps);
    let info = VideoInfo::from_caps(&caps).unwrap();
    let mut harness = Harness::with_element(&element, Some("sink"), Some("src"));
    harness.set_sink_caps(caps.clone());
    harness.set_src_caps(caps.clone());
    harness.play();
    for round in 0..20 {
        let mut buffer = pool.acquire_buffer(None).unwrap();
        paint(buffer.get_mut().unwrap(), &info, round);
        let sink = element.static_pad("sink").unwrap();
        let flush = std::thread::spawn(move || {
            std::thread::sleep(std::time::Duration::from_micros(300 * round));
            sink.send_event(gst::event::FlushStart::new());
            sink
        });
        // Flushing, or through before it.
        let _ = harness.push(buffer);
        let sink = flush.join().unwrap();
        sink.send_event(gst::event::FlushStop::new(true));
        let segment = gst::FormattedSegment::<gst::ClockTime>::new();
        assert!(harness.push_event(gst::event::Segment::new(&segment)));
    }
    let mut buffer = pool.acquire_buffer(None).unwrap();
    paint(buffer.get_mut().unwrap(), &info, 0);
    harness.push(buffer).unwrap();
    element.set_state(gst::State::Null).unwrap();
    let_go(&pool);
}

/// That nobody has a buffer of it any more.
#[track_caller]
fn let_go(pool: &gst::BufferPool) {
    pool.set_active(false).unwrap();
    let mut config = pool.config();
    let (caps, size, _, _) = config.params().unwrap();
    config.set_params(caps.as_ref(), size, 0, 7);
    // Which fails with buffers outside.
    pool.set_config(config).unwrap();
}

/// A decoder has so many frames, and waits for one to come back.
fn frames_that_are_read_go_back_to_their_pool(machine: &Machine) {
    let gpu = machine.open();
    let caps = caps("NV12", (64, 64), Memory::Cuda);
    let info = VideoInfo::from_caps(&caps).unwrap();
    for (depth, filter) in [(1, false), (2, false), (2, true)] {
        let element = element("onnxruntime-cuda");
        element.set_property("pipeline-depth", depth);
        element.set_property("similarity-filter", filter);
        let (pool, _) = (sharing(&gpu).pool(None, &caps, (info.size() as u32, 0, depth))).unwrap();
        pool.set_active(true).unwrap();
        let mut harness = Harness::with_element(&element, Some("sink"), Some("src"));
        harness.set_sink_caps(caps.clone());
        harness.set_src_caps(caps.clone());
        harness.play();
        let (pushed, through) = std::sync::mpsc::channel();
        let (info, source) = (info.clone(), pool.clone());
        let pushing = std::thread::spawn(move || {
            for k in 0..12 {
                let mut buffer = source.acquire_buffer(None).unwrap();
                paint(buffer.get_mut().unwrap(), &info, k);
                harness.push(buffer).unwrap();
            }
            let _ = pushed.send(());
            harness
        });
        let through = through.recv_timeout(std::time::Duration::from_secs(60));
        assert!(through.is_ok(), "{depth} frames are kept");
        drop(pushing.join().unwrap());
        element.set_state(gst::State::Null).unwrap();
        let_go(&pool);
    }
}

/// What is written through one map is read through the other, at the planes that metas name.
fn maps_see_the_same_frame(machine: &Machine) {
    let gpu = machine.open();
    let sharing = sharing(&gpu);
    let caps = caps("NV12", (322, 242), Memory::Cuda);
    let info = VideoInfo::from_caps(&caps).unwrap();
    let pool = source(sharing, &caps);
    let mut buffer = pool.acquire_buffer(None).unwrap();
    paint(buffer.get_mut().unwrap(), &info, 3);
    let before = pixels(&buffer, &info);
    assert!(Mapped::for_writing(buffer.clone()).is_err(), "held twice");
    let mapped = Mapped::for_writing(buffer).unwrap();
    assert_eq!(sharing.context_of(&mapped), gpu.cuda.context_handle());
    assert_ne!(mapped.base(), 0);
    let buffer = mapped.into_buffer().unwrap();
    // Nothing was written: what was uploaded comes back.
    assert_eq!(pixels(&buffer, &info), before);
}
