"""The autoencoder: pictures <-> latents at 1/8 resolution.

Works at 1/4 resolution behind a pixel-unshuffle, which is what makes it quick
to train and to run on a CPU. Latents [B, LATENT, H/8, W/8] have zero mean and
unit variance per channel (the statistics are part of the encoder), so the
scaling factor of the exported model is 1.0.
"""

import torch
import torch.nn as nn
import torch.nn.functional as F

LATENT = 16


class Block(nn.Module):
    """x + conv(relu(conv(relu(x)))), without normalisation."""

    def __init__(self, width):
        super().__init__()
        self.a = nn.Conv2d(width, width, 3, padding=1)
        self.b = nn.Conv2d(width, width, 3, padding=1)
        with torch.no_grad():
            self.b.weight.mul_(0.3)

    def forward(self, x):
        return x + self.b(F.relu(self.a(F.relu(x))))


class Encoder(nn.Module):
    """Picture [B, 3, H, W] in -1..1 -> latents [B, LATENT, H/8, W/8]."""

    def __init__(self, w4=64, w8=96):
        super().__init__()
        self.body = nn.Sequential(
            nn.PixelUnshuffle(4),
            nn.Conv2d(48, w4, 3, padding=1),
            Block(w4),
            nn.Conv2d(w4, w8, 3, stride=2, padding=1),
            Block(w8),
            Block(w8),
            nn.ReLU(),
            nn.Conv2d(w8, LATENT, 3, padding=1),
        )
        self.norm = nn.BatchNorm2d(LATENT, affine=False, momentum=0.02)

    def forward(self, x):
        return self.norm(self.body(x))


class Decoder(nn.Module):
    """Latents [B, LATENT, h, w] -> picture [B, 3, 8h, 8w], about -1..1."""

    def __init__(self, w4=64, w8=96):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(LATENT, w8, 3, padding=1),
            Block(w8),
            Block(w8),
            nn.Conv2d(w8, w4 * 4, 1),
            nn.PixelShuffle(2),
            Block(w4),
            Block(w4),
            Block(w4),
            nn.ReLU(),
            nn.Conv2d(w4, 48, 3, padding=1),
            nn.PixelShuffle(4),
        )

    def forward(self, z):
        return self.body(z)


def picture_loss(out, target):
    """L1 of the pictures and of their gradients at three scales; [B,3,H,W]."""
    loss = F.l1_loss(out, target)
    for _ in range(3):
        d = out - target
        loss = loss + 0.5 * ((d[..., 1:] - d[..., :-1]).abs().mean() + (d[..., 1:, :] - d[..., :-1, :]).abs().mean())
        out, target = F.avg_pool2d(out, 2), F.avg_pool2d(target, 2)
    return loss
