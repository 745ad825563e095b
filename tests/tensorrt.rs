//! Engines built with the real library, on machines without a GPU.
//!
//! Needs TensorRT for RTX (`TENSORRT_LIBRARY_PATH`, or beside the test program) and ONNX Runtime (`ORT_DYLIB_PATH`, the
//! same): without them these tests fail, they do not skip.
#![cfg(all(
    feature = "tensorrt",
    feature = "program",
    not(feature = "tensorrt-enterprise")
))]

mod common;

use std::fs;
use std::ops::ControlFlow;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
#[cfg(feature = "cuda")]
use std::time::Instant;

use common::{Folder, data, parity, tensorrt_of_version, wait_until};
#[cfg(feature = "cuda")]
use gststreamdiffusion::device::Device;
#[cfg(feature = "cuda")]
use gststreamdiffusion::device::HostTensor;
#[cfg(feature = "cuda")]
use gststreamdiffusion::device::cuda::{Cuda, Element};
#[cfg(feature = "cuda")]
use gststreamdiffusion::engine::Model;
#[cfg(feature = "cuda")]
use gststreamdiffusion::engine::cache::Companion;
use gststreamdiffusion::engine::cache::{Cache, Hashes, Order};
#[cfg(feature = "cuda")]
use gststreamdiffusion::engine::onnxruntime::OnnxModel;
use gststreamdiffusion::engine::tensorrt::builder::{self, Input, Job, Progress, Source};
#[cfg(feature = "cuda")]
use gststreamdiffusion::engine::tensorrt::execution::Executable;
use gststreamdiffusion::engine::tensorrt::{Part, Profile, Recipe, Span, library};
use gststreamdiffusion::error::Error;
use gststreamdiffusion::model::{Component, Dtype, ModelFolder, Role};

/// Goes on, whatever it is told.
struct Silent;

impl Progress for Silent {
    fn step(&self, _: &str, _: usize, _: usize) -> ControlFlow<()> {
        ControlFlow::Continue(())
    }
}

fn profile(rows: usize, side: usize) -> Profile {
    Profile {
        rows: Span::new(1, 2, rows),
        frames: Span::new(1, 1, 2),
        width: Span::of(side),
        height: Span::of(side),
        chunks: Span::of(1),
    }
}

fn demo() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("models/demo")
}

/// What TensorRT for RTX 1.7 writes at the start of an engine, as seen by building for each GPU alone: "vtrt", the
/// engine's length at 16, the version at 24, and a bit for each compute capability at 32.
#[track_caller]
fn check_header(engine: &[u8], capabilities: u8) {
    let word = |at: usize| u64::from_le_bytes(engine[at..at + 8].try_into().unwrap());
    assert_eq!(&engine[..4], b"vtrt");
    assert_eq!(word(16), engine.len() as u64);
    let version = library().unwrap().version;
    let written = [1u32, 7, 1, 116];
    assert_eq!(
        [version.major, version.minor, version.patch, version.build],
        written,
        "these tests know the version that scripts/get-tensorrt fetches"
    );
    assert_eq!(engine[24..28], written.map(|n| n as u8));
    assert_eq!(engine[32], capabilities);
}

/// Whether an engine names a tensor.
fn names(engine: &[u8], name: &str) -> bool {
    engine.windows(name.len()).any(|w| w == name.as_bytes())
}

/// The engine of a component, built and looked at; its inputs.
#[track_caller]
fn builds(folder: &ModelFolder, component: Component, profile: &Profile) -> (Vec<Input>, Part) {
    let here = Folder::new();
    let cache = Cache::new(Some(here.path())).unwrap();
    let recipe = Recipe::new(folder, component, profile).unwrap();
    let engine = recipe.build(&[], &cache, Arc::new(Silent)).unwrap();
    let bytes = engine.as_ref();
    // 8.0, 8.6, 8.9, 12.0, 12.1 and whatever comes after.
    check_header(bytes, 0b111_1110);
    assert!(names(bytes, recipe.output()), "{}", recipe.output());
    for input in recipe.inputs() {
        assert!(names(bytes, &input.name), "{input}");
        assert!(input.min.iter().zip(&input.opt).all(|(a, b)| a <= b));
        assert!(input.opt.iter().zip(&input.max).all(|(a, b)| a <= b));
    }
    assert_eq!(fs::read_dir(here.path()).unwrap().count(), 0);
    (recipe.inputs().to_vec(), recipe.part())
}

