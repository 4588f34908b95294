"""Style guidance in the real sampler: under inference mode, beside other guidance, on other models, and bad input."""

from types import SimpleNamespace

import pytest
import torch
from comfy.patcher_extension import WrappersMP
from inlay.host.clip_guidance_patch import ClipOptions
from inlay.host.style_guidance_patch import StyleOptions
from inlay.nodes.clip_guidance import ClipGuidance
from inlay.nodes.region import RegionGuidance
from inlay.nodes.style_guidance import StyleGuidance
from safetensors.torch import save_file

from .gradient_guidance_setup import MASK, SIZE, count_forwards, find_loss, fixture_loaded, fixture_run, predictions  # noqa: F401
from .style_guidance_setup import MODES, STYLE, execute


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


def test_exact_on_pixart_is_refused_under_sage_attention(loaded, monkeypatch):
    """Its blocks call the host's attention without the options, so that only the start of the host could change it."""
    import comfy.model_management

    from .test_region_pixart import build

    pixart = build()
    assert execute(loaded, model=pixart, mode="exact").wrappers[WrappersMP.PREDICT_NOISE]
    monkeypatch.setattr(comfy.model_management, "sage_attention_enabled", lambda: True)
    with pytest.raises(ValueError, match="no gradient through PixArt. Set mode to fast, or start ComfyUI without"):
        execute(loaded, model=pixart, mode="exact")
    for model, mode in ((pixart, "fast"), (loaded.model, "exact")):
        assert execute(loaded, model=model, mode=mode).wrappers[WrappersMP.PREDICT_NOISE]


@MODES
def test_strength_zero_changes_no_bit(loaded, run, mode):
    guided = execute(loaded, mode=mode, strength=0.0)
    assert torch.equal(run(guided), run(loaded.model)) and not guided.wrappers.get(WrappersMP.PREDICT_NOISE)


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


@pytest.fixture
def vae_approx(tmp_path, monkeypatch):
    """An empty folder for small decoders, of whatever kinds of files the host lists."""
    import folder_paths

    _, kinds = folder_paths.folder_names_and_paths["vae_approx"]
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "vae_approx", ([str(tmp_path)], kinds))
    monkeypatch.setattr(folder_paths, "filename_list_cache", {})
    return tmp_path


def test_the_small_decoder_in_fast_and_one_vae_in_exact(loaded, run, vae_approx):
    from comfy.taesd.taesd import TAESD

    torch.manual_seed(0)
    # Sorted first, and what models/vae_approx asks for in its own name.
    torch.save({}, vae_approx / "taesd_decoder.pth")
    save_file(TAESD().taesd_decoder.state_dict(), vae_approx / "taesd_decoder.safetensors")
    guided, exact = execute(loaded), execute(loaded, mode="exact")
    assert isinstance(find_loss(guided).decoder.patcher.model, TAESD)
    (fast_nets,), (exact_nets,) = guided.additional_models.values(), exact.additional_models.values()
    assert len(fast_nets) == 2 and [net.model for net in exact_nets] == [loaded.vae.first_stage_model]
    assert run(guided, steps=1).isfinite().all()


def test_a_pickled_small_decoder_is_not_opened(loaded, vae_approx, caplog):
    import folder_paths
    from comfy.taesd.taesd import TAESD

    def said():
        caplog.clear()
        assert not isinstance(find_loss(execute(loaded)).decoder.patcher.model, TAESD)
        return [record.getMessage() for record in caplog.records if record.name == "inlay"]

    (vae_approx / "another_decoder.pth").write_bytes(b"not even a pickle")
    assert said() == []
    (vae_approx / "another_decoder.pth").rename(vae_approx / "taesd_decoder.pth")
    folder_paths.filename_list_cache.clear()
    (line,) = said()
    assert line.startswith("models/vae_approx/taesd_decoder.pth is pickled and is not opened, so the full decoder is")
    assert "Put taesd_decoder.safetensors there" in line


def test_a_small_decoder_that_is_damaged_or_of_another_network_says_so(loaded, vae_approx):
    path, remedy = vae_approx / "taesd_decoder.safetensors", "Put the TAESD project's file in its place, or remove it"
    path.write_bytes(b"cut short")
    with pytest.raises(ValueError, match=f'^The file "taesd_decoder.safetensors" is damaged. {remedy}'):
        execute(loaded)
    save_file({"weight": torch.zeros(2)}, path)
    with pytest.raises(ValueError, match=f'^The file "taesd_decoder.safetensors" is of another network .*{remedy}'):
        execute(loaded)


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
