#!/usr/bin/env python3
"""Takes a model folder to another machine without its weights, where only speed and memory are to be measured.

    python tools/carry_model.py strip FOLDER OUT     # graphs, tokenizers and configurations; needs numpy and onnx
    python tools/carry_model.py fill OUT             # there: weights of the same spread, in place; needs numpy

`strip` writes all but the external data of the graphs; what stands in their place is a list of the tensors with the mean
and the standard deviation of each. `fill` draws normal numbers of them, so 2.4 GB of weights travel as some megabytes.
Integer and f32 tensors, which are tables rather than weights, travel as they are. The pictures of such a folder mean nothing.
"""

import argparse
import base64
import concurrent.futures
import json
import os
import pathlib
import re
import shutil
import sys
import time

import numpy as np

SUFFIX = ".weights.json"
"""After the name of the external data, what `fill` makes it of."""
CHUNK = 1 << 22
"""Numbers drawn from one generator: fixed, so that the weights are the same whatever the number of threads."""
FLOAT16 = 10
"""ONNX's number for f16 in TensorProto.DataType."""


class Failed(Exception):
    """Something is wrong with the folder; the message is for people."""


def external(graph_file):
    """[(name, ONNX type, data file, offset, bytes)] of the tensors that a graph keeps outside."""
    import onnx

    found = []
    for tensor in onnx.load(str(graph_file), load_external_data=False).graph.initializer:
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            where = {e.key: e.value for e in tensor.external_data}
            if not {"location", "length"} <= where.keys():
                raise Failed(f"{graph_file}: tensor {tensor.name} does not say where its data is")
            found.append((tensor.name, tensor.data_type, graph_file.parent / where["location"], int(where.get("offset", 0)), int(where["length"])))
    return found


def describe(data_file, tensors):
    """What `fill` needs to know of one file of external data."""
    entries = []
    with open(data_file, "rb") as f:
        for name, kind, _, offset, length in tensors:
            f.seek(offset)
            data = f.read(length)
            if len(data) != length:
                raise Failed(f"{data_file}: ends before the tensor {name}")
            entry = {"offset": offset, "length": length}
            if kind == FLOAT16:
                values = np.frombuffer(data, np.float16).astype(np.float32)
                entry |= {"mean": float(values.mean()), "deviation": float(values.std())}
            else:
                entry |= {"bytes": base64.b64encode(data).decode()}
            entries.append(entry)
    return {"bytes": data_file.stat().st_size, "tensors": entries}


def strip(folder, out):
    """Writes `folder` without its external data as `out`."""
    if not (folder / "model_index.json").is_file():
        raise Failed(f"{folder}: no model_index.json, so this is no model folder")
    if out.exists():
        raise Failed(f"{out}: is there already")
    files = {}
    for graph_file in sorted(folder.glob("*/*.onnx")):
        for tensor in external(graph_file):
            files.setdefault(tensor[2], []).append(tensor)
    shutil.copytree(folder, out, ignore=lambda d, names: [n for n in names if pathlib.Path(d, n) in files])
    for data_file, tensors in files.items():
        print(f"{data_file.relative_to(folder)}: {data_file.stat().st_size / 1e6:.0f} MB in {len(tensors)} tensors", flush=True)
        note = out / data_file.relative_to(folder)
        note.with_name(note.name + SUFFIX).write_text(json.dumps(describe(data_file, tensors)) + "\n", encoding="utf-8")
    manifest = out / "streamdiffusion.toml"
    if manifest.is_file():
        # The manifest's hashes of what is left out would be wrong afterwards.
        gone = {str(f.relative_to(folder).as_posix()) for f in files}
        lines = manifest.read_text(encoding="utf-8").splitlines(keepends=True)
        manifest.write_text("".join(line for line in lines if (m := re.match(r'"([^"]+)" = "[0-9a-f]{64}"$', line.strip())) is None or m[1] not in gone), encoding="utf-8")


def draw(handle, entry, start, seed):
    """Writes one chunk of a tensor, from number `start` on."""
    count = min(CHUNK, entry["length"] // 2 - start)
    values = np.random.Generator(np.random.SFC64([seed, entry["offset"], start])).standard_normal(count, np.float32)
    values *= entry["deviation"]
    values += entry["mean"]
    data, at = memoryview(values.astype(np.float16)).cast("B"), entry["offset"] + 2 * start
    while data:
        written = os.pwrite(handle, data, at)
        data, at = data[written:], at + written


def fill(folder, seed):
    """Makes the external data that `strip` left out."""
    notes = sorted(folder.glob(f"*/*{SUFFIX}"))
    if not notes:
        raise Failed(f"{folder}: no */*{SUFFIX}: not made by `strip`, or filled already")
    began, total = time.perf_counter(), 0
    for note in notes:
        try:
            plan = json.loads(note.read_text(encoding="utf-8"))
            data_file, size = note.with_name(note.name.removesuffix(SUFFIX)), plan["bytes"]
            if any(t["offset"] < 0 or t["length"] < 0 or t["offset"] + t["length"] > size for t in plan["tensors"]):
                raise Failed(f"{note}: a tensor lies outside of the file")
            if shutil.disk_usage(note.parent).free < size:
                raise Failed(f"{note.parent}: {size / 1e9:.1f} GB are needed, and {shutil.disk_usage(note.parent).free / 1e9:.1f} GB are free")
            partial = data_file.with_name(data_file.name + ".partial")
            with open(partial, "wb") as f, concurrent.futures.ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
                f.truncate(size)
                jobs = []
                for t in plan["tensors"]:
                    if "bytes" in t:
                        os.pwrite(f.fileno(), base64.b64decode(t["bytes"]), t["offset"])
                    else:
                        jobs += [pool.submit(draw, f.fileno(), t, start, seed) for start in range(0, t["length"] // 2, CHUNK)]
                for job in jobs:
                    job.result()
            partial.replace(data_file)
            note.unlink()
        except (KeyError, TypeError, ValueError) as e:
            raise Failed(f"{note}: not what `strip` writes: {e}") from None
        total += size
    print(f"{folder}: {total / 1e9:.2f} GB in {time.perf_counter() - began:.1f} s")


def main(argv=None):
    """-> exit status: 0, or 1 for an error."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = p.add_subparsers(dest="command", required=True)
    s = commands.add_parser("strip", help="write a model folder without its weights")
    s.add_argument("folder", type=pathlib.Path)
    s.add_argument("out", type=pathlib.Path)
    f = commands.add_parser("fill", help="draw weights into such a folder")
    f.add_argument("folder", type=pathlib.Path)
    f.add_argument("--seed", type=int, default=0, help="of the weights (default: 0)")
    args = p.parse_args(argv)
    try:
        strip(args.folder, args.out) if args.command == "strip" else fill(args.folder, args.seed)
    except (Failed, OSError) as e:
        print(f"error: {e}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
