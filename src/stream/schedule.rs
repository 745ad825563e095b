//! The denoising schedule: plain numbers for each step, computed once per change of the step list.

use crate::error::{Error, Result};
use crate::model::{BetaSchedule, PredictionType, SchedulerConfig};

/// σ_data of the consistency models' boundary condition (arXiv 2303.01469, appendix C; 2310.04378).
const SIGMA_DATA: f64 = 0.5;

/// Smallest ᾱ a rescaled schedule may end at: "zero terminal SNR" is kept a hair above zero, as diffusers does, so
/// that divisions by √ᾱ stay finite.
const MIN_ALPHA_CUMPROD: f64 = 1.0 / (1u64 << 24) as f64;

/// The numbers of one denoising step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Step {
    /// The timestep given to the U-Net, in training steps.
    pub timestep: u32,
    /// √ᾱ: the share of the clean latent in the noisy one.
    pub a: f64,
    /// √(1−ᾱ): the share of noise.
    pub b: f64,
    /// Consistency boundary: share of the noisy latent kept, σ²/(s²+σ²).
    pub c_skip: f64,
    /// Consistency boundary: share of the predicted clean latent, s/√(s²+σ²), with s = timestep scaling · timestep.
    pub c_out: f64,
    /// What the U-Net predicts.
    pub prediction: PredictionType,
}

impl Step {
    /// `(p, q)` such that the predicted clean latent is `p·x + q·model_output`.
    pub fn clean(&self) -> (f64, f64) {
        match self.prediction {
            PredictionType::Epsilon => (1.0 / self.a, -self.b / self.a),
            PredictionType::VPrediction => (self.a, -self.b),
            PredictionType::Sample => (0.0, 1.0),
        }
    }
}

/// The steps of `t_index_list`: LCM's grid of timesteps, as diffusers' `LCMScheduler.set_timesteps` makes it.
///
/// `t_index_list` holds ascending indices into the `num_inference_steps` timesteps, 0 being the noisiest.
pub fn schedule(
    config: &SchedulerConfig,
    num_inference_steps: usize,
    t_index_list: &[usize],
) -> Result<Vec<Step>> {
    let timesteps = lcm_timesteps(config, num_inference_steps)?;
    if t_index_list.is_empty() {
        return Err(Error::setting(
            "t-index-list",
            "is empty; expected at least one index",
        ));
    }
    if let Some(pair) = t_index_list.windows(2).find(|pair| pair[0] > pair[1]) {
        return Err(Error::setting(
            "t-index-list",
            format!(
                "{} comes after {}; expected ascending indices (noisiest step first)",
                pair[1], pair[0]
            ),
        ));
    }
    let alphas_cumprod = alphas_cumprod(config);
    t_index_list
        .iter()
        .map(|&index| {
            let &timestep = timesteps.get(index).ok_or_else(|| {
                Error::setting(
                    "t-index-list",
                    format!(
                        "index {index} is out of range; expected 0 to {} (num-inference-steps is {num_inference_steps})",
                        num_inference_steps - 1
                    ),
                )
            })?;
            let alpha = alphas_cumprod[timestep];
            let s = config.timestep_scaling * timestep as f64;
            let norm = s * s + SIGMA_DATA * SIGMA_DATA;
            Ok(Step {
                timestep: timestep as u32,
                a: alpha.sqrt(),
                b: (1.0 - alpha).sqrt(),
                c_skip: SIGMA_DATA * SIGMA_DATA / norm,
                c_out: s / norm.sqrt(),
                prediction: config.prediction_type,
            })
        })
        .collect()
}

/// The indices that `steps` and `strength` stand for: the first one is the share `1 − strength` of the way down the
/// noise levels, the others follow evenly.
///
/// `steps` ≥ 1, 0 < `strength` ≤ 1; with fewer noise levels left than steps, the last ones repeat.
pub fn spread_indices(steps: usize, strength: f64, num_inference_steps: usize) -> Vec<usize> {
    let last = num_inference_steps.saturating_sub(1);
    let first = ((num_inference_steps as f64 * (1.0 - strength)).round() as usize).min(last);
    (0..steps)
        .map(|step| first + step * (num_inference_steps - first) / steps)
        .collect()
}

/// The descending timesteps of `num_inference_steps` steps, picked evenly from the teacher's grid.
fn lcm_timesteps(config: &SchedulerConfig, num_inference_steps: usize) -> Result<Vec<usize>> {
    let original = config.original_inference_steps;
    if num_inference_steps == 0 || num_inference_steps > original {
        return Err(Error::setting(
            "num-inference-steps",
            format!(
                "{num_inference_steps} is out of range; expected 1 to {original} (the model's original_inference_steps)"
            ),
        ));
    }
    let spacing = config.num_train_timesteps / original;
    let descending: Vec<usize> = (1..=original).rev().map(|i| i * spacing - 1).collect();
    // In floating point and rounded down, because numpy's linspace is.
    let stride = original as f64 / num_inference_steps as f64;
    Ok((0..num_inference_steps)
        .map(|i| descending[(i as f64 * stride).floor() as usize])
        .collect())
}

/// ᾱ of every training step.
fn alphas_cumprod(config: &SchedulerConfig) -> Vec<f64> {
    let mut product = 1.0;
    let mut cumulative: Vec<f64> = betas(config)
        .iter()
        .map(|beta| {
            product *= 1.0 - beta;
            product
        })
        .collect();
    if config.rescale_betas_zero_snr {
        rescale_zero_terminal_snr(&mut cumulative);
    }
    cumulative
}

