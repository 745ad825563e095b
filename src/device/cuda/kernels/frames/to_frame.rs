//! Tensors to frames: the parameters of `kernels/tensor_to_frame.cu`.

use super::axis::Axis;
use super::memory::{Memory, side};
use crate::device::cuda::kernels::{Geometry, Kernel, Row};
use crate::device::video::{self, Affine, Colour, PixelFormat, VideoLayout};
use crate::error::Result;

/// Threads of a block: a warp. Small blocks spread better.
const BLOCK: u32 = 32;
/// Pixels that a warp makes of a row, less two where colour differences lie on the first of two pixels.
const WARP: u32 = 64;
/// The rows that a strip may have, four where these leave too few warps, and how many are enough for large GPUs, which
/// run two to three thousand side by side.
const ROWS: [u32; 4] = [64, 32, 16, 8];
const WARPS: u32 = 1500;

/// Argument of `tensor_to_frame`, as in its source.
#[derive(Debug, Clone, Copy, PartialEq)]
#[repr(C)]
pub struct TensorToFrameArguments {
    tensor: u64,
    planes: [u64; 3],
    strides: [u32; 3],
    components: u32,
    packed: u32,
    differences: u32,
    step: u32,
    order: u32,
    unit_order: u32,
    sub_x: u32,
    sub_y: u32,
    on_x: u32,
    on_y: u32,
    across: Axis,
    down: Axis,
    width: u32,
    height: u32,
    rows: u32,
    ten_bits: u32,
    map: Affine,
    unused: u32,
}

const _: () = assert!(size_of::<TensorToFrameArguments>() == 200);
const _: () = assert!(std::mem::offset_of!(TensorToFrameArguments, map) == 148);

// SAFETY: as the definitions and the sizes above say.
unsafe impl Row for TensorToFrameArguments {}

/// Bytes of shared memory for each row of a strip: `Taps` in the source.
const LINE: u32 = 32;

/// How tensors `[1, 3, height, width]` of one size become frames of one layout; values are clamped to [-1, 1].
///
/// Made once for a layout; making one takes microseconds.
#[derive(Debug, Clone, PartialEq)]
pub struct TensorToFrame {
    arguments: TensorToFrameArguments,
    kernel: Kernel,
    geometry: Geometry,
    /// Of each component's plane.
    offsets: [u64; 3],
}

