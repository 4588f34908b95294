"""Style as the Gram matrices of features (Spin, eq. 5; Gatys et al. 2016).

A style loss is any StyleLoss: pictures in, one value a picture out.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

# Pictures (B, 3, H, W), about [0, 1], and the share of each pixel that counts, (B, H, W), or None; gives (B,).
StyleLoss = Callable[[Tensor, Tensor | None], Tensor]
# Pictures (B, 3, H, W), about [0, 1], to feature maps (B, C_l, h_l, w_l), layer by layer.
Features = Callable[[Tensor], Sequence[Tensor]]


def gram(maps: Tensor, weight: Tensor | None = None) -> Tensor:
    """F F^T / (C h w), (B, C, C), fp32 or better.

    maps: (B, C, h, w). weight: (B or 1, H, W), the share of each pixel that counts, nowhere all 0. Each cell counts by
    the share of its area, and h w is then the sum of the shares.
    """
    cells = maps.to(torch.promote_types(maps.dtype, torch.float32)).flatten(2)
    if weight is None:
        return cells @ cells.mT / (cells.shape[1] * cells.shape[2])
    share = adaptive_avg_pool2d(weight[:, None].to(cells), maps.shape[-2:]).flatten(2)
    return (cells * share) @ cells.mT / (cells.shape[1] * share.sum(2, keepdim=True))


class GramLoss:
    """sum over l of |G_l(picture) - G_l(style)|^2 (eq. 5), a StyleLoss.

    style: (S, 3, H, W) in [0, 1], one for all pictures or one for each, in turn. weight: (S or 1, H, W), the part of
    the style pictures that counts. balanced: each layer relative to its own |G_l(style)|^2, for features whose layers
    have no common scale. Raises ValueError where the style has no finite features.
    """

    def __init__(self, features: Features, style: Tensor, weight: Tensor | None = None, balanced: bool = False) -> None:
        self._features = features
        self._targets = [gram(maps, weight) for maps in features(style)]
        self._balanced = balanced
        if not all(target.isfinite().all() for target in self._targets):
            raise ValueError(
                "The style picture turned into values that are not numbers. "
                "Check the picture, or run the VAE in higher precision (--fp32-vae or --bf16-vae)."
            )

    def __call__(self, pictures: Tensor, weight: Tensor | None = None) -> Tensor:
        styles = len(self._targets[0])
        if len(pictures) % styles:
            raise ValueError(
                f"There are {styles} style pictures and {len(pictures)} latents. Give one, or one for each latent."
            )
        values = []
        for maps, target in zip(self._features(pictures), self._targets, strict=True):
            target = target.to(maps.device).repeat(len(pictures) // styles, 1, 1)
            value = (gram(maps, weight) - target).square().sum((1, 2))
            if self._balanced:
                value = value / target.square().sum((1, 2)).clamp(min=1e-12)
            values.append(value)
        return torch.stack(values).sum(0).to(pictures.device)
