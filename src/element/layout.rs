//! Video frames as devices know them, from what GStreamer says of them.

use gst_video::{VideoChromaSite, VideoColorMatrix, VideoColorRange, VideoInfo};

use crate::device::video::{Colour, Matrix, PixelFormat, Siting, VideoLayout};
use crate::error::{Error, Result};

/// The layout of a frame of `size` bytes with these caps: as `planes` says, which is offsets and strides, or as its video
/// meta says, or as the caps do.
///
/// # Errors
/// When the format is none of ours, the meta is for another frame, or a plane leaves the memory.
pub fn layout(
    info: &VideoInfo,
    buffer: &gst::BufferRef,
    planes: Option<([usize; 4], [i32; 4])>,
    size: usize,
) -> Result<VideoLayout> {
    let format = format(info)?;
    let (mut width, mut height) = (info.width(), info.height());
    let (offsets, strides) = match (buffer.meta::<gst_video::VideoMeta>(), planes) {
        (Some(meta), _) => {
            if meta.format() != info.format() {
                return Err(Error::engine(
                    "video frame",
                    format!(
                        "its video meta says {}, its caps say {}",
                        meta.format(),
                        info.format()
                    ),
                ));
            }
            (width, height) = (width.min(meta.width()), height.min(meta.height()));
            (fill(meta.offset(), 0), fill(meta.stride(), 0))
        }
        (None, Some(planes)) => planes,
        (None, None) => (fill(info.offset(), 0), fill(info.stride(), 0)),
    };
    if (width, height) != (info.width(), info.height()) {
        return Err(Error::engine(
            "video frame",
            format!(
                "its video meta says {width}x{height}, its caps say {}x{}",
                info.width(),
                info.height()
            ),
        ));
    }
    // A negative stride (a picture that is upside down in memory) has no place in these formats' metas.
    let strides = strides.map(|stride| usize::try_from(stride).unwrap_or(0));
    let (width, height) = (width as usize, height as usize);
    let layout = VideoLayout::new(format, width, height, offsets, strides, size)?;
    Ok(layout.sited(siting(info)))
}

/// Where colour differences lie, as the caps say, or as GStreamer takes it that they do where these say nothing. (Of DV, whose
/// two differences lie on alternate lines, it looks at no more either.)
fn siting(info: &VideoInfo) -> Siting {
    let site = info.chroma_site();
    Siting {
        on_x: site.contains(VideoChromaSite::H_COSITED),
        on_y: site.contains(VideoChromaSite::V_COSITED),
    }
}

/// What the samples of frames with these caps mean.
pub fn colour(info: &VideoInfo) -> Colour {
    let rgb = info.is_rgb();
    let colorimetry = info.colorimetry();
    Colour {
        matrix: match colorimetry.matrix() {
            VideoColorMatrix::Rgb => Matrix::Rgb,
            VideoColorMatrix::Fcc => Matrix::Fcc,
            VideoColorMatrix::Bt709 => Matrix::Bt709,
            VideoColorMatrix::Smpte240m => Matrix::Smpte240m,
            VideoColorMatrix::Bt2020 => Matrix::Bt2020,
            VideoColorMatrix::Bt601 => Matrix::Bt601,
            _ if rgb => Matrix::Rgb,
            _ => Matrix::default(),
        },
        full_range: match colorimetry.range() {
            VideoColorRange::Range0_255 => true,
            VideoColorRange::Range16_235 => false,
            _ => rgb,
        },
    }
}

fn format(info: &VideoInfo) -> Result<PixelFormat> {
    PixelFormat::from_name(info.format().to_str()).ok_or_else(|| {
        Error::engine(
            "video frame",
            format!("the format {} is not supported", info.format()),
        )
    })
}

