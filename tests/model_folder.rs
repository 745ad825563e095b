//! Model folders, good and bad, and the components they hold.
//!
//! Needs ONNX Runtime (`ORT_DYLIB_PATH`, or beside the test program): without it these tests fail, they do not skip.

use std::collections::HashMap;
use std::fs;
use std::io::{Seek, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use gststreamdiffusion::device::HostTensor;
use gststreamdiffusion::engine::onnxruntime::OnnxModel;
use gststreamdiffusion::engine::{Denoise, Model, Text, shared};
use gststreamdiffusion::model::{
    BetaSchedule, Dtype, Graph, Inspection, ModelFolder, Posterior, PredictionType, Role,
};

fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/data")
        .join(name)
}

fn parity() -> PathBuf {
    data("parity/model")
}

/// A copy of a model folder that a test may spoil; removed when dropped.
struct Copy(PathBuf);

impl Copy {
    fn new(of: &Path) -> Self {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let path =
            std::env::temp_dir().join(format!("model-folder-{}-{count}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        copy(of, &path);
        Self(path)
    }

    fn parity() -> Self {
        Self::new(&parity())
    }

    fn write(&self, file: &str, content: impl AsRef<[u8]>) {
        fs::write(self.0.join(file), content).unwrap();
    }

    /// Replaces `from`, which must be there, by `to`.
    fn edit(&self, file: &str, from: &str, to: &str) {
        let text = fs::read_to_string(self.0.join(file)).unwrap();
        assert!(text.contains(from), "{file} has no {from}");
        self.write(file, text.replace(from, to));
    }

    fn remove(&self, name: &str) {
        let path = self.0.join(name);
        if path.is_dir() {
            fs::remove_dir_all(path).unwrap();
        } else {
            fs::remove_file(path).unwrap();
        }
    }

    fn open(&self) -> ModelFolder {
        ModelFolder::open(&self.0).unwrap()
    }

    /// Opening it must fail with a message that names `file` and has every one of `parts`.
    #[track_caller]
    fn fails(&self, file: &str, parts: &[&str]) {
        fails(&self.0, file, parts);
    }
}

impl Drop for Copy {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().flatten() {
        let to = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &to);
        } else {
            fs::copy(entry.path(), to).unwrap();
        }
    }
}

#[track_caller]
fn fails(folder: &Path, file: &str, parts: &[&str]) {
    let message = ModelFolder::open(folder).unwrap_err().to_string();
    // One that looks for all that is wrong comes upon this first.
    let found = Inspection::open(folder);
    assert!(found.folder.is_none());
    assert_eq!(found.errors[0].to_string(), message);
    for part in [file].iter().chain(parts) {
        assert!(message.contains(part), "{message:?} lacks {part:?}");
    }
}

// Protobuf by hand, for graphs that no exporter would write.

fn varint(mut n: u64) -> Vec<u8> {
    let mut out = Vec::new();
    while n > 0x7f {
        out.push(n as u8 | 0x80);
        n >>= 7;
    }
    out.push(n as u8);
    out
}

fn number(field: u64, n: i64) -> Vec<u8> {
    [varint(field << 3), varint(n as u64)].concat()
}

fn message(field: u64, content: &[Vec<u8>]) -> Vec<u8> {
    let content = content.concat();
    [
        varint(field << 3 | 2),
        varint(content.len() as u64),
        content,
    ]
    .concat()
}

fn string(field: u64, text: &str) -> Vec<u8> {
    message(field, &[text.as_bytes().to_vec()])
}

/// A model of one graph with `content`.
fn model(content: &[Vec<u8>]) -> Vec<u8> {
    [
        number(1, 8),
        message(8, &[number(2, 17)]),
        message(7, content),
    ]
    .concat()
}

/// An input (11) or output (12) of a graph.
fn port(field: u64, name: &str, dtype: i64, dims: &[i64]) -> Vec<u8> {
    let dims: Vec<_> = dims.iter().map(|d| message(1, &[number(1, *d)])).collect();
    let tensor = message(1, &[number(1, dtype), message(2, &dims)]);
    message(field, &[string(1, name), message(2, &[tensor])])
}

/// A weight that lives in the file `location`.
fn external(field: u64, location: &str, offset: &str, length: &str) -> Vec<u8> {
    let entry = |key, value| message(13, &[string(1, key), string(2, value)]);
    message(
        field,
        &[
            number(1, 4),
            number(2, 1),
            string(8, "weight"),
            entry("location", location),
            entry("offset", offset),
            entry("length", length),
            number(14, 1),
        ],
    )
}

#[test]
fn the_parity_folder_opens() {
    let start = std::time::Instant::now();
    let folder = ModelFolder::open(&parity()).unwrap();
    assert!(start.elapsed().as_millis() < 500, "{:?}", start.elapsed());
    assert_eq!(folder.name(), "model");
    assert_eq!(folder.path(), parity());
    assert_eq!(folder.latent_channels(), 4);
    assert_eq!(folder.latent_scale(), 8);
    assert_eq!(folder.multiple(), 16);
    assert_eq!(folder.fixed_size(), None);
    assert_eq!((folder.scaling_factor(), folder.shift_factor()), (1.0, 0.0));
    assert!(!folder.gives_posterior() && !folder.samples_posterior());
    assert_eq!(folder.manifest(), &Default::default());
    let scheduler = folder.scheduler();
    assert_eq!(scheduler.num_train_timesteps, 1000);
    assert_eq!(scheduler.beta_schedule, BetaSchedule::ScaledLinear);
    assert_eq!(scheduler.prediction_type, PredictionType::Epsilon);
    assert_eq!((scheduler.beta_start, scheduler.beta_end), (0.00085, 0.012));
    assert_eq!(scheduler.original_inference_steps, 50);
    assert_eq!(scheduler.timestep_scaling, 10.0);
    assert!(!scheduler.rescale_betas_zero_snr && scheduler.trained_betas.is_none());
    let unet = folder.unet();
    assert_eq!((unet.graph.ir_version, unet.graph.opset), (8, 17));
    let sample = unet.input(Role::Sample).unwrap();
    assert_eq!(sample.name, "sample");
    assert_eq!(sample.dtype, Dtype::F32);
    assert_eq!(sample.dims, [None, Some(4), None, None]);
    assert_eq!(unet.input(Role::Timestep).unwrap().dims, [None]);
    assert_eq!(
        unet.input(Role::Text).unwrap().dims,
        [None, Some(16), Some(32)]
    );
    assert_eq!(unet.output.name, "out_sample");
}

