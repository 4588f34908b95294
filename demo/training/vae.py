"""Trains the KL autoencoder, mostly on windows around things: places are easy, and things small."""

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, l1_loss, mse_loss

from ...host.demo_models import build_autoencoder
from ..scenes import SIZE
from ..weights import load_part, tensors_hash
from .pictures import SEEDS, training_set
from .run import Run

BATCH = 16
WINDOW = 64
WINDOWS_A_PICTURE = 2
# Norms see another crowd in a window than in a whole picture: some steps, and the last ones, are on whole pictures.
WHOLE_EVERY = 4
WHOLE_FROM = 0.85
_CHROMA = torch.tensor([[0.299, 0.587, 0.114], [-0.169, -0.331, 0.5], [0.5, -0.419, -0.081]])


class Autoencoder(nn.Module):
    """Pictures in [-1, 1] to themselves and to the moments of their latents. Perhaps the decoder alone learns."""

    def __init__(self, decoder_only: bool = False) -> None:
        super().__init__()
        self.net = build_autoencoder(seed=1)
        self.net.requires_grad_(True)
        for part in (self.net.encoder, self.net.quant_conv) if decoder_only else ():
            part.requires_grad_(False)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mean, logvar = self.net.quant_conv(self.net.encoder(pixels)).float().chunk(2, 1)
        logvar = logvar.clamp(-20, 10)
        latent = mean + torch.exp(0.5 * logvar) * torch.randn_like(mean)
        return self.net.decoder(self.net.post_quant_conv(latent)).float(), mean, logvar


def picture_loss(ours: Tensor, truth: Tensor, things: Tensor) -> Tensor:
    """Luminance is learned first and leaves colours wrong: hence the chroma and the pooled terms.

    things: (B, H, W), 1 on things. They cover a tenth of the picture and have all of its rare colours: without a term
    of their own they come out in the colours of places.
    """
    matrix = _CHROMA.to(ours.device)
    chroma = torch.einsum("kc,bchw->bkhw", matrix[1:], ours - truth)
    pooled = avg_pool2d(ours - truth, 4)
    edges = (ours - truth).diff(dim=-1).abs().mean() + (ours - truth).diff(dim=-2).abs().mean()
    return (
        l1_loss(ours, truth)
        + 2.0 * mse_loss(ours, truth)
        + 0.5 * edges
        + 1.5 * chroma.abs().mean()
        + 1.5 * avg_pool2d(chroma, 4).abs().mean()
        + 2.0 * pooled.abs().mean()
        + 4.0 * ((ours - truth).abs() * things[:, None]).sum() / (3 * things.sum() + 1)
        + 4.0 * (chroma.abs() * things[:, None]).sum() / (2 * things.sum() + 1)
    )


def windows(image: Tensor, masks: Tensor, boxes: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """WINDOWS_A_PICTURE windows of each picture: around its first thing, around its second or anywhere.

    image: (B, H, W, 3). masks: (B, H, W). boxes: (B, 2, 4) x, y, w, h, zero where nothing is. Returns both cut.
    """
    room = SIZE - WINDOW
    pictures, places = [], []
    for row in range(len(image)):
        for index in range(WINDOWS_A_PICTURE):
            jitter = (torch.rand(2, generator=generator) - 0.5) * WINDOW / 2
            box = boxes[row, index].float().cpu()
            centre = box[:2] + box[2:] / 2 + jitter if box[2] > 0 else torch.rand(2, generator=generator) * SIZE
            left, top = (centre - WINDOW / 2).round().clamp(0, room).int().tolist()
            pictures.append(image[row, top : top + WINDOW, left : left + WINDOW])
            places.append(masks[row, top : top + WINDOW, left : left + WINDOW])
    return torch.stack(pictures), torch.stack(places)


def train_vae(
    folder: Path, device: str, steps: int, warm_start: dict[str, Tensor] | None = None, rate: float | None = None
) -> Run:
    run = Run("vae", folder, Autoencoder().to(device), steps, rate or 1.2e-3, warm_start=warm_start)
    _train(run, device, SEEDS["vae"])
    return run


def train_decoder(folder: Path, device: str, steps: int, rate: float | None = None) -> Run:
    """The committed autoencoder's decoder alone: its latents, and with them the UNets, stay as they are."""
    model = Autoencoder(decoder_only=True).to(device)
    state = {f"net.{key}": value for key, value in load_part("vae").items()}
    run = Run("decoder", folder, model, steps, rate or 6e-4, warm_start=state, tag=latents_hash(state)[:12])
    _train(run, device, SEEDS["decoder"])
    return run


def is_encoder(name: str) -> bool:
    """Whether latents depend on this tensor."""
    return name.removeprefix("net.").startswith(("encoder.", "quant_conv."))


def latents_hash(state: dict[str, Tensor]) -> str:
    return tensors_hash({name.removeprefix("net."): value for name, value in state.items() if is_encoder(name)})


def _train(run: Run, device: str, seed: int) -> None:
    model, steps = run.module, run.steps

    def step(index: int) -> tuple[Tensor, dict[str, float]]:
        whole = index % WHOLE_EVERY == 0 or index >= WHOLE_FROM * steps
        count = BATCH if whole else BATCH * (SIZE // WINDOW) ** 2 // WINDOWS_A_PICTURE
        first = seed + index * BATCH * 2
        pictures = training_set(list(range(first, first + count)), device).pictures
        image, things = pictures.image, pictures.masks.amax(1)
        if not whole:
            image, things = windows(image, things, pictures.boxes, torch.Generator().manual_seed(first))
        pixels = image.permute(0, 3, 1, 2) * 2 - 1
        with torch.autocast(device, torch.bfloat16):
            ours, mean, logvar = model(pixels)
        fidelity = picture_loss(ours, pixels, things)
        divergence = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
        off = ((ours.detach() - pixels).abs().mean(1) * things).sum() / (2 * things.sum() + 1)
        psnr = -10 * torch.log10(mse_loss(ours.detach(), pixels) / 4)
        figures = {"loss": fidelity, "kl": divergence, "psnr": psnr, "things_off": off}
        return fidelity + 5e-4 * divergence, {name: value.item() for name, value in figures.items()}

    run.train(step)
