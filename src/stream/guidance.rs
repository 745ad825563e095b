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

    /// Whether any row is run with the negative prompt.
    pub fn uses_negative_prompt(&self) -> bool {
        self.reference() == Reference::NegativePrediction || self.anchors_on_negative()
    }

    /// Whether a slot whose next step is number `step` takes a row with the negative prompt.
    pub fn wants_negative_row(&self, step: usize) -> bool {
        self.reference() == Reference::NegativePrediction
            || (self.anchors_on_negative() && step == 0)
    }

    /// The same, turned off.
    pub fn off(self) -> Self {
        Self {
            cfg_type: CfgType::None,
            ..self
        }
    }

    /// One whole denoising step as four factors: guidance, and the step's [`Transition`](super::schedule::Transition),
    /// with its noise map only if `add_noise`.
    ///
    /// Derivation. Let the clean latent predicted from the output `m` be `p·x + q·m` ([`Step::clean`]); every mode is
    /// linear in `m`, so guiding `m` and guiding clean latents is the same: `x₀ = g·x₀(e) + (1−g)·x₀(u)`.
    /// For the residual modes `u` stands for the noise `δ·S` with `S = (x − a·z)/b`, hence `x₀(u) = (1−δ)/a·x + δ·z`,
    /// where `z` is the anchor: the slot's clean latent, or its estimate under the negative prompt. This is the paper's
    /// eq. 5 without its running state, so it holds for any number of steps, with or without added noise, and after
    /// any live change. The transition is linear in `x`, `x₀` and the noise map.
    pub fn coefficients(&self, step: &Step, add_noise: bool) -> Coefficients {
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
        let end = step.transition(add_noise);
        Coefficients {
            sample: (end.keep * (end.clean * sample + end.sample)) as f32,
            prediction: (end.keep * end.clean * prediction) as f32,
            reference: (end.keep * end.clean * reference) as f32,
            noise: end.noise as f32,
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

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde::Deserialize;

    use super::super::schedule::{Method, schedule};
    use super::*;
    use crate::model::{PredictionType, SchedulerConfig};

    /// What tools/reference/tcd.py writes.
    #[derive(Deserialize)]
    struct Golden {
        latent: f64,
        prompt: f64,
        negative: f64,
        scale: f64,
        delta: f64,
        cases: Vec<Case>,
    }

    #[derive(Deserialize)]
    struct Case {
        t_index_list: Vec<usize>,
        noise: Vec<f64>,
        prediction: String,
        cfg_type: String,
        eta: f64,
        add_noise: bool,
        /// After each step.
        latents: Vec<f64>,
    }

    fn unet(x: f64, step: &Step, text: f64) -> f64 {
        0.5 * x + text - 0.0005 * f64::from(step.timestep)
    }

    fn apply(k: Coefficients, x: f64, prediction: f64, reference: f64, noise: f64) -> f64 {
        let [s, p, r, n] = [k.sample, k.prediction, k.reference, k.noise].map(f64::from);
        s * x + p * prediction + r * reference + n * noise
    }

    /// The latents of `case` after each step.
    fn sample(golden: &Golden, case: &Case) -> Vec<f64> {
        let config = SchedulerConfig {
            prediction_type: match case.prediction.as_str() {
                "epsilon" => PredictionType::Epsilon,
                "v_prediction" => PredictionType::VPrediction,
                _ => PredictionType::Sample,
            },
            ..Default::default()
        };
        let method = Method::Tcd { eta: case.eta };
        let steps = schedule(&config, method, 50, &case.t_index_list).unwrap();
        let guidance = Guidance {
            cfg_type: case.cfg_type.parse().unwrap(),
            scale: golden.scale,
            delta: golden.delta,
        };
        let mut x = steps[0].a * golden.latent + steps[0].b * case.noise[0];
        let mut anchor = golden.latent;
        if guidance.anchors_on_negative() {
            let k = Guidance::negative_anchor(&steps[0]);
            anchor = apply(k, x, unet(x, &steps[0], golden.negative), 0.0, 0.0);
        }
        let following = case.noise.iter().copied().skip(1).chain([f64::NAN]);
        let mut latents = Vec::new();
        for (step, noise) in steps.iter().zip(following) {
            let k = guidance.coefficients(step, case.add_noise);
            let reference = match guidance.reference() {
                Reference::None => 0.0,
                Reference::NegativePrediction => unet(x, step, golden.negative),
                Reference::Anchor => anchor,
            };
            // There is no map to read where its factor is 0.
            let noise = if k.noise == 0.0 { 0.0 } else { noise };
            x = apply(k, x, unet(x, step, golden.prompt), reference, noise);
            latents.push(x);
        }
        latents
    }

    #[test]
    fn trajectory_consistency_steps_are_those_of_diffusers() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/tcd.json");
        let golden: Golden = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        assert_eq!(golden.cases.len(), 3 * 3 * 4 * 4);
        for case in &golden.cases {
            let found = sample(&golden, case);
            assert_eq!(found.len(), case.latents.len());
            for (found, expected) in found.iter().zip(&case.latents) {
                assert!(
                    (found - expected).abs() < 3e-6 * expected.abs().max(1.0),
                    "{found}, not {expected}: {:?} {} {} eta {} add_noise {}",
                    case.t_index_list,
                    case.prediction,
                    case.cfg_type,
                    case.eta,
                    case.add_noise
                );
            }
        }
    }
}
