"""The swap's methods and settings: their forwards, noises, lengths and the contrast's gradient."""

import math
from dataclasses import replace

import pytest
import torch
from inlay.host import swap_run
from inlay.host.branches import stack_texts

from .swap_setup import QUICK, TEXTS, fixture_forwards, fixture_mask, fixture_picture, fixture_swap, latent_of  # noqa: F401


def test_the_learning_rate_is_the_length_of_the_updates(tiny, swap, picture):
    start = latent_of(tiny, picture)
    whole, half = (swap(replace(QUICK, iterations=5, learning_rate=rate))[1]["samples"] for rate in (0.1, 0.05))
    assert (whole - start).abs().max() > 1e-3
    assert torch.allclose(whole - start, 2 * (half - start), atol=1e-5)


def test_seeds_repeat_and_differ(swap):
    first, again, other = (swap(replace(QUICK, seed=seed))[1]["samples"] for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.allclose(first, other)


def test_each_anchor_has_its_own_noise_and_timestep(swap, monkeypatch):
    seen = []
    real = swap_run.Forward.noises
    monkeypatch.setattr(
        swap_run.Forward,
        "noises",
        lambda self, z, noise, sigma: seen.append((noise, sigma)) or real(self, z, noise, sigma),
    )
    swap(replace(QUICK, iterations=12, skip=4))
    noises, sigmas = zip(*seen, strict=True)
    assert len(seen) == 3 and sigmas[0] > sigmas[1] > sigmas[2]
    assert abs(torch.stack(noises).flatten(1).corrcoef() - torch.eye(3)).max() < 0.2


@pytest.mark.parametrize(
    ("settings", "rows"),
    [
        (replace(QUICK, method="sds"), [2, 2]),
        (replace(QUICK, method="dds", guidance=1.0), [2, 2]),
        (replace(QUICK, skip=1, iterations=3), [4, 4, 4]),
        (replace(QUICK, method="cds", seed=2**64 - 1), [4, 2, 4, 2]),
    ],
)
def test_forwards_of_each_method(swap, forwards, settings, rows):
    swap(settings)
    assert forwards == rows


def test_regions_and_masking_are_optional_parts(swap):
    settings = [replace(QUICK, secr=secr) for secr in ("both", "source", "target", "off")]
    settings += [
        replace(QUICK, rows="conditional"),
        replace(QUICK, bgm="off"),
        replace(QUICK, timesteps="ladder"),
        replace(QUICK, momentum=0.5),
    ]
    results = [swap(one)[1]["samples"] for one in settings]
    for number, one in enumerate(results):
        assert not any(torch.allclose(one, other, atol=1e-5) for other in results[:number])
    assert torch.equal(results[0], swap()[1]["samples"])


def test_removal_and_insertion_take_empty_phrases(swap):
    removed = swap(texts=replace(TEXTS, target="", target_concept=""))[1]["samples"]
    inserted = swap(texts=replace(TEXTS, source="", source_concept=""))[1]["samples"]
    assert removed.isfinite().all() and inserted.isfinite().all() and not torch.allclose(removed, inserted)


def test_the_contrast_pulls_by_its_published_weight(swap, tiny, monkeypatch):
    """3 PatchNCE beside the distillation's loss, both times 2000, at a rate of 0.1: a pull of 1 moves by 600.

    That is of 64 x 64 cells; where there are fewer, each of them has a larger part in a mean over places.
    """
    monkeypatch.setattr(swap_run, "contrast_gradient", lambda forward, z, *rest: torch.ones_like(z))
    once = replace(QUICK, method="cds", iterations=1, skip=1, bgm="off")
    without, pulled = (swap(replace(once, contrast=weight))[1]["samples"] for weight in (0.0, 3.0))
    moved = (without - pulled) * tiny.model.model.latent_format.scale_factor
    assert torch.allclose(moved, torch.full_like(moved, 600.0 * math.prod(moved.shape[-2:]) / 64**2), rtol=1e-4)


def test_cds_takes_a_target_model_of_its_own(swap, tiny):
    """A clone of the same model gives what the model itself gives, though the source then has a forward of its own."""
    settings = replace(QUICK, method="cds", iterations=5)
    one = swap(settings)[1]["samples"]
    two = swap(settings, target_model=tiny.model.clone())[1]["samples"]
    assert (one - two).abs().max() < 1e-3 * one.abs().max()
    other = tiny.model.clone()
    other.set_model_sampler_post_cfg_function(lambda args: args["denoised"] * 0.9)
    assert not torch.allclose(swap(settings, target_model=other)[1]["samples"], one, atol=1e-3)


def test_cds_under_the_executors_inference_mode(swap, tiny):
    """The contrast changes the result, its gradient passes the executor's mode, the model works as before after it."""
    with torch.inference_mode():
        plain = swap(replace(QUICK, method="cds", contrast=0.0))[1]["samples"]
        ours = swap(replace(QUICK, method="cds"))[1]["samples"]
        again = swap(replace(QUICK, method="dds"))[1]["samples"]
    assert ours.isfinite().all() and not torch.allclose(ours, plain)
    assert torch.allclose(plain, again)


def test_the_contrast_gradient_by_finite_differences(tiny, encode, picture):
    from inlay.guidance.contrastive import patch_nce
    from inlay.host.branches import inside_sampling
    from inlay.host.contrast import contrast_gradient
    from inlay.host.unet_blocks import grid_of

    texts = [encode(TEXTS.source), encode(TEXTS.target)]
    kept = []

    def keep(n, step):
        if step["block"][0] == "output":
            kept.append((n, *grid_of(step, n.shape[1])))
        return n

    tapped = tiny.model.clone()
    tapped.set_model_attn1_output_patch(keep)

    def body(forward, clean, sigmas):
        generator = torch.Generator().manual_seed(0)
        noise, target = torch.randn(2, *clean.shape, generator=generator)

        def loss(z):
            kept.clear()
            forward.noises([clean, z], noise, sigmas[0])
            draws = torch.Generator().manual_seed(1)
            # Rows: the negative's source and target, then the prompts'.
            return float(sum(patch_nce(n[3:], n[2:3], h, w, draws) for n, h, w in kept))

        gradient = contrast_gradient(forward, target, clean, noise, sigmas[0], torch.Generator().manual_seed(1))
        step = 0.1 * gradient / gradient.norm()
        want = (loss(target + step) - loss(target - step)) / 2
        assert float((gradient * step).sum()) == pytest.approx(want, rel=0.02)

    with torch.no_grad():
        latent = tiny.vae.encode(picture)
        inside_sampling(tapped, texts, encode(""), latent, torch.tensor([1.0]), 7.5, 0, body)


def test_a_contrast_that_overflows_is_left_out(swap, monkeypatch, caplog):
    from inlay.host import contrast

    plain = swap(replace(QUICK, method="cds", contrast=0.0))[1]["samples"]
    monkeypatch.setattr(contrast, "LOSS_SCALE", float("inf"))
    assert torch.equal(swap(replace(QUICK, method="cds"))[1]["samples"], plain)
    assert "gradient overflowed" in caplog.text


def test_pooled_outputs_and_lengths_are_stacked():
    one = [[torch.zeros(1, 77, 4), {"pooled_output": torch.zeros(1, 3)}]]
    two = [[torch.ones(1, 154, 4), {"pooled_output": torch.ones(1, 3)}]]
    ((context, extra),) = stack_texts([one, two], 2)
    assert context.shape == (4, 154, 4) and context[:, 0, 0].tolist() == [0, 0, 1, 1]
    assert extra["pooled_output"][:, 0].tolist() == [0, 0, 1, 1]


def test_hooks_and_schedules_that_one_forward_cannot_hold_are_refused():
    plain = [[torch.zeros(1, 77, 4), {"pooled_output": None}]]
    hooked = [[torch.zeros(1, 77, 4), {"hooks": object()}]]
    for texts in ([plain, hooked], [hooked, plain], [plain, plain * 2], [plain * 2, plain * 2]):
        with pytest.raises(ValueError, match="The texts carry hooks or schedules"):
            stack_texts(texts, 1)
    assert len(stack_texts([hooked, hooked], 1)) == 1
