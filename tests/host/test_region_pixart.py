"""Region guidance on PixArt, reduced in depth and width: against its block in float64, and what holds in any case."""

import copy

import pytest
import torch
from inlay.host.region_patches import Region, guide_region
from torch.nn.functional import interpolate, layer_norm

# PixArt divides by zero for latents of 32 x 32 and less.
SIZE = (48, 40)
LEFT, RIGHT = torch.zeros(384, 320), torch.zeros(384, 320)
LEFT[:150, :200] = 1
RIGHT[100:300, 120:] = 1
FULL = torch.ones(384, 320)


def text(seed, length=20):
    return torch.randn(1, length, 40, generator=torch.Generator().manual_seed(seed))


def build(**changes):
    import comfy.model_patcher
    import comfy.supported_models
    from inlay.host.demo_models import initialise

    config = {
        "image_model": "pixart_alpha", "input_size": 64, "patch_size": 2, "in_channels": 4, "hidden_size": 48,
        "depth": 2, "num_heads": 4, "caption_channels": 40, "micro_condition": False, "pred_sigma": True,
    }  # fmt: skip
    supported = comfy.supported_models.PixArtAlpha({**config, **changes})
    supported.set_inference_dtype(torch.float32, None)
    cpu = torch.device("cpu")
    model = supported.get_model({}, device=cpu)
    initialise(model.diffusion_model, seed=0)
    model.requires_grad_(False)
    return comfy.model_patcher.ModelPatcher(model, load_device=cpu, offload_device=cpu)


@pytest.fixture(scope="module")
def model():
    return build()


@pytest.fixture
def run(sample):
    positive, negative = [[text(1), {}]], [[text(2), {}]]

    def go(model, positive=positive, **options):
        return sample(model, positive, negative, **{"size": SIZE, "steps": 1, **options})

    return go


def far(one, other):
    return ((one - other).norm() / other.norm()).item()


@pytest.mark.parametrize("outside", ["zero", "text"])
def test_a_full_mask_is_the_plain_model(model, run, outside):
    assert far(run(guide_region(model, [Region(FULL)], outside)), run(model)) < 1e-5


def test_a_full_mask_with_a_text_is_the_plain_model_with_that_text(model, run):
    plain = run(model, [[text(7), {}]])
    assert far(run(guide_region(model, [Region(FULL, text(7))])), plain) < 1e-5
    assert far(run(model), plain) > 1e-4


def test_the_plain_model_is_restored(model, run):
    before, keys = run(model), set(model.model.state_dict())
    guided = guide_region(model, [Region(LEFT)])
    assert far(run(guided), before) > 1e-3
    assert torch.equal(run(model), before)
    assert not model.object_patches and set(model.model.state_dict()) == keys
    assert torch.equal(run(guide_region(model, [Region(LEFT)], start_percent=1.0)), before)


