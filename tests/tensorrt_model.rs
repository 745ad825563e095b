//! Engines for what a model is asked to do: found, missing, built; and on a GPU, the model that they are.
//!
//! Needs TensorRT for RTX (`TENSORRT_LIBRARY_PATH`, or beside the test program) and ONNX Runtime (`ORT_DYLIB_PATH`, the
//! same): without them these tests fail, they do not skip. Those that run engines need a GPU that it serves.
#![cfg(all(
    feature = "tensorrt",
    feature = "program",
    not(feature = "tensorrt-enterprise")
))]

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use common::{Folder, copy, data, parity};
use gststreamdiffusion::engine::cache::Cache;
use gststreamdiffusion::engine::tensorrt::{Building, Gpu, Supply, Wanted};
use gststreamdiffusion::engine::{BuildProgress, Calls};
use gststreamdiffusion::error::Error;
use gststreamdiffusion::model::ModelFolder;
use parking_lot::Mutex;

/// Any that TensorRT for RTX serves.
const GPU: (u32, u32) = (8, 9);

/// Steps of single frames with so many rows in all.
fn wanted(steps: usize, rows: usize) -> Wanted {
    Wanted {
        calls: Calls {
            steps,
            frames: 1,
            rows,
        },
        width: None,
        height: None,
    }
}

/// A model folder and a cache of engines.
struct Place {
    here: Folder,
    model: ModelFolder,
    cache: Cache,
}

impl Place {
    fn new(model: &Path) -> Self {
        let here = Folder::new();
        // The path is one that a shell has to be told of.
        let own = here.file("a model");
        copy(model, &own);
        Self {
            model: ModelFolder::open(&own).unwrap(),
            cache: Cache::new(Some(&here.file("engines"))).unwrap(),
            here,
        }
    }

    fn find(&self, wanted: &Wanted) -> Result<Supply, Error> {
        self.find_for(wanted, GPU)
    }

    fn find_for(&self, wanted: &Wanted, (major, minor): (u32, u32)) -> Result<Supply, Error> {
        Supply::find(&self.model, wanted, Gpu::new(major, minor), &self.cache)
    }

    #[track_caller]
    fn refuses(&self, wanted: &Wanted, parts: &[&str]) -> String {
        let text = self.find(wanted).unwrap_err().to_string();
        for part in parts {
            assert!(text.contains(part), "{text:?} lacks {part:?}");
        }
        text
    }

    /// The engines, built if they are missing, and what was told meanwhile. It is ended after so many reports.
    fn provide(
        &self,
        wanted: &Wanted,
        reports: usize,
    ) -> (Result<Supply, Error>, Vec<BuildProgress>) {
        let told: Arc<Mutex<Vec<BuildProgress>>> = Arc::default();
        let stop = Arc::new(AtomicBool::new(false));
        let building = Building {
            tell: {
                let (told, stop) = (told.clone(), stop.clone());
                Arc::new(move |progress| {
                    let mut told = told.lock();
                    told.push(progress);
                    stop.fetch_or(told.len() >= reports, Ordering::SeqCst);
                })
            },
            stop,
        };
        let gpu = Gpu::new(GPU.0, GPU.1);
        let found = Supply::provide(&self.model, wanted, gpu, &self.cache, Some(&building));
        let told = told.lock().clone();
        (found, told)
    }

    /// The files in the folder of engines, but for locks and notes.
    fn files(&self) -> Vec<String> {
        let entries = fs::read_dir(self.cache.folder());
        let names = entries.into_iter().flatten().flatten();
        names
            .map(|entry| entry.file_name().into_string().unwrap())
            .filter(|name| !name.ends_with(".lock") && name != "sources.toml")
            .collect()
    }

