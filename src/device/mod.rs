//! Where tensors live. A device does arithmetic on tensors with numbers it is given; it knows nothing of
//! schedules, guidance or prompts.

#[cfg(feature = "cuda")]
pub mod cuda;
pub mod host;
mod interpolation;
pub mod video;

pub use host::{Host, HostTensor};
pub use interpolation::Interpolation;

use std::time::Duration;

use crate::error::{Error, Result};

/// The numbers of one fused denoising update, computed on the host in f64 (see `stream::guidance`).
///
/// `x ← x·sample + prediction·model_output + reference·reference + noise·noise_map`, element by element.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Coefficients {
    /// Factor of the noisy latent that went into the U-Net.
    pub sample: f32,
    /// Factor of the U-Net's output for the prompt.
    pub prediction: f32,
    /// Factor of the reference: the U-Net's output for the negative prompt, or the slot's anchor latent.
    pub reference: f32,
    /// Factor of the next step's noise map.
    pub noise: f32,
}

/// One tensor that a fused step brings forward.
pub struct Update<'a, T> {
    /// The factors of what follows.
    pub k: Coefficients,
    /// The latent `[f, C, h, w]`; becomes that of the next step.
    pub x: &'a mut T,
    /// The U-Net's output, of the same shape.
    pub prediction: &'a T,
    /// The reference, of the same shape; not read if its factor is 0.
    pub reference: Option<&'a T>,
    /// One noise map `[1, C, h, w]` for all `f` frames; not read if its factor is 0.
    pub noise: Option<&'a T>,
}

/// Tensor arithmetic on one kind of memory. A device may put work off until a result is read; its errors then come with
/// the reading.
pub trait Device: Send + Sync + 'static {
    /// A dense tensor in row-major order. A clone may share memory with its original, and behaves as if it did not.
    type Tensor: Clone + Send + Sync + 'static;

    /// How alike two tensors are, which is being worked out.
    type Comparison: Send;

    /// A tensor of `shape` holding `data` (as many values as the shape says).
    fn upload(&self, shape: &[usize], data: &[f32]) -> Result<Self::Tensor>;

    /// One tensor `[Σk, …]` of tensors `[k, …]` that agree in all other dimensions; at least one is given.
    fn stack(&self, parts: Vec<Self::Tensor>) -> Result<Self::Tensor>;

    /// The rows `[1, …]` of a tensor `[k, …]`.
    fn unstack(&self, tensor: Self::Tensor) -> Vec<Self::Tensor>;

    /// Whether two tensors have the same shape.
    fn same_shape(&self, a: &Self::Tensor, b: &Self::Tensor) -> bool;

    /// Begins to work out the cosine of the angle between two tensors of one shape, seen as vectors: 1 when both are all
    /// zeros. It is not put off until the [`cosine`](Self::cosine) is wanted, and nothing waits for it.
    fn compare(&self, a: &Self::Tensor, b: &Self::Tensor) -> Result<Self::Comparison>;

    /// The cosine that a comparison came to; waits for it where it is not there yet.
    fn cosine(&self, comparison: Self::Comparison) -> Result<f32>;

    /// Noises clean latents `[f, C, h, w]`: `a·latents + b·noise`, with one noise map `[1, C, h, w]` for all frames or one for
    /// each `[f, C, h, w]`.
    fn add_noise(
        &self,
        a: f32,
        latents: &Self::Tensor,
        b: f32,
        noise: &Self::Tensor,
    ) -> Result<Self::Tensor>;

    /// The tensor at `share` (0…1) of the way from `a` to `b`, of one shape, along the arc between them, both seen as
    /// vectors: `(sin((1 − share)·θ)·a + sin(share·θ)·b) / sin θ`, θ being the angle between them (Shoemake, "Animating rotation
    /// with quaternion curves", 1985). Those that are almost parallel, or opposite, have no arc of their own and give the
    /// weighted mean. At 0 and 1 it is `a` and `b` themselves.
    fn slerp(&self, share: f64, a: &Self::Tensor, b: &Self::Tensor) -> Result<Self::Tensor>;

    /// The fused step, on all slots at once.
    fn step(&self, updates: Vec<Update<'_, Self::Tensor>>) -> Result<()>;

    /// Lays pictures over those that they were made of, both `[k, …]` of one shape and the latter in [-1, 1]:
    /// `share·clamp(over, -1, 1) + (1 − share)·under`, with a share in [0, 1] for each of the k rows. What is no number in
    /// `over` counts as -1.
    fn blend(
        &self,
        shares: &[f32],
        over: &Self::Tensor,
        under: &Self::Tensor,
    ) -> Result<Self::Tensor>;

    /// Runs `work` as the section with this number (below [`SECTIONS`]), and tells how long it took: now, or, where work is
    /// put off, how long it took the last time, once.
    fn timed<R>(&self, section: usize, work: impl FnOnce() -> R) -> (R, Option<Duration>);
}

/// How many sections [`Device::timed`] tells apart.
pub const SECTIONS: usize = 4;

/// What pictures are not blended for.
fn unlike(over: &[usize], under: &[usize], shares: usize) -> Error {
    Error::engine(
        "vae_decoder",
        format!("gave pictures {over:?} for {under:?} and {shares} shares, expected one shape"),
    )
}

/// What there is no arc between.
fn apart(a: &[usize], b: &[usize]) -> Error {
    Error::engine(
        "noise",
        format!("of shapes {a:?} and {b:?}, expected one shape"),
    )
}
