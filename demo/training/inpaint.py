"""Trains the inpainting UNet: noisy latent, mask and masked picture in, the reference's embedding as its one token.

The reference shows the thing in the picture itself or in another one, so that the model learns to bring it into the
scene's style.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from ..judge import crop_boxes
from ..render import render
from ..scenes import Scenes
from ..tasks import place_masks, reference_scenes
from ..weights import load_part
from .parts import Parts
from .pictures import SEEDS, training_scenes, unseen_in
from .run import Run
from .schedule import LATENT_SCALE, alpha_bars
from .unet import BATCH, Denoiser, noised

NULL_SHARE = 0.2
SUBJECT_SHARE = 0.5
# Outside the mask the answer is among the inputs; what is to be learned is inside.
INSIDE_WEIGHT = 3.0
GREY = 0.5


class ReferenceInpainter(nn.Module):
    """The 9-channel UNet and what makes one token of the vision tower's pooled state."""

    def __init__(self) -> None:
        super().__init__()
        self.unet = Denoiser(9, seed=8)
        self.projection = nn.Sequential(nn.LayerNorm(128), nn.Linear(128, 128))
        self.null = nn.Parameter(torch.randn(1, 1, 128, generator=torch.Generator().manual_seed(9)))

    def from_text_unet(self, state: dict[str, Tensor]) -> None:
        """Starts from the text UNet: the new input channels are zero, so that at first nothing changes."""
        state = dict(state)
        first = state["input_blocks.0.0.weight"]
        state["input_blocks.0.0.weight"] = torch.cat([first, first.new_zeros(len(first), 5, 3, 3)], 1)
        self.unet.net.load_state_dict(state)

    def forward(self, x: Tensor, timesteps: Tensor, pooled: Tensor, silent: Tensor, device: str) -> Tensor:
        token = torch.where(silent.view(-1, 1, 1), self.null, self.projection(pooled)[:, None])
        return self.unet(x, timesteps, token, device)


def _kept(path: Path, count: int, rows_of: Callable[[list[int]], dict[str, Tensor]]) -> dict[str, Tensor]:
    """What rows_of makes of each 256 seeds, one after another, from the file if it is there."""
    if path.exists():
        return torch.load(path, weights_only=True)
    first, end = SEEDS["inpaint"], SEEDS["inpaint"] + count
    groups = [rows_of(list(range(start, min(start + 256, end)))) for start in range(first, end, 256)]
    data = {name: torch.cat([group[name] for group in groups]) for name in groups[0]}
    torch.save(data, path)
    return data


def _scenes(seeds: list[int]) -> Scenes:
    return training_scenes(seeds, subject_share=SUBJECT_SHARE, empty_share=0.0)


def holes(parts: Parts, device: str, seeds: list[int]) -> dict[str, Tensor]:
    """Latent, latent of the picture with its hole, mask at latent size."""
    scenes = _scenes(seeds)
    image = render(scenes, device).image
    grow = 1.0 + 0.5 * torch.rand(len(seeds), generator=torch.Generator().manual_seed(seeds[0]))
    mask = place_masks(scenes, grow.view(-1, 1, 1)).to(device)
    holed = torch.where(mask[..., None] > 0.5, GREY, image)
    return {
        "latent": parts.encode(image) * LATENT_SCALE,
        "masked": parts.encode(holed) * LATENT_SCALE,
        "mask": interpolate(mask[:, None], (16, 16), mode="bilinear").round().cpu(),
    }


def references(parts: Parts, device: str, seeds: list[int]) -> dict[str, Tensor]:
    """Pooled states of the thing in its own picture and in another one, unless it is kept from that one's style."""
    scenes = _scenes(seeds)
    elsewhere = reference_scenes(scenes, seeds)
    states = []
    for shown in (render(scenes, device), render(elsewhere, device)):
        crops = crop_boxes(shown.image, shown.boxes[:, 0], 1.15)
        states.append(parts.picture_states(crops.permute(0, 2, 3, 1)).cpu())
    own, other = states
    return {"own": own, "other": torch.where(unseen_in(elsewhere.style, scenes)[:, None], own, other)}


def train_inpaint(
    folder: Path,
    device: str,
    steps: int,
    scenes: int,
    warm_start: dict[str, Tensor] | None = None,
    rate: float | None = None,
) -> Run:
    parts = Parts(device)
    made_of = {f"holes-{scenes}-{parts.latents_hash[:12]}": holes}
    made_of[f"references-{scenes}-{parts.vision_hash[:12]}"] = references
    data: dict[str, Tensor] = {}
    for name, rows_of in made_of.items():
        data |= _kept(folder / f"{name}.pt", scenes, partial(rows_of, parts, device))
    model = ReferenceInpainter()
    model.from_text_unet(load_part("unet"))
    basis = f"{parts.latents_hash} {parts.vision_hash}"
    run = Run("inpaint", folder, model.to(device), steps, rate or 6e-4, warm_start=warm_start, basis=basis)
    alphas = alpha_bars()

    def step(index: int) -> tuple[Tensor, dict[str, float]]:
        generator = torch.Generator().manual_seed(SEEDS["inpaint"] + index)
        rows = torch.randint(len(data["latent"]), (BATCH,), generator=generator)
        own = torch.rand(BATCH, generator=generator) < 0.5
        silent = torch.rand(BATCH, generator=generator) < NULL_SHARE
        pooled = torch.where(own[:, None], data["own"][rows], data["other"][rows]).to(device)
        noisy, noise, timesteps, weight = noised(data["latent"][rows].to(device), generator, alphas)
        mask = data["mask"][rows].to(device)
        x = torch.cat([noisy, mask, data["masked"][rows].to(device)], 1)
        with torch.autocast(device, torch.bfloat16):
            predicted = model(x, timesteps, pooled, silent.to(device), device)
        squares = (predicted - noise).square().mean(1, keepdim=True)
        errors, inside = squares.mean((1, 2, 3)), (squares * mask).sum() / mask.sum()
        focus = 1 + (INSIDE_WEIGHT - 1) * mask
        focused = (squares * focus).sum((1, 2, 3)) / focus.sum((1, 2, 3))
        return (focused * weight).mean(), {"eps_mse": errors.mean().item(), "inside": inside.item()}

    run.train(step)
    return run
