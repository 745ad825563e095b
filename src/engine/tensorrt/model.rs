//! Models run by TensorRT.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::execution::Executable;
use super::library;
use super::supply::Supply;
use crate::device::cuda::Cuda;
use crate::engine::Telling;
use crate::engine::cache::{Cache, Cached, Key};
use crate::engine::cuda::{CudaModel, CudaUnet, Engines, Program, RowRange, Transform};
use crate::engine::onnxruntime::Rarely;
use crate::error::Result;
use crate::model::{Component, ComponentFile, ModelFolder, Role};

/// Loads the model in `folder` on `cuda` with the engines of `supply`, read from `cache` and checked, telling of each
/// component. What runs when a
/// prompt or the steps change (text encoders, and what of the U-Net is computed ahead) is run by ONNX Runtime: it is seldom,
/// its shapes follow the text's length, and what it gives is put in device memory once.
///
/// # Errors
/// [`Error::Invalid`](crate::error::Error::Invalid) for engines that must not be used,
/// [`Error::Library`](crate::error::Error::Library) without TensorRT or ONNX Runtime,
/// [`Error::Engine`](crate::error::Error::Engine) with TensorRT's words where an engine cannot run on this GPU.
pub fn open(
    folder: &ModelFolder,
    cuda: &Cuda,
    supply: &Supply,
    cache: &Cache,
    tell: Telling<'_>,
) -> Result<CudaModel> {
    let library = library::library()?;
    let [unet, encoder, decoder] = &supply.engines;
    let Rarely {
        texts,
        ahead,
        inputs,
        sample,
    } = Rarely::open(folder, cuda, unet.part == "live", tell)?;
    // The U-Net first, as it needs the most memory; the bytes of each go before those of the next come.
    tell(Component::Unet)?;
    let (unet, rows) = program(cache, unet, cuda, folder.unet(), &inputs, "rows")?;
    let unet = CudaUnet::new(folder, &unet, ahead, sample, cuda, rows)?;
    let transform = |key: &Key, file: &ComponentFile| {
        let input = file.input(Role::Sample).map(|port| port.name.clone());
        let inputs: Vec<_> = input.into_iter().collect();
        let (program, rows) = program(cache, key, cuda, file, &inputs, "frames")?;
        Ok(Transform::new(&program, cuda, rows))
    };
    tell(Component::VaeEncoder)?;
    let vae_encoder = transform(encoder, folder.vae_encoder())?;
    tell(Component::VaeDecoder)?;
    let vae_decoder = transform(decoder, folder.vae_decoder())?;
    let engines = Engines {
        unet,
        vae_encoder,
        vae_decoder,
        built: Some(supply.built.clone()),
        backend: format!("{library} ({})", cuda.name()),
        graphs: "in the frame's CUDA graph".into(),
        origin: supply.origin.clone(),
    };
    Ok(CudaModel::new(folder, cuda, texts, engines))
}

/// The engine of `key` on the GPU, and how many rows (which its record calls `quantity`) it takes.
fn program(
    cache: &Cache,
    key: &Key,
    cuda: &Cuda,
    file: &ComponentFile,
    inputs: &[String],
    quantity: &str,
) -> Result<(Arc<dyn Program>, RowRange)> {
    let cached: Cached = cache.load(key)?;
    let engine = Executable::open_with(&cached, cuda, inputs, &file.output.name)?;
    let rows = rows(file.batch(), &cached.record.serves, quantity);
    Ok((engine, rows))
}

/// How many rows an engine takes at once: as many as its graph fixes, else those that it was built for.
fn rows(
    batch: Option<usize>,
    serves: &BTreeMap<String, (usize, usize)>,
    quantity: &str,
) -> RowRange {
    match (batch, serves.get(quantity)) {
        (None, Some((least, most))) => RowRange {
            least: *least,
            most: *most,
        },
        (batch, _) => RowRange::of_graph(batch),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_the_graphs_or_the_engines() {
        let serves = BTreeMap::from([("rows".to_owned(), (2, 8))]);
        let built = RowRange { least: 2, most: 8 };
        assert_eq!(rows(None, &serves, "rows"), built);
        assert_eq!(rows(Some(3), &serves, "rows"), RowRange::of_graph(Some(3)));
        assert_eq!(rows(None, &serves, "frames"), RowRange::of_graph(None));
    }
}
