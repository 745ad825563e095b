"""How many parameters and nodes the components of the models in this repository have, for tests/program.rs.

Counts with the onnx package what `streamdiffusion inspect` reads with its own reader: values of float weights, and nodes of
the outermost graph.

    python tools/reference/parameters.py     # needs onnx
"""

import math
from pathlib import Path

import onnx

ROOT = Path(__file__).resolve().parents[2]
FLOATS = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE)

for folder in ("models/demo", "tests/data/parity/model", "tests/data/models/sdxl"):
    for path in sorted((ROOT / folder).glob("*/model.onnx")):
        graph = onnx.load(path).graph
        values = [math.prod(t.dims) for t in graph.initializer if t.data_type in FLOATS]
        print(f"{folder} {path.parent.name}: {sum(values)} parameters, {len(graph.initializer)} tensors, {len(graph.node)} nodes")
