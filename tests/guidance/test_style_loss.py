"""The Gram loss against eq. 5, cell by cell in float64, and its gradient against differences."""

import pytest
import torch
from inlay.guidance.style_loss import GramLoss, gram


def draw(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def features(pictures):
    """Two layers, the second one halved; not linear."""
    kernel = draw(5, 3, 3, 3, seed=9)
    first = torch.nn.functional.conv2d(pictures, kernel.to(pictures), padding=1).relu() + 0.1
    return [first, torch.nn.functional.avg_pool2d(first, 2) ** 2]


def formula(maps, weight=None):
    """G_ij = sum of w f_i f_j over the cells / (C sum of w). maps: (C, h, w). weight: (h, w)."""
    channels, height, width = maps.shape
    total, counted = torch.zeros(channels, channels, dtype=torch.float64), 0.0
    for y in range(height):
        for x in range(width):
            share = 1.0 if weight is None else float(weight[y, x])
            total = total + share * torch.outer(maps[:, y, x], maps[:, y, x])
            counted += share
    return total / (channels * counted)


def halved(weight):
    height, width = weight.shape
    return weight.reshape(height // 2, 2, width // 2, 2).mean((1, 3))


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("balanced", [False, True])
def test_the_value_is_the_formulas(masked, balanced):
    pictures, style = draw(2, 3, 6, 8), draw(1, 3, 4, 6, seed=1)
    inside, outside = (draw(1, *x.shape[-2:], seed=2).sigmoid() if masked else None for x in (pictures, style))
    values = GramLoss(features, style, outside, balanced)(pictures, inside)
    for row, value in enumerate(values):
        want = 0.0
        for layer in (0, 1):
            own, target = features(pictures)[layer][row], features(style)[layer][0]
            weights = [None, None]
            if masked:
                weights = [it[0] if layer == 0 else halved(it[0]) for it in (inside, outside)]
            target = formula(target, weights[1])
            distance = (formula(own, weights[0]) - target).square().sum()
            want += float(distance / target.square().sum() if balanced else distance)
        assert float(value) == pytest.approx(want, rel=1e-12)


@pytest.mark.parametrize("weight", [None, draw(2, 6, 8, seed=3).sigmoid()])
@pytest.mark.parametrize("balanced", [False, True])
def test_the_gradient_is_the_differences(weight, balanced):
    loss = GramLoss(features, draw(1, 3, 6, 8, seed=1), None, balanced)
    assert torch.autograd.gradcheck(lambda x: loss(x, weight), draw(2, 3, 6, 8).requires_grad_())


def test_a_picture_has_its_own_style_wherever_its_pixels_lie():
    style = draw(1, 3, 4, 6)
    assert GramLoss(lambda x: [x], style)(style).item() == 0
    shuffled = style.flatten(2)[..., torch.randperm(24, generator=torch.Generator().manual_seed(0))].view_as(style)
    assert GramLoss(lambda x: [x], style)(shuffled).item() < 1e-28
    assert GramLoss(lambda x: [x], style)(style * 1.1).item() > 1e-4


def test_only_the_weighted_pixels_count():
    weight = torch.zeros(1, 4, 4, dtype=torch.float64)
    weight[:, :, :2] = 1
    maps = draw(1, 3, 4, 4)
    torch.testing.assert_close(gram(maps, weight), gram(maps[..., :2]))
    assert gram(maps.half()).dtype == torch.float32


def test_one_style_for_each_picture_in_turn():
    styles, pictures = draw(2, 3, 4, 4, seed=1), draw(4, 3, 4, 4)
    values = GramLoss(features, styles)(pictures)
    for row in range(4):
        alone = GramLoss(features, styles[row % 2][None])(pictures[row][None])
        torch.testing.assert_close(values[row], alone[0])


def test_bad_input_says_so():
    with pytest.raises(ValueError, match="3 style pictures and 4 latents. Give one, or one for each latent"):
        GramLoss(features, draw(3, 3, 4, 4))(draw(4, 3, 4, 4))
    with pytest.raises(ValueError, match="values that are not numbers"):
        GramLoss(features, draw(1, 3, 4, 4) / 0)
