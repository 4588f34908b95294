"""CLIP guidance in the real sampler: gradients against differences, one forward a step, under inference mode."""

import copy
import logging
from types import SimpleNamespace

import pytest
import torch
from comfy.patcher_extension import WrappersMP
from inlay.demo.tasks import draw_tasks
from inlay.guidance.normalised import score_move
from inlay.host import demo_models as build
from inlay.host.clip_guidance_patch import ClipOptions, clip_loss, clip_targets, guide_by_clip
from inlay.host.demo_world import load_demo_models
from inlay.host.gradient_guidance import Guidance, guide
from inlay.host.gradients import gradient_phase
from inlay.host.pictures import encode_picture
from inlay.nodes.clip_guidance import ClipGuidance

SIZE = (8, 10)
MASK = torch.zeros(1, 64, 80)
MASK[:, 15:50, 20:60] = 1
MODES = pytest.mark.parametrize("mode", ["fast", "place", "exact"])
# Of any guidance: `place` is a way of CLIP's to look.
WAYS = pytest.mark.parametrize("mode", ["fast", "exact"])


@pytest.fixture(scope="module")
def loaded():
    """Models as the host's loader nodes make them: of inference tensors."""
    with torch.inference_mode():
        return SimpleNamespace(
            model=build.build_model(build.build_unet(4, seed=1).state_dict()),
            vae=build.build_vae(build.build_autoencoder(seed=5).state_dict()),
            clip=build.build_text_encoder(build.build_bare_text_encoder(seed=4).state_dict()),
            clip_vision=build.build_vision(build.build_bare_vision(seed=6).state_dict()),
        )


def execute(models, mask=MASK, text="a red star", **widgets):
    widgets = {**vars(ClipOptions()), "augmentations": 1, **widgets}
    with torch.inference_mode():
        return ClipGuidance.execute(
            models.model, models.vae, models.clip_vision, mask, text, clip=models.clip, **widgets
        ).args[0]


@pytest.fixture
def run(sample):
    """sample() as the executor runs it."""

    def sampled(model, **options):
        with torch.inference_mode():
            return sample(model, **{"steps": 2, "size": SIZE, **options})

    return sampled


def observed(model, look):
    """A clone that shows each prediction to look(executor, x, sigma, model_options, seed, denoised)."""
    model = model.clone()

    def wrap(executor, x, timestep, model_options=None, seed=None):
        denoised = executor(x, timestep, model_options, seed)
        look(executor, x, timestep, model_options, seed, denoised)
        return denoised

    # A wrapper added first is the outermost one.
    wrappers = model.wrappers.setdefault(WrappersMP.PREDICT_NOISE, {})
    model.wrappers[WrappersMP.PREDICT_NOISE] = {"test": [wrap], **wrappers}
    return model


def predictions(model, run, **options):
    """(x, sigma, denoised) of every prediction."""
    seen = []
    run(
        observed(model, lambda _, x, sigma, *rest: seen.append((x.clone(), sigma.clone(), rest[-1].clone()))), **options
    )
    return seen


def count_forwards(model):
    counted = []

    def count(executor, *args, **kwargs):
        counted.append(args[0].shape[0])
        return executor(*args, **kwargs)

    model = model.clone()
    model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "count", count)
    return model, counted


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


