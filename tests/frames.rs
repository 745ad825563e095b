//! Frames through the element: how many, when, of which size and layout, and what travels with them.

mod common;

use common::*;
use gst::prelude::*;
use gst_video::prelude::*;
use gst_video::{VideoBufferPool, VideoMeta};

/// Lists of 1, 2, 3 and 4 steps.
const LISTS: [&str; 4] = ["35", "32,45", "22,32,45", "0,16,32,45"];

#[test]
fn frames_come_out_when_they_are_done_and_all_of_them_do() {
    const FRAMES: usize = 8;
    for (n, list) in (1..).zip(LISTS) {
        let steps = [("t-index-list", list)];
        let expected = restyled(&steps, 0..FRAMES as u64);
        for f in 1..=3 {
            let what = format!("{n} steps, {f} frames at a time");
            let group = f.to_string();
            let settings = join(&steps, &[("frame-buffer-size", &group)]);
            let rig = Rig::playing(&settings, &rgb());
            for k in 0..FRAMES {
                rig.push(frame(k as u64));
                let out = ((k + 1) / f).saturating_sub(n - 1) * f;
                assert_eq!(
                    stat(&rig.element, "output"),
                    out as u64,
                    "{what}, after {k}"
                );
            }
            rig.end();
            let caps = rig.output_caps();
            let out = rig.frames();
            assert_eq!(out.len(), FRAMES, "{what}");
            for (k, (found, expected)) in out.iter().zip(&expected).enumerate() {
                assert_eq!(found.pts(), Some(time(k as u64)), "{what}");
                same(
                    &pixels(found, &caps),
                    expected,
                    &format!("{what}, frame {k}"),
                );
            }
            assert!(rig.errors().is_empty());
        }
    }
}

#[test]
fn flags_and_metas_stay_with_their_frame() {
    use gst::BufferFlags;
    let clock = gst::Caps::new_empty_simple("timestamp/x-test");
    let rig = Rig::playing(&[("t-index-list", LISTS[2])], &rgb());
    for k in 0..6 {
        let mut frame = frame(k);
        let stamped = frame.make_mut();
        let code = gst_video::VideoTimeCode::new(
            gst::Fraction::new(25, 1),
            None,
            gst_video::VideoTimeCodeFlags::empty(),
            1,
            2,
            3,
            k as u32,
            0,
        );
        gst_video::VideoTimeCodeMeta::add(stamped, &code.try_into().unwrap());
        gst::ReferenceTimestampMeta::add(stamped, &clock, time(100 + k), None);
        stamped.set_offset(k);
        if k == 3 {
            stamped.set_flags(BufferFlags::DISCONT | BufferFlags::CORRUPTED);
        }
        rig.push(frame);
    }
    rig.end();
    let out = rig.frames();
    assert_eq!(out.len(), 6);
    for (k, buffer) in (0..).zip(&out) {
        let code = buffer.meta::<gst_video::VideoTimeCodeMeta>().unwrap();
        assert_eq!(code.tc().frames(), k as u32);
        let reference = buffer.meta::<gst::ReferenceTimestampMeta>().unwrap();
        assert_eq!(reference.timestamp(), time(100 + k));
        assert_eq!(buffer.offset(), k);
        let corrupted = buffer.flags().contains(BufferFlags::CORRUPTED);
        assert_eq!(corrupted, k == 3, "frame {k}");
    }
    assert!(out[3].flags().contains(BufferFlags::DISCONT));
    assert!(!out[4].flags().contains(BufferFlags::DISCONT));
}

#[test]
fn frames_need_no_time_and_no_rate() {
    let mut caps = rgb();
    caps.make_mut()
        .structure_mut(0)
        .unwrap()
        .set("framerate", gst::Fraction::new(0, 1));
    let expected = restyled(TWO_STEPS, 0..5);
    let rig = Rig::playing(TWO_STEPS, &caps);
    for k in 0..5 {
        rig.push(gst::Buffer::from_slice(picture(k)));
    }
    rig.end();
    let out_caps = rig.output_caps();
    assert!(out_caps.is_subset(&caps), "{out_caps}");
    let out = rig.frames();
    assert_eq!(out.len(), 5);
    for (found, expected) in out.iter().zip(&expected) {
        assert_eq!(found.pts(), None);
        same(&pixels(found, &out_caps), expected, "without time");
    }
}

#[test]
fn any_size_goes_through() {
    let given: &[Setting] = &[("width", "64"), ("height", "48")];
    let mut count = 0;
    for format in ["RGB", "I420", "NV12", "YUY2", "P010_10LE", "GRAY8"] {
        for (width, height) in [(65, 47), (17, 9), (1, 1), (3, 50)] {
            for size in [&[], given] {
                let caps = caps(format, width, height);
                let rig = Rig::playing(&join(TWO_STEPS, size), &caps);
                rig.push(noise(&caps, 0));
                rig.push(noise(&caps, 1));
                rig.end();
                let out = rig.output_caps();
                let layout = info(&out);
                assert_eq!((layout.width(), layout.height()), (width, height), "{caps}");
                assert_eq!(layout.format(), info(&caps).format());
                let frames = rig.frames();
                assert_eq!(frames.len(), 2, "{caps}");
                assert!(frames.iter().all(|f| f.size() == layout.size()), "{caps}");
                count += 1;
            }
        }
    }
    assert_eq!(count, 48);
}

