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
    check_scheduler_class(index["scheduler"][1], where)
    return xl


SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2")
PREDICTIONS = ("epsilon", "v_prediction", "sample")


def check_scheduler_class(name, where):
    """An error for schedulers of models whose noise is measured otherwise: their U-Nets want another input and give another output."""
    if "EDM" in str(name) or "FlowMatch" in str(name):
        raise ExportError(f"{where}: the scheduler is a {name}: models of the EDM and flow matching kinds are not supported")


def check_scheduler(config, where):
    """An error for a noise schedule that the element cannot follow. Defaults are those of its reader."""
    def number(key, default, kinds=(int, float)):
        value = config.get(key)
        value = default if value is None else value
        if isinstance(value, bool) or not isinstance(value, kinds):
            raise ExportError(f"{where}: {key} is {value!r}, expected a number")
        return value

    check_scheduler_class(config.get("_class_name"), where)
    for key, known in {"prediction_type": PREDICTIONS, "beta_schedule": SCHEDULES}.items():
        if config.get(key) is not None and config[key] not in known:
            raise ExportError(f"{where}: {key} is {config[key]!r}, expected {', '.join(known[:-1])} or {known[-1]}")
    if config.get("use_flow_sigmas"):
        raise ExportError(f"{where}: use_flow_sigmas is set: flow matching is not supported")
    steps = number("num_train_timesteps", 1000, int)
    if not 1 <= steps <= 10_000:
        raise ExportError(f"{where}: num_train_timesteps is {steps}, expected 1 to 10000")
    start, end = number("beta_start", 0.00085), number("beta_end", 0.012)
    if not 0 < start <= end < 1:
        raise ExportError(f"{where}: beta_start and beta_end are {start} and {end}, expected numbers between 0 and 1, the first not above the second")
    betas = config.get("trained_betas")
    if betas is not None and not (isinstance(betas, list) and len(betas) == steps and all(isinstance(b, (int, float)) and 0 < b < 1 for b in betas)):
        raise ExportError(f"{where}: trained_betas is not a list of num_train_timesteps ({steps}) numbers between 0 and 1")
    original = number("original_inference_steps", min(50, steps), int)
    if not 1 <= original <= steps:
        raise ExportError(f"{where}: original_inference_steps is {original}, expected 1 to num_train_timesteps ({steps})")
    scaling = number("timestep_scaling", 10.0)
    if not 0 < scaling < float("inf"):
        raise ExportError(f"{where}: timestep_scaling is {scaling}, expected a finite number above 0")


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
