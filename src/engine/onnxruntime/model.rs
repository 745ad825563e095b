//! The components as one [`Model`].

use super::geometry::Geometry;
use super::library;
use super::provider::{Provider, Providers, fusions_or_asked};
use super::session::{Session, Values};
use super::text::Texts;
use super::unet::{Context, Unet, Valued, expect};
use crate::device::HostTensor;
use crate::engine::{Denoise, Limits, Model, Telling, Text, Wording, silent};
use crate::error::Result;
use crate::model::{Component, ComponentFile, Fusions, ModelFolder};

/// A model folder run by ONNX Runtime on the host.
pub struct OnnxModel {
    texts: Texts,
    unet: Unet,
    vae_encoder: Transform,
    vae_decoder: Transform,
    geometry: Geometry,
    backend: String,
}

impl OnnxModel {
    /// Loads all components of `folder`. What the U-Net can compute ahead is split from it.
    pub fn open(folder: &ModelFolder) -> Result<Self> {
        Self::load(folder, true, Self::usual(), &silent)
    }

    /// The same, telling of each component.
    pub fn open_telling(folder: &ModelFolder, tell: Telling<'_>) -> Result<Self> {
        Self::load(folder, true, Self::usual(), tell)
    }

    /// The same with the attentions of the U-Net fused, to compare; with `split`, what it can compute ahead is split from
    /// it.
    pub fn open_fused(folder: &ModelFolder, split: bool) -> Result<Self> {
        Self::load(folder, split, Some(Fusions::ATTENTION), &silent)
    }

    /// The same with the U-Net in one piece, to compare.
    pub fn open_whole(folder: &ModelFolder) -> Result<Self> {
        Self::load(folder, false, Self::usual(), &silent)
    }

    /// How a processor runs attentions best: products of matrices are what it is good at.
    fn usual() -> Option<Fusions> {
        fusions_or_asked(None)
    }

    fn load(
        folder: &ModelFolder,
        split: bool,
        fusions: Option<Fusions>,
        tell: Telling<'_>,
    ) -> Result<Self> {
        let on = Providers {
            texts: Provider::Cpu,
            contexts: Provider::Cpu,
            frames: Provider::Cpu,
            fusions,
        };
        let texts = Texts::open(folder, &on.texts, tell)?;
        tell(Component::Unet)?;
        let unet = Unet::open(folder, split, &on)?;
        let told = unet.told.clone();
        Ok(Self {
            texts,
            unet,
            vae_encoder: {
                tell(Component::VaeEncoder)?;
                Transform::open(folder.vae_encoder())?
            },
            vae_decoder: {
                tell(Component::VaeDecoder)?;
                Transform::open(folder.vae_decoder())?
            },
            geometry: Geometry::new(folder),
            backend: format!("onnxruntime {} (CPU{told})", library::runtime()?.version),
        })
    }

    /// How much of the U-Net is computed ahead, or why nothing is, for people.
    pub fn precomputed(&self) -> &str {
        &self.unet.ahead.precomputed
    }

    /// What runs it, for people: engine, version and device.
    pub fn backend(&self) -> &str {
        &self.backend
    }
}

impl Model for OnnxModel {
    type Tensor = HostTensor;
    type Context = Context;

    fn limits(&self) -> &Limits {
        &self.geometry.limits
    }

    fn chunks(&self, text: &str) -> Result<usize> {
        self.texts.chunks(text)
    }

    fn encode_text(&self, text: Option<&str>, chunks: usize) -> Result<Text<HostTensor>> {
        self.texts.encode(text, chunks)
    }

    fn precompute(
        &self,
        timesteps: &[u32],
        text: &Wording,
        size: (usize, usize),
        like: Option<&Context>,
    ) -> Result<Vec<Context>> {
        let ahead = &self.unet.ahead;
        let compute = |value: &Valued| ahead.compute(value);
        let keep =
            |tensors: Vec<(usize, HostTensor)>| Ok(tensors.into_iter().map(|t| t.1).collect());
        ahead.precompute(timesteps, text, size, like, compute, keep)
    }

