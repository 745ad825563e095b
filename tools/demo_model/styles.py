"""The styles: a classical filter for each, the modifiers, and their wordings.

A filter maps float32 RGB [H, W, 3] in 0..1 to the same shape and range and
depends on nothing but the picture; patterns (hatching, dots, tiles, grids)
have periods that divide 16 pixels, so the phase is known at every latent.
H and W are multiples of 8.
"""

import cv2
import numpy as np


def luma(x):
    return (x @ np.float32([0.299, 0.587, 0.114])).astype(np.float32)


def blur(x, sigma):
    return cv2.GaussianBlur(x, (0, 0), sigma)


def step(x, lo, hi):
    """Smooth step from 0 (x <= lo) to 1 (x >= hi)."""
    t = np.clip((x - lo) / (hi - lo), 0, 1)
    return t * t * (3 - 2 * t)


def edges(g, sigma=1.0):
    """Gradient magnitude of a grey picture, about 0..1."""
    g = blur(g, sigma)
    gx = cv2.Sobel(g, cv2.CV_32F, 1, 0, scale=0.25)
    gy = cv2.Sobel(g, cv2.CV_32F, 0, 1, scale=0.25)
    return np.sqrt(gx * gx + gy * gy) * 4


def saturate(x, s):
    g = luma(x)[..., None]
    return np.clip(g + (x - g) * s, 0, 1)


def smooth(x, rounds=2):
    for _ in range(rounds):
        x = cv2.bilateralFilter(x, 7, 0.2, 4)
    return x


def grid(x):
    h, w = x.shape[:2]
    return np.mgrid[0:h, 0:w].astype(np.float32)


def palette(g, stops):
    """Maps grey [H, W] in 0..1 through evenly spaced colours."""
    at = np.linspace(0, 1, len(stops))
    stops = np.float32(stops)
    return np.stack([np.interp(g, at, stops[:, c]) for c in range(3)], -1).astype(np.float32)


def grain(size=16):
    """Paper: a fixed pattern that repeats every `size` pixels, about +-0.04."""
    noise = np.random.default_rng(5).standard_normal((size, size)).astype(np.float32)
    noise = blur(np.tile(noise, (3, 3)), 1.0)[size : 2 * size, size : 2 * size]
    return noise / noise.std() * 0.02


GRAIN = grain()


def plain(x):
    return x


def pencil(x):
    g = luma(x)
    dodge = np.clip(g / (blur(g, 4) + 0.03), 0, 1)
    ink = np.clip((1 - dodge) * 1.6, 0, 1) + 0.8 * step(edges(g), 0.15, 0.8)
    y, u = grid(x)
    tone = blur(g, 1.5)
    one = 0.5 + 0.5 * np.cos(2 * np.pi * (u + y) / 8)
    two = 0.5 + 0.5 * np.cos(2 * np.pi * (u - y) / 8)
    ink += 0.6 * step(0.6 - tone, 0, 0.45) * one + 0.55 * step(0.34 - tone, 0, 0.3) * two
    paper = np.float32([0.97, 0.96, 0.93])
    return paper * (1 - 0.85 * np.clip(ink, 0, 1))[..., None]


def kuwahara(x, r):
    """The mean of the most even of four neighbouring squares."""
    best, out = None, None
    sq, k = luma(x), 2 * r // 2 + 1
    mean, mean_g, mean_q = (cv2.boxFilter(v, -1, (k, k)) for v in (x, sq, sq * sq))
    var = mean_q - mean_g**2
    h, w = sq.shape
    o = r // 2 + 1
    pad_m = cv2.copyMakeBorder(mean, o, o, o, o, cv2.BORDER_REFLECT_101)
    pad_v = cv2.copyMakeBorder(var, o, o, o, o, cv2.BORDER_REFLECT_101)
    for dy in (0, 2 * o):
        for dx in (0, 2 * o):
            v, m = pad_v[dy : dy + h, dx : dx + w], pad_m[dy : dy + h, dx : dx + w]
            if best is None:
                best, out = v.copy(), m.copy()
            else:
                take = v < best
                best[take], out[take] = v[take], m[take]
    return out


def oil(x):
    y = kuwahara(kuwahara(x, 5), 3)
    y = saturate(np.clip((y - 0.5) * 1.15 + 0.5, 0, 1), 1.8)
    g = luma(y)
    relief = cv2.Sobel(blur(g, 0.8), cv2.CV_32F, 1, 1, ksize=3) + cv2.Sobel(g, cv2.CV_32F, 1, 0, scale=0.25)
    v, u = grid(x)
    canvas = np.cos(2 * np.pi * (u + 2 * v) / 8) * (0.02 + 0.05 * g)
    return np.clip(y + (0.35 * relief + canvas)[..., None], 0, 1)


