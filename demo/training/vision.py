"""Trains CLIP's vision tower alone, on views from near and far, against the finished text tower.

What the pair learns from whole pictures does not tell shapes in a crop, and crops are what a reference, a region under
guidance and a ranked candidate are. Texts, and with them the UNets, stay as they are.
"""

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from ...host.demo_models import allow_gradients, build_bare_vision, build_short_text_encoder, weights_under
from ..captions import Named, attribute_labels, reworded, training_captions
from ..judge import crop_boxes
from ..render import render
from ..scenes import Scenes, uniform_draws
from ..tasks import reference_scenes
from ..weights import load_part, tower_hash
from .clip import HEADS, POSITIONS, Vocabulary, attribute_loss, clip_pixels, contrast, told
from .judge import softened
from .pictures import SEEDS, training_scenes, unseen_in
from .run import Run

BATCH = 64
# Batches drawn and kept: every time round they are seen in other crops and told in other words.
DRAWN = 240
SUBJECT_SHARE = 0.3
# One inverse temperature for two views of one thing among those of others.
SAME_SCALE = 10.0
PLACE = ("style", "background")


class Looking(nn.Module):
    """The tower, and heads that read attributes out of its embedding; heads are dropped afterwards."""

    def __init__(self) -> None:
        super().__init__()
        self.vision = build_bare_vision()
        allow_gradients(self.vision)
        self.requires_grad_(True)
        self.heads = nn.ModuleDict({name: nn.Linear(128, count) for name, count in HEADS.items()})
        self.scale = nn.Parameter(torch.tensor(2.7))

    def forward(self, pixels: Tensor) -> Tensor:
        return normalize(self.vision(pixels)[2].float(), dim=-1)


def frozen_texts(device: str) -> tuple[nn.Module, Vocabulary]:
    """The committed text tower, cut to the positions that captions use."""
    vocabulary = Vocabulary()
    state = weights_under(load_part("clip"), "text.")
    positions = "text_model.embeddings.position_embedding.weight"
    state[positions] = state[positions][:POSITIONS]
    text = build_short_text_encoder(len(vocabulary.ids), POSITIONS)
    text.load_state_dict(state)
    return text.to(device).eval().requires_grad_(False), vocabulary


class Drawn:
    """A batch of scenes: pictures (B, H, W, 3) uint8 and the first thing's boxes, in its own and in another place.

    learnable: (B,) bool, where the other place's style may be shown with this thing.
    """

    def __init__(self, seeds: list[int], device: str) -> None:
        self.scenes = training_scenes(seeds, subject_share=SUBJECT_SHARE)
        elsewhere = reference_scenes(self.scenes, seeds)
        self.learnable = ~unseen_in(elsewhere.style, self.scenes)
        own, other = render(self.scenes, device), render(elsewhere, device)
        self.own, self.other = ((shown.image * 255).round().byte().cpu() for shown in (own, other))
        self.own_boxes, self.other_boxes = (shown.boxes[:, 0].float().cpu() for shown in (own, other))

    def near(self) -> Scenes:
        """What a crop of the first thing shows."""
        return replace(self.scenes, count=self.scenes.count.clamp(max=1), **self._first_only())

    def _first_only(self) -> dict[str, Tensor]:
        names = ("shape", "colour", "surface")
        return {
            name: torch.stack([getattr(self.scenes, name)[:, 0], -torch.ones_like(self.scenes.count)], 1)
            for name in names
        }


def _crop(picture: Tensor, boxes: Tensor, draws: Tensor, device: str) -> Tensor:
    """(B, 3, 64, 64) of a random margin around the boxes, some of them softened as what a decoder makes."""
    shift = (draws[:, 1:3] - 0.5) * 0.2
    margin = 1.05 + 0.95 * draws[:, 0].square()
    crops = crop_boxes(picture.to(device).float() / 255, boxes, margin.to(device), shift.to(device))
    return softened(crops, draws[:, 3])


def _views(drawn: Drawn, index: int, device: str) -> Tensor:
    """(3 B, 3, 64, 64) pixels for the tower: the thing, the same thing elsewhere, the whole picture."""
    draws = uniform_draws([seed + index for seed in drawn.scenes.seed], 8, 6)
    near = _crop(drawn.own, drawn.own_boxes, draws[:, :4], device)
    elsewhere = _crop(drawn.other, drawn.other_boxes, draws[:, 4:], device)
    crops = torch.cat([near, elsewhere]).permute(0, 2, 3, 1)
    return torch.cat([clip_pixels(crops), clip_pixels(drawn.own.to(device).float() / 255)])


def same_thing(near: Tensor, elsewhere: Tensor) -> tuple[Tensor, float]:
    """Symmetric InfoNCE between two views of each thing. Returns the loss and the top-1 share."""
    logits = SAME_SCALE * near @ elsewhere.T
    target = torch.arange(len(logits), device=logits.device)
    top = (logits.argmax(1) == target).float().mean().item()
    return (cross_entropy(logits, target) + cross_entropy(logits.T, target)) / 2, top


def train_vision(folder: Path, device: str, steps: int, rate: float | None = None) -> Run:
    text, vocabulary = frozen_texts(device)
    model = Looking()
    model.vision.load_state_dict(weights_under(load_part("clip"), "vision."))
    run = Run("vision", folder, model.to(device), steps, rate or 8e-4, decay=0.995, basis=tower_hash("text"))
    kept: dict[int, Drawn] = {}

    def drawn(batch: int) -> Drawn:
        if batch not in kept:
            first = SEEDS["vision"] + batch * BATCH
            kept[batch] = Drawn(list(range(first, first + BATCH)), device)
        return kept[batch]

    def embedded(scenes: Scenes, copy: int) -> tuple[Tensor, list[str], list[Named]]:
        captions, names = training_captions(reworded(scenes, copy))
        with torch.no_grad():
            return normalize(text(vocabulary.rows(captions).to(device))[2].float(), dim=-1), captions, names

    def step(index: int) -> tuple[Tensor, dict[str, float]]:
        batch = drawn(index % DRAWN)
        near_scenes = batch.near()
        with torch.autocast(device, torch.bfloat16):
            pictures = model(_views(batch, index, device))
        near, elsewhere, whole = pictures.float().chunk(3)
        loss, figures = near.new_zeros(()), {}
        for kind, scenes, shown in (("near", near_scenes, near), ("whole", batch.scenes, whole)):
            texts, captions, names = embedded(scenes, index // DRAWN)
            contrastive, figures[f"{kind} top1"] = contrast(shown, texts, captions, model.scale)
            labels = {name: value.to(device) for name, value in attribute_labels(scenes).items()}
            looks = attribute_loss(model.heads, shown, labels, told(scenes, names)[0])
            figures[f"{kind} looks"] = looks.item()
            loss = loss + contrastive + 0.5 * looks
        # Another place has another style and background; what the thing is stays.
        labels = {name: value.to(device) for name, value in attribute_labels(near_scenes).items()}
        known = told(near_scenes, names)[0]
        known = {name: rows & batch.learnable & (name not in PLACE) for name, rows in known.items()}
        looks = attribute_loss(model.heads, elsewhere, labels, known)
        rows = batch.learnable.to(device)
        same, figures["same top1"] = same_thing(near[rows], elsewhere[rows])
        figures["elsewhere looks"] = looks.item()
        return loss + 0.5 * looks + 0.5 * same, figures

    run.train(step, report_every=40)
    return run
