"""Writes a diffusers folder of a real architecture with random weights: `python -m export.random_model KIND FOLDER`, in tools/.

For tests of export, loading and speed where the weights of published models cannot be had. The networks are made of bf16 or f16 weights at
once, so that SDXL needs 7 GB of memory and not 28. Weights are drawn narrowly enough for activations to stay finite in f16.
"""

import argparse
import copy
import json
import pathlib
import sys

import diffusers
import torch
import transformers

from . import single_file, source, vocabulary

KINDS = {
    # Name: (built-in configuration, autoencoder, further changes to the U-Net's configuration).
    "sd15": ("sd15", "full", {}),
    "sd15-tiny-vae": ("sd15", "tiny", {}),
    "lcm": ("sd15", "full", {"time_cond_proj_dim": 256}),
    "sd-turbo": ("sd21", "tiny", {}),
    "sd21": ("sd21-v", "full", {}),
    "sdxl": ("sdxl", "full", {}),
    "sdxl-turbo": ("sdxl", "tiny", {}),
}
PARTS = ("text_encoder", "text_encoder_2", "unet", "vae")
"""In the order in which their weights are drawn."""
TINY_TEXT = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_hidden_layers": 3, "projection_dim": 32}


def tiny(kind, configs):
    """Shrinks configurations to networks of two levels and about a million weights, most of them token embeddings; every kind of layer is kept."""
    unet, xl = configs["unet"], KINDS[kind][0] == "sdxl"
    down, up = ["CrossAttnDownBlock2D", "DownBlock2D"], ["UpBlock2D", "CrossAttnUpBlock2D"]
    unet |= {"down_block_types": down[::-1] if xl else down, "up_block_types": up[::-1] if xl else up}
    unet |= {"block_out_channels": [32, 64], "layers_per_block": 1, "norm_num_groups": 8, "sample_size": 16, "cross_attention_dim": 32}
    unet["attention_head_dim"] = [2, 4] if isinstance(unet["attention_head_dim"], list) else 2
    if "time_cond_proj_dim" in unet:
        unet["time_cond_proj_dim"] = 16
    if xl:
        unet |= {"transformer_layers_per_block": [1, 2], "addition_time_embed_dim": 8, "cross_attention_dim": 32 + 48, "projection_class_embeddings_input_dim": 80}
    for part in ("text_encoder", "text_encoder_2"):
        if part in configs:
            configs[part] |= TINY_TEXT
    if xl:
        # Of another width than the first, as it really is: readers of single-file checkpoints tell them apart by it.
        configs["text_encoder_2"] |= {"hidden_size": 48}
    vae = configs["vae"]
    if vae["_class_name"] == "AutoencoderKL":
        vae |= {"block_out_channels": [16, 32], "layers_per_block": 1, "norm_num_groups": 8, "sample_size": 32,
                "down_block_types": ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2}
    else:
        vae |= {"encoder_block_out_channels": [16] * 2, "decoder_block_out_channels": [16] * 2, "num_encoder_blocks": [1] * 2, "num_decoder_blocks": [1] * 2}


def fill(model, generator):
    """Draws the weights in place: matrices with 1/sqrt(fan-in), norms near one, biases small. Sizes of activations are kept through the layers."""
    for module in model.modules():
        for name, p in module.named_parameters(recurse=False):
            if p.dim() >= 2:
                embedding = isinstance(module, torch.nn.Embedding)
                deviation = 0.05 if embedding else (p[0].numel()) ** -0.5
                p.data.normal_(0, deviation, generator=generator)
            elif name == "weight":
                p.data.normal_(1, 0.05, generator=generator)
            else:
                p.data.normal_(0, 0.02, generator=generator)
    return model


def build(cls, config, dtype, generator):
    """A network of `cls` with random weights of `dtype`, never in f32 if that is another type."""
    with torch.device("meta"):
        # A transformers class takes a configuration object, a diffusers class its fields.
        model = cls(cls.config_class(**config)) if hasattr(cls, "config_class") and cls.config_class else cls.from_config(config)
    buffers = {n: b for n, b in model.named_buffers()}
    model = model.to(dtype).to_empty(device="cpu")
    for name in buffers:
        # The only buffers of these networks are CLIP's position ids.
        assert name.endswith("position_ids"), name
        owner = model.get_submodule(name.rpartition(".")[0])
        owner.position_ids = torch.arange(buffers[name].shape[-1]).expand(1, -1)
    return fill(model, generator).eval()


