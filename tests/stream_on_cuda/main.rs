//! A whole stream on a CUDA device against the same on the host: frames that come, are restyled and go, while settings and
//! prompts change. On the stand-in that computes, with frames as graphs and without, and on a GPU.
#![cfg(feature = "cuda")]

#[cfg(target_os = "linux")]
#[path = "../standin/computing.rs"]
mod computing;
mod film;
mod place;
#[cfg(target_os = "linux")]
#[path = "../standin/mod.rs"]
mod standin;
#[macro_use]
#[path = "../standin/twins.rs"]
mod twins;

use std::path::Path;
use std::sync::Arc;

use film::{Film, Prompts, guided, plain, steps};
use gststreamdiffusion::device::cuda::Cuda;
use gststreamdiffusion::engine::cuda::CudaModel;
use gststreamdiffusion::engine::onnxruntime::{self, OnnxModel};
use gststreamdiffusion::model::ModelFolder;
use gststreamdiffusion::stream::{
    CfgType, Interpolation, Method, Mode, Settings, Similarity, Variation,
};
use place::{OnCuda, OnHost};

/// Set to 0, frames are not made graphs.
const GRAPHS: &str = "STREAMDIFFUSION_CUDA_GRAPHS";
const PARITY: &str = "tests/data/parity/model";

const CAT: Prompts = Prompts {
    from: 0,
    prompt: "a neon cat",
    negative: "ink",
    over: 0,
};

/// A film without anything, to be filled in.
const FILM: Film = Film {
    name: "",
    frames: 30,
    still: 0..0,
    group: 1,
    settings: |_| plain(),
    prompts: &[CAT],
    interpolation: Interpolation::Linear,
};

/// Frames enter with one, three and two steps, with noise between them and without; half of what comes in is to be seen for a
/// while; then there is another seed.
const STEPS: Film = Film {
    name: "steps",
    frames: 40,
    settings: |k| Settings {
        add_noise: !(6..9).contains(&k),
        mix: if (14..24).contains(&k) { 0.5 } else { 1.0 },
        seed: if k < 32 { 2 } else { 3 },
        ..match k {
            0..10 => steps(&[35]),
            10..20 => steps(&[20, 32, 45]),
            _ => steps(&[32, 45]),
        }
    },
    ..FILM
};

/// Every kind of guidance, and prompts that change at once.
const GUIDANCE: Film = Film {
    name: "guidance",
    frames: 40,
    settings: |k| match k {
        0..13 => guided(&[32, 45], CfgType::SelfNegative, 1.5),
        13..26 => guided(&[32, 45], CfgType::Full, 1.8),
        _ => guided(&[24, 36, 45], CfgType::Initialize, 1.4),
    },
    prompts: &[
        CAT,
        Prompts {
            from: 7,
            prompt: "watercolour",
            ..CAT
        },
        Prompts {
            from: 20,
            prompt: "oil painting",
            negative: "blurry, grey",
            ..CAT
        },
        Prompts { from: 30, ..CAT },
    ],
    ..FILM
};

/// Prompts turn into others, and on the way into yet others.
const TRANSITION: Film = Film {
    name: "transition",
    settings: |_| guided(&[32, 45], CfgType::Full, 1.5),
    prompts: &[
        CAT,
        Prompts {
            from: 8,
            prompt: "oil painting",
            over: 8,
            ..CAT
        },
        Prompts {
            from: 12,
            prompt: "ink, blurry",
            negative: "neon",
            over: 10,
        },
    ],
    interpolation: Interpolation::Spherical,
    ..FILM
};

/// A picture that stands still for a while, and of which frames are skipped.
const STILL: Film = Film {
    name: "still",
    still: 8..26,
    settings: |k| Settings {
        similarity: Some(Similarity {
            threshold: 0.98,
            max_skip: 4,
        }),
        mix: if k < 16 { 1.0 } else { 0.7 },
        ..guided(&[32, 45], CfgType::SelfNegative, 1.2)
    },
    ..FILM
};

/// Noise that walks, then is fresh for every frame; then pictures from noise alone, by another method.
const NOISE: Film = Film {
    name: "noise",
    frames: 36,
    settings: |k| match k {
        0..14 => Settings {
            variation: Variation::Walk { frames: 5 },
            ..steps(&[20, 40])
        },
        14..24 => Settings {
            variation: Variation::Fresh,
            ..steps(&[20, 40])
        },
        _ => Settings {
            variation: Variation::Walk { frames: 4 },
            mode: Mode::TextToImage,
            method: Method::Tcd { eta: 0.4 },
            ..guided(&[0, 25], CfgType::Full, 1.3)
        },
    },
    ..FILM
};

