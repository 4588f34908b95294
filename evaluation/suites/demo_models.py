"""What the demo world's models can do: the floors and goals of their design, on held-out seeds."""

from functools import partial

import torch
from torch import Tensor

from ...demo.captions import full_captions
from ...demo.judge import Judge, crop_boxes, load_judge
from ...demo.render import render
from ...demo.scenes import SIZE, Scenes, draw_scenes
from ...demo.tasks import draw_tasks
from ...demo.vocabulary import held_out
from ...demo.weights import load_part, weights_path
from ...host.clip_pairs import embed_pictures, embed_text
from ...host.demo_world import DemoModels, load_demo_models
from ...host.generate import encode_texts, generate, replay
from ...host.inversion import invert_latent
from ...host.painting import PaintSettings, paint
from ...host.pictures import decode_picture, encode_picture
from ...host.reference_conditioning import reference_conditioning
from .. import judging
from ..claims import Claim, Floor
from ..measures import exact_outside, psnr_outside
from ..records import Measured
from ..study import Study, Suite

GROUP = 64
BATCH = 16
STEPS = 30
CFG = 5.0
INVERSION_STEPS = 50
GENERATED = "generated, one object"
FILLED = "inpainting: filled by reference"
ATTRIBUTES = (*judging.PLACE, *judging.OBJECT)


def run(study: Study) -> None:
    for part in ("vae", "clip", "judge", "unet", "inpaint"):
        load_part(part)
    judge = load_judge(weights_path("judge"))
    text, inpaint = load_demo_models("text"), load_demo_models("inpaint")
    study.measure("autoencoder and judge", GROUP, partial(_pictures, study, text, judge))
    study.measure("retrieval", GROUP, partial(_retrieval, text))
    study.measure("one object", BATCH, partial(_one_object, study, text, judge))
    study.measure("two objects", BATCH, partial(_two_objects, study, text, judge))
    study.measure("inversion", BATCH, partial(_inversion, study, text))
    study.measure("inpainting", BATCH, partial(_inpainting, study, inpaint, judge))


def through_vae(models: DemoModels, image: Tensor) -> Tensor:
    return decode_picture(models.vae, encode_picture(models.vae, image), *image.shape[1:3])


def _pictures(study: Study, models: DemoModels, judge: Judge, seeds: list[int]) -> list[Measured]:
    scenes = draw_scenes(seeds, objects=1)
    truth = render(scenes)
    decoded = through_vae(models, truth.image)
    for row, seed in enumerate(seeds):
        study.show(seed, "real", full_captions(scenes)[row], truth.image[row])
        study.show(seed, "through the VAE", "", decoded[row])
    quality = [{"psnr": value} for value in psnr_outside(decoded, truth.image, None).tolist()]
    real, round_trip = (crop_boxes(image, truth.boxes[:, 0], judging.OBJECT_MARGIN) for image in (truth.image, decoded))
    trust = judging.trust_rows(judge, real, round_trip, scenes, seeds, ATTRIBUTES)
    return [*judging.rows_of("VAE: round trip", seeds, quality), *trust]


def _retrieval(models: DemoModels, seeds: list[int]) -> list[Measured]:
    """Top 1 of GROUP, each picture among the captions of its group and each caption among its pictures."""
    group = list(range(seeds[0], seeds[0] + GROUP))
    scenes = draw_scenes(group)
    pictures = embed_pictures(models.clip_vision, render(scenes).image)
    texts = torch.stack([embed_text(models.clip, models.clip_vision, text) for text in full_captions(scenes)])
    scores, own = pictures @ texts.T, torch.arange(GROUP)
    to_text, to_picture = (scores.argmax(1) == own).float(), (scores.argmax(0) == own).float()
    values = [
        {"image to text": to_text[row].item(), "text to image": to_picture[row].item()} for row in range(len(seeds))
    ]
    return judging.rows_of("CLIP: retrieval among 64", seeds, values)


def _one_object(study: Study, models: DemoModels, judge: Judge, seeds: list[int]) -> list[Measured]:
    scenes = draw_scenes(seeds, objects=1)
    painted = _paint(models, scenes, seeds[0])
    values = judging.judge_one(judge, painted, scenes)
    unseen = held_out(scenes.style, scenes.shape[:, 0], scenes.colour[:, 0], scenes.surface[:, 0]).tolist()
    rare = [
        Measured(f"{GENERATED}, as no training picture", seeds[row], values[row])
        for row in range(len(seeds))
        if unseen[row]
    ]
    for row, seed in enumerate(seeds):
        study.show(seed, "generated", "", painted[row])
    real = render(scenes).image
    return [
        *judging.rows_of(GENERATED, seeds, values),
        *rare,
        *judging.rows_of("one object, real", seeds, judging.judge_one(judge, real, scenes)),
        *judging.rows_of(
            "one object, real through the VAE", seeds, judging.judge_one(judge, through_vae(models, real), scenes)
        ),
    ]


def _two_objects(study: Study, models: DemoModels, judge: Judge, seeds: list[int]) -> list[Measured]:
    scenes = draw_scenes(seeds, objects=2)
    painted = _paint(models, scenes, seeds[0])
    for row, seed in enumerate(seeds):
        study.show(seed, "generated, two", "", painted[row])
    real = render(scenes).image
    pictures = {
        "generated, two objects": painted,
        "two objects, real": real,
        "two objects, real through the VAE": through_vae(models, real),
    }
    return [
        measured
        for name, image in pictures.items()
        for measured in judging.rows_of(name, seeds, judging.judge_two(judge, image, scenes))
    ]


