"""Tiny models of the architectures people use, and what the published method makes of pictures with them.

Three things, any of which may be left out:

    models   random pipelines made by diffusers from a seed, written as diffusers folders under --work
    export   those as ONNX model folders: by tools/export_model.py, and by Optimum where --optimum names a Python that
             has it (tested: optimum-onnx 0.1.0, optimum 2.1.0, diffusers 0.35.2, transformers 4.57.6, torch 2.15.0)
    frames   tests/data/models/cases.json and, for each case, the frames that should come out: by torch and diffusers
             in float32, frame by frame; every ONNX folder is then run through the same cases by ONNX Runtime

Needs what tools/requirements-export.txt names, and onnxruntime. The same files come out each time.

    python tools/reference/architectures.py                                   # all but Optimum
    python tools/reference/architectures.py --optimum venv/bin/python
    python tools/reference/architectures.py --check                           # compare the frames, write nothing
"""

import argparse
import json
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import diffusers
import numpy as np
import torch
import transformers

import frame_by_frame
import networks
import tiny_models

DATA = tiny_models.ROOT / "tests" / "data" / "models"
EXPORT = tiny_models.ROOT / "tools" / "export_model.py"
OPTIMUM = ("sd1", "sdxl", "lcm")
"""Optimum cannot export a tiny autoencoder, so sd2 is ours alone."""
BATCHES = {"sd1": 2}
"""Models of which there is also a U-Net that takes so many rows and no others. The other components are the same."""

LONG = (
    "a neon cat in the rain, seen from above by night, thick oil paint on a rough canvas, wet streets and yellow lamps, "
    "far hills under a pale moon, great detail"
)
DEFAULTS = {
    "width": 64,
    "height": 64,
    "prompt": "a neon cat",
    "negative-prompt": "ink",
    "t-index-list": [32, 45],
    "num-inference-steps": 50,
    "guidance-scale": 1.0,
    "cfg-type": "none",
    "delta": 1.0,
    "seed": 2,
    "add-noise": True,
    "mode": "img2img",
    "scheduler": "lcm",
    "eta": 0.3,
}


def case(model, name, frames=2, **properties):
    unknown = {k.replace("_", "-") for k in properties} - set(DEFAULTS)
    assert not unknown, unknown
    values = DEFAULTS | {k.replace("_", "-"): v for k, v in properties.items()}
    clip = f"clip-{values['width']}x{values['height']}"
    return {"name": f"{model}-{name}", "model": model, "input": clip, "frames": frames} | values


def cases():
    found = []
    add = lambda *args, **properties: found.append(case(*args, **properties))
    for model in tiny_models.NAMES:
        add(model, "one-step-none", t_index_list=[35])
        add(model, "two-step-self", frames=3, cfg_type="self", guidance_scale=1.4, delta=0.7, seed=42)
        add(model, "two-step-full", frames=3, cfg_type="full", guidance_scale=1.5)
        # As many frames as steps, and one: the stream batch is full, with a frame at each step.
        if model == "sd1":
            add(model, "four-step-none-wide", t_index_list=[12, 22, 32, 45], width=96, seed=7, frames=5)
        else:
            add(model, "four-step-none", t_index_list=[12, 22, 32, 45], seed=7, frames=4)
        add(model, "text-only-none", mode="txt2img", t_index_list=[0, 16, 32, 45])
        if model != "lcm":
            add(model, "text-only-full", mode="txt2img", t_index_list=[0, 25], cfg_type="full", guidance_scale=1.6)
        add(model, "tcd-three-step", scheduler="tcd", t_index_list=[20, 32, 45])
    add("sd1", "two-step-initialize", frames=3, cfg_type="initialize", guidance_scale=1.4, delta=0.8)
    add("sd1", "two-step-none-tall", width=48, height=80, prompt="blue waves")
    add("sd1", "three-step-none-quiet", t_index_list=[22, 32, 45], add_noise=False)
    add("sd1", "few-inference-steps", t_index_list=[1, 3], num_inference_steps=4)
    add("sd1", "long-prompt", prompt=LONG, cfg_type="full", guidance_scale=1.5)
    add("sd1", "tcd-text-only", mode="txt2img", scheduler="tcd", t_index_list=[16, 32, 45], eta=0.6)
    add("sd1", "tcd-two-step-full", scheduler="tcd", cfg_type="full", guidance_scale=1.5, eta=0.0)
    add("sd1", "tcd-two-step-self", scheduler="tcd", cfg_type="self", guidance_scale=1.3, delta=0.8)
    add("sd2", "two-step-initialize", frames=3, cfg_type="initialize", guidance_scale=1.3, delta=0.8)
    add("sd2", "two-step-none-exclaimed", prompt="a cat! wow")
    add("sdxl", "two-step-initialize-wide", cfg_type="initialize", guidance_scale=1.3, delta=0.8, width=96)
    add("sdxl", "long-prompt", prompt=LONG, cfg_type="full", guidance_scale=1.5)
    add("sdxl", "long-negative", negative_prompt=LONG, cfg_type="full", guidance_scale=1.5)
    add("sdxl", "two-step-none-exclaimed", prompt="a cat! wow")
    add("sdxl", "tcd-two-step-full", scheduler="tcd", cfg_type="full", guidance_scale=1.5)
    add("lcm", "three-chunks", prompt="thick oil paint on a rough canvas", cfg_type="full", guidance_scale=1.5)
    return found


