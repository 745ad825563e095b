"""Which autoencoder a model folder gets."""

import pathlib

from . import hashing, hub, source
from .errors import ExportError
from .kinds import architecture

CLASSES = ("AutoencoderKL", "AutoencoderTiny")
TINY = {"sd1": "madebyollin/taesd", "sd2": "madebyollin/taesd", "sdxl": "madebyollin/taesdxl"}


class Vae:
    """An autoencoder to be loaded. `label` goes to the manifest: tiny, full or the folder's name."""

    def __init__(self, label, config, class_name, load, digest, elements, where):
        self.label, self.config, self.class_name, self.where = label, config, class_name, where
        self.load, self.digest, self.elements = load, digest, elements


def of_folder(folder, label, half):
    """An autoencoder in a folder of its own."""
    folder = pathlib.Path(folder)
    if not folder.is_dir():
        raise ExportError(f"--vae {folder}: no such folder; expected tiny, full, or a diffusers folder of an AutoencoderTiny or AutoencoderKL")
    if not (folder / "config.json").exists() and (folder / "vae" / "config.json").exists():
        folder = folder / "vae"
    config = source.read_json(folder / "config.json")
    name = config.get("_class_name")
    if name not in CLASSES:
        raise ExportError(f"{folder / 'config.json'}: _class_name is {name!r}, expected {' or '.join(CLASSES)}")
    files, _ = source.weight_files(folder, half)
    return Vae(
        label, config, name, lambda: source.load_network(folder, "", name, subfolder=False, half=half),
        lambda: hashing.of_value([config, [hashing.of_file(f) for f in files]]), lambda: sum(source.elements(f) for f in files), folder / "config.json",
    )


def open_vae(options, origin, say):
    """What --vae asks for."""
    half = options.dtype == "f16"
    if options.vae == "full":
        return Vae(
            "full", origin.config("vae"), origin.index["vae"][1], lambda: origin.load("vae"), lambda: origin.digest("vae"), lambda: origin.elements("vae"),
            f"{origin.label}: vae",
        )
    if options.vae == "tiny":
        name = TINY[architecture(origin.xl, origin.config("unet"))]
        return of_folder(hub.fetch_vae(name, options.offline, say, half), "tiny", half)
    folder = pathlib.Path(options.vae)
    return of_folder(folder, folder.resolve().name, half)


def check(vae, unet_config):
    """An error for an autoencoder that belongs to another kind of model."""
    blocks = vae.config.get("block_out_channels") or vae.config.get("decoder_block_out_channels")
    if vae.class_name == "AutoencoderTiny" and not blocks:
        vae.config["block_out_channels"] = blocks = [64, 64, 64, 64]  # diffusers' default
    if not blocks:
        raise ExportError(f"{vae.where}: block_out_channels is missing")
    for key in ("latents_mean", "latents_std", "shift_factor"):
        if vae.config.get(key):
            raise ExportError(f"{vae.where}: {key} is set: an autoencoder whose latents are shifted or scaled by channel is not supported")
    channels = vae.config.get("latent_channels", 4)
    if channels != unet_config["in_channels"]:
        raise ExportError(f"{vae.where}: the autoencoder's latents have {channels} channels, the U-Net wants {unet_config['in_channels']}: it belongs to another kind of model")
