//! A model folder's parts, each opened by itself, in the one order in which they are looked at.

use std::path::Path;

use super::component::{Component, ComponentFile, Layer, Role};
use super::index::{Family, Index};
use super::manifest::Manifest;
use super::read;
use super::scheduler::SchedulerConfig;
use super::tokenizer::Tokenizer;
use crate::error::{Error, Result};

/// What could be opened; where something is `None`, a finding has said why.
#[derive(Debug, Default)]
pub(super) struct Parts {
    /// `model_index.json`, of a supported pipeline or not.
    pub index: Option<Index>,
    /// The pipeline's kind, and what `model_index.json` says of empty negative prompts.
    pub family: Option<(Family, bool)>,
    /// `streamdiffusion.toml`; an empty one where there is none.
    pub manifest: Option<Manifest>,
    /// The scheduler's configuration.
    pub scheduler: Option<SchedulerConfig>,
    /// The text encoders that the pipeline has, with their tokenizers.
    pub texts: Vec<TextParts>,
    /// The U-Net.
    pub unet: Option<ComponentFile>,
    /// The image encoder.
    pub vae_encoder: Option<ComponentFile>,
    /// The image decoder.
    pub vae_decoder: Option<ComponentFile>,
}

/// A text encoder and the tokenizer that goes with it.
#[derive(Debug)]
pub(super) struct TextParts {
    /// The graph.
    pub file: Option<ComponentFile>,
    /// The folder of its tokenizer.
    pub name: &'static str,
    /// What makes its token ids.
    pub tokenizer: Option<Tokenizer>,
}

/// Is told each thing that is wrong. An error it returns ends the search.
pub(super) trait Findings: FnMut(Error) -> Result<()> {}

impl<F: FnMut(Error) -> Result<()>> Findings for F {}

impl Parts {
    /// Opens all parts of the model folder at `path`. Fails only with an error that `findings` returns.
    pub fn open(path: &Path, findings: &mut impl Findings) -> Result<Self> {
        let mut parts = Self::default();
        if let Err(error) = check_folder(path) {
            findings(error)?;
            return Ok(parts);
        }
        parts.index = note(Index::open(&path.join("model_index.json")), findings)?;
        if let Some(index) = &parts.index {
            parts.family = note(index.check(), findings)?;
        }
        let manifest = Manifest::open(&path.join("streamdiffusion.toml"));
        parts.manifest = note(manifest, findings)?;
        let scheduler = SchedulerConfig::open(&path.join("scheduler/scheduler_config.json"));
        parts.scheduler = note(scheduler, findings)?;
        // Of a pipeline that is none of the known kinds, one text encoder is the least that can be looked for.
        let family = parts
            .family
            .map_or(Family::StableDiffusion, |(family, _)| family);
        for (component, name, layer) in family.text_encoders() {
            let file = note(ComponentFile::open(path, *component, *layer), findings)?;
            let tokenizer = note(open_tokenizer(path, name, file.as_ref()), findings)?;
            parts.texts.push(TextParts {
                file,
                name,
                tokenizer,
            });
        }
        let mut open =
            |component| note(ComponentFile::open(path, component, Layer::Last), findings);
        parts.unet = open(Component::Unet)?;
        parts.vae_encoder = open(Component::VaeEncoder)?;
        parts.vae_decoder = open(Component::VaeDecoder)?;
        Ok(parts)
    }

    /// The components that could be opened, in the order of [`Component::ALL`].
    pub fn components(&self) -> impl Iterator<Item = &ComponentFile> {
        let texts = self.texts.iter().map(|text| &text.file);
        let others = [&self.unet, &self.vae_encoder, &self.vae_decoder];
        texts.chain(others).flatten()
    }
}

/// What was opened; what was not is told to `findings`.
fn note<T>(result: Result<T>, findings: &mut impl Findings) -> Result<Option<T>> {
    match result {
        Ok(part) => Ok(Some(part)),
        Err(error) => findings(error).map(|()| None),
    }
}

fn check_folder(path: &Path) -> Result<()> {
    match std::fs::metadata(path) {
        Ok(meta) if meta.is_dir() => Ok(()),
        Ok(_) => {
            let hint = match read::holds_weights(path) {
                true => "; a checkpoint or LoRA becomes one by tools/export_model.py",
                false => "",
            };
            Err(Error::invalid(
                path,
                format!("expected a model folder, found a file{hint}"),
            ))
        }
        Err(e) => Err(Error::not_found(
            path,
            format!("cannot be opened: {e}; expected a model folder"),
        )),
    }
}

/// The tokenizer in the folder `name`, checked against its text encoder as far as that could be opened.
fn open_tokenizer(path: &Path, name: &str, encoder: Option<&ComponentFile>) -> Result<Tokenizer> {
    let ids = encoder.and_then(|e| e.input(Role::TokenIds));
    Tokenizer::open(
        &path.join(name),
        ids.and_then(|port| port.fixed(1)),
        encoder.and_then(|e| e.config.max_position_embeddings),
        encoder.and_then(|e| e.config.vocab_size),
    )
}
