//! What applications do to a playing pipeline: state changes from the thread that reads its messages, elements that come and
//! go, models shared by elements that start and stop as they like.

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use common::*;
use gst::prelude::*;

fn plain(name: &str) -> gst::Element {
    gst::ElementFactory::make(name).build().unwrap()
}

/// Counts the frames that reach a pad.
fn counted(pad: &gst::Pad) -> Arc<AtomicU64> {
    let seen = Arc::new(AtomicU64::new(0));
    let counter = seen.clone();
    pad.add_probe(gst::PadProbeType::BUFFER, move |_, _| {
        counter.fetch_add(1, Ordering::SeqCst);
        gst::PadProbeReturn::Ok
    });
    seen
}

/// A live pipeline with the element in it, and the count of frames at its end.
fn live(settings: &[Setting]) -> (gst::Pipeline, gst::Element, Arc<AtomicU64>) {
    keep_model();
    let element = make(settings);
    let pipeline = gst::Pipeline::new();
    let source = gst::ElementFactory::make("videotestsrc");
    let source = source.property("is-live", true).build().unwrap();
    let filter = gst::ElementFactory::make("capsfilter");
    let filter = filter
        .name("before")
        .property("caps", rgb())
        .build()
        .unwrap();
    let after = gst::ElementFactory::make("queue")
        .name("after")
        .build()
        .unwrap();
    let sink = plain("fakesink");
    let chain = [&source, &filter, &element, &after, &sink];
    pipeline.add_many(chain).unwrap();
    gst::Element::link_many(chain).unwrap();
    let seen = counted(&sink.static_pad("sink").unwrap());
    (pipeline, element, seen)
}

/// Reads messages as applications do, and acts on them at once, on its own thread: latency is redistributed, the state is
/// changed when it is asked for, and an error or the end stops everything.
fn attend(pipeline: &gst::Pipeline) -> std::thread::JoinHandle<Vec<gst::MessageType>> {
    let pipeline = pipeline.clone();
    std::thread::spawn(move || {
        let mut seen = Vec::new();
        for message in pipeline.bus().unwrap().iter_timed(PATIENCE) {
            use gst::MessageView;
            seen.push(message.type_());
            match message.view() {
                // It cannot be had when the pipeline has stopped meanwhile.
                MessageView::Latency(_) => drop(pipeline.recalculate_latency()),
                MessageView::Application(wish) => {
                    let state = wish.structure().unwrap().get("state").unwrap();
                    pipeline.set_state(state).unwrap();
                }
                MessageView::Error(_) | MessageView::Eos(_) => break,
                _ => {}
            }
        }
        pipeline.set_state(gst::State::Null).unwrap();
        seen
    })
}

#[test]
fn the_bus_thread_changes_states() {
    let (pipeline, _, seen) = live(TWO_STEPS);
    // Wishes made before NULL count after it.
    pipeline.set_auto_flush_bus(false);
    let bus = pipeline.bus().unwrap();
    pipeline.set_state(gst::State::Playing).unwrap();
    let attending = attend(&pipeline);
    let wish = |state: gst::State| {
        let structure = gst::Structure::builder("wish").field("state", state);
        bus.post(gst::message::Application::new(structure.build()))
            .unwrap();
    };
    for round in 0..5 {
        let before = seen.load(Ordering::SeqCst);
        wait_until("frames flow", || seen.load(Ordering::SeqCst) > before + 1);
        let low = [gst::State::Paused, gst::State::Ready, gst::State::Null][round % 3];
        wish(low);
        wish(gst::State::Playing);
    }
    // What the thread takes for an end.
    let end = gst::message::Error::builder(gst::CoreError::Failed, "the test ends");
    bus.post(end.build()).unwrap();
    let messages = attending.join().unwrap();
    assert!(messages.contains(&gst::MessageType::Latency));
    let (_, state, _) = pipeline.state(PATIENCE);
    assert_eq!(state, gst::State::Null);
}