    /// Runs the command that an error has in quotation marks.
    #[track_caller]
    fn obeys(&self, error: &str) {
        let command = error.split('"').nth(1).unwrap();
        assert!(command.starts_with("streamdiffusion build "), "{command}");
        let program = PathBuf::from(env!("CARGO_BIN_EXE_streamdiffusion"));
        let path = std::env::var("PATH").unwrap_or_default();
        let path = format!("{}:{path}", program.parent().unwrap().display());
        let output = Command::new("sh")
            .args(["-c", command])
            .env("PATH", path)
            .env("GST_STREAMDIFFUSION_ENGINES", self.cache.folder())
            .current_dir(self.here.path())
            .output()
            .unwrap();
        assert!(output.status.success(), "{command}: {output:?}");
    }
}

/// What an error says to do is what has to be done.
#[test]
fn the_command_of_an_error_builds_what_is_missing() {
    let place = Place::new(&data("models/sd1"));
    let two = wanted(2, 2);
    let text = place.refuses(
        &two,
        &[
            "property backend",
            "no engine of unet",
            "none has been built",
            "build-engines=auto",
        ],
    );
    assert!(place.files().is_empty());
    place.obeys(&text);
    let found = place.find(&two).unwrap();
    assert_eq!(found.built.rows, (1, 8));
    assert_eq!(found.built.chunks, (1, 1));
    assert!(
        found
            .origin
            .starts_with("unet (live part): found, built 20"),
        "{}",
        found.origin
    );
    // All that steps and guidance may be changed to.
    for fine in [wanted(1, 1), wanted(4, 8), wanted(8, 8)] {
        assert_eq!(place.find(&fine).unwrap().engines, found.engines);
    }
    let many = wanted(9, 9);
    let text = place.refuses(&many, &["property steps", "take 9 rows", "for 8 at most"]);
    place.obeys(&text);
    assert_eq!(place.find(&many).unwrap().built.rows, (1, 9));
    // The one for fewer rows is still there, and nearer to what needs no more.
    assert_eq!(place.find(&two).unwrap().engines, found.engines);
    let pairs = Wanted {
        calls: Calls {
            steps: 2,
            frames: 2,
            rows: 4,
        },
        ..two
    };
    let text = place.refuses(
        &pairs,
        &["property frame-buffer-size", "2 cannot be served"],
    );
    place.obeys(&text);
    assert_eq!(place.find(&pairs).unwrap().built.frames, (1, 2));
    let width = found.built.width.0 + place.model.multiple();
    let wide = Wanted {
        width: Some(width),
        ..two
    };
    let size = format!("--size {width}x");
    place.refuses(&wide, &["property width", "cannot be processed", &size]);
    // Other GPUs.
    let text = place.find_for(&two, (9, 0)).unwrap_err().to_string();
    assert!(
        text.contains("does not serve GPUs of compute capability 9.0"),
        "{text}"
    );
    let old = place.find_for(&two, (7, 5)).unwrap_err().to_string();
    for part in [
        "capability any, this GPU has 7.5",
        "--compute-capability 7.5 --size",
    ] {
        assert!(old.contains(part), "{old}");
    }
    // Other files than those that were built from.
    let path = place.model.unet().path.clone();
    let mut bytes = fs::read(&path).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    fs::write(&path, bytes).unwrap();
    place.refuses(
        &two,
        &[
            "files have changed since it was built",
            "streamdiffusion build '",
        ],
    );
}

#[test]
fn engines_that_are_missing_are_built_and_found_then() {
    let place = Place::new(&data("odd"));
    let four = wanted(2, 4);
    let (built, told) = place.provide(&four, usize::MAX);
    let built = built.unwrap();
    assert!(
        matches!(&told[0], BuildProgress::Begun(why) if why.contains("no engine of unet")),
        "{told:?}"
    );
    assert!(
        matches!(told.last(), Some(BuildProgress::Complete)),
        "{told:?}"
    );
    let mut last = 0;
    for name in ["unet", "vae_encoder", "vae_decoder"] {
        let of_it = told.iter().filter_map(|progress| match progress {
            BuildProgress::Continues(what, percent) if what.contains(name) => Some(*percent),
            _ => None,
        });
        let percent: Vec<_> = of_it.collect();
        assert!(
            percent.is_sorted() && percent.first() >= Some(&last),
            "{told:?}"
        );
        last = percent.into_iter().max().unwrap();
    }
    assert!(last < 100);
    assert_eq!(
        built
            .origin
            .matches("built when the model was loaded")
            .count(),
        3,
        "{}",
        built.origin
    );
    assert_eq!(place.files().len(), 6);
    // Now they are there.
    let (found, told) = place.provide(&four, usize::MAX);
    let found = found.unwrap();
    assert!(told.is_empty(), "{told:?}");
    assert_eq!(found.engines, built.engines);
    assert_eq!(found.built, built.built);
    assert_eq!(
        found.origin.matches(": found, built ").count(),
        3,
        "{}",
        found.origin
    );
    for key in &found.engines {
        assert!(!place.cache.load(key).unwrap().bytes.is_empty());
    }
}

