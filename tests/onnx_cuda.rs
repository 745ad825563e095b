//! ONNX Runtime on a CUDA device against its CPU provider on the host: the CUDA provider on a GPU, the CPU provider on the
//! stand-in that computes, where sessions come in their turn on its streams and in its graphs.
//!
//! With a GPU, ONNX Runtime with the CUDA provider is needed (`ORT_DYLIB_PATH`), and CUDA's libraries and cuDNN on the
//! library path. Latents and pictures are f16 on the device, and the host is given the same rounded values; the graphs are f32 and
//! multiplied without TF32, so what differs is the rounding of results and the order of sums.
#![cfg(feature = "cuda")]

mod common;
#[cfg(target_os = "linux")]
#[path = "standin/computing.rs"]
mod computing;
#[cfg(target_os = "linux")]
mod standin;
#[macro_use]
#[path = "standin/twins.rs"]
mod twins;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use common::{Folder, copy, data, parity};
use gststreamdiffusion::device::cuda::{Cuda, CudaTensor};
use gststreamdiffusion::device::{Device, HostTensor, Interpolation};
use gststreamdiffusion::engine::cuda::{CudaModel, Kept};
use gststreamdiffusion::engine::onnxruntime::{self, Context, OnnxModel};
use gststreamdiffusion::engine::{Between, Denoise, Model, Text, Wording};
use gststreamdiffusion::model::ModelFolder;
use half::f16;
use parking_lot::{Mutex, MutexGuard};

/// Largest difference allowed, as a share of the largest value: f16 has 11 bits, and results are rounded once.
fn tolerance() -> f32 {
    match is_standing_in() {
        // Nothing else differs there.
        true => 5e-4,
        false => 1e-3,
    }
}

/// Timesteps in no order that anyone would sort them in.
const TIMESTEPS: [u32; 4] = [321, 981, 41, 661];
/// Frames after which the graph of a frame has been made, if it can be.
const SETTLED: usize = 12;

/// The GPU, for one test at a time (memory is measured, and ONNX Runtime's options are the process's), or what stands in for
/// it.
struct Gpu {
    cuda: Cuda,
    _alone: MutexGuard<'static, ()>,
}

fn gpu() -> Gpu {
    static LOCK: Mutex<()> = Mutex::new(());
    static CUDA: OnceLock<Cuda> = OnceLock::new();
    let _alone = LOCK.lock();
    if is_standing_in() {
        let cuda = Cuda::new(0).unwrap();
        return Gpu { cuda, _alone };
    }
    let cuda = CUDA.get_or_init(|| {
        // SAFETY: every test comes through here first, one at a time, and none has read the environment before.
        unsafe { std::env::set_var("STREAMDIFFUSION_ONNXRUNTIME_CUDA_OPTIONS", "use_tf32=0") };
        Cuda::new(0).unwrap()
    });
    let cuda = cuda.clone();
    Gpu { cuda, _alone }
}

/// Whether this process has the stand-in.
fn is_standing_in() -> bool {
    #[cfg(target_os = "linux")]
    return standin::library().is_some();
    #[cfg(not(target_os = "linux"))]
    return false;
}

/// The model in `folder`, as a GPU has it: with the U-Net in two parts with `split`, and with graphs made faster with `faster`.
fn open(folder: &ModelFolder, cuda: &Cuda, split: bool, faster: bool) -> CudaModel {
    let model = match (split, faster) {
        (true, true) => onnxruntime::open_cuda(folder, cuda),
        (false, _) => onnxruntime::open_cuda_whole(folder, cuda),
        (true, false) => onnxruntime::open_cuda_exported(folder, cuda),
    };
    model.unwrap()
}

twins! {
    [Late]
    what_does_not_work_is_run_as_exported
    unets_of_all_architectures
    unets_of_the_parity_and_the_demo_model
    a_batch_that_the_graph_fixes
    autoencoders
    contexts_change_between_frames
    frames_of_a_graph_are_those_of_the_first_frames_and_memory_does_not_grow
    threads_share_a_model
    prompts_change_while_frames_run
    memory_does_not_grow_between_prompts
}