/// Builds the engines of all components of a model folder.
#[track_caller]
fn builds_all(path: &Path, part: Part) {
    let folder = ModelFolder::open(path).unwrap();
    let side = folder
        .fixed_size()
        .map_or(folder.multiple(), |(width, _)| width);
    let profile = profile(4, side);
    let latent = side / folder.latent_scale();
    let (unet, found) = builds(&folder, Component::Unet, &profile);
    assert_eq!(found, part);
    let name = |role| folder.unet().input(role).unwrap().name.clone();
    let shape = |rows, channels, side| vec![rows, channels, side, side];
    let rows = |most: usize| folder.unet().batch().unwrap_or(most);
    let channels = folder.latent_channels();
    assert_eq!(unet[0].name, name(Role::Sample));
    assert_eq!(unet[0].min, shape(rows(1), channels, latent));
    assert_eq!(unet[0].opt, shape(rows(2), channels, latent));
    assert_eq!(unet[0].max, shape(rows(4), channels, latent));
    // The live part takes embeddings in place of the timestep, and keys and values; of some exports also the text, for
    // its shape.
    let timestep = name(Role::Timestep);
    let has_timestep = unet.iter().any(|input| input.name == timestep);
    assert_eq!(has_timestep, part == Part::Whole);
    assert!(unet.len() > 2);

    let frames = |file: &gststreamdiffusion::model::ComponentFile, n| file.batch().unwrap_or(n);
    let (encoder, _) = builds(&folder, Component::VaeEncoder, &profile);
    assert_eq!(encoder.len(), 1);
    assert_eq!(
        encoder[0].max,
        shape(frames(folder.vae_encoder(), 2), 3, side)
    );
    let (decoder, _) = builds(&folder, Component::VaeDecoder, &profile);
    assert_eq!(decoder.len(), 1);
    assert_eq!(
        decoder[0].max,
        shape(frames(folder.vae_decoder(), 2), channels, latent)
    );
}

#[test]
fn the_demo_model_is_built() {
    builds_all(&demo(), Part::Live);
}

#[test]
fn stable_diffusion_is_built() {
    builds_all(&data("models/sd1"), Part::Live);
    builds_all(&data("models/optimum-sd1"), Part::Live);
}

#[test]
fn stable_diffusion_xl_is_built() {
    builds_all(&data("models/sdxl"), Part::Live);
}

#[test]
fn latent_consistency_models_are_built() {
    builds_all(&data("models/optimum-lcm"), Part::Live);
}

#[test]
fn a_unet_that_cannot_be_split_is_built_whole() {
    builds_all(&data("odd"), Part::Whole);
}

/// Sizes and texts may vary within one engine; what that does to keys and values is found by trying.
#[test]
fn ranges_of_sizes_and_texts_are_built() {
    let folder = ModelFolder::open(&data("models/sd1")).unwrap();
    let multiple = folder.multiple();
    let profile = Profile {
        width: Span::new(multiple, multiple, 2 * multiple),
        chunks: Span::new(1, 1, 3),
        ..profile(3, multiple)
    };
    let (unet, _) = builds(&folder, Component::Unet, &profile);
    let latent = multiple / folder.latent_scale();
    let channels = folder.latent_channels();
    assert_eq!(unet[0].min, [1, channels, latent, latent]);
    assert_eq!(unet[0].max, [3, channels, latent, 2 * latent]);
    let length = folder.text_encoders()[0].tokenizer.length();
    // Keys and values have a row for each token.
    let of_text = |input: &&Input| input.min.contains(&length) && input.max.contains(&(3 * length));
    assert!(unet.iter().filter(of_text).count() >= 2, "{unet:?}");
}

/// The fields of a protobuf message: number, kind and content.
fn fields(mut bytes: &[u8]) -> Vec<(u64, u64, Vec<u8>)> {
    fn varint(bytes: &mut &[u8]) -> u64 {
        let mut value = 0;
        for i in 0.. {
            let byte = bytes[0];
            *bytes = &bytes[1..];
            value |= u64::from(byte & 0x7f) << (7 * i);
            if byte < 0x80 {
                break;
            }
        }
        value
    }
    let mut fields = Vec::new();
    while !bytes.is_empty() {
        let tag = varint(&mut bytes);
        let content = match tag & 7 {
            0 => put(varint(&mut bytes)),
            kind => {
                let length = match kind {
                    1 => 8,
                    5 => 4,
                    _ => varint(&mut bytes) as usize,
                };
                let content = bytes[..length].to_vec();
                bytes = &bytes[length..];
                content
            }
        };
        fields.push((tag >> 3, tag & 7, content));
    }
    fields
}

