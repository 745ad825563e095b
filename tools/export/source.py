"""Where the networks come from: a diffusers folder, loaded one network at a time."""

import json
import pathlib
import re

import torch
from safetensors import safe_open

from . import hashing, kinds
from .errors import ExportError

PICKLES = (".ckpt", ".bin", ".pt", ".pth", ".pkl")


def refuse_pickle(path):
    """An error for a file that runs code when it is read, with the way out."""
    raise ExportError(
        f"{path}: pickled weights are never loaded, because reading them runs whatever code is in them. "
        "On a machine where that does not matter, convert the file to .safetensors once "
        "(torch.load(FILE, weights_only=True), then safetensors.torch.save_file; or diffusers' save_pretrained)"
    )


def read_json(path):
    """A JSON object from a file, or an error that names it."""
    try:
        value = json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ExportError(f"{path}: no such file") from None
    except (OSError, ValueError) as e:
        raise ExportError(f"{path}: not readable as JSON: {e}") from None
    if not isinstance(value, dict):
        raise ExportError(f"{path}: expected a JSON object")
    return value


def elements(path):
    """Number of weights in a .safetensors file, from its header."""
    total = 0
    try:
        with safe_open(path, "pt") as f:
            for key in f.keys():
                count = 1
                for side in f.get_slice(key).get_shape():
                    count *= side
                total += count
    except Exception as e:
        raise ExportError(f"{path}: not a .safetensors file: {e}") from None
    return total


WEIGHTS = re.compile(r"(diffusion_pytorch_model|model)(\.fp16)?(-\d{5}-of-\d{5})?(\.fp16)?\.safetensors")
"""What diffusers and transformers call a network's weights: whole or in parts, in one precision or another."""


def choose_weights(names, half=False):
    """Which of the names of files to load a network from: those of one precision. `half`: f16 where there are such, else where there is nothing else."""
    found = sorted(n for n in names if WEIGHTS.fullmatch(n))
    plain = [n for n in found if ".fp16" not in n]
    fp16 = [n for n in found if ".fp16" in n]
    return fp16 or plain if half else plain or fp16


def weight_files(folder, half=False):
    """The .safetensors files of a network's folder that are to be loaded, and the `variant` that names them to diffusers."""
    names = choose_weights([p.name for p in folder.glob("*.safetensors") if p.exists()], half)
    if names:
        return [folder / n for n in names], "fp16" if ".fp16" in names[0] else None
    pickles = [f for f in folder.iterdir() if f.suffix in PICKLES] if folder.is_dir() else []
    if pickles:
        refuse_pickle(pickles[0])
    raise ExportError(f"{folder}: no diffusion_pytorch_model.safetensors or model.safetensors in it, expected the network's weights")


class FolderSource:
    """A diffusers folder on disk. `label` is what the manifest names as the source; `half`: f16 files are preferred; `prediction`: what the U-Net predicts, over what the scheduler's configuration says."""

    def __init__(self, folder, label=None, half=False, prediction=None):
        self.folder = pathlib.Path(folder)
        self.half, self.prediction = half, prediction
        self.label = label or self.folder.resolve().name
        self.index = read_json(self.folder / "model_index.json")
        self.xl = kinds.check_pipeline(self.index, self.folder / "model_index.json")
        kinds.check_unet(self.config("unet"), self.xl, self.folder / "unet" / "config.json")

    @property
    def names(self):
        """What the model is called."""
        found = self.index.get("_name_or_path")
        return [self.label] + ([found] if isinstance(found, str) else [])

    @property
    def text_encoders(self):
        return ["text_encoder", "text_encoder_2"] if self.xl else ["text_encoder"]

    @property
    def tokenizers(self):
        return ["tokenizer", "tokenizer_2"] if self.xl else ["tokenizer"]

    def config(self, part):
        """The configuration of a network or the scheduler."""
        if part != "scheduler":
            return read_json(self.folder / part / "config.json")
        config = read_json(self.folder / part / "scheduler_config.json")
        return config if self.prediction is None else {**config, "prediction_type": self.prediction}

    def elements(self, part):
        """Number of weights of a network."""
        return sum(elements(f) for f in weight_files(self.folder / part, self.half)[0])

    def digest(self, part):
        """Content of a network, in a hash."""
        files, _ = weight_files(self.folder / part, self.half)
        return hashing.of_value([self.config(part), [hashing.of_file(f) for f in files]])

    def check_weights(self, part):
        """An error where there is no file of weights; what is in it is checked by `load`."""
        weight_files(self.folder / part, self.half)

    def load(self, part):
        """The network in f32, ready for inference."""
        return load_network(self.folder, part, self.index[part][1], half=self.half)

    def tokenizer(self, part):
        """transformers' tokenizer."""
        return load_tokenizer(self.folder / part)

    def check_tokenizer(self, part, size):
        """An error where the tokenizer is not there, or not for a text encoder of `size` tokens."""
        check_tokenizer(self.folder / part, size)

    def save_tokenizer(self, part, to):
        """Writes vocab.json, merges.txt and configurations of a tokenizer to the folder `to`."""
        save_tokenizer(self.tokenizer(part), to)


