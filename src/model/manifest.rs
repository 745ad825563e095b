//! `streamdiffusion.toml`, optional, beside `model_index.json`: what a model folder says beyond the public layout.

use std::collections::BTreeMap;
use std::path::{Component, Path};

use serde::Deserialize;

use super::read;
use crate::error::{Error, Result};

/// The most bytes of a prompt in a manifest.
const TEXT_LIMIT: usize = 10_000;
/// Sizes in pixels that a manifest may name.
const SIZES: std::ops::RangeInclusive<usize> = 8..=8192;
/// The most LoRAs, files and errors that an export may list.
const LIST_LIMIT: usize = 1000;

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
    /// How the U-Net is used.
    #[serde(default)]
    pub unet: UnetOptions,
    /// How the image encoder is used.
    #[serde(default)]
    pub vae: VaeOptions,
    /// How the folder was made.
    pub export: Option<Export>,
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

/// `[unet]`.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UnetOptions {
    /// The guidance scale, 0…100, that a guidance-distilled U-Net (one with the input `timestep_cond`) is told.
    pub guidance_embedding: Option<f64>,
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

/// `[export]`: how and from what the folder was made. Nothing here changes how it runs, so keys that are not known are
/// left alone.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
pub struct Export {
    /// The tool that wrote the folder.
    pub tool: Option<String>,
    /// That tool's version.
    pub version: Option<String>,
    /// The version of PyTorch it used.
    pub torch: Option<String>,
    /// The version of diffusers it used.
    pub diffusers: Option<String>,
    /// The type of the weights.
    pub dtype: Option<ExportDtype>,
    /// Layers left out at the end of the text encoder, 0…24.
    pub clip_skip: Option<usize>,
    /// The autoencoder: `tiny`, `full`, or the name of the folder it came from.
    pub vae: Option<String>,
    /// The picture size the graphs were exported for.
    pub size: Option<ExportSize>,
    /// The number of rows the U-Net was exported for.
    pub batch: Option<ExportBatch>,
    /// LoRAs fused into the weights.
    #[serde(default)]
    pub loras: Vec<Lora>,
    /// SHA-256 of the folder's files, as 64 hexadecimal digits, by their paths in the folder with `/` between parts.
    #[serde(default)]
    pub files: BTreeMap<String, String>,
    /// The largest absolute difference between each exported component and the one it was made from.
    #[serde(default)]
    pub errors: BTreeMap<String, f64>,
}

/// The type of exported weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ExportDtype {
    /// 16-bit floats.
    F16,
    /// 32-bit floats.
    F32,
}

/// The picture size of an export: `"dynamic"`, or such as `"512x512"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub enum ExportSize {
    /// Any.
    Dynamic,
    /// This width and height in pixels.
    Fixed(usize, usize),
}

impl TryFrom<String> for ExportSize {
    type Error = String;

    fn try_from(text: String) -> std::result::Result<Self, String> {
        let side = |text: &str| text.parse().ok().filter(|side| SIZES.contains(side));
        match text.split_once('x').map(|(w, h)| (side(w), side(h))) {
            _ if text == "dynamic" => Ok(Self::Dynamic),
            Some((Some(width), Some(height))) => Ok(Self::Fixed(width, height)),
            _ => Err(format!(
                "export.size is {text:?}, expected \"dynamic\", or width and height such as \"512x512\""
            )),
        }
    }
}

impl std::fmt::Display for ExportSize {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Dynamic => f.write_str("dynamic"),
            Self::Fixed(width, height) => write!(f, "{width}x{height}"),
        }
    }
}

/// The number of rows of an export: `"dynamic"`, or a number.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
pub enum ExportBatch {
    /// So many.
    Fixed(usize),
    /// Any, where the text is `dynamic`; no other is valid.
    Text(String),
}

/// A LoRA fused into the weights.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Lora {
    /// Its file's name.
    pub file: String,
    /// SHA-256 of that file, as 64 hexadecimal digits.
    pub sha256: String,
    /// The factor it was fused with.
    pub scale: f64,
}

impl Export {
    fn check(&self) -> std::result::Result<(), String> {
        for (key, text) in [
            ("tool", &self.tool),
            ("version", &self.version),
            ("torch", &self.torch),
            ("diffusers", &self.diffusers),
            ("vae", &self.vae),
        ] {
            if text.as_ref().is_some_and(|t| t.len() > 200) {
                return Err(format!("export.{key} is longer than 200 bytes"));
            }
        }
        integer("export.clip_skip", self.clip_skip, 0..=24)?;
        match &self.batch {
            Some(ExportBatch::Fixed(n)) => integer("export.batch", Some(*n), 1..=1024)?,
            Some(ExportBatch::Text(text)) if text != "dynamic" => {
                return Err(format!(
                    "export.batch is {text:?}, expected \"dynamic\" or a number"
                ));
            }
            _ => {}
        }
        for (key, count) in [
            ("loras", self.loras.len()),
            ("files", self.files.len()),
            ("errors", self.errors.len()),
        ] {
            if count > LIST_LIMIT {
                return Err(format!(
                    "export.{key} has {count} entries, expected at most {LIST_LIMIT}"
                ));
            }
        }
        for lora in &self.loras {
            if lora.file.is_empty() || lora.file.len() > 1000 {
                return Err(format!(
                    "export.loras: a file's name has {} bytes, expected 1 to 1000",
                    lora.file.len()
                ));
            }
            hash(
                &format!("export.loras: sha256 of {:?}", lora.file),
                &lora.sha256,
            )?;
            if !lora.scale.is_finite() {
                return Err(format!(
                    "export.loras: scale of {:?} is {}, expected a finite number",
                    lora.file, lora.scale
                ));
            }
        }
        for (file, sha256) in &self.files {
            let inside = |part| matches!(part, Component::Normal(_));
            if file.is_empty() || file.len() > 1000 || !Path::new(file).components().all(inside) {
                return Err(format!(
                    "export.files names {file:?}, expected a path inside the folder, without \"..\""
                ));
            }
            hash(&format!("export.files: {file:?}"), sha256)?;
        }
        for (component, error) in &self.errors {
            if component.len() > 200 {
                return Err("export.errors: a component's name is longer than 200 bytes".into());
            }
            if !(error.is_finite() && *error >= 0.0) {
                return Err(format!(
                    "export.errors: {component} is {error}, expected a finite number of 0 or more"
                ));
            }
        }
        Ok(())
    }
}

/// Checks a SHA-256 in hexadecimal digits.
fn hash(key: &str, text: &str) -> std::result::Result<(), String> {
    if text.len() == 64 && text.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Ok(());
    }
    let shown: String = text.chars().take(80).collect();
    Err(format!(
        "{key} is {shown:?}, expected 64 hexadecimal digits"
    ))
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
            // C programs, which GStreamer's are, would see half of it.
            if text.as_ref().is_some_and(|t| t.contains('\0')) {
                return Err(format!("{key} has a null character in it"));
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
        real(
            "unet.guidance_embedding",
            self.unet.guidance_embedding,
            0.0,
            100.0,
        )?;
        if let Some(export) = &self.export {
            export.check()?;
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
