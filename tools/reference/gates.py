#!/usr/bin/env python3
"""Gated linear units as exporters write them, and what ONNX Runtime's operator for them does, in operators of ONNX.

  gates.py        writes tests/data/gates

ONNX Runtime has BiasSplitGelu for GPUs only. Here it is a function of the domain test.channels, which is as long a name as
com.microsoft, so that a test can put one in the place of the other in a graph and run it on a processor. It is written from
ONNX Runtime's description of the operator (ContribOperators.md) and GEGLU's definition (arXiv 2002.05202), and compared with
numpy before.

The small graphs in FUSED are such units; those in LEFT look like it, and are something else or more.

Needs numpy and onnx.
"""

import json
import math
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

DATA = Path(__file__).resolve().parents[2] / "tests/data/gates"
DOMAIN = "test.channels"
ROWS, PLACES, CHANNELS, WIDTH = 2, 3, 4, 1280


def function():
    node = helper.make_node
    return helper.make_function(
        DOMAIN, "BiasSplitGelu", ["x", "bias"], ["y"],
        [
            node("Add", ["x", "bias"], ["sum"]),
            node("Split", ["sum"], ["left", "right"], axis=-1, num_outputs=2),
            node("Constant", [], ["root"], value_float=math.sqrt(2)),
            node("Constant", [], ["one"], value_float=1.0),
            node("Constant", [], ["half"], value_float=0.5),
            node("Cast", ["right"], ["wide"], to=TensorProto.FLOAT),
            node("Div", ["wide", "root"], ["scaled"]),
            node("Erf", ["scaled"], ["error"]),
            node("Add", ["error", "one"], ["above_zero"]),
            node("Mul", ["wide", "above_zero"], ["twice"]),
            node("Mul", ["twice", "half"], ["gelu"]),
            node("Cast", ["left"], ["wide_left"], to=TensorProto.FLOAT),
            node("Mul", ["wide_left", "gelu"], ["product"]),
            node("CastLike", ["product", "x"], ["y"]),
        ],
        [helper.make_opsetid("", 18)],
    )


