//! `model_index.json`: which kind of pipeline a folder holds.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::component::{Component, Layer};
use super::read;
use crate::error::{Error, Result};

/// The pipelines that are supported, by what their U-Net wants to know of the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Family {
    /// Stable Diffusion 1 and 2, latent consistency models: one text encoder.
    StableDiffusion,
    /// Stable Diffusion XL: two.
    StableDiffusionXl,
}

impl Family {
    /// Its text encoders, the folders of their tokenizers, and which layer's output is used.
    pub fn text_encoders(self) -> &'static [(Component, &'static str, Layer)] {
        match self {
            Self::StableDiffusion => &[(Component::TextEncoder, "tokenizer", Layer::Last)],
            Self::StableDiffusionXl => &[
                (Component::TextEncoder, "tokenizer", Layer::Penultimate),
                (
                    Component::TextEncoder2,
                    "tokenizer_2",
                    Layer::PenultimateAndPooled,
                ),
            ],
        }
    }
}

/// A `model_index.json`, of whatever pipeline.
#[derive(Debug)]
pub(super) struct Index {
    path: PathBuf,
    entries: Map<String, Value>,
}

impl Index {
    /// Reads the file at `path`.
    pub fn open(path: &Path) -> Result<Self> {
        if !path.exists() {
            return Err(Error::not_found(
                path,
                "no such file, expected in every model folder (as Optimum writes it)",
            ));
        }
        Ok(Self {
            path: path.to_owned(),
            entries: read::json(path, read::CONFIG_LIMIT)?,
        })
    }

    /// The class of the pipeline that it names.
    pub fn class(&self) -> Option<&str> {
        self.entries.get("_class_name").and_then(Value::as_str)
    }

    /// Checks that it names a pipeline of a supported family and no component beyond it. Also gives what it says of empty
    /// negative prompts.
    pub fn check(&self) -> Result<(Family, bool)> {
        let path = &self.path;
        let class = self
            .class()
            .ok_or_else(|| Error::invalid(path, "expected the pipeline's name at _class_name"))?;
        let name = class
            .strip_prefix("Onnx")
            .or(class.strip_prefix("ORT"))
            .unwrap_or(class);
        let family = if name.starts_with("StableDiffusionXL") {
            Some(Family::StableDiffusionXl)
        } else if name.starts_with("StableDiffusion3") {
            None
        } else if name.starts_with("StableDiffusion") || name.starts_with("LatentConsistencyModel")
        {
            Some(Family::StableDiffusion)
        } else {
            None
        };
        let Some(family) = family else {
            return Err(Error::invalid(
                path,
                format!(
                    "unsupported: _class_name is {class:?}, expected a StableDiffusion…, StableDiffusionXL… or LatentConsistencyModel… pipeline"
                ),
            ));
        };
        let known = [
            "scheduler",
            "text_encoder",
            "tokenizer",
            "unet",
            "vae",
            "vae_encoder",
            "vae_decoder",
            "safety_checker",
            "feature_extractor",
            "image_encoder",
        ];
        let second = ["text_encoder_2", "tokenizer_2"];
        // A component is a pair of library and class; [null, null] says that the pipeline goes without it.
        let has = |value: &Value| {
            value
                .as_array()
                .is_some_and(|pair| pair.iter().any(|v| !v.is_null()))
        };
        for (key, value) in &self.entries {
            let of_xl = family == Family::StableDiffusionXl && second.contains(&key.as_str());
            if has(value) && !known.contains(&key.as_str()) && !of_xl {
                return Err(Error::invalid(
                    path,
                    format!("unsupported: it names the component {key:?}"),
                ));
            }
        }
        // The refiner, which restyles what the base model made, has no first text encoder.
        if family == Family::StableDiffusionXl
            && self.entries.get("text_encoder").is_some_and(|v| !has(v))
        {
            return Err(Error::invalid(
                path,
                "unsupported: it has no text_encoder, as the refiner of Stable Diffusion XL; expected a base model",
            ));
        }
        let zeros = self.entries.get("force_zeros_for_empty_prompt");
        let zero_negative =
            family == Family::StableDiffusionXl && zeros == Some(&Value::Bool(true));
        Ok((family, zero_negative))
    }
}
