"""The judge: a small classifier of what a crop shows. No guidance and no node ever uses it; reports do."""

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import affine_grid, grid_sample, silu

CROP = 64
HEADS = {"shape": 8, "colour": 8, "surface": 3, "background": 6, "style": 4}


class _Block(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.GroupNorm(8, channels),
            nn.SiLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.GroupNorm(8, channels),
            nn.SiLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


class Judge(nn.Module):
    """crops (B, 3, CROP, CROP) in [0, 1] to {head: logits (B, classes)}; `features` gives (B, 256)."""

    def __init__(self, widths: tuple[int, ...] = (32, 64, 96, 128)) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(3, widths[0], 5, stride=2, padding=2), _Block(widths[0])]
        for before, after in zip(widths, widths[1:], strict=False):
            layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), _Block(after)]
        layers += [_Block(widths[-1])]
        self.body = nn.Sequential(*layers)
        self.where = nn.Conv2d(widths[-1], 32, 1)
        self.gather = nn.Linear(widths[-1] * 2 + 32 * 16, 256)
        self.heads = nn.ModuleDict({name: nn.Linear(256, count) for name, count in HEADS.items()})

    def features(self, crops: Tensor) -> Tensor:
        maps = silu(self.body(crops * 2 - 1))
        # Means and peaks say what is there, the 4 x 4 map says where.
        summary = [maps.mean((2, 3)), maps.amax((2, 3)), silu(self.where(maps)).flatten(1)]
        return silu(self.gather(torch.cat(summary, 1)))

    def forward(self, crops: Tensor) -> dict[str, Tensor]:
        features = self.features(crops)
        return {name: head(features) for name, head in self.heads.items()}


def crop_boxes(image: Tensor, boxes: Tensor, margin: float | Tensor = 1.4, shift: Tensor | None = None) -> Tensor:
    """Square crops around boxes. image: (B, H, W, 3). boxes: (B, 4) x, y, w, h. Returns (B, 3, CROP, CROP).

    margin: side of the crop in longer sides of the box. shift: (B, 2), in sides of the crop. What lies beyond the
    picture repeats its border.
    """
    height, width = image.shape[1:3]
    boxes = boxes.float().to(image.device)
    side = boxes[:, 2:].amax(1).clamp(min=4) * margin
    centre = boxes[:, :2] + boxes[:, 2:] / 2
    if shift is not None:
        centre = centre + shift * side[:, None]
    theta = image.new_zeros(len(image), 2, 3)
    theta[:, 0, 0], theta[:, 1, 1] = side / width, side / height
    theta[:, 0, 2] = centre[:, 0] / width * 2 - 1
    theta[:, 1, 2] = centre[:, 1] / height * 2 - 1
    grid = affine_grid(theta, [len(image), 3, CROP, CROP], align_corners=False)
    return grid_sample(image.permute(0, 3, 1, 2), grid, padding_mode="border", align_corners=False)


def load_judge(path: Path) -> Judge:
    """path: the judge's safetensors."""
    from safetensors.torch import load_file

    judge = Judge()
    judge.load_state_dict({key: value.float() for key, value in load_file(path).items()})
    return judge.eval().requires_grad_(False)
