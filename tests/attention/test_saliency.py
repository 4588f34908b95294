"""Column sums and word maps against the formulas in float64."""

import math

import pytest
import torch
from inlay.attention.cross_maps import refined_map, spread, word_map
from inlay.attention.saliency import BUDGET, attention_rows, column_sums, mean_map, oriented, resize_map, soften
from inlay.attention.salient_sources import (
    AUTO_THRESHOLD,
    BORDER,
    READINGS,
    RECEIVED,
    auto_threshold,
    evenness,
    joined_map,
    layer_map,
)
from torch.utils._python_dispatch import TorchDispatchMode

HEADS = 3


@pytest.fixture
def qk():
    generator = torch.Generator().manual_seed(0)
    return tuple(3 * torch.randn(2, 35, HEADS * 8, generator=generator) for _ in range(2))


def full_attention(q, k, heads):
    """(B, heads, N, M), float64, one entry at a time."""
    batch, count, width = q.shape
    size = width // heads
    result = torch.zeros(batch, heads, count, k.shape[1], dtype=torch.float64)
    for b in range(batch):
        for h in range(heads):
            part = slice(h * size, (h + 1) * size)
            logits = q[b, :, part].double() @ k[b, :, part].double().T / math.sqrt(size)
            weights = (logits - logits.max(1, keepdim=True).values).exp()
            result[b, h] = weights / weights.sum(1, keepdim=True)
    return result


@pytest.mark.parametrize("budget", [1, 700, 1 << 24])
def test_column_sums_are_the_formula_however_they_are_chunked(qk, budget):
    want = full_attention(*qk, HEADS).mean(1).sum(1)
    assert torch.allclose(column_sums(*qk, HEADS, budget).double(), want, atol=1e-5)


def test_the_map_sums_over_queries_not_over_keys(qk):
    sums = column_sums(*qk, HEADS)
    assert (sums.mean(1) - 1).abs().max() < 1e-6
    assert sums.std() > 0.1  # a sum over keys would be 1 everywhere


def test_rows_sum_to_one(qk):
    rows = torch.cat([weights for _, weights in attention_rows(*qk, HEADS, 500)], 1)
    assert rows.shape == (2, 35, 35)
    assert (rows.sum(2) - 1).abs().max() < 1e-6


def test_half_precision_is_accumulated_in_single(qk):
    half = [t.half() for t in qk]
    assert torch.equal(column_sums(*half, HEADS), column_sums(*(t.float() for t in half), HEADS))


class LargestTensor(TorchDispatchMode):
    """The number of elements of the largest tensor that any operation returns."""

    elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for one in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(one, torch.Tensor):
                self.elements = max(self.elements, one.numel())
        return result


def test_no_full_matrix_at_a_large_size():
    tokens, heads = 4096, 8
    q, k = (torch.randn(1, tokens, heads * 4) for _ in range(2))
    with LargestTensor() as seen:
        rows, weights = next(attention_rows(q, k, heads))
    assert seen.elements <= BUDGET <= heads * tokens * tokens // 8
    assert weights.shape == (1, rows.stop, tokens) and rows.stop == BUDGET // (heads * tokens)
    q, k = q[:, :1024], k[:, :1024]
    with LargestTensor() as seen:
        sums = column_sums(q, k, heads, budget=1 << 18)
    assert seen.elements <= 1 << 18 < heads * 1024 * 1024 // 16
    assert abs(float(sums.mean()) - 1) < 1e-5


def test_threshold_agrees_with_the_hosts_own_self_attention_guidance(monkeypatch):
    """The oracle: the mask inside create_blur_map, made visible by a blur that turns everything to 1."""
    from comfy_extras import nodes_sag

    generator = torch.Generator().manual_seed(1)
    q, k = (2 * torch.randn(1, 4 * 6, HEADS * 8, generator=generator) for _ in range(2))
    monkeypatch.setattr(nodes_sag, "gaussian_blur_2d", lambda img, **_: torch.ones_like(img))
    attention = nodes_sag.attention_basic_with_sim(q, k, k, HEADS)[1]
    theirs = nodes_sag.create_blur_map(torch.zeros(1, 1, 8, 12), attention, threshold=1.0)[:, 0]
    ours = resize_map(column_sums(q, k, HEADS).unflatten(1, (4, 6)), 4, 6)
    ours = (ours > 1).float().repeat_interleave(2, 1).repeat_interleave(2, 2)
    assert torch.equal(ours, theirs)
    assert 0.2 < ours.mean() < 0.8


def test_resizing_keeps_the_level(qk):
    maps = column_sums(*qk, HEADS).unflatten(1, (5, 7))
    larger = resize_map(maps, 40, 56)
    assert larger.shape == (2, 40, 56)
    assert (larger.mean((1, 2)) - 1).abs().max() < 0.03
    assert larger.min() >= maps.min() and larger.max() <= maps.max()


def test_layers_of_several_grids_are_averaged_on_the_finest():
    coarse, fine = torch.full((1, 2, 3), 4.0), torch.full((1, 8, 12), 2.0)
    assert torch.equal(mean_map([coarse, fine]), torch.full((1, 8, 12), 3.0))


@pytest.mark.parametrize("sign", [1, -1])
def test_the_border_decides_the_sign(sign):
    thing = torch.zeros(9, 11)
    thing[3:6, 4:7] = sign
    map_ = oriented(1 + 0.2 * thing[None])[0]
    assert map_[3:6, 4:7].min() > 1 and map_[0].max() < 0
    assert abs(float(map_.mean())) < 1e-6 and abs(float(map_.square().mean()) - 1) < 1e-5


