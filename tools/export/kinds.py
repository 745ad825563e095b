"""Which pipelines and networks can be exported, and what kind of model they make."""

from .errors import ExportError

PIPELINES = {
    "StableDiffusionPipeline": False,
    "StableDiffusionImg2ImgPipeline": False,
    "LatentConsistencyModelPipeline": False,
    "LatentConsistencyModelImg2ImgPipeline": False,
    "StableDiffusionXLPipeline": True,
    "StableDiffusionXLImg2ImgPipeline": True,
}
"""Class in `model_index.json`: whether it is an XL one, with two text encoders."""

LATENT_CHANNELS = 4


def check_pipeline(index, where):
    """`model_index.json` -> whether it is an XL pipeline; an error that names what is not supported."""
    name = index.get("_class_name")
    if name not in PIPELINES:
        raise ExportError(
            f"{where}: the pipeline {name!r} is not supported, expected one of {', '.join(PIPELINES)} "
            "(no Stable Diffusion 3, Flux, ControlNet, inpainting, upscaling or video)"
        )
    xl = PIPELINES[name]
    needed = ["unet", "vae", "text_encoder", "tokenizer", "scheduler"] + (["text_encoder_2", "tokenizer_2"] if xl else [])
    for part in needed:
        if not (index.get(part) or [None, None])[1]:
            hint = "; an XL refiner is not supported" if xl and part in ("text_encoder", "tokenizer") else ""
            raise ExportError(f"{where}: the pipeline has no {part}{hint}")
    if index.get("requires_aesthetics_score"):
        raise ExportError(f"{where}: requires_aesthetics_score is set: an XL refiner is not supported")
    for part, classes in {
        "unet": ["UNet2DConditionModel"],
        "vae": ["AutoencoderKL", "AutoencoderTiny"],
        "text_encoder": ["CLIPTextModel"],
        "text_encoder_2": ["CLIPTextModelWithProjection"],
    }.items():
        found = (index.get(part) or [None, None])[1]
        if part in needed and found not in classes:
            raise ExportError(f"{where}: {part} is a {found}, expected {' or '.join(classes)}")
    return xl


def check_unet(config, xl, where):
    """An error for a U-Net that takes inputs no stream can give it."""
    channels = config.get("in_channels")
    if channels != LATENT_CHANNELS:
        what = {9: "an inpainting model", 8: "a picture-editing model", 7: "an upscaler", 5: "a depth-guided model"}.get(channels, "another kind of model")
        raise ExportError(f"{where}: in_channels of the U-Net is {channels}, expected {LATENT_CHANNELS}: {what} is not supported")
    if config.get("out_channels") != LATENT_CHANNELS:
        raise ExportError(f"{where}: out_channels of the U-Net is {config.get('out_channels')}, expected {LATENT_CHANNELS}")
    expected = "text_time" if xl else None
    for key, value in {"class_embed_type": None, "num_class_embeds": None, "encoder_hid_dim_type": None, "addition_embed_type": expected}.items():
        if config.get(key) != value:
            raise ExportError(f"{where}: {key} of the U-Net is {config.get(key)!r}, expected {value!r}: not supported")


def latent_multiple(unet_config):
    """What height and width of a latent must be multiples of: the U-Net halves them once per level but the last."""
    return 2 ** (len(unet_config["block_out_channels"]) - 1)


def vae_scale(vae_config):
    """Pixels per latent pixel each way."""
    blocks = vae_config.get("block_out_channels") or vae_config["decoder_block_out_channels"]
    return 2 ** (len(blocks) - 1)


def architecture(xl, unet_config):
    """`sd1`, `sd2` or `sdxl`, by the text embedding the U-Net wants."""
    if xl:
        return "sdxl"
    return "sd2" if unet_config.get("cross_attention_dim") == 1024 or unet_config.get("use_linear_projection") else "sd1"
