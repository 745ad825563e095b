//! The four components as one [`Model`].

use super::library;
use super::session::{Input, Session, Values};
use crate::device::HostTensor;
use crate::engine::{Denoise, Limits, Model};
use crate::error::Result;
use crate::model::{Component, ModelFolder, Role, Tokenizer};

/// A model folder run by ONNX Runtime on the host.
pub struct OnnxModel {
    tokenizer: Tokenizer,
    text_encoder: Session,
    unet: Session,
    vae_encoder: Session,
    vae_decoder: Session,
    limits: Limits,
    gives_posterior: bool,
    scaling_factor: f32,
    shift_factor: f32,
    backend: String,
}

impl OnnxModel {
    /// Loads all components of `folder`.
    pub fn open(folder: &ModelFolder) -> Result<Self> {
        let session = |component| Session::open(folder.component(component));
        Ok(Self {
            tokenizer: folder.tokenizer().clone(),
            text_encoder: session(Component::TextEncoder)?,
            unet: session(Component::Unet)?,
            vae_encoder: session(Component::VaeEncoder)?,
            vae_decoder: session(Component::VaeDecoder)?,
            limits: Limits {
                latent_channels: folder.latent_channels(),
                latent_scale: folder.latent_scale(),
                multiple: folder.multiple(),
                fixed_size: folder.fixed_size(),
                samples_posterior: folder.samples_posterior(),
            },
            gives_posterior: folder.gives_posterior(),
            scaling_factor: folder.scaling_factor() as f32,
            shift_factor: folder.shift_factor() as f32,
            backend: format!("onnxruntime {} (CPU)", library::runtime()?.version),
        })
    }

    /// What runs it, for people: engine, version and device.
    pub fn backend(&self) -> &str {
        &self.backend
    }
}

impl Model for OnnxModel {
    type Tensor = HostTensor;

    fn limits(&self) -> &Limits {
        &self.limits
    }

    fn encode_text(&self, text: &str) -> Result<HostTensor> {
        let ids = self.tokenizer.encode(text)?;
        let length = ids.len();
        let rows = self.text_encoder.file().batch().unwrap_or(1);
        let ids = ids.repeat(rows);
        let ones = vec![1; ids.len()];
        let positions: Vec<i64> = (0..length as i64).collect::<Vec<_>>().repeat(rows);
        let shape = [rows, length];
        let output = self.text_encoder.run(&[
            (Role::TokenIds, &shape, Values::Integers(&ids)),
            (Role::AttentionMask, &shape, Values::Integers(&ones)),
            (Role::PositionIds, &shape, Values::Integers(&positions)),
        ])?;
        match *output.shape() {
            [r, l, d] if r == rows && l == length => {
                let mut data = output.into_data();
                data.truncate(l * d);
                Ok(HostTensor::new(&[1, l, d], data))
            }
            ref other => Err(self.text_encoder.error(format!(
                "gave a text embedding of shape {other:?}, expected [{rows}, {length}, width]"
            ))),
        }
    }

