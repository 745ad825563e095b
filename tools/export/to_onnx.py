"""A network to an ONNX file."""

import contextlib
import inspect
import io
import logging
import warnings

import onnx_ir
import torch

from . import graphs
from .errors import ExportError

EXTERNAL_FROM = 200 << 20
"""Weights of more bytes than this go to a file of their own: protobuf ends at 2 GiB, and readers are slow long before."""
DATA = "model.onnx_data"
RANGES = {"batch": (1, 63), "sequence": (2, None)}
"""What torch may assume of sides; without it the export is tried twice. diffusers copies batches of 64 or more before it enlarges
them, which changes no value: the graph takes those too."""


def draw(inputs, sizes, dtype, seed):
    """Random values for `inputs`, axes as long as `sizes` says."""
    generator = torch.Generator().manual_seed(seed)
    values = []
    for i in inputs:
        shape = tuple(sizes[s.name] if isinstance(s, graphs.Axis) else s for s in i.shape)
        value = i.draw(shape, generator)
        values.append(value if i.integer else value.to(dtype))
    return values


def dynamic_shapes(inputs):
    """torch.export's dimensions: axes of one name are one dimension, a multiple of k is k times another."""
    dims = {}

    def side(s):
        if not isinstance(s, graphs.Axis):
            return None
        if s.name not in dims:
            low, high = RANGES.get(s.name, (1, None))
            dims[s.name] = torch.export.Dim(s.name if s.multiple == 1 else s.name + "_units", min=low, max=high)
        base = dims[s.name]
        return base if s.multiple == 1 else s.multiple * base

    return tuple({n: side(s) for n, s in enumerate(i.shape) if isinstance(s, graphs.Axis)} for i in inputs)


def export(spec, dtype, opset, folder):
    """Writes `spec` as `folder`/model.onnx. The module's weights are of `dtype` already."""
    example = draw(spec.inputs, spec.sizes[0], dtype, seed=1)
    shapes = dynamic_shapes(spec.inputs)
    if spec.module.forward.__code__.co_flags & inspect.CO_VARARGS:
        shapes = (shapes,)  # *tensors is one argument to torch.export
    noise = io.StringIO()
    try:
        with torch.no_grad(), warnings.catch_warnings(), contextlib.redirect_stdout(noise), quiet_logs():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                spec.module, tuple(example), dynamo=True, opset_version=opset, dynamic_shapes=shapes,
                input_names=[i.name for i in spec.inputs], output_names=list(spec.outputs), optimize=True, verbose=False,
            )
    except (OSError, MemoryError):
        raise
    except Exception as e:
        raise ExportError(f"{spec.component}: torch could not export it: {type(e).__name__}: {str(e)[:2000]}") from e
    model = program.model
    name_sides(model, spec)
    forget_origins(model)
    size = sum(v.const_value.nbytes for v in model.graph.initializers.values() if v.const_value is not None)
    folder.mkdir(parents=True, exist_ok=True)
    onnx_ir.save(model, folder / "model.onnx", external_data=DATA if size > EXTERNAL_FROM else None)


def name_sides(model, spec):
    """Readable names for the sides that vary, in place of torch's expressions such as 8*height_units."""
    for value, sides in [*zip(model.graph.inputs, (i.shape for i in spec.inputs)), *zip(model.graph.outputs, spec.outputs.values())]:
        value.shape = onnx_ir.Shape([s.name if isinstance(s, graphs.Axis) else s for s in sides])


def forget_origins(model):
    """Removes what the exporter notes of the Python source: paths of the machine, and megabytes."""
    for node in onnx_ir.traversal.RecursiveGraphIterator(model.graph):
        node.metadata_props.clear()
        node.doc_string = None
    for values in (model.graph.inputs, model.graph.outputs, model.graph.initializers.values()):
        for value in values:
            value.metadata_props.clear()
            value.doc_string = None
    model.metadata_props.clear()
    model.graph.metadata_props.clear()
    model.doc_string = None


@contextlib.contextmanager
def quiet_logs():
    """torch's and onnxscript's warnings about what they optimise are for their authors."""
    loggers = [logging.getLogger(n) for n in ("torch", "torch.onnx", "torch.export", "onnxscript", "onnx_ir")]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, before):
            logger.setLevel(level)
