//! Graphs split in two: the slow half once for each row, the fast half with the rows stacked, against the whole graph.
//!
//! Needs ONNX Runtime (`ORT_DYLIB_PATH`, or beside the test program): without it these tests fail, they do not skip.
//! With `SPLIT_DIR` set, the halves are also written there, for `tools/reference/split.py check`.

mod onnx;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use gststreamdiffusion::model::{Boundary, Fused, Fusions, Graph, Split, TensorType};
use onnx::run::{Array, Feed, batch, difference, from_file, from_memory, row, run, shapes, types};
use ort::session::Session;

/// The rows of the batch that is run. Their timesteps and texts differ.
const ROWS: usize = 3;
const TIMESTEPS: [f64; ROWS] = [801.0, 401.0, 1.0];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn data(name: &str) -> PathBuf {
    root().join("tests/data/split").join(name)
}

/// A graph, whole and split, made ready.
struct Halves {
    split: Split,
    whole: Session,
    slow: Session,
    fast: Session,
}

impl Halves {
    fn open(name: &str, path: &Path, fused: bool) -> Self {
        let header = Graph::open(path).unwrap();
        let (split, whole) = match fused {
            false => (
                Split::open(path, "sample", "out_sample"),
                fs::read(path).unwrap(),
            ),
            true => {
                let fused = Fused::open(path, &header, Fusions::ATTENTION)
                    .unwrap()
                    .unwrap();
                let model = fused.model().unwrap();
                (fused.split("sample", "out_sample"), model)
            }
        };
        let split = split.unwrap().unwrap();
        let folder = path.parent().unwrap();
        let model = split.slow().unwrap();
        let slow = from_memory(&model, folder).unwrap();
        let found = types(&slow);
        let fast = split.fast(&found).unwrap();
        if let Some(to) = std::env::var_os("SPLIT_DIR") {
            let to = Path::new(&to).join(match fused {
                true => format!("{name}-fused"),
                false => name.to_owned(),
            });
            fs::create_dir_all(&to).unwrap();
            fs::write(to.join("slow.onnx"), &model).unwrap();
            fs::write(to.join("fast.onnx"), &fast).unwrap();
            fs::write(to.join("whole.onnx"), &whole).unwrap();
            let weights = path.with_extension("onnx_data");
            if weights.exists() {
                fs::copy(weights, to.join("model.onnx_data")).unwrap();
            }
        }
        check_halves(&whole, &model, &fast, &split);
        // Each weight goes to one half, or to none.
        assert!(model.len().max(fast.len()) < whole.len());
        Self {
            fast: from_memory(&fast, folder).unwrap(),
            whole: from_file(path),
            split,
            slow,
        }
    }

    /// Runs the slow graph on every row and stacks what it gives and the inputs that cross as they are. With
    /// `shared`, tensors of the text alone are given once where that will do; how many were is given back.
    fn stacked(&mut self, rows: &[Feed], shared: bool) -> (Feed, usize) {
        let slow: Vec<Feed> = rows.iter().map(|row| run(&mut self.slow, row)).collect();
        let two = batch(&rows[..2]);
        let slow_of_two = run(&mut self.slow, &two);
        let mut feed = Feed::new();
        let samples: Vec<&Array> = rows.iter().map(|row| &row["sample"]).collect();
        feed.insert("sample".to_owned(), Array::stack(&samples));
        let mut once = 0;
        for tensor in self.split.boundary() {
            let parts: Vec<&Array> = rows
                .iter()
                .zip(&slow)
                .map(|(row, slow)| match tensor.is_input {
                    true => &row[&tensor.name],
                    false => &slow[&tensor.name],
                })
                .collect();
            let first = parts[0];
            let same = parts.iter().all(|p| *p == first);
            let of_two = match tensor.is_input {
                true => &two[&tensor.name],
                false => &slow_of_two[&tensor.name],
            };
            let array = if !Boundary::stacks(&first.dims, &of_two.dims) {
                assert!(same, "{tensor:?} of these rows cannot go together");
                first.clone()
            } else if shared && same && tensor.does_for_all(&first.dims) {
                once += 1;
                first.clone()
            } else {
                Array::stack(&parts)
            };
            feed.insert(tensor.name.clone(), array);
        }
        (feed, once)
    }

