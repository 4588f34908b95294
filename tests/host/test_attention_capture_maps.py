"""Maps read from attention on real UNets of the host: the papers' formulas, on any backend and family."""

import comfy.ldm.modules.attention as host_attention
import comfy.model_management
import pytest
import torch
from inlay.host.attention_capture import watch_attention
from inlay.host.attention_pass import clean_forwards, draw_noises
from inlay.host.saliency import chosen_layers, self_attention_map, word_maps

from .attention_capture_setup import fixture_latent, fixture_text, projections  # noqa: F401


def weights(q, k, heads):
    q, k = (t[0].double().unflatten(1, (heads, -1)).transpose(0, 1) for t in (q, k))
    return torch.softmax(q @ k.mT / q.shape[-1] ** 0.5, -1).mean(0)


def test_the_saliency_map_is_the_papers_formula(tiny, text, latent):
    """Mean over heads, sum over queries, of attention rebuilt in float64 from the middle block's projections."""
    key = ("middle", 0, 0)
    maps = []
    own = projections(
        tiny.model, lambda: maps.append(self_attention_map(tiny.model, text, latent, [key], [400.0], seed=3))
    )
    want = weights(*own["self", key], 2).sum(0).view(1, 4, 5)
    assert torch.allclose(maps[0].double(), want, atol=1e-5)
    assert abs(float(maps[0].mean()) - 1) < 1e-6 and maps[0].std() > 1e-3


def test_the_word_map_is_the_papers_formula(tiny, text, latent):
    keys = chosen_layers(tiny.model, latent, "16x16")
    assert keys == [("input", 1, 0), ("output", 4, 0), ("output", 5, 0)]
    maps = []
    own = projections(
        tiny.model, lambda: maps.append(word_maps(tiny.model, text, latent, [2, 3], keys, [300.0], alpha=2.0))
    )
    cross = sum(weights(*own["cross", key], 2)[:, [2, 3]].mean(1) for key in keys) / 3
    own_attention = sum(weights(*own["self", key], 2) for key in keys) / 3
    want = own_attention @ cross**2
    assert torch.allclose(maps[0].double().flatten(), want / want.max(), atol=1e-4)
    alone = word_maps(tiny.model, text, latent, [2, 3], keys, [300.0], alpha=1.0, self_attention=False)
    assert torch.allclose(alone.double().flatten(), cross / cross.max(), atol=1e-4)


def test_draws_and_timesteps_are_averaged(tiny, text, latent):
    keys = chosen_layers(tiny.model, latent, "16x16")
    noises = iter(draw_noises(5, latent, 4))
    singles = []
    for t in (500.0, 500.0, 100.0, 100.0):
        seen = []
        watched = watch_attention(tiny.model, keys, seen.append, "self")
        with clean_forwards(watched, text, latent) as forward:
            forward(t, next(noises))
        sums = [weights(one.queries, one.keys, 2).sum(0) for one in seen]
        singles.append(torch.stack(sums).mean(0).view(1, 16, 18))
    ours = self_attention_map(tiny.model, text, latent, keys, [500.0, 100.0], draws=2, seed=5)
    assert torch.allclose(ours.double(), torch.stack(singles).mean(0), atol=1e-5)


def test_calibrated_maps_are_standard_deviations_above_the_border(tiny, text, latent):
    keys = chosen_layers(tiny.model, latent, "all")
    seen = self_attention_map(tiny.model, text, latent, keys, [300.0], reading="calibrated self-attention")[0]
    assert abs(float(seen.mean())) < 1e-5 and abs(float(seen.std(correction=0)) - 1) < 1e-5
    assert torch.cat([seen[0], seen[-1], seen[1:-1, 0], seen[1:-1, -1]]).mean() <= 0


@pytest.mark.parametrize("backend", ["pytorch", "split", "sub_quad"])
def test_any_backend_gives_the_same_map(tiny, text, latent, backend, monkeypatch):
    keys = chosen_layers(tiny.model, latent, "all")
    plain = word_maps(tiny.model, text, latent, [3], keys, [300.0])
    monkeypatch.setattr(host_attention, "optimized_attention", getattr(host_attention, f"attention_{backend}"))
    assert torch.allclose(word_maps(tiny.model, text, latent, [3], keys, [300.0]), plain, atol=1e-4)


def test_merged_tokens_are_refused(tiny, text, latent):
    merging = tiny.model.clone()
    merging.set_model_attn1_patch(lambda n, context, value, step: (n, context[:, ::2], value[:, ::2]))
    for call in (
        lambda: self_attention_map(merging, text, latent, [("middle", 0, 0)], [300.0]),
        lambda: word_maps(merging, text, latent, [2], [("middle", 0, 0)], [300.0]),
    ):
        with pytest.raises(ValueError, match="merges their tokens"):
            call()


def test_cancel_goes_through(tiny, text, latent):
    comfy.model_management.interrupt_current_processing(True)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        self_attention_map(tiny.model, text, latent, [("middle", 0, 0)], [300.0])
    assert not comfy.model_management.processing_interrupted()


def test_inference_mode_changes_nothing(tiny, text, latent):
    keys = chosen_layers(tiny.model, latent, "middle")
    plain = self_attention_map(tiny.model, text, latent, keys, [300.0])
    with torch.inference_mode():
        assert torch.equal(self_attention_map(tiny.model, text, latent.clone(), keys, [300.0]), plain)


@pytest.mark.parametrize("name", ["v_model", "inpaint_model"])
def test_other_unets_are_read_too(tiny, text, latent, name):
    model = getattr(tiny, name)
    seen = self_attention_map(model, text, latent, chosen_layers(model, latent, "all"), [500.0, 100.0])
    assert seen.shape == (1, 16, 18) and seen.std() > 1e-4
