//! What a video frame in memory looks like, for the code that turns frames into tensors and back: pixel formats, where
//! their samples are, and what the samples mean in red, green and blue.

use crate::error::{Error, Result};

/// The longest side of a frame, in pixels. Kernels work out positions in 32-bit integers.
pub const MAX_SIDE: usize = 32768;

/// How the samples of a frame are stored. The names and layouts are those of GStreamer's formats.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum PixelFormat {
    Rgb,
    Bgr,
    Rgbx,
    Bgrx,
    Xrgb,
    Xbgr,
    Rgba,
    Bgra,
    Argb,
    Abgr,
    Y444,
    Y42b,
    Yuy2,
    Uyvy,
    Yvyu,
    I420,
    Yv12,
    Nv12,
    Nv21,
    P010,
    Gray8,
}

/// What the three components of a format are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// Red, green, blue.
    Rgb,
    /// Luma and two colour differences.
    Yuv,
    /// Luma alone.
    Gray,
}

/// One plane: rows of units, each of `unit` bytes and for `1 << sub_x` pixels of a row; a row is for `1 << sub_y` rows
/// of pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Plane {
    /// Bytes of a unit.
    pub unit: usize,
    /// log₂ of the pixels across a unit.
    pub sub_x: u32,
    /// log₂ of the rows of pixels to a row of units.
    pub sub_y: u32,
}

/// Where the samples of one component are: that of pixel (x, y) is in `plane`, at byte
/// `(y >> sub_y)·stride + (x >> sub_x)·step + offset`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Component {
    /// Index of its plane.
    pub plane: usize,
    /// Byte of the first sample in a row of the plane.
    pub offset: usize,
    /// Bytes from sample to sample.
    pub step: usize,
    /// log₂ of the pixels across a sample.
    pub sub_x: u32,
    /// log₂ of the rows of pixels to a sample.
    pub sub_y: u32,
}

const fn plane(unit: usize, sub_x: u32, sub_y: u32) -> Plane {
    Plane { unit, sub_x, sub_y }
}

const fn at(plane: usize, offset: usize, step: usize, sub_x: u32, sub_y: u32) -> Component {
    Component {
        plane,
        offset,
        step,
        sub_x,
        sub_y,
    }
}

/// Red, green and blue at these bytes of a pixel of `step` bytes.
const fn packed(step: usize, r: usize, g: usize, b: usize) -> [Component; 3] {
    [
        at(0, r, step, 0, 0),
        at(0, g, step, 0, 0),
        at(0, b, step, 0, 0),
    ]
}

/// Luma of two pixels and their colour differences, in units of four bytes.
const fn packed_422(y: usize, u: usize, v: usize) -> [Component; 3] {
    [at(0, y, 2, 0, 0), at(0, u, 4, 1, 0), at(0, v, 4, 1, 0)]
}

/// Three planes of one byte a sample, `u` and `v` being the indices of the planes of colour differences.
const fn planar(u: usize, v: usize, sub_x: u32, sub_y: u32) -> [Component; 3] {
    [
        at(0, 0, 1, 0, 0),
        at(u, 0, 1, sub_x, sub_y),
        at(v, 0, 1, sub_x, sub_y),
    ]
}

/// A plane of luma and one of pairs of colour differences, with samples of `bytes`.
const fn semi_planar(bytes: usize, u: usize, v: usize) -> [Component; 3] {
    [
        at(0, 0, bytes, 0, 0),
        at(1, u, 2 * bytes, 1, 1),
        at(1, v, 2 * bytes, 1, 1),
    ]
}

