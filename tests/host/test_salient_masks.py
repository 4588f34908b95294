import pytest
import torch
from inlay.host.salient_masks import salient_masks


def scores(*specks):
    one = torch.zeros(1, 32, 32)
    for row, column in specks:
        one[0, row, column] = 2.0
    return one


def test_what_erased_the_whole_mask_is_what_the_error_names():
    with pytest.raises(ValueError, match="^The picture has no salient part above the threshold 3. Lower the threshold"):
        salient_masks(scores((5, 5)), 3.0, clean_up=2)
    with pytest.raises(ValueError, match="^The picture has no salient part that a clean-up of 2 pixels leaves."):
        salient_masks(scores((5, 5)), 1.0, clean_up=2)
    pair = torch.cat([torch.full((1, 32, 32), 2.0), scores((5, 5))])
    with pytest.raises(ValueError, match="^Picture 2 of 2 has no salient part that a clean-up"):
        salient_masks(pair, 1.0, clean_up=2)
    assert salient_masks(pair, 1.0)[0].sum() == 32 * 32 + 1
