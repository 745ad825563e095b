//! What engines of a model are built from, and the shapes they are built for.

use std::collections::BTreeMap;
use std::fs::Metadata;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::builder::{self, ComputeCapability, Engine, Input, Job, Progress, Source};
use super::library::{self, FLAVOUR};
use crate::engine::cache::{Cache, Hashes, Key, same_file};
use crate::engine::onnxruntime::LivePart;
use crate::error::{Error, Result};
use crate::model::{Component, ComponentFile, Graph, ModelFolder, Port, Role, SIZE_IDS};

/// From the smallest to the largest of something, and what it will be as a rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// The smallest.
    pub min: usize,
    /// What engines are made fastest for.
    pub opt: usize,
    /// The largest.
    pub max: usize,
}

impl Span {
    /// One value only.
    pub fn of(value: usize) -> Self {
        Self {
            min: value,
            opt: value,
            max: value,
        }
    }

    /// From `min` to `max`, `opt` or the nearest in between as a rule.
    pub fn new(min: usize, opt: usize, max: usize) -> Self {
        Self {
            min,
            opt: opt.clamp(min, max.max(min)),
            max: max.max(min),
        }
    }

    fn each<T>(self, f: impl Fn(usize) -> T) -> [T; 3] {
        [f(self.min), f(self.opt), f(self.max)]
    }
}

impl std::fmt::Display for Span {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.min == self.max {
            true => write!(f, "{}", self.min),
            false => write!(f, "{}..{}", self.min, self.max),
        }
    }
}

/// The calls that engines are built for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Profile {
    /// Rows of a U-Net call. A stream of n steps and f frames per group has at most n·f, 2·n·f with `cfg-type=full`.
    pub rows: Span,
    /// Frames of an autoencoder call.
    pub frames: Span,
    /// Width in pixels.
    pub width: Span,
    /// Height in pixels.
    pub height: Span,
    /// Chunks of text.
    pub chunks: Span,
}

impl Profile {
    /// Checks it against what the model of `folder` can do.
    ///
    /// # Errors
    /// [`Error::Setting`] names what is wrong.
    pub fn check(&self, folder: &ModelFolder) -> Result<()> {
        let multiple = folder.multiple();
        for (name, span) in [("width", self.width), ("height", self.height)] {
            for size in span.each(|size| size) {
                if size == 0 || size % multiple != 0 {
                    return Err(Error::setting(
                        name,
                        format!(
                            "{size} cannot be processed; expected a multiple of {multiple} for this model"
                        ),
                    ));
                }
            }
        }
        if let Some((width, height)) = folder.fixed_size()
            && (self.width, self.height) != (Span::of(width), Span::of(height))
        {
            return Err(Error::setting(
                "size",
                format!(
                    "{}x{} cannot be processed; this model does {width}x{height} only",
                    self.width, self.height
                ),
            ));
        }
        Ok(())
    }
}

/// What a build takes, roughly.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Cost {
    /// Time in seconds.
    pub seconds: f64,
    /// Bytes of memory.
    pub memory: u64,
    /// Bytes of the engine.
    pub disk: u64,
}

impl Cost {
    /// From the bytes of a component's files, as measured on two cores at 2.5 GHz (docs/tensorrt.md). A U-Net has many
    /// kinds of layers, each with its code in the engine.
    fn of(component: Component, weights: u64) -> Self {
        let gigabytes = weights as f64 / 1e9;
        let (seconds, code) = match component {
            Component::Unet => (4.0, 24 << 20),
            _ => (0.5, 6 << 20),
        };
        Self {
            seconds: seconds + 14.0 * gigabytes,
            memory: (400 << 20) + weights * 33 / 10,
            disk: code + weights * 21 / 20,
        }
    }

    /// Of several, built in turn.
    pub fn sum(costs: impl Iterator<Item = Self>) -> Self {
        costs.fold(Self::default(), |a, b| Self {
            seconds: a.seconds + b.seconds,
            memory: a.memory.max(b.memory),
            disk: a.disk + b.disk,
        })
    }
}

/// How much of a component's graph an engine runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// All of it.
    Whole,
    /// What depends on the frame; the rest is run seldom, by ONNX Runtime.
    Live,
}

