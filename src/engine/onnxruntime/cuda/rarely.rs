//! What ONNX Runtime does for a model whose frames another engine runs.

use super::options::{self, CudaProvider, Graphs};
use crate::device::cuda::Cuda;
use crate::engine::Telling;
use crate::engine::onnxruntime::library;
use crate::engine::onnxruntime::provider::Provider;
use crate::engine::onnxruntime::text::Texts;
use crate::engine::onnxruntime::unet::Ahead;
use crate::error::Result;
use crate::model::ModelFolder;

/// The text encoders, and what of the U-Net is computed ahead. Both run when a prompt or the steps change only.
///
/// They run on the GPU if this ONNX Runtime can use it, as f16 takes long on processors, else on the CPU: who has no CUDA
/// provider waits longer for a new prompt, and not for frames.
pub(in crate::engine) struct Rarely {
    /// The text encoders.
    pub texts: Texts,
    /// What rows of the U-Net are given.
    pub ahead: Ahead,
    /// The inputs of what the other engine runs of the U-Net, the latent among them, in the order of their feeds.
    pub inputs: Vec<String>,
    /// Which of them is the latent.
    pub sample: usize,
}

impl Rarely {
    /// Loads them, telling of each text encoder. With `live`, the other engine runs the live part of the U-Net only.
    ///
    /// # Errors
    /// [`Error::Library`](crate::error::Error::Library) without ONNX Runtime; [`Error::Engine`](crate::error::Error::Engine)
    /// if the U-Net cannot be cut in two and is to be.
    pub fn open(folder: &ModelFolder, cuda: &Cuda, live: bool, tell: Telling<'_>) -> Result<Self> {
        let runtime = library::runtime()?;
        let (graphs, rows) = (Graphs::of(runtime), folder.unet().batch());
        let (texts, contexts) = match options::check(runtime) {
            Ok(()) => (
                Provider::Cuda(CudaProvider::of_texts(cuda)),
                Provider::Cuda(CudaProvider::of_contexts(cuda, graphs, rows)),
            ),
            Err(_) => (Provider::Cpu, Provider::Cpu),
        };
        let (ahead, inputs, sample) = Ahead::open(folder, live, &contexts)?;
        Ok(Self {
            texts: Texts::open(folder, &texts, tell)?,
            ahead,
            inputs,
            sample,
        })
    }
}