@MODES
@pytest.mark.parametrize("view", ["masked", "crop"])
def test_the_move_follows_the_loss_downhill(tiny, run, mode, view):
    """-s sigma^2 dL/dx: along the move the loss has the slope that the move's length says, by its own differences."""
    strength = 1000.0
    widgets = ClipOptions(strength=strength, strength_unit="raw", augmentations=2, view=view, mode=mode)
    captured = {}
    guided = guide_by_clip(tiny.model, tiny.vae, tiny.clip, tiny.clip_vision, "a red star", None, MASK, None, widgets)
    loss = find_loss(guided)

    def look(executor, x, sigma, model_options, seed, denoised):
        if captured:
            return
        captured["first"] = True
        plain = executor.original
        before = plain(x, sigma, model_options, seed)
        gradient = (before - denoised) / (strength * sigma**2)
        length = gradient.norm()
        direction = gradient / length
        noise = x - before
        values = []
        step = 0.5
        for sign in (1, -1):
            moved = x + sign * step * direction
            clean = plain(moved, sigma, model_options, seed) if mode == "exact" else moved - noise
            with torch.no_grad():
                values.append(loss(clean, moved, sigma))
        captured["slope"], captured["length"] = (values[0] - values[1]) / (2 * step), length

    run(observed(guided, look), steps=1)
    assert captured["length"] > 0
    torch.testing.assert_close(captured["slope"][0], captured["length"], rtol=0.03, atol=0)


def find_loss(guided):
    """The ClipLoss inside the patch."""
    wrappers = next(iter(guided.wrappers[WrappersMP.PREDICT_NOISE].values()))
    cells = wrappers[0].__closure__
    return next(cell.cell_contents.loss for cell in cells if isinstance(cell.cell_contents, Guidance))


@pytest.mark.parametrize("weights", [{}, {"range_weight": 3.0, "background_weight": 2.0, "mix": False}])
def test_the_loss_has_the_gradient_of_its_differences_in_float64(tiny, monkeypatch, weights):
    vae = copy.copy(tiny.vae)
    vae.vae_dtype = torch.float64
    vae.patcher = tiny.vae.patcher.clone()
    vae.patcher.model = copy.deepcopy(tiny.vae.first_stage_model).double()
    image = torch.rand(1, 64, 80, 3)
    widgets = ClipOptions(strength=1.0, strength_unit="raw", augmentations=2, **weights)
    guided = guide_by_clip(tiny.model, vae, tiny.clip, tiny.clip_vision, "a red star", None, MASK, image, widgets)
    loss = find_loss(guided)
    generator = torch.Generator().manual_seed(0)
    noise, direction = (torch.randn(1, 4, *SIZE, dtype=torch.float64, generator=generator) for _ in range(2))
    sigma = torch.tensor([2.0], dtype=torch.float64)
    x = (0.5 * noise.flip(-1) + 2 * noise).requires_grad_()
    (gradient,) = torch.autograd.grad(loss(x - 2 * noise, x, sigma).sum(), x)
    with torch.no_grad():
        values = [loss(x + h * direction - 2 * noise, x + h * direction, sigma) for h in (1e-5, -1e-5)]
    quotient = (values[0] - values[1]) / 2e-5
    assert quotient.abs() > 1e-7
    torch.testing.assert_close((gradient * direction).sum()[None], quotient, rtol=1e-5, atol=1e-12)


@MODES
def test_the_normalised_strength_is_a_share_of_each_samples_noise(loaded, run, mode):
    guided = execute(loaded, mode=mode, strength=0.2)
    (plain,) = predictions(loaded.model, run, steps=1, batch=2)
    (moved,) = predictions(guided, run, steps=1, batch=2)
    assert torch.equal(plain[0], moved[0])
    share = (moved[2] - plain[2]).flatten(1).norm(dim=1) / (plain[0] - plain[2]).flatten(1).norm(dim=1)
    torch.testing.assert_close(share, torch.full((2,), 0.2), rtol=1e-2, atol=0)


def plain_guidance(loss, **options):
    defaults = dict(
        name="Test", strength=0.5, raw_move=None, mode="fast", start_percent=0.0, end_percent=1.0, patchers=()
    )
    return Guidance(loss=loss, **{**defaults, **options})