/// A model on the host and on the GPU.
struct Pair {
    name: String,
    host: OnnxModel,
    gpu: CudaModel,
}

impl Pair {
    /// The U-Net in two parts on the GPU with `split`, with graphs made faster unless the environment asks for others.
    fn open(cuda: &Cuda, folder: &Path, split: bool) -> Self {
        let opened = ModelFolder::open(folder).unwrap();
        let pair = Self::of(&opened, open(&opened, cuda, split, true));
        let told = pair.gpu.precomputed();
        assert_eq!(told.starts_with("nothing"), !split, "{}: {told}", pair.name);
        // What is computed ahead stays on the GPU, unless the graph fixes its rows.
        let through = split && opened.unet().batch().is_some();
        assert_eq!(
            told.contains("main memory"),
            through,
            "{}: {told}",
            pair.name
        );
        pair
    }

    /// The same; an error unless all was made faster that can be.
    fn faster(self) -> Self {
        let (name, backend) = (&self.name, self.gpu.backend());
        let mut all = vec![" attentions fused"];
        // A processor has no such operators.
        all.extend((!is_standing_in()).then_some(" convolutions with channels last)"));
        for told in all {
            assert!(backend.contains(told), "{name}: {backend}");
        }
        self
    }

    /// In two parts, with graphs as they were exported.
    fn open_exported(cuda: &Cuda, folder: &Path) -> Self {
        let opened = ModelFolder::open(folder).unwrap();
        let pair = Self::of(&opened, open(&opened, cuda, true, false));
        let backend = pair.gpu.backend();
        for told in ["attention", "channels last"] {
            assert!(!backend.contains(told), "{}: {backend}", pair.name);
        }
        pair
    }

    fn of(folder: &ModelFolder, gpu: CudaModel) -> Self {
        let pair = Self {
            name: folder.path().display().to_string(),
            host: OnnxModel::open_whole(folder).unwrap(),
            gpu,
        };
        assert_eq!(pair.gpu.limits(), pair.host.limits());
        println!(
            "{}: {}; {}",
            pair.name,
            pair.gpu.backend(),
            pair.gpu.graphs()
        );
        pair
    }

    /// Texts of as many chunks each: a prompt, a negative prompt, none, and two on the way from one to another.
    fn texts(&self, chunks: usize) -> Vec<Wording> {
        let texts = [Some("a neon cat"), Some("ink, blurry"), None];
        let texts = texts.map(|text| Arc::new(self.host.encode_text(text, chunks).unwrap()));
        let [cat, ink, none] = &texts;
        let ways = [
            between(cat, ink, 0.3, Interpolation::Linear),
            between(none, cat, 0.8, Interpolation::Spherical),
        ];
        let texts = texts.iter().cloned().map(Wording::from);
        texts.chain(ways).collect()
    }

    /// The least height and width of latents; four times that for graphs that were made faster. At two by two, groups of four
    /// numbers that are nearly the same are normalised, where ONNX Runtime's GroupNorm loses three digits of their variance.
    fn size(&self) -> (usize, usize) {
        let limits = self.host.limits();
        let times = match limits.fixed_size {
            None if self.gpu.backend().contains("channels last") => 4,
            _ => 1,
        };
        let side = times * limits.multiple / limits.latent_scale;
        (side, side)
    }

    fn latents(&self, frames: usize, seed: u64) -> HostTensor {
        let (height, width) = self.size();
        let channels = self.host.limits().latent_channels;
        noise(&[frames, channels, height, width], 2.0, seed)
    }

    fn pictures(&self, frames: usize, seed: u64) -> HostTensor {
        let (scale, (height, width)) = (self.host.limits().latent_scale, self.size());
        noise(&[frames, 3, height * scale, width * scale], 1.0, seed)
    }

    /// What each row's U-Net output is to be, from calls of one frame each.
    fn expected(&self, contexts: &[Vec<Context>], rows: &[Row]) -> Vec<HostTensor> {
        rows.iter()
            .map(|row| {
                let shape = row.frames.shape();
                let one = [1, shape[1], shape[2], shape[3]];
                let found = row.frames.data().chunks(one.iter().product());
                let found = found.flat_map(|frame| {
                    let sample = HostTensor::new(&one, frame.to_vec());
                    let row = Denoise {
                        sample: &sample,
                        context: &contexts[row.text][row.timestep],
                    };
                    self.host.denoise(&[row]).unwrap().remove(0).into_data()
                });
                HostTensor::new(shape, found.collect())
            })
            .collect()
    }

