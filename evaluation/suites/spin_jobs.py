"""The paint jobs that Spin's tables compare, each giving candidates (n, H, W, 3) of one scene before any paste."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

from ...demo.render import mask_boxes, render
from ...demo.tasks import Tasks, place_masks, reference_pictures, task_captions
from ...demo.vocabulary import BACKGROUNDS, PLACE_PHRASES, STYLE_PHRASES, STYLES
from ...guidance.background import mask_cells
from ...host.blending import BlendModels, BlendTexts, blend_pictures, blend_settings
from ...host.clip_guidance_patch import guide_by_clip
from ...host.demo_world import DemoModels
from ...host.generate import denoise, encode_texts, generate, inpaint_as_the_host
from ...host.painting import PaintSettings, paint, schedule
from ...host.pictures import decode_picture
from ...host.ranking import look_inside
from ...host.reference_conditioning import reference_conditioning
from .. import spin_parts
from ..spin_parts import Canvas, Parts
from ..subjects import scene_of_subject
from .blended_jobs import ALONE, START
from .style import SHIPPED

CANDIDATES = 4
GROW = 1.25
BLENDED_STEPS = 20

SALIENCY, BACKGROUND, ARG, STYLE, ALL = "saliency focus", "+ background", "+ ARG", "+ style guidance", "Spin (all)"
ABLATION = {
    BACKGROUND: Parts(region=None),
    ARG: Parts(),
    STYLE: Parts(region=None, style=SHIPPED),
    ALL: Parts(style=SHIPPED),
}
NAMED = "Spin (all), the scene's style named"
HOST = "host inpainting (noise mask)"
LATENT = "Blended Latent"
BLENDED = "Blended"
BY_REFERENCE = "inpainting model by reference"
COPY = "copy and paste (ceiling)"
OTHER = "another subject's reference (floor)"
EDITS = {"striped": ("surface", 1), "dotted": ("surface", 2), "blue": ("colour", 4)}

Jobs = dict[str, Callable[[], Tensor]]


def subject_task(seed: int) -> Tasks:
    """An empty place and a subject that only its reference shows; its scenes for tuning show other subjects."""
    wanted = scene_of_subject(seed)
    reference = reference_pictures(wanted, [seed])
    image, mask = render(wanted.emptied()).image, place_masks(wanted, GROW)
    seen = reference.image, reference.masks[:, 0]
    return Tasks(image, mask, *seen, task_captions(wanted), wanted, render(wanted))


def ablation_jobs(canvas: Canvas) -> Jobs:
    """Table 3: the concept alone, then Spin's parts one by one."""
    return {
        SALIENCY: lambda: from_noise(canvas),
        **{name: lambda parts=parts: canvas.paint(parts) for name, parts in ABLATION.items()},
    }


def from_noise(canvas: Canvas) -> Tensor:
    """From the scene's own noise, fresh inside the mask, down by the text alone: no background is put back.

    The paper starts from the scene's noise everywhere, which gives but one candidate.
    """
    models, model = canvas.models, canvas.models.model
    levels = schedule(model, PaintSettings(steps=spin_parts.STEPS))
    path = canvas.trajectory.at(float(levels[0]))
    generator = torch.Generator().manual_seed(canvas.seed)
    fresh = torch.randn(canvas.candidates, *path.shape[1:], generator=generator) * (1 + levels[0] ** 2).sqrt()
    inside = mask_cells(canvas.mask, *path.shape[-2:])
    start = model.model.process_latent_out(inside * fresh + (1 - inside) * path)
    conds = {"positive": canvas.positive, "negative": canvas.empty}
    return _decoded(models, denoise(model, conds, start, levels, spin_parts.CFG), canvas.image)


def image_rivals(canvas: Canvas, inpaint: DemoModels, task: Tasks) -> Jobs:
    """Table 2's other rows: Blended (CLIP follows the reference), Blended Latent, a model told by reference."""
    reference = look_inside(task.reference, task.reference_mask, canvas.models.clip_vision.image_size, "keep")

    def by_reference() -> Tensor:
        texts = reference_conditioning(
            inpaint.reference_encoder, inpaint.clip_vision, task.reference, task.reference_mask
        )
        settings = _settings(canvas, background="fixed", steps=spin_parts.STEPS, cfg=spin_parts.CFG)
        return paint(inpaint.model, *texts, inpaint.vae, canvas.image, canvas.mask, settings)[0]

    def blended() -> Tensor:
        models = canvas.models
        parts = models.vae, models.clip, models.clip_vision, "", reference, canvas.mask, None, ALONE
        settings = _settings(canvas, background="renoised", sampler="ddpm", steps=BLENDED_STEPS, denoise=START)
        texts = canvas.empty, canvas.empty
        model = guide_by_clip(models.model, *parts)
        return paint(model, *texts, models.vae, canvas.image, canvas.mask, settings)[0]

    return {
        BY_REFERENCE: by_reference,
        BLENDED: blended,
        LATENT: lambda: canvas.paint(Parts("renoised", region=None)),
    }


