"""What the pictures show on the help pages of the main job's nodes, and of those that find and measure."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .help_pictures import Row, World
from .tasks import KINDS, draw_tasks


def as_picture(mask: Tensor) -> Tensor:
    return mask[0, ..., None].expand(-1, -1, 3)


def demo_models(world: World) -> list[Row]:
    texts = [
        *("a photo of a red star on a meadow", "a cartoon of a striped blue heart on a beach"),
        *("an oil painting of a yellow circle on wood", "a pencil drawing of a diamond on a brick wall"),
        *("a photo of a pink ring at night", "a cartoon of a green cross in the snow"),
        *("an oil painting of a purple square on a meadow", "a photo of a dotted orange triangle on a beach"),
    ]
    tiles = list(zip(texts, world.draw(texts), strict=True))
    return [tiles[:4], tiles[4:]]


def demo_scene(world: World) -> list[Row]:
    rows = []
    for kind in KINDS:
        tasks = draw_tasks([11, 4, 5], kind)
        row = []
        for index in range(3):
            mask = tasks.mask[index, ..., None].expand(-1, -1, 3)
            names = (kind, "mask", "reference")
            row += zip(names, (tasks.image[index], mask, tasks.reference[index]), strict=True)
        rows.append(row)
    return rows


def paint(world: World) -> list[Row]:
    rows = []
    for seed in (7, 12, 31):
        job = world.job(seed)
        guided = _guided(world, job)
        job, images = world.paint(seed, guided, candidates=2)
        change = ((images - job[0]).abs() * 8).clamp(0, 1)
        scene = [("scene", job[0][0]), (job[4], as_picture(job[1]))]
        rows.append([*scene, ("first", images[0]), ("second", images[1]), ("difference x8", change[0])])
    return rows


def _guided(world: World, job: tuple, outside: str = "zero") -> Any:
    return world.run("InlayRegionGuidance", model=world.model, mask=job[1], clip=world.clip, outside=outside)[0]


def region(world: World) -> list[Row]:
    rows = []
    for seed in (7, 12, 31):
        job = world.job(seed)
        plain = world.paint(seed)[1]
        zero, null = (world.paint(seed, _guided(world, job, outside))[1] for outside in ("zero", "null"))
        results = [("without", plain[0]), ("outside: zero", zero[0]), ("outside: null", null[0])]
        rows.append([("scene", job[0][0]), (job[4], as_picture(job[1])), *results])
    return rows


def background(world: World) -> list[Row]:
    rows = []
    for seed in (7, 12):
        row: list = []
        for kind in ("inverted", "renoised", "fixed", "none"):
            job, images = world.paint(seed, background=kind, paste="none")
            row.append((kind, images[0]))
        rows.append([("scene", job[0][0]), *row])
    return rows


def invert(world: World) -> list[Row]:
    row = []
    for seed in (3, 7):
        job = world.job(seed, "show")
        trajectory, _ = world.run(
            "InlayInvertImage", model=world.model, vae=world.vae, image=job[0], positive=world.empty
        )
        row.append(("scene", job[0][0]))
        for sigma in (0.3, 1.0, 3.0, 14.6):
            latent = world.model.model.process_latent_out(trajectory.at(sigma) / (1 + sigma**2) ** 0.5)
            row.append((f"sigma {sigma}", world.vae.decode(latent)[0]))
    return [row[:5], row[5:]]


def paste(world: World) -> list[Row]:
    rows = []
    for seed in (7, 31):
        job, edited = world.paint(seed, paste="none")
        edited = (edited * torch.tensor([1.06, 1.0, 0.92])).clamp(0, 1)
        row = [("original", job[0][0]), ("edited, with a cast", edited[0])]
        for feather, match in ((0, "none"), (8, "none"), (8, "smooth")):
            image, seam = world.run(
                "InlayPasteBack", original=job[0], edited=edited, mask=job[1], feather=feather, colour_match=match
            )
            row.append((f"feather {feather}, match {match}", image[0]))
        rows.append([*row, ("seam", seam[0])])
    return rows


def saliency(world: World) -> list[Row]:
    rows = []
    for seed in (3, 4, 11):
        job = world.job(seed, "show")
        both = {"model": world.model, "vae": world.vae, "image": job[0]}
        row = [("scene", job[0][0]), ("truth", as_picture(job[1]))]
        for source in ("self-attention", "calibrated self-attention", "attention to the border"):
            row.append((source, world.run("InlaySaliencyMask", source=source, **both)[2][0]))
        words = {"clip": world.clip, "prompt": job[4], "words": job[4].split(" on ")[0].split(" in ")[0].split()[-1]}
        row.append(("words", world.run("InlaySaliencyMask", source="words", **both, **words)[2][0]))
        rows.append(row)
    return rows


def boxes(world: World) -> list[Row]:
    rows = []
    for seed in (3, 4, 11):
        job = world.job(seed, "pair")
        thing = job[4].split(" and ")[0].split(" of ")[-1].split(" ", 1)[1]
        found = world.run(
            "InlayFindBox",
            **{"model": world.model, "clip": world.clip, "vae": world.vae, "image": job[0]},
            prompt=job[4],
            concept=thing,
            layer="all",
            alpha=1.0,
            self_attention=False,
            outline="salient part",
            threshold=1.25,
            margin=8,
        )
        soft = found[3][0, ..., None].expand(-1, -1, 3)
        rows.append([("scene", job[0][0]), (f"'{thing}'", soft), ("box", found[4][0]), ("mask", as_picture(found[0]))])
    return rows


def rank(world: World) -> list[Row]:
    job, images = world.paint(12, candidates=6, paste="feather")
    inputs = {"clip_vision": world.clip_vision, "clip": world.clip, "text": job[4], "mask": job[1]}
    images, scores, _ = world.run("InlayRank", images=images, keep=6, **inputs)
    return [[(f"{place + 1}: {scores[place]:.3f}", images[place]) for place in range(6)]]


def measure(world: World) -> list[Row]:
    job, images = world.paint(7, candidates=3, paste="none")
    row = [("original", job[0][0])]
    for image in images:
        results = world.run("InlayMeasure", images=image[None], original=job[0], mask=job[1], region="outside")
        row.append((f"outside: {results[0]:.1f} dB", image))
    return [row]


PAGES: dict[str, Callable[[World], list[Row]]] = {
    "InlayDemoModels": demo_models,
    "InlayDemoScene": demo_scene,
    "InlayPaint": paint,
    "InlayRegionGuidance": region,
    "InlayBackgroundSampler": background,
    "InlayInvertImage": invert,
    "InlayPasteBack": paste,
    "InlaySaliencyMask": saliency,
    "InlayFindBox": boxes,
    "InlayRank": rank,
    "InlayMeasure": measure,
}