    /// The same by one call on the GPU.
    fn found(&self, cuda: &Cuda, contexts: &[Vec<Context<Kept>>], rows: &[Row]) -> Vec<HostTensor> {
        let samples: Vec<_> = rows.iter().map(|row| upload(cuda, &row.frames)).collect();
        let rows = rows.iter().zip(&samples);
        let rows: Vec<_> = rows
            .into_iter()
            .map(|(row, sample)| Denoise {
                sample,
                context: &contexts[row.text][row.timestep],
            })
            .collect();
        let found = self.gpu.denoise(&rows).unwrap();
        found.iter().map(|x| cuda.download(x).unwrap()).collect()
    }

    fn contexts<M: Model>(&self, model: &M, texts: &[Wording]) -> Vec<Vec<M::Context>> {
        let of = |text| {
            model
                .precompute(&TIMESTEPS, text, self.size(), None)
                .unwrap()
        };
        texts.iter().map(of).collect()
    }

    /// Compares calls with these numbers of rows and of frames a row.
    fn agrees(&self, cuda: &Cuda, counts: &[usize]) {
        let mut worst = 0f32;
        for chunks in 1..=self.host.limits().chunks.unwrap_or(2) {
            let texts = self.texts(chunks);
            let given = self.contexts(&self.gpu, &texts);
            // Those of contexts that stay on the GPU are blended there.
            let through = self.gpu.precomputed().contains("main memory");
            assert_eq!(any_blended(&texts), through, "{}", self.name);
            let whole = self.contexts(&self.host, &texts);
            for (frames, count) in [1, 2]
                .into_iter()
                .flat_map(|f| counts.iter().map(move |c| (f, c)))
            {
                let rows = rows(self, frames, *count);
                let expected = self.expected(&whole, &rows);
                for time in 0..2 {
                    let found = self.found(cuda, &given, &rows);
                    let difference = difference(&found, &expected);
                    worst = worst.max(difference);
                    assert!(
                        difference <= tolerance(),
                        "{}: {chunks} chunks, {count} rows of {frames} frames, time {time}: {difference:.1e}",
                        self.name
                    );
                }
            }
        }
        println!("{}: largest difference {worst:.1e}", self.name);
    }
}

/// What lies between two texts.
fn between(
    from: &Arc<Text<HostTensor>>,
    to: &Arc<Text<HostTensor>>,
    share: f64,
    how: Interpolation,
) -> Wording {
    let ends = [from.clone(), to.clone()];
    Wording::Between(Arc::new(Between::new(ends, share, how)))
}

/// Whether any of these texts was blended in main memory.
fn any_blended(texts: &[Wording]) -> bool {
    texts.iter().any(|text| match text {
        Wording::Between(between) => between.is_blended(),
        Wording::Text(_) => false,
    })
}

/// What a row of a call is: its frames, its timestep as an index into [`TIMESTEPS`], its text.
struct Row {
    frames: HostTensor,
    timestep: usize,
    text: usize,
}

/// Rows as `cfg-type=full` has them: each step with the prompt, then each with the negative prompt; then some steps
/// again, so that rows of one step and text stand apart.
fn rows(pair: &Pair, frames: usize, count: usize) -> Vec<Row> {
    let kinds = [
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
        (0, 3),
        (2, 4),
    ];
    let rows = kinds.into_iter().zip(1..).take(count);
    rows.map(|((timestep, text), seed)| Row {
        frames: pair.latents(frames, seed),
        timestep,
        text,
    })
    .collect()
}

/// Values in [-`most`, `most`] that look random, rounded to f16.
fn noise(shape: &[usize], most: f32, seed: u64) -> HostTensor {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        let value = (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0;
        f16::from_f32(value * most).to_f32()
    };
    let values = (0..shape.iter().product()).map(|_| next()).collect();
    HostTensor::new(shape, values)
}

