//! The components as one [`Model`] on a GPU.

use super::contexts::Kept;
use super::transform::Transform;
use super::unet::CudaUnet;
use crate::device::HostTensor;
use crate::device::cuda::{Cuda, CudaTensor, Element};
use crate::engine::onnxruntime::{Context, Geometry, Texts};
use crate::engine::{Built, Denoise, Limits, Model, Text, Wording};
use crate::error::Result;
use crate::model::ModelFolder;

/// A model folder on a CUDA device, run by ONNX Runtime's CUDA provider or by TensorRT.
///
/// What frames need runs on the device's stream, at fixed addresses, and is recorded there like the device's own operations:
/// for every frame, or, what is computed ahead of frames, when a prompt or the steps change. Text encoders run beside it, so
/// that they wait for no frame and no frame for them, and take and give tensors in main memory.
pub struct CudaModel {
    cuda: Cuda,
    texts: Texts,
    geometry: Geometry,
    engines: Engines,
}

/// What the engines of a model are.
pub(in crate::engine) struct Engines {
    /// The U-Net.
    pub unet: CudaUnet,
    /// The image encoder.
    pub vae_encoder: Transform,
    /// The image decoder.
    pub vae_decoder: Transform,
    /// What they were built for, where that is less than the graphs can do.
    pub built: Option<Built>,
    /// What runs them, for people: engine, version and device.
    pub backend: String,
    /// How they get to the GPU, for people: as part of a CUDA graph, or why not.
    pub graphs: String,
    /// Where they come from, for people; empty where they are made when they are loaded.
    pub origin: String,
}

impl CudaModel {
    /// The model in `folder` with these texts and engines.
    pub(in crate::engine) fn new(
        folder: &ModelFolder,
        cuda: &Cuda,
        texts: Texts,
        engines: Engines,
    ) -> Self {
        let mut geometry = Geometry::new(folder);
        let limits = &mut geometry.limits;
        limits.built.clone_from(&engines.built);
        if let Some(Built { chunks, .. }) = &engines.built
            && chunks.0 == chunks.1
        {
            limits.chunks = Some(chunks.0);
        }
        Self {
            cuda: cuda.clone(),
            texts,
            geometry,
            engines,
        }
    }

    /// How much of the U-Net is computed ahead, or why nothing is, for people.
    pub fn precomputed(&self) -> &str {
        self.engines.unet.contexts().told()
    }

    /// What runs it, for people: engine, version and device.
    pub fn backend(&self) -> &str {
        &self.engines.backend
    }

    /// How what runs for every frame is put on the GPU, for people: as part of a CUDA graph, or why not.
    pub fn graphs(&self) -> &str {
        &self.engines.graphs
    }

    /// Where its engines come from, for people: found or built, when, and why. Empty where they are made when the model is
    /// loaded.
    pub fn origin(&self) -> &str {
        &self.engines.origin
    }
}

impl Model for CudaModel {
    type Tensor = CudaTensor;
    type Context = Context<Kept>;

    fn limits(&self) -> &Limits {
        &self.geometry.limits
    }

    fn chunks(&self, text: &str) -> Result<usize> {
        let chunks = self.texts.chunks(text)?;
        // Engines may take more than it needs, which is then filled up.
        let least = self.geometry.limits.built.as_ref();
        Ok(chunks.max(least.map_or(1, |built| built.chunks.0)))
    }

    fn encode_text(&self, text: Option<&str>, chunks: usize) -> Result<Text<HostTensor>> {
        if let Some(built) = &self.geometry.limits.built {
            built.check_chunks(chunks)?;
        }
        self.texts.encode(text, chunks)
    }

    fn precompute(
        &self,
        timesteps: &[u32],
        text: &Wording,
        size: (usize, usize),
        like: Option<&Context<Kept>>,
    ) -> Result<Vec<Context<Kept>>> {
        (self.engines.unet.contexts()).make(timesteps, text, size, like)
    }

    fn encode(&self, pictures: &CudaTensor, noise: Option<&CudaTensor>) -> Result<CudaTensor> {
        let wrong = |what| self.engines.vae_encoder.error(what);
        let shape = self.geometry.encoded(pictures.shape()).map_err(wrong)?;
        let given = noise.map(CudaTensor::shape);
        self.geometry.check_noise(given, &shape).map_err(wrong)?;
        let row = self.geometry.parameters(&shape);
        let outputs = self.engines.vae_encoder.run(pictures, 1.0, 0.0, row)?;
        let outputs: Vec<&CudaTensor> = outputs.iter().collect();
        let (shift, scale) = (self.geometry.shift_factor, self.geometry.scaling_factor);
        let latents = self.cuda.empty(&shape, Element::F16)?;
        if !self.geometry.gives_posterior {
            self.cuda.copy(&outputs, &latents, scale, -shift * scale)?;
            return Ok(latents);
        }
        let all;
        let moments = match outputs[..] {
            [only] => only,
            _ => {
                let shape = [shape[0], row[0], row[1], row[2]];
                all = self.cuda.empty(&shape, outputs[0].element())?;
                self.cuda.copy(&outputs, &all, 1.0, 0.0)?;
                &all
            }
        };
        self.cuda
            .posterior(moments, noise, &latents, scale, shift)?;
        Ok(latents)
    }

    fn denoise(&self, rows: &[Denoise<'_, Self>]) -> Result<Vec<CudaTensor>> {
        self.engines.unet.denoise(rows)
    }

    fn decode(&self, latents: &CudaTensor) -> Result<CudaTensor> {
        let row = self.geometry.decoded(latents.shape());
        let row = row.map_err(|what| self.engines.vae_decoder.error(what))?;
        let (shift, scale) = (self.geometry.shift_factor, self.geometry.scaling_factor);
        let outputs = self
            .engines
            .vae_decoder
            .run(latents, 1.0 / scale, shift, row)?;
        let outputs: Vec<&CudaTensor> = outputs.iter().collect();
        let shape = [latents.shape()[0], row[0], row[1], row[2]];
        let pictures = self.cuda.empty(&shape, Element::F16)?;
        self.cuda.copy(&outputs, &pictures, 1.0, 0.0)?;
        Ok(pictures)
    }

    fn release_thread(&self) {
        self.cuda.release_thread();
    }
}