/// How to build the engine of a component.
pub struct Recipe<'a> {
    file: &'a ComponentFile,
    live: Option<LivePart>,
    inputs: Vec<Input>,
    serves: BTreeMap<String, (usize, usize)>,
    /// The component's files as they were before they were read.
    files: Vec<(PathBuf, Option<Metadata>)>,
    /// Why the U-Net is run whole, if it is.
    pub why_whole: Option<String>,
}

impl<'a> Recipe<'a> {
    /// The components that engines are built of. Text is encoded by ONNX Runtime, as it is seldom.
    pub const COMPONENTS: [Component; 3] = [
        Component::Unet,
        Component::VaeEncoder,
        Component::VaeDecoder,
    ];

    /// The engine of `component` for calls of `profile`.
    ///
    /// # Errors
    /// If `profile` asks for what the model cannot do, or the graph does not say enough of its inputs; for the U-Net also
    /// without ONNX Runtime, which runs what the engine leaves out.
    pub fn new(folder: &'a ModelFolder, component: Component, profile: &Profile) -> Result<Self> {
        profile.check(folder)?;
        match component {
            Component::Unet => Self::unet(folder, profile),
            Component::VaeEncoder => Self::vae(folder, folder.vae_encoder(), profile, 1),
            Component::VaeDecoder => {
                Self::vae(folder, folder.vae_decoder(), profile, folder.latent_scale())
            }
            _ => Err(Error::engine(
                component.folder(),
                "is run by ONNX Runtime; no engine is built of it",
            )),
        }
    }

    fn vae(
        folder: &ModelFolder,
        file: &'a ComponentFile,
        profile: &Profile,
        scale: usize,
    ) -> Result<Self> {
        let port = (file.input(Role::Sample))
            .ok_or_else(|| Error::invalid(&file.path, "has no input for pictures or latents"))?;
        let channels = match file.component {
            Component::VaeEncoder => 3,
            _ => folder.latent_channels(),
        };
        Ok(Self {
            file,
            live: None,
            inputs: vec![sample(file, port, profile.frames, channels, profile, scale)],
            serves: serves(profile, &[("frames", profile.frames, file.batch())]),
            files: files(file),
            why_whole: None,
        })
    }

    fn unet(folder: &'a ModelFolder, profile: &Profile) -> Result<Self> {
        let file = folder.unet();
        // Before any of them is read: what was read has to be what is hashed.
        let files = files(file);
        let port = (file.input(Role::Sample))
            .ok_or_else(|| Error::invalid(&file.path, "has no input for latents"))?;
        let serves = serves(
            profile,
            &[
                ("rows", profile.rows, file.batch()),
                ("chunks", profile.chunks, folder.chunks()),
            ],
        );
        let (channels, scale) = (folder.latent_channels(), folder.latent_scale());
        let sample = sample(file, port, profile.rows, channels, profile, scale);
        let points: Vec<_> = (0..3)
            .map(|i| {
                let at = |span: Span| span.each(|v| v)[i];
                let latent = |span| at(span) / scale;
                (
                    at(profile.chunks),
                    (latent(profile.height), latent(profile.width)),
                )
            })
            .collect();
        match LivePart::open(folder, &points)? {
            Ok(live) => {
                let others = live.inputs.iter().map(|input| {
                    let shape = |point: usize| {
                        let mut shape = input.shapes[point].clone();
                        if input.stacked
                            && let Some(first) = shape.first_mut()
                        {
                            *first *= sample.each()[point][0];
                        }
                        shape
                    };
                    Input {
                        name: input.name.clone(),
                        dtype: input.dtype,
                        rows: input.stacked && input.shapes[0].first() == Some(&1),
                        min: shape(0),
                        opt: shape(1),
                        max: shape(2),
                    }
                });
                let inputs = [sample.clone()].into_iter().chain(others).collect();
                Ok(Self {
                    file,
                    inputs,
                    serves,
                    files,
                    live: Some(live),
                    why_whole: None,
                })
            }
            Err(why) => {
                let inputs = file.inputs.iter().map(|(role, port)| match role {
                    Role::Sample => Ok(sample.clone()),
                    _ => other(folder, file, *role, port, profile, sample.each()),
                });
                Ok(Self {
                    file,
                    inputs: inputs.collect::<Result<_>>()?,
                    serves,
                    files,
                    live: None,
                    why_whole: Some(why),
                })
            }
        }
    }

