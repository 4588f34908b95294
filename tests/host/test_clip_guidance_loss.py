"""What CLIP guidance's loss looks at: the words, the place, the decoder, the background, and bad input."""

from types import SimpleNamespace

import pytest
import torch
from inlay.demo.tasks import draw_tasks
from inlay.host import clip_guidance_patch
from inlay.host.clip_guidance_patch import ClipOptions, clip_loss, clip_targets, guide_by_clip
from inlay.host.demo_world import load_demo_models
from inlay.host.gradients import gradient_phase
from inlay.host.pictures import encode_picture
from inlay.nodes.clip_guidance import ClipGuidance

from .clip_guidance_setup import execute
from .gradient_guidance_setup import MASK, find_loss, fixture_loaded, fixture_run, predictions  # noqa: F401


def test_guidance_brings_the_picture_nearer_to_the_words(loaded, run):
    """What the loss sees of the clean estimate, with and without, at the last step."""
    loss = find_loss(execute(loaded, mix=False, range_weight=0.0, augmentations=0))
    *_, plain = predictions(loaded.model, run, steps=4)
    *_, moved = predictions(execute(loaded, mix=False, strength=0.3), run, steps=4)
    with torch.no_grad():
        assert loss(moved[2], moved[0], moved[1]) < loss(plain[2], plain[0], plain[1])


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
    full_bytes = find_loss(execute(loaded)).decoder.row_bytes((4, 8, 10))
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "vae_approx", ([str(tmp_path)], {".safetensors"}))
    folder_paths.filename_list_cache.pop("vae_approx", None)
    try:
        guided = execute(loaded)
        assert isinstance(find_loss(guided).decoder.patcher.model, TAESD)
        assert find_loss(guided).decoder.row_bytes((4, 8, 10)) < full_bytes / 4
        assert not torch.equal(run(guided, steps=1), full)
        with monkeypatch.context() as patch:
            patch.setattr(clip_guidance_patch, "full_decoder", None)
            execute(loaded)  # without a copy of the VAE, which is judged all the same
            patch.setattr(loaded.vae, "latent_channels", 16)
            with pytest.raises(ValueError, match="This VAE has 16 latent channels and the model 4"):
                execute(loaded)
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


def test_bad_input_says_so(loaded, run):
    cases = {
        "empty": {"mask": torch.zeros(1, 64, 80)},
        "needs the picture": {"background_weight": 1.0},
        "no background to hold": {
            "background_weight": 1.0,
            "image": torch.rand(1, *MASK.shape[-2:], 3),
            "mask": torch.ones_like(MASK),
        },
        "start_percent": {"start_percent": 0.5, "end_percent": 0.5},
        "Shorten": {"text": "star " * 90},
    }
    for sentence, options in cases.items():
        with pytest.raises(ValueError, match=sentence):
            execute(loaded, **options)
    for given in ({"text": "a star"}, {"text": "", "reference": torch.rand(1, 64, 64, 3)}):
        with pytest.raises(ValueError, match="There is no CLIP_VISION"):
            execute(SimpleNamespace(**{**vars(loaded), "clip_vision": None}), **given)
    with pytest.raises(ValueError, match="3 masks and 2 latents"):
        run(execute(loaded, mask=MASK.repeat(3, 1, 1)), batch=2)
    with pytest.raises(ValueError, match="same aspect"):
        run(execute(loaded, mask=torch.ones(1, 64, 160)))
    with pytest.raises(ValueError, match="does not fit the latent"):
        run(execute(loaded, background_weight=1.0, image=torch.rand(1, 32, 40, 3)))


def test_the_background_loss_with_the_users_lpips(loaded, run, tmp_path, monkeypatch, caplog):
    """Algorithm 1 under inference mode: LPIPS changes the guidance, and its net takes part in the gradient."""
    import folder_paths
    import torchvision
    from safetensors.torch import save_file

    image = torch.rand(1, 64, 80, 3, generator=torch.Generator().manual_seed(0))
    options = {"background_weight": 10.0, "image": image}
    squares = run(execute(loaded, **options), steps=1)
    assert "without LPIPS. No file under models/lpips" in caplog.text
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
        (tmp_path / "lpips" / "vgg.safetensors").write_bytes(b"pickled, renamed" * 20)
        caplog.clear()
        assert torch.equal(run(execute(loaded, **options), steps=1), squares)
        assert "vgg.safetensors is damaged" in caplog.text
    finally:
        folder_paths.filename_list_cache.pop("lpips", None)
    assert perceptual.isfinite().all() and not torch.equal(perceptual, squares)
