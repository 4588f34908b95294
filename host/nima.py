"""NIMA, how pleasing a picture looks to people, by a network of the user's own under models/nima.

Talebi and Milanfar, "NIMA: Neural Image Assessment": a classifier whose last layer has ten outputs, the shares of
votes for 1 to 10; their mean is the score.
"""

from collections.abc import Callable

import torch
import torchvision
from torch import Tensor, nn
from torch.nn.functional import interpolate

from .feature_nets import IMAGENET_MEAN, IMAGENET_STD, StateDict, missing_weights, read_weights, weight_files

SIDE = 224
VOTES = 10


def load_nima() -> nn.Module:
    """The first network under models/nima that is one: torchvision's vgg16 or mobilenet_v2 with ten outputs.

    A vgg16 may also have one linear layer for its whole classifier. Raises ValueError with the sentence that says which
    file is missing, damaged or pickled.
    """
    for path in weight_files("nima"):
        weights = read_weights(path)
        for build in (_vgg16, _short_vgg16, _mobilenet):
            with torch.inference_mode(False), torch.device("meta"):
                net = build()
            if _shapes(net.state_dict()) == _shapes(weights):
                with torch.inference_mode(False):
                    own = {key: value.float() if value.is_floating_point() else value for key, value in weights.items()}
                    net.load_state_dict({key: value.clone() for key, value in own.items()}, assign=True)
                return net.requires_grad_(False).eval()
    raise ValueError(missing_weights("nima", "NIMA, torchvision's vgg16 or mobilenet_v2 with ten outputs"))


def _shapes(weights: StateDict) -> dict[str, torch.Size]:
    return {key: value.shape for key, value in weights.items()}


def _vgg16() -> nn.Module:
    return torchvision.models.vgg16(weights=None, num_classes=VOTES)


def _short_vgg16() -> nn.Module:
    net = _vgg16()
    net.classifier = nn.Sequential(nn.Dropout(), nn.Linear(512 * 7 * 7, VOTES))
    return net


def _mobilenet() -> nn.Module:
    return torchvision.models.mobilenet_v2(weights=None, num_classes=VOTES)


@torch.no_grad()
def nima_scores(net: nn.Module, pictures: Tensor) -> Tensor:
    """pictures: (B, H, W, 3) in [0, 1]. (B,) in [1, 10]: the mean vote for each whole picture, squeezed to a square."""
    x = interpolate(pictures.movedim(-1, 1), (SIDE, SIDE), mode="bicubic", antialias=True).clamp(0, 1)
    mean, std = (x.new_tensor(values)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))
    shares = net((x - mean) / std).softmax(1)
    return shares @ torch.arange(1, VOTES + 1, dtype=shares.dtype)


def nima_if_there() -> Callable[[Tensor], Tensor] | None:
    """pictures to scores, or None where the user has no such network."""
    if not list(weight_files("nima")):
        return None
    net = load_nima()
    return lambda pictures: nima_scores(net, pictures)
