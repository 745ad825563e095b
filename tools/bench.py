"""Frames per second of the element through gst-launch-1.0, beside the plain pipeline in Python.

The peer is what one would write without this plugin: the same ONNX graphs in onnxruntime's Python package with numpy,
one frame after the other, one U-Net call per step (tools/demo_model/pipeline.py). Both get the same number of frames of
the same size, in turns, and load times are left out: each figure is the difference between a long and a short run.

    python3 -m venv venv && venv/bin/pip install -r tools/requirements-bench.txt
    cargo build --release && scripts/get-onnxruntime
    venv/bin/python tools/bench.py
"""

import argparse
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import tempfile
import time

import numpy as np
from tqdm import tqdm

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools/demo_model"))
from pipeline import Pipeline  # noqa: E402


def element_seconds(args, frames, environment):
    """Wall-clock seconds of a whole gst-launch-1.0 run."""
    size = f"video/x-raw,format=RGB,width={args.size},height={args.size},framerate=30/1"
    line = f"videotestsrc pattern=smpte75 horizontal-speed=3 num-buffers={frames} ! {size} ! streamdiffusion model={args.model}"
    line += f" steps={args.steps} strength={args.strength} ! {size} ! fakesink sync=false"
    start = time.perf_counter()
    subprocess.run(["gst-launch-1.0", "-q", *line.split()], check=True, env=environment)
    return time.perf_counter() - start


def element_rate(args, environment):
    short, long = element_seconds(args, 5, environment), element_seconds(args, 5 + args.frames, environment)
    return args.frames / (long - short)


def peer_rate(args, pipeline, pictures):
    pipeline(pictures[0], "", args.steps, args.strength)
    start = time.perf_counter()
    for i in range(args.frames):
        pipeline(pictures[i % len(pictures)], "", args.steps, args.strength)
    return args.frames / (time.perf_counter() - start)


def processor():
    for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(ROOT / "models/demo"), help="model folder with a `sample` U-Net (default: the demo model)")
    parser.add_argument("--size", type=int, default=256, help="width and height (default: 256)")
    parser.add_argument("--steps", type=int, default=2, help="denoising steps (default: 2)")
    parser.add_argument("--strength", type=float, default=0.36, help="default: 0.36")
    parser.add_argument("--frames", type=int, default=100, help="frames per run (default: 100)")
    parser.add_argument("--rounds", type=int, default=5, help="runs of each, in turns (default: 5)")
    parser.add_argument("--plugin", default=str(ROOT / "target/release"), help="folder of the plugin (default: target/release)")
    args = parser.parse_args()
    if not list(pathlib.Path(args.plugin).glob("libgststreamdiffusion.*")):
        parser.error(f"{args.plugin} holds no plugin; build it with: cargo build --release")

    cores = len(os.sched_getaffinity(0))
    pipeline = Pipeline(args.model, threads=cores)
    rng = np.random.default_rng(1)
    pictures = rng.integers(0, 256, (8, args.size, args.size, 3), np.uint8)
    rates = {"element": [], "peer": []}
    with tempfile.TemporaryDirectory() as scratch:
        environment = {**os.environ, "GST_PLUGIN_PATH": args.plugin, "GST_REGISTRY": f"{scratch}/registry.bin"}
        for _ in tqdm(range(args.rounds), unit="round"):
            rates["element"].append(element_rate(args, environment))
            rates["peer"].append(peer_rate(args, pipeline, pictures))

    print(f"{processor()}, {cores} cores; {args.size}x{args.size}, {args.steps} steps, {args.rounds} rounds of {args.frames} frames")
    for name, what in (("element", "streamdiffusion in gst-launch-1.0"), ("peer", "plain pipeline in Python")):
        low, middle, high = min(rates[name]), statistics.median(rates[name]), max(rates[name])
        print(f"{what:36} {middle:6.1f} frames/s (median; {low:.1f} to {high:.1f})")
    ratios = [a / b for a, b in zip(rates["element"], rates["peer"])]
    print(f"{'ratio, round by round':36} {statistics.median(ratios):6.2f} (median; {min(ratios):.2f} to {max(ratios):.2f})")


if __name__ == "__main__":
    main()
