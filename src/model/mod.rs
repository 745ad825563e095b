//! Model folders: the layout that Optimum and diffusers' ONNX export write, read with care.
//!
//! A folder is untrusted input. [`ModelFolder::open`] checks everything that can be checked without running a graph
//! (layout, configurations, graph headers, the files they point to, the tokenizer), reads no weights, and says which
//! file is at fault and what was expected.

mod assemble;
mod component;
mod fit;
mod fuse;
mod graph;
mod index;
mod inspection;
mod manifest;
pub mod mix;
mod parts;
pub mod prompt;
mod read;
mod scan;
mod scheduler;
mod split;
mod tokenizer;
mod weights;
mod wire;
mod write;

use std::path::{Path, PathBuf};

pub use component::{Component, ComponentFile, Config, Role, SIZE_IDS};
use fit::Fit;
pub use fuse::{Counts, Fused, Fusions};
pub use graph::{Dtype, Graph, Port};
pub use inspection::Inspection;
pub use manifest::{
    Defaults, Export, ExportBatch, ExportDtype, ExportSize, Lora, Manifest, ManifestLimits,
    Posterior, UnetOptions, VaeOptions,
};
use parts::{Parts, TextParts};
pub use prompt::weigh;
pub use scheduler::{BetaSchedule, ConsistencyMethod, PredictionType, SchedulerConfig};
pub use split::{Boundary, Split, TensorType};
pub use tokenizer::{Chunk, Tokenizer};
pub use weights::Weights;

use crate::error::{Error, Result};

/// Latent scaling of Stable Diffusion 1 and 2, for folders without VAE configurations.
const SCALING_FACTOR: f64 = 0.18215;

/// A text encoder and the tokenizer that goes with it.
#[derive(Debug)]
pub struct TextEncoder {
    /// The graph.
    pub file: ComponentFile,
    /// What makes its token ids.
    pub tokenizer: Tokenizer,
}

/// A model folder, opened and checked.
#[derive(Debug)]
pub struct ModelFolder {
    path: PathBuf,
    scheduler: SchedulerConfig,
    manifest: Manifest,
    text_encoders: Vec<TextEncoder>,
    unet: ComponentFile,
    vae_encoder: ComponentFile,
    vae_decoder: ComponentFile,
    fit: Fit,
    zero_negative: bool,
}

impl ModelFolder {
    /// Opens the model folder at `path`. Takes milliseconds, large tokenizers some hundred more, and little
    /// memory, whatever the size of the weights.
    ///
    /// # Errors
    /// The first thing that is wrong with it; [`Inspection`] lists all.
    pub fn open(path: &Path) -> Result<Self> {
        let parts = Parts::open(path, &mut Err)?;
        // Whatever is missing from them has ended the search.
        let whole = Self::assemble(path, parts);
        whole.unwrap_or_else(|| Err(Error::invalid(path, "has parts that cannot be opened")))
    }

    /// The folder that `parts` make up, or why they do not fit together; `None` if one is missing.
    fn assemble(path: &Path, parts: Parts) -> Option<Result<Self>> {
        let (_, zero_negative) = parts.family?;
        let (scheduler, manifest) = (parts.scheduler?, parts.manifest?);
        let text_encoder = |text: TextParts| {
            Some(TextEncoder {
                file: text.file?,
                tokenizer: text.tokenizer?,
            })
        };
        let texts = parts.texts.into_iter().map(text_encoder);
        let text_encoders = texts.collect::<Option<Vec<_>>>()?;
        let (unet, vae_encoder, vae_decoder) =
            (parts.unet?, parts.vae_encoder?, parts.vae_decoder?);
        let fit = Fit::of(&text_encoders, &unet, &vae_encoder, &vae_decoder);
        Some(fit.map(|fit| Self {
            path: path.to_owned(),
            scheduler,
            manifest,
            text_encoders,
            unet,
            vae_encoder,
            vae_decoder,
            fit,
            zero_negative,
        }))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What to call it: the manifest's name, else the folder's.
    pub fn name(&self) -> String {
        match (&self.manifest.name, self.path.file_name()) {
            (Some(name), _) => name.clone(),
            (None, Some(name)) => name.to_string_lossy().into_owned(),
            (None, None) => self.path.display().to_string(),
        }
    }

    /// The numbers of its noise schedule.
    pub fn scheduler(&self) -> &SchedulerConfig {
        &self.scheduler
    }

    /// Its manifest; an empty one where it has none.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Its text encoders, one or two.
    pub fn text_encoders(&self) -> &[TextEncoder] {
        &self.text_encoders
    }

    /// Its U-Net.
    pub fn unet(&self) -> &ComponentFile {
        &self.unet
    }

    /// Its image encoder.
    pub fn vae_encoder(&self) -> &ComponentFile {
        &self.vae_encoder
    }

    /// Its image decoder.
    pub fn vae_decoder(&self) -> &ComponentFile {
        &self.vae_decoder
    }

    /// All its components, in the order of [`Component::ALL`].
    pub fn components(&self) -> impl Iterator<Item = &ComponentFile> {
        let text_encoders = self.text_encoders.iter().map(|encoder| &encoder.file);
        text_encoders.chain([&self.unet, &self.vae_encoder, &self.vae_decoder])
    }

    /// What latents of the VAE, less the [shift](Self::shift_factor), are multiplied with for the U-Net.
    pub fn scaling_factor(&self) -> f64 {
        self.vae(|config| config.scaling_factor)
            .unwrap_or(SCALING_FACTOR)
    }

    /// What is subtracted from latents of the VAE before they are scaled.
    pub fn shift_factor(&self) -> f64 {
        self.vae(|config| config.shift_factor).unwrap_or(0.0)
    }

    /// What the image autoencoder's configurations say. Latents go encoder → U-Net → decoder, so one number serves both
    /// ways.
    fn vae(&self, get: fn(&Config) -> Option<f64>) -> Option<f64> {
        get(&self.vae_decoder.config).or(get(&self.vae_encoder.config))
    }

    /// Channels of a latent.
    pub fn latent_channels(&self) -> usize {
        self.fit.latent_channels
    }

    /// Pixels per latent sample, each way.
    pub fn latent_scale(&self) -> usize {
        self.fit.latent_scale
    }

    /// Whether the image encoder gives mean and logarithm of variance, 2·C channels, instead of a latent.
    pub fn gives_posterior(&self) -> bool {
        self.fit.gives_posterior
    }

    /// Whether latents are to be sampled from what the image encoder gives.
    pub fn samples_posterior(&self) -> bool {
        self.fit.gives_posterior && self.manifest.vae.posterior == Posterior::Sample
    }

    /// How many chunks of the text encoders' length the U-Net takes, where it fixes that.
    pub fn chunks(&self) -> Option<usize> {
        let fixed = self.unet.input(Role::Text).and_then(|port| port.fixed(1));
        fixed.map(|tokens| tokens / self.text_encoders[0].tokenizer.length())
    }

    /// Whether the model was trained with embeddings of zeros, not of the empty text, where there is no text.
    pub fn zero_negative(&self) -> bool {
        self.zero_negative
    }

    /// Width and height in pixels must be multiples of this.
    pub fn multiple(&self) -> usize {
        let halvings = fit::blocks(&self.unet) - 1;
        self.manifest
            .limits
            .multiple
            .unwrap_or(self.fit.latent_scale << halvings)
    }

    /// The only `(width, height)` in pixels that the graphs take, where they fix it.
    pub fn fixed_size(&self) -> Option<(usize, usize)> {
        self.fit.fixed_size
    }
}