def _paint(models: DemoModels, scenes: Scenes, seed: int) -> Tensor:
    positive = encode_texts(models.clip, full_captions(scenes))
    negative = encode_texts(models.clip, [""])
    latent = generate(models.model, positive, negative, seed, len(scenes), SIZE, SIZE, STEPS, CFG)
    return decode_picture(models.vae, latent, SIZE, SIZE)


def _inversion(study: Study, models: DemoModels, seeds: list[int]) -> list[Measured]:
    image = render(draw_scenes(seeds)).image
    latent = encode_picture(models.vae, image)
    empty = encode_texts(models.clip, [""])
    path, end = invert_latent(models.model, latent, SIZE, SIZE, empty, steps=INVERSION_STEPS)
    replayed = decode_picture(models.vae, replay(models.model, empty, path, end), SIZE, SIZE)
    decoded = decode_picture(models.vae, latent, SIZE, SIZE)
    for row, seed in enumerate(seeds):
        study.show(seed, "inverted and replayed", "", replayed[row])
    columns = psnr_outside(replayed, decoded, None).tolist(), psnr_outside(replayed, image, None).tolist()
    values = [{"psnr to round trip": own, "psnr to picture": whole} for own, whole in zip(*columns, strict=True)]
    return judging.rows_of("inversion and replay, 50 steps", seeds, values)


def _inpainting(study: Study, models: DemoModels, judge: Judge, seeds: list[int]) -> list[Measured]:
    tasks = draw_tasks(seeds, "fill")
    positive, negative = reference_conditioning(
        models.reference_encoder, models.clip_vision, tasks.reference, tasks.reference_mask
    )
    settings = PaintSettings(steps=STEPS, cfg=CFG, seed=seeds[0], background="fixed", paste="exact")
    pasted, _ = paint(models.model, positive, negative, models.vae, tasks.image, tasks.mask, settings)
    exact = exact_outside(pasted, tasks.image, tasks.mask).tolist()
    truth = judging.truth_of(tasks.wanted)

    def seen(image: Tensor) -> judging.Values:
        found = judging.verdicts(judge, judging.crops_of_masks(image, tasks.mask))
        values = judging.accuracy(found, truth)
        for one in values:
            told = [one[name] for name in judging.OBJECT if one[name] is not None]
            one["agreement"] = sum(told) / len(told)
        return values

    for row, seed in enumerate(seeds):
        study.show(seed, "reference", "", tasks.reference[row])
        study.show(seed, "filled by reference", "", pasted[row])
    filled = [{**one, "background exact": same} for one, same in zip(seen(pasted), exact, strict=True)]
    ceiling = seen(through_vae(models, tasks.truth.image))
    return [
        *judging.rows_of(FILLED, seeds, filled),
        *judging.rows_of("inpainting: real scene through the VAE", seeds, ceiling),
    ]


def _generated(id: str, attribute: str, floor: float, goal: float) -> Claim:
    text = f"Generated single objects (DDIM {STEPS}, CFG {CFG:g}) show the {attribute} of their caption: {floor:g}"
    return Floor(id, text, (GENERATED,), (attribute,), floor, goal)


CLAIMS: tuple[Claim, ...] = (
    Floor("vae-psnr", "The VAE's round trip keeps 24.5 dB", ("VAE: round trip",), ("psnr",), 24.5, 28),
    Floor(
        "clip-top1",
        "Pictures and captions find each other among 64, top 1 both ways: 0.93",
        ("CLIP: retrieval among 64",),
        ("image to text", "text to image"),
        0.93,
        0.97,
    ),
    Floor(
        "judge-real",
        "The judge is right about real single objects, every attribute: 0.97",
        ("judge: real crops",),
        ATTRIBUTES,
        0.97,
        0.99,
    ),
    _generated("gen-background", "background", 0.92, 0.98),
    _generated("gen-style", "style", 0.92, 0.98),
    _generated("gen-colour", "colour", 0.92, 0.98),
    _generated("gen-shape", "shape", 0.80, 0.93),
    _generated("gen-surface", "surface", 0.75, 0.90),
    Floor(
        "gen-two",
        "Generated pairs show both shapes and both colours of their caption: 0.55 each",
        ("generated, two objects",),
        ("both shapes", "both colours"),
        0.55,
        0.80,
    ),
    Floor(
        "inversion-psnr",
        "Inversion and replay, 50 steps, empty prompt, keep 33 dB against the VAE's round trip",
        ("inversion and replay, 50 steps",),
        ("psnr to round trip",),
        33,
        38,
    ),
    Floor(
        "inpaint-reference",
        "The inpainting model's filled place agrees with its reference in shape, colour and surface: 0.75",
        (FILLED,),
        ("agreement",),
        0.75,
        0.92,
    ),
)

SUITE = Suite(
    "demo-models",
    seeds=128,
    full_seeds=256,
    run=run,
    claims=CLAIMS,
    columns=(
        "real",
        "through the VAE",
        "generated",
        "generated, two",
        "inverted and replayed",
        "reference",
        "filled by reference",
    ),
)
