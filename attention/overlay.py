"""Maps and boxes drawn over a picture, to look at."""

import torch
from torch import Tensor
from torch.nn.functional import max_pool2d, pad

_GLOW = (1.0, 0.55, 0.05)
_LINE = (0.1, 0.9, 1.0)


def overlay(image: Tensor, soft: Tensor, outlined: Tensor) -> Tensor:
    """The picture dimmed where the map is low and tinted where it is high, with the mask's outline on it.

    image: (B, H, W, 3). soft: (B, H, W) in [0, 1]. outlined: (B, H, W). Returns (B, H, W, 3) in [0, 1].
    """
    soft, image = soft.to(image)[..., None], image[..., :3]
    tinted = image * (0.45 + 0.55 * soft) + soft * 0.35 * (image.new_tensor(_GLOW) - image)
    line = outline(outlined.to(image), max(1, min(image.shape[1:3]) // 128))[..., None]
    return torch.lerp(tinted, image.new_tensor(_LINE).expand_as(tinted), line).clamp(0, 1)


def outline(mask: Tensor, thickness: int) -> Tensor:
    """The inner rim of a mask (B, H, W), `thickness` pixels wide; the picture's edge counts as outside."""
    outside = pad(1 - mask, [thickness] * 4, value=1.0)
    return mask * max_pool2d(outside[:, None], 2 * thickness + 1, stride=1)[:, 0]
