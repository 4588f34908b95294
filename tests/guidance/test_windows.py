"""Decoding around the mask: with a decoder that sees no further than the margin it is exact, gradient and all."""

import pytest
import torch
from inlay.guidance.windows import MARGIN, decode_windows, window_around
from torch.nn.functional import conv2d, interpolate

HEIGHT, WIDTH, CELL = 16, 20, 8


def masks(*boxes):
    found = torch.zeros(len(boxes), HEIGHT * CELL, WIDTH * CELL)
    for mask, (top, left, height, width) in zip(found, boxes, strict=True):
        mask[top : top + height, left : left + width] = 1
    return found


def near_sighted(latent):
    """Sees one cell beyond its own on each side."""
    kernel = torch.linspace(-1, 1, 3 * 4 * 9, dtype=latent.dtype).reshape(3, 4, 3, 3)
    return interpolate(conv2d(latent, kernel, padding=1).tanh(), scale_factor=CELL)


def test_a_window_holds_its_mask_and_the_margin():
    cells = torch.zeros(HEIGHT, WIDTH)
    cells[4:7, 2:6] = 0.1
    assert window_around(cells) == (4 - MARGIN, 2 - MARGIN, 3 + 2 * MARGIN, 4 + 2 * MARGIN)
    cells[HEIGHT - 1, 0] = 1
    assert window_around(cells) == (4 - MARGIN, 0, HEIGHT - 4 + MARGIN, 6 + MARGIN)
    assert window_around(torch.ones(HEIGHT, WIDTH)) == (0, 0, HEIGHT, WIDTH)
    cells = torch.zeros(64, 64)
    cells[30:34, 30:34] = 1
    assert window_around(cells) == (22, 22, 20, 20)


@pytest.mark.parametrize("boxes", [[(33, 17, 20, 30)], [(33, 17, 20, 30), (0, 150, 9, 10)], [(100, 0, 28, 150)]])
def test_inside_the_masks_picture_and_gradient_are_the_whole_decoders(boxes):
    mask = masks(*boxes)
    latent = torch.randn(4, 4, HEIGHT, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    seen = []

    def counted(rows):
        seen.append(rows.shape[-2] * rows.shape[-1])
        return near_sighted(rows)

    found = []
    for decode in (near_sighted, lambda rows: decode_windows(counted, rows, mask)):
        leaf = latent.clone().requires_grad_()
        inside = decode(leaf) * mask.repeat(4 // len(mask), 1, 1)[:, None]
        (gradient,) = torch.autograd.grad((inside**2).sum(), leaf)
        found.append((inside.detach(), gradient))
    (picture, gradient), (windowed, its) = found
    assert picture.abs().max() > 0.1 and gradient.abs().max() > 0.1
    torch.testing.assert_close(windowed, picture, rtol=0, atol=0)
    torch.testing.assert_close(its, gradient, rtol=1e-12, atol=1e-12)
    assert len(seen) == len(mask) and max(seen) < HEIGHT * WIDTH


def test_a_mask_as_large_as_the_picture_is_decoded_whole():
    latent = torch.randn(1, 4, HEIGHT, WIDTH)
    mask = masks((0, 0, HEIGHT * CELL, WIDTH * CELL - 8))
    assert torch.equal(decode_windows(near_sighted, latent, mask), near_sighted(latent))