/// A number as protobuf writes it.
fn put(mut value: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    while value > 0x7f {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
    bytes
}

/// The message of these fields.
fn message(fields: Vec<(u64, u64, Vec<u8>)>) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (number, kind, content) in fields {
        bytes.extend(put(number << 3 | kind));
        if kind == 2 {
            bytes.extend(put(content.len() as u64));
        }
        bytes.extend(content);
    }
    bytes
}

/// A model with its larger weights in a file of the name `location`, and what goes into that.
fn with_external_data(model: &[u8], location: &str) -> (Vec<u8>, Vec<u8>) {
    let mut data = Vec::new();
    let entry = |key: &str, value: &str| {
        let text = |number, text: &str| (number, 2, text.as_bytes().to_vec());
        (13, 2, message(vec![text(1, key), text(2, value)]))
    };
    let mut tensor = |bytes: &[u8]| {
        let mut all = fields(bytes);
        // Field 9 is the raw data; small ones are shapes and such, which stay.
        if let Some(i) = all.iter().position(|f| f.0 == 9 && f.2.len() >= 512) {
            let (_, _, raw) = all.remove(i);
            all.push(entry("location", location));
            all.push(entry("offset", &data.len().to_string()));
            all.push(entry("length", &raw.len().to_string()));
            all.push((14, 0, put(1)));
            data.extend(raw);
        }
        message(all)
    };
    let mut graph = |bytes: &[u8]| {
        let all = fields(bytes).into_iter();
        let all = all.map(|(number, kind, content)| match number {
            5 => (number, kind, tensor(&content)),
            _ => (number, kind, content),
        });
        message(all.collect())
    };
    let all = fields(model).into_iter();
    let all = all.map(|(number, kind, content)| match number {
        7 => (number, kind, graph(&content)),
        _ => (number, kind, content),
    });
    (message(all.collect()), data)
}

#[test]
fn external_data_is_found_where_it_lies() {
    let here = Folder::new();
    common::copy(&data("models/sd1"), here.path());
    let path = here.file("unet/model.onnx");
    let (model, weights) = with_external_data(&fs::read(&path).unwrap(), "weights.bin");
    assert!(weights.len() > 10_000);
    fs::write(&path, model).unwrap();
    fs::write(path.with_file_name("weights.bin"), weights).unwrap();
    let folder = ModelFolder::open(here.path()).unwrap();
    assert_eq!(folder.unet().graph.external_files.len(), 1);
    let (_, part) = builds(&folder, Component::Unet, &profile(2, 64));
    // The graph of the live part is written by the build, and finds the weights from there.
    assert_eq!(part, Part::Live);
    // Files whose values change are other files.
    let hash = || {
        let here = Folder::new();
        let cache = Cache::new(Some(here.path())).unwrap();
        let unet = folder.unet();
        Hashes::open(&cache).component(unet, &mut |_| ()).unwrap()
    };
    let first = hash();
    let weights = path.with_file_name("weights.bin");
    let mut bytes = fs::read(&weights).unwrap();
    bytes[0] ^= 1;
    fs::write(&weights, bytes).unwrap();
    assert_ne!(hash(), first);
}

#[test]
fn a_build_ends_when_it_is_told_to() {
    struct Stop;
    impl Progress for Stop {
        fn step(&self, _: &str, _: usize, _: usize) -> ControlFlow<()> {
            ControlFlow::Break(())
        }
    }
    let folder = ModelFolder::open(&parity()).unwrap();
    let cache = Cache::new(Some(Path::new("/nonexistent"))).unwrap();
    let profile = profile(2, 64);
    let recipe = Recipe::new(&folder, Component::VaeDecoder, &profile).unwrap();
    let error = recipe.build(&[], &cache, Arc::new(Stop)).unwrap_err();
    assert_eq!(
        error.to_string(),
        "vae_decoder: the build was ended, as asked"
    );
    // And what was ended can be built.
    recipe.build(&[], &cache, Arc::new(Silent)).unwrap();
}

