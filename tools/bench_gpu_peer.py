#!/usr/bin/env python3
"""Frame times of the published StreamDiffusion (PyPI `streamdiffusion` 0.1.1, diffusers 0.24.0) on this machine's GPU.

The peer to measure the element against. Its own modules run unchanged, image to image with its stream batch, on the
architecture of SD-Turbo with TAESD in f16. The weights are random: time does not depend on their values, and no
download is needed. Each configuration is one line of JSON on standard output; progress goes to standard error.

    python3 -m venv venv && venv/bin/pip install -r tools/requirements-bench-gpu.txt
    venv/bin/python tools/bench_gpu_peer.py | tee peer.jsonl
    venv/bin/python tools/bench_gpu_peer.py --tiny --frames 5 --warmup 0     # a small model on the CPU, to try it

Modes: `eager` is the package as it comes; `graphs` replays its networks as CUDA graphs, which takes the launches off the
CPU; `compile` gives them to torch.compile with CUDA graphs, which also fuses kernels and takes a minute for each number
of steps. TensorRT, the package's own acceleration, is not measured here: its script is tied to releases of 2023.
Attention is torch's scaled_dot_product_attention, which diffusers takes without xformers.
"""

import argparse
import contextlib
import gc
import importlib.metadata
import json
import os
import pathlib
import statistics
import sys
import tempfile
import time
import warnings

CONFIGS = pathlib.Path(__file__).resolve().parent / "export/configs/sd21"
"""Configurations of SD 2.1's networks, which are SD-Turbo's."""
REQUIREMENTS = "pip install -r tools/requirements-bench-gpu.txt"
T_INDEX = {1: [32], 2: [32, 45], 3: [22, 32, 45], 4: [16, 24, 32, 45]}
"""Positions in a schedule of 50 steps, by number of steps; those of 1, 2 and 3 are in the package's examples."""
MOST_DIFFERENT = 0.1
"""Above this share of a picture's size an accelerated mode does not compute what the package does: f16 in another order of sums stays below."""
MODES, CFG_TYPES = ("eager", "graphs", "compile"), ("none", "full", "self", "initialize")
PACKAGES = ("streamdiffusion", "diffusers", "transformers", "torch")


class Failed(Exception):
    """Something went wrong; the message is for people."""


def say(text):
    print(text, file=sys.stderr, flush=True)


def several(convert, allowed):
    """An argparse type: values with commas between, each one of `allowed`."""

    def parse(text):
        try:
            values = [convert(v) for v in text.split(",")]
        except ValueError:
            values = [None]
        if any(v not in allowed for v in values):
            raise argparse.ArgumentTypeError(f"{text!r}: expected some of {', '.join(map(str, allowed))}, with commas between")
        return values

    return parse


def number(convert, low, high, multiple=1):
    """An argparse type: a number within [low, high]."""

    def parse(text):
        try:
            value = convert(text)
        except ValueError:
            value = None
        if value is None or not low <= value <= high or value % multiple:
            raise argparse.ArgumentTypeError(f"{text!r}: expected {low} to {high}" + (f", a multiple of {multiple}" if multiple != 1 else ""))
        return value

    return parse