def clip(name, frames):
    width, height = map(int, name.removeprefix("clip-").split("x"))
    return tiny_models.pictures(frames, height, width, seed=3)


def effects(name, model):
    """Asserts that each thing the U-Net is given shows in the result, by mean levels of 255."""
    base = case(name, "effects", width=64, height=64)
    pictures = clip("clip-64x64", 2)
    result = frame_by_frame.run(model, base, pictures)
    reference = result.astype(float)

    class Without:
        """The model with one of the text's parts exchanged for another prompt's, or turned round."""

        def __init__(self, key):
            self.key = key

        def __getattr__(self, attribute):
            return getattr(model, attribute)

        def texts(self, case):
            prompt, _ = model.texts(case)
            other, _ = model.texts(case | {"prompt": "blue waves"})
            value = other[self.key]
            if self.key == "time_ids":
                value = value * 2
            elif self.key == "timestep_cond":
                value = value.flip(1)
            return prompt | {self.key: value}, prompt

    change = lambda other: float(np.abs(other.astype(float) - reference).mean())
    found = {
        "picture": float(np.abs(reference[0] - reference[1]).mean()),
        "spread within a frame": float(reference.std(axis=(1, 2)).mean()),
        "share of pixels at the ends": float(((result == 0) | (result == 255)).mean()),
        "prompt": change(frame_by_frame.run(model, base | {"prompt": "blue waves"}, pictures)),
        "timestep": change(frame_by_frame.run(Later(model), base, pictures)),
        "seed": change(frame_by_frame.run(model, base | {"seed": 3}, pictures)),
    }
    prompt, _ = model.texts(base)
    for key in prompt:
        found[key] = change(frame_by_frame.run(Without(key), base, pictures))
    print(f"  {name}:", ", ".join(f"{k} {v:.2f}" for k, v in found.items()))
    assert found.pop("share of pixels at the ends") < 0.4, name
    assert min(found.values()) > 1, f"{name}: something hardly matters: {found}"


class Later:
    """A model that is told each timestep 300 too late."""

    def __init__(self, model):
        self.model = model

    def __getattr__(self, attribute):
        return getattr(self.model, attribute)

    def predict(self, x, t, text):
        return self.model.predict(x, t + 300, text)


def alternatives(c):
    """Cases that differ from `c` in one property that matters there."""
    if c["guidance-scale"] > 1:
        yield {"cfg-type": "none"}
        yield {"guidance-scale": c["guidance-scale"] + 0.2}
        if c["cfg-type"] != "full":
            yield {"delta": c["delta"] + 0.2}
        if c["cfg-type"] != "self":
            yield {"negative-prompt": "a red house"}
    if c["scheduler"] == "tcd":
        yield {"scheduler": "lcm"}
        yield {"eta": c["eta"] + 0.2}
    elif len(c["t-index-list"]) > 1:
        yield {"add-noise": not c["add-noise"]}
    yield {"prompt": c["prompt"] + " now"}
    yield {"seed": c["seed"] + 1}


def telling(model, c, pictures, out):
    """Asserts that the case would notice if one of its properties were not heeded."""
    for change in alternatives(c):
        other = frame_by_frame.run(model, c | change, pictures[:1])
        difference = int(np.abs(other.astype(int) - out[:1].astype(int)).max())
        assert difference >= 4, f"{c['name']} with {change} differs by {difference} levels only"


def export(work, python, only):
    """The ONNX folders, ours and Optimum's, of the diffusers folders in `work`."""
    for name in only:
        target = DATA / name
        shutil.rmtree(target, ignore_errors=True)
        # A relative source, so that no path of this machine gets into the folder.
        subprocess.run([sys.executable, EXPORT, name, target], cwd=work, check=True)
        if name in BATCHES:
            export_fixed(work, name, target, BATCHES[name])
    if python is None:
        return
    script = "from optimum.commands.optimum_cli import main; main()"
    for name in (n for n in OPTIMUM if n in only):
        target = DATA / f"optimum-{name}"
        shutil.rmtree(target, ignore_errors=True)
        arguments = ["export", "onnx", "--model", name, "--task", "text-to-image", target]
        subprocess.run([python, "-c", script, *arguments], cwd=work, check=True)


