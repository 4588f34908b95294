"""A subject's file on its base: eq. 7 in the weights, the stock loader's results, refusals."""

import copy
import inspect
from pathlib import Path

import comfy.lora
import comfy.model_management
import comfy.model_patcher
import comfy.supported_models
import folder_paths
import pytest
import torch
from comfy_execution.graph_utils import ExecutionBlocker
from inlay.guidance.reference import ReferenceEncoder
from inlay.host.adapter_hooks import AdapterHooks
from inlay.host.demo_models import build_model, build_unet
from inlay.host.lora_files import (
    ALPHA,
    DOWN,
    PATCHES,
    UP,
    Lora,
    base_metadata,
    file_bytes,
    kohya_names,
    lora_name,
    read_lora,
    save_lora,
)
from inlay.host.lora_training import TrainableLora, count_parameters
from inlay.host.subject_loading import OF_TEXT_ENCODERS, OTHER_LORAS, WAYS, load_subject, subject_conditioning

import nodes

from ..full_size import sd15

LAYER = "diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q.weight"
LAYERS = (LAYER, "diffusion_model.middle_block.1.transformer_blocks.0.attn2.to_v.weight")
RANK, SCALE = 3, 6.0


@pytest.fixture(scope="module")
def lora(tiny):
    generator = torch.Generator().manual_seed(0)
    tensors, shapes = {}, tiny.inpaint_model.model.state_dict()
    for weight, name in kohya_names(tiny.inpaint_model, list(LAYERS)).items():
        rows, columns = shapes[weight].shape
        tensors[name + UP] = torch.randn(rows, RANK, generator=generator) * 0.3
        tensors[name + DOWN] = torch.randn(RANK, columns, generator=generator) * 0.3
        tensors[name + ALPHA] = torch.tensor(SCALE)
    return Lora(tensors, {**base_metadata(tiny.inpaint_model), "inlay.prompt": "a photo of sks star"})


@pytest.fixture(scope="module")
def told():
    return {"positive": [[torch.randn(1, 1, 128, generator=torch.Generator().manual_seed(1)), {}]]}


def test_the_names_are_those_of_kohyas_trainer(tiny):
    names = kohya_names(tiny.inpaint_model, list(LAYERS))
    assert names[LAYER] == "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
    assert names[LAYERS[1]] == "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_v"


def test_the_merged_weight_is_equation_7_and_leaves_no_trace(tiny, lora):
    # Another test may have left a patched clone loaded.
    comfy.model_management.load_models_gpu([tiny.inpaint_model])
    before = tiny.inpaint_model.model.state_dict()[LAYER].clone()
    patched = load_subject(tiny.inpaint_model, lora, 0.7)
    comfy.model_management.load_models_gpu([patched])
    merged = patched.model.state_dict()[LAYER].double()
    name = kohya_names(patched, [LAYER])[LAYER]
    wanted = before.double() + 0.7 * SCALE / RANK * (lora[name + UP].double() @ lora[name + DOWN].double())
    assert (merged - wanted).abs().max() < 1e-6 and (wanted - before).abs().max() > 0.05
    patched.detach()
    comfy.model_management.load_models_gpu([tiny.inpaint_model])
    assert torch.equal(tiny.inpaint_model.model.state_dict()[LAYER], before)


def test_our_loader_equals_the_stock_one(tiny, lora, told, sample):
    save_lora(lora, "stock")
    stock = nodes.LoraLoader().load_lora(tiny.inpaint_model, tiny.clip, "stock.safetensors", 0.8, 0.0)[0]
    ours = sample(load_subject(tiny.inpaint_model, read_lora("stock.safetensors"), 0.8), **told)
    assert torch.equal(ours, sample(stock, **told))
    plain = sample(tiny.inpaint_model, **told)
    assert (ours - plain).norm() > 1e-2 * plain.norm()


