#!/usr/bin/env python3
"""Graphs to split, and an independent look at the halves.

  split.py make           writes the graphs of tests/data/split (torch and diffusers; random weights)
  split.py check FOLDER   checks halves that `SPLIT_DIR=FOLDER cargo test --test split` has written

The check is what the ONNX package and ONNX Runtime make of the halves by themselves: each is a valid model, they have
no node that both have and that computes a value from an input's values, and one after the other they give what the
whole graph gives.

Needs numpy, onnx and onnxruntime, and for `make` also torch and diffusers.
"""

import sys
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

DATA = Path(__file__).resolve().parents[2] / "tests/data/split"
INPUTS = ["sample", "timestep", "encoder_hidden_states", "text_embeds", "time_ids"]


def unet(**changes):
    """A U-Net of a few thousand weights."""
    import torch
    from diffusers import UNet2DConditionModel

    torch.manual_seed(0)
    settings = dict(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        layers_per_block=1,
        block_out_channels=(8,),
        norm_num_groups=4,
        down_block_types=("CrossAttnDownBlock2D",),
        mid_block_type=None,
        up_block_types=("UpBlock2D",),
        cross_attention_dim=12,
        attention_head_dim=2,
    )
    return UNet2DConditionModel(**{**settings, **changes}).eval()


def wrapped(model):
    """`model` with tensors in and a tensor out."""
    import torch

    class Wrapped(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, sample, timestep, text, text_embeds=None, time_ids=None):
            added = {"text_embeds": text_embeds, "time_ids": time_ids}
            added = None if text_embeds is None else added
            return self.model(sample, timestep, text, added_cond_kwargs=added, return_dict=False)[0]

    return Wrapped()


def example(timestep, added=False):
    import torch

    rows = 2
    tensors = [torch.randn(rows, 4, 8, 8), torch.tensor(timestep), torch.randn(rows, 6, 12)]
    if added:
        tensors += [torch.randn(rows, 10), torch.tensor([[64.0, 64, 0, 0, 64, 64]] * rows)]
    return tuple(tensors)


def shorten(model):
    """Takes the exporter's notes out of `model` and gives tensors short names: they are most of a small file."""
    graph = model.graph
    kept = {port.name for port in [*graph.input, *graph.output]}
    names = {}

    def short(name):
        return name if not name or name in kept else names.setdefault(name, f"t{len(names)}")

    for node in graph.node:
        node.name = ""
        node.input[:] = [short(name) for name in node.input]
        node.output[:] = [short(name) for name in node.output]
    for part in [*graph.initializer, *graph.value_info]:
        part.name = short(part.name)
    for part in [*graph.node, *graph.initializer, *graph.value_info, *graph.input, *graph.output]:
        del part.metadata_props[:]
        part.doc_string = ""
    del model.metadata_props[:]
    del graph.metadata_props[:]
    return model


def save(model, path, **how):
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, path, **how)
    print(path.relative_to(DATA), path.stat().st_size, "bytes,", len(model.graph.node), "nodes")


def export_dynamo(model):
    """The graph by torch.export: a timestep for each row."""
    import torch

    vary = torch.export.Dim.DYNAMIC
    program = torch.onnx.export(
        wrapped(model),
        example([5.0, 9.0]),
        dynamo=True,
        external_data=False,
        verbose=False,
        input_names=INPUTS[:3],
        output_names=["out_sample"],
        dynamic_shapes=({0: vary, 2: vary, 3: vary}, {0: vary}, {0: vary}),
    )
    return shorten(program.model_proto)


def export_script(model, added=False):
    """The graph by TorchScript with the axes that Optimum names: one timestep for all rows."""
    import io

    import torch

    names = INPUTS if added else INPUTS[:3]
    file = io.BytesIO()
    torch.onnx.export(
        wrapped(model),
        example(5.0, added),
        file,
        dynamo=False,
        opset_version=17,
        input_names=names,
        output_names=["out_sample"],
        dynamic_axes={
            name: {0: "batch", **({2: "height", 3: "width"} if name == "sample" else {})}
            for name in names
            if name != "timestep"
        },
    )
    return shorten(onnx.load_from_string(file.getvalue()))


def old(model):
    """`model` as files were before format version 4: every weight is an input too."""
    model = onnx.ModelProto.FromString(model.SerializeToString())
    model.ir_version = 3
    # Weights first, so that their number counts.
    inputs = [helper.make_tensor_value_info(w.name, w.data_type, w.dims) for w in model.graph.initializer]
    inputs += list(model.graph.input)
    del model.graph.input[:]
    model.graph.input.extend(inputs)
    return model


