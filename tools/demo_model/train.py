#!/usr/bin/env python3
"""Trains the demo model from nothing: pictures, autoencoder, latents, U-Net.

One command, seeded, fixed numbers of steps. Each stage leaves its result in
the work folder; a stage that was cut off goes on from its last checkpoint.
"""

import argparse
import os
import pathlib
import sys
import time

import numpy as np
import torch
from tqdm import tqdm

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import data
import export
import styles
import text as words
from autoencoder import Decoder, Encoder, picture_loss
from unet import UNet

STAGES = ("data", "ae", "latents", "unet", "export")


def to_tensor(pictures):
    """uint8 [B, H, W, 3] -> float32 [B, 3, H, W] in -1..1, channels last."""
    x = torch.from_numpy(np.ascontiguousarray(pictures)).permute(0, 3, 1, 2)
    return x.float().div_(127.5).sub_(1.0)


def plateau(step, total, peak, cool, warm=100):
    """Learning rate: warm-up, constant, then linear over the last `cool` steps."""
    if step < warm:
        return peak * (step + 1) / warm
    return peak * min(1.0, max(0.02, (total - step) / cool))


def fit(name, args, modules, loss_at, steps, rate, cool, average=None, extra=None):
    """Runs `steps` optimiser steps of loss_at(step) -> (loss, text).

    Every random draw comes from generators seeded by the step, and `extra`
    (a dict of tensors that loss_at keeps between steps) is saved too, so a run
    that is cut off and goes on gives the same weights. With `average`, an
    exponential moving average of the weights is kept and is the result.
    -> the finished modules.
    """
    path = args.work / f"{name}.pt"
    params = [p for m in modules.values() for p in m.parameters()]
    opt = torch.optim.AdamW(params, lr=rate, betas=(0.9, 0.99), weight_decay=0.0)
    start, mean = 0, None
    ema = {k: {n: v.clone() for n, v in m.state_dict().items()} for k, m in modules.items()} if average else None
    if path.exists():
        saved = torch.load(path, weights_only=True)
        for key, m in modules.items():
            m.load_state_dict(saved["modules"][key])
        opt.load_state_dict(saved["opt"])
        start, mean = saved["step"], saved["mean"]
        if average:
            ema = saved["ema"]
        if extra is not None:
            extra.update(saved["extra"])

    def save(step):
        state = {k: m.state_dict() for k, m in modules.items()}
        kept = {"modules": state, "opt": opt.state_dict(), "step": step, "mean": mean, "ema": ema, "extra": extra}
        torch.save(kept, str(path) + ".new")
        os.replace(str(path) + ".new", path)

    for m in modules.values():
        m.train()
    bar = tqdm(range(start, steps), initial=start, total=steps, desc=name, mininterval=10)
    for step in bar:
        torch.manual_seed(args.seed * 1_000_003 + step)
        for group in opt.param_groups:
            group["lr"] = plateau(step, steps, rate, cool)
        loss, text = loss_at(step)
        opt.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(params, 1.0)
        opt.step()
        if average:
            keep = min(average, (1 + step) / (10 + step))
            for k, m in modules.items():
                for n, v in m.state_dict().items():
                    ema[k][n].lerp_(v, 1 - keep)
        mean = loss.item() if mean is None else 0.98 * mean + 0.02 * loss.item()
        if step % 50 == 49:
            bar.set_postfix_str(f"loss {mean:.4f} {text}")
        if step % 200 == 199:
            save(step + 1)
    if start < steps:
        save(steps)
    for key, m in modules.items():
        if average:
            m.load_state_dict(ema[key])
        m.eval()
    return modules


def stage_data(args):
    return data.pictures(args.work / "train.npz", 0, args.scenes, 128)


def stage_ae(args):
    torch.manual_seed(args.seed)
    parts = {"encoder": Encoder(), "decoder": Decoder()}
    done = args.work / "ae.pt"
    if done.exists() and torch.load(done, weights_only=True)["step"] >= args.ae_steps:
        return fit("ae", args, parts, None, args.ae_steps, 1.0, 1)
    d = stage_data(args)
    scene, styled = d["scene"], d["styled"]
    n, per = styled.shape[:2]

    def loss_at(step):
        rng = np.random.default_rng([args.seed, 1, step])
        i, j, yx = rng.integers(0, n, 12), rng.integers(-1, per, 12), rng.integers(0, 5, (12, 2)) * 8
        whole = [scene[a] if b < 0 else styled[a, b] for a, b in zip(i, j)]
        x = to_tensor(np.stack([w[y : y + 96, x : x + 96] for w, (y, x) in zip(whole, yx)]))
        z = parts["encoder"](x)
        out = parts["decoder"](z + 0.1 * torch.randn_like(z))
        mse = torch.nn.functional.mse_loss(out.detach(), x).item() / 4
        return picture_loss(out, x), f"psnr {-10 * np.log10(mse):.1f}"

    return fit("ae", args, parts, loss_at, args.ae_steps, 2e-3, 500)


