"""Writes a model folder of a real architecture with random weights, in f16: `python -m export.random_graphs KIND FOLDER`, in tools/.

The graphs are to the byte those that `export_model.py --dtype f16` makes of random_model's folder of the same KIND and seed, except XL's
full autoencoder, which that keeps in f32. But nothing compares them with torch, which saves most of the memory: the comparison holds a
network in f32 and runs it twice, an export needs it once, in f16. For tests of what reads graphs, such as the building of engines.
"""

import argparse
import gc
import json
import pathlib
import sys

import diffusers
import torch

from . import convert, graphs, random_model, to_onnx
from .options import Options


def specs(part, network, xl):
    """The graphs of a network, of any size."""
    if part == "unet":
        return [graphs.unet(network, xl, None, None)]
    if part == "vae":
        return graphs.vae(network, None)
    return [graphs.text_encoder(part, network, xl, 0)]


def write(kind, folder, small=False, seed=0):
    """Writes the model folder, one network in memory at a time."""
    folder = pathlib.Path(folder)
    configs = random_model.configurations(kind, small)
    index = configs.pop("index")
    xl = random_model.KINDS[kind][0] == "sdxl"
    generator = torch.Generator().manual_seed(seed)
    for part in random_model.PARTS:
        if part not in configs:
            continue
        network = random_model.draw(part, configs, index, torch.float16, generator).requires_grad_(False)
        config = convert.text_config(network, torch.float16) if part.startswith("text") else convert.plain_config(network, configs[part])
        for spec in specs(part, network, xl):
            to_onnx.export(spec, torch.float16, Options.opset, folder / spec.component)
            (folder / spec.component / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
            # It holds the network, and the next one shall not be beside it.
            del spec
        del network
        gc.collect()
    picture = index.pop("vae")
    random_model.write_rest(kind, folder, configs, index | {"vae_encoder": picture, "vae_decoder": picture})
    return folder


def main(argv=None):
    p = argparse.ArgumentParser(prog="python -m export.random_graphs", description=__doc__.split("\n\n")[0])
    p.add_argument("kind", choices=random_model.KINDS)
    p.add_argument("folder", type=pathlib.Path)
    p.add_argument("--tiny", action="store_true", help="networks of two levels and about a million weights, for tests")
    p.add_argument("--seed", type=int, default=0)
    args = p.parse_args(argv)
    diffusers.utils.logging.set_verbosity_error()
    write(args.kind, args.folder, args.tiny, args.seed)
    return 0


if __name__ == "__main__":
    sys.exit(main())
