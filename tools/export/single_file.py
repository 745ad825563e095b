"""Single-file checkpoints in the layout of the original training code (and kohya's), read by diffusers with configurations from here."""

import pathlib
import re
import types

import torch
from safetensors import safe_open

from . import hashing, kinds, source, vocabulary
from .errors import ExportError

CONFIGS = pathlib.Path(__file__).parent / "configs"
BUILT_IN = sorted(p.name for p in CONFIGS.iterdir() if p.is_dir()) if CONFIGS.is_dir() else []
PREFIXES = {
    "unet": ("model.diffusion_model.",),
    "vae": ("first_stage_model.",),
    "text_encoder": ("cond_stage_model.", "conditioner.embedders.0."),
    "text_encoder_2": ("conditioner.embedders.1.",),
}
TYPES = {"v1": "sd15", "v2": "sd21", "xl_base": "sdxl"}
"""What diffusers calls an architecture: the built-in configuration for it."""


def header(path):
    """-> ({tensor name: an object with its `shape`}, metadata) without reading weights."""
    try:
        with safe_open(path, "pt") as f:
            return {k: types.SimpleNamespace(shape=tuple(f.get_slice(k).get_shape())) for k in f.keys()}, f.metadata() or {}
    except Exception as e:
        raise ExportError(f"{path}: not a .safetensors file: {e}") from None


def prediction(tensors, metadata, model):
    """`epsilon` or `v_prediction`, or None where the checkpoint does not tell: shapes are the same for both."""
    if "v_pred" in tensors:
        return "v_prediction"
    spec = metadata.get("modelspec.prediction_type", "").lower()
    if spec in ("v", "v_prediction", "epsilon", "eps"):
        return "v_prediction" if spec.startswith("v") else "epsilon"
    if "768-v" in metadata.get("modelspec.architecture", ""):
        return "v_prediction"
    return None if model == "v2" else "epsilon"


def current(name):
    """A tensor's name in the layout that diffusers reads: the first checkpoints were saved by a transformers that had no `text_model` in between."""
    return re.sub(r"^(cond_stage_model|conditioner\.embedders\.0)\.transformer\.(embeddings|encoder|final_layer_norm)\.", r"\1.transformer.text_model.\2.", name)