class Graph:
    """A graph from `x` [rows, places, 4] to `y` that is being put together."""

    def __init__(self, half=False):
        self.kind = np.float16 if half else np.float32
        self.nodes, self.weights = [], []
        self.random = np.random.default_rng(5)

    def constant(self, values, kind=None):
        name = f"c{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.asarray(values, kind or self.kind), name))
        return name

    def add(self, op, *inputs, out=None, outputs=None, **attributes):
        names = outputs or [out or f"t{len(self.nodes)}"]
        self.nodes.append(helper.make_node(op, list(inputs), names, **attributes))
        return names[0] if outputs is None else names

    def sum(self, width=WIDTH, bias=None):
        weights = self.constant(self.random.uniform(-1, 1, (CHANNELS, 2 * width)))
        product = self.add("MatMul", "x", weights)
        return self.add("Add", product, bias or self.constant(self.random.uniform(-1, 1, 2 * width)))

    def split(self, of):
        return self.add("Split", of, outputs=["left", "right"], axis=2, num_outputs=2)

    def slices(self, of, width=WIDTH):
        at = [self.constant([n], np.int64) for n in (0, width, 2 * width)]
        axis, step = self.constant([-1], np.int64), self.constant([1], np.int64)
        return [self.add("Slice", of, at[i], at[i + 1], axis, step) for i in (0, 1)]

    def error(self, x, root=math.sqrt(2), one=1.0):
        return self.add("Add", self.add("Erf", self.add("Div", x, self.constant(root))), self.constant(one))

    def gelu(self, x, half=0.5, **options):
        """As torch.export decomposes it."""
        return self.add("Mul", x, self.add("Mul", self.constant(half), self.error(x, **options)))

    def model(self):
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(self.kind))
        value = helper.make_tensor_value_info
        graph = helper.make_graph(
            self.nodes, "graph", [value("x", kind, ["rows", "places", CHANNELS])], [value("y", kind, ["a", "b", "c"])], self.weights,
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


def graphs():
    fused, left = {}, {}

    def make(to, name, build, **options):
        to[name] = Graph(**options)
        build(to[name])

    def exported(g, width=WIDTH, bias=None, **options):
        a, b = g.split(g.sum(width, bias))
        g.add("Mul", a, g.gelu(b, **options), out="y")

    def traced(g):
        # As TorchScript's exporter writes it, the halves cut out.
        a, b = g.slices(g.sum())
        twice = g.add("Mul", b, g.error(b))
        g.add("Mul", a, g.add("Mul", twice, g.constant([0.5])), out="y")

    def in_another_order(g):
        a, b = g.split(g.sum())
        scaled = g.add("Mul", g.constant(math.sqrt(0.5)), b)
        error = g.add("Add", g.constant(1), g.add("Erf", scaled))
        g.add("Mul", g.add("Mul", g.add("Mul", g.constant(0.25), a), error), g.add("Mul", b, g.constant(2)), out="y")

    make(fused, "exported", exported)
    make(fused, "half", exported, half=True)
    make(fused, "traced", traced)
    make(fused, "in_another_order", in_another_order)
    make(fused, "wider", lambda g: exported(g, 2560))

    def other_half(g):
        a, b = g.split(g.sum())
        g.add("Mul", b, g.gelu(a), out="y")

    def overlapping(g):
        whole = g.sum()
        at = [g.constant([n], np.int64) for n in (0, WIDTH, WIDTH - 1, 2 * WIDTH - 1)]
        axis = g.constant([2], np.int64)
        a, b = (g.add("Slice", whole, at[i], at[i + 1], axis) for i in (0, 2))
        g.add("Mul", a, g.gelu(b), out="y")

    def read_besides(g):
        whole = g.sum()
        a, b = g.split(whole)
        product = g.add("Mul", a, g.gelu(b))
        g.add("Add", product, g.add("ReduceMax", whole, g.constant([2], np.int64)), out="y")

    def times_a_third(g):
        a, b = g.split(g.sum())
        g.add("Mul", g.add("Mul", a, g.gelu(b)), b, out="y")

    make(left, "of_another_width", lambda g: exported(g, 640))
    make(left, "another_root", lambda g: exported(g, root=2.0))
    make(left, "another_factor", lambda g: exported(g, half=1.0))
    make(left, "another_offset", lambda g: exported(g, one=2.0))
    make(left, "other_half", other_half)
    make(left, "overlapping", overlapping)
    make(left, "read_besides", read_besides)
    make(left, "times_a_third", times_a_third)
    make(left, "computed_bias", lambda g: exported(g, bias=g.add("Mul", g.constant(np.linspace(-1, 1, 2 * WIDTH)), g.add("ReduceMax", "x", keepdims=0))))
    return fused, left


def check(made):
    """Compares the function with numpy."""
    random = np.random.default_rng(1)
    x, bias = random.normal(size=(2, 3, 8)).astype(np.float32), random.normal(size=8).astype(np.float32)
    value = helper.make_tensor_value_info
    node = helper.make_node("BiasSplitGelu", ["x", "bias"], ["y"], domain=DOMAIN)
    graph = helper.make_graph([node], "check", [value(n, TensorProto.FLOAT, v.shape) for n, v in (("x", x), ("bias", bias))],
                              [value("y", TensorProto.FLOAT, None)])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18), helper.make_opsetid(DOMAIN, 1)], functions=[made])
    found, = ReferenceEvaluator(model).run(None, {"x": x, "bias": bias})
    whole = x.astype(np.float64) + bias
    right = whole[..., 4:]
    assert np.allclose(found, whole[..., :4] * right * (1 + np.vectorize(math.erf)(right / math.sqrt(2))) / 2, atol=1e-5)


def main():
    DATA.mkdir(parents=True, exist_ok=True)
    made = function()
    check(made)
    (DATA / "functions.onnx").write_bytes(onnx.ModelProto(functions=[made]).SerializeToString(deterministic=True))
    fused, left = graphs()
    for name, graph in {**fused, **left}.items():
        onnx.save(graph.model(), DATA / f"{name}.onnx")
    (DATA / "graphs.json").write_text(json.dumps({"fused": [*fused], "left": [*left]}, indent=1) + "\n")


if __name__ == "__main__":
    main()
