"""How much guidance keeps beside the UNet, and that fewer candidates run at once for it."""

import copy
from types import SimpleNamespace

import comfy.model_management
import pytest
import torch
from comfy.model_patcher import ModelPatcher
from inlay.guidance.metrics import lpips
from inlay.host.candidates import candidates_that_fit
from inlay.host.decoders import decoder_of_taesd, full_decoder
from inlay.host.feature_nets import LPIPSNet
from inlay.host.gradients import differentiable_layers, gradient_phase
from inlay.host.guidance_memory import bytes_once, cast_bytes, guidance_bytes, perceptual_bytes, view_bytes
from inlay.host.style_extractors import extractor_of_vgg, vae_extractor
from inlay.host.style_guidance_patch import StyleOptions, guide_by_style

from .clip_guidance_setup import execute
from .gradient_guidance_setup import fixture_loaded  # noqa: F401

SHAPE = (4, 8, 10)


def kept(models, **widgets):
    return guidance_bytes(execute(models, **widgets), SHAPE)


def test_what_costs_more_is_said_to(loaded):
    small = torch.zeros(1, 64, 80)
    small[:, :8, :8] = 1
    fast, place, exact = (kept(loaded, mode=mode, mask=small) for mode in ("fast", "place", "exact"))
    assert 0 < place < fast < exact
    assert kept(loaded, mode="place", mask=small, background_weight=1.0, image=torch.rand(1, 64, 80, 3)) == fast
    one, five = (kept(loaded, augmentations=number) for number in (1, 5))
    assert five > one > kept(loaded, augmentations=0)
    assert kept(loaded, strength=0.0) == kept(loaded, text="") == guidance_bytes(loaded.model, SHAPE) == 0


def test_guidances_add_up_over_one_forward_and_clones_keep_them(loaded):
    once = {mode: execute(loaded, mode=mode) for mode in ("fast", "exact")}
    fast, exact = (guidance_bytes(model, SHAPE) for model in once.values())
    for mode, want in (("fast", 2 * fast), ("exact", exact + fast)):
        again = SimpleNamespace(**{**vars(loaded), "model": once[mode]})
        twice = execute(again, mode=mode, text="a blue ring").clone()
        assert guidance_bytes(twice, SHAPE) == pytest.approx(want)
    assert guidance_bytes(once["fast"], SHAPE) == fast


def kept_by_graph(net, run):
    """Bytes that autograd keeps for the way back through run(), but for the net's own weights."""
    own = {it.untyped_storage()._cdata for it in net.parameters()}
    seen = {}

    def count(tensor):
        seen[tensor.untyped_storage()._cdata] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        run()
    return sum(tensor.untyped_storage().nbytes() for key, tensor in seen.items() if key not in own)


@pytest.mark.parametrize("side", [32, 64])
def test_what_is_said_of_full_size_decoders_covers_their_graphs(loaded, side):
    """SD's decoder and the small one, in shapes alone."""
    from comfy.ldm.modules.diffusionmodules import model as blocks
    from comfy.taesd.taesd import TAESD

    with torch.device("meta"):
        shape = {"ch": 128, "ch_mult": [1, 2, 4, 4], "num_res_blocks": 2, "attn_resolutions": [], "resolution": 256}
        full = blocks.Decoder(**shape, z_channels=4, in_channels=3, out_ch=3).requires_grad_(False)
        small = TAESD().requires_grad_(False)
        latent = torch.empty(1, 4, side, side, requires_grad=True)
    # The host's default asks for free memory, of which this device has none to tell.
    full.mid.attn_1.optimized_attention = blocks.pytorch_attention
    said = full_decoder(loaded.vae, loaded.model.model.latent_format).row_bytes, decoder_of_taesd(TAESD()).row_bytes
    for net, run, row_bytes in ((full, full, said[0]), (small, small.decode, said[1])):
        graph = kept_by_graph(net, lambda run=run: run(latent))
        assert graph < row_bytes((4, side, side)) < 1.25 * graph


@pytest.mark.parametrize("side", [256, 512])
def test_what_is_said_of_style_features_covers_their_graphs(loaded, side):
    """SD's encoder and VGG19, in shapes alone."""
    import torchvision
    from comfy.ldm.modules.diffusionmodules import model as blocks

    vgg = torchvision.models.vgg19(weights=None).features
    vae = vae_extractor(loaded.vae, loaded.vae.patcher, 0)
    with torch.device("meta"):
        shape = {"ch": 128, "ch_mult": [1, 2, 4, 4], "num_res_blocks": 2, "attn_resolutions": [], "resolution": 256}
        full = blocks.Encoder(**shape, z_channels=4, in_channels=3, out_ch=3).requires_grad_(False)
        net = torchvision.models.vgg19(weights=None).features[:30].requires_grad_(False)
        picture = torch.empty(1, 3, side, side, requires_grad=True)
    for layer in net:
        if isinstance(layer, torch.nn.ReLU):
            layer.inplace = False
    full.mid.attn_1.optimized_attention = blocks.pytorch_attention
    said = {full: vae.picture_bytes, net: extractor_of_vgg(vgg, 0).picture_bytes}
    for one, picture_bytes in said.items():
        graph = kept_by_graph(one, lambda run=one: run(picture))
        assert graph < picture_bytes((side, side)) < 1.5 * graph


