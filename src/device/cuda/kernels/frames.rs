//! The parameters of the kernels between video frames and tensors (`kernels/frame_to_tensor.cu`,
//! `kernels/tensor_to_frame.cu`, and `kernels/resample.cuh` for how they resize).

use super::{Geometry, Row, THREADS};
use crate::device::video::{self, Colour, MAX_SIDE, VideoLayout};
use crate::error::{Error, Result};

/// Bytes of shared memory that a block may have on every GPU.
const SHARED_LIMIT: u32 = 48 * 1024;
/// Bytes of it that still let several blocks run side by side.
const SHARED_TARGET: u32 = 32 * 1024;
/// The most pixels of a row that one block makes.
const TILE: u32 = 2 * THREADS;

/// How one axis is resized: `Axis` in the kernels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(C)]
struct Axis {
    num: u32,
    den: u32,
    shift: u32,
    size: u32,
}

impl Axis {
    /// From `from` pixels, of which a sample is for `1 << sub`, to `to` pixels. Samples lie in the middle of the pixels that
    /// they are for, or `on` the first of two.
    ///
    /// # Errors
    /// When positions do not fit into the 32 bits of the kernels.
    fn new(from: u32, to: u32, sub: u32, on: bool) -> Result<Self> {
        let (size, on) = (from.div_ceil(1 << sub), on && sub > 0);
        if on && u64::from(from) * u64::from(to) > 1 << 29 {
            return Err(Error::engine(
                "video frame",
                format!(
                    "{from} pixels to {to} with colour samples on every second one, expected fewer"
                ),
            ));
        }
        Ok(match on {
            false => Self {
                num: from,
                den: to << sub,
                shift: 0,
                size,
            },
            // Of two pixels: a quarter of a sample.
            true => Self {
                num: 2 * from,
                den: 4 * to,
                shift: to,
                size,
            },
        })
    }

    /// The first and the last sample that outputs `begin` to `end` (not included) need, as the kernels work it out.
    fn span(&self, begin: u32, end: u32) -> (u32, u32) {
        let [num, den, shift] = [self.num, self.den, self.shift].map(i64::from);
        let taps = |o: u32| {
            let o = i64::from(o);
            if num >= den {
                ((o * num + shift) / den, ((o + 1) * num + shift - 1) / den)
            } else {
                let before = ((2 * o + 1) * num + 2 * shift - den).div_euclid(2 * den);
                (before - 1, before + 2)
            }
        };
        let inside = |sample: i64| sample.clamp(0, i64::from(self.size) - 1) as u32;
        (inside(taps(begin).0), inside(taps(end - 1).1))
    }
}

/// Argument of `frame_to_tensor`, as in its source.
#[derive(Debug, Clone, Copy, PartialEq)]
#[repr(C)]
pub struct FrameToTensorArguments {
    planes: [u64; 3],
    tensor: u64,
    strides: [u32; 3],
    room: [u32; 3],
    down: [Axis; 3],
    plane: [u32; 3],
    offset: [u32; 3],
    step: [u32; 3],
    components: u32,
    across: [Axis; 2],
    width: u32,
    height: u32,
    tile: u32,
    ten_bits: u32,
    map: [[f32; 4]; 3],
}

/// Argument of `tensor_to_frame`, as in its source.
#[derive(Debug, Clone, Copy, PartialEq)]
#[repr(C)]
pub struct TensorToFrameArguments {
    tensor: u64,
    planes: [u64; 3],
    strides: [u32; 3],
    plane: [u32; 3],
    offset: [u32; 3],
    step: [u32; 3],
    components: u32,
    sub_x: u32,
    sub_y: u32,
    on_x: u32,
    on_y: u32,
    across: Axis,
    down: Axis,
    width: u32,
    height: u32,
    tile: u32,
    room: u32,
    ten_bits: u32,
    alpha: u32,
    map: [[f32; 4]; 3],
    unused: u32,
}

const _: () = assert!(size_of::<FrameToTensorArguments>() == 240);
const _: () = assert!(size_of::<TensorToFrameArguments>() == 208);
const _: () = assert!(std::mem::offset_of!(FrameToTensorArguments, map) == 192);
const _: () = assert!(std::mem::offset_of!(TensorToFrameArguments, map) == 156);

// SAFETY: as the definitions and the sizes above say.
unsafe impl Row for FrameToTensorArguments {}
// SAFETY: as above.
unsafe impl Row for TensorToFrameArguments {}

/// How frames of one layout become tensors `[1, 3, height, width]` of one size: red, green and blue in [-1, 1], f16.
///
/// Made once for a layout; making one takes microseconds.
#[derive(Debug, Clone, PartialEq)]
pub struct FrameToTensor {
    arguments: FrameToTensorArguments,
    geometry: Geometry,
    offsets: [u64; 3],
}

/// How tensors `[1, 3, height, width]` of one size become frames of one layout; values are clamped to [-1, 1].
///
/// Made once for a layout; making one takes microseconds.
#[derive(Debug, Clone, PartialEq)]
pub struct TensorToFrame {
    arguments: TensorToFrameArguments,
    geometry: Geometry,
    offsets: [u64; 3],
}