def stage_latents(args):
    """Encodes all pictures once. -> list of (scene, styled, latents of both, pairs)."""
    sets = [("train", stage_data(args))]
    sets.append(("large", data.pictures(args.work / "large.npz", 500_000, args.large, 256)))
    result, encoder = [], None
    for name, d in sets:
        path = args.work / f"{name}-latents.npz"
        if not path.exists():
            encoder = encoder or stage_ae(args)["encoder"].requires_grad_(False)
            rows = []
            for scene, styled in tqdm(zip(d["scene"], d["styled"]), total=len(d["scene"]), desc="latents", mininterval=10):
                rows.append(encoder(to_tensor(np.concatenate([scene[None], styled]))).half().numpy())
            np.savez(path, z=np.stack(rows))
        result.append((d, np.load(path)["z"]))
    return result


def alphas():
    """alpha_bar of the 1000 training timesteps (scaled linear betas)."""
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    return torch.from_numpy(np.cumprod(1 - betas)).float()


def draw_sample(rng, d):
    """-> scene, version (-1: the plain scene itself) and a prompt for it."""
    i = int(rng.integers(len(d["scene"])))
    j = int(rng.integers(d["styled"].shape[1])) if rng.random() < 0.87 else -1
    style, modifier = d["pairs"][i, j] if j >= 0 else (0, 0)
    return i, j, words.prompt(rng, styles.STYLES[style], list(styles.MODIFIERS)[modifier])


def stage_unet(args):
    """Trains the U-Net and the text encoder together; the decoder goes on
    learning, now from the U-Net's latents (the encoder stays as it is).

    The plain latent is noised to a timestep of 20..440 and the network has to
    give the styled latent. A part of each batch starts instead from a mix of
    plain and styled latents, or from the prediction of the step before for the
    same picture and prompt: what the second and later steps see when the
    pipeline runs.
    """
    torch.manual_seed(args.seed)
    tok = words.build_tokenizer()
    nets = {"unet": UNet(), "text": words.TextEncoder(tok.get_vocab_size())}
    sets = stage_latents(args)
    nets["decoder"] = stage_ae(args)["decoder"]
    alpha = alphas()
    replay = {}

    def loss_at(step):
        rng = np.random.default_rng([args.seed, 2, step])
        large = step % 8 == 7
        d, z = sets[1 if large else 0]
        count = 8 if large else 32
        draws = [draw_sample(rng, d) for _ in range(count)]
        plain = torch.from_numpy(np.stack([z[i, 0] for i, _, _ in draws])).float()
        goal = torch.from_numpy(np.stack([z[i, j + 1] for i, j, _ in draws])).float()
        pictures = np.stack([d["scene"][i] if j < 0 else d["styled"][i, j] for i, j, _ in draws])
        ids = words.tokenise(tok, [p for _, _, p in draws])

        old = count // 6 if not large and replay else 0  # from the previous prediction
        half = count // 6 if step > 300 else 0  # from a mix of plain and styled
        source = plain.clone()
        if old:
            source[:old], goal[:old], ids[:old] = replay["out"][:old], replay["goal"][:old], replay["ids"][:old]
            pictures[:old] = replay["pictures"][:old].numpy()
        share = torch.rand(half, 1, 1, 1)
        source[old : old + half] = torch.lerp(plain[old : old + half], goal[old : old + half], share)
        t = 20 + torch.rand(count) * 420
        t[: old + half] = 20 + torch.rand(old + half) * 280
        a = alpha[t.long()].view(-1, 1, 1, 1)
        noisy = a.sqrt() * source + (1 - a).sqrt() * torch.randn_like(source)

        out = nets["unet"](noisy, t.long().float(), nets["text"](ids))
        loss = torch.nn.functional.l1_loss(out, goal)
        some = slice(0, 2) if large else slice(2, 10)  # these are compared as pictures too
        seen = picture_loss(nets["decoder"](out[some]), to_tensor(pictures[some]))
        if not large:
            # the last ones of the batch started from the plain latent
            replay.update(
                out=out.detach()[-8:].clone(), goal=goal[-8:].clone(), ids=ids[-8:].clone(), pictures=torch.from_numpy(pictures[-8:])
            )
        return loss + 0.7 * seen, f"latent {loss.item():.3f} picture {seen.item():.3f}"

    fit("unet", args, nets, loss_at, args.unet_steps, 1e-3, 1200, 0.998, replay)
    return nets


def stage_export(args):
    nets, tok = export.load(args.work)
    export.export(nets, tok, args.out)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    p.add_argument("--work", type=pathlib.Path, default="target/demo_model", help="folder for data and checkpoints")
    p.add_argument("--out", type=pathlib.Path, default="models/demo", help="folder of the exported model")
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--scenes", type=int, default=4000, help="number of procedural scenes")
    p.add_argument("--ae-steps", type=int, default=2600, help="optimiser steps of the autoencoder")
    p.add_argument("--large", type=int, default=240, help="number of scenes at 256x256")
    p.add_argument("--unet-steps", type=int, default=3300, help="optimiser steps of the U-Net and the text encoder")
    p.add_argument("--stop-after", choices=STAGES, default=STAGES[-1])
    args = p.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    stages = {"data": stage_data, "ae": stage_ae, "latents": stage_latents, "unet": stage_unet, "export": stage_export}
    for name, stage in stages.items():
        begin = time.time()
        print(f"== {name}", flush=True)
        stage(args)
        print(f"== {name} took {time.time() - begin:.0f} s", flush=True)
        if name == args.stop_after:
            break


if __name__ == "__main__":
    main()