class SingleFileSource:
    """A .safetensors checkpoint. `config`: a diffusers folder, the name of a built-in configuration, or None to choose one."""

    def __init__(self, path, config=None, asked_prediction=None):
        from diffusers.loaders.single_file_utils import infer_diffusers_model_type

        self.path = pathlib.Path(path)
        self.label = self.path.name
        if self.path.suffix.lower() != ".safetensors":
            if self.path.suffix.lower() in source.PICKLES:
                source.refuse_pickle(self.path)
            raise ExportError(f"{self.path}: expected a .safetensors checkpoint")
        found, metadata = header(self.path)
        # {name as it is now: the file's}, {name as it is now: an object with its shape}
        self.stored = {current(k): k for k in found}
        self.tensors = {current(k): v for k, v in found.items()}
        if not any(k.startswith(PREFIXES["unet"]) for k in self.tensors):
            lora = any("lora" in k.lower() for k in self.tensors)
            raise ExportError(
                f"{self.path}: expected a whole checkpoint with tensors named model.diffusion_model.…, found none"
                + ("; this is a LoRA: give it with --lora, and the model it is for as SOURCE" if lora else "")
            )
        channels = self.tensors.get("model.diffusion_model.input_blocks.0.0.weight")
        if channels is not None and len(channels.shape) == 4:
            kinds.check_unet({"in_channels": channels.shape[1], "out_channels": 4}, False, self.path)
        model = infer_diffusers_model_type(self.tensors)
        if config is not None and not (str(config) in BUILT_IN and not pathlib.Path(config).exists()):
            self.folder = pathlib.Path(config)
            if not self.folder.is_dir():
                raise ExportError(f"--config {config}: no such folder, and not one of {', '.join(BUILT_IN)}")
        elif config is not None:
            self.folder = CONFIGS / str(config)
        elif model in TYPES:
            self.folder = CONFIGS / TYPES[model]
        else:
            raise ExportError(f"{self.path}: looks like {model}, expected Stable Diffusion 1.x, 2.x or XL")
        self.index = source.read_json(self.folder / "model_index.json")
        self.xl = kinds.check_pipeline(self.index, self.folder / "model_index.json")
        kinds.check_unet(self.config("unet"), self.xl, self.folder / "unet" / "config.json")
        self.prediction = asked_prediction
        if self.prediction is None and (config is None or "v_pred" in self.tensors):
            self.prediction = prediction(self.tensors, metadata, model)
            if self.prediction is None:
                raise ExportError(
                    f"{self.path}: a Stable Diffusion 2.x checkpoint that does not tell whether it predicts noise or velocity: "
                    "give --prediction epsilon (2.x base at 512, sd-turbo) or --prediction v_prediction (2.x at 768)"
                )
        self.zero_snr = "ztsnr" in self.tensors
        for part in ["unet", *self.text_encoders]:
            if not self.elements(part):
                raise ExportError(f"{self.path}: has no {part} (no tensors named {' or '.join(PREFIXES[part])}…), expected a whole checkpoint")
        for part in ["unet", *self.text_encoders]:
            self.check_weights(part)

    @property
    def names(self):
        """What the model is called: the configuration may be that of another."""
        return [self.label]

    @property
    def text_encoders(self):
        return ["text_encoder", "text_encoder_2"] if self.xl else ["text_encoder"]

    @property
    def tokenizers(self):
        return ["tokenizer", "tokenizer_2"] if self.xl else ["tokenizer"]

    def config(self, part):
        """The configuration of a network or the scheduler, with what the checkpoint tells about the latter."""
        if part != "scheduler":
            return source.read_json(self.folder / part / "config.json")
        config = source.read_json(self.folder / part / "scheduler_config.json")
        if self.prediction is not None:
            config["prediction_type"] = self.prediction
        if self.zero_snr:
            config["rescale_betas_zero_snr"] = True
        return config

    def elements(self, part):
        """Number of weights of a network."""
        total = 0
        for name, tensor in self.tensors.items():
            if name.startswith(PREFIXES[part]):
                count = 1
                for side in tensor.shape:
                    count *= side
                total += count
        return total

    def digest(self, part):
        """Content of a network, in a hash."""
        if not hasattr(self, "_digest"):
            self._digest = hashing.of_file(self.path)
        return hashing.of_value([self._digest, self.config(part)])

    def of(self, part):
        """The names of a network's tensors."""
        return [n for n in self.tensors if n.startswith(PREFIXES[part])]

    def network_class(self, part):
        """The class of a network, and its configuration as that class wants it."""
        import diffusers
        import transformers

        config, name = self.config(part), self.index[part][1]
        if name.startswith("CLIP"):
            return getattr(transformers, name), transformers.CLIPTextConfig(**config)
        return getattr(diffusers, name), config

    def check_weights(self, part):
        """An error that names the tensors which the file lacks, or has in another shape than the configuration says. Reads the header only."""
        from diffusers.loaders import single_file_utils as utils

        if part == "vae" and not self.of(part):
            raise ExportError(f"{self.path}: has no autoencoder (no tensors named first_stage_model.…): give --vae tiny or --vae FOLDER")
        tensors = {n: torch.empty(self.tensors[n].shape, device="meta") for n in self.of(part)}
        cls, config = self.network_class(part)
        what = f"{self.path}: its {part}, read with the configuration in {self.folder / part}"
        try:
            with torch.device("meta"):
                model = cls(config) if not isinstance(config, dict) else cls.from_config(config)
            if part == "unet":
                found = utils.convert_ldm_unet_checkpoint(tensors, config)
            elif part == "vae":
                found = utils.convert_ldm_vae_checkpoint(tensors, config)
            elif any(".transformer.text_model." in n for n in tensors):
                found = utils.convert_ldm_clip_checkpoint(tensors)
            else:
                prefix = next(p for p in ("cond_stage_model.model.", "conditioner.embedders.1.model.", "conditioner.embedders.0.model.") if any(n.startswith(p) for n in tensors))
                found = utils.convert_open_clip_checkpoint(model, tensors, prefix)
        except KeyError as e:
            raise ExportError(f"{what}: lacks the tensor {e}") from None
        except StopIteration:
            raise ExportError(f"{what}: its tensors have names such as {next(iter(tensors))}, expected those of CLIP or OpenCLIP") from None
        except Exception as e:
            raise ExportError(f"{what}: {type(e).__name__}: {str(e)[:1000]}") from e
        plain = lambda name: name.removeprefix("text_model.")  # noqa: E731
        shapes = {plain(n): tuple(t.shape) for n, t in found.items()}
        wanted = {plain(n): tuple(p.shape) for n, p in model.named_parameters()}
        source.check_tensors(what, cls.__name__, [n for n in wanted if n not in shapes], [], [n for n in wanted if shapes.get(n, wanted[n]) != wanted[n]])

    def load(self, part):
        """The network in f32, ready for inference."""
        from diffusers.loaders.single_file_utils import create_diffusers_clip_model_from_ldm

        self.check_weights(part)
        cls, _ = self.network_class(part)
        options = {"config": str(self.folder), "subfolder": part, "local_files_only": True, "torch_dtype": torch.float32}
        try:
            with safe_open(self.path, "pt") as f:
                tensors = {n: f.get_tensor(self.stored[n]) for n in self.of(part)}
            model = cls.from_single_file(tensors, **options) if part in ("unet", "vae") else create_diffusers_clip_model_from_ldm(cls, tensors, **options)
        except (OSError, MemoryError):
            raise
        except Exception as e:
            raise ExportError(f"{self.path}: its {part} could not be read with the configuration in {self.folder / part}: {type(e).__name__}: {str(e)[:1000]}") from e
        source.check_tensors(f"{self.path}: {part}", cls.__name__, [n for n, p in model.named_parameters() if p.is_meta], [], [])
        return model.eval().requires_grad_(False)

    def has_tokenizer(self, part):
        """Whether the configuration comes with a vocabulary."""
        return any((self.folder / part / name).exists() for name in ("vocab.json", "tokenizer.json"))

    def check_tokenizer(self, part, size):
        """An error where there is no tokenizer, or none for a text encoder of `size` tokens."""
        if self.has_tokenizer(part):
            source.check_tokenizer(self.folder / part, size)
            return
        source.read_json(self.folder / part / "tokenizer_config.json")
        count = len(vocabulary.load()[0])
        if count > size:
            raise ExportError(f"{self.folder / part}: no vocab.json, and CLIP's vocabulary has {count} tokens, but the text encoder knows {size}")

    def save_tokenizer(self, part, to):
        """Writes the tokenizer of --config, else CLIP's, to the folder `to`."""
        if self.has_tokenizer(part):
            source.save_tokenizer(source.load_tokenizer(self.folder / part), to)
        else:
            vocabulary.write(to, source.read_json(self.folder / part / "tokenizer_config.json"))
