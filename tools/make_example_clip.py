#!/usr/bin/env python3
# SPDX-License-Identifier: MIT OR Apache-2.0
"""Makes examples/media/photos.mp4: three photographs, filmed by a slowly moving camera.

The photographs are the ones scikit-image ships (see examples/media/README.md for who took
them and under which licence). Needs Pillow, a copy of scikit-image's `skimage/data` folder
(a wheel can be unpacked with `python3 -m zipfile -e`), and GStreamer with x264enc.

    python3 tools/make_example_clip.py path/to/skimage/data examples/media/photos.mp4
"""

import argparse
import subprocess
from pathlib import Path

from PIL import Image

SIDE = 384
FPS = 24
SHOT_FRAMES = 54
FADE_FRAMES = 6

# Per shot: file, and where the square camera picture is at its start and its end, as
# (centre x, centre y, side) in pixels of the photograph.
SHOTS = [
    ("chelsea.png", (190, 150, 240), (250, 150, 298)),
    ("coffee.png", (250, 200, 398), (285, 235, 290)),
    ("rocket.jpg", (300, 260, 300), (340, 230, 390)),
]


def shot_frame(photo: Image.Image, start: tuple, end: tuple, t: float) -> Image.Image:
    t = t * t * (3 - 2 * t)  # ease in and out, as a hand-held camera does
    x, y, side = (a + (b - a) * t for a, b in zip(start, end, strict=True))
    box = (x - side / 2, y - side / 2, x + side / 2, y + side / 2)
    return photo.resize((SIDE, SIDE), Image.Resampling.BICUBIC, box=box)


def frames(photos: list) -> list:
    clip = []
    for photo, (_, start, end) in zip(photos, SHOTS, strict=True):
        shot = [shot_frame(photo, start, end, i / (SHOT_FRAMES - 1)) for i in range(SHOT_FRAMES)]
        for i in range(FADE_FRAMES if clip else 0):
            mixed = Image.blend(clip[i - FADE_FRAMES], shot[i], (i + 1) / (FADE_FRAMES + 1))
            clip[i - FADE_FRAMES] = mixed
        clip += shot[FADE_FRAMES:] if clip else shot
    return clip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("photos", type=Path, help="scikit-image's skimage/data folder")
    parser.add_argument("clip", type=Path, help="the .mp4 to write")
    args = parser.parse_args()

    photos = [Image.open(args.photos / name).convert("RGB") for name, _, _ in SHOTS]
    raw = b"".join(frame.tobytes() for frame in frames(photos))
    encode = (
        f"gst-launch-1.0 -q fdsrc ! rawvideoparse format=rgb width={SIDE} height={SIDE} "
        f"framerate={FPS}/1 ! videoconvert ! video/x-raw,format=I420 "
        "! x264enc pass=qual quantizer=24 speed-preset=veryslow key-int-max=48 threads=1 "
        "! video/x-h264,profile=high ! mp4mux faststart=true ! filesink"
    )
    subprocess.run([*encode.split(), f"location={args.clip}"], input=raw, check=True)


if __name__ == "__main__":
    main()
