//! Frames that come too late, in a live pipeline whose clock is the test's, and frames that pass as they are.

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use common::*;
use gst::prelude::*;

/// The work for one frame: half as much again as the time there is for it.
const WORK: gst::ClockTime = gst::ClockTime::from_mseconds(FRAME_MS * 3 / 2);

const FRAMES: u64 = 60;

/// What a sink saw: the number of a frame, and how many nanoseconds after its time it came.
type Seen = Vec<(u64, i64)>;

/// A live source of [`FRAMES`] frames, and a sink that synchronises (and says what is late) or does not. Restyling a
/// frame takes [`WORK`] by the clock of the pipeline, which nothing else moves but the source, when it waits for the
/// time of a frame. Gives what came out, and the rig.
fn live(settings: &[Setting], synchronised: bool) -> (Seen, Rig) {
    keep_model();
    let upstream = gst::ClockTime::from_mseconds(5);
    let rig = Rig::new(
        settings,
        Neighbours {
            latency: Some(upstream),
            ..Default::default()
        },
    );
    let clock = gst_check::TestClock::new();
    rig.element.set_clock(Some(&clock)).unwrap();
    rig.element.set_base_time(gst::ClockTime::ZERO);
    rig.play(&rgb());
    let seen = Arc::new(std::sync::Mutex::new(Seen::new()));
    let processed = AtomicU64::new(0);
    let element = rig.element.downgrade();
    rig.sink
        .add_probe(gst::PadProbeType::BUFFER, {
            let (clock, seen) = (clock.clone(), seen.clone());
            move |pad, info| {
                let element = element.upgrade().unwrap();
                let now = stat(&element, "processed");
                let work = WORK * (now - processed.swap(now, Ordering::SeqCst));
                clock.set_time(clock.time() + work);
                let pts = info.buffer().unwrap().pts().unwrap();
                let late = clock.time().nseconds() as i64 - pts.nseconds() as i64;
                let number = pts.mseconds() / FRAME_MS;
                seen.lock().unwrap().push((number, late));
                // The sink's render delay is one frame.
                let jitter = late - time(1).nseconds() as i64;
                if synchronised {
                    let kind = match jitter > 0 {
                        true => gst::QOSType::Underflow,
                        false => gst::QOSType::Overflow,
                    };
                    let event = gst::event::Qos::new(kind, 1.5, jitter, pts);
                    assert!(pad.push_event(event));
                }
                gst::PadProbeReturn::Ok
            }
        })
        .unwrap();
    for k in 0..FRAMES {
        clock.set_time(clock.time().max(time(k) + upstream));
        rig.push(frame(k));
    }
    rig.end();
    let seen = std::mem::take(&mut *seen.lock().unwrap());
    (seen, rig)
}

/// How late the latest frame is, in frames, rounded up.
fn lag(seen: &Seen) -> i64 {
    let late = seen.iter().map(|(_, late)| *late).max().unwrap();
    late / time(1).nseconds() as i64 + 1
}

#[test]
fn a_live_stream_stays_close_to_its_time() {
    for steps in ["35", "32,45"] {
        for synchronised in [false, true] {
            for policy in ["drop", "repeat", "passthrough"] {
                let settings = [("t-index-list", steps), ("late-policy", policy)];
                let what = format!("{settings:?}, sink synchronises: {synchronised}");
                let (seen, rig) = live(&settings, synchronised);
                // Two frames are allowed, one is being worked on and one held back, if it is two steps.
                assert!(lag(&seen) <= 6, "{what}: {seen:?}");
                let numbers: Vec<_> = seen.iter().map(|(number, _)| *number).collect();
                assert!(numbers.is_sorted(), "{what}: {numbers:?}");
                let [processed, dropped, repeated, passed] =
                    ["processed", "dropped", "repeated", "passed"].map(|n| stat(&rig.element, n));
                assert_eq!(processed + dropped + repeated + passed, FRAMES, "{what}");
                // Two of three frames can be done.
                assert!(
                    (FRAMES / 2..=FRAMES * 3 / 4).contains(&processed),
                    "{what}: {processed}"
                );
                let count = match policy {
                    "drop" => dropped,
                    "repeat" => repeated,
                    _ => passed,
                };
                assert_eq!(processed + count, FRAMES, "{what}");
                let told = rig.messages(&[gst::MessageType::Qos]);
                match policy {
                    "drop" => {
                        assert_eq!(numbers.len() as u64, processed, "{what}");
                        assert_eq!(told.len() as u64, dropped, "{what}");
                    }
                    _ => {
                        assert_eq!(numbers, (0..FRAMES).collect::<Vec<_>>(), "{what}");
                        assert!(told.is_empty(), "{what}");
                    }
                }
            }
        }
    }
}

