//! Latency, immediate timing, and frames that are too late.

mod common;

use common::*;
use gst::prelude::*;

const FOUR_STEPS: Setting = ("t-index-list", "0,16,32,45");
const IMMEDIATE: Setting = ("timing", "immediate");
const CONTENT: Setting = ("timing", "content");

/// What a sink hears when it asks for the latency: live or not, least, most.
fn latency(rig: &Rig) -> (bool, gst::ClockTime, Option<gst::ClockTime>) {
    let mut query = gst::query::Latency::new();
    assert!(rig.sink.peer_query(&mut query));
    query.result()
}

#[test]
fn latency_is_frames_held_back_plus_processing_on_top_of_upstream() {
    let upstream = gst::ClockTime::from_mseconds(20);
    let most = gst::ClockTime::from_seconds(20);
    for (steps, group, timing, held) in [
        ("35", "1", "content", 0),
        ("32,45", "1", "content", 1),
        ("0,16,32,45", "1", "content", 3),
        ("32,45", "2", "content", 3),
        ("0,16,32,45", "2", "immediate", 0),
    ] {
        let settings = [
            ("t-index-list", steps),
            ("frame-buffer-size", group),
            ("timing", timing),
        ];
        let live = Neighbours {
            latency: Some(upstream),
            ..Default::default()
        };
        let rig = Rig::new(&settings, live);
        rig.play(&rgb());
        assert_eq!(latency(&rig), (true, upstream, Some(upstream)));
        rig.push_frames(0..12);
        let (live, least, max) = latency(&rig);
        assert!(live);
        assert_eq!(max, Some(upstream + time(held)), "{settings:?}");
        let processing = least - upstream - time(held);
        assert!(!processing.is_zero() && processing < most, "{processing}");
        let messages = rig.messages(&[gst::MessageType::Latency]);
        assert!(!messages.is_empty(), "the pipeline was not told");
        // Once for the frames held back, and while the processing time settles; not for every frame.
        assert!(messages.len() < 10, "{}", messages.len());
    }
}

/// Frames that the worker still has are held back as those in the stream are, and nothing else changes.
#[test]
fn a_deeper_pipeline_gives_the_same_frames_later() {
    let upstream = gst::ClockTime::from_mseconds(20);
    for (steps, group, held) in [("35", "1", 0), ("32,45", "1", 1), ("32,45", "2", 3)] {
        let mut expected: Option<Vec<Vec<u8>>> = None;
        for depth in ["0", "1", "2", "8"] {
            let settings = [
                ("t-index-list", steps),
                ("frame-buffer-size", group),
                ("pipeline-depth", depth),
            ];
            let live = Neighbours {
                latency: Some(upstream),
                ..Default::default()
            };
            let rig = Rig::new(&settings, live);
            rig.play(&rgb());
            // The test's frames come as fast as they can.
            set(&rig.element, &[("late-policy", "none")]);
            rig.push_frames(0..5);
            let least = 5 - (held + depth.parse::<usize>().unwrap() + 1).min(5);
            let left = rig
                .names()
                .iter()
                .filter(|name| name.parse::<u64>().is_ok())
                .count();
            assert!(left >= least, "{settings:?}: {left}");
            rig.push_frames(5..16);
            let (_, _, max) = latency(&rig);
            let held = held as u64 + depth.parse::<u64>().unwrap();
            assert_eq!(max, Some(upstream + time(held)), "{settings:?}");
            rig.end();
            rig.take();

            rig.stop();
            rig.play(&rgb());
            for k in 0..9 {
                rig.push(frame(k));
                assert!(rig.event(gst::event::CustomDownstream::new(
                    gst::Structure::builder("after").field("frame", k).build()
                )));
            }
            rig.end();
            let names: Vec<_> = rig.take();
            let mut shown = Vec::new();
            let mut events = 0;
            for item in names {
                match item {
                    Item::Frame(buffer) => {
                        assert_eq!(buffer.pts(), Some(time(shown.len() as u64)));
                        shown.push(pixels(&buffer, &rig.output_caps()));
                    }
                    Item::Event(event) if event.type_() == gst::EventType::CustomDownstream => {
                        events += 1;
                        assert_eq!(shown.len(), events, "{settings:?}");
                    }
                    Item::Event(_) => {}
                }
            }
            assert_eq!((shown.len(), events), (9, 9), "{settings:?}");
            for (k, (shown, expected)) in shown.iter().zip(expected.iter().flatten()).enumerate() {
                same(shown, expected, &format!("frame {k} of {settings:?}"));
            }
            expected.get_or_insert(shown);
        }
    }
}

