//! Which engines there are for a model on a GPU. No engine is read.

use std::path::Path;

use super::super::library::{self, FLAVOUR};
use super::super::recipe::{Profile, Recipe};
use super::choose::choose;
use super::command::command;
use super::{Gpu, Supply, Wanted};
use crate::engine::cache::{Cache, Hashes, Key, Record};
use crate::error::{Error, Result};
use crate::model::{Component, ModelFolder};

impl Supply {
    /// The engines in `cache` that let the model in `folder` do what is `wanted` on `gpu`. No engine is read, and files of
    /// the model only if they have to be hashed to tell whether engines are theirs.
    ///
    /// # Errors
    /// [`Error::Setting`] that names the property at fault, what engines there are, and the command that builds others;
    /// [`Error::Library`] without TensorRT.
    pub fn find(folder: &ModelFolder, wanted: &Wanted, gpu: Gpu, cache: &Cache) -> Result<Self> {
        let builder = format!("{FLAVOUR} {}", library::library()?.version);
        let command = command(folder, gpu)?;
        let (mut records, mut refused) = (Vec::new(), None);
        for entry in cache.entries()? {
            match entry.record {
                // A pair that was given another's name is nobody's.
                Ok(record) if entry.path == cache.path(&record.key) => records.push(record),
                Ok(_) => {}
                Err(error) => refused = refused.or(Some(error)),
            }
        }
        let mut hashes = Hashes::open(cache);
        let mut usable = Vec::new();
        for component in Recipe::COMPONENTS {
            let (of_component, why) =
                usable_of(folder, component, &records, &builder, gpu, &mut hashes)?;
            if of_component.is_empty() {
                hashes.save();
                let why = match &refused {
                    Some(error) => format!("{why} ({error})"),
                    None => why,
                };
                let built = Profile::for_wanted(folder, wanted).built(command);
                return Err(Error::setting(
                    "backend",
                    format!(
                        "tensorrt cannot be had: {why}. \"{}\" builds what is missing, and so does build-engines=auto when the element starts",
                        built.build_command()
                    ),
                ));
            }
            usable.push(of_component);
        }
        hashes.save();
        let [unet, encoder, decoder] = &usable[..] else {
            return Err(Error::engine("engines", "are not three; this is a bug"));
        };
        choose([unet, encoder, decoder], wanted, &command)
    }
}

/// The records of engines of a component, in the state that its files are in, that run on `gpu` and were made by `builder`;
/// and if there are none, why.
fn usable_of<'a>(
    folder: &ModelFolder,
    component: Component,
    records: &'a [Record],
    builder: &str,
    gpu: Gpu,
    hashes: &mut Hashes,
) -> Result<(Vec<&'a Record>, String)> {
    let none = |why: String| {
        let name = component.folder();
        Ok((Vec::new(), format!("no engine of {name} is there: {why}")))
    };
    let absolute = std::path::absolute(folder.path()).unwrap_or_else(|_| folder.path().to_owned());
    let all = records.iter().filter(|record| {
        record.key.component == component.folder()
            && record.key.revision == Key::new("", "").revision
    });
    let all: Vec<&Record> = all.collect();
    let of_builder = |record: &&&Record| record.key.builder == builder;
    let built: Vec<&Record> = all.iter().filter(of_builder).copied().collect();
    // Only now are files hashed, which can take seconds.
    let source = match built.is_empty() {
        true => None,
        false => {
            let file = match component {
                Component::Unet => folder.unet(),
                Component::VaeEncoder => folder.vae_encoder(),
                _ => folder.vae_decoder(),
            };
            Some(hashes.component(file, &mut |_| ())?)
        }
    };
    let of_source = |record: &&Record| Some(&record.key.source) == source.as_ref();
    let same: Vec<&Record> = built.iter().copied().filter(of_source).collect();
    let runs = |record: &&Record| gpu.runs(&record.key.compute_capability);
    let usable: Vec<&Record> = same.iter().copied().filter(runs).collect();
    if !usable.is_empty() {
        return Ok((usable, String::new()));
    }
    let of_folder = |record: &&&Record| Path::new(&record.made.model) == absolute;
    if let Some(record) = same.first() {
        return none(format!(
            "those that were built are for compute capability {}, this GPU has {gpu}",
            record.key.compute_capability
        ));
    }
    if built.iter().any(|record| of_folder(&record)) {
        return none("the model's files have changed since it was built".into());
    }
    match all.iter().find(of_folder) {
        Some(record) => none(format!(
            "it was built by {}, now {builder}",
            record.key.builder
        )),
        None => none("none has been built".into()),
    }
}
