//! Pointer and touch events go upstream in the pixels of the input.

use super::caps::pad_info;

/// A navigation event from downstream of the element, as it goes upstream: coordinates, which are pixels of the frames
/// that came out of `src`, become pixels of those that go into `sink`.
///
/// The whole picture is always shown in the whole frame, so each axis has its own ratio and the shape of pixels does not
/// matter. What a wheel was turned by (`delta_pointer_x`) is no place in the picture and stays.
pub(super) fn upstream(mut event: gst::Event, sink: &gst::Pad, src: &gst::Pad) -> gst::Event {
    let (Some(to), Some(from)) = (pad_info(sink), pad_info(src)) else {
        return event;
    };
    if (to.width(), to.height()) == (from.width(), from.height()) || event.structure().is_none() {
        return event;
    }
    let structure = event.make_mut().structure_mut();
    for (field, to, from) in [
        ("pointer_x", to.width(), from.width()),
        ("pointer_y", to.height(), from.height()),
    ] {
        if let Ok(place) = structure.get::<f64>(field) {
            structure.set(field, place * f64::from(to) / f64::from(from));
        }
    }
    event
}
