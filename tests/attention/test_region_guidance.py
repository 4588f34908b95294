"""Region guidance's maths against loops in float64."""

import torch
from inlay.attention.region_guidance import Part, attend_alone, cross_attend, lay_out, region_tokens
from torch.nn.functional import scaled_dot_product_attention


def part(rows, tokens, text=None, alone=True):
    return Part(torch.tensor(rows), torch.tensor(tokens, dtype=torch.int64), text, alone)


def described(layout):
    return [(p.rows.tolist(), p.tokens.tolist(), p.text, p.alone, p.shared) for p in layout.parts]


def test_a_token_belongs_from_half_of_its_area_on():
    mask = torch.zeros(8, 12)
    mask[0:4, 0:2] = 1  # token 0 exactly half, token 3 untouched
    mask[4:8, 4:7] = 1  # token 4 three quarters
    mask[0:4, 8:9] = 1  # token 2 a quarter
    assert region_tokens(mask, 2, 3).tolist() == [0, 4]


def test_a_tiny_region_keeps_the_tokens_it_touches():
    mask = torch.zeros(64, 64)
    mask[33, 41] = 1
    mask[7:9, 0] = 1
    assert region_tokens(mask, 8, 8).tolist() == [0, 8, 4 * 8 + 5]


def test_no_mask_no_tokens():
    assert region_tokens(torch.zeros(16, 16), 5, 3).tolist() == []


def test_grids_that_do_not_divide_the_mask():
    mask = torch.zeros(136, 144)
    mask[:, 72:] = 1
    kept = region_tokens(mask, 9, 5)
    assert kept.tolist() == [row * 5 + column for row in range(9) for column in (2, 3, 4)]


def test_a_row_without_other_texts_is_served_by_the_block_itself():
    layout = lay_out([part([0, 1], [1, 2])], 2, 4, {})
    assert described(layout) == [([0, 1], [1, 2], None, True, True)]
    assert layout.texts == (None, None)


def test_the_first_text_is_the_blocks_own_and_further_texts_are_not():
    layout = lay_out([part([1], [0], text=0), part([1], [2], text=1), part([0], [0, 2])], 2, 4, {0: None, 1: 0})
    assert layout.texts == (None, 0)
    assert described(layout) == [
        ([1], [0], 0, True, True),
        ([1], [2], 1, True, False),
        ([0], [0, 2], None, True, True),
        ([0], [1, 3], None, False, True),
        ([1], [1, 3], 0, False, True),
    ]


def test_rows_alike_share_one_outside():
    layout = lay_out([part([0, 2], [3]), part([1], [0])], 3, 4, {0: 5, 1: 5, 2: 5})
    assert described(layout)[2:] == [([0, 2], [0, 1, 2], 5, False, False), ([1], [1, 2, 3], 5, False, False)]


def test_overlaps_of_one_text_take_a_further_call_and_half_each():
    layout = lay_out([part([0], [0, 1]), part([0], [1, 2]), part([0], [3])], 1, 4, {})
    assert [p.shared for p in layout.parts] == [True, False, True]
    assert [p.share.flatten().tolist() for p in layout.parts] == [[1, 0.5], [0.5, 1], [1]]


def test_a_region_off_the_grid_leaves_its_row_to_the_outside():
    layout = lay_out([part([0], []), part([1], [1])], 2, 2, {0: 3})
    assert described(layout) == [([1], [1], None, True, True), ([0], [0, 1], 3, False, True)]
    assert layout.texts == (3, None)


def attention(queries, keys, values):
    return scaled_dot_product_attention(queries, keys, values)


def test_alone_is_self_attention_of_the_region_only():
    torch.manual_seed(0)
    x, n = torch.randn(3, 10, 8, dtype=torch.float64), torch.randn(3, 10, 8, dtype=torch.float64)
    attended = attention(n, n, n)
    ours = attend_alone(part([0, 2], [1, 4, 7]), x + attended, attended, attention, n, n, n)
    for place, row in enumerate((0, 2)):
        for slot, token in enumerate((1, 4, 7)):
            weights = torch.stack([n[row, token] @ n[row, other] / 8**0.5 for other in (1, 4, 7)]).exp()
            mean = sum(w * n[row, other] for w, other in zip(weights / weights.sum(), (1, 4, 7), strict=True))
            assert torch.allclose(ours[place, slot], x[row, token] + mean, rtol=1e-12)


def test_tokens_that_another_pack_appended_stay_visible():
    torch.manual_seed(0)
    x, n, bank = torch.randn(1, 6, 4), torch.randn(1, 6, 4), torch.randn(1, 2, 4)
    keys = torch.cat([n, bank], 1)
    ours = attend_alone(part([0], [2, 3]), x, torch.zeros_like(x), attention, n, keys, keys)
    seen = torch.cat([n[:, 2:4], bank], 1)
    assert torch.allclose(ours, x[:, 2:4] + attention(n[:, 2:4], seen, seen), atol=1e-6)


def test_overlaps_average_and_the_rest_is_silent():
    torch.manual_seed(0)
    n, other = torch.randn(2, 5, 3), torch.randn(1, 2, 3)
    layout = lay_out([part([0, 1], [0, 1]), part([1], [1, 2], text=0)], 2, 5, {})
    ours = cross_attend(n, layout.parts, lambda number, _: {1: other}[number])
    want = torch.zeros(2, 5, 3)
    want[:, :2] = n[:, :2]
    want[1, 1] = (n[1, 1] + other[0, 0]) / 2
    want[1, 2] = other[0, 1]
    assert torch.equal(ours, want)