/// A file that changes while it is built from: its engine must not get the name of the new one, nor that of the old one.
#[test]
fn files_that_change_while_an_engine_is_built_are_told() {
    struct Meddle(PathBuf, AtomicBool);
    impl Progress for Meddle {
        fn step(&self, _: &str, _: usize, _: usize) -> ControlFlow<()> {
            if !self.1.swap(true, Ordering::SeqCst) {
                let mut bytes = fs::read(&self.0).unwrap();
                let last = bytes.len() - 1;
                bytes[last] ^= 1;
                fs::write(&self.0, bytes).unwrap();
            }
            ControlFlow::Continue(())
        }
    }
    let here = Folder::new();
    common::copy(&data("odd"), &here.file("model"));
    let cache = Cache::new(Some(&here.file("engines"))).unwrap();
    let folder = ModelFolder::open(&here.file("model")).unwrap();
    let file = here.file("model/vae_decoder/model.onnx");
    let (width, _) = folder.fixed_size().unwrap_or((folder.multiple(), 0));
    let recipe = || Recipe::new(&folder, Component::VaeDecoder, &profile(1, width)).unwrap();
    let key_of = |recipe: &Recipe| recipe.key(&[], &mut Hashes::open(&cache), &mut |_| ());
    let first = recipe();
    let key = key_of(&first).unwrap();
    let order = Order {
        key: &key,
        model: folder.path(),
        room: 1,
        serves: first.serves().clone(),
    };
    let meddle = Arc::new(Meddle(file.clone(), AtomicBool::new(false)));
    let make = || first.build_for(&key, &[], &cache, meddle);
    let error = cache
        .build(&order, || Ok(()), make)
        .unwrap_err()
        .to_string();
    for part in ["vae_decoder/model.onnx", "changed", "nothing was stored"] {
        assert!(error.contains(part), "{error}");
    }
    assert!(cache.entries().unwrap().is_empty());
    assert!(!cache.holds(&key).unwrap());
    // A recipe that was made of what the file was has no key any more.
    let error = key_of(&first).unwrap_err().to_string();
    assert!(error.contains("changed"), "{error}");
    // And one of what it is now has another.
    let second = recipe();
    let now = key_of(&second).unwrap();
    assert_ne!(now.source, key.source);
    let make = || second.build_for(&now, &[], &cache, Arc::new(Silent));
    let order = Order { key: &now, ..order };
    cache.build(&order, || Ok(()), make).unwrap();
    assert!(cache.holds(&now).unwrap());
}

#[test]
fn engines_are_for_the_gpus_that_were_chosen() {
    let folder = ModelFolder::open(&data("odd")).unwrap();
    let cache = Cache::new(Some(Path::new("/nonexistent"))).unwrap();
    let (width, _) = folder.fixed_size().unwrap_or((folder.multiple(), 0));
    let profile = profile(1, width);
    let recipe = Recipe::new(&folder, Component::VaeDecoder, &profile).unwrap();
    for (chosen, bits) in [
        (&["7.5"][..], 0b1),
        (&["8.9"], 0b1000),
        (&["8.6", "12.0"], 0b1_0100),
    ] {
        let chosen: Vec<_> = chosen.iter().map(|c| c.parse().unwrap()).collect();
        let engine = recipe.build(&chosen, &cache, Arc::new(Silent)).unwrap();
        check_header(engine.as_ref(), bits);
    }
}

#[test]
fn what_cannot_be_built_is_told_with_tensorrts_words() {
    let folder = ModelFolder::open(&data("odd")).unwrap();
    let file = folder.vae_decoder();
    let port = &file.inputs[0].1;
    let input = |name: &str, rank: usize| Input {
        name: name.into(),
        dtype: Dtype::F32,
        min: vec![1; rank],
        opt: vec![1; rank],
        max: vec![1; rank],
        rows: false,
    };
    let told = |source, inputs: &[Input]| {
        let job = Job {
            name: "vae_decoder",
            source,
            inputs,
            capabilities: &[],
        };
        let error = builder::build(&job, Arc::new(Silent)).unwrap_err();
        assert!(matches!(error, Error::Engine { .. }), "{error}");
        error.to_string()
    };
    let text = told(Source::Memory(b"no graph"), &[input("x", 4)]);
    for part in [
        "vae_decoder: TensorRT for RTX 1.7",
        "Failed to parse the ONNX model",
    ] {
        assert!(text.contains(part), "{text}");
    }
    let text = told(Source::File(Path::new("/nonexistent.onnx")), &[]);
    assert!(text.contains("/nonexistent.onnx"), "{text}");
    let text = told(Source::File(&file.path), &[input("other", 4)]);
    assert!(text.contains("unexpected input"), "{text}");
    let text = told(Source::File(&file.path), &[]);
    assert!(text.contains("has 1 inputs, expected 0"), "{text}");
    let text = told(Source::File(&file.path), &[input(&port.name, 3)]);
    assert!(
        text.contains("4 dimensions in the graph, expected 3"),
        "{text}"
    );
}

