#!/usr/bin/env python3
"""What ONNX Runtime's operators for pictures with their channels last do, in operators of ONNX.

  channels_last.py        writes tests/data/channels_last

ONNX Runtime has NhwcConv and GroupNorm for GPUs only. Here they are functions of the domain test.channels, which is as long
a name as com.microsoft, so that a test can put one in the place of the other in a graph and run it on a processor. They are
written from ONNX Runtime's description of its operators (ContribOperators.md) and the definition of group normalisation
(arXiv 1803.08494). Before they are written, they are run in float64 by onnx's reference evaluator and compared with numpy.

Beside them are small graphs, each with an operator or what exporters write for it. Those in FASTER are the same with their
channels last; those in LEFT look like it and are not, or cannot be told.

Needs numpy and onnx.
"""

import json
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

DATA = Path(__file__).resolve().parents[2] / "tests/data/channels_last"
DOMAIN = "test.channels"
ROWS, CHANNELS, HEIGHT, WIDTH = 2, 8, 5, 6
GROUPS = 2


def functions():
    """The two operators."""
    node = helper.make_node

    def like(op, inputs, outputs, **attributes):
        """A node that takes attributes from the function's."""
        made = node(op, inputs, outputs)
        for name, (of, kind) in attributes.items():
            made.attribute.append(onnx.AttributeProto(name=name, ref_attr_name=of, type=kind))
        return made

    kinds = onnx.AttributeProto
    lists = {name: (name, kinds.INTS) for name in ("kernel_shape", "pads", "strides", "dilations")}
    conv = helper.make_function(
        DOMAIN, "NhwcConv", ["x", "w", "b"], ["y"],
        [
            node("Transpose", ["x"], ["picture"], perm=[0, 3, 1, 2]),
            node("Transpose", ["w"], ["weights"], perm=[0, 3, 1, 2]),
            like("Conv", ["picture", "weights", "b"], ["result"], **lists),
            node("Transpose", ["result"], ["y"], perm=[0, 2, 3, 1]),
        ],
        [helper.make_opsetid("", 18)], list(lists),
    )
    norm = helper.make_function(
        DOMAIN, "GroupNorm", ["x", "gamma", "beta"], ["y"],
        [
            node("Transpose", ["x"], ["picture"], perm=[0, 3, 1, 2]),
            node("Shape", ["picture"], ["shape"]),
            node("Shape", ["picture"], ["rows"], start=0, end=1),
            like("Constant", [], ["count"], value_int=("groups", kinds.INT)),
            node("Constant", [], ["flat"], value_ints=[1]),
            node("Reshape", ["count", "flat"], ["groups_1d"]),
            node("Constant", [], ["rest"], value_ints=[-1]),
            node("Concat", ["rows", "groups_1d", "rest"], ["grouped"], axis=0),
            node("Reshape", ["picture", "grouped"], ["members"]),
            node("Cast", ["members"], ["wide"], to=TensorProto.FLOAT),
            # ReduceMean takes its axes in one way before version 18, and in another one from then on.
            node("GlobalAveragePool", ["wide"], ["mean"]),
            node("Sub", ["wide", "mean"], ["centred"]),
            node("Mul", ["centred", "centred"], ["squares"]),
            node("GlobalAveragePool", ["squares"], ["variance"]),
            like("Constant", [], ["small"], value_float=("epsilon", kinds.FLOAT)),
            node("Add", ["variance", "small"], ["above_zero"]),
            node("Sqrt", ["above_zero"], ["deviation"]),
            node("Div", ["centred", "deviation"], ["normal"]),
            node("Reshape", ["normal", "shape"], ["normal_picture"]),
            node("Transpose", ["normal_picture"], ["last"], perm=[0, 2, 3, 1]),
            node("Mul", ["last", "gamma"], ["scaled"]),
            node("Add", ["scaled", "beta"], ["moved"]),
            node("Sigmoid", ["moved"], ["share"]),
            node("Mul", ["moved", "share"], ["silu"]),
            like("Constant", [], ["wanted"], value_int=("activation", kinds.INT)),
            node("Cast", ["wanted"], ["is_wanted"], to=TensorProto.BOOL),
            node("Where", ["is_wanted", "silu", "moved"], ["result"]),
            node("CastLike", ["result", "x"], ["y"]),
        ],
        [helper.make_opsetid("", 18)], ["epsilon", "groups", "activation", "channels_last"],
    )
    return [conv, norm]


