"""Golden numbers of TCD sampling: diffusers' own TCDScheduler, scalar latents and a made-up linear U-Net, in float64.

Guidance is applied to the model's output, in whatever that output means, before the scheduler sees it:
m = u + g (m - u) with u the output for the negative prompt (full), or what a model of the same kind gives for the
noise delta * (x - a z) / b, with z the frame's clean latent (self) or its estimate under the negative prompt
(initialize). Each case holds the latent after every step. Writes tests/data/tcd.json.

    python tools/reference/tcd.py     # needs numpy, torch, diffusers
"""

import json
import logging
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from diffusers import TCDScheduler
from diffusers.schedulers import scheduling_tcd

# The lists are short and off the distillation grid's start, which the scheduler warns about.
logging.getLogger("diffusers").setLevel(logging.ERROR)

OUT = Path(__file__).resolve().parents[2] / "tests" / "data" / "tcd.json"
LISTS = [
    ([35], [0.3]),
    ([32, 45], [0.3, -0.7]),
    ([0, 17, 29, 49], [0.3, -0.7, 0.5, 1.1]),
]
LATENT, PROMPT, NEGATIVE, SCALE, DELTA = 0.8, 0.2, -0.1, 1.2, 0.5
MODES = ["none", "full", "self", "initialize"]


def unet(x, t, text):
    return 0.5 * x + text - 0.0005 * t


def output_of(prediction, clean, noise, a, b):
    """What a model of this kind gives for a clean latent and the noise on it."""
    return {"epsilon": noise, "v_prediction": a * noise - b * clean, "sample": clean}[prediction]


def clean_of(prediction, output, x, a, b):
    return {"epsilon": (x - b * output) / a, "v_prediction": a * x - b * output, "sample": output}[prediction]


def run(indices, noise, prediction, eta, mode, add_noise):
    scheduler = TCDScheduler(prediction_type=prediction)
    # In float64, so that the numbers are those of the formulas.
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    assert torch.allclose(betas.float(), scheduler.betas)
    scheduler.alphas_cumprod = torch.cumprod(1 - betas, dim=0)
    scheduler.set_timesteps(50)
    scheduler.set_timesteps(timesteps=[int(scheduler.timesteps[i]) for i in indices])
    z = LATENT
    x = None
    latents = []
    following = iter(noise[1:])
    for step, t in enumerate(scheduler.timesteps):
        alpha = float(scheduler.alphas_cumprod[t])
        a, b = alpha**0.5, (1 - alpha) ** 0.5
        if x is None:
            x = a * z + b * noise[0]
            if mode == "initialize":
                z = clean_of(prediction, unet(x, int(t), NEGATIVE), x, a, b)
        m = unet(x, int(t), PROMPT)
        if mode == "full":
            u = unet(x, int(t), NEGATIVE)
        elif mode in ("self", "initialize"):
            residual = DELTA * (x - a * z) / b
            u = output_of(prediction, (x - b * residual) / a, residual, a, b)
        else:
            u = m
        m = u + SCALE * (m - u)
        tensor = lambda v: torch.tensor([v], dtype=torch.float64)
        drawn = lambda *_, **__: tensor(next(following))
        with mock.patch.object(scheduling_tcd, "randn_tensor", drawn):
            x = float(scheduler.step(tensor(m), t, tensor(x), eta=eta if add_noise else 0.0).prev_sample)
        latents.append(round(x, 8))
    return latents


cases = []
for indices, noise in LISTS:
    for prediction in ["epsilon", "v_prediction", "sample"]:
        for mode in MODES:
            for eta, add_noise in [(0.0, True), (0.3, True), (1.0, True), (0.3, False)]:
                latents = run(indices, noise, prediction, eta, mode, add_noise)
                case = dict(t_index_list=indices, noise=noise, prediction=prediction, cfg_type=mode)
                cases.append(case | dict(eta=eta, add_noise=add_noise, latents=latents))
head = dict(latent=LATENT, prompt=PROMPT, negative=NEGATIVE, scale=SCALE, delta=DELTA)
lines = ",\n".join("  " + json.dumps(case) for case in cases)
OUT.write_text(json.dumps(head)[:-1] + ', "cases": [\n' + lines + "\n]}\n")
print(len(cases), "cases;", "largest latent", np.abs(np.concatenate([c["latents"] for c in cases])).max())
