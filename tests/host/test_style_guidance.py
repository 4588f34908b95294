"""Style guidance in the real sampler: gradients against differences, one forward a step, under inference mode."""

import copy
import logging
import math
from types import SimpleNamespace

import pytest
import torch
from comfy.patcher_extension import WrappersMP
from inlay.host import demo_models as build
from inlay.host.style_guidance_patch import StyleOptions, guide_by_style
from inlay.nodes.clip_guidance import ClipGuidance
from inlay.nodes.region import RegionGuidance
from inlay.nodes.style_guidance import StyleGuidance

from .test_clip_guidance import MASK, SIZE, ClipOptions, count_forwards, find_loss, observed, predictions

MODES = pytest.mark.parametrize("mode", ["fast", "exact"])
STYLE = torch.rand(1, 64, 80, 3, generator=torch.Generator().manual_seed(3)) ** 3


@pytest.fixture(scope="module")
def loaded():
    """Models as the host's loader nodes make them: of inference tensors."""
    with torch.inference_mode():
        return SimpleNamespace(
            model=build.build_model(build.build_unet(4, seed=1).state_dict()),
            vae=build.build_vae(build.build_autoencoder(seed=5).state_dict()),
            clip_vision=build.build_vision(build.build_bare_vision(seed=6).state_dict()),
        )


def execute(models, style=STYLE, mask=MASK, model=None, **widgets):
    widgets = {**vars(StyleOptions()), "feature_size": 64, **widgets}
    with torch.inference_mode():
        return StyleGuidance.execute(
            model or models.model, models.vae, style, mask, models.clip_vision, **widgets
        ).args[0]


@pytest.fixture
def run(sample):
    """sample() as the executor runs it."""

    def sampled(model, **options):
        with torch.inference_mode():
            return sample(model, **{"steps": 2, "size": SIZE, **options})

    return sampled


@MODES
def test_the_node_guides_under_inference_mode_and_leaves_the_model_alone(loaded, run, mode):
    plain = run(loaded.model)
    guided = execute(loaded, mode=mode)
    latent = run(guided)
    assert latent.isfinite().all() and (latent - plain).norm() > 0.01 * plain.norm()
    assert torch.equal(latent, run(guided))
    assert torch.equal(run(loaded.model), plain)
    parts = [*loaded.vae.first_stage_model.modules(), *loaded.model.model.modules()]
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in parts)


@MODES
def test_strength_zero_changes_no_bit(loaded, run, mode):
    guided = execute(loaded, mode=mode, strength=0.0)
    assert torch.equal(run(guided), run(loaded.model)) and not guided.wrappers.get(WrappersMP.PREDICT_NOISE)


@pytest.mark.parametrize("features, region", [("vae", "whole"), ("vae", "masked"), ("clip_vision", "inside")])
def test_the_loss_has_the_gradient_of_its_differences_in_float64(tiny, features, region):
    vae, vision = copy.copy(tiny.vae), copy.copy(tiny.clip_vision)
    vae.vae_dtype = torch.float64
    vae.patcher, vision.patcher = tiny.vae.patcher.clone(), tiny.clip_vision.patcher.clone()
    vae.patcher.model = copy.deepcopy(tiny.vae.first_stage_model).double()
    vision.patcher.model = copy.deepcopy(tiny.clip_vision.model).double()
    options = StyleOptions(features=features, region=region)
    loss = find_loss(guide_by_style(tiny.model, vae, STYLE, MASK, vision, options))
    generator = torch.Generator().manual_seed(0)
    clean, direction = (torch.randn(1, 4, *SIZE, dtype=torch.float64, generator=generator) for _ in range(2))
    clean.requires_grad_()
    (gradient,) = torch.autograd.grad(loss(clean, clean, torch.ones(1)).sum(), clean)
    with torch.no_grad():
        values = [loss(clean + h * direction, clean, torch.ones(1)) for h in (1e-4, -1e-4)]
    quotient = (values[0] - values[1]) / 2e-4
    # The target is kept in the encoder's precision; the patch's widths are float64 all the way here.
    torch.testing.assert_close((gradient * direction).sum()[None], quotient, rtol=1e-5, atol=1e-10)
    assert quotient.abs() > 1e-6


