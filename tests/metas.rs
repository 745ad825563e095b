//! What is attached to a frame stays with its picture, in the place that it is about, however long the picture takes.

mod common;

use common::*;
use gst_video::video_meta::VideoSeiUserDataUnregisteredMeta;
use gst_video::{
    VideoAFDMeta, VideoAFDSpec, VideoAFDValue, VideoAffineTransformationMeta, VideoBarMeta,
    VideoCaptionMeta, VideoCaptionType, VideoCropMeta, VideoMeta, VideoOverlayComposition,
    VideoOverlayCompositionMeta, VideoOverlayFormatFlags, VideoOverlayRectangle,
    VideoRegionOfInterestMeta, VideoTimeCodeMeta,
};

const MATRIX: [[f32; 4]; 4] = [
    [0.0, 1.0, 0.0, 0.0],
    [-1.0, 0.0, 0.0, 0.0],
    [0.0, 0.0, 1.0, 0.0],
    [0.25, 0.5, 0.0, 1.0],
];

/// Attaches one of everything, with the number `k` in it wherever there is room.
fn attach(buffer: &mut gst::BufferRef, k: u64) {
    let n = k as u32;
    let code = gst_video::VideoTimeCode::new(
        gst::Fraction::new(25, 1),
        None,
        gst_video::VideoTimeCodeFlags::empty(),
        1,
        2,
        3,
        n,
        0,
    );
    VideoTimeCodeMeta::add(buffer, &code.try_into().unwrap());
    let clock = gst::Caps::new_empty_simple("timestamp/x-test");
    gst::ReferenceTimestampMeta::add(buffer, &clock, time(100 + k), Some(time(1)));
    VideoCaptionMeta::add(buffer, VideoCaptionType::Cea608Raw, &[0x80 | n as u8, 0x80]);
    VideoSeiUserDataUnregisteredMeta::add(buffer, &[7; 16], &[n as u8; 5]);
    VideoAFDMeta::add(
        buffer,
        0,
        VideoAFDSpec::AtscA53,
        VideoAFDValue::_43Full169Full,
    );
    VideoAffineTransformationMeta::add(buffer, Some(&MATRIX));
    VideoCropMeta::add(buffer, (n, 8, 32, 48));
    let mut region = VideoRegionOfInterestMeta::add(buffer, "face", (16, 4 + n, 20, 30));
    region.set_id(n as i32);
    region.set_parent_id(77);
    region.add_param(
        gst::Structure::builder("detection")
            .field("score", n)
            .build(),
    );
    VideoRegionOfInterestMeta::add(buffer, "small", (63, 63, 1, 1));
    VideoBarMeta::add(buffer, 0, true, n, 60);
    let picture = gst::Buffer::from_slice([0u8; 4 * 4 * 4]);
    let mut picture = picture;
    VideoMeta::add(
        picture.make_mut(),
        gst_video::VideoFrameFlags::empty(),
        gst_video::VideoFormat::Bgra,
        4,
        4,
    )
    .unwrap();
    let overlay = VideoOverlayRectangle::new_raw(
        &picture,
        -8,
        n as i32,
        32,
        16,
        VideoOverlayFormatFlags::empty(),
    );
    let overlay = VideoOverlayComposition::new(&[overlay]).unwrap();
    VideoOverlayCompositionMeta::add(buffer, &overlay);
}

/// Checks all that does not depend on the size.
#[track_caller]
fn check_content(buffer: &gst::BufferRef, k: u64) {
    let n = k as u32;
    let code = buffer.meta::<VideoTimeCodeMeta>().unwrap();
    assert_eq!(code.tc().frames(), n);
    let reference = buffer.meta::<gst::ReferenceTimestampMeta>().unwrap();
    assert_eq!(reference.timestamp(), time(100 + k));
    let caption = buffer.meta::<VideoCaptionMeta>().unwrap();
    assert_eq!(caption.data(), [0x80 | n as u8, 0x80]);
    let note = buffer.meta::<VideoSeiUserDataUnregisteredMeta>().unwrap();
    assert_eq!(note.data(), [n as u8; 5]);
    let matrix = buffer.meta::<VideoAffineTransformationMeta>().unwrap();
    assert_eq!(matrix.matrix(), &MATRIX);
    let format = buffer.meta::<VideoAFDMeta>().unwrap();
    assert_eq!(format.afd(), VideoAFDValue::_43Full169Full);
}

type Rect = (u32, u32, u32, u32);

/// The places in the picture that a buffer tells about: crop, regions by type, overlay.
#[derive(Debug, PartialEq)]
struct Places {
    crop: Rect,
    face: Rect,
    small: Rect,
    overlay: (i32, i32, u32, u32),
    bars: Option<(u32, u32)>,
}

#[track_caller]
fn places(buffer: &gst::BufferRef, k: u64) -> Places {
    let regions: Vec<_> = buffer.iter_meta::<VideoRegionOfInterestMeta>().collect();
    assert_eq!(regions.len(), 2);
    let region = |name| regions.iter().find(|r| r.roi_type() == name).unwrap();
    let face = region("face");
    assert_eq!((face.id(), face.parent_id()), (k as i32, 77));
    let score = face.param("detection").unwrap().get::<u32>("score");
    assert_eq!(score.unwrap(), k as u32);
    assert_eq!(buffer.iter_meta::<VideoCropMeta>().count(), 1);
    let overlay = buffer.meta::<VideoOverlayCompositionMeta>().unwrap();
    assert_eq!(overlay.overlay().n_rectangles(), 1);
    let bars = buffer.meta::<VideoBarMeta>();
    Places {
        crop: buffer.meta::<VideoCropMeta>().unwrap().rect(),
        face: face.rect(),
        small: region("small").rect(),
        overlay: overlay.overlay().rectangle(0).unwrap().render_rectangle(),
        bars: bars.map(|bars| (bars.bar_data1(), bars.bar_data2())),
    }
}

