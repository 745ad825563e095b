//! Which video the element takes and gives, and how one decides the other.

use gst::prelude::*;
use gst_video::{VideoFormat, VideoFormatFlags, VideoFormatInfo};

/// Formats in order of preference where nothing else decides: RGB first, which is what the model sees.
pub const FORMATS: &[VideoFormat] = &[
    VideoFormat::Rgb,
    VideoFormat::Bgr,
    VideoFormat::Rgbx,
    VideoFormat::Bgrx,
    VideoFormat::Xrgb,
    VideoFormat::Xbgr,
    VideoFormat::Rgba,
    VideoFormat::Bgra,
    VideoFormat::Argb,
    VideoFormat::Abgr,
    VideoFormat::Y444,
    VideoFormat::Y42b,
    VideoFormat::Yuy2,
    VideoFormat::Uyvy,
    VideoFormat::Yvyu,
    VideoFormat::I420,
    VideoFormat::Yv12,
    VideoFormat::Nv12,
    VideoFormat::Nv21,
    VideoFormat::P01010le,
    VideoFormat::Gray8,
];

/// Those that frames in a GPU's memory can have: GStreamer's CUDA library, since version 1.22, knows how to place no
/// others, and ends the process when it is asked to.
pub const CUDA_FORMATS: &[VideoFormat] = &[
    VideoFormat::Rgb,
    VideoFormat::Bgr,
    VideoFormat::Rgbx,
    VideoFormat::Bgrx,
    VideoFormat::Rgba,
    VideoFormat::Bgra,
    VideoFormat::Argb,
    VideoFormat::Abgr,
    VideoFormat::Y444,
    VideoFormat::Y42b,
    VideoFormat::Yuy2,
    VideoFormat::Uyvy,
    VideoFormat::I420,
    VideoFormat::Yv12,
    VideoFormat::Nv12,
    VideoFormat::Nv21,
    VideoFormat::P01010le,
];

/// The caps feature of frames in a GPU's memory.
pub const CUDA_MEMORY: &str = "memory:CUDAMemory";

/// Where the memory of frames is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Memory {
    /// In main memory.
    System,
    /// In a GPU's.
    Cuda,
}

impl Memory {
    /// The memory that caps with these features name, if it is of a kind we know and all that they ask for.
    fn of(features: &gst::CapsFeaturesRef) -> Option<Self> {
        if features.is_equal(gst::CAPS_FEATURES_MEMORY_SYSTEM_MEMORY.as_ref()) {
            return Some(Self::System);
        }
        (features.size() == 1 && features.contains(CUDA_MEMORY)).then_some(Self::Cuda)
    }

    /// Where the frames of fixed `caps` are.
    #[cfg(any(feature = "cuda", test))]
    pub fn of_caps(caps: &gst::CapsRef) -> Self {
        match caps.features(0).and_then(Self::of) {
            Some(Self::Cuda) => Self::Cuda,
            _ => Self::System,
        }
    }

    fn other(self) -> Self {
        match self {
            Self::System => Self::Cuda,
            Self::Cuda => Self::System,
        }
    }

    /// The formats that frames in it can have.
    pub fn formats(self) -> &'static [VideoFormat] {
        match self {
            Self::System => FORMATS,
            Self::Cuda => CUDA_FORMATS,
        }
    }

    /// The caps features that name it.
    pub fn features(self) -> gst::CapsFeatures {
        match self {
            Self::System => gst::CapsFeatures::new_empty(),
            Self::Cuda => gst::CapsFeatures::new([CUDA_MEMORY]),
        }
    }
}

/// What both pads can carry: any size, any frame rate (0/1 too), in a GPU's memory where there is one.
pub fn template() -> gst::Caps {
    let of = |memory: Memory| {
        let mut caps = gst_video::VideoCapsBuilder::new()
            .format_list(memory.formats().iter().copied())
            .build();
        caps.make_mut().set_features_simple(Some(memory.features()));
        caps
    };
    let mut all = of(Memory::Cuda);
    all.make_mut().append(of(Memory::System));
    all
}