#[test]
fn without_a_policy_every_frame_is_restyled() {
    let (seen, rig) = live(&[("t-index-list", "35"), ("late-policy", "none")], true);
    assert_eq!(seen.len() as u64, FRAMES);
    assert_eq!(stat(&rig.element, "processed"), FRAMES);
    // The lag is what the source and the work differ by.
    assert!(lag(&seen) > FRAMES as i64 / 3, "{}", lag(&seen));
}

#[test]
fn a_frame_as_late_as_allowed_is_restyled() {
    let second = gst::ClockTime::SECOND.nseconds().to_string();
    let settings = [("t-index-list", "35"), ("max-lateness", second.as_str())];
    let (seen, rig) = live(&settings, false);
    assert!((24..=28).contains(&lag(&seen)), "{}", lag(&seen));
    assert!(stat(&rig.element, "dropped") > 0);
}

/// The frame after a gap, and no other, says that there is one; the message says what is missing.
#[test]
fn what_is_dropped_is_told() {
    for steps in ["35", "32,45"] {
        let (seen, rig) = live(&[("t-index-list", steps)], false);
        let frames = rig.frames();
        assert_eq!(frames.len(), seen.len());
        let mut before = None;
        for (buffer, (number, _)) in frames.iter().zip(&seen) {
            let gap = before.is_some_and(|before: u64| before + 1 != *number);
            let marked = buffer.flags().contains(gst::BufferFlags::DISCONT);
            assert_eq!(marked, gap, "frame {number} of {steps}: {seen:?}");
            before = Some(*number);
        }
        let messages = rig.messages(&[gst::MessageType::Qos]);
        let missing = (0..FRAMES).filter(|k| !seen.iter().any(|(number, _)| number == k));
        for (count, (message, number)) in (1u64..).zip(messages.iter().zip(missing)) {
            let gst::MessageView::Qos(qos) = message.view() else {
                unreachable!()
            };
            let (live, running, stream, timestamp, duration) = qos.get();
            assert!(live);
            for stamp in [running, stream, timestamp] {
                assert_eq!(stamp, Some(time(number)));
            }
            assert_eq!(duration, Some(time(1)));
            let (jitter, proportion, _) = qos.values();
            assert!(jitter > 2 * time(1).nseconds() as i64, "{jitter}");
            assert_eq!(proportion, 1.0);
            let (_, dropped) = qos.stats();
            assert_eq!(dropped.value(), count as i64);
        }
    }
}

#[test]
fn a_late_frame_shows_what_the_policy_says() {
    let reference = Rig::playing(&[("t-index-list", "35")], &rgb());
    reference.push_frames(0..FRAMES);
    let restyled = reference.pictures();
    for policy in ["repeat", "passthrough"] {
        for steps in ["35", "32,45"] {
            let settings = [("t-index-list", steps), ("late-policy", policy)];
            let (seen, rig) = live(&settings, false);
            let shown = rig.pictures();
            assert_eq!(
                (shown.len(), seen.len()),
                (FRAMES as usize, FRAMES as usize)
            );
            let late: Vec<_> = (0..shown.len())
                .filter(|&k| match policy {
                    "repeat" => k > 0 && shown[k] == shown[k - 1],
                    _ => shown[k] == picture(k as u64),
                })
                .collect();
            let name = match policy {
                "repeat" => "repeated",
                _ => "passed",
            };
            assert_eq!(late.len() as u64, stat(&rig.element, name), "{settings:?}");
            if steps == "35" {
                for k in (0..shown.len()).filter(|k| !late.contains(k)) {
                    same(
                        &shown[k],
                        &restyled[k],
                        &format!("frame {k} of {settings:?}"),
                    );
                }
            }
        }
    }
}

