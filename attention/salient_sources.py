"""What is salient by self-attention, in three readings of the same matrix A (rows are queries and sum to 1).

Attention from a thing mostly stays on the thing, and attention from the surroundings on the surroundings. The paper's
column sum does not show that: what a place receives is about 1 wherever as much attention leaves a part of the picture
as enters it, however well the parts are told apart. The share of its attention that a place gives to the picture's
border does show it.
"""

import torch
from torch import Tensor

from .cross_maps import spread
from .saliency import column_sums, mean_map, oriented, standardised

RECEIVED = "self-attention"
CALIBRATED = "calibrated self-attention"
BORDER = "attention to the border"
READINGS = (RECEIVED, CALIBRATED, BORDER)
# Of attention to the border, in the shipped workflows, as chosen on the demo world's tuning seeds.
AUTO_THRESHOLD = 1.25
# Of `evenness`: a picture above it seems to have no salient part, which is worth a warning and no more, since no
# other models were tried. Chosen on 64 tuning scenes of the demo world, 192 close-ups of them and 146 pictures
# without a thing, and tried on as many others under another text, in brackets: above it lie .8 % (.8 %) of scenes and
# close-ups, all (95 %) of 64 empty scenes, 52 % (64 %) of 42 plain colours and gradients, and none of 24 pictures of
# strong noise, in which the model sees a thing.
EVEN = 0.65


def layer_map(reading: str, queries: Tensor, keys: Tensor, heads: int, grid: tuple[int, int]) -> Tensor:
    """(B, h, w) fp32, more where it is more salient: of one layer's self-attention. queries, keys: (B, h w, heads * d).

    BORDER: minus the share of each place's attention that goes to the cells along the picture's edge. Else O (Spin).
    """
    if reading != BORDER:
        return column_sums(queries, keys, heads).unflatten(1, grid)
    edge = torch.ones(1, *grid, device=queries.device)
    edge[:, 1:-1, 1:-1] = 0
    return -spread(queries, keys, heads, edge.flatten(1).expand(len(queries), -1)).unflatten(1, grid)


def evenness(maps: list[Tensor]) -> Tensor:
    """(B,): the least share of its attention that a place gives to the border, of the mean share. BORDER's layer maps.

    Standard deviations do not tell whether there is a thing, since what is even deviates as well; this does: without a
    thing every place attends to the border about alike.
    """
    shares = -mean_map(maps).flatten(1)
    return shares.amin(1) / shares.mean(1)


def auto_threshold(maps: Tensor) -> Tensor:
    """(B,): from where on BORDER's maps (B, h, w), in deviations above the mean, are salient.

    AUTO_THRESHOLD, but for a thing that fills so much of its picture that little of it deviates so far: there it is two
    thirds of the way from the picture's edge to the greatest value. On close-ups of tuning scenes, where the thing has
    .44 of the picture, that gives an IoU of .64 where AUTO_THRESHOLD gives .09.
    """
    edge = torch.ones(maps.shape[-2:], dtype=torch.bool, device=maps.device)
    edge[1:-1, 1:-1] = False
    low, high = maps[:, edge].mean(1), maps.flatten(1).amax(1)
    return (low + 2 / 3 * (high - low)).clamp(max=AUTO_THRESHOLD)


def joined_map(reading: str, maps: list[Tensor]) -> Tensor:
    """Layers' maps (B, h_i, w_i) as one, on the finest of their grids.

    RECEIVED: their mean. CALIBRATED, BORDER: in standard deviations above the picture's mean, each layer's first;
    CALIBRATED turns each so that the border lies below the mean.
    """
    if reading == RECEIVED:
        return mean_map(maps)
    put = oriented if reading == CALIBRATED else standardised
    # The mean of maps that agree in part deviates less than each of them.
    return put(mean_map([put(one) for one in maps]))
