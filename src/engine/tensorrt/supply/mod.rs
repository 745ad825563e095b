//! The engines that serve what a model is asked to do: found among those that were built, or built now.

mod build;
mod choose;
mod command;
mod find;
mod gpu;
mod profile;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::engine::cache::{Cache, Key, Record};
use crate::engine::{BuildProgress, Built, Calls};
use crate::error::{Error, Result};
use crate::model::ModelFolder;
pub use gpu::Gpu;

/// What a model is asked to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wanted {
    /// Its U-Net calls.
    pub calls: Calls,
    /// The width that frames are processed at; `None` where that is for the engines to say.
    pub width: Option<usize>,
    /// The height, likewise.
    pub height: Option<usize>,
}

/// The engines to run a model with, in the order of [`Recipe::COMPONENTS`].
#[derive(Debug, Clone)]
pub struct Supply {
    /// What each is found by.
    pub engines: [Key; 3],
    /// What they were built for.
    pub built: Built,
    /// Where they come from, for people.
    pub origin: String,
}

/// How engines that are missing are built.
#[derive(Clone)]
pub struct Building {
    /// Is told how far it is, on any thread.
    pub tell: Arc<dyn Fn(BuildProgress) + Send + Sync>,
    /// Ends it when it is set.
    pub stop: Arc<AtomicBool>,
}

impl Supply {
    /// The engines that [`find`](Self::find) gives, and if there are none, some that are built now if that is asked for.
    ///
    /// # Errors
    /// As [`find`](Self::find) without `building`, else what building gives; an [`Error::Engine`] if it was ended.
    pub fn provide(
        folder: &ModelFolder,
        wanted: &Wanted,
        gpu: Gpu,
        cache: &Cache,
        building: Option<&Building>,
    ) -> Result<Self> {
        let missing = match (Self::find(folder, wanted, gpu, cache), building) {
            (Err(error @ Error::Setting { .. }), Some(building)) => (error, building),
            (found, _) => return found,
        };
        let (why, building) = missing;
        (building.tell)(BuildProgress::Begun(why.to_string()));
        let built = build::build(folder, wanted, gpu, cache, building);
        (building.tell)(match &built {
            Ok(_) => BuildProgress::Complete,
            Err(_) if building.stop.load(Ordering::SeqCst) => BuildProgress::Cancelled,
            Err(error) => BuildProgress::Failed(error.clone()),
        });
        built
    }
}

/// Where an engine comes from, for people.
fn told(record: &Record, how: &str) -> String {
    let part = match record.key.part.as_str() {
        "whole" => "",
        _ => " (live part)",
    };
    format!(
        "{}{part}: {how}, built {} in {:.1} s",
        record.key.component, record.made.at, record.made.took_seconds
    )
}
