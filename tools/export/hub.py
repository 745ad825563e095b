"""The only use of the network: files of a hub repository, announced before they are fetched."""

import re

from . import kinds, source
from .errors import ExportError
from .progress import gigabytes


def is_id(text):
    """Whether `text` looks like OWNER/NAME."""
    return re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", text) is not None


def choose(files, parts):
    """Which of {path: size} to fetch for the folders `parts` ("" for the top one): configurations and .safetensors, one precision of them."""
    wanted = {}
    for part in parts:
        prefix = part + "/" if part else ""
        here = {p: s for p, s in files.items() if p.startswith(prefix) and "/" not in p[len(prefix) :]}
        wanted |= {p: s for p, s in here.items() if p.endswith((".json", "merges.txt")) and not p.endswith(".index.json")}
        weights = {p: s for p, s in here.items() if p.endswith(".safetensors") and "non_ema" not in p}
        plain = {p: s for p, s in weights.items() if ".fp16" not in p}
        wanted |= plain or weights
        wanted |= {p: s for p, s in here.items() if p.endswith(".safetensors.index.json") and (".fp16" not in p or not plain)}
    return wanted


def fetch(name, parts, offline, say, top=()):
    """-> the local folder with the chosen files of the repository `name`; `top`: further ones by name."""
    import huggingface_hub

    if offline:
        try:
            return huggingface_hub.snapshot_download(name, local_files_only=True)
        except Exception:
            raise ExportError(f"{name}: not in the local cache, and --offline forbids to fetch it") from None
    try:
        info = huggingface_hub.HfApi().model_info(name, files_metadata=True)
        sizes = {f.rfilename: f.size or 0 for f in info.siblings}
        wanted = choose(sizes, parts) | {p: sizes[p] for p in top if p in sizes}
        index = huggingface_hub.hf_hub_download(name, "model_index.json", revision=info.sha) if "model_index.json" in top and "model_index.json" in sizes else None
    except Exception as e:
        raise ExportError(f"{name}: the hub could not be asked about it ({type(e).__name__}: {str(e)[:300]}); is it spelt right, and is the network there?") from None
    if index is not None:
        # Before gigabytes of a pipeline that is not supported are fetched.
        kinds.check_pipeline(source.read_json(index), f"{name}/model_index.json")
    if not any(p.endswith(".safetensors") for p in wanted):
        raise ExportError(f"{name}: has no .safetensors weights in the diffusers layout; pickled ones are never loaded")
    say(f"{name}: downloading {len(wanted)} files, {gigabytes(sum(wanted.values()))} (what the cache has already is not fetched again)")
    try:
        return huggingface_hub.snapshot_download(name, revision=info.sha, allow_patterns=sorted(wanted))
    except Exception as e:
        raise ExportError(f"{name}: the download failed: {type(e).__name__}: {str(e)[:300]}") from None


def fetch_pipeline(name, with_vae, offline, say):
    """-> the local folder of a pipeline's repository."""
    parts = ["unet", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "scheduler"] + (["vae"] if with_vae else [])
    return fetch(name, parts, offline, say, top=["model_index.json"])


def fetch_vae(name, offline, say):
    """-> the local folder of an autoencoder's repository."""
    return fetch(name, [""], offline, say)
