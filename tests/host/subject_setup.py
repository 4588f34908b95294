"""A tiny subject to train: two photos of noise with boxes, and a reference encoder."""

from types import SimpleNamespace

import torch
from inlay.attention.boxes import box_mask
from inlay.guidance.reference import ReferenceEncoder
from inlay.host.subject_telling import Teller
from inlay.host.subject_training import Photos, train_subject
from inlay.training.subject_settings import SubjectSettings
from torch import nn

BOXES = [{"x": 40, "y": 30, "width": 50, "height": 40}], [{"x": 20, "y": 60, "width": 30, "height": 50}]
SMALL = {"preset": "custom", "rank": 2, "steps": 3, "batch": 2, "resolution": 64, "views": 2, "learning_rate": 1e-3}


def make_setup(tiny):
    torch.manual_seed(0)
    projection = nn.Sequential(nn.LayerNorm(128), nn.Linear(128, 128))
    encoder = ReferenceEncoder(projection, torch.randn(1, 1, 128), 128).eval().requires_grad_(False)
    images = [torch.rand(1, 128, 144, 3), torch.rand(1, 150, 100, 3)]
    masks = [box_mask(box, *image.shape[1:3])[None] for box, image in zip(BOXES, images, strict=True)]
    return SimpleNamespace(photos=Photos(images, masks), teller=Teller(encoder, tiny.clip_vision))


def train(tiny, setup, name, photos=None, model=None, teller=None, if_exists="overwrite", **changes):
    settings = SubjectSettings(**{**SMALL, **changes})
    return train_subject(
        model or tiny.inpaint_model,
        tiny.vae,
        photos or setup.photos,
        name,
        settings,
        teller or setup.teller,
        if_exists,
    )