#[test]
fn a_build_that_is_ended_leaves_nothing() {
    let place = Place::new(&parity());
    // Before the first engine, and while it is built.
    for reports in [1, 3] {
        let (ended, told) = place.provide(&wanted(2, 2), reports);
        let error = ended.unwrap_err().to_string();
        assert!(error.contains("was ended, as asked"), "{error}");
        assert!(
            matches!(told.last(), Some(BuildProgress::Cancelled)),
            "{told:?}"
        );
        assert!(place.files().is_empty(), "{:?}", place.files());
    }
}

#[test]
fn a_build_that_fails_says_why() {
    let mut place = Place::new(&data("odd"));
    // Not even root can make folders here.
    place.cache = Cache::new(Some(Path::new("/proc/engines"))).unwrap();
    let (failed, told) = place.provide(&wanted(1, 1), usize::MAX);
    let error = failed.unwrap_err().to_string();
    assert!(error.contains("/proc/engines"), "{error}");
    match told.last() {
        Some(BuildProgress::Failed(failed)) => assert_eq!(failed.to_string(), error),
        other => panic!("{other:?}"),
    }
}

/// Engines are code: where others could have written them, there are none, and it is said why.
#[test]
fn engines_that_others_could_have_written_are_not_found() {
    use std::os::unix::fs::PermissionsExt;
    let place = Place::new(&data("odd"));
    place.provide(&wanted(1, 1), usize::MAX).0.unwrap();
    let mode = |mode| {
        let permissions = fs::Permissions::from_mode(mode);
        fs::set_permissions(place.cache.folder(), permissions).unwrap();
    };
    mode(0o777);
    place.refuses(&wanted(1, 1), &["may be written by others (mode 777)"]);
    mode(0o700);
    place.find(&wanted(1, 1)).unwrap();
}

/// Models that run. Engines run with f16 latents and pictures; matrices of f32 are multiplied with 10 bits of mantissa on
/// tensor cores.
#[cfg(feature = "cuda")]
mod on_a_gpu {
    use std::sync::OnceLock;

    use gststreamdiffusion::device::cuda::{Cuda, CudaTensor};
    use gststreamdiffusion::device::{Device, HostTensor};
    use gststreamdiffusion::engine::cuda::CudaModel;
    use gststreamdiffusion::engine::onnxruntime::OnnxModel;
    use gststreamdiffusion::engine::tensorrt;
    use gststreamdiffusion::engine::{Denoise, Model, Wording};
    use half::f16;
    use parking_lot::MutexGuard;

    use super::*;

    /// Largest difference allowed, as a share of the largest value.
    const TOLERANCE: f32 = 2e-2;
    const TIMESTEPS: [u32; 4] = [321, 981, 41, 661];

    /// The GPU, for one test at a time: memory is measured.
    fn gpu() -> (Cuda, MutexGuard<'static, ()>) {
        static LOCK: Mutex<()> = Mutex::new(());
        static CUDA: OnceLock<Cuda> = OnceLock::new();
        let guard = LOCK.lock();
        (CUDA.get_or_init(|| Cuda::new(0).unwrap()).clone(), guard)
    }

    /// A model by TensorRT, and by ONNX Runtime on the host.
    struct Pair {
        name: String,
        gpu: CudaModel,
        host: OnnxModel,
        /// Keeps the engines.
        _place: Place,
    }

