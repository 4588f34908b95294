"""A base whose weights are kept in 8 bits: a subject is trained beside them and loaded beside them."""

import copy

import comfy.model_management
import comfy.model_patcher
import pytest
import torch
from inlay.attention.boxes import box_mask
from inlay.guidance.reference import ReferenceEncoder
from inlay.host import demo_models
from inlay.host.subject_loading import load_subject
from inlay.host.subject_telling import Teller
from inlay.host.subject_training import Photos, train_subject
from inlay.training.subject_settings import SubjectSettings

FP8 = torch.float8_e4m3fn


@pytest.fixture(scope="module")
def small_weights():
    weights = demo_models.build_unet(9, seed=3).state_dict()
    supported = demo_models.DemoSD({**copy.deepcopy(demo_models.UNET_CONFIG), "in_channels": 9})
    supported.set_inference_dtype(FP8, torch.float32)
    model = supported.get_model(dict(weights), "", device=torch.device("cpu"))
    model.load_model_weights(dict(weights), "")
    model.requires_grad_(False)
    device = comfy.model_management.get_torch_device()
    return comfy.model_patcher.ModelPatcher(model, load_device=device, offload_device=torch.device("cpu"))


def test_a_subject_is_trained_and_loaded_beside_fp8_weights(small_weights, tiny, sample):
    layer = "diffusion_model.middle_block.1.transformer_blocks.0.attn1.to_q.weight"
    before = small_weights.model.state_dict()[layer].clone()
    assert before.dtype == FP8
    torch.manual_seed(0)
    encoder = ReferenceEncoder(torch.nn.Linear(128, 128), torch.randn(1, 1, 128), 128).requires_grad_(False)
    image = torch.rand(1, 128, 128, 3)
    photos = Photos([image], [box_mask([{"x": 20, "y": 30, "width": 50, "height": 40}], 128, 128)[None]])
    recipe = {"preset": "custom", "rank": 2, "steps": 2, "batch": 1, "resolution": 64, "views": 1, "learning_rate": 0.1}
    trained = train_subject(
        small_weights,
        tiny.vae,
        photos,
        "fp8",
        SubjectSettings(**recipe),
        Teller(encoder, tiny.clip_vision),
        "overwrite",
    )
    assert all(value.dtype == torch.float32 for value in trained.lora.values())
    told = {"positive": [[torch.randn(1, 1, 128, generator=torch.Generator().manual_seed(1)), {}]]}
    plain = sample(small_weights, **told)
    beside = sample(load_subject(small_weights, trained.lora, 1.0, "bypass"), **told)
    assert beside.isfinite().all() and (beside - plain).norm() > 1e-3 * plain.norm()
    after = small_weights.model.state_dict()[layer]
    assert torch.equal(after.view(torch.uint8), before.view(torch.uint8))
    assert torch.equal(sample(small_weights, **told), plain)
