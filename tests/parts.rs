//! U-Nets in two parts, one of which is computed ahead, against the same U-Nets in one piece.
//!
//! The reference is the U-Net in one piece, given one frame at a time. Differences are allowed for where a product of
//! matrices adds up in another order, since one row is multiplied by other code than several.
//!
//! Needs ONNX Runtime (`ORT_DYLIB_PATH`, or beside the test program): without it these tests fail, they do not skip.

mod common;

use std::fs;
use std::path::{Path, PathBuf};

use common::{Folder, copy, data, parity};
use gststreamdiffusion::device::HostTensor;
use gststreamdiffusion::engine::onnxruntime::{Context, OnnxModel};
use gststreamdiffusion::engine::{Denoise, Model, Wording};
use gststreamdiffusion::model::ModelFolder;

/// Largest difference allowed, as a share of the largest value.
const TOLERANCE: f32 = 1e-5;
/// In no order that anyone would sort them in.
const TIMESTEPS: [u32; 4] = [321, 981, 41, 661];

/// What a row of a call is: its frames, its timestep as an index into [`TIMESTEPS`], its text.
struct Row {
    frames: HostTensor,
    timestep: usize,
    text: usize,
}

/// `frames` latents that look random.
fn latents(
    frames: usize,
    channels: usize,
    (height, width): (usize, usize),
    seed: u64,
) -> HostTensor {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (state >> 40) as f32 / (1u64 << 22) as f32 - 2.0
    };
    let count = frames * channels * height * width;
    let values = (0..count).map(|_| next()).collect();
    HostTensor::new(&[frames, channels, height, width], values)
}

/// Contexts of `text` at all [`TIMESTEPS`], asked for together or one by one, in which case they share nothing.
fn contexts(
    model: &OnnxModel,
    text: &Wording,
    size: (usize, usize),
    together: bool,
) -> Vec<Context> {
    let (first, others) = TIMESTEPS.split_at(1);
    if together {
        // As a stream whose steps change asks for them.
        let mut contexts = model.precompute(first, text, size, None).unwrap();
        let like = contexts[0].clone();
        contexts.extend(model.precompute(others, text, size, Some(&like)).unwrap());
        return contexts;
    }
    TIMESTEPS
        .iter()
        .flat_map(|timestep| model.precompute(&[*timestep], text, size, None).unwrap())
        .collect()
}

/// What `model` makes of `rows` in one call.
fn predict(model: &OnnxModel, texts: &[Wording], rows: &[Row], together: bool) -> Vec<HostTensor> {
    let size = (rows[0].frames.shape()[2], rows[0].frames.shape()[3]);
    let contexts: Vec<_> = texts
        .iter()
        .map(|text| contexts(model, text, size, together))
        .collect();
    let rows: Vec<_> = rows
        .iter()
        .map(|row| Denoise {
            sample: &row.frames,
            context: &contexts[row.text][row.timestep],
        })
        .collect();
    model.denoise(&rows).unwrap()
}

/// The same by one call for each frame.
fn predict_one_by_one(model: &OnnxModel, texts: &[Wording], rows: &[Row]) -> Vec<HostTensor> {
    rows.iter()
        .map(|row| {
            let shape = row.frames.shape();
            let one = [1, shape[1], shape[2], shape[3]];
            let frames = row.frames.data().chunks(one.iter().product());
            let found = frames.flat_map(|frame| {
                let row = Row {
                    frames: HostTensor::new(&one, frame.to_vec()),
                    ..*row
                };
                predict(model, texts, &[row], false).remove(0).into_data()
            });
            HostTensor::new(shape, found.collect())
        })
        .collect()
}

/// Largest difference of two lists of tensors, as a share of the largest value of the second.
#[track_caller]
fn difference(found: &[HostTensor], expected: &[HostTensor]) -> f32 {
    assert_eq!(found.len(), expected.len());
    let (mut worst, mut largest) = (0f32, 0f32);
    for (found, expected) in found.iter().zip(expected) {
        assert_eq!(found.shape(), expected.shape());
        for (a, b) in found.data().iter().zip(expected.data()) {
            assert!(a.is_finite());
            worst = worst.max((a - b).abs());
            largest = largest.max(b.abs());
        }
    }
    assert!(largest > 1e-2, "there is nothing in the output");
    worst / largest
}

/// With fused attentions: the graph in two parts, else in one.
fn open_fused(folder: &Path, split: bool) -> OnnxModel {
    let opened = ModelFolder::open(folder).unwrap();
    let model = OnnxModel::open_fused(&opened, split).unwrap();
    let (told, name) = (model.backend(), folder.display());
    assert!(told.contains(" attentions fused)"), "{name}: {told}");
    assert_eq!(model.precomputed().starts_with("nothing"), !split);
    model
}

fn open(folder: &Path, split: bool) -> OnnxModel {
    let opened = ModelFolder::open(folder).unwrap();
    let model = match split {
        true => OnnxModel::open(&opened),
        false => OnnxModel::open_whole(&opened),
    };
    let model = model.unwrap();
    let told = model.precomputed();
    let name = folder.display();
    assert_eq!(told.starts_with("nothing"), !split, "{name}: {told}");
    let backend = model.backend();
    assert!(backend.ends_with(" (CPU)"), "{name}: {backend}");
    model
}