#[test]
fn profiles_that_the_model_cannot_do_are_refused() {
    let folder = ModelFolder::open(&parity()).unwrap();
    let mut wrong = profile(1, 64);
    wrong.width = Span::of(65);
    let error = Recipe::new(&folder, Component::Unet, &wrong).err().unwrap();
    assert!(error.to_string().contains("property width: 65"), "{error}");
    let error = Recipe::new(&folder, Component::TextEncoder, &profile(1, 64));
    let error = error.err().unwrap().to_string();
    assert!(error.contains("text_encoder: is run by ONNX"), "{error}");
}

// The program, as people run it.

fn program(here: &Folder, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_streamdiffusion"));
    command
        .current_dir(here.path())
        .env("GST_STREAMDIFFUSION_ENGINES", here.path().join("engines"))
        .args(args);
    command
}

fn output(here: &Folder, args: &[&str]) -> Output {
    program(here, args).output().unwrap()
}

#[track_caller]
fn works(here: &Folder, args: &[&str]) -> String {
    let output = output(here, args);
    assert!(output.status.success(), "{args:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// It must fail with one line of error that has all of `parts`.
#[track_caller]
fn fails(mut command: Command, parts: &[&str]) {
    let output = command.output().unwrap();
    let errors = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{errors}");
    assert_eq!(errors.lines().count(), 1, "{errors}");
    for part in parts {
        assert!(errors.contains(part), "{errors:?} lacks {part:?}");
    }
}

/// The files in the folder of engines, but for locks and notes.
fn engines(here: &Folder) -> Vec<String> {
    let entries = fs::read_dir(here.path().join("engines"));
    let names = entries.into_iter().flatten().flatten();
    names
        .map(|entry| entry.file_name().into_string().unwrap())
        .filter(|name| !name.ends_with(".lock") && name != "sources.toml")
        .collect()
}

#[test]
fn the_program_builds_lists_verifies_and_removes() {
    let here = Folder::new();
    let model = data("odd");
    let model = model.to_str().unwrap();
    let told = works(&here, &["build", model, "--dry-run"]);
    for part in ["odd", "TensorRT for RTX 1.7", "about", "in one piece"] {
        assert!(told.contains(part), "{told}");
    }
    assert!(engines(&here).is_empty());
    let told = works(&here, &["build", model, "-j", "3"]);
    assert_eq!(told.matches("built in").count(), 3, "{told}");
    assert_eq!(engines(&here).len(), 6);
    let told = works(&here, &["build", model]);
    assert_eq!(told.matches("there already, ").count(), 3, "{told}");
    assert!(!told.contains("built in"), "{told}");
    let told = works(
        &here,
        &[
            "build",
            model,
            "--compute-capability",
            "8.9",
            "--components",
            "unet",
        ],
    );
    assert!(
        told.contains("another one: compute capability: any, now 8.9"),
        "{told}"
    );
    assert_eq!(engines(&here).len(), 8);

    let told = works(&here, &["engines", "list"]);
    for part in [
        "in 4\n",
        "unet",
        "vae_decoder",
        model,
        "rtx 1.7.1.116",
        "x float16 2x4x4x4",
    ] {
        assert!(told.contains(part), "{told}");
    }
    let told = works(&here, &["engines", "verify"]);
    assert!(told.contains("4 of 4 are as they were built"), "{told}");
    assert!(works(&here, &["engines", "prune"]).starts_with("0 B freed"));

    // One of them changes.
    let names = engines(&here);
    let name = names.iter().find(|n| n.ends_with(".engine")).unwrap();
    let path = here.path().join("engines").join(name);
    let mut bytes = fs::read(&path).unwrap();
    bytes[100] ^= 1;
    fs::write(&path, bytes).unwrap();
    let output = output(&here, &["engines", "verify"]);
    let told = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(1), "{told}");
    assert!(told.contains("3 of 4 are as they were built"), "{told}");
    let told = works(&here, &["engines", "prune", "--dry-run"]);
    assert!(
        told.contains(name.as_str()) && told.contains("would be freed"),
        "{told}"
    );
    assert_eq!(engines(&here).len(), 8);
    works(&here, &["engines", "prune"]);
    assert_eq!(engines(&here).len(), 6);
    works(&here, &["engines", "prune", "--model", model]);
    assert!(engines(&here).is_empty());
}

#[test]
fn what_tensorrt_says_is_told_when_asked_for() {
    let here = Folder::new();
    let model = data("odd");
    let args = [
        "-v",
        "build",
        model.to_str().unwrap(),
        "--components",
        "vae_decoder",
    ];
    let told = |args: &[&str]| {
        let output = output(&here, args);
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stderr).unwrap()
    };
    assert!(told(&args).contains("TensorRT: "));
    works(&here, &["engines", "prune", "--all"]);
    assert_eq!(told(&args[1..]), "");
}