#[test]
fn texts_have_the_tokens_clip_gives_them() {
    let folder = ModelFolder::open(&parity()).unwrap();
    let tokenizer = &folder.text_encoders()[0].tokenizer;
    assert_eq!(tokenizer.length(), 16);
    let (start, end) = (524, 525);
    let empty = tokenizer.encode("").unwrap();
    assert_eq!(empty[0], start);
    assert_eq!(&empty[1..], &[end; 15]);
    // Cut, with the end token kept.
    let long = tokenizer.encode(&"word ".repeat(100)).unwrap();
    assert_eq!((long.len(), long[0], long[15]), (16, start, end));
    assert!(long[1..15].iter().all(|id| *id < start));
    // Case, whitespace and Unicode form do not matter.
    let a = tokenizer.encode("A  Neon\n\tCat e\u{301}").unwrap();
    assert_eq!(a, tokenizer.encode(" a neon cat \u{e9} ").unwrap());
    for odd in [
        "<|endoftext|>",
        "a <|startoftext|><|endoftext|> b",
        "\0\u{1f600}\u{202e}\u{10ffff}",
        "!\"#$%&'''s",
        &"x".repeat(60_000),
    ] {
        let ids = tokenizer.encode(odd).unwrap();
        assert_eq!(ids.len(), 16);
        assert!(ids.iter().all(|id| (0..526).contains(id)));
    }
    let message = tokenizer.encode(&"x".repeat(70_000)).unwrap_err();
    assert!(message.to_string().contains("prompt"), "{message}");
}

#[test]
fn older_tokenizer_files_give_the_same_tokens() {
    let new = ModelFolder::open(&parity()).unwrap();
    let old = ModelFolder::open(&data("odd")).unwrap();
    for text in [
        "",
        "a neon cat",
        "It's 1984, they'll see the NAÏVE <|endoftext|> art?",
    ] {
        let mut expected = new.text_encoders()[0].tokenizer.encode(text).unwrap();
        let found = old.text_encoders()[0].tokenizer.encode(text).unwrap();
        // It pads with "!", as Stable Diffusion 2 does.
        let end = expected.iter().rposition(|id| *id != 525).unwrap() + 2;
        expected[end.min(16)..].fill(0);
        assert_eq!(found, expected, "{text:?}");
    }
}

#[test]
fn a_manifest_is_read() {
    let copy = Copy::parity();
    copy.write(
        "streamdiffusion.toml",
        r#"
        name = "Demo"
        license = "CC0-1.0"
        source = "tools/demo_model"
        [defaults]
        prompt = "ink drawing"
        negative_prompt = "blurry"
        steps = 2
        strength = 0.5
        t_index_list = [32, 45]
        num_inference_steps = 50
        guidance_scale = 1.2
        delta = 0.5
        cfg_type = "self"
        size = 256
        width = 320
        height = 192
        [limits]
        multiple = 32
        [vae]
        posterior = "sample"
        "#,
    );
    let folder = copy.open();
    assert_eq!(folder.name(), "Demo");
    assert_eq!(folder.multiple(), 32);
    let manifest = folder.manifest();
    assert_eq!(manifest.license.as_deref(), Some("CC0-1.0"));
    assert_eq!(manifest.defaults.t_index_list, Some(vec![32, 45]));
    assert_eq!(manifest.defaults.cfg_type.as_deref(), Some("self"));
    assert_eq!(manifest.defaults.size, Some(256));
    assert_eq!(manifest.vae.posterior, Posterior::Sample);
    // The encoder gives plain latents: there is nothing to sample.
    assert!(!folder.samples_posterior());
}

#[test]
fn bad_manifests_are_refused() {
    let copy = Copy::parity();
    for (toml, parts) in [
        ("nmae = \"x\"", &["unknown field", "nmae", "name"][..]),
        ("[defaults]\nsteps = 0", &["steps is 0", "1 to 8"]),
        ("[defaults]\nsteps = -1", &["invalid value", "-1"]),
        ("[defaults]\nsteps = \"two\"", &["steps", "invalid type"]),
        (
            "[defaults]\nstrength = 0.0",
            &["strength is 0", "above 0 to 1"],
        ),
        ("[defaults]\nstrength = nan", &["strength is NaN"]),
        (
            "[defaults]\nguidance_scale = inf",
            &["guidance_scale is inf"],
        ),
        (
            "[defaults]\ncfg_type = \"rcfg\"",
            &["cfg_type", "\"initialize\""],
        ),
        (
            "[defaults]\nt_index_list = []",
            &["t_index_list", "ascending"],
        ),
        (
            "[defaults]\nt_index_list = [45, 32]",
            &["t_index_list", "ascending"],
        ),
        ("[defaults]\nt_index_list = [50]", &["t_index_list", "50"]),
        ("[defaults]\nwidth = 512", &["width", "height", "together"]),
        ("[limits]\nmultiple = 0", &["limits.multiple is 0"]),
        ("[vae]\nposterior = \"mode\"", &["mode", "mean", "sample"]),
        ("name = \"a\\u0000b\"", &["name", "null character"]),
        (
            "[defaults]\nprompt = \"\\u0000\"",
            &["defaults.prompt", "null character"],
        ),
        ("name = ", &["TOML"]),
        ("name = \"\u{7}\"", &["TOML"]),
    ] {
        copy.write("streamdiffusion.toml", toml);
        let parts: Vec<&str> = parts.iter().copied().filter(|p| *p != "TOML").collect();
        copy.fails("streamdiffusion.toml", &parts);
    }
    copy.write(
        "streamdiffusion.toml",
        format!("name = \"{}\"", "x".repeat(201)),
    );
    copy.fails("streamdiffusion.toml", &["name is longer than 200 bytes"]);
    copy.write("streamdiffusion.toml", " ".repeat((1 << 20) + 1));
    copy.fails("streamdiffusion.toml", &["larger than", "1048576"]);
    copy.write("streamdiffusion.toml", b"name = \"\xff\"");
    copy.fails("streamdiffusion.toml", &["UTF-8"]);
}