#[test]
fn immediate_waits_for_each_frame_however_deep_the_pipeline() {
    let rig = Rig::playing(&[("pipeline-depth", "4"), IMMEDIATE], &rgb());
    for k in 0..4 {
        rig.push(frame(k));
        assert_eq!(rig.frames().len(), 1);
    }
    assert_eq!(latency(&rig).2, None);
}

#[test]
fn a_deeper_pipeline_forgets_its_frames_in_a_flush() {
    let rig = Rig::playing(&[("pipeline-depth", "3"), ("t-index-list", "35")], &rgb());
    rig.push_frames(0..6);
    rig.take();
    assert!(rig.event(gst::event::FlushStart::new()));
    assert!(rig.event(gst::event::FlushStop::new(true)));
    assert!(rig.segment());
    rig.push_frames(20..24);
    rig.end();
    let frames: Vec<_> = rig.frames().iter().map(|frame| frame.pts()).collect();
    assert_eq!(frames, (20..24).map(|k| Some(time(k))).collect::<Vec<_>>());
}

#[test]
fn a_pinned_latency_is_what_is_told() {
    let upstream = gst::ClockTime::from_mseconds(20);
    // More than the slowest machine takes.
    let pinned = gst::ClockTime::from_seconds(1000);
    let nanoseconds = pinned.nseconds().to_string();
    let live = Neighbours {
        latency: Some(upstream),
        ..Default::default()
    };
    let rig = Rig::new(&[("latency", &nanoseconds), ("late-policy", "none")], live);
    rig.play(&rgb());
    assert_eq!(latency(&rig).1, upstream + pinned);
    rig.messages(&[gst::MessageType::Latency]);
    rig.push_frames(0..12);
    assert_eq!(latency(&rig).1, upstream + pinned);
    assert!(rig.messages(&[gst::MessageType::Latency]).is_empty());
    set(&rig.element, &[("latency", "-1")]);
    assert_eq!(rig.messages(&[gst::MessageType::Latency]).len(), 1);
    assert!(latency(&rig).1 < upstream + pinned);
    set(&rig.element, &[("latency", "0")]);
    assert_eq!(rig.messages(&[gst::MessageType::Latency]).len(), 1);
    assert_eq!(latency(&rig).1, upstream);
}

#[test]
fn a_live_change_of_the_steps_tells_the_new_latency() {
    let rig = Rig::playing(&[("t-index-list", "35")], &rgb());
    rig.push_frames(0..2);
    let (live, _, max) = latency(&rig);
    assert_eq!((live, max), (false, None));
    rig.messages(&[gst::MessageType::Latency]);
    let before = latency(&rig).1;
    set(&rig.element, &[FOUR_STEPS]);
    rig.push_frames(2..3);
    assert_eq!(rig.messages(&[gst::MessageType::Latency]).len(), 1);
    let after = latency(&rig).1;
    assert!(after >= before + time(3), "{before}, then {after}");
    rig.push_frames(3..8);
    rig.end();
    assert_eq!(rig.frames().len(), 8);
}

#[test]
fn latency_is_that_of_upstream_until_frames_come() {
    let rig = Rig::new(&[FOUR_STEPS], Neighbours::default());
    assert_eq!(latency(&rig), (false, gst::ClockTime::ZERO, None));
}

#[test]
fn immediate_gives_one_for_one_from_the_first_frame_on() {
    for (n, list) in [(1, "35"), (2, "32,45"), (4, "0,16,32,45")] {
        let steps = ("t-index-list", list);
        let expected = restyled(&[steps], 0..9);
        for f in ["1", "3"] {
            let what = format!("{n} steps, {f} frames at a time");
            let rig = Rig::playing(&[steps, ("frame-buffer-size", f), IMMEDIATE], &rgb());
            let caps = rig.output_caps();
            for k in 0..9 {
                rig.push(frame(k));
                let out = rig.frames();
                assert_eq!(out.len(), 1, "{what}, frame {k}");
                assert_eq!(out[0].pts(), Some(time(k)), "{what}");
                let found = pixels(&out[0], &caps);
                if f == "1" {
                    // The picture of the frame that is done, at first of the first one.
                    let shown = (k as usize).saturating_sub(n - 1);
                    same(&found, &expected[shown], &format!("{what}, frame {k}"));
                } else {
                    // Some frame's picture, and none from nowhere.
                    let known = expected.iter().any(|e| difference(&found, e) <= 1);
                    assert!(known, "{what}, frame {k}");
                }
            }
            rig.end();
            assert_eq!(rig.names(), ["eos"], "{what}");
            assert!(rig.errors().is_empty());
        }
    }
}