#[test]
fn the_program_says_what_it_cannot_build() {
    let here = Folder::new();
    let with = |args: &[&str]| program(&here, &[&["build"], args].concat());
    let model = parity();
    let model = model.to_str().unwrap();
    fails(
        with(&[model, "--size", "65x64"]),
        &["width: 65", "multiple of"],
    );
    fails(with(&["nowhere"]), &["nowhere", "model folder"]);
    for (args, part) in [
        (["--size", "512"], "expected WIDTHxHEIGHT"),
        (["--batch", "4..1"], "expected MIN..MAX"),
        (["--components", "text_encoder"], "expected unet"),
        (
            ["--compute-capability", "9.0"],
            "expected a compute capability of 7.5",
        ),
    ] {
        let output = with(&[&[model][..], &args].concat()).output().unwrap();
        let errors = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{errors}");
        assert!(errors.contains(part), "{errors}");
    }
    // What an engine leaves out is run by ONNX Runtime: without it, an engine would be of no use.
    let mut alone = with(&[model]);
    alone.env("ORT_DYLIB_PATH", "/no/such/libonnxruntime.so");
    fails(alone, &["ONNX Runtime", "/no/such/libonnxruntime.so"]);
    // A disk that is full: writing beyond this size fails.
    let mut full = Command::new("sh");
    full.current_dir(here.path())
        .env("GST_STREAMDIFFUSION_ENGINES", here.path().join("engines"))
        .args([
            "-c",
            "trap '' XFSZ; ulimit -f 100; exec \"$@\"",
            "sh",
            env!("CARGO_BIN_EXE_streamdiffusion"),
            "build",
            model,
            "--components",
            "vae_encoder",
        ]);
    fails(full, &["engines", "cannot be written"]);
    assert!(engines(&here).is_empty());
}

#[test]
fn a_library_that_is_missing_or_of_the_wrong_version_is_told() {
    let here = Folder::new();
    let model = data("odd");
    let with = |path: &Path| {
        let mut command = program(&here, &["build", model.to_str().unwrap()]);
        command.env("TENSORRT_LIBRARY_PATH", path);
        command
    };
    fails(
        with(Path::new("/no/such/library.so")),
        &[
            "/no/such/library.so",
            "TENSORRT_LIBRARY_PATH",
            "get-tensorrt",
        ],
    );
    fails(
        with(here.path()),
        &["the folder holds no libtensorrt_rtx.so", "get-tensorrt"],
    );
    let old = here.path().join("libtensorrt_rtx.so.1");
    tensorrt_of_version(&old, 1, 6);
    fails(with(&old), &["version 1.6.0.0, expected 1.7"]);
    fails(with(here.path()), &["version 1.6.0.0, expected 1.7"]);
    let later = here.path().join("later.so");
    tensorrt_of_version(&later, 2, 7);
    fails(with(&later), &["version 2.7.0.0, expected 1.7"]);
    // The library without its parser, which is not the system's either.
    let alone = here.path().join("alone");
    fs::create_dir(&alone).unwrap();
    let link = alone.join("libtensorrt_rtx.so.1");
    std::os::unix::fs::symlink(&library().unwrap().path, link).unwrap();
    fails(
        with(&alone),
        &["ONNX parser", "was not found beside", "alone"],
    );
    assert!(engines(&here).is_empty());
}

/// Starts a build that takes a while, and waits until it is under way.
fn start(here: &Folder, model: &Path) -> std::process::Child {
    let args = ["build", model.to_str().unwrap(), "--components", "unet"];
    let mut command = program(here, &args);
    command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0);
    // The tests may run in the background of a shell, where Ctrl-C is ignored, which is inherited.
    let listens = || {
        // SAFETY: may be called between fork and exec.
        unsafe { libc::signal(libc::SIGINT, libc::SIG_DFL) };
        Ok(())
    };
    // SAFETY: so may it.
    let child = unsafe { command.pre_exec(listens) }.spawn().unwrap();
    let folder = here.path().join("engines");
    wait_until("a build is under way", || {
        let entries = fs::read_dir(&folder).into_iter().flatten().flatten();
        entries
            .into_iter()
            .any(|e| e.path().extension().is_some_and(|e| e == "lock"))
    });
    child
}

