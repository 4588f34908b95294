import copy
import gc
import weakref
from collections import namedtuple

import comfy.model_management
import pytest
import torch
from comfy.patcher_extension import PatcherInjection
from inlay.host.demo_models import build_model, build_unet
from inlay.host.gradients import differentiable_layers, gradient_phase, normalise, static_patcher
from inlay.host.style_guidance_patch import StyleOptions, guide_by_style
from torch import nn

from .dynamic_setup import load_dynamically

Backup = namedtuple("Backup", ["weight", "inplace_update"])


@pytest.fixture
def loaded(tiny):
    return load_dynamically(copy.deepcopy(tiny.clip_vision.model))


def gradient(net):
    with gradient_phase(net), differentiable_layers(net):
        pixels = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(1)).requires_grad_()
        (found,) = torch.autograd.grad(net(pixel_values=pixels)[2].sum(), pixels)
    return found


def test_a_loader_without_a_way_to_load_again_gives_a_static_copy_with_a_gradient(tiny, loaded):
    assert loaded.is_dynamic() and loaded.cached_patcher_init is None
    with torch.inference_mode():
        static = static_patcher(loaded)
    assert not static.is_dynamic()
    assert static.model is not loaded.model
    static.partially_load(static.load_device, 1e32)
    assert not any(weight.is_inference() for weight in static.model.parameters())
    assert all(not vars(module).keys() & {"_v", "_v_weight", "_pin_state"} for module in static.model.modules())
    expected = gradient(copy.deepcopy(tiny.clip_vision.model).requires_grad_(False))
    torch.testing.assert_close(gradient(static.model), expected)


def test_a_model_of_a_custom_loader_is_copied_with_its_configuration(tiny, sample):
    loaded = load_dynamically(build_model(build_unet(4, seed=1).state_dict()).model)
    static = static_patcher(loaded)
    assert static.model.model_config is loaded.model.model_config
    assert static.model.diffusion_model is not loaded.model.diffusion_model
    assert static.model.current_patcher is None
    torch.testing.assert_close(sample(static, steps=1), sample(tiny.model, steps=1))


def test_the_copy_is_of_the_weights_and_objects_as_the_loader_left_them(loaded):
    net = loaded.model
    key, weight = next(iter(net.named_parameters()))
    original = weight.detach().clone()
    # As every host keeps what it patches; only newer ones do so for all that they load.
    loaded.backup[key] = Backup(original, False)
    with torch.inference_mode():
        net.get_parameter(key).add_(1.0)
    place = "vision_model.encoder"
    own, net.vision_model.encoder = net.vision_model.encoder, nn.Identity()
    loaded.object_patches_backup[place] = own
    static = static_patcher(loaded)
    torch.testing.assert_close(static.model.get_parameter(key), original, rtol=0, atol=0)
    copied = static.model.get_submodule(place)
    assert type(copied) is type(own) and copied is not own
    assert type(net.vision_model.encoder) is nn.Identity


def test_weights_are_in_the_type_that_the_model_computes_in(tiny):
    """Dynamic loading leaves them in the file's type, which an ordinary patcher does not cast from."""
    net = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    net[0].weight_comfy_model_dtype = net[1].running_mean_comfy_model_dtype = torch.bfloat16
    static = static_patcher(load_dynamically(net))
    assert static.model[0].weight.dtype == static.model[1].running_mean.dtype == torch.bfloat16
    assert static.model[0].bias.dtype == torch.float32


def test_the_loaders_own_way_is_taken_where_there_is_one(tiny, loaded):
    reloaded = []

    def load(disable_dynamic=False):
        reloaded.append(load_dynamically(copy.deepcopy(tiny.clip_vision.model)))
        return reloaded[-1]

    loaded.cached_patcher_init = load, ()
    first, second = static_patcher(loaded), static_patcher(loaded.clone())
    assert len(reloaded) == 1
    assert first.model is second.model is reloaded[0].model
    assert not first.is_dynamic() and not second.is_dynamic()


def test_one_copy_serves_all_clones_and_goes_with_the_last(loaded):
    first, second = static_patcher(loaded), static_patcher(loaded.clone())
    assert first.model is second.model and first.backup is second.backup
    copied = weakref.ref(first.model)
    comfy.model_management.load_models_gpu([first])
    (entry,) = [one for one in comfy.model_management.current_loaded_models if one.model is first]
    del first
    gc.collect()
    # The host goes on with the patcher's parent.
    assert entry.model.model is second.model and not entry.is_dead()
    del second
    gc.collect()
    assert copied() is None
    assert static_patcher(loaded).model is not None


def test_an_injection_into_the_source_is_made_anew_in_the_copy(loaded):
    injected = []
    loaded.set_injections("test", [PatcherInjection(inject=injected.append, eject=lambda _: None)])
    loaded.inject_model()
    static = static_patcher(loaded)
    static.inject_model()
    assert injected == [loaded, static]
    loaded.eject_model()


def test_an_ordinary_patcher_keeps_its_model(tiny):
    assert static_patcher(tiny.clip_vision.patcher).model is tiny.clip_vision.model


def test_normalise_keeps_what_the_host_noted_on_a_weight(loaded):
    noted = [weight for weight in loaded.model.parameters() if hasattr(weight, "_model_dtype")]
    assert noted and all(weight.is_inference() for weight in noted)
    normalise(loaded.model)
    kept = [weight for weight in loaded.model.parameters() if hasattr(weight, "_model_dtype")]
    assert len(kept) == len(noted) and not any(weight.is_inference() for weight in kept)


def test_normalise_has_the_host_cast_anew_what_it_cast_in_the_executors_mode():
    layer = nn.Linear(2, 2)
    layer._v_signature, layer._v_weight, layer._v_bias = 7, torch.zeros(2, 2), None
    normalise(layer)
    assert layer._v_signature == 7
    with torch.inference_mode():
        layer._v_weight = torch.zeros(2, 2)
    normalise(layer)
    assert layer._v_signature is None


def test_exact_guidance_of_dynamic_models_is_that_of_ordinary_ones(tiny, sample):
    model = load_dynamically(build_model(build_unet(4, seed=1).state_dict()).model)
    vae = copy.copy(tiny.vae)
    vae.patcher = load_dynamically(copy.deepcopy(tiny.vae.first_stage_model))
    style = torch.rand(1, 64, 64, 3, generator=torch.Generator().manual_seed(2))
    options = StyleOptions(mode="exact", strength=0.5)
    with torch.inference_mode():
        found, wanted = (
            sample(guide_by_style(model, vae, style, None, None, options), steps=1, size=(8, 8))
            for model, vae in ((model, vae), (tiny.model, tiny.vae))
        )
    torch.testing.assert_close(found, wanted)
    assert not torch.allclose(sample(tiny.model, steps=1, size=(8, 8)), wanted)
