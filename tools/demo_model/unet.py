"""The U-Net: noisy latents, timestep, prompt -> clean latents of the style.

It predicts the clean picture itself (`prediction_type: sample`). Three
resolutions, text attention at the two lower ones, self-attention only at the
lowest; no fixed sizes, so any latent height and width divisible by 4 works.
"""

import math

import torch
import torch.nn as nn
import torch.nn.functional as F

from autoencoder import LATENT
from text import WIDTH, attend

CHANNELS = (64, 96, 160)
HEAD = 32


def time_features(t, width=64):
    """Timesteps [B] -> sines and cosines [B, width]."""
    freq = torch.exp(torch.arange(width // 2, dtype=torch.float32, device=t.device) * (-math.log(2000.0) / (width // 2)))
    arg = t.float()[:, None] * freq[None]
    return torch.cat([torch.cos(arg), torch.sin(arg)], dim=1)


class Residual(nn.Module):
    """Two convolutions; time and prompt scale and shift between them."""

    def __init__(self, width, emb):
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(8, width), nn.GroupNorm(8, width)
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        self.mod = nn.Linear(emb, 2 * width)
        with torch.no_grad():
            self.conv2.weight.mul_(0.1)
            self.mod.weight.mul_(0.3)

    def forward(self, x, emb):
        h = self.conv1(F.silu(self.norm1(x)))
        scale, shift = self.mod(emb)[:, :, None, None].chunk(2, dim=1)
        h = self.norm2(h) * (1 + scale) + shift
        return x + self.conv2(F.silu(h))


class TextAttention(nn.Module):
    """Every latent position looks at the prompt; K and V see nothing else."""

    def __init__(self, width):
        super().__init__()
        self.norm = nn.GroupNorm(8, width)
        self.q = nn.Linear(width, width)
        self.k, self.v = nn.Linear(WIDTH, width), nn.Linear(WIDTH, width)
        self.out = nn.Linear(width, width)
        with torch.no_grad():
            self.out.weight.mul_(0.1)

    def forward(self, x, text):
        b, c, h, w = x.shape
        q = self.q(self.norm(x).reshape(b, c, h * w).transpose(1, 2))
        y = self.out(attend(q, self.k(text), self.v(text), c // HEAD))
        return x + y.transpose(1, 2).reshape(b, c, h, w)


class SelfAttention(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm = nn.GroupNorm(8, width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        with torch.no_grad():
            self.out.weight.mul_(0.1)

    def forward(self, x):
        b, c, h, w = x.shape
        q, k, v = self.qkv(self.norm(x).reshape(b, c, h * w).transpose(1, 2)).chunk(3, dim=-1)
        y = self.out(attend(q, k, v, c // HEAD))
        return x + y.transpose(1, 2).reshape(b, c, h, w)


class Rise(nn.Module):
    """Doubles the resolution and merges the skip connection."""

    def __init__(self, low, high):
        super().__init__()
        self.up = nn.Conv2d(low, 4 * high, 1)
        self.merge = nn.Conv2d(2 * high, high, 1)

    def forward(self, x, skip):
        return self.merge(torch.cat([F.pixel_shuffle(self.up(x), 2), skip], dim=1))


class UNet(nn.Module):
    """sample [B, LATENT, h, w], timestep [B], text [B, L, WIDTH] -> [B, LATENT, h, w]."""

    def __init__(self, channels=CHANNELS, emb=256):
        super().__init__()
        c0, c1, c2 = channels
        self.time = nn.Sequential(nn.Linear(64, emb), nn.SiLU(), nn.Linear(emb, emb))
        self.pool_score, self.pool = nn.Linear(WIDTH, 4), nn.Linear(4 * WIDTH, emb)
        self.enter = nn.Conv2d(LATENT, c0, 3, padding=1)
        self.down0 = nn.ModuleList(Residual(c0, emb) for _ in range(2))
        self.fall0 = nn.Conv2d(c0, c1, 3, stride=2, padding=1)
        self.down1 = nn.ModuleList(Residual(c1, emb) for _ in range(2))
        self.down1_text = TextAttention(c1)
        self.fall1 = nn.Conv2d(c1, c2, 3, stride=2, padding=1)
        self.mid = nn.ModuleList(Residual(c2, emb) for _ in range(3))
        self.mid_self = SelfAttention(c2)
        self.mid_text = TextAttention(c2)
        self.rise1 = Rise(c2, c1)
        self.up1 = nn.ModuleList(Residual(c1, emb) for _ in range(2))
        self.up1_text = TextAttention(c1)
        self.rise0 = Rise(c1, c0)
        self.up0 = nn.ModuleList(Residual(c0, emb) for _ in range(3))
        self.norm = nn.GroupNorm(8, c0)
        self.leave = nn.Conv2d(c0, LATENT, 3, padding=1)

    def embed(self, timestep, text):
        """Time features plus the prompt, pooled by four learnt scores -> [B, emb]."""
        weights = torch.softmax(self.pool_score(text), dim=1)
        pooled = (weights.transpose(1, 2) @ text).flatten(1)
        return F.silu(self.time(time_features(timestep)) + self.pool(pooled))

    def forward(self, sample, timestep, text):
        emb = self.embed(timestep, text)
        x = self.enter(sample)
        for block in self.down0:
            x = block(x, emb)
        skip0 = x
        x = self.fall0(x)
        for block in self.down1:
            x = block(x, emb)
        x = skip1 = self.down1_text(x, text)
        x = self.mid[0](self.fall1(x), emb)
        x = self.mid_text(self.mid_self(x), text)
        x = self.mid[2](self.mid[1](x, emb), emb)
        x = self.rise1(x, skip1)
        x = self.up1_text(self.up1[0](x, emb), text)
        x = self.up1[1](x, emb)
        x = self.rise0(x, skip0)
        for block in self.up0:
            x = block(x, emb)
        return self.leave(F.silu(self.norm(x)))
