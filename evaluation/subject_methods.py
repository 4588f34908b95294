"""The ways to bring a subject into a picture that the suite `subject` compares: each trains, then says what paints."""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..demo.scenes import SIZE
from ..demo.weights import load_part
from ..host.concept_text import SLOT
from ..host.concept_training import learn_concept
from ..host.demo_models import build_model
from ..host.demo_world import DemoModels, load_demo_models
from ..host.full_tuning import tune_whole
from ..host.generate import encode_texts
from ..host.lora_files import ALPHA
from ..host.reference_conditioning import reference_conditioning
from ..host.subject_loading import load_subject
from ..host.subject_telling import Teller
from ..host.subject_training import Photos, train_subject
from ..training.concept import ConceptSettings
from ..training.subject_settings import SubjectSettings
from .subject_places import RARE, Places

TRAIN_STEPS = 100
BATCH = 4
VIEWS = 16
# Chosen on six tuning subjects among 1e-4, 3e-4 and 1e-3 for a LoRA, 3e-5, 1e-4 and 3e-4 for full fine-tuning. The
# others are those of the pictures on their help pages.
LORA_RATE, WHOLE_RATE, DREAMBOOTH_RATE, CONCEPT_RATE = 3e-4, 3e-4, 1e-3, 5e-3
# For --tuning: as many for both, as far apart, around what is taken now.
LORA_RATES, WHOLE_RATES = (1e-4, 3e-4, 1e-3, 3e-3), (3e-5, 1e-4, 3e-4, 1e-3)
NAME = "inlay-evaluation"
EXTRA_CHANNELS = 5
MEGABYTE = 1e6
FP32 = 4

BASE = "no training"
CAPTION = "text inpainting, the nearest caption"
WHOLE = "full fine-tuning"
BARE = "LoRA rank 16 on a base without inpainting training"
LORA = {rank: f"LoRA rank {rank}" for rank in (4, 16, 64)}
REFERENCE = "LoRA rank 16 + reference augmentation"
MASK = "LoRA rank 16 + reference + mask augmentation"
CONCEPT = "textual inversion, saliency focus"
DREAMBOOTH = "DreamBooth LoRA rank 16, text"
METHODS = (BASE, CAPTION, WHOLE, BARE, *LORA.values(), REFERENCE, MASK, CONCEPT, DREAMBOOTH)


def at_rate(name: str, rate: float) -> str:
    return f"{name}, rate {rate:g}"


TUNED = {name: [at_rate(name, one) for one in rates] for name, rates in ((LORA[16], LORA_RATES), (WHOLE, WHOLE_RATES))}


@dataclass(frozen=True)
class Ready:
    """What paints the places, the host's MODEL and conditionings, and what it took. file: bytes."""

    model: Any
    positive: list
    negative: list
    seconds: float = 0.0
    file: int = 0
    parameters: int = 0

    def costs(self) -> dict[str, float | None]:
        return {
            "training seconds": self.seconds,
            "file MB": self.file / MEGABYTE,
            "trained parameters": float(self.parameters),
        }