#[test]
fn a_build_that_is_ended_or_killed_leaves_nothing_half_made() {
    for signal in [libc::SIGINT, libc::SIGKILL] {
        // On a busy machine a build may be through before it is stopped, though not every time.
        let stopped = (0..5).any(|_| {
            let here = Folder::new();
            // The larger one, which takes longer.
            let mut child = start(&here, &demo());
            // SAFETY: a process that this test started and has not waited for.
            assert_eq!(unsafe { libc::kill(child.id() as i32, signal) }, 0);
            let status = child.wait().unwrap();
            if status.success() {
                return false;
            }
            match signal {
                libc::SIGINT => assert_eq!(status.code(), Some(128 + signal)),
                _ => assert_eq!(status.signal(), Some(signal)),
            }
            assert!(engines(&here).is_empty(), "{:?}", engines(&here));
            true
        });
        assert!(stopped, "signal {signal} never stopped a build");
    }
}

#[test]
fn of_programs_at_the_same_time_one_builds_and_the_other_waits() {
    let here = Folder::new();
    let children = [start(&here, &parity()), start(&here, &parity())];
    let told: Vec<String> = children
        .into_iter()
        .map(|child| {
            let output = child.wait_with_output().unwrap();
            assert!(output.status.success(), "{output:?}");
            String::from_utf8(output.stdout).unwrap()
        })
        .collect();
    let count = |part| told.iter().filter(|text| text.contains(part)).count();
    assert_eq!(count("built in"), 1, "{told:?}");
    assert_eq!(count("there already, "), 1, "{told:?}");
    assert_eq!(engines(&here).len(), 2);
}

// Engines that run.

/// An engine of the demo model's image decoder, from the cache.
#[cfg(feature = "cuda")]
fn decoder(here: &Folder) -> gststreamdiffusion::engine::cache::Cached {
    let folder = ModelFolder::open(&demo()).unwrap();
    let cache = Cache::new(Some(&here.file("engines"))).unwrap();
    let profile = profile(1, 64);
    let recipe = Recipe::new(&folder, Component::VaeDecoder, &profile).unwrap();
    let key = recipe
        .key(&[], &mut Hashes::open(&cache), &mut |_| ())
        .unwrap();
    let order = Order {
        key: &key,
        model: folder.path(),
        room: 1,
        serves: recipe.serves().clone(),
    };
    let make = || recipe.build(&[], &cache, Arc::new(Silent));
    cache.build(&order, || Ok(()), make).unwrap();
    cache.load(&key).unwrap()
}

/// The decoder's engine gives what ONNX Runtime gives on the CPU; again from a graph, and again with the kernels that
/// were kept.
#[cfg(feature = "cuda")]
#[test]
#[ignore = "needs an NVIDIA GPU"]
fn an_engine_runs_as_the_graph_does_on_the_cpu() {
    let here = Folder::new();
    let cached = decoder(&here);
    let cuda = Cuda::new(0).unwrap();
    let folder = ModelFolder::open(&demo()).unwrap();
    let (c, s) = (folder.latent_channels(), folder.latent_scale());
    let shapes = [[1, c, 64 / s, 64 / s], [2, c, 64 / s, 64 / s]];
    let host = OnnxModel::open(&folder).unwrap();
    let (scale, shift) = (folder.scaling_factor() as f32, folder.shift_factor() as f32);
    for start in 0..2 {
        let engine = Executable::open(&cached, &cuda).unwrap();
        assert_eq!(engine.inputs().len(), 1);
        assert_eq!(engine.inputs()[0].dims[1], Some(c));
        assert_eq!(engine.outputs().len(), 1);
        let bound = shapes.map(|shape| engine.bind(&[shape.to_vec()]).unwrap());
        // In turns, so that each finds the memory that both use as the other left it.
        for round in 0..6 {
            for (shape, bound) in shapes.iter().zip(&bound) {
                let values = (0..shape.iter().product())
                    .map(|i| (0.37 * (i + round) as f32).sin())
                    .collect::<Vec<f32>>();
                let given = cuda.upload_as(shape, &values, Element::F32).unwrap();
                cuda.copy(&[&given], &bound.inputs()[0], 1.0 / scale, shift)
                    .unwrap();
                cuda.run(bound.clone()).unwrap();
                let found = cuda.download(&bound.outputs()[0]).unwrap();
                let expected = host.decode(&HostTensor::new(shape, values)).unwrap();
                assert_eq!(found.shape(), expected.shape());
                let pairs = found.data().iter().zip(expected.data());
                let worst = pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
                // Tensor cores multiply f32 with 10 bits of mantissa.
                assert!(worst < 2e-2, "start {start}, round {round}: {worst}");
            }
        }
        assert!(cuda.launches().graphs > 0, "{:?}", cuda.refusal());
        assert!(engine.bind(&[vec![3, c, 64 / s, 64 / s]]).is_err());
        drop(bound);
        engine.keep_kernels();
        let kept = Companion::new(&cached.path, cuda.name());
        assert!(kept.read().is_some_and(|bytes| !bytes.is_empty()));
    }
}

