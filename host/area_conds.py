"""Where each condition lies in the picture: the host crops area conditions and hands the UNet no offset."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from uuid import UUID

from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP

PLACES = "inlay_places"

# top, left, height, width in latent cells
Area = tuple[int, int, int, int]


@dataclass(frozen=True)
class Places:
    """size: the whole latent's (height, width). areas: of the conditions that have one.

    positive: which of the guider's lists `cond_or_uncond` calls its positive one, None if it is not among them.
    """

    size: tuple[int, int]
    areas: Mapping[UUID, Area]
    positive: int | None

    def of(self, options: Mapping, entries: int) -> list[Area]:
        """The area of each condition in a batch. options: the transformer options of that call of the UNet."""
        whole = (0, 0, *self.size)
        return [self.areas.get(uuid, whole) for uuid in options.get("uuids", [None] * entries)]


def add_places(model: ModelPatcher) -> None:
    """Puts a Places under PLACES into the transformer options of every call of this model. Once is enough."""
    if not model.get_wrappers(WrappersMP.CALC_COND_BATCH, PLACES):
        model.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, PLACES, _note_positive)
        model.add_wrapper_with_key(WrappersMP.CALC_COND_BATCH, PLACES, _note_places)


def _note_positive(executor, x, timestep, model_options=None, seed=None):
    options = {**(model_options or {}), PLACES: executor.class_obj.conds.get("positive")}
    return executor(x, timestep, options, seed)


def _note_places(executor, model, conds, x_in, timestep, model_options):
    height, width = x_in.shape[-2:]
    places = Places((height, width), _areas(conds, height, width), _position(model_options.get(PLACES), conds))
    options = {**model_options.get("transformer_options", {}), PLACES: places}
    return executor(model, conds, x_in, timestep, {**model_options, "transformer_options": options})


def _areas(conds: Sequence[Sequence[dict] | None], height: int, width: int) -> dict[UUID, Area]:
    areas = {}
    for cond in conds:
        for one in cond or ():
            if "area" in one:
                h, w, top, left = one["area"]
                areas[one["uuid"]] = (top, left, min(h, height - top), min(w, width - left))
    return areas


def _position(positive: Sequence[dict] | None, conds: Sequence[Sequence[dict] | None]) -> int | None:
    # The order is the guider's: DualCFG puts the negative first. Without a guider the positive comes first.
    if positive is None:
        return 0
    return next((number for number, cond in enumerate(conds) if cond is positive), None)