/// Frames that enter by twos, each laid over its own.
const GROUPS: Film = Film {
    name: "groups",
    frames: 33,
    group: 2,
    settings: |k| Settings {
        mix: 1.0 - 0.1 * (k % 5) as f64,
        variation: Variation::Walk { frames: 9 },
        ..guided(&[32, 45], CfgType::Full, 1.4)
    },
    prompts: &[
        CAT,
        Prompts {
            from: 15,
            prompt: "watercolour",
            over: 6,
            ..CAT
        },
    ],
    ..FILM
};

const FILMS: [Film; 6] = [STEPS, GUIDANCE, TRANSITION, STILL, NOISE, GROUPS];

twins! {
    [Late]
    films_look_as_on_the_host
    films_of_another_architecture_do
}

/// The first GPU, or what stands in for it.
fn gpu() -> Cuda {
    Cuda::new(0).expect("a GPU")
}

fn films_look_as_on_the_host(cuda: &Cuda) {
    let pair = Pair::open(cuda, PARITY);
    FILMS.iter().for_each(|film| pair.agrees(film));
}

/// With two text encoders, pooled embeddings and sizes.
fn films_of_another_architecture_do(cuda: &Cuda) {
    let pair = Pair::open(cuda, "tests/data/models/sdxl");
    [GUIDANCE, TRANSITION]
        .iter()
        .for_each(|film| pair.agrees(film));
}

/// The same, command by command, while frames come and go early.
#[test]
#[cfg(target_os = "linux")]
fn films_without_graphs_do_on_the_stand_in() {
    let name = "films_without_graphs_do_on_the_stand_in";
    let variables = [(GRAPHS, "0")];
    computing::run(name, &variables, &[computing::When::CopiesEarly], || {
        films_look_as_on_the_host(&gpu());
    });
}

/// A model on the host and on a GPU, or on what stands in for it.
struct Pair {
    folder: ModelFolder,
    host: OnHost,
    gpu: OnCuda,
}

impl Pair {
    fn open(cuda: &Cuda, model: &str) -> Self {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(model);
        let folder = ModelFolder::open(&folder).unwrap();
        let host = Arc::new(OnnxModel::open(&folder).unwrap());
        let gpu = Arc::new(open(&folder, cuda));
        Self {
            folder,
            host: OnHost(host),
            gpu: OnCuda(cuda.clone(), gpu),
        }
    }

    /// Fails unless `film` is restyled by both in the same way.
    fn agrees(&self, film: &Film) {
        let (cuda, name) = (&self.gpu.0, film.name);
        let (expected, counted) = film.play(&self.folder, &self.host);
        let before = cuda.launches().graphs;
        let (found, counters) = film.play(&self.folder, &self.gpu);
        assert_eq!(counters, counted, "{name}");
        let standing_in = cuda.name() == "stand-in";
        for (k, (found, expected)) in found.iter().zip(&expected).enumerate() {
            let apart = || found.iter().zip(expected).map(|(a, b)| a.abs_diff(*b));
            let most = apart().max().unwrap();
            let mean = apart().map(f64::from).sum::<f64>() / expected.len() as f64;
            // Half precision through some steps; and a GPU's sums are in another order, and may be of TF32.
            let (allowed, on_average) = if standing_in { (1, 0.1) } else { (255, 2.0) };
            assert!(
                most <= allowed && mean <= on_average,
                "{name}, frame {k}: differs by {most}, {mean:.3} on average"
            );
        }
        let (graphs, refusal) = (cuda.launches().graphs - before, cuda.refusal());
        println!("{name}: {graphs} graphs, {refusal:?}");
        if standing_in {
            assert_eq!(refusal, None, "{name}");
            let expected = match std::env::var_os(GRAPHS) {
                // There are enough frames of a kind, and on the way between prompts graphs for both texts besides.
                None => 5..=3 * film.frames as u64,
                Some(_) => 0..=0,
            };
            assert!(expected.contains(&graphs), "{name}: {graphs} graphs");
        }
    }
}

/// A model on a GPU, or on what stands in for it.
fn open(folder: &ModelFolder, cuda: &Cuda) -> CudaModel {
    onnxruntime::open_cuda(folder, cuda).unwrap()
}