@WAYS
def test_a_gradient_that_is_not_finite_is_skipped_for_its_sample_and_said(loaded, run, mode, caplog):
    def loss(denoised, x, sigma):
        values = denoised.square().flatten(1).sum(1)
        return values / torch.tensor([0.0, 1.0])[: len(values)] * torch.tensor([0.0, 1.0])[: len(values)]

    (plain,) = predictions(loaded.model, run, steps=1, batch=2)
    with caplog.at_level(logging.WARNING):
        (moved,) = predictions(guide(loaded.model, plain_guidance(loss, mode=mode)), run, steps=1, batch=2)
    assert "1 of 2 pictures is not finite" in caplog.text
    torch.testing.assert_close(moved[2][0], plain[2][0], rtol=0, atol=1e-3)  # another attention backend
    assert (moved[2][1] - plain[2][1]).norm() > 1
    if mode == "fast":
        assert torch.equal(moved[2][0], plain[2][0])


@WAYS
def test_two_guidances_add_up(loaded, run, mode):
    targets = [torch.full((4, *SIZE), value) for value in (1.0, -2.0)]

    def pull(target):
        return plain_guidance(
            lambda denoised, x, sigma: (denoised - target).square().flatten(1).sum(1) / 1e4,
            mode=mode,
            strength=0.01,
            raw_move=score_move,
        )

    (plain,) = predictions(loaded.model, run, steps=1)
    first, second = (predictions(guide(loaded.model, pull(it)), run, steps=1)[0] for it in targets)
    (both,) = predictions(guide(guide(loaded.model, pull(targets[0])), pull(targets[1])), run, steps=1)
    move = first[2] + second[2] - 2 * plain[2]
    assert (both[2] - plain[2] - move).norm() < 0.05 * move.norm()


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


def test_the_percent_range(loaded, run):
    seen = []

    def loss(denoised, x, sigma):
        seen.append(float(sigma[0]))
        return denoised.square().flatten(1).sum(1)

    sigmas = [float(sigma[0]) for _, sigma, _ in predictions(loaded.model, run, steps=4)]
    run(guide(loaded.model, plain_guidance(loss, start_percent=0.2, end_percent=0.6)), steps=4)
    sampling = loaded.model.get_model_object("model_sampling")
    first, last = (float(sampling.percent_to_sigma(it)) for it in (0.2, 0.6))
    assert seen == [sigma for sigma in sigmas if last <= sigma <= first] and 0 < len(seen) < 4


def test_guidance_brings_the_picture_nearer_to_the_words(loaded, run):
    """What the loss sees of the clean estimate, with and without, at the last step."""
    loss = find_loss(execute(loaded, mix=False, range_weight=0.0, augmentations=0))
    *_, plain = predictions(loaded.model, run, steps=4)
    *_, moved = predictions(execute(loaded, mix=False, strength=0.3), run, steps=4)
    with torch.no_grad():
        assert loss(moved[2], moved[0], moved[1]) < loss(plain[2], plain[0], plain[1])


def test_a_batch_is_guided_as_each_alone(loaded, run):
    (one,) = predictions(execute(loaded), run, steps=1)
    (two,) = predictions(execute(loaded), run, steps=1, batch=2)
    torch.testing.assert_close(two[2][0], one[2][0], rtol=1e-3, atol=1e-3)


def test_reference_pictures_instead_of_words(loaded, run):
    with torch.inference_mode():
        widgets = {**vars(ClipOptions()), "augmentations": 0}
        guided = ClipGuidance.execute(
            loaded.model, loaded.vae, loaded.clip_vision, MASK, reference=torch.rand(2, 80, 80, 3), **widgets
        ).args[0]
    assert not torch.equal(run(guided), run(loaded.model))


def test_the_small_decoder_is_used_where_the_user_has_one(loaded, run, tmp_path, monkeypatch):
    import folder_paths
    from comfy.taesd.taesd import TAESD
    from safetensors.torch import save_file

    torch.manual_seed(0)
    save_file(TAESD().taesd_decoder.state_dict(), tmp_path / "taesd_decoder.safetensors")
    full = run(execute(loaded), steps=1)
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "vae_approx", ([str(tmp_path)], {".safetensors"}))
    folder_paths.filename_list_cache.pop("vae_approx", None)
    try:
        guided = execute(loaded)
        assert isinstance(find_loss(guided).decoder.patcher.model, TAESD)
        assert not torch.equal(run(guided, steps=1), full)
        assert not isinstance(find_loss(execute(loaded, mode="exact")).decoder.patcher.model, TAESD)
    finally:
        folder_paths.filename_list_cache.pop("vae_approx", None)


