//! Frames to tensors: the parameters of `kernels/frame_to_tensor.cu`.

use super::axis::Axis;
use super::memory::{Memory, side};
use crate::device::cuda::kernels::{Geometry, Row, THREADS};
use crate::device::video::{self, Colour, VideoLayout};
use crate::error::{Error, Result};

/// Bytes of shared memory that a block may have on every GPU.
const SHARED_LIMIT: u32 = 48 * 1024;
/// Bytes of it that still let several blocks run side by side.
const SHARED_TARGET: u32 = 32 * 1024;
/// The most pixels of a row that one block makes.
const TILE: u32 = 2 * THREADS;

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

const _: () = assert!(size_of::<FrameToTensorArguments>() == 280);
const _: () = assert!(std::mem::offset_of!(FrameToTensorArguments, map) == 232);

// SAFETY: as the definitions and the sizes above say.
unsafe impl Row for FrameToTensorArguments {}

/// How frames of one layout become tensors `[1, 3, height, width]` of one size: red, green and blue in [-1, 1], f16.
///
/// Made once for a layout; making one takes microseconds.
#[derive(Debug, Clone, PartialEq)]
pub struct FrameToTensor {
    arguments: FrameToTensorArguments,
    geometry: Geometry,
    offsets: [u64; 3],
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
        let across = [across(0), across(memory.sub_x)];
        let mut down = [Axis::default(); 3];
        for (axis, plane) in down.iter_mut().zip(layout.format().planes()) {
            *axis = Axis::new(memory.height, height, plane.sub_y, memory.on_y);
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
                // Rows are read from a multiple of eight bytes on, and sums are stored in fours.
                let floats = end.saturating_sub(first & !7).div_ceil(bytes);
                floats.next_multiple_of(4)
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::video::{MAX_SIDE, PixelFormat, Siting};

    #[test]
    fn pieces_fit_into_shared_memory_whatever_the_sizes() {
        for format in PixelFormat::ALL {
            for frame in [1, 2, 5, 63, 640, 1921, 3840, 7680, 15360, MAX_SIDE] {
                for side in [1, 8, 63, 512, 1024, 4096, MAX_SIDE] {
                    let on = frame % 2 == 1;
                    let layout = VideoLayout::dense(format, frame, 3).unwrap();
                    let layout = layout.sited(Siting { on_x: on, on_y: on });
                    match FrameToTensor::new(&layout, Colour::default(), (side, 2)) {
                        Ok(FrameToTensor {
                            geometry,
                            arguments,
                            ..
                        }) => {
                            assert!(geometry.shared <= SHARED_LIMIT, "{format:?}");
                            assert_eq!(arguments.tile % 2, 0);
                            assert!(geometry.grid.0 * arguments.tile >= side as u32);
                        }
                        Err(error) => {
                            assert!(frame / side > 1000, "{format:?} {frame} {side}: {error}");
                            assert!(error.to_string().contains("too wide"), "{error}");
                        }
                    }
                }
            }
        }
    }
}
