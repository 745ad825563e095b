//! Graphs in which one operator is in the place of each attention, against the same graphs as they were exported.
//!
//! Needs ONNX Runtime (`ORT_DYLIB_PATH`, or beside the test program): without it these tests fail, they do not skip.
//! `tools/reference/attention.py` makes the small graphs and works out what they give.

mod onnx;

use std::fs;
use std::path::{Path, PathBuf};

use gststreamdiffusion::model::{Fused, Fusions, Graph};
use onnx::run::{Array, Feed, batch, difference, from_file, from_memory, row, run, shapes};
use serde_json::Value;

/// Rows of a call, with timesteps that differ where the graph allows it.
const TIMESTEPS: [f64; 3] = [801.0, 401.0, 1.0];
/// Heights and widths of latents, in no order.
const SIZES: [(usize, usize); 3] = [(8, 8), (16, 24), (8, 16)];

fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/data")
        .join(name)
}

fn fused(path: &Path) -> Option<Fused> {
    Fused::open(path, &Graph::open(path).unwrap(), Fusions::ATTENTION).unwrap()
}

/// How many attentions of how many softmaxes are fused.
fn counts(fused: &Fused) -> [usize; 2] {
    let counts = fused.counts();
    [counts.attentions, counts.softmaxes]
}

/// How many nodes of each of these operators a graph has.
fn count<const N: usize>(model: &[u8], ops: [&str; N]) -> [usize; N] {
    let graph = onnx::Graph::of(model);
    ops.map(|op| graph.nodes.iter().filter(|node| node.op == op).count())
}

/// Compares the U-Net at `path`, in which `others` softmaxes are no attention of pictures, fused with as it is.
fn check(path: &Path, others: usize) {
    let name = path.display();
    let exported = fs::read(path).unwrap();
    let [all] = count(&exported, ["Softmax"]);
    assert!(all > others, "{name}");
    let fused = fused(path).unwrap();
    assert_eq!(counts(&fused), [all - others, all], "{name}");
    let model = fused.model().unwrap();
    let ops = ["MultiHeadAttention", "Softmax", "Sqrt"];
    // Roots were for scales: nothing else in these graphs takes any.
    assert_eq!(count(&model, ops), [all - others, others, 0], "{name}");
    assert_eq!(onnx::Graph::of(&model).nodes.len(), fused.nodes(), "{name}");

    let mut fused = from_memory(&model, path.parent().unwrap()).unwrap();
    let mut exported = from_file(path);
    for size in SIZES {
        let shapes = shapes(path, size);
        let fixed = shapes.iter().find(|(name, _)| name == "sample").unwrap().1[0];
        let rows: Vec<Feed> = TIMESTEPS
            .into_iter()
            .zip(1..)
            .map(|(timestep, seed)| match fixed {
                1 => row(&shapes, timestep, seed),
                _ => self::rows(&shapes, seed),
            })
            .collect();
        let mut feeds = vec![rows[0].clone()];
        if fixed == 1 {
            feeds.push(batch(&rows));
        }
        for feed in feeds {
            let [found, expected] =
                [&mut fused, &mut exported].map(|s| run(s, &feed).remove("out_sample").unwrap());
            let difference = difference(&found, &expected);
            println!("{name} at {size:?}: largest difference {difference:.1e}");
            assert!(difference < 2e-5, "{name} at {size:?}: {difference:.1e}");
        }
    }
}

/// Inputs of a graph that fixes its rows.
fn rows(shapes: &[(String, Vec<usize>)], seed: u64) -> Feed {
    let each = shapes.iter().zip(1..).map(|((name, dims), i)| {
        let array = match name.as_str() {
            "timestep" => {
                let count = dims.iter().product();
                Array::new(dims, TIMESTEPS.into_iter().cycle().take(count).collect())
            }
            _ => Array::noise(dims, seed * 100 + i),
        };
        (name.clone(), array)
    });
    each.collect()
}