class Graph:
    """A graph from a picture `x` [rows, 8, height, width] to `y` that is being put together."""

    def __init__(self, half=False, opset=18):
        self.kind = np.float16 if half else np.float32
        self.opset, self.nodes, self.weights, self.outputs = opset, [], [], ["y"]
        self.random = np.random.default_rng(3)

    def constant(self, values, kind=None):
        name = f"c{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.asarray(values, kind or self.kind), name))
        return name

    def noise(self, *shape):
        return self.constant(self.random.uniform(-1, 1, shape))

    def add(self, op, *inputs, out=None, **attributes):
        name = out or f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(inputs), [name], **attributes))
        return name

    def conv(self, x, channels=CHANNELS, out=None, of=CHANNELS, bias=True, size=3, weights=None, **attributes):
        weights = weights or self.noise(channels, of // attributes.get("group", 1), size, size)
        inputs = [x, weights] + ([self.noise(channels)] if bias else [])
        attributes.setdefault("kernel_shape", [size, size])
        return self.add("Conv", *inputs, out=out, **{k: v for k, v in attributes.items() if v is not None})

    def norm(self, x, out=None, groups=GROUPS, channels=CHANNELS, ones=1.0, zeros=0.0, computed=True, scale=None, **attributes):
        """A group normalisation as torch's exporters write it."""
        grouped = self.add("Reshape", x, self.constant([0, groups, -1], np.int64))
        each = [self.constant(np.full(groups, v)) for v in (ones, zeros)]
        normal = self.add("InstanceNormalization", grouped, *each, **attributes)
        shape = self.add("Shape", x) if computed else self.constant([0, channels, HEIGHT, WIDTH], np.int64)
        picture = self.add("Reshape", normal, shape)
        scaled = self.add("Mul", picture, scale or self.noise(channels, 1, 1))
        return self.add("Add", scaled, self.noise(channels, 1, 1), out=out)

    def silu(self, x, out=None):
        return self.add("Mul", x, self.add("Sigmoid", x), out=out)

    def model(self):
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(self.kind))
        value = helper.make_tensor_value_info
        graph = helper.make_graph(
            self.nodes, "graph", [value("x", kind, ["rows", CHANNELS, "height", "width"])],
            [value(name, kind, [f"{name}{axis}" for axis in range(4)]) for name in self.outputs], self.weights,
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=8)


def faster():
    """Graphs, each with the number of convolutions and of other operators that are faster with their channels last."""
    def one(make, *counts, **options):
        graph = Graph(**options)
        make(graph)
        return graph, counts

    def unet(g):
        x = g.conv("x", pads=[1, 1, 1, 1])
        h = g.conv(g.silu(g.norm(x, epsilon=1e-6)), pads=[1, 1, 1, 1])
        h = g.conv(g.silu(g.norm(h)), pads=[1, 1, 1, 1], bias=False)
        g.conv(g.norm(g.add("Add", x, h)), out="y", size=1)

    def up(g):
        x = g.conv("x", 4, pads=[1, 1, 1, 1], strides=[2, 2])
        x = g.add("Resize", x, "", g.constant([1, 1, 2, 3], np.float32), mode="nearest",
                  coordinate_transformation_mode="asymmetric", nearest_mode="floor")
        g.conv(x, 8, "y", of=4, pads=[1, 0, 1, 0], dilations=[2, 1])

    def named(g):
        g.norm(g.conv("x", pads=[1, 1, 1, 1]), "y", computed=True, epsilon=0.5)

    def whole(g):
        x = g.conv("x", pads=[1, 1, 1, 1])
        g.silu(g.add("GroupNormalization", x, g.noise(CHANNELS), g.noise(CHANNELS), num_groups=4, epsilon=1e-3), "y")

    def read_twice(g):
        # The normalised picture is needed besides its SiLU, which then stays what it is.
        n = g.norm(g.conv("x", pads=[1, 1, 1, 1]))
        g.add("Add", g.silu(n), n, out="y")

    return {
        "unet": one(unet, 4, 3), "half": one(unet, 4, 3, half=True), "up": one(up, 2, 1), "named": one(named, 1, 1),
        "whole": one(whole, 1, 1, opset=21), "read_twice": one(read_twice, 1, 1),
    }