def inside(mask):
    return interpolate(mask[None, None], (SIZE[0] // 2, SIZE[1] // 2), mode="area").flatten() >= 0.5


def attend(q, k, v, heads):
    q, k, v = (t.unflatten(-1, (heads, -1)).transpose(0, 1) for t in (q, k, v))
    return (torch.softmax(q @ k.transpose(1, 2) / q.shape[-1] ** 0.5, -1) @ v).transpose(0, 1).flatten(1)


def block_output(block, x, t, regions, outside):
    """One row in float64. x: (N, C). t: (6 C,). regions: [(inside (N,), text (L, C))]."""
    block, x = copy.deepcopy(block).double(), x.double()
    shift, scale, gate, shift_mlp, scale_mlp, gate_mlp = block.scale_shift_table + t.double().view(6, -1)
    heads = block.attn.num_heads

    def self_attention(n):
        return gate * block.attn.proj(attend(*block.attn.qkv(n).chunk(3, -1), heads))

    def cross_attention(asked, read):
        k, v = block.cross_attn.kv_linear(read.double()).chunk(2, -1)
        return block.cross_attn.proj(attend(block.cross_attn.q_linear(asked), k, v, heads))

    n = layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale) + shift
    y = x + self_attention(n)
    crossed, count = torch.zeros_like(x), torch.zeros(len(x), 1, dtype=torch.float64)
    for tokens, read in regions:
        crossed[tokens] += cross_attention(x[tokens] + self_attention(n[tokens]), read)
        count[tokens] += 1
    crossed /= count.clamp(min=1)
    if outside is not None:
        free = count[:, 0] == 0
        crossed[free] = cross_attention(y[free], outside)
    y = y + crossed
    return y + gate_mlp * block.mlp(layer_norm(y, y.shape[-1:], eps=1e-6) * (1 + scale_mlp) + shift_mlp)


@pytest.mark.parametrize("outside", ["zero", "null", "text"])
def test_every_block_is_the_formula(model, run, monkeypatch, outside):
    from inlay.host import pixart_region

    there, elsewhere, calls, real = text(3, 40), text(4), [], pixart_region._forward

    def record(number, call, x, y, t, mask=None, HW=None, **rest):
        out = real(number, call, x, y, t, mask, HW, **rest)
        calls.append((call.blocks[number], x, y.reshape(len(x), -1, y.shape[-1]), t, out))
        return out

    monkeypatch.setattr(pixart_region, "_forward", record)
    regions = [Region(LEFT, there), Region(RIGHT)]
    run(guide_region(model, regions, outside, null_text=elsewhere, outside_text=elsewhere), cfg=5.0)
    embed = model.model.diffusion_model.y_embedder
    with torch.no_grad():
        there, elsewhere = embed(there, False)[0], embed(elsewhere, False)[0]
        assert len(calls) == 2 and len(calls[0][1]) == 2
        for block, x, own, t, out in calls:
            for row in range(2):  # the negative row first
                wanted = [(inside(LEFT), there if row else own[row]), (inside(RIGHT), own[row])]
                rest = {"zero": None, "null": elsewhere, "text": elsewhere if row else own[row]}[outside]
                want = block_output(block, x[row], t[row], wanted, rest)
                assert far(out[row], want) < 3e-6


def test_a_copy_of_the_guided_model_runs_its_own_blocks(model, run):
    """As under a dynamic patcher, whose static copy carries the same patches."""
    other = build()
    for block in other.model.diffusion_model.blocks:
        block.attn.proj.weight.data *= -2
    guided = guide_region(model, [Region(LEFT)])
    copied = guided.clone(model_override=other.get_clone_model_override())
    wanted = run(guide_region(other, [Region(LEFT)]))
    assert far(run(guided), wanted) > 1e-3
    assert torch.equal(run(copied), wanted)


def test_compressed_keys_keep_the_text_inside(run):
    model = build(kv_compress_config={"sampling": "uniform_every", "scale_factor": 2, "kv_compress_layer": [0, 1]})
    plain = run(model)
    assert far(run(guide_region(model, [Region(FULL)])), plain) < 1e-5
    masked = run(guide_region(model, [Region(LEFT)], form="masked_output"))
    assert torch.equal(run(guide_region(model, [Region(LEFT)])), masked)
    assert far(masked, plain) > 1e-3


def test_replaced_blocks_are_refused(model):
    other = model.clone()
    other.add_object_patch("diffusion_model.blocks.0.forward", lambda *a, **k: None)
    with pytest.raises(ValueError, match="Another node has replaced the blocks"):
        guide_region(other, [Region(LEFT)])


@pytest.mark.full_size
def test_the_width_of_pixart(sample):
    model = build(hidden_size=1152, num_heads=16, caption_channels=4096, micro_condition=True)
    conditions = [[[torch.randn(1, 120, 4096, generator=torch.Generator().manual_seed(seed)), {}]] for seed in (1, 2)]
    plain = sample(model, *conditions, size=SIZE, steps=1)
    assert far(sample(guide_region(model, [Region(FULL)]), *conditions, size=SIZE, steps=1), plain) < 1e-5
    guided = sample(guide_region(model, [Region(LEFT)]), *conditions, size=SIZE, steps=1)
    assert guided.isfinite().all() and far(guided, plain) > 1e-5
