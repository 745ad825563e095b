#!/usr/bin/env python3
"""Small graphs of one attention each, as exporters may write it, and what numpy makes of it.

  attention.py        writes tests/data/attention

Each graph projects `hidden` [rows, 6, 12] to queries and `text` [rows, 5, 8] to keys and values, and gives `out`. Those
in FUSED are scaled dot-product attention (arXiv 1706.03762, 3.2.1) of separate heads; those in LEFT look like it, and
are something else or more. The numbers are worked out in f64 without looking at the graph.

The graphs called heads-of-… have no weights: queries, keys and values are their inputs, with as many channels a head as
models have, so that on a GPU they are run by the kernels that those are run by.

Needs numpy and onnx.
"""

import json
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

DATA = Path(__file__).resolve().parents[2] / "tests/data/attention"
ROWS, PLACES, LENGTH, WIDTH, TEXT = 2, 6, 5, 12, 8
HEADS = 3
INNER = WIDTH // HEADS
BY_HEAD = [0, 2, 1, 3]


class Graph:
    """A graph that is being put together; nodes and constants are named by number."""

    def __init__(self, half=False, double=False, opset=17, rows="rows", text_rows=None):
        self.nodes, self.weights, self.outputs = [], [], ["out"]
        self.kind = np.float16 if half else np.float64 if double else np.float32
        self.opset, self.rows, self.text_rows = opset, rows, text_rows or rows

    def constant(self, values, kind=None):
        name = f"c{len(self.weights)}"
        values = np.asarray(values, kind or self.kind)
        self.weights.append(numpy_helper.from_array(values, name))
        return name

    def sizes(self, *values):
        return self.constant(values, np.int64)

    def add(self, op, *inputs, out=None, **attributes):
        name = out or f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(inputs), [name], **attributes))
        return name

    def size(self, tensor, axis):
        """A dimension, as TorchScript's exporter asks for it."""
        shape = self.add("Shape", tensor)
        return self.add("Gather", shape, self.constant(axis, np.int64), axis=0)

    def unsqueezed(self, tensor):
        return self.add("Unsqueeze", tensor, self.sizes(0))

    def project(self, weights):
        q, k, v = (self.constant(w) for w in weights)
        return (
            self.add("MatMul", "hidden", q),
            self.add("MatMul", "text", k),
            self.add("MatMul", "text", v),
        )

    def heads(self, tensor, shape=None, order=BY_HEAD):
        shape = shape or self.sizes(0, -1, HEADS, INNER)
        return self.add("Transpose", self.add("Reshape", tensor, shape), perm=order)

    def scores(self, q, k, by=None):
        """Products of queries and keys, times `by`."""
        found = self.add("MatMul", self.heads(q), self.heads(k, order=[0, 2, 3, 1]))
        by = INNER**-0.5 if by is None else by
        return self.add("Mul", found, self.constant(by))

    def places(self, context, order=BY_HEAD, width=WIDTH, out="out"):
        context = self.add("Transpose", context, perm=order)
        return self.add("Reshape", context, self.sizes(0, -1, width), out=out)

    def attend(self, scores, v, **softmax):
        probabilities = self.add("Softmax", scores, **(softmax or {"axis": -1}))
        return self.add("MatMul", probabilities, self.heads(v))

    def model(self):
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(self.kind))
        value = helper.make_tensor_value_info
        inputs = [
            value("hidden", kind, [self.rows, PLACES, WIDTH]),
            value("text", kind, [self.text_rows, LENGTH, TEXT]),
        ]
        ranks = {"out": 3, "map": 4}
        outputs = [value(name, kind, [None] * ranks[name]) for name in self.outputs]
        graph = helper.make_graph(self.nodes, "attention", inputs, outputs, self.weights)
        opsets = [helper.make_opsetid("", self.opset)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def softmax(scores, axis=-1):
    scores = np.exp(scores - scores.max(axis=axis, keepdims=True))
    return scores / scores.sum(axis=axis, keepdims=True)


class Numbers:
    """The same in numpy."""

    def __init__(self, hidden, text, weights):
        q, k, v = weights
        self.q, self.k, self.v = hidden @ q, text @ k, text @ v

    @staticmethod
    def heads(x, count=HEADS):
        return x.reshape(*x.shape[:2], count, -1).transpose(0, 2, 1, 3)

    @staticmethod
    def places(x):
        return x.transpose(0, 2, 1, 3).reshape(x.shape[0], x.shape[2], -1)

    def scores(self, scale=INNER**-0.5, heads=HEADS):
        q, k = self.heads(self.q, heads), self.heads(self.k, heads)
        return q @ k.transpose(0, 1, 3, 2) * scale

    def attention(self, scale=INNER**-0.5, heads=HEADS):
        return self.places(softmax(self.scores(scale, heads)) @ self.heads(self.v, heads))


# Attention, and so to be fused.


def divided(g, q, k, v):
    scores = g.add("MatMul", g.heads(q), g.heads(k, order=[0, 2, 3, 1]))
    scores = g.add("Div", scores, g.constant(INNER**0.5))
    g.places(g.attend(scores, v))


def queries_scaled(g, q, k, v):
    q = g.add("Mul", g.heads(q), g.constant([INNER**-0.5]))
    scores = g.add("MatMul", q, g.heads(k, order=[0, 2, 3, 1]))
    g.places(g.attend(scores, v))


def other_scale(g, q, k, v):
    g.places(g.attend(g.scores(q, k, 0.3), v))


def no_scale(g, q, k, v):
    scores = g.add("MatMul", g.heads(q), g.heads(k, order=[0, 2, 3, 1]))
    g.places(g.attend(scores, v))


def both_scaled(g, q, k, v):
    """As torch.export writes it: keys in three dimensions are turned round, and sizes looked up on the way."""
    q = g.add("Mul", g.heads(q), g.constant(INNER**-0.25))
    k = g.heads(k)
    shape = g.add("Shape", k)
    part = lambda start, end: g.add("Slice", shape, g.sizes(start), g.sizes(end))
    length, inner = part(-2, -1), part(-1, 2**63 - 1)
    flat = g.add("Reshape", k, g.add("Concat", g.sizes(-1), length, inner, axis=0))
    turned = g.add("Transpose", flat, perm=[0, 2, 1])
    back = g.add("Concat", part(-(2**63), -2), inner, length, axis=0)
    k = g.add("Mul", g.add("Reshape", turned, back), g.constant(INNER**-0.25))
    g.places(g.attend(g.add("MatMul", q, k), v))


def scale_from_shape(g, q, k, v):
    """As TorchScript's exporter writes it."""
    q, k = g.heads(q), g.heads(k, order=[0, 2, 3, 1])

    def factor():
        inner = g.add("Slice", g.add("Shape", q), g.sizes(-1), g.sizes(2**63 - 1))
        root = g.add("Sqrt", g.add("Cast", inner, to=TensorProto.FLOAT))
        inverse = g.add("Div", g.constant(1.0), root)
        return g.add("Sqrt", g.add("Cast", inverse, to=TensorProto.FLOAT))

    q, k = g.add("Mul", q, factor()), g.add("Mul", k, factor())
    g.places(g.attend(g.add("MatMul", q, k), v))


def sizes_from_shapes(g, q, k, v):
    """Rows, heads and channels of a head are worked out."""

    def heads(x, order=BY_HEAD):
        width = g.size(x, 2)
        count = g.add("Div", width, g.constant(INNER, np.int64))
        inner = g.add("Cast", g.add("Div", width, count), to=TensorProto.INT64)
        rows, count, inner = (g.unsqueezed(n) for n in (g.size(x, 0), count, inner))
        shape = g.add("Concat", rows, g.sizes(-1), count, inner, axis=0)
        return g.heads(x, shape, order)

    scores = g.add("MatMul", heads(q), heads(k, [0, 2, 3, 1]))
    scores = g.add("Mul", scores, g.constant(INNER**-0.5))
    g.places(g.add("MatMul", g.add("Softmax", scores, axis=-1), heads(v)))


def merged(g, q, k, v):
    """Heads are rows of their own, and a product of 0 is added, as torch.baddbmm is written."""
    rows = g.size(q, 0)
    by_head = g.unsqueezed(g.add("Mul", rows, g.constant(HEADS, np.int64)))

    def heads(x):
        shape = g.add("Concat", by_head, g.unsqueezed(g.size(x, 1)), g.sizes(INNER), axis=0)
        return g.add("Reshape", g.heads(x), shape)

    q, k, v = heads(q), heads(k), heads(v)
    sizes = [g.unsqueezed(n) for n in (g.size(q, 0), g.size(q, 1), g.size(k, 1))]
    nothing = g.add("ConstantOfShape", g.add("Concat", *sizes, axis=0))
    nothing = g.add("Mul", nothing, g.constant(0.0))
    scores = g.add("MatMul", q, g.add("Transpose", k, perm=[0, 2, 1]))
    scores = g.add("Add", g.add("Mul", scores, g.constant(INNER**-0.5)), nothing)
    context = g.add("MatMul", g.add("Softmax", scores, axis=-1), v)
    count = g.add("Div", g.size(context, 0), g.constant(HEADS, np.int64))
    shape = [g.unsqueezed(count), g.sizes(HEADS), g.unsqueezed(g.size(context, 1)), g.sizes(INNER)]
    g.places(g.add("Reshape", context, g.add("Concat", *shape, axis=0)))


def one_head(g, q, k, v):
    one = lambda x, order=BY_HEAD: g.heads(x, g.sizes(0, -1, 1, WIDTH), order)
    scores = g.add("MatMul", one(q), one(k, [0, 2, 3, 1]))
    scores = g.add("Mul", scores, g.constant(WIDTH**-0.5))
    g.places(g.add("MatMul", g.add("Softmax", scores, axis=-1), one(v)))


def three_dimensions(g, q, k, v):
    """A single head that is no axis at all."""
    scores = g.add("MatMul", q, g.add("Transpose", k, perm=[0, 2, 1]))
    scores = g.add("Mul", scores, g.constant(WIDTH**-0.5))
    g.add("MatMul", g.add("Softmax", scores, axis=-1), v, out="out")


def softmax_in_f32(g, q, k, v):
    scores = g.add("Cast", g.scores(q, k), to=TensorProto.FLOAT)
    probabilities = g.add("Softmax", scores, axis=-1)
    probabilities = g.add("Cast", probabilities, to=TensorProto.FLOAT16)
    g.places(g.add("MatMul", probabilities, g.heads(v)))


def rows_left_over(g, q, k, v):
    """The places are told, and the rows follow."""
    q = g.heads(q, g.sizes(-1, PLACES, HEADS, INNER))
    k = g.heads(k, g.sizes(-1, LENGTH, HEADS, INNER), [0, 2, 3, 1])
    scores = g.add("Mul", g.add("MatMul", q, k), g.constant(INNER**-0.5))
    g.places(g.attend(scores, v))


def plain(g, q, k, v):
    g.places(g.attend(g.scores(q, k), v))


def default_axis(g, q, k, v):
    probabilities = g.add("Softmax", g.scores(q, k))
    g.places(g.add("MatMul", probabilities, g.heads(v)))


def rows_mixed(g, q, k, v):
    """Places attend to those of other rows, so all are of one row."""
    q, k, v = (g.add("Reshape", x, g.sizes(1, -1, WIDTH)) for x in (q, k, v))
    context = g.places(g.attend(g.scores(q, k), v), out="context")
    g.add("Reshape", context, g.sizes(-1, PLACES, WIDTH), out="out")


# Something else.


def masked(g, q, k, v):
    mask = g.constant(MASK)
    g.places(g.attend(g.add("Add", g.scores(q, k), mask), v))


def chosen(g, q, k, v):
    """A mask that chooses instead of adding."""
    seen = g.constant(MASK == 0, bool)
    scores = g.add("Where", seen, g.scores(q, k), g.constant(-1e4))
    g.places(g.attend(scores, v))


def other_axis(g, q, k, v):
    g.places(g.attend(g.scores(q, k), v, axis=2))


def order_kept(g, q, k, v):
    """Heads and places are not turned back."""
    context = g.attend(g.scores(q, k), v)
    g.add("Reshape", context, g.sizes(0, PLACES, WIDTH), out="out")


def heads_inside(g, q, k, v):
    """Channels of all heads side by side, heads innermost."""
    shape = g.sizes(0, -1, INNER, HEADS)
    q, v = (g.heads(x, shape, [0, 3, 1, 2]) for x in (q, v))
    k = g.heads(k, shape, [0, 3, 2, 1])
    scores = g.add("Mul", g.add("MatMul", q, k), g.constant(INNER**-0.5))
    context = g.add("MatMul", g.add("Softmax", scores, axis=-1), v)
    context = g.add("Transpose", context, perm=[0, 2, 3, 1])
    g.add("Reshape", context, g.sizes(0, -1, WIDTH), out="out")


def rows_of_one(g, q, k, v):
    """All rows share the text's only row."""
    plain(g, q, k, v)


def probabilities_read(g, q, k, v):
    probabilities = g.add("Softmax", g.scores(q, k), axis=-1, out="map")
    g.places(g.add("MatMul", probabilities, g.heads(v)))
    g.outputs.append("map")


def scores_read(g, q, k, v):
    scores = g.scores(q, k)
    out = g.places(g.attend(scores, v), out="places")
    most = g.add("ReduceMax", g.add("Reshape", scores, g.sizes(0, PLACES, -1)), axes=[2])
    g.add("Add", out, most, out="out")


def context_read(g, q, k, v):
    context = g.attend(g.scores(q, k), v)
    out = g.places(context, out="places")
    most = g.add("ReduceMax", context, axes=[1, 3], keepdims=0)
    g.add("Add", out, g.add("Unsqueeze", most, g.sizes(2)), out="out")


def rows_crossed(g, q, k, v):
    """Queries have an axis of heads and keys have none, so rows meet rows."""
    q, v = (g.heads(x, g.sizes(0, -1, 1, WIDTH)) for x in (q, v))
    scores = g.add("MatMul", q, g.add("Transpose", k, perm=[0, 2, 1]))
    scores = g.add("Mul", scores, g.constant(WIDTH**-0.5))
    g.places(g.add("MatMul", g.add("Softmax", scores, axis=-1), v))


def scale_below_0(g, q, k, v):
    """The operator's kernels take scores to grow with the products."""
    g.places(g.attend(g.scores(q, k, -0.5), v))


def values_scaled(g, q, k, v):
    v = g.add("Mul", g.heads(v), g.constant(2.0))
    probabilities = g.add("Softmax", g.scores(q, k), axis=-1)
    g.places(g.add("MatMul", probabilities, v))


def scale_of_each_head(g, q, k, v):
    g.places(g.attend(g.scores(q, k, FACTORS), v))


def probabilities_scaled(g, q, k, v):
    probabilities = g.add("Softmax", g.scores(q, k), axis=-1)
    probabilities = g.add("Mul", probabilities, g.constant(0.5))
    g.places(g.add("MatMul", probabilities, g.heads(v)))


def values_of_all_heads(g, q, k, v):
    """Every head takes all channels of the values."""
    probabilities = g.add("Softmax", g.scores(q, k), axis=-1)
    v = g.heads(v, g.sizes(0, -1, 1, WIDTH))
    g.places(g.add("MatMul", probabilities, v), width=HEADS * WIDTH)


FUSED = {
    "divided": (divided, {}),
    "queries-scaled": (queries_scaled, {}),
    "other-scale": (other_scale, {}),
    "no-scale": (no_scale, {}),
    "both-scaled": (both_scaled, {}),
    "scale-from-shape": (scale_from_shape, {}),
    "sizes-from-shapes": (sizes_from_shapes, {}),
    "merged": (merged, {}),
    "one-head": (one_head, {}),
    "three-dimensions": (three_dimensions, {}),
    "half": (plain, {"half": True}),
    "softmax-in-f32": (softmax_in_f32, {"half": True}),
    "rows-left-over": (rows_left_over, {}),
    "rows-mixed": (rows_mixed, {}),
    "rows-fixed": (plain, {"rows": ROWS}),
    "default-axis": (default_axis, {}),
    "old": (plain, {"opset": 12}),
}
LEFT = {
    "masked": (masked, {}),
    "chosen": (chosen, {}),
    "other-axis": (other_axis, {}),
    "old-default-axis": (default_axis, {"opset": 12}),
    "order-kept": (order_kept, {}),
    "heads-inside": (heads_inside, {}),
    "rows-of-one": (rows_of_one, {"text_rows": 1}),
    "rows-crossed": (rows_crossed, {}),
    "scale-below-0": (scale_below_0, {}),
    "probabilities-read": (probabilities_read, {}),
    "scores-read": (scores_read, {}),
    "context-read": (context_read, {}),
    "values-scaled": (values_scaled, {}),
    "scale-of-each-head": (scale_of_each_head, {}),
    "probabilities-scaled": (probabilities_scaled, {}),
    "values-of-all-heads": (values_of_all_heads, {}),
    "double": (plain, {"double": True}),
}
MASK = np.where(np.arange(PLACES * LENGTH).reshape(PLACES, LENGTH) % 3 == 1, -1e4, 0.0)
FACTORS = np.array([0.2, 0.5, 0.9]).reshape(HEADS, 1, 1)


def of_inputs(inner, half):
    """An attention of HEADS heads between inputs."""
    width, graph = HEADS * inner, Graph(half=half)
    shape = graph.sizes(0, -1, HEADS, inner)
    q, v = (graph.heads(x, shape) for x in ("queries", "values"))
    k = graph.heads("keys", shape, [0, 2, 3, 1])
    scores = graph.add("Mul", graph.add("MatMul", q, k), graph.constant(inner**-0.5))
    context = graph.add("MatMul", graph.add("Softmax", scores, axis=-1), v)
    graph.places(context, width=width)
    model = graph.model()
    kind = model.graph.output[0].type.tensor_type.elem_type
    del model.graph.input[:]
    for name, places in (("queries", "places"), ("keys", "length"), ("values", "length")):
        value = helper.make_tensor_value_info(name, kind, ["rows", places, width])
        model.graph.input.append(value)
    return model


def expected(name, hidden, text, weights):
    """What graph `name` is to give."""
    n = Numbers(hidden, text, weights)
    v = n.heads(n.v)
    match name:
        case "other-scale":
            return n.attention(0.3)
        case "no-scale":
            return n.attention(1.0)
        case "one-head" | "three-dimensions":
            return n.attention(WIDTH**-0.5, 1)
        case "masked" | "chosen":
            return n.places(softmax(n.scores() + MASK) @ v)
        case "other-axis":
            return n.places(softmax(n.scores(), axis=2) @ v)
        case "old-default-axis":
            scores = n.scores()
            flat = softmax(scores.reshape(len(scores), -1))
            return n.places(flat.reshape(scores.shape) @ v)
        case "order-kept":
            return (softmax(n.scores()) @ v).reshape(ROWS, PLACES, WIDTH)
        case "heads-inside":
            inside = lambda x: x.reshape(*x.shape[:2], INNER, HEADS).transpose(0, 3, 1, 2)
            scores = inside(n.q) @ inside(n.k).transpose(0, 1, 3, 2) * INNER**-0.5
            context = softmax(scores) @ inside(n.v)
            return context.transpose(0, 2, 3, 1).reshape(ROWS, PLACES, WIDTH)
        case "rows-mixed":
            n.q, n.k, n.v = (x.reshape(1, -1, WIDTH) for x in (n.q, n.k, n.v))
            return n.attention().reshape(ROWS, PLACES, WIDTH)
        case "rows-crossed":
            scores = n.q[:, None] @ n.k.transpose(0, 2, 1) * WIDTH**-0.5
            context = softmax(scores) @ n.v[:, None]
            return context.transpose(0, 2, 1, 3).reshape(ROWS, -1, WIDTH)
        case "scale-below-0":
            return n.attention(-0.5)
        case "scores-read":
            # As the graph reshapes them: three heads' places in six groups.
            most = n.scores().reshape(ROWS, PLACES, -1).max(axis=2, keepdims=True)
            return n.attention() + most
        case "context-read":
            most = (softmax(n.scores()) @ v).max(axis=(1, 3))
            return n.attention() + most[..., None]
        case "values-scaled":
            return 2 * n.attention()
        case "scale-of-each-head":
            return n.places(softmax(n.scores(FACTORS)) @ v)
        case "probabilities-scaled":
            return n.attention() / 2
        case "values-of-all-heads":
            return n.places(softmax(n.scores()) @ n.v[:, None])
        case _:
            return n.attention()


def main():
    DATA.mkdir(exist_ok=True)
    random = np.random.default_rng(7)
    # Values that f16 holds exactly.
    draw = lambda *shape: random.normal(size=shape).astype(np.float16).astype(np.float64)
    hidden, text = draw(ROWS, PLACES, WIDTH), draw(ROWS, LENGTH, TEXT)
    weights = [draw(WIDTH, WIDTH) / 2, draw(TEXT, WIDTH) / 2, draw(TEXT, WIDTH) / 2]
    numbers = {"hidden": hidden.ravel(), "text": text.ravel()}
    for name, (build, options) in (FUSED | LEFT).items():
        graph = Graph(**options)
        build(graph, *graph.project(weights))
        model = graph.model()
        onnx.checker.check_model(model, full_check=True)
        onnx.save(model, DATA / f"{name}.onnx")
        given = text[: options.get("text_rows", ROWS)]
        numbers[name] = expected(name, hidden, given, weights).ravel()
    for inner in (40, 64, 80, 160):
        for half in (False, True):
            model = of_inputs(inner, half)
            onnx.checker.check_model(model, full_check=True)
            onnx.save(model, DATA / f"heads-of-{inner}-{'half' if half else 'single'}.onnx")
    cases = {"fused": list(FUSED), "left": list(LEFT), "numbers": {k: v.tolist() for k, v in numbers.items()}}
    (DATA / "cases.json").write_text(json.dumps(cases) + "\n")


if __name__ == "__main__":
    main()