def test_place_decodes_the_surroundings_of_the_mask_alone(tiny, monkeypatch):
    """Batched rows, masks that differ, a picture that was padded: fewer cells, the same loss for what it sees alone."""
    masks = torch.zeros(2, 120, 130)
    masks[0, 40:60, 50:70] = masks[1, 0:16, 100:130] = 1
    decoded = []

    def loss_of(**widgets):
        options = ClipOptions(augmentations=1, range_weight=0.0, **widgets)
        parts = tiny.model, tiny.vae, tiny.clip, tiny.clip_vision
        loss = find_loss(guide_by_clip(*parts, "a star", None, masks, torch.rand(2, 120, 130, 3), options))
        real = loss.decoder._decode
        monkeypatch.setattr(loss.decoder, "_decode", lambda latent: decoded.append(latent.shape) or real(latent))
        return loss

    x = torch.randn(4, 4, 15, 17, generator=torch.Generator().manual_seed(0)).requires_grad_()
    sigma = torch.full((4,), 2.0)
    loss = loss_of(mode="place")
    values = loss(x, x, sigma)
    # Cells 5 to 7 and 6 to 8 of the first mask, 0 to 1 and 12 to 16 of the second, and two more on each side.
    assert decoded == [(2, 4, 3 + 4, 3 + 4), (2, 4, 2 + 2, 5 + 2)] and values.isfinite().all()
    (gradient,) = torch.autograd.grad(values.sum(), x)
    rows, columns = (gradient.abs().sum((1, dim)) > 0 for dim in (3, 2))
    assert rows[0].nonzero()[:, 0].tolist() == list(range(3, 10)) and rows[1].sum() == 4
    assert columns[0].nonzero()[:, 0].tolist() == list(range(4, 11)) and columns[1].sum() == 7
    assert torch.equal(rows[:2], rows[2:]) and torch.equal(columns[:2], columns[2:])
    torch.testing.assert_close(loss(x[2:], x[2:], sigma[2:]), values[2:], rtol=1e-4, atol=1e-5)
    decoded.clear()
    held = loss_of(mode="place", background_weight=1.0)
    assert held(x, x, sigma).isfinite().all() and decoded == [(4, 4, 15, 17)]
    with pytest.raises(ValueError, match="2 masks and 3 latents"):
        loss(x[:3], x[:3], sigma[:3])


def test_places_gradient_points_where_the_whole_decoders_does():
    """On the trained demo models, whose decoder normalises over all that it decodes."""
    demo = load_demo_models("text")
    tasks = draw_tasks(range(70_000_300, 70_000_304), "fill")
    latents = demo.model.model.process_latent_in(encode_picture(demo.vae, tasks.truth.image))
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(0))
    x, sigma = latents + 2 * noise, torch.full((4,), 2.0)
    targets = torch.stack([clip_targets(demo.clip, demo.clip_vision, text, None) for text in tasks.captions])
    found = []
    for mode in ("fast", "place"):
        options = ClipOptions(mode=mode, augmentations=3)
        parts = demo.model, demo.vae, demo.clip_vision, targets, tasks.mask, None, options
        loss = clip_loss(*parts)
        with gradient_phase(loss.decoder.patcher.model, loss.eye.model):
            leaf = x.clone().requires_grad_()
            (gradient,) = torch.autograd.grad(loss(leaf - 2 * noise, leaf, sigma).sum(), leaf)
        found.append(gradient.flatten(1))
    # Of a scene at night it may point elsewhere.
    assert torch.cosine_similarity(*found).median() > 0.85


