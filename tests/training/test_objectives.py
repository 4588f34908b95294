"""Each objective against its own formula in float64, from what a model would predict."""

import pytest
import torch
from inlay.training.objectives import OBJECTIVES, Estimate, objective_loss

G = torch.Generator().manual_seed(1)
CLEAN = torch.randn(1, 4, 6, 8, generator=G, dtype=torch.float64)
NOISE = torch.randn(1, 4, 6, 8, generator=G, dtype=torch.float64)
PREDICTED = torch.randn(1, 4, 6, 8, generator=G, dtype=torch.float64)
PICTURE = torch.rand(1, 3, 48, 64, generator=G)
DECODED = torch.rand(1, 3, 48, 64, generator=G)
SALIENCY = (torch.rand(1, 1, 6, 8, generator=G) > 0.5).double()
SIGMA = 1.62
A = 1 / (1 + SIGMA**2) ** 0.5
S = SIGMA * A


def clean_of(prediction):
    """z0_hat in the VP formulas of the papers: z_t = a z0 + s eps."""
    noised = A * CLEAN + S * NOISE
    return (noised - S * PREDICTED) / A if prediction == "eps" else A * noised - S * PREDICTED


def base(prediction):
    target = NOISE if prediction == "eps" else A * NOISE - S * CLEAN
    return ((PREDICTED - target) ** 2).mean()


def ours(name, prediction="eps", **options):
    estimate = Estimate(clean_of(prediction).float(), CLEAN.float(), torch.tensor([SIGMA]), prediction)
    return objective_loss(
        OBJECTIVES[name], estimate, 0.7, lambda: SALIENCY, lambda _: (DECODED, PICTURE), **options
    ).double()


@pytest.mark.parametrize("prediction", ["eps", "v"])
@pytest.mark.parametrize("name", ["plain", "multi"])
def test_textual_inversion_is_the_error_of_the_models_own_prediction(name, prediction):
    assert torch.allclose(ours(name, prediction), base(prediction), rtol=1e-5)


@pytest.mark.parametrize("prediction", ["eps", "v"])
def test_the_latent_term(prediction):
    want = base(prediction) + 0.7 * (clean_of(prediction) - CLEAN).abs().mean()
    assert torch.allclose(ours("latent", prediction), want, rtol=1e-5)


def test_the_pixel_term():
    want = base("eps") + 0.7 * (DECODED.double() - PICTURE.double()).abs().mean()
    assert torch.allclose(ours("pixel"), want, rtol=1e-5)


def gaussian(x):
    kernel = torch.exp(-(torch.arange(-4.0, 5, dtype=torch.float64) ** 2) / 2)
    kernel = torch.outer(kernel, kernel) / kernel.sum() ** 2
    padded = torch.nn.functional.pad(x, (4, 4, 4, 4), mode="reflect")
    return torch.nn.functional.conv2d(padded.movedim(1, 0), kernel[None, None]).movedim(0, 1)


def test_the_focus_term_alone_and_on_top():
    estimate = clean_of("eps")
    mixed = estimate * SALIENCY + gaussian(estimate) * (1 - SALIENCY)
    truth = CLEAN * SALIENCY + gaussian(CLEAN) * (1 - SALIENCY)
    term = ((mixed - truth) ** 2).mean()
    assert torch.allclose(ours("saliency focus"), base("eps") + 0.7 * term, rtol=1e-5)
    assert torch.allclose(ours("saliency focus alone"), 0.7 * term, rtol=1e-5)
    capped = 0.7 * term * 0.5 / SIGMA**2
    assert torch.allclose(ours("saliency focus alone", snr_cap=0.5), capped, rtol=1e-5)


def test_nothing_is_decoded_or_looked_at_without_need():
    def never(*_):
        raise AssertionError

    estimate = Estimate(CLEAN.float(), CLEAN.float() + 1, torch.tensor([SIGMA]))
    for name in ("plain", "multi", "latent"):
        objective_loss(OBJECTIVES[name], estimate, 1.0, never, never)