/// What the two kernels need to know of a layout's memory.
struct Memory {
    offsets: [u64; 3],
    strides: [u32; 3],
    plane: [u32; 3],
    offset: [u32; 3],
    step: [u32; 3],
    components: u32,
    sub_x: u32,
    sub_y: u32,
    on_x: bool,
    on_y: bool,
    ten_bits: u32,
    width: u32,
    height: u32,
}

impl Memory {
    fn new(layout: &VideoLayout) -> Result<Self> {
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
    fn planes(offsets: [u64; 3], ten_bits: u32, frame: u64) -> Result<[u64; 3]> {
        if ten_bits != 0 && !frame.is_multiple_of(2) {
            return Err(Error::engine(
                "video frame",
                "samples of two bytes at an odd address, expected an even one",
            ));
        }
        Ok(offsets.map(|offset| frame.wrapping_add(offset)))
    }
}

fn side(value: usize) -> Result<u32> {
    match u32::try_from(value) {
        Ok(side) if (1..=MAX_SIDE).contains(&value) => Ok(side),
        _ => Err(Error::engine(
            "video frame",
            format!("a side of {value} pixels, expected 1 to {MAX_SIDE}"),
        )),
    }
}

/// The pieces that rows of `width` pixels are cut into so that what `floats` says of a piece (from a pixel to a pixel)
/// fits into shared memory: pixels of a piece, and the most floats of any.
fn tile<const N: usize>(
    width: u32,
    floats: impl Fn(u32, u32) -> [u32; N],
) -> Result<(u32, [u32; N])> {
    let mut tile = TILE.min(width.next_multiple_of(2));
    loop {
        let mut room = [0; N];
        for x in (0..width).step_by(tile as usize) {
            let piece = floats(x, (x + tile).min(width));
            for (room, floats) in room.iter_mut().zip(piece) {
                *room = floats.max(*room);
            }
        }
        let bytes = 4 * room.iter().map(|r| u64::from(*r)).sum::<u64>();
        if bytes <= u64::from(SHARED_TARGET) || (tile == 2 && bytes <= u64::from(SHARED_LIMIT)) {
            return Ok((tile, room));
        }
        if tile == 2 {
            return Err(Error::engine(
                "video frame",
                format!(
                    "two pixels of the result are made of {bytes} bytes of a row, expected {SHARED_LIMIT} or fewer; \
                     the frame is too wide for this size"
                ),
            ));
        }
        tile = (tile / 2).next_multiple_of(2);
    }
}

impl FrameToTensor {
    /// From frames of `layout` with these colours to tensors of `width` × `height` pixels.
    ///
    /// # Errors
    /// When a side is out of range, or frames are thousands of times as wide as tensors.
    pub fn new(
        layout: &VideoLayout,
        colour: Colour,
        (width, height): (usize, usize),
    ) -> Result<Self> {
        let memory = Memory::new(layout)?;
        let (width, height) = (side(width)?, side(height)?);
        let across = |sub| Axis::new(memory.width, width, sub, memory.on_x);
        let across = [across(0)?, across(memory.sub_x)?];
        let mut down = [Axis::default(); 3];
        for (axis, plane) in down.iter_mut().zip(layout.format().planes()) {
            *axis = Axis::new(memory.height, height, plane.sub_y, memory.on_y)?;
        }
        let bytes = 1 + memory.ten_bits;
        let (tile, room) = tile(width, |begin, end| {
            std::array::from_fn(|plane| {
                let parts = (0..memory.components as usize)
                    .filter(|c| memory.plane[*c] as usize == plane)
                    .map(|c| {
                        let (first, last) = across[c.min(1)].span(begin, end);
                        let at = |sample: u32| sample * memory.step[c] + memory.offset[c];
                        (at(first), at(last) + bytes)
                    });
                let (first, end) = parts.fold((u32::MAX, 0), |a, b| (a.0.min(b.0), a.1.max(b.1)));
                // Rows are read from a multiple of four bytes on.
                end.saturating_sub(first & !3).div_ceil(bytes)
            })
        })?;
        Ok(Self {
            arguments: FrameToTensorArguments {
                planes: [0; 3],
                tensor: 0,
                strides: memory.strides,
                room,
                down,
                plane: memory.plane,
                offset: memory.offset,
                step: memory.step,
                components: memory.components,
                across,
                width,
                height,
                tile,
                ten_bits: memory.ten_bits,
                map: video::to_tensor(layout.format(), colour),
            },
            geometry: Geometry {
                grid: (width.div_ceil(tile), height),
                block: THREADS,
                shared: 4 * room.iter().sum::<u32>(),
            },
            offsets: memory.offsets,
        })
    }

    /// How the kernel is spread.
    pub fn geometry(&self) -> Geometry {
        self.geometry
    }

