"""What turns a reference picture's CLIP state into the one token that an inpainting UNet is told it by."""

from torch import Tensor, nn


class ReferenceEncoder(nn.Module):
    """Pooled vision states (B, C), before the tower's own projection, to context (B, 1, D).

    projection: any module from (B, C) to (B, D). null: (1, 1, D), learned in place of a reference.
    """

    def __init__(self, projection: nn.Module, null: Tensor, width: int) -> None:
        super().__init__()
        self.projection = projection
        self.null = nn.Parameter(null, requires_grad=False)
        self.width = width

    def forward(self, pooled: Tensor) -> Tensor:
        return self.projection(pooled)[:, None]
