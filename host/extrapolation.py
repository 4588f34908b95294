"""A picture grown beyond its sides, by paint jobs at its edge."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import comfy.clip_vision
import comfy.model_management
import comfy.sd
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ..guidance.extrapolation import SIDES, grow, grow_mask, match_seam, outermost, place_at, plan_side
from ..guidance.paste import paste_back
from .clip_guidance_patch import ClipOptions, clip_nets, clip_targets, guide_to_targets
from .kept_work import CANCELLED, best_effort, keep_each, keep_pictures
from .painting import PaintSettings, paint
from .text_width import require_width
from .tokens import encode_text

LARGEST = 8192


@dataclass(frozen=True)
class ExtrapolateSettings:
    """first_level, last_level: where an extent's first and last strip start, 0 to 1. clean_up: the level of the pass
    over all of them, 0 for none. sampler, scheduler: as in PaintSettings. feather: pixels, inside the new area.
    strength: of the guidance by CLIP, normalised. match_colour: lead each strip's colours up to those it continues.
    """

    steps: int = 30
    cfg: float = 5.0
    seed: int = 0
    first_level: float = 0.2
    last_level: float = 0.75
    clean_up: float = 0.2
    sampler: str = "ddim"
    scheduler: str = "normal"
    feather: int = 4
    strength: float = 0.1
    match_colour: bool = True


@torch.no_grad()
def extrapolate(
    model: ModelPatcher,
    clip: comfy.sd.CLIP,
    vae: comfy.sd.VAE,
    image: Tensor,
    widths: Mapping[str, int],
    prompts: Mapping[str, str],
    settings: ExtrapolateSettings,
    negative: str = "",
    vision: comfy.clip_vision.ClipVisionModel | None = None,
) -> tuple[Tensor, Tensor]:
    """The grown pictures (B, H', W', 3) and the mask (B, H', W') of their new area, 1 = new.

    image: (B, H, W, 3) in [0, 1]; its pixels come back bit for bit. widths: pixels by side, any number. prompts: one
    for each side that grows. The sides grow in the order of SIDES, so that top and bottom fill the corners. vision: the
    other half of the CLIP, to guide by it too. Raises ValueError for nothing to grow and beyond a sane size. On cancel
    the pictures so far are kept and shown, and the host's interrupt goes on. So they are before any other error.
    """
    if clip is None:
        raise ValueError("There is no text encoder: this checkpoint holds none. Load one with Load CLIP.")
    canvas = image[..., :3].float()
    extents = {side: canvas.shape[2 if side in ("left", "right") else 1] for side in SIDES}
    _require_sane_size(extents, widths)
    plans = {
        side: list(plan_side(extents[side], widths[side], settings.first_level, settings.last_level, settings.clean_up))
        for side in SIDES
    }
    asked = {prompts[side] for side in SIDES if plans[side]}
    texts = {text: encode_text(clip, text) for text in {negative, *asked}}
    require_width(model, texts[negative][0][0])
    guided = _guided(model, clip, vae, vision, asked, settings.strength)
    new = torch.zeros(canvas.shape[:3], device=canvas.device)
    total, done = sum(map(len, plans.values())), 0
    try:
        for side in SIDES:
            for edit in plans[side]:
                canvas, new = grow(canvas, side, edit.added), grow_mask(new, side, edit.added)
                window = outermost(canvas, side, edit.window)
                place = place_at(window, side, edit)
                text, job = prompts[side], _job(settings, edit.level, done)
                painted, _ = paint(guided(text, place), texts[text], texts[negative], vae, window, place, job)
                painted = painted.to(window)
                if settings.match_colour:
                    painted = match_seam(painted, window, side, edit.masked)
                pasted = paste_back(window, painted, place.expand(len(window), -1, -1), settings.feather)
                canvas = canvas.clone()
                outermost(canvas, side, edit.window).copy_(pasted)
                done += 1
    except comfy.model_management.InterruptProcessingException:
        with best_effort():
            keep_pictures(canvas, CANCELLED, done, total)
        raise
    except Exception:
        keep_each([canvas] if done else [], [], done, total)
        raise
    return canvas, new


def _guided(
    model: ModelPatcher,
    clip: comfy.sd.CLIP,
    vae: comfy.sd.VAE,
    vision: comfy.clip_vision.ClipVisionModel | None,
    texts: Iterable[str],
    strength: float,
) -> Callable[[str, Tensor], ModelPatcher]:
    """The model for a strip's text and place. Targets and nets are made once, for all strips."""
    targets = {} if vision is None else {text: clip_targets(clip, vision, text, None) for text in texts}
    if all(target is None for target in targets.values()):
        return lambda text, place: model
    options = ClipOptions(strength=strength)
    nets = clip_nets(model, vae, vision, options)

    def guided(text: str, place: Tensor) -> ModelPatcher:
        if targets[text] is None:
            return model
        return guide_to_targets(model, vae, vision, targets[text], place, None, options, nets)

    return guided


def _job(settings: ExtrapolateSettings, level: float, number: int) -> PaintSettings:
    return PaintSettings(
        steps=settings.steps,
        cfg=settings.cfg,
        seed=(settings.seed + number) % 2**64,
        background="renoised",
        sampler=settings.sampler,
        scheduler=settings.scheduler,
        denoise=level,
        paste="none",
    )


def _require_sane_size(extents: Mapping[str, int], widths: Mapping[str, int]) -> None:
    if not any(widths.values()):
        raise ValueError("There is no side to grow. Give left, right, top or bottom a width above 0.")
    width = extents["left"] + widths["left"] + widths["right"]
    height = extents["top"] + widths["top"] + widths["bottom"]
    if max(width, height) > LARGEST:
        raise ValueError(
            f"The picture would become {width} x {height} pixels. Grow it to at most {LARGEST} on a side, "
            "or scale it down first."
        )
    if min(extents.values()) < 8:
        raise ValueError(
            f"The picture is {extents['left']} x {extents['top']} pixels, too small to grow. "
            "Give one of at least 8 x 8."
        )