    /// The kernel's argument for the frame and the tensor at these addresses.
    ///
    /// # Errors
    /// When the samples of a 10-bit frame would not lie at even addresses.
    pub fn arguments(&self, frame: u64, tensor: u64) -> Result<FrameToTensorArguments> {
        Ok(FrameToTensorArguments {
            planes: Memory::planes(self.offsets, self.arguments.ten_bits, frame)?,
            tensor,
            ..self.arguments
        })
    }
}

impl TensorToFrame {
    /// From tensors of `width` × `height` pixels to frames of `layout` with these colours.
    ///
    /// # Errors
    /// When a side is out of range, or tensors are hundreds of times as wide as frames.
    pub fn new(
        (width, height): (usize, usize),
        layout: &VideoLayout,
        colour: Colour,
    ) -> Result<Self> {
        let memory = Memory::new(layout)?;
        let across = Axis::new(side(width)?, memory.width, 0, false)?;
        let down = Axis::new(side(height)?, memory.height, 0, false)?;
        // With what colour differences need before a piece.
        let (on_x, on_y) = (u32::from(memory.on_x), u32::from(memory.on_y));
        let lines = (1 << memory.sub_y) + on_y;
        let (tile, [room]) = tile(memory.width, |begin, end| {
            let (first, last) = across.span(begin.saturating_sub(on_x), end);
            // Rows are read from a multiple of four bytes on.
            [3 * lines * (last + 1 - (first & !1))]
        })?;
        Ok(Self {
            arguments: TensorToFrameArguments {
                tensor: 0,
                planes: [0; 3],
                strides: memory.strides,
                plane: memory.plane,
                offset: memory.offset,
                step: memory.step,
                components: memory.components,
                sub_x: memory.sub_x,
                sub_y: memory.sub_y,
                on_x,
                on_y,
                across,
                down,
                width: memory.width,
                height: memory.height,
                tile,
                room: room / (3 * lines),
                ten_bits: memory.ten_bits,
                alpha: layout.format().alpha().map_or(4, |byte| byte as u32),
                map: video::from_tensor(layout.format(), colour),
                unused: 0,
            },
            geometry: Geometry {
                grid: (
                    memory.width.div_ceil(tile),
                    memory.height.div_ceil(1 << memory.sub_y),
                ),
                block: THREADS,
                shared: 4 * room,
            },
            offsets: memory.offsets,
        })
    }

    /// How the kernel is spread.
    pub fn geometry(&self) -> Geometry {
        self.geometry
    }

    /// The kernel's argument for the tensor and the frame at these addresses.
    ///
    /// # Errors
    /// When the samples of a 10-bit frame would not lie at even addresses.
    pub fn arguments(&self, tensor: u64, frame: u64) -> Result<TensorToFrameArguments> {
        Ok(TensorToFrameArguments {
            planes: Memory::planes(self.offsets, self.arguments.ten_bits, frame)?,
            tensor,
            ..self.arguments
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::video::{PixelFormat, Siting};

    #[test]
    fn pieces_fit_into_shared_memory_whatever_the_sizes() {
        for format in PixelFormat::ALL {
            for frame in [1, 2, 5, 63, 640, 1921, 3840, 7680, 15360, MAX_SIDE] {
                for side in [1, 8, 63, 512, 1024, 4096, MAX_SIDE] {
                    let layout = VideoLayout::dense(format, frame, 3).unwrap();
                    let layout = match frame % 2 {
                        0 => layout,
                        _ => layout.sited(Siting {
                            on_x: true,
                            on_y: true,
                        }),
                    };
                    let to = FrameToTensor::new(&layout, Colour::default(), (side, 2));
                    let from = TensorToFrame::new((side, 2), &layout, Colour::default());
                    let found = [
                        to.map(|t| (t.geometry, t.arguments.tile, side)),
                        from.map(|t| (t.geometry, t.arguments.tile, frame)),
                    ];
                    for (found, ratio) in found.into_iter().zip([frame / side, side / frame]) {
                        match found {
                            Ok((geometry, tile, width)) => {
                                assert!(geometry.shared <= SHARED_LIMIT, "{format:?}");
                                assert_eq!(tile % 2, 0);
                                assert!(geometry.grid.0 as usize * tile as usize >= width);
                            }
                            Err(error) => {
                                // Colour differences on the first of two pixels take more of a row.
                                let least = if frame % 2 == 0 { 1000 } else { 400 };
                                assert!(ratio > least, "{format:?} {frame} {side}: {error}");
                                assert!(error.to_string().contains("too wide"), "{error}");
                            }
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn sides_that_are_out_of_range_are_errors() {
        let layout = VideoLayout::dense(PixelFormat::P010, 4, 4).unwrap();
        for side in [0, MAX_SIDE + 1] {
            let message = FrameToTensor::new(&layout, Colour::default(), (side, 4))
                .unwrap_err()
                .to_string();
            assert!(message.contains("expected 1 to 32768"), "{message}");
            assert!(TensorToFrame::new((4, side), &layout, Colour::default()).is_err());
        }
        let plan = FrameToTensor::new(&layout, Colour::default(), (4, 4)).unwrap();
        assert!(plan.arguments(0x1001, 0x2000).is_err());
        assert!(plan.arguments(0x1002, 0x2000).is_ok());
    }
}