@pytest.mark.parametrize("features", ["vae", "clip_vision"])
def test_style_features_count_by_the_size_they_see(loaded, features):
    def kept_at(size):
        options = StyleOptions(features=features, feature_size=size)
        style = torch.rand(1, 64, 80, 3)
        return guidance_bytes(guide_by_style(loaded.model, loaded.vae, style, None, loaded.clip_vision, options), SHAPE)

    decoder = full_decoder(loaded.vae, loaded.model.model.latent_format).row_bytes(SHAPE)
    own, half = kept_at(0), kept_at(40)
    assert own > decoder and half > decoder
    if features == "vae":
        assert own - decoder == pytest.approx(4 * (half - decoder))
    else:
        assert own == half == decoder + view_bytes(loaded.clip_vision)


@pytest.mark.parametrize("side", [128, 256])
def test_what_is_said_of_lpips_covers_its_graph(side):
    import torchvision

    with torch.device("meta"):
        widths = (64, 128, 256, 512, 512)
        net = LPIPSNet("vgg16", torchvision.models.vgg16(weights=None).features, [torch.empty(it) for it in widths])
        for layer in net.features:
            if isinstance(layer, torch.nn.ReLU):
                layer.inplace = False
        net.requires_grad_(False)
        picture = torch.empty(1, 3, side, side, requires_grad=True)
        other, weight = torch.empty(1, 3, side, side), torch.empty(1, side, side)
    graph = kept_by_graph(net, lambda: lpips(net.stages, list(net.linear), picture, other, weight))
    assert graph < perceptual_bytes(side**2) < 1.25 * graph


def in_type(vision, dtype):
    """As the host makes it with that type for its text encoders."""
    vision = copy.copy(vision)
    vision.dtype, vision.model = dtype, copy.deepcopy(vision.model).to(dtype)
    vision.patcher = ModelPatcher(vision.model, vision.patcher.load_device, vision.patcher.offload_device)
    return vision


@pytest.mark.parametrize("views", [1, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_what_is_said_of_views_covers_their_graph(loaded, dtype, views):
    """Whatever the type of the weights, pictures come in fp32: each view keeps that, and the weights' copies once."""
    vision = in_type(loaded.clip_vision, dtype)
    net = vision.model
    with gradient_phase(net), differentiable_layers(net):
        pictures = torch.rand(views, 3, 64, 64, requires_grad=True)
        graph = kept_by_graph(net, lambda: net(pixel_values=pictures, intermediate_output=-2))
    assert graph < views * view_bytes(vision) + cast_bytes(net) < 1.5 * graph
    assert (cast_bytes(net) == 0) == (dtype == torch.float32)


def test_the_copies_of_weights_are_counted_once_for_all_candidates(loaded, monkeypatch):
    half = SimpleNamespace(**{**vars(loaded), "clip_vision": in_type(loaded.clip_vision, torch.float16)})
    latent, widths = torch.zeros(1, *SHAPE), {"fp32": execute(loaded), "fp16": execute(half)}
    once = {name: bytes_once(guided) for name, guided in widths.items()}
    assert once["fp32"] == 0 and once["fp16"] == cast_bytes(half.clip_vision.model) > 0
    assert bytes_once(execute(half, strength=0.0)) == 0
    (each,) = {
        guided.model.memory_required([2, *SHAPE]) * 1.5 + guidance_bytes(guided, SHAPE) for guided in widths.values()
    }
    for guided in widths.values():
        for one in (guided, *guided.get_additional_models()):
            monkeypatch.setattr(one, "model_size", lambda: 0)
    for name, free, want in (
        ("fp32", 4.1 * each, 4),
        ("fp16", 4.1 * each + once["fp16"], 4),
        ("fp16", 3.9 * each + once["fp16"], 2),
        ("fp16", once["fp16"] / 2, 1),
    ):
        monkeypatch.setattr(comfy.model_management, "get_free_memory", lambda *_, free=free: free)
        assert candidates_that_fit(widths[name], latent, 4) == want


def test_guided_candidates_run_in_smaller_parts(loaded, monkeypatch):
    """With memory for eight plain candidates, or for the eight and what one is guided by."""
    latent = torch.zeros(2, *SHAPE)
    guided = execute(loaded)
    for model in (loaded.model, guided):
        monkeypatch.setattr(model, "model_size", lambda: 0)
    for one in guided.get_additional_models():
        monkeypatch.setattr(one, "model_size", lambda: 0)
    plain = 8 * loaded.model.model.memory_required([4, *SHAPE]) * 1.5
    each = 2 * guidance_bytes(guided, SHAPE) + plain / 8
    for free, model, want in (
        (plain, loaded.model, 8),
        (4.5 * each, guided, 4),
        (plain, guided, max(1, int(plain // each))),
    ):
        monkeypatch.setattr(comfy.model_management, "get_free_memory", lambda *_, free=free: free)
        assert candidates_that_fit(model, latent, 8) == want
    assert plain // each < 8


def test_the_models_that_guide_are_counted(loaded, monkeypatch):
    """Memory for two candidates, and not for what is still to be loaded beside the UNet."""
    guided, latent = execute(loaded), torch.zeros(1, *SHAPE)
    each = guided.model.memory_required([2, *SHAPE]) * 1.5 + guidance_bytes(guided, SHAPE)
    beside = guided.get_additional_models()
    assert len(beside) == 2
    here = guided.load_device
    for size, device, want in ((0, here, 2), (1.5 * each, here, 1), (1.5 * each, torch.device("meta"), 2)):
        for one in beside:
            monkeypatch.setattr(one, "model_size", lambda size=size: size / 2)
            monkeypatch.setattr(one, "loaded_size", lambda: 0)
            monkeypatch.setattr(one, "load_device", device)
        monkeypatch.setattr(guided, "model_size", lambda: 0)
        monkeypatch.setattr(comfy.model_management, "get_free_memory", lambda *_: 2.4 * each)
        assert candidates_that_fit(guided, latent, 2) == want