def watercolour(x):
    y = smooth(x, 2)
    wash = blur(y, 1.5)
    y = 0.5 * y + 0.5 * wash
    y = saturate(y, 1.35)
    y = 1 - (1 - y) ** 1.2 * 0.58
    rim = step(edges(luma(wash), 1.2), 0.08, 0.6)
    y = y * (1 - 0.6 * rim[..., None] * (1.2 - y))
    h, w = x.shape[:2]
    y = y + np.tile(GRAIN, (h // 16 + 1, w // 16 + 1))[:h, :w, None] * (1.4 - y)
    return np.clip(y * np.float32([1.0, 0.99, 0.955]), 0, 1)


def comic(x):
    y = smooth(x, 2)
    g = luma(y)
    levels = 4
    f = g * levels
    q = (np.floor(f) + step(f - np.floor(f), 0.35, 0.65)) / levels
    y = np.clip(y * ((q + 0.12) / (g + 0.08))[..., None], 0, 1)
    y = saturate(y, 2.0)
    v, u = grid(x)
    screen = 0.5 + 0.25 * (np.cos(2 * np.pi * (u + v) / 8) + np.cos(2 * np.pi * (u - v) / 8))
    dots = step(screen, 0.55, 0.75) * step(0.62 - g, 0, 0.15)
    y = y * (1 - 0.45 * dots[..., None])
    s = luma(x)
    dog = blur(s, 1.0) - blur(s, 2.2)
    ink = np.maximum(step(-dog, 0.012, 0.035), step(edges(g, 1.0), 0.45, 0.8))
    ink = np.maximum(ink, step(0.16 - g, 0, 0.06))
    return y * (1 - 0.95 * ink[..., None])


def neon(x):
    g = luma(x)
    e = step(edges(g, 1.0), 0.08, 0.55)
    tint = palette(
        step(blur(g, 5), 0.05, 0.85),
        [[1.0, 0.15, 0.45], [0.95, 0.1, 1.0], [0.35, 0.25, 1.0], [0.05, 0.75, 1.0], [0.1, 1.0, 0.75]],
    )
    line = e[..., None] * tint
    glow = blur(line, 2.0) * 0.9 + blur(line, 5.0) * 0.8
    base = np.float32([0.03, 0.02, 0.08]) + x * 0.07
    return np.clip(base + line * 0.8 + 0.45 * (e**3)[..., None] + glow, 0, 1)


def mosaic(x):
    h, w = x.shape[:2]
    y = cv2.resize(x, (w // 8, h // 8), interpolation=cv2.INTER_AREA)
    y = saturate(np.clip((y - 0.5) * 1.15 + 0.53, 0, 1), 1.5)
    y = cv2.resize(y, (w, h), interpolation=cv2.INTER_NEAREST)
    v, u = grid(x)
    v, u = v % 8, u % 8
    bevel = np.where((v == 1) | (u == 1), 0.16, 0) - np.where((v == 6) | (u == 6), 0.14, 0)
    y = np.clip(y + bevel[..., None], 0, 1)
    grout = ((v == 0) | (u == 0) | (v == 7) | (u == 7))[..., None]
    return np.where(grout, y * 0.3 + np.float32([0.1, 0.1, 0.1]), y).astype(np.float32)


def thermal(x):
    g = step(blur(luma(x), 1.5), -0.05, 1.0)
    return palette(
        g,
        [[0.0, 0.0, 0.15], [0.15, 0.0, 0.6], [0.6, 0.0, 0.65], [0.95, 0.2, 0.3], [1.0, 0.55, 0.0], [1.0, 0.9, 0.2], [1, 1, 0.9]],
    )


def blueprint(x):
    g = luma(x)
    dog = blur(g, 0.8) - blur(g, 1.8)
    line = np.maximum(step(edges(g, 0.8), 0.1, 0.5), step(np.abs(dog), 0.015, 0.05))
    y, u = grid(x)
    rule = ((y % 16 == 0) | (u % 16 == 0)).astype(np.float32)
    blue = np.float32([0.05, 0.2, 0.55]) + 0.12 * (blur(g, 3) - 0.4)[..., None]
    white = np.clip(0.88 * line + 0.2 * rule, 0, 1)[..., None]
    return np.clip(blue + (np.float32([0.92, 0.97, 1.0]) - blue) * white, 0, 1)


def popart(x):
    g = blur(luma(smooth(x, 1)), 1.0)
    out = np.broadcast_to(np.float32([0.18, 0.05, 0.45]), x.shape)
    for at, col in ((0.27, [0.96, 0.08, 0.5]), (0.48, [1.0, 0.82, 0.05]), (0.7, [0.45, 0.95, 0.95])):
        m = step(g, at - 0.035, at + 0.035)[..., None]
        out = out + (np.float32(col) - out) * m
    return out.astype(np.float32)


def engraving(x):
    g = luma(x)
    y, u = grid(x)
    wave = 0.5 + 0.5 * np.cos(2 * np.pi * (2 * y + u) / 8)
    dark = np.clip(1.02 - 1.05 * blur(g, 0.8), 0, 1)
    ink = step(dark - wave, -0.25, 0.25) * step(dark, 0.08, 0.25)
    ink = np.maximum(ink, step(edges(g), 0.3, 0.9) * 0.9)[..., None]
    paper, pigment = np.float32([0.93, 0.9, 0.78]), np.float32([0.1, 0.22, 0.17])
    return paper + (pigment - paper) * ink


def sepia(x):
    g = blur(luma(x), 0.7)
    g = 0.12 + 0.8 * step(g, -0.1, 1.1)
    return palette(g, [[0.12, 0.06, 0.03], [0.45, 0.3, 0.17], [0.78, 0.62, 0.42], [0.98, 0.92, 0.78]])


def nightvision(x):
    g = np.sqrt(np.clip(luma(x), 0, 1))
    g = np.clip(0.8 * g + 0.3 * blur(g, 4) - 0.08, 0, 1)
    y, _ = grid(x)
    g = g * np.where(y % 4 < 2, 1.0, 0.55)
    return palette(g, [[0, 0.04, 0.01], [0.02, 0.45, 0.1], [0.2, 0.9, 0.3], [0.8, 1.0, 0.8]])


FILTERS = {
    "plain": plain,
    "pencil": pencil,
    "oil": oil,
    "watercolour": watercolour,
    "comic": comic,
    "neon": neon,
    "mosaic": mosaic,
    "thermal": thermal,
    "blueprint": blueprint,
    "popart": popart,
    "engraving": engraving,
    "sepia": sepia,
    "nightvision": nightvision,
}
STYLES = list(FILTERS)

MODIFIERS = {
    "none": lambda x: x,
    "warm": lambda x: x * np.float32([1.12, 0.95, 0.68]) + np.float32([0.05, 0.01, 0.0]),
    "cold": lambda x: x * np.float32([0.68, 0.93, 1.12]) + np.float32([0.0, 0.02, 0.06]),
    "night": lambda x: (x**1.2) * np.float32([0.38, 0.42, 0.62]),
    "pastel": lambda x: 0.45 + 0.55 * saturate(x, 0.8),
    "vivid": lambda x: saturate(np.clip((x - 0.5) * 1.2 + 0.5, 0, 1), 1.8),
    "mono": lambda x: np.repeat(luma(x)[..., None], 3, 2),
}

WORDINGS = {
    "pencil": ["pencil sketch", "pencil drawing", "graphite drawing", "sketch", "hand drawn sketch", "pencil", "graphite pencil", "line drawing", "drawing in pencil", "pencil sketch, graphite"],
    "oil": ["oil painting", "oil on canvas", "oil", "thick oil paint", "impasto painting", "painted in oils", "impressionist painting", "van gogh", "painting", "oil paint"],
    "watercolour": ["watercolor", "watercolour", "watercolour painting", "watercolor painting", "aquarelle", "water colour", "watercolour wash", "soft watercolor", "painted in watercolours"],
    "comic": ["comic", "comic book", "comic ink", "cartoon", "comic strip", "graphic novel", "manga", "ink and halftone", "inked comic", "toon"],
    "neon": ["neon", "neon lights", "neon glow", "glowing edges", "neon lights, glowing edges", "cyberpunk", "cyberpunk neon", "neon sign", "glowing neon lines", "tron"],
    "mosaic": ["mosaic", "mosaic tiles", "tiles", "roman mosaic", "ceramic tiles", "tiled", "tile mosaic", "a mosaic of small tiles"],
    "thermal": ["thermal", "thermal camera", "infrared", "heat map", "thermal imaging", "infrared camera", "heatmap", "heat vision", "thermography"],
    "blueprint": ["blueprint", "technical drawing", "architect blueprint", "cyanotype", "blue print", "engineering drawing", "blueprint drawing", "white lines on blue"],
    "popart": ["pop art", "popart", "warhol", "andy warhol", "screen print", "silkscreen", "pop art poster", "pop-art print"],
    "engraving": ["engraving", "etching", "copper engraving", "banknote", "woodcut", "engraved", "banknote engraving", "old engraving", "copperplate"],
    "sepia": ["sepia", "vintage photo", "old photograph", "vintage", "antique photograph", "sepia tone", "daguerreotype", "retro photo"],
    "nightvision": ["night vision", "night-vision", "nightvision", "green phosphor", "matrix", "night vision goggles", "green terminal", "surveillance camera"],
}

MODIFIER_WORDS = {
    "warm": ["warm", "warm colours", "warm colors", "sunset", "golden hour", "warm light"],
    "cold": ["cold", "cold colours", "cool colors", "winter", "icy", "cold light", "frozen"],
    "night": ["at night", "dark", "night", "midnight", "moonlight", "low light"],
    "pastel": ["pastel", "pale", "faded", "pastel colours", "foggy", "soft pale colors"],
    "vivid": ["vivid", "vivid colours", "saturated", "colourful", "colorful", "vibrant"],
    "mono": ["black and white", "monochrome", "greyscale", "grayscale", "grey"],
}


def stylise(img, style, modifier="none"):
    """uint8 RGB [H, W, 3] -> uint8 RGB in the style, then the modifier."""
    x = np.clip(FILTERS[style](img.astype(np.float32) / 255), 0, 1)
    x = np.clip(MODIFIERS[modifier](x), 0, 1)
    return (x * 255 + 0.5).astype(np.uint8)
