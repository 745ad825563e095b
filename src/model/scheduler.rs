//! `scheduler/scheduler_config.json`: the numbers from which the noise schedule is computed. Pure data.

use std::path::Path;

use serde::Deserialize;

use super::read;
use crate::error::{Error, Result};

/// How the betas lie between `beta_start` and `beta_end`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BetaSchedule {
    /// Evenly.
    Linear,
    /// Their square roots evenly.
    ScaledLinear,
    /// By the squared cosine of the improved-DDPM paper, capped at 0.999; `beta_start` and `beta_end` do not matter.
    SquaredcosCapV2,
}

/// What the U-Net's output means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PredictionType {
    /// The noise.
    Epsilon,
    /// The velocity, `a·noise − b·sample`.
    VPrediction,
    /// The clean latent.
    Sample,
}

/// How the model was taught to take few steps, as far as the scheduler's class tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ConsistencyMethod {
    /// Latent consistency distillation (arXiv 2310.04378). Also what StreamDiffusion runs every other model with.
    #[default]
    Lcm,
    /// Trajectory consistency distillation (arXiv 2402.19159).
    Tcd,
}

/// The scheduler's configuration. Any diffusers scheduler class will do: only its tables are used, and of its name only
/// whether it is `TCDScheduler`.
#[derive(Debug, Clone, PartialEq)]
pub struct SchedulerConfig {
    /// The sampling method that the scheduler's class, `_class_name`, stands for.
    pub method: ConsistencyMethod,
    /// Timesteps the model was trained with, 1…10,000.
    pub num_train_timesteps: usize,
    /// First beta, in (0, 1).
    pub beta_start: f64,
    /// Last beta, in (0, 1), not below the first.
    pub beta_end: f64,
    /// How the betas lie between those two.
    pub beta_schedule: BetaSchedule,
    /// The betas themselves, `num_train_timesteps` of them, each in (0, 1); they overrule the three fields above.
    pub trained_betas: Option<Vec<f64>>,
    /// What the U-Net's output means.
    pub prediction_type: PredictionType,
    /// Size of the grid a latent consistency model was distilled on, 1…`num_train_timesteps`.
    pub original_inference_steps: usize,
    /// Factor of the timestep in the consistency boundary condition, above 0.
    pub timestep_scaling: f64,
    /// Whether the schedule is rescaled so that the last timestep holds no signal.
    pub rescale_betas_zero_snr: bool,
}

/// Stable Diffusion's schedule.
impl Default for SchedulerConfig {
    fn default() -> Self {
        Self {
            method: ConsistencyMethod::Lcm,
            num_train_timesteps: 1000,
            beta_start: 0.00085,
            beta_end: 0.012,
            beta_schedule: BetaSchedule::ScaledLinear,
            trained_betas: None,
            prediction_type: PredictionType::Epsilon,
            original_inference_steps: 50,
            timestep_scaling: 10.0,
            rescale_betas_zero_snr: false,
        }
    }
}

/// The file, before it is checked. Defaults are those of diffusers' `LCMScheduler`, which StreamDiffusion makes of
/// whatever scheduler the folder names.
#[derive(Deserialize)]
struct Raw {
    #[serde(rename = "_class_name")]
    class_name: Option<String>,
    num_train_timesteps: Option<usize>,
    beta_start: Option<f64>,
    beta_end: Option<f64>,
    beta_schedule: Option<String>,
    trained_betas: Option<Vec<f64>>,
    prediction_type: Option<String>,
    original_inference_steps: Option<usize>,
    timestep_scaling: Option<f64>,
    rescale_betas_zero_snr: Option<bool>,
}