    /// The fast graph's output for `rows`, and how many boundary tensors were given once for all.
    fn run(&mut self, rows: &[Feed], shared: bool) -> (Array, usize) {
        let (feed, once) = self.stacked(rows, shared);
        (
            run(&mut self.fast, &feed).remove("out_sample").unwrap(),
            once,
        )
    }

    fn run_whole(&mut self, feed: &Feed) -> Array {
        run(&mut self.whole, feed).remove("out_sample").unwrap()
    }
}

/// What is found of how a graph splits, for people.
#[derive(Debug)]
struct Found {
    /// Nodes of the whole graph, the slow and the fast one.
    nodes: [usize; 3],
    /// Boundary tensors.
    boundary: usize,
    /// How many tensors that the text makes do for all rows.
    once: usize,
}

/// Follows every tensor through the graph and its halves, and checks that they are split where they should be: all that
/// needs no latent is in the slow half, and nothing else is.
fn check_halves(whole: &[u8], slow: &[u8], fast: &[u8], split: &Split) {
    let [whole, slow, fast] = [whole, slow, fast].map(onnx::Graph::of);
    let names =
        |names: &mut dyn Iterator<Item = &String>| -> BTreeSet<String> { names.cloned().collect() };
    let boundary = split.boundary().iter();
    let computed = boundary.clone().filter(|b| !b.is_input).map(|b| &b.name);
    assert_eq!(names(&mut slow.outputs.iter()), names(&mut { computed }));
    let live = "sample".to_owned();
    let given = boundary.clone().map(|b| &b.name).chain([&live]);
    assert_eq!(names(&mut fast.inputs.iter()), names(&mut { given }));
    assert_eq!(fast.outputs, ["out_sample"]);

    // Nothing is missing, nothing is there for nothing.
    let of = |half: &onnx::Graph| -> BTreeSet<Vec<String>> {
        half.nodes.iter().map(|node| node.gives.clone()).collect()
    };
    let needed = |graph: &onnx::Graph, outputs: &[String]| -> BTreeSet<Vec<String>> {
        let needed = graph.needed(outputs).into_iter();
        needed.map(<[String]>::to_vec).collect()
    };
    assert_eq!(needed(&slow, &slow.outputs), of(&slow));
    assert_eq!(needed(&fast, &fast.outputs), of(&fast));
    let all: BTreeSet<_> = of(&slow).union(&of(&fast)).cloned().collect();
    assert_eq!(needed(&whole, &fast.outputs), all);
    let counts = [&whole, &slow, &fast].map(|graph| graph.nodes.len());
    assert_eq!(split.node_counts(), counts);

    // The slow half sees no latent but its shape.
    for (name, from) in slow.depends(true) {
        assert!(
            name == live || !from.contains(&live),
            "{name} in the slow half"
        );
    }
    // The fast half works out nothing that it could be given.
    let (values, all) = (fast.depends(true), fast.depends(false));
    for node in &fast.nodes {
        for name in &node.gives {
            let of_latent = all[name].contains(&live);
            assert!(
                of_latent || values[name].is_empty(),
                "{name} in the fast half"
            );
            assert!(
                of_latent || !node.heavy || all[name].is_empty(),
                "{name} in the fast half"
            );
        }
    }
    // What both work out follows from shapes and constants.
    let values = whole.depends(true);
    for name in of(&slow).intersection(&of(&fast)).flatten() {
        assert!(values[name].is_empty(), "{name} is in both halves");
    }
    for tensor in boundary {
        let from = names(&mut tensor.from.iter());
        assert_eq!(from, values[&tensor.name], "{}", tensor.name);
        assert_eq!(tensor.is_input, whole.inputs.contains(&tensor.name));
    }
    assert!(slow.nodes.iter().any(|node| node.heavy));
    assert!(fast.nodes.iter().any(|node| node.heavy));
}