def test_strength_0_is_the_plain_model_and_unloading_leaves_it(tiny, lora, told, sample):
    plain = sample(tiny.inpaint_model, **told)
    assert torch.equal(sample(load_subject(tiny.inpaint_model, lora, 0.0), **told), plain)
    sample(load_subject(tiny.inpaint_model, lora, 1.0), **told)
    assert torch.equal(sample(tiny.inpaint_model, **told), plain)


def test_bypass_is_the_same_model_and_two_of_them_add_up(tiny, lora, told, sample):
    plain = sample(tiny.inpaint_model, **told)
    merged = sample(load_subject(tiny.inpaint_model, lora, 0.8), **told)
    bypassed = sample(load_subject(tiny.inpaint_model, lora, 0.8, "bypass"), **told)
    assert (bypassed - merged).norm() < 1e-4 * merged.norm()
    halves = load_subject(load_subject(tiny.inpaint_model, lora, 0.4, "bypass"), lora, 0.4, "bypass")
    assert (sample(halves, **told) - merged).norm() < 1e-4 * merged.norm()
    assert torch.equal(sample(tiny.inpaint_model, **told), plain)


def test_bypass_also_reaches_a_copy_of_the_model(tiny, lora, told, sample):
    """Gradients are taken on a copy where the host loads weights dynamically."""
    plain = sample(tiny.inpaint_model, **told)
    patched = load_subject(tiny.inpaint_model, lora, 0.8, "bypass")
    copied = patched.clone()
    copied.model = build_model(build_unet(9, seed=3).state_dict()).model
    bypassed = sample(patched, **told)
    assert not torch.equal(bypassed, plain)
    assert torch.equal(sample(copied, **told), bypassed)
    # Both were loaded at once; taking one off leaves the other on.
    copied.detach()
    assert torch.equal(sample(patched, **told), bypassed)
    assert torch.equal(sample(tiny.inpaint_model, **told), plain)
    assert not any(module._forward_hooks for module in copied.model.modules())


def test_nothing_stays_on_the_device_when_adapters_are_taken_off(tiny, lora):
    keys = comfy.lora.model_lora_keys_unet(tiny.inpaint_model.model, {})
    adapter = comfy.lora.load_lora(dict(lora), keys)[LAYER]
    layer = copy.deepcopy(tiny.inpaint_model.model.get_submodule(LAYER.removesuffix(".weight")))
    hooks = AdapterHooks({layer: adapter})
    hooks.attach(torch.device("meta"))
    (hook,) = layer._forward_hooks.values()
    assert inspect.getclosurevars(hook).nonlocals["adapter"].weights[0].device.type == "meta"
    assert all(not isinstance(weight, torch.Tensor) or weight.device.type == "cpu" for weight in adapter.weights)
    hooks.remove()
    assert not layer._forward_hooks


def test_a_file_of_another_base_is_refused_with_the_reason(tiny, lora):
    with pytest.raises(ValueError, match="9 channels in.*4 channels in"):
        load_subject(tiny.model, lora, 1.0)
    other = build_model(build_unet(9, seed=77).state_dict())
    with pytest.raises(ValueError, match="other weights"):
        load_subject(other, lora, 1.0)
    assert load_subject(other, lora, 1.0, other_weights=True).patches
    with pytest.raises(ValueError, match="does not have"):
        load_subject(tiny.inpaint_model, {f"lora_unet_foreign{UP}": torch.ones(2, 1)}, 1.0)
    for way in WAYS:
        with pytest.raises(ValueError, match="changes no layer"):
            load_subject(tiny.inpaint_model, {"foreign.lora_A.weight": torch.ones(1, 2)}, 1.0, way)
    name = kohya_names(tiny.inpaint_model, [LAYER])[LAYER]
    wide = {name + UP: torch.ones(320, 4), name + DOWN: torch.ones(4, 320)}
    with pytest.raises(ValueError, match="320 x 320 and the model's layer 64 x 64"):
        load_subject(tiny.inpaint_model, wide, 1.0)


