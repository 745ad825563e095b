"""An exported graph against torch: the same random inputs through both."""

import contextlib
import dataclasses

import numpy as np
import onnxruntime
import torch

from . import to_onnx
from .errors import ExportError

TOLERANCE = {torch.float32: 1e-3, torch.float16: 2e-2}
"""Largest error, as a share of the largest value of the output. In f32 exports differ by the order of sums, around 1e-5, and
a wrong graph by 1; in f16 each of some hundred layers rounds to 11 bits, and errors of 0.5 % come out."""


@dataclasses.dataclass
class Errors:
    """Largest differences over all checks: absolute, and as a share of the largest value of that output."""

    absolute: float = 0.0
    relative: float = 0.0


def inputs(spec, dtype):
    """The sets of inputs a graph is checked with: all of the axes' values but the first, which are for tracing."""
    return [to_onnx.draw(spec.inputs, sizes, dtype, seed=100 + n) for n, sizes in enumerate(spec.sizes[1:])]


LARGEST = 65504.0
"""The largest number of f16."""


@contextlib.contextmanager
def watch(network):
    """-> {layer: largest value it gave out} of those that go beyond f16, while the context lasts."""
    found, hooks = {}, []

    def hook(name):
        def look(_module, _inputs, output):
            for value in output if isinstance(output, (tuple, list)) else [output]:
                if isinstance(value, torch.Tensor) and value.is_floating_point() and value.numel():
                    # Without a copy of the tensor. Attention masks hold the lowest number there is, and are no layer's output.
                    low, high = torch.aminmax(value)
                    most = max(-float(low), float(high))
                    if not most <= LARGEST:
                        found[name] = max(found.get(name, 0.0), most)

        return look

    for name, module in network.named_modules():
        hooks.append(module.register_forward_hook(hook(name or type(module).__name__)))
    try:
        yield found
    finally:
        for h in hooks:
            h.remove()


def expected(spec, batches):
    """What the network makes of them in f32, as arrays; its weights must be f32 (but may be f16 values)."""
    with torch.no_grad():
        wide = [[t.float() if t.is_floating_point() else t for t in batch] for batch in batches]
        return [[t.numpy() for t in spec.reference(*batch)] for batch in wide]


def compare(spec, path, batches, wanted, dtype):
    """Runs the graph at `path` and compares; an ExportError where it is out of tolerance."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    found_inputs = [i.name for i in session.get_inputs()]
    if found_inputs != [i.name for i in spec.inputs]:
        raise ExportError(f"{path}: its inputs are {', '.join(found_inputs)}, expected {', '.join(i.name for i in spec.inputs)}")
    worst = Errors()
    for batch, want in zip(batches, wanted):
        got = session.run(list(spec.outputs), {i.name: t.numpy() for i, t in zip(spec.inputs, batch)})
        for name, g, w in zip(spec.outputs, got, want):
            where = f"{spec.component}: output {name} for inputs of {', '.join(str(list(t.shape)) for t in batch)}"
            if g.shape != w.shape:
                raise ExportError(f"{where} has the shape {list(g.shape)}, torch's has {list(w.shape)}")
            if not np.isfinite(w).all():
                raise ExportError(f"{where}: torch makes infinities or NaN of it in f32: the weights are broken")
            difference = float(np.abs(g.astype(np.float32) - w).max())
            share = difference / max(float(np.abs(w).max()), 1e-6)
            worst.absolute = max(worst.absolute, difference)
            worst.relative = max(worst.relative, share)
            if not share <= TOLERANCE[dtype]:
                raise ExportError(
                    f"{where} differs from torch's by {difference:.3g}, {share:.2%} of the largest value, expected {TOLERANCE[dtype]:.1%} at most"
                    + ("; a network that overflows in f16 needs --dtype f32" if dtype == torch.float16 else "")
                )
    return worst