/// What the other pad may carry when this one carries `caps`: any format, in the same kind of memory first, there first
/// at the same size, then at any. Memory of GPUs is left out unless `cuda`.
pub fn transform(
    direction: gst::PadDirection,
    caps: &gst::Caps,
    filter: Option<&gst::Caps>,
    cuda: bool,
) -> gst::Caps {
    let known = caps
        .iter_with_features()
        .filter_map(|(structure, features)| Some((structure, Memory::of(features)?)))
        .filter(|(_, memory)| cuda || *memory == Memory::System);
    let same_size: Vec<(gst::Structure, Memory)> = known
        .map(|(structure, memory)| {
            let mut other = structure.to_owned();
            other.remove_fields([
                "colorimetry",
                "chroma-site",
                "interlace-mode",
                "field-order",
            ]);
            // Whole frames are restyled, so what comes out is progressive whatever comes in.
            if direction == gst::PadDirection::Sink {
                other.set("interlace-mode", "progressive");
            }
            (other, memory)
        })
        .collect();
    let any_size = same_size.iter().map(|(structure, memory)| {
        let mut other = structure.clone();
        other.set("width", gst::IntRange::new(1, i32::MAX));
        other.set("height", gst::IntRange::new(1, i32::MAX));
        if other.has_field("pixel-aspect-ratio") {
            let least = gst::Fraction::new(1, i32::MAX);
            let most = gst::Fraction::new(i32::MAX, 1);
            other.set("pixel-aspect-ratio", gst::FractionRange::new(least, most));
        }
        (other, *memory)
    });
    let near: Vec<_> = same_size.iter().cloned().chain(any_size).collect();
    let far = near.iter().cloned().map(|(s, memory)| (s, memory.other()));
    let all: gst::Caps = near
        .iter()
        .cloned()
        .chain(far.filter(|_| cuda))
        .map(|(mut structure, memory)| {
            let formats = memory.formats().iter().map(|format| format.to_str());
            structure.set("format", gst::List::new(formats));
            (structure, memory.features())
        })
        .collect();
    match filter {
        Some(filter) => filter.intersect_with_mode(&all, gst::CapsIntersectMode::First),
        None => all,
    }
}

/// The one choice among `others` that is closest to `caps`: its format, size, shape and colours where they are free.
pub fn fixate(caps: &gst::Caps, mut others: gst::Caps) -> gst::Caps {
    others.truncate();
    let (Some(from), Some(to)) = (caps.structure(0), others.make_mut().structure_mut(0)) else {
        return others;
    };
    if let Ok(format) = from.get::<&str>("format") {
        to.fixate_field_str("format", format);
    }
    to.fixate_field("format");
    fixate_size(from, to);
    if same_family(from, to) {
        for field in ["colorimetry", "chroma-site"] {
            match from.get::<&str>(field) {
                Ok(value) if to.has_field(field) => {
                    to.fixate_field_str(field, value);
                }
                Ok(value) if field == "colorimetry" || same_format(from, to) => {
                    to.set(field, value);
                }
                _ => {}
            }
        }
    }
    others.fixate();
    others
}

/// Takes the size and shape of `from` where `to` leaves them open; where only one side is given, the other keeps the
/// picture's shape, and so does the pixel aspect ratio.
fn fixate_size(from: &gst::StructureRef, to: &mut gst::StructureRef) {
    let (Ok(width), Ok(height)) = (from.get::<i32>("width"), from.get::<i32>("height")) else {
        return;
    };
    let scaled = |side: i32, by: i32, of: i32| {
        let value = i64::from(side) * i64::from(by) / i64::from(of.max(1));
        value.clamp(1, i64::from(i32::MAX)) as i32
    };
    let par = from
        .get::<gst::Fraction>("pixel-aspect-ratio")
        .unwrap_or(gst::Fraction::new(1, 1));
    // The input's size in pixels of the shape that the output must have, if it must have one.
    let (mut wide, high) = (width, height);
    if let Ok(fixed) = to.get::<gst::Fraction>("pixel-aspect-ratio") {
        wide = scaled(wide, par.numer(), par.denom());
        wide = scaled(wide, fixed.denom(), fixed.numer());
    }
    match (to.get::<i32>("width"), to.get::<i32>("height")) {
        (Ok(w), Err(_)) => to.fixate_field_nearest_int("height", scaled(w, high, wide)),
        (Err(_), Ok(h)) => to.fixate_field_nearest_int("width", scaled(h, wide, high)),
        _ => {
            to.fixate_field_nearest_int("width", wide);
            to.fixate_field_nearest_int("height", high)
        }
    };
    let (Ok(w), Ok(h)) = (to.get::<i32>("width"), to.get::<i32>("height")) else {
        return;
    };
    let wanted = (|| {
        let numer = i64::from(par.numer()) * i64::from(width) * i64::from(h);
        let denom = i64::from(par.denom()) * i64::from(height) * i64::from(w);
        let divisor = gcd(numer, denom).max(1);
        let fit = |value: i64| i32::try_from(value / divisor).ok();
        Some(gst::Fraction::new(fit(numer)?, fit(denom)?))
    })()
    .unwrap_or(par);
    if to.has_field("pixel-aspect-ratio") {
        to.fixate_field_nearest_fraction("pixel-aspect-ratio", wanted);
    } else if wanted != gst::Fraction::new(1, 1) {
        to.set("pixel-aspect-ratio", wanted);
    }
}