def unusual():
    """A graph with what exporters seldom write: subgraphs that take tensors from around them, a function, a sparse
    weight, an optional input left out, several operator sets, and a constant in a node."""
    rng = np.random.default_rng(3)

    def weight(name, *shape):
        return numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), name)

    f32, node = TensorProto.FLOAT, helper.make_node
    function = helper.make_function(
        "local",
        "Project",
        ["x", "w"],
        ["y"],
        [node("MatMul", ["x", "w"], ["p"]), node("Tanh", ["p"], ["y"])],
        [helper.make_opsetid("", 17)],
    )
    values = helper.make_tensor("sparse", f32, [3], [0.5, -1.0, 2.0])
    sparse = helper.make_sparse_tensor(values, helper.make_tensor("", TensorProto.INT64, [3], [1, 7, 10]), [3, 4])
    # Then: keys and the queries from around it. Else: keys only, with a subgraph of its own that takes them too.
    out = [helper.make_tensor_value_info("branch", f32, None)]
    inner = helper.make_graph(
        [node("Mul", ["keys", "twice"], ["inner_out"])], "inner", [], [helper.make_tensor_value_info("inner_out", f32, None)]
    )
    then = helper.make_graph([node("MatMul", ["query", "keys_t"], ["branch"])], "then", [], out)
    other = helper.make_graph(
        [
            node("If", ["yes"], ["nested"], then_branch=inner, else_branch=inner),
            node("ReduceMean", ["nested"], ["mean"], axes=[1, 2], keepdims=1),
            node("Add", ["query", "mean"], ["branch"]),
        ],
        "else",
        [],
        out,
        [weight("unused", 2)],
    )
    nodes = [
        node("Constant", [], ["shape"], value=numpy_helper.from_array(np.array([0, 4, -1], np.int64))),
        node("Constant", [], ["twice"], value=numpy_helper.from_array(np.array(2, np.float32))),
        node("Reshape", ["sample", "shape"], ["rows"]),
        node("Transpose", ["rows"], ["columns"], perm=[0, 2, 1]),
        node("MatMul", ["columns", "query_weight"], ["query"]),
        node("MatMul", ["encoder_hidden_states", "sparse"], ["narrow"]),
        node("Project", ["narrow", "key_weight"], ["keys"], domain="local"),
        node("Transpose", ["keys"], ["keys_t"], perm=[0, 2, 1]),
        node("Shape", ["keys"], ["keys_shape"]),
        node("ReduceMax", ["timestep"], ["time"], keepdims=0),
        node("Less", ["time", "limit"], ["early"]),
        node("Not", ["never"], ["yes"]),
        node("If", ["early"], ["chosen"], then_branch=then, else_branch=other),
        node("Clip", ["chosen", "", "twice"], ["clipped"]),
        node("ReduceMean", ["clipped"], ["level"], axes=[2], keepdims=1),
        node("FusedMatMul", ["columns", "mix"], ["mixed"], domain="com.microsoft", alpha=0.5),
        node("Add", ["mixed", "level"], ["sum"]),
        node("Gather", ["keys_shape", "row_dims"], ["row_shape"]),
        node("Cast", ["row_shape"], ["keys_size"], to=f32),
        node("ReduceProd", ["keys_size"], ["volume"], keepdims=0),
        node("Div", ["sum", "volume"], ["scaled"]),
        node("Transpose", ["scaled"], ["back"], perm=[0, 2, 1]),
        node("Shape", ["sample"], ["size"]),
        node("Reshape", ["back", "size"], ["out_sample"]),
        node("Neg", ["narrow"], ["nobody_reads_this"]),
    ]
    graph = helper.make_graph(
        nodes,
        "unusual",
        [
            helper.make_tensor_value_info("sample", f32, ["batch", 4, "height", "width"]),
            helper.make_tensor_value_info("timestep", f32, ["steps"]),
            helper.make_tensor_value_info("encoder_hidden_states", f32, ["batch", "length", 3]),
        ],
        [helper.make_tensor_value_info("out_sample", f32, ["batch", 4, "height", "width"])],
        [
            weight("query_weight", 4, 5),
            weight("key_weight", 4, 5),
            weight("mix", 4, 4),
            numpy_helper.from_array(np.array([1, 2]), "row_dims"),
            numpy_helper.from_array(np.array(500, np.float32), "limit"),
            numpy_helper.from_array(np.array(False), "never"),
        ],
        sparse_initializer=[sparse],
    )
    opsets = [helper.make_opsetid(d, v) for d, v in [("", 17), ("local", 1), ("com.microsoft", 1)]]
    return helper.make_model(graph, opset_imports=opsets, functions=[function], ir_version=8)


