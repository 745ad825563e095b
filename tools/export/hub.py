"""The only use of the network: files of a hub repository, announced before they are fetched."""

import json
import pathlib
import re

from . import kinds, source
from .errors import ExportError
from .progress import gigabytes

NETWORKS = ("unet", "text_encoder", "text_encoder_2", "vae")
OTHERS = ("tokenizer", "tokenizer_2", "scheduler")


def is_id(text):
    """Whether `text` looks like OWNER/NAME."""
    return re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", text) is not None


def below(files, part):
    """{name: size} of the files of {path: size} that lie in the folder `part` ("" for the top one) itself."""
    prefix = part + "/" if part else ""
    return {p[len(prefix) :]: s for p, s in files.items() if p.startswith(prefix) and "/" not in p[len(prefix) :]}


def choose(files, parts, half=False):
    """Which of {path: size} to fetch for the folders `parts`: configurations, and each network's .safetensors in one precision (`half`: rather f16)."""
    wanted = {}
    for part in parts:
        here = below(files, part)
        names = {n for n in here if n.endswith((".json", "merges.txt")) and not n.endswith(".index.json")}
        weights = source.choose_weights(here, half)
        names |= set(weights)
        if any("-of-" in n for n in weights):
            names |= {n for n in here if n.endswith(".safetensors.index.json") and (".fp16" in n) == (".fp16" in weights[0])}
        wanted |= {f"{part}/{n}" if part else n: here[n] for n in names}
    return wanted


def check_weights(name, files, parts):
    """An error where the repository has no weights that can be read for one of the networks `parts`."""
    for part in parts:
        here = below(files, part)
        if not source.choose_weights(here):
            pickles = [n for n in here if n.endswith(source.PICKLES)]
            where = f"{name}/{part}" if part else name
            if pickles:
                source.refuse_pickle(f"{where}/{pickles[0]}")
            raise ExportError(f"{where}: no diffusion_pytorch_model.safetensors or model.safetensors in it, expected the network's weights")


def cached(name, complete):
    """-> the folder of the newest snapshot of a repository in the local cache that `complete` is content with, or None.

    What this tool fetches is kept under its commit, and no branch is noted with it; so all snapshots are looked at.
    """
    from huggingface_hub import constants

    repository = pathlib.Path(constants.HF_HUB_CACHE).expanduser() / f"models--{name.replace('/', '--')}"
    try:
        main = (repository / "refs" / "main").read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        main = None
    try:
        found = sorted((p for p in (repository / "snapshots").iterdir() if p.is_dir()), key=lambda p: (p.name == main, p.stat().st_mtime), reverse=True)
    except OSError:
        return None
    return next((p for p in found if complete(p)), None)


def has_weights(folder, half):
    """Whether a network's folder is there with its configuration and all its weights; a link whose target is not there yet does not count."""
    try:
        files, _ = source.weight_files(folder, half)
        whole = [f for f in files if "-of-" not in f.name] or all(
            (folder / part).exists() for i in folder.glob("*.safetensors.index.json") for part in json.loads(i.read_text(encoding="utf-8"))["weight_map"].values()
            if (".fp16" in part) == (".fp16" in files[0].name)
        )
        return bool(whole) and (folder / "config.json").exists()
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ExportError):
        return False


def offline_copy(name, complete):
    """`cached`, or an error."""
    folder = cached(name, complete)
    if folder is None:
        raise ExportError(f"{name}: not in the local cache, and --offline forbids to fetch it")
    return folder


def ask(name):
    """-> (commit, {path: size}) of a repository."""
    import huggingface_hub

    try:
        info = huggingface_hub.HfApi().model_info(name, files_metadata=True)
        return info.sha, {f.rfilename: f.size or 0 for f in info.siblings}
    except Exception as e:
        raise unreachable(name, e) from None


def unreachable(name, e):
    return ExportError(f"{name}: the hub could not be asked about it ({type(e).__name__}: {str(e)[:300]}); is it spelt right, and is the network there?")


def fetch(name, commit, wanted, say):
    """-> the local folder with the files {path: size} of the repository `name`."""
    import huggingface_hub

    say(f"{name}: downloading {len(wanted)} files, {gigabytes(sum(wanted.values()))} (what the cache has already is not fetched again)")
    try:
        return huggingface_hub.snapshot_download(name, revision=commit, allow_patterns=sorted(wanted))
    except OSError as e:
        if e.errno is not None and e.filename is not None:
            raise
        raise ExportError(f"{name}: the download failed: {type(e).__name__}: {str(e)[:300]}") from None
    except Exception as e:
        raise ExportError(f"{name}: the download failed: {type(e).__name__}: {str(e)[:300]}") from None


def fetch_pipeline(name, with_vae, offline, say, half=False):
    """-> the local folder of a pipeline's repository."""
    import huggingface_hub

    def networks(index):
        return [p for p in NETWORKS if (index.get(p) or [None, None])[1] and (with_vae or p != "vae")]

    def complete(folder):
        try:
            index = source.read_json(folder / "model_index.json")
        except ExportError:
            return False
        return all(has_weights(folder / p, half) for p in networks(index))

    if offline:
        return offline_copy(name, complete)
    commit, files = ask(name)
    if "model_index.json" not in files:
        raise ExportError(f"{name}: has no model_index.json: not a diffusers pipeline")
    try:
        index = huggingface_hub.hf_hub_download(name, "model_index.json", revision=commit)
    except Exception as e:
        raise unreachable(name, e) from None
    index = source.read_json(index)
    # Before gigabytes of a pipeline that is not supported are fetched.
    kinds.check_pipeline(index, f"{name}/model_index.json")
    check_weights(name, files, networks(index))
    wanted = choose(files, [*networks(index), *OTHERS], half) | {"model_index.json": files["model_index.json"]}
    return fetch(name, commit, wanted, say)


def fetch_vae(name, offline, say, half=False):
    """-> the local folder of an autoencoder's repository."""
    if offline:
        return offline_copy(name, lambda folder: has_weights(folder, half))
    commit, files = ask(name)
    check_weights(name, files, [""])
    return fetch(name, commit, choose(files, [""], half), say)