def test_a_model_without_a_context_of_its_own_width_is_refused_by_its_kind(lora):
    config = comfy.supported_models.SD3(
        {"in_channels": 16, "depth": 1, "input_size": 8, "num_patches": 16, "adm_in_channels": 16}
    )
    config.set_inference_dtype(torch.float32, None)
    cpu = torch.device("cpu")
    joint = comfy.model_patcher.ModelPatcher(config.get_model({}, device=cpu), load_device=cpu, offload_device=cpu)
    with pytest.raises(ValueError, match="on BaseModel, 9 channels in, context 128, and this model is SD3, 16"):
        load_subject(joint, lora, 1.0)


def test_a_base_that_had_other_loras_on_it_is_missed_and_said_to_be(tiny, lora, caplog):
    plain = tiny.inpaint_model
    patched = load_subject(plain, lora, 1.0)
    assert PATCHES not in base_metadata(plain)
    save_lora(Lora(lora, base_metadata(patched)), "on-a-domain")
    subject = read_lora("on-a-domain.safetensors")
    weak, beside = load_subject(plain, lora, 0.5), load_subject(plain, lora, 1.0, "bypass")
    for model, said in ((load_subject(plain, lora, 1.0), False), (plain, True), (weak, True), (beside, True)):
        caplog.clear()
        with caplog.at_level("INFO", "inlay"):
            assert load_subject(model, subject, 1.0).patches
        assert (OTHER_LORAS in caplog.text) == said
    # One of the plain base goes with any LoRAs, and so do files that do not say.
    caplog.clear()
    with caplog.at_level("INFO", "inlay"):
        load_subject(patched, lora, 1.0)
        load_subject(plain, subject, 0.0)
    assert OTHER_LORAS not in caplog.text


def test_tokens_that_the_model_does_not_read_are_refused(tiny, lora):
    wide = ReferenceEncoder(torch.nn.Linear(128, 768), torch.zeros(1, 1, 768), 128).requires_grad_(False)
    with pytest.raises(ValueError, match="768 wide and the model takes 128. Connect the reference encoder"):
        subject_conditioning(tiny.inpaint_model, lora, wide, tiny.clip_vision, torch.rand(1, 64, 64, 3), None)


def test_conditioning_is_the_reference_the_prompt_or_blocked_with_the_reason(tiny, lora, encode):
    encoder = ReferenceEncoder(torch.nn.Linear(128, 128), torch.zeros(1, 1, 128), 128).requires_grad_(False)
    model, picture = tiny.inpaint_model, torch.rand(1, 64, 64, 3)
    positive, negative = subject_conditioning(model, lora, encoder, tiny.clip_vision, picture, None)
    assert positive[0][0].shape == (1, 1, 128) and not negative[0][0].any()
    with torch.no_grad():
        positive, _ = subject_conditioning(model, lora, None, None, None, tiny.clip)
    assert torch.equal(positive[0][0], encode("a photo of sks star")[0][0])
    blocked = subject_conditioning(model, lora, None, None, None, None)[0]
    assert isinstance(blocked, ExecutionBlocker) and "clip" in blocked.message
    # A part that is missing stops what needs it alone.
    for parts in ((encoder, None), (None, tiny.clip_vision)):
        blocked = subject_conditioning(model, Lora(lora, {}), *parts, picture, None)[0]
        assert isinstance(blocked, ExecutionBlocker) and "reference_encoder and clip_vision" in blocked.message


def test_a_text_of_another_width_is_refused(tiny, lora, monkeypatch):
    monkeypatch.setitem(tiny.inpaint_model.model.model_config.unet_config, "context_dim", 2048)
    with pytest.raises(ValueError, match="The texts are 128 wide and the model takes 2048. Connect the reference"):
        subject_conditioning(tiny.inpaint_model, lora, None, None, None, tiny.clip)


def test_the_same_weights_read_in_another_order_are_refused(tiny, lora):
    """As Paint-by-Example's UNet is by the host's own loader, in whose order and polarity of the channels."""
    other = tiny.inpaint_model.clone()
    other.model = copy.copy(other.model)
    other.model.concat_keys = ("masked_image", "mask_inverted")
    told = Lora(lora, base_metadata(other))
    assert load_subject(other, told, 1.0).patches
    with pytest.raises(ValueError, match="reads masked_image and mask_inverted beside .* reads mask and masked_image"):
        load_subject(tiny.inpaint_model, told, 1.0)


