"""Training a subject from a few photos as a LoRA on the user's own MODEL."""

import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import comfy.model_management
import comfy.sd
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ..training.subject import SubjectTraining
from ..training.subject_settings import SubjectSettings
from .cancelled import keep_pictures
from .gradients import ordinary
from .inpaint_channels import takes_masked_image
from .lora_files import Lora, base_metadata, lora_name, save_lora
from .lora_training import TrainableLora
from .models import prediction_kind
from .reference_conditioning import require_pair
from .subject_checkpoint import SubjectCheckpoint
from .subject_loop import SubjectLoop
from .subject_telling import Condition, Teller, read_prompts, require_width, tell_by_references, tell_by_texts
from .subject_views import BoxValue, Photo, Views, make_views, read_photos

logger = logging.getLogger("inlay")

PRECISIONS = ("auto", "bf16", "fp16", "fp32")
PREVIEWED = 8


@dataclass(frozen=True)
class Photos:
    """images: IMAGE batches of any sizes. masks: MASK batches, one mask a photo. boxes: what a BOUNDING_BOX socket
    carries, once or once a photo. class_images: other things of the subject's kind, for prior preservation.
    """

    images: Sequence[Tensor]
    masks: Sequence[Tensor] = ()
    boxes: Sequence[BoxValue] | None = None
    class_images: Sequence[Tensor] = ()

    def read(self, needed: bool) -> tuple[list[Photo], list[Photo]]:
        """The subject's photos, and those of its class."""
        own = read_photos(ordinary(list(self.images)), ordinary(list(self.masks)), self.boxes, needed)
        if len(own) == 1:
            logger.warning("There is one photo only: the subject is learned in that pose and light. 2 to 4 are better.")
        if not self.class_images:
            return own, []
        return own, read_photos(ordinary(list(self.class_images)), (), None, False)


@dataclass(frozen=True)
class TrainedSubject:
    """losses: one a step. preview: (n, S, S or 2 S, 3), views as they were trained on."""

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
    """Trains the LoRA of one subject and saves it under the name.

    Raises ValueError with what to do for bad input, before the first step. On cancel a checkpoint is written and shown,
    and the host's interrupt goes on; the same call continues there, with the result that one run would have had.
    """
    saved_as = lora_name(name, if_exists)
    return _Job(model, vae, photos, name.strip(), settings.resolved(), teller).run(saved_as)


class _Job:
    def __init__(
        self,
        model: ModelPatcher,
        vae: comfy.sd.VAE,
        photos: Photos,
        name: str,
        settings: SubjectSettings,
        teller: Teller,
    ) -> None:
        prediction_kind(model)
        self.model, self.settings, self.teller, self.name = model, settings, teller, name
        holes = takes_masked_image(model)
        _require_parts(model, settings, teller, holes)
        own, others = photos.read(needed=holes or settings.masked_loss)
        self.prompts = self._prompts(len(own), len(others))
        inpaint = settings.mode == "inpaint"
        targets = ("one token" if inpaint else "attention") if settings.targets == "auto" else settings.targets
        self.lora = TrainableLora(model, targets, settings.rank, settings.alpha, settings.dropout, settings.seed)
        with torch.inference_mode(False):
            self.lora.to(model.load_device)
            self.training = SubjectTraining(self.lora.parameters, settings.learning_rate, settings.accumulation)
        views, condition, context_of = self._material(vae, [*own, *others], holes)
        require_width(model, condition)
        groups = [(views.photo_of < len(own)).nonzero()[:, 0], (views.photo_of >= len(own)).nonzero()[:, 0]]
        groups = [group for group in groups if len(group)]
        self.loop = SubjectLoop(model, self.lora, self.training, settings, views, condition, groups, context_of)
        inputs = (views.latents, *views.channels.values(), views.weights, condition.contexts, condition.empty)
        self.checkpoint = SubjectCheckpoint(name, model, settings, inputs)

    def run(self, saved_as: str) -> TrainedSubject:
        loop, settings = self.loop, self.settings
        if settings.resume:
            with torch.inference_mode(False):
                self.checkpoint.load(self.training)
        try:
            loop.run()
        except comfy.model_management.InterruptProcessingException:
            self.checkpoint.save(self.training)
            keep_pictures(loop.panel(loop.last[:1]), "inlay_cancelled", self.training.done, settings.steps)
            raise
        trained = Lora(self.lora.tensors(), self._metadata())
        path = save_lora(trained, saved_as)
        self.checkpoint.remove()
        count = len(loop.views.latents)
        rows = torch.linspace(0, count - 1, min(PREVIEWED, count)).long()
        return TrainedSubject(trained, path, list(self.training.losses), loop.panel(rows))

    def _prompts(self, own: int, others: int) -> list[str]:
        """Of each photo, those of the class last."""
        if self.settings.mode == "inpaint":
            if others:
                raise ValueError("Class images are for mode text only. Disconnect them, or choose the mode text.")
            return []
        prompts = read_prompts(self.settings.prompt, own)
        return [*prompts, *read_prompts(self.settings.class_prompt, others)] if others else prompts

    def _material(self, vae: comfy.sd.VAE, photos: list[Photo], holes: bool) -> tuple[Views, Condition, Tensor]:
        """The views, what they are told by, and which of that each row is."""
        if self.settings.mode == "text":
            views = make_views(vae, photos, self.settings, holes, None, 0)
            return views, tell_by_texts(self.teller, self.prompts), views.photo_of
        references: list[Tensor] = []
        views = make_views(vae, photos, self.settings, holes, references.append, self.teller.vision.image_size)
        return views, tell_by_references(self.teller, references), torch.arange(len(references))

    def _metadata(self) -> dict[str, str]:
        """What a file says about itself; kohya's own words where it has any."""
        settings = self.settings
        said = {
            "ss_network_module": "networks.lora",
            "ss_network_dim": str(settings.rank),
            "ss_network_alpha": f"{settings.alpha:g}",
            "ss_output_name": self.name,
            "inlay.mode": settings.mode,
            "inlay.recipe": json.dumps(asdict(settings)),
            **base_metadata(self.model),
        }
        return said | {"inlay.prompt": self.prompts[0]} if self.prompts else said


def _require_parts(model: ModelPatcher, settings: SubjectSettings, teller: Teller, holes: bool) -> None:
    """Raises ValueError where the mode lacks a model that it needs."""
    if settings.mode == "text":
        if teller.clip is None:
            raise ValueError("The mode text needs a text encoder. Connect the model's clip.")
        return
    if not holes:
        channels = model.model.model_config.unet_config.get("in_channels")
        raise ValueError(
            f"The mode inpaint needs a model with 9 channels in, and this one has {channels}. "
            "Load an inpainting model, or choose the mode text."
        )
    require_pair(teller.encoder, teller.vision)
