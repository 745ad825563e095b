"""Writes the trained networks as a folder of ONNX files and configurations.

Weights are stored as float16 initialisers with a Cast to float32 behind each:
half the size on disk, float32 arithmetic at run time.
"""

import json
import logging
import pathlib
import warnings

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper

import text as words
from autoencoder import LATENT, Decoder, Encoder
from unet import CHANNELS, UNet

OPSET = 17
SCHEDULER = {
    "_class_name": "LCMScheduler",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "clip_sample": False,
    "num_train_timesteps": 1000,
    "original_inference_steps": 50,
    "prediction_type": "sample",
    "rescale_betas_zero_snr": False,
    "set_alpha_to_one": True,
    "steps_offset": 1,
    "thresholding": False,
    "timestep_scaling": 10.0,
    "timestep_spacing": "leading",
    "trained_betas": None,
}

DEFAULTS = """name = "Demo styles"
license = "MIT OR Apache-2.0"
source = "tools/demo_model, procedurally generated pictures only"

[defaults]
prompt = "neon lights, glowing edges"
steps = 2
strength = 0.24
guidance_scale = 1.0
cfg_type = "none"
size = 256

[limits]
multiple = 32
"""


def load(work, stage="unet"):
    """-> dict of the trained modules and the tokenizer, ready for inference."""
    tok = words.build_tokenizer()
    nets = {"encoder": Encoder(), "decoder": Decoder(), "unet": UNet(), "text": words.TextEncoder(tok.get_vocab_size())}
    for name in ("ae", stage):
        saved = torch.load(pathlib.Path(work) / f"{name}.pt", weights_only=True)
        weights = saved.get("ema") or saved["modules"]
        for key in weights:
            nets[key].load_state_dict(weights[key])
    for net in nets.values():
        net.eval().requires_grad_(False)
    return nets, tok


def half(model):
    """Float32 initialisers of 64 values or more -> float16 plus a Cast."""
    graph, casts, kept = model.graph, [], []
    for t in graph.initializer:
        if t.data_type != TensorProto.FLOAT or np.prod(t.dims) < 64:
            kept.append(t)
            continue
        name = t.name + "_f16"
        kept.append(numpy_helper.from_array(numpy_helper.to_array(t).astype(np.float16), name))
        casts.append(helper.make_node("Cast", [name], [t.name], name=t.name + "_cast", to=TensorProto.FLOAT))
    del graph.initializer[:]
    graph.initializer.extend(kept)
    nodes = casts + list(graph.node)
    del graph.node[:]
    graph.node.extend(nodes)
    return model


def graph(net, inputs, names, output, axes, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            net, inputs, str(path), input_names=names, output_names=[output], dynamic_axes=axes, opset_version=OPSET, dynamo=False
        )
    model = half(onnx.load(str(path)))
    model.producer_name = "demo-model"
    model.doc_string = ""
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, str(path))


def write(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2) + "\n")


def export(nets, tok, out):
    """Everything of the model folder that programs read."""
    out = pathlib.Path(out)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    L, D, eos = words.LENGTH, words.WIDTH, tok.token_to_id(words.EOS)
    image = {0: "batch", 2: "height", 3: "width"}
    graph(nets["encoder"], (torch.randn(1, 3, 64, 96),), ["sample"], "latent_sample",
          {"sample": image, "latent_sample": image}, out / "vae_encoder/model.onnx")
    graph(nets["decoder"], (torch.randn(1, LATENT, 8, 12),), ["latent_sample"], "sample",
          {"sample": image, "latent_sample": image}, out / "vae_decoder/model.onnx")
    graph(nets["text"], (torch.zeros(1, L, dtype=torch.int64),), ["input_ids"], "last_hidden_state",
          {"input_ids": {0: "batch"}, "last_hidden_state": {0: "batch"}}, out / "text_encoder/model.onnx")
    graph(nets["unet"], (torch.randn(2, LATENT, 8, 12), torch.tensor([300.0, 100.0]), torch.randn(2, L, D)),
          ["sample", "timestep", "encoder_hidden_states"], "out_sample",
          {"sample": image, "timestep": {0: "batch"}, "encoder_hidden_states": {0: "batch"}, "out_sample": image},
          out / "unet/model.onnx")

    vae = {"_class_name": "AutoencoderTiny", "in_channels": 3, "out_channels": 3, "latent_channels": LATENT,
           "block_out_channels": [48, 64, 64, 96], "scaling_factor": 1.0, "shift_factor": 0.0}
    write(out / "vae_encoder/config.json", vae)
    write(out / "vae_decoder/config.json", vae)
    write(out / "unet/config.json", {
        "_class_name": "UNet2DConditionModel", "in_channels": LATENT, "out_channels": LATENT, "sample_size": 32,
        "cross_attention_dim": D, "block_out_channels": list(CHANNELS)})
    write(out / "text_encoder/config.json", {
        "architectures": ["CLIPTextModel"], "model_type": "clip_text_model", "hidden_size": D, "intermediate_size": 3 * D,
        "num_attention_heads": 4, "num_hidden_layers": 2, "max_position_embeddings": L, "vocab_size": tok.get_vocab_size(),
        "bos_token_id": tok.token_to_id(words.BOS), "eos_token_id": eos, "pad_token_id": eos})
    write(out / "scheduler/scheduler_config.json", SCHEDULER)
    write(out / "tokenizer/tokenizer_config.json", {
        "bos_token": words.BOS, "eos_token": words.EOS, "pad_token": words.EOS, "unk_token": words.EOS,
        "model_max_length": L, "tokenizer_class": "PreTrainedTokenizerFast"})
    tok.save(str(out / "tokenizer/tokenizer.json"))
    write(out / "model_index.json", {
        "_class_name": "StableDiffusionPipeline",
        "scheduler": ["diffusers", "LCMScheduler"], "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "PreTrainedTokenizerFast"], "unet": ["diffusers", "UNet2DConditionModel"],
        "vae_encoder": ["diffusers", "AutoencoderTiny"], "vae_decoder": ["diffusers", "AutoencoderTiny"]})
    (out / "streamdiffusion.toml").write_text(DEFAULTS)
