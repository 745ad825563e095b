"""Procedural pictures: the only training material of the demo model.

`render(seed)` returns one picture, uint8 RGB [256, 256, 3]; `crop(seed)` a
training crop [128, 128, 3] of it (half of them scaled down, half cut out, so
that the network sees coarse and fine detail). Same seed, same picture.
"""

import cv2
import numpy as np

SIZE = 256


def fbm(rng, size, octaves=5, start=2, gain=0.55, stretch=1.0):
    """Noise at several octaves, float32 [size, size], about 0..1."""
    out = np.zeros((size, size), np.float32)
    weight, total, cells = 1.0, 0.0, start
    for _ in range(octaves):
        grid = rng.random((max(2, int(cells * stretch)), cells), np.float32)
        out += weight * cv2.resize(grid, (size, size), interpolation=cv2.INTER_CUBIC)
        total += weight
        weight *= gain
        cells = min(cells * 2, size)
    out /= total
    return np.clip((out - 0.5) * 1.8 + 0.5, 0, 1)


def colour(rng):
    """A random colour, float32 [3] in 0..1; natural (muted) ones more often."""
    hue, roll = rng.random() * 179, rng.random()
    if roll < 0.45:
        sat, val = rng.uniform(0.05, 0.45), rng.uniform(0.05, 1.0)
    elif roll < 0.7:  # skin, wood, earth
        hue, sat, val = rng.uniform(3, 20), rng.uniform(0.25, 0.7), rng.uniform(0.15, 0.95)
    else:
        sat, val = rng.uniform(0.4, 1.0), rng.uniform(0.25, 1.0)
    pixel = np.array([[[hue * 2, sat, val]]], np.float32)
    return cv2.cvtColor(pixel, cv2.COLOR_HSV2RGB)[0, 0]


def ramp(rng, size):
    """A gradient 0..1 in a random direction or around a random centre."""
    y, x = np.mgrid[0:size, 0:size].astype(np.float32) / size
    if rng.random() < 0.6:
        a = rng.uniform(0, 2 * np.pi)
        g = (x - 0.5) * np.cos(a) + (y - 0.5) * np.sin(a) + 0.5
    else:
        cx, cy = rng.random(2)
        g = np.sqrt((x - cx) ** 2 + (y - cy) ** 2)
    return np.clip(g, 0, 1)


def flat(col, size):
    """A picture of one colour, float32 [size, size, 3]."""
    row = np.tile(np.asarray(col, np.float32), size)
    return np.broadcast_to(row, (size, size * 3)).reshape(size, size, 3)


def spread(mask):
    """Mask [size, size] -> [size, size, 3]."""
    mask = np.ascontiguousarray(mask, np.float32)
    return cv2.merge([mask, mask, mask])


def mix(a, b, mask):
    """a where mask is 0, b (a picture or a colour) where it is 1."""
    if b.ndim == 1:
        b = flat(b, a.shape[0])
    return a + (b - a) * spread(mask)


