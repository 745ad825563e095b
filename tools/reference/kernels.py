#!/usr/bin/env python3
"""What the GPU's kernels have to give, in float64: writes tensors.npz, frames.npz and frames.txt (the
cases in the order of the results) to tests/data/kernels.

Needs numpy alone, and shares nothing with the kernels: layouts are written out format by format after GStreamer's
"raw video media types", colours follow from the standards' K_R and K_B by inverting the matrix that makes Y, Cb and Cr,
and resizing is a product with a matrix of weights.

    python3 tools/reference/kernels.py
"""

import pathlib

import numpy as np

FOLDER = pathlib.Path(__file__).parents[2] / "tests" / "data" / "kernels"

WEIGHTS = {
    "fcc": (0.30, 0.11),
    "bt601": (0.299, 0.114),
    "bt709": (0.2126, 0.0722),
    "smpte240m": (0.212, 0.087),
    "bt2020": (0.2627, 0.0593),
}
PACKED = {"RGB": "rgb", "BGR": "bgr", "RGBx": "rgbx", "BGRx": "bgrx", "xRGB": "xrgb", "xBGR": "xbgr",
          "RGBA": "rgba", "BGRA": "bgra", "ARGB": "argb", "ABGR": "abgr"}
PAIRS = {"YUY2": "yuyv", "UYVY": "uyvy", "YVYU": "yvyu"}
SUBSAMPLED = {"Y444": (1, 1), "Y42B": (2, 1), "YUY2": (2, 1), "UYVY": (2, 1), "YVYU": (2, 1), "I420": (2, 2),
              "YV12": (2, 2), "NV12": (2, 2), "NV21": (2, 2), "P010_10LE": (2, 2)}
# Whether colour differences for two pixels lie on the first of them, across and down, and not between the two.
SITES = {"center": (False, False), "left": (True, False), "top": (False, True), "topleft": (True, True)}
# Results are stored in these fractions of 1 and of a code.
TENSOR_UNITS, CODE_UNITS, NO_CODE = 32767, 60, 65535
FORMATS = [*PACKED, *SUBSAMPLED, "GRAY8"]


def up4(value):
    return (value + 3) // 4 * 4


def half(value):
    return (value + 1) // 2