def arguments(argv):
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--modes", type=several(str, MODES), default=["eager", "graphs"], help="of eager, graphs, compile (default: eager,graphs)")
    p.add_argument("--steps", type=several(int, tuple(T_INDEX)), default=[1, 2, 4], help="of 1 to 4 denoising steps (default: 1,2,4)")
    p.add_argument("--cfg", type=several(str, CFG_TYPES), default=["none"], help=f"of {', '.join(CFG_TYPES)} (default: none)")
    p.add_argument("--size", type=number(int, 64, 2048, 64), default=None, help="width and height in pixels (default: 512; 64 with --tiny)")
    p.add_argument("--frames", type=number(int, 1, 100_000), default=200, help="frames measured in each configuration (default: 200)")
    p.add_argument("--warmup", type=number(float, 0, 600), default=10.0, help="seconds of frames before that (default: 10)")
    p.add_argument("--input", choices=("tensor", "picture"), default="tensor",
                   help="tensor: frames lie on the GPU and stay there; picture: PIL in and PIL out, as in the package's examples (default: tensor)")
    p.add_argument("--channels-last", action="store_true", help="networks in channels-last order, which suits f16 convolutions")
    p.add_argument("--tiny", action="store_true", help="a model of a million weights on the CPU in f32, to try this script; says nothing about speed")
    p.add_argument("--stop-after", type=number(float, 1, 1e6), default=None, metavar="S", help="start no further configuration after S seconds")
    p.add_argument("--seed", type=int, default=0, help="of the random weights and pictures (default: 0)")
    args = p.parse_args(argv)
    args.size = args.size or (64 if args.tiny else 512)
    if args.tiny and "graphs" in args.modes:
        if args.modes != ["graphs"]:
            say("without a GPU there are no CUDA graphs: mode graphs is left out")
        args.modes = [m for m in args.modes if m != "graphs"]
        if not args.modes:
            p.error("--tiny runs on the CPU, where there are no CUDA graphs: give --modes eager or compile")
    return args


def versions():
    """{package: version} of what decides the figures."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            raise Failed(f"the package {name} is not installed: {REQUIREMENTS}") from None
    if (found["streamdiffusion"], found["diffusers"]) != ("0.1.1", "0.24.0"):
        raise Failed(f"found streamdiffusion {found['streamdiffusion']} and diffusers {found['diffusers']}, expected 0.1.1 and 0.24.0: {REQUIREMENTS}")
    return found


def read_config(part):
    config = json.loads((CONFIGS / part / "config.json").read_text(encoding="utf-8"))
    return {k: v for k, v in config.items() if k not in ("_class_name", "_diffusers_version", "architectures", "torch_dtype", "dtype", "transformers_version")}


def configurations(tiny):
    """(U-Net, text encoder, TAESD) as keyword arguments; `tiny` keeps the kinds of layers and makes them narrow."""
    unet, text = read_config("unet"), read_config("text_encoder")
    picture = {"encoder_block_out_channels": (64,) * 4, "decoder_block_out_channels": (64,) * 4, "num_encoder_blocks": (1, 3, 3, 3), "num_decoder_blocks": (3, 3, 3, 1)}
    if tiny:
        unet |= {"down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"], "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"], "block_out_channels": [32, 64],
                 "layers_per_block": 1, "norm_num_groups": 8, "attention_head_dim": [2, 4], "cross_attention_dim": 32}
        text |= {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_hidden_layers": 2, "projection_dim": 32}
        picture |= {"encoder_block_out_channels": (16,) * 4, "decoder_block_out_channels": (16,) * 4}
    return unet, text, {"latent_channels": 4, "scaling_factor": 1.0, **picture}


def fill(network, generator):
    """Draws the weights in place so that activations keep their size: matrices with 1/sqrt(fan-in), norms near one, biases small."""
    import torch

    with torch.no_grad():
        for name, p in network.named_parameters():
            if p.dim() >= 2:
                p.normal_(0, p[0].numel() ** -0.5, generator=generator)
            elif name.endswith("weight"):
                p.normal_(1, 0.05, generator=generator)
            else:
                p.normal_(0, 0.02, generator=generator)
    return network.eval().requires_grad_(False)


def tokenizer(folder):
    """CLIP's tokenizer with single bytes for words: prompts are encoded once, outside of what is measured."""
    from transformers import CLIPTokenizer
    from transformers.models.clip.tokenization_clip import bytes_to_unicode

    characters = list(bytes_to_unicode().values())
    words = characters + [c + "</w>" for c in characters] + ["<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({w: n for n, w in enumerate(words)}), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
    return CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=77)


