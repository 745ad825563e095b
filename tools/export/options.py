"""What the command line asks for, parsed and checked."""

import argparse
import dataclasses
import math
import pathlib
import re

from . import defaults as kinds_of_models
from .errors import ExportError

SIZES = range(8, 8193)
CFG_TYPES = ("none", "full", "self", "initialize")


@dataclasses.dataclass(frozen=True)
class Lora:
    """A LoRA file and the factor it is fused with."""

    path: pathlib.Path
    scale: float


@dataclasses.dataclass(frozen=True)
class Options:
    """Everything that decides what is written. `size` is (width, height) in pixels; None for dynamic."""

    source: str
    out: pathlib.Path
    config: pathlib.Path | None = None
    prediction: str | None = None
    scheduler: str | None = None
    kind: str | None = None
    offline: bool = False
    loras: tuple[Lora, ...] = ()
    vae: str = "full"
    dtype: str = "f32"
    size: tuple[int, int] | None = None
    batch: int | None = None
    clip_skip: int = 0
    opset: int = 18
    name: str | None = None
    license: str | None = None
    defaults: dict = dataclasses.field(default_factory=dict)
    force: bool = False
    keep_work: bool = False

    @property
    def size_text(self):
        """`dynamic` or `WxH`, as the manifest records it."""
        return "dynamic" if self.size is None else f"{self.size[0]}x{self.size[1]}"


def lora(text):
    """`FILE[:scale]`. The colon of a drive letter (C:\\x.safetensors) is none of ours: only a number after the last one is a scale."""
    path, colon, tail = text.rpartition(":")
    scale = 1.0
    if colon and path and re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?|[+-]?(nan|inf)", tail):
        scale = float(tail)
    else:
        path = text
    if not path:
        raise argparse.ArgumentTypeError("expected FILE or FILE:scale")
    if not math.isfinite(scale) or scale == 0 or abs(scale) > 100:
        raise argparse.ArgumentTypeError(f"the scale of {path} is {scale}, expected a finite number other than 0, within ±100")
    return Lora(pathlib.Path(path), scale)


def size(text):
    """`dynamic`, `N` or `WxH` -> None or (width, height)."""
    if text == "dynamic":
        return None
    match = re.fullmatch(r"(\d+)(?:[xX](\d+))?", text)
    if not match:
        raise argparse.ArgumentTypeError(f"{text!r}: expected WxH, one number for both, or dynamic")
    width = int(match[1])
    height = int(match[2] or width)
    for value in (width, height):
        if value not in SIZES:
            raise argparse.ArgumentTypeError(f"{text!r}: expected {SIZES.start} to {SIZES.stop - 1} pixels each way")
    return width, height


def batch(text):
    """`dynamic` or `N` -> None or N."""
    if text == "dynamic":
        return None
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= 128:
        raise argparse.ArgumentTypeError(f"{text!r}: expected 1 to 128, or dynamic")
    return int(text)


def between(convert, low, high):
    """An argparse type: a number of type `convert` within [low, high]."""

    def parse(text):
        try:
            value = convert(text)
        except ValueError:
            value = None
        if value is None or not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{text!r}: expected {low} to {high}")
        return value

    return parse


def t_index_list(text):
    """`32,45` -> [32, 45]; ascending."""
    try:
        values = [int(v) for v in text.split(",")]
    except ValueError:
        values = []
    if not values or values[0] < 0 or any(a >= b for a, b in zip(values, values[1:])):
        raise argparse.ArgumentTypeError(f"{text!r}: expected ascending indices with commas between, such as 32,45")
    return values


def up_to(limit):
    """An argparse type: a text of at most `limit` bytes, which is what a manifest may hold."""

    def parse(value):
        try:
            length = len(value.encode("utf-8"))
        except UnicodeEncodeError:
            raise argparse.ArgumentTypeError(f"{value!a}: not UTF-8") from None
        if length > limit:
            raise argparse.ArgumentTypeError(f"{length} bytes, expected at most {limit}")
        return value

    return parse


NAME_LIMIT, PROMPT_LIMIT = 200, 10_000

DEFAULTS = {
    # Key in the manifest: (type, what it is).
    "prompt": (up_to(PROMPT_LIMIT), "prompt that is used when none is set"),
    "negative_prompt": (up_to(PROMPT_LIMIT), "negative prompt"),
    "steps": (between(int, 1, 8), "denoising steps per frame, 1 to 8"),
    "strength": (between(float, 1e-6, 1), "how far a picture is changed, above 0 to 1"),
    "t_index_list": (t_index_list, "exact steps, such as 32,45; instead of steps and strength"),
    "num_inference_steps": (between(int, 1, 1000), "length of the list of timesteps"),
    "guidance_scale": (between(float, 0, 100), "guidance scale"),
    "delta": (between(float, 0, 10), "weight of the residual noise in guidance"),
    "cfg_type": (str, "guidance: " + ", ".join(CFG_TYPES)),
}