/// A model of any size: its engines are built for 1 to 4 rows, and timed.
#[cfg(feature = "cuda")]
#[test]
#[ignore = "needs an NVIDIA GPU, and CUDA_MODEL, the path of a model folder (CUDA_SIDE: width and height in pixels)"]
fn engines_of_a_model_of_yours() {
    let model = std::env::var_os("CUDA_MODEL").expect("CUDA_MODEL");
    let side = std::env::var("CUDA_SIDE").map_or(512, |side| side.parse().unwrap());
    let here = Folder::new();
    let folder = ModelFolder::open(Path::new(&model)).unwrap();
    let cache = Cache::new(Some(&here.file("engines"))).unwrap();
    let cuda = Cuda::new(0).unwrap();
    let profile = Profile {
        rows: Span::new(1, 2, 4),
        frames: Span::of(1),
        ..profile(1, side)
    };
    for component in [
        Component::VaeEncoder,
        Component::VaeDecoder,
        Component::Unet,
    ] {
        let recipe = Recipe::new(&folder, component, &profile).unwrap();
        let key = recipe
            .key(&[], &mut Hashes::open(&cache), &mut |_| ())
            .unwrap();
        let order = Order {
            key: &key,
            model: folder.path(),
            room: 1,
            serves: recipe.serves().clone(),
        };
        let start = Instant::now();
        let make = || recipe.build(&[], &cache, Arc::new(Silent));
        cache.build(&order, || Ok(()), make).unwrap();
        let built = start.elapsed();
        let engine = Executable::open(&cache.load(&key).unwrap(), &cuda).unwrap();
        println!("{component:?}: built in {built:.1?}");
        let most = if component == Component::Unet { 4 } else { 1 };
        for rows in [1, 2, 4].into_iter().filter(|rows| *rows <= most) {
            let shapes: Vec<Vec<usize>> = (engine.inputs().iter())
                .map(|tensor| {
                    let given = recipe.inputs().iter().find(|i| i.name == tensor.name);
                    let given = given.unwrap();
                    let dims = given.min.iter().zip(&given.max);
                    dims.map(|(min, max)| if min == max { *min } else { min * rows })
                        .collect()
                })
                .collect();
            let bound = engine.bind(&shapes).unwrap();
            for (input, shape) in bound.inputs().iter().zip(&shapes) {
                let count = shape.iter().product();
                let values: Vec<f32> = (0..count).map(|i| (0.37 * i as f32).sin()).collect();
                let values = cuda.upload_as(shape, &values, input.element()).unwrap();
                cuda.copy(&[&values], input, 1.0, 0.0).unwrap();
            }
            let mut times = Vec::new();
            for _ in 0..60 {
                let (ran, took) = cuda.timed(0, || cuda.run(bound.clone()));
                ran.unwrap();
                cuda.finish().unwrap();
                times.extend(took);
            }
            times.sort_unstable();
            let output = cuda.download(&bound.outputs()[0]).unwrap();
            assert!(output.data().iter().all(|value| value.is_finite()));
            println!(
                "  {rows} rows: {:.2?} (p50 of {})",
                times[times.len() / 2],
                times.len()
            );
        }
        let (free, total) = cuda.memory().unwrap();
        println!("  {} MB in use", (total - free) >> 20);
    }
}

/// On a GPU that TensorRT for RTX does not serve, it is told so in its words.
#[cfg(feature = "cuda")]
#[test]
#[ignore = "needs an NVIDIA GPU"]
fn an_engine_on_a_gpu_that_is_not_served_is_an_error() {
    let here = Folder::new();
    let cached = decoder(&here);
    let cuda = Cuda::new(0).unwrap();
    match Executable::open(&cached, &cuda) {
        Ok(_) => eprintln!("{} is served", cuda.name()),
        Err(error) => {
            let text = error.to_string();
            for part in ["vae_decoder: TensorRT for RTX", cuda.name(), "cannot run"] {
                assert!(text.contains(part), "{text}");
            }
        }
    }
}