#[test]
fn what_is_missing_is_named() {
    fails(
        Path::new("/no/such/folder"),
        "/no/such/folder",
        &["expected a model folder"],
    );
    let file = data("parity/cases.json");
    fails(
        &file,
        "cases.json",
        &["expected a model folder, found a file"],
    );
    fails(
        &data("parity"),
        "model_index.json",
        &["expected in every model folder"],
    );
    for (name, file) in [
        ("unet", "unet"),
        ("unet/model.onnx", "unet/model.onnx"),
        ("vae_encoder", "vae_encoder"),
        ("vae_decoder/model.onnx", "vae_decoder/model.onnx"),
        ("text_encoder", "text_encoder"),
        ("scheduler", "scheduler/scheduler_config.json"),
        ("tokenizer/tokenizer.json", "tokenizer"),
    ] {
        let copy = Copy::parity();
        copy.remove(name);
        copy.fails(file, &[]);
    }
    let copy = Copy::parity();
    copy.remove("unet/model.onnx");
    fs::create_dir(copy.0.join("unet/model.onnx")).unwrap();
    copy.fails("unet/model.onnx", &["expected a regular file"]);
}

/// What people have before they export: they are told of it.
#[test]
fn checkpoints_are_told_from_other_things() {
    let copy = Copy::parity();
    copy.write("model.safetensors", "");
    fails(
        &copy.0.join("model.safetensors"),
        "model.safetensors",
        &["found a file", "tools/export_model.py"],
    );
    copy.remove("unet/model.onnx");
    copy.write("unet/diffusion_pytorch_model.safetensors", "");
    copy.fails("unet/model.onnx", &["tools/export_model.py"]);
    let error = ModelFolder::open(&data("parity/cases.json")).map(drop);
    assert!(!error.unwrap_err().to_string().contains("export_model"));
}

#[test]
fn component_configurations_are_optional() {
    let copy = Copy::parity();
    for component in copy.open().components() {
        let folder = component.component;
        copy.remove(&format!("{folder}/config.json"));
    }
    let folder = copy.open();
    assert_eq!(folder.scaling_factor(), 0.18215);
    assert_eq!((folder.latent_scale(), folder.multiple()), (8, 64));
}