def make():
    from diffusers.models.attention_processor import AttnProcessor

    dynamo = export_dynamo(unet())
    save(dynamo, DATA / "dynamo.onnx")
    # What is below this size stays in the file, as exporters have it.
    external = dict(save_as_external_data=True, location="model.onnx_data", size_threshold=256)
    # The writer would append to what is there.
    (DATA / "external/model.onnx_data").unlink(missing_ok=True)
    save(dynamo, DATA / "external/model.onnx", **external)
    script = export_script(unet())
    save(script, DATA / "script.onnx")
    save(old(script), DATA / "old.onnx")
    merged = unet()
    merged.set_attn_processor(AttnProcessor())
    save(export_script(merged), DATA / "merged.onnx")
    added = dict(addition_embed_type="text_time", addition_time_embed_dim=4, projection_class_embeddings_input_dim=34)
    save(export_script(unet(**added), True), DATA / "sdxl.onnx")
    save(unusual(), DATA / "unusual.onnx")


def sizes(port, rows):
    """A shape that `port` can take."""
    known = {"height": 8, "width": 8, "length": 6, "steps": 1}
    dims = [d.dim_value or known.get(d.dim_param) for d in port.type.tensor_type.shape.dim]
    return [rows if i == 0 and d is None else d or 8 for i, d in enumerate(dims)]


def check_one(folder):
    import onnxruntime

    whole, slow, fast = (folder / f"{part}.onnx" for part in ["whole", "slow", "fast"])
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    rng = np.random.default_rng(1)
    sessions = {p.stem: onnxruntime.InferenceSession(p, options, ["CPUExecutionProvider"]) for p in [whole, slow, fast]}
    models = {p.stem: onnx.load(p, load_external_data=False) for p in [whole, slow, fast]}

    # Types of the slow graph's outputs are left to the engine; the checker wants to be told.
    kinds = {"tensor(float)": TensorProto.FLOAT, "tensor(int64)": TensorProto.INT64, "tensor(bool)": TensorProto.BOOL}
    given = {o.name: o for o in sessions["slow"].get_outputs()}
    for port in models["slow"].graph.output:
        found = given[port.name]
        port.CopyFrom(helper.make_tensor_value_info(port.name, kinds[found.type], found.shape))
    for part in ["slow", "fast"]:
        checked = folder / f"{part}.checked.onnx"
        onnx.save(models[part], checked)
        # The checker knows no types of sparse weights, nor operators that are ONNX Runtime's own.
        model = models[part]
        if all(o.domain != "com.microsoft" for o in model.opset_import):
            onnx.checker.check_model(checked, full_check=not model.graph.sparse_initializer)

    nodes = {part: {n.SerializeToString() for n in model.graph.node} for part, model in models.items()}
    assert nodes["slow"] | nodes["fast"] <= nodes["whole"]
    boundary = set(given)
    for node in models["fast"].graph.node:
        assert not boundary & set(node.output), f"{node.name} makes a boundary tensor again"
    weights = {w.name for w in models["whole"].graph.initializer}
    for part in ["slow", "fast"]:
        used = {i for n in models[part].graph.node for i in n.input}
        used |= {i for n in models[part].graph.node for a in n.attribute for i in str(a).split('"')}
        idle = {w.name for w in models[part].graph.initializer} - used
        assert not idle, f"{part}: weights {idle} are not used"

    # All rows in one run of each: with the same rows in both, nothing needs stacking.
    rows = 2
    feed = {}
    for port in models["whole"].graph.input:
        if port.name not in weights:
            feed[port.name] = np.asarray(rng.standard_normal(sizes(port, rows)), np.float32)
            if port.name == "timestep":
                feed[port.name] = np.full(sizes(port, rows), 301, np.float32)
    expected = sessions["whole"].run(None, feed)[0]
    crossing = sessions["slow"].run(None, {i.name: feed[i.name] for i in sessions["slow"].get_inputs()})
    feed |= dict(zip([o.name for o in sessions["slow"].get_outputs()], crossing, strict=True))
    found = sessions["fast"].run(None, {i.name: feed[i.name] for i in sessions["fast"].get_inputs()})[0]
    error = np.abs(found - expected).max()
    assert error <= 1e-5 * max(np.abs(expected).max(), 1), error
    print(
        f"{folder.name}: {len(nodes['whole'])} nodes, slow {len(nodes['slow'])}, fast {len(nodes['fast'])}, "
        f"{len(crossing)} computed boundary tensors, largest difference {error:.1e}"
    )


def check(folder):
    folders = sorted(f.parent for f in Path(folder).glob("*/fast.onnx"))
    assert folders, f"{folder} has no halves"
    for one in folders:
        check_one(one)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["make"]:
            make()
        case ["check", folder]:
            check(folder)
        case _:
            sys.exit(__doc__)
