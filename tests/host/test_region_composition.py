"""Region guidance beside everything else that packs do to a UNet: nothing gets lost, in either order of the nodes."""

import pytest
import torch
from inlay.host.region_patches import Region, guide_region

HALF = torch.zeros(128, 144)
HALF[30:90, 40:120] = 1
FULL = torch.ones(128, 144)


def bank(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(3))


def lora(model):
    import comfy.sd

    path = "diffusion_model.output_blocks.2.1.transformer_blocks.0.attn2.to_v"
    weights = {f"{path}.lora_up.weight": bank(128, 4), f"{path}.lora_down.weight": bank(4, 128)}
    return comfy.sd.load_lora_for_models(model, None, weights, 1.0, 0)[0]


def controlnet(model):
    from comfy.patcher_extension import WrappersMP

    def add(executor, x, timesteps, context, y, control, transformer_options, **rest):
        hint = {"middle": [bank(len(x), 128, 4, 5)], "output": [], "input": []}
        return executor(x, timesteps, context, y, hint, transformer_options, **rest)

    model = model.clone()
    model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "controlnet", add)
    return model


def patched(kind):
    def patch(model):
        model = model.clone()
        for name, function in PATCHES[kind].items():
            model.set_model_patch(function, name)
        return model

    return patch


def appended(n, context, value, step):
    extra = 2 * n[:, :5]
    return n, torch.cat([context, extra], 1), torch.cat([value, extra], 1)


def couple_in(n, context, value, step):
    return torch.cat([n, n]), torch.cat([context, context.flip(1)]), torch.cat([value, 0.5 * value.flip(1)])


def couple_out(n, step):
    return n.unflatten(0, (2, -1)).mean(0)


PATCHES = {
    "attn1 input": {"attn1_patch": lambda n, context, value, step: (1.5 * n, 1.2 * context, 0.7 * value)},
    "attn1 tokens appended": {"attn1_patch": appended},
    "attn1 output": {"attn1_output_patch": lambda n, step: 1.7 * n},
    "between": {"middle_patch": lambda x, step: x + 0.3 * x.flip(1)},
    "attn2 input": {"attn2_patch": lambda n, context, value, step: (1.5 * n, 1.2 * context, 0.7 * value)},
    "attn2 output": {"attn2_output_patch": lambda n, step: 1.7 * n},
    "attention couple": {"attn2_patch": couple_in, "attn2_output_patch": couple_out},
    "after a block": {"output_block_patch": lambda h, skip, options: (1.1 * h, 0.9 * skip)},
}


def attn2_replace(model):
    from comfy.ldm.modules.attention import optimized_attention

    def replace(q, k, v, step):
        return optimized_attention(q, k, v, step["n_heads"]) + 0.5 * v.mean(1, keepdim=True)

    model = model.clone()
    model.set_model_attn2_replace(replace, "middle", 0)
    return model


def attention_override(model):
    model = model.clone()
    override = lambda function, *args, **kwargs: 0.8 * function(*args, **kwargs)  # noqa: E731
    model.model_options["transformer_options"]["optimized_attention_override"] = override
    return model


OTHERS = {
    "lora": lora,
    "controlnet": controlnet,
    **{kind: patched(kind) for kind in PATCHES},
    "attn2 replaced": attn2_replace,
    "attention overridden": attention_override,
}


@pytest.fixture(scope="module")
def guided_alone(tiny, sample):
    return sample(guide_region(tiny.model, [Region(HALF)]), steps=1)


@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS.keys())
def test_another_patch_works_before_and_after_ours(tiny, sample, guided_alone, other):
    before = sample(guide_region(other(tiny.model), [Region(HALF)]), steps=1)
    after = sample(other(guide_region(tiny.model, [Region(HALF)])), steps=1)
    assert torch.equal(before, after)
    assert (before - guided_alone).norm() > 1e-3 * guided_alone.norm()
    theirs = sample(other(tiny.model), steps=1)
    assert (before - theirs).norm() > 1e-3 * theirs.norm()
    full = sample(guide_region(other(tiny.model), [Region(FULL)]), steps=1)
    assert (full - theirs).norm() < 1e-5 * theirs.norm()


def test_self_attention_that_merges_tokens_keeps_the_text_inside(tiny, sample):
    model = tiny.model.clone()
    model.set_model_attn1_patch(lambda n, context, value, step: (n[:, ::2], context[:, ::2], value[:, ::2]))
    model.set_model_attn1_output_patch(
        lambda n, step: n.repeat_interleave(2, 1)[:, : step["activations_shape"][2] * step["activations_shape"][3]]
    )
    merged = sample(model, steps=1)
    full = sample(guide_region(model, [Region(FULL)]), steps=1)
    assert (full - merged).norm() < 1e-5 * merged.norm()
    masked = sample(guide_region(model, [Region(HALF)], form="masked_output"), steps=1)
    assert torch.equal(sample(guide_region(model, [Region(HALF)]), steps=1), masked)
    assert (masked - merged).norm() > 1e-3 * merged.norm()


def test_a_block_without_a_grid_stays_as_it_is():
    from inlay.host.unet_blocks import grid_of

    step = {"activations_shape": [2, 64, 9, 5]}
    assert grid_of(step, 45) == (9, 5)
    assert grid_of(step, 44) is None


def test_two_guidances_with_different_masks_both_count(tiny, sample, guided_alone):
    other = torch.zeros(128, 144)
    other[:60, :70] = 1
    one = guide_region(tiny.model, [Region(HALF)])
    both = sample(guide_region(one, [Region(other)]), steps=1)
    assert (both - guided_alone).norm() > 1e-3 * both.norm()
    assert (both - sample(guide_region(tiny.model, [Region(other)]), steps=1)).norm() > 1e-3 * both.norm()
    assert torch.equal(sample(one, steps=1), guided_alone)
    reversed_order = guide_region(guide_region(tiny.model, [Region(other)]), [Region(HALF)])
    assert (sample(reversed_order, steps=1) - both).norm() < 1e-5 * both.norm()