#[test]
fn unets_of_all_architectures_and_exporters() {
    let mut found = 0;
    for entry in fs::read_dir(data("models")).unwrap() {
        let path = entry.unwrap().path().join("unet/model.onnx");
        if path.exists() {
            check(&path, 0);
            found += 1;
        }
    }
    assert_eq!(found, 8);
    for name in [
        "dynamo",
        "external/model",
        "merged",
        "old",
        "script",
        "sdxl",
    ] {
        check(&data(&format!("split/{name}.onnx")), 0);
    }
    check(&data("parity/model/unet/model.onnx"), 0);
    // A softmax over words makes the style of them.
    let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/demo/unet/model.onnx");
    check(&demo, 1);
}

/// Autoencoders, of which attention is left as it is: factors alone are written in where they were worked out.
#[test]
fn autoencoders_work_out_no_factors() {
    let mut changed = 0;
    for entry in fs::read_dir(data("models")).unwrap() {
        for component in ["vae_encoder", "vae_decoder"] {
            let path = entry.as_ref().unwrap().path().join(component);
            let path = path.join("model.onnx");
            if !path.exists() {
                continue;
            }
            let name = path.display();
            let exported = fs::read(&path).unwrap();
            let ops = ["Softmax", "MatMul", "Conv"];
            let (sums, roots) = (count(&exported, ops), count(&exported, ["Sqrt"]));
            let header = Graph::open(&path).unwrap();
            let Some(folded) = Fused::open(&path, &header, Fusions::NONE).unwrap() else {
                assert_eq!(roots, [0], "{name}");
                continue;
            };
            changed += 1;
            let model = folded.model().unwrap();
            assert_eq!(count(&model, ["Sqrt"]), [0], "{name}");
            assert_eq!(count(&model, ops), sums, "{name}");
            let mut folded = from_memory(&model, path.parent().unwrap()).unwrap();
            let mut exported = from_file(&path);
            let shapes = shapes(&path, (16, 24));
            let feed = batch(&[1, 2].map(|seed| row(&shapes, 0.0, seed)));
            let output = &header.outputs[0].name;
            let [found, expected] =
                [&mut folded, &mut exported].map(|s| run(s, &feed).remove(output).unwrap());
            let difference = difference(&found, &expected);
            println!("{name}: largest difference {difference:.1e}");
            assert!(difference < 1e-6, "{name}: {difference:.1e}");
        }
    }
    // Optimum's.
    assert_eq!(changed, 6);
}

#[test]
fn a_graph_without_attention_is_left_as_it_is() {
    assert!(fused(&data("odd/unet/model.onnx")).is_none());
    assert!(fused(&data("split/unusual.onnx")).is_none());
}

/// The small graphs by name, and what they are given and are to give.
fn cases(which: &str) -> (Vec<String>, Value) {
    let text = fs::read_to_string(data("attention/cases.json")).unwrap();
    let cases: Value = serde_json::from_str(&text).unwrap();
    let names = cases[which].as_array().unwrap().iter();
    let names = names.map(|name| name.as_str().unwrap().to_owned());
    (names.collect(), cases["numbers"].clone())
}

fn numbers(all: &Value, name: &str) -> Vec<f64> {
    let list = all[name].as_array().unwrap().iter();
    list.map(|x| x.as_f64().unwrap()).collect()
}

#[test]
fn attention_in_every_form_is_fused_and_gives_what_numpy_does() {
    let (names, all) = cases("fused");
    assert_eq!(names.len(), 17);
    let hidden = Array::new(&[2, 6, 12], numbers(&all, "hidden"));
    let text = Array::new(&[2, 5, 8], numbers(&all, "text"));
    let feed = Feed::from([("hidden".into(), hidden), ("text".into(), text)]);
    for name in names {
        let path = data(&format!("attention/{name}.onnx"));
        let fused = fused(&path).unwrap_or_else(|| panic!("{name}"));
        assert_eq!(counts(&fused), [1, 1], "{name}");
        let model = fused.model().unwrap();
        // Projections alone are left, and nothing that works out sizes.
        assert_eq!(count(&model, ["MultiHeadAttention", "MatMul"]), [1, 3]);
        let around = if name == "rows-mixed" { 4 } else { 0 };
        // Another factor than the usual one is a constant that queries are multiplied with.
        let scaled = match name.as_str() {
            "other-scale" | "no-scale" => 2,
            _ => 0,
        };
        assert_eq!(fused.nodes(), 4 + around + scaled, "{name}");
        let mut session = from_memory(&model, path.parent().unwrap()).unwrap();
        let found = run(&mut session, &feed).remove("out").unwrap();
        let expected = Array::new(&[2, 6, 12], numbers(&all, &name));
        let difference = difference(&found, &expected);
        let half = name == "half" || name == "softmax-in-f32";
        let tolerance = if half { 2e-3 } else { 1e-6 };
        assert!(difference < tolerance, "{name}: {difference:.1e}");
    }
}