    fn encode(&self, pictures: &HostTensor, noise: Option<&HostTensor>) -> Result<HostTensor> {
        let session = &self.vae_encoder.session;
        let wrong = |what| session.error(what);
        let shape = self.geometry.encoded(pictures.shape()).map_err(wrong)?;
        let given = noise.map(HostTensor::shape);
        self.geometry.check_noise(given, &shape).map_err(wrong)?;
        let row = self.geometry.parameters(&shape);
        let mut output = self.vae_encoder.run(pictures, row)?;
        if self.geometry.gives_posterior {
            output = posterior(&output, noise, &shape);
        }
        let (shift, scale) = (self.geometry.shift_factor, self.geometry.scaling_factor);
        for x in output.data_mut() {
            *x = (*x - shift) * scale;
        }
        Ok(output)
    }

    fn denoise(&self, rows: &[Denoise<'_, Self>]) -> Result<Vec<HostTensor>> {
        self.unet.denoise(rows)
    }

    fn decode(&self, latents: &HostTensor) -> Result<HostTensor> {
        let session = &self.vae_decoder.session;
        let picture = self.geometry.decoded(latents.shape());
        let picture = picture.map_err(|what| session.error(what))?;
        let (shift, scale) = (self.geometry.shift_factor, self.geometry.scaling_factor);
        if scale == 1.0 && shift == 0.0 {
            return self.vae_decoder.run(latents, picture);
        }
        let mut latents = latents.clone();
        for x in latents.data_mut() {
            *x = *x / scale + shift;
        }
        self.vae_decoder.run(&latents, picture)
    }
}

/// A component that turns one tensor into another.
struct Transform {
    session: Session,
    /// The number of rows it takes, where it fixes it.
    batch: Option<usize>,
}

impl Transform {
    fn open(file: &ComponentFile) -> Result<Self> {
        Ok(Self {
            session: Session::open(file, &Provider::Cpu)?,
            batch: file.batch(),
        })
    }

    /// Runs it over all rows of `input`; a row of its output has the shape `row`.
    fn run(&self, input: &HostTensor, row: [usize; 3]) -> Result<HostTensor> {
        let shape = input.shape();
        let run = |shape: &[usize], data: &[f32]| {
            let output = self.session.run_one(&[(shape, Values::Floats(data))])?;
            expect(&self.session, &output, &[shape[0], row[0], row[1], row[2]])?;
            Ok(output)
        };
        let rows = self.batch.unwrap_or(shape[0]);
        if rows == shape[0] {
            return run(shape, input.data());
        }
        let fixed = [rows, shape[1], shape[2], shape[3]];
        let (size_in, size_out) = (
            shape[1..].iter().product::<usize>(),
            row.iter().product::<usize>(),
        );
        let mut data = Vec::with_capacity(shape[0] * size_out);
        for chunk in input.data().chunks((rows * size_in).max(1)) {
            let mut filled = chunk.to_vec();
            filled.resize(rows * size_in, 0.0);
            let output = run(&fixed, &filled)?;
            data.extend_from_slice(&output.data()[..chunk.len() / size_in * size_out]);
        }
        Ok(HostTensor::new(&[shape[0], row[0], row[1], row[2]], data))
    }
}

/// Latents of `shape` from means and logarithms of variances, as diffusers draws them: the means where there is no
/// `noise`.
fn posterior(parameters: &HostTensor, noise: Option<&HostTensor>, shape: &[usize]) -> HostTensor {
    let size: usize = shape[1..].iter().product();
    let mut data = Vec::with_capacity(shape[0] * size);
    for (f, both) in parameters.data().chunks(2 * size).enumerate() {
        let (mean, log_variance) = both.split_at(size);
        match noise {
            None => data.extend_from_slice(mean),
            Some(noise) => {
                let noise = &noise.data()[f * size..][..size];
                data.extend(
                    mean.iter()
                        .zip(log_variance)
                        .zip(noise)
                        .map(|((m, v), e)| m + (0.5 * v.clamp(-30.0, 20.0)).exp() * e),
                );
            }
        }
    }
    HostTensor::new(shape, data)
}
