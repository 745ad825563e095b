//! Model folders: the layout that Optimum and diffusers' ONNX export write, read with care.
//!
//! A folder is untrusted input. [`ModelFolder::open`] checks everything that can be checked without running a graph
//! (layout, configurations, graph headers, the files they point to, the tokenizer), reads no weights, and says which
//! file is at fault and what was expected.

mod component;
mod graph;
mod index;
mod inspection;
mod manifest;
pub mod prompt;
mod read;
mod scheduler;
mod split;
mod tokenizer;
mod weights;
mod wire;

use std::path::{Path, PathBuf};

use component::Layer;
pub use component::{Component, ComponentFile, Config, Role, SIZE_IDS};
pub use graph::{Dtype, Graph, Port};
use index::{Family, check_index};
pub use inspection::Inspection;
pub use manifest::{
    Defaults, Export, ExportBatch, ExportDtype, ExportSize, Lora, Manifest, ManifestLimits,
    Posterior, UnetOptions, VaeOptions,
};
pub use prompt::weigh;
pub use scheduler::{BetaSchedule, ConsistencyMethod, PredictionType, SchedulerConfig};
pub use split::{Boundary, Split, TensorType};
pub use tokenizer::{Chunk, Tokenizer};
pub use weights::Weights;

use crate::error::{Error, Result};

/// Latent scaling of Stable Diffusion 1 and 2, for folders without VAE configurations.
const SCALING_FACTOR: f64 = 0.18215;
/// Blocks of Stable Diffusion's U-Net and VAE, for folders without configurations.
const BLOCKS: usize = 4;

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
    scaling_factor: f64,
    shift_factor: f64,
    latent_channels: usize,
    latent_scale: usize,
    gives_posterior: bool,
    fixed_size: Option<(usize, usize)>,
    zero_negative: bool,
}

impl ModelFolder {
    /// Opens the model folder at `path`. Takes milliseconds and little memory, whatever the size of the weights.
    pub fn open(path: &Path) -> Result<Self> {
        match std::fs::metadata(path) {
            Ok(meta) if meta.is_dir() => {}
            Ok(_) => {
                let hint = match read::holds_weights(path) {
                    true => "; a checkpoint or LoRA becomes one by tools/export_model.py",
                    false => "",
                };
                return Err(Error::invalid(
                    path,
                    format!("expected a model folder, found a file{hint}"),
                ));
            }
            Err(e) => {
                return Err(Error::not_found(
                    path,
                    format!("cannot be opened: {e}; expected a model folder"),
                ));
            }
        }
        let index = path.join("model_index.json");
        if !index.exists() {
            return Err(Error::not_found(
                &index,
                "no such file, expected in every model folder (as Optimum writes it)",
            ));
        }
        let (family, zero_negative) = check_index(&index)?;
        let manifest = Manifest::open(&path.join("streamdiffusion.toml"))?;
        let scheduler = SchedulerConfig::open(&path.join("scheduler/scheduler_config.json"))?;
        let text_encoders = family
            .text_encoders()
            .iter()
            .map(|(component, tokenizer, layer)| {
                TextEncoder::open(path, *component, tokenizer, *layer)
            })
            .collect::<Result<Vec<_>>>()?;
        let open = |component| ComponentFile::open(path, component, Layer::Last);
        let unet = open(Component::Unet)?;
        let encoder = open(Component::VaeEncoder)?;
        let decoder = open(Component::VaeDecoder)?;
        check_text(&text_encoders, &unet)?;

        let latent_channels = latent_channels(&unet, &encoder, &decoder)?;
        let gives_posterior = match encoder.output.fixed(1) {
            Some(c) if c == latent_channels => false,
            Some(c) if c == 2 * latent_channels => true,
            Some(c) => {
                return Err(Error::invalid(
                    &encoder.path,
                    format!(
                        "its output {} has {c} channels, expected {latent_channels} or, for mean and variance, {}",
                        encoder.output,
                        2 * latent_channels
                    ),
                ));
            }
            None => encoder.output.name == "latent_parameters",
        };
        let blocks = |file: &ComponentFile| {
            file.config
                .block_out_channels
                .as_ref()
                .map_or(BLOCKS, Vec::len)
        };
        if blocks(&encoder) != blocks(&decoder) {
            return Err(Error::invalid(
                &decoder.path.with_file_name("config.json"),
                format!(
                    "block_out_channels has {} values, expected {}, as vae_encoder's",
                    blocks(&decoder),
                    blocks(&encoder)
                ),
            ));
        }
        let latent_scale = 1 << (blocks(&encoder) - 1);
        let fixed_size = fixed_size([&unet, &encoder, &decoder], latent_scale)?;
        // Latents go encoder → U-Net → decoder, so one pair of numbers serves both ways.
        let vae = |get: fn(&Config) -> Option<f64>| get(&decoder.config).or(get(&encoder.config));
        Ok(Self {
            scaling_factor: vae(|c| c.scaling_factor).unwrap_or(SCALING_FACTOR),
            shift_factor: vae(|c| c.shift_factor).unwrap_or(0.0),
            path: path.to_owned(),
            scheduler,
            manifest,
            text_encoders,
            unet,
            vae_encoder: encoder,
            vae_decoder: decoder,
            latent_channels,
            latent_scale,
            gives_posterior,
            fixed_size,
            zero_negative,
        })
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
        self.scaling_factor
    }

