"""Training a subject from a few photos as a LoRA on the user's own MODEL."""

from collections.abc import Sequence
from dataclasses import dataclass

import comfy.sd
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ..training.subject_settings import SubjectSettings
from .gradients import ordinary
from .lora_files import Lora, lora_name, save_lora
from .subject_job import SubjectJob
from .subject_photos import BoxValue, Photo, read_photos
from .subject_telling import Teller


@dataclass(frozen=True)
class Photos:
    """images: IMAGE batches of any sizes. masks: MASK batches, one mask a photo. boxes: what a BOUNDING_BOX socket
    carries, once, once a photo or once a batch of photos. class_images: other things of the subject's kind, for prior
    preservation. folder: inside the host's input folder, instead of images.
    """

    images: Sequence[Tensor] = ()
    masks: Sequence[Tensor] = ()
    boxes: Sequence[BoxValue] | None = None
    class_images: Sequence[Tensor] = ()
    folder: str = ""

    def read(self, needed: bool) -> tuple[list[Photo], list[Photo]]:
        """The subject's photos, and those of its class; none of a folder."""
        if self.folder:
            if len(self.images) or len(self.masks) or self.boxes is not None or len(self.class_images):
                raise ValueError("There are photos and a folder to train on. Connect photos, or name a folder.")
            return [], []
        own = read_photos(ordinary(list(self.images)), ordinary(list(self.masks)), self.boxes, needed)
        if not self.class_images:
            return own, []
        return own, read_photos(ordinary(list(self.class_images)), (), None, False)


@dataclass(frozen=True)
class TrainedSubject:
    """losses: one a step. preview: (n, S, k S, 3), views as they were trained on."""

    lora: Lora
    path: str
    losses: list[float]
    preview: Tensor


def train_subject(
    model: ModelPatcher,
    vae: comfy.sd.VAE,
    photos: Photos,
    name: str,
    settings: SubjectSettings,
    teller: Teller,
    if_exists: str = "number",
) -> TrainedSubject:
    """Trains the LoRA of one subject, or of the kind of pictures that a folder holds, and saves it under the name.

    Raises ValueError with what to do for bad input, before the first step. Whatever stops it later leaves a checkpoint;
    on cancel it is shown too, and the host's interrupt goes on. The same call continues there, with the result that
    one run would have had.
    """
    saved_as = lora_name(name, if_exists)
    job = SubjectJob(model, vae, photos, name.strip(), settings, teller)
    job.run()
    trained = job.lora()
    try:
        path = save_lora(trained, saved_as)
    except ValueError:
        # What was trained is not lost where another disk, or the same one later, takes it.
        job.stop()
        raise
    job.checkpoint.remove()
    return TrainedSubject(trained, path, list(job.training.losses), job.preview())
