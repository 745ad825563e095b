"""LoRAs, fused into the weights the way diffusers does it."""

import diffusers
import torch
import transformers
from safetensors import safe_open

from .errors import ExportError
from .source import PICKLES, refuse_pickle


def check_files(loras):
    """An error for a file that is not there or not .safetensors, before anything big is read."""
    for lora in loras:
        if lora.path.suffix.lower() in PICKLES:
            refuse_pickle(lora.path)
        if not lora.path.is_file():
            raise ExportError(f"--lora {lora.path}: no such file")
        try:
            with safe_open(lora.path, "pt") as f:
                f.keys()
        except Exception as e:
            raise ExportError(f"--lora {lora.path}: not a .safetensors file: {e}") from None


def called(path):
    """What a LoRA is called: its file's name, or the whole path where that is the name diffusers gives all of them."""
    return path.as_posix() if path.stem == "pytorch_lora_weights" else path.name


def adapted(network):
    """Number of layers of a network that an adapter changes."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    return sum(isinstance(m, BaseTunerLayer) for m in network.modules())


def layers_in(path):
    """Number of layers that a LoRA file has matrices for."""
    with safe_open(path, "pt") as f:
        return sum("lora" in k and k.endswith(("down.weight", "lora_A.weight")) for k in f.keys())


def fuse(networks, xl, loras, say):
    """Fuses `loras`, one after another, each with its scale, into {name: network} of U-Net and text encoders, in place."""
    # They report the loading of adapters as missing weights of the network.
    diffusers.utils.logging.set_verbosity_error()
    transformers.utils.logging.set_verbosity_error()
    cls = diffusers.StableDiffusionXLPipeline if xl else diffusers.StableDiffusionPipeline
    others = dict.fromkeys(["vae", "tokenizer", "feature_extractor", "image_encoder"] + (["tokenizer_2"] if xl else ["safety_checker"]))
    more = {} if xl else {"requires_safety_checker": False}
    pipeline = cls(**networks, **others, **more, scheduler=diffusers.DDIMScheduler(clip_sample=False, steps_offset=1))
    for lora in loras:
        try:
            pipeline.load_lora_weights(str(lora.path.parent), weight_name=lora.path.name, local_files_only=True, use_safetensors=True)
            counts = {name: adapted(network) for name, network in networks.items()}
            if not any(counts.values()):
                raise ExportError(f"--lora {lora.path}: none of its weights belong to a layer of this model: is it for another kind of model?")
            pipeline.fuse_lora(components=[n for n, c in counts.items() if c], lora_scale=lora.scale, safe_fusing=True)
            pipeline.unload_lora_weights()
        except ExportError:
            raise
        except Exception as e:
            raise ExportError(
                f"--lora {lora.path}: does not fit this model ({type(e).__name__}: {str(e)[:600]}): a LoRA fits only models of the architecture it was trained on"
            ) from e
        say(f"  {lora.path.name}: fused with {lora.scale:g} into " + ", ".join(f"{c} layers of {n}" for n, c in counts.items() if c))
        unused = layers_in(lora.path) - sum(counts.values())
        if unused > 0:
            say(f"  warning: {lora.path.name}: {unused} of its {layers_in(lora.path)} layers are not in this model and were left out")
    left = sum(adapted(network) for network in networks.values())
    if left:
        raise ExportError(f"diffusers left {left} adapter layers behind after fusing; is its version the pinned one?")
    pipeline.to(torch.float32)
    return networks


class Fused:
    """A source whose U-Net and text encoders have LoRAs fused into them. They are loaded when the first is asked for, and given out once each."""

    def __init__(self, source, loras, progress):
        self.source, self.loras, self.progress = source, loras, progress
        self.xl = source.xl
        self.ready = None

    def load(self, part):
        if self.ready is None:
            with self.progress.step("LoRA"):
                parts = ["unet", *self.source.text_encoders]
                self.ready = fuse({p: self.source.load(p) for p in parts}, self.xl, self.loras, self.progress.say)
        return self.ready.pop(part)
