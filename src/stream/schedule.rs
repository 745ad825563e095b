//! The denoising schedule: plain numbers for each step, computed once per change of the step list.

use crate::error::{Error, Result};
use crate::model::{BetaSchedule, ConsistencyMethod, PredictionType, SchedulerConfig};

/// σ_data of the consistency models' boundary condition (arXiv 2303.01469, appendix C; 2310.04378).
const SIGMA_DATA: f64 = 0.5;

/// Smallest ᾱ a rescaled schedule may end at: "zero terminal SNR" is kept a hair above zero, as diffusers does, so
/// that divisions by √ᾱ stay finite.
const MIN_ALPHA_CUMPROD: f64 = 1.0 / (1u64 << 24) as f64;

/// How a step gets from the predicted clean latent to the next noise level.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Method {
    /// Multistep consistency sampling of latent consistency models (arXiv 2310.04378): each step predicts
    /// the clean latent and noises it afresh.
    Lcm,
    /// Strategic stochastic sampling of trajectory consistency models (arXiv 2402.19159): each step goes
    /// down the trajectory to a level between none and the next one, and up to the next one by noise.
    Tcd {
        /// γ of the paper, 0…1: 0 keeps to the trajectory without any noise, 1 noises a clean latent afresh.
        eta: f64,
    },
}

impl Method {
    /// TCD's `eta` where nobody says another: diffusers' own.
    pub const DEFAULT_ETA: f64 = 0.3;
}

impl From<ConsistencyMethod> for Method {
    fn from(method: ConsistencyMethod) -> Self {
        match method {
            ConsistencyMethod::Lcm => Self::Lcm,
            ConsistencyMethod::Tcd => Self::Tcd {
                eta: Self::DEFAULT_ETA,
            },
        }
    }
}

/// The end of a step: from the noisy latent `x` and the predicted clean latent `x₀` to the next step's noisy latent,
/// `x⁺ = keep·(sample·x + clean·x₀) + noise·ε⁺`, ε⁺ being the next step's noise map.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Transition {
    /// Share of the noisy latent in the estimate.
    pub sample: f64,
    /// Share of the predicted clean latent in the estimate.
    pub clean: f64,
    /// What the next noise level keeps of the estimate.
    pub keep: f64,
    /// Share of the noise map; 0 at the last step.
    pub noise: f64,
}

/// The numbers of one denoising step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Step {
    /// The timestep given to the U-Net, in training steps.
    pub timestep: u32,
    /// √ᾱ: the share of the clean latent in the noisy one.
    pub a: f64,
    /// √(1−ᾱ): the share of noise.
    pub b: f64,
    /// What the U-Net predicts.
    pub prediction: PredictionType,
    /// How it ends when noise is added between steps.
    noisy: Transition,
    /// How it ends when none is.
    quiet: Transition,
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

    /// How it ends, with noise added between steps or without.
    pub fn transition(&self, add_noise: bool) -> &Transition {
        if add_noise { &self.noisy } else { &self.quiet }
    }
}

/// The steps of `t_index_list` on the grid of timesteps that diffusers' `LCMScheduler` and `TCDScheduler` share.
///
/// `t_index_list` holds ascending indices into the `num_inference_steps` timesteps, 0 being the noisiest.
///
/// # Errors
/// [`Error::Setting`] that names `t-index-list`, `num-inference-steps` or `eta`.
pub fn schedule(
    config: &SchedulerConfig,
    method: Method,
    num_inference_steps: usize,
    t_index_list: &[usize],
) -> Result<Vec<Step>> {
    let grid = timesteps(config, num_inference_steps)?;
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
    if let Method::Tcd { eta } = method
        && !(0.0..=1.0).contains(&eta)
    {
        return Err(Error::setting(
            "eta",
            format!("{eta} is out of range; expected 0 to 1"),
        ));
    }
    let chosen = t_index_list
        .iter()
        .map(|&index| {
            grid.get(index).copied().ok_or_else(|| {
                Error::setting(
                    "t-index-list",
                    format!(
                        "index {index} is out of range; expected 0 to {} (num-inference-steps is {num_inference_steps})",
                        num_inference_steps - 1
                    ),
                )
            })
        })
        .collect::<Result<Vec<usize>>>()?;
    let alphas = alphas_cumprod(config);
    let following = chosen.iter().skip(1).map(|&t| Some(t)).chain([None]);
    Ok(chosen
        .iter()
        .zip(following)
        .map(|(&timestep, next)| {
            let (noisy, quiet) = match method {
                Method::Lcm => {
                    let noisy = lcm(config, &alphas, timestep, next);
                    (
                        noisy,
                        Transition {
                            noise: 0.0,
                            ..noisy
                        },
                    )
                }
                Method::Tcd { eta } => (
                    tcd(&alphas, timestep, next, eta),
                    tcd(&alphas, timestep, next, 0.0),
                ),
            };
            Step {
                timestep: timestep as u32,
                a: alphas[timestep].sqrt(),
                b: (1.0 - alphas[timestep]).sqrt(),
                prediction: config.prediction_type,
                noisy,
                quiet,
            }
        })
        .collect())
}