#[test]
fn other_pipelines_are_refused() {
    let copy = Copy::parity();
    let index = "model_index.json";
    let class = "StableDiffusionPipeline";
    for ok in [
        "OnnxStableDiffusionPipeline",
        "StableDiffusionImg2ImgPipeline",
        "ORTStableDiffusionPipeline",
        "LatentConsistencyModelPipeline",
        "ORTLatentConsistencyModelImg2ImgPipeline",
    ] {
        copy.write(
            index,
            format!(r#"{{"_class_name": "{ok}", "safety_checker": ["a", "B"]}}"#),
        );
        copy.open();
    }
    for other in ["ORTStableDiffusion3Pipeline", "FluxPipeline"] {
        copy.write(index, format!(r#"{{"_class_name": "{other}"}}"#));
        copy.fails(index, &["unsupported", other]);
    }
    copy.write(
        index,
        format!(r#"{{"_class_name": "{class}", "text_encoder_2": ["t", "C"]}}"#),
    );
    copy.fails(index, &["unsupported", "text_encoder_2"]);
    copy.write(
        index,
        format!(r#"{{"_class_name": "{class}", "text_encoder_2": [null, null]}}"#),
    );
    copy.open();
    copy.write(
        index,
        r#"{"_class_name": "StableDiffusionXLImg2ImgPipeline", "text_encoder": [null, null]}"#,
    );
    copy.fails(index, &["refiner", "base model"]);
    for bad in [
        "",
        "[]",
        "{\"_class_name\": 3}",
        "{",
        "{\"_class_name\": NaN}",
    ] {
        copy.write(index, bad);
        copy.fails(index, &["expected"]);
    }
}

#[test]
fn bad_schedulers_are_refused() {
    let copy = Copy::parity();
    let file = "scheduler/scheduler_config.json";
    for (json, parts) in [
        (
            r#"{"prediction_type": "flow"}"#,
            &["prediction_type", "flow", "epsilon", "v_prediction"][..],
        ),
        (
            r#"{"beta_schedule": "sigmoid"}"#,
            &["beta_schedule", "sigmoid", "scaled_linear"],
        ),
        (r#"{"beta_start": 0}"#, &["beta_start is 0"]),
        (r#"{"beta_start": -0.1}"#, &["beta_start is -0.1"]),
        (r#"{"beta_end": 1.0}"#, &["beta_end is 1"]),
        (r#"{"beta_end": NaN}"#, &["JSON"]),
        (r#"{"beta_end": 1e999}"#, &["JSON"]),
        (
            r#"{"beta_start": 0.02}"#,
            &["beta_end", "at least beta_start"],
        ),
        (
            r#"{"num_train_timesteps": 0}"#,
            &["num_train_timesteps is 0", "10000"],
        ),
        (r#"{"num_train_timesteps": -5}"#, &["-5"]),
        (
            r#"{"num_train_timesteps": 20000}"#,
            &["num_train_timesteps"],
        ),
        (r#"{"num_train_timesteps": "1000"}"#, &["invalid type"]),
        (
            r#"{"original_inference_steps": 1001}"#,
            &["original_inference_steps is 1001"],
        ),
        (r#"{"timestep_scaling": 0}"#, &["timestep_scaling is 0"]),
        (
            r#"{"trained_betas": [0.1]}"#,
            &["trained_betas has 1 values", "1000"],
        ),
        (
            r#"{"num_train_timesteps": 2, "original_inference_steps": 1, "trained_betas": [0.1, 2]}"#,
            &["trained_betas is 2"],
        ),
        ("[1]", &["JSON"]),
    ] {
        copy.write(file, json);
        copy.fails(file, parts);
    }
    copy.write(
        file,
        r#"{"_class_name": "EulerDiscreteScheduler", "prediction_type": "v_prediction", "beta_schedule": "squaredcos_cap_v2",
            "num_train_timesteps": 2, "original_inference_steps": 1, "trained_betas": [0.1, 0.2]}"#,
    );
    let folder = copy.open();
    assert_eq!(
        folder.scheduler().prediction_type,
        PredictionType::VPrediction
    );
    assert_eq!(folder.scheduler().trained_betas, Some(vec![0.1, 0.2]));
}

#[test]
fn bad_component_configurations_are_refused() {
    for (file, from, to, parts) in [
        (
            "vae_decoder/config.json",
            "\"scaling_factor\": 1.0",
            "\"scaling_factor\": -1",
            &["scaling_factor is -1"][..],
        ),
        (
            "vae_decoder/config.json",
            "\"scaling_factor\": 1.0",
            "\"scaling_factor\": NaN",
            &["JSON"],
        ),
        (
            "vae_encoder/config.json",
            "\"latent_channels\": 4",
            "\"latent_channels\": 0",
            &["latent_channels is 0"],
        ),
        (
            "unet/config.json",
            "\"in_channels\": 4",
            "\"in_channels\": \"4\"",
            &["invalid type"],
        ),
        (
            "text_encoder/config.json",
            "\"vocab_size\": 526",
            "\"vocab_size\": -1",
            &["invalid value"],
        ),
    ] {
        let copy = Copy::parity();
        copy.edit(file, from, to);
        copy.fails(file, parts);
    }
    let copy = Copy::parity();
    copy.edit(
        "unet/config.json",
        "\"in_channels\": 4",
        "\"in_channels\": 9",
    );
    copy.fails("unet/model.onnx", &["unsupported", "9 channels"]);
}

#[test]
fn tokenizers_of_other_models_are_refused() {
    let copy = Copy::parity();
    copy.edit(
        "text_encoder/config.json",
        "\"vocab_size\": 526",
        "\"vocab_size\": 500",
    );
    copy.fails(
        "tokenizer/tokenizer.json",
        &["ids up to 525", "below 500", "another model"],
    );

    let copy = Copy::parity();
    copy.edit(
        "tokenizer/tokenizer_config.json",
        "\"pad_token\": \"<|endoftext|>\"",
        "\"pad_token\": \"[PAD]\"",
    );
    copy.fails("tokenizer/tokenizer.json", &["padding token", "[PAD]"]);

    for bad in ["", "{}", "{\"version\": \"1.0\"}", "not JSON"] {
        let copy = Copy::parity();
        copy.write("tokenizer/tokenizer.json", bad);
        copy.fails("tokenizer/tokenizer.json", &["expected"]);
    }

    for (file, from, to, parts) in [
        (
            "tokenizer/merges.txt",
            "#version: 0.2\n",
            "#version: 0.2\nabc\n",
            &["\"abc\"", "two pieces"][..],
        ),
        (
            "tokenizer/vocab.json",
            "<|startoftext|>",
            "<|start|>",
            &["<|startoftext|>"],
        ),
        (
            "tokenizer/vocab.json",
            "\"!\": 0",
            "\"!\": 99999999999",
            &["expected"],
        ),
    ] {
        let copy = Copy::new(&data("odd"));
        copy.edit(file, from, to);
        copy.fails(file, parts);
    }
    let copy = Copy::new(&data("odd"));
    copy.edit(
        "tokenizer/merges.txt",
        "#version: 0.2\n",
        "#version: 0.2\nqq zz\n",
    );
    copy.fails("tokenizer/vocab.json", &["qq"]);
    let copy = Copy::new(&data("odd"));
    copy.remove("tokenizer/merges.txt");
    copy.fails("tokenizer/merges.txt", &[]);
}

#[test]
fn broken_graphs_are_refused() {
    let copy = Copy::parity();
    let file = "unet/model.onnx";
    let whole = fs::read(copy.0.join(file)).unwrap();
    for length in [1, 2, 20, 1000, whole.len() / 2, whole.len() - 1] {
        copy.write(file, &whole[..length]);
        copy.fails(file, &["truncated"]);
    }
    copy.write(file, "");
    copy.fails(file, &["not an ONNX graph"]);
    copy.write(file, "<!DOCTYPE html><html>Not found</html>");
    copy.fails(file, &[]);
    copy.write(
        file,
        "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
    );
    copy.fails(file, &[]);
    copy.write(file, [0xff; 64]);
    copy.fails(file, &["not an ONNX graph"]);
    // Bytes changed here and there must never panic, whatever they do to the graph. The graph alone: what is opened
    // before it in a folder, the tokenizer above all, takes much longer than all that is tried here.
    copy.write(file, &whole[..4096]);
    let path = copy.0.join(file);
    // Written over, as a file system may wait for the disk when one is cut and written anew.
    let mut spoilt = fs::File::options().write(true).open(&path).unwrap();
    let mut seed = 1u32;
    for _ in 0..2000 {
        let mut bad = whole[..4096].to_vec();
        for _ in 0..3 {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            bad[(seed >> 8) as usize % 4096] = seed as u8;
        }
        spoilt.rewind().unwrap();
        spoilt.write_all(&bad).unwrap();
        Graph::open(&path).unwrap_err();
    }
    // Graphs in graphs in graphs.
    let mut nested = Vec::new();
    for _ in 0..1000 {
        nested = message(1, &[message(5, &[message(6, &[nested])])]);
    }
    copy.write(file, model(&[nested]));
    copy.fails(file, &["nested too deeply"]);
    copy.write(file, model(&[message(1, &[string(4, "EPContext")])]));
    copy.fails(file, &["EPContext"]);
    // A file of 2 GiB, none of it on disk.
    let big = fs::File::create(copy.0.join(file)).unwrap();
    big.set_len(1 << 31).unwrap();
    copy.fails(file, &["2147483648", "external data"]);
}

#[test]
fn graphs_with_other_inputs_or_outputs_are_refused() {
    let copy = Copy::parity();
    let sample = || port(11, "x", 1, &[2, 4, 8, 8]);
    let time = || port(11, "t", 7, &[]);
    let text = || port(11, "c", 1, &[2, 16, 32]);
    let out = || port(12, "y", 1, &[2, 4, 8, 8]);
    let file = "unet/model.onnx";
    copy.write(file, model(&[sample(), time(), text(), out()]));
    assert_eq!(copy.open().unet().batch(), Some(2));
    for (content, parts) in [
        (
            vec![time(), text(), out()],
            &["expected a float input [batch, channels, height, width]"][..],
        ),
        (
            vec![sample(), text(), out()],
            &["expected an input for the timestep"],
        ),
        (vec![sample(), time(), out()], &["text embeddings"]),
        (
            vec![sample(), time(), text()],
            &["float output of 4 dimensions"],
        ),
        (
            vec![
                sample(),
                time(),
                text(),
                port(11, "mask_cond", 1, &[2, 256]),
                out(),
            ],
            &["unsupported", "mask_cond"],
        ),
        (
            vec![sample(), time(), text(), port(11, "scale", 1, &[1]), out()],
            &["unsupported", "scale"],
        ),
        (
            vec![port(11, "x", 16, &[2, 4, 8, 8]), time(), text(), out()],
            &["unsupported", "\"x\"", "ONNX type 16"],
        ),
        (
            vec![port(11, "x", 1, &[2, 4, -8, 8]), time(), text(), out()],
            &["\"x\"", "-8", "expected 1 to"],
        ),
        (
            vec![port(11, "x", 1, &[2, 4, 0, 8]), time(), text(), out()],
            &["\"x\"", "dimension of 0"],
        ),
        (
            vec![
                port(11, "x", 1, &[2, 4, i64::MAX, 8]),
                time(),
                text(),
                out(),
            ],
            &["\"x\"", "expected 1 to"],
        ),
        (
            vec![port(11, "x", 1, &[1; 17]), time(), text(), out()],
            &["more than 16 dimensions"],
        ),
        (
            vec![port(11, "x", 1, &[2, 9, 8, 8]), time(), text(), out()],
            &["unsupported", "9 channels"],
        ),
        (
            vec![sample(), time(), port(11, "c", 1, &[2, 77, 32]), out()],
            &["77", "expected 16"],
        ),
        (
            vec![sample(), time(), port(11, "c", 1, &[2, 16, 768]), out()],
            &["768", "expected 32"],
        ),
        (
            vec![
                sample(),
                time(),
                text(),
                out(),
                message(5, &[number(1, -4)]),
            ],
            &["dimensions [-4]"],
        ),
        (
            vec![
                sample(),
                time(),
                text(),
                out(),
                message(5, &[number(1, i64::MAX), number(1, i64::MAX)]),
            ],
            &["at most"],
        ),
    ] {
        copy.write(file, model(&content));
        copy.fails(file, parts);
    }
    // Weights that are inputs too, as old files have them, are not asked for.
    let weight = message(5, &[number(1, 1), string(8, "w")]);
    copy.write(
        file,
        model(&[
            sample(),
            time(),
            text(),
            port(11, "w", 1, &[1, 1]),
            out(),
            weight,
        ]),
    );
    copy.open();
    for (file, content, parts) in [
        (
            "vae_encoder/model.onnx",
            vec![
                port(11, "x", 1, &[1, 4, 8, 8]),
                port(12, "y", 1, &[1, 4, 1, 1]),
            ],
            &["4 channels", "expected 3"][..],
        ),
        (
            "vae_encoder/model.onnx",
            vec![
                port(11, "x", 1, &[1, 3, 8, 8]),
                port(12, "y", 1, &[1, 5, 1, 1]),
            ],
            &["5 channels", "expected 4", "8"],
        ),
        (
            "vae_decoder/model.onnx",
            vec![
                port(11, "x", 1, &[1, 4, 1, 1]),
                port(12, "y", 1, &[1, 4, 8, 8]),
            ],
            &["4 channels", "expected 3"],
        ),
        (
            "vae_decoder/model.onnx",
            vec![
                port(11, "x", 1, &[1, 4, 2, 2]),
                port(12, "y", 1, &[1, 3, 8, 8]),
            ],
            &["another picture size"],
        ),
        (
            "text_encoder/model.onnx",
            vec![port(11, "x", 1, &[1, 16]), port(12, "y", 1, &[1, 16, 32])],
            &["unsupported", "\"x\""],
        ),
        (
            "text_encoder/model.onnx",
            vec![port(11, "x", 7, &[1, 16]), port(12, "y", 1, &[1, 32])],
            &["output of 3 dimensions"],
        ),
        (
            "text_encoder/model.onnx",
            vec![port(12, "y", 1, &[1, 16, 32])],
            &["token ids"],
        ),
    ] {
        let copy = Copy::parity();
        copy.write(file, model(&content));
        copy.fails(file, parts);
    }
}

#[test]
fn weights_stay_in_the_folder() {
    let copy = Copy::parity();
    let file = "unet/model.onnx";
    let ports = || {
        [
            port(11, "x", 1, &[2, 4, 8, 8]),
            port(11, "t", 7, &[]),
            port(11, "c", 1, &[2, 16, 32]),
            port(12, "y", 1, &[2, 4, 8, 8]),
        ]
        .concat()
    };
    let write = |tensor| copy.write(file, model(&[ports(), tensor]));
    copy.write("unet/weights.bin", [0; 32]);
    write(external(5, "weights.bin", "16", "16"));
    let folder = copy.open();
    assert_eq!(
        folder.unet().graph.external_files,
        [copy.0.join("unet/weights.bin")]
    );
    for location in [
        "../model_index.json",
        "a/../../x",
        "/etc/passwd",
        "..",
        "",
        "C:\\x",
        "a\\..\\x",
        "*/_ORT_MEM_ADDR_/*",
        "x\0y",
    ] {
        write(external(5, location, "0", "16"));
        copy.fails(file, &["external data", "plain relative path"]);
        // The same in a node's attribute, and in the graph of a node's attribute.
        write(message(
            1,
            &[message(5, &[external(5, location, "0", "16")])],
        ));
        copy.fails(file, &["plain relative path"]);
        write(message(
            1,
            &[message(
                5,
                &[message(6, &[external(5, location, "0", "16")])],
            )],
        ));
        copy.fails(file, &["plain relative path"]);
    }
    write(external(5, "none.bin", "0", "16"));
    copy.fails("unet/none.bin", &["unet/model.onnx"]);
    write(external(5, "weights.bin", "17", "16"));
    copy.fails("weights.bin", &["has 32 bytes", "17 + 16"]);
    write(external(5, "weights.bin", "18446744073709551615", "16"));
    copy.fails("weights.bin", &["has 32 bytes"]);
    write(external(5, "weights.bin", "-1", "16"));
    copy.fails(file, &["offset", "-1", "whole number"]);
    #[cfg(unix)]
    {
        std::os::unix::fs::symlink("/etc", copy.0.join("unet/link")).unwrap();
        write(external(5, "link/passwd", "0", "16"));
        copy.fails(file, &["no link among its folders"]);
    }
}

/// Memory is set aside for the sizes that a graph fixes. Each dimension here is one that is allowed.
#[test]
fn tensors_that_no_machine_holds_are_refused() {
    let (time, latent) = (|| port(11, "t", 7, &[]), [1024, 4, 8, 8]);
    for (file, content, parts) in [
        (
            "unet/model.onnx",
            vec![
                port(11, "x", 1, &latent),
                time(),
                port(11, "c", 1, &[1024, 4096, 65536]),
                port(12, "y", 1, &latent),
            ],
            ["its input \"c\"", "274877906944 values"],
        ),
        (
            "unet/model.onnx",
            vec![
                port(11, "x", 1, &latent),
                time(),
                port(11, "c", 1, &[1024, 16, 32]),
                port(12, "y", 1, &[1 << 24; 4]),
            ],
            // More than 64 bits can say.
            ["its output \"y\"", "18446744073709551615 values"],
        ),
        (
            "vae_decoder/model.onnx",
            vec![
                port(11, "x", 1, &[4, 4, 1024, 1024]),
                port(12, "y", 1, &[4, 3, 8192, 8192]),
            ],
            ["its output \"y\"", "805306368 values"],
        ),
    ] {
        let copy = Copy::parity();
        copy.write(file, model(&content));
        copy.fails(
            file,
            &[&parts[..], &["expected 268435456 at most"]].concat(),
        );
    }
}

/// Download caches are folders of links to files elsewhere.
#[cfg(unix)]
#[test]
fn files_may_be_links_and_paths_any_bytes() {
    use std::os::unix::ffi::OsStringExt;
    let copy = Copy::parity();
    fs::rename(copy.0.join("unet/model.onnx"), copy.0.join("blob")).unwrap();
    std::os::unix::fs::symlink("../blob", copy.0.join("unet/model.onnx")).unwrap();
    let mut name = copy.0.clone().into_os_string().into_vec();
    name.extend(b"-\xff\xfe");
    let path = PathBuf::from(std::ffi::OsString::from_vec(name));
    fs::rename(&copy.0, &path).unwrap();
    let moved = Copy(path);
    let folder = moved.open();
    assert!(folder.name().starts_with("model-folder-"));
    // The engine opens them too, and the runtime is not upset by the name.
    let model = OnnxModel::open(&folder).unwrap();
    assert_eq!(encode_text(&model, "x").shape(), [1, 16, 32]);
}

fn npz(path: &Path) -> HashMap<String, HostTensor> {
    let mut archive = npyz::npz::NpzArchive::open(path).unwrap();
    let names: Vec<String> = archive.array_names().map(str::to_owned).collect();
    names
        .into_iter()
        .map(|name| {
            let array = archive.by_name(&name).unwrap().unwrap();
            let shape: Vec<usize> = array.shape().iter().map(|d| *d as usize).collect();
            let tensor = HostTensor::new(&shape, array.into_vec().unwrap());
            (name, tensor)
        })
        .collect()
}

#[track_caller]
fn close(found: &HostTensor, expected: &HostTensor, tolerance: f32) {
    assert_eq!(found.shape(), expected.shape());
    for (i, (a, b)) in found.data().iter().zip(expected.data()).enumerate() {
        assert!((a - b).abs() <= tolerance, "at {i}: {a}, expected {b}");
    }
}

/// Row `i` of a tensor, still with a batch dimension.
fn row(t: &HostTensor, i: usize) -> HostTensor {
    let size: usize = t.shape()[1..].iter().product();
    let shape = [&[1], &t.shape()[1..]].concat();
    HostTensor::new(&shape, t.data()[i * size..][..size].to_vec())
}

fn encode_text(model: &OnnxModel, text: &str) -> HostTensor {
    let chunks = model.chunks(text).unwrap();
    let chunks = model.limits().chunks.unwrap_or(chunks);
    let text = model.encode_text(Some(text), chunks).unwrap();
    assert!(text.pooled.is_none());
    text.embedding
}

/// Latents, timestep and text embedding of a row.
type Row<'a> = (&'a HostTensor, u32, &'a HostTensor);

fn denoise(model: &OnnxModel, rows: &[Row]) -> gststreamdiffusion::error::Result<Vec<HostTensor>> {
    let contexts = rows
        .iter()
        .map(|(sample, timestep, text)| {
            let text = Text {
                embedding: (*text).clone(),
                pooled: None,
            }
            .into();
            let size = (sample.shape()[2], sample.shape()[3]);
            Ok(model.precompute(&[*timestep], &text, size, None)?.remove(0))
        })
        .collect::<gststreamdiffusion::error::Result<Vec<_>>>()?;
    let rows = rows.iter().zip(&contexts);
    let rows: Vec<_> = rows
        .map(|((sample, ..), context)| Denoise {
            sample: *sample,
            context,
        })
        .collect();
    model.denoise(&rows)
}

#[test]
fn components_compute_what_the_reference_does() {
    let loaded = shared::load(&parity()).unwrap();
    let model = &loaded.model;
    assert_eq!(model.limits().multiple, 16);
    assert!(!model.limits().samples_posterior);

    let embedding = encode_text(model, "a neon cat");
    let extra = npz(&data("parity/one-step-none.extra.npz"));
    let expected = &extra["prompt_embeds"];
    let size = expected.data().len();
    assert_eq!(embedding.data().len() % size, 0);
    close(
        &HostTensor::new(
            expected.shape(),
            embedding.data()[embedding.data().len() - size..].to_vec(),
        ),
        expected,
        2e-5,
    );

    let values = npz(&data("components.npz"));
    let encoded = model.encode(&values["picture"], None).unwrap();
    close(&encoded, &values["encoded"], 2e-5);
    let decoded = model.decode(&values["latent"]).unwrap();
    close(&decoded, &values["decoded"], 2e-5);

    let (samples, texts): (Vec<_>, Vec<_>) = (0..2)
        .map(|i| (row(&values["latent"], i), row(&values["text"], i)))
        .unzip();
    let timesteps = [0, 1].map(|i| values["timestep"].data()[i] as u32);
    let rows = [0, 1].map(|i| (&samples[i], timesteps[i], &texts[i]));
    let predicted = denoise(model, &rows).unwrap();
    for (i, found) in predicted.iter().enumerate() {
        close(found, &row(&values["predicted"], i), 5e-5);
    }
    // Two frames of one row are as two rows.
    let both = denoise(model, &[(&values["latent"], timesteps[1], &texts[1])]).unwrap();
    close(&row(&both[0], 1), &predicted[1], 1e-5);

    assert!(model.denoise(&[]).unwrap().is_empty());
    let wrong = HostTensor::new(&[1, 3, 32, 20], vec![0.0; 1920]);
    assert!(
        model
            .encode(&wrong, None)
            .unwrap_err()
            .to_string()
            .contains("20x32")
    );
    assert!(model.encode(&values["picture"], Some(&encoded)).is_err());
    assert!(model.decode(&wrong).is_err());
    let short = HostTensor::new(&[1, 2, 32], vec![0.0; 64]);
    let bad = (&samples[0], 0, &short);
    let message = denoise(model, &[bad]).unwrap_err().to_string();
    assert!(
        message.contains("unet") && message.contains("[1, 2, 32]"),
        "{message}"
    );
}

#[test]
fn odd_graphs_are_served() {
    let folder = ModelFolder::open(&data("odd")).unwrap();
    assert_eq!(folder.name(), "Odd");
    assert!(folder.samples_posterior());
    assert_eq!(folder.text_encoders()[0].file.output.name, "hidden");
    let model = OnnxModel::open(&folder).unwrap();
    let limits = model.limits();
    assert_eq!((limits.latent_scale, limits.multiple), (2, 4));
    assert_eq!(limits.fixed_size, Some((8, 8)));

    // int32 ids, mask and positions, two texts at a time, float16.
    let text = encode_text(&model, "a");
    let ids = &folder.text_encoders()[0].tokenizer.chunks("a").unwrap()[0].ids;
    let expected = ids
        .iter()
        .enumerate()
        .flat_map(|(i, id)| [*id as f32 / 64.0, i as f32 / 64.0])
        .collect();
    close(&text, &HostTensor::new(&[1, 16, 2], expected), 1e-3);

    // Three rows of one frame and one of two, at three timesteps; the graph takes two rows at one timestep.
    let frames = |values: &[f32]| {
        let data = values.iter().flat_map(|v| vec![*v; 64]).collect();
        HostTensor::new(&[values.len(), 4, 4, 4], data)
    };
    let texts = [1.0, 2.0].map(|v| HostTensor::new(&[1, 16, 2], vec![v; 32]));
    let samples = [
        frames(&[2.0]),
        frames(&[4.0, 6.0]),
        frames(&[8.0]),
        frames(&[10.0]),
    ];
    let timesteps = [30, 10, 30, 20];
    let rows = [0, 1, 2, 3].map(|i| (&samples[i], timesteps[i], &texts[i % 2]));
    let out = denoise(&model, &rows).unwrap();
    let expected = [&[32.0][..], &[14.0, 15.0], &[35.0], &[27.0]];
    for (found, expected) in out.iter().zip(expected) {
        close(found, &frames(expected), 0.0);
    }

    // Mean + deviation·noise, shifted by 1/4 and halved.
    let picture: Vec<f32> = (0..2 * 3 * 64).map(|i| (i / 64) as f32 / 10.0).collect();
    let picture = HostTensor::new(&[2, 3, 8, 8], picture);
    let noise = HostTensor::new(&[2, 4, 4, 4], vec![0.5; 128]);
    let latent = model.encode(&picture, Some(&noise)).unwrap();
    assert_eq!(latent.shape(), [2, 4, 4, 4]);
    for (i, found) in latent.data().iter().enumerate() {
        let (f, c) = (i / 64, i / 16 % 4);
        let (mean, log_variance) = ((f * 3 + c % 3) as f32 / 10.0, (f * 3) as f32 / 10.0);
        let expected = (mean + (log_variance / 2.0).exp() * 0.5 - 0.25) * 0.5;
        assert!(
            (found - expected).abs() < 1e-5,
            "at {i}: {found}, expected {expected}"
        );
    }
    assert!(model.encode(&picture, None).is_err());

    // One frame at a time, back from half and shift.
    let decoded = model.decode(&latent).unwrap();
    assert_eq!(decoded.shape(), [2, 3, 8, 8]);
    for (i, found) in decoded.data().iter().enumerate() {
        let (plane, y, x) = (i / 64, i / 8 % 8, i % 8);
        let at = (plane / 3 * 4 + plane % 3) * 16 + y / 2 * 4 + x / 2;
        let expected = latent.data()[at] * 2.0 + 0.25;
        assert!(
            (found - expected).abs() < 1e-5,
            "at {i}: {found}, expected {expected}"
        );
    }
}

/// A graph that fixes the length of its text to several chunks gets as many, however short the prompt is.
#[test]
fn a_unet_may_want_several_chunks() {
    let copy = Copy::parity();
    let mean = message(
        1,
        &[string(1, "c"), string(2, "m"), string(4, "ReduceMean")],
    );
    let add = message(
        1,
        &[
            string(1, "x"),
            string(1, "m0"),
            string(2, "y"),
            string(4, "Add"),
        ],
    );
    let flat = message(1, &[string(1, "m"), string(2, "m0"), string(4, "Squeeze")]);
    copy.write(
        "unet/model.onnx",
        model(&[
            port(11, "x", 1, &[1, 4, 8, 8]),
            port(11, "t", 7, &[]),
            port(11, "c", 1, &[1, 32, 32]),
            port(12, "y", 1, &[1, 4, 8, 8]),
            mean,
            flat,
            add,
        ]),
    );
    let folder = copy.open();
    assert_eq!(folder.chunks(), Some(2));
    let loaded = OnnxModel::open(&folder).unwrap();
    assert_eq!(loaded.chunks("a neon cat").unwrap(), 1);
    let text = encode_text(&loaded, "a neon cat");
    assert_eq!(text.shape(), [1, 32, 32]);
    let sample = HostTensor::new(&[1, 4, 8, 8], vec![0.0; 256]);
    let out = denoise(&loaded, &[(&sample, 0, &text)]).unwrap();
    let mean = text.data().iter().sum::<f32>() / 1024.0;
    close(
        &out[0],
        &HostTensor::new(&[1, 4, 8, 8], vec![mean; 256]),
        1e-6,
    );
    // Half a chunk is another model's.
    copy.write(
        "unet/model.onnx",
        model(&[
            port(11, "x", 1, &[1, 4, 8, 8]),
            port(11, "t", 7, &[]),
            port(11, "c", 1, &[1, 24, 32]),
            port(12, "y", 1, &[1, 4, 8, 8]),
        ]),
    );
    copy.fails("unet/model.onnx", &["24 tokens", "expected 16"]);
}

#[test]
fn a_model_is_loaded_once() {
    let copy = Copy::new(&data("odd"));
    let path = copy.0.clone();
    let threads: Vec<_> = (0..4)
        .map(|_| {
            let path = path.clone();
            std::thread::spawn(move || shared::load(&path).unwrap())
        })
        .collect();
    let models: Vec<_> = threads.into_iter().map(|t| t.join().unwrap()).collect();
    assert!(models.iter().all(|m| Arc::ptr_eq(m, &models[0])));
    let other_spelling = path.join("unet/..");
    assert!(Arc::ptr_eq(
        &shared::load(&other_spelling).unwrap(),
        &models[0]
    ));
    // A changed folder is another model; the old one lives on where it is used.
    copy.edit("streamdiffusion.toml", "Odd", "Other");
    let changed = shared::load(&path).unwrap();
    assert!(!Arc::ptr_eq(&changed, &models[0]));
    assert_eq!(changed.folder.name(), "Other");
    // A failure is not remembered.
    copy.edit("streamdiffusion.toml", "name", "nmae");
    assert!(shared::load(&path).is_err());
    copy.edit("streamdiffusion.toml", "nmae", "name");
    shared::load(&path).unwrap();
    assert!(shared::load(Path::new("/no/such/folder")).is_err());
}

/// What the header reader lets through, but the runtime does not, is still an error that names the component.
#[test]
fn a_graph_that_does_not_run_is_an_error() {
    let copy = Copy::parity();
    let node = message(
        1,
        &[string(1, "x"), string(2, "y"), string(4, "NoSuchOperator")],
    );
    copy.write(
        "unet/model.onnx",
        model(&[
            port(11, "x", 1, &[2, 4, 8, 8]),
            port(11, "t", 7, &[]),
            port(11, "c", 1, &[2, 16, 32]),
            port(12, "y", 1, &[2, 4, 8, 8]),
            node,
        ]),
    );
    let Err(error) = OnnxModel::open(&copy.open()) else {
        panic!("it opened");
    };
    let message = error.to_string();
    assert!(
        message.contains("unet/model.onnx") && message.contains("NoSuchOperator"),
        "{message}"
    );
}
