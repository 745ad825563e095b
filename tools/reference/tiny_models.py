"""Tiny random pipelines of the architectures that people use, made by diffusers from a seed.

They know nothing, but each input matters: the weights are set so that prompt, timestep, picture and added conditioning
all show in the result, and the U-Net's last layer is fitted to predict what it should (noise or velocity) about as
well as a linear layer can, so that latents keep their range over any number of steps, as in a trained model.
"""

import json
from pathlib import Path

import numpy as np
import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderTiny,
    LatentConsistencyModelPipeline,
    LCMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

ROOT = Path(__file__).resolve().parents[2]
TOKENIZER = ROOT / "tests" / "data" / "parity" / "model" / "tokenizer" / "tokenizer.json"
NAMES = ("sd1", "sd2", "sdxl", "lcm")


def vocabulary():
    """Tokens and merges of the small CLIP tokenizer of the test data."""
    tokenizer = json.loads(TOKENIZER.read_text())
    tokens = tokenizer["model"]["vocab"] | {t["content"]: t["id"] for t in tokenizer["added_tokens"]}
    return tokens, [tuple(m.split(" ")) if isinstance(m, str) else tuple(m) for m in tokenizer["model"]["merges"]]


def tokenizer(length, pad="<|endoftext|>"):
    tokens, merges = vocabulary()
    return CLIPTokenizer(vocab=tokens, merges=merges, pad_token=pad, model_max_length=length)


def text_encoder(kind, width, length, act="quick_gelu", layers=2, **config):
    tokens, _ = vocabulary()
    config = {"bos_token_id": tokens["<|startoftext|>"], "eos_token_id": tokens["<|endoftext|>"]} | config
    model = kind(
        CLIPTextConfig(
            vocab_size=len(tokens),
            hidden_size=width,
            intermediate_size=16,
            num_hidden_layers=layers,
            num_attention_heads=4,
            max_position_embeddings=length,
            hidden_act=act,
            pad_token_id=1,
            **config,
        )
    )
    # As drawn, the embeddings are so small that the penultimate layer hardly depends on the words.
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "token_embedding" in name:
                weight.mul_(40)
            elif "position_embedding" in name:
                weight.mul_(10)
            elif "text_projection" in name:
                weight.mul_(8)
    return model


def tiny_vae(width=8):
    four = (width,) * 4
    return AutoencoderTiny(
        encoder_block_out_channels=four,
        decoder_block_out_channels=four,
        num_encoder_blocks=(1, 1, 1, 1),
        num_decoder_blocks=(1, 1, 1, 1),
    )


def kl_vae(scaling_factor, width=4):
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(width,) * 4,
        layers_per_block=1,
        norm_num_groups=2,
        latent_channels=4,
        scaling_factor=scaling_factor,
        sample_size=64,
    )


def unet(text_width, blocks=(8, 8), cross=(True, False), **config):
    down = tuple("CrossAttnDownBlock2D" if c else "DownBlock2D" for c in cross)
    up = tuple("CrossAttnUpBlock2D" if c else "UpBlock2D" for c in reversed(cross))
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=blocks,
        layers_per_block=1,
        down_block_types=down,
        up_block_types=up,
        cross_attention_dim=text_width,
        norm_num_groups=4,
        **config,
    )


def scheduler(**config):
    return LCMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=True,
        steps_offset=1,
        **config,
    )


