//! What happens to the metas of an input frame when its picture leaves.
//!
//! A meta stays if it is about the content or the time of the frame (timecode, captions, reference timestamps, messages of
//! the encoder) or about places in the picture, which are where they were: the picture keeps its geometry. Those in pixels
//! are scaled with it. So a crop rectangle, too, is passed on instead of applied: what it cuts off is restyled along with
//! the rest, and whoever honours it downstream sees what it would have seen without this element. What is about memory,
//! layout or colours is the output's own affair.

use gst_video::video_meta::{VideoMetaTransformScale, tags::Size};
use gst_video::{
    VideoAFDMeta, VideoAffineTransformationMeta, VideoCropMeta, VideoInfo, VideoOverlayComposition,
    VideoOverlayCompositionMeta, VideoOverlayCompositionRef, VideoRegionOfInterestMeta,
};

use super::CAT;
use super::caps::pad_info;

/// What became of a meta.
pub(super) enum Passed {
    /// It is to be copied as it is.
    Copy,
    /// There is nothing more to do: it has been written for the new size, or has no meaning there.
    Done,
    /// It is of no kind that this module knows about.
    Foreign,
}

/// Passes on a meta of a frame that came in through `sink` to `output`, which leaves through `src`.
pub(super) fn pass_on(
    meta: &gst::MetaRef<gst::Meta>,
    output: &mut gst::BufferRef,
    sink: &gst::Pad,
    src: &gst::Pad,
) -> Passed {
    let geometric = ["video", "size", "orientation"];
    if !meta.tags().iter().all(|tag| geometric.contains(&&**tag)) {
        return Passed::Foreign;
    }
    let overlay = meta.downcast_ref::<VideoOverlayCompositionMeta>();
    if !meta.has_tag::<Size>() && overlay.is_none() {
        return Passed::Copy;
    }
    let (Some(from), Some(to)) = (pad_info(sink), pad_info(src)) else {
        return Passed::Copy;
    };
    let scale = Scale::new(&from, &to);
    // The matrix and the codes are for the whole picture, however many pixels it has.
    let any_size = meta
        .downcast_ref::<VideoAffineTransformationMeta>()
        .is_some()
        || meta.downcast_ref::<VideoAFDMeta>().is_some();
    if scale.is_none() || any_size {
        return Passed::Copy;
    }
    if let Some(region) = meta.downcast_ref::<VideoRegionOfInterestMeta>() {
        let rect = scale.rect(region.rect());
        let mut scaled = VideoRegionOfInterestMeta::add(output, region.roi_type(), rect);
        scaled.set_id(region.id());
        scaled.set_parent_id(region.parent_id());
        for param in region.params() {
            scaled.add_param(param.to_owned());
        }
    } else if let Some(crop) = meta.downcast_ref::<VideoCropMeta>() {
        VideoCropMeta::add(output, scale.rect(crop.rect()));
    } else if let Some(overlay) = overlay {
        match scale.composition(overlay.overlay()) {
            Ok(composition) => {
                VideoOverlayCompositionMeta::add(output, &composition);
            }
            Err(err) => gst::warning!(CAT, "Overlay lost: {err}"),
        }
    } else {
        let by = VideoMetaTransformScale::new(&from, &to);
        if meta.transform(output, &by).is_err() {
            // Bars in lines and samples, say, that no frame of the new size has.
            gst::debug!(CAT, "{} does not fit another size", meta.api());
        }
    }
    Passed::Done
}

/// A change of size, in pixels.
struct Scale {
    from: (u32, u32),
    to: (u32, u32),
}

impl Scale {
    fn new(from: &VideoInfo, to: &VideoInfo) -> Self {
        Self {
            from: (from.width(), from.height()),
            to: (to.width(), to.height()),
        }
    }

    fn is_none(&self) -> bool {
        self.from == self.to
    }

