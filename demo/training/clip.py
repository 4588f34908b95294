"""Trains the CLIP pair: contrast between pictures and captions, and attribute heads on both towers from the start.

Without the heads the towers tell colours and places apart and never learn shapes.
"""

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, interpolate, normalize

from ...host.demo_models import allow_gradients, build_bare_vision, build_short_text_encoder, token_ids
from ..captions import PENCIL, Named, attribute_labels, reworded, training_captions, vocabulary_texts
from ..scenes import Scenes
from .pictures import SEEDS, training_set
from .run import Run

BATCH = 128
# Drawing costs as much as learning: so many batches are drawn and kept, and described anew each time round.
DRAWN = 300
POSITIONS = 32
HEADS = {"shape": 8, "colour": 8, "surface": 3, "pair": 64, "style": 4, "background": 6}
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


class Vocabulary:
    """The rows of the stock vocabulary that captions use; the end token comes last."""

    def __init__(self) -> None:
        self.ids = token_ids(vocabulary_texts()).unique()
        self.index = {int(token): row for row, token in enumerate(self.ids)}

    def rows(self, texts: list[str]) -> Tensor:
        """(len(texts), POSITIONS) rows of the short table."""
        return torch.searchsorted(self.ids, token_ids(texts)[:, :POSITIONS].contiguous())


class Pair(nn.Module):
    """Both towers, and heads that read the attributes out of their common space; heads are dropped afterwards."""

    def __init__(self, words: int) -> None:
        super().__init__()
        self.text = build_short_text_encoder(words, POSITIONS, seed=2)
        self.vision = build_bare_vision(seed=3)
        allow_gradients(self.vision)
        self.requires_grad_(True)
        self.heads = nn.ModuleDict({name: nn.Linear(128, count) for name, count in HEADS.items()})
        self.scale = nn.Parameter(torch.tensor(2.7))

    def embed_text(self, rows: Tensor) -> Tensor:
        return normalize(self.text(rows)[2].float(), dim=-1)

    def embed_pictures(self, pixels: Tensor) -> Tensor:
        return normalize(self.vision(pixels)[2].float(), dim=-1)


def clip_pixels(image: Tensor, size: int = 64) -> Tensor:
    """image: (B, H, W, 3) in [0, 1] to normalised (B, 3, size, size), as the host prepares it but for its rounding."""
    pixels = interpolate(image.permute(0, 3, 1, 2), (size, size), mode="bicubic", antialias=True).clamp(0, 1)
    mean, std = (torch.tensor(values, device=image.device).view(1, 3, 1, 1) for values in (MEAN, STD))
    return (pixels - mean) / std


def attribute_loss(
    heads: nn.ModuleDict, embedding: Tensor, labels: dict[str, Tensor], rows_of: dict[str, Tensor]
) -> Tensor:
    """Cross-entropies of what the rows in `rows_of` show or name."""
    total = embedding.new_zeros(())
    for name, head in heads.items():
        rows = rows_of[name].nonzero(as_tuple=True)[0]
        if not len(rows):
            continue
        logits = head(10 * embedding[rows])
        if name in ("style", "background"):
            total = total + cross_entropy(logits, labels[name][rows])
        else:
            # Many-hot over few positives: summed over classes, so that a rare shape weighs as much as a style.
            weight = 0.1 if name == "pair" else 0.5
            losses = binary_cross_entropy_with_logits(logits, labels[name][rows], reduction="none")
            total = total + weight * losses.sum(1).mean()
    return total


def told(scenes: Scenes, names: list[Named]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Which rows' pictures show, and which rows' captions name, each attribute completely."""
    count = scenes.count
    known = (scenes.shape[:, 0] >= 0) & (count > 0)

    def named(kind: str) -> Tensor:
        said = torch.tensor([getattr(name, kind) for name in names])
        return known & said[:, 0] & (said[:, 1] | (count < 2))

    everything = torch.ones_like(known)
    coloured = known & (scenes.style != PENCIL)
    seen = {"shape": known, "surface": known, "colour": coloured, "pair": coloured}
    spoken = {"shape": named("shape"), "surface": named("surface"), "colour": named("colour")}
    spoken["pair"] = spoken["shape"] & spoken["colour"]
    for kind in ("style", "background"):
        seen[kind] = everything
        spoken[kind] = torch.tensor([getattr(name, kind) for name in names])
    return seen, spoken


def contrast(pictures: Tensor, texts: Tensor, captions: list[str], scale: Tensor) -> tuple[Tensor, float]:
    """Symmetric InfoNCE; equal captions are no negatives of each other. Returns the loss and the top-1 share."""
    logits = scale.exp().clamp(max=100) * pictures @ texts.T
    codes = torch.tensor([hash(text) for text in captions], device=logits.device)
    same = (codes[:, None] == codes[None]) & ~torch.eye(len(codes), dtype=torch.bool, device=logits.device)
    logits = logits.masked_fill(same, -1e4)
    target = torch.arange(len(logits), device=logits.device)
    top = (logits.argmax(1) == target).float().mean().item()
    return (cross_entropy(logits, target) + cross_entropy(logits.T, target)) / 2, top


def train_clip(
    folder: Path, device: str, steps: int, warm_start: dict[str, Tensor] | None = None, rate: float | None = None
) -> Run:
    vocabulary = Vocabulary()
    pair = Pair(len(vocabulary.ids)).to(device)
    run = Run("clip", folder, pair, steps, rate or 1e-3, warm_start=warm_start)

    kept: dict[int, tuple[Scenes, Tensor]] = {}

    def drawn(batch: int) -> tuple[Scenes, Tensor]:
        if batch not in kept:
            first = SEEDS["clip"] + batch * BATCH
            shown = training_set(list(range(first, first + BATCH)), device)
            kept[batch] = shown.scenes, clip_pixels(shown.pictures.image).bfloat16()
        return kept[batch]

    def step(index: int) -> tuple[Tensor, dict[str, float]]:
        scenes, pixels = drawn(index % DRAWN)
        captions, names = training_captions(reworded(scenes, index // DRAWN))
        labels = {name: value.to(device) for name, value in attribute_labels(scenes).items()}
        seen, spoken = told(scenes, names)
        with torch.autocast(device, torch.bfloat16):
            pictures = pair.embed_pictures(pixels.float())
            texts = pair.embed_text(vocabulary.rows(captions).to(device))
        contrastive, top = contrast(pictures, texts, captions, pair.scale)
        looks = attribute_loss(pair.heads, pictures, labels, seen)
        words = attribute_loss(pair.heads, texts, labels, spoken)
        figures = {"contrast": contrastive.item(), "top1": top, "looks": looks.item(), "words": words.item()}
        return contrastive + 0.3 * looks + 0.3 * words, figures

    run.train(step, report_every=20)
    return run
