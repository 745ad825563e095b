//! Frames that carry their number in the picture: what comes out must show the number that its time stands for, whatever
//! happens on the way. The numbers are read from the restyled pictures of the bundled model, which keeps light and dark
//! where they were, so that no output of this element is the measure of another.

mod common;

use std::path::Path;

use common::*;
use gst::prelude::*;

/// Side of a picture in pixels, and cells per side.
const SIDE: usize = 64;
const CELLS: usize = 4;
/// Two cells for each: one dark, one light.
const BITS: usize = CELLS * CELLS / 2;
const DARK: u8 = 20;
const LIGHT: u8 = 235;
/// Cells of a bit that are less apart than this are no number. With these settings they come out over 110 apart, of 215.
const APART: f64 = 60.0;

/// How light cell `cell` of frame number `k` is.
fn level(k: u64, cell: usize) -> u8 {
    let bit = k >> (cell / 2) & 1 == 1;
    match bit ^ (cell % 2 == 1) {
        true => LIGHT,
        false => DARK,
    }
}

/// Frame `k`: light and dark cells that say so, as tight RGB.
fn numbered(k: u64) -> Vec<u8> {
    let pixels = 0..SIDE * SIDE;
    let cell = |i: usize| i / SIDE * CELLS / SIDE * CELLS + i % SIDE * CELLS / SIDE;
    pixels.flat_map(|i| [level(k, cell(i)); 3]).collect()
}

/// The number in a picture.
#[track_caller]
fn number(rgb: &[u8], what: &str) -> u64 {
    assert_eq!(rgb.len(), SIDE * SIDE * 3);
    let side = SIDE / CELLS;
    // The middle of a cell, past what bleeds over its edge.
    let mean = |cell: usize| {
        let (top, left) = (cell / CELLS * side, cell % CELLS * side);
        let inner = side / 4..side - side / 4;
        let row = |y: usize| &rgb[((top + y) * SIDE + left + inner.start) * 3..][..inner.len() * 3];
        let sum: u32 = inner.clone().flat_map(row).map(|v| u32::from(*v)).sum();
        f64::from(sum) / (inner.len() * inner.len() * 3) as f64
    };
    (0..BITS)
        .map(|bit| {
            let apart = mean(2 * bit) - mean(2 * bit + 1);
            assert!(
                apart.abs() > APART,
                "{what}: bit {bit} cannot be read: {apart}"
            );
            u64::from(apart > 0.0) << bit
        })
        .sum()
}

/// Lists of 1 to 4 steps that leave light and dark where they were.
const LISTS: [&str; 4] = ["47", "45,48", "44,46,48", "43,45,47,48"];

fn demo() -> String {
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/demo");
    model.to_str().unwrap().to_owned()
}

/// A rig with the bundled model, that many steps and frames in a group.
fn rig(n: usize, f: &str, more: &[Setting]) -> Rig {
    static KEPT: std::sync::Once = std::sync::Once::new();
    let model = demo();
    let settings = [
        ("model", model.as_str()),
        ("prompt", "photo"),
        ("t-index-list", LISTS[n - 1]),
        ("frame-buffer-size", f),
    ];
    // Every element of this program would load it again.
    KEPT.call_once(|| {
        init();
        let loaded = gststreamdiffusion::engine::shared::load(Path::new(&model));
        std::mem::forget(loaded.unwrap());
    });
    let rig = Rig::new(&join(&settings, more), Neighbours::default());
    rig.play(&rgb());
    rig
}

/// Numbers that differ from their neighbours in about half of the bits.
fn scrambled(k: u64) -> u64 {
    (k * 0x6d + 0x35) % (1 << BITS)
}

fn push(rig: &Rig, frames: std::ops::Range<u64>) {
    for k in frames {
        rig.push(buffer(numbered(scrambled(k)), k));
    }
}

/// Every frame that left must show the number of its time; the frames' places.
#[track_caller]
fn read(rig: &Rig, what: &str) -> Vec<u64> {
    let caps = rig.output_caps();
    let place = |frame: gst::Buffer| {
        let k = frame.pts().unwrap().mseconds() / FRAME_MS;
        let shown = number(&pixels(&frame, &caps), &format!("{what}, frame {k}"));
        assert_eq!(shown, scrambled(k), "{what}, frame {k} shows another one");
        k
    };
    rig.frames().into_iter().map(place).collect()
}

/// The means to read numbers must be right themselves, and notice when frames are mixed up.
#[test]
fn numbers_can_be_read() {
    for k in 0..1 << BITS {
        assert_eq!(number(&numbered(k), "as drawn"), k);
    }
    let apart: Vec<_> = (0..200)
        .map(|k| (scrambled(k) ^ scrambled(k + 1)).count_ones())
        .collect();
    assert!(apart.iter().all(|bits| *bits > 0));
    // A mix of two frames is no number.
    let (a, b) = (numbered(3), numbered(12));
    let mixed: Vec<u8> = a.iter().zip(&b).map(|(a, b)| a / 2 + b / 2).collect();
    assert!(std::panic::catch_unwind(|| number(&mixed, "")).is_err());
}

