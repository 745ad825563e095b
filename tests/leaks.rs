//! Starting and stopping, and new caps, hundreds of times: GStreamer's own leaks tracer finds nothing alive at the end, and
//! memory does not grow. Each test runs again in a process of its own, because the tracer looks at all of it.

mod common;

use std::process::Command;

use common::*;
use gst::prelude::*;

/// Set in the process in which a test does its work.
const INSIDE: &str = "STREAMDIFFUSION_TEST_INSIDE";
const ROUNDS: u64 = 200;
/// Rounds after which everything has been in memory that will be.
const WARM_UP: u64 = 50;
/// What memory may grow by in the other rounds: allocators keep some. A tensor of one 64x64 frame lost in each round would
/// be 7 MiB.
const MOST_GROWTH_KIB: u64 = 4 * 1024;

/// Runs `work` in a process that is traced, and looks at what it says. `work` is to call its argument after each round.
fn traced(test: &str, work: impl FnOnce(&mut dyn FnMut())) {
    if std::env::var_os(INSIDE).is_some() {
        keep_model();
        let mut rounds = 0;
        let mut before = 0;
        work(&mut || {
            rounds += 1;
            if rounds == WARM_UP {
                before = resident_kib();
            }
        });
        assert_eq!(rounds, ROUNDS);
        let after = resident_kib();
        println!("memory: {before} KiB, then {after} KiB");
        assert!(
            after < before + MOST_GROWTH_KIB,
            "{before}, then {after} KiB"
        );
        // SAFETY: nothing of GStreamer is used any more.
        unsafe { gst::deinit() };
        println!("all done");
        return;
    }
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture", "--test-threads=1"])
        .env(INSIDE, "yes")
        .env("GST_TRACERS", "leaks")
        .env("GST_DEBUG", "GST_TRACER:7")
        .env("GST_DEBUG_NO_COLOR", "1")
        .env("G_DEBUG", "fatal_warnings")
        .output()
        .unwrap();
    let text = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(output.status.success(), "{:?}\n{text}", output.status);
    assert!(text.contains("all done"), "{text}");
    let alive: Vec<_> = text
        .lines()
        .filter(|line| line.contains(":: object-alive,"))
        .collect();
    assert!(alive.is_empty(), "{}", alive.join("\n"));
}

/// The memory of this process that is in use.
fn resident_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.unwrap().trim().trim_end_matches(" kB");
    kib.parse().unwrap()
}

/// The tracer must be there, and find what is lost.
#[test]
fn the_tracer_finds_leaks() {
    if std::env::var_os(INSIDE).is_some() {
        init();
        std::mem::forget(make(&[]));
        // SAFETY: nothing of GStreamer is used any more.
        unsafe { gst::deinit() };
        return;
    }
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "the_tracer_finds_leaks", "--nocapture"])
        .env(INSIDE, "yes")
        .env("GST_TRACERS", "leaks")
        .env("GST_DEBUG", "GST_TRACER:7")
        .env("GST_DEBUG_NO_COLOR", "1")
        .env_remove("G_DEBUG")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    let found = text.contains(":: object-alive, type-name=(string)GstStreamDiffusion,");
    assert!(found, "{text}");
}

#[test]
fn starting_and_stopping() {
    traced("starting_and_stopping", |round| {
        let element = make(&[("t-index-list", "35")]);
        let pipeline = gst::Pipeline::new();
        let plain = |name| gst::ElementFactory::make(name).build().unwrap();
        let filter = gst::ElementFactory::make("capsfilter");
        let filter = filter.property("caps", rgb()).build().unwrap();
        let chain = [
            &plain("videotestsrc"),
            &filter,
            &element,
            &plain("queue"),
            &plain("fakesink"),
        ];
        pipeline.add_many(chain).unwrap();
        gst::Element::link_many(chain).unwrap();
        for k in 0..ROUNDS {
            pipeline.set_state(gst::State::Playing).unwrap();
            // Stopped while it plays, before the first frame, and somewhere between.
            match k % 4 {
                0 => {}
                1 => std::thread::yield_now(),
                n => wait_until("frames flow", || stat(&element, "output") >= n - 1),
            }
            pipeline.set_state(gst::State::Null).unwrap();
            let bus = pipeline.bus().unwrap();
            assert!(bus.pop_filtered(&[gst::MessageType::Error]).is_none());
            round();
        }
    });
}

#[test]
fn new_caps() {
    traced("new_caps", |round| {
        let kinds = [
            caps("RGB", 64, 64),
            caps("I420", 64, 64),
            caps("NV12", 97, 33),
            caps("RGB", 33, 65),
            caps("P010_10LE", 64, 48),
        ];
        let rig = Rig::playing(TWO_STEPS, &rgb());
        for k in 0..ROUNDS {
            let caps = &kinds[k as usize % kinds.len()];
            assert!(rig.caps(caps));
            for i in 0..2 {
                rig.push(noise(caps, 2 * k + i));
            }
            // One frame is still under way.
            assert_eq!(rig.frames().len(), if k == 0 { 1 } else { 2 });
            round();
        }
        assert!(rig.errors().is_empty());
    });
}

#[test]
fn prompts_that_come_and_go() {
    traced("prompts_that_come_and_go", |round| {
        let length = time(2).nseconds().to_string();
        let settings = [("t-index-list", "35"), ("prompt-transition", &length)];
        let rig = Rig::playing(&settings, &rgb());
        let styles = ["oil | ink:2", "a neon cat", "(sea:1.3) BREAK [calm]"];
        for k in 0..ROUNDS {
            let pad = rig.element.request_pad_simple("prompt").unwrap();
            let src = gst::Pad::builder(gst::PadDirection::Src).build();
            src.link(&pad).unwrap();
            src.set_active(true).unwrap();
            assert!(src.push_event(gst::event::StreamStart::new("show")));
            let segment = gst::FormattedSegment::<gst::ClockTime>::new();
            assert!(src.push_event(gst::event::Segment::new(&segment)));
            // One that is in force, one that never is, and none after a flush.
            for (at, style) in [(2 * k, 0), (1 << 20, 1)] {
                let text = styles[(k as usize + style) % styles.len()];
                src.push(buffer(text.into(), at)).unwrap();
            }
            rig.push_frames(2 * k..2 * k + 1);
            match k % 3 {
                0 => assert!(src.push_event(gst::event::Eos::new())),
                1 => {
                    assert!(src.push_event(gst::event::FlushStart::new()));
                    assert!(src.push_event(gst::event::FlushStop::new(true)));
                }
                _ => {}
            }
            rig.element.release_request_pad(&pad);
            set(
                &rig.element,
                &[("prompt", styles[k as usize % styles.len()])],
            );
            rig.push_frames(2 * k + 1..2 * k + 2);
            assert_eq!(rig.frames().len(), 2);
            rig.messages(&[gst::MessageType::Element]);
            round();
        }
        let errors = rig.errors();
        assert!(errors.is_empty(), "{errors:?}");
    });
}
