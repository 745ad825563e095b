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
    assert!(rig.names().is_empty());
    rig.push_frames(5..6);
    rig.end();
    assert_eq!(rig.names(), ["2", "3", "4", "segment", "5", "eos"]);
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

#[test]
fn caps_drain_only_if_they_differ() {
    let more = |name: &str, value: &str| {
        let text = format!("{}, {name}={value}", rgb());
        text.parse::<gst::Caps>().unwrap()
    };
    let rate = "video/x-raw,format=RGB,width=64,height=64,framerate=30/1";
    for caps in [
        rate.parse().unwrap(),
        more("pixel-aspect-ratio", "(fraction)4/3"),
        more("colorimetry", "sRGB"),
    ] {
        let rig = under_way();
        assert!(rig.caps(&caps), "{caps}");
        assert_eq!(rig.names()[..3], ["2", "3", "4"], "{caps}");
        rig.push_frames(5..6);
        rig.end();
        assert_eq!(rig.names().last().unwrap(), "eos");
    }
    let rig = under_way();
    assert!(rig.caps(&rgb()));
    rig.push_frames(5..6);
    let names = rig.names();
    assert_eq!(names.last().unwrap(), "2", "{names:?}");
    assert_eq!(stat(&rig.element, "output"), 3);
}

/// The element only refuses them; it is for their source to tell.
#[test]
fn frames_without_caps_are_an_error_told_once() {
    keep_model();
    let rig = Rig::new(FOUR_STEPS, Neighbours::default());
    activate(&rig);
    assert!(rig.event(gst::event::StreamStart::new("test")));
    assert!(rig.segment());
    assert_eq!(rig.src.push(frame(0)), Err(gst::FlowError::NotNegotiated));
    assert!(rig.errors().is_empty());

    let pipeline = gst::Pipeline::new();
    let make_plain = |name| gst::ElementFactory::make(name).build().unwrap();
    let (source, sink) = (make_plain("fakesrc"), make_plain("fakesink"));
    let element = make(FOUR_STEPS);
    pipeline.add_many([&source, &element, &sink]).unwrap();
    gst::Element::link_many([&source, &element, &sink]).unwrap();
    pipeline.set_state(gst::State::Playing).unwrap();
    let bus = pipeline.bus().unwrap();
    let next =
        || bus.timed_pop_filtered(PATIENCE, &[gst::MessageType::Error, gst::MessageType::Eos]);
    let message = next().unwrap();
    let gst::MessageView::Error(error) = message.view() else {
        panic!("{message:?}");
    };
    let told = error.debug().unwrap().to_string();
    assert!(told.contains("not-negotiated"), "{told}");
    pipeline.set_state(gst::State::Null).unwrap();
    assert!(bus.pop_filtered(&[gst::MessageType::Error]).is_none());
}

/// Has a rig play that has been given nothing yet.
fn activate(rig: &Rig) {
    rig.sink.set_active(true).unwrap();
    rig.element.set_state(gst::State::Playing).unwrap();
    rig.src.set_active(true).unwrap();
}

/// Every kind of event that has its place among frames.
#[test]
fn all_serialized_events_keep_their_place() {
    init();
    let collection = gst::StreamCollection::builder(None).build();
    let note = gst::message::Application::new(gst::Structure::new_empty("note"));
    let drains = [
        gst::event::SegmentDone::new(time(3)),
        gst::event::StreamGroupDone::new(gst::GroupId::next()),
    ];
    let waits = [
        tag(),
        custom(),
        gst::event::CustomDownstreamSticky::new(gst::Structure::new_empty("sticky")),
        gst::event::CustomBoth::new(gst::Structure::new_empty("both")),
        gst::event::Toc::new(&gst::Toc::new(gst::TocScope::Global), false),
        gst::event::Protection::new("system", &gst::Buffer::from_slice([1])),
        gst::event::Buffersize::new(gst::format::Bytes::ZERO, gst::format::Bytes::ZERO, false),
        gst::event::StreamCollection::new(&collection),
        gst::event::SinkMessage::new("note", &note),
    ];
    for (event, drains) in drains
        .into_iter()
        .map(|event| (event, true))
        .chain(waits.into_iter().map(|event| (event, false)))
    {
        let rig = under_way();
        let name = event.type_().name();
        let (seqnum, name) = (event.seqnum(), name.to_string());
        assert!(rig.event(event), "{name}");
        rig.push_frames(5..6);
        // Nothing, or all, has been sent before it.
        assert_eq!(stat(&rig.element, "output"), if drains { 5 } else { 3 });
        rig.end();
        let items = rig.take();
        let place = |item: &Item| matches!(item, Item::Event(e) if e.seqnum() == seqnum);
        // Frames 2 to 4 before it, 5 and the end after it.
        assert_eq!(items.iter().position(place), Some(3), "{name}: {items:?}");
        assert_eq!(items.len(), 6, "{name}: {items:?}");
    }
}

