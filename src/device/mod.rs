//! Where tensors live. A device does arithmetic on tensors with numbers it is given; it knows nothing of
//! schedules, guidance or prompts.

pub mod host;

pub use host::{Host, HostTensor};

use crate::error::Result;

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

/// Tensor arithmetic on one kind of memory.
pub trait Device: Send + Sync + 'static {
    /// A dense f32 (or device-native) tensor in row-major order.
    type Tensor: Clone + Send + Sync + 'static;

    /// A tensor of `shape` holding `data` (as many values as the shape says).
    fn upload(&self, shape: &[usize], data: &[f32]) -> Self::Tensor;

    /// One tensor `[Σk, …]` of tensors `[k, …]` that agree in all other dimensions; at least one is given.
    fn stack(&self, parts: Vec<Self::Tensor>) -> Self::Tensor;

    /// The rows `[1, …]` of a tensor `[k, …]`.
    fn unstack(&self, tensor: Self::Tensor) -> Vec<Self::Tensor>;

    /// Whether two tensors have the same shape.
    fn same_shape(&self, a: &Self::Tensor, b: &Self::Tensor) -> bool;

    /// Cosine of the angle between two tensors of one shape, seen as vectors; 1 when both are all zeros.
    fn cosine(&self, a: &Self::Tensor, b: &Self::Tensor) -> f32;

    /// Noises clean latents `[f, C, h, w]`: `a·latents + b·noise`, with one noise map `[1, C, h, w]` for all frames or one for
    /// each `[f, C, h, w]`.
    fn add_noise(
        &self,
        a: f32,
        latents: &Self::Tensor,
        b: f32,
        noise: &Self::Tensor,
    ) -> Self::Tensor;

    /// The fused step on one slot: updates `x` `[f, C, h, w]` in place by `k`. `prediction` and `reference` have
    /// its shape, `noise` is one map `[1, C, h, w]`. A term whose factor is 0 is not read.
    fn step(
        &self,
        k: Coefficients,
        x: &mut Self::Tensor,
        prediction: &Self::Tensor,
        reference: Option<&Self::Tensor>,
        noise: Option<&Self::Tensor>,
    ) -> Result<()>;
}
