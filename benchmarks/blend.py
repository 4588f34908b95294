"""Candidates with CLIP guidance and ranking against the official structure, and what memory they take: demo models.

The reference paints one candidate after another and runs the UNet twice a step, once with a gradient through it. Both
steer an untold model by CLIP alone. Each part of the speed-up has a row: all candidates in one batch through one
forward a step (`exact`), the gradient at the clean estimate instead of through the UNet (`fast`, as shipped), and of
that estimate only what is around the mask decoded (`place`).
"""

from collections.abc import Iterator
from dataclasses import replace

from ..demo.tasks import draw_tasks
from ..host.blend_reference import official_blend
from ..host.blending import BlendModels, BlendTexts, blend_pictures, blend_settings
from ..host.clip_guidance_patch import ClipOptions
from ..host.demo_world import load_demo_models
from .timing import Comparison, compare

CANDIDATES = 8
STEPS = 4
SEED = 70_000_000
FAST = ClipOptions(strength=1000.0, strength_unit="raw", augmentations=7)


def run(models: BlendModels | None = None) -> Iterator[Comparison]:
    if models is None:
        demo = load_demo_models("text")
        models = BlendModels(demo.model, demo.clip, demo.vae, demo.clip_vision)
    task = draw_tasks([SEED], "fill")
    text = task.captions[0]

    def ours(options: ClipOptions = FAST, candidates: int = CANDIDATES, steps: int = STEPS, at_once: int = 0):
        settings = blend_settings(
            "ddpm", steps=steps, denoise=0.75, candidates=candidates, at_once=at_once, paste="exact"
        )
        return blend_pictures(models, task.image, task.mask, BlendTexts(text, False), settings, options)

    def reference():
        settings = blend_settings("ddpm", steps=STEPS, denoise=0.75, candidates=CANDIDATES)
        return official_blend(models, task.image, task.mask, text, settings, FAST)

    exact, place = replace(FAST, mode="exact"), replace(FAST, mode="place")
    note = f"{CANDIDATES} candidates, {STEPS} steps from 0.75, CLIP alone, 8 views, ranked; demo models, 128 x 128"
    yield compare("blend-8", ours, reference, note=f"fast: one batch, one forward, gradient at the estimate; {note}")
    yield compare(
        "blend-8, place", lambda: ours(place), reference, note=f"place: as fast, decoding around the mask; {note}"
    )
    yield compare("blend-8, exact", lambda: ours(exact), reference, note=f"one batch, one forward; {note}")
    yield compare(
        "blend-8, exact, one at a time", lambda: ours(exact, at_once=1), reference, note=f"one forward; {note}"
    )
    several, few = f"{CANDIDATES} candidates at once against 1", f"{3 * STEPS} steps against {STEPS}, 1 candidate"
    yield compare("memory by batch", ours, lambda: ours(candidates=1), note=f"fast; {several}")
    yield compare("memory by steps", lambda: ours(candidates=1, steps=3 * STEPS), lambda: ours(candidates=1), note=few)