/// A deeper pipeline holds frames in one place more; the order is the same, and so is what a flush leaves.
#[test]
fn order_does_not_depend_on_the_depth_of_the_pipeline() {
    for depth in ["1", "3"] {
        let rig = Rig::playing(&join(FOUR_STEPS, &[("pipeline-depth", depth)]), &rgb());
        let toc = || gst::event::Toc::new(&gst::Toc::new(gst::TocScope::Global), false);
        let events: Vec<Box<dyn Fn() -> gst::Event>> = vec![
            Box::new(tag),
            Box::new(custom),
            Box::new(|| gst::event::Gap::new(time(3), time(1))),
            Box::new(toc),
            Box::new(|| segment(time(0), time(4))),
            Box::new(|| gst::event::SegmentDone::new(time(4))),
            Box::new(|| segment(gst::ClockTime::MSECOND, gst::ClockTime::ZERO)),
            Box::new(|| gst::event::Caps::new(&caps("BGR", 64, 64))),
            Box::new(tag),
            Box::new(|| gst::event::StreamStart::new("another")),
            Box::new(|| gst::event::Caps::new(&rgb())),
            Box::new(|| segment(time(0), time(0))),
            Box::new(gst::event::Eos::new),
        ];
        let mut expected = vec!["stream-start".to_owned(), "caps".into(), "segment".into()];
        for (k, event) in (0..).zip(&events) {
            // Between a new stream and its segment there can be no frames.
            if !(10..12).contains(&k) {
                rig.push_frames(2 * k..2 * k + 2);
                expected.extend([2 * k, 2 * k + 1].map(|k| k.to_string()));
            }
            let event = event();
            expected.push(event.type_().name().to_string());
            assert!(rig.event(event));
        }
        assert_eq!(rig.names(), expected, "depth {depth}");

        let rig = Rig::playing(&join(FOUR_STEPS, &[("pipeline-depth", depth)]), &rgb());
        rig.push_frames(0..6);
        assert!(rig.event(tag()));
        assert!(rig.event(gst::event::FlushStart::new()));
        assert!(rig.event(gst::event::FlushStop::new(true)));
        assert!(rig.segment());
        rig.take();
        rig.push_frames(6..8);
        rig.end();
        assert_eq!(rig.names(), ["tag", "6", "7", "eos"], "depth {depth}");
    }
}

/// Frame `k`, this many milliseconds later than usual, marked as a discontinuity.
fn cut(k: u64, later: u64) -> gst::Buffer {
    let mut frame = frame(k);
    let writable = frame.make_mut();
    writable.set_pts(time(k) + gst::ClockTime::from_mseconds(later));
    writable.set_flags(gst::BufferFlags::DISCONT);
    frame
}

/// A leaky queue in front marks the frame after those that it left out.
#[test]
fn frames_left_out_change_nothing() {
    let rig = under_way();
    let expected = restyled(FOUR_STEPS, 0..8);
    for k in 5..8 {
        rig.push(cut(k, 10 * (k - 4) * FRAME_MS));
        assert_eq!(rig.frames().len(), 1, "frame {k}");
    }
    rig.end();
    let found = rig.pictures();
    assert_eq!(found.len(), 3);
    for (found, expected) in found.iter().zip(&expected[5..]) {
        same(found, expected, "after frames left out");
    }
}

#[test]
fn a_jump_ends_what_is_under_way() {
    let backwards = |rig: &Rig| rig.push(frame(0));
    let forwards = |rig: &Rig| rig.push(cut(35, 95 * FRAME_MS));
    // The mark does not count, nor does its absence.
    let unmarked = |rig: &Rig| rig.push(frame(130));
    for (name, jump) in [
        ("0", &backwards as &dyn Fn(&Rig)),
        ("130", &forwards),
        ("130", &unmarked),
    ] {
        let rig = Rig::playing(FOUR_STEPS, &rgb());
        // Long enough for a way back of over a second.
        for k in 30..35 {
            rig.push(frame(k));
        }
        rig.take();
        jump(&rig);
        assert_eq!(rig.names(), ["32", "33", "34"], "to {name}");
        rig.end();
        assert_eq!(rig.names(), [name, "eos"]);
    }
}