fn gcd(a: i64, b: i64) -> i64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

fn format(structure: &gst::StructureRef) -> Option<VideoFormat> {
    let format = structure.get::<&str>("format").ok()?.parse().ok()?;
    (format != VideoFormat::Unknown).then_some(format)
}

fn same_format(a: &gst::StructureRef, b: &gst::StructureRef) -> bool {
    format(a).is_some() && format(a) == format(b)
}

/// Whether both are RGB or both are not, so that one colorimetry serves both.
fn same_family(a: &gst::StructureRef, b: &gst::StructureRef) -> bool {
    let is_rgb = |structure| {
        format(structure).map(|format| {
            VideoFormatInfo::from_format(format)
                .flags()
                .contains(VideoFormatFlags::RGB)
        })
    };
    is_rgb(a).is_some() && is_rgb(a) == is_rgb(b)
}

/// The layout of the frames of fixed `caps`, taken as whole frames.
pub fn video_info(caps: &gst::Caps) -> Option<gst_video::VideoInfo> {
    let mut caps = caps.to_owned();
    caps.make_mut()
        .structure_mut(0)?
        .remove_field("interlace-mode");
    gst_video::VideoInfo::from_caps(&caps).ok()
}

/// The layout of the frames that go through `pad` now, if it has caps.
pub fn pad_info(pad: &gst::Pad) -> Option<gst_video::VideoInfo> {
    video_info(&pad.current_caps()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn caps(text: &str) -> gst::Caps {
        gst::init().unwrap();
        text.parse().unwrap()
    }

    fn negotiated(from: &str, downstream: &str) -> gst::Caps {
        let from = caps(from);
        // As the base class does it.
        let first = gst::CapsIntersectMode::First;
        let others = transform(gst::PadDirection::Sink, &from, None, true)
            .intersect_with_mode(&template(), first)
            .intersect_with_mode(&caps(downstream), first);
        assert!(!others.is_empty(), "{downstream}");
        let fixed = fixate(&from, others);
        assert!(fixed.is_fixed(), "{fixed}");
        fixed
    }

    fn has<'a, T: gst::glib::value::FromValue<'a>>(caps: &'a gst::CapsRef, field: &str) -> T {
        caps.structure(0).unwrap().get(field).unwrap()
    }

    const NV12: &str = "video/x-raw,format=NV12,width=320,height=240,framerate=30/1,colorimetry=bt709,pixel-aspect-ratio=1/1,interlace-mode=interleaved";

    #[test]
    fn everything_stays_as_it_is_where_it_can() {
        let out = negotiated(NV12, "video/x-raw");
        assert_eq!(has::<&str>(&out, "format"), "NV12");
        assert_eq!(has::<&str>(&out, "colorimetry"), "bt709");
        assert_eq!(has::<&str>(&out, "interlace-mode"), "progressive");
        assert_eq!(
            (has::<i32>(&out, "width"), has::<i32>(&out, "height")),
            (320, 240)
        );
        assert_eq!(
            has::<gst::Fraction>(&out, "framerate"),
            gst::Fraction::new(30, 1)
        );
    }

    #[test]
    fn downstream_decides_format_and_size() {
        let out = negotiated(NV12, "video/x-raw,format=BGRA,width=640,height=240");
        assert_eq!(has::<&str>(&out, "format"), "BGRA");
        assert!(!out.structure(0).unwrap().has_field("colorimetry"));
        assert_eq!(
            has::<gst::Fraction>(&out, "pixel-aspect-ratio"),
            gst::Fraction::new(1, 2)
        );
        let out = negotiated(NV12, "video/x-raw,width=160");
        assert_eq!(
            (has::<i32>(&out, "width"), has::<i32>(&out, "height")),
            (160, 120)
        );
    }

    #[test]
    fn pictures_keep_their_shape_when_downstream_fixes_that_of_pixels() {
        let anamorphic =
            "video/x-raw,format=I420,width=720,height=576,framerate=25/1,pixel-aspect-ratio=16/11";
        let square = "video/x-raw,pixel-aspect-ratio=1/1";
        for (downstream, size) in [("", (1047, 576)), (",width=1047", (1047, 576))] {
            let out = negotiated(anamorphic, &format!("{square}{downstream}"));
            let got = (has::<i32>(&out, "width"), has::<i32>(&out, "height"));
            assert_eq!(got, size, "{out}");
        }
    }

    #[test]
    fn memory_stays_of_its_kind_where_it_can() {
        let cuda = "video/x-raw(memory:CUDAMemory),format=NV12,width=320,height=240,framerate=30/1";
        let memory = |from: &str, downstream: &str| Memory::of_caps(&negotiated(from, downstream));
        assert_eq!(memory(cuda, "video/x-raw(ANY)"), Memory::Cuda);
        assert_eq!(memory(NV12, "video/x-raw(ANY)"), Memory::System);
        assert_eq!(memory(cuda, "video/x-raw"), Memory::System);
        let only_cuda = "video/x-raw(memory:CUDAMemory),format=RGBA";
        assert_eq!(memory(NV12, only_cuda), Memory::Cuda);
        let out = negotiated(cuda, "video/x-raw,width=160");
        assert_eq!(has::<i32>(&out, "height"), 120);
    }

    #[test]
    fn without_a_gpu_only_main_memory_is_left() {
        gst::init().unwrap();
        for direction in [gst::PadDirection::Sink, gst::PadDirection::Src] {
            let all = transform(direction, &template(), None, false);
            assert!(!all.is_empty());
            for (_, features) in all.iter_with_features() {
                assert_eq!(Memory::of(features), Some(Memory::System));
            }
            let cuda = caps("video/x-raw(memory:CUDAMemory),format=NV12,width=2,height=2");
            assert!(transform(direction, &cuda, None, false).is_empty());
        }
    }

    #[test]
    fn formats_that_gpus_cannot_hold_stay_in_main_memory() {
        for format in FORMATS.iter().filter(|f| !CUDA_FORMATS.contains(f)) {
            let from = format!("video/x-raw,format={format},width=6,height=4,framerate=0/1");
            let out = negotiated(&from, "video/x-raw(memory:CUDAMemory)");
            assert_ne!(has::<&str>(&out, "format"), format.to_str().as_str());
            let out = negotiated(&from, "video/x-raw(ANY)");
            assert_eq!(has::<&str>(&out, "format"), format.to_str().as_str());
        }
    }

    #[test]
    fn memory_of_others_is_not_ours() {
        for features in [
            "memory:GLMemory",
            "memory:CUDAMemory, meta:GstVideoOverlayComposition",
        ] {
            let caps = caps(&format!(
                "video/x-raw({features}),format=NV12,width=2,height=2"
            ));
            let all = transform(gst::PadDirection::Sink, &caps, None, true);
            assert!(all.is_empty(), "{all} for {caps}");
        }
    }

    #[test]
    fn every_format_goes_to_every_format() {
        for from in FORMATS {
            for to in FORMATS {
                let from = format!("video/x-raw,format={from},width=6,height=4,framerate=0/1");
                let out = negotiated(&from, &format!("video/x-raw,format={to}"));
                assert!(video_info(&out).is_some(), "{out}");
            }
        }
    }
}