def text_jobs(canvas: Canvas, text: str) -> Jobs:
    """Table 1: Blended (CLIP alone follows the text), Blended Latent, the host's way, Spin."""
    models = canvas.models

    def blended() -> Tensor:
        settings = blend_settings(
            "ddpm",
            steps=BLENDED_STEPS,
            denoise=START,
            seed=canvas.seed,
            candidates=canvas.candidates,
            paste="none",
        )
        parts = BlendModels(models.model, models.clip, models.vae, models.clip_vision)
        told = BlendTexts(text, condition=False)
        return blend_pictures(parts, canvas.image, canvas.mask, told, settings, ALONE)[0]

    def by_the_host() -> Tensor:
        image, mask = (one.expand(canvas.candidates, *one.shape[1:]) for one in (canvas.image, canvas.mask))
        job = models.vae, image, mask, canvas.seed, spin_parts.STEPS, spin_parts.CFG
        return _decoded(models, inpaint_as_the_host(models.model, canvas.positive, canvas.empty, *job), image)

    return {
        BLENDED: blended,
        LATENT: lambda: canvas.paint(Parts("renoised", region=None)),
        HOST: by_the_host,
        ALL: lambda: canvas.paint(ABLATION[ALL]),
    }


def sentence(thing: str, style: int, background: int) -> str:
    """As the demo's captions have it."""
    return f"{STYLE_PHRASES[STYLES[style]][0]} {thing} {PLACE_PHRASES[BACKGROUNDS[background]][0]}"


def named_style_job(canvas: Canvas, text: str) -> Jobs:
    """All of Spin under a text that names the scene's own style too, as the shipped workflow has it."""
    return {NAMED: lambda: canvas.asking(encode_texts(canvas.models.clip, [text])).paint(ABLATION[ALL])}


def edit_jobs(canvas: Canvas, say: Callable[[str], str], prompt: str) -> Jobs:
    """The concept with a word more, without style guidance, which would pull the other way. say: the sentence around.

    As the demo's captions put it: "embedding:name, striped" would hold a comma, which its text encoder never saw.
    """
    clip = canvas.models.clip
    asked = {word: encode_texts(clip, [say(f"a {word} {prompt}")]) for word in EDITS}
    return {
        f"edited: {word}": lambda text=text: canvas.asking(text).paint(ABLATION[ARG]) for word, text in asked.items()
    }


def in_each_style(models: DemoModels, prompt: str, background: int, seed: int) -> Tensor:
    """The concept in a place, from words alone, asked for in each of STYLES: (4, H, W, 3)."""
    positive = encode_texts(models.clip, [sentence(prompt, style, background) for style in range(len(STYLES))])
    latent = generate(
        models.model, positive, encode_texts(models.clip, [""]), seed, len(STYLES), steps=spin_parts.STEPS
    )
    return _decoded(models, latent, torch.zeros(1, 128, 128, 3))


def copy_and_paste(task: Tasks) -> Tensor:
    """(1, H, W, 3): the reference's subject, by its true mask, at its size in the middle of the place."""
    height, width = task.image.shape[1:3]
    ours, theirs = (mask_boxes(mask)[0].float() for mask in (task.mask, task.reference_mask))
    scale = theirs[2:].amax() / (ours[2:].amax() / GROW)
    centres = [box[:2] + box[2:] / 2 for box in (ours, theirs)]
    sides = torch.tensor([width, height])
    shift = 2 * (centres[1] - scale * centres[0]) / sides + scale - 1
    theta = torch.tensor([[[scale, 0, shift[0]], [0, scale, shift[1]]]])
    cut = torch.cat([task.reference, task.reference_mask[..., None]], -1).movedim(-1, 1)
    grid = affine_grid(theta, [1, 4, height, width], align_corners=False)
    moved = grid_sample(cut, grid, align_corners=False).movedim(1, -1)
    inside = moved[..., 3:] * (task.mask[..., None] > 0)
    return task.image * (1 - inside) + moved[..., :3] * inside


def _settings(canvas: Canvas, **others: object) -> PaintSettings:
    given = {"cfg": 1.0, **others}
    return PaintSettings(seed=canvas.seed, candidates=canvas.candidates, paste="none", **given)


def _decoded(models: DemoModels, latent: Tensor, image: Tensor) -> Tensor:
    return decode_picture(models.vae, latent, *image.shape[1:3])
