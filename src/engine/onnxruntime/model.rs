//! The components as one [`Model`].

use super::library;
use super::session::{Session, Values};
use super::text::Texts;
use super::unet::{Context, Unet, expect};
use crate::device::HostTensor;
use crate::engine::{Denoise, Limits, Model, Text};
use crate::error::Result;
use crate::model::{ComponentFile, ModelFolder};

/// A model folder run by ONNX Runtime on the host.
pub struct OnnxModel {
    texts: Texts,
    unet: Unet,
    vae_encoder: Transform,
    vae_decoder: Transform,
    limits: Limits,
    gives_posterior: bool,
    scaling_factor: f32,
    shift_factor: f32,
    backend: String,
}

impl OnnxModel {
    /// Loads all components of `folder`. What the U-Net can compute ahead is split from it.
    pub fn open(folder: &ModelFolder) -> Result<Self> {
        Self::load(folder, true)
    }

    /// The same with the U-Net in one piece, to compare.
    pub fn open_whole(folder: &ModelFolder) -> Result<Self> {
        Self::load(folder, false)
    }

    fn load(folder: &ModelFolder, split: bool) -> Result<Self> {
        Ok(Self {
            texts: Texts::open(folder)?,
            unet: Unet::open(folder, split)?,
            vae_encoder: Transform::open(folder.vae_encoder())?,
            vae_decoder: Transform::open(folder.vae_decoder())?,
            limits: Limits {
                latent_channels: folder.latent_channels(),
                latent_scale: folder.latent_scale(),
                multiple: folder.multiple(),
                fixed_size: folder.fixed_size(),
                chunks: folder.chunks(),
                samples_posterior: folder.samples_posterior(),
            },
            gives_posterior: folder.gives_posterior(),
            scaling_factor: folder.scaling_factor() as f32,
            shift_factor: folder.shift_factor() as f32,
            backend: format!("onnxruntime {} (CPU)", library::runtime()?.version),
        })
    }

    /// How much of the U-Net is computed ahead, or why nothing is, for people.
    pub fn precomputed(&self) -> &str {
        self.unet.precomputed()
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
        &self.limits
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
        text: &Text<HostTensor>,
        size: (usize, usize),
        like: Option<&Context>,
    ) -> Result<Vec<Context>> {
        self.unet.precompute(timesteps, text, size, like)
    }

    fn encode(&self, pictures: &HostTensor, noise: Option<&HostTensor>) -> Result<HostTensor> {
        let (c, s) = (self.limits.latent_channels, self.limits.latent_scale);
        let [f, 3, height, width] = *pictures.shape() else {
            return Err(self.vae_encoder.session.error(format!(
                "was given pictures of shape {:?}, expected [frames, 3, height, width]",
                pictures.shape()
            )));
        };
        if height % s != 0 || width % s != 0 {
            return Err(self.vae_encoder.session.error(format!(
                "was given pictures of {width}x{height}, expected multiples of {s}"
            )));
        }
        let shape = [f, c, height / s, width / s];
        let mut output = self.vae_encoder.run(
            pictures,
            [
                c * (1 + usize::from(self.gives_posterior)),
                shape[2],
                shape[3],
            ],
        )?;
        let noise = match (noise, self.limits.samples_posterior) {
            (None, false) => None,
            (Some(noise), true) if noise.shape() == shape => Some(noise),
            _ => {
                return Err(self.vae_encoder.session.error(
                    "expected noise of the latents' shape if and only if its output is sampled",
                ));
            }
        };
        if self.gives_posterior {
            output = posterior(&output, noise, &shape);
        }
        for x in output.data_mut() {
            *x = (*x - self.shift_factor) * self.scaling_factor;
        }
        Ok(output)
    }

    fn denoise(&self, rows: &[Denoise<'_, Self>]) -> Result<Vec<HostTensor>> {
        self.unet.denoise(rows)
    }

    fn decode(&self, latents: &HostTensor) -> Result<HostTensor> {
        let s = self.limits.latent_scale;
        let [_, c, h, w] = *latents.shape() else {
            return Err(self.vae_decoder.session.error(format!(
                "was given latents of shape {:?}, expected [frames, channels, height, width]",
                latents.shape()
            )));
        };
        if c != self.limits.latent_channels {
            return Err(self
                .vae_decoder
                .session
                .error(format!("was given latents of {c} channels")));
        }
        let picture = [3, h * s, w * s];
        if self.scaling_factor == 1.0 && self.shift_factor == 0.0 {
            return self.vae_decoder.run(latents, picture);
        }
        let mut latents = latents.clone();
        for x in latents.data_mut() {
            *x = *x / self.scaling_factor + self.shift_factor;
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
            session: Session::open(file)?,
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
