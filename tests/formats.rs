//! Every format in, every format out, with the colours that the caps say.

mod common;

use std::fs;

use common::*;
use gst::prelude::*;

const FORMATS: [&str; 21] = [
    "RGB",
    "BGR",
    "RGBx",
    "BGRx",
    "xRGB",
    "xBGR",
    "RGBA",
    "BGRA",
    "ARGB",
    "ABGR",
    "Y444",
    "Y42B",
    "YUY2",
    "UYVY",
    "YVYU",
    "I420",
    "YV12",
    "NV12",
    "NV21",
    "P010_10LE",
    "GRAY8",
];

#[test]
fn every_format_goes_to_every_format() {
    keep_model();
    for to in FORMATS {
        let wanted = Neighbours {
            takes: Some(caps(to, 64, 64)),
            ..Default::default()
        };
        let rig = Rig::new(&[("t-index-list", "35")], wanted);
        rig.play(&rgb());
        let out = caps(to, 64, 64);
        for (k, from) in (0..).zip(FORMATS) {
            let from = caps(from, 64, 64);
            assert!(rig.caps(&from), "{from} to {to}");
            rig.push(noise(&from, k));
            let frames = rig.frames();
            assert_eq!(frames.len(), 1, "{from} to {to}");
            assert_eq!(frames[0].size(), info(&out).size(), "{from} to {to}");
            assert_eq!(frames[0].pts(), Some(time(k)));
            let negotiated = rig.output_caps();
            assert!(negotiated.is_subset(&out), "{from} to {negotiated}");
        }
        assert!(rig.errors().is_empty());
    }
}

/// The template says what the test above proves.
#[test]
fn the_pads_offer_these_formats_and_no_others() {
    let element = make(&[]);
    for pad in ["sink", "src"] {
        let caps = element.static_pad(pad).unwrap().pad_template_caps();
        let system = caps
            .iter_with_features()
            .find(|(_, features)| !features.contains("memory:CUDAMemory"));
        let list = system.unwrap().0.get::<gst::List>("format");
        let mut offered: Vec<String> = list.unwrap().iter().map(|f| f.get().unwrap()).collect();
        let mut expected = FORMATS.map(String::from).to_vec();
        offered.sort();
        expected.sort();
        assert_eq!(offered, expected);
    }
}

#[test]
fn gst_launch_takes_formats() {
    let plugins = ["coreelements", "videotestsrc"];
    // Each format once on either side, never the same on both.
    let others = FORMATS.iter().cycle().skip(1);
    for (from, to) in FORMATS.iter().zip(others) {
        let folder = Folder::new();
        let line = format!(
            "gst-launch-1.0 videotestsrc num-buffers=3 ! video/x-raw,format={from},width=64,height=64 ! \
             streamdiffusion model={} width=64 height=64 ! video/x-raw,format={to} ! filesink location=out",
            parity().display()
        );
        let output = tool("sh", &folder, &plugins).args(["-c", &line]).output();
        let output = output.unwrap();
        assert!(output.status.success(), "{from} to {to}: {output:?}");
        let size = fs::metadata(folder.file("out")).unwrap().len() as usize;
        assert_eq!(size, 3 * info(&caps(to, 64, 64)).size(), "{from} to {to}");
    }
}

/// A colorimetry, as caps write it, with the weights of red and blue in its luma and whether its range is full. They
/// share transfer function and primaries, so that only these count.
const COLORIMETRIES: [(&str, f64, f64, bool); 4] = [
    ("2:4:5:1", 0.299, 0.114, false),
    ("1:4:5:1", 0.299, 0.114, true),
    ("2:3:5:1", 0.2126, 0.0722, false),
    ("1:3:5:1", 0.2126, 0.0722, true),
];

