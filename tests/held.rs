//! Frames that are held back, in the stream or by the pipeline's depth, while others are not restyled; small pools; what
//! comes after an error.

mod common;

use common::*;
use gst::prelude::*;

const ONE_STEP: Setting = ("t-index-list", "35");

/// From now on frames up to `k` are too late for the sink.
fn too_late_up_to(rig: &Rig, k: u64) {
    let event = gst::event::Qos::new(gst::QOSType::Underflow, 1.0, 0, time(k));
    assert!(rig.sink.push_event(event));
}

/// A frame that fills a gap, with the time of `k`, and shows what `shows` shows.
fn filling(k: u64, shows: u64) -> gst::Buffer {
    let mut buffer = buffer(picture(shows), k);
    buffer.make_mut().set_flags(gst::BufferFlags::GAP);
    buffer
}

fn restyled(settings: &[Setting], frames: std::ops::Range<u64>) -> Vec<Vec<u8>> {
    let rig = Rig::playing(settings, &rgb());
    rig.push_frames(frames);
    rig.end();
    rig.pictures()
}

#[test]
fn what_is_held_back_leaves_when_only_late_frames_follow() {
    for (settings, held) in [
        (vec![("t-index-list", "32,45")], 1),
        (vec![ONE_STEP, ("pipeline-depth", "2")], 2),
        (
            vec![("t-index-list", "32,45"), ("frame-buffer-size", "2")],
            3,
        ),
    ] {
        for policy in ["drop", "repeat", "passthrough"] {
            let settings = [&settings[..], &[("late-policy", policy)]].concat();
            let rig = Rig::playing(&settings, &rgb());
            rig.push_frames(0..6);
            too_late_up_to(&rig, 100);
            rig.push_frames(6..60);
            let left = rig.frames();
            let last = left.last().and_then(|buffer| buffer.pts());
            let expected = match policy {
                "drop" => 5,
                _ => 59,
            };
            assert_eq!(last, Some(time(expected)), "{settings:?}");
            assert_eq!(
                left.len() as u64,
                expected + 1,
                "{settings:?}, {held} held back"
            );
            // And it goes on from there.
            rig.push_frames(101..106);
            rig.end();
            let times: Vec<_> = rig.frames().iter().map(|buffer| buffer.pts()).collect();
            assert_eq!(times, (101..106).map(|k| Some(time(k))).collect::<Vec<_>>());
        }
    }
}

#[test]
fn a_gap_shows_what_came_before_it_and_nothing_older() {
    let alone = restyled(&[ONE_STEP], 9..10).remove(0);
    let rig = Rig::playing(&[ONE_STEP], &rgb());
    rig.push_frames(0..1);
    set(&rig.element, &[("bypass", "true")]);
    rig.push_frames(1..10);
    set(&rig.element, &[("bypass", "false")]);
    rig.take();
    rig.push(filling(10, 9));
    same(&rig.pictures()[0], &alone, "after bypassed frames");

    let rig = Rig::playing(&[ONE_STEP], &rgb());
    rig.push_frames(0..1);
    too_late_up_to(&rig, 9);
    rig.push_frames(1..10);
    rig.take();
    rig.push(filling(10, 9));
    same(&rig.pictures()[0], &alone, "after dropped frames");
}

#[test]
fn immediate_shows_nothing_from_before_a_bypass() {
    let settings = [("t-index-list", "0,16,32,45"), ("timing", "immediate")];
    let rig = Rig::playing(&settings, &rgb());
    rig.push_frames(0..6);
    set(&rig.element, &[("bypass", "true")]);
    rig.push_frames(6..20);
    set(&rig.element, &[("bypass", "false")]);
    rig.take();
    rig.push_frames(20..21);
    let expected = restyled(&settings, 20..21).remove(0);
    same(&rig.pictures()[0], &expected, "the first frame after it");
}

#[test]
fn immediate_gives_one_for_one_also_when_frames_are_late() {
    let rig = Rig::playing(&[ONE_STEP, ("timing", "immediate")], &rgb());
    rig.push_frames(0..2);
    too_late_up_to(&rig, 20);
    for k in 2..10 {
        rig.take();
        rig.push(frame(k));
        assert_eq!(rig.names(), [k.to_string()]);
    }
    assert_eq!(stat(&rig.element, "repeated"), 8);
}

/// Downstream's pool has three buffers.
fn small_pool(query: &mut gst::query::Allocation) {
    let (caps, _) = query.get_owned();
    let caps = caps.unwrap();
    let pool = gst_video::VideoBufferPool::new();
    let size = info(&caps).size() as u32;
    let mut config = pool.config();
    config.set_params(Some(&caps), size, 2, 3);
    pool.set_config(config).unwrap();
    query.add_allocation_pool(Some(&pool), size, 2, 3);
}

