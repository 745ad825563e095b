//! Small graphs, put together here, and what becomes of them.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;

/// A file that is removed when dropped.
struct Temporary(PathBuf);

impl Temporary {
    fn new(model: &Message) -> Self {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("split-{}-{count}.onnx", std::process::id());
        let path = std::env::temp_dir().join(name);
        // Nothing is copied in, so any file will do for a source.
        let none = File::open(std::env::current_exe().unwrap()).unwrap();
        std::fs::write(&path, model.build(&none).unwrap()).unwrap();
        Self(path)
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

fn message(fields: &[(u64, &str)]) -> Message {
    let mut out = Message::default();
    for (number, text) in fields {
        out.string(*number, text);
    }
    out
}

/// A node from `inputs > operator > outputs`, an operator being `domain:name` or `name`.
fn node(text: &str) -> Message {
    let [inputs, op, outputs] = text.split('>').collect::<Vec<_>>()[..] else {
        panic!("{text}");
    };
    let mut out = Message::default();
    for name in inputs.split_whitespace() {
        // An input that is left out.
        out.string(1, name.trim_matches('_'));
    }
    for name in outputs.split_whitespace() {
        out.string(2, name);
    }
    let (domain, op) = op.trim().rsplit_once(':').unwrap_or(("", op.trim()));
    out.string(4, op);
    out.string(7, domain);
    out
}

/// A node with a subgraph.
fn branching(text: &str, nodes: &[&str], output: &str) -> Message {
    let mut attribute = message(&[(1, "then_branch")]);
    attribute.message(6, graph(nodes, &[], &[output], &[]));
    let mut out = node(text);
    out.message(5, attribute);
    out
}

fn graph(nodes: &[&str], inputs: &[&str], outputs: &[&str], weights: &[&str]) -> Message {
    let mut out = message(&[(2, "a graph")]);
    for text in nodes {
        out.message(1, node(text));
    }
    for (number, names) in [(11, inputs), (12, outputs)] {
        for name in names {
            out.message(number, message(&[(1, name)]));
        }
    }
    for name in weights {
        // Long enough for a length of two bytes.
        out.message(5, message(&[(8, name), (9, &"w".repeat(200))]));
    }
    out
}

fn model(graph: Message) -> Message {
    let mut out = Message::default();
    out.integer(1, 8);
    out.message(7, graph);
    out
}

/// A graph of `nodes` that all tests share the ports of.
fn usual(nodes: &[&str]) -> Message {
    graph(nodes, &["sample", "time", "text"], &["out"], &["w", "v"])
}

fn open(graph: Message) -> Result<Option<Split>> {
    Split::open(&Temporary::new(&model(graph)).0, "sample", "out")
}

fn split(nodes: &[&str]) -> Split {
    open(usual(nodes)).unwrap().unwrap()
}

#[track_caller]
fn fails(graph: Message, parts: &[&str]) {
    let error = open(graph).unwrap_err().to_string();
    for part in parts {
        assert!(error.contains(part), "{error:?} lacks {part:?}");
    }
}

fn names(split: &Split) -> Vec<&str> {
    split.boundary().iter().map(|b| b.name.as_str()).collect()
}

/// The graph `model` as its parts: operators, inputs, outputs, weights.
fn parts(model: Vec<u8>) -> [Vec<String>; 4] {
    let mut whole = Message::default();
    whole.append(Message::new(model));
    let file = Temporary::new(&whole);
    let source = Source::read(&mut Reader::open(&file.0, FILE_LIMIT).unwrap()).unwrap();
    let all = |list: &[Named]| list.iter().map(|n| n.name.clone()).collect::<Vec<_>>();
    [
        source.nodes.iter().map(|n| n.op.clone()).collect(),
        all(&source.inputs),
        all(&source.outputs),
        all(&source.initializers),
    ]
}

fn fast_parts(split: &Split) -> [Vec<String>; 4] {
    let types: Vec<TensorType> = split
        .boundary()
        .iter()
        .map(|b| TensorType {
            name: b.name.clone(),
            elem_type: 1,
            dims: Some(vec![Some(1), None, Some(300)]),
        })
        .collect();
    parts(split.fast(&types).unwrap())
}

#[test]
fn each_half_has_what_it_needs_and_nothing_else() {
    let split = split(&[
        "text w > MatMul > key",
        "key > Transpose > key_t",
        "key > Relu > unread",
        "sample v > MatMul > query",
        "query key_t > MatMul > scores",
        "time > Sin > t",
        "t > Cos > t_e",
        "scores _ t_e > Clip > out",
    ]);
    assert_eq!(names(&split), ["key_t", "t_e"]);
    assert_eq!(split.boundary()[0].from, ["text"]);
    assert_eq!(split.boundary()[1].from, ["time"]);
    assert_eq!(split.node_counts(), [8, 4, 3]);
    assert_eq!(split.slow_inputs().collect::<Vec<_>>(), ["time", "text"]);
    let [ops, inputs, outputs, weights] = parts(split.slow().unwrap());
    assert_eq!(ops, ["MatMul", "Transpose", "Sin", "Cos"]);
    assert_eq!(inputs, ["time", "text"]);
    assert_eq!(outputs, ["key_t", "t_e"]);
    assert_eq!(weights, ["w"]);
    let [ops, inputs, outputs, weights] = fast_parts(&split);
    assert_eq!(ops, ["MatMul", "MatMul", "Clip"]);
    assert_eq!(inputs, ["sample", "key_t", "t_e"]);
    assert_eq!(outputs, ["out"]);
    assert_eq!(weights, ["v"]);
}

#[test]
fn a_boundary_tensor_without_a_type_is_an_error() {
    let split = split(&["text w > MatMul > key", "sample key > MatMul > out"]);
    let error = split.fast(&[]).unwrap_err().to_string();
    assert!(error.contains("\"key\""), "{error}");
}

#[test]
fn numbers_from_shapes_are_worked_out_in_each_half() {
    // A timestep for the whole batch, as TorchScript exports have it, and a query that asks the text for the batch.
    let split = split(&[
        "sample > Cast > half",
        "half > Shape > size",
        "size > Gather > batch",
        "time batch > Expand > times",
        "times w > Gemm > t_e",
        "text w > MatMul > key",
        "text > Shape > text_size",
        "text_size > Gather > rows",
        "key > Shape > key_size",
        "key_size > Gather > width",
        "rows width batch > Concat > query_shape",
        "sample query_shape > Reshape > query",
        "query key > MatMul > scores",
        "scores t_e > Add > out",
    ]);
    assert_eq!(names(&split), ["text", "t_e", "key"]);
    assert!(split.boundary()[0].is_input && !split.boundary()[0].broadcasts);
    // The shape of `sample`, not its values, is in it.
    assert_eq!(split.boundary()[1].from, ["time"]);
    let inputs: Vec<&str> = split.slow_inputs().collect();
    assert_eq!(inputs, ["sample", "time", "text"]);
    let [slow, ..] = parts(split.slow().unwrap());
    assert_eq!(
        slow,
        ["Cast", "Shape", "Gather", "Expand", "Gemm", "MatMul"]
    );
    let [fast, inputs, ..] = fast_parts(&split);
    assert_eq!(fast.iter().filter(|op| *op == "Shape").count(), 3);
    assert_eq!(inputs, ["sample", "text", "t_e", "key"]);
}

#[test]
fn the_shape_of_what_depends_on_the_live_input_is_for_the_fast_half() {
    let split = split(&[
        "sample > Conv > x",
        "x > Shape > size",
        "text w > MatMul > key",
        "key size > Reshape > shaped",
        "x shaped > MatMul > out",
    ]);
    assert_eq!(names(&split), ["key"]);
    let [slow, ..] = parts(split.slow().unwrap());
    assert_eq!(slow, ["MatMul"]);
}

#[test]
fn a_tensor_broadcasts_where_all_its_readers_do() {
    let broadcasts = |readers: &[&str]| {
        let mut nodes = vec!["text w > MatMul > key", "sample > Relu > x"];
        nodes.extend(["x > Shape > size", "size > Sqrt > scale"]);
        nodes.extend(readers);
        let split = split(&nodes);
        assert_eq!(names(&split), ["key"]);
        split.boundary()[0].broadcasts
    };
    assert!(broadcasts(&["x key > MatMul > out"]));
    assert!(broadcasts(&["x key > Add > y", "y key x > Where > out"]));
    assert!(!broadcasts(&["x key > Add > y", "y key > Concat > out"]));
    assert!(!broadcasts(&[
        "key size > Reshape > k",
        "x k > MatMul > out"
    ]));
    assert!(!broadcasts(&[
        "key > Shape > n",
        "x key n > Where > y",
        "y n > Reshape > out"
    ]));
    assert!(!broadcasts(&["x key > com.microsoft:Add > out"]));
    assert!(!broadcasts(&["x key key > Attention > out"]));
    // Scaled by a number from a shape, it is still one row.
    let scaled = "key scale > Mul > k";
    assert!(broadcasts(&[scaled, "x k > MatMul > out"]));
    assert!(broadcasts(&[scaled, "k > Cast > c", "x c > Mul > out"]));
    assert!(!broadcasts(&["key scale > Mul > out"]));
    assert!(!broadcasts(&[scaled, "x k > Concat > out"]));
    assert!(!broadcasts(&[
        "key scale > MatMul > k",
        "x k > MatMul > out"
    ]));
}

#[test]
fn one_row_does_for_all_only_where_axis_0_is_the_batch() {
    let tensor = |broadcasts| Boundary {
        name: "key".to_owned(),
        from: Vec::new(),
        is_input: false,
        broadcasts,
    };
    assert!(tensor(true).does_for_all(&[1, 2, 6, 4]));
    assert!(tensor(true).does_for_all(&[1, 6, 8]));
    // Heads merged into the batch; a matrix or a vector; a number.
    for dims in [&[2, 6, 4][..], &[1, 8], &[1], &[]] {
        assert!(!tensor(true).does_for_all(dims), "{dims:?}");
    }
    assert!(!tensor(false).does_for_all(&[1, 6, 8]));
}

#[test]
fn rows_stack_where_their_number_is_in_axis_0() {
    assert!(Boundary::stacks(&[1, 6, 8], &[2, 6, 8]));
    assert!(Boundary::stacks(&[2, 6, 4], &[4, 6, 4]));
    assert!(Boundary::stacks(&[1], &[2]));
    for (one, two) in [
        (&[][..], &[][..]),
        (&[1, 8], &[1, 8]),
        (&[6, 1, 8], &[6, 2, 8]),
        (&[1, 1, 8], &[2, 2, 8]),
        (&[0, 8], &[0, 8]),
        (&[1], &[2, 1]),
        (&[usize::MAX], &[usize::MAX - 1]),
    ] {
        assert!(!Boundary::stacks(one, two), "{one:?} {two:?}");
    }
}

#[test]
fn subgraphs_read_what_is_around_them() {
    let mut graph = usual(&["text w > MatMul > key", "sample > Relu > x"]);
    graph.message(
        1,
        branching(
            "time > If > y",
            &["key inner > Mul > m", "w > Neg > inner"],
            "m",
        ),
    );
    graph.message(1, node("x y > Add > out"));
    let split = open(graph).unwrap().unwrap();
    // The whole node depends on nothing live.
    assert_eq!(names(&split), ["y"]);
    assert_eq!(split.boundary()[0].from, ["time", "text"]);

    let mut graph = usual(&["text w > MatMul > key", "sample > Relu > x"]);
    graph.message(
        1,
        branching(
            "time > If > out",
            &["x key > Mul > m", "m v > Add > n"],
            "n",
        ),
    );
    let split = open(graph).unwrap().unwrap();
    assert_eq!(names(&split), ["time", "key"]);
    assert!(!split.boundary()[1].broadcasts);
    let [ops, inputs, _, weights] = fast_parts(&split);
    assert_eq!(ops, ["Relu", "If"]);
    assert_eq!(inputs, ["sample", "time", "key"]);
    assert_eq!(weights, ["v"]);

    let mut graph = usual(&[]);
    graph.message(1, branching("time > If > out", &["x > Neg > m"], "m"));
    fails(graph, &["inside its node", "\"x\"", "nothing before it"]);
}

#[test]
fn sequences_do_not_cross() {
    let split = split(&[
        "text w > MatMul > key",
        "key > SplitToSequence > pieces",
        "sample > Relu > x",
        "x > ReduceMax > which",
        "pieces which > SequenceAt > piece",
        "x piece > MatMul > out",
    ]);
    assert_eq!(names(&split), ["key"]);
    assert!(!split.boundary()[0].broadcasts);
}

#[test]
fn weights_that_are_inputs_stay_inputs_of_their_half() {
    let nodes = [
        "text w > MatMul > key",
        "sample v > Conv > x",
        "x key > MatMul > out",
    ];
    // More of them than inputs can be.
    let many: Vec<String> = (0..100).map(|i| format!("w{i}")).collect();
    let mut weights: Vec<&str> = many.iter().map(String::as_str).collect();
    weights.extend(["w", "v"]);
    let inputs = [&weights[..], &["sample", "time", "text"]].concat();
    let split = open(graph(&nodes, &inputs, &["out"], &weights))
        .unwrap()
        .unwrap();
    let [_, inputs, _, weights] = parts(split.slow().unwrap());
    assert_eq!(
        (inputs, weights),
        (vec!["w".into(), "text".into()], vec!["w".into()])
    );
    assert_eq!(split.slow_inputs().collect::<Vec<_>>(), ["text"]);
    let [_, inputs, _, weights] = fast_parts(&split);
    assert_eq!(inputs, ["v", "sample", "key"]);
    assert_eq!(weights, ["v"]);
}

#[test]
fn graphs_that_gain_nothing_are_left_whole() {
    for nodes in [
        // Nothing costly is slow.
        &[
            "text > Relu > key",
            "sample w > MatMul > x",
            "x key > Add > out",
        ][..],
        // What is costly and slow is not needed.
        &["text w > MatMul > key", "sample time > Add > out"],
        // The output does not depend on the live input, or on no node.
        &["text w > MatMul > out"],
        &["sample > Shape > n", "n > Neg > out"],
    ] {
        assert!(open(usual(nodes)).unwrap().is_none(), "{nodes:?}");
    }
    let direct = graph(
        &["text w > MatMul > key"],
        &["sample", "text"],
        &["sample"],
        &["w"],
    );
    let file = Temporary::new(&model(direct));
    let split = Split::open(&file.0, "sample", "sample").unwrap();
    assert!(split.is_none());
}

#[test]
fn random_numbers_are_drawn_in_the_fast_half() {
    let split = split(&[
        "text > RandomNormalLike > noise",
        "text w > MatMul > key",
        "noise key > Add > k",
        "sample k > MatMul > out",
    ]);
    assert_eq!(names(&split), ["text", "key"]);
    let whole = usual(&["text w > MatMul > key", "sample key > MatMul > out"]);
    let mut function = message(&[(1, "F"), (10, "local")]);
    function.message(7, node("> RandomNormal > x"));
    let mut model = model(whole);
    model.message(25, function);
    let file = Temporary::new(&model);
    assert!(Split::open(&file.0, "sample", "out").unwrap().is_none());
}

#[test]
fn a_function_may_be_what_is_costly() {
    for (op, worth_it) in [("MatMul", true), ("Relu", false)] {
        let mut function = message(&[(1, "Project"), (10, "local"), (4, "x"), (5, "y")]);
        function.message(7, node(&format!("x w > {op} > y")));
        let mut model = model(usual(&[
            "text w > local:Project > key",
            "sample key > Mul > out",
        ]));
        model.message(25, function);
        let file = Temporary::new(&model);
        let split = Split::open(&file.0, "sample", "out").unwrap();
        assert_eq!(split.is_some(), worth_it);
    }
}

#[test]
fn broken_graphs_are_refused() {
    let good = ["text w > MatMul > key", "sample key > MatMul > out"];
    fails(usual(&[good[1], good[0]]), &["\"key\"", "order of use"]);
    fails(
        usual(&[good[0], good[0], good[1]]),
        &["\"key\"", "more than once"],
    );
    fails(
        usual(&["text w > MatMul > w", good[1]]),
        &["\"w\"", "more than once"],
    );
    fails(
        usual(&["text w > MatMul > sample"]),
        &["\"sample\"", "more than once"],
    );
    fails(usual(&good[..1]), &["\"out\"", "no node"]);
    fails(
        graph(&good, &["sample", "text", "text"], &["out"], &["w"]),
        &["\"text\"", "more than once"],
    );
    fails(
        graph(&good, &["time", "text"], &["out"], &["w"]),
        &["no input \"sample\""],
    );
    // A live input that is a weight is no input.
    fails(
        graph(&good, &["sample", "text"], &["out"], &["w", "sample"]),
        &["no input \"sample\""],
    );
    fails(
        graph(&good, &["sample", "text"], &["other"], &["w"]),
        &["no output \"out\""],
    );
    let many: Vec<String> = (0..65).map(|i| format!("in{i}")).collect();
    let mut inputs: Vec<&str> = many.iter().map(String::as_str).collect();
    inputs.extend(["sample", "text"]);
    fails(
        graph(&good, &inputs, &["out"], &["w"]),
        &["more than 64 inputs"],
    );
    let mut two = model(usual(&good));
    two.message(7, usual(&good));
    let file = Temporary::new(&two);
    let error = Split::open(&file.0, "sample", "out")
        .unwrap_err()
        .to_string();
    assert!(error.contains("found 2"), "{error}");
}

#[test]
fn a_graph_made_to_take_forever_does_not() {
    let mut nodes = vec![
        "text w > MatMul > k0".to_owned(),
        "sample > Relu > x".to_owned(),
    ];
    nodes.extend(["x > Shape > s0", "s0 > Sqrt > scale"].map(str::to_owned));
    nodes.push("k0 scale > Mul > m0".to_owned());
    for i in 0..2000 {
        nodes.push(format!("m{i} m{i} > Mul > m{}", i + 1));
    }
    nodes.push("x m2000 > MatMul > out".to_owned());
    let nodes: Vec<&str> = nodes.iter().map(String::as_str).collect();
    assert!(split(&nodes).boundary()[0].broadcasts);
}

#[test]
fn a_file_that_shrinks_is_an_error() {
    let file = Temporary::new(&model(usual(&[
        "text w > MatMul > key",
        "sample key > MatMul > out",
    ])));
    let split = Split::open(&file.0, "sample", "out").unwrap().unwrap();
    std::fs::write(&file.0, "").unwrap();
    let error = split.slow().unwrap_err().to_string();
    assert!(error.contains("has changed"), "{error}");
}
