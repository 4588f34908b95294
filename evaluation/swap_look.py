"""What a swap's result shows inside the box and has kept outside of it."""

from torch import Tensor

from ..attention.boxes import Box, box_mask
from ..demo.judge import Judge
from ..demo.scenes import SIZE
from ..guidance import metrics
from ..host.clip_pairs import embed_pictures, embed_text
from ..host.demo_world import DemoModels
from ..host.pictures import decode_picture, encode_picture
from . import judging
from .measures import psnr_outside
from .perceptual import NAME as UNLIKENESS
from .perceptual import judge_distance
from .swap_scenes import Job


def through_vae(models: DemoModels, image: Tensor) -> Tensor:
    return decode_picture(models.vae, encode_picture(models.vae, image), *image.shape[1:3])


class Look:
    """What the judge, the tiny CLIP and plain measures make of a result."""

    def __init__(self, models: DemoModels, judge: Judge) -> None:
        self.models, self.judge = models, judge

    def values(self, job: Job, image: Tensor, box: Box) -> dict[str, float | None]:
        mask = box_mask([box], SIZE, SIZE)[None]
        return {**self.foreground(job, image, mask), **self.background(job, image, mask)}

    def foreground(self, job: Job, image: Tensor, mask: Tensor) -> dict[str, float | None]:
        crops = judging.crops_of_masks(image, mask)
        found = judging.verdicts(self.judge, crops)
        new, old = (judging.accuracy(found, judging.truth_of(scenes))[0] for scenes in (job.wanted, job.scene))
        told = [new[name] for name in judging.OBJECT if new[name] is not None]
        seen = [old[name] for name in ("shape", "colour") if old[name] is not None]
        vision = self.models.clip_vision
        likeness = embed_pictures(vision, crops.movedim(1, -1)) @ self._photos(job).T
        words = embed_text(self.models.clip, vision, job.target_caption)
        return {
            **new,
            "agreement": sum(told) / len(told),
            # Neither the shape nor the colour of the old thing is read there any more.
            "old gone": float(not any(seen)),
            "tiny CLIP image": float(likeness.mean()),
            "tiny CLIP text": float(embed_pictures(vision, image)[0] @ words),
        }

    def _photos(self, job: Job) -> Tensor:
        return embed_pictures(
            self.models.clip_vision, judging.crops_of_masks(job.photos, job.photo_masks).movedim(1, -1)
        )

    def background(self, job: Job, image: Tensor, mask: Tensor) -> dict[str, float | None]:
        outside, both = 1 - mask, (image.movedim(-1, 1), job.image.movedim(-1, 1))
        if not outside.any():
            # A box that was found may be the whole picture.
            return {}
        return {
            "background PSNR": float(psnr_outside(image, job.image, mask)),
            "background MSE": float(metrics.mse(*both, outside)),
            "background SSIM": float(metrics.ssim(*both, outside)),
            f"background {UNLIKENESS}": float(judge_distance(self.judge, image, job.image, outside)),
        }

    def limits(self, job: Job) -> dict[str, dict[str, float | None]]:
        """The scene as it is and as it was wished, both through the VAE and nothing else.

        Of the wished one only the box: its thing may reach out of it.
        """
        kept, wished = (through_vae(self.models, image) for image in (job.image, job.truth.image))
        mask = box_mask([job.box], SIZE, SIZE)[None]
        return {
            "nothing swapped: floor in the box, ceiling around it": self.values(job, kept, job.box),
            "the wished scene through the VAE: ceiling in the box": self.foreground(job, wished, mask),
        }
