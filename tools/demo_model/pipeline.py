"""The plugin's arithmetic in numpy: the exported model on single pictures."""

import json
import math
import pathlib

import numpy as np
import onnxruntime as ort
from tokenizers import Tokenizer


def step_list(steps, strength):
    """Indices into the 50 LCM timesteps, as the plugin derives them."""
    first = round(50 * (1 - strength))
    return [first + math.floor(i * (50 - first) / steps) for i in range(steps)]


class Pipeline:
    def __init__(self, folder, threads=2):
        folder = pathlib.Path(folder)
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        # Each session has its own threads: those of the one that has just run would spin beside the next one's.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")

        def session(name):
            return ort.InferenceSession(str(folder / name / "model.onnx"), options, providers=["CPUExecutionProvider"])

        self.encoder, self.decoder = session("vae_encoder"), session("vae_decoder")
        self.unet, self.text = session("unet"), session("text_encoder")
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer/tokenizer.json"))
        config = json.loads((folder / "tokenizer/tokenizer_config.json").read_text())
        self.length, self.pad = config["model_max_length"], self.tokenizer.token_to_id(config["pad_token"])
        scheduler = json.loads((folder / "scheduler/scheduler_config.json").read_text())
        assert scheduler["prediction_type"] == "sample"
        self.scale = json.loads((folder / "vae_encoder/config.json").read_text())["scaling_factor"]
        betas = np.linspace(scheduler["beta_start"] ** 0.5, scheduler["beta_end"] ** 0.5, 1000) ** 2
        self.alpha = np.cumprod(1 - betas)

    def embed(self, prompt):
        """Prompt -> float32 [1, L, D]."""
        ids = self.tokenizer.encode(prompt).ids
        ids = ids if len(ids) <= self.length else ids[: self.length - 1] + [self.pad]
        ids = np.array([ids + [self.pad] * (self.length - len(ids))], np.int64)
        return self.text.run(None, {"input_ids": ids})[0]

    def encode(self, picture):
        """uint8 [H, W, 3] -> latents [1, C, H/8, W/8]."""
        x = picture.astype(np.float32).transpose(2, 0, 1)[None] / 127.5 - 1
        return self.encoder.run(None, {"sample": x})[0] * np.float32(self.scale)

    def decode(self, z):
        """Latents [1, C, h, w] -> uint8 [8h, 8w, 3]."""
        y = self.decoder.run(None, {"latent_sample": z / np.float32(self.scale)})[0][0].transpose(1, 2, 0)
        return np.clip(y * 127.5 + 128, 0, 255).astype(np.uint8)

    def __call__(self, picture, prompt, steps=2, strength=0.36, seed=2):
        """uint8 [H, W, 3] -> uint8 [H, W, 3] in the style of the prompt."""
        text, z = self.embed(prompt), self.encode(picture)
        noise = np.random.default_rng(seed).standard_normal((steps, *z.shape), np.float32)
        for i, index in enumerate(step_list(steps, strength)):
            t = 999 - 20 * index
            a, b = np.float32(self.alpha[t] ** 0.5), np.float32((1 - self.alpha[t]) ** 0.5)
            feed = {"sample": a * z + b * noise[i], "timestep": np.array([t], np.float32), "encoder_hidden_states": text}
            z = self.unet.run(None, feed)[0]
        return self.decode(z)