/// The consistency function's boundary condition, `c_out·x₀ + c_skip·x` (arXiv 2310.04378; c_skip = σ²/(s²+σ²),
/// c_out = s/√(s²+σ²), s = timestep scaling · timestep), noised to the next level.
fn lcm(
    config: &SchedulerConfig,
    alphas: &[f64],
    timestep: usize,
    next: Option<usize>,
) -> Transition {
    let s = config.timestep_scaling * timestep as f64;
    let norm = s * s + SIGMA_DATA * SIGMA_DATA;
    let next = next.map_or(1.0, |t| alphas[t]);
    Transition {
        sample: SIGMA_DATA * SIGMA_DATA / norm,
        clean: s / norm.sqrt(),
        keep: next.sqrt(),
        noise: (1.0 - next).sqrt(),
    }
}

/// TCD's step from timestep `t` over `s = ⌊(1−η)·next⌋` to `next`, as diffusers' `TCDScheduler.step` takes it.
///
/// With ε = (x − a·x₀)/b, the noise in x, the latent at `s` is `a_s·x₀ + b_s·ε = (b_s/b)·x + (a_s − a·b_s/b)·x₀`,
/// whatever the U-Net predicts; from there `√(ᾱ_next/ᾱ_s)` is kept and `√(1 − ᾱ_next/ᾱ_s)` of noise added. The last
/// step leads to timestep 0 and adds no noise.
fn tcd(alphas: &[f64], t: usize, next: Option<usize>, eta: f64) -> Transition {
    let goal = next.unwrap_or(0);
    let s = tcd_landing(goal, eta);
    let (a, b) = (alphas[t].sqrt(), (1.0 - alphas[t]).sqrt());
    let (a_s, b_s) = (alphas[s].sqrt(), (1.0 - alphas[s]).sqrt());
    // A level without noise leads only to others without.
    let share = if b > 0.0 { b_s / b } else { 0.0 };
    let kept = alphas[goal] / alphas[s];
    Transition {
        sample: share,
        clean: a_s - a * share,
        keep: kept.sqrt(),
        // Never below 0 but by rounding.
        noise: (1.0 - kept).max(0.0).sqrt(),
    }
}

/// The timestep `⌊(1−η)·goal⌋`. In single precision, because PyTorch's product of a number and a tensor of integers is.
fn tcd_landing(goal: usize, eta: f64) -> usize {
    ((1.0 - eta) as f32 * goal as f32).floor() as usize
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
fn timesteps(config: &SchedulerConfig, num_inference_steps: usize) -> Result<Vec<usize>> {
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
            let step = schedule(&config(), Method::Lcm, 50, &[index]).unwrap()[0];
            assert_eq!(step.timestep, timestep);
            assert!((step.a - a).abs() < 1e-6, "{step:?}");
            assert!((step.b - b).abs() < 1e-6, "{step:?}");
            let Transition { sample, clean, .. } = *step.transition(true);
            assert!((sample / c_skip - 1.0).abs() < 1e-3, "{step:?} {c_skip}");
            assert!((clean - 1.0).abs() < 1e-5);
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
            timesteps(&config, n).unwrap()
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
            let error = schedule(&config(), Method::Lcm, n, list)
                .unwrap_err()
                .to_string();
            assert!(error.contains(property), "{error}");
            assert!(error.contains("expected"), "{error}");
        }
    }

    /// Values of PyTorch; in double precision the second and third would be one lower.
    #[test]
    fn tcd_lands_where_pytorch_rounds() {
        for (eta, goal, landing) in [
            (0.3, 999, 699),
            (0.3, 90, 63),
            (0.8, 5, 1),
            (0.0, 999, 999),
            (1.0, 999, 0),
            (0.3, 0, 0),
        ] {
            assert_eq!(tcd_landing(goal, eta), landing);
        }
    }

    #[test]
    fn eta_has_a_range() {
        for eta in [-0.1, 1.1, f64::NAN] {
            let error = schedule(&config(), Method::Tcd { eta }, 50, &[32, 45]).unwrap_err();
            assert!(error.to_string().contains("property eta"), "{error}");
        }
    }

    /// A repeated index, and a schedule that holds (almost) no noise at its clean end.
    #[test]
    fn tcd_stays_finite() {
        let tiny = SchedulerConfig {
            trained_betas: Some(vec![1e-20; 1000]),
            ..config()
        };
        for config in [config(), tiny] {
            for eta in [0.0, 0.3, 1.0] {
                let steps = schedule(&config, Method::Tcd { eta }, 50, &[32, 32, 49]).unwrap();
                for step in steps {
                    for add_noise in [true, false] {
                        let t = step.transition(add_noise);
                        let numbers = [t.sample, t.clean, t.keep, t.noise];
                        assert!(numbers.iter().all(|n| n.is_finite()), "{step:?}");
                    }
                }
            }
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
        let steps = schedule(&config, Method::Lcm, 50, &[0, 49]).unwrap();
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