def parser():
    """The command line."""
    p = argparse.ArgumentParser(
        prog="export_model.py",
        description="Writes a Stable Diffusion 1.x, 2.x, XL or latent consistency model as a folder of ONNX graphs for the streamdiffusion element.",
        epilog="Nothing is downloaded unless SOURCE is a hub id, or --vae tiny needs TAESD or TAESDXL; that is announced first, and --offline forbids it.",
    )
    p.add_argument("source", metavar="SOURCE", help="a diffusers folder, a hub id such as stabilityai/sd-turbo, or a single-file .safetensors checkpoint")
    p.add_argument("out", metavar="OUT", type=pathlib.Path, help="the folder to write; it must not exist (see --force)")
    p.add_argument("--lora", action="append", default=[], type=lora, metavar="FILE[:scale]", help="LoRA file (.safetensors) to fuse, with its scale (1.0); may be given several times")
    p.add_argument("--vae", default="full", metavar="tiny|full|FOLDER", help="full: the model's own autoencoder; tiny: TAESD or TAESDXL from the hub; or a diffusers folder of an AutoencoderTiny or AutoencoderKL")
    p.add_argument("--dtype", choices=("f32", "f16"), default="f32", help="type of weights, inputs and outputs (f32)")
    p.add_argument("--size", default=None, type=size, metavar="WxH|N|dynamic", help="the only size in pixels the graphs take, or dynamic (the default)")
    p.add_argument("--batch", default=None, type=batch, metavar="N|dynamic", help="the only number of rows the U-Net takes (steps times frames together), or dynamic (the default)")
    p.add_argument("--clip-skip", default=0, type=between(int, 0, 16), metavar="N", help="leave out the last N layers of the text encoder, as diffusers counts them (0)")
    p.add_argument("--config", type=pathlib.Path, metavar="FOLDER|NAME", help="for a single-file checkpoint: a diffusers folder (or sd15, sd21, sd21-v, sdxl) with the configurations and tokenizer to use instead of the built-in ones")
    p.add_argument("--prediction", choices=("epsilon", "v_prediction"), help="what the U-Net predicts, where SOURCE does not tell, or is wrong")
    p.add_argument("--kind", choices=kinds_of_models.KINDS, help="what kind of few-step model it is, which decides the defaults below and the scheduler (from the names of SOURCE and LoRAs)")
    p.add_argument("--scheduler", choices=("keep", "lcm", "tcd"), help="the sampling method that the folder names: that of SOURCE, latent consistency, or trajectory consistency (as the kind of model needs)")
    p.add_argument("--offline", action="store_true", help="never use the network; a hub id must be in the local cache")
    p.add_argument("--name", type=up_to(NAME_LIMIT), help="display name of the model (from SOURCE)")
    p.add_argument("--license", type=up_to(NAME_LIMIT), help="licence of the weights, for the record")
    p.add_argument("--opset", default=18, type=between(int, 18, 23), metavar="N", help="ONNX operator set, 18 to 23 (18)")
    p.add_argument("--force", action="store_true", help="replace OUT if it exists, once the new folder is whole")
    p.add_argument("--keep-work", action="store_true", help="keep OUT.partial, so that the next export with --force reuses the components that stay the same")
    group = p.add_argument_group("defaults written to the folder, for properties that a user leaves alone (chosen by the kind of model otherwise)")
    for key, (kind, text) in DEFAULTS.items():
        group.add_argument("--" + key.replace("_", "-"), dest="default_" + key, type=kind, metavar={"prompt": "TEXT", "negative_prompt": "TEXT", "t_index_list": "I,J,…", "cfg_type": "TYPE"}.get(key, "N"), help=text)
    return p


def parse(argv):
    """Command line arguments -> Options."""
    args = parser().parse_args(argv)
    defaults = {key: getattr(args, "default_" + key) for key in DEFAULTS if getattr(args, "default_" + key) is not None}
    if defaults.get("cfg_type", "none") not in CFG_TYPES:
        raise ExportError(f"--cfg-type is {defaults['cfg_type']!r}, expected one of {', '.join(CFG_TYPES)}")
    if "t_index_list" in defaults and ("steps" in defaults or "strength" in defaults):
        raise ExportError("--t-index-list takes the place of --steps and --strength: give one or the other")
    if "t_index_list" in defaults and defaults["t_index_list"][-1] >= defaults.get("num_inference_steps", 50):
        raise ExportError(f"--t-index-list ends with {defaults['t_index_list'][-1]}, expected indices below --num-inference-steps ({defaults.get('num_inference_steps', 50)})")
    if args.vae not in ("full", "tiny"):
        label = pathlib.Path(args.vae).resolve().name
        if len(label.encode("utf-8", "replace")) > NAME_LIMIT:
            raise ExportError(f"--vae {args.vae}: the folder's name has more than {NAME_LIMIT} bytes, which the manifest cannot hold: give it a shorter one")
    return Options(
        source=args.source, out=args.out, config=args.config, prediction=args.prediction, scheduler=args.scheduler, kind=args.kind, offline=args.offline, loras=tuple(args.lora), vae=args.vae,
        dtype=args.dtype, size=args.size, batch=args.batch, clip_skip=args.clip_skip, opset=args.opset, name=args.name,
        license=args.license, defaults=defaults, force=args.force, keep_work=args.keep_work,
    )
