"""The path of one picture from its clean latent to noise, found by DDIM inversion.

Everything is in ComfyUI's sampler space: x = z sqrt(1 + sigma^2), and eps = (x - x0) / sigma for eps and v models.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Trajectory:
    """Latents by noise level, for pictures of height x width pixels.

    sigmas: (n,) ascending, above 0. noises: (n, B, C, h, w), (x - clean) / sigma at each of them, usually in half
    precision, which this unit-scale form survives at every level. clean: (B, C, h, w) fp32, the level sigma 0.
    prediction: eps or v. model_id: the fingerprint of the model that made it.
    """

    sigmas: Tensor
    noises: Tensor
    clean: Tensor
    prediction: str
    model_id: str
    height: int
    width: int

    @property
    def latents(self) -> Tensor:
        """x at every sigma, (n, B, C, h, w) fp32."""
        return self.clean + self.sigmas.view(-1, 1, 1, 1, 1).to(self.clean) * self.noises.to(self.clean)

    def at(self, sigma: float) -> Tensor:
        """x at that level, (B, C, h, w) fp32: matched by sigma, never by index.

        Between two levels (x - clean) / sigma is linear in log sigma; beyond the ends the end's value holds; sigma 0
        is the clean latent, bit for bit.
        """
        if sigma <= 0:
            return self.clean.clone()
        grid = self.sigmas.double()
        above = int(torch.searchsorted(grid, sigma))
        if above in (0, len(grid)):
            noise = self.noises[min(above, len(grid) - 1)].to(self.clean)
        else:
            log = torch.log(torch.stack([grid[above - 1], torch.tensor(sigma, dtype=grid.dtype), grid[above]]))
            share = float((log[1] - log[0]) / (log[2] - log[0]))
            noise = torch.lerp(self.noises[above - 1].to(self.clean), self.noises[above].to(self.clean), share)
        return self.clean + sigma * noise

    def rows(self, pictures: Tensor) -> "Trajectory":
        """The same path for a choice of its pictures, repeats allowed. pictures: (m,) int64."""
        return replace(self, noises=self.noises[:, pictures], clean=self.clean[pictures])

    def check_picture(self, height: int, width: int) -> None:
        """Raises ValueError unless the path is of a picture of height x width pixels."""
        if (self.height, self.width) != (height, width):
            raise ValueError(
                f"The trajectory belongs to a picture of {self.width} x {self.height} pixels, and this one is "
                f"{width} x {height}. Invert this picture again with Invert Image."
            )

    def check(self, height: int, width: int, model_id: str, prediction: str) -> None:
        """Raises ValueError unless the path fits latents of height x width cells and that model."""
        h, w = self.clean.shape[-2:]
        if (h, w) != (height, width):
            raise ValueError(
                f"The trajectory belongs to a picture of {self.width} x {self.height} pixels (latent {w} x {h}), "
                f"but the latent here is {width} x {height}. Invert this picture again with Invert Image."
            )
        if self.prediction != prediction:
            raise ValueError(
                f"The trajectory was made by a model that predicts {self.prediction}, and this one predicts "
                f"{prediction}. Invert the picture again with this model."
            )
        if self.model_id != model_id:
            raise ValueError(
                "The trajectory was made by another model. Invert the picture again with the model that paints; "
                "LoRAs and patches on it may differ."
            )