static RGB: [Component; 3] = packed(3, 0, 1, 2);
static BGR: [Component; 3] = packed(3, 2, 1, 0);
static RGBX: [Component; 3] = packed(4, 0, 1, 2);
static BGRX: [Component; 3] = packed(4, 2, 1, 0);
static XRGB: [Component; 3] = packed(4, 1, 2, 3);
static XBGR: [Component; 3] = packed(4, 3, 2, 1);
static Y444: [Component; 3] = planar(1, 2, 0, 0);
static Y42B: [Component; 3] = planar(1, 2, 1, 0);
static YUY2: [Component; 3] = packed_422(0, 1, 3);
static UYVY: [Component; 3] = packed_422(1, 0, 2);
static YVYU: [Component; 3] = packed_422(0, 3, 1);
static I420: [Component; 3] = planar(1, 2, 1, 1);
static YV12: [Component; 3] = planar(2, 1, 1, 1);
static NV12: [Component; 3] = semi_planar(1, 0, 1);
static NV21: [Component; 3] = semi_planar(1, 1, 0);
static P010: [Component; 3] = semi_planar(2, 0, 2);
static GRAY8: [Component; 1] = [at(0, 0, 1, 0, 0)];

static PLANES_3: [Plane; 1] = [plane(3, 0, 0)];
static PLANES_4: [Plane; 1] = [plane(4, 0, 0)];
static PLANES_422: [Plane; 1] = [plane(4, 1, 0)];
static PLANES_Y444: [Plane; 3] = [plane(1, 0, 0), plane(1, 0, 0), plane(1, 0, 0)];
static PLANES_Y42B: [Plane; 3] = [plane(1, 0, 0), plane(1, 1, 0), plane(1, 1, 0)];
static PLANES_420: [Plane; 3] = [plane(1, 0, 0), plane(1, 1, 1), plane(1, 1, 1)];
static PLANES_NV: [Plane; 2] = [plane(1, 0, 0), plane(2, 1, 1)];
static PLANES_P010: [Plane; 2] = [plane(2, 0, 0), plane(4, 1, 1)];
static PLANES_GRAY: [Plane; 1] = [plane(1, 0, 0)];

impl PixelFormat {
    /// All formats.
    pub const ALL: [Self; 21] = [
        Self::Rgb,
        Self::Bgr,
        Self::Rgbx,
        Self::Bgrx,
        Self::Xrgb,
        Self::Xbgr,
        Self::Rgba,
        Self::Bgra,
        Self::Argb,
        Self::Abgr,
        Self::Y444,
        Self::Y42b,
        Self::Yuy2,
        Self::Uyvy,
        Self::Yvyu,
        Self::I420,
        Self::Yv12,
        Self::Nv12,
        Self::Nv21,
        Self::P010,
        Self::Gray8,
    ];