def load_network(folder, part, class_name, subfolder=True, half=False):
    """A network of `folder` by its class, in f32."""
    import diffusers
    import transformers

    where = folder / part if subfolder else folder
    files, variant = weight_files(where, half)
    owner = transformers if class_name.startswith("CLIP") else diffusers
    cls = getattr(owner, class_name)
    options = {"use_safetensors": True, "local_files_only": True, "variant": variant}
    try:
        # transformers and diffusers both call it `dtype` now.
        model, info = cls.from_pretrained(str(where), dtype=torch.float32, output_loading_info=True, ignore_mismatched_sizes=True, **options)
    except (OSError, MemoryError) as e:
        if isinstance(e, MemoryError) or e.errno is not None:
            raise
        raise ExportError(f"{where}: could not be loaded as a {class_name}: {e}") from e
    except Exception as e:
        raise ExportError(f"{where}: could not be loaded as a {class_name}: {type(e).__name__}: {str(e)[:1000]}") from e
    # Both libraries draw what is missing at random, and only warn.
    check_tensors(", ".join(str(f) for f in files), class_name, info["missing_keys"], info["unexpected_keys"], [m[0] for m in info["mismatched_keys"]])
    return model.eval().requires_grad_(False)


OTHER_PARTS = re.compile(r"(.*\.)?position_ids|logit_scale|(vision_model|visual_projection)\..*")
"""Tensors beside those of a text encoder that do not matter: a table of 0, 1, 2 …, and the parts of CLIP for pictures."""


def check_tensors(where, class_name, missing, unexpected, mismatched):
    """An error where the tensors of a file are not those of the network."""
    wrong = []
    for names, what in [
        (missing, "missing"), (mismatched, "of another shape than its configuration says"),
        ([n for n in unexpected if not OTHER_PARTS.fullmatch(n)], "not known to it"),
    ]:
        names = sorted(names)
        if names:
            wrong.append(f"{', '.join(names[:5])}{f' and {len(names) - 5} more' if len(names) > 5 else ''} ({what})")
    if wrong:
        raise ExportError(f"{where}: not the weights of the {class_name} that config.json describes: {'; '.join(wrong)}")


def load_tokenizer(folder):
    """transformers' tokenizer of a folder."""
    import transformers

    try:
        return transformers.CLIPTokenizer.from_pretrained(str(folder), local_files_only=True)
    except Exception as e:
        raise ExportError(f"{folder}: not the CLIP tokenizer that was expected: {type(e).__name__}: {e}") from e


def check_tokenizer(folder, size):
    """An error where `folder` has no CLIP tokenizer, or one for more tokens than `size`."""
    has = lambda *names: all((folder / n).is_file() for n in names)  # noqa: E731
    if not has("tokenizer.json") and not has("vocab.json", "merges.txt"):
        raise ExportError(f"{folder}: no vocab.json with merges.txt, nor a tokenizer.json in it, expected a CLIP tokenizer")
    tokenizer = load_tokenizer(folder)
    try:
        model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
        largest, kind = max(tokenizer.get_vocab().values(), default=0), f"{model['type']} with {len(model['merges'])} merges"
    except (AttributeError, KeyError, ValueError, TypeError) as e:
        raise ExportError(f"{folder}: not the CLIP tokenizer that was expected: {type(e).__name__}: {e}") from e
    if model["type"] != "BPE" or not model["merges"]:
        raise ExportError(f"{folder}: a tokenizer of the kind {kind}, expected CLIP's: BPE with merges")
    if largest >= size:
        raise ExportError(f"{folder}: the largest token is {largest}, but the text encoder knows {size} (vocab_size in its config.json): they do not belong together")
    lacking = [k for k in ("bos_token", "eos_token", "unk_token", "pad_token") if getattr(tokenizer, k) is None]
    if lacking:
        raise ExportError(f"{folder}: the tokenizer has no {', '.join(lacking)}")


def save_tokenizer(tokenizer, to):
    """Writes a tokenizer as vocab.json, merges.txt, tokenizer_config.json and special_tokens_map.json: the layout of published models."""
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    merges = [m if isinstance(m, str) else " ".join(m) for m in state["model"]["merges"]]
    vocabulary = dict(sorted(tokenizer.get_vocab().items(), key=lambda item: item[1]))
    to.mkdir(parents=True, exist_ok=True)
    special = {key: str(getattr(tokenizer, key)) for key in ("bos_token", "eos_token", "unk_token", "pad_token")}
    config = {"tokenizer_class": "CLIPTokenizer", "add_prefix_space": False, "do_lower_case": True, "errors": "replace", "model_max_length": int(min(tokenizer.model_max_length, 10**6)), **special}
    write = lambda name, value: (to / name).write_text(json.dumps(value, ensure_ascii=False) + "\n", encoding="utf-8")  # noqa: E731
    write("vocab.json", vocabulary)
    write("tokenizer_config.json", config)
    write("special_tokens_map.json", special)
    (to / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n", encoding="utf-8")
