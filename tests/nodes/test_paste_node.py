"""Paste Back as a graph runs it."""

import pytest
import torch
from inlay.guidance.paste import COLOUR_MATCHES
from inlay.nodes.paste import PasteBack


@pytest.mark.parametrize("feather", [0, 3, 256])
@pytest.mark.parametrize("colour_match", COLOUR_MATCHES)
def test_outside_a_mask_of_half_its_size_the_original_stays_bit_for_bit(feather, colour_match):
    draw = torch.Generator().manual_seed(0)
    original, edited = torch.rand(1, 62, 46, 3, generator=draw), torch.rand(2, 62, 46, 3, generator=draw)
    mask = torch.zeros(1, 31, 23)
    mask[:, 8:20, 6:15] = 1
    with torch.inference_mode():
        image, seam = PasteBack.execute(original, edited, mask, feather, colour_match).result
    assert image.shape == seam.shape == edited.shape
    inside = torch.zeros(62, 46, dtype=torch.bool)
    # Enlarging a mask softens its edge by a pixel.
    inside[15:41, 11:31] = True
    for painted in image:
        assert torch.equal(painted[~inside], original[0][~inside])
        assert (painted - original[0])[inside].abs().mean() > 0.02
    assert not torch.equal(image[0], image[1])
