"""Trains the judge on its own seeds: crops of objects, whole pictures now and then, some of them blurred or noisy.

Generators and autoencoders blur and stain: a judge of theirs must see through that.
"""

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, cross_entropy, interpolate

from ..captions import PENCIL
from ..judge import CROP, HEADS, Judge, crop_boxes
from ..render import Pictures, render
from ..scenes import SIZE, Scenes, draw_scenes, uniform_draws
from .pictures import SEEDS
from .run import Run

BATCH = 128
VIEWS = 2
# Stripes and dots under pencil hatching are the hardest to see: they weigh more, and are shown more often.
LOSS_WEIGHTS = {"surface": 3.0}
MORE_PENCIL = 3


def judge_batch(seeds: list[int], device: str = "cpu") -> tuple[Tensor, dict[str, Tensor]]:
    """VIEWS crops of every picture: crops (B, 3, 64, 64) and labels (B,), -1 where a crop does not show one."""
    scenes = draw_scenes(seeds)
    redrawn = torch.tensor([seed % MORE_PENCIL == 0 for seed in seeds])
    scenes = replace(scenes, style=torch.where(redrawn, PENCIL, scenes.style))
    pictures = render(scenes, device)
    views = [_view(scenes, pictures, uniform_draws(seeds, 12, 5 + view), view, seeds[0]) for view in range(VIEWS)]
    crops, labels = zip(*views, strict=True)
    return torch.cat(crops), {name: torch.cat([one[name] for one in labels]) for name in labels[0]}


def _view(scenes: Scenes, pictures: Pictures, draws: Tensor, view: int, seed: int) -> tuple[Tensor, dict[str, Tensor]]:
    """One crop of every picture; the first view is of the thing in front, the second of the other one."""
    device = pictures.image.device
    index = torch.where(scenes.count == 2, 1 - view, 0)
    rows = torch.arange(len(scenes))
    boxes = pictures.boxes.cpu()[rows, index].float()
    whole = (draws[:, 1] < 0.15) & (scenes.count == 1)
    boxes = torch.where(whole[:, None], torch.tensor([0.0, 0.0, SIZE, SIZE]), boxes)
    margin = torch.where(whole, 1.0, 1.1 + 0.9 * draws[:, 2])
    shift = torch.where(whole[:, None], 0.0, (draws[:, 3:5] - 0.5) * 0.25)
    crops = crop_boxes(pictures.image, boxes, margin.to(device), shift.to(device))
    crops = softened(crops, draws[:, 5])
    noise = torch.randn(crops.shape, generator=torch.Generator().manual_seed(seed + view)).to(device)
    crops = crops + noise * (0.06 * draws[:, 6] * (draws[:, 7] < 0.5)).view(-1, 1, 1, 1).to(device)
    crops = ((crops - 0.5) * (0.85 + 0.3 * draws[:, 8]).view(-1, 1, 1, 1).to(device) + 0.5).clamp(0, 1)
    labels = {name: getattr(scenes, name)[rows, index] for name in ("shape", "colour", "surface")}
    labels["colour"] = torch.where(scenes.style == PENCIL, -1, labels["colour"])
    labels["background"], labels["style"] = scenes.background, scenes.style
    return crops, {name: value.to(device) for name, value in labels.items()}


def softened(crops: Tensor, draws: Tensor) -> Tensor:
    """A quarter of the crops at half their resolution, an eighth at a third, some with colours that run."""
    for low, high, factor in ((0.0, 0.25, 2), (0.25, 0.375, 3)):
        soft = interpolate(avg_pool2d(crops, factor, ceil_mode=True), (CROP, CROP), mode="bilinear")
        chosen = ((draws >= low) & (draws < high)).view(-1, 1, 1, 1).to(crops.device)
        crops = torch.where(chosen, soft, crops)
    grey = crops.mean(1, keepdim=True)
    colour = interpolate(avg_pool2d(crops - grey, 4), (CROP, CROP), mode="bilinear")
    runny = ((draws >= 0.375) & (draws < 0.5)).view(-1, 1, 1, 1).to(crops.device)
    return torch.where(runny, (grey + colour).clamp(0, 1), crops)


def train_judge(
    folder: Path, device: str, steps: int, warm_start: dict[str, Tensor] | None = None, rate: float | None = None
) -> Run:
    torch.manual_seed(4)
    judge = Judge().to(device)
    run = Run("judge", folder, judge, steps, rate or 1.5e-3, warm_start=warm_start)

    def step(index: int) -> tuple[Tensor, dict[str, float]]:
        count = BATCH // VIEWS
        first = SEEDS["judge"] + index * count
        crops, labels = judge_batch(list(range(first, first + count)), device)
        with torch.autocast(device, torch.bfloat16):
            logits = judge(crops)
        loss, figures = crops.new_zeros(()), {}
        for name in HEADS:
            loss = loss + LOSS_WEIGHTS.get(name, 1.0) * cross_entropy(
                logits[name].float(), labels[name], ignore_index=-1
            )
            told = labels[name] >= 0
            figures[name] = (logits[name].argmax(1) == labels[name])[told].float().mean().item()
        return loss, {"loss": loss.item(), **figures}

    run.train(step, report_every=20)
    return run
