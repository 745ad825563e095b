#!/usr/bin/env python3
"""Does TensorRT-RTX run on this GPU? Engines are built on one machine, without a GPU, and tried on another.

    python tools/probe_tensorrt.py build FOLDER     # needs TensorRT-RTX's Python bindings and numpy; no GPU
    python tools/probe_tensorrt.py run FOLDER       # there: the same release of the bindings, numpy and torch

`build` makes a network of two convolutions in f16, once for any GPU and once for each compute capability that the
release names. `run` deserialises each engine, runs it on random numbers and compares with torch, and prints what came of
each, with TensorRT's own words. The bindings and the libraries are the packages tensorrt-rtx-cu13-bindings and
tensorrt-rtx-cu13-libs, or the bindings with the libraries on LD_LIBRARY_PATH.
"""

import argparse
import importlib
import pathlib
import sys

CAPABILITIES = ("SM75", "SM80", "SM86", "SM89", "SM90", "SM100", "SM120")
"""Names that a release may have in ComputeCapability; those it lacks are left out."""
TOLERANCE = 5e-3
"""Largest |y - reference| / |reference| of an f16 network of two layers; a wrong engine is near 1."""


class Failed(Exception):
    """The probe itself could not be made; the message is for people."""


def bindings():
    """TensorRT-RTX's Python module: the package, or the bindings alone."""
    for name in ("tensorrt_rtx", "tensorrt_rtx_bindings"):
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as e:
            if e.name != name:
                raise Failed(f"{name}: {e}") from None
        except ImportError as e:
            raise Failed(f"{name}: {e}; the libraries must be on LD_LIBRARY_PATH, or in the package tensorrt-rtx-cu13-libs") from None
    raise Failed("TensorRT-RTX's bindings are not installed: pip install tensorrt-rtx-cu13")


def logger(trt, level):
    """A logger that keeps what TensorRT says, for the report."""

    class Kept(trt.ILogger):
        def __init__(self):
            trt.ILogger.__init__(self)
            self.lines = []

        def log(self, severity, message):
            if int(severity) <= int(level):
                self.lines.append(f"{severity.name}: {message}")

    return Kept()


def build(folder):
    """Writes one engine for any GPU and one for each compute capability, and the weights."""
    import numpy as np

    trt = bindings()
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    first = (0.2 * rng.standard_normal((64, 4, 3, 3))).astype(np.float16)
    second = (0.05 * rng.standard_normal((4, 64, 3, 3))).astype(np.float16)
    np.savez(folder / "weights.npz", first=first, second=second)
    built = 0
    for name in ("any", *(n for n in CAPABILITIES if hasattr(trt.ComputeCapability, n))):
        log = logger(trt, trt.ILogger.ERROR)
        builder = trt.Builder(log)
        network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        x = network.add_input("x", trt.float16, (1, 4, 64, 64))
        hidden = network.add_convolution_nd(x, 64, (3, 3), first)
        hidden.padding_nd = (1, 1)
        hidden = network.add_activation(hidden.get_output(0), trt.ActivationType.RELU)
        last = network.add_convolution_nd(hidden.get_output(0), 4, (3, 3), second)
        last.padding_nd = (1, 1)
        last.get_output(0).name = "y"
        network.mark_output(last.get_output(0))
        config = builder.create_builder_config()
        if name != "any":
            config.num_compute_capabilities = 1
            config.set_compute_capability(getattr(trt.ComputeCapability, name), 0)
        engine = builder.build_serialized_network(network, config)
        if engine is None:
            print(f"{name}: not built: {'; '.join(log.lines) or 'no reason given'}")
            continue
        (folder / f"{name}.engine").write_bytes(engine)
        print(f"{name}: {engine.nbytes} bytes, TensorRT-RTX {trt.__version__}")
        built += 1
    return 0 if built else 1


def attempt(trt, torch, file, x, reference):
    """One engine -> (what came of it, whether it ran and was right)."""
    log = logger(trt, trt.ILogger.INFO)
    said = lambda: "".join(f"\n    {line}" for line in log.lines)  # noqa: E731
    try:
        runtime = trt.Runtime(log)
        engine = runtime.deserialize_cuda_engine(file.read_bytes())
        if engine is None:
            return "refused at deserialise" + said(), False
        context = engine.create_execution_context()
        if context is None:
            return "no execution context" + said(), False
        y = torch.full_like(reference, float("nan"))
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        context.set_tensor_address("x", x.data_ptr())
        context.set_tensor_address("y", y.data_ptr())
        queued = context.execute_async_v3(stream.cuda_stream)
        stream.synchronize()
        if not queued:
            return "not enqueued" + said(), False
        error = float((y.float() - reference.float()).norm() / reference.float().norm())
        return f"ran, relative error {error:.2e}" + ("" if error <= TOLERANCE else f", expected {TOLERANCE} at most" + said()), error <= TOLERANCE
    except Exception as e:
        return f"{type(e).__name__}: {e}" + said(), False


def run(folder):
    """Tries every engine in `folder`; 0 if one ran and was right."""
    import numpy as np
    import torch

    trt = bindings()
    if not torch.cuda.is_available():
        raise Failed("PyTorch sees no CUDA GPU")
    files = sorted(folder.glob("*.engine"))
    if not files or not (folder / "weights.npz").is_file():
        raise Failed(f"{folder}: no engines and weights.npz: not made by `build`")
    capability = ".".join(map(str, torch.cuda.get_device_capability(0)))
    print(f"TensorRT-RTX {trt.__version__} on {torch.cuda.get_device_name(0)}, compute capability {capability}")
    weights = np.load(folder / "weights.npz")
    first, second = (torch.from_numpy(weights[k]).cuda() for k in ("first", "second"))
    x = torch.randn(1, 4, 64, 64, device="cuda", dtype=torch.float16, generator=torch.Generator("cuda").manual_seed(0))
    convolve = torch.nn.functional.conv2d
    reference = convolve(convolve(x, first, padding=1).relu(), second, padding=1)
    ran = 0
    for file in files:
        text, right = attempt(trt, torch, file, x, reference)
        print(f"{file.stem}: {text}")
        ran += right
    return 0 if ran else 1


def main(argv=None):
    """-> exit status: 0 where an engine was built, or ran and was right; else 1."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("command", choices=("build", "run"))
    p.add_argument("folder", type=pathlib.Path)
    args = p.parse_args(argv)
    try:
        return {"build": build, "run": run}[args.command](args.folder)
    except Failed as e:
        print(f"error: {e}", file=sys.stderr)
    except ImportError as e:
        print(f"error: {e}: {args.command} needs numpy{' and torch' if args.command == 'run' else ''}", file=sys.stderr)
    except OSError as e:
        print(f"error: {e}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