def left():
    """Graphs with one convolution that is faster with its channels last, and one operator that is not."""
    def conv(**options):
        return lambda g, x: g.conv(x, out="y", **options)

    def norm(**options):
        return lambda g, x: g.norm(x, "y", **options)

    def computed_weights(g, x):
        w = g.add("Mul", g.noise(8, 8, 1, 1), g.add("ReduceMean", "x"))
        g.conv(x, out="y", size=1, weights=w)

    def read_inside(g, x):
        grouped = g.add("Reshape", x, g.constant([0, 2, -1], np.int64))
        normal = g.add("InstanceNormalization", grouped, g.constant([1, 1]), g.constant([0, 0]))
        picture = g.add("Reshape", normal, g.add("Shape", x))
        scaled = g.add("Mul", picture, g.noise(8, 1, 1))
        g.add("Add", g.add("Add", scaled, g.noise(8, 1, 1)), picture, out="y")

    def of_pixels(g, x):
        grouped = g.add("Reshape", x, g.constant([0, 2, -1], np.int64))
        normal = g.add("InstanceNormalization", grouped, g.constant([1, 1]), g.constant([0, 0]))
        picture = g.add("Reshape", normal, g.add("Shape", x))
        g.add("Add", g.add("Mul", picture, g.noise(1)), g.noise(8, 1, 1), out="y")

    def other_shape(g, x):
        grouped = g.add("Reshape", x, g.constant([0, 2, -1], np.int64))
        normal = g.add("InstanceNormalization", grouped, g.constant([1, 1]), g.constant([0, 0]))
        picture = g.add("Reshape", normal, g.constant([-1, 8, 1, 1], np.int64))
        g.add("Add", g.add("Mul", picture, g.noise(8, 1, 1)), g.noise(8, 1, 1), out="y")

    def resize(mode="nearest", scales=(1, 1, 2, 2), **options):
        return lambda g, x: g.add("Resize", x, "", g.constant(scales, np.float32), mode=mode, out="y", **options)

    def resize_to(g, x):
        g.add("Resize", x, "", "", g.constant([2, 8, 9, 9], np.int64), mode="nearest", out="y")

    made = {
        "in_groups": conv(group=2, pads=[1, 1, 1, 1]), "padded_by_itself": conv(auto_pad="SAME_UPPER"),
        "of_unsaid_size": conv(kernel_shape=None), "computed_weights": computed_weights,
        "scaled_in_groups": norm(ones=2.0), "moved_in_groups": norm(zeros=0.5), "odd_groups": norm(groups=8),
        "read_inside": read_inside, "of_pixels": of_pixels, "other_shape": other_shape,
        "three_in_a_group": lambda g, x: g.norm(g.conv(x, 6, pads=[1, 1, 1, 1]), "y", channels=6),
        "smooth": resize("linear"), "of_channels": resize(scales=(1, 2, 2, 2)), "to_a_size": resize_to,
    }
    graphs = {}
    for name, make in made.items():
        graphs[name] = Graph()
        make(graphs[name], graphs[name].conv("x", pads=[1, 1, 1, 1]))
    return graphs


def check(made):
    """Compares the functions with numpy."""
    random = np.random.default_rng(1)
    x = random.normal(size=(ROWS, HEIGHT, WIDTH, CHANNELS)).astype(np.float32)
    scale, offset = (random.normal(size=CHANNELS).astype(np.float32) for _ in range(2))
    w, b = random.normal(size=(4, 3, 3, CHANNELS)).astype(np.float32), random.normal(size=4).astype(np.float32)
    value = helper.make_tensor_value_info
    floats = {"x": x, "scale": scale, "offset": offset, "w": w, "b": b}
    graph = helper.make_graph(
        [
            helper.make_node("NhwcConv", ["x", "w", "b"], ["conv"], domain=DOMAIN, kernel_shape=[3, 3], pads=[1, 0, 1, 0],
                             strides=[2, 1], dilations=[1, 2]),
            *(helper.make_node("GroupNorm", ["x", "scale", "offset"], [f"norm{a}"], domain=DOMAIN, epsilon=1e-3, groups=GROUPS,
                               activation=a, channels_last=1) for a in (0, 1)),
        ],
        "check", [value(n, TensorProto.FLOAT, v.shape) for n, v in floats.items()],
        [value(n, TensorProto.FLOAT, None) for n in ("conv", "norm0", "norm1")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18), helper.make_opsetid(DOMAIN, 1)], functions=made)
    conv, *norms = ReferenceEvaluator(model).run(None, floats)
    padded = np.pad(x.astype(np.float64), ((0, 0), (1, 1), (0, 0), (0, 0)))
    for i in range(conv.shape[1]):
        for j in range(conv.shape[2]):
            patch = padded[:, 2 * i : 2 * i + 3, j : j + 5 : 2]
            wanted = np.einsum("nhwc,ohwc->no", patch, w.astype(np.float64)) + b
            assert np.allclose(conv[:, i, j], wanted, atol=1e-4)
    assert conv.shape == (ROWS, 3, 2, 4)
    members = x.astype(np.float64).reshape(ROWS, HEIGHT * WIDTH, GROUPS, -1)
    mean, variance = members.mean((1, 3), keepdims=True), members.var((1, 3), keepdims=True)
    plain = ((members - mean) / np.sqrt(variance + 1e-3)).reshape(x.shape) * scale + offset
    for found, wanted in zip(norms, (plain, plain / (1 + np.exp(-plain)))):
        assert np.allclose(found, wanted, atol=1e-5)


def main():
    DATA.mkdir(parents=True, exist_ok=True)
    made = functions()
    check(made)
    holder = onnx.ModelProto(functions=made)
    (DATA / "functions.onnx").write_bytes(holder.SerializeToString(deterministic=True))
    counts = {}
    for name, (graph, numbers) in faster().items():
        onnx.save(graph.model(), DATA / f"{name}.onnx")
        counts[name] = numbers
    for name, graph in left().items():
        onnx.save(graph.model(), DATA / f"{name}.onnx")
        counts[name] = (sum(node.op_type == "Conv" for node in graph.nodes[:-1]), 0)
    (DATA / "graphs.json").write_text(json.dumps(counts, indent=1) + "\n")


if __name__ == "__main__":
    main()
