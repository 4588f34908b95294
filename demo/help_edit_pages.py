"""What the pictures show on the help pages of nodes that steer, blend, grow and swap."""

from collections.abc import Callable

import torch
from torch import Tensor

from ..guidance.masks import dilate
from .help_pages import as_picture
from .help_pictures import Row, World
from .vocabulary import SHAPES


def clip_guidance(world: World) -> list[Row]:
    rows = []
    for seed in (12, 31):
        job = world.job(seed)
        row = [("scene", job[0][0])]
        for strength in (0.0, 0.1, 0.3):
            guided = world.run(
                "InlayClipGuidance",
                **{"model": world.model, "vae": world.vae, "clip": world.clip, "clip_vision": world.clip_vision},
                mask=job[1],
                text=job[4],
                strength=strength,
            )[0]
            row.append((f"strength {strength}", world.paint(seed, guided)[1][0]))
        rows.append(row)
    return rows


def style_guidance(world: World) -> list[Row]:
    rows = []
    for seed in (2, 31):
        job = world.job(seed, style="any", background="any")
        row = [("scene", job[0][0])]
        for strength in (0.0, 0.1, 0.3):
            both = {"model": world.model, "vae": world.vae, "style_image": job[0]}
            guided = world.run("InlayStyleGuidance", mask=job[1], strength=strength, **both)[0]
            texts = {"positive": world.words(job[4]), "negative": world.empty}
            images, _ = world.run("InlayPaint", model=guided, vae=world.vae, image=job[0], mask=job[1], **texts)
            row.append((f"strength {strength}", images[0]))
        rows.append(row)
    return rows


def _swapped(world: World, seed: int, shape: str, method: str) -> tuple[tuple, str, Tensor]:
    job = world.job(seed, "show")
    source = next(word for word in job[4].split() if word in SHAPES)
    phrase = job[4][: job[4].index(source)] + source
    image, _ = world.run(
        "InlaySwap",
        **{"model": world.model, "clip": world.clip, "vae": world.vae, "image": job[0], "mask": _box(job[1])},
        source_prompt=job[4],
        target_prompt=job[4].replace(source, shape),
        source_concept=phrase,
        target_concept=phrase.replace(source, shape),
        negative="",
        method=method,
        guidance=3.0,
        rows="conditional",
        learning_rate=0.03 if method == "instantswap" else 0.1,
    )
    return job, source, image


def _box(mask: Tensor) -> Tensor:
    """The mask's bounding box with a little air."""
    rows, columns = (mask[0].amax(axis) > 0.5 for axis in (1, 0))
    y, x = rows.nonzero(), columns.nonzero()
    box = torch.zeros_like(mask)
    box[:, max(0, int(y[0]) - 6) : int(y[-1]) + 7, max(0, int(x[0]) - 6) : int(x[-1]) + 7] = 1
    return box


def swap(world: World) -> list[Row]:
    rows = []
    for seed, shape in ((3, "circle"), (4, "ring")):
        row: list = []
        for method in ("instantswap", "dds", "sds"):
            job, source, image = _swapped(world, seed, shape, method)
            row.append((method, image[0]))
        rows.append([(source, job[0][0]), (f"{source} to {shape}", as_picture(_box(job[1]))), *row])
    return rows


SCRIBBLE_LEVELS = (0.2, 0.35, 0.5, 0.65, 0.8, 1.0)


def _blended(world: World, image: Tensor, mask: Tensor, text: str, **widgets: object) -> Tensor:
    models = {"model": world.model, "clip": world.clip, "vae": world.vae, "clip_vision": world.clip_vision}
    images, _ = world.run("InlayBlend", **models, image=image, mask=mask, text=text, steps=20, **widgets)
    return images[0]


def _scribble(world: World, place: int, thing: int, background: str, colour: tuple) -> tuple[Tensor, Tensor]:
    """A thing's outline, flat in one colour, in an empty place, and a mask four pixels larger, as in the workflow."""
    where = {"style": "photo", "background": background}
    shape = world.job(thing, "show", **where)[1]
    drawn = torch.where(shape[..., None] > 0.5, torch.tensor(colour), world.job(place, **where)[0])
    return drawn, dilate((shape > 0.5).float(), 4)


def blend(world: World) -> list[Row]:
    rows = []
    for seed in (12, 31):
        job = world.job(seed)
        edit = _blended(world, job[0], job[1], job[4], denoise=1.0, candidates=2)
        rows.append([("scene", job[0][0]), (job[4], as_picture(job[1])), ("ddpm, best of 2", edit)])
    for row, seed in zip(rows, (3, 4), strict=True):
        job = world.job(seed, "show")
        mask = _box(job[1])
        row += [("to be removed", job[0][0])]
        row.append(("no words, denoise 0.5", _blended(world, job[0], mask, "", denoise=0.5)))
        told = _blended(world, job[0], mask, "", denoise=0.5, positive=world.words("nothing"))
        row.append(("positive: nothing", told))
    for scene in ((15, 21, "meadow", (0.82, 0.13, 0.13)), (8, 9, "snow", (0.12, 0.30, 0.85))):
        drawn, mask = _scribble(world, *scene)
        name = "red heart" if scene[0] == 15 else "blue circle"
        text = f"a photo of a striped {name} {'on a' if scene[2] == 'meadow' else 'in the'} {scene[2]}"
        levels = [
            (f"denoise {level:g}", _blended(world, drawn, mask, text, denoise=level)) for level in SCRIBBLE_LEVELS
        ]
        rows.append([("scribble", drawn[0]), *levels])
    return rows


def extrapolate(world: World) -> list[Row]:
    rows = []
    for seed, place in ((25, "on a meadow"), (14, "in the snow")):
        job = world.job(seed, "show", style="photo", background=place.split()[-1])
        models = {"model": world.model, "clip": world.clip, "vae": world.vae}
        grown, area, seam = world.run(
            "InlayExtrapolate",
            **{**models, "image": job[0], "steps": 20, "left": 64, "right": 64},
            prompt=f"a photo of nothing {place}",
        )
        named = ("64 pixels more each side", grown[0]), (f"what is new; seam {seam:.1f}", as_picture(area))
        rows.append([("scene", job[0][0]), *named])
    return rows


def concept_region(world: World) -> list[Row]:
    row = []
    for shape in ("star", "heart", "ring"):
        mask = torch.zeros(1, 128, 128)
        mask[:, 30:98, 56:120] = 1
        told = world.run("InlayConceptRegion", model=world.model, concept=world.words(f"a red {shape}"), mask=mask)[0]
        image = world.draw(["a photo of a thing on a meadow"], told, seed=5)
        row.append((f"in the box: a red {shape}", image[0]))
    return [[("box", as_picture(mask)), *row]]


PAGES: dict[str, Callable[[World], list[Row]]] = {
    "InlayClipGuidance": clip_guidance,
    "InlayStyleGuidance": style_guidance,
    "InlayBlend": blend,
    "InlayExtrapolate": extrapolate,
    "InlaySwap": swap,
    "InlayConceptRegion": concept_region,
}