class Methods:
    """On the demo models, loaded once."""

    def __init__(self) -> None:
        self.inpaint, self.text = load_demo_models("inpaint"), load_demo_models("text")
        self.bare = bare_inpainting()

    def of(self, places: Places) -> dict[str, Callable[[], Ready]]:
        """By row of the report; nothing is trained before it is called."""
        plain = partial(self._lora, places, self.inpaint.model)
        augmented = {"reference_augmentation": True}
        return {
            BASE: lambda: self._told(places, self.inpaint.model),
            CAPTION: lambda: self._asked(self.text.model, places.asked(places.named)),
            WHOLE: lambda: self._whole(places),
            BARE: lambda: self._lora(places, self.bare, 16),
            **{name: partial(plain, rank) for rank, name in LORA.items()},
            REFERENCE: lambda: plain(16, **augmented),
            MASK: lambda: plain(16, **augmented, mask_augmentation="paper"),
            CONCEPT: lambda: self._concept(places),
            DREAMBOOTH: lambda: self._dreambooth(places),
        }

    def tuned(self, places: Places) -> dict[str, Callable[[], Ready]]:
        """The claim's two methods at several learning rates, for as many steps on the same photos."""
        base = self.inpaint.model
        lora = {rate: partial(self._lora, places, base, 16, learning_rate=rate) for rate in LORA_RATES}
        whole = {rate: partial(self._whole, places, rate) for rate in WHOLE_RATES}
        return {
            BASE: lambda: self._told(places, base),
            **{at_rate(LORA[16], rate): job for rate, job in lora.items()},
            **{at_rate(WHOLE, rate): job for rate, job in whole.items()},
        }

    def _told(self, places: Places, model: Any, **costs: float) -> Ready:
        """By one of the photos each, in turn."""
        photos = places.photos
        rows = torch.arange(len(places.image)) % len(photos.image)
        encoder, vision = self.inpaint.reference_encoder, self.inpaint.clip_vision
        told = reference_conditioning(encoder, vision, photos.image[rows], photos.masks[rows, 0])
        return Ready(model, *told, **costs)

    def _asked(self, model: Any, texts: list[str], **costs: float) -> Ready:
        empty = encode_texts(self.text.clip, [""] * len(texts))
        return Ready(model, encode_texts(self.text.clip, texts), empty, **costs)

    def _lora(self, places: Places, base: Any, rank: int, **settings: object) -> Ready:
        began = time.perf_counter()
        recipe = _recipe(places, **{"rank": rank, "learning_rate": LORA_RATE, **settings})
        trained = train_subject(base, self.inpaint.vae, _photos(places), NAME, recipe, self._teller(), "overwrite")
        seconds = time.perf_counter() - began
        costs = {"seconds": seconds, "file": os.path.getsize(trained.path), "parameters": _count(trained.lora)}
        return self._told(places, load_subject(base, trained.lora, 1.0), **costs)

    def _whole(self, places: Places, rate: float = WHOLE_RATE) -> Ready:
        began = time.perf_counter()
        recipe = _recipe(places, learning_rate=rate)
        base, vae = self.inpaint.model, self.inpaint.vae
        model, weights = tune_whole(base, vae, _photos(places), recipe, self._teller())
        count = _count(weights)
        return self._told(places, model, seconds=time.perf_counter() - began, file=FP32 * count, parameters=count)

    def _dreambooth(self, places: Places) -> Ready:
        began = time.perf_counter()
        thing = f"a {RARE} thing"
        recipe = _recipe(
            places, mode="text", rank=16, learning_rate=DREAMBOOTH_RATE, prompt="\n".join(places.taught(thing))
        )
        teller, base = Teller(clip=self.text.clip), self.text.model
        trained = train_subject(base, self.text.vae, _photos(places), NAME, recipe, teller, "overwrite")
        seconds = time.perf_counter() - began
        costs = {"seconds": seconds, "file": os.path.getsize(trained.path), "parameters": _count(trained.lora)}
        return self._asked(load_subject(base, trained.lora, 1.0), places.asked(thing), **costs)

    def _concept(self, places: Places) -> Ready:
        began = time.perf_counter()
        settings = ConceptSettings(
            steps=TRAIN_STEPS, learning_rate=CONCEPT_RATE, init_word="thing", seed=places.seed, preview_every=0,
            resume=False, template="\n".join(places.taught(SLOT)),
        )  # fmt: skip
        models, photos = self.text, places.photos
        learned = learn_concept(
            models.model, models.clip, models.vae, photos.image, NAME, settings, "overwrite", photos.masks[:, 0]
        )
        seconds, file = time.perf_counter() - began, os.path.getsize(learned.path)
        count = settings.tokens * learned.conditioning[0][0].shape[-1]
        texts = places.asked(learned.prompt)
        return self._asked(models.model, texts, seconds=seconds, file=file, parameters=count)

    def _teller(self) -> Teller:
        models: DemoModels = self.inpaint
        return Teller(models.reference_encoder, models.clip_vision)


def bare_inpainting() -> Any:
    """The text UNet with nine channels in, the further five with weights of 0, as before any inpainting training."""
    weights = load_part("unet")
    first = weights["input_blocks.0.0.weight"]
    more = first.new_zeros(first.shape[0], EXTRA_CHANNELS, *first.shape[2:])
    return build_model({**weights, "input_blocks.0.0.weight": torch.cat([first, more], 1)})


def _photos(places: Places) -> Photos:
    return Photos([places.photos.image], [places.photos.masks[:, 0]])


def _recipe(places: Places, **settings: object) -> SubjectSettings:
    plain = {"mask_augmentation": "none", "reference_augmentation": False, "views": VIEWS, "preview_every": 0}
    steps = {"preset": "custom", "steps": TRAIN_STEPS, "batch": BATCH, "resolution": SIZE, "resume": False}
    return SubjectSettings(**{**plain, **steps, "seed": places.seed, **settings})


def _count(tensors: dict[str, Tensor]) -> int:
    return sum(value.numel() for key, value in tensors.items() if not key.endswith(ALPHA))