def pictures(count, height, width, seed=0):
    """A disc that moves over a moving gradient, with a checked corner: uint8 [count, height, width, 3]."""
    rng = np.random.default_rng(seed)
    colours = rng.integers(0, 256, (4, 3)).astype(np.float64)
    y, x = np.mgrid[0:height, 0:width]
    out = np.empty((count, height, width, 3), np.uint8)
    for k in range(count):
        s = ((x + 2 * y + 7 * k) % (width + 2 * height))[..., None] / (width + 2 * height)
        picture = (1 - s) * colours[0] + s * colours[1]
        disc = (x - width * (0.25 + 0.12 * k)) ** 2 + (y - height * 0.45) ** 2 < (height * 0.24) ** 2
        picture[disc] = colours[2]
        corner = (x > width * 0.7) & (y > height * 0.7) & ((x // 4 + y // 4) % 2 == 0)
        picture[corner] = colours[3]
        out[k] = np.round(picture)
    return out


def as_tensor(frames):
    """uint8 [n, H, W, 3] to [n, 3, H, W] in [-1, 1]."""
    return torch.from_numpy(frames.astype(np.float32) / 255 * 2 - 1).permute(0, 3, 1, 2).contiguous()


@torch.no_grad()
def calibrate_vae(vae):
    """Scales the last layers so that latents have a deviation of one and decoded latents one of a half."""
    frames = as_tensor(np.concatenate([pictures(4, 64, 64, seed) for seed in range(8)]))
    generator = torch.Generator().manual_seed(5)
    tiny = isinstance(vae, AutoencoderTiny)
    if tiny:
        encode = lambda: vae.encode(frames).latents
        last = vae.encoder.layers[-1]
        channels = slice(None)
        out = vae.decoder.layers[-1]
    else:
        encode = lambda: vae.encode(frames).latent_dist.mean * vae.config.scaling_factor
        last = vae.quant_conv
        channels = slice(0, 4)
        out = vae.decoder.conv_out
    z = encode()
    std, mean = z.std((0, 2, 3)), z.mean((0, 2, 3))
    scale = 1 if tiny else vae.config.scaling_factor
    last.weight[channels] /= std[:, None, None, None]
    last.bias[channels] = (last.bias[channels] - mean / scale) / std
    if not tiny:
        # A small variance, but not none: a wrong use of the distribution would show.
        last.weight[4:] *= 0.1
        last.bias[4:] = -2.0
    z = encode() + 0.3 * torch.randn(encode().shape, generator=generator)
    factor = 1 if tiny else vae.config.scaling_factor
    decoded = vae.decode(z / factor).sample
    gain = 0.5 / decoded.std((0, 2, 3))
    out.weight *= gain[:, None, None, None]
    # A tiny decoder ends with 2y - 1, so its bias counts twice.
    out.bias -= vae.decode(z / factor).sample.mean((0, 2, 3)) / (2 if tiny else 1)


@torch.no_grad()
def calibrate_unet(pipe, extra):
    """Makes text and time count, then fits the last layer to noise (or velocity) on noised latents.

    `extra(n, generator)` gives n random rows of the U-Net's further inputs.
    """
    net, vae = pipe.unet, pipe.vae
    # Where only the middle block sees the text, it must speak up.
    gain = 2.5 if "CrossAttnDownBlock2D" in net.config.down_block_types else 6
    for name, weight in net.named_parameters():
        if "attn2.to_q" in name or "attn2.to_k" in name:
            weight.mul_(3)
        elif "attn2.to_v" in name or "attn2.to_out.0.weight" in name:
            weight.mul_(gain)
        elif "time_emb_proj.weight" in name or "add_embedding" in name and "weight" in name:
            weight.mul_(2)
        elif "cond_proj" in name:
            weight.mul_(4)
    generator = torch.Generator().manual_seed(6)
    frames = as_tensor(np.concatenate([pictures(4, 64, 64, seed) for seed in range(16)]))
    if isinstance(vae, AutoencoderTiny):
        z = vae.encode(frames).latents
    else:
        z = vae.encode(frames).latent_dist.mean * vae.config.scaling_factor
    z = z.repeat(4, 1, 1, 1)
    n = len(z)
    noise = torch.randn(z.shape, generator=generator)
    t = torch.randint(1, 50, (n,), generator=generator) * 20 - 1
    alpha = pipe.scheduler.alphas_cumprod[t].view(-1, 1, 1, 1)
    x = alpha.sqrt() * z + (1 - alpha).sqrt() * noise
    velocity = pipe.scheduler.config.prediction_type == "v_prediction"
    target = alpha.sqrt() * noise - (1 - alpha).sqrt() * z if velocity else noise
    seen = []
    hook = net.conv_out.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    net(x, t, **extra(n, generator))
    hook.remove()
    features = torch.nn.functional.unfold(seen[0].double(), 3, padding=1)
    features = features.transpose(1, 2).reshape(-1, features.shape[1])
    wanted = target.double().flatten(2).transpose(1, 2).reshape(-1, target.shape[1])
    gram = features.T @ features
    ridge = 1e-3 * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
    solution = torch.linalg.solve(gram + ridge, features.T @ wanted)
    own = net.conv_out.weight.clone()
    fitted = solution.T.reshape(own.shape).float()
    # What the layer was drawn as stays in it, at a strength that shows: a fit alone would hide the prompt.
    drawn = features @ own.flatten(1).T.double()
    net.conv_out.weight.copy_(fitted + 0.4 * own / drawn.std().float())
    net.conv_out.bias.zero_()


def text_rows(pipe, n, generator):
    """Embeddings of random words: [n, L, D], and the pooled ones where there are two encoders."""
    letters = "abcdefghijklmnopqrstuvwxyz     "
    # Letters are tokens, or parts of them, so this many fit.
    length = min(40, pipe.tokenizer.model_max_length - 2)
    picks = torch.randint(0, len(letters), (n, length), generator=generator)
    words = ["".join(letters[i] for i in row) for row in picks.tolist()]
    embeds, _, *pooled = pipe.encode_prompt(words, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False)
    return embeds, (pooled[0] if pooled else None)


def sd1():
    text = text_encoder(CLIPTextModel, 32, 77)
    parts = {
        "vae": kl_vae(0.18215),
        "text_encoder": text,
        "tokenizer": tokenizer(77),
        "unet": unet(32, attention_head_dim=4),
        "scheduler": scheduler(),
    }
    return StableDiffusionPipeline(**parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False)


def sd2():
    # Two heads in one block, four in the other; padded with "!" and a gelu, as Stable Diffusion 2 is.
    text = text_encoder(CLIPTextModel, 48, 16, act="gelu")
    parts = {
        "vae": tiny_vae(),
        "text_encoder": text,
        "tokenizer": tokenizer(16, "!"),
        "unet": unet(48, cross=(True, False), attention_head_dim=[2, 4], use_linear_projection=True),
        "scheduler": scheduler(prediction_type="v_prediction", rescale_betas_zero_snr=True),
    }
    return StableDiffusionPipeline(**parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False)


def sdxl():
    return StableDiffusionXLPipeline(
        vae=kl_vae(0.13025),
        text_encoder=text_encoder(CLIPTextModel, 32, 77),
        # The end token is the 2 of Stable Diffusion XL's own file: it stands for "the token with the highest id".
        text_encoder_2=text_encoder(
            CLIPTextModelWithProjection, 40, 77, act="gelu", layers=3, projection_dim=24, bos_token_id=0, eos_token_id=2
        ),
        tokenizer=tokenizer(77),
        tokenizer_2=tokenizer(77, "!"),
        unet=unet(
            72,
            cross=(False, False),
            transformer_layers_per_block=[1, 2],
            attention_head_dim=[2, 4],
            use_linear_projection=True,
                        addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=6 * 8 + 24,
        ),
        scheduler=scheduler(),
        force_zeros_for_empty_prompt=True,
        add_watermarker=False,
    )


def lcm():
    return LatentConsistencyModelPipeline(
        vae=kl_vae(0.18215),
        text_encoder=text_encoder(CLIPTextModel, 32, 16),
        tokenizer=tokenizer(16),
        unet=unet(32, cross=(False, False), attention_head_dim=4, time_cond_proj_dim=32),
        scheduler=scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def guidance_row(pipe, guidance_embedding, n=1):
    """The U-Net's `timestep_cond`: guidance as a latent consistency model is told of it."""
    w = torch.full((n,), guidance_embedding - 1.0)
    return pipe.get_guidance_scale_embedding(w, embedding_dim=pipe.unet.config.time_cond_proj_dim)


def build(name):
    """The pipeline of `name`, the same each time."""
    torch.manual_seed(NAMES.index(name) + 11)
    pipe = {"sd1": sd1, "sd2": sd2, "sdxl": sdxl, "lcm": lcm}[name]()
    pipe.set_progress_bar_config(disable=True)
    for part in (pipe.unet, pipe.vae, pipe.text_encoder, getattr(pipe, "text_encoder_2", None)):
        if part is not None:
            part.eval().requires_grad_(False)
    calibrate_vae(pipe.vae)

    def extra(n, generator):
        embeds, pooled = text_rows(pipe, n, generator)
        inputs = {"encoder_hidden_states": embeds}
        if pooled is not None:
            sides = torch.randint(2, 9, (n, 2), generator=generator) * 16.0
            ids = torch.cat([sides, torch.zeros(n, 2), sides], 1)
            inputs["added_cond_kwargs"] = {"text_embeds": pooled, "time_ids": ids}
        if pipe.unet.config.time_cond_proj_dim:
            inputs["timestep_cond"] = guidance_row(pipe, 8.5, n)
        return inputs

    calibrate_unet(pipe, extra)
    return pipe


def save(pipe, folder):
    """Writes the diffusers folder, with the tokenizers' two older files beside the new one, as the hub's have them.

    The text encoder's weights get the names they have in public checkpoints. transformers 5 writes shorter ones, and
    transformers 4 (which Optimum needs) takes none of those, and draws all weights anew without an error.
    """
    pipe.save_pretrained(folder)
    weights = Path(folder) / "text_encoder" / "model.safetensors"
    values = load_file(weights)
    prefix = "" if any(k.startswith("text_model.") for k in values) else "text_model."
    save_file({prefix + k: v for k, v in values.items()}, weights, metadata={"format": "pt"})
    tokens, merges = vocabulary()
    for name in ("tokenizer", "tokenizer_2"):
        sub = Path(folder) / name
        if sub.is_dir():
            (sub / "vocab.json").write_text(json.dumps(tokens) + "\n")
            (sub / "merges.txt").write_text("#version: 0.2\n" + "".join(" ".join(m) + "\n" for m in merges))
