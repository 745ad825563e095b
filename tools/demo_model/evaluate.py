#!/usr/bin/env python3
"""Measures an exported model with ONNX Runtime; writes a report and a sheet.

A classifier learns the styles from filter-stylised procedural pictures (never
from outputs of the model) and then judges the model's outputs on real
photographs and on procedural pictures that no training saw.
"""

import argparse
import os
import pathlib
import sys
import time

import cv2
import numpy as np
import torch
import torch.nn as nn
from PIL import Image

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import data
import export
import scenes
import styles
import text as words
from pipeline import Pipeline, step_list

PHOTOS = ["astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg", "motorcycle_left.png", "camera.png", "coins.png", "clock_motion.png"]
NAMED = [s for s in styles.STYLES if s != "plain"]


def photographs(size=256):
    """Real photographs that come with scikit-image -> dict of uint8 [size, size, 3]."""
    import skimage

    folder, out = pathlib.Path(skimage.__path__[0]) / "data", {}
    for name in PHOTOS:
        img = np.asarray(Image.open(folder / name).convert("RGB"))
        h, w = img.shape[:2]
        m = min(h, w)
        img = img[(h - m) // 2 :, (w - m) // 2 :][:m, :m]
        out[name.split(".")[0]] = cv2.resize(img, (size, size), interpolation=cv2.INTER_AREA)
    return out


def to_input(pictures):
    x = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float()
    return x / 127.5 - 1


def train_classifier(work, steps=700):
    """A small convolutional network: picture -> one of styles.STYLES."""
    torch.manual_seed(3)
    widths = [3, 24, 48, 96, 128]
    layers = []
    for a, b in zip(widths, widths[1:]):
        layers += [nn.Conv2d(a, b, 4, stride=2, padding=1), nn.BatchNorm2d(b), nn.ReLU()]
    net = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], len(styles.STYLES)))
    path = work / "classifier.pt"
    if path.exists():
        net.load_state_dict(torch.load(path, weights_only=True))
        return net.eval()
    d = data.pictures(work / "classifier.npz", 700_000, 500, 128)
    opt = torch.optim.AdamW(net.parameters(), 2e-3)
    for step in range(steps):
        rng = np.random.default_rng([4, step])
        batch, labels = [], []
        for _ in range(32):
            i, j = rng.integers(len(d["scene"])), rng.integers(-1, d["styled"].shape[1])
            img = d["scene"][i] if j < 0 else d["styled"][i, j]
            if rng.random() < 0.5:  # a little blur and noise, so that not one pixel pattern decides
                img = cv2.GaussianBlur(img, (0, 0), rng.uniform(0.3, 1.2))
            if rng.random() < 0.5:
                img = np.clip(img + rng.normal(0, rng.uniform(1, 8), img.shape), 0, 255).astype(np.uint8)
            batch.append(img)
            labels.append(0 if j < 0 else int(d["pairs"][i, j, 0]))
        for group in opt.param_groups:
            group["lr"] = 2e-3 * (1 - step / steps)
        loss = nn.functional.cross_entropy(net(to_input(batch)), torch.tensor(labels))
        opt.zero_grad()
        loss.backward()
        opt.step()
    torch.save(net.state_dict(), path)
    return net.eval()


def classify(net, pictures):
    with torch.no_grad():
        return [styles.STYLES[i] for i in net(to_input(pictures)).argmax(1).tolist()]


def edge_map(img):
    return cv2.GaussianBlur(styles.edges(styles.luma(img.astype(np.float32) / 255), 1.5), (0, 0), 2).ravel()


def correlation(a, b):
    return float(np.corrcoef(edge_map(a), edge_map(b))[0, 1])


def psnr(a, b):
    return 10 * np.log10(255**2 / np.mean((a.astype(np.float64) - b) ** 2))


