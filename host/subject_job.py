"""One training of a subject: its parts held against each other, its data, its steps, and what cancelling leaves."""

import json
import logging
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from typing import Protocol

import comfy.model_management
import comfy.sd
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ..training.subject import NotANumber, SubjectTraining
from ..training.subject_settings import SubjectSettings
from .decoders import require_fit
from .fingerprints import patcher_id, patches_id, weights_id
from .inpaint_channels import takes_masked_image
from .kept_work import CANCELLED, best_effort, keep_pictures
from .lora_files import Lora, base_metadata
from .lora_training import TrainableLora
from .models import model_id, require_timesteps
from .notice import show_sentence
from .reference_conditioning import require_pair
from .subject_checkpoint import SubjectCheckpoint
from .subject_data import FolderSource, PhotoSource, Source, SubjectData
from .subject_folder import PictureFolder
from .subject_loop import SubjectLoop, Trainable
from .subject_photos import Photo
from .subject_projection import projection_tensors, trainable_projection
from .subject_telling import (
    CONNECT_ITS_OWN,
    Teller,
    read_class_prompts,
    read_prompts,
    tell_by_references,
    tell_by_texts,
)
from .subject_views import Item, make_views
from .text_width import require_width

logger = logging.getLogger("inlay")

PREVIEWED = 8
# Seconds between checkpoints.
KEPT_EVERY = 300.0
CLASS_UNUSED = (
    "class_prompt does nothing without class_images. Connect pictures of other such things, or leave it empty."
)
ONE_PHOTO = "There is one photo only: the subject is learned in that pose and light. 2 to 4 are better."


class PhotoSet(Protocol):
    folder: str

    def read(self, needed: bool) -> tuple[list[Photo], list[Photo]]: ...