/// Checks the graph at `path` whole and split. Differences are allowed for where a product of matrices adds up in another
/// order, since a matrix of one row is multiplied by other code than one of several.
///
/// With `shares`, rows of one text must share a tensor of it at least; else none can be shared.
fn check(name: &str, path: &Path, timesteps: [f64; ROWS], shares: bool) {
    let sizes = [(8, 8), (16, 16)];
    let found = compare(name, path, &sizes, timesteps, 1e-6, false);
    assert_eq!(found.once > 0, shares, "{found:?}");
    if name == "unusual" {
        return;
    }
    // With the operator for attention, as much is computed ahead.
    let sizes = [(8, 8), (8, 16), (16, 24)];
    let fused = compare(name, path, &sizes, timesteps, 2e-5, true);
    assert!(fused.boundary <= found.boundary, "{found:?} {fused:?}");
    assert!(fused.nodes[2] < found.nodes[2], "{found:?} {fused:?}");
}

/// Compares them at these sizes, and gives what is found of the split. `tolerance` is the largest difference allowed, as a
/// share of the largest value.
fn compare(
    name: &str,
    path: &Path,
    sizes: &[(usize, usize)],
    timesteps: [f64; ROWS],
    tolerance: f64,
    fused: bool,
) -> Found {
    let mut halves = Halves::open(name, path, fused);
    let mut found = Found {
        nodes: halves.split.node_counts(),
        boundary: halves.split.boundary().len(),
        once: 0,
    };
    for size in sizes {
        let shapes = shapes(path, *size);
        let rows: Vec<Feed> = timesteps
            .into_iter()
            .zip(1..)
            .map(|(t, seed)| row(&shapes, t, seed))
            .collect();
        let (split, _) = halves.run(&rows, false);
        let same_timestep = timesteps.iter().all(|t| *t == timesteps[0]);
        let mut worst: f64 = 0.0;
        if same_timestep || rows[0]["timestep"].dims == [1] {
            // All rows, each with its own text and timestep.
            let whole = halves.run_whole(&batch(&rows));
            worst = difference(&split, &whole);
        }
        // One after the other, which also a graph with one timestep for all can do.
        for (i, row) in rows.iter().enumerate() {
            let whole = halves.run_whole(row);
            worst = worst.max(difference(&split.part(i, ROWS), &whole));
        }
        // A text for all rows, given once where it will do.
        let text = rows[0].clone();
        let rows: Vec<Feed> = rows
            .into_iter()
            .map(|mut row| {
                for (name, array) in &mut row {
                    if name != "sample" && name != "timestep" {
                        *array = text[name].clone();
                    }
                }
                row
            })
            .collect();
        let (split, once) = halves.run(&rows, true);
        found.once = once;
        for (i, row) in rows.iter().enumerate() {
            let whole = halves.run_whole(row);
            worst = worst.max(difference(&split.part(i, ROWS), &whole));
        }
        println!("{name} at {size:?}: largest difference {worst:.1e}");
        assert!(worst < tolerance, "{worst:.1e}");
    }
    found
}

/// For graphs that are too large to keep here: `SPLIT_GRAPH=model.onnx cargo test --test split -- --ignored --nocapture`.
#[test]
#[ignore = "needs SPLIT_GRAPH, the path of a U-Net's graph"]
fn a_graph_of_yours() {
    let path = PathBuf::from(std::env::var_os("SPLIT_GRAPH").expect("SPLIT_GRAPH is set"));
    // Full-size models add up hundreds of times as many numbers as the small ones here.
    for fused in [false, true] {
        let found = compare("yours", &path, &[(16, 16)], TIMESTEPS, 1e-5, fused);
        println!("{found:#?}");
    }
}