def timings(pipe, size=256, rounds=60):
    """Fastest run of each network in milliseconds (2 threads)."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((1, 3, size, size), np.float32)
    z = pipe.encoder.run(None, {"sample": x})[0]
    two = {"sample": np.repeat(z, 2, 0), "timestep": np.float32([359, 179]), "encoder_hidden_states": np.repeat(pipe.embed(""), 2, 0)}
    jobs = {
        "encoder": lambda: pipe.encoder.run(None, {"sample": x}),
        "unet, batch 2": lambda: pipe.unet.run(None, two),
        "decoder": lambda: pipe.decoder.run(None, {"latent_sample": z}),
    }
    best = {}
    for name, job in jobs.items():
        times = []
        for _ in range(rounds):
            begin = time.perf_counter()
            job()
            times.append(time.perf_counter() - begin)
        best[name] = 1000 * min(times)
    return best


def agreement(pipe, work):
    """Largest difference between the exported graphs and the torch modules."""
    if not (work / "unet.pt").exists():
        return {}
    nets, tok = export.load(work)
    rng, out = np.random.default_rng(1), {}
    x = rng.uniform(-1, 1, (2, 3, 96, 160)).astype(np.float32)
    z = rng.standard_normal((2, export.LATENT, 12, 20), np.float32)
    t = np.float32([399, 99])
    ids = words.tokenise(tok, ["pencil sketch of a cat", ""])
    with torch.no_grad():
        e = nets["text"](ids)
        pairs = {
            "vae_encoder": (nets["encoder"](torch.from_numpy(x)), pipe.encoder.run(None, {"sample": x})),
            "vae_decoder": (nets["decoder"](torch.from_numpy(z)), pipe.decoder.run(None, {"latent_sample": z})),
            "text_encoder": (e, pipe.text.run(None, {"input_ids": ids.numpy()})),
            "unet": (
                nets["unet"](torch.from_numpy(z), torch.from_numpy(t), e),
                pipe.unet.run(None, {"sample": z, "timestep": t, "encoder_hidden_states": e.numpy()}),
            ),
        }
    for name, (a, b) in pairs.items():
        out[name] = (float(np.abs(a.numpy() - b[0]).max()), float(a.std()))
    return out


def modifier_found(img, source, style):
    """The modifier whose filtered picture is nearest to the output."""
    small = cv2.GaussianBlur(img, (0, 0), 4).astype(np.float32)
    names = list(styles.MODIFIERS)
    targets = [cv2.GaussianBlur(styles.stylise(source, style, m), (0, 0), 4).astype(np.float32) for m in names]
    return names[int(np.argmin([np.abs(small - t).mean() for t in targets]))]


def modifier_lines(pipe, photos, strength):
    """The report's section on modifiers."""
    photos = [v for v in photos.values() if np.ptp(v.astype(int), axis=2).mean() > 4]  # grey ones cannot show all
    lines = ["", "## Modifiers", "", f"Share of outputs (2 steps, the {len(photos)} colour photographs) nearest to the filter with that modifier among all", "modifiers; \"with a style\": oil, watercolour, comic, mosaic.", "", "| modifier | plain picture | with a style |", "|---|---|---|"]
    for m in list(styles.MODIFIERS)[1:]:
        word = styles.MODIFIER_WORDS[m][0]
        a = [modifier_found(pipe(v, word, 2, strength), v, "plain") == m for v in photos]
        b = [
            modifier_found(pipe(v, f"{styles.WORDINGS[s][0]}, {word}", 2, strength), v, s) == m
            for s in ("oil", "watercolour", "comic", "mosaic")
            for v in photos
        ]
        lines.append(f"| {m} | {100 * np.mean(a):.0f} % | {100 * np.mean(b):.0f} % |")
    return lines