def test_a_padded_picture_keeps_its_mask_in_place(tiny):
    """120 x 130 pixels decode to 120 x 136: the mask is padded, not stretched."""
    mask = torch.zeros(1, 120, 130)
    mask[:, :, 100:120] = 1
    guided = guide_by_clip(
        tiny.model,
        tiny.vae,
        tiny.clip,
        tiny.clip_vision,
        "a star",
        None,
        mask,
        torch.rand(1, 120, 130, 3),
        ClipOptions(),
    )
    place = find_loss(guided).place
    pictures = torch.zeros(2, 3, 120, 136)
    assert torch.equal(place.mask(pictures)[:, :, :130], mask.expand(2, -1, -1))
    assert place.picture(pictures).shape == (2, 3, 120, 136)


def test_bad_input_says_so(loaded, run):
    cases = {
        "empty": {"mask": torch.zeros(1, 64, 80)},
        "needs the picture": {"background_weight": 1.0},
        "start_percent": {"start_percent": 0.5, "end_percent": 0.5},
        "Shorten": {"text": "star " * 90},
    }
    for sentence, options in cases.items():
        with pytest.raises(ValueError, match=sentence):
            execute(loaded, **options)
    with pytest.raises(ValueError, match="3 masks and 2 latents"):
        run(execute(loaded, mask=MASK.repeat(3, 1, 1)), batch=2)
    with pytest.raises(ValueError, match="same aspect"):
        run(execute(loaded, mask=torch.ones(1, 64, 160)))
    with pytest.raises(ValueError, match="does not fit the latent"):
        run(execute(loaded, background_weight=1.0, image=torch.rand(1, 32, 40, 3)))


def test_a_patch_that_stops_gradients_is_named(loaded, run):
    model = loaded.model.clone()
    model.set_model_unet_function_wrapper(
        lambda forward, args: forward(args["input"], args["timestep"], **args["c"]).detach()
    )
    guided = execute(SimpleNamespace(**{**vars(loaded), "model": model}), mode="exact")
    with pytest.raises(ValueError, match="lets no gradient through the UNet. Set mode to fast"):
        run(guided)
    assert run(execute(SimpleNamespace(**{**vars(loaded), "model": model}), mode="fast")).isfinite().all()


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


def test_the_background_loss_with_the_users_lpips(loaded, run, tmp_path, monkeypatch):
    """Algorithm 1 under inference mode: LPIPS changes the guidance, and its net takes part in the gradient."""
    import folder_paths
    import torchvision
    from safetensors.torch import save_file

    image = torch.rand(1, 64, 80, 3, generator=torch.Generator().manual_seed(0))
    options = {"background_weight": 10.0, "image": image}
    squares = run(execute(loaded, **options), steps=1)
    with torch.device("meta"):
        shapes = torchvision.models.vgg16(weights=None).state_dict()
    generator = torch.Generator().manual_seed(0)
    weights = {
        key: torch.randn(value.shape, generator=generator) / max(value[0].numel(), 100) ** 0.5
        for key, value in shapes.items()
        if key.startswith("features")
    }
    for stage, width in enumerate((64, 128, 256, 512, 512)):
        weights[f"lin{stage}.model.1.weight"] = torch.rand(1, width, 1, 1, generator=generator)
    (tmp_path / "lpips").mkdir()
    save_file(weights, tmp_path / "lpips" / "vgg.safetensors")
    monkeypatch.setattr(folder_paths, "models_dir", str(tmp_path))
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "lpips", ([str(tmp_path / "lpips")], {".safetensors"}))
    folder_paths.filename_list_cache.pop("lpips", None)
    try:
        perceptual = run(execute(loaded, **options), steps=1)
    finally:
        folder_paths.filename_list_cache.pop("lpips", None)
    assert perceptual.isfinite().all() and not torch.equal(perceptual, squares)


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