@MODES
def test_the_raw_move_is_equation_6(tiny, run, mode):
    """eps + s dL/dz_t: along the move the loss has, by its own differences, the slope that the move's length says."""
    strength = 50.0
    widgets = StyleOptions(strength=strength, strength_unit="raw", mode=mode, region="masked", start_percent=0.4)
    guided = guide_by_style(tiny.model, tiny.vae, STYLE, MASK, None, widgets)
    loss = find_loss(guided)
    captured = {}

    def look(executor, x, sigma, model_options, seed, denoised):
        plain = executor.original
        before = plain(x, sigma, model_options, seed)
        if captured or torch.equal(before, denoised):
            return
        factor = math.sqrt(1 + float(sigma) ** 2)
        eps, moved_eps = (x - before) / sigma, (x - denoised) / sigma
        slope_z = (moved_eps - eps) / strength  # dL/dz_t
        direction = slope_z / slope_z.norm()
        values, step = [], 0.2
        for sign in (1, -1):
            moved = (x / factor + sign * step * direction) * factor
            clean = plain(moved, sigma, model_options, seed) if mode == "exact" else moved - sigma * eps
            with torch.no_grad():
                values.append(loss(clean, moved, sigma))
        captured["slope"], captured["length"] = (values[0] - values[1]) / (2 * step), slope_z.norm()

    run(observed(guided, look), steps=4)
    assert captured["length"] > 0
    torch.testing.assert_close(captured["slope"][0], captured["length"], rtol=0.03, atol=0)


@MODES
def test_an_inversion_finds_the_pictures_own_path(loaded, run, encode, mode):
    """Paint Into Mask inverts on the model that it is given, with its guidance."""
    from inlay.host.inversion import invert_latent

    latent = torch.randn(1, 4, *SIZE, generator=torch.Generator().manual_seed(4))

    def path(model):
        with torch.inference_mode():
            return invert_latent(model, latent, 64, 80, encode(""), steps=2)[0].noises

    guided = execute(loaded, mode=mode, strength=0.5)
    assert torch.equal(path(guided), path(loaded.model))
    assert not torch.equal(run(guided, steps=1), run(loaded.model, steps=1))


def test_raw_and_fast_leaves_the_highest_noise_alone(loaded, run):
    """Where 1 / a_t = sqrt(1 + sigma^2) is above 8."""
    plain = predictions(loaded.model, run, steps=1)[0]
    fast, exact = (
        predictions(execute(loaded, mode=mode, strength=1000.0, strength_unit="raw"), run, steps=1)[0]
        for mode in ("fast", "exact")
    )
    assert plain[1] > 8 and torch.equal(fast[2], plain[2]) and not torch.equal(exact[2], plain[2])


@MODES
def test_gradient_steps_share_one_forward_and_follow_each_other(loaded, run, mode):
    model, counted = count_forwards(loaded.model)
    (plain,) = predictions(loaded.model, run, steps=1, batch=2)
    share, values = [], []
    for steps in (1, 3):
        guided = execute(loaded, model=model, mode=mode, gradient_steps=steps)
        (moved,) = predictions(guided, run, steps=1, batch=2)
        share.append((moved[2] - plain[2]).flatten(1).norm(dim=1) / (plain[0] - plain[2]).flatten(1).norm(dim=1))
        with torch.no_grad():
            values.append(find_loss(guided)(moved[2], moved[0], moved[1]))
    assert counted == [4, 4]  # both conds of CFG for both latents, at once
    torch.testing.assert_close(share[0], torch.full((2,), 0.1), rtol=1e-2, atol=0)
    assert (share[1] > 0.12).all() and (share[1] <= 0.31).all()
    if mode == "fast":
        assert (values[1] < values[0]).all()


@pytest.mark.parametrize("widgets", [{}, {"region": "masked"}, {"features": "clip_vision"}, {"mode": "exact"}])
def test_guidance_lowers_the_style_loss(loaded, run, widgets):
    """Of the clean estimate, with and without, at the last step."""
    guided = execute(loaded, strength=0.3, **widgets)
    *_, plain = predictions(loaded.model, run, steps=3)
    *_, moved = predictions(guided, run, steps=3)
    loss = find_loss(guided)
    with torch.no_grad():
        assert loss(moved[2], moved[0], moved[1]) < 0.95 * loss(plain[2], plain[0], plain[1])


