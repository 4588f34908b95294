"""The small job that the paint job's tests share: a picture of 72 x 64 pixels, a box in it, and a few steps."""

import torch
from inlay.host.painting import PaintSettings

H, W = 64, 72
FEW = PaintSettings(steps=2, seed=7, inversion_steps=2, paste="exact")


def scene(height=H, width=W, batch=1, seed=0):
    return torch.rand(batch, height, width, 3, generator=torch.Generator().manual_seed(seed))


def box(height=H, width=W):
    mask = torch.zeros(1, height, width)
    mask[:, height // 4 : height // 2 + 3, width // 3 : width * 2 // 3 + 2] = 1
    return mask
