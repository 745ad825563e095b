//! A model folder part by part: what is there, and all that is wrong with it rather than the first thing.

use std::path::Path;

use super::ModelFolder;
use super::component::ComponentFile;
use super::manifest::Manifest;
use super::parts::Parts;
use super::scheduler::SchedulerConfig;
use super::weights::Weights;
use crate::error::Error;

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
        let mut collect = |error| {
            found.errors.push(error);
            Ok(())
        };
        // Nothing is returned to end the search with.
        let parts = Parts::open(path, &mut collect).unwrap_or_default();
        let class = parts.index.as_ref().and_then(|index| index.class());
        found.pipeline = class.map(str::to_owned);
        for file in parts.components() {
            match Weights::open(&file.path) {
                Ok(weights) => found.components.push((file.clone(), weights)),
                Err(error) => found.errors.push(error),
            }
        }
        for text in &parts.texts {
            let length = text.tokenizer.as_ref().map(|tokenizer| tokenizer.length());
            let length = length.map(|length| (text.name.to_owned(), length));
            found.tokens.extend(length);
        }
        found.manifest.clone_from(&parts.manifest);
        found.scheduler.clone_from(&parts.scheduler);
        found.exported_files(path);
        // Parts that are all there may still not fit together.
        match ModelFolder::assemble(path, parts) {
            Some(Ok(folder)) => found.folder = Some(folder),
            Some(Err(error)) => found.errors.push(error),
            None => {}
        }
        found
    }

    /// Whether all files that the export wrote are there.
    fn exported_files(&mut self, path: &Path) {
        let export = self.manifest.as_ref().and_then(|m| m.export.as_ref());
        for name in export.iter().flat_map(|export| export.files.keys()) {
            let file = path.join(name);
            if !file.exists() {
                self.errors.push(Error::not_found(
                    &file,
                    "no such file, expected as streamdiffusion.toml lists it in export.files",
                ));
            }
        }
    }
}
