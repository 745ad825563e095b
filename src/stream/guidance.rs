//! Guidance: how the prompt's prediction is pushed away from what it should not be, as plain numbers.
//!
//! With `e` the model's output for the prompt, guidance replaces it by `u + g·(e − u)`. The four modes differ in `u`:
//! nothing, the output for the negative prompt (classifier-free guidance), or the residual noise of the slot's anchor
//! latent, which costs no U-Net row (residual classifier-free guidance, arXiv 2312.12491 §3.3).

use std::str::FromStr;

use super::schedule::Step;
use crate::device::Coefficients;
use crate::error::Error;

/// Where the guidance term comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum CfgType {
    /// No guidance: the prompt's prediction as it is.
    None,
    /// Classifier-free guidance: a second U-Net row for every row.
    Full,
    /// Self-negative residual guidance: against the input frame itself; no extra row. Ignores the negative prompt.
    #[default]
    SelfNegative,
    /// Onetime-negative residual guidance: one extra row per frame, at its first step.
    Initialize,
}

impl CfgType {
    /// The names users write, in the order of the variants.
    pub const NAMES: [&'static str; 4] = ["none", "full", "self", "initialize"];
}

impl FromStr for CfgType {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self, Error> {
        match name {
            "none" => Ok(Self::None),
            "full" => Ok(Self::Full),
            "self" => Ok(Self::SelfNegative),
            "initialize" => Ok(Self::Initialize),
            _ => Err(Error::setting(
                "cfg-type",
                format!(
                    "\"{name}\" is unknown; expected one of {}",
                    Self::NAMES.join(", ")
                ),
            )),
        }
    }
}

/// The guidance in force: mode, scale and the residual's weight. Applies to all frames in flight at once.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Guidance {
    /// Where the guidance term comes from.
    pub cfg_type: CfgType,
    /// Guidance scale g; 1 or less turns guidance off in every mode, as in the published pipeline.
    pub scale: f64,
    /// δ, the weight of the residual noise in the two residual modes.
    pub delta: f64,
}

/// What a slot's fused step needs beside its prediction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reference {
    /// Nothing.
    None,
    /// The U-Net's output for the same latent and the negative prompt.
    NegativePrediction,
    /// The slot's anchor latent.
    Anchor,
}

impl Guidance {
    /// What the steps need under this guidance.
    pub fn reference(&self) -> Reference {
        match self.cfg_type {
            _ if self.scale <= 1.0 => Reference::None,
            CfgType::None => Reference::None,
            CfgType::Full => Reference::NegativePrediction,
            CfgType::SelfNegative | CfgType::Initialize => Reference::Anchor,
        }
    }

    /// Whether a frame's anchor is estimated with the negative prompt when the frame enters.
    pub fn anchors_on_negative(&self) -> bool {
        self.cfg_type == CfgType::Initialize && self.reference() == Reference::Anchor
    }

    /// One whole denoising step as four factors: guidance, consistency step and, when there is a `next` step,
    /// re-noising to its level (with its noise map only if `add_noise`).
    ///
    /// Derivation. Let the clean latent predicted from the output `m` be `p·x + q·m` ([`Step::clean`]); every mode is
    /// linear in `m`, so guiding `m` and guiding clean latents is the same: `x₀ = g·x₀(e) + (1−g)·x₀(u)`.
    /// For the residual modes `u = δ·S` with `S = (x − a·z)/b`, hence `x₀(u) = (1−δ)/a·x + δ·z`, where `z` is the
    /// anchor: the slot's clean latent, or its estimate under the negative prompt. This is the paper's eq. 5 without
    /// its running state, so it holds for any number of steps, with or without added noise, and after any live change.
    /// Then `x̂ = c_out·x₀ + c_skip·x`, and `x ← a⁺·x̂ + b⁺·ε⁺`.
    pub fn coefficients(&self, step: &Step, next: Option<&Step>, add_noise: bool) -> Coefficients {
        let (p, q) = step.clean();
        let (g, delta) = (self.scale, self.delta);
        let (sample, prediction, reference) = match self.reference() {
            Reference::None => (p, q, 0.0),
            Reference::NegativePrediction => (p, g * q, (1.0 - g) * q),
            Reference::Anchor => (
                g * p + (1.0 - g) * (1.0 - delta) / step.a,
                g * q,
                (1.0 - g) * delta,
            ),
        };
        let (keep, noise) = match next {
            Some(next) => (next.a, if add_noise { next.b } else { 0.0 }),
            None => (1.0, 0.0),
        };
        Coefficients {
            sample: (keep * (step.c_out * sample + step.c_skip)) as f32,
            prediction: (keep * step.c_out * prediction) as f32,
            reference: (keep * step.c_out * reference) as f32,
            noise: noise as f32,
        }
    }

    /// The factors that turn the noisy latent and the negative prompt's output into the anchor `ẑ = p·x + q·ē`.
    pub fn negative_anchor(step: &Step) -> Coefficients {
        let (p, q) = step.clean();
        Coefficients {
            sample: p as f32,
            prediction: q as f32,
            ..Default::default()
        }
    }
}
