//! Graphs whose pictures have their channels last, against the same graphs as they were exported.
//!
//! ONNX Runtime has these operators for GPUs only; here functions take their place that do the same with operators of ONNX
//! (`tools/reference/channels_last.py`). `tests/onnx_cuda.rs` runs the operators themselves.
//!
//! Needs ONNX Runtime (`ORT_DYLIB_PATH`, or beside the test program): without it these tests fail, they do not skip.

mod onnx;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use gststreamdiffusion::model::{Fused, Fusions, Graph};
use onnx::run::{Array, Feed, difference, from_file, from_memory, run, shapes, with_functions};
use ort::session::Session;

const ONLY: Fusions = Fusions {
    channels_last: true,
    ..Fusions::NONE
};
/// Sums in another order differ by so much of the largest value; in f16 by more.
const TOLERANCE: f64 = 2e-5;
const TOLERANCE_F16: f64 = 4e-3;

fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/data")
        .join(name)
}

fn faster(path: &Path) -> Option<Fused> {
    Fused::open(path, &Graph::open(path).unwrap(), ONLY).unwrap()
}

/// How many convolutions, and how many other operators, have their channels last.
fn counted(model: &[u8]) -> [usize; 2] {
    let graph = onnx::Graph::of(model);
    let of_last = |input: &String| input.ends_with(".channels_last.picture");
    let last = |ops: &[&str]| {
        let nodes = graph.nodes.iter().filter(|n| ops.contains(&&*n.op));
        nodes
            .filter(|n| n.reads.first().is_some_and(of_last))
            .count()
    };
    [last(&["NhwcConv"]), last(&["GroupNorm", "Resize"])]
}

/// Runs the graph at `path` as it is, and the one that was made of it in `session`.
fn check(path: &Path, session: &mut Session, feed: &Feed, tolerance: f64) {
    let found = run(session, feed);
    let wanted = run(&mut from_file(path), feed);
    assert_eq!(found.len(), wanted.len());
    for (name, wanted) in &wanted {
        let difference = difference(&found[name], wanted);
        assert!(
            difference <= tolerance,
            "{}: {name}: {difference:.1e}",
            path.display()
        );
    }
}

/// A session of a graph with functions in the place of the operators.
fn on_a_processor(model: &[u8], folder: &Path) -> Session {
    let model = with_functions(model, &data("channels_last/functions.onnx"));
    from_memory(&model, folder).unwrap()
}

/// Something for each of these inputs.
fn feed(shapes: &[(String, Vec<usize>)]) -> Feed {
    let each = shapes.iter().zip(1..).map(|((name, dims), seed)| {
        let array = match &**name {
            "timestep" => Array::new(dims, vec![401.0; dims.iter().product()]),
            _ => Array::noise(dims, seed),
        };
        (name.clone(), array)
    });
    each.collect()
}

#[test]
fn small_graphs() {
    graphs(TOLERANCE, |model| on_a_processor(model, Path::new("")));
}

/// The same with the operators themselves, which add up in other orders.
#[cfg(feature = "cuda")]
#[test]
#[ignore = "needs an NVIDIA GPU"]
fn small_graphs_on_a_gpu() {
    graphs(1e-4, onnx::run::on_gpu);
}

fn graphs(tolerance: f64, session: impl Fn(&[u8]) -> Session) {
    let counts = fs::read_to_string(data("channels_last/graphs.json")).unwrap();
    let counts: BTreeMap<String, [usize; 2]> = serde_json::from_str(&counts).unwrap();
    assert!(counts.len() > 10);
    for (name, expected) in counts {
        let path = data(&format!("channels_last/{name}.onnx"));
        let fused = faster(&path).unwrap();
        let model = fused.model().unwrap();
        assert_eq!(counted(&model), expected, "{name}");
        assert_eq!(fused.counts().channels_last, expected[0], "{name}");
        let tolerance = match &*name {
            "half" => TOLERANCE_F16,
            _ => tolerance,
        };
        let x = Array::noise(&[2, 8, 5, 6], 7);
        let feed = Feed::from([("x".into(), x)]);
        check(&path, &mut session(&model), &feed, tolerance);
    }
}

/// Every convolution and group normalisation of every architecture, as both exporters write them.
#[test]
fn components_of_all_architectures() {
    let mut folders: Vec<_> = fs::read_dir(data("models"))
        .unwrap()
        .map(|e| e.unwrap().path())
        .collect();
    folders.push(data("parity/model"));
    folders.push(Path::new(env!("CARGO_MANIFEST_DIR")).join("models/demo"));
    let mut checked = 0;
    for folder in folders {
        for component in ["unet", "vae_encoder", "vae_decoder"] {
            let path = folder.join(component).join("model.onnx");
            if !path.is_file() {
                continue;
            }
            let exported = onnx::Graph::of(&fs::read(&path).unwrap());
            let count = |op| exported.nodes.iter().filter(|n| n.op == op).count();
            let fused = faster(&path).unwrap();
            let [convolutions, others] = counted(&fused.model().unwrap());
            let name = path.display();
            assert_eq!(convolutions, count("Conv"), "{name}");
            assert_eq!(fused.counts().convolutions, count("Conv"), "{name}");
            // Attention in an autoencoder normalises a list of places, not a picture.
            let lists = match component {
                "unet" => 0,
                _ => count("Softmax"),
            };
            let norms = count("InstanceNormalization") - lists;
            assert!(
                (norms..=norms + count("Resize")).contains(&others),
                "{name}: {others} of {norms}"
            );
            let size = match component {
                "vae_encoder" => (64, 48),
                _ => (16, 24),
            };
            let feed = feed(&shapes(&path, size));
            let mut session = on_a_processor(&fused.model().unwrap(), path.parent().unwrap());
            check(&path, &mut session, &feed, 1e-4);
            checked += 1;
        }
    }
    assert!(checked >= 24, "{checked}");
}

/// A graph without convolutions is left alone.
#[test]
fn what_has_no_pictures_is_left_alone() {
    for folder in ["sd1", "optimum-sd1"] {
        let path = data(&format!("models/{folder}/text_encoder/model.onnx"));
        assert!(faster(&path).is_none(), "{}", path.display());
    }
}
