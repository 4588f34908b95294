"""What the pictures show on the help pages of nodes that learn, or that take a reference picture."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .help_pages import as_picture
from .help_pictures import Row, World


def _inpainting(world: World) -> Any:
    return world.run("InlayDemoModels", variant="inpaint")[0]


def _told(world: World, model: Any, job: tuple, conditions: tuple, **settings: Any) -> Tensor:
    """The place filled under (positive, negative), first candidate."""
    both = {"positive": conditions[0], "negative": conditions[1]}
    images, _ = world.run(
        "InlayPaint", model=model, vae=world.vae, image=job[0], mask=job[1], **both, background="renoised", **settings
    )
    return images[0]


def _by_reference(world: World, seeds: tuple[int, ...]) -> list[Row]:
    model, rows = _inpainting(world), []
    for seed in seeds:
        job = world.job(seed, background="any")
        told = {"reference_encoder": world.encoder, "clip_vision": world.clip_vision}
        conditions = world.run("InlayReferenceConditioning", reference=job[2], mask=job[3], **told)
        scene = [("scene", job[0][0]), ("mask", as_picture(job[1])), ("reference", job[2][0])]
        rows.append([*scene, ("result", _told(world, model, job, conditions))])
    return rows


def reference_conditioning(world: World) -> list[Row]:
    return _by_reference(world, (12, 31))


def reference_model(world: World) -> list[Row]:
    return _by_reference(world, (7, 2))


def train_concept(world: World) -> list[Row]:
    job = world.job(12, "subject")
    prompt, _, mask, _, _ = world.run(
        "InlayTrainConcept",
        **{"model": world.model, "clip": world.clip, "vae": world.vae, "images": job[2], "masks": job[3]},
        **{"name": "help-page", "if_exists": "overwrite", "init_word": "thing"},
        **{"template": "a cartoon of {} on wood", "learning_rate": 5e-3},
    )
    pictures = world.draw([f"a photo of {prompt} on a meadow", f"a cartoon of {prompt} on a beach"])
    names = ("painted with it", "in another style")
    return [[("reference", job[2][0]), ("mask used", as_picture(mask)), *zip(names, pictures, strict=True)]]


def _subject(world: World) -> tuple[Any, tuple, Any, list[Tensor]]:
    model, job = _inpainting(world), world.job(12, "subject")
    photos = [world.job(12 + 1000 * index, "subject")[2:4] for index in range(3)]
    images, masks = (torch.cat([photo[part] for photo in photos]) for part in (0, 1))
    lora, _, _ = world.run(
        "InlayTrainSubject",
        **{"model": model, "vae": world.vae, "images": images, "masks": masks, "name": "help-page"},
        **{"clip_vision": world.clip_vision, "reference_encoder": world.encoder, "if_exists": "overwrite"},
        **{"resolution": 128, "steps": 100, "learning_rate": 1e-3, "preset": "custom", "boxes": None},
    )
    return model, job, lora, list(images)


def train_subject(world: World) -> list[Row]:
    model, job, lora, photos = _subject(world)
    told = {"reference_encoder": world.encoder, "clip_vision": world.clip_vision}
    told |= {"reference": job[2], "reference_mask": job[3]}
    row = [(f"photo {number + 1}", photo) for number, photo in enumerate(photos)] + [("place", job[0][0])]
    for strength in (0.0, 1.0):
        loaded = world.run("InlayLoadSubject", model=model, lora=lora, strength=strength, **told)
        row.append((f"strength {strength}", _told(world, loaded[0], job, loaded[1:])))
    return [row]


PAGES: dict[str, Callable[[World], list[Row]]] = {
    "InlayReferenceConditioning": reference_conditioning,
    "InlayLoadReferenceModel": reference_model,
    "InlayTrainConcept": train_concept,
    "InlayTrainSubject": train_subject,
    "InlayLoadSubject": train_subject,
}
