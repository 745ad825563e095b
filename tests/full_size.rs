//! Models that are too large to keep here, of which `FULL_MODEL` names the folder:
//!
//! `FULL_MODEL=FOLDER cargo test --test full_size -- --ignored --nocapture`
//!
//! `tools/full_size.py` makes such folders with random weights and runs this. Needs ONNX Runtime (`ORT_DYLIB_PATH`).

use std::path::Path;
use std::time::Instant;

use gststreamdiffusion::device::HostTensor;
use gststreamdiffusion::engine::onnxruntime::OnnxModel;
use gststreamdiffusion::engine::{Denoise, Model};
use gststreamdiffusion::model::{Boundary, Dtype, ModelFolder, Role, Split};
use gststreamdiffusion::stream::noise::TorchGenerator;

/// Frames that go through the U-Net at once, each at its own step.
const TIMESTEPS: [u32; 2] = [759, 259];

/// What the model makes of the same two rows of noise, and the time of the second of two calls in seconds.
fn outputs(folder: &ModelFolder, model: &OnnxModel, side: usize) -> (Vec<f32>, f64) {
    let side = side / folder.latent_scale();
    let shape = [1, folder.latent_channels(), side, side];
    let size: usize = shape.iter().product();
    let noise = TorchGenerator::new(0).randn(TIMESTEPS.len() * size);
    let text = model.encode_text(Some("a painting of a lake"), 1).unwrap();
    let contexts = model
        .precompute(&TIMESTEPS, &text.into(), (side, side), None)
        .unwrap();
    let samples: Vec<_> = noise
        .chunks(size)
        .map(|map| HostTensor::new(&shape, map.to_vec()))
        .collect();
    let rows: Vec<_> = samples
        .iter()
        .zip(&contexts)
        .map(|(sample, context)| Denoise { sample, context })
        .collect();
    // The first call sets memory up.
    model.denoise(&rows).unwrap();
    let start = Instant::now();
    let found = model.denoise(&rows).unwrap();
    let time = start.elapsed().as_secs_f64();
    (found.iter().flat_map(|t| t.data()).copied().collect(), time)
}

/// What the parts are: without weights, so that it takes no time.
#[test]
#[ignore = "needs FULL_MODEL, a model folder"]
fn the_u_net_splits() {
    let path = std::env::var_os("FULL_MODEL").expect("FULL_MODEL is set");
    let folder = ModelFolder::open(Path::new(&path)).unwrap();
    let unet = folder.unet();
    let name = |role| &unet.input(role).unwrap().name;
    let split = Split::open(&unet.path, name(Role::Sample), &unet.output.name);
    let split = split.unwrap().expect("there is something to compute ahead");
    let boundary = split.boundary();
    let of_time = |b: &&Boundary| b.from.contains(name(Role::Timestep));
    let timed = boundary.iter().filter(of_time).count();
    let [all, ahead, live] = split.node_counts();
    println!(
        "nodes {all}, ahead {ahead}, live {live}; kept {}, {timed} of them follow from the timestep",
        boundary.len()
    );
    assert!(timed > 0 && boundary.len() > timed);
}

/// One after the other, since two copies of a large U-Net may not fit in memory.
#[test]
#[ignore = "needs FULL_MODEL, a model folder"]
fn the_split_u_net_agrees_with_the_whole_one() {
    let path = std::env::var_os("FULL_MODEL").expect("FULL_MODEL is set");
    let side = std::env::var("FULL_SIDE").map_or(512, |side| side.parse().unwrap());
    let folder = ModelFolder::open(Path::new(&path)).unwrap();
    let (split, time_split) = {
        let model = OnnxModel::open(&folder).unwrap();
        let ahead = model.precomputed();
        assert!(ahead.contains("tensors kept"), "{ahead}");
        outputs(&folder, &model, side)
    };
    let (whole, time_whole) = {
        let model = OnnxModel::open_whole(&folder).unwrap();
        outputs(&folder, &model, side)
    };
    assert_eq!(split.len(), whole.len());
    assert!(split.iter().all(|x| x.is_finite()));
    let largest = whole.iter().fold(0f32, |most, x| most.max(x.abs()));
    let pairs = split.iter().zip(&whole);
    let difference = pairs.fold(0f32, |most, (a, b)| most.max((a - b).abs()));
    println!(
        "largest difference {difference:.2e}, largest value {largest:.3}, U-Net of two rows {time_split:.2} s split, {time_whole:.2} s whole"
    );
    // Same operations, but for the order of sums: matrices of one row are multiplied by other code than those of several.
    // In f16 what is kept between the parts is rounded to 11 bits, as it would be between any two layers.
    let dtype = folder.unet().output.dtype;
    let tolerance = match dtype {
        Dtype::F16 => 2e-2,
        _ => 1e-4,
    };
    assert!(largest > 0.0 && difference <= tolerance * largest);
}
