//! What the kernels between frames and tensors need to know of a frame in memory.

use crate::device::video::{MAX_SIDE, VideoLayout};
use crate::error::{Error, Result};

/// What the two kernels need to know of a layout's memory.
pub(super) struct Memory {
    pub(super) offsets: [u64; 3],
    pub(super) strides: [u32; 3],
    pub(super) plane: [u32; 3],
    pub(super) offset: [u32; 3],
    pub(super) step: [u32; 3],
    pub(super) components: u32,
    pub(super) sub_x: u32,
    pub(super) sub_y: u32,
    pub(super) on_x: bool,
    pub(super) on_y: bool,
    pub(super) ten_bits: u32,
    pub(super) width: u32,
    pub(super) height: u32,
}

impl Memory {
    /// What `layout` says.
    ///
    /// # Errors
    /// When a side is out of range, or a stride.
    pub(super) fn new(layout: &VideoLayout) -> Result<Self> {
        let format = layout.format();
        let mut memory = Self {
            offsets: [0; 3],
            strides: [0; 3],
            // No plane of that number.
            plane: [3; 3],
            offset: [0; 3],
            step: [0; 3],
            components: format.components().len() as u32,
            sub_x: format.components().last().map_or(0, |c| c.sub_x),
            sub_y: format.components().last().map_or(0, |c| c.sub_y),
            on_x: false,
            on_y: false,
            ten_bits: u32::from(format.bits() > 8),
            width: side(layout.width())?,
            height: side(layout.height())?,
        };
        memory.on_x = memory.sub_x > 0 && layout.siting().on_x;
        memory.on_y = memory.sub_y > 0 && layout.siting().on_y;
        for i in 0..format.planes().len().min(3) {
            let stride = layout.strides()[i];
            memory.offsets[i] = layout.offsets()[i] as u64;
            memory.strides[i] = u32::try_from(stride).map_err(|_| {
                Error::engine(
                    "video frame",
                    format!("a stride of {stride} bytes, expected less than 4 GiB"),
                )
            })?;
        }
        for (i, component) in format.components().iter().enumerate() {
            memory.plane[i] = component.plane as u32;
            memory.offset[i] = component.offset as u32;
            memory.step[i] = component.step as u32;
        }
        Ok(memory)
    }

    /// The addresses of the planes of a frame at `frame`.
    pub(super) fn planes(offsets: [u64; 3], ten_bits: u32, frame: u64) -> Result<[u64; 3]> {
        if ten_bits != 0 && !frame.is_multiple_of(2) {
            return Err(Error::engine(
                "video frame",
                "samples of two bytes at an odd address, expected an even one",
            ));
        }
        Ok(offsets.map(|offset| frame.wrapping_add(offset)))
    }
}

/// A side of a picture, if it is in range.
pub(super) fn side(value: usize) -> Result<u32> {
    match u32::try_from(value) {
        Ok(side) if (1..=MAX_SIDE).contains(&value) => Ok(side),
        _ => Err(Error::engine(
            "video frame",
            format!("a side of {value} pixels, expected 1 to {MAX_SIDE}"),
        )),
    }
}
