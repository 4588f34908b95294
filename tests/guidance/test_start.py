"""What lies under the first noise: nothing, the picture, or its surroundings continued."""

import torch
from inlay.guidance.start import start_latent

LATENT = torch.randn(2, 4, 8, 10, generator=torch.Generator().manual_seed(0))
INSIDE = torch.zeros(2, 1, 8, 10)
INSIDE[:, :, 2:6, 3:8] = 1


def test_outside_the_mask_it_is_the_picture():
    for start in ("surroundings", "noise", "picture"):
        assert torch.equal((start_latent(start, LATENT, INSIDE) - LATENT) * (1 - INSIDE), torch.zeros_like(LATENT))


def test_noise_starts_from_nothing_and_the_picture_from_itself():
    assert not (start_latent("noise", LATENT, INSIDE) * INSIDE).any()
    assert torch.equal(start_latent("picture", LATENT, INSIDE), LATENT)


def test_surroundings_know_nothing_of_what_was_in_the_mask():
    other = torch.where(INSIDE > 0, torch.randn_like(LATENT), LATENT)
    one = start_latent("surroundings", LATENT, INSIDE)
    assert torch.equal(one, start_latent("surroundings", other, INSIDE))
    assert (one * INSIDE).any()


def test_an_even_surrounding_is_continued():
    even = torch.full((1, 4, 8, 10), 0.7)
    holed = torch.where(INSIDE[:1] > 0, torch.tensor(-3.0), even)
    assert torch.allclose(start_latent("surroundings", holed, INSIDE[:1]), even, atol=1e-5)


def test_half_precision_stays_half():
    assert start_latent("surroundings", LATENT.half(), INSIDE).dtype == torch.float16


def test_where_nothing_stands_around_it_is_noise():
    assert not start_latent("surroundings", LATENT, torch.ones(2, 1, 8, 10)).any()