#[test]
fn nothing_is_late_where_the_source_waits() {
    for policy in ["drop", "repeat", "passthrough"] {
        let rig = Rig::playing(&[("late-policy", policy), ("max-lateness", "0")], &rgb());
        let clock = gst_check::TestClock::new();
        rig.element.set_clock(Some(&clock)).unwrap();
        clock.set_time(gst::ClockTime::from_seconds(3600));
        rig.push_frames(0..10);
        rig.end();
        assert_eq!(stat(&rig.element, "processed"), 10, "{policy}");
        assert_eq!(rig.frames().len(), 10, "{policy}");
    }
}

/// Frames that livesync or videorate put in show the picture of the one before, without any work.
#[test]
fn a_frame_that_fills_a_gap_is_not_computed() {
    let filled = |k: u64| {
        let mut buffer = buffer(picture(k / 2), k);
        if k % 2 == 1 {
            buffer.make_mut().set_flags(gst::BufferFlags::GAP);
        }
        buffer
    };
    for (steps, delay) in [("35", 0), ("32,45", 1)] {
        let rig = Rig::playing(&[("t-index-list", steps)], &rgb());
        for k in 0..10 {
            rig.push(filled(k));
        }
        rig.end();
        assert_eq!(stat(&rig.element, "processed"), 5);
        assert_eq!(stat(&rig.element, "skipped"), 5);
        let shown = rig.pictures();
        let reference = Rig::playing(&[("t-index-list", steps)], &rgb());
        reference.push_frames(0..5);
        reference.end();
        let expected = reference.pictures();
        for k in 0..10 {
            same(
                &shown[k],
                &expected[k / 2],
                &format!("frame {k}, {delay} held back"),
            );
        }
    }
    // Where it would not give the same again, it is.
    let fresh = [("t-index-list", "35"), ("noise", "fresh")];
    let pairs = [("t-index-list", "35"), ("frame-buffer-size", "2")];
    for settings in [&fresh, &pairs] {
        let rig = Rig::playing(settings, &rgb());
        (0..10).for_each(|k| rig.push(filled(k)));
        rig.end();
        assert_eq!(stat(&rig.element, "processed"), 10, "{settings:?}");
        assert_eq!(rig.frames().len(), 10, "{settings:?}");
    }
    let rig = Rig::playing(&[("t-index-list", "35")], &rgb());
    rig.push(filled(0));
    rig.element.set_property("seed", 77u64);
    rig.push(filled(1));
    assert_eq!(stat(&rig.element, "processed"), 2);
}

#[test]
fn bypassed_frames_pass_as_they_are_and_in_order() {
    let rig = Rig::playing(TWO_STEPS, &rgb());
    rig.push_frames(0..3);
    set(&rig.element, &[("bypass", "true")]);
    rig.push_frames(3..5);
    assert!(rig.event(gst::event::Tag::new(gst::TagList::new())));
    rig.push_frames(5..6);
    set(&rig.element, &[("bypass", "false")]);
    rig.push_frames(6..9);
    rig.end();
    assert_eq!(stat(&rig.element, "passed"), 3);
    assert_eq!(stat(&rig.element, "processed"), 6);
    let names = rig.take();
    let frames: Vec<_> = names
        .iter()
        .filter_map(|item| match item {
            Item::Frame(buffer) => Some(buffer.clone()),
            Item::Event(_) => None,
        })
        .collect();
    for (k, buffer) in (0..).zip(&frames) {
        assert_eq!(buffer.pts(), Some(time(k)));
        let untouched = pixels(buffer, &rgb()) == picture(k);
        assert_eq!(untouched, (3..6).contains(&k), "frame {k}");
    }
    assert_eq!(frames.len(), 9);
}

/// Also where the output is of another size and format.
#[test]
fn bypassed_frames_are_converted() {
    let mut takes = caps("I420", 32, 16);
    takes.make_mut().set("colorimetry", "bt601");
    let rig = Rig::new(
        &[("bypass", "true")],
        Neighbours {
            takes: Some(takes.clone()),
            ..Default::default()
        },
    );
    rig.play(&rgb());
    rig.push(buffer(vec![200; 64 * 64 * 3], 0));
    let output = rig.output_caps();
    assert!(output.can_intersect(&takes), "{output}");
    let shown = rig.pictures().remove(0);
    // Limited range: 16 + 200·219/255, and no colour.
    let (luma, chroma) = shown.split_at(32 * 16);
    assert!(luma.iter().all(|y| y.abs_diff(188) <= 1), "{luma:?}");
    assert!(chroma.iter().all(|c| c.abs_diff(128) <= 1), "{chroma:?}");
}