/// An error of the element stops the pipeline from the thread that reads it.
#[test]
fn the_bus_thread_stops_after_an_error() {
    init();
    for _ in 0..5 {
        let pipeline = gst::Pipeline::new();
        let source: gst_app::AppSrc = plain("appsrc").downcast().unwrap();
        source.set_caps(Some(&rgb()));
        source.set_format(gst::Format::Time);
        let (element, sink) = (make(TWO_STEPS), plain("fakesink"));
        let chain = [source.upcast_ref(), &element, &sink];
        pipeline.add_many(chain).unwrap();
        gst::Element::link_many(chain).unwrap();
        let attending = attend(&pipeline);
        pipeline.set_state(gst::State::Playing).unwrap();
        for k in 0..3 {
            source.push_buffer(frame(k)).unwrap();
        }
        let _ = source.push_buffer(buffer(vec![0; 7], 3));
        let messages = attending.join().unwrap();
        assert_eq!(messages.last(), Some(&gst::MessageType::Error));
        let (_, state, _) = pipeline.state(PATIENCE);
        assert_eq!(state, gst::State::Null);
    }
}

/// Blocks what flows through a pad, does `work` meanwhile, and lets go.
fn blocked(pad: &gst::Pad, work: impl FnOnce()) {
    let held = Arc::new(AtomicU64::new(0));
    let stopped = held.clone();
    let probe = pad
        .add_probe(gst::PadProbeType::BLOCK_DOWNSTREAM, move |_, _| {
            stopped.store(1, Ordering::SeqCst);
            gst::PadProbeReturn::Ok
        })
        .unwrap();
    wait_until("the flow is blocked", || held.load(Ordering::SeqCst) == 1);
    work();
    pad.remove_probe(probe);
}

#[test]
fn elements_come_and_go_while_it_plays() {
    let (pipeline, first, seen) = live(&[("t-index-list", "0,16,32,45")]);
    let (before, after) = (
        pipeline.by_name("before").unwrap(),
        pipeline.by_name("after").unwrap(),
    );
    let pad = before.static_pad("src").unwrap();
    pipeline.set_state(gst::State::Playing).unwrap();
    let flows = |what: &str| {
        let now = seen.load(Ordering::SeqCst);
        wait_until(what, || seen.load(Ordering::SeqCst) > now + 3);
    };
    flows("with the first");
    let mut current = Some(first);
    for round in 0..12 {
        let next = match round % 3 {
            // Without any for a while, then with another one, then with yet another right away.
            0 => None,
            1 => Some(make(TWO_STEPS)),
            _ => Some(make(&[("t-index-list", "35"), ("timing", "immediate")])),
        };
        blocked(&pad, || {
            match &current {
                Some(old) => {
                    before.unlink(old);
                    old.unlink(&after);
                    pipeline.remove(old).unwrap();
                    old.set_state(gst::State::Null).unwrap();
                }
                None => before.unlink(&after),
            }
            match &next {
                Some(new) => {
                    pipeline.add(new).unwrap();
                    gst::Element::link_many([&before, new, &after]).unwrap();
                    new.sync_state_with_parent().unwrap();
                }
                None => before.link(&after).unwrap(),
            }
        });
        current = next;
        flows("after a change");
    }
    pipeline.set_state(gst::State::Null).unwrap();
    let bus = pipeline.bus().unwrap();
    let wrong = bus.pop_filtered(&[gst::MessageType::Error, gst::MessageType::Warning]);
    assert!(wrong.is_none(), "{wrong:?}");
}

/// Two elements on two threads with a model of their own, which goes and comes as they stop and start.
#[test]
fn elements_that_share_a_model_start_and_stop_in_any_order() {
    let folder = Folder::model();
    let model = folder.path().to_str().unwrap();
    let expected = restyled(TWO_STEPS, 0..4);
    std::thread::scope(|scope| {
        for thread in 0..2u64 {
            let expected = &expected;
            scope.spawn(move || {
                let rig = Rig::new(&join(TWO_STEPS, &[("model", model)]), Neighbours::default());
                let mut dice = thread * 97 + 5;
                for round in 0..12 {
                    dice = dice
                        .wrapping_mul(6364136223846793005)
                        .wrapping_add(1442695040888963407);
                    // From none, so that it stops while the model loads, to more than the frames under way.
                    let frames = (dice >> 33) % 5;
                    rig.play(&rgb());
                    rig.push_frames(0..frames);
                    let found = rig.pictures();
                    assert_eq!(found.len() as u64, frames.saturating_sub(1));
                    for (found, expected) in found.iter().zip(expected) {
                        same(found, expected, &format!("thread {thread}, round {round}"));
                    }
                    rig.stop();
                    rig.take();
                    assert!(rig.errors().is_empty());
                }
            });
        }
    });
}
