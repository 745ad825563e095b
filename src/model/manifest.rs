//! `streamdiffusion.toml`, optional, beside `model_index.json`: what a model folder says beyond the public layout.

use std::path::Path;

use serde::Deserialize;

use super::read;
use crate::error::{Error, Result};

/// The most bytes of a prompt in a manifest.
const TEXT_LIMIT: usize = 10_000;
/// Sizes in pixels that a manifest may name.
const SIZES: std::ops::RangeInclusive<usize> = 8..=8192;

/// Everything in `streamdiffusion.toml`; all of it optional.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Display name of the model.
    pub name: Option<String>,
    /// Licence of the weights.
    pub license: Option<String>,
    /// Where the weights come from.
    pub source: Option<String>,
    /// Property values that suit the model.
    #[serde(default)]
    pub defaults: Defaults,
    /// Limits the graphs do not tell.
    #[serde(default)]
    pub limits: ManifestLimits,
    /// How the image encoder is used.
    #[serde(default)]
    pub vae: VaeOptions,
}

/// `[defaults]`: values for properties the user leaves alone.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Defaults {
    /// Text to draw.
    pub prompt: Option<String>,
    /// Text to avoid.
    pub negative_prompt: Option<String>,
    /// Denoising steps, 1…8.
    pub steps: Option<usize>,
    /// How far a picture is changed, in (0, 1].
    pub strength: Option<f64>,
    /// Exact steps: ascending indices into the timesteps, below `num_inference_steps`.
    pub t_index_list: Option<Vec<usize>>,
    /// Length of the list of timesteps, 1…1000.
    pub num_inference_steps: Option<usize>,
    /// Guidance scale, 0…100.
    pub guidance_scale: Option<f64>,
    /// Strength of the residual noise in guidance, 0…10.
    pub delta: Option<f64>,
    /// Guidance mode: `none`, `full`, `self` or `initialize`.
    pub cfg_type: Option<String>,
    /// Processing area is `size`² pixels, the picture's aspect kept.
    pub size: Option<usize>,
    /// Processing width in pixels.
    pub width: Option<usize>,
    /// Processing height in pixels.
    pub height: Option<usize>,
}

/// `[limits]`.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ManifestLimits {
    /// Processing width and height must be multiples of this many pixels.
    pub multiple: Option<usize>,
}

/// `[vae]`.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VaeOptions {
    /// What is taken of the image encoder's distribution, where it gives one.
    #[serde(default)]
    pub posterior: Posterior,
}

/// What is taken of an image encoder's distribution.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Posterior {
    /// Its mean: the same picture gives the same latent.
    #[default]
    Mean,
    /// A sample, as the published code draws for every frame.
    Sample,
}

impl Manifest {
    /// Reads and checks the manifest at `path`; an empty one where there is no such file.
    pub(super) fn open(path: &Path) -> Result<Self> {
        if !path.exists() {
            return Ok(Self::default());
        }
        let text = read::text(path, read::CONFIG_LIMIT)?;
        let manifest: Self = toml::from_str(&text).map_err(|e| {
            Error::invalid(path, format!("not the manifest that was expected: {e}"))
        })?;
        manifest
            .check()
            .map_err(|what| Error::invalid(path, what))?;
        Ok(manifest)
    }

    fn check(&self) -> std::result::Result<(), String> {
        let d = &self.defaults;
        for (key, text, limit) in [
            ("name", &self.name, 200),
            ("license", &self.license, 200),
            ("source", &self.source, 2000),
            ("defaults.prompt", &d.prompt, TEXT_LIMIT),
            ("defaults.negative_prompt", &d.negative_prompt, TEXT_LIMIT),
        ] {
            if text.as_ref().is_some_and(|t| t.len() > limit) {
                return Err(format!("{key} is longer than {limit} bytes"));
            }
        }
        integer("defaults.steps", d.steps, 1..=8)?;
        integer(
            "defaults.num_inference_steps",
            d.num_inference_steps,
            1..=1000,
        )?;
        integer("defaults.size", d.size, SIZES)?;
        integer("defaults.width", d.width, SIZES)?;
        integer("defaults.height", d.height, SIZES)?;
        integer("limits.multiple", self.limits.multiple, 1..=1024)?;
        real("defaults.strength", d.strength, f64::MIN_POSITIVE, 1.0)?;
        real("defaults.guidance_scale", d.guidance_scale, 0.0, 100.0)?;
        real("defaults.delta", d.delta, 0.0, 10.0)?;
        if let Some(t) = &d.cfg_type
            && !["none", "full", "self", "initialize"].contains(&t.as_str())
        {
            return Err(format!(
                "defaults.cfg_type is {t:?}, expected \"none\", \"full\", \"self\" or \"initialize\""
            ));
        }
        if let Some(list) = &d.t_index_list {
            let end = d.num_inference_steps.unwrap_or(50);
            if list.is_empty()
                || list.windows(2).any(|w| w[0] >= w[1])
                || list.iter().any(|i| *i >= end)
            {
                return Err(format!(
                    "defaults.t_index_list is {list:?}, expected ascending indices below num_inference_steps, {end}"
                ));
            }
        }
        if d.width.is_some() != d.height.is_some() {
            return Err("defaults.width and defaults.height are expected together".into());
        }
        Ok(())
    }
}

fn integer(
    key: &str,
    value: Option<usize>,
    range: std::ops::RangeInclusive<usize>,
) -> std::result::Result<(), String> {
    match value {
        Some(v) if !range.contains(&v) => Err(format!(
            "{key} is {v}, expected {} to {}",
            range.start(),
            range.end()
        )),
        _ => Ok(()),
    }
}

fn real(key: &str, value: Option<f64>, min: f64, max: f64) -> std::result::Result<(), String> {
    match value {
        // `contains` is false for NaN.
        Some(v) if !(min..=max).contains(&v) => {
            let min = if min == f64::MIN_POSITIVE {
                "above 0".to_owned()
            } else {
                format!("{min}")
            };
            Err(format!("{key} is {v}, expected {min} to {max}"))
        }
        _ => Ok(()),
    }
}