def test_the_region_is_the_masks_inside(tiny):
    """Masked: outside pixels of the estimate and inside pixels of the style picture count for nothing."""

    class Pixels:
        patcher, balanced = tiny.vae.patcher, False

        def __call__(self, pictures):
            return [pictures]

    from inlay.host.style_guidance_patch import style_target

    inside = MASK[..., None] > 0
    other = torch.where(inside, torch.rand_like(STYLE), STYLE)
    estimate = torch.rand(1, 3, 64, 80)
    changed = torch.where(inside.movedim(-1, 1), estimate, torch.rand_like(estimate))
    loss = style_target(Pixels(), STYLE, MASK, "masked")
    assert torch.equal(loss(estimate, MASK), style_target(Pixels(), other, MASK, "masked")(changed, MASK))
    for style, mask in ((1 - other, MASK), (STYLE, 1 - MASK)):
        assert not torch.equal(loss(estimate, MASK), style_target(Pixels(), style, mask, "masked")(estimate, mask))
    assert not torch.equal(loss(estimate, MASK), style_target(Pixels(), STYLE, MASK, "inside")(estimate, MASK))


def test_region_clip_and_style_guidance_on_one_model(loaded, tiny, run):
    def with_region(model):
        with torch.inference_mode():
            return RegionGuidance.execute(model, MASK, "zero", 0.0, 1.0).args[0]

    def with_clip(model):
        widgets = {**vars(ClipOptions()), "augmentations": 0, "strength": 0.2, "mode": "exact"}
        with torch.inference_mode():
            return ClipGuidance.execute(
                model, loaded.vae, loaded.clip_vision, MASK, "a red star", clip=tiny.clip, **widgets
            ).args[0]

    def with_style(model):
        return execute(loaded, model=model, mode="exact", strength=0.2)

    model, counted = count_forwards(loaded.model)
    one = run(with_style(with_clip(with_region(model))))
    assert counted == [2, 2]
    torch.testing.assert_close(one, run(with_region(with_style(with_clip(loaded.model)))), rtol=0, atol=2e-3)
    model, counted = count_forwards(loaded.model)
    assert run(with_clip(with_style(model))).isfinite().all() and counted == [2, 2]
    for pair in (with_style(with_clip(loaded.model)), with_style(with_region(loaded.model))):
        assert (one - run(pair)).norm() > 0.02 * one.norm()


@pytest.mark.parametrize("sampler", ["dpmpp_2m", "euler_ancestral"])
def test_stock_samplers_and_v_prediction(tiny, run, sampler):
    latent = run(execute(tiny, model=tiny.v_model), sampler=sampler, steps=3)
    assert latent.isfinite().all() and not torch.equal(latent, run(tiny.v_model, sampler=sampler, steps=3))


@MODES
def test_pixart(loaded, sample, mode):
    from .test_region_pixart import SIZE as SIDES
    from .test_region_pixart import build as build_pixart
    from .test_region_pixart import text

    model, conditions = build_pixart(), ([[text(1), {}]], [[text(2), {}]])

    def sampled(model):
        with torch.inference_mode():
            return sample(model, *conditions, size=SIDES, steps=1)

    plain = sampled(model)
    guided = sampled(execute(loaded, model=model, mode=mode, mask=None))
    assert guided.isfinite().all() and (guided - plain).norm() > 0.01 * plain.norm()
    assert torch.equal(sampled(model), plain)


def half_vae(vae, factor=1.0):
    """The VAE in fp16; a factor on its last layer makes it overflow."""
    vae = copy.copy(vae)
    vae.vae_dtype = torch.float16
    vae.patcher = vae.patcher.clone()
    vae.patcher.model = copy.deepcopy(vae.first_stage_model).half()
    with torch.no_grad():
        vae.patcher.model.decoder.conv_out.weight.mul_(factor)
    return vae