fn fill<T: Copy>(values: &[T], rest: T) -> [T; 4] {
    std::array::from_fn(|i| values.get(i).copied().unwrap_or(rest))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::element::caps::FORMATS;

    fn info(format: gst_video::VideoFormat, width: u32, height: u32) -> VideoInfo {
        gst::init().unwrap();
        VideoInfo::builder(format, width, height).build().unwrap()
    }

    /// By GStreamer's "raw video media types": what each name of a site means, and what is taken where there is none.
    #[test]
    fn colour_differences_lie_where_caps_say() {
        gst::init().unwrap();
        let said = |caps: &str| {
            let caps = format!("video/x-raw,format=I420,framerate=25/1,{caps}");
            let info = VideoInfo::from_caps(&caps.parse::<gst::Caps>().unwrap()).unwrap();
            let buffer = gst::Buffer::with_size(info.size()).unwrap();
            let siting = layout(&info, &buffer, None, info.size()).unwrap().siting();
            (siting.on_x, siting.on_y)
        };
        for (site, expected) in [
            ("jpeg", (false, false)),
            ("mpeg2", (true, false)),
            ("v-cosited", (false, true)),
            ("cosited", (true, true)),
            ("dv", (true, true)),
        ] {
            let caps = format!("width=64,height=64,colorimetry=bt709,chroma-site={site}");
            assert_eq!(said(&caps), expected, "{site}");
        }
        assert_eq!(said("width=1280,height=720"), (true, false));
        assert_eq!(said("width=640,height=480"), (false, false));
    }

    /// GStreamer's own idea of a frame of every format, odd sizes too, is inside its memory, and is what we take over.
    #[test]
    fn frames_are_where_gstreamer_has_them() {
        for format in FORMATS {
            for (width, height) in [(64, 64), (1, 1), (5, 3), (1921, 1081), (2, 7)] {
                let info = info(*format, width, height);
                let buffer = gst::Buffer::with_size(info.size()).unwrap();
                let layout = layout(&info, &buffer, None, info.size()).unwrap();
                assert_eq!(layout.format().name(), format.to_str().as_str());
                assert_eq!(
                    (layout.width(), layout.height()),
                    (width as usize, height as usize)
                );
                for plane in 0..info.n_planes() as usize {
                    assert_eq!(layout.offsets()[plane], info.offset()[plane], "{info:?}");
                    assert_eq!(layout.strides()[plane] as i32, info.stride()[plane]);
                    // What a plane is made of, by GStreamer's numbers.
                    let component = (0..info.n_components())
                        .find(|c| info.format_info().plane()[*c as usize] as usize == plane)
                        .unwrap() as u8;
                    let (_, rows) = layout.plane_size(&layout.format().planes()[plane]);
                    assert_eq!(rows as u32, info.comp_height(component), "{info:?}");
                }
                // One byte less than a tight last row is too little.
                let last = info.n_planes() as usize - 1;
                let (row, rows) = layout.plane_size(&layout.format().planes()[last]);
                let least = layout.offsets()[last] + layout.strides()[last] * (rows - 1) + row;
                assert!(super::layout(&info, &buffer, None, least).is_ok());
                assert!(super::layout(&info, &buffer, None, least - 1).is_err());
            }
        }
    }

    #[test]
    fn metas_come_before_caps() {
        let info = info(gst_video::VideoFormat::Nv12, 6, 4);
        let with = |format, width, offsets: &[usize], strides: &[i32]| {
            let mut buffer = gst::Buffer::with_size(400).unwrap();
            gst_video::VideoMeta::add_full(
                buffer.get_mut().unwrap(),
                gst_video::VideoFrameFlags::empty(),
                format,
                width,
                4,
                offsets,
                strides,
            )
            .unwrap();
            buffer
        };
        let nv12 = gst_video::VideoFormat::Nv12;
        let padded = with(nv12, 6, &[16, 216], &[48, 48]);
        let of = |buffer: &gst::BufferRef, planes| layout(&info, buffer, planes, 400);
        let found = of(&padded, Some(([0; 4], [6; 4]))).unwrap();
        assert_eq!(found.offsets()[..2], [16, 216]);
        assert_eq!(found.strides()[..2], [48, 48]);
        let bare = gst::Buffer::with_size(400).unwrap();
        let found = of(&bare, Some(([0, 128, 0, 0], [32; 4]))).unwrap();
        assert_eq!((found.offsets()[1], found.strides()[1]), (128, 32));
        for (buffer, part) in [
            (with(nv12, 5, &[0, 200], &[48, 48]), "5x4"),
            (
                with(gst_video::VideoFormat::Nv21, 6, &[0, 200], &[48, 48]),
                "NV21",
            ),
            (with(nv12, 6, &[0, 396], &[48, 48]), "plane 1"),
            (with(nv12, 6, &[0, 200], &[-48, 48]), "stride"),
        ] {
            let message = of(&buffer, None).unwrap_err().to_string();
            assert!(message.contains(part), "{message:?} lacks {part:?}");
        }
    }

    #[test]
    fn colours_are_those_of_the_caps() {
        gst::init().unwrap();
        let of = |text: &str| {
            let caps: gst::Caps = format!("video/x-raw,width=640,height=480,{text}")
                .parse()
                .unwrap();
            colour(&VideoInfo::from_caps(&caps).unwrap())
        };
        let yuv = |matrix, full_range| Colour { matrix, full_range };
        assert_eq!(of("format=RGB"), Colour::FULL_RGB);
        assert_eq!(of("format=NV12"), yuv(Matrix::Bt601, false));
        assert_eq!(
            of("format=NV12,colorimetry=bt709"),
            yuv(Matrix::Bt709, false)
        );
        assert_eq!(
            of("format=P010_10LE,colorimetry=bt2020-10"),
            yuv(Matrix::Bt2020, false)
        );
        assert_eq!(
            of("format=I420,colorimetry=1:4:0:0"),
            yuv(Matrix::Bt601, true)
        );
    }
}
