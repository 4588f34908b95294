"""Watching attention on real UNets of the host: against their own projections, beside other packs' patches."""

import comfy.ldm.modules.attention as host_attention
import pytest
import torch
from inlay.host.attention_capture import watch_attention
from inlay.host.attention_layers import layer_grids
from inlay.host.attention_pass import clean_forwards, draw_noises
from inlay.host.region_patches import guide_region
from inlay.host.regions import Region
from inlay.host.unet_blocks import EXTRA_CALL, transformer_blocks

from .attention_capture_setup import fixture_latent, fixture_text, projections  # noqa: F401

OVERRIDE = "optimized_attention_override"


@pytest.fixture
def look(tiny, text, latent):
    """look(model, layers="all") -> what was seen in one forward at timestep 300, in order."""

    def run(model=None, latent=latent, kinds="self cross", text=text, t=300.0):
        model = model or tiny.model
        found = []
        layers = layer_grids(model.model.diffusion_model, *latent.shape[-2:])
        with clean_forwards(watch_attention(model, layers, found.append, kinds), text, latent) as forward:
            forward(t, draw_noises(0, latent, 1)[0])
        return found

    return run


def test_every_layer_is_seen_once_with_its_own_queries_and_keys(tiny, look):
    found = []
    own = projections(tiny.model, lambda: found.extend(look()))
    assert [(one.kind, one.layer) for one in found] == list(own)
    for one in found:
        q, k = own[one.kind, one.layer]
        assert torch.equal(one.queries, q) and torch.equal(one.keys, k)
        assert one.heads == 2 and one.keys.shape[1] == (one.grid[0] * one.grid[1] if one.kind == "self" else 77)


@pytest.mark.parametrize("size", [(16, 16), (17, 18), (23, 9)])
def test_grids_are_known_before_the_run(tiny, look, size):
    found = look(latent=torch.randn(1, 4, *size))
    assert {one.layer: one.grid for one in found} == layer_grids(tiny.model.model.diffusion_model, *size)
    assert len(found) == 20


def test_self_and_cross_are_told_apart_at_77_tokens(tiny, look):
    found = []
    own = projections(tiny.model, lambda: found.extend(look(latent=torch.randn(1, 4, 7, 11))))
    for one in found:
        assert torch.equal(one.keys, own[one.kind, one.layer][1])
    assert sum(one.keys.shape[1] == 77 for one in found if one.kind == "self") == 3


def test_the_forward_is_conditional_and_at_the_asked_noise(tiny, text, latent):
    calls = []

    def note(apply_model, args):
        calls.append((args["input"].clone(), args["timestep"].clone(), args["cond_or_uncond"]))
        return apply_model(args["input"], args["timestep"], **args["c"])

    noted = tiny.model.clone()
    noted.set_model_unet_function_wrapper(note)
    noise = draw_noises(7, latent, 1)[0]
    confined = [[text[0][0], {**text[0][1], "area": (4, 4, 0, 0), "start_percent": 0.9, "mask": torch.zeros(1, 8, 8)}]]
    with clean_forwards(noted, confined, latent) as forward:
        forward(300, noise)
    ((x, sigma, rows),) = calls
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    alpha = torch.cumprod(1 - betas, 0)[300]
    level = ((1 - alpha) / alpha).sqrt()
    assert rows == [0] and sigma.shape == (1,) and abs(float(sigma) - level) < 1e-5
    assert torch.allclose(x.double(), 0.18215 * latent.double() + level * noise.double(), atol=1e-5)


def test_the_model_computes_the_same_while_watched_and_afterwards(tiny, sample, look):
    plain = sample(tiny.model)
    found = []
    watched = watch_attention(tiny.model, transformer_blocks(tiny.model.model.diffusion_model), found.append)
    assert torch.equal(sample(watched), plain) and len(found) == 4 * 20
    options = dict(tiny.model.model_options["transformer_options"])
    look()
    assert tiny.model.model_options["transformer_options"] == options
    assert torch.equal(sample(tiny.model), plain)


