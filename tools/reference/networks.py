"""The networks of a pipeline behind one interface, run by diffusers or by ONNX Runtime from a model folder."""

import json
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from diffusers import AutoencoderTiny
from transformers import CLIPTokenizer

import tiny_models

GUIDANCE_EMBEDDING = 8.5
"""The guidance scale a latent consistency model is told of."""


def chunks(tokenizer, text, length):
    """Token ids of `text` in rows of `length`, each with its own start token, end token and padding. What stands between
    two spaces is in one row, if a row can hold it, as ComfyUI has it."""
    room = length - 2
    pieces = [[]]
    for word in text.split():
        ids = tokenizer(word, add_special_tokens=False).input_ids
        if len(pieces[-1]) + len(ids) > room >= len(ids):
            pieces.append([])
        for token in ids:
            if len(pieces[-1]) == room:
                pieces.append([])
            pieces[-1].append(token)
    rows = [[tokenizer.bos_token_id, *piece, tokenizer.eos_token_id] for piece in pieces]
    return [row + [tokenizer.pad_token_id] * (length - len(row)) for row in rows]


class Networks:
    """What both kinds share: how a text becomes what the U-Net is given."""

    def texts(self, case):
        """What the U-Net is given for the prompt and the negative prompt, equally long."""
        both = [self.rows(case["prompt"]), self.rows(case["negative-prompt"])]
        empty = self.rows("")
        count = max(len(rows[0]) for rows in both)
        for rows in both:
            for of_encoder, filler in zip(rows, empty):
                of_encoder += filler * (count - len(of_encoder))
        return [self.text(rows, case) for rows in both]

    def rows(self, text):
        return [chunks(tokenizer, text, tokenizer.model_max_length) for tokenizer in self.tokenizers]

    def text(self, rows, case):
        hidden, pooled = [], None
        for k, of_encoder in enumerate(rows):
            pieces = [self.encode_row(k, torch.tensor([row])) for row in of_encoder]
            hidden.append(torch.cat([piece for piece, _ in pieces], 1))
            # The first chunk's; of two encoders, the second's.
            pooled = pieces[0][1]
        inputs = {"encoder_hidden_states": torch.cat(hidden, 2)}
        if len(rows) == 2:
            w, h = case["width"], case["height"]
            inputs["text_embeds"] = pooled
            inputs["time_ids"] = torch.tensor([[h, w, 0, 0, h, w]], dtype=torch.float32)
        if self.guidance_row is not None:
            inputs["timestep_cond"] = self.guidance_row
        return inputs

    def latent_shape(self, width, height):
        return 4, height // 8, width // 8


class Torch(Networks):
    """A diffusers pipeline."""

    def __init__(self, pipe):
        self.pipe = pipe
        self.scheduler_config = pipe.scheduler.config
        self.tokenizers = [t for t in (pipe.tokenizer, getattr(pipe, "tokenizer_2", None)) if t is not None]
        self.encoders = [e for e in (pipe.text_encoder, getattr(pipe, "text_encoder_2", None)) if e is not None]
        distilled = pipe.unet.config.time_cond_proj_dim is not None
        self.guidance_row = tiny_models.guidance_row(pipe, GUIDANCE_EMBEDDING) if distilled else None

    def encode_row(self, k, ids):
        out = self.encoders[k](ids, output_hidden_states=True)
        if len(self.encoders) == 2:
            return out.hidden_states[-2], out.text_embeds if k == 1 else None
        return out.last_hidden_state, None

    def texts(self, case):
        prompt, negative = super().texts(case)
        # diffusers cuts long texts wherever the first chunk ends, so only short ones can be compared.
        embeds, negative_embeds, *pooled = self.pipe.encode_prompt(
            case["prompt"], device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=True,
            negative_prompt=case["negative-prompt"],
        )
        length = embeds.shape[1]
        for text, found, *of_pooled in zip(
            [case["prompt"], case["negative-prompt"]], [prompt, negative], [embeds, negative_embeds], pooled or [None] * 2
        ):
            if any(len(rows) > 1 for rows in self.rows(text)):
                continue
            expected, of_pooled = of_pooled
            assert torch.equal(found["encoder_hidden_states"][:, :length], expected)
            assert of_pooled is None or torch.equal(found["text_embeds"], of_pooled)
        return prompt, negative

    def encode(self, picture):
        vae = self.pipe.vae
        if isinstance(vae, AutoencoderTiny):
            return vae.encode(picture).latents * vae.config.scaling_factor
        return vae.encode(picture).latent_dist.mode() * vae.config.scaling_factor

    def decode(self, latent):
        vae = self.pipe.vae
        return vae.decode(latent / vae.config.scaling_factor).sample

    def predict(self, x, t, text):
        text = dict(text)
        added = {k: text.pop(k) for k in ("text_embeds", "time_ids") if k in text}
        out = self.pipe.unet(x.float(), t, added_cond_kwargs=added or None, **text).sample
        return out.double()