def configurations(kind, small, prediction=None):
    """{part: configuration} of a kind of model."""
    base, vae, changes = KINDS[kind]
    folder = single_file.CONFIGS / base
    index = source.read_json(folder / "model_index.json")
    configs = {p: source.read_json(folder / p / "config.json") for p in ("unet", "vae", "text_encoder", "text_encoder_2") if (folder / p).is_dir()}
    configs["scheduler"] = source.read_json(folder / "scheduler" / "scheduler_config.json")
    configs["unet"] |= changes
    if vae == "tiny":
        blocks = {"encoder_block_out_channels": [64] * 4, "decoder_block_out_channels": [64] * 4, "num_encoder_blocks": [1, 3, 3, 3], "num_decoder_blocks": [3, 3, 3, 1]}
        configs["vae"] = {"_class_name": "AutoencoderTiny", "latent_channels": 4, "scaling_factor": 1.0, **blocks}
    if kind == "lcm":
        index["_class_name"] = "LatentConsistencyModelPipeline"
        configs["scheduler"] |= {"_class_name": "LCMScheduler", "original_inference_steps": 50}
    if "turbo" in kind:
        configs["scheduler"] |= {"_class_name": "EulerDiscreteScheduler", "timestep_spacing": "trailing"}
    if prediction:
        configs["scheduler"]["prediction_type"] = prediction
    index["vae"] = ["diffusers", configs["vae"]["_class_name"]]
    index["scheduler"] = ["diffusers", configs["scheduler"]["_class_name"]]
    configs["index"] = index
    if small:
        configs = copy.deepcopy(configs)
        tiny(kind, configs)
    return configs


def write(kind, folder, small=False, dtype=torch.float32, seed=0, prediction=None):
    """Writes the diffusers folder, one network in memory at a time."""
    folder = pathlib.Path(folder)
    configs = configurations(kind, small, prediction)
    index = configs.pop("index")
    generator = torch.Generator().manual_seed(seed)
    folder.mkdir(parents=True, exist_ok=True)
    for part in PARTS:
        if part in configs:
            draw(part, configs, index, dtype, generator).save_pretrained(folder / part, safe_serialization=True)
    write_rest(kind, folder, configs, index)
    return folder


def draw(part, configs, index, dtype, generator):
    """A network of `configurations`, with random weights of `dtype`."""
    name = index[part][1]
    cls = getattr(transformers if name.startswith("CLIP") else diffusers, name)
    return build(cls, {k: v for k, v in configs[part].items() if k != "_class_name"}, dtype, generator)


def write_rest(kind, folder, configs, index):
    """What a folder has beside its networks: tokenizers, the scheduler's configuration, the index."""
    for part in ("tokenizer", "tokenizer_2"):
        if part in index:
            vocabulary.write(folder / part, source.read_json(single_file.CONFIGS / KINDS[kind][0] / part / "tokenizer_config.json"))
    (folder / "scheduler").mkdir(exist_ok=True)
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(configs["scheduler"], indent=2) + "\n")
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")


def main(argv=None):
    p = argparse.ArgumentParser(prog="python -m export.random_model", description=__doc__.split("\n\n")[0])
    p.add_argument("kind", choices=KINDS)
    p.add_argument("folder", type=pathlib.Path)
    p.add_argument("--tiny", action="store_true", help="networks of two levels and about a million weights, for tests")
    p.add_argument("--dtype", choices=("f32", "f16", "bf16"), default="f16", help="type of the weights in the files (f16)")
    p.add_argument("--seed", type=int, default=0)
    args = p.parse_args(argv)
    diffusers.utils.logging.set_verbosity_error()
    dtype = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}[args.dtype]
    write(args.kind, args.folder, args.tiny, dtype, args.seed)
    return 0


if __name__ == "__main__":
    sys.exit(main())