#[test]
fn each_frame_shows_the_picture_of_its_time() {
    for n in 1..=4 {
        for f in ["1", "2"] {
            let what = format!("{n} steps, {f} at a time");
            let rig = rig(n, f, &[]);
            push(&rig, 0..11);
            rig.end();
            assert_eq!(read(&rig, &what), (0..11).collect::<Vec<_>>(), "{what}");
        }
    }
}

#[test]
fn after_a_flush_too() {
    let rig = rig(4, "1", &[]);
    push(&rig, 0..6);
    assert_eq!(read(&rig, "before"), [0, 1, 2]);
    assert!(rig.event(gst::event::FlushStart::new()));
    assert!(rig.event(gst::event::FlushStop::new(true)));
    assert!(rig.segment());
    push(&rig, 40..46);
    rig.end();
    assert_eq!(read(&rig, "after"), (40..46).collect::<Vec<_>>());
}

#[test]
fn across_changes_of_caps_and_steps_and_a_jump() {
    let rig = rig(4, "1", &[]);
    push(&rig, 0..5);
    let faster = "video/x-raw,format=RGB,width=64,height=64,framerate=50/1";
    assert!(rig.caps(&faster.parse().unwrap()));
    push(&rig, 5..9);
    for (frames, n) in [
        (9..12, 2),
        (12..18, 4),
        (18..20, 1),
        (20..24, 3),
        (24..30, 4),
    ] {
        set(&rig.element, &[("t-index-list", LISTS[n - 1])]);
        push(&rig, frames);
    }
    push(&rig, 70..75);
    rig.end();
    let expected: Vec<_> = (0..30).chain(70..75).collect();
    assert_eq!(read(&rig, "live changes"), expected);
}

/// Frames that are skipped show the picture of one that is like them, and of no other.
#[test]
fn with_the_similarity_filter_too() {
    for (n, f) in [(1, "1"), (4, "1"), (2, "2")] {
        let what = format!("{n} steps, {f} at a time");
        let rig = rig(n, f, &[("similarity-filter", "true")]);
        let shown = |k: u64| scrambled(k / 6);
        for k in 0..36 {
            rig.push(buffer(numbered(shown(k)), k));
        }
        rig.end();
        assert!(stat(&rig.element, "skipped") > 8, "{what}");
        let caps = rig.output_caps();
        let frames = rig.frames();
        assert_eq!(frames.len(), 36, "{what}");
        for (k, frame) in (0..).zip(&frames) {
            assert_eq!(frame.pts(), Some(time(k)), "{what}");
            let found = number(&pixels(frame, &caps), &what);
            assert_eq!(found, shown(k), "{what}, frame {k}");
        }
    }
}

/// With threads, queues and conversions around it; the second one leaves out frames when it cannot keep up.
#[test]
fn in_real_pipelines() {
    init();
    for leaky in [false, true] {
        let queue = match leaky {
            true => "queue leaky=downstream max-size-buffers=1",
            false => "queue",
        };
        let line = format!(
            "appsrc name=src format=time caps=\"{}\" ! {queue} ! videoconvert ! video/x-raw,format=NV12 ! \
             streamdiffusion name=it model={} backend=onnxruntime-cpu prompt=photo t-index-list={} ! queue ! \
             videoconvert ! {} ! appsink name=sink sync=false",
            rgb(),
            demo(),
            LISTS[2],
            rgb(),
        );
        let pipeline = gst::parse::launch(&line).unwrap();
        let pipeline = pipeline.downcast::<gst::Pipeline>().unwrap();
        let by_name = |name| pipeline.by_name(name).unwrap();
        let src: gst_app::AppSrc = by_name("src").downcast().unwrap();
        let sink: gst_app::AppSink = by_name("sink").downcast().unwrap();
        pipeline.set_state(gst::State::Playing).unwrap();
        const FRAMES: u64 = 40;
        for k in 0..FRAMES {
            src.push_buffer(buffer(numbered(scrambled(k)), k)).unwrap();
        }
        src.end_of_stream().unwrap();
        let mut places = Vec::new();
        while let Some(sample) = sink.try_pull_sample(PATIENCE) {
            let frame = sample.buffer().unwrap();
            let k = frame.pts().unwrap().mseconds() / FRAME_MS;
            let found = number(&pixels(frame, &rgb()), "in a pipeline");
            assert_eq!(found, scrambled(k), "frame {k}");
            places.push(k);
        }
        assert!(sink.is_eos());
        pipeline.set_state(gst::State::Null).unwrap();
        assert!(places.is_sorted());
        if leaky {
            // The newest frame is never left out.
            assert_eq!(places.last(), Some(&(FRAMES - 1)));
        } else {
            assert_eq!(places, (0..FRAMES).collect::<Vec<_>>());
        }
    }
}