class Onnx(Networks):
    """A model folder of ONNX graphs: ours, or Optimum's."""

    def __init__(self, folder):
        folder = Path(folder)
        read = lambda name: json.loads((folder / name).read_text())
        self.scheduler_config = read("scheduler/scheduler_config.json")
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = 1
        self.sessions = {
            path.parent.name: onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
            for path in sorted(folder.glob("*/model.onnx"))
        }
        suffixes = [s for s in ("", "_2") if f"text_encoder{s}" in self.sessions]
        self.encoders = [f"text_encoder{s}" for s in suffixes]
        self.tokenizers = [CLIPTokenizer.from_pretrained(folder / f"tokenizer{s}") for s in suffixes]
        self.layers = [read(f"{name}/config.json")["num_hidden_layers"] for name in self.encoders]
        self.scaling_factor = read("vae_encoder/config.json")["scaling_factor"]
        width = read("unet/config.json").get("time_cond_proj_dim")
        self.guidance_row = None
        if width:
            # Kingma et al., "Variational diffusion models": sines, then cosines, of 1000·w at falling frequencies.
            frequencies = np.exp(np.arange(width // 2) * -(np.log(10000.0) / (width // 2 - 1)))
            angles = (GUIDANCE_EMBEDDING - 1) * 1000 * frequencies
            row = np.concatenate([np.sin(angles), np.cos(angles)])
            self.guidance_row = torch.from_numpy(row.astype(np.float32))[None]

    def run(self, name, **values):
        session = self.sessions[name]
        kinds = {"tensor(float)": np.float32, "tensor(int64)": np.int64, "tensor(int32)": np.int32}
        feed = {}
        for port in session.get_inputs():
            value = np.asarray(values.pop(port.name), kinds[port.type])
            feed[port.name] = value.reshape(()) if not port.shape else value
        assert not values, f"{name} has no input for {list(values)}"
        outputs = [torch.from_numpy(v) for v in session.run(None, feed)]
        return dict(zip((port.name for port in session.get_outputs()), outputs))

    def encode_row(self, k, ids):
        out = self.run(self.encoders[k], input_ids=ids.numpy())
        if len(self.encoders) == 1:
            return out["last_hidden_state"], None
        penultimate = out.get("penultimate_hidden_state")
        if penultimate is None:
            penultimate = out[f"hidden_states.{self.layers[k] - 1}"]
        return penultimate, out["text_embeds"] if k == 1 else None

    def encode(self, picture):
        out = self.run("vae_encoder", sample=picture.numpy())
        (latent,) = out.values()
        return latent[:, :4] * self.scaling_factor

    def decode(self, latent):
        (picture,) = self.run("vae_decoder", latent_sample=(latent / self.scaling_factor).numpy()).values()
        return picture

    def predict(self, x, t, text):
        out = self.run("unet", sample=x.float().numpy(), timestep=[t], **{k: v.numpy() for k, v in text.items()})
        return out["out_sample"].double()
