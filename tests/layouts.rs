//! Frames of every format in every odd size, with rows and planes laid out at random: what is in the gaps must not count, on
//! either side.

mod common;

use common::*;
use gst::prelude::*;
use gst_video::prelude::*;
use gst_video::{VideoAlignment, VideoBufferPool, VideoMeta};

/// All sizes are odd and up to this one.
const LARGEST: u32 = 33;
/// One step, and one size for all frames, so that there is one stream.
const SETTINGS: &[Setting] = &[("t-index-list", "35"), ("width", "16"), ("height", "16")];

/// Numbers that look random and are the same in each run.
struct Dice(u64);

impl Dice {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        (self.0 >> 33) % end
    }
}

/// The formats that the pads offer for frames in main memory.
fn formats() -> Vec<String> {
    let element = make(&[]);
    let caps = element.static_pad("sink").unwrap().pad_template_caps();
    let mut system = caps
        .iter_with_features()
        .filter(|(_, features)| !features.contains("memory:CUDAMemory"));
    let list = system.next().unwrap().0.get::<gst::List>("format").unwrap();
    list.iter().map(|format| format.get().unwrap()).collect()
}

/// Frames to push, each with its caps: every format with every odd width, the heights shuffled.
fn frames() -> Vec<(gst::Caps, gst::Buffer)> {
    let mut dice = Dice(1);
    let mut frames = Vec::new();
    for format in formats() {
        let mut heights: Vec<u32> = (1..=LARGEST).step_by(2).collect();
        for width in (1..=LARGEST).step_by(2) {
            let height = heights.swap_remove(dice.below(heights.len() as u64) as usize);
            let caps = caps(&format, width, height);
            let frame = noise(&caps, frames.len() as u64);
            frames.push((caps, frame));
        }
    }
    assert_eq!(frames.len(), 21 * 17);
    frames
}

/// A pool whose frames have room around them: how much follows from their size.
fn roomy_pool(query: &mut gst::query::Allocation) {
    let caps = query.get_owned().0.unwrap();
    let info = info(&caps);
    let size = info.size() as u32;
    let pool = VideoBufferPool::new();
    let mut config = pool.config();
    config.set_params(Some(&caps), size, 0, 0);
    config.add_option(gst_video::BUFFER_POOL_OPTION_VIDEO_META);
    config.add_option(gst_video::BUFFER_POOL_OPTION_VIDEO_ALIGNMENT);
    let mut dice = Dice(u64::from(info.width() * 64 + info.height()));
    let mut even = || 2 * dice.below(12) as u32;
    let room = VideoAlignment::new(even(), even(), even(), 2 + even(), &[0; 4]);
    config.set_video_alignment(&room);
    pool.set_config(config).unwrap();
    query.add_allocation_pool(Some(&pool), size, 0, 0);
    query.add_allocation_meta::<VideoMeta>(None);
}

/// In formats of two pixels in four bytes, an odd row ends with a pixel that is none; its brightness may be anything.
fn forget_halves(picture: &mut [u8], info: &gst_video::VideoInfo) {
    let place = match info.format() {
        gst_video::VideoFormat::Yuy2 | gst_video::VideoFormat::Yvyu => 2,
        gst_video::VideoFormat::Uyvy => 3,
        _ => return,
    };
    for row in picture.chunks_mut(info.width().div_ceil(2) as usize * 4) {
        let last = row.len() - 4 + place;
        row[last] = 0;
    }
}

/// The pictures that come out, and whether any of them had room around it.
fn through(
    allocation: Option<fn(&mut gst::query::Allocation)>,
    frames: impl Iterator<Item = (gst::Caps, gst::Buffer)>,
) -> (Vec<Vec<u8>>, usize) {
    keep_model();
    let neighbours = Neighbours {
        allocation,
        ..Default::default()
    };
    let rig = Rig::new(SETTINGS, neighbours);
    rig.play(&rgb());
    let mut roomy = 0;
    let pictures = frames.map(|(caps, frame)| {
        assert!(rig.caps(&caps), "{caps}");
        rig.push(frame);
        let out = rig.frames();
        assert_eq!(out.len(), 1, "{caps}");
        let tight = info(&caps);
        let layout = out[0].meta::<VideoMeta>();
        roomy += usize::from(layout.is_some_and(|layout| layout.stride() != tight.stride()));
        let mut picture = pixels(&out[0], &rig.output_caps());
        forget_halves(&mut picture, &tight);
        picture
    });
    (pictures.collect(), roomy)
}

#[test]
fn gaps_do_not_count() {
    let frames = frames();
    let (expected, _) = through(None, frames.iter().cloned());
    let mut dice = Dice(2);
    // Hardware aligns rows and planes to four bytes at least.
    let spread_out = frames.iter().map(|(caps, frame)| {
        let gap = || 4 * dice.below(20) as usize;
        (caps.clone(), spread(frame, caps, gap))
    });
    let (found, roomy) = through(Some(roomy_pool), spread_out);
    assert!(roomy > frames.len() / 2, "only {roomy} with room");
    assert_eq!(found.len(), expected.len());
    for (((caps, _), found), expected) in frames.iter().zip(&found).zip(&expected) {
        assert!(found == expected, "{caps}");
        // A picture, and not what was in memory before.
        assert!(!found.is_empty(), "{caps}");
    }
}