    /// What is subtracted from latents of the VAE before they are scaled.
    pub fn shift_factor(&self) -> f64 {
        self.shift_factor
    }

    /// Channels of a latent.
    pub fn latent_channels(&self) -> usize {
        self.latent_channels
    }

    /// Pixels per latent sample, each way.
    pub fn latent_scale(&self) -> usize {
        self.latent_scale
    }

    /// Whether the image encoder gives mean and logarithm of variance, 2·C channels, instead of a latent.
    pub fn gives_posterior(&self) -> bool {
        self.gives_posterior
    }

    /// Whether latents are to be sampled from what the image encoder gives.
    pub fn samples_posterior(&self) -> bool {
        self.gives_posterior && self.manifest.vae.posterior == Posterior::Sample
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
        let halvings = self
            .unet
            .config
            .block_out_channels
            .as_ref()
            .map_or(BLOCKS, Vec::len)
            - 1;
        self.manifest
            .limits
            .multiple
            .unwrap_or(self.latent_scale << halvings)
    }

    /// The only `(width, height)` in pixels that the graphs take, where they fix it.
    pub fn fixed_size(&self) -> Option<(usize, usize)> {
        self.fixed_size
    }
}

impl TextEncoder {
    fn open(path: &Path, component: Component, tokenizer: &str, layer: Layer) -> Result<Self> {
        let file = ComponentFile::open(path, component, layer)?;
        let tokenizer = Tokenizer::open(
            &path.join(tokenizer),
            file.input(Role::TokenIds).and_then(|p| p.fixed(1)),
            file.config.max_position_embeddings,
            file.config.vocab_size,
        )?;
        Ok(Self { file, tokenizer })
    }
}

