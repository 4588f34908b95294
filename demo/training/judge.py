"""Trains the judge on its own seeds: crops of objects, whole pictures now and then, some of them blurred or noisy."""

from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, cross_entropy, interpolate

from ..captions import PENCIL
from ..judge import HEADS, Judge, crop_boxes
from ..render import render
from ..scenes import SIZE, draw_scenes, uniform_draws
from .pictures import SEEDS
from .run import Run

BATCH = 128


def judge_batch(seeds: list[int], device: str = "cpu") -> tuple[Tensor, dict[str, Tensor]]:
    """Crops (B, 3, 64, 64) and labels (B,), -1 where a crop does not show that attribute."""
    scenes = draw_scenes(seeds)
    pictures = render(scenes, device)
    draws = uniform_draws(seeds, 12, 5)
    index = ((draws[:, 0] < 0.5) & (scenes.count == 2)).long()
    rows = torch.arange(len(seeds))
    boxes = pictures.boxes.cpu()[rows, index].float()
    whole = (draws[:, 1] < 0.15) & (scenes.count == 1)
    boxes = torch.where(whole[:, None], torch.tensor([0.0, 0.0, SIZE, SIZE]), boxes)
    margin = torch.where(whole, 1.0, 1.1 + 0.9 * draws[:, 2])
    shift = torch.where(whole[:, None], 0.0, (draws[:, 3:5] - 0.5) * 0.25)
    crops = crop_boxes(pictures.image, boxes, margin.to(device), shift.to(device))
    soft = interpolate(avg_pool2d(crops, 2), scale_factor=2, mode="bilinear")
    crops = torch.where((draws[:, 5] < 0.35).view(-1, 1, 1, 1).to(device), soft, crops)
    noise = torch.randn(crops.shape, generator=torch.Generator().manual_seed(seeds[0])).to(device)
    crops = crops + noise * (0.06 * draws[:, 6] * (draws[:, 7] < 0.5)).view(-1, 1, 1, 1).to(device)
    crops = ((crops - 0.5) * (0.85 + 0.3 * draws[:, 8]).view(-1, 1, 1, 1).to(device) + 0.5).clamp(0, 1)
    labels = {name: getattr(scenes, name)[rows, index] for name in ("shape", "colour", "surface")}
    labels["colour"] = torch.where(scenes.style == PENCIL, -1, labels["colour"])
    labels["background"], labels["style"] = scenes.background, scenes.style
    return crops, {name: value.to(device) for name, value in labels.items()}


def train_judge(folder: Path, device: str, steps: int, warm_start: dict[str, Tensor] | None = None) -> Run:
    torch.manual_seed(4)
    judge = Judge().to(device)
    run = Run("judge", folder, judge, steps, 1.5e-3, warm_start=warm_start)

    def step(index: int) -> tuple[Tensor, dict[str, float]]:
        first = SEEDS["judge"] + index * BATCH
        crops, labels = judge_batch(list(range(first, first + BATCH)), device)
        with torch.autocast(device, torch.bfloat16):
            logits = judge(crops)
        loss, figures = crops.new_zeros(()), {}
        for name in HEADS:
            loss = loss + cross_entropy(logits[name].float(), labels[name], ignore_index=-1)
            told = labels[name] >= 0
            figures[name] = (logits[name].argmax(1) == labels[name])[told].float().mean().item()
        return loss, {"loss": loss.item(), **figures}

    run.train(step, report_every=20)
    return run
