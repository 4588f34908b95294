"""A base whose weights are kept in 8 bits: a subject is trained beside them and loaded beside them."""

import copy

import comfy.model_management
import comfy.model_patcher
import pytest
import torch
from comfy.quant_ops import QuantizedTensor
from inlay.attention.boxes import box_mask
from inlay.guidance.reference import ReferenceEncoder
from inlay.host import demo_models
from inlay.host.lora_files import DOWN, PROBE, UP, Lora, base_metadata, kohya_names, require_base
from inlay.host.lora_training import target_weights
from inlay.host.subject_loading import load_subject
from inlay.host.subject_telling import Teller
from inlay.host.subject_training import Photos, train_subject
from inlay.training.subject_settings import SubjectSettings
from torch import nn

FP8 = torch.float8_e4m3fn
LAYER = "diffusion_model.middle_block.1.transformer_blocks.0.attn1.to_q.weight"


def model_in(dtype, seed=3, change=0.0):
    """The tiny inpainting model with its weights kept in that type. change: of each weight, as a share."""
    weights = demo_models.build_unet(9, seed=seed).state_dict()
    noise = torch.Generator().manual_seed(0)
    weights = {
        key: value * (1 + change * torch.randn(value.shape, generator=noise)) if change else value
        for key, value in weights.items()
    }
    supported = demo_models.DemoSD({**copy.deepcopy(demo_models.UNET_CONFIG), "in_channels": 9})
    supported.set_inference_dtype(dtype, torch.float32)
    model = supported.get_model(dict(weights), "", device=torch.device("cpu"))
    model.load_model_weights(dict(weights), "")
    model.requires_grad_(False)
    device = comfy.model_management.get_torch_device()
    return comfy.model_patcher.ModelPatcher(model, load_device=device, offload_device=torch.device("cpu"))


def adapter_of(model):
    """A LoRA of one layer, made for that base."""
    name = kohya_names(model, [LAYER])[LAYER]
    return Lora({name + UP: torch.ones(128, 1), name + DOWN: torch.ones(1, 128)}, base_metadata(model))


@pytest.fixture(scope="module")
def small_weights():
    return model_in(FP8)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, FP8, torch.float8_e5m2])
def test_the_base_in_another_precision_is_the_base_and_another_one_is_not(tiny, dtype):
    same = model_in(dtype)
    assert load_subject(same, adapter_of(tiny.inpaint_model), 1.0).patches
    assert load_subject(tiny.inpaint_model, adapter_of(same), 1.0).patches
    other = model_in(dtype, seed=77)
    for model, of in ((other, tiny.inpaint_model), (tiny.inpaint_model, other), (other, same)):
        with pytest.raises(ValueError, match="other weights"):
            load_subject(model, adapter_of(of), 1.0)


def test_a_fine_tune_of_the_base_is_another_one(tiny):
    tuned = model_in(torch.float16, change=0.01)
    with pytest.raises(ValueError, match="other weights"):
        load_subject(tuned, adapter_of(tiny.inpaint_model), 1.0)


def test_a_file_without_probed_weights_is_known_by_its_fingerprint(tiny, small_weights):
    old = adapter_of(tiny.inpaint_model)
    del old.metadata[PROBE]
    assert load_subject(tiny.inpaint_model, old, 1.0).patches
    with pytest.raises(ValueError, match="other weights"):
        load_subject(small_weights, old, 1.0)


def test_a_patched_model_is_told_by_its_own_weights(tiny, small_weights):
    lora = adapter_of(small_weights)
    patched = load_subject(tiny.inpaint_model, lora, 1.0)
    comfy.model_management.load_models_gpu([patched])
    assert load_subject(patched, lora, 1.0).patches
    patched.detach()


@pytest.mark.parametrize("layout", ["TensorCoreFP8Layout", "TensorCoreNVFP4Layout"])
def test_the_base_with_scaled_weights_is_the_base(tiny, layout):
    def scaled(seed):
        model = model_in(torch.float16, seed)
        for name, layer in model.model.named_modules():
            if ".transformer_blocks." in name and isinstance(layer, nn.Linear):
                weight = QuantizedTensor.from_float(layer.weight.detach(), layout)
                layer.weight = nn.Parameter(weight, requires_grad=False)
        return model

    require_base(scaled(3), adapter_of(tiny.inpaint_model))
    with pytest.raises(ValueError, match="other weights"):
        require_base(scaled(77), adapter_of(tiny.inpaint_model))


def test_packed_weights_have_the_shape_that_they_compute_with(tiny):
    packed, halved = model_in(torch.float16), torch.zeros(128, 64, dtype=torch.uint8)
    layer = packed.model.get_submodule(LAYER.removesuffix(".weight"))
    layer.weight = nn.Parameter(halved, requires_grad=False)
    assert target_weights(packed, "attention") == target_weights(tiny.inpaint_model, "attention")
    require_base(packed, adapter_of(tiny.inpaint_model), other_weights=True)


def test_a_subject_is_trained_and_loaded_beside_fp8_weights(small_weights, tiny, sample):
    before = small_weights.model.state_dict()[LAYER].clone()
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
    after = small_weights.model.state_dict()[LAYER]
    assert torch.equal(after.view(torch.uint8), before.view(torch.uint8))
    assert torch.equal(sample(small_weights, **told), plain)