#[test]
fn a_small_pool_is_enough_for_large_groups() {
    for depth in ["0", "1", "3"] {
        let settings = [
            ONE_STEP,
            ("frame-buffer-size", "4"),
            ("pipeline-depth", depth),
        ];
        let neighbours = Neighbours {
            allocation: Some(small_pool),
            ..Default::default()
        };
        let rig = Rig::new(&settings, neighbours);
        // The rig keeps what it is given; a sink does not.
        let count = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
        rig.sink
            .add_probe(gst::PadProbeType::BUFFER, {
                let count = count.clone();
                move |_, info| {
                    count.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                    info.data = None;
                    gst::PadProbeReturn::Handled
                }
            })
            .unwrap();
        rig.play(&rgb());
        let src = rig.src.clone();
        let pushing = std::thread::spawn(move || {
            (0..12).for_each(|k| {
                src.push(frame(k)).unwrap();
            });
            src.push_event(gst::event::Eos::new())
        });
        wait_until("all frames are pushed", || pushing.is_finished());
        assert!(pushing.join().unwrap());
        assert_eq!(
            count.load(std::sync::atomic::Ordering::SeqCst),
            12,
            "depth {depth}"
        );
    }
}

#[test]
fn after_an_error_nothing_is_out_of_step() {
    for depth in ["0", "2"] {
        let rig = Rig::playing(&[("pipeline-depth", depth)], &rgb());
        // After the change of state, which would fail.
        set(&rig.element, &[("t-index-list", "nonsense")]);
        // With a depth, the error is told with a later frame.
        let failed = (0..4).find(|k| rig.src.push(frame(*k)) == Err(gst::FlowError::Error));
        assert!(failed.is_some());
        assert!(!rig.errors().is_empty());
        set(&rig.element, &[ONE_STEP]);
        rig.take();
        rig.push_frames(10..14);
        assert!(rig.event(gst::event::Tag::new(gst::TagList::new())));
        rig.end();
        assert_eq!(
            rig.names(),
            ["10", "11", "12", "13", "tag", "eos"],
            "depth {depth}"
        );
        assert!(rig.errors().is_empty());
    }
}

/// Frames that fill up a group, are skipped or fill a gap take no time, and must not make the latency swing.
#[test]
fn the_latency_is_told_a_few_times_only() {
    for (settings, moving) in [
        (("frame-buffer-size", "3"), true),
        (("frame-buffer-size", "4"), true),
        (("similarity-filter", "true"), false),
    ] {
        let live = Neighbours {
            latency: Some(gst::ClockTime::from_mseconds(5)),
            ..Default::default()
        };
        let rig = Rig::new(&[ONE_STEP, ("late-policy", "none"), settings], live);
        rig.play(&rgb());
        let latencies: Vec<_> = (0..150u64)
            .filter(|k| {
                rig.push(buffer(picture(k * u64::from(moving)), *k));
                !rig.messages(&[gst::MessageType::Latency]).is_empty()
            })
            .collect();
        // A busy machine is slower now and then, but not with every group.
        assert!(latencies.len() < 25, "{settings:?}: {latencies:?}");
    }
}

/// What passes is converted frame by frame, whatever rate the caps name.
#[test]
fn frames_pass_to_caps_of_another_rate() {
    let mut takes = rgb();
    takes.make_mut().set("framerate", gst::Fraction::new(30, 1));
    let mut gives = rgb();
    (gives.make_mut().structure_mut(0).unwrap()).remove_field("framerate");
    let rig = Rig::new(
        &[("bypass", "true")],
        Neighbours {
            takes: Some(takes),
            ..Default::default()
        },
    );
    rig.play(&gives);
    rig.push(frame(0));
    assert_eq!(rig.pictures(), [picture(0)]);
}

/// Upstream's buffers are not held any more when it asks for them.
#[test]
fn a_drain_query_finishes_what_is_under_way() {
    let rig = Rig::playing(
        &[("t-index-list", "32,45"), ("pipeline-depth", "2")],
        &rgb(),
    );
    rig.push_frames(0..5);
    let before = rig
        .names()
        .iter()
        .filter(|name| name.parse::<u64>().is_ok())
        .count();
    assert!(before < 5);
    rig.src.peer_query(&mut gst::query::Drain::new());
    assert_eq!(before + rig.frames().len(), 5);
}