impl SchedulerConfig {
    /// Reads and checks `scheduler_config.json` at `path`.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let raw: Raw = read::json(path, read::CONFIG_LIMIT)?;
        let bad = |what: String| Error::invalid(path, what);
        let beta_schedule = match raw.beta_schedule.as_deref() {
            None | Some("scaled_linear") => BetaSchedule::ScaledLinear,
            Some("linear") => BetaSchedule::Linear,
            Some("squaredcos_cap_v2") => BetaSchedule::SquaredcosCapV2,
            Some(other) => {
                return Err(bad(format!(
                    "beta_schedule is {other:?}, expected \"linear\", \"scaled_linear\" or \"squaredcos_cap_v2\""
                )));
            }
        };
        let prediction_type = match raw.prediction_type.as_deref() {
            None | Some("epsilon") => PredictionType::Epsilon,
            Some("v_prediction") => PredictionType::VPrediction,
            Some("sample") => PredictionType::Sample,
            Some(other) => {
                return Err(bad(format!(
                    "prediction_type is {other:?}, expected \"epsilon\", \"v_prediction\" or \"sample\""
                )));
            }
        };
        let config = Self {
            method: match raw.class_name.as_deref() {
                Some("TCDScheduler") => ConsistencyMethod::Tcd,
                _ => ConsistencyMethod::Lcm,
            },
            num_train_timesteps: raw.num_train_timesteps.unwrap_or(1000),
            beta_start: raw.beta_start.unwrap_or(0.00085),
            beta_end: raw.beta_end.unwrap_or(0.012),
            beta_schedule,
            trained_betas: raw.trained_betas,
            prediction_type,
            original_inference_steps: raw.original_inference_steps.unwrap_or(50),
            timestep_scaling: raw.timestep_scaling.unwrap_or(10.0),
            rescale_betas_zero_snr: raw.rescale_betas_zero_snr.unwrap_or(false),
        };
        config.check().map_err(bad)?;
        Ok(config)
    }

    fn check(&self) -> std::result::Result<(), String> {
        let n = self.num_train_timesteps;
        if !(1..=10_000).contains(&n) {
            return Err(format!("num_train_timesteps is {n}, expected 1 to 10000"));
        }
        let beta = |name: &str, b: f64| {
            // Written so that NaN fails too.
            if b > 0.0 && b < 1.0 {
                Ok(())
            } else {
                Err(format!(
                    "{name} is {b}, expected a number between 0 and 1, both excluded"
                ))
            }
        };
        beta("beta_start", self.beta_start)?;
        beta("beta_end", self.beta_end)?;
        if self.beta_end < self.beta_start {
            return Err(format!(
                "beta_end is {}, expected at least beta_start, {}",
                self.beta_end, self.beta_start
            ));
        }
        if let Some(betas) = &self.trained_betas {
            if betas.len() != n {
                return Err(format!(
                    "trained_betas has {} values, expected num_train_timesteps, {n}",
                    betas.len()
                ));
            }
            for b in betas {
                beta("a value of trained_betas", *b)?;
            }
        }
        let m = self.original_inference_steps;
        if !(1..=n).contains(&m) {
            return Err(format!(
                "original_inference_steps is {m}, expected 1 to num_train_timesteps, {n}"
            ));
        }
        let s = self.timestep_scaling;
        if !(s.is_finite() && s > 0.0) {
            return Err(format!(
                "timestep_scaling is {s}, expected a finite number above 0"
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_class_names_the_method() {
        let path = std::env::temp_dir().join(format!("scheduler-{}.json", std::process::id()));
        for (content, method) in [
            (r#"{"_class_name": "TCDScheduler"}"#, ConsistencyMethod::Tcd),
            (r#"{"_class_name": "LCMScheduler"}"#, ConsistencyMethod::Lcm),
            (
                r#"{"_class_name": "EulerDiscreteScheduler"}"#,
                ConsistencyMethod::Lcm,
            ),
            ("{}", ConsistencyMethod::Lcm),
        ] {
            std::fs::write(&path, content).unwrap();
            let config = SchedulerConfig::open(&path);
            std::fs::remove_file(&path).unwrap();
            assert_eq!(config.unwrap().method, method, "{content}");
        }
    }
}
