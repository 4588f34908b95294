"""CLIP guidance in the real sampler: one forward a step, under inference mode, beside other patches."""

from types import SimpleNamespace

import pytest
import torch
from comfy.patcher_extension import WrappersMP

from .clip_guidance_setup import MODES, execute
from .gradient_guidance_setup import MASK, SIZE, count_forwards, fixture_loaded, fixture_run, predictions  # noqa: F401


@MODES
def test_the_node_guides_under_inference_mode_and_leaves_the_model_alone(loaded, run, mode):
    plain = run(loaded.model)
    guided = execute(loaded, mode=mode)
    latent = run(guided)
    assert latent.isfinite().all() and (latent - plain).norm() > 0.01 * plain.norm()
    assert torch.equal(latent, run(guided))
    assert torch.equal(run(loaded.model), plain)


@MODES
def test_strength_zero_and_empty_words_change_no_bit(loaded, run, mode):
    plain = run(loaded.model)
    for widgets in ({"strength": 0.0}, {"text": "  ", "background_weight": 1.0}):
        guided = execute(loaded, mode=mode, **widgets)
        assert torch.equal(run(guided), plain) and not guided.wrappers.get(WrappersMP.PREDICT_NOISE)


@MODES
@pytest.mark.parametrize("guidances", [1, 2])
def test_one_unet_forward_a_step(loaded, run, mode, guidances):
    model, counted = count_forwards(loaded.model)
    for index in range(guidances):
        models = SimpleNamespace(**{**vars(loaded), "model": model})
        model = execute(models, mode=mode, text=f"a star {index}")
    run(model, steps=3)
    assert counted == [2, 2, 2]  # both conds of CFG at once


def test_other_patches_and_overrides_still_run(loaded, run):
    calls = {"patch": 0, "override": 0}

    def patch(n, extra_options):
        calls["patch"] += 1
        return n * 1.1

    def override(function, *args, **kwargs):
        calls["override"] += 1
        assert function.__name__ == "attention_pytorch"
        return function(*args, **kwargs)

    model = loaded.model.clone()
    model.set_model_attn2_output_patch(patch)
    model.model_options["transformer_options"]["optimized_attention_override"] = override
    guided = execute(SimpleNamespace(**{**vars(loaded), "model": model}), mode="exact")
    latent = run(guided, steps=1)
    assert calls["patch"] > 0 and calls["override"] > calls["patch"]
    assert not torch.equal(latent, run(execute(loaded, mode="exact"), steps=1))


@pytest.mark.parametrize("sampler", ["dpmpp_2m", "euler_ancestral", "heun"])
def test_stock_samplers(loaded, run, sampler):
    latent = run(execute(loaded), sampler=sampler, steps=3)
    assert latent.isfinite().all() and not torch.equal(latent, run(loaded.model, sampler=sampler, steps=3))


@MODES
def test_v_prediction_and_cfg_1(tiny, run, mode):
    models = SimpleNamespace(**{**vars(tiny), "model": tiny.v_model})
    assert not torch.equal(run(execute(models, mode=mode), cfg=1.0), run(tiny.v_model, cfg=1.0))


def test_a_batch_is_guided_as_each_alone(loaded, run):
    (one,) = predictions(execute(loaded), run, steps=1)
    (two,) = predictions(execute(loaded), run, steps=1, batch=2)
    torch.testing.assert_close(two[2][0], one[2][0], rtol=1e-3, atol=1e-3)


def test_region_guidance_and_clip_guidance_in_either_order(loaded, run):
    from inlay.nodes.region import RegionGuidance

    def with_region(model):
        with torch.inference_mode():
            return RegionGuidance.execute(model, MASK, "zero", 0.0, 1.0).args[0]

    def with_clip(model):
        return execute(SimpleNamespace(**{**vars(loaded), "model": model}), mode="exact", strength=0.2)

    counted_model, counted = count_forwards(loaded.model)
    one, other = run(with_clip(with_region(counted_model))), run(with_region(with_clip(loaded.model)))
    assert counted == [2, 2]
    torch.testing.assert_close(one, other, rtol=0, atol=1e-3)
    for alone in (with_region(loaded.model), with_clip(loaded.model)):
        assert (one - run(alone)).norm() > 0.02 * one.norm()


def test_candidates_do_not_depend_on_their_chunk(loaded, encode):
    """Through InlayPaint's job: four at once, or one at a time."""
    from inlay.host.painting import PaintSettings, paint

    guided = execute(loaded)
    image = torch.rand(1, 64, 80, 3, generator=torch.Generator().manual_seed(0))
    words = encode("a red star"), encode("")

    def painted(**options):
        with torch.inference_mode():
            settings = PaintSettings(steps=2, candidates=2, background="renoised", **options)
            return paint(guided, *words, loaded.vae, image, MASK, settings)[0]

    for sampler in ("ddim", "euler"):
        together, apart = (painted(at_once=size, sampler=sampler) for size in (2, 1))
        torch.testing.assert_close(together, apart, rtol=0, atol=2e-3)
        assert not torch.equal(together[0], together[1])
        assert torch.equal(
            torch.where(MASK[..., None] > 0, 0.0, together),
            torch.where(MASK[..., None] > 0, 0.0, image).expand_as(together),
        )


def test_weight_patches_come_and_go(loaded, run):
    """A LoRA's kind of patch: the host writes patched weights as inference tensors, and puts its own back after."""
    plain = run(loaded.model)
    model = loaded.model.clone()
    key = "diffusion_model.middle_block.1.transformer_blocks.0.attn2.to_v.weight"
    shape = model.model_state_dict()[key].shape
    model.add_patches({key: (torch.ones(shape),)}, 0.05)
    patched = run(model)
    guided = run(execute(SimpleNamespace(**{**vars(loaded), "model": model}), mode="exact"))
    assert not torch.equal(guided, patched) and not torch.equal(patched, plain)
    assert torch.equal(run(model), patched) and torch.equal(run(loaded.model), plain)


def test_the_inpainting_model(tiny, encode, run):
    """Nine channels: the masked picture's latents reach the UNet as inference tensors."""
    with torch.inference_mode():
        channels = {"concat_latent_image": torch.rand(1, 4, *SIZE), "concat_mask": torch.rand(1, 1, 64, 80)}
        words = {
            name: [[cond, {**extra, **channels}] for cond, extra in encode(name)] for name in ("positive", "negative")
        }
    models = SimpleNamespace(**{**vars(tiny), "model": tiny.inpaint_model})
    guided = run(execute(models, mode="exact"), **words)
    assert guided.isfinite().all() and not torch.equal(guided, run(tiny.inpaint_model, **words))
