"""Subjects on SDXL's shapes, and on models made of inference tensors as the executor makes them."""

import comfy.model_patcher
import comfy.supported_models
import pytest
import torch
from comfy.model_base import ModelType
from inlay.attention.boxes import box_mask
from inlay.guidance.reference import ReferenceEncoder
from inlay.host import demo_models as build
from inlay.host.inversion import POOLED_WIDTH
from inlay.host.lora_files import read_lora
from inlay.host.painting import paint
from inlay.host.subject_loading import load_subject, subject_conditioning
from inlay.host.subject_telling import Teller, tell_by_texts
from inlay.host.subject_training import Photos, train_subject
from inlay.training.subject_settings import SubjectSettings

from .painting_scene import FEW

CONTEXT, POOLED = 160, 96
SETTINGS = SubjectSettings(
    mode="text",
    preset="custom",
    prompt="a red sks star\na drawing of an sks star",
    rank=2,
    steps=2,
    batch=2,
    resolution=64,
    views=1,
    learning_rate=1e-3,
    condition_dropout=0.0,
)
IMAGES = [torch.rand(2, 64, 72, 3, generator=torch.Generator().manual_seed(0))]


class Encoder:
    """Each text gets random states of its own, seeded by its length."""

    layer_idx = None
    patcher = comfy.model_patcher.ModelPatcher(torch.nn.Module(), torch.device("cpu"), torch.device("cpu"))

    def tokenize(self, text):
        return text

    def encode_from_tokens_scheduled(self, text):
        generator = torch.Generator().manual_seed(len(text))
        length = 77 if len(text) < 20 else 154
        states = torch.randn(1, length, CONTEXT, generator=generator)
        return [[states, {"pooled_output": torch.randn(1, POOLED, generator=generator)}]]


def narrow_sdxl(in_channels=4, pooled=POOLED):
    class Narrow(comfy.supported_models.SDXL):
        unet_config = {}
        unet_extra_config = {}

    config = {
        **build.UNET_CONFIG,
        "in_channels": in_channels,
        "use_linear_in_transformer": True,
        "context_dim": CONTEXT,
        "num_classes": "sequential",
        "adm_in_channels": pooled + 6 * 256,
    }
    supported = Narrow(config)
    supported.set_inference_dtype(torch.float32, None)
    supported.model_type = lambda *_: ModelType.EPS
    cpu = torch.device("cpu")
    model = supported.get_model({}, "", device=cpu)
    build.initialise(model.diffusion_model, 7)
    return comfy.model_patcher.ModelPatcher(model, load_device=cpu, offload_device=cpu)


def watched(model):
    """A clone that keeps what each forward is told: context and vector."""
    seen, clone = [], model.clone()

    def keep(apply, given):
        seen.append((given["c"]["c_crossattn"].detach(), given["c"]["y"].detach()))
        return apply(given["input"], given["timestep"], **given["c"])

    clone.set_model_unet_function_wrapper(keep)
    return clone, seen


def test_sdxl_rows_keep_their_own_text_and_pooled_output(tiny):
    model = narrow_sdxl()
    clone, seen = watched(model)
    with torch.inference_mode():
        trained = train_subject(clone, tiny.vae, Photos(IMAGES), "xl", SETTINGS, Teller(clip=Encoder()), "overwrite")
    told = tell_by_texts(Teller(clip=Encoder()), SETTINGS.prompt.splitlines())
    assert told.contexts.shape == (2, 154, CONTEXT) and told.pooled.shape == (2, POOLED)
    for contexts, pooled in seen:
        for context, row in zip(contexts, pooled, strict=True):
            which = [torch.allclose(context, one, atol=1e-5) for one in told.contexts].index(True)
            assert torch.allclose(row[:POOLED], told.pooled[which], atol=1e-5)
    assert all(key.startswith(("lora_unet_input", "lora_unet_middle", "lora_unet_output")) for key in trained.lora)
    patched = load_subject(model, read_lora("xl.safetensors"), 1.0)
    assert len(patched.patches) == len(trained.lora) // 3


@pytest.mark.parametrize("projection", ["fixed", "trained"])
def test_an_sdxl_inpainting_model_is_trained_and_painted_by_a_reference(tiny, projection):
    model = narrow_sdxl(9, POOLED_WIDTH)
    clone, seen = watched(model)
    encoder = None
    if projection == "fixed":
        encoder = ReferenceEncoder(torch.nn.Linear(128, CONTEXT), torch.randn(1, 1, CONTEXT), 128)
    mask = box_mask([{"x": 10, "y": 20, "width": 40, "height": 30}], 64, 72)[None]
    changes = {"mode": "inpaint", "projection": projection, "condition_dropout": 0.5, "batch": 4}
    settings = SubjectSettings(**{**vars(SETTINGS), **changes})
    teller, photos = Teller(encoder, tiny.clip_vision), Photos(IMAGES, [mask])
    with torch.inference_mode():
        trained = train_subject(clone, tiny.vae, photos, "xl-inpaint", settings, teller, "overwrite")
    assert len(trained.losses) == 2 and all(0 < loss < 100 for loss in trained.losses)
    picture = IMAGES[0][:1]
    with torch.inference_mode():
        told = subject_conditioning(model, trained.lora, encoder, tiny.clip_vision, picture, None)
        painted, _ = paint(load_subject(clone, trained.lora, 1.0), *told, tiny.vae, picture, mask, FEW)
    # In training and in painting alike: no pooled output, and the sizes as the host writes them.
    assert all(not y[:, :POOLED_WIDTH].any() and y[:, POOLED_WIDTH:].any() for _, y in seen)
    assert {context.shape[1:] for context, _ in seen} == {(1, CONTEXT)}
    outside = mask == 0
    assert torch.equal(painted[outside], picture[outside]) and not torch.equal(painted, picture)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_model_of_inference_tensors_is_trained_as_any_other(tiny, checkpointing):
    with torch.inference_mode():
        made = build.build_model(build.build_unet(4, seed=1).state_dict())
    results = []
    for model in (made, tiny.model):
        settings = SubjectSettings(**{**vars(SETTINGS), "checkpointing": checkpointing})
        with torch.inference_mode():
            teller = Teller(clip=tiny.clip)
            results.append(train_subject(model, tiny.vae, Photos(IMAGES), "made", settings, teller, "overwrite").lora)
    assert all(torch.equal(results[0][key], results[1][key]) for key in results[1])
