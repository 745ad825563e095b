//! Models run by the CUDA provider.

use std::sync::Arc;

use super::options::{self, CudaProvider, Graphs};
use super::processor::Processor;
use crate::device::cuda::Cuda;
use crate::engine::cuda::{CudaModel, CudaUnet, Engines, Program, RowRange, Transform};
use crate::engine::onnxruntime::fusing;
use crate::engine::onnxruntime::library;
use crate::engine::onnxruntime::provider::{Provider, Providers, fusions_or_asked};
use crate::engine::onnxruntime::session::Session;
use crate::engine::onnxruntime::text::Texts;
use crate::engine::onnxruntime::unet::Unet;
use crate::engine::{Telling, silent};
use crate::error::Result;
use crate::model::{Component, ComponentFile, Fusions, ModelFolder};

/// An error that says what is missing, unless the ONNX Runtime in use can run models on NVIDIA's GPUs.
pub fn available() -> Result<()> {
    options::check(library::runtime()?)
}

/// Loads all components of `folder` on `cuda`, to be run by ONNX Runtime. What the U-Net can compute ahead is split from
/// it. An error says what is missing where this ONNX Runtime cannot use a GPU.
pub fn open(folder: &ModelFolder, cuda: &Cuda) -> Result<CudaModel> {
    load(folder, cuda, true, usual(), &silent)
}

/// The same, telling of each component.
pub fn open_telling(folder: &ModelFolder, cuda: &Cuda, tell: Telling<'_>) -> Result<CudaModel> {
    load(folder, cuda, true, usual(), tell)
}

/// The same with the U-Net in one piece, to compare.
pub fn open_whole(folder: &ModelFolder, cuda: &Cuda) -> Result<CudaModel> {
    load(folder, cuda, false, usual(), &silent)
}

/// The same with the graphs run as they were exported, to compare.
pub fn open_exported(folder: &ModelFolder, cuda: &Cuda) -> Result<CudaModel> {
    load(folder, cuda, true, None, &silent)
}

/// What a GPU runs fastest.
fn usual() -> Option<Fusions> {
    let all = match Processor::in_place() {
        Some(_) => Fusions::ATTENTION,
        None => Fusions::ALL,
    };
    fusions_or_asked(Some(all))
}

fn load(
    folder: &ModelFolder,
    cuda: &Cuda,
    split: bool,
    fusions: Option<Fusions>,
    tell: Telling<'_>,
) -> Result<CudaModel> {
    let runtime = library::runtime()?;
    options::check(runtime)?;
    let graphs = Graphs::of(runtime);
    let kind = match Processor::in_place() {
        Some(_) => "CPU",
        None => "CUDA",
    };
    let on = Providers {
        texts: Provider::Cuda(CudaProvider::of_texts(cuda)),
        contexts: Provider::Cuda(CudaProvider::of_contexts(
            cuda,
            graphs,
            folder.unet().batch(),
        )),
        frames: Provider::Cuda(CudaProvider::of_frames(cuda, graphs)),
        fusions,
    };
    let texts = Texts::open(folder, &on.texts, tell)?;
    tell(Component::Unet)?;
    let Unet {
        ahead,
        live,
        sample,
        batch,
        told,
    } = Unet::open(folder, split, &on)?;
    // The one head of an autoencoder's attention is larger than the kernels of flash attention take.
    let fusions = fusions.map(|fusions| Fusions {
        attention: false,
        ..fusions
    });
    let nothing = on.frames.is_processor().then_some(Fusions::NONE);
    let fusions = fusions.filter(|fusions| Some(*fusions) != nothing);
    let (width, height) = fusing::trial_size(folder, &on.frames);
    let session = |file: &ComponentFile, channels: usize, scale: usize| {
        let rows = file.batch().unwrap_or(1);
        let shape = [rows, channels, height / scale, width / scale];
        let call = |_: &Session| Ok(Some(vec![fusing::waves(&shape)]));
        let (session, told) = fusing::open(file, fusions, &on.frames, call)?;
        Ok((Arc::new(session), told))
    };
    tell(Component::VaeEncoder)?;
    let (vae_encoder, of_encoder) = session(folder.vae_encoder(), 3, 1)?;
    tell(Component::VaeDecoder)?;
    let (channels, scale) = (folder.latent_channels(), folder.latent_scale());
    let (vae_decoder, of_decoder) = session(folder.vae_decoder(), channels, scale)?;
    let faster = told.and(of_encoder).and(of_decoder);
    let launched = launched(graphs, [&vae_encoder, &live, &vae_decoder]);
    let transform = |session: Arc<Session>, file: &ComponentFile| {
        let program: Arc<dyn Program> = session;
        Transform::new(&program, cuda, RowRange::of_graph(file.batch()))
    };
    let live: Arc<dyn Program> = live;
    let engines = Engines {
        unet: CudaUnet::new(
            folder,
            &live,
            ahead,
            sample,
            cuda,
            RowRange::of_graph(batch),
        )?,
        vae_encoder: transform(vae_encoder, folder.vae_encoder()),
        vae_decoder: transform(vae_decoder, folder.vae_decoder()),
        built: None,
        backend: format!(
            "onnxruntime {} ({kind}, {}{faster})",
            runtime.version,
            cuda.name()
        ),
        graphs: launched,
        origin: String::new(),
    };
    Ok(CudaModel::new(folder, cuda, texts, engines))
}

/// How runs get to the GPU, and which do not.
fn launched(graphs: Graphs, sessions: [&Arc<Session>; 3]) -> String {
    let copying = sessions.into_iter().filter(|session| session.copies());
    let copying: Vec<_> = copying
        .map(|session| session.component().folder())
        .collect();
    match &copying[..] {
        [] => graphs.to_string(),
        some => format!(
            "{graphs}; not {}: it moves tensors to main memory and back",
            some.join(", ")
        ),
    }
}
