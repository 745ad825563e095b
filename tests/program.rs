//! The `streamdiffusion` program, run as people run it.
//!
//! Needs ONNX Runtime (`ORT_DYLIB_PATH`, or beside the test program): without it these tests fail, they do not skip.

mod common;

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use common::*;
use gst::prelude::*;
use gststreamdiffusion::StreamDiffusion;
use serde_json::Value;

/// The program, working in `folder`.
fn program(folder: &Folder, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_streamdiffusion"));
    command.current_dir(folder.path()).args(args);
    command
}

fn output(folder: &Folder, args: &[&str]) -> Output {
    program(folder, args).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// Runs it, which must go well; what it prints.
#[track_caller]
fn works(folder: &Folder, args: &[&str]) -> String {
    let output = output(folder, args);
    assert!(output.status.success(), "{args:?}: {output:?}");
    text(&output.stdout)
}

/// Runs it, which must fail with this exit status, one line of error, and all of `parts` in it.
#[track_caller]
fn fails(folder: &Folder, args: &[&str], status: i32, parts: &[&str]) {
    let output = output(folder, args);
    let errors = text(&output.stderr);
    assert_eq!(output.status.code(), Some(status), "{args:?}: {errors}");
    assert_eq!(errors.lines().count(), 1, "{errors}");
    for part in parts {
        assert!(errors.contains(part), "{errors:?} lacks {part:?}");
    }
}

fn parity_text() -> String {
    parity().to_str().unwrap().to_owned()
}

/// Runs `run` with the parity model.
fn run(folder: &Folder, args: &[&str]) -> Output {
    let model = parity_text();
    output(folder, &[&["run", model.as_str()], args].concat())
}

#[track_caller]
fn runs(folder: &Folder, args: &[&str]) {
    let output = run(folder, args);
    assert!(output.status.success(), "{args:?}: {output:?}");
}

/// Runs a pipeline of this process until its end.
fn play(line: &str) {
    init();
    let pipeline = gst::parse::launch(line).unwrap();
    pipeline.set_state(gst::State::Playing).unwrap();
    let types = [gst::MessageType::Eos, gst::MessageType::Error];
    let end = pipeline.bus().unwrap().timed_pop_filtered(PATIENCE, &types);
    pipeline.set_state(gst::State::Null).unwrap();
    assert_eq!(end.unwrap().type_(), gst::MessageType::Eos, "{line}");
}

/// Writes a picture of one of videotestsrc's patterns.
fn draw(path: &Path, pattern: &str, width: u32, height: u32) {
    let encoder = match path.extension().and_then(|e| e.to_str()) {
        Some("jpg") => "jpegenc",
        _ => "pngenc",
    };
    let size = format!("width={width},height={height},framerate=1/1");
    play(&format!(
        "videotestsrc num-buffers=1 pattern={pattern} ! video/x-raw,{size} ! videoconvert ! {encoder} ! filesink location={}",
        path.display()
    ));
}

/// The pixels of a picture, as RGB, with its size.
fn picture(path: &Path) -> (Vec<u8>, i32, i32) {
    init();
    let line = format!(
        "filesrc location={} ! decodebin ! videoconvert ! appsink name=sink caps=video/x-raw,format=RGB sync=false",
        path.display()
    );
    let pipeline = gst::parse::launch(&line).unwrap();
    let bin = pipeline.downcast_ref::<gst::Bin>().unwrap();
    let sink = bin.by_name("sink").unwrap();
    let sink = sink.downcast::<gst_app::AppSink>().unwrap();
    pipeline.set_state(gst::State::Playing).unwrap();
    let sample = sink.try_pull_sample(PATIENCE);
    pipeline.set_state(gst::State::Null).unwrap();
    let sample = sample.unwrap_or_else(|| panic!("{} is no picture", path.display()));
    let caps = sample.caps().unwrap().to_owned();
    let info = info(&caps);
    let pixels = pixels(sample.buffer().unwrap(), &caps);
    (pixels, info.width() as i32, info.height() as i32)
}

#[test]
fn version_and_help() {
    let folder = Folder::new();
    let version = works(&folder, &["--version"]);
    assert_eq!(
        version,
        format!("streamdiffusion {}\n", env!("CARGO_PKG_VERSION"))
    );
    for args in [&["--help"][..], &["run", "--help"], &["bench", "--help"]] {
        let help = works(&folder, args);
        assert!(help.contains("Examples:\n  streamdiffusion"), "{help}");
        assert!(!help.contains('\x1b'), "{help}");
    }
    let wrong = output(&folder, &["inspekt"]);
    assert_eq!(wrong.status.code(), Some(2));
}

/// Numbers by tools/reference/parameters.py: parameters, tensors and nodes of each component.
#[test]
fn inspect_counts_what_the_onnx_package_counts() {
    let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/demo");
    let folder = Folder::new();
    for (path, expected, multiple, tokens) in [
        (demo.to_str().unwrap().to_owned(), DEMO_COUNTS, 32, 32),
        (parity_text(), PARITY_COUNTS, 16, 16),
        (
            data("models/sdxl").to_str().unwrap().to_owned(),
            SDXL_COUNTS,
            16,
            77,
        ),
    ] {
        let json = works(&folder, &["inspect", &path, "--json"]);
        let found: Value = serde_json::from_str(&json).unwrap();
        let components = found["components"].as_array().unwrap();
        assert_eq!(components.len(), expected.len());
        for (component, &(name, parameters, tensors, nodes)) in components.iter().zip(expected) {
            assert_eq!(component["name"], name);
            let counts = ["parameters", "tensors", "nodes"].map(|key| component[key].as_u64());
            assert_eq!(counts, [parameters, tensors, nodes].map(Some), "{name}");
            let dtypes = component["weight_dtypes"].as_object().unwrap();
            let by_type: u64 = dtypes.values().filter_map(Value::as_u64).sum();
            assert_eq!(by_type, parameters);
            let file = Path::new(&path).join(component["file"].as_str().unwrap());
            assert_eq!(component["bytes"], fs::metadata(file).unwrap().len());
        }
        assert_eq!(found["sizes"]["multiple"], multiple);
        assert_eq!(found["sizes"]["fixed"], Value::Null);
        assert_eq!(found["tokens"]["tokenizer"], tokens);
        assert_eq!(found["usable"], true);
        assert_eq!(found["errors"], serde_json::json!([]));
    }
}

/// Name, parameters, tensors and nodes of a component.
type Counts = (&'static str, u64, u64, u64);

const DEMO_COUNTS: &[Counts] = &[
    ("text_encoder", 287_904, 28, 205),
    ("unet", 3_798_644, 182, 1270),
    ("vae_encoder", 502_960, 18, 47),
    ("vae_decoder", 620_176, 26, 56),
];
const PARITY_COUNTS: &[Counts] = &[
    ("text_encoder", 33_856, 17, 218),
    ("unet", 790_468, 154, 1256),
    ("vae_encoder", 35_780, 31, 37),
    ("vae_decoder", 35_779, 31, 49),
];
const SDXL_COUNTS: &[Counts] = &[
    ("text_encoder", 24_500, 26, 57),
    ("text_encoder_2", 48_222, 43, 155),
    ("unet", 25_804, 132, 404),
    ("vae_encoder", 2_801, 59, 184),
    ("vae_decoder", 3_788, 75, 259),
];

#[test]
fn inspect_tells_what_people_ask() {
    let folder = Folder::new();
    let odd = data("odd");
    // A trailing slash, and the bundled model when none is named.
    let report = works(&folder, &["inspect", &format!("{}/", odd.display())]);
    let rows: Vec<Vec<&str>> = report
        .lines()
        .map(|line| line.split_whitespace().collect())
        .collect();
    assert_eq!(rows[0], ["Odd"]);
    for row in [
        &["pipeline", "OnnxStableDiffusionPipeline"][..],
        &["prediction", "epsilon"],
        &["sizes", "8x8", "only"],
        &["tokenizer", "16", "tokens"],
        &["batch", "2", "only"],
        &["batch", "any"],
        &["in", "x", "float16", "[2,", "4,", "4,", "4]"],
        &["hidden", "float16", "[2,", "16,", "2],", "used"],
        &["vae_decoder/model.onnx"],
        &["parameters", "24", "in", "float32"],
        &["Nothing", "is", "wrong", "with", "it."],
    ] {
        assert!(rows.iter().any(|r| r == row), "no {row:?} in {report}");
    }
    assert!(works(&folder, &["inspect"]).starts_with("Demo styles\n"));
}

/// `streamdiffusion inspect | head`, with a `head` that has gone before the first line.
#[test]
fn a_reader_that_goes_is_no_error() {
    let folder = Folder::new();
    let mut child = program(&folder, &["inspect"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert_eq!(text(&output.stderr), "");
}

fn edit(path: &Path, from: &str, to: &str) {
    let text = fs::read_to_string(path).unwrap();
    assert!(text.contains(from), "{} has no {from}", path.display());
    fs::write(path, text.replace(from, to)).unwrap();
}

/// The findings about a folder that cannot be used.
#[track_caller]
fn findings(folder: &Folder, args: &[&str]) -> Vec<String> {
    let path = folder.path().to_str().unwrap();
    let output = output(folder, &[&["inspect", path, "--json"], args].concat());
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let found: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(found["usable"], false);
    let errors = found["errors"].as_array().unwrap().iter();
    errors.map(|e| e.as_str().unwrap().to_owned()).collect()
}

#[test]
fn inspect_lists_all_that_is_wrong() {
    let model = Folder::model();
    fs::remove_file(model.file("vae_decoder/model.onnx")).unwrap();
    let unet = fs::read(model.file("unet/model.onnx")).unwrap();
    fs::write(model.file("unet/model.onnx"), &unet[..unet.len() / 2]).unwrap();
    edit(
        &model.file("scheduler/scheduler_config.json"),
        "\"epsilon\"",
        "\"flow\"",
    );
    edit(
        &model.file("model_index.json"),
        "StableDiffusionPipeline",
        "StableDiffusion3Pipeline",
    );
    fs::write(model.file("streamdiffusion.toml"), "nmae = \"x\"").unwrap();
    fs::remove_dir_all(model.file("tokenizer")).unwrap();
    let found = findings(&model, &[]);
    for (file, part) in [
        ("model_index.json", "StableDiffusion3"),
        ("streamdiffusion.toml", "nmae"),
        ("scheduler/scheduler_config.json", "flow"),
        ("tokenizer", "tokenizer.json"),
        ("unet/model.onnx", "truncated"),
        ("vae_decoder/model.onnx", "no such file"),
    ] {
        let told = |finding: &&String| finding.starts_with(file) && finding.contains(part);
        assert_eq!(found.iter().filter(told).count(), 1, "{file}: {found:#?}");
    }
    assert_eq!(found.len(), 6, "{found:#?}");
    // For people, too.
    let path = model.path().to_str().unwrap();
    let report = output(&model, &["inspect", path]);
    assert_eq!(report.status.code(), Some(1));
    let report = text(&report.stdout);
    assert!(report.contains("What is wrong with it (6):"), "{report}");
    assert!(
        report.contains("vae_encoder/model.onnx\n  size"),
        "{report}"
    );
}

#[test]
fn inspect_notices_parts_that_do_not_fit_together() {
    let model = Folder::model();
    let other = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/demo/vae_decoder");
    for name in ["model.onnx", "config.json"] {
        fs::copy(other.join(name), model.file("vae_decoder").join(name)).unwrap();
    }
    let found = findings(&model, &[]);
    assert_eq!(found.len(), 1, "{found:#?}");
    assert!(found[0].contains("channels"), "{found:#?}");
    let nothing = Folder::new();
    assert!(findings(&nothing, &[]).len() >= 6);
    let missing = output(&nothing, &["inspect", "missing"]);
    assert_eq!(missing.status.code(), Some(1));
    assert!(text(&missing.stdout).contains("expected a model folder"));
}

/// SHA-256 by the system's own tool.
fn sha256(path: &Path) -> String {
    let output = Command::new("sha256sum").arg(path).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    text(&output.stdout)[..64].to_owned()
}

#[test]
fn verify_catches_a_changed_byte() {
    let model = Folder::model();
    let files = ["unet/model.onnx", "model_index.json"];
    let mut manifest = "[export]\ntool = \"test\"\n[export.files]\n".to_owned();
    for file in files {
        manifest += &format!("\"{file}\" = \"{}\"\n", sha256(&model.file(file)));
    }
    fs::write(model.file("streamdiffusion.toml"), &manifest).unwrap();
    let path = model.path().to_str().unwrap().to_owned();
    let report = works(&model, &["inspect", &path, "--verify"]);
    assert!(report.contains("2 files were compared"), "{report}");

    // Beyond the header, in the weights.
    let mut unet = fs::read(model.file(files[0])).unwrap();
    let middle = unet.len() / 2;
    unet[middle] ^= 1;
    fs::write(model.file(files[0]), unet).unwrap();
    works(&model, &["inspect", &path]);
    let found = findings(&model, &["--verify"]);
    assert_eq!(found.len(), 1, "{found:#?}");
    let changed = sha256(&model.file(files[0]));
    assert!(found[0].starts_with(files[0]) && found[0].contains(&changed));

    // A file that is gone is told without reading any.
    let gone = manifest.replace("\"model_index.json\"", "\"unet/weights.bin\"");
    fs::write(model.file("streamdiffusion.toml"), gone).unwrap();
    let found = findings(&model, &[]);
    assert!(found[0].starts_with("unet/weights.bin: no such file"));
    fs::remove_file(model.file("streamdiffusion.toml")).unwrap();
    let found = findings(&model, &["--verify"]);
    assert!(found[0].contains("export.files"), "{found:#?}");
}

/// A folder as the export script writes it.
#[test]
fn verify_takes_what_the_export_wrote() {
    let folder = Folder::new();
    let path = data("models/sdxl");
    let report = works(&folder, &["inspect", path.to_str().unwrap(), "--verify"]);
    let manifest = fs::read_to_string(path.join("streamdiffusion.toml")).unwrap();
    let table = manifest.split("[export.files]").nth(1).unwrap();
    let table = table.split("\n[").next().unwrap();
    let listed = table.lines().filter(|line| line.contains(" = ")).count();
    assert!(listed > 10, "{table}");
    let told = format!("\n{listed} files were compared with their hashes.\n");
    assert!(report.contains(&told), "{report}");
    for part in [
        "export_model.py",
        "tokenizer_2 77 tokens",
        "text_embeds float32 [?, 24], used",
    ] {
        assert!(report.contains(part), "no {part} in {report}");
    }
}

#[test]
fn inspect_shows_how_a_folder_was_made() {
    let model = Folder::model();
    let hash = "0123456789abcdef".repeat(4);
    fs::write(
        model.file("streamdiffusion.toml"),
        format!(
            "name = \"Mine\"\n[defaults]\nsteps = 3\n[unet]\nguidance_embedding = 8.5\n[export]\ndtype = \"f16\"\nsize = \"512x512\"\nbatch = 2\nloras = [{{ file = \"lcm.safetensors\", sha256 = \"{hash}\", scale = 0.75 }}]\n[export.errors]\nunet = 1.2e-4\n"
        ),
    )
    .unwrap();
    let path = model.path().to_str().unwrap();
    let report = works(&model, &["inspect", path]);
    for part in [
        "Mine\n",
        "steps 3",
        "of scale 8.5",
        "f16, size 512x512, batch 2",
        &format!("lcm.safetensors × 0.75, SHA-256 {hash}"),
        "unet differs from torch by at most 1.20e-4",
    ] {
        assert!(report.contains(part), "no {part:?} in {report}");
    }
    let json = works(&model, &["inspect", path, "--json"]);
    let found: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(found["export"]["loras"][0]["scale"], 0.75);
    assert_eq!(found["export"]["errors"]["unet"], 1.2e-4);
    assert_eq!(found["guidance_embedding"], 8.5);
}

/// The same settings in a pipeline of gst-launch-1.0 give the same pixels, also where several frames are under way.
#[test]
fn run_does_what_a_pipeline_does() {
    let folder = Folder::new();
    let settings = [
        "t-index-list=20,32,45",
        "guidance-scale=1.4",
        "cfg-type=full",
        "seed=5",
        "prompt=a neon cat",
    ];
    for (input, name) in [("a.png", "png"), ("b.jpg", "jpg")] {
        draw(&folder.file(input), "smpte", 96, 64);
        let result = format!("{name}-out.png");
        runs(
            &folder,
            &[
                "-i",
                input,
                "-o",
                &result,
                "--set",
                settings[0],
                "--guidance-scale",
                "1.4",
                "--cfg-type",
                "full",
                "--seed",
                "5",
                "--prompt",
                "a neon cat",
            ],
        );
        let plugins = Folder::new();
        let names = [
            "coreelements",
            "playback",
            "typefindfunctions",
            "videoconvertscale",
            "png",
            "jpeg",
        ];
        let mut reference = tool("gst-launch-1.0", &plugins, &names);
        let path = folder.file(input);
        let location = format!("location={}", path.display());
        let model = format!("model={}", parity_text());
        reference.args([
            "-q",
            "filesrc",
            &location,
            "!",
            "decodebin",
            "!",
            "videoconvert",
            "!",
            "streamdiffusion",
            &model,
        ]);
        reference.args(settings);
        let location = format!("location={}", folder.file("reference.png").display());
        let reference = reference
            .args([
                "!",
                "video/x-raw,format=RGB",
                "!",
                "pngenc",
                "!",
                "filesink",
                &location,
            ])
            .output()
            .unwrap();
        assert!(reference.status.success(), "{reference:?}");
        let found = picture(&folder.file(&result));
        assert_eq!((found.1, found.2), (96, 64));
        assert!(found == picture(&folder.file("reference.png")), "{input}");
        assert!(found.0 != picture(&path).0);
    }
}

/// The names in a folder, hidden ones too, sorted.
fn names(path: &Path) -> Vec<String> {
    let entries = fs::read_dir(path).unwrap().flatten();
    let mut names: Vec<_> = entries
        .map(|entry| entry.file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn a_folder_of_pictures_becomes_a_folder_of_pictures() {
    let folder = Folder::new();
    let input = folder.file("in");
    fs::create_dir(&input).unwrap();
    draw(&input.join("a.png"), "smpte", 96, 64);
    draw(&input.join("b.png"), "ball", 64, 64);
    draw(&input.join("c.jpg"), "smpte75", 48, 80);
    draw(&input.join("d.png"), "circular", 64, 64);
    fs::write(input.join("notes.txt"), "no picture").unwrap();
    let settings = ["--set", "t-index-list=20,32,45"];
    runs(
        &folder,
        &[&["-i", "in", "-o", "out"], &settings[..]].concat(),
    );
    assert_eq!(
        names(&folder.file("out")),
        ["a.png", "b.png", "c.jpg", "d.png"]
    );
    // Each is what it would have become alone.
    for name in ["a.png", "b.png", "c.jpg", "d.png"] {
        let alone = format!("alone-{name}");
        let one = format!("in/{name}");
        runs(
            &folder,
            &[&["-i", &one, "-o", &alone], &settings[..]].concat(),
        );
        let found = fs::read(folder.file("out").join(name)).unwrap();
        assert!(found == fs::read(folder.file(&alone)).unwrap(), "{name}");
        let (_, width, height) = picture(&folder.file(&alone));
        let (_, w, h) = picture(&input.join(name));
        assert_eq!((width, height), (w, h));
    }

    // Pictures that go through the model together, as far as their sizes are the same, and a last group that is not full.
    draw(&input.join("e.png"), "spokes", 64, 64);
    draw(&input.join("f.png"), "smpte", 64, 64);
    let alone = ["-i", "in", "-o", "one"];
    runs(&folder, &[&alone[..], &settings].concat());
    let grouped = ["-i", "in", "-o", "two", "--set", "frame-buffer-size=2"];
    runs(&folder, &[&grouped[..], &settings].concat());
    let mut all = Vec::new();
    for name in names(&input).iter().filter(|name| *name != "notes.txt") {
        let one = picture(&folder.file("one").join(name)).0;
        let difference = difference(&picture(&folder.file("two").join(name)).0, &one);
        // What is read back from a JPEG file exaggerates a level.
        let most = if name.ends_with("jpg") { 4 } else { 1 };
        assert!(difference <= most, "{name}: differs by {difference}");
        assert!(!all.contains(&one), "{name}");
        all.push(one);
    }
    assert_eq!(all.len(), 6);
    for name in ["e.png", "f.png"] {
        fs::remove_file(input.join(name)).unwrap();
    }

    // A file that is no picture does not keep the others from being done.
    fs::write(input.join("aa.png"), "no picture").unwrap();
    let bad = run(&folder, &["-i", "in", "-o", "png", "--format", "png"]);
    assert_eq!(bad.status.code(), Some(1));
    let errors = text(&bad.stderr);
    assert!(
        errors.contains("in/aa.png: ") && errors.contains("1 of 5 pictures"),
        "{errors}"
    );
    assert_eq!(
        names(&folder.file("png")),
        ["a.png", "b.png", "c.png", "d.png"]
    );
}

#[test]
fn repeated_pictures_have_seeds_that_count_up() {
    let folder = Folder::new();
    draw(&folder.file("a.png"), "smpte", 64, 64);
    // Two steps, so that the first is still under way when the second gets its seed.
    let settings = ["--set", "t-index-list=10,30"];
    runs(
        &folder,
        &[
            &["-i", "a.png", "-o", "all/", "--repeat", "3", "--seed", "7"],
            &settings[..],
        ]
        .concat(),
    );
    assert_eq!(
        names(&folder.file("all")),
        ["a-1.png", "a-2.png", "a-3.png"]
    );
    let mut pictures = Vec::new();
    for n in 1..=3 {
        let (seed, name) = ((6 + n).to_string(), format!("{n}.png"));
        runs(
            &folder,
            &[
                &["-i", "a.png", "-o", &name, "--seed", &seed],
                &settings[..],
            ]
            .concat(),
        );
        let (alone, ..) = picture(&folder.file(&name));
        same(
            &picture(&folder.file(&format!("all/a-{n}.png"))).0,
            &alone,
            &name,
        );
        assert!(!pictures.contains(&alone));
        pictures.push(alone);
    }
}

/// Without an input, the picture is what txt2img makes of any picture of that size.
#[test]
fn a_picture_from_the_prompt_alone() {
    let folder = Folder::new();
    draw(&folder.file("a.png"), "smpte", 64, 48);
    let settings = ["--prompt", "a neon cat", "--set", "t-index-list=0,20"];
    let alone = ["-o", "alone.png", "--size", "64x48"];
    runs(&folder, &[&alone[..], &settings].concat());
    let any = ["-i", "a.png", "-o", "any.png", "--set", "mode=txt2img"];
    runs(&folder, &[&any[..], &settings].concat());
    let found = picture(&folder.file("alone.png"));
    assert_eq!((found.1, found.2), (64, 48));
    assert!(found == picture(&folder.file("any.png")));
    let (restyled, ..) = {
        runs(
            &folder,
            &[&["-i", "a.png", "-o", "b.png"], &settings[..]].concat(),
        );
        picture(&folder.file("b.png"))
    };
    assert!(found.0 != restyled);
    let mut levels = found.0.clone();
    levels.sort_unstable();
    levels.dedup();
    assert!(levels.len() > 8, "a picture of {} levels", levels.len());
    let model = parity_text();
    let args = ["run", &model, "-o", "c.png", "--set", "mode=img2img"];
    fails(&folder, &args, 2, &["property mode", "--input"]);
}

#[test]
fn nothing_is_overwritten_unless_asked() {
    let folder = Folder::new();
    draw(&folder.file("a.png"), "smpte", 64, 64);
    fs::write(folder.file("out.png"), "mine").unwrap();
    let model = parity_text();
    let args = ["run", "-m", &model, "-i", "a.png", "-o", "out.png"];
    fails(&folder, &args, 1, &["out.png", "--force"]);
    assert_eq!(fs::read(folder.file("out.png")).unwrap(), b"mine");
    works(&folder, &[&args[..], &["--force"]].concat());
    assert_eq!(picture(&folder.file("out.png")).1, 64);
    assert_eq!(names(folder.path()), ["a.png", "out.png"]);
}

#[test]
fn mistakes_are_told_in_a_line() {
    let folder = Folder::new();
    draw(&folder.file("a.png"), "smpte", 64, 64);
    let model = parity_text();
    let run = |more: &[&'static str]| -> Vec<String> {
        let mut args = vec!["run".to_owned(), model.clone()];
        args.extend(more.iter().map(|arg| (*arg).to_owned()));
        args
    };
    let ok = ["-i", "a.png", "-o", "x.png"];
    let with = |more: &[&'static str]| run(&[&ok[..], more].concat());
    for (args, status, parts) in [
        (with(&["--set", "stpes=2"]), 2, &["\"stpes\"", "steps"][..]),
        (with(&["--set", "stats=2"]), 2, &["\"stats\""]),
        (
            with(&["--steps", "9"]),
            2,
            &["property steps", "\"9\"", "1 to 8"],
        ),
        (
            with(&["--strength", "nan"]),
            2,
            &["property strength", "0 to 1"],
        ),
        (
            with(&["--cfg-type", "most"]),
            2,
            &["property cfg-type", "initialize"],
        ),
        (
            with(&["--set", "add-noise=maybe"]),
            2,
            &["property add-noise", "true or false"],
        ),
        (
            with(&["--set", "timing=immediate"]),
            2,
            &["property timing", "content"],
        ),
        (
            with(&["--repeat", "2", "--set", "frame-buffer-size=2"]),
            2,
            &["property frame-buffer-size", "expected 1", "--repeat"],
        ),
        (with(&["--set", "t-index-list=45,32"]), 1, &["t-index-list"]),
        (with(&["--size", "40x40"]), 1, &["width"]),
        (with(&["--format", "jpg"]), 2, &["--format", "x.png"]),
        (run(&["-i", "no.png", "-o", "x.png"]), 1, &["no.png"]),
        (
            run(&["-i", "a.png", "-o", "x.gif"]),
            2,
            &["\"gif\"", "png, jpg"],
        ),
        (
            ["run", "missing", "-i", "a.png", "-o", "x.png"]
                .map(str::to_owned)
                .to_vec(),
            1,
            &["missing", "expected a model folder"],
        ),
        (
            ["bench", &model, "--compare", "steps=2"]
                .map(str::to_owned)
                .to_vec(),
            2,
            &["--compare", "two values"],
        ),
    ] {
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        fails(&folder, &args, status, parts);
        assert_eq!(names(folder.path()), ["a.png"], "{args:?}");
    }
    for wrong in ["--set=steps", "--size=512", "--size=0x0", "--repeat=0"] {
        let mut args = with(&[]);
        args.push(wrong.to_owned());
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        assert_eq!(output(&folder, &args).status.code(), Some(2), "{wrong}");
    }
}

#[test]
fn a_missing_plugin_is_told_with_its_package() {
    let folder = Folder::new();
    draw(&folder.file("a.png"), "smpte", 64, 64);
    let model = parity_text();
    for (plugins, element, package) in [
        (&["coreelements"][..], "pngenc", "gstreamer1.0-plugins-good"),
        (
            &["coreelements", "png"],
            "decodebin",
            "gstreamer1.0-plugins-base",
        ),
        (
            &[
                "coreelements",
                "playback",
                "videoconvertscale",
                "typefindfunctions",
                "videofilter",
                "jpeg",
            ],
            "PNG",
            "gstreamer1.0-plugins-good",
        ),
    ] {
        let place = Folder::new();
        let mut command = tool(env!("CARGO_BIN_EXE_streamdiffusion"), &place, plugins);
        let to = if element == "PNG" { "x.jpg" } else { "x.png" };
        let output = command
            .current_dir(folder.path())
            .args(["run", &model, "-i", "a.png", "-o", to])
            .output()
            .unwrap();
        let errors = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{errors}");
        assert!(
            errors.contains(element) && errors.contains(package),
            "{errors}"
        );
    }
}

#[test]
fn an_interrupt_leaves_whole_files_only() {
    let folder = Folder::new();
    let input = folder.file("in");
    fs::create_dir(&input).unwrap();
    draw(&input.join("000.png"), "smpte", 256, 256);
    for n in 1..200 {
        fs::copy(input.join("000.png"), input.join(format!("{n:03}.png"))).unwrap();
    }
    let model = parity_text();
    let mut command = program(&folder, &["run", &model, "-i", "in", "-o", "out"]);
    // It is ignored by what a script starts in the background, and so by these tests if that is how they are run.
    // SAFETY: signal may be called between fork and exec.
    unsafe {
        command.pre_exec(|| match libc::signal(libc::SIGINT, libc::SIG_DFL) {
            libc::SIG_ERR => Err(std::io::Error::last_os_error()),
            _ => Ok(()),
        });
    }
    let mut child = command.stderr(Stdio::null()).spawn().unwrap();
    let out = folder.file("out");
    wait_until("a picture", || out.join("001.png").exists());
    // SAFETY: a signal to a child that has not been waited for.
    assert_eq!(unsafe { libc::kill(child.id() as i32, libc::SIGINT) }, 0);
    assert_eq!(child.wait().unwrap().code(), Some(128 + libc::SIGINT));
    let written = names(&out);
    assert!(written.len() < 200);
    for name in written {
        assert!(!name.starts_with('.'), "{name}");
        let bytes = fs::read(out.join(&name)).unwrap();
        assert!(bytes.ends_with(b"IEND\xaeB`\x82"), "{name}");
    }
}

/// `nohup streamdiffusion run`, and a job that a script started in the background: what was ignored stays ignored.
#[test]
fn signals_that_were_ignored_stay_ignored() {
    let folder = Folder::new();
    let input = folder.file("in");
    fs::create_dir(&input).unwrap();
    draw(&input.join("000.png"), "smpte", 256, 256);
    for n in 1..200 {
        fs::copy(input.join("000.png"), input.join(format!("{n:03}.png"))).unwrap();
    }
    let mut child = Command::new("sh")
        .current_dir(folder.path())
        .args(["-c", "trap '' HUP INT; exec \"$0\" \"$@\""])
        .arg(env!("CARGO_BIN_EXE_streamdiffusion"))
        .args(["run", &parity_text(), "-i", "in", "-o", "out"])
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let out = folder.file("out");
    let send = |signal| {
        // SAFETY: a signal to a child that has not been waited for.
        assert_eq!(unsafe { libc::kill(child.id() as i32, signal) }, 0);
    };
    wait_until("a picture", || out.join("000.png").exists());
    send(libc::SIGHUP);
    send(libc::SIGINT);
    let after = names(&out).len();
    wait_until("another picture", || names(&out).len() > after + 1);
    // The others still end it.
    send(libc::SIGTERM);
    assert_eq!(child.wait().unwrap().code(), Some(128 + libc::SIGTERM));
    assert!(names(&out).len() < 200);
}

#[test]
fn bench_measures() {
    let folder = Folder::new();
    let model = parity_text();
    let json = works(
        &folder,
        &[
            "bench",
            &model,
            "--size",
            "64x48",
            "--frames",
            "12",
            "--warmup",
            "2",
            "--json",
            "--set",
            "t-index-list=32,45",
        ],
    );
    let found: Value = serde_json::from_str(&json).unwrap();
    let result = &found["results"][0];
    let number = |value: &Value| value.as_f64().unwrap();
    assert_eq!(result["frames"], 12);
    assert_eq!(result["size"], serde_json::json!([64, 48]));
    assert_eq!(result["settings"]["t-index-list"], "32,45");
    let mut stages = 0.0;
    for key in ["encode_ms", "denoise_ms", "decode_ms", "frame_ms"] {
        let (p50, p95) = (number(&result[key]["p50"]), number(&result[key]["p95"]));
        assert!(0.0 < p50 && p50 <= p95, "{key}: {json}");
        if key != "frame_ms" {
            stages += p50;
        }
    }
    let frame = number(&result["frame_ms"]["p50"]);
    // Medians of parts need not add up, but the whole takes no less than most of them.
    assert!(frame > stages * 0.5, "{json}");
    assert!(number(&result["fps"]) > 0.0);
    assert!(number(&result["first_frame_ms"]) > number(&result["load_ms"]));
    assert!(number(&found["peak_memory_bytes"]) > 1e6);
    assert_eq!(
        found["machine"]["cores"],
        std::thread::available_parallelism().unwrap().get()
    );
    assert!(
        result["backend"]
            .as_str()
            .unwrap()
            .starts_with("onnxruntime 1.")
    );
    let ahead = result["precomputed"].as_str().unwrap();
    assert!(ahead.contains("tensors kept"), "{ahead}");
}

/// What was asked for, or nothing.
#[test]
fn bench_measures_on_one_device() {
    let folder = Folder::new();
    let model = parity_text();
    let bench = |more: &[&str]| {
        let args = [
            "bench", &model, "--size", "64x48", "--frames", "2", "--json",
        ];
        program(&folder, &[&args, more].concat()).output().unwrap()
    };
    let there = bench(&["--device", "cpu"]);
    assert!(there.status.success());
    let found: Value = serde_json::from_slice(&there.stdout).unwrap();
    assert_eq!(found["results"][0]["device"], "CPU");
    // A GPU that no machine has.
    let missing = bench(&["--device", "cuda:77"]);
    assert_eq!(missing.status.code(), Some(1));
    assert!(missing.stdout.is_empty());
    let said = String::from_utf8_lossy(&missing.stderr);
    // Of a machine with GPUs, and of one that has none for us.
    let parts = ["GPU 77", "--device cuda: no GPU: "];
    assert!(parts.iter().any(|part| said.contains(part)), "{said}");
    for (wrong, part) in [
        (&["--device", "gpu"][..], "cuda:N"),
        (
            &["--device", "cuda", "--set", "backend=auto"],
            "property backend",
        ),
        (
            &["--device", "cpu", "--compare", "device-id=0,1"],
            "property device-id",
        ),
    ] {
        let wrong = bench(wrong);
        assert_eq!(wrong.status.code(), Some(2));
        let said = String::from_utf8_lossy(&wrong.stderr);
        assert!(said.contains(part), "{said}");
    }
}

/// Where GStreamer opens plugins in the program itself, as it does when it cannot start its scanner, there are two elements of
/// one name; the program uses its own.
#[test]
fn the_plugin_may_be_there_too() {
    let folder = Folder::new();
    let plugins = folder.file("plugins");
    fs::create_dir(&plugins).unwrap();
    let link = plugins.join(plugin().file_name().unwrap());
    std::os::unix::fs::symlink(plugin(), link).unwrap();
    let model = parity_text();
    let args = ["bench", &model, "--size", "64x48", "--frames", "2"];
    let output = program(&folder, &args)
        .env("GST_PLUGIN_PATH", &plugins)
        .env("GST_PLUGIN_SYSTEM_PATH", "")
        .env("GST_REGISTRY", folder.file("registry.bin"))
        .env("GST_REGISTRY_FORK", "no")
        .env("GST_DEBUG", "GST_PLUGIN_LOADING:1")
        .env("GST_DEBUG_NO_COLOR", "1")
        .output()
        .unwrap();
    let said = text(&output.stderr);
    assert!(output.status.success(), "{said}");
    assert!(
        text(&output.stdout).contains("frames/s"),
        "{}",
        text(&output.stdout)
    );
    // It was opened, and said no more than this.
    let [line] = &said.lines().collect::<Vec<_>>()[..] else {
        panic!("{said}");
    };
    assert!(
        line.contains("another copy of the plugin streamdiffusion"),
        "{line}"
    );
}

/// As the one before, in a program that has the element too and registers it when the plugin is there already.
#[test]
fn a_second_copy_of_the_element_is_an_error() {
    const INSIDE: &str = "STREAMDIFFUSION_TEST_COPIES";
    if std::env::var_os(INSIDE).is_some() {
        gst::init().unwrap();
        assert!(gst::ElementFactory::find("streamdiffusion").is_some());
        let error = StreamDiffusion::register_type().unwrap_err().to_string();
        assert!(error.contains("another copy of the plugin"), "{error}");
        gststreamdiffusion::plugin_register_static().unwrap_err();
        // The one that is there works.
        gst::ElementFactory::make("streamdiffusion")
            .build()
            .unwrap();
        return;
    }
    let folder = Folder::new();
    let name = "a_second_copy_of_the_element_is_an_error";
    let mut command = tool(
        std::env::current_exe().unwrap().to_str().unwrap(),
        &folder,
        &[],
    );
    let output = command
        .args(["--exact", "--nocapture", name])
        .env(INSIDE, "1")
        .env("GST_REGISTRY_FORK", "no")
        .output()
        .unwrap();
    let said = text(&output.stdout) + &text(&output.stderr);
    assert!(output.status.success(), "{said}");
    assert!(said.contains("1 passed"), "{said}");
    assert!(!said.contains("panicked"), "{said}");
}

#[test]
fn bench_compares_in_turns() {
    let folder = Folder::new();
    let model = parity_text();
    let args = [
        "bench",
        &model,
        "--size",
        "64x64",
        "--frames",
        "10",
        "--warmup",
        "1",
        "--compare",
        "t-index-list=45|10,20,30,40",
    ];
    let json = works(&folder, &[&args[..], &["--json"]].concat());
    let found: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(found["compared"], "t-index-list");
    let ratios: Vec<f64> = found["ratios"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(Value::as_f64)
        .collect();
    assert_eq!((ratios.len(), ratios[0]), (2, 1.0));
    // Four steps are more work than one, whatever else the machine does.
    assert!(ratios[1] < 1.0, "{json}");
    for (result, list) in found["results"]
        .as_array()
        .unwrap()
        .iter()
        .zip(["45", "10,20,30,40"])
    {
        assert_eq!(result["settings"]["t-index-list"], list);
        assert_eq!(result["frames"], 10);
    }
    let report = works(&folder, &args);
    assert!(report.contains("t-index-list = 10,20,30,40\n"), "{report}");
    assert!(report.contains("Peak memory"), "{report}");
}

/// What nvidia-smi tells is averaged over the time that is measured; here it is a script that tells always the same.
#[cfg(unix)]
#[test]
fn bench_asks_for_the_power() {
    use std::os::unix::fs::PermissionsExt;
    let folder = Folder::new();
    let model = parity_text();
    let bin = folder.file("bin");
    fs::create_dir(&bin).unwrap();
    let said = folder.file("said");
    let bench = |extra: &[&str], script: &str| {
        let fake = bin.join("nvidia-smi");
        fs::write(&fake, script).unwrap();
        fs::set_permissions(&fake, fs::Permissions::from_mode(0o755)).unwrap();
        let args = [
            "bench",
            &model,
            "--size",
            "64x64",
            "--frames",
            "8",
            "--warmup",
            "1",
            "--power=1",
        ];
        let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap());
        let output = program(&folder, &[&args[..], extra].concat())
            .env("PATH", path)
            .output()
            .unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (
            output.status.success(),
            text(&output.stdout),
            text(&output.stderr),
        )
    };
    let script = format!(
        "#!/bin/sh\necho \"$@\" >{}\nwhile echo '200.0, 50, 4000'; do sleep 0.02; done\n",
        said.display()
    );
    let still = [
        "--still",
        "--rate",
        "40",
        "--json",
        "--set",
        "similarity-filter=true",
    ];
    let (worked, json, errors) = bench(&still, &script);
    assert!(worked, "{errors}");
    let found: Value = serde_json::from_str(&json).unwrap();
    let result = &found["results"][0];
    let number = |key: &str| result["gpu"][key].as_f64().unwrap();
    for (key, expected) in [
        ("power_w", 200.0),
        ("use_percent", 50.0),
        ("memory_mib", 4000.0),
    ] {
        assert!((number(key) - expected).abs() < 1e-6, "{json}");
    }
    // 8 frames at 40 a second: the last comes after 175 ms, and none sooner than its time.
    let energy = number("energy_per_frame_j");
    assert!(energy >= 200.0 * 0.175 / 8.0, "{json}");
    assert!(result["skipped"].as_u64().unwrap() > 0, "{json}");
    assert!(fs::read_to_string(&said).unwrap().contains("--id=1"));
    assert!(result.get("outside_ms").is_none(), "{json}");
    let (worked, report, errors) = bench(&[], &script);
    assert!(worked, "{errors}");
    assert!(
        report.contains("200.0 W") && report.contains("50 % in use"),
        "{report}"
    );
    assert!(report.contains("is not the networks'"), "{report}");

    let (worked, _, errors) = bench(&[], "#!/bin/sh\necho 'No devices were found'\n");
    assert!(
        !worked && errors.contains("nvidia-smi says nothing"),
        "{errors}"
    );
    let bare = program(&folder, &["bench", &model, "--power"])
        .env("PATH", folder.path())
        .output()
        .unwrap();
    let errors = String::from_utf8_lossy(&bare.stderr).into_owned();
    assert!(
        !bare.status.success() && errors.contains("driver"),
        "{errors}"
    );
}

/// Paths of pictures and models may be anything a file system takes.
#[cfg(unix)]
#[test]
fn paths_may_be_any_bytes() {
    use std::os::unix::ffi::OsStrExt;
    let folder = Folder::new();
    draw(&folder.file("a.png"), "smpte", 64, 64);
    let odd = |bytes: &[u8]| PathBuf::from(std::ffi::OsStr::from_bytes(bytes));
    let (input, result) = (odd(b"a b!\xff.png"), odd(b"o'\xfe.png"));
    fs::rename(folder.file("a.png"), folder.path().join(&input)).unwrap();
    let output = program(&folder, &["run", &parity_text(), "-i"])
        .arg(&input)
        .arg("-o")
        .arg(&result)
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    assert!(folder.path().join(&result).is_file());
}