#[test]
fn the_size_changes_where_downstream_wants_another() {
    let wanted = Neighbours {
        takes: Some(
            "video/x-raw,format=I420,width=96,height=50"
                .parse()
                .unwrap(),
        ),
        ..Default::default()
    };
    let rig = Rig::new(TWO_STEPS, wanted);
    rig.play(&rgb());
    rig.push_frames(0..3);
    rig.end();
    let layout = info(&rig.output_caps());
    assert_eq!((layout.width(), layout.height()), (96, 50));
    let frames = rig.frames();
    assert_eq!(frames.len(), 3);
    assert!(frames.iter().all(|f| f.size() == layout.size()));
}

#[test]
fn strides_and_offsets_are_honoured_on_input() {
    for (format, width, height) in [("RGB", 64, 64), ("I420", 65, 47), ("NV12", 64, 48)] {
        let caps = caps(format, width, height);
        let tight: Vec<_> = (0..3).map(|k| noise(&caps, k)).collect();
        let wide = tight
            .iter()
            .map(|buffer| spread(buffer, &caps, || 48))
            .collect();
        let expected = restyle(TWO_STEPS, &caps, tight);
        assert_ne!(expected[0], expected[1]);
        assert_eq!(restyle(TWO_STEPS, &caps, wide), expected, "{caps}");
    }
}

/// A pool whose frames have room around them.
fn roomy_pool(query: &mut gst::query::Allocation) {
    let caps = query.get_owned().0.unwrap();
    let size = info(&caps).size() as u32;
    let pool = VideoBufferPool::new();
    let mut config = pool.config();
    config.set_params(Some(&caps), size, 0, 0);
    config.add_option(gst_video::BUFFER_POOL_OPTION_VIDEO_META);
    config.add_option(gst_video::BUFFER_POOL_OPTION_VIDEO_ALIGNMENT);
    config.set_video_alignment(&gst_video::VideoAlignment::new(4, 4, 32, 32, &[0; 4]));
    pool.set_config(config).unwrap();
    query.add_allocation_pool(Some(&pool), size, 0, 0);
    query.add_allocation_meta::<VideoMeta>(None);
}

#[test]
fn strides_and_offsets_are_honoured_on_output() {
    for (format, width, height) in [("RGB", 64, 64), ("I420", 65, 47)] {
        let caps = caps(format, width, height);
        let frames = || (0..3).map(|k| noise(&caps, k));
        let expected = restyle(TWO_STEPS, &caps, frames().collect());
        let roomy = Neighbours {
            allocation: Some(roomy_pool),
            ..Default::default()
        };
        let rig = Rig::new(TWO_STEPS, roomy);
        rig.play(&caps);
        frames().for_each(|frame| rig.push(frame));
        rig.end();
        let out_caps = rig.output_caps();
        let out = rig.frames();
        assert_eq!(out.len(), 3);
        for (found, expected) in out.iter().zip(&expected) {
            let meta = found.meta::<VideoMeta>().unwrap();
            assert!(
                meta.stride()[0] > info(&caps).stride()[0],
                "not downstream's pool"
            );
            assert_eq!(&pixels(found, &out_caps), expected, "{caps}");
        }
    }
}

/// Upstream may lay frames out as it likes: the element says that it reads video metas.
#[test]
fn upstream_is_offered_video_metas() {
    let rig = Rig::playing(&[], &rgb());
    let mut query = gst::query::Allocation::new(Some(&rgb()), true);
    assert!(rig.src.peer_query(&mut query));
    assert!(query.find_allocation_meta::<VideoMeta>().is_some());
}

#[test]
fn caps_change_again_and_again() {
    let mut rig = Rig::playing(TWO_STEPS, &rgb());
    let kinds = [
        caps("I420", 64, 64),
        caps("I420", 65, 47),
        caps("RGB", 65, 47),
        "video/x-raw,format=RGB,width=65,height=47,framerate=30/1"
            .parse()
            .unwrap(),
        rgb(),
    ];
    rig.take();
    let mut k = 0;
    for round in 0..20 {
        let caps = &kinds[round % kinds.len()];
        assert!(rig.caps(caps));
        for _ in 0..3 {
            rig.push(noise(caps, k));
            k += 1;
        }
    }
    rig.end();
    assert_eq!(check_sizes(&mut rig), (20, 60));
    assert!(rig.errors().is_empty());
}

/// Each frame must have the size that the caps before it say; how many caps and frames there were.
fn check_sizes(rig: &mut Rig) -> (usize, usize) {
    let (mut changes, mut frames) = (0, 0);
    let mut size = info(&rgb()).size();
    for item in rig.take() {
        match item {
            Item::Frame(buffer) => {
                assert_eq!(buffer.size(), size, "frame {frames}");
                assert_eq!(buffer.pts(), Some(time(frames as u64)));
                frames += 1;
            }
            Item::Event(event) => {
                if let gst::EventView::Caps(caps) = event.view() {
                    assert_eq!(frames, changes * 3, "frames before change {changes}");
                    changes += 1;
                    size = info(&caps.caps_owned()).size();
                }
            }
        }
    }
    (changes, frames)
}

#[test]
fn a_buffer_too_small_for_its_caps_is_an_error() {
    let rig = Rig::playing(&[], &rgb());
    let flow = rig.src.push(buffer(vec![0; 100], 0));
    assert_eq!(flow, Err(gst::FlowError::Error));
    let error = rig.error();
    assert!(
        error.to_string().contains("does not hold a frame"),
        "{error}"
    );
}