    /// The component.
    pub fn component(&self) -> Component {
        self.file.component
    }

    /// How much of it the engine runs.
    pub fn part(&self) -> Part {
        match self.live {
            Some(_) => Part::Live,
            None => Part::Whole,
        }
    }

    /// The engine's inputs, the latent or picture first.
    pub fn inputs(&self) -> &[Input] {
        &self.inputs
    }

    /// Name of the engine's output.
    pub fn output(&self) -> &str {
        &self.file.output.name
    }

    /// The calls it is for: what its shapes follow from, as far as the graph leaves it open.
    pub fn serves(&self) -> &BTreeMap<String, (usize, usize)> {
        &self.serves
    }

    /// Bytes of the component's files.
    pub fn weights(&self) -> u64 {
        let sizes = self.files.iter().flat_map(|(_, meta)| meta);
        sizes.map(Metadata::len).sum()
    }

    /// What building it takes, roughly.
    pub fn cost(&self) -> Cost {
        Cost::of(self.file.component, self.weights())
    }

    /// What the engine depends on. Reads the component's files unless `hashes` knows them; `tell` is given the bytes that
    /// were read.
    pub fn key(
        &self,
        capabilities: &[ComputeCapability],
        hashes: &mut Hashes,
        tell: &mut dyn FnMut(u64),
    ) -> Result<Key> {
        let part = match self.part() {
            Part::Live => "live",
            Part::Whole => "whole",
        };
        let source = hashes.component(self.file, tell)?;
        for (path, before) in &self.files {
            let now = std::fs::metadata(path).ok();
            let same = before.as_ref().zip(now.as_ref());
            if !same.is_some_and(|(before, now)| same_file(before, now)) {
                return Err(changed(path));
            }
        }
        Ok(Key {
            source,
            inputs: self.inputs.iter().map(Input::to_string).collect(),
            output: self.output().to_owned(),
            builder: format!("{FLAVOUR} {}", library::library()?.version),
            compute_capability: builder::capabilities_name(capabilities),
            ..Key::new(self.file.component.folder(), part)
        })
    }

    /// Builds the engine for `key`, and makes sure that the component's files are still those of the key afterwards: an
    /// engine must never be stored under the hash of other files.
    ///
    /// # Errors
    /// As [`build`](Self::build); [`Error::Invalid`] if a file has changed since the recipe was made.
    pub fn build_for(
        &self,
        key: &Key,
        capabilities: &[ComputeCapability],
        cache: &Cache,
        progress: Arc<dyn Progress>,
    ) -> Result<Engine> {
        let engine = self.build(capabilities, cache, progress)?;
        // Files that are noted and look the same are not read again: a write changes what tells.
        let mut hashes = Hashes::open(cache);
        let source = hashes.component(self.file, &mut |_| ())?;
        match source == key.source {
            true => Ok(engine),
            false => Err(changed(&self.file.path)),
        }
    }

    /// Builds the engine. `cache` lends a folder for files of the build.
    ///
    /// # Errors
    /// As [`builder::build`].
    pub fn build(
        &self,
        capabilities: &[ComputeCapability],
        cache: &Cache,
        progress: Arc<dyn Progress>,
    ) -> Result<Engine> {
        let run = |source| {
            let job = Job {
                name: self.file.component.folder(),
                source,
                inputs: &self.inputs,
                capabilities,
            };
            builder::build(&job, progress)
        };
        let Some(live) = &self.live else {
            return run(Source::File(&self.file.path));
        };
        let graph = live.graph()?;
        if self.file.graph.external_files.is_empty() {
            return run(Source::Memory(&graph));
        }
        // The parser looks for external data beside the graph, and the model folder is not ours to write to.
        let folder = cache.work_folder()?;
        let failed = |path: &Path, e: std::io::Error| {
            Error::not_found(path, format!("cannot be written, for the build: {e}"))
        };
        let path = folder.path().join("model.onnx");
        std::fs::write(&path, &graph).map_err(|e| failed(&path, e))?;
        drop(graph);
        let own = self.file.path.parent().unwrap_or(Path::new(""));
        for file in &self.file.graph.external_files {
            let name = file.strip_prefix(own).unwrap_or(file);
            let link = folder.path().join(name);
            let target = std::path::absolute(file).unwrap_or_else(|_| file.clone());
            link.parent()
                .map_or(Ok(()), std::fs::create_dir_all)
                .and_then(|()| symlink(target, &link))
                .map_err(|e| failed(&link, e))?;
        }
        run(Source::File(&path))
    }
}