class Frame:
    """Samples of a frame in one array, and views of its components into that array."""

    def __init__(self, name, width, height):
        self.sub = SUBSAMPLED.get(name, (1, 1))
        if name in PACKED:
            order = PACKED[name]
            stride = up4(len(order) * width)
            self.samples = np.full(stride * height, np.nan)
            pixels = self.samples.reshape(height, stride)[:, : len(order) * width].reshape(height, width, len(order))
            self.components = [pixels[:, :, order.index(c)] for c in "rgb"]
            self.alpha = [pixels[:, :, i] for i, c in enumerate(order) if c in "xa"]
            return
        self.alpha = []
        if name in PAIRS:
            order = PAIRS[name]
            stride = 4 * half(width)
            self.samples = np.full(stride * height, np.nan)
            rows = self.samples.reshape(height, stride)
            self.luma_of_pairs = rows[:, order.index("y") :: 2]
            self.components = [self.luma_of_pairs[:, :width], rows[:, order.index("u") :: 4], rows[:, order.index("v") :: 4]]
            return
        # Planes: samples of a row, rows.
        w2, h2 = half(width), half(height)
        planes = {
            "Y444": [(width, height)] * 3,
            "Y42B": [(width, height), (w2, height), (w2, height)],
            "I420": [(width, height), (w2, h2), (w2, h2)],
            "YV12": [(width, height), (w2, h2), (w2, h2)],
            "NV12": [(width, height), (2 * w2, h2)],
            "NV21": [(width, height), (2 * w2, h2)],
            "P010_10LE": [(width, height), (2 * w2, h2)],
            "GRAY8": [(width, height)],
        }[name]
        # Of 10-bit formats a sample has two bytes, so rows of an even number of samples are multiples of 4 bytes.
        align = (lambda n: (n + 1) // 2 * 2) if name == "P010_10LE" else up4
        self.samples = np.full(sum(align(w) * h for w, h in planes), np.nan)
        views, begin = [], 0
        for w, h in planes:
            views.append(self.samples[begin : begin + align(w) * h].reshape(h, align(w))[:, :w])
            begin += align(w) * h
        if name in ("NV12", "P010_10LE"):
            views = [views[0], views[1][:, 0::2], views[1][:, 1::2]]
        elif name == "NV21":
            views = [views[0], views[1][:, 1::2], views[1][:, 0::2]]
        elif name == "YV12":
            views = [views[0], views[2], views[1]]
        self.components = views


def cubic(x):
    """Keys' kernel with a = -1/2."""
    a, x = -0.5, abs(x)
    if x <= 1:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1
    return a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a if x < 2 else 0.0


def resizing(pixels, samples, sub, to, on_first=False):
    """The matrix from `samples` samples, each for `sub` of `pixels` pixels, to `to` pixels. The middle of a sample is the
    middle of its pixels, or that of the first of them."""
    ratio = pixels / (sub * to)
    # Pixel p, whose middle is p + 1/2, is at (p + 1/2) / sub + moved; sample i has its middle at i + 1/2.
    moved = 0.5 - 0.5 / sub if on_first else 0.0
    weights = np.zeros((to, samples))
    for o in range(to):
        if ratio < 1:
            centre = (o + 0.5) * ratio + moved - 0.5
            for i in range(int(np.floor(centre)) - 1, int(np.floor(centre)) + 3):
                weights[o, min(max(i, 0), samples - 1)] += cubic(centre - i)
        else:
            begin, end = o * ratio + moved, (o + 1) * ratio + moved
            # Beyond the last sample it goes on.
            for i in range(samples + 1):
                weights[o, min(i, samples - 1)] += max(0.0, min(i + 1, end) - max(i, begin)) / ratio
    np.testing.assert_allclose(weights.sum(axis=1), 1, atol=1e-9)
    return weights


def encoding(name, matrix, full):
    """A 3x3 matrix and three offsets that give codes of red, green and blue in 0…1."""
    bits = 10 if name == "P010_10LE" else 8
    unit, top = 2 ** (bits - 8), 2**bits - 1
    scale, offset = (top, 0) if full else (219 * unit, 16 * unit)
    if name in PACKED:
        return np.eye(3) * scale, np.full(3, float(offset))
    if matrix == "rgb":
        # Green, blue, red.
        return np.eye(3)[[1, 2, 0]] * scale, np.full(3, float(offset))
    kr, kb = WEIGHTS[matrix]
    luma = np.array([kr, 1 - kr - kb, kb])
    cb = (np.array([0, 0, 1]) - luma) / (2 * (1 - kb))
    cr = (np.array([1, 0, 0]) - luma) / (2 * (1 - kr))
    difference = top if full else 224 * unit
    rows = np.array([luma * scale, cb * difference, cr * difference])
    return rows, np.array([offset, 128.0 * unit, 128.0 * unit])


def frame_to_tensor(name, frame, matrix, full, size, to, site):
    (width, height), (to_width, to_height) = size, to
    planes = []
    for i, component in enumerate(frame.components):
        sx, sy = frame.sub if i else (1, 1)
        across = resizing(width, component.shape[1], sx, to_width, i > 0 and SITES[site][0])
        down = resizing(height, component.shape[0], sy, to_height, i > 0 and SITES[site][1])
        planes.append(down @ component @ across.T)
    rows, offsets = encoding(name, matrix, full)
    if name == "GRAY8":
        gray = (planes[0] - offsets[0]) / rows[0].sum()
        rgb = np.stack([gray] * 3)
    else:
        rgb = np.einsum("ij,jhw->ihw", np.linalg.inv(rows), np.stack(planes) - offsets[:, None, None])
    return np.clip(2 * rgb - 1, -1, 1)


def around(size, sub, on_first):
    """The matrix from `size` pixels to samples for `sub` of them: the mean over `sub` pixels' breadth around where a sample
    lies, pixels beyond the edge being those at it."""
    weights = np.zeros(((size + sub - 1) // sub, size))
    for i in range(len(weights)):
        middle = sub * i + (0.5 if on_first else sub / 2)
        for p in range(-sub, size + sub):
            covered = max(0.0, min(p + 1, middle + sub / 2) - max(p, middle - sub / 2))
            weights[i, min(max(p, 0), size - 1)] += covered / sub
    np.testing.assert_allclose(weights.sum(axis=1), 1, atol=1e-9)
    return weights


def tensor_to_frame(name, tensor, matrix, full, to, site):
    """Codes before they are rounded; what no sample is stays NaN."""
    width, height = to
    _, from_height, from_width = tensor.shape
    across = resizing(from_width, from_width, 1, width)
    down = resizing(from_height, from_height, 1, height)
    rgb = (np.clip(np.einsum("yh,chw,xw->cyx", down, tensor, across), -1, 1) + 1) / 2
    rows, offsets = encoding(name, matrix, full)
    codes = np.einsum("ij,jhw->ihw", rows, rgb) + offsets[:, None, None]
    frame = Frame(name, width, height)
    sx, sy = frame.sub
    for i, component in enumerate(frame.components):
        if i == 0 or (sx, sy) == (1, 1):
            component[:] = codes[i]
            continue
        across = around(width, sx, SITES[site][0] and sx > 1)
        down = around(height, sy, SITES[site][1] and sy > 1)
        component[:] = down @ codes[i] @ across.T
    for alpha in frame.alpha:
        alpha[:] = 255
    if name in PAIRS and width % 2:
        frame.luma_of_pairs[:, width] = frame.luma_of_pairs[:, width - 1]
    return frame.samples


def frames():
    cases = []
    sizes = [((13, 9), (13, 9)), ((13, 9), (20, 16)), ((26, 19), (8, 6)), ((11, 21), (16, 4)), ((1, 1), (4, 3)),
             ((40, 6), (2, 6))]
    matrices = list(WEIGHTS)
    for f, name in enumerate(FORMATS):
        for s, (size, to) in enumerate(sizes):
            matrix = "rgb" if name in PACKED else matrices[(f + s) % len(matrices)]
            cases.append((name, matrix, (f + s) % 2 == 0, size, to))
    for name in ("NV12", "P010_10LE", "Y444", "GRAY8"):
        for matrix in [*matrices, "rgb"]:
            if name == "GRAY8" and matrix == "rgb":
                continue
            cases += [(name, matrix, full, (6, 4), (6, 4)) for full in (False, True)]
    # Wide ones, which several blocks share a row of.
    cases.append(("NV12", "bt709", False, (1301, 3), (1027, 2)))
    cases.append(("YUY2", "bt601", False, (515, 2), (1531, 2)))
    cases = [(*case, "center") for case in cases]
    # Colour differences that lie elsewhere (GStreamer's mpeg2, v-cosited and cosited).
    for f, name in enumerate(name for name, sub in SUBSAMPLED.items() if sub != (1, 1)):
        for s, (size, to) in enumerate(sizes):
            site = list(SITES)[1 + (f + s) % 3]
            cases.append((name, matrices[(f + s) % len(matrices)], (f + s) % 2 == 1, size, to, site))
    cases.append(("NV12", "bt709", False, (1301, 3), (1027, 2), "left"))
    for site in list(SITES)[1:]:
        cases.append(("I420", "bt601", False, (31, 5), (43, 7), site))
        cases.append(("P010_10LE", "bt2020", False, (9, 40), (10, 13), site))
    # Several warps and strips of a larger frame.
    for name, matrix, site in (("NV12", "bt709", "left"), ("I420", "bt601", "topleft"), ("Y42B", "bt709", "left"),
                               ("P010_10LE", "bt2020", "top"), ("YUY2", "bt601", "left"), ("NV21", "bt709", "center"),
                               ("Y444", "bt709", "center"), ("BGR", "rgb", "center"), ("ARGB", "rgb", "center")):
        cases.append((name, matrix, True, (36, 5), (130, 7), site))
    # As large, larger one way alone, tensors that are smaller than the taps, frames of one to three pixels, many rows.
    for name, matrix, site in (("NV12", "bt709", "left"), ("YUY2", "bt601", "center"), ("RGB", "rgb", "center"),
                               ("BGRA", "rgb", "center")):
        for size, to in (((70, 6), (70, 6)), ((26, 4), (8, 9)), ((4, 4), (9, 9)), ((6, 7), (1, 9)), ((5, 4), (3, 7)),
                         ((20, 70), (6, 5)), ((5, 5), (6, 6))):
            cases.append((name, matrix, False, size, to, site))
    lines, rounded = [], {"frame_to_tensor": [], "tensor_to_frame": []}
    for index, (name, matrix, full, (w, h), (to_w, to_h), site) in enumerate(cases):
        lines.append(f"{name} {matrix} {'full' if full else 'limited'} {w}x{h} {to_w}x{to_h} {site}\n")
        frame = Frame(name, w, h)
        stored = hashed(frame.samples.size, 100_003 * index)
        # What is stored in ten bits has any bits below them.
        frame.samples[:] = stored // 64 if name == "P010_10LE" else stored // 256
        tensor = frame_to_tensor(name, frame, matrix, full, (w, h), (to_w, to_h), site)
        rounded["frame_to_tensor"].append(np.rint(tensor.ravel() * TENSOR_UNITS).astype(np.int16))
        # The other way: a tensor of the first size, a frame of the second.
        tensor = 1.25 * numbers(3 * h * w, 100_003 * index).astype(np.float64)
        tensor = tensor.astype(np.float16).astype(np.float64).reshape(3, h, w)
        codes = tensor_to_frame(name, tensor, matrix, full, (to_w, to_h), site) * CODE_UNITS
        rounded["tensor_to_frame"].append(np.where(np.isnan(codes), NO_CODE, np.rint(codes)).astype(np.uint16))
    (FOLDER / "frames.txt").write_text("".join(lines))
    np.savez_compressed(FOLDER / "frames.npz", **{key: np.concatenate(arrays) for key, arrays in rounded.items()})


def hashed(count, seed):
    """16-bit numbers that a line of any language makes again."""
    i = np.arange(count, dtype=np.uint64) + np.uint64(seed)
    return ((i * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(40) & np.uint64(0xFFFF)).astype(np.int64)


def numbers(count, seed):
    """The same as f16 in [-1, 1]."""
    return (hashed(count, seed) / 32768 - 1).astype(np.float16)


def tensors():
    random = np.random.default_rng(2)
    out = {}

    def normal(*shape):
        return (3 * random.standard_normal(shape)).astype(np.float16)

    # A fused step of two frames of a slot, which share a noise map.
    a, b, c, d = normal(2, 35), normal(2, 35), normal(2, 35), normal(1, 35)
    k = np.array([0.731, -0.254, 1.5, 0.0625], np.float32)
    for name, value in zip("abcd", (a, b, c, d)):
        out[f"combine_{name}"] = value.view(np.uint16)
    out["combine_factors"] = k
    a, b, c, d = (x.astype(np.float64) for x in (a, b, c, d))
    out["combine_out"] = k[0] * a + k[1] * b + k[2] * c + k[3] * d

    moments = np.stack([random.standard_normal(43), random.uniform(-40, 25, 43)]).astype(np.float16)
    noise = normal(43)
    out["posterior_moments"] = moments.view(np.uint16)
    out["posterior_noise"] = noise.view(np.uint16)
    mean, log_variance = moments.astype(np.float64)
    sample = mean + np.exp(0.5 * np.clip(log_variance, -30, 20)) * noise.astype(np.float64)
    scale, shift = np.float32(0.18215), np.float32(0.0625)
    out["posterior_numbers"] = np.array([scale, shift])
    out["posterior_out"] = (sample - np.float64(shift)) * np.float64(scale)

    lengths, sums = [1, 7, 2048, 100_003, 3 * 1920 * 1080], []
    for count in lengths:
        a, b = (numbers(count, seed).astype(np.float64) for seed in (5, 777))
        b = 0.75 * a + 0.25 * b
        b = b.astype(np.float16).astype(np.float64)
        sums.append([np.dot(a, b), np.dot(a, a), np.dot(b, b)])
    out["cosine_lengths"] = np.array(lengths, np.uint32)
    out["cosine_sums"] = np.array(sums)

    a, b = normal(77), normal(77)
    out["slerp_a"], out["slerp_b"] = a.view(np.uint16), b.view(np.uint16)
    a, b = a.astype(np.float64), b.astype(np.float64)
    angle = np.arccos(np.dot(a, b) / np.linalg.norm(a) / np.linalg.norm(b))
    shares = np.array([0, 0.25, 0.5, 0.9, 1], np.float32)
    out["slerp_t"] = shares
    out["slerp_out"] = np.stack([(np.sin((1 - t) * angle) * a + np.sin(t * angle) * b) / np.sin(angle)
                                 for t in shares.astype(np.float64)])

    # Two decoded pictures, which leave [-1, 1], over those they were made of. Shares as the rows hold them, in f32.
    over, under = normal(2, 45), numbers(90, 9).reshape(2, 45)
    shares = np.array([0.3, 0.85], np.float32)
    out["blend_over"], out["blend_under"] = over.view(np.uint16), under.view(np.uint16)
    out["blend_shares"] = shares
    over, under, share = (x.astype(np.float64) for x in (over, under, shares[:, None]))
    out["blend_out"] = share * np.clip(over, -1, 1) + (1 - share) * under

    # What lies between two texts of nine tokens: any two, short and long, nearly parallel, nearly opposite, four pairs that
    # have no arc (parallel, opposite, and one of them zero), and nearly opposite ones of different lengths.
    a = random.standard_normal((9, 21)).astype(np.float32)
    b = random.standard_normal((9, 21)).astype(np.float32)
    a[1] *= np.float32(50)
    b[2] = a[2] + np.float32(1e-3) * b[2]
    b[3] = np.float32(0.02) * b[3] - a[3]
    b[4], b[5] = 2 * a[4], -a[5] / 2
    a[6], b[7] = 0, 0
    b[8] = np.float32(0.02) * b[8] - 3 * a[8]
    shares = np.array([0.25, 0.9], np.float32)
    out["interpolate_a"], out["interpolate_b"], out["interpolate_t"] = a, b, shares
    a, b = a.astype(np.float64), b.astype(np.float64)
    out["interpolate_out"] = np.array([[on_the_arc(x, y, t) for x, y in zip(a, b)] for t in shares.astype(np.float64)])
    np.savez_compressed(FOLDER / "tensors.npz", **out)


def on_the_arc(a, b, t):
    """The vector at t of the way from a to b (Shoemake 1985); on the straight line where there is no arc. The angle is that of
    Kahan's formula, which is exact near 0 and near pi too."""
    x, y = np.linalg.norm(b) * a, np.linalg.norm(a) * b
    angle = 2 * np.arctan2(np.linalg.norm(x - y), np.linalg.norm(x + y))
    sine = np.sin(angle)
    if not x.any() or not y.any() or sine <= 1e-6:
        return (1 - t) * a + t * b
    return (np.sin((1 - t) * angle) * a + np.sin(t * angle) * b) / sine


if __name__ == "__main__":
    FOLDER.mkdir(parents=True, exist_ok=True)
    tensors()
    frames()
