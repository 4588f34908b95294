"""The demo's whole job beside the host's own inpainting of the same place, on the demo models."""

from collections.abc import Iterator

from ..demo.tasks import draw_tasks
from ..host.demo_world import DemoModels, load_demo_models
from ..host.generate import encode_texts, inpaint_as_the_host
from ..host.inversion import invert_image
from ..host.painting import PaintSettings, paint
from ..host.pictures import decode_picture
from ..host.region_patches import guide_region
from ..host.regions import Region
from .timing import Comparison, compare

STEPS = 30
CFG = 5.0
INVERSION_STEPS = 50
SEED = 70_000_000


def run(models: DemoModels | None = None) -> Iterator[Comparison]:
    models = models or load_demo_models("text")
    task = draw_tasks([SEED], "fill")
    height, width = task.image.shape[1:3]

    def job():
        texts = encode_texts(models.clip, task.captions), encode_texts(models.clip, [""])
        guided = guide_region(models.model, [Region(task.mask)])
        trajectory, _ = invert_image(models.model, models.vae, task.image, positive=texts[1], steps=INVERSION_STEPS)
        settings = PaintSettings(steps=STEPS, cfg=CFG)
        return paint(guided, *texts, models.vae, task.image, task.mask, settings, trajectory)

    def reference():
        texts = encode_texts(models.clip, task.captions), encode_texts(models.clip, [""])
        latent = inpaint_as_the_host(models.model, *texts, models.vae, task.image, task.mask, SEED, STEPS, CFG)
        return decode_picture(models.vae, latent, height, width)

    note = (
        f"inversion ({INVERSION_STEPS} steps), region guidance, {STEPS} steps and paste against the host's noise mask "
        f"({STEPS} steps); the inversion's share of the steps alone is {INVERSION_STEPS / (2 * STEPS):.2f}"
    )
    yield compare("job", job, reference, note=note)
