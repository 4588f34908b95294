"""Where the saliency focus of a concept's training looks: S of each forward, or the user's masks."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..attention.saliency import resize_map
from ..attention.salient_sources import joined_map, layer_map
from .attention_capture import Seen
from .concept_material import Material
from .saliency import BLIND, on_picture
from .unet_blocks import BlockKey

# Of a layer, a view, a picture.
_Place = tuple[BlockKey, int, int]


@dataclass
class _Step:
    """What counts once the step has come to something. masks: (view, picture, (h, w)). averages: as they are then."""

    masks: list[tuple[int, int, Tensor]] = field(default_factory=list)
    averages: dict[_Place, Tensor] = field(default_factory=dict)


class ConceptSaliency:
    """S for each forward, and what a checkpoint and the previews need of them.

    kept: the share of a running average that a forward's map leaves as it was, 0 for maps of their own forward alone.
    """

    def __init__(self, material: Material, kept: float = 0.0) -> None:
        self.material, self.kept = material, kept
        views, count, _, *self.grid = material.latents.shape
        # The masks used so far, summed, and how many they were, per view and picture.
        self.masks, self.uses = torch.zeros(views, count, *self.grid), torch.zeros(views, count)
        self.averages: dict[_Place, Tensor] = {}
        self.seen: dict[BlockKey, Tensor] = {}
        self.begin()

    def begin(self) -> None:
        """A step begins, or begins again."""
        self.step = _Step()

    def end(self) -> None:
        """The step counts."""
        for view, picture, mask in self.step.masks:
            self.masks[view, picture] += mask
            self.uses[view, picture] += 1
        self.averages |= self.step.averages
        self.begin()

    def see(self, seen: Seen) -> None:
        self.seen[seen.layer] = layer_map(self.material.reading, seen.queries, seen.keys, seen.heads, seen.grid)

    def of(self, views: list[int], pictures: list[int]) -> Tensor:
        """S, (n, 1, h, w): of the forward just made, or the user's masks."""
        if self.material.masks is not None:
            masks = self.material.masks[views, pictures]
        else:
            if not self.seen:
                raise ValueError(BLIND)
            maps = self._averaged(views, pictures) if self.kept else list(self.seen.values())
            salient = resize_map(joined_map(self.material.reading, maps), *self.grid)
            least = self.material.thresholds[pictures].to(salient)
            masks = (salient >= least[:, None, None]).float()[:, None]
        self.step.masks += zip(views, pictures, masks[:, 0].cpu(), strict=True)
        return masks

    def _averaged(self, views: list[int], pictures: list[int]) -> list[Tensor]:
        """The running average of each layer's maps after each of the pictures, in their order.

        Resized where another pack changes the layer's grid from level to level.
        """
        layers = []
        for layer, maps in self.seen.items():
            rows = []
            for view, picture, now in zip(views, pictures, maps, strict=True):
                place = layer, view, picture
                before = self.step.averages.get(place, self.averages.get(place))
                if before is not None:
                    now = torch.lerp(now, resize_map(before[None].to(now), *now.shape)[0], self.kept)
                self.step.averages[place] = now.cpu()
                rows.append(now)
            layers.append(torch.stack(rows))
        return layers

    def used(self) -> Tensor:
        """(P, H, W): the masks used so far, averaged, at the pictures' own pixels; ones where there are none."""
        (height, width), vae = self.material.images.shape[1:3], self.material.vae
        if self.material.objective.extra != "focus":
            return torch.ones(len(self.material.images), height, width)
        if self.material.masks is not None:
            views, uses = self.material.masks[:1, :, 0], torch.ones(1, len(self.material.images))
        else:
            views, uses = self.masks, self.uses
        multiple = vae.spacial_compression_encode()
        views = [on_picture(masks, height, width, multiple) for masks in views]
        total = sum(view.flip(2) if number else view for number, view in enumerate(views))
        return total / uses.sum(0).clamp_min(1)[:, None, None]

    def state(self) -> dict[str, Tensor]:
        averages = {
            ".".join(map(str, ("map", *layer, view, picture))): one
            for (layer, view, picture), one in self.averages.items()
        }
        return {"masks": self.masks, "uses": self.uses, **averages}

    def load_state(self, state: dict[str, Tensor]) -> None:
        self.masks, self.uses = state["masks"], state["uses"]
        self.averages = {_place(key): one for key, one in state.items() if key.startswith("map.")}


def _place(key: str) -> _Place:
    _, part, *numbers = key.split(".")
    block, depth, view, picture = map(int, numbers)
    return (part, block, depth), view, picture