    impl Pair {
        fn open(cuda: &Cuda, folder: &Path, calls: Calls) -> Self {
            let place = Place::new(folder);
            let side = place
                .model
                .fixed_size()
                .map_or(place.model.multiple(), |s| s.0);
            let wanted = Wanted {
                calls,
                width: Some(side),
                height: Some(side),
            };
            let (major, minor) = Cuda::compute_capability(0).unwrap();
            let building = Building {
                tell: Arc::new(|_| ()),
                stop: Arc::default(),
            };
            let capability = Gpu::new(major, minor);
            let (model, cache) = (&place.model, &place.cache);
            let supply = Supply::provide(model, &wanted, capability, cache, Some(&building));
            let gpu = tensorrt::open(model, cuda, &supply.unwrap(), cache, &|_| Ok(())).unwrap();
            println!("{}: {}; {}", folder.display(), gpu.backend(), gpu.origin());
            Self {
                name: folder.display().to_string(),
                host: OnnxModel::open_whole(model).unwrap(),
                gpu,
                _place: place,
            }
        }

        /// Height and width of latents.
        fn size(&self) -> (usize, usize) {
            let limits = self.gpu.limits();
            let built = limits.built.as_ref().unwrap();
            let scale = limits.latent_scale;
            (built.height.0 / scale, built.width.0 / scale)
        }

        fn latents(&self, frames: usize, seed: u64) -> HostTensor {
            let (height, width) = self.size();
            noise(
                &[frames, self.host.limits().latent_channels, height, width],
                2.0,
                seed,
            )
        }

        fn texts(&self) -> Vec<Wording> {
            let text = |text| self.host.encode_text(text, 1).unwrap().into();
            vec![
                text(Some("a neon cat")),
                text(Some("ink, blurry")),
                text(None),
            ]
        }

        fn contexts<M: Model>(&self, model: &M) -> Vec<Vec<M::Context>> {
            let of = |text| {
                model
                    .precompute(&TIMESTEPS, text, self.size(), None)
                    .unwrap()
            };
            self.texts().iter().map(of).collect()
        }

        /// Compares calls of so many rows, each of another timestep or text, at first and again from a graph.
        fn denoises(&self, cuda: &Cuda, counts: &[usize]) {
            let (on_gpu, on_host) = (self.contexts(&self.gpu), self.contexts(&self.host));
            let mut worst = 0f32;
            for count in counts {
                for time in 0..8 {
                    let given: Vec<_> = (0..*count)
                        .map(|i| (self.latents(1, (10 * time + i) as u64), i % 3, i % 4))
                        .collect();
                    let samples = given.iter().map(|(sample, ..)| upload(cuda, sample));
                    let samples: Vec<_> = samples.collect();
                    let rows = given.iter().zip(&samples);
                    let rows: Vec<_> = rows
                        .map(|((_, text, step), sample)| Denoise {
                            sample,
                            context: &on_gpu[*text][*step],
                        })
                        .collect();
                    let found = self.gpu.denoise(&rows).unwrap();
                    cuda.finish().unwrap();
                    assert_eq!(found.len(), *count);
                    for ((sample, text, step), found) in given.iter().zip(&found) {
                        let context = &on_host[*text][*step];
                        let expected = self.host.denoise(&[Denoise { sample, context }]).unwrap();
                        let off = difference(&cuda.download(found).unwrap(), &expected[0]);
                        worst = worst.max(off);
                        assert!(
                            off <= TOLERANCE,
                            "{}: {count} rows, time {time}: {off:.1e}",
                            self.name
                        );
                    }
                }
            }
            println!("{}: U-Net, largest difference {worst:.1e}", self.name);
        }