/// Checks that tokenizers, text encoders and U-Net agree on the text embeddings' shapes.
fn check_text(encoders: &[TextEncoder], unet: &ComponentFile) -> Result<()> {
    let length = encoders[0].tokenizer.length();
    let mut width = Some(0);
    for TextEncoder { file, tokenizer } in encoders {
        if tokenizer.length() != length {
            return Err(Error::invalid(
                &file.path,
                format!(
                    "its texts have {} tokens, expected {length}, as those of the first text encoder",
                    tokenizer.length()
                ),
            ));
        }
        if file.output.fixed(1).is_some_and(|l| l != length) {
            return Err(Error::invalid(
                &file.path,
                format!(
                    "its output {} is expected to have {length} tokens, as its input",
                    file.output
                ),
            ));
        }
        width = width.zip(file.output.fixed(2)).map(|(a, b)| a + b);
    }
    let pooled = encoders.last().and_then(|e| e.file.pooled.as_ref());
    if unet.input(Role::Pooled).is_some() && pooled.is_none() {
        return Err(Error::invalid(
            &unet.path,
            "wants a pooled text embedding, which only the second text encoder of a StableDiffusionXL… pipeline gives",
        ));
    }
    let text = unet.input(Role::Text);
    if let Some(wanted) = text.and_then(|p| p.fixed(1))
        && wanted % length != 0
    {
        return Err(Error::invalid(
            &unet.path,
            format!(
                "wants text embeddings of {wanted} tokens, expected {length} or a multiple, as the text encoder gives: they belong to different models"
            ),
        ));
    }
    for (wanted, given) in [
        (text.and_then(|p| p.fixed(2)), width),
        (
            unet.input(Role::Pooled).and_then(|p| p.fixed(1)),
            pooled.and_then(|p| p.fixed(1)),
        ),
    ] {
        if let (Some(wanted), Some(given)) = (wanted, given)
            && wanted != given
        {
            return Err(Error::invalid(
                &unet.path,
                format!(
                    "wants text embeddings of {wanted}, expected {given}, as the text encoder gives: they belong to different models"
                ),
            ));
        }
    }
    Ok(())
}

/// The channels of a latent, on which every graph and configuration must agree.
fn latent_channels(
    unet: &ComponentFile,
    encoder: &ComponentFile,
    decoder: &ComponentFile,
) -> Result<usize> {
    let sample = |file: &ComponentFile| file.input(Role::Sample).and_then(|p| p.fixed(1));
    let channels = decoder
        .config
        .latent_channels
        .or(sample(decoder))
        .or(encoder.config.latent_channels)
        .or(unet.output.fixed(1))
        .unwrap_or(4);
    for (file, found) in [
        (encoder, encoder.config.latent_channels),
        (decoder, sample(decoder)),
        (unet, unet.config.in_channels),
        (unet, sample(unet)),
        (unet, unet.output.fixed(1)),
    ] {
        if let Some(found) = found.filter(|c| *c != channels) {
            return Err(Error::invalid(
                &file.path,
                format!(
                    "unsupported: its latents have {found} channels, expected the image decoder's {channels}"
                ),
            ));
        }
    }
    Ok(channels)
}

/// The picture size that the graphs fix, on which they must agree.
fn fixed_size(
    [unet, encoder, decoder]: [&ComponentFile; 3],
    scale: usize,
) -> Result<Option<(usize, usize)>> {
    let mut size: [Option<usize>; 2] = [None; 2];
    let latent = |file, port| (file, port, scale);
    for (file, port, scale) in [
        (encoder, encoder.input(Role::Sample), 1),
        latent(encoder, Some(&encoder.output)),
        latent(unet, unet.input(Role::Sample)),
        latent(unet, Some(&unet.output)),
        latent(decoder, decoder.input(Role::Sample)),
        (decoder, Some(&decoder.output), 1),
    ] {
        let Some(port) = port else { continue };
        for (known, found) in size.iter_mut().zip([port.fixed(3), port.fixed(2)]) {
            let Some(found) = found.map(|f| f * scale) else {
                continue;
            };
            if *known.get_or_insert(found) != found {
                return Err(Error::invalid(
                    &file.path,
                    format!("{port} fixes another picture size than the components before it"),
                ));
            }
        }
    }
    match size {
        [Some(width), Some(height)] => Ok(Some((width, height))),
        [None, None] => Ok(None),
        _ => Err(Error::invalid(
            &unet.path,
            "unsupported: width or height is fixed, expected both or neither",
        )),
    }
}