class SubjectJob:
    """Raises ValueError with what to do for bad input, before the first step."""

    def __init__(
        self,
        model: ModelPatcher,
        vae: comfy.sd.VAE,
        photos: PhotoSet,
        name: str,
        settings: SubjectSettings,
        teller: Teller,
        trainable: Trainable | None = None,
    ) -> None:
        """trainable: instead of a LoRA by the settings."""
        require_timesteps(model)
        require_fit(vae, model.model.latent_format)
        self.model, self.vae, self.teller, self.name = model, vae, teller, name
        self.holes = takes_masked_image(model)
        self.inpaint = settings.mode == "inpaint"
        self.projection = None
        _require_parts(model, settings, teller, self.holes)
        own, others = photos.read(needed=self.holes or settings.masked_loss)
        self.folder = PictureFolder(photos.folder, settings.seed) if photos.folder else None
        if settings.masked_loss and self.folder is not None and not self.folder.has_masks:
            raise ValueError(
                f'The masked loss needs masks, and the folder "{self.folder.name}" holds none. '
                "Put couch.mask.png beside couch.jpg, or set masked_loss to off."
            )
        self.settings = settings = settings.resolved(len(self.folder or own))
        self.prompts = self._prompts(len(own), len(others))
        targets = ("one token" if self.inpaint else "attention") if settings.targets == "auto" else settings.targets
        with torch.inference_mode(False):
            self.trainable = trainable or TrainableLora(
                model, targets, settings.rank, settings.alpha, settings.dropout, settings.seed
            )
            self.trainable.to(model.load_device)
            parameters = dict(self.trainable.parameters)
            if settings.projection == "trained":
                self.projection = trainable_projection(teller.encoder, teller.vision, model, settings.seed)
                self.projection.to(model.load_device)
                parameters |= {f"reference.{key}": value for key, value in self.projection.named_parameters()}
            self.training = SubjectTraining(parameters, settings.learning_rate, settings.accumulation)
        self.source: Source
        if self.folder is None:
            self.source = PhotoSource(own, others, self.prompts, settings, self._build)
        else:
            self.source = FolderSource(self.folder, self.prompts[0] if self.prompts else "", settings, self._build)
        self.checkpoint = SubjectCheckpoint(name, settings, self.source.fingerprint() | self._parts())
        # Every weight of a UNet would be gigabytes each time.
        self.keeps, self.kept_at = trainable is None, time.monotonic()
        remark = ONE_PHOTO if len(own) == 1 else ""
        self.loop = SubjectLoop(model, self.trainable, self.training, settings, self.source.groups, self._keep, remark)

    def run(self) -> None:
        """All steps that are left."""
        loop, settings = self.loop, self.settings
        if settings.resume:
            with torch.inference_mode(False):
                self.checkpoint.load(self.training)
        try:
            for data, end in self._stretches():
                loop.run(data, end)
        except comfy.model_management.InterruptProcessingException:
            with best_effort():
                self.stop()
            if loop.data is not None:
                with best_effort():
                    keep_pictures(loop.panel(loop.last[:1]), CANCELLED, self.training.done, settings.steps)
            raise
        except Exception as error:
            self.stop(diverged=isinstance(error, NotANumber))
            raise
        if self.folder is not None and self.folder.broken:
            broken = list(self.folder.broken.values())
            more = ", ..." if len(broken) > PREVIEWED else ""
            names = ", ".join(broken[:PREVIEWED])
            show_sentence(f"In this run {len(broken)} of {len(self.folder)} pictures could not be read: {names}{more}")

    def stop(self, diverged: bool = False) -> None:
        """Keeps what there is, and says so."""
        if self.keeps and self.checkpoint.save(self.training, diverged):
            done, path = self.training.done, self.checkpoint.path
            logger.info("Stopped after %d steps. Run the same again to go on from %s", done, path)

    def lora(self) -> Lora:
        tensors = self.trainable.tensors()
        if self.projection is not None:
            tensors |= projection_tensors(self.projection)
        return Lora(tensors, self._metadata())

    def preview(self) -> Tensor:
        """(n, S, k S, 3): some views as they were trained on."""
        if self.loop.data is None:
            self.loop.data, _ = self.source.stretch(max(0, self.settings.steps - 1))
        count = len(self.loop.data.views.latents)
        return self.loop.shown(torch.linspace(0, count - 1, min(PREVIEWED, count)).long())

    def _keep(self) -> None:
        """After each step: what a crash of the machine would take is a few minutes' work."""
        if self.keeps and time.monotonic() - self.kept_at > KEPT_EVERY:
            self.checkpoint.save(self.training)
            self.kept_at = time.monotonic()

    def _stretches(self) -> Iterator[tuple[SubjectData, int]]:
        while self.training.done < self.settings.steps:
            yield self.source.stretch(self.training.done)

    def _prompts(self, own: int, others: int) -> list[str]:
        """Of each photo, those of the class last; one for a folder's pictures without a caption."""
        if self.inpaint:
            if others:
                raise ValueError("Class images are for mode text only. Disconnect them, or choose the mode text.")
            return []
        if self.settings.class_prompt.strip() and not others:
            show_sentence(CLASS_UNUSED)
        if self.folder is not None:
            told = bool(self.settings.prompt.strip())
            return read_prompts(self.settings.prompt, 1) if told or not self.folder.captioned else []
        prompts = read_prompts(self.settings.prompt, own)
        return [*prompts, *read_class_prompts(self.settings.class_prompt, others)] if others else prompts

    def _parts(self) -> dict[str, str]:
        """Fingerprints of the models that the result depends on, by their inputs' names."""
        teller = self.teller
        parts = {"model": model_id(self.model), "LoRAs on the model": patches_id(self.model)}
        parts["vae"] = "" if self.vae is None else patcher_id(self.vae.patcher)
        if not self.inpaint:
            return parts | {"clip": f"{patcher_id(teller.clip.patcher)} {teller.clip.layer_idx}"}
        encoder = "" if teller.encoder is None else weights_id(teller.encoder.state_dict())
        return parts | {"clip_vision": patcher_id(teller.vision.patcher), "reference_encoder": encoder}

    def _build(self, items: Iterable[Item]) -> SubjectData:
        settings, teller = self.settings, self.teller
        if self.inpaint:
            references: list[Tensor] = []
            views = make_views(self.vae, items, settings, self.holes, references.append, teller.vision.image_size)
            condition = tell_by_references(teller, references, self.projection)
            context_of = torch.arange(len(references))
        else:
            texts: list[str] = []
            views = make_views(self.vae, _heard(items, texts), settings, self.holes, None, 0)
            told = list(dict.fromkeys(texts))
            condition = tell_by_texts(teller, told)
            context_of = torch.tensor([told.index(text) for text in texts])
        require_width(self.model, condition.contexts, CONNECT_ITS_OWN)
        return SubjectData(views, condition, context_of)

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
        if self.folder is not None:
            said["inlay.folder"] = f"{self.folder.name}, {len(self.folder)} pictures"
        return said | {"inlay.prompt": self.prompts[0]} if self.prompts else said


def _heard(items: Iterable[Item], texts: list[str]) -> Iterator[Item]:
    """The same, with their captions added to the texts as they pass."""
    for item in items:
        texts.append(item.caption)
        yield item


def _require_parts(model: ModelPatcher, settings: SubjectSettings, teller: Teller, holes: bool) -> None:
    """Raises ValueError where the mode lacks a model that it needs, or is asked for what it does not have."""
    if settings.mode == "text":
        if teller.clip is None:
            raise ValueError("The mode text needs a text encoder. Connect the model's clip.")
        if settings.projection == "trained":
            raise ValueError("A projection is of references: choose the mode inpaint, or set projection to fixed.")
        return
    if settings.loss != "plain":
        raise ValueError("The saliency focus is for the mode text. Choose that mode, or set loss to plain.")
    if not holes:
        channels = model.model.model_config.unet_config.get("in_channels")
        raise ValueError(
            f"The mode inpaint needs a model with 9 channels in, and this one has {channels}. "
            "Load an inpainting model, or choose the mode text."
        )
    require_pair(teller.encoder, teller.vision, fresh=settings.projection == "trained")