/// Y'CbCr of 8-bit R'G'B', by ITU-R BT.601 and BT.709.
fn to_yuv(rgb: [u8; 3], (kr, kb, full): (f64, f64, bool)) -> [u8; 3] {
    let [r, g, b] = rgb.map(|v| f64::from(v) / 255.0);
    let y = kr * r + (1.0 - kr - kb) * g + kb * b;
    let chroma = [(b - y) / (1.0 - kb) / 2.0, (r - y) / (1.0 - kr) / 2.0];
    let (luma_scale, luma_offset, chroma_scale) = match full {
        true => (255.0, 0.0, 255.0),
        false => (219.0, 16.0, 224.0),
    };
    [
        (luma_offset + luma_scale * y).round() as u8,
        (128.0 + chroma_scale * chroma[0]).round() as u8,
        (128.0 + chroma_scale * chroma[1]).round() as u8,
    ]
}

fn with_colorimetry(format: &str, colorimetry: &str) -> gst::Caps {
    let mut caps = caps(format, 64, 64);
    let structure = caps.make_mut().structure_mut(0).unwrap();
    structure.set("colorimetry", colorimetry);
    caps
}

/// What the element makes of frames of one colour each, as RGB, with so little noise that the colour counts.
fn restyled_colours(caps: &gst::Caps, frames: impl Iterator<Item = Vec<u8>>) -> Vec<Vec<u8>> {
    let wanted = Neighbours {
        takes: Some("video/x-raw,format=RGB".parse().unwrap()),
        ..Default::default()
    };
    let rig = Rig::new(&[("t-index-list", "49")], wanted);
    rig.play(caps);
    frames.for_each(|data| rig.push(buffer(data, 0)));
    rig.pictures()
}

/// The mean difference of pictures, in 1/255.
fn mean_difference(a: &[Vec<u8>], b: &[Vec<u8>]) -> f64 {
    assert_eq!(a.len(), b.len());
    let (a, b) = (a.concat(), b.concat());
    assert_eq!(a.len(), b.len());
    let sum: u64 = a
        .iter()
        .zip(&b)
        .map(|(a, b)| u64::from(a.abs_diff(*b)))
        .sum();
    sum as f64 / a.len() as f64
}

#[test]
fn colours_come_in_as_the_caps_say() {
    const COLOURS: [[u8; 3]; 8] = [
        [200, 60, 90],
        [30, 170, 60],
        [70, 90, 220],
        [240, 30, 30],
        [20, 240, 20],
        [30, 30, 240],
        [250, 250, 250],
        [10, 10, 10],
    ];
    let rgb_frames = COLOURS.iter().map(|colour| colour.repeat(64 * 64));
    let expected = restyled_colours(&rgb(), rgb_frames);
    assert_eq!(expected.len(), COLOURS.len());
    for (name, kr, kb, full) in COLORIMETRIES {
        let difference = |said| {
            let planes = COLOURS.map(|colour| to_yuv(colour, (kr, kb, full)));
            let frames = planes
                .iter()
                .map(|yuv| yuv.iter().flat_map(|v| [*v; 64 * 64]).collect());
            let found = restyled_colours(&with_colorimetry("Y444", said), frames);
            mean_difference(&found, &expected)
        };
        let right = difference(name);
        assert!(right < 0.1, "{name}: {right}");
        for (other, ..) in COLORIMETRIES.iter().filter(|c| c.0 != name) {
            let wrong = difference(other);
            assert!(wrong > 2.0 * right, "{name}: {right}, as {other}: {wrong}");
        }
    }
}

#[test]
fn colours_go_out_as_the_caps_say() {
    let expected = restyled(&[("t-index-list", "35")], 0..1).remove(0);
    let expected: Vec<[u8; 3]> = expected.chunks(3).map(|p| [p[0], p[1], p[2]]).collect();
    for (name, kr, kb, full) in COLORIMETRIES {
        let wanted = Neighbours {
            takes: Some(with_colorimetry("Y444", name)),
            ..Default::default()
        };
        let rig = Rig::new(&[("t-index-list", "35")], wanted);
        rig.play(&rgb());
        rig.push_frames(0..1);
        let found = rig.pictures().remove(0);
        assert_eq!(found.len(), 3 * expected.len());
        for (i, colour) in expected.iter().enumerate() {
            for (plane, value) in to_yuv(*colour, (kr, kb, full)).iter().enumerate() {
                let found = found[plane * expected.len() + i];
                let close = found.abs_diff(*value) <= 2;
                assert!(close, "{name}, pixel {i}: {found}, expected {value}");
            }
        }
    }
}
