//! The components as one [`Model`] on a GPU.

use super::options::{self, CudaProvider, Graphs};
use super::transform::Transform;
use super::unet::{CudaUnet, Kept};
use crate::device::HostTensor;
use crate::device::cuda::{Cuda, CudaTensor, Element};
use crate::engine::onnxruntime::geometry::Geometry;
use crate::engine::onnxruntime::library;
use crate::engine::onnxruntime::provider::{Provider, Providers};
use crate::engine::onnxruntime::text::Texts;
use crate::engine::onnxruntime::unet::Context;
use crate::engine::{Denoise, Limits, Model, Telling, Text, silent};
use crate::error::Result;
use crate::model::{Component, ModelFolder};

/// A model folder run by ONNX Runtime's CUDA provider on a CUDA device.
///
/// What runs for every frame runs on the device's stream, at fixed addresses, and is recorded there like the device's own
/// operations. What runs when a prompt or the steps change runs on streams of ONNX Runtime's own, so that it waits for no
/// frame and no frame for it, and takes and gives tensors in main memory.
pub struct CudaOnnxModel {
    cuda: Cuda,
    texts: Texts,
    unet: CudaUnet,
    vae_encoder: Transform,
    vae_decoder: Transform,
    geometry: Geometry,
    backend: String,
}

impl CudaOnnxModel {
    /// An error that says what is missing, unless the ONNX Runtime in use can run models on NVIDIA's GPUs.
    pub fn available() -> Result<()> {
        options::check(library::runtime()?)
    }

    /// Loads all components of `folder` on `cuda`. What the U-Net can compute ahead is split from it. An error says what is
    /// missing where this ONNX Runtime cannot use a GPU.
    pub fn open(folder: &ModelFolder, cuda: &Cuda) -> Result<Self> {
        Self::load(folder, cuda, true, &silent)
    }

    /// The same, telling of each component.
    pub fn open_telling(folder: &ModelFolder, cuda: &Cuda, tell: Telling<'_>) -> Result<Self> {
        Self::load(folder, cuda, true, tell)
    }

    /// The same with the U-Net in one piece, to compare.
    pub fn open_whole(folder: &ModelFolder, cuda: &Cuda) -> Result<Self> {
        Self::load(folder, cuda, false, &silent)
    }

    fn load(folder: &ModelFolder, cuda: &Cuda, split: bool, tell: Telling<'_>) -> Result<Self> {
        let runtime = library::runtime()?;
        options::check(runtime)?;
        let graphs = Graphs::of(runtime);
        let on = Providers {
            texts: Provider::Cuda(CudaProvider::of_texts(cuda)),
            frames: Provider::Cuda(CudaProvider::of_frames(cuda, graphs)),
        };
        let backend = format!("onnxruntime {} (CUDA, {})", runtime.version, cuda.name());
        Self::load_on(folder, cuda, split, &on, backend, tell)
    }

    fn load_on(
        folder: &ModelFolder,
        cuda: &Cuda,
        split: bool,
        on: &Providers,
        backend: String,
        tell: Telling<'_>,
    ) -> Result<Self> {
        Ok(Self {
            texts: Texts::open(folder, &on.texts, tell)?,
            unet: {
                tell(Component::Unet)?;
                CudaUnet::open(folder, split, cuda, on)?
            },
            vae_encoder: {
                tell(Component::VaeEncoder)?;
                Transform::open(folder.vae_encoder(), cuda, &on.frames)?
            },
            vae_decoder: {
                tell(Component::VaeDecoder)?;
                Transform::open(folder.vae_decoder(), cuda, &on.frames)?
            },
            geometry: Geometry::new(folder),
            backend,
            cuda: cuda.clone(),
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

    /// How what runs for every frame is put on the GPU, for people: as part of a CUDA graph, or why not.
    pub fn graphs(&self) -> String {
        let sessions = [
            self.vae_encoder.session(),
            self.unet.session(),
            self.vae_decoder.session(),
        ];
        let copying = sessions.into_iter().filter(|session| session.copies());
        let copying: Vec<_> = copying
            .map(|session| session.component().folder())
            .collect();
        let Provider::Cuda(provider) = self.unet.session().provider() else {
            return String::new();
        };
        match &copying[..] {
            [] => provider.graphs.to_string(),
            some => format!(
                "{}; not {}: it moves tensors to main memory and back",
                provider.graphs,
                some.join(", ")
            ),
        }
    }
}

impl Model for CudaOnnxModel {
    type Tensor = CudaTensor;
    type Context = Context<Kept>;

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
        text: &Text<HostTensor>,
        size: (usize, usize),
        like: Option<&Context<Kept>>,
    ) -> Result<Vec<Context<Kept>>> {
        self.unet.precompute(timesteps, text, size, like)
    }

    fn encode(&self, pictures: &CudaTensor, noise: Option<&CudaTensor>) -> Result<CudaTensor> {
        let wrong = |what| self.vae_encoder.error(what);
        let shape = self.geometry.encoded(pictures.shape()).map_err(wrong)?;
        let given = noise.map(CudaTensor::shape);
        self.geometry.check_noise(given, &shape).map_err(wrong)?;
        let row = self.geometry.parameters(&shape);
        let outputs = self.vae_encoder.run(pictures, 1.0, 0.0, row)?;
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
        self.unet.denoise(rows)
    }

    fn decode(&self, latents: &CudaTensor) -> Result<CudaTensor> {
        let row = self.geometry.decoded(latents.shape());
        let row = row.map_err(|what| self.vae_decoder.error(what))?;
        let (shift, scale) = (self.geometry.shift_factor, self.geometry.scaling_factor);
        let outputs = self.vae_decoder.run(latents, 1.0 / scale, shift, row)?;
        let outputs: Vec<&CudaTensor> = outputs.iter().collect();
        let shape = [latents.shape()[0], row[0], row[1], row[2]];
        let pictures = self.cuda.empty(&shape, Element::F16)?;
        self.cuda.copy(&outputs, &pictures, 1.0, 0.0)?;
        Ok(pictures)
    }
}