        fn codes(&self, cuda: &Cuda) {
            let (scale, (height, width)) = (self.host.limits().latent_scale, self.size());
            for (frames, seed) in [(1, 5), (2, 6), (3, 7)] {
                let pictures = noise(&[frames, 3, height * scale, width * scale], 1.0, seed);
                let expected = self.host.encode(&pictures, None).unwrap();
                let found = self.gpu.encode(&upload(cuda, &pictures), None).unwrap();
                let encoding = difference(&cuda.download(&found).unwrap(), &expected);
                let latents = self.latents(frames, seed);
                let expected = self.host.decode(&latents).unwrap();
                let found = self.gpu.decode(&upload(cuda, &latents)).unwrap();
                let decoding = difference(&cuda.download(&found).unwrap(), &expected);
                println!(
                    "{}: encoding {encoding:.1e}, decoding {decoding:.1e}",
                    self.name
                );
                assert!(
                    encoding <= TOLERANCE && decoding <= TOLERANCE,
                    "{}",
                    self.name
                );
            }
        }
    }

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

    /// The largest difference, as a share of the largest value.
    fn difference(found: &HostTensor, expected: &HostTensor) -> f32 {
        assert_eq!(found.shape(), expected.shape());
        let largest = expected
            .data()
            .iter()
            .fold(0f32, |most, x| most.max(x.abs()));
        assert!(largest > 0.0);
        let pairs = found.data().iter().zip(expected.data());
        pairs.fold(0f32, |most, (a, b)| match (a - b).abs() {
            off if off.is_finite() => most.max(off / largest),
            _ => f32::INFINITY,
        })
    }

    const FOUR: Calls = Calls {
        steps: 4,
        frames: 2,
        rows: 8,
    };

    fn on_fixture(name: &str) {
        let (cuda, _guard) = gpu();
        let folder = match name {
            "parity" => parity(),
            name => data(name),
        };
        let pair = Pair::open(&cuda, &folder, FOUR);
        // More than the engine takes at once are done in several runs.
        pair.denoises(&cuda, &[1, 2, 5, 8, 20]);
        pair.codes(&cuda);
        let launches = cuda.launches();
        assert!(launches.graphs > 0, "{launches:?}: {:?}", cuda.refusal());
    }

    #[test]
    #[ignore = "needs an NVIDIA GPU"]
    fn the_parity_model() {
        on_fixture("parity");
    }

    #[test]
    #[ignore = "needs an NVIDIA GPU"]
    fn models_of_all_architectures() {
        for name in ["sd1", "sd2", "sdxl", "lcm", "optimum-sd1", "optimum-lcm"] {
            on_fixture(&format!("models/{name}"));
        }
    }

    /// Its U-Net is built whole.
    #[test]
    #[ignore = "needs an NVIDIA GPU"]
    fn a_model_that_cannot_be_split() {
        on_fixture("odd");
    }

    #[test]
    #[ignore = "needs an NVIDIA GPU"]
    fn a_batch_that_the_graph_fixes() {
        let (cuda, _guard) = gpu();
        let folder = Folder::new();
        copy(&data("models/sd1"), folder.path());
        copy(&data("models/sd1-batch-2/unet"), &folder.file("unet"));
        Pair::open(&cuda, folder.path(), FOUR).denoises(&cuda, &[1, 2, 3, 5]);
    }

    /// Buffers are bound once: frames take no more memory, of the device's pool or of TensorRT's.
    #[test]
    #[ignore = "needs an NVIDIA GPU"]
    fn frames_take_no_memory() {
        let (cuda, _guard) = gpu();
        let pair = Pair::open(&cuda, &parity(), FOUR);
        pair.denoises(&cuda, &[4]);
        pair.codes(&cuda);
        let before = (cuda.allocated(), cuda.memory().unwrap().0);
        for _ in 0..10 {
            pair.denoises(&cuda, &[4]);
            pair.codes(&cuda);
        }
        assert_eq!((cuda.allocated(), cuda.memory().unwrap().0), before);
    }

    /// A model in f16, exported with `--dtype f16`, at the size it names.
    #[test]
    #[ignore = "needs an NVIDIA GPU, and CUDA_MODEL, the path of a model folder"]
    fn a_model_of_yours() {
        let (cuda, _guard) = gpu();
        let model = std::env::var_os("CUDA_MODEL").expect("CUDA_MODEL");
        let pair = Pair::open(&cuda, Path::new(&model), FOUR);
        pair.denoises(&cuda, &[1, 4]);
        pair.codes(&cuda);
    }
}