def pipeline(args, device, dtype):
    """A diffusers pipeline of random weights, as the package takes it."""
    import torch
    from diffusers import AutoencoderTiny, EulerDiscreteScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    unet, text, picture = configurations(args.tiny)
    generator = torch.Generator(device).manual_seed(args.seed)
    networks = []
    for make in (lambda: UNet2DConditionModel(**unet), lambda: CLIPTextModel(CLIPTextConfig(**text)), lambda: AutoencoderTiny(**picture)):
        with torch.device(device):
            network = make()
        network = fill(network.to(device, dtype), generator)
        networks.append(network.to(memory_format=torch.channels_last) if args.channels_last else network)
    unet, text, picture = networks
    scheduler = EulerDiscreteScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", timestep_spacing="trailing")
    with tempfile.TemporaryDirectory() as folder:
        words = tokenizer(pathlib.Path(folder))
    pipe = StableDiffusionPipeline(vae=picture, text_encoder=text, tokenizer=words, unet=unet, scheduler=scheduler, safety_checker=None, feature_extractor=None, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    return pipe


class Replayed:
    """A function of tensors as a CUDA graph: the first call captures it, later ones copy their arguments in and replay."""

    def __init__(self, function):
        self.function, self.graph = function, None

    def __call__(self, *tensors):
        import torch

        if self.graph is None:
            self.inputs = [t.clone() for t in tensors]
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(3):
                    self.function(*self.inputs)
            torch.cuda.current_stream().wait_stream(side)
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph):
                self.output = self.function(*self.inputs)
        for mine, given in zip(self.inputs, tensors):
            mine.copy_(given)
        self.graph.replay()
        return self.output


class UnetCall:
    """Stands in for the U-Net: the same call, through `run`."""

    def __init__(self, run):
        self.run = run

    def __call__(self, sample, timestep, encoder_hidden_states, return_dict=False):
        return (self.run(sample, timestep, encoder_hidden_states),)


def accelerate(stream, mode):
    """Puts `mode` under the package's own calls of the three networks."""
    import torch

    unet, vae = stream.unet, stream.vae
    if mode == "graphs":
        stream.unet = UnetCall(Replayed(lambda x, t, c: unet(x, t, encoder_hidden_states=c, return_dict=False)[0]))
        vae.encoder.forward, vae.decoder.forward = Replayed(vae.encoder.forward), Replayed(vae.decoder.forward)
    elif mode == "compile":
        options = {"mode": "reduce-overhead"} if stream.device.type == "cuda" else {}
        compiled = torch.compile(unet, dynamic=False, **options)
        stream.unet = UnetCall(lambda x, t, c: compiled(x, t, encoder_hidden_states=c, return_dict=False)[0])
        vae.encoder.forward = torch.compile(vae.encoder.forward, dynamic=False, **options)
        vae.decoder.forward = torch.compile(vae.decoder.forward, dynamic=False, **options)


class WallEvent:
    """What stands in for torch.cuda.Event where there is no GPU: the package times each frame with a pair of them."""

    def __init__(self, **_):
        pass

    def record(self):
        self.at = time.perf_counter()

    def elapsed_time(self, other):
        return (other.at - self.at) * 1000


@contextlib.contextmanager
def without_gpu():
    """Lets the package's frame call run on the CPU."""
    import torch

    kept = torch.cuda.Event, torch.cuda.synchronize
    torch.cuda.Event, torch.cuda.synchronize = WallEvent, lambda *_: None
    try:
        yield
    finally:
        torch.cuda.Event, torch.cuda.synchronize = kept