    /// Its name in caps.
    pub fn name(self) -> &'static str {
        match self {
            Self::Rgb => "RGB",
            Self::Bgr => "BGR",
            Self::Rgbx => "RGBx",
            Self::Bgrx => "BGRx",
            Self::Xrgb => "xRGB",
            Self::Xbgr => "xBGR",
            Self::Rgba => "RGBA",
            Self::Bgra => "BGRA",
            Self::Argb => "ARGB",
            Self::Abgr => "ABGR",
            Self::Y444 => "Y444",
            Self::Y42b => "Y42B",
            Self::Yuy2 => "YUY2",
            Self::Uyvy => "UYVY",
            Self::Yvyu => "YVYU",
            Self::I420 => "I420",
            Self::Yv12 => "YV12",
            Self::Nv12 => "NV12",
            Self::Nv21 => "NV21",
            Self::P010 => "P010_10LE",
            Self::Gray8 => "GRAY8",
        }
    }

    /// The format of this name in caps.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|format| format.name() == name)
    }

    /// What its components are.
    pub fn family(self) -> Family {
        match self {
            Self::Gray8 => Family::Gray,
            _ if self.planes()[0].unit >= 3 && self.planes()[0].sub_x == 0 => Family::Rgb,
            _ => Family::Yuv,
        }
    }

    /// Bits of a sample. Those of 10-bit formats are the upper bits of two little-endian bytes.
    pub fn bits(self) -> u32 {
        if self == Self::P010 { 10 } else { 8 }
    }

    /// Its planes, in the order of a layout's offsets and strides.
    pub fn planes(self) -> &'static [Plane] {
        match self {
            Self::Rgb | Self::Bgr => &PLANES_3,
            Self::Rgbx
            | Self::Bgrx
            | Self::Xrgb
            | Self::Xbgr
            | Self::Rgba
            | Self::Bgra
            | Self::Argb
            | Self::Abgr => &PLANES_4,
            Self::Y444 => &PLANES_Y444,
            Self::Y42b => &PLANES_Y42B,
            Self::Yuy2 | Self::Uyvy | Self::Yvyu => &PLANES_422,
            Self::I420 | Self::Yv12 => &PLANES_420,
            Self::Nv12 | Self::Nv21 => &PLANES_NV,
            Self::P010 => &PLANES_P010,
            Self::Gray8 => &PLANES_GRAY,
        }
    }

    /// Its components: red, green, blue, or Y, Cb, Cr, or Y alone.
    pub fn components(self) -> &'static [Component] {
        match self {
            Self::Rgb => &RGB,
            Self::Bgr => &BGR,
            Self::Rgbx | Self::Rgba => &RGBX,
            Self::Bgrx | Self::Bgra => &BGRX,
            Self::Xrgb | Self::Argb => &XRGB,
            Self::Xbgr | Self::Abgr => &XBGR,
            Self::Y444 => &Y444,
            Self::Y42b => &Y42B,
            Self::Yuy2 => &YUY2,
            Self::Uyvy => &UYVY,
            Self::Yvyu => &YVYU,
            Self::I420 => &I420,
            Self::Yv12 => &YV12,
            Self::Nv12 => &NV12,
            Self::Nv21 => &NV21,
            Self::P010 => &P010,
            Self::Gray8 => &GRAY8,
        }
    }

    /// The byte of a pixel that is neither red, green nor blue: alpha, or nothing.
    pub fn alpha(self) -> Option<usize> {
        match self {
            Self::Rgbx | Self::Rgba | Self::Bgrx | Self::Bgra => Some(3),
            Self::Xrgb | Self::Argb | Self::Xbgr | Self::Abgr => Some(0),
            _ => None,
        }
    }
}

/// How luma and colour differences are made of red, green and blue (ITU-T H.273, MatrixCoefficients).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Matrix {
    /// They are not: in a YUV format, Y, Cb and Cr hold green, blue and red.
    Rgb,
    /// FCC Title 47 (K_R 0.30, K_B 0.11).
    Fcc,
    /// ITU-R BT.601 (K_R 0.299, K_B 0.114).
    #[default]
    Bt601,
    /// ITU-R BT.709 (K_R 0.2126, K_B 0.0722).
    Bt709,
    /// SMPTE ST 240 (K_R 0.212, K_B 0.087).
    Smpte240m,
    /// ITU-R BT.2020, non-constant luminance (K_R 0.2627, K_B 0.0593).
    Bt2020,
}

impl Matrix {
    /// The shares of red and blue in luma.
    fn weights(self) -> Option<(f64, f64)> {
        match self {
            Self::Rgb => None,
            Self::Fcc => Some((0.30, 0.11)),
            Self::Bt601 => Some((0.299, 0.114)),
            Self::Bt709 => Some((0.2126, 0.0722)),
            Self::Smpte240m => Some((0.212, 0.087)),
            Self::Bt2020 => Some((0.2627, 0.0593)),
        }
    }
}

/// What the samples of a frame mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Colour {
    /// The matrix of YUV and gray formats; RGB formats have none.
    pub matrix: Matrix,
    /// Whether samples use all codes (0…255), not 16…235 with 16…240 for colour differences.
    pub full_range: bool,
}

impl Colour {
    /// What RGB formats have unless they say otherwise.
    pub const FULL_RGB: Self = Self {
        matrix: Matrix::Rgb,
        full_range: true,
    };
}

/// Three sums of three values: row `i` gives `m[i][0]·a + m[i][1]·b + m[i][2]·c + m[i][3]`.
pub type Affine = [[f32; 4]; 3];