def test_a_flat_map_orients_to_zero():
    assert torch.equal(oriented(torch.ones(1, 4, 4)), torch.zeros(1, 4, 4))


def test_the_soft_mask_is_a_half_at_the_threshold():
    assert soften(torch.tensor([-1.0, 0.0, 0.75, 1.5, 3.0, 9.0]), 1.5).tolist() == [0, 0, 0.25, 0.5, 1, 1]


def test_the_word_map_is_the_mean_over_heads_and_tokens(qk):
    q, k = qk[0], qk[1][:, :13]
    want = full_attention(q, k, HEADS).mean(1)[:, :, [4, 5, 9]].mean(2)
    assert torch.allclose(word_map(q, k, HEADS, [4, 5, 9], budget=300).double(), want, atol=1e-6)


def test_spreading_is_attention_whose_values_are_the_map(qk):
    values = torch.rand(2, 35)
    want = torch.einsum("bhij,bj->bi", full_attention(*qk, HEADS), values.double()) / HEADS
    assert torch.allclose(spread(*qk, HEADS, values, budget=300).double(), want, atol=1e-6)


def test_the_refined_map_is_equation_8(qk):
    """A_self (A_cross)^alpha with the power before the product, each the mean over layers, over its maximum."""
    other = tuple(t.flip(1) for t in qk)
    cross = [torch.rand(2, 35) / 77, torch.rand(2, 35) / 77]
    self_mean = (full_attention(*qk, HEADS).mean(1) + full_attention(*other, HEADS).mean(1)) / 2
    want = (self_mean @ (torch.stack(cross).double().mean(0) ** 2)[..., None])[..., 0]
    want = want / want.amax(1, keepdim=True)
    ours = refined_map([(*qk, HEADS), (*other, HEADS)], cross, alpha=2)
    assert torch.allclose(ours.double(), want, atol=1e-5)
    assert ours.amax(1).tolist() == [1, 1]
    plain = refined_map([], cross, alpha=3).double()
    want = torch.stack(cross).double().mean(0) ** 3
    assert torch.allclose(plain, want / want.amax(1, keepdim=True), atol=1e-5)


def test_what_attends_least_to_the_border_is_salient(qk):
    grid = (5, 7)
    weights = full_attention(*qk, HEADS).mean(1)
    edge = torch.ones(5, 7, dtype=torch.float64)
    edge[1:-1, 1:-1] = 0
    want = -(weights @ edge.flatten()).unflatten(1, grid)
    found = layer_map(BORDER, *qk, HEADS, grid)
    assert torch.allclose(found.double(), want, atol=1e-5)
    joined = joined_map(BORDER, [found, found])
    assert torch.allclose(joined, (found - found.mean((1, 2), keepdim=True)) / found.std((1, 2), False)[:, None, None])


def test_parts_that_attend_to_themselves_show_by_the_border_and_not_by_the_column_sum():
    thing = torch.zeros(1, 6, 8)
    thing[:, 2:4, 3:6] = 1
    own = 40 * torch.stack([thing.flatten(1), 1 - thing.flatten(1)], 2)
    received, kept = (layer_map(reading, own, own, 1, (6, 8)) for reading in (RECEIVED, BORDER))
    assert torch.allclose(received, torch.ones(1, 6, 8), atol=1e-4)
    assert kept[thing > 0].min() > kept[thing == 0].max() + 0.3


def test_every_row_of_a_batch_is_read_by_itself(qk):
    for reading in READINGS:
        alone = [
            joined_map(reading, [layer_map(reading, q[None], k[None], HEADS, (5, 7))]) for q, k in zip(*qk, strict=True)
        ]
        together = joined_map(reading, [layer_map(reading, *qk, HEADS, (5, 7))])
        assert torch.allclose(together, torch.cat(alone), atol=1e-5)


@pytest.mark.parametrize("side", [3, 5, 7, 9, 11, 13])
def test_the_automatic_threshold_finds_small_things_and_close_ups(side):
    """Of a thing of side x side cells among 16 x 16, which gives less to the border than what is around it."""
    thing = torch.zeros(16, 16, dtype=torch.bool)
    first = (16 - side) // 2
    thing[first : first + side, first : first + side] = True
    noise = 0.05 * torch.randn(16, 16, generator=torch.Generator().manual_seed(side))
    found = joined_map(BORDER, [(thing + noise)[None]])
    (least,), (found,) = auto_threshold(found), found
    assert torch.equal(found >= least, thing)
    assert (least == AUTO_THRESHOLD) == (side < 8)
    # What it is there for: of the close-ups one threshold for all misses most.
    assert ((found >= AUTO_THRESHOLD).sum() < 0.7 * thing.sum()) == (side > 9)


def test_evenness_is_the_least_share_of_the_mean_one():
    fine = torch.full((2, 4, 4), -0.4)
    fine[0, 1:3, 1:3] = -0.1
    coarse = torch.full((2, 2, 2), -0.4)
    # By hand, of the first picture: (.1 + .4) / 2 over ((12 * .4 + 4 * .1) / 16 + .4) / 2.
    torch.testing.assert_close(evenness([fine, coarse]), torch.tensor([0.25 / 0.3625, 1.0]))