def pictures(args, device, dtype):
    """Eight frames with detail and colour, each different: tensors in [0, 1] on the device, or PIL pictures."""
    import torch

    generator = torch.Generator().manual_seed(args.seed + 1)
    frames = []
    for _ in range(8):
        coarse = torch.rand((1, 3, 8, 8), generator=generator)
        smooth = torch.nn.functional.interpolate(coarse, size=(args.size, args.size), mode="bicubic").clamp(0, 1)
        frames.append((smooth + 0.1 * torch.rand(smooth.shape, generator=generator)).clamp(0, 1))
    if args.input == "tensor":
        return [f.to(device, dtype) for f in frames]
    import PIL.Image

    return [PIL.Image.fromarray((f[0].permute(1, 2, 0).numpy() * 255).round().astype("uint8")) for f in frames]


def spread(values):
    """Median, and the values that 5 and 95 of a hundred stay below."""
    ordered = sorted(values)
    at = lambda share: ordered[min(len(ordered) - 1, int(share * len(ordered)))]  # noqa: E731
    return {"median": round(statistics.median(ordered), 3), "p5": round(at(0.05), 3), "p95": round(at(0.95), 3)}


def measure(args, pipe, mode, steps, cfg, frames):
    """One configuration -> its figures."""
    import torch
    from streamdiffusion import StreamDiffusion
    from tqdm import tqdm

    gpu = pipe.device.type == "cuda"
    if args.input == "picture":
        from streamdiffusion.image_utils import postprocess_image
    if gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    stream = StreamDiffusion(pipe, T_INDEX[steps], torch_dtype=pipe.unet.dtype, width=args.size, height=args.size, cfg_type=cfg)
    prepare = lambda: stream.prepare("oil painting of a harbour", "blurry", num_inference_steps=50, guidance_scale=1.2, generator=torch.Generator(), seed=2)  # noqa: E731
    prepare()

    def frame(n):
        if mode == "compile" and gpu:
            torch.compiler.cudagraph_mark_step_begin()
        out = stream(frames[n % len(frames)])
        return postprocess_image(out, output_type="pil") if args.input == "picture" else out

    difference = None
    if mode != "eager":
        # The same frames from the same state both ways: a graph that reads stale memory would be fast, and wrong.
        plain = [stream(frames[n]).float() for n in range(steps + 2)]
        prepare()
        accelerate(stream, mode)
        fast = []
        for n in range(steps + 2):
            frame(n)
            fast.append(stream.prev_image_result.float())
        difference = max(float((a - b).norm() / b.norm()) for a, b in zip(fast, plain))
        if not difference <= MOST_DIFFERENT:
            say(f"warning: {mode} differs from eager by {difference:.2g} of the pictures' size, expected {MOST_DIFFERENT} at most")
    for n in range(steps + 2):
        out = frame(n)
    if gpu:
        torch.cuda.synchronize()
    ready = time.perf_counter() - start
    until, n = time.perf_counter() + args.warmup, 0
    while time.perf_counter() < until:
        frame(n)
        n += 1
    on_gpu, on_wall = [], []
    # The bar is drawn rarely: it shares the thread that launches kernels. None: only on a terminal.
    for n in tqdm(range(args.frames), unit="frame", mininterval=2, leave=False, disable=None):
        before = time.perf_counter()
        if gpu:
            first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            first.record()
        out = frame(n)
        if gpu:
            last.record()
            last.synchronize()
            on_gpu.append(first.elapsed_time(last))
        on_wall.append((time.perf_counter() - before) * 1000)
    if args.input == "tensor":
        if tuple(out.shape) != (1, 3, args.size, args.size) or not torch.isfinite(out).all():
            raise Failed(f"{mode}, {steps} steps, cfg {cfg}: the last frame is {tuple(out.shape)} and not all of it is finite: these figures would mean nothing")
        if float(out.float().std()) == 0:
            raise Failed(f"{mode}, {steps} steps, cfg {cfg}: the last frame is of one colour: these figures would mean nothing")
    figures = {
        "mode": mode, "steps": steps, "t_index_list": T_INDEX[steps], "cfg": cfg, "frames": args.frames,
        "gpu_ms": spread(on_gpu) if gpu else None, "wall_ms": spread(on_wall), "frames_per_second": round(1000 * len(on_wall) / sum(on_wall), 2),
        "ready_s": round(ready, 1), "warmup_s": args.warmup, "differs_from_eager": difference,
    }
    if gpu:
        figures["peak_memory_mb"] = round(torch.cuda.max_memory_allocated() / 1e6)
    return figures


