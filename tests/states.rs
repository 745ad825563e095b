//! Starting and stopping, at any time and again and again.

mod common;

use std::sync::Arc;

use common::*;
use gst::prelude::*;
use gststreamdiffusion::engine::shared;

#[test]
fn it_plays_again_and_again() {
    let expected = restyled(TWO_STEPS, 0..3);
    let rig = Rig::new(TWO_STEPS, Neighbours::default());
    for round in 0..20 {
        rig.play(&rgb());
        rig.push_frames(0..3);
        // One frame is still under way, and must not show up in the next round.
        let found = rig.pictures();
        assert_eq!(found.len(), 2, "round {round}");
        same(&found[0], &expected[0], "first frame");
        same(&found[1], &expected[1], "second frame");
        assert_eq!(stat(&rig.element, "output"), 2);
        rig.stop();
    }
    assert!(rig.errors().is_empty());
}

#[test]
fn it_pauses_and_rests() {
    use gst::State::{Paused, Playing, Ready};
    let rig = Rig::playing(TWO_STEPS, &rgb());
    rig.push_frames(0..2);
    for state in [Paused, Playing, Paused, Playing] {
        rig.element.set_state(state).unwrap();
    }
    rig.push_frames(2..3);
    assert_eq!(rig.frames().len(), 2);
    rig.element.set_state(Ready).unwrap();
    assert_eq!(rig.src.push(frame(3)), Err(gst::FlowError::Flushing));
}

#[test]
fn it_may_stop_before_a_frame_came_or_while_the_model_loads() {
    let rig = Rig::new(TWO_STEPS, Neighbours::default());
    for _ in 0..5 {
        rig.play(&rgb());
        rig.stop();
    }
    rig.play(&rgb());
    rig.push_frames(0..2);
    assert_eq!(rig.frames().len(), 1);
    assert!(rig.errors().is_empty());
}

#[test]
fn it_may_stop_while_a_frame_is_processed() {
    let rig = Rig::new(TWO_STEPS, Neighbours::default());
    for round in 0..10 {
        rig.play(&rgb());
        let src = rig.src.clone();
        let pushing = std::thread::spawn(move || {
            loop {
                if let Err(flow) = (0..50).try_for_each(|k| src.push(frame(k)).map(drop)) {
                    return flow;
                }
            }
        });
        wait_until("frames flow", || stat(&rig.element, "output") >= 2);
        rig.element.set_state(gst::State::Null).unwrap();
        assert_eq!(
            pushing.join().unwrap(),
            gst::FlowError::Flushing,
            "round {round}"
        );
        rig.stop();
        rig.take();
    }
    assert!(rig.errors().is_empty());
}

#[test]
fn elements_share_a_model_and_let_it_go() {
    let folder = Folder::model();
    let loaded = shared::load(folder.path()).unwrap();
    let users = || Arc::strong_count(&loaded) - 1;
    let play = || {
        let rig = Rig::new(
            &[("model", folder.path().to_str().unwrap())],
            Neighbours::default(),
        );
        rig.play(&rgb());
        rig.push_frames(0..1);
        rig
    };
    assert_eq!(users(), 0);
    let first = play();
    let one = users();
    assert!(one > 0, "the element loaded its own");
    let second = play();
    assert_eq!(users(), 2 * one);
    first.stop();
    assert_eq!(users(), one);
    drop(second);
    assert_eq!(users(), 0);
}

/// In a pipeline with a clock, queues and threads, as applications run it.
#[test]
fn a_live_pipeline_stops_at_any_time() {
    init();
    let pipeline = gst::parse::launch(&format!(
        "videotestsrc is-live=true ! video/x-raw,width=64,height=64 ! queue ! \
         streamdiffusion name=it model={} t-index-list=32,45 ! queue ! fakesink sync=true",
        parity().display()
    ))
    .unwrap();
    let element = pipeline.downcast_ref::<gst::Bin>().unwrap().by_name("it");
    let element = element.unwrap();
    for _ in 0..3 {
        pipeline.set_state(gst::State::Playing).unwrap();
        wait_until("frames flow", || stat(&element, "output") >= 3);
        pipeline.set_state(gst::State::Null).unwrap();
    }
}
