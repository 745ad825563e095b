//! A model folder part by part: what is there, and all that is wrong with it rather than the first thing.

use std::path::Path;

use serde_json::{Map, Value};

use super::component::{Component, ComponentFile, Layer};
use super::manifest::Manifest;
use super::scheduler::SchedulerConfig;
use super::tokenizer::Tokenizer;
use super::weights::Weights;
use super::{Family, ModelFolder, Role, check_index, read};
use crate::error::{Error, Result};

/// A model folder's parts, each opened by itself. A part that is missing or broken is in [`errors`](Self::errors).
#[derive(Debug, Default)]
pub struct Inspection {
    /// The folder as the element opens it; `None` if it would not.
    pub folder: Option<ModelFolder>,
    /// The class of the pipeline that `model_index.json` names.
    pub pipeline: Option<String>,
    /// `streamdiffusion.toml`; an empty one where there is none.
    pub manifest: Option<Manifest>,
    /// The scheduler's configuration.
    pub scheduler: Option<SchedulerConfig>,
    /// The components that can be read, with their weights.
    pub components: Vec<(ComponentFile, Weights)>,
    /// Tokens of a text, for each tokenizer.
    pub tokens: Vec<(String, usize)>,
    /// Why it cannot be used; none if it can.
    pub errors: Vec<Error>,
}

impl Inspection {
    /// Looks at the model folder at `path`. Reads headers and configurations, no weights.
    pub fn open(path: &Path) -> Self {
        let mut found = Self::default();
        let whole = ModelFolder::open(path);
        if path.is_dir() {
            found.parts(path);
        }
        match whole {
            Ok(folder) => found.folder = Some(folder),
            // Most often one of the parts has said it already; else it is that parts do not fit together.
            Err(error) => found.add(error),
        }
        found
    }

    fn parts(&mut self, path: &Path) {
        let index_path = path.join("model_index.json");
        let index: Option<Map<String, Value>> = self.note(if index_path.exists() {
            read::json(&index_path, read::CONFIG_LIMIT)
        } else {
            Err(Error::not_found(
                &index_path,
                "no such file, expected in every model folder (as Optimum writes it)",
            ))
        });
        let mut family = Family::StableDiffusion;
        if let Some(index) = &index {
            if let Some((found, _)) = self.note(check_index(&index_path)) {
                family = found;
            }
            let class = index.get("_class_name").and_then(Value::as_str);
            self.pipeline = class.map(str::to_owned);
        }
        self.manifest = self.note(Manifest::open(&path.join("streamdiffusion.toml")));
        self.scheduler = self.note(SchedulerConfig::open(
            &path.join("scheduler/scheduler_config.json"),
        ));
        for (component, tokenizer, layer) in family.text_encoders() {
            let file = self.component(path, *component, *layer);
            self.tokenizer(path, tokenizer, file.as_ref());
        }
        for component in [
            Component::Unet,
            Component::VaeEncoder,
            Component::VaeDecoder,
        ] {
            self.component(path, component, Layer::Last);
        }
        self.exported_files(path);
    }

    /// Opens a component, and looks at its weights.
    fn component(&mut self, path: &Path, which: Component, layer: Layer) -> Option<ComponentFile> {
        let file = self.note(ComponentFile::open(path, which, layer))?;
        if let Some(weights) = self.note(Weights::open(&file.path)) {
            self.components.push((file.clone(), weights));
        }
        Some(file)
    }

    /// Opens the tokenizer that goes with a text encoder, as far as that could be read.
    fn tokenizer(&mut self, path: &Path, name: &str, encoder: Option<&ComponentFile>) {
        let ids = encoder.and_then(|e| e.input(Role::TokenIds));
        let tokenizer = self.note(Tokenizer::open(
            &path.join(name),
            ids.and_then(|port| port.fixed(1)),
            encoder.and_then(|e| e.config.max_position_embeddings),
            encoder.and_then(|e| e.config.vocab_size),
        ));
        if let Some(tokenizer) = tokenizer {
            self.tokens.push((name.to_owned(), tokenizer.length()));
        }
    }

    /// Whether all files that the export wrote are there.
    fn exported_files(&mut self, path: &Path) {
        let export = self.manifest.as_ref().and_then(|m| m.export.clone());
        for name in export.iter().flat_map(|export| export.files.keys()) {
            let file = path.join(name);
            if !file.exists() {
                self.add(Error::not_found(
                    &file,
                    "no such file, expected as streamdiffusion.toml lists it in export.files",
                ));
            }
        }
    }

    fn note<T>(&mut self, result: Result<T>) -> Option<T> {
        result.map_err(|error| self.add(error)).ok()
    }

    fn add(&mut self, error: Error) {
        let text = error.to_string();
        if self.errors.iter().all(|known| known.to_string() != text) {
            self.errors.push(error);
        }
    }
}
