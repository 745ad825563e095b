//! Events keep their place among the frames, whatever is under way.

mod common;

use common::*;
use gst::prelude::*;

/// Frame k comes out right after frame k + 3.
const FOUR_STEPS: &[Setting] = &[("t-index-list", "0,16,32,45")];

fn segment(start: gst::ClockTime, position: gst::ClockTime) -> gst::Event {
    let mut segment = gst::FormattedSegment::<gst::ClockTime>::new();
    segment.set_start(start);
    segment.set_position(position);
    gst::event::Segment::new(&segment)
}

fn tag() -> gst::Event {
    let mut tags = gst::TagList::new();
    tags.make_mut()
        .add::<gst::tags::Title>(&"A title", gst::TagMergeMode::Append);
    gst::event::Tag::new(tags)
}

fn custom() -> gst::Event {
    gst::event::CustomDownstream::new(gst::Structure::new_empty("test"))
}

/// A playing rig that has had five frames, of which two are out.
fn under_way() -> Rig {
    let rig = Rig::playing(FOUR_STEPS, &rgb());
    rig.push_frames(0..5);
    assert_eq!(rig.names(), ["stream-start", "caps", "segment", "0", "1"]);
    rig
}

#[test]
fn what_frames_must_not_cross_drains_them() {
    let ms = gst::ClockTime::from_mseconds;
    for (name, event) in [
        ("eos", gst::event::Eos::new()),
        ("gap", gst::event::Gap::new(time(5), time(1))),
        ("caps", gst::event::Caps::new(&caps("RGB", 96, 64))),
        ("caps", gst::event::Caps::new(&caps("BGR", 64, 64))),
        ("segment", segment(ms(10), ms(0))),
        ("stream-start", gst::event::StreamStart::new("another")),
    ] {
        let rig = under_way();
        assert!(rig.event(event));
        assert_eq!(rig.names(), ["2", "3", "4", name]);
        assert_eq!(stat(&rig.element, "output"), 5);
    }
}

#[test]
fn a_segment_that_only_moves_its_position_drains_nothing() {
    let rig = under_way();
    assert!(rig.event(segment(time(0), time(3))));
    assert_eq!(rig.names(), ["segment"]);
    rig.push_frames(5..6);
    rig.end();
    assert_eq!(rig.names(), ["2", "3", "4", "5", "eos"]);
}

#[test]
fn frames_go_on_after_a_gap() {
    let rig = under_way();
    assert!(rig.event(gst::event::Gap::new(time(5), time(1))));
    rig.push_frames(6..8);
    rig.end();
    assert_eq!(rig.names(), ["2", "3", "4", "gap", "6", "7", "eos"]);
}

#[test]
fn a_new_stream_starts_afresh() {
    let rig = under_way();
    assert!(rig.event(gst::event::StreamStart::new("another")));
    assert!(rig.caps(&rgb()));
    assert!(rig.segment());
    rig.take();
    rig.push_frames(0..4);
    rig.end();
    let expected = restyled(FOUR_STEPS, 0..4);
    let found = rig.pictures();
    assert_eq!(found.len(), 4);
    for (found, expected) in found.iter().zip(&expected) {
        same(found, expected, "after a new stream");
    }
}

#[test]
fn serialized_events_keep_their_place() {
    let rig = Rig::playing(&[("t-index-list", "22,32,45")], &rgb());
    rig.push_frames(0..3);
    assert!(rig.event(tag()));
    assert!(rig.event(custom()));
    rig.push_frames(3..4);
    assert!(rig.event(custom()));
    rig.push_frames(4..6);
    rig.end();
    assert_eq!(
        rig.names()[3..],
        [
            "0",
            "1",
            "2",
            "tag",
            "custom-downstream",
            "3",
            "custom-downstream",
            "4",
            "5",
            "eos"
        ]
    );
    // With nothing under way they pass at once, and so do at any time those that are not serialized.
    let rig = Rig::playing(FOUR_STEPS, &rgb());
    assert!(rig.event(tag()));
    rig.push_frames(0..1);
    let oob = gst::event::CustomDownstreamOob::new(gst::Structure::new_empty("test"));
    assert!(rig.event(oob));
    assert_eq!(rig.names()[3..], ["tag", "custom-downstream-oob"]);
}

#[test]
fn a_flush_drops_what_is_under_way() {
    let rig = under_way();
    assert!(rig.event(tag()));
    assert!(rig.event(gst::event::FlushStart::new()));
    assert_eq!(rig.src.push(frame(5)), Err(gst::FlowError::Flushing));
    assert!(rig.event(gst::event::FlushStop::new(true)));
    assert!(rig.segment());
    assert_eq!(rig.names(), ["flush-start", "flush-stop", "segment"]);
    rig.push_frames(0..6);
    rig.end();
    let caps = rig.output_caps();
    let items = rig.take();
    // Tags outlive a flush, and come before the frames that come after it.
    let tags = |item: &Item| matches!(item, Item::Event(e) if e.type_() == gst::EventType::Tag);
    assert_eq!(items.iter().position(tags), Some(0), "{items:?}");
    assert_eq!(items.iter().filter(|item| tags(item)).count(), 1);
    let expected = restyled(FOUR_STEPS, 0..6);
    let frames: Vec<_> = items
        .iter()
        .filter_map(|item| match item {
            Item::Frame(buffer) => Some(buffer),
            Item::Event(_) => None,
        })
        .collect();
    assert_eq!(frames.len(), 6);
    for (k, (found, expected)) in frames.iter().zip(&expected).enumerate() {
        assert_eq!(found.pts(), Some(time(k as u64)));
        same(&pixels(found, &caps), expected, "after a flush");
    }
}

#[test]
fn flushes_in_a_row_do_no_harm() {
    let rig = Rig::playing(FOUR_STEPS, &rgb());
    for _ in 0..10 {
        rig.push_frames(0..5);
        assert_eq!(rig.frames().len(), 2);
        assert!(rig.event(gst::event::FlushStart::new()));
        assert!(rig.event(gst::event::FlushStop::new(true)));
        assert!(rig.segment());
    }
    rig.end();
    assert!(rig.frames().is_empty());
    assert!(rig.errors().is_empty());
}

/// A flush while frames are being processed ends the push at once.
#[test]
fn a_flush_ends_a_push() {
    let rig = Rig::playing(FOUR_STEPS, &rgb());
    for round in 0..10 {
        let src = rig.src.clone();
        let pushing = std::thread::spawn(move || {
            loop {
                if let Err(flow) = (0..50).try_for_each(|k| src.push(frame(k)).map(drop)) {
                    return flow;
                }
            }
        });
        let before = stat(&rig.element, "output");
        wait_until("frames flow", || stat(&rig.element, "output") >= before + 2);
        assert!(rig.event(gst::event::FlushStart::new()));
        assert_eq!(
            pushing.join().unwrap(),
            gst::FlowError::Flushing,
            "round {round}"
        );
        assert!(rig.event(gst::event::FlushStop::new(true)));
        assert!(rig.segment());
    }
    rig.take();
    rig.push_frames(0..4);
    rig.end();
    assert_eq!(rig.frames().len(), 4);
    assert!(rig.errors().is_empty());
}