impl TensorToFrame {
    /// From tensors of `width` × `height` pixels to frames of `layout` with these colours.
    ///
    /// # Errors
    /// When a side is out of range.
    pub fn new(
        (width, height): (usize, usize),
        layout: &VideoLayout,
        colour: Colour,
    ) -> Result<Self> {
        let memory = Memory::new(layout)?;
        let (width, height) = (side(width)?, side(height)?);
        let format = layout.format();
        let (on_x, on_y) = (u32::from(memory.on_x), u32::from(memory.on_y));
        let across = Axis::new(width, memory.width, 0, false);
        let down = Axis::new(height, memory.height, 0, false);
        let warps_across = memory.width.div_ceil(WARP - 2 * on_x);
        // High strips share more of what their rows have in common, but a GPU wants enough of them.
        let enough = |rows: &u32| warps_across * memory.height.div_ceil(*rows) >= WARPS;
        let rows = ROWS.into_iter().find(enough).unwrap_or(4);
        let packed = match format.planes() {
            [plane] if plane.unit > 2 && plane.sub_x == 0 => plane.unit as u32,
            _ => 0,
        };
        let mut map = to_unit(format, colour);
        // In the order of the bytes.
        let first = u32::from(format.alpha() == Some(0));
        if packed > 0 {
            let by_component = map;
            for (row, offset) in by_component.into_iter().zip(memory.offset) {
                map[(offset - first) as usize] = row;
            }
        }
        // As digits of `bytes_of`, the first byte last: components 0 to 3 or samples 0 and 4 (of two bytes: 01 and 45).
        let order = match (packed > 0, memory.ten_bits > 0) {
            (true, _) if first > 0 => 0x4105,
            (true, _) => 0x5410,
            (false, true) => 0x5410,
            (false, false) if memory.offset[1] > memory.offset[2] => 0x0004,
            (false, false) => 0x0040,
        };
        // Where there is one component, no other is looked for.
        let planes = memory
            .plane
            .map(|plane| if plane > 2 { 0 } else { plane as usize });
        let differences = match planes {
            [_, second, third] if second != third => 0,
            [luma, second, _] if luma != second => 1,
            _ => 2,
        };
        Ok(Self {
            arguments: TensorToFrameArguments {
                tensor: 0,
                planes: [0; 3],
                strides: planes.map(|plane| memory.strides[plane]),
                components: memory.components,
                packed,
                differences,
                step: memory.step[1],
                order,
                unit_order: if memory.offset[0] > 0 { 0x1504 } else { 0x5140 },
                sub_x: memory.sub_x,
                sub_y: memory.sub_y,
                on_x,
                on_y,
                across,
                down,
                width: memory.width,
                height: memory.height,
                rows,
                ten_bits: memory.ten_bits,
                map,
                unused: 0,
            },
            kernel: match across.grows() && down.grows() && width >= 5 {
                true => Kernel::TensorToLargerFrame,
                false => Kernel::TensorToFrame,
            },
            geometry: Geometry {
                grid: (warps_across, memory.height.div_ceil(rows)),
                block: BLOCK,
                shared: LINE * (rows + 2 * on_y),
            },
            offsets: planes.map(|plane| memory.offsets[plane]),
        })
    }

    /// The same in strips of so many rows, rounded up to an even number from 2 to 1024, for tests and measurements: frames
    /// are the same in strips of any height.
    #[doc(hidden)]
    pub fn in_strips_of(mut self, rows: u32) -> Self {
        let rows = rows.clamp(2, 1024).next_multiple_of(2);
        self.arguments.rows = rows;
        self.geometry.grid.1 = self.arguments.height.div_ceil(rows);
        self.geometry.shared = LINE * (rows + 2 * self.arguments.on_y);
        self
    }

    /// The kernel that does it.
    pub fn kernel(&self) -> Kernel {
        self.kernel
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

/// [`video::from_tensor`] from [0, 1] instead of [-1, 1], and to codes as shares of the largest.
fn to_unit(format: PixelFormat, colour: Colour) -> Affine {
    let top = f64::from((1u32 << format.bits()) - 1);
    video::from_tensor(format, colour).map(|row| {
        let [a, b, c, constant] = row.map(f64::from);
        [2.0 * a, 2.0 * b, 2.0 * c, constant - a - b - c].map(|value| (value / top) as f32)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::video::{MAX_SIDE, Siting};

    #[test]
    fn strips_cover_the_frame_whatever_its_size() {
        for (width, height) in [
            (1, 1),
            (2, 5),
            (63, 4095),
            (512, 512),
            (1920, 1080),
            (3840, 2160),
            (MAX_SIDE, 3),
            (MAX_SIDE, MAX_SIDE),
        ] {
            for on in [false, true] {
                let layout = VideoLayout::dense(PixelFormat::Nv12, width, height).unwrap();
                let layout = layout.sited(Siting { on_x: on, on_y: on });
                let plan = TensorToFrame::new((8, 8), &layout, Colour::default()).unwrap();
                let Geometry { grid, shared, .. } = plan.geometry();
                let rows = plan.arguments.rows;
                // Pairs of rows stay together.
                assert_eq!(rows % 2, 0);
                assert_eq!(grid.1, (height as u32).div_ceil(rows));
                let pixels = grid.0 * (64 - 2 * u32::from(on));
                assert!(pixels >= width as u32, "{pixels} of {width}");
                assert!(shared <= 4096);
            }
        }
    }
}