@contextlib.contextmanager
def as_it_was(pipe):
    """Undoes what `accelerate` puts over the autoencoder, and frees its graphs."""
    import torch

    try:
        yield
    finally:
        for part in (pipe.vae.encoder, pipe.vae.decoder):
            part.__dict__.pop("forward", None)
        torch._dynamo.reset()
        gc.collect()


def run(args):
    began = time.perf_counter()
    # All read once, at import: nothing is fetched here, nobody is told, and the old diffusers must not meet today's JAX.
    os.environ.setdefault("USE_FLAX", "0")
    os.environ.setdefault("USE_TF", "0")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    warnings.simplefilter("ignore")
    found = versions()
    try:
        import torch

        with contextlib.redirect_stdout(sys.stderr):
            import diffusers
            import streamdiffusion  # noqa: F401
            import transformers
    except ImportError as e:
        raise Failed(f"{e}: {REQUIREMENTS}") from None
    for library in (diffusers, transformers):
        library.utils.logging.set_verbosity_error()
    if not args.tiny and not torch.cuda.is_available():
        raise Failed("PyTorch sees no CUDA GPU; --tiny runs a small model on the CPU")
    device, dtype = ("cpu", torch.float32) if args.tiny else ("cuda", torch.float16)
    torch.backends.cudnn.benchmark = True
    say("making the networks")
    pipe, frames = pipeline(args, device, dtype), pictures(args, device, dtype)
    weights = sum(p.numel() for n in (pipe.unet, pipe.text_encoder, pipe.vae) for p in n.parameters())
    setting = {
        "peer": found, "device": torch.cuda.get_device_name(0) if device == "cuda" else "CPU", "cuda": torch.version.cuda if device == "cuda" else None,
        "model": "tiny" if args.tiny else "SD-Turbo and TAESD, random weights", "weights": weights, "dtype": str(dtype).removeprefix("torch."), "size": args.size,
        "input": args.input, "channels_last": args.channels_last, "cudnn_benchmark": True, "date": time.strftime("%Y-%m-%d"),
    }
    failures = 0
    with contextlib.nullcontext() if device == "cuda" else without_gpu():
        for mode in args.modes:
            for cfg in args.cfg:
                for steps in args.steps:
                    if args.stop_after is not None and time.perf_counter() - began > args.stop_after:
                        say(f"left out, --stop-after has passed: {mode}, cfg {cfg}, {steps} steps")
                        continue
                    say(f"{mode}, cfg {cfg}, {steps} steps")
                    try:
                        with as_it_was(pipe):
                            figures = measure(args, pipe, mode, steps, cfg, frames)
                    except Failed:
                        raise
                    except Exception as e:
                        # One mode that a release of torch cannot do leaves the others their figures.
                        say(f"error: {mode}, cfg {cfg}, {steps} steps: {type(e).__name__}: {str(e)[:2000]}")
                        failures += 1
                        continue
                    print(json.dumps({**setting, **figures}), flush=True)
                    say(f"  {figures['frames_per_second']} frames/s, {(figures['gpu_ms'] or figures['wall_ms'])['median']} ms")
    return 1 if failures else 0


def main(argv=None):
    """-> exit status: 0, 1 for an error, 130 when interrupted."""
    args = arguments(sys.argv[1:] if argv is None else argv)
    try:
        return run(args)
    except Failed as e:
        say(f"error: {e}")
        return 1
    except KeyboardInterrupt:
        say("interrupted")
        return 130


if __name__ == "__main__":
    sys.exit(main())
