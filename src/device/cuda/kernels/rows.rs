//! The parameters of the kernels that work on tensors, as they are in device memory (`kernels/*.cu`, where the formulas
//! are too). Pointers are device addresses, 0 being null; lengths count elements and are less than 2³¹.

/// What kernels take: rows in device memory, or an argument as it is.
///
/// # Safety
/// The type must be `repr(C)`, have no padding, and be laid out as the kernel's own.
pub unsafe trait Row: Copy {
    /// The bytes of `rows`, to be copied to the device.
    fn bytes(rows: &[Self]) -> &[u8] {
        // SAFETY: without padding every byte has a value.
        unsafe { std::slice::from_raw_parts(rows.as_ptr().cast(), size_of_val(rows)) }
    }
}

/// `combine`: `out[i] = ka·a[i] + kb·b[i] + kc·c[i] + kd·d[i mod period]`, all f16.
///
/// A null operand, and one whose factor is 0, is not read. `out` may be an operand, index by index, but not `d` if that
/// repeats.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
#[repr(C)]
#[allow(missing_docs)]
pub struct CombineRow {
    pub a: u64,
    pub b: u64,
    pub c: u64,
    pub d: u64,
    pub out: u64,
    pub ka: f32,
    pub kb: f32,
    pub kc: f32,
    pub kd: f32,
    pub len: u32,
    /// Length of `d`, which is repeated; 0 stands for `len`.
    pub period: u32,
}

/// `copy`: `out[i] = in[i]·scale + shift`, between f16 and f32. With 1 and 0 values stay as they are.
#[derive(Debug, Clone, Copy, PartialEq)]
#[repr(C)]
#[allow(missing_docs)]
pub struct CopyRow {
    pub input: u64,
    pub out: u64,
    pub scale: f32,
    pub shift: f32,
    pub len: u32,
    /// Fills the row up; any value.
    pub unused: u32,
}

impl CopyRow {
    /// A copy of `len` values as they are.
    pub fn plain(input: u64, out: u64, len: u32) -> Self {
        Self {
            input,
            out,
            scale: 1.0,
            shift: 0.0,
            len,
            unused: 0,
        }
    }
}

/// `copy_bytes`: `out[i] = in[i]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(C)]
#[allow(missing_docs)]
pub struct CopyBytesRow {
    pub input: u64,
    pub out: u64,
    pub bytes: u32,
    /// Fills the row up; any value.
    pub unused: u32,
}

/// `posterior`: `out[i] = (mean[i] + exp(½·clamp(v[i], -30, 20))·noise[i] − shift)·scale`.
#[derive(Debug, Clone, Copy, PartialEq)]
#[repr(C)]
#[allow(missing_docs)]
pub struct PosteriorRow {
    /// `len` means, then `len` logarithms of variances, f16 or f32.
    pub moments: u64,
    /// f16, or null for the mean.
    pub noise: u64,
    /// f16.
    pub out: u64,
    pub scale: f32,
    pub shift: f32,
    pub len: u32,
    /// Fills the row up; any value.
    pub unused: u32,
}

/// `cosine`: the sums `<a, b>`, `<a, a>` and `<b, b>` of f16 values, in f32.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(C)]
#[allow(missing_docs)]
pub struct CosineRow {
    pub a: u64,
    pub b: u64,
    /// Three f32.
    pub out: u64,
    /// [`COSINE_PARTIAL_BYTES`] of working memory, of this row alone.
    pub partial: u64,
    /// A u32 that is 0, and is 0 again afterwards; of this row alone.
    pub finished: u64,
    pub len: u32,
    /// Fills the row up; any value.
    pub unused: u32,
}

/// The most blocks that share a row of `cosine`.
pub(super) const COSINE_BLOCKS: u32 = 512;
/// Bytes of working memory for one row of `cosine`, whatever its length.
pub const COSINE_PARTIAL_BYTES: usize = COSINE_BLOCKS as usize * 12;

/// `slerp`: `out = (sin((1−t)·θ)·a + sin(t·θ)·b) / sin θ`, all f16; a weighted mean where that has no sense.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
#[repr(C)]
#[allow(missing_docs)]
pub struct SlerpRow {
    pub a: u64,
    pub b: u64,
    pub out: u64,
    /// What `cosine` gave for `a` and `b`.
    pub sums: u64,
    pub t: f32,
    pub len: u32,
}

/// `blend`: `out = share·clamp(a, -1, 1) + (1 − share)·b`, all f16; in `a`, no number counts as -1. `out` may be an operand.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
#[repr(C)]
#[allow(missing_docs)]
pub struct BlendRow {
    pub a: u64,
    pub b: u64,
    pub out: u64,
    pub share: f32,
    pub len: u32,
}

/// `interpolate`: each vector of `out` at `t` of the way from that of `a` to that of `b`, on the straight line or on the arc.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
#[repr(C)]
#[allow(missing_docs)]
pub struct InterpolateRow {
    /// f32.
    pub a: u64,
    /// f32.
    pub b: u64,
    /// f16 or f32; overlaps neither `a` nor `b`.
    pub out: u64,
    /// In 0…1.
    pub t: f32,
    /// Elements of a vector; not 0.
    pub width: u32,
    /// Of all vectors: a multiple of `width`.
    pub len: u32,
    /// 0: on the straight line; 1: on the arc.
    pub spherical: u32,
}

const _: () = assert!(size_of::<CombineRow>() == 64 && align_of::<CombineRow>() == 8);
const _: () = assert!(size_of::<CopyRow>() == 32 && align_of::<CopyRow>() == 8);
const _: () = assert!(size_of::<CopyBytesRow>() == 24 && align_of::<CopyBytesRow>() == 8);
const _: () = assert!(size_of::<PosteriorRow>() == 40 && align_of::<PosteriorRow>() == 8);
const _: () = assert!(size_of::<CosineRow>() == 48 && align_of::<CosineRow>() == 8);
const _: () = assert!(size_of::<SlerpRow>() == 40 && align_of::<SlerpRow>() == 8);
const _: () = assert!(size_of::<BlendRow>() == 32 && align_of::<BlendRow>() == 8);
const _: () = assert!(size_of::<InterpolateRow>() == 40 && align_of::<InterpolateRow>() == 8);

// SAFETY: as the definitions and the sizes above say.
unsafe impl Row for CombineRow {}
// SAFETY: as above.
unsafe impl Row for CopyRow {}
// SAFETY: as above.
unsafe impl Row for CopyBytesRow {}
// SAFETY: as above.
unsafe impl Row for PosteriorRow {}
// SAFETY: as above.
unsafe impl Row for CosineRow {}
// SAFETY: as above.
unsafe impl Row for SlerpRow {}
// SAFETY: as above.
unsafe impl Row for BlendRow {}
// SAFETY: as above.
unsafe impl Row for InterpolateRow {}
