"""The published method's arithmetic, one frame at a time, straight from its formulas; models run in float32, the rest in float64.

There is no batch, no state between frames and no merging of factors here: this is what an implementation that has all
that must agree with. A model is an object with `encode`, `decode`, `predict` and `text` (see `networks.py`).
"""

import numpy as np
import torch
from diffusers import LCMScheduler, TCDScheduler
from diffusers.schedulers import scheduling_tcd

GUIDED = ("full", "self", "initialize")


def noise_maps(seed, shape, steps):
    """One map for each step position, [1, C, h, w] each, as PyTorch's CPU generator draws them."""
    maps = torch.randn(steps, *shape, generator=torch.Generator().manual_seed(seed % 2**32))
    return [m[None].double() for m in maps]


class Schedule:
    """What diffusers' consistency scheduler knows about the steps of a case."""

    def __init__(self, config, case):
        self.lcm = LCMScheduler.from_config(config)
        self.kind = self.lcm.config.prediction_type
        self.lcm.set_timesteps(case["num-inference-steps"])
        self.timesteps = [int(self.lcm.timesteps[i]) for i in case["t-index-list"]]
        alphas = [self.lcm.alphas_cumprod[t].double() for t in self.timesteps]
        self.a = [alpha.sqrt() for alpha in alphas]
        self.b = [(1 - alpha).sqrt() for alpha in alphas]

    def boundary(self, j):
        """(c_skip, c_out) of step j."""
        return self.lcm.get_scalings_for_boundary_condition_discrete(self.timesteps[j])

    def clean(self, j, x, m):
        """The clean latent that output `m` for the noisy latent `x` means."""
        if self.kind == "epsilon":
            return (x - self.b[j] * m) / self.a[j]
        if self.kind == "v_prediction":
            return self.a[j] * x - self.b[j] * m
        return m

    def of_noise(self, j, x, noise):
        """The model's output that would mean `noise`."""
        if self.kind == "epsilon":
            return noise
        clean = (x - self.b[j] * noise) / self.a[j]
        return (self.a[j] * x - clean) / self.b[j] if self.kind == "v_prediction" else clean


def denoise(model, case, schedule, z, prompt, negative):
    """The last clean latent of a frame whose clean latent is `z` (None: from noise alone)."""
    mode = case["cfg-type"]
    g = case["guidance-scale"]
    guided = mode in GUIDED and g > 1
    steps = len(schedule.timesteps)
    noise = noise_maps(case["seed"], model.latent_shape(case["width"], case["height"]), steps)
    x = noise[0] if z is None else schedule.a[0] * z + schedule.b[0] * noise[0]
    tcd = None
    if case["scheduler"] == "tcd":
        tcd = TCDScheduler.from_config(schedule.lcm.config)
        tcd.set_timesteps(timesteps=schedule.timesteps, original_inference_steps=None)
    for j, t in enumerate(schedule.timesteps):
        m = model.predict(x, t, prompt)
        if guided:
            if mode == "full":
                u = model.predict(x, t, negative)
            else:
                if mode == "initialize" and j == 0:
                    z = schedule.clean(0, x, model.predict(x, t, negative))
                u = schedule.of_noise(j, x, case["delta"] * (x - schedule.a[j] * z) / schedule.b[j])
            m = u + g * (m - u)
        if tcd is not None:
            following = noise[j + 1] if j + 1 < steps else None
            x = tcd_step(tcd, m, t, x, case["eta"], following)
            continue
        c_skip, c_out = schedule.boundary(j)
        clean = c_out * schedule.clean(j, x, m) + c_skip * x
        if j + 1 == steps:
            return clean
        x = schedule.a[j + 1] * clean
        if case["add-noise"]:
            x = x + schedule.b[j + 1] * noise[j + 1]
    return x


def tcd_step(scheduler, m, t, x, eta, noise):
    """diffusers' own step, with `noise` in place of what it would draw."""
    drawn = []

    def draw(shape, **_):
        assert tuple(shape) == tuple(noise.shape)
        drawn.append(True)
        return noise

    original = scheduling_tcd.randn_tensor
    scheduling_tcd.randn_tensor = draw
    try:
        x = scheduler.step(m, t, x, eta=eta, return_dict=False)[0]
    finally:
        scheduling_tcd.randn_tensor = original
    assert bool(drawn) == (noise is not None and eta > 0)
    return x


@torch.no_grad()
def run(model, case, frames):
    """uint8 [n, H, W, 3] to the same, restyled: picture k shows frame k."""
    schedule = Schedule(model.scheduler_config, case)
    prompt, negative = model.texts(case)
    out = np.empty_like(frames)
    for k, frame in enumerate(frames):
        picture = torch.from_numpy(frame.astype(np.float32) / 255 * 2 - 1).permute(2, 0, 1)[None]
        z = None if case["mode"] == "txt2img" else model.encode(picture).double()
        latent = denoise(model, case, schedule, z, prompt, negative)
        picture = model.decode(latent.float())[0].permute(1, 2, 0).double()
        assert torch.isfinite(picture).all(), case["name"]
        out[k] = ((picture / 2 + 0.5).clamp(0, 1) * 255).round().numpy().astype(np.uint8)
    return out