/// Scale and offset of the codes of luma (or red, green, blue) and of colour differences: code = offset + scale·value,
/// for values 0…1 and -½…½ (ITU-T H.273, equations 20 to 35).
fn codes(format: PixelFormat, colour: Colour) -> ((f64, f64), (f64, f64)) {
    let unit = f64::from(1u32 << (format.bits() - 8));
    let top = f64::from((1u32 << format.bits()) - 1);
    if colour.full_range {
        ((top, 0.0), (top, 128.0 * unit))
    } else {
        ((219.0 * unit, 16.0 * unit), (224.0 * unit, 128.0 * unit))
    }
}

/// The rows that give red, green and blue from a format's values: luma and differences, or the same.
fn to_rgb(format: PixelFormat, colour: Colour) -> [[f64; 3]; 3] {
    match (format.family(), colour.matrix.weights()) {
        (Family::Rgb, _) => [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]],
        (Family::Yuv, Some((r, b))) => {
            let g = 1.0 - r - b;
            let (cb, cr) = (2.0 * (1.0 - b), 2.0 * (1.0 - r));
            [
                [1.0, 0.0, cr],
                [1.0, -b * cb / g, -r * cr / g],
                [1.0, cb, 0.0],
            ]
        }
        (Family::Yuv, None) => [[0.0, 0.0, 1.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]],
        (Family::Gray, _) => [[1.0, 0.0, 0.0]; 3],
    }
}

/// The rows that give a format's values from red, green and blue.
fn from_rgb(format: PixelFormat, colour: Colour) -> [[f64; 3]; 3] {
    let luma = |r: f64, b: f64| [r, 1.0 - r - b, b];
    match (format.family(), colour.matrix.weights()) {
        (Family::Rgb, _) => [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]],
        (Family::Yuv, Some((r, b))) => {
            let y = luma(r, b);
            let difference =
                |of: [f64; 3], k: f64| std::array::from_fn(|i| (of[i] - y[i]) / (2.0 * (1.0 - k)));
            [
                y,
                difference([0.0, 0.0, 1.0], b),
                difference([1.0, 0.0, 0.0], r),
            ]
        }
        (Family::Yuv, None) => [[0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [1.0, 0.0, 0.0]],
        (Family::Gray, weights) => {
            // Gray has no identity matrix; BT.601 is what GStreamer gives it.
            let (r, b) = weights.unwrap_or((0.299, 0.114));
            [luma(r, b), [0.0; 3], [0.0; 3]]
        }
    }
}

/// Which values of `format` are colour differences: with the identity matrix none, whatever their place.
fn differences(format: PixelFormat, colour: Colour) -> [bool; 3] {
    let yuv = format.family() == Family::Yuv && colour.matrix != Matrix::Rgb;
    [false, yuv, yuv]
}

/// From a frame's codes (0…255, of 10-bit formats 0…1023) to red, green and blue in [-1, 1]. Codes outside the nominal
/// range give values outside, which are to be clamped.
pub fn to_tensor(format: PixelFormat, colour: Colour) -> Affine {
    let (luma, chroma) = codes(format, colour);
    let kinds = differences(format, colour).map(|c| if c { chroma } else { luma });
    to_rgb(format, colour).map(|row| {
        let mut out = [0.0; 4];
        let mut constant = 0.0;
        for (i, (factor, (scale, offset))) in row.into_iter().zip(kinds).enumerate() {
            out[i] = (2.0 * factor / scale) as f32;
            constant -= factor * offset / scale;
        }
        out[3] = (2.0 * constant - 1.0) as f32;
        out
    })
}

/// From red, green and blue in [-1, 1] to a frame's codes, to be rounded and clamped to what the format can hold. Rows
/// of components that the format lacks are zero.
pub fn from_tensor(format: PixelFormat, colour: Colour) -> Affine {
    let (luma, chroma) = codes(format, colour);
    let kinds = differences(format, colour).map(|c| if c { chroma } else { luma });
    let rows = from_rgb(format, colour);
    std::array::from_fn(|i| {
        if i >= format.components().len() {
            return [0.0; 4];
        }
        let (row, (scale, offset)) = (rows[i], kinds[i]);
        let half = row.map(|factor| factor * scale / 2.0);
        let constant = half.iter().sum::<f64>() + offset;
        [
            half[0] as f32,
            half[1] as f32,
            half[2] as f32,
            constant as f32,
        ]
    })
}

