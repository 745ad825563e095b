"""Writes a diffusers folder as a single-file checkpoint: the names of the original training code, for the architectures here."""

import re

import safetensors.torch
import torch

from export import source

RESNET = {"norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0", "conv2": "out_layers.3", "conv_shortcut": "skip_connection"}
UNET = {
    "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2", "add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2",
}
OPEN_CLIP = {
    "layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj", "self_attn.out_proj": "attn.out_proj",
}


def unet_name(name, config):
    """diffusers' name of a U-Net tensor to the original one."""
    for ours, theirs in UNET.items():
        if name.startswith(ours + "."):
            return theirs + name[len(ours) :]
    per = config["layers_per_block"] + 1
    block = re.match(r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.*)", name)
    if block:
        side, level, what, index, rest = block[1], int(block[2]), block[3], int(block[4]), block[5]
        if what == "downsamplers":
            return f"input_blocks.{(level + 1) * per}.0.op." + rest.removeprefix("conv.")
        if what == "upsamplers":
            attention = "CrossAttn" in config["up_block_types"][level]
            return f"output_blocks.{level * per + per - 1}.{2 if attention else 1}.{rest}"
        prefix = f"input_blocks.{1 + level * per + index}" if side == "down" else f"output_blocks.{level * per + index}"
    else:
        block = re.match(r"mid_block\.(resnets|attentions)\.(\d+)\.(.*)", name)
        what, rest = block[1], block[3]
        return f"middle_block.{1 if what == 'attentions' else 2 * int(block[2])}." + (rest if what == "attentions" else resnet(rest))
    return f"{prefix}.1.{rest}" if what == "attentions" else f"{prefix}.0.{resnet(rest)}"


def resnet(rest):
    first, _, last = rest.partition(".")
    return f"{RESNET[first]}.{last}"


def vae_name(name, levels):
    """diffusers' name of a KL autoencoder's tensor to the original one."""
    name = re.sub(r"encoder\.down_blocks\.(\d+)\.resnets\.(\d+)", r"encoder.down.\1.block.\2", name)
    name = re.sub(r"encoder\.down_blocks\.(\d+)\.downsamplers\.0", r"encoder.down.\1.downsample", name)
    name = re.sub(r"decoder\.up_blocks\.(\d+)\.resnets\.(\d+)", lambda m: f"decoder.up.{levels - 1 - int(m[1])}.block.{m[2]}", name)
    name = re.sub(r"decoder\.up_blocks\.(\d+)\.upsamplers\.0", lambda m: f"decoder.up.{levels - 1 - int(m[1])}.upsample", name)
    name = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", name)
    name = name.replace("mid_block.attentions.0", "mid.attn_1").replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
    for ours, theirs in {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}.items():
        name = name.replace(f"attn_1.{ours}.", f"attn_1.{theirs}.")
    return name


def clip(model, prefix):
    """CLIP ViT-L as transformers has it, with a prefix."""
    return {f"{prefix}text_model.{k.removeprefix('text_model.')}": v for k, v in model.state_dict().items()}


def open_clip(model, prefix):
    """A text encoder under OpenCLIP's names, queries, keys and values in one matrix."""
    state = {k.removeprefix("text_model."): v for k, v in model.state_dict().items()}
    out = {"token_embedding.weight": state["embeddings.token_embedding.weight"], "positional_embedding": state["embeddings.position_embedding.weight"]}
    for end in ("weight", "bias"):
        out[f"ln_final.{end}"] = state[f"final_layer_norm.{end}"]
    width = state["final_layer_norm.weight"].numel()
    out["text_projection"] = state["text_projection.weight"].T.contiguous() if "text_projection.weight" in state else torch.zeros(width, width)
    for n in range(model.config.num_hidden_layers):
        layer, target = f"encoder.layers.{n}.", f"transformer.resblocks.{n}."
        for end in ("weight", "bias"):
            out[f"{target}attn.in_proj_{end}"] = torch.cat([state[f"{layer}self_attn.{p}_proj.{end}"] for p in "qkv"])
            for ours, theirs in OPEN_CLIP.items():
                out[f"{target}{theirs}.{end}"] = state[f"{layer}{ours}.{end}"]
    return {prefix + k: v for k, v in out.items()}


def tensors(networks, config, xl):
    """{original name: tensor} of {part: network}; `config` is the U-Net's."""
    out = {"model.diffusion_model." + unet_name(k, config): v for k, v in networks["unet"].state_dict().items()}
    vae = networks["vae"]
    for k, v in vae.state_dict().items():
        name = vae_name(k, len(vae.config.block_out_channels))
        # Its attention was made of 1×1 convolutions.
        out["first_stage_model." + name] = v[:, :, None, None] if ".attn_1." in name and v.dim() == 2 else v
    text = networks["text_encoder"]
    if xl:
        out |= clip(text, "conditioner.embedders.0.transformer.")
        out |= open_clip(networks["text_encoder_2"], "conditioner.embedders.1.model.")
    elif text.config.hidden_act == "gelu":
        out |= open_clip(text, "cond_stage_model.model.")
    else:
        out |= clip(text, "cond_stage_model.transformer.")
    return out


def write(folder, path, metadata=None, extra=None):
    """The diffusers folder as one .safetensors file."""
    origin = source.FolderSource(folder)
    networks = {part: origin.load(part) for part in ["unet", "vae", *origin.text_encoders]}
    found = tensors(networks, origin.config("unet"), origin.xl) | (extra or {})
    safetensors.torch.save_file({k: v.clone().contiguous() for k, v in found.items()}, path, metadata)
    return path