#[test]
fn immediate_shows_nothing_from_before_a_flush_or_another_size() {
    let settings = [FOUR_STEPS, IMMEDIATE];
    let expected = restyled(&[FOUR_STEPS], 5..6);
    let rig = Rig::playing(&settings, &rgb());
    rig.push_frames(0..3);
    assert!(rig.event(gst::event::FlushStart::new()));
    assert!(rig.event(gst::event::FlushStop::new(true)));
    assert!(rig.segment());
    rig.take();
    rig.push_frames(5..6);
    same(&rig.pictures()[0], &expected[0], "after a flush");

    let large = caps("RGB", 96, 64);
    assert!(rig.caps(&large));
    rig.take();
    rig.push(noise(&large, 0));
    let expected = restyle(&[FOUR_STEPS], &large, vec![noise(&large, 0)]);
    same(&rig.pictures()[0], &expected[0], "with another size");
}

#[test]
fn immediate_lets_events_pass_at_once() {
    let rig = Rig::playing(&[FOUR_STEPS, IMMEDIATE], &rgb());
    rig.push_frames(0..2);
    let custom = gst::event::CustomDownstream::new(gst::Structure::new_empty("test"));
    assert!(rig.event(custom));
    rig.push_frames(2..3);
    assert_eq!(rig.names()[3..], ["0", "1", "custom-downstream", "2"]);
}

/// Frames held back leave first; nothing is lost, shown twice or out of order.
#[test]
fn timing_changes_live() {
    let rig = Rig::playing(&[FOUR_STEPS, CONTENT], &rgb());
    let mut out = Vec::new();
    for (k, timing) in (0..).zip([
        CONTENT, CONTENT, IMMEDIATE, IMMEDIATE, CONTENT, CONTENT, CONTENT, CONTENT, CONTENT,
    ]) {
        set(&rig.element, &[timing]);
        rig.push(frame(k));
        let times: Vec<_> = rig.frames().iter().map(|b| b.pts().unwrap()).collect();
        out.push(times);
    }
    let expected: [&[u64]; 9] = [&[], &[], &[0, 1, 2], &[3], &[], &[], &[], &[4], &[5]];
    let expected = expected.map(|frames| frames.iter().map(|k| time(*k)).collect::<Vec<_>>());
    assert_eq!(out, expected);
    rig.take();
    rig.end();
    assert_eq!(rig.names(), ["6", "7", "8", "eos"]);
    assert!(rig.errors().is_empty());
}

#[test]
fn immediate_takes_a_live_change_of_the_steps() {
    let rig = Rig::playing(&[("t-index-list", "35"), IMMEDIATE], &rgb());
    for (k, list) in (0..).zip(["35", "0,16,32,45", "35", "32,45", "32,45", "35"]) {
        set(&rig.element, &[("t-index-list", list)]);
        rig.push(frame(k));
        assert_eq!(rig.frames().len(), 1, "frame {k}");
    }
}

#[test]
fn frames_that_are_too_late_are_dropped_and_only_with_qos() {
    for qos in [true, false] {
        let rig = Rig::playing(TWO_STEPS, &rgb());
        assert!(rig.element.property::<bool>("qos"), "it is on by default");
        rig.element.set_property("qos", qos);
        rig.push_frames(0..4);
        // Frame 4 was 2.5 frames late: those up to 6.5 are not worth it.
        let late = (time(2) + time(3)).nseconds() as i64 / 2;
        let event = gst::event::Qos::new(gst::QOSType::Underflow, 0.5, late, time(4));
        assert!(rig.sink.push_event(event));
        rig.push_frames(4..10);
        rig.end();
        let mut expected: Vec<_> = (0..10).map(|k| k.to_string()).collect();
        if qos {
            expected.drain(4..7);
        }
        expected.push("eos".into());
        assert_eq!(rig.names()[3..], expected);
        let told = rig.messages(&[gst::MessageType::Qos]).len();
        assert_eq!(told, if qos { 3 } else { 0 });
    }
}