fn upload(cuda: &Cuda, tensor: &HostTensor) -> CudaTensor {
    cuda.upload(tensor.shape(), tensor.data()).unwrap()
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

fn tiny_models() -> Vec<PathBuf> {
    let entries = fs::read_dir(data("models")).unwrap().flatten();
    let folders = entries.map(|entry| entry.path());
    let mut folders: Vec<PathBuf> = folders
        .filter(|path| path.join("model_index.json").exists())
        .collect();
    folders.sort();
    assert_eq!(folders.len(), 7, "{folders:?}");
    folders
}

fn unets_of_all_architectures(Gpu { cuda, .. }: &Gpu) {
    for folder in tiny_models() {
        for split in [true, false] {
            let pair = Pair::open(cuda, &folder, split).faster();
            pair.agrees(cuda, &[1, 4, 12]);
        }
        Pair::open_exported(cuda, &folder).agrees(cuda, &[1, 4, 12]);
    }
}

fn unets_of_the_parity_and_the_demo_model(Gpu { cuda, .. }: &Gpu) {
    let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/demo");
    for folder in [parity(), demo] {
        let pair = Pair::open(cuda, &folder, true).faster();
        pair.agrees(cuda, &[1, 12]);
    }
}

/// A U-Net whose output is no number: what was made of it is not what is run, and it is told why.
fn what_does_not_work_is_run_as_exported(Gpu { cuda, .. }: &Gpu) {
    let folder = Folder::new();
    copy(&data("models/sd1"), folder.path());
    let graph = folder.file("unet/model.onnx");
    let mut bytes = fs::read(&graph).unwrap();
    // In the midst of the weights, which most of the file is: floats whose bits are all ones.
    let middle = bytes.len() / 2;
    bytes[middle..middle + 16].fill(0xff);
    fs::write(&graph, bytes).unwrap();
    let opened = ModelFolder::open(folder.path()).unwrap();
    for split in [true, false] {
        let model = open(&opened, cuda, split, true);
        let told = "unet not as fast as it could be: it gave what is no number when it was tried";
        assert!(model.backend().contains(told), "{}", model.backend());
    }
}

/// A U-Net that takes two rows and no others.
fn a_batch_that_the_graph_fixes(Gpu { cuda, .. }: &Gpu) {
    let folder = Folder::new();
    copy(&data("models/sd1"), folder.path());
    copy(&data("models/sd1-batch-2/unet"), &folder.file("unet"));
    for split in [true, false] {
        Pair::open(cuda, folder.path(), split).agrees(cuda, &[1, 2, 3, 12]);
    }
}

/// Encoders and decoders, with factors, with means and with samples.
fn autoencoders(Gpu { cuda, .. }: &Gpu) {
    let sampling = Folder::new();
    copy(&data("models/sd1"), sampling.path());
    let manifest = sampling.file("streamdiffusion.toml");
    let text = fs::read_to_string(&manifest).unwrap();
    let sampled = text.replace("posterior = \"mean\"", "posterior = \"sample\"");
    assert_ne!(text, sampled);
    fs::write(&manifest, sampled).unwrap();
    let mut folders = tiny_models();
    folders.extend([parity(), sampling.path().to_owned()]);
    let mut samples = 0;
    for folder in folders {
        let pair = Pair::open(cuda, &folder, true);
        for frames in [1, 2] {
            let pictures = pair.pictures(frames, 5);
            let (noise, wanted) = (
                pair.latents(frames, 6),
                pair.host.limits().samples_posterior,
            );
            samples += usize::from(wanted);
            let expected = pair
                .host
                .encode(&pictures, wanted.then_some(&noise))
                .unwrap();
            let (on_gpu, noise) = (upload(cuda, &pictures), upload(cuda, &noise));
            let found = pair.gpu.encode(&on_gpu, wanted.then_some(&noise)).unwrap();
            let found = cuda.download(&found).unwrap();
            let encoding = difference(&[found], &[expected]);

            let latents = pair.latents(frames, 7);
            let expected = pair.host.decode(&latents).unwrap();
            let found = pair.gpu.decode(&upload(cuda, &latents)).unwrap();
            let found = cuda.download(&found).unwrap();
            let decoding = difference(&[found], &[expected]);
            println!(
                "{}: encoding {encoding:.1e}, decoding {decoding:.1e}",
                pair.name
            );
            assert!(encoding <= tolerance(), "{}: {encoding:.1e}", pair.name);
            assert!(decoding <= tolerance(), "{}: {decoding:.1e}", pair.name);
            // Noise that is missing or too much.
            assert!(
                pair.gpu
                    .encode(&on_gpu, (!wanted).then_some(&noise))
                    .is_err()
            );
        }
        let odd = upload(cuda, &HostTensor::new(&[1, 3, 5, 7], vec![0.0; 105]));
        let error = pair.gpu.encode(&odd, None).unwrap_err().to_string();
        assert!(error.starts_with("vae_encoder: "), "{error}");
        let error = pair.gpu.decode(&odd).unwrap_err().to_string();
        assert!(error.starts_with("vae_decoder: "), "{error}");
    }
    assert_eq!(samples, 2);
}

/// Prompts and steps change between frames of the same shape, in and out of graphs.
fn contexts_change_between_frames(Gpu { cuda, .. }: &Gpu) {
    let pair = Pair::open(cuda, &data("models/sdxl"), true);
    let texts = pair.texts(1);
    let (given, whole) = (
        pair.contexts(&pair.gpu, &texts),
        pair.contexts(&pair.host, &texts),
    );
    for frame in 0..4 * SETTLED {
        // Some frames with the same, then others.
        let kind = frame / 3;
        let rows: Vec<_> = (0..2)
            .map(|i| Row {
                frames: pair.latents(1, frame as u64),
                timestep: (kind + i) % 4,
                text: (kind / 2 + i) % 3,
            })
            .collect();
        let expected = pair.expected(&whole, &rows);
        let difference = difference(&pair.found(cuda, &given, &rows), &expected);
        assert!(difference <= tolerance(), "frame {frame}: {difference:.1e}");
    }
}

/// A frame as a stream runs it: encoded, denoised, decoded, put on the GPU at once.
fn frame(
    cuda: &Cuda,
    pair: &Pair,
    contexts: &[Vec<Context<Kept>>],
    pictures: &HostTensor,
) -> HostTensor {
    let latents = pair.gpu.encode(&upload(cuda, pictures), None).unwrap();
    let rows: Vec<_> = (0..2)
        .map(|i| Denoise {
            sample: &latents,
            context: &contexts[0][i],
        })
        .collect();
    let predicted = pair.gpu.denoise(&rows).unwrap();
    let pictures = pair.gpu.decode(&predicted[1]).unwrap();
    cuda.download(&pictures).unwrap()
}

/// The same on the host.
fn frame_on_host(pair: &Pair, contexts: &[Vec<Context>], pictures: &HostTensor) -> HostTensor {
    let latents = pair.host.encode(pictures, None).unwrap();
    let row = Denoise {
        sample: &latents,
        context: &contexts[0][1],
    };
    pair.host
        .decode(&pair.host.denoise(&[row]).unwrap()[0])
        .unwrap()
}

fn frames_of_a_graph_are_those_of_the_first_frames_and_memory_does_not_grow(
    Gpu { cuda, .. }: &Gpu,
) {
    for folder in ["models/sd1", "models/optimum-sd1"] {
        frames_stay(cuda, &Pair::open(cuda, &data(folder), true));
    }
}

/// Nothing goes over to main memory and back in a frame, whoever exported the model.
#[test]
#[ignore = "needs an NVIDIA GPU"]
fn no_component_moves_tensors_to_main_memory() {
    let Gpu { cuda, .. } = &gpu();
    let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/demo");
    let folders = tiny_models().into_iter().chain([parity(), demo]);
    let moving = folders.filter_map(|folder| {
        let graphs = Pair::open(cuda, &folder, true).gpu.graphs().to_owned();
        graphs
            .contains("main memory")
            .then(|| format!("{}: {graphs}", folder.display()))
    });
    let moving: Vec<_> = moving.collect();
    assert!(moving.is_empty(), "{moving:#?}");
}

fn frames_stay(cuda: &Cuda, pair: &Pair) {
    let texts = pair.texts(1);
    let (given, whole) = (
        pair.contexts(&pair.gpu, &texts),
        pair.contexts(&pair.host, &texts),
    );
    let pictures: Vec<_> = (0..3).map(|seed| pair.pictures(1, seed)).collect();
    let run = |i: usize| frame(cuda, pair, &given, &pictures[i % 3]);
    let first: Vec<_> = (0..3).map(run).collect();
    for (found, pictures) in first.iter().zip(&pictures) {
        let expected = frame_on_host(pair, &whole, pictures);
        // Three components, each with rounded results.
        let difference = difference(std::slice::from_ref(found), &[expected]);
        assert!(difference <= 4.0 * tolerance(), "{difference:.1e}");
    }
    (0..SETTLED).for_each(|i| drop(run(i)));
    let (before, free) = (cuda.launches(), cuda.memory().unwrap().0);
    let (allocated, mut equal) = (cuda.allocated(), 0);
    for i in 0..200 {
        let (found, first) = (run(i), &first[i % 3]);
        equal += usize::from(found.data() == first.data());
        // The same kernels on the same values; but libraries may take others when they are captured.
        let difference = difference(&[found], std::slice::from_ref(first));
        assert!(difference <= tolerance(), "frame {i}: {difference:.1e}");
    }
    let (after, left) = (cuda.launches(), cuda.memory().unwrap().0);
    assert_eq!(cuda.allocated(), allocated);
    // Others may use the GPU too, so not to the byte.
    let grown = free.saturating_sub(left);
    let (exact, most) = match is_standing_in() {
        true => (200, 0),
        false => (0, 64 << 20),
    };
    assert!(
        grown <= most,
        "{grown} bytes more are in use after 200 frames"
    );
    assert!(equal >= exact, "{equal} of 200 to the bit");
    println!(
        "{}; {:?}; {before:?} {after:?}; {equal} of 200 to the bit",
        pair.gpu.graphs(),
        cuda.refusal()
    );
    if pair.gpu.graphs() == "in the frame's CUDA graph" {
        assert_eq!(cuda.refusal(), None);
        assert_eq!(after.graphs - before.graphs, 200);
    }
}

/// Elements share a model; each has a thread.
fn threads_share_a_model(Gpu { cuda, .. }: &Gpu) {
    let pair = Pair::open(cuda, &data("models/sd1"), true);
    let texts = pair.texts(1);
    let (given, whole) = (
        pair.contexts(&pair.gpu, &texts),
        pair.contexts(&pair.host, &texts),
    );
    std::thread::scope(|scope| {
        for thread in 0..3 {
            let (pair, given, whole) = (&pair, &given, &whole);
            scope.spawn(move || {
                for i in 0..2 * SETTLED {
                    let row = Row {
                        frames: pair.latents(1, (100 * thread + i) as u64),
                        timestep: thread,
                        text: thread % 3,
                    };
                    let expected = pair.expected(whole, std::slice::from_ref(&row));
                    let found = pair.found(cuda, given, &[row]);
                    let difference = difference(&found, &expected);
                    assert!(difference <= tolerance(), "{thread}, {i}: {difference:.1e}");
                }
                cuda.release_thread();
            });
        }
    });
}

/// Prompts are encoded and made ready by another thread while frames run.
fn prompts_change_while_frames_run(Gpu { cuda, .. }: &Gpu) {
    let pair = Pair::open(cuda, &data("models/sd1"), true);
    let texts = pair.texts(1);
    let (given, whole) = (
        pair.contexts(&pair.gpu, &texts),
        pair.contexts(&pair.host, &texts),
    );
    let pictures = pair.pictures(1, 1);
    let expected = frame_on_host(&pair, &whole, &pictures);
    std::thread::scope(|scope| {
        let pair = &pair;
        let prompts = scope.spawn(move || {
            for i in 0..20 {
                let text = pair
                    .gpu
                    .encode_text(Some(&format!("picture {i}")), 1)
                    .unwrap();
                let text = Wording::from(text);
                let contexts = pair.contexts(&pair.gpu, std::slice::from_ref(&text));
                let whole = pair.contexts(&pair.host, &[text]);
                let rows = rows(pair, 1, 4);
                let difference = difference(
                    &pair.found(cuda, &contexts, &rows),
                    &pair.expected(&whole, &rows),
                );
                assert!(difference <= tolerance(), "prompt {i}: {difference:.1e}");
            }
        });
        let mut frames = 0;
        while !prompts.is_finished() || frames < SETTLED {
            let found = frame(cuda, pair, &given, &pictures);
            let difference = difference(&[found], std::slice::from_ref(&expected));
            assert!(
                difference <= 4.0 * tolerance(),
                "frame {frames}: {difference:.1e}"
            );
            frames += 1;
        }
        prompts.join().unwrap();
    });
}

/// From prompt to prompt, with both ends in device memory: of a split U-Net with pooled embeddings, and of a whole one.
fn memory_does_not_grow_between_prompts(Gpu { cuda, .. }: &Gpu) {
    for (folder, split) in [("models/sdxl", true), ("models/sd1", false)] {
        let pair = Pair::open(cuda, &data(folder), split);
        let text = |i: usize| {
            let text = pair.host.encode_text(Some(&format!("picture {i}")), 1);
            Arc::new(text.unwrap())
        };
        let (mut from, mut allocated) = (text(0), 0);
        for prompt in 1..16 {
            let to = text(prompt);
            for frame in 1..5 {
                let how = match frame % 2 {
                    0 => Interpolation::Linear,
                    _ => Interpolation::Spherical,
                };
                let texts = [between(&from, &to, f64::from(frame) / 5.0, how)];
                let given = pair.contexts(&pair.gpu, &texts);
                assert!(!any_blended(&texts));
                let rows = rows(&pair, 1, 2);
                let found = pair.found(cuda, &given, &rows);
                let whole = pair.contexts(&pair.host, &texts);
                let difference = difference(&found, &pair.expected(&whole, &rows));
                let most = tolerance();
                assert!(difference <= most, "{prompt}, {frame}: {difference:.1e}");
            }
            match prompt {
                ..7 => allocated = cuda.allocated(),
                _ => assert_eq!(cuda.allocated(), allocated, "{folder}, prompt {prompt}"),
            }
            from = to;
        }
    }
}

/// A U-Net halves its latents, and these cannot be: the context is lost, as by a kernel that fails, and then there is a new one.
#[test]
#[cfg(target_os = "linux")]
fn a_run_that_fails_is_told_on_the_stand_in() {
    let name = "a_run_that_fails_is_told_on_the_stand_in";
    computing::run(name, &[], &[computing::When::Late], || {
        for works in [false, true] {
            let Gpu { cuda, .. } = &gpu();
            let pair = Pair::open(cuda, &data("models/sd1"), true);
            let contexts = pair.contexts(&pair.gpu, &pair.texts(1));
            let (height, width) = pair.size();
            let odd = usize::from(!works);
            let channels = pair.host.limits().latent_channels;
            let sample = noise(&[1, channels, height + odd, width + odd], 1.0, 1);
            let sample = upload(cuda, &sample);
            let row = Denoise {
                sample: &sample,
                context: &contexts[0][0],
            };
            let predicted = pair.gpu.denoise(&[row]).unwrap();
            match cuda.download(&predicted[0]) {
                Ok(_) => assert!(works),
                Err(error) => {
                    let (error, said) = (error.to_string(), computing::failed());
                    assert!(!works, "{error}");
                    assert!(error.contains("CUDA_ERROR_LAUNCH_FAILED"), "{error}");
                    let said = said.expect("the run's own error");
                    assert!(said.starts_with("unet: ONNX Runtime: "), "{said}");
                    assert!(cuda.check().is_err());
                    // What was under way is kept.
                    cuda.release_thread();
                }
            }
        }
    });
}

/// The time of frames of `rows` rows at the size `side`, in milliseconds: the least and the middle one.
fn time(cuda: &Cuda, pair: &Pair, rows: usize, side: usize) -> [f64; 2] {
    let scale = pair.host.limits().latent_scale;
    let size = (side / scale, side / scale);
    let text = pair.gpu.encode_text(Some("a neon cat"), 1).unwrap().into();
    let timesteps: Vec<u32> = (0..rows as u32).map(|i| 40 + 90 * i).collect();
    let contexts = pair.gpu.precompute(&timesteps, &text, size, None).unwrap();
    let pictures = upload(cuda, &noise(&[1, 3, side, side], 1.0, 1));
    let (channels, sampled) = (
        pair.host.limits().latent_channels,
        pair.host.limits().samples_posterior,
    );
    let draw = upload(cuda, &noise(&[1, channels, size.0, size.1], 2.0, 2));
    let mut times: Vec<f64> = (0..SETTLED + 100)
        .map(|_| {
            let start = std::time::Instant::now();
            let latents = pair
                .gpu
                .encode(&pictures, sampled.then_some(&draw))
                .unwrap();
            let rows: Vec<_> = (contexts.iter())
                .map(|context| Denoise {
                    sample: &latents,
                    context,
                })
                .collect();
            let predicted = pair.gpu.denoise(&rows).unwrap();
            pair.gpu.decode(&predicted[0]).unwrap();
            cuda.finish().unwrap();
            start.elapsed().as_secs_f64() * 1e3
        })
        .skip(SETTLED)
        .collect();
    times.sort_by(f64::total_cmp);
    [times[0], times[times.len() / 2]]
}

/// A model of any size: compared with the host, and timed.
#[test]
#[ignore = "needs an NVIDIA GPU, and CUDA_MODEL, the path of a model folder (CUDA_SIDE: width and height in pixels)"]
fn a_model_of_yours() {
    let folder = std::env::var_os("CUDA_MODEL").expect("CUDA_MODEL");
    let side = std::env::var("CUDA_SIDE").map_or(512, |side| side.parse().unwrap());
    let Gpu { cuda, .. } = &gpu();
    let pair = Pair::open(cuda, Path::new(&folder), true);
    let texts = pair.texts(1);
    let (given, whole) = (
        pair.contexts(&pair.gpu, &texts),
        pair.contexts(&pair.host, &texts),
    );
    let rows = rows(&pair, 1, 2);
    let found = pair.found(cuda, &given, &rows);
    let difference = difference(&found, &pair.expected(&whole, &rows));
    println!("largest difference {difference:.1e}");
    for rows in [1, 2, 4] {
        let before = cuda.launches();
        let [least, middle] = time(cuda, &pair, rows, side);
        let (after, refusal) = (cuda.launches(), cuda.refusal());
        println!(
            "{side}x{side}, {rows} rows: {middle:.2} ms ({least:.2} at best); {} graphs, {} not; {refusal:?}",
            after.graphs - before.graphs,
            after.eager - before.eager
        );
    }
    // What every frame of a transition from one prompt to another costs beside the frame itself.
    for how in [Interpolation::Linear, Interpolation::Spherical] {
        let mut times: Vec<_> = (0..40)
            .map(|i| {
                let (started, size) = (Instant::now(), (side / 8, side / 8));
                let text = between(texts[0].text(), texts[1].text(), i as f64 / 40.0, how);
                let made = pair.gpu.precompute(&[499], &text, size, None).unwrap();
                cuda.finish().unwrap();
                (started.elapsed().as_secs_f64() * 1e3, made[0].bytes())
            })
            .collect();
        times.sort_by(|a, b| a.0.total_cmp(&b.0));
        println!(
            "contexts of a text on its way ({how:?}) at one timestep, {:.1} MB: {:.2} ms ({:.2} at best)",
            times[0].1 as f64 / 1e6,
            times[20].0,
            times[0].0
        );
    }
    let (free, total) = cuda.memory().unwrap();
    println!("{} of {} MB in use", (total - free) >> 20, total >> 20);
    // Sums in f16 differ by that, in a model of hundreds of layers.
    assert!(difference <= 2e-2, "{difference:.1e}");
}

#[test]
fn without_the_provider_it_is_told_what_is_missing() {
    if let Err(error) = onnxruntime::cuda_available() {
        let said = error.to_string();
        assert!(said.contains("ONNX Runtime"), "{said}");
        assert!(said.contains("pip install"), "{said}");
    }
}