def export_fixed(work, name, dynamic, batch):
    """The U-Net of `name` for `batch` rows; all else is as in the ONNX folder `dynamic`, and is not kept."""
    whole = work.absolute() / f"{name}-batch-{batch}.onnx"
    shutil.rmtree(whole, ignore_errors=True)
    subprocess.run([sys.executable, EXPORT, name, whole, "--batch", str(batch)], cwd=work, check=True)
    for file in (f for f in whole.rglob("*") if f.is_file() and f.parent.name != "unet" and f.suffix != ".toml"):
        same = file.read_bytes() == (dynamic / file.relative_to(whole)).read_bytes()
        assert same, f"{file} differs from that of any number of rows"
    target = DATA / f"{name}-batch-{batch}"
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(whole / "unet", target / "unet")


def frames(pipes, check, folders):
    """Writes (or compares) the frames of all cases, and runs the ONNX folders through them."""
    chosen = [c for c in cases() if c["model"] in pipes]
    models = {name: networks.Torch(pipe) for name, pipe in pipes.items()}
    onnx = {
        name: [networks.Onnx(DATA / f) for f in (name, f"optimum-{name}") if f in folders and (DATA / f).is_dir()]
        for name in pipes
    }
    print("mean change of the result, in levels, when one thing changes:")
    for name, model in models.items():
        effects(name, model)
    longest = {}
    for c in chosen:
        longest[c["input"]] = max(longest.get(c["input"], 0), c["frames"])
    files = {f"{name}.in.npy": clip(name, n) for name, n in longest.items()}
    worst = 0
    for c in chosen:
        pictures = files[f"{c['input']}.in.npy"][: c["frames"]]
        out = files[f"{c['name']}.out.npy"] = frame_by_frame.run(models[c["model"]], c, pictures)
        telling(models[c["model"]], c, pictures, out)
        differences = []
        for folder in onnx[c["model"]]:
            found = frame_by_frame.run(folder, c, pictures)
            differences.append(np.abs(found.astype(int) - out.astype(int)))
        worst = max([worst, *(int(d.max()) for d in differences)])
        told = ", ".join(f"{d.max()} ({(d > 0).mean():.1e} of samples)" for d in differences)
        print(f"{c['name']}: mean {out.mean():.0f}, deviation {out.std():.0f}; ONNX folders differ by {told or '(none)'}", flush=True)
    assert worst <= 1, f"an ONNX folder differs by {worst} levels"
    if check:
        for file, values in files.items():
            difference = np.abs(np.load(DATA / file).astype(int) - values).max()
            assert difference <= 1, f"{file} differs by {difference}"
        print("the files hold the same frames")
    else:
        for old in DATA.glob("*.npy"):
            old.unlink()
        for file, values in files.items():
            np.save(DATA / file, values)
        (DATA / "cases.json").write_text(json.dumps(chosen, indent=1) + "\n")


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=["models", "export", "frames"], action="append", help="do this part; may be given again")
    parser.add_argument("--model", choices=tiny_models.NAMES, action="append", help="for a look: just this one (frames: needs --check)")
    parser.add_argument("--work", type=Path, default=Path("target/tiny-models"), help="where the diffusers folders are (default: %(default)s)")
    parser.add_argument("--optimum", type=Path, help="a Python that has Optimum, for its folders too")
    parser.add_argument("--check", action="store_true", help="compare with the frames that are there, write nothing: frames alone, if --only names no other part")
    arguments = parser.parse_args(argv)
    if arguments.check and set(arguments.only or ["frames"]) != {"frames"}:
        parser.error("--check writes nothing: give --only frames with it, or nothing")
    if arguments.model and not arguments.check and "frames" in (arguments.only or ["frames"]):
        parser.error("--model would leave the other models' frames out; give --check, or --only models or export")
    parts = arguments.only or (["frames"] if arguments.check else ["models", "export", "frames"])
    names = arguments.model or list(tiny_models.NAMES)
    warnings.simplefilter("ignore")
    diffusers.logging.set_verbosity_error()
    transformers.logging.set_verbosity_error()
    # One thread: sums in another order round differently.
    torch.set_num_threads(1)

    pipes = {}
    for name in names:
        pipes[name] = tiny_models.build(name)
        if "models" in parts:
            shutil.rmtree(arguments.work / name, ignore_errors=True)
            tiny_models.save(pipes[name], arguments.work / name)
    if "export" in parts:
        export(arguments.work, arguments.optimum and arguments.optimum.absolute(), names)
    if "frames" in parts:
        DATA.mkdir(parents=True, exist_ok=True)
        frames(pipes, arguments.check, {p.name for p in DATA.iterdir() if p.is_dir()})


if __name__ == "__main__":
    main()