    fn encode(&self, pictures: &HostTensor, noise: Option<&HostTensor>) -> Result<HostTensor> {
        let (c, s) = (self.limits.latent_channels, self.limits.latent_scale);
        let [f, 3, height, width] = *pictures.shape() else {
            return Err(self.vae_encoder.error(format!(
                "was given pictures of shape {:?}, expected [frames, 3, height, width]",
                pictures.shape()
            )));
        };
        if height % s != 0 || width % s != 0 {
            return Err(self.vae_encoder.error(format!(
                "was given pictures of {width}x{height}, expected multiples of {s}"
            )));
        }
        let shape = [f, c, height / s, width / s];
        let mut output = self.transform(
            &self.vae_encoder,
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
                return Err(self.vae_encoder.error(
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

    fn denoise(&self, rows: &[Denoise<'_, HostTensor>]) -> Result<Vec<HostTensor>> {
        let Some(first) = rows.first() else {
            return Ok(Vec::new());
        };
        let (sample, text) = (first.sample.shape(), first.text.shape());
        let fits = |r: &Denoise<HostTensor>| {
            matches!(r.sample.shape(), [f, rest @ ..] if *f > 0 && rest == &sample[1..])
                && r.text.shape() == text
                && r.timestep < i32::MAX as u32
        };
        if sample.len() != 4 || text.len() != 3 || text[0] != 1 || !rows.iter().all(fits) {
            return Err(self.unet.error(
                "was given rows of different shapes, or not [frames, C, h, w] with a text embedding [1, L, D]",
            ));
        }
        let size: usize = sample[1..].iter().product();
        // One entry per frame of every row.
        let units: Vec<Unit> = rows
            .iter()
            .flat_map(|row| {
                row.sample.data().chunks(size).map(|sample| Unit {
                    sample,
                    timestep: i64::from(row.timestep),
                    text: row.text.data(),
                })
            })
            .collect();
        let mut order: Vec<usize> = (0..units.len()).collect();
        let per_row = self.timestep_per_row();
        if !per_row {
            order.sort_by_key(|i| units[*i].timestep);
        }
        let mut outputs = vec![Vec::new(); units.len()];
        for group in order.chunk_by(|a, b| per_row || units[*a].timestep == units[*b].timestep) {
            for batch in group.chunks(self.unet.file().batch().unwrap_or(group.len())) {
                let output = self.unet_call(&units, batch, &sample[1..], &text[1..])?;
                for (i, data) in batch.iter().zip(output.data().chunks(size)) {
                    outputs[*i] = data.to_vec();
                }
            }
        }
        let mut outputs = outputs.into_iter();
        Ok(rows
            .iter()
            .map(|row| {
                let data = outputs.by_ref().take(row.sample.shape()[0]).flatten();
                HostTensor::new(row.sample.shape(), data.collect())
            })
            .collect())
    }

    fn decode(&self, latents: &HostTensor) -> Result<HostTensor> {
        let s = self.limits.latent_scale;
        let [_, c, h, w] = *latents.shape() else {
            return Err(self.vae_decoder.error(format!(
                "was given latents of shape {:?}, expected [frames, channels, height, width]",
                latents.shape()
            )));
        };
        if c != self.limits.latent_channels {
            return Err(self
                .vae_decoder
                .error(format!("was given latents of {c} channels")));
        }
        let picture = [3, h * s, w * s];
        if self.scaling_factor == 1.0 && self.shift_factor == 0.0 {
            return self.transform(&self.vae_decoder, latents, picture);
        }
        let mut latents = latents.clone();
        for x in latents.data_mut() {
            *x = *x / self.scaling_factor + self.shift_factor;
        }
        self.transform(&self.vae_decoder, &latents, picture)
    }
}

/// One frame at one step.
struct Unit<'a> {
    sample: &'a [f32],
    timestep: i64,
    text: &'a [f32],
}

impl OnnxModel {
    /// Whether the U-Net takes a timestep for every row, rather than one for all.
    fn timestep_per_row(&self) -> bool {
        self.unet
            .file()
            .input(Role::Timestep)
            .is_some_and(|p| p.rank() == 1 && p.fixed(0) != Some(1))
    }

    /// One run of the U-Net over the units that `batch` names, filled up to the batch the graph fixes.
    fn unet_call(
        &self,
        units: &[Unit],
        batch: &[usize],
        sample: &[usize],
        text: &[usize],
    ) -> Result<HostTensor> {
        let rows = self.unet.file().batch().unwrap_or(batch.len());
        let mut samples = Vec::with_capacity(rows * sample.iter().product::<usize>());
        let mut texts = Vec::with_capacity(rows * text.iter().product::<usize>());
        let mut timesteps = Vec::with_capacity(rows);
        let filler = batch.last().into_iter().cycle();
        for i in batch.iter().chain(filler).take(rows) {
            let unit = &units[*i];
            samples.extend_from_slice(unit.sample);
            texts.extend_from_slice(unit.text);
            timesteps.push(unit.timestep);
        }
        if !self.timestep_per_row() {
            timesteps.truncate(1);
        }
        let sample_shape = [&[rows], sample].concat();
        let text_shape = [&[rows], text].concat();
        let rank = self
            .unet
            .file()
            .input(Role::Timestep)
            .map_or(1, |p| p.rank());
        let timestep_shape = vec![timesteps.len(); rank];
        let output = self.unet.run(&[
            (Role::Sample, &sample_shape, Values::Floats(&samples)),
            (
                Role::Timestep,
                &timestep_shape,
                Values::Integers(&timesteps),
            ),
            (Role::Text, &text_shape, Values::Floats(&texts)),
        ])?;
        expect(&self.unet, &output, &sample_shape)?;
        Ok(output)
    }

    /// Runs a graph of one input over all rows of `input`; a row of its output has the shape `row`.
    fn transform(
        &self,
        session: &Session,
        input: &HostTensor,
        row: [usize; 3],
    ) -> Result<HostTensor> {
        let shape = input.shape();
        let run = |shape: &[usize], data: &[f32]| {
            let inputs: [Input; 1] = [(Role::Sample, shape, Values::Floats(data))];
            let output = session.run(&inputs)?;
            expect(session, &output, &[shape[0], row[0], row[1], row[2]])?;
            Ok(output)
        };
        let rows = session.file().batch().unwrap_or(shape[0]);
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

fn expect(session: &Session, output: &HostTensor, shape: &[usize]) -> Result<()> {
    if output.shape() == shape {
        Ok(())
    } else {
        Err(session.error(format!(
            "gave a tensor of shape {:?}, expected {shape:?}",
            output.shape()
        )))
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