def test_half_precision_never_ends_in_nan(tiny, run, caplog):
    models = SimpleNamespace(**{**vars(tiny), "vae": half_vae(tiny.vae)})
    (plain,) = predictions(tiny.model, run, steps=1)
    (moved,) = predictions(execute(models), run, steps=1)
    share = (moved[2] - plain[2]).norm() / (plain[0] - plain[2]).norm()
    assert float(share) == pytest.approx(0.1, rel=0.02)
    models.vae = half_vae(tiny.vae, 6e4)
    with caplog.at_level(logging.WARNING):
        (moved,) = predictions(execute(models), run, steps=1)
    assert torch.equal(moved[2], plain[2])
    assert "Guide by style: the gradient of 1 of 1 pictures is not finite" in caplog.text


def test_a_style_for_each_picture_whatever_the_batch(loaded, run):
    styles = torch.cat([STYLE, 1 - STYLE])
    (both,) = predictions(execute(loaded, styles), run, steps=1, batch=2)
    for row in range(2):
        (alone,) = predictions(execute(loaded, styles[row : row + 1]), run, steps=1, batch=2)
        torch.testing.assert_close(both[2][row], alone[2][row], rtol=1e-3, atol=1e-3)


def test_candidates_do_not_depend_on_their_chunk(loaded, encode):
    """Through InlayPaint's job: two at once, or one at a time."""
    from inlay.host.painting import PaintSettings, paint

    guided = execute(loaded)
    words = encode("a red star"), encode("")

    def painted(size):
        with torch.inference_mode():
            settings = PaintSettings(steps=1, candidates=2, background="renoised", at_once=size)
            return paint(guided, *words, loaded.vae, STYLE, MASK, settings)[0]

    together, apart = painted(2), painted(1)
    torch.testing.assert_close(together, apart, rtol=0, atol=2e-3)
    assert not torch.equal(together[0], together[1])


def test_the_small_decoder_in_fast_and_one_vae_in_exact(loaded, run, tmp_path, monkeypatch):
    import folder_paths
    from comfy.taesd.taesd import TAESD
    from safetensors.torch import save_file

    torch.manual_seed(0)
    save_file(TAESD().taesd_decoder.state_dict(), tmp_path / "taesd_decoder.safetensors")
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "vae_approx", ([str(tmp_path)], {".safetensors"}))
    folder_paths.filename_list_cache.pop("vae_approx", None)
    try:
        guided, exact = execute(loaded), execute(loaded, mode="exact")
    finally:
        folder_paths.filename_list_cache.pop("vae_approx", None)
    assert isinstance(find_loss(guided).decoder.patcher.model, TAESD)
    (fast_nets,), (exact_nets,) = guided.additional_models.values(), exact.additional_models.values()
    assert len(fast_nets) == 2 and [net.model for net in exact_nets] == [loaded.vae.first_stage_model]
    assert run(guided, steps=1).isfinite().all()


def test_bad_input_says_so(loaded):
    cases = {
        "There is no style picture": {"style": None},
        "There is no style picture. Connect one": {"style": STYLE[:0]},
        "The mask is empty": {"mask": torch.zeros(1, 64, 80), "region": "inside"},
        "Region masked needs a mask": {"mask": None, "region": "masked"},
        "covers the whole style picture": {"mask": torch.ones(1, 64, 80), "region": "masked"},
        "same aspect": {"mask": torch.ones(1, 64, 160), "region": "masked"},
        "values that are not numbers": {"style": STYLE * torch.nan},
        "Guide by style: start_percent": {"start_percent": 0.5, "end_percent": 0.5},
        "No file under models/vgg": {"features": "vgg"},
    }
    for sentence, options in cases.items():
        with pytest.raises(ValueError, match=sentence) as caught:
            execute(loaded, **options)
        assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="There is no VAE"):
        execute(SimpleNamespace(**{**vars(loaded), "vae": None}))
    with pytest.raises(ValueError, match="There is no CLIP_VISION. Connect one at extractor"):
        execute(SimpleNamespace(**{**vars(loaded), "clip_vision": None}), features="clip_vision")


def test_the_schema():
    schema = StyleGuidance.define_schema()
    schema.validate()
    defaults = {socket.id: socket.default for socket in schema.inputs if hasattr(socket, "default")}
    assert defaults == vars(StyleOptions())
