"""Paint-by-Example's mapper: the pooled state of a picture through five transformer blocks to the one context token."""

from torch import Tensor, nn
from torch.nn.functional import gelu


class MapperBlock(nn.Module):
    """A pre-norm block over one token of width C. Attention to one token alone is its value."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.value, self.out = nn.Linear(width, width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.out(self.value(self.norm1(x)))
        return x + self.down(gelu(self.up(self.norm2(x))))


class ReferenceMapper(nn.Module):
    """(B, C) to (B, D): blocks, norm, projection."""

    def __init__(self, blocks: int, width: int, context: int) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(MapperBlock(width) for _ in range(blocks)))
        self.norm = nn.LayerNorm(width)
        self.projection = nn.Linear(width, context)

    def forward(self, pooled: Tensor) -> Tensor:
        return self.projection(self.norm(self.blocks(pooled)))
