//! Graphs in which one operator is in the place of each gated linear unit, against the same graphs as they were exported.
//!
//! ONNX Runtime has the operator for GPUs only; here a function takes its place that does the same with operators of ONNX
//! (`tools/reference/gates.py`).
//!
//! Needs ONNX Runtime (`ORT_DYLIB_PATH`, or beside the test program): without it these tests fail, they do not skip.

mod onnx;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use gststreamdiffusion::model::{Fused, Fusions, Graph};
use onnx::run::{Array, Feed, difference, from_file, from_memory, run, with_functions};
use ort::session::Session;

const ONLY: Fusions = Fusions {
    gates: true,
    ..Fusions::NONE
};

fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/data/gates")
        .join(name)
}

#[test]
fn gated_linear_units() {
    units(|model| {
        let model = with_functions(model, &data("functions.onnx"));
        from_memory(&model, Path::new("")).unwrap()
    });
}

/// The same with the operator itself.
#[cfg(feature = "cuda")]
#[test]
#[ignore = "needs an NVIDIA GPU"]
fn gated_linear_units_on_a_gpu() {
    units(onnx::run::on_gpu);
}

fn units(session: impl Fn(&[u8]) -> Session) {
    let graphs = fs::read_to_string(data("graphs.json")).unwrap();
    let graphs: BTreeMap<String, Vec<String>> = serde_json::from_str(&graphs).unwrap();
    assert!(graphs["fused"].len() >= 5 && graphs["left"].len() >= 9);
    for name in &graphs["left"] {
        let path = data(&format!("{name}.onnx"));
        let fused = Fused::open(&path, &Graph::open(&path).unwrap(), ONLY).unwrap();
        assert!(fused.is_none(), "{name}");
    }
    for name in &graphs["fused"] {
        let path = data(&format!("{name}.onnx"));
        let fused = Fused::open(&path, &Graph::open(&path).unwrap(), ONLY).unwrap();
        let fused = fused.unwrap_or_else(|| panic!("{name}"));
        assert_eq!((fused.counts().gates, fused.nodes()), (1, 2), "{name}");
        let x = Array::noise(&[2, 3, 4], 9);
        let feed = Feed::from([("x".to_owned(), x)]);
        let found = run(&mut session(&fused.model().unwrap()), &feed);
        let wanted = run(&mut from_file(&path), &feed);
        let difference = difference(&found["y"], &wanted["y"]);
        let tolerance = if name == "half" { 4e-3 } else { 1e-5 };
        assert!(difference <= tolerance, "{name}: {difference:.1e}");
    }
}