    /// The same place (left, top, width, height) in the new size. Its edges, not its sides, go to the nearest pixel, so that
    /// rectangles that touched do so still; something stays of the smallest one.
    fn rect(&self, (x, y, width, height): (u32, u32, u32, u32)) -> (u32, u32, u32, u32) {
        let along = |start: u32, length: u32, from: u32, to: u32| {
            let edge = |place: u64| {
                let (from, to) = (u128::from(from.max(1)), u128::from(to));
                let nearest = (u128::from(place) * to + from / 2) / from;
                u32::try_from(nearest).unwrap_or(u32::MAX)
            };
            let (first, end) = (
                edge(start.into()),
                edge(u64::from(start) + u64::from(length)),
            );
            if length == 0 || end > first {
                (first, end - first)
            } else {
                (first.min(to.saturating_sub(1)), 1)
            }
        };
        let (x, width) = along(x, width, self.from.0, self.to.0);
        let (y, height) = along(y, height, self.from.1, self.to.1);
        (x, y, width, height)
    }

    /// The same pictures, over the same places of the frame.
    fn composition(
        &self,
        overlay: &VideoOverlayCompositionRef,
    ) -> Result<VideoOverlayComposition, gst::glib::BoolError> {
        let place = |x: i32, from: u32, to: u32| {
            let scaled = f64::from(x) * f64::from(to) / f64::from(from.max(1));
            // Saturates; overlays may begin outside of the frame.
            scaled.round() as i32
        };
        let rectangles: Vec<_> = overlay
            .iter()
            .map(|rectangle| {
                let mut scaled = rectangle.copy();
                let (x, y, width, height) = rectangle.render_rectangle();
                let (_, _, width, height) = self.rect((0, 0, width, height));
                let (x, y) = (
                    place(x, self.from.0, self.to.0),
                    place(y, self.from.1, self.to.1),
                );
                scaled
                    .make_mut()
                    .set_render_rectangle(x, y, width.max(1), height.max(1));
                scaled
            })
            .collect();
        VideoOverlayComposition::new(&rectangles)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rectangles_keep_their_place() {
        let scale = |from, to| Scale { from, to };
        for (from, to, rect, expected) in [
            ((64, 64), (128, 32), (8, 16, 20, 30), (16, 8, 40, 15)),
            // Both edges by 2/3: 10 to 6.67, 15 to 10, 3 to 2, 8 to 5.33.
            ((30, 30), (20, 20), (10, 3, 5, 5), (7, 2, 3, 3)),
            ((640, 480), (3, 5), (600, 470, 1, 1), (2, 4, 1, 1)),
            ((640, 480), (3, 5), (639, 479, 1, 1), (2, 4, 1, 1)),
            ((4, 4), (1920, 1080), (0, 0, 4, 4), (0, 0, 1920, 1080)),
            ((64, 64), (32, 32), (10, 10, 0, 0), (5, 5, 0, 0)),
        ] {
            assert_eq!(scale(from, to).rect(rect), expected, "{from:?} to {to:?}");
        }
        let (x, _, width, _) = scale((1, 1), (i32::MAX as u32, 1)).rect((u32::MAX, 0, u32::MAX, 1));
        assert_eq!((x, width), (i32::MAX as u32 - 1, 1), "past all numbers");
    }

    #[test]
    fn rectangles_that_touch_go_on_to() {
        for (from, to) in [(64, 23), (23, 64), (1920, 1001), (7, 5000)] {
            let scale = Scale {
                from: (from, from),
                to: (to, to),
            };
            for edge in 1..from.min(64) {
                let (_, _, left, _) = scale.rect((0, 0, edge, 1));
                let (right, ..) = scale.rect((edge, 0, from - edge, 1));
                // Only where a pixel had to be saved may they overlap.
                let saved = left == 1 || right == to - 1;
                assert!(left == right || saved, "{from} to {to}, at {edge}");
            }
        }
    }
}