def doubled(calls):
    def override(function, q, k, v, heads, *args, **kwargs):
        calls.append(q.shape)
        return function(q, k, 2 * v, heads, *args, **kwargs)

    return override


def test_an_override_that_was_there_before_stays_in_effect(tiny, sample, look):
    calls = []
    other = tiny.model.clone()
    other.model_options["transformer_options"][OVERRIDE] = doubled(calls)
    alone = sample(other)
    assert not torch.equal(alone, sample(tiny.model))
    assert torch.equal(sample(watch_attention(other, [("middle", 0, 0)], lambda _: None)), alone)
    calls.clear()
    assert len(look(other)) == 20 and len(calls) == 20


def test_an_override_that_comes_after_and_chains_keeps_ours(tiny, sample):
    found, calls = [], []
    watched = watch_attention(tiny.model, [("middle", 0, 0)], found.append, "self")
    later = watched.clone()
    ours = watched.model_options["transformer_options"][OVERRIDE]
    after = doubled(calls)
    later.model_options["transformer_options"][OVERRIDE] = lambda function, *args, **kwargs: after(
        lambda *a, **k: ours(function, *a, **k), *args, **kwargs
    )
    only = tiny.model.clone()
    only.model_options["transformer_options"][OVERRIDE] = doubled([])
    assert torch.equal(sample(later), sample(only)) and len(found) == 4


class Replaced:
    """A replacement as packs write them: attention of its own, out of any override's sight."""

    device = None

    def __call__(self, q, k, v, extra_options):
        return host_attention.attention_basic(q, k, 2 * v, extra_options["n_heads"])

    def to(self, device):
        self.device = device
        return self

    def models(self):
        return []


@pytest.mark.parametrize("name", ["attn1", "attn2"])
def test_a_replaced_attention_is_seen_and_still_replaced(tiny, sample, look, name):
    replaced, replacement = tiny.model.clone(), Replaced()
    replaced.set_model_patch_replace(replacement, name, "middle", 0)
    alone = sample(replaced)
    watched = watch_attention(replaced, [("middle", 0, 0)], lambda _: None)
    assert torch.equal(sample(watched), alone) and not torch.equal(alone, sample(tiny.model))
    replacement.device = None
    found = []
    own = projections(replaced, lambda: found.extend(look(replaced)))
    assert replacement.device is not None
    assert [(one.kind, one.layer) for one in found] == list(own)
    for one in found:
        assert torch.equal(one.queries, own[one.kind, one.layer][0])


def test_extra_calls_of_other_patches_are_not_counted(tiny, latent, look):
    plain = look()

    def call_again(x, step):
        q = torch.randn(1, x.shape[1], x.shape[2])
        host_attention.optimized_attention(q, q, q, 2, transformer_options={**step, EXTRA_CALL: True})
        host_attention.optimized_attention(q, q, q, 2, transformer_options=step)
        return x

    other = tiny.model.clone()
    other.set_model_patch(call_again, "middle_patch")
    found = look(other)
    assert [one.layer for one in found] == [one.layer for one in plain]
    assert all(torch.equal(a.queries, b.queries) for a, b in zip(found, plain, strict=True))


def test_region_guidance_stays_in_effect_while_maps_are_read(tiny, sample, look):
    mask = torch.zeros(1, 128, 144)
    mask[:, 30:90, 40:120] = 1
    guided = guide_region(tiny.model, [Region(mask)])
    alone = sample(guided)
    assert len(look(guided)) == 20
    watched = watch_attention(guided, [("output", 5, 0)], lambda _: None)
    assert torch.equal(sample(watched), alone)


def test_the_host_is_as_before_after_an_error(tiny, text, latent, sample):
    plain = sample(tiny.model)

    def fail(_):
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        with clean_forwards(watch_attention(tiny.model, [("middle", 0, 0)], fail), text, latent) as forward:
            forward(300, torch.zeros_like(latent))
    assert tiny.model.model.current_patcher is None
    assert torch.equal(sample(tiny.model), plain)