/// Where colour differences that are for several pixels lie among these (ITU-T H.273, ChromaLocType). Each way that a format
/// has one for two pixels: on the first of them, or in the middle of both.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Siting {
    /// On the first of two pixels of a row, as in MPEG-2 and nearly all video since.
    pub on_x: bool,
    /// On the first of two rows.
    pub on_y: bool,
}

/// Where the samples of a frame are in a block of memory, and in the picture. Its constructors make sure that they are inside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VideoLayout {
    format: PixelFormat,
    width: usize,
    height: usize,
    offsets: [usize; 4],
    strides: [usize; 4],
    size: usize,
    siting: Siting,
}

impl VideoLayout {
    /// A frame of `width` × `height` pixels in `size` bytes, whose planes begin at `offsets` and have rows `strides`
    /// bytes apart; what is given for planes that the format lacks does not count.
    ///
    /// # Errors
    /// Names the plane that does not fit, and what would.
    pub fn new(
        format: PixelFormat,
        width: usize,
        height: usize,
        offsets: [usize; 4],
        strides: [usize; 4],
        size: usize,
    ) -> Result<Self> {
        let name = format.name();
        let fail = |what: String| {
            Err(Error::engine(
                format!("{name} frame of {width}x{height}"),
                what,
            ))
        };
        if !(1..=MAX_SIDE).contains(&width) || !(1..=MAX_SIDE).contains(&height) {
            return fail(format!("expected sides of 1 to {MAX_SIDE} pixels"));
        }
        let mut layout = Self {
            format,
            width,
            height,
            offsets: [0; 4],
            strides: [0; 4],
            size,
            siting: Siting::default(),
        };
        let bytes = if format.bits() > 8 { 2 } else { 1 };
        for (i, plane) in format.planes().iter().enumerate() {
            let (row, rows) = layout.plane_size(plane);
            let (offset, stride) = (offsets[i], strides[i]);
            if stride < row {
                return fail(format!(
                    "plane {i} has a stride of {stride} bytes, expected {row} or more"
                ));
            }
            if offset % bytes != 0 || stride % bytes != 0 {
                return fail(format!(
                    "plane {i} has offset {offset} and stride {stride}, expected multiples of {bytes} bytes"
                ));
            }
            let end = stride
                .checked_mul(rows - 1)
                .and_then(|before| before.checked_add(row)?.checked_add(offset));
            if end.is_none_or(|end| end > size) {
                return fail(format!(
                    "plane {i} has offset {offset}, stride {stride} and {rows} rows, which does not fit into {size} bytes"
                ));
            }
            layout.offsets[i] = offset;
            layout.strides[i] = stride;
        }
        Ok(layout)
    }

    /// A frame without gaps but those that round strides up to 4 bytes: what GStreamer's buffers hold where nothing
    /// says otherwise, but for the rows that it adds to frames of odd height.
    ///
    /// # Errors
    /// When a side is 0 or more than [`MAX_SIDE`].
    pub fn dense(format: PixelFormat, width: usize, height: usize) -> Result<Self> {
        let (mut offsets, mut strides, mut size) = ([0; 4], [0; 4], 0);
        if (1..=MAX_SIDE).contains(&width) && (1..=MAX_SIDE).contains(&height) {
            for (i, plane) in format.planes().iter().enumerate() {
                let (row, rows) = plane_size(plane, width, height);
                offsets[i] = size;
                strides[i] = row.next_multiple_of(4);
                size += strides[i] * rows;
            }
        }
        Self::new(format, width, height, offsets, strides, size)
    }

    /// The same with its colour differences elsewhere; new layouts have them in the middle. It means nothing to formats that
    /// have one for each pixel, or none.
    pub fn sited(self, siting: Siting) -> Self {
        Self { siting, ..self }
    }