def texture(rng, size):
    """A coloured surface, float32 [size, size, 3]."""
    a, b, kind = colour(rng), colour(rng), rng.integers(6)
    if kind == 0:
        m = ramp(rng, size)
    elif kind == 1:
        m = fbm(rng, size, octaves=int(rng.integers(3, 8)), start=int(rng.integers(2, 8)))
    elif kind == 2:  # stripes
        period, angle = rng.uniform(5, 40), rng.uniform(0, np.pi)
        y, x = np.mgrid[0:size, 0:size].astype(np.float32)
        m = 0.5 + 0.5 * np.sin((x * np.cos(angle) + y * np.sin(angle)) * 2 * np.pi / period)
        if rng.random() < 0.5:
            m = np.clip((m - 0.5) * 6 + 0.5, 0, 1)
    elif kind == 3:  # fur, grass, hair: stretched noise
        m = fbm(rng, size, octaves=4, start=16, gain=0.8, stretch=rng.uniform(0.1, 0.4))
        if rng.random() < 0.5:
            m = m.T.copy()
        b = np.clip(a * rng.uniform(0.3, 1.8), 0, 1)
    elif kind == 4:  # bricks or checks
        h, w = rng.integers(8, 32), rng.integers(8, 48)
        y, x = np.mgrid[0:size, 0:size]
        row = y // h
        x = x + (row % 2) * (w // 2)
        m = np.where((y % h < 2) | (x % w < 2), 1.0, 0.3 * ((x // w * 7 + row * 13) % 5) / 5)
        m = m.astype(np.float32)
    else:  # plain surface with fine grain
        m = 0.5 + rng.normal(0, 0.12, (size, size)).astype(np.float32)
        b = np.clip(a + rng.uniform(-0.2, 0.2), 0, 1)
    return mix(flat(a, size), b, np.clip(m, 0, 1))


def outline(rng, size):
    """Polygon points int32 [n, 2] (1/16 pixel) of a random closed shape."""
    cx, cy = rng.uniform(0, size, 2)
    r = size * rng.choice([rng.uniform(0.03, 0.12), rng.uniform(0.1, 0.35)])
    kind = rng.integers(5)
    if kind == 0:  # rectangle
        w, h, a = r, r * rng.uniform(0.3, 2.5), rng.choice([0, rng.uniform(0, np.pi)])
        p = np.array([[-w, -h], [w, -h], [w, h], [-w, h]], np.float32)
    elif kind == 1:  # polygon or star
        n = int(rng.integers(3, 9))
        t = np.linspace(0, 2 * np.pi, 2 * n, endpoint=False)
        rad = np.where(np.arange(2 * n) % 2, rng.uniform(0.4, 1), 1) * r
        p, a = np.stack([np.cos(t) * rad, np.sin(t) * rad], 1), rng.uniform(0, np.pi)
    else:  # ellipse or smooth blob
        t = np.linspace(0, 2 * np.pi, 64, endpoint=False)
        rad = np.full(64, r)
        if kind > 2:
            for k in range(2, 6):
                rad *= 1 + rng.uniform(-0.5, 0.5) / k * np.sin(k * t + rng.uniform(0, 6.3))
        p = np.stack([np.cos(t) * rad, np.sin(t) * rad * rng.uniform(0.4, 1.6)], 1)
        a = rng.uniform(0, np.pi)
    rot = np.array([[np.cos(a), -np.sin(a)], [np.sin(a), np.cos(a)]])
    return ((p @ rot + [cx, cy]) * 16).astype(np.int32)


def fill(points, size):
    mask = np.zeros((size, size), np.uint8)
    cv2.fillPoly(mask, [points], 255, cv2.LINE_AA, 4)
    return mask.astype(np.float32) / 255


def solid(rng, img):
    """One shaded object with an optional shadow, edge and highlight."""
    size = img.shape[0]
    points = outline(rng, size)
    mask = fill(points, size)
    if rng.random() < 0.5:
        shift = np.float32([[1, 0, rng.uniform(-10, 14)], [0, 1, rng.uniform(0, 14)]])
        shadow = cv2.GaussianBlur(cv2.warpAffine(mask, shift, (size, size)), (0, 0), rng.uniform(2, 8))
        img = img * spread(1 - rng.uniform(0.2, 0.6) * shadow)
    surface = texture(rng, size) if rng.random() < 0.55 else flat(colour(rng), size)
    if rng.random() < 0.7:  # round shading: light from one side of the blurred mask
        soft = cv2.GaussianBlur(mask, (0, 0), rng.uniform(3, 10))
        gx, gy = cv2.Sobel(soft, cv2.CV_32F, 1, 0), cv2.Sobel(soft, cv2.CV_32F, 0, 1)
        a = rng.uniform(0, 2 * np.pi)
        light = gx * np.cos(a) + gy * np.sin(a)
        light = light / (np.abs(light).max() + 1e-6) * rng.uniform(0.2, 0.7)
        surface = np.clip(surface * spread(1 + light), 0, 1)
    if rng.random() < 0.15:
        mask = mask * rng.uniform(0.3, 0.8)
    img = mix(img, surface, mask)
    if rng.random() < 0.15:
        line = np.zeros((size, size), np.uint8)
        cv2.polylines(line, [points], True, 255, int(rng.integers(1, 4)), cv2.LINE_AA, 4)
        img = mix(img, colour(rng), line.astype(np.float32) / 255)
    return img


def face(rng, img):
    """A head: hair, face, eyes, brows, nose, mouth, shoulders."""
    size = img.shape[0]
    cx, cy = rng.uniform(0.25, 0.75) * size, rng.uniform(0.3, 0.6) * size
    r = rng.uniform(0.1, 0.28) * size
    skin = np.array([0.95, 0.75, 0.62], np.float32) * rng.uniform(0.35, 1.05)
    hair, dark = colour(rng) * rng.uniform(0.1, 0.8), np.array([0.08, 0.06, 0.06], np.float32)

    def ellipse(x, y, w, h, col, blur=0.0, strength=1.0):
        nonlocal img
        m = np.zeros((size, size), np.uint8)
        centre = (int((cx + x * r) * 16), int((cy + y * r) * 16))
        cv2.ellipse(m, centre, (max(1, int(w * r * 16)), max(1, int(h * r * 16))), 0, 0, 360, 255, -1, cv2.LINE_AA, 4)
        m = m.astype(np.float32) / 255 * strength
        if blur:
            m = cv2.GaussianBlur(m, (0, 0), blur * r)
        img = mix(img, col, m)

    ellipse(0, 2.4, 1.7, 1.3, colour(rng))
    ellipse(0, -0.15, 1.1, rng.uniform(1.2, 1.7), hair)
    ellipse(0, 1.1, 0.4, 0.7, skin * 0.8)
    ellipse(0, 0.1, 0.85, 1.15, np.clip(skin, 0, 1))
    ellipse(rng.choice([-0.5, 0.5]), 0.1, 0.4, 1.0, skin * 0.6, 0.25, 0.7)
    for s in (-0.36, 0.36):
        ellipse(s, -0.1, 0.18, 0.1, np.float32([0.95, 0.95, 0.95]))
        ellipse(s, -0.1, 0.09, 0.1, dark)
        ellipse(s, -0.33, 0.22, 0.05, hair * 0.7)
    ellipse(0.03, 0.25, 0.09, 0.2, skin * 0.75, 0.05)
    ellipse(0, 0.65, 0.3, rng.uniform(0.05, 0.16), np.float32([0.7, 0.25, 0.25]))
    return img


def strokes(rng, img):
    """Thin things: text, branches, wires."""
    size = img.shape[0]
    m = np.zeros((size, size), np.uint8)
    kind = rng.integers(3)
    if kind == 0:
        for _ in range(int(rng.integers(1, 5))):
            text = "".join(rng.choice(list("abcdefghijklmnoprstuvwxyzABCDEFGH0123456789"), 8))
            at = (int(rng.uniform(-20, size * 0.7)), int(rng.uniform(20, size)))
            cv2.putText(m, text, at, int(rng.integers(0, 5)), rng.uniform(0.4, 2), 255, int(rng.integers(1, 4)), cv2.LINE_AA)
    elif kind == 1:
        for _ in range(int(rng.integers(3, 20))):
            p = np.cumsum(rng.normal(0, size * 0.08, (6, 2)), 0) + rng.uniform(0, size, 2)
            cv2.polylines(m, [(p * 16).astype(np.int32)], False, 255, int(rng.integers(1, 4)), cv2.LINE_AA, 4)
    else:
        for _ in range(int(rng.integers(2, 14))):
            p = (rng.uniform(0, size, (2, 2))).astype(int)
            cv2.line(m, p[0].tolist(), p[1].tolist(), 255, int(rng.integers(1, 6)), cv2.LINE_AA)
    return mix(img, colour(rng), m.astype(np.float32) / 255)


def landscape(rng, size):
    """Sky, several ridges with texture, sometimes a sun."""
    img = mix(flat(colour(rng), size), colour(rng), np.mgrid[0:size, 0:size][0].astype(np.float32) / size)
    img = mix(img, np.float32([1, 1, 1]), np.clip(fbm(rng, size) - 0.5, 0, 1) * rng.uniform(0, 2))
    level = rng.uniform(0.3, 0.6)
    x = np.arange(size) / size
    for _ in range(int(rng.integers(1, 5))):
        top = sum(rng.uniform(-0.1, 0.1) / k * np.sin(2 * np.pi * k * x + rng.uniform(0, 6.3)) for k in (1, 2, 3, 5, 9, 17))
        edge = (level + top) * size
        mask = np.clip(np.arange(size)[:, None] - edge[None], 0, 1).astype(np.float32)
        img = mix(img, texture(rng, size), mask)
        level += rng.uniform(0.08, 0.25)
    return img


def finish(rng, img):
    """Camera: light falloff, defocus, contrast, exposure, grey, sensor noise."""
    size = img.shape[0]
    if rng.random() < 0.4:
        img = img * spread(1 - rng.uniform(0.1, 0.6) * ramp(rng, size))
    if rng.random() < 0.35:
        soft = cv2.GaussianBlur(img, (0, 0), rng.uniform(1, 5))
        img = soft if rng.random() < 0.4 else mix(img, soft, np.clip(ramp(rng, size) * 3 - 1, 0, 1))
    img = np.clip(img, 0, 1)
    grey = spread(cv2.cvtColor(img, cv2.COLOR_RGB2GRAY))
    img = grey + (img - grey) * (0 if rng.random() < 0.1 else rng.uniform(0.4, 1.3))
    img = np.clip(img, 0, 1) ** np.float32(rng.uniform(0.5, 1.25))
    img = (img - 0.5) * rng.uniform(0.6, 1.3) + 0.5 + rng.uniform(-0.12, 0.12)
    if rng.random() < 0.5:
        img = img + rng.standard_normal(img.shape, np.float32) * rng.uniform(0.003, 0.03)
    return (np.clip(img, 0, 1) * 255 + 0.5).astype(np.uint8)


def render(seed, size=SIZE):
    """One whole picture, uint8 RGB [size, size, 3]."""
    rng = np.random.default_rng([seed, 20])
    img = landscape(rng, size) if rng.random() < 0.35 else texture(rng, size)
    for _ in range(int(rng.integers(1, 12))):
        roll = rng.random()
        img = solid(rng, img) if roll < 0.8 else strokes(rng, img)
    if rng.random() < 0.3:
        img = face(rng, img)
    if rng.random() < 0.15:
        img = strokes(rng, img)
    return finish(rng, img)


def crop(seed, size=128):
    """A training picture, uint8 RGB [size, size, 3]."""
    img = render(seed)
    rng = np.random.default_rng([seed, 21])
    if rng.random() < 0.5:
        return cv2.resize(img, (size, size), interpolation=cv2.INTER_AREA)
    y, x = rng.integers(0, SIZE - size + 1, 2)
    return np.ascontiguousarray(img[y : y + size, x : x + size])