#[test]
fn a_graph_by_torch_export() {
    check("dynamo", &data("dynamo.onnx"), TIMESTEPS, true);
    // The same graph: its slow and fast session read one file.
    let path = data("external/model.onnx");
    check("external", &path, TIMESTEPS, true);
}

#[test]
fn external_data_is_found_only_where_the_session_is_told() {
    let path = data("external/model.onnx");
    let split = Split::open(&path, "sample", "out_sample").unwrap().unwrap();
    let model = split.slow().unwrap();
    from_memory(&model, path.parent().unwrap()).unwrap();
    let elsewhere = from_memory(&model, &data("")).map(|_| ()).unwrap_err();
    assert!(
        elsewhere.to_string().contains("model.onnx_data"),
        "{elsewhere}"
    );
}

#[test]
fn a_graph_with_one_timestep_for_all_takes_one_for_each_row() {
    check("script", &data("script.onnx"), TIMESTEPS, true);
    check("old", &data("old.onnx"), TIMESTEPS, true);
}

#[test]
fn a_graph_that_merges_batch_and_heads() {
    check("merged", &data("merged.onnx"), TIMESTEPS, false);
}

#[test]
fn a_graph_with_added_conditions() {
    check("sdxl", &data("sdxl.onnx"), TIMESTEPS, true);
}

#[test]
fn a_graph_of_what_exporters_seldom_write() {
    // One branch for early timesteps, one for late ones, so all rows must have the same.
    for timestep in [801.0, 1.0] {
        check("unusual", &data("unusual.onnx"), [timestep; ROWS], false);
    }
}

#[test]
fn the_parity_model() {
    let path = root().join("tests/data/parity/model/unet/model.onnx");
    check("parity", &path, TIMESTEPS, true);
}

#[test]
fn the_demo_model() {
    let path = root().join("models/demo/unet/model.onnx");
    check("demo", &path, TIMESTEPS, false);
}

#[test]
fn a_graph_with_nothing_costly_to_take_out_is_left_whole() {
    let path = root().join("tests/data/odd/unet/model.onnx");
    assert!(Split::open(&path, "x", "out").unwrap().is_none());
}

#[test]
fn a_spoilt_file_is_split_or_refused() {
    let good = fs::read(data("unusual.onnx")).unwrap();
    let path = std::env::temp_dir().join(format!("split-spoilt-{}.onnx", std::process::id()));
    let (mut split, mut refused) = (0, 0);
    let mut attempt = |bytes: &[u8]| {
        fs::write(&path, bytes).unwrap();
        match Split::open(&path, "sample", "out_sample") {
            Ok(Some(halves)) => {
                // No half has more than there is.
                let types: Vec<TensorType> = halves
                    .boundary()
                    .iter()
                    .map(|b| TensorType {
                        name: b.name.clone(),
                        elem_type: 1,
                        dims: None,
                    })
                    .collect();
                assert!(halves.slow().unwrap().len() < 2 * good.len());
                assert!(halves.fast(&types).unwrap().len() < 2 * good.len());
                split += 1;
            }
            Ok(None) => {}
            Err(error) => {
                assert!(error.to_string().contains("split-spoilt"), "{error}");
                refused += 1;
            }
        }
    };
    let flips = [0x01, 0x08, 0x80, 0xff];
    for (i, flip) in (0..good.len()).step_by(2).zip(flips.into_iter().cycle()) {
        let mut bytes = good.clone();
        bytes[i] ^= flip;
        attempt(&bytes);
        if i % 16 == 0 {
            attempt(&good[..i]);
        }
    }
    fs::remove_file(&path).unwrap();
    assert!(split > 100 && refused > 300, "{split} {refused}");
}
