"""What holds for region guidance whatever the weights are. There is no shortcut for full masks or equal texts."""

import pytest
import torch
from inlay.host.region_patches import Region, guide_region
from inlay.host.unet_blocks import EXTRA_CALL

from .region_reference import inside, recorded

HALF = torch.zeros(128, 144)
HALF[30:90, 40:120] = 1
FULL = torch.ones(128, 144)


def far(one, other):
    return ((one - other).norm() / other.norm()).item()


@pytest.mark.parametrize("kind", ["model", "v_model"])
@pytest.mark.parametrize("outside", ["zero", "text"])
def test_a_full_mask_is_the_plain_model(tiny, sample, kind, outside):
    model = getattr(tiny, kind)
    guided = guide_region(model, [Region(FULL)], outside)
    assert far(sample(guided), sample(model)) < 1e-5


def test_a_full_mask_with_a_text_is_the_plain_model_with_that_text(tiny, sample, encode):
    text = encode("a blue disc on sand")
    guided = guide_region(tiny.model, [Region(FULL, text[0][0])])
    plain = sample(tiny.model, text)
    assert far(sample(guided), plain) < 1e-5
    assert far(sample(tiny.model), plain) > 1e-3


def test_two_full_masks_average_to_the_plain_model(tiny, sample):
    assert far(sample(guide_region(tiny.model, [Region(FULL), Region(FULL)])), sample(tiny.model)) < 1e-5


def test_with_zero_the_text_changes_nothing_outside_at_the_first_block(tiny, sample, encode):
    guided = guide_region(tiny.model, [Region(HALF)])
    first = []
    for text in ("a red star on a beach", "a blue disc on sand"):
        with recorded(tiny.model) as calls:
            sample(guided, encode(text), steps=1)
        first.append(calls[0][4])
    tokens = inside(HALF, (16, 18))
    assert torch.equal(first[0][:, ~tokens], first[1][:, ~tokens])
    assert not torch.equal(first[0][1, tokens], first[1][1, tokens])


def test_the_source_and_the_next_plain_run_are_untouched(tiny, sample):
    model = tiny.model.clone()
    before, options = sample(model), dict(model.model_options["transformer_options"])
    wrappers = {kind: dict(keys) for kind, keys in model.wrappers.items()}
    guided = guide_region(model, [Region(HALF)])
    assert far(sample(guided), before) > 1e-3
    assert torch.equal(sample(model), before)
    assert model.model_options["transformer_options"] == options
    assert {kind: dict(keys) for kind, keys in model.wrappers.items()} == wrappers
    more = guide_region(guided, [Region(FULL)])
    assert len(more.model_options["transformer_options"]["inlay_regions"]) == 2
    assert len(guided.model_options["transformer_options"]["inlay_regions"]) == 1


@pytest.mark.parametrize("limits", [(0.0, 1.0), (0.0, 0.5), (0.3, 0.7), (1.0, 1.0)])
def test_the_region_acts_between_its_percents(tiny, sample, limits):
    acted, levels = set(), set()

    def note(layer, args, kwargs):
        sigma = kwargs["transformer_options"]["sigmas"].max().item()
        (acted if EXTRA_CALL in kwargs["transformer_options"] else levels).add(sigma)

    hook = (
        tiny.model.model.diffusion_model.middle_block[1]
        .transformer_blocks[0]
        .attn1.register_forward_pre_hook(note, with_kwargs=True)
    )
    start, end = limits
    picture = sample(guide_region(tiny.model, [Region(HALF)], start_percent=start, end_percent=end), steps=6)
    hook.remove()
    to_sigma = tiny.model.get_model_object("model_sampling").percent_to_sigma
    assert len(levels) == 6
    assert acted == {sigma for sigma in levels if to_sigma(end) <= sigma <= to_sigma(start)}
    assert torch.equal(picture, sample(tiny.model, steps=6)) == (start == 1)


def test_gradients_pass_after_a_run_without_them(tiny, sample, encode):
    with torch.inference_mode():
        guided = guide_region(tiny.model, [Region(HALF.clone(), encode("a disc")[0][0].clone())])
        sample(guided, steps=1)
    seen = []

    def differentiate(executor, x, timestep, model_options=None, seed=None):
        with torch.enable_grad():
            x = x.detach().requires_grad_(True)
            out = executor(x, timestep, model_options, seed)
            seen.append(torch.autograd.grad(out.square().mean(), x)[0])
        return out.detach()

    from comfy.patcher_extension import WrappersMP

    guided = guided.clone()
    guided.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, "test", differentiate)
    sample(guided, steps=1)
    assert seen[0].isfinite().all() and seen[0].abs().max() > 0