/// Pushes `count` frames of 64x64 pixels with everything attached; what comes out.
fn through(settings: &[Setting], takes: &str, count: u64) -> (gst::Caps, Vec<gst::Buffer>) {
    keep_model();
    let wanted = Neighbours {
        takes: Some(takes.parse().unwrap()),
        ..Default::default()
    };
    let rig = Rig::new(settings, wanted);
    rig.play(&rgb());
    for k in 0..count {
        let mut frame = frame(k);
        attach(frame.make_mut(), k);
        rig.push(frame);
    }
    rig.end();
    let caps = rig.output_caps();
    let frames = rig.frames();
    assert_eq!(frames.len() as u64, count);
    assert!(rig.errors().is_empty());
    (caps, frames)
}

/// Ways through the element in which frames wait, share pictures, or go at once.
const WAYS: [&[Setting]; 5] = [
    &[("t-index-list", "35")],
    &[("t-index-list", "0,16,32,45")],
    &[("t-index-list", "32,45"), ("frame-buffer-size", "2")],
    &[
        ("t-index-list", "32,45"),
        ("similarity-filter", "true"),
        ("ssf-threshold", "0"),
    ],
    &[("t-index-list", "32,45"), ("timing", "immediate")],
];

#[test]
fn metas_stay_with_their_frame() {
    for way in WAYS {
        let (_, frames) = through(way, "video/x-raw", 7);
        for (k, frame) in (0..).zip(&frames) {
            assert_eq!(frame.pts(), Some(time(k)), "{way:?}");
            check_content(frame, k);
            let n = k as u32;
            let expected = Places {
                crop: (n, 8, 32, 48),
                face: (16, 4 + n, 20, 30),
                small: (63, 63, 1, 1),
                overlay: (-8, n as i32, 32, 16),
                bars: Some((n, 60)),
            };
            assert_eq!(places(frame, k), expected, "{way:?}");
        }
    }
}

#[test]
fn places_move_with_the_picture() {
    for way in WAYS {
        // Twice as wide, half as high.
        let (_, frames) = through(way, "video/x-raw,format=BGRx,width=128,height=32", 7);
        for (k, frame) in (0..).zip(&frames) {
            check_content(frame, k);
            let n = k as u32;
            // From row 4 + n to row 34 + n.
            let (top, end) = ((4 + n).div_ceil(2), (34 + n).div_ceil(2));
            let expected = Places {
                crop: (2 * n, 4, 64, 24),
                face: (32, top, 40, end - top),
                small: (126, 31, 2, 1),
                overlay: (-16, (f64::from(n) / 2.0).round() as i32, 64, 8),
                // In lines that are no more.
                bars: None,
            };
            assert_eq!(places(frame, k), expected, "{way:?}, frame {k}");
        }
    }
}

/// With the size changing under way, places are in pixels of the frame that they are on.
#[test]
fn places_fit_the_frame_they_are_on() {
    let rig = Rig::playing(&[("t-index-list", "0,16,32,45")], &rgb());
    let mut sizes = Vec::new();
    for (round, side) in [64u32, 96, 33, 64].into_iter().enumerate() {
        let caps = caps("RGB", side, side);
        assert!(rig.caps(&caps));
        for k in 0..5 {
            let mut frame = noise(&caps, 5 * round as u64 + k);
            let writable = frame.make_mut();
            VideoRegionOfInterestMeta::add(writable, "all", (0, 0, side, side));
            rig.push(frame);
            sizes.push(side);
        }
    }
    rig.end();
    let found: Vec<_> = rig
        .frames()
        .iter()
        .map(|frame| {
            let (_, _, width, height) = frame.meta::<VideoRegionOfInterestMeta>().unwrap().rect();
            assert_eq!(width, height);
            width
        })
        .collect();
    assert_eq!(found, sizes);
}

/// What is about the input's memory must not be said of the output's.
#[test]
fn what_is_about_memory_stays_behind() {
    let wanted = Neighbours {
        takes: Some(
            "video/x-raw,format=RGB,width=128,height=64"
                .parse()
                .unwrap(),
        ),
        ..Default::default()
    };
    let rig = Rig::new(TWO_STEPS, wanted);
    rig.play(&rgb());
    for k in 0..3 {
        let mut outer = frame(k);
        let writable = outer.make_mut();
        VideoMeta::add(
            writable,
            gst_video::VideoFrameFlags::empty(),
            gst_video::VideoFormat::Rgb,
            64,
            64,
        )
        .unwrap();
        gst::ParentBufferMeta::add(writable, &frame(k));
        rig.push(outer);
    }
    rig.end();
    let frames = rig.frames();
    assert_eq!(frames.len(), 3);
    for frame in frames {
        assert!(frame.meta::<gst::ParentBufferMeta>().is_none());
        if let Some(layout) = frame.meta::<VideoMeta>() {
            assert_eq!((layout.width(), layout.height()), (128, 64));
        }
    }
}