/// What stands for a profile in a record: width, height and `more`, of which those are left out that the graph fixes.
fn serves(
    profile: &Profile,
    more: &[(&str, Span, Option<usize>)],
) -> BTreeMap<String, (usize, usize)> {
    let all = [
        ("width", profile.width, None),
        ("height", profile.height, None),
    ];
    let open = all.iter().chain(more).filter(|(.., fixed)| fixed.is_none());
    open.map(|(name, span, _)| ((*name).to_owned(), (span.min, span.max)))
        .collect()
}

/// A component's files, as they are now.
fn files(file: &ComponentFile) -> Vec<(PathBuf, Option<Metadata>)> {
    let Graph { external_files, .. } = &file.graph;
    let paths = [&file.path].into_iter().chain(external_files);
    paths
        .map(|path| (path.clone(), std::fs::metadata(path).ok()))
        .collect()
}

fn changed(path: &Path) -> Error {
    Error::invalid(
        path,
        "changed, or a file that belongs to it did, while an engine was built from it; nothing was stored. Build it again",
    )
}

impl Input {
    fn each(&self) -> [&[usize]; 3] {
        [&self.min, &self.opt, &self.max]
    }
}

/// The input `[rows, channels, height, width]`, whatever of it the graph fixes.
fn sample(
    file: &ComponentFile,
    port: &Port,
    rows: Span,
    channels: usize,
    profile: &Profile,
    scale: usize,
) -> Input {
    let rows = file.batch().map_or(rows, Span::of).each(|rows| rows);
    let sizes = |span: Span, dim| port.fixed(dim).map_or(span.each(|v| v / scale), |v| [v; 3]);
    let (height, width) = (sizes(profile.height, 2), sizes(profile.width, 3));
    let channels = port.fixed(1).unwrap_or(channels);
    let [min, opt, max] = [0, 1, 2].map(|i| vec![rows[i], channels, height[i], width[i]]);
    Input {
        name: port.name.clone(),
        dtype: port.dtype,
        min,
        opt,
        max,
        rows: true,
    }
}

/// An input of the whole U-Net besides the latent, of which the shapes are `samples`.
fn other(
    folder: &ModelFolder,
    file: &ComponentFile,
    role: Role,
    port: &Port,
    profile: &Profile,
    samples: [&[usize]; 3],
) -> Result<Input> {
    let length = folder.text_encoders()[0].tokenizer.length();
    let chunks = profile.chunks.each(|chunks| chunks);
    let width = |known: Option<usize>| {
        port.fixed(port.rank().saturating_sub(1))
            .or(known)
            .ok_or_else(|| {
                // Of TensorRT, not of the model: others take the width from what they are given.
                Error::engine(
                    "TensorRT",
                    format!(
                        "{} does not tell how wide its input {port} is",
                        file.path.display()
                    ),
                )
            })
    };
    let shape = |i: usize| -> Result<Vec<usize>> {
        let rows = port.fixed(0).unwrap_or(samples[i][0]);
        Ok(match role {
            Role::Timestep => match port.rank() {
                0 => Vec::new(),
                _ => vec![rows],
            },
            Role::Text => {
                let tokens = port.fixed(1).unwrap_or(length * chunks[i]);
                vec![rows, tokens, width(None)?]
            }
            Role::SizeIds => vec![rows, width(Some(SIZE_IDS))?],
            Role::GuidanceEmbedding => vec![rows, width(file.config.time_cond_proj_dim)?],
            _ => vec![rows, width(None)?],
        })
    };
    let dynamic = port.rank() > 0 && port.fixed(0).is_none();
    Ok(Input {
        name: port.name.clone(),
        dtype: port.dtype,
        min: shape(0)?,
        opt: shape(1)?,
        max: shape(2)?,
        rows: dynamic,
    })
}
