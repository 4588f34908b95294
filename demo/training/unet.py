"""Trains the text UNet on latents of the finished VAE and states of the finished text encoder."""

from pathlib import Path

import torch
from torch import Tensor, nn

from ...host.demo_models import build_unet
from ..captions import reworded, training_captions
from ..scenes import Scenes
from .parts import Parts
from .pictures import SEEDS, training_scenes, training_set
from .run import Run
from .schedule import LATENT_SCALE, alpha_bars, min_snr_weight, stratified_timesteps
from .shown import OWN_SHARE, Telling, projection, shown_things

BATCH = 48
# Of them told by a picture instead of words, and how many of those show what has no name.
SHOWN, UNNAMED_SHARE = 16, 0.8
# What a picture tells is of the thing: its place weighs more there.
THING_WEIGHT = 3.0
EMPTY_SHARE = 0.1
CAPTIONS_A_SCENE = 3
# Scenes have two things three times in ten; which word belongs to which is learned last, so training sees more of them.
TWO_THINGS_SHARE = 0.6


def plain_attention(_, q: Tensor, k: Tensor, v: Tensor, heads: int, *args: object, **options: object) -> Tensor:
    """softmax(q k^T) v by two matrix products: on a CPU in bf16 several times faster to train than the fused kernel."""
    batch, _, width = q.shape
    q, k, v = (tensor.view(batch, -1, heads, width // heads).transpose(1, 2) for tensor in (q, k, v))
    weights = ((q @ k.transpose(-1, -2)) * (width // heads) ** -0.5).softmax(-1)
    return (weights @ v).transpose(1, 2).reshape(batch, -1, width)


def unet_options(device: str) -> dict:
    return {"optimized_attention_override": plain_attention} if device == "cpu" else {}


class Denoiser(nn.Module):
    """A UNet whose zero-initialised outputs make it start as the identity of its skips."""

    def __init__(self, in_channels: int, seed: int) -> None:
        super().__init__()
        self.net = build_unet(in_channels, seed)
        self.net.requires_grad_(True)
        for name, parameter in self.net.named_parameters():
            if any(part in name for part in ("out_layers.3.", "proj_out.", "out.2.")):
                nn.init.zeros_(parameter)

    def forward(self, x: Tensor, timesteps: Tensor, context: Tensor, device: str) -> Tensor:
        return self.net(x, timesteps, context, transformer_options=unet_options(device)).float()


class TextUNet(Denoiser):
    """With what makes tokens of a picture; the shipped UNet is without."""

    def __init__(self) -> None:
        super().__init__(4, seed=7)
        self.shown = projection()


def noised(clean: Tensor, generator: torch.Generator, alphas: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """z_t, eps, t and the loss weight of each row."""
    timesteps, weight = stratified_timesteps(len(clean), generator, min_snr_weight(alphas))
    noise = torch.randn(clean.shape, generator=generator)
    alpha = alphas[timesteps].view(-1, 1, 1, 1)
    device = clean.device
    noisy = alpha.sqrt().to(device) * clean + (1 - alpha).sqrt().to(device) * noise.to(device)
    return noisy, noise.to(device), timesteps.to(device), weight.to(device)


def caption_sets(scenes: Scenes) -> list[list[str]]:
    """Several wordings of every scene."""
    return [training_captions(reworded(scenes, copy))[0] for copy in range(CAPTIONS_A_SCENE)]


def prepare_latents(parts: Parts, count: int, path: Path, device: str) -> tuple[Tensor, list[list[str]], Tensor]:
    """Scaled latents (count, 4, 16, 16) of the training scenes, kept beside the checkpoints, their captions, and how
    many things they have (count,)."""
    block, latents, captions, things = 256, [], [[] for _ in range(CAPTIONS_A_SCENE)], []
    stored = torch.load(path, weights_only=True) if path.exists() else torch.empty(0, 4, 16, 16)
    for first in range(0, count, block):
        seeds = list(range(SEEDS["unet"] + first, SEEDS["unet"] + min(first + block, count)))
        if len(stored) >= first + len(seeds):
            scenes = training_scenes(seeds)
            latents.append(stored[first : first + len(seeds)])
        else:
            shown = training_set(seeds, device)
            scenes = shown.scenes
            latents.append(parts.encode(shown.pictures.image) * LATENT_SCALE)
            if (first // block) % 8 == 7:
                print(f"latents {first + block}/{count}", flush=True)
        for copy, texts in enumerate(caption_sets(scenes)):
            captions[copy] += texts
        things.append(scenes.count)
    result = torch.cat(latents)
    if len(stored) < count:
        torch.save(result, path)
    return result, captions, torch.cat(things)


def draw_rows(some: Tensor, others: Tensor, share: float, count: int, generator: torch.Generator) -> Tensor:
    """(count,) rows of the training scenes, a share of them from `some`."""
    chosen = torch.rand(count, generator=generator) < share
    draws = torch.rand(count, generator=generator)
    return torch.where(chosen, some[(draws * len(some)).long()], others[(draws * len(others)).long()])


def train_unet(
    folder: Path,
    device: str,
    steps: int,
    scenes: int,
    shown_scenes: int,
    warm_start: dict[str, Tensor] | None = None,
    rate: float | None = None,
) -> Run:
    parts = Parts(device)
    latents, captions, things = prepare_latents(parts, scenes, folder / f"latents-{parts.latents_hash[:12]}.pt", device)
    parts.remember(["", *(text for texts in captions for text in texts)])
    things_shown, telling = shown_things(parts, folder, shown_scenes, device), Telling(parts)
    model = TextUNet().to(device)
    if warm_start is not None:
        warm_start = {**model.state_dict(), **warm_start}
    basis = f"{parts.latents_hash} {parts.texts_hash}"
    run = Run("unet", folder, model, steps, rate or 8e-4, decay=0.998, warm_start=warm_start, basis=basis)
    alphas = alpha_bars()
    named, unnamed = ((things_shown["unnamed"] == kind).nonzero()[:, 0] for kind in (False, True))
    two, other = (things == 2).nonzero()[:, 0], (things != 2).nonzero()[:, 0]

    def step(index: int) -> tuple[Tensor, dict[str, float]]:
        generator = torch.Generator().manual_seed(SEEDS["unet"] + index)
        worded = BATCH - SHOWN
        rows = draw_rows(two, other, TWO_THINGS_SHARE, worded, generator)
        copies = torch.randint(CAPTIONS_A_SCENE, (worded,), generator=generator)
        silent = torch.rand(worded, generator=generator) < EMPTY_SHARE
        chosen = zip(rows.tolist(), copies.tolist(), silent.tolist(), strict=True)
        texts = ["" if empty else captions[copy][row] for row, copy, empty in chosen]
        picked = draw_rows(unnamed, named, UNNAMED_SHARE, SHOWN, generator)
        own = torch.rand(SHOWN, 1, generator=generator) < OWN_SHARE
        seen = torch.where(own, things_shown["own"][picked], things_shown["other"][picked]).to(device)
        clean = torch.cat([latents[rows], things_shown["latent"][picked]]).to(device)
        noisy, noise, timesteps, weight = noised(clean, generator, alphas)
        with torch.autocast(device, torch.bfloat16):
            told = telling.states(things_shown["ids"][picked].to(device), model.shown(seen))
            context = torch.cat([parts.text_states(texts).to(device), told.float()])
            predicted = model(noisy, timesteps, context, device)
        focus = torch.ones(len(clean), 1, *clean.shape[2:], device=device)
        focus[worded:] += (THING_WEIGHT - 1) * things_shown["mask"][picked].to(device)
        errors = ((predicted - noise).square() * focus).mean((1, 2, 3)) / focus.mean((1, 2, 3))
        figures = {"eps_mse": errors[:worded].mean().item(), "shown": errors[worded:].mean().item()}
        return (errors * weight).mean(), {**figures, "weighted": (errors * weight).mean().item()}

    run.train(step)
    return run
