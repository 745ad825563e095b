"""Golden numbers of the stream's arithmetic, with scalar latents and a made-up U-Net, in float64.

Two independent forms of residual guidance are printed: the published code's running recurrence (`published`), and the
definition itself, u = delta * (x - a z) / b with z the frame's clean latent or its onetime-negative estimate
(`definition`), one frame at a time, without a batch. They agree where the published code is right: several steps and
noise added between them. The golden numbers of src/stream/tests.rs come from here.

Usage: python tools/reference/stream_scalar.py      (needs numpy)
"""

import numpy as np

ALPHAS = np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)
LATENTS = [1.0, 0.8, 0.6, 0.4]
PROMPT, NEGATIVE = 0.2, -0.1


def numbers(indices):
    t = np.array([999 - 20 * i for i in indices])
    s = 10.0 * t
    return t, np.sqrt(ALPHAS[t]), np.sqrt(1 - ALPHAS[t]), 0.25 / (s * s + 0.25), s / np.sqrt(s * s + 0.25)


def unet(x, t, text):
    return 0.5 * x + text - 0.0005 * t


def definition(mode, indices, g, delta, noise, add_noise=True, latents=LATENTS):
    """Each frame on its own, straight through its steps. A latent of None is a frame that starts from noise alone: it
    has no clean latent, so self-negative guidance has nothing to compare with and is none."""
    t, a, b, c_skip, c_out = numbers(indices)
    outputs = []
    for z in latents:
        x = noise[0] if z is None else a[0] * z + b[0] * noise[0]
        if z is None and mode == "self":
            mode = "none"
        if mode == "initialize" and g > 1:
            z = (x - b[0] * unet(x, t[0], NEGATIVE)) / a[0]
        for j in range(len(t)):
            m = unet(x, t[j], PROMPT)
            if g > 1 and mode != "none":
                u = unet(x, t[j], NEGATIVE) if mode == "full" else delta * (x - a[j] * z) / b[j]
                m = u + g * (m - u)
            clean = c_out[j] * (x - b[j] * m) / a[j] + c_skip[j] * x
            if j + 1 < len(t):
                x = a[j + 1] * clean + (b[j + 1] * noise[j + 1] if add_noise else 0)
        outputs.append(clean)
    return outputs


def published(mode, indices, g, delta, noise):
    """The recurrence with its stream batch and its running residual noise; the first n-1 outputs mean nothing."""
    t, a, b, c_skip, c_out = numbers(indices)
    n = len(t)
    buffer, residual, outputs = np.zeros(n - 1), np.zeros(n), []
    denoised = lambda m, x: c_out * (x - b * m) / a + c_skip * x
    for z in LATENTS:
        x = np.concatenate([[a[0] * z + b[0] * noise[0]], buffer])
        if n > 1:
            residual = np.concatenate([[noise[0]], residual[:-1]])
        m = unet(x, t, PROMPT)
        if g > 1 and mode == "full":
            u = unet(x, t, NEGATIVE)
            m = u + g * (m - u)
        if g > 1 and mode in ("self", "initialize"):
            if mode == "initialize":
                residual[0] = unet(x[0], t[0], NEGATIVE)
            u = delta * residual
            m = u + g * (m - u)
        clean = denoised(m, x)
        following, level = np.append(a[1:], 1.0), np.append(b[1:], 1.0)
        residual = np.roll(noise, -1) + following * denoised(m, b * residual) / level
        outputs.append(clean[-1])
        buffer = a[1:] * clean[:-1] + b[1:] * noise[1:]
    return outputs[n - 1 :]


for indices, noise in [([32, 45], [0.3, -0.7]), ([22, 32, 45], [0.3, -0.7, 0.5]), ([35], [0.3])]:
    for mode, g, delta in [("none", 1, 1), ("full", 1.2, 1), ("self", 1.2, 0.5), ("initialize", 1.2, 0.5)]:
        for add_noise in (True, False):
            rounded = [round(float(v), 6) for v in definition(mode, indices, g, delta, np.array(noise), add_noise)]
            print(f"{indices} {mode} add_noise={add_noise}: {rounded}")
        print("    published:", [round(float(v), 6) for v in published(mode, indices, g, delta, np.array(noise))])

for mode, g, delta in [("none", 1, 1), ("full", 1.2, 1), ("self", 1.2, 0.5), ("initialize", 1.2, 0.5)]:
    found = definition(mode, [0, 25], g, delta, np.array([0.3, -0.7]), latents=[None])
    print(f"from noise {mode}: {[round(float(v), 6) for v in found]}")