fn betas(config: &SchedulerConfig) -> Vec<f64> {
    if let Some(betas) = &config.trained_betas {
        return betas.clone();
    }
    let n = config.num_train_timesteps;
    let linspace = |from: f64, to: f64| {
        let stride = (to - from) / (n.max(2) - 1) as f64;
        (0..n).map(move |i| from + i as f64 * stride)
    };
    match config.beta_schedule {
        BetaSchedule::Linear => linspace(config.beta_start, config.beta_end).collect(),
        BetaSchedule::ScaledLinear => linspace(config.beta_start.sqrt(), config.beta_end.sqrt())
            .map(|root| root * root)
            .collect(),
        // Nichol & Dhariwal 2021 (arXiv 2102.09672), eq. 17, with their cap.
        BetaSchedule::SquaredcosCapV2 => {
            let alpha_bar = |t: f64| {
                ((t + 0.008) / 1.008 * std::f64::consts::FRAC_PI_2)
                    .cos()
                    .powi(2)
            };
            (0..n)
                .map(|i| {
                    let (from, to) = (i as f64 / n as f64, (i + 1) as f64 / n as f64);
                    (1.0 - alpha_bar(to) / alpha_bar(from)).min(0.999)
                })
                .collect()
        }
    }
}

/// Shifts and scales √ᾱ so that the last step holds (almost) no signal: Lin et al. 2023 (arXiv 2305.08891), algorithm 1.
fn rescale_zero_terminal_snr(cumulative: &mut [f64]) {
    let (Some(first), Some(last)) = (cumulative.first(), cumulative.last()) else {
        return;
    };
    let (first, last) = (first.sqrt(), last.sqrt());
    for alpha in cumulative {
        let root = (alpha.sqrt() - last) * first / (first - last);
        *alpha = (root * root).max(MIN_ALPHA_CUMPROD);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> SchedulerConfig {
        SchedulerConfig::default()
    }

    /// The reference table of the published pipeline (float32, so 1e-6).
    #[test]
    fn stable_diffusion_table() {
        let expected = [
            (0, 999, 0.06826485, 0.99766725, 2.505e-9),
            (12, 759, 0.22850133, 0.97354358, 4.340e-9),
            (22, 559, 0.45130080, 0.89237189, 8.001e-9),
            (32, 359, 0.70107073, 0.71309179, 1.940e-8),
            (45, 99, 0.94628882, 0.32332256, 2.551e-7),
            (49, 19, 0.99108225, 0.13325159, 6.925e-6),
        ];
        for (index, timestep, a, b, c_skip) in expected {
            let step = schedule(&config(), 50, &[index]).unwrap()[0];
            assert_eq!(step.timestep, timestep);
            assert!((step.a - a).abs() < 1e-6, "{step:?}");
            assert!((step.b - b).abs() < 1e-6, "{step:?}");
            assert!(
                (step.c_skip / c_skip - 1.0).abs() < 1e-3,
                "{step:?} {c_skip}"
            );
            assert!((step.c_out - 1.0).abs() < 1e-5);
        }
    }

    /// Values printed by diffusers' `LCMScheduler` for these settings.
    #[test]
    fn grids_that_do_not_divide() {
        let grid = |original, n| {
            let config = SchedulerConfig {
                original_inference_steps: original,
                ..config()
            };
            lcm_timesteps(&config, n).unwrap()
        };
        assert_eq!(grid(50, 30)[..4], [999, 979, 939, 899]);
        assert_eq!(grid(100, 30)[..4], [999, 969, 939, 899]);
        assert_eq!(grid(50, 4), [999, 759, 499, 259]);
        assert_eq!(grid(100, 4), [999, 749, 499, 249]);
    }

    #[test]
    fn bad_lists_name_the_property() {
        for (n, list, property) in [
            (50, &[50][..], "t-index-list"),
            (50, &[45, 32], "t-index-list"),
            (50, &[], "t-index-list"),
            (51, &[1], "num-inference-steps"),
            (0, &[0], "num-inference-steps"),
        ] {
            let error = schedule(&config(), n, list).unwrap_err().to_string();
            assert!(error.contains(property), "{error}");
            assert!(error.contains("expected"), "{error}");
        }
    }

    #[test]
    fn strength_picks_the_first_index() {
        assert_eq!(spread_indices(1, 0.3, 50), [35]);
        assert_eq!(spread_indices(2, 0.36, 50), [32, 41]);
        assert_eq!(spread_indices(4, 1.0, 50), [0, 12, 25, 37]);
        assert_eq!(spread_indices(3, 0.0, 50), [49, 49, 49]);
        assert_eq!(spread_indices(2, 0.5, 1), [0, 0]);
    }

    #[test]
    fn zero_terminal_snr_stays_finite() {
        let config = SchedulerConfig {
            rescale_betas_zero_snr: true,
            prediction_type: PredictionType::VPrediction,
            ..config()
        };
        let steps = schedule(&config, 50, &[0, 49]).unwrap();
        assert!(steps[0].a > 0.0 && steps[0].a < 1e-3);
        assert_eq!(steps[0].clean(), (steps[0].a, -steps[0].b));
        assert!(steps[1].a > 0.99);
    }

    /// First and last values of diffusers' `betas_for_alpha_bar(1000)`, in its own float64 arithmetic.
    #[test]
    fn cosine_betas() {
        let config = SchedulerConfig {
            beta_schedule: BetaSchedule::SquaredcosCapV2,
            ..config()
        };
        let betas = betas(&config);
        assert!((betas[0] - 4.128422482e-5).abs() < 1e-12, "{}", betas[0]);
        assert_eq!(betas[999], 0.999);
    }
}