/// Texts of as many chunks each: a prompt, a negative prompt, and none.
fn texts(model: &OnnxModel, chunks: usize) -> Vec<Wording> {
    [Some("a neon cat"), Some("ink, blurry"), None]
        .map(|text| model.encode_text(text, chunks).unwrap().into())
        .into()
}

/// Heights and widths of latents: the least, and one that is not square.
fn sizes(model: &OnnxModel) -> [(usize, usize); 2] {
    let side = model.limits().multiple / model.limits().latent_scale;
    [(side, side), (side, 2 * side)]
}

/// Rows as `cfg-type=full` has them: each step with the prompt, then each with the negative prompt; then some steps
/// again, so that rows of one step and text stand apart.
fn rows(channels: usize, size: (usize, usize), frames: usize) -> Vec<Row> {
    [
        (0, 0),
        (1, 0),
        (2, 0),
        (3, 0),
        (0, 1),
        (1, 1),
        (2, 1),
        (3, 1),
        (2, 0),
        (1, 2),
    ]
    .into_iter()
    .zip(1..)
    .map(|((timestep, text), seed)| Row {
        frames: latents(frames, channels, size, seed),
        timestep,
        text,
    })
    .collect()
}

/// Compares the model in `folder` split and whole.
fn agrees(folder: &Path) {
    let name = folder.display();
    let (split, whole) = (open(folder, true), open(folder, false));
    let fused = [true, false].map(|split| open_fused(folder, split));
    let channels = whole.limits().latent_channels;
    let mut worst = 0f32;
    for chunks in 1..=whole.limits().chunks.unwrap_or(2) {
        let texts = texts(&whole, chunks);
        for size in sizes(&whole) {
            // What a row is given beside its frame must show, else mixing it up would not.
            let frame = latents(1, channels, size, 7);
            let of = |timestep, text| Row {
                frames: frame.clone(),
                timestep,
                text,
            };
            let base = predict(&whole, &texts, &[of(0, 0)], false);
            for other in [of(1, 0), of(2, 0), of(3, 0), of(0, 1), of(0, 2)] {
                let (timestep, text) = (other.timestep, other.text);
                let shows = difference(&predict(&whole, &texts, &[other], false), &base);
                let what = format!("timestep {timestep} and text {text} change {shows:.1e}");
                assert!(shows > 100.0 * TOLERANCE, "{name}: {what}");
            }
            for frames in [1, 2] {
                let rows = rows(channels, size, frames);
                let expected = predict_one_by_one(&whole, &texts, &rows);
                for together in [true, false] {
                    for model in [&split, &fused[0], &fused[1]] {
                        let found = predict(model, &texts, &rows, together);
                        let difference = difference(&found, &expected);
                        worst = worst.max(difference);
                        assert!(
                            difference <= TOLERANCE,
                            "{name}: {}, {chunks} chunks, {frames} frames of {size:?}: {difference:.1e}",
                            model.backend()
                        );
                    }
                }
            }
        }
    }
    println!("{name}: largest difference {worst:.1e}");
}

#[test]
fn tiny_models() {
    let entries = fs::read_dir(data("models")).unwrap().flatten();
    let folders = entries.map(|entry| entry.path());
    let mut folders: Vec<PathBuf> = folders
        .filter(|path| path.join("model_index.json").exists())
        .collect();
    folders.sort();
    assert_eq!(folders.len(), 7, "{folders:?}");
    for folder in folders {
        agrees(&folder);
    }
}

#[test]
fn the_parity_model() {
    agrees(&parity());
}

#[test]
fn the_demo_model() {
    agrees(&Path::new(env!("CARGO_MANIFEST_DIR")).join("models/demo"));
}

/// A U-Net that takes two rows and no others, in two parts, against the one that takes any number, in one piece.
#[test]
fn a_batch_that_the_graph_fixes() {
    let folder = Folder::new();
    copy(&data("models/sd1"), folder.path());
    copy(&data("models/sd1-batch-2/unet"), &folder.file("unet"));
    let fixed = ModelFolder::open(folder.path()).unwrap();
    assert_eq!(fixed.unet().batch(), Some(2));
    let split = open(folder.path(), true);
    let whole = open(&data("models/sd1"), false);
    let texts = texts(&whole, 1);
    let channels = whole.limits().latent_channels;
    for size in sizes(&whole) {
        for frames in [1, 2] {
            for count in [1, 2, 3] {
                let mut rows = rows(channels, size, frames);
                rows.rotate_left(3);
                rows.truncate(count);
                let expected = predict_one_by_one(&whole, &texts, &rows);
                for together in [true, false] {
                    let found = predict(&split, &texts, &rows, together);
                    let difference = difference(&found, &expected);
                    let what = format!("{count} rows of {frames} frames of {size:?}");
                    assert!(difference <= TOLERANCE, "{what}: {difference:.1e}");
                }
            }
        }
    }
}