def sheet(pipe, pictures, path, steps, strength, cell=144):
    """Contact sheet: a row for each input, a column for each style."""
    columns = ["input", *NAMED]
    rows = [np.full((18, cell * len(columns), 3), 255, np.uint8)]
    for i, c in enumerate(columns):
        cv2.putText(rows[0], c, (i * cell + 4, 13), cv2.FONT_HERSHEY_SIMPLEX, 0.42, (0, 0, 0), 1, cv2.LINE_AA)
    for img in pictures:
        row = [img] + [pipe(img, styles.WORDINGS[s][0], steps, strength) for s in NAMED]
        rows.append(np.concatenate([cv2.resize(r, (cell, cell), interpolation=cv2.INTER_AREA) for r in row], 1))
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.concatenate(rows)).quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    p.add_argument("--model", type=pathlib.Path, default="models/demo")
    p.add_argument("--work", type=pathlib.Path, default="target/demo_model", help="training folder (classifier, torch weights)")
    p.add_argument("--report", type=pathlib.Path, default="models/demo/REPORT.md")
    p.add_argument("--sheet", type=pathlib.Path, default="docs/images/demo-contact-sheet.png")
    p.add_argument("--sheet-only", action="store_true")
    p.add_argument("--strength", type=float, default=0.24)
    p.add_argument("--scenes", type=int, default=8, help="procedural pictures next to the photographs")
    args = p.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(2)

    pipe = Pipeline(args.model)
    photos = photographs()
    unseen = {f"scene {i}": scenes.render(900_000 + i) for i in range(args.scenes)}
    sheet(pipe, list(photos.values())[:5] + list(unseen.values())[4:5], args.sheet, 2, args.strength)
    if args.sheet_only:
        return
    net = train_classifier(args.work)
    lines = ["# Evaluation of the demo model", "", "Written by `tools/demo_model/evaluate.py` from the exported ONNX files", f"({len(photos)} photographs of scikit-image, {len(unseen)} unseen procedural pictures, 256x256, strength {args.strength}).", ""]
    groups = {"photographs": photos, "procedural": unseen}

    lines += ["## Style recognised by the classifier", "", "| style | filter itself, photographs | " + " | ".join(f"{g}, {n} step{'s' * (n > 1)}" for g in groups for n in (1, 2, 4)) + " |", "|---|" + "---|" * 7]
    total, outputs = {}, {}
    for style in NAMED:
        cells = [np.mean([c == style for c in classify(net, [styles.stylise(v, style) for v in photos.values()])])]
        total.setdefault("filter", []).append(cells[0])
        for g, pictures in groups.items():
            for n in (1, 2, 4):
                outs = {k: pipe(v, styles.WORDINGS[style][0], n, args.strength) for k, v in pictures.items()}
                outputs[style, g, n] = outs
                cells.append(np.mean([c == style for c in classify(net, list(outs.values()))]))
                total.setdefault((g, n), []).append(cells[-1])
        lines.append(f"| {style} | " + " | ".join(f"{100 * c:.0f} %" for c in cells) + " |")
    lines.append("| **all** | " + " | ".join(f"**{100 * np.mean(v):.1f} %**" for v in total.values()) + " |")

    rng, hits = np.random.default_rng(11), []
    everything = {**photos, **unseen}
    for style in NAMED:
        outs = [pipe(v, words.prompt(rng, style, "none"), 2, args.strength) for v in everything.values()]
        hits += [c == style for c in classify(net, outs)]
    lines += ["", f"With random prompts (any wording, subjects, filler and meaningless words), 2 steps: **{100 * np.mean(hits):.1f} %** of {len(hits)}.", ""]

    lines += ["## Structure", "", "Correlation of the blurred edge maps of output and input, mean over all styles and photographs.", "", "| steps | own input | another input |", "|---|---|---|"]
    names = list(photos)
    for n in (1, 2, 4):
        own, other = [], []
        for style in NAMED:
            for i, k in enumerate(names):
                out = outputs[style, "photographs", n][k]
                own.append(correlation(out, photos[k]))
                other.append(correlation(out, photos[names[(i + 3) % len(names)]]))
        lines.append(f"| {n} | {np.mean(own):.3f} | {np.mean(other):.3f} |")

    lines += ["", "## Strength", "", "Photographs, 2 steps: style recognised, correlation with the own input, PSNR to the filter's picture.", "", "| strength | timesteps | recognised | structure | PSNR to the filter |", "|---|---|---|---|---|"]
    for strength in (0.16, 0.2, 0.24, 0.3, 0.36, 0.42):
        hits, own, close = [], [], []
        for style in NAMED:
            outs = [pipe(v, styles.WORDINGS[style][0], 2, strength) for v in photos.values()]
            hits += [c == style for c in classify(net, outs)]
            own += [correlation(o, v) for o, v in zip(outs, photos.values())]
            close += [psnr(o, styles.stylise(v, style)) for o, v in zip(outs, photos.values())]
        at = ", ".join(str(999 - 20 * i) for i in step_list(2, strength))
        lines.append(f"| {strength} | {at} | {100 * np.mean(hits):.1f} % | {np.mean(own):.3f} | {np.mean(close):.1f} dB |")

    lines += modifier_lines(pipe, photos, args.strength)

    lines += ["", "## No style named", "", "PSNR of the output to the input, mean over the photographs.", "", "| prompt | 1 step | 2 steps | 4 steps |", "|---|---|---|---|"]
    rebuilt = np.mean([psnr(pipe.decode(pipe.encode(v)), v) for v in photos.values()])
    for text in ("", "a photo of my dog", "xqzzv blorp", "1girl, cat ears, masterpiece"):
        values = [np.mean([psnr(pipe(v, text, n, args.strength), v) for v in photos.values()]) for n in (1, 2, 4)]
        lines.append(f"| `{text}` | " + " | ".join(f"{v:.1f} dB" for v in values) + " |")
    lines += [f"| (autoencoder alone) | {rebuilt:.1f} dB | | |", ""]

    best = timings(pipe)
    lines += ["## Speed", "", "Fastest of 60 runs, ONNX Runtime CPU, 2 threads, 256x256, milliseconds:", ""]
    lines += [f"- {k}: {v:.1f}" for k, v in best.items()] + [f"- sum: {sum(best.values()):.1f}", ""]

    lines += ["## Exported graphs against torch", "", "| network | largest difference | standard deviation of the output |", "|---|---|---|"]
    lines += [f"| {k} | {d:.4f} | {s:.3f} |" for k, (d, s) in agreement(pipe, args.work).items()]
    sizes = sum(f.stat().st_size for f in args.model.rglob("*") if f.is_file())
    lines += ["", f"Folder size {sizes / 1e6:.1f} MB. Timestep indices: " + ", ".join(f"{n} steps {step_list(n, args.strength)}" for n in (1, 2, 3, 4)) + "."]
    args.report.write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