/// Runs the graphs whose heads are of sizes that models have, fused, by sessions of `open`, for pictures of `places` places
/// and texts, against the f32 graphs as they were exported.
fn heads_of_models(places: usize, open: impl Fn(&[u8]) -> ort::session::Session) {
    for inner in [40, 64, 80, 160] {
        let mut exported = from_file(&data(&format!("attention/heads-of-{inner}-single.onnx")));
        for kind in ["single", "half"] {
            let name = format!("attention/heads-of-{inner}-{kind}.onnx");
            let model = fused(&data(&name)).unwrap().model().unwrap();
            assert_eq!(onnx::Graph::of(&model).nodes.len(), 1);
            let mut session = open(&model);
            for (rows, length) in [(1, places), (3, places), (1, 77), (4, 154)] {
                let noise = |places, seed| Array::rounded_noise(&[rows, places, 3 * inner], seed);
                let feed = Feed::from([
                    ("queries".into(), noise(places, 1)),
                    ("keys".into(), noise(length, 2)),
                    ("values".into(), noise(length, 3)),
                ]);
                let [found, expected] =
                    [&mut session, &mut exported].map(|s| run(s, &feed).remove("out").unwrap());
                let difference = difference(&found, &expected);
                println!("{name}, {rows} x {places} x {length}: {difference:.1e}");
                let tolerance = if kind == "half" { 2e-3 } else { 1e-5 };
                assert!(difference < tolerance, "{name}: {difference:.1e}");
            }
        }
    }
}

#[test]
fn heads_of_the_sizes_of_models() {
    heads_of_models(36, |model| from_memory(model, Path::new("")).unwrap());
}

/// The same with the kernels for GPUs: those that never write the scores to memory take other paths for long sequences.
#[cfg(feature = "cuda")]
#[test]
#[ignore = "needs an NVIDIA GPU"]
fn heads_of_the_sizes_of_models_on_a_gpu() {
    for places in [36, 256, 1024] {
        heads_of_models(places, onnx::run::on_gpu);
    }
}

#[test]
fn what_only_looks_like_attention_is_left_as_it_is() {
    let (names, _) = cases("left");
    assert_eq!(names.len(), 17);
    for name in names {
        let fused = fused(&data(&format!("attention/{name}.onnx")));
        assert!(fused.is_none(), "{name}: {:?}", fused.map(|f| counts(&f)));
    }
}

#[test]
fn a_spoilt_file_is_fused_or_refused() {
    let good = fs::read(data("attention/merged.onnx")).unwrap();
    let header = Graph::open(&data("attention/merged.onnx")).unwrap();
    let path = std::env::temp_dir().join(format!("fused-spoilt-{}.onnx", std::process::id()));
    let (mut fused, mut left, mut refused) = (0, 0, 0);
    let mut attempt = |bytes: &[u8]| {
        fs::write(&path, bytes).unwrap();
        match Fused::open(&path, &header, Fusions::ALL) {
            Ok(Some(found)) => {
                assert!(found.model().unwrap().len() < 2 * good.len());
                fused += 1;
            }
            Ok(None) => left += 1,
            Err(error) => {
                assert!(error.to_string().contains("fused-spoilt"), "{error}");
                refused += 1;
            }
        }
    };
    let flips = [0x01, 0x08, 0x80, 0xff];
    for (i, flip) in (0..good.len()).step_by(3).zip(flips.into_iter().cycle()) {
        let mut bytes = good.clone();
        bytes[i] ^= flip;
        attempt(&bytes);
        if i % 16 == 0 {
            attempt(&good[..i]);
        }
    }
    fs::remove_file(&path).unwrap();
    println!("{fused} fused, {left} left, {refused} refused");
    assert!(
        fused > 100 && left > 100 && refused > 300,
        "{fused} {left} {refused}"
    );
}