#[test]
fn nothing_is_shown_or_compared_across_a_jump() {
    let immediate = ("timing", "immediate");
    let rig = Rig::playing(&join(FOUR_STEPS, &[immediate]), &rgb());
    rig.push_frames(0..5);
    rig.take();
    rig.push(cut(7, 5_000));
    let expected = restyled(FOUR_STEPS, 7..8);
    same(&rig.pictures()[0], &expected[0], "right after a jump");

    // The same picture again and again is skipped for ever, but not across a jump.
    let filter = [
        ("similarity-filter", "true"),
        ("ssf-threshold", "0.5"),
        ("ssf-max-skip", "100"),
    ];
    let rig = Rig::playing(&join(&[("t-index-list", "35")], &filter), &rgb());
    let still = |k, later| {
        let mut frame = cut(0, later);
        frame
            .make_mut()
            .set_pts(time(k) + gst::ClockTime::from_mseconds(later));
        rig.push(frame);
    };
    (0..4).for_each(|k| still(k, 0));
    (4..8).for_each(|k| still(k, 200));
    assert_eq!(stat(&rig.element, "processed"), 1);
    (8..12).for_each(|k| still(k, 5_000));
    assert_eq!(stat(&rig.element, "processed"), 2);
    assert_eq!(rig.frames().len(), 12);
}

/// Events that were seen.
type Seen = std::sync::Arc<std::sync::Mutex<Vec<gst::Event>>>;

/// The events that upstream gets to see from now on.
fn upstream(rig: &Rig) -> Seen {
    let seen = Seen::default();
    let log = seen.clone();
    rig.src
        .add_probe(gst::PadProbeType::EVENT_UPSTREAM, move |_, info| {
            log.lock().unwrap().extend(info.event().cloned());
            gst::PadProbeReturn::Handled
        });
    seen
}

#[test]
fn upstream_gets_what_is_meant_for_it() {
    let rig = under_way();
    let seen = upstream(&rig);
    let rate = gst::event::Step::new(gst::format::Buffers::from_u64(1), 1.0, true, false);
    for event in [
        gst::event::Qos::new(gst::QOSType::Throttle, 1.0, 0, time(1)),
        gst::event::Latency::new(time(2)),
        gst::event::Reconfigure::new(),
        gst::event::CustomUpstream::new(gst::Structure::new_empty("up")),
        gst::event::Navigation::new(gst::Structure::new_empty("application/x-gst-navigation")),
        rate,
    ] {
        let (kind, seqnum) = (event.type_(), event.seqnum());
        assert!(rig.sink.push_event(event), "{kind}");
        let seen = std::mem::take(&mut *seen.lock().unwrap());
        assert_eq!(seen.len(), 1, "{kind}");
        assert_eq!((seen[0].type_(), seen[0].seqnum()), (kind, seqnum));
    }
    assert!(rig.names().is_empty(), "none of them is for downstream");
}

/// What a click at this place of the output comes to upstream.
fn click(rig: &Rig, seen: &Seen, event: &str, place: (f64, f64)) -> (f64, f64) {
    let structure = gst::Structure::builder("application/x-gst-navigation")
        .field("event", event)
        .field("button", 1)
        .field("identifier", 7u32)
        .field("pressure", 0.5)
        .field("delta_pointer_x", 3.0)
        .field("pointer_x", place.0)
        .field("pointer_y", place.1)
        .build();
    assert!(rig.sink.push_event(gst::event::Navigation::new(structure)));
    let event_upstream = seen.lock().unwrap().pop().unwrap();
    let structure = event_upstream.structure().unwrap();
    // The rest says the same as before.
    assert_eq!(structure.get::<&str>("event").unwrap(), event);
    assert_eq!(structure.get::<i32>("button").unwrap(), 1);
    assert_eq!(structure.get::<u32>("identifier").unwrap(), 7);
    assert_eq!(structure.get::<f64>("pressure").unwrap(), 0.5);
    assert_eq!(structure.get::<f64>("delta_pointer_x").unwrap(), 3.0);
    let value = |name| structure.get::<f64>(name).unwrap();
    (value("pointer_x"), value("pointer_y"))
}

