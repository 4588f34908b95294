"""What lies under the first noise inside the mask."""

from torch import Tensor

from .paste import fill_smoothly

STARTS = ("surroundings", "noise", "picture")


def start_latent(start: str, latent: Tensor, inside: Tensor) -> Tensor:
    """The latent to add the first noise to, (B, C, h, w).

    SD's highest level is not pure noise: at sigma 14.6 a model still reads the picture's large-scale colours in it, and
    keeps to them. latent: the picture's. inside: (B, 1, h, w) in [0, 1], 1 where the noise begins anew. start:
    `picture` keeps what is in the mask, as the host does; `noise` takes it out, so that mid grey is read;
    `surroundings` continues what stands around the mask into it, and is `noise` where nothing stands around.
    """
    if start == "picture":
        return latent
    if start == "noise":
        return latent * (1 - inside)
    return fill_smoothly(latent.float().movedim(1, -1), 1 - inside[:, 0].float()).movedim(-1, 1).to(latent)