    /// Where its colour differences lie among the pixels that they are for.
    pub fn siting(&self) -> Siting {
        self.siting
    }

    /// How its samples are stored.
    pub fn format(&self) -> PixelFormat {
        self.format
    }

    /// Pixels of a row.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Rows of pixels.
    pub fn height(&self) -> usize {
        self.height
    }

    /// First byte of each plane; 0 for planes that the format lacks.
    pub fn offsets(&self) -> [usize; 4] {
        self.offsets
    }

    /// Bytes from row to row of each plane; 0 for planes that the format lacks.
    pub fn strides(&self) -> [usize; 4] {
        self.strides
    }

    /// Bytes of the memory that it describes.
    pub fn size(&self) -> usize {
        self.size
    }

    /// Bytes of a row and number of rows of one of its format's planes. Sides that do not divide are rounded up.
    pub fn plane_size(&self, plane: &Plane) -> (usize, usize) {
        plane_size(plane, self.width, self.height)
    }
}

fn plane_size(plane: &Plane, width: usize, height: usize) -> (usize, usize) {
    let row = width.div_ceil(1 << plane.sub_x) * plane.unit;
    (row, height.div_ceil(1 << plane.sub_y))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MATRICES: [Matrix; 6] = [
        Matrix::Rgb,
        Matrix::Fcc,
        Matrix::Bt601,
        Matrix::Bt709,
        Matrix::Smpte240m,
        Matrix::Bt2020,
    ];

    fn apply(m: &Affine, v: [f64; 3]) -> [f64; 3] {
        m.map(|row| {
            let [a, b, c, d] = row.map(f64::from);
            a * v[0] + b * v[1] + c * v[2] + d
        })
    }

    #[track_caller]
    fn close(found: [f64; 3], expected: [f64; 3], tolerance: f64) {
        for (f, e) in found.iter().zip(expected) {
            assert!((f - e).abs() < tolerance, "{found:?}, not {expected:?}");
        }
    }

    #[test]
    fn components_lie_in_their_planes_and_cover_them() {
        for format in PixelFormat::ALL {
            assert_eq!(PixelFormat::from_name(format.name()), Some(format));
            let bytes = if format.bits() > 8 { 2 } else { 1 };
            let mut taken = vec![0; format.planes().iter().map(|p| p.unit).sum()];
            for component in format.components() {
                let plane = format.planes()[component.plane];
                let before: usize = format.planes()[..component.plane]
                    .iter()
                    .map(|p| p.unit)
                    .sum();
                assert_eq!(plane.sub_y, component.sub_y);
                // The samples of one unit.
                for i in 0..1 << (plane.sub_x - component.sub_x) {
                    for byte in 0..bytes {
                        taken[before + component.offset + i * component.step + byte] += 1;
                    }
                }
            }
            if let Some(alpha) = format.alpha() {
                taken[alpha] += 1;
            }
            assert!(taken.iter().all(|n| *n == 1), "{format:?}: {taken:?}");
        }
    }

    #[test]
    fn both_ways_are_inverse() {
        for format in PixelFormat::ALL {
            for matrix in MATRICES {
                for full_range in [false, true] {
                    let colour = Colour { matrix, full_range };
                    let (to, from) = (to_tensor(format, colour), from_tensor(format, colour));
                    let rgb = if format == PixelFormat::Gray8 {
                        [0.3; 3]
                    } else {
                        [-0.7, 0.1, 0.9]
                    };
                    close(apply(&to, apply(&from, rgb)), rgb, 2e-6);
                }
            }
        }
    }

    /// The codes of 75 % colour bars: 8-bit BT.601 and BT.709 as in ITU-R BT.801 and SMPTE RP 219, rounded.
    #[test]
    fn colour_bars_have_the_codes_of_the_standards() {
        let bars = |matrix, format| {
            let colour = Colour {
                matrix,
                full_range: false,
            };
            let m = from_tensor(format, colour);
            // White, yellow, cyan, green, magenta, red, blue, black.
            [7, 6, 3, 2, 5, 4, 1, 0].map(|bits: u8| {
                let level = |bit: u8| if (bits >> bit) & 1 == 1 { 0.5 } else { -1.0 };
                apply(&m, [level(2), level(1), level(0)]).map(|x| x.round() as i32)
            })
        };
        assert_eq!(
            bars(Matrix::Bt601, PixelFormat::I420),
            [
                [180, 128, 128],
                [162, 44, 142],
                [131, 156, 44],
                [112, 72, 58],
                [84, 184, 198],
                [65, 100, 212],
                [35, 212, 114],
                [16, 128, 128]
            ]
        );
        assert_eq!(
            bars(Matrix::Bt709, PixelFormat::P010),
            [
                [721, 512, 512],
                [674, 176, 543],
                [581, 589, 176],
                [534, 253, 207],
                [251, 771, 817],
                [204, 435, 848],
                [111, 848, 481],
                [64, 512, 512]
            ]
        );
    }

    #[test]
    fn red_green_and_blue_stay_themselves() {
        let full = to_tensor(PixelFormat::Bgra, Colour::FULL_RGB);
        close(apply(&full, [0.0, 127.5, 255.0]), [-1.0, 0.0, 1.0], 1e-6);
        let limited = Colour {
            full_range: false,
            ..Colour::FULL_RGB
        };
        let limited = to_tensor(PixelFormat::Rgb, limited);
        close(
            apply(&limited, [16.0, 125.5, 235.0]),
            [-1.0, 0.0, 1.0],
            1e-6,
        );
        // ITU-T H.273: with the identity matrix, Y is green, Cb blue and Cr red.
        let planes = to_tensor(PixelFormat::Y444, Colour::FULL_RGB);
        close(apply(&planes, [0.0, 127.5, 255.0]), [1.0, -1.0, 0.0], 1e-6);
    }

    #[test]
    fn dense_layouts_round_sides_up() {
        let layout = VideoLayout::dense(PixelFormat::Nv12, 5, 3).unwrap();
        assert_eq!(layout.strides()[..2], [8, 8]);
        assert_eq!(layout.offsets()[..2], [0, 24]);
        assert_eq!(layout.size(), 40);
        let layout = VideoLayout::dense(PixelFormat::Yuy2, 5, 3).unwrap();
        assert_eq!((layout.strides()[0], layout.size()), (12, 36));
    }

    #[test]
    fn frames_that_leave_their_memory_are_refused() {
        let new = |format, w, h, offset, stride, size| {
            let (offsets, strides) = ([0, offset, offset, 0], [stride; 4]);
            VideoLayout::new(format, w, h, offsets, strides, size)
        };
        // The last row may be shorter than the stride.
        assert!(new(PixelFormat::Rgb, 3, 2, 0, 16, 25).is_ok());
        for (result, parts) in [
            (
                new(PixelFormat::Rgb, 3, 2, 0, 16, 24),
                ["RGB frame of 3x2", "into 24 bytes"],
            ),
            (
                new(PixelFormat::Rgb, 6, 2, 0, 16, 99),
                ["stride of 16", "expected 18 or more"],
            ),
            (
                new(PixelFormat::P010, 2, 2, 33, 16, 99),
                ["plane 1", "multiples of 2"],
            ),
            (
                new(PixelFormat::Nv12, 2, 2, usize::MAX, 16, 99),
                ["plane 1", "does not fit"],
            ),
            (
                new(PixelFormat::I420, 2, 2, 0, usize::MAX, 99),
                ["plane 0", "does not fit"],
            ),
            (new(PixelFormat::Gray8, 0, 2, 0, 16, 99), ["0x2", "sides"]),
            (
                VideoLayout::dense(PixelFormat::Gray8, 2, MAX_SIDE + 1),
                ["2x32769", "sides"],
            ),
        ] {
            let message = result.unwrap_err().to_string();
            for part in parts {
                assert!(message.contains(part), "{message:?} lacks {part:?}");
            }
        }
    }
}