@pytest.mark.parametrize(("height", "width"), [(123, 141), (128, 144), (131, 150), (64, 72), (16, 18), (512, 576)])
def test_masks_of_other_sizes_lie_on_the_same_place(height, width):
    from inlay.host.regions import fit_to_latent

    mask = torch.zeros(1, height, width)
    mask[:, height // 2 :, : width // 4] = 1
    fitted = fit_to_latent(mask, 16, 18)
    assert fitted.shape == (1, 128, 144)
    assert abs(fitted.mean() - mask.mean()) < 0.02
    assert fitted[0, 70:, :30].min() > 0.8 and fitted[0, :58].max() == 0 and fitted[0, :, 46:].max() == 0


def test_a_mask_of_another_aspect_says_so(tiny, sample):
    with pytest.raises(ValueError, match="The mask is 96 x 96 pixels and the picture 144 x 128"):
        sample(guide_region(tiny.model, [Region(torch.ones(96, 96))]))


def test_a_text_of_another_encoder_says_so(tiny, sample):
    guided = guide_region(tiny.model, [Region(HALF, torch.randn(1, 77, 96))])
    with pytest.raises(ValueError, match="text is 96 numbers wide and this model reads 128"):
        sample(guided)


def test_bad_input_says_what_to_do(tiny):
    empty = torch.zeros(2, 64, 64)
    empty[0] = 1
    with pytest.raises(ValueError, match="The region mask is empty. Paint at least one pixel of the place to fill."):
        guide_region(tiny.model, [Region(empty)])
    with pytest.raises(ValueError, match="not numbers"):
        guide_region(tiny.model, [Region(torch.full((64, 64), torch.nan))])
    with pytest.raises(ValueError, match="start_percent 0.6 comes after end_percent 0.5"):
        guide_region(tiny.model, [Region(HALF)], start_percent=0.6, end_percent=0.5)
    with pytest.raises(ValueError, match="Connect clip"):
        guide_region(tiny.model, [Region(HALF)], "null")


def test_joint_attention_and_flow_matching_are_refused(tiny):
    import comfy.model_patcher
    import comfy.model_sampling
    import comfy.supported_models

    config = comfy.supported_models.SD3(
        {"in_channels": 16, "depth": 1, "input_size": 8, "num_patches": 16, "adm_in_channels": 16}
    )
    config.set_inference_dtype(torch.float32, None)
    cpu = torch.device("cpu")
    model = comfy.model_patcher.ModelPatcher(config.get_model({}, device=cpu), load_device=cpu, offload_device=cpu)
    with pytest.raises(ValueError, match="SD3 has no separate cross-attention .* SDXL or PixArt model"):
        guide_region(model, [Region(HALF)])

    class Flow(comfy.model_sampling.ModelSamplingDiscreteFlow, comfy.model_sampling.CONST):
        pass

    flowing = tiny.model.clone()
    flowing.add_object_patch("model_sampling", Flow())
    with pytest.raises(ValueError, match="flow-matching"):
        guide_region(flowing, [Region(HALF)])


def test_the_node_is_the_function(tiny, sample, encode):
    from inlay.nodes.region import RegionGuidance

    there, elsewhere, mask = encode("a disc"), encode("a beach"), HALF[None]

    def node(**inputs):
        defaults = {"outside": "zero", "start_percent": 0.0, "end_percent": 1.0}
        return sample(RegionGuidance.execute(model=tiny.model, mask=mask, **{**defaults, **inputs}).result[0], steps=1)

    def function(text=None, *arguments, **options):
        return sample(guide_region(tiny.model, [Region(HALF, text)], *arguments, **options), steps=1)

    null = encode("")[0][0]
    assert torch.equal(node(), function())
    assert torch.equal(node(region=there, start_percent=0.1), function(there[0][0], start_percent=0.1))
    assert torch.equal(node(outside="null", clip=tiny.clip), function(None, "null", null_text=null))
    assert torch.equal(
        node(outside="text", outside_text=elsewhere), function(None, "text", outside_text=elsewhere[0][0])
    )
    with pytest.raises(ValueError, match="A region takes one text and the conditioning holds 2"):
        node(region=there + elsewhere)