def test_what_the_node_leaves_out_of_a_lora_is_said(tiny, lora, caplog):
    """Of others' files: a part for the text encoder, and in bypass what is no product of two matrices."""
    name = kohya_names(tiny.inpaint_model, [LAYER])[LAYER]
    difference = {f"{name}.diff": torch.zeros_like(tiny.inpaint_model.model.state_dict()[LAYER])}
    part = {f"lora_te_text_model_encoder_layers_0_mlp_fc1{end}": torch.zeros(4, 4) for end in (UP, DOWN)}
    with caplog.at_level("INFO", "inlay"):
        load_subject(tiny.inpaint_model, Lora({**lora, **part}, {}), 1.0)
        assert OF_TEXT_ENCODERS in caplog.text and "bypass cannot" not in caplog.text
        without = {key: value for key, value in lora.items() if not key.startswith(name)}
        load_subject(tiny.inpaint_model, Lora({**without, **difference}, {}), 1.0, "bypass")
    assert "changes 1 weights in ways that bypass cannot. Set way to weights" in caplog.text


def test_damaged_files_are_named(tiny, lora):
    folder = Path(folder_paths.get_folder_paths("loras")[0])
    save_lora(Lora(lora, {}), "whole")
    whole = (folder / "whole.safetensors").read_bytes()
    for number, data in enumerate((whole[:-100], whole[:20], b"\0" * 400, b"")):
        (folder / f"cut{number}.sft").write_bytes(data)
        with pytest.raises(ValueError, match=f'The file "cut{number}.sft" is damaged. Train or download it again.'):
            read_lora(f"cut{number}.sft")
    (folder / "whole.SFT").write_bytes(whole)
    assert read_lora("whole.SFT").keys() == lora.keys()
    half = {key: value for key, value in lora.items() if key != next(it for it in lora if it.endswith(DOWN))}
    with pytest.raises(ValueError, match="is only half there, so the file is damaged"):
        load_subject(tiny.inpaint_model, Lora(half, {}), 1.0)


def test_files_are_numbered_kept_or_refused_and_stay_in_their_folder(lora):
    save_lora(lora, "taken")
    assert lora_name("taken", "number") == "taken-2" and lora_name("taken", "overwrite") == "taken"
    with pytest.raises(ValueError, match="already"):
        lora_name("taken", "error")
    with pytest.raises(ValueError, match="path"):
        lora_name("../taken", "number")
    with pytest.raises(ValueError, match="has 201 bytes and a file takes 200"):
        lora_name("x" * 201, "number")
    with pytest.raises(ValueError, match="There is no LoRA"):
        read_lora("nothing.safetensors")


@pytest.mark.parametrize(
    "targets, each, rank, megabytes",
    [
        ("one token", 149_568, 4, 2.39),
        ("one token", 149_568, 16, 9.57),
        ("one token", 149_568, 64, 38.3),
        ("attention", 199_296, 4, 3.19),
        ("attention", 199_296, 16, 12.76),
        ("attention", 199_296, 64, 51.05),
    ],
)
def test_ranks_4_to_64_are_as_many_megabytes_at_sd15s_size_as_the_help_page_says(targets, each, rank, megabytes):
    lora = TrainableLora(sd15(device="meta"), targets, rank, rank, 0.0, 0)
    assert count_parameters(lora.parameters) == each * rank
    assert len(file_bytes(lora.tensors(), {})) / 1e6 == pytest.approx(megabytes, abs=0.06)


def test_a_full_disk_leaves_nothing(lora, monkeypatch, tmp_path):
    def full(path, data):
        path.touch()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(folder_paths, "get_folder_paths", lambda _: [str(tmp_path)])
    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(ValueError, match="No space left.*Free some space"):
        save_lora(lora, "thing")
    assert list(tmp_path.iterdir()) == []