#[test]
fn pointers_point_into_the_input() {
    const EVENTS: [&str; 5] = [
        "mouse-move",
        "mouse-button-press",
        "mouse-scroll",
        "touch-down",
        "touch-motion",
    ];
    keep_model();
    for (input, output, at, expected) in [
        ("width=64,height=64", "", (12.5, 63.0), (12.5, 63.0)),
        (
            "width=64,height=64",
            "width=128,height=32",
            (96.0, 8.0),
            (48.0, 16.0),
        ),
        (
            "width=65,height=47",
            "width=21,height=94",
            (7.0, 47.0),
            (65.0 / 3.0, 23.5),
        ),
        // The whole picture fills the whole frame, whatever shape its pixels have on either side.
        (
            "width=64,height=48,pixel-aspect-ratio=(fraction)16/11",
            "width=93,height=48,pixel-aspect-ratio=(fraction)1/1",
            (93.0, 24.0),
            (64.0, 24.0),
        ),
        // Outside, as when a pointer is dragged out of a window.
        (
            "width=64,height=64",
            "width=32,height=32",
            (-4.0, 40.0),
            (-8.0, 80.0),
        ),
    ] {
        let raw = |more: &str| -> gst::Caps {
            let comma = if more.is_empty() { "" } else { "," };
            format!("video/x-raw{comma}{more}").parse().unwrap()
        };
        let wanted = Neighbours {
            takes: Some(raw(output)),
            ..Default::default()
        };
        let rig = Rig::new(&[("t-index-list", "35")], wanted);
        // Before there are caps they pass as they are.
        activate(&rig);
        let seen = upstream(&rig);
        assert_eq!(click(&rig, &seen, "mouse-move", at), at);
        let input = raw(&format!("format=RGB,framerate=25/1,{input}"));
        rig.play(&input);
        rig.push(noise(&input, 0));
        for event in EVENTS {
            let found = click(&rig, &seen, event, at);
            let off = (found.0 - expected.0)
                .abs()
                .max((found.1 - expected.1).abs());
            assert!(off < 1e-9, "{event} at {at:?}: {found:?}, not {expected:?}");
        }
    }
}

/// Downstream asks for another size while frames are under way. They are pictures until they leave, so none has to go
/// first: they come in the new size, and none is lost.
#[test]
fn a_reconfiguration_loses_no_frame() {
    for event in [true, false] {
        let rig = under_way();
        let wanted: gst::Caps = "video/x-raw,format=BGR,width=96,height=50".parse().unwrap();
        rig.sink.add_probe(
            gst::PadProbeType::QUERY_DOWNSTREAM,
            move |_, info| match info.query_mut().unwrap().view_mut() {
                gst::QueryViewMut::Caps(query) => {
                    let caps = match query.filter() {
                        Some(filter) => wanted.intersect(filter),
                        None => wanted.clone(),
                    };
                    query.set_result(&caps);
                    gst::PadProbeReturn::Handled
                }
                _ => gst::PadProbeReturn::Ok,
            },
        );
        if event {
            assert!(rig.sink.push_event(gst::event::Reconfigure::new()));
        } else {
            // As after a pad was linked anew.
            rig.element.static_pad("src").unwrap().mark_reconfigure();
        }
        rig.push_frames(5..8);
        rig.end();
        let mut size = info(&rgb()).size();
        let mut frames = Vec::new();
        for item in rig.take() {
            match item {
                Item::Frame(buffer) => {
                    assert_eq!(buffer.size(), size);
                    frames.push(buffer.pts().unwrap());
                }
                Item::Event(event) => {
                    if let gst::EventView::Caps(caps) = event.view() {
                        size = info(&caps.caps_owned()).size();
                    }
                }
            }
        }
        assert_eq!(frames, (2..8).map(time).collect::<Vec<_>>());
        assert_eq!(size, info(&caps("BGR", 96, 50)).size(), "not asked for");
        assert!(rig.errors().is_empty());
    }
}

#[test]
fn contexts_of_others_pass_through() {
    let rig = under_way();
    let kind = "test.context";
    assert!(!rig.src.peer_query(&mut gst::query::Context::new(kind)));
    let answers = |pad: &gst::Pad| {
        pad.add_probe(
            gst::PadProbeType::QUERY_DOWNSTREAM | gst::PadProbeType::QUERY_UPSTREAM,
            move |_, info| match info.query_mut().unwrap().view_mut() {
                gst::QueryViewMut::Context(query) => {
                    query.set_context(&gst::Context::new(kind, true));
                    gst::PadProbeReturn::Handled
                }
                _ => gst::PadProbeReturn::Ok,
            },
        )
        .unwrap()
    };
    for (asked, asking) in [(&rig.sink, &rig.src), (&rig.src, &rig.sink)] {
        let probe = answers(asked);
        let mut query = gst::query::Context::new(kind);
        assert!(asking.peer_query(&mut query));
        let context = query.context_owned().unwrap();
        assert_eq!(context.context_type(), kind);
        asked.remove_probe(probe);
    }
    let given = gst::Context::new(kind, true);
    rig.element.set_context(&given);
    assert!(rig.element.context(kind).is_some());
    rig.push_frames(5..8);
    rig.end();
    assert_eq!(rig.frames().len(), 6);
}
