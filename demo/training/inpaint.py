"""Trains the inpainting UNet: noisy latent, mask and masked picture in, the reference's embedding as its one token.

The reference shows the thing in the picture itself or in another one, so that the model learns to bring it into the
scene's style.
"""

from pathlib import Path

import torch
from torch import Tensor, nn

from ..weights import load_part
from .parts import Parts
from .pictures import SEEDS
from .reference_data import reference_data
from .run import Run
from .schedule import alpha_bars
from .unet import BATCH, Denoiser, noised

NULL_SHARE = 0.2
# Outside the mask the answer is among the inputs; what is to be learned is inside.
INSIDE_WEIGHT = 3.0


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


def train_inpaint(
    folder: Path,
    device: str,
    steps: int,
    scenes: int,
    warm_start: dict[str, Tensor] | None = None,
    rate: float | None = None,
) -> Run:
    parts = Parts(device)
    data = reference_data(parts, folder, scenes, device)
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
