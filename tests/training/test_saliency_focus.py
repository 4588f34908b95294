"""L_s against the formula as the paper writes it, in float64 and with nothing of ours."""

import math

import pytest
import torch
from inlay.training.saliency_focus import blur, focus_residual, saliency_focus

G = torch.Generator().manual_seed(0)
DENOISED = torch.randn(2, 4, 9, 11, generator=G)
CLEAN = torch.randn(2, 4, 9, 11, generator=G)
SALIENCY = (torch.rand(2, 1, 9, 11, generator=G) > 0.6).float()
SIGMA = torch.tensor([0.3, 5.0])


def blurred(x):
    """One pixel at a time, float64: weights exp(-r^2 / 2), nine by nine, mirrored without the edge twice."""
    x = x.double()
    _, _, height, width = x.shape
    weight = [math.exp(-((i - 4) ** 2) / 2) for i in range(9)]
    total = sum(weight) ** 2

    def mirror(i, end):
        i = abs(i)
        return 2 * (end - 1) - i if i >= end else i

    out = torch.zeros_like(x)
    for row in range(height):
        for column in range(width):
            for i in range(9):
                for j in range(9):
                    source = x[..., mirror(row + i - 4, height), mirror(column + j - 4, width)]
                    out[..., row, column] += weight[i] * weight[j] / total * source
    return out


def test_the_blur_is_the_gaussian():
    assert (blur(DENOISED.double()) - blurred(DENOISED)).abs().max() < 1e-12


def test_the_blur_keeps_constants_and_small_grids():
    for size in [(9, 11), (3, 3), (1, 2)]:
        assert torch.allclose(blur(torch.full((1, 2, *size), 3.5)), torch.full((1, 2, *size), 3.5))


def test_the_loss_is_the_papers_difference_of_two_mixtures():
    estimate, truth, s = DENOISED.double(), CLEAN.double(), SALIENCY.double()
    difference = (estimate * s + blurred(estimate) * (1 - s)) - (truth * s + blurred(truth) * (1 - s))
    assert torch.allclose(focus_residual(estimate - truth, s), difference, atol=1e-12)
    want = (difference**2).mean((1, 2, 3))
    assert torch.allclose(saliency_focus(DENOISED, CLEAN, SALIENCY).double(), want, rtol=1e-5)
    norm = (difference**2).sum((1, 2, 3)) ** 0.5
    assert torch.allclose(saliency_focus(DENOISED, CLEAN, SALIENCY, norm=True).double(), norm, rtol=1e-5)


def test_all_salient_is_the_mean_square_and_nothing_salient_that_of_the_blurred():
    difference = (DENOISED - CLEAN).double()
    one, none = torch.ones_like(SALIENCY), torch.zeros_like(SALIENCY)
    assert torch.allclose(saliency_focus(DENOISED, CLEAN, one).double(), (difference**2).mean((1, 2, 3)), rtol=1e-5)
    want = (blurred(difference) ** 2).mean((1, 2, 3))
    assert torch.allclose(saliency_focus(DENOISED, CLEAN, none).double(), want, rtol=1e-5)
    assert (want < 0.5 * (difference**2).mean((1, 2, 3))).all()  # the blur matters at all


def test_the_cap_holds_the_noisy_steps_down():
    plain = saliency_focus(DENOISED, CLEAN, SALIENCY, SIGMA)
    capped = saliency_focus(DENOISED, CLEAN, SALIENCY, SIGMA, snr_cap=5)
    assert torch.equal(capped[0], plain[0])  # SNR 11
    assert capped[1].item() == pytest.approx(plain[1].item() * 5 / 25)


def test_half_precision_is_judged_in_fp32():
    loss = saliency_focus(DENOISED.half() * 300, CLEAN.half(), SALIENCY.half())
    assert loss.dtype == torch.float32 and torch.isfinite(loss).all()


def test_the_saliency_is_a_constant():
    estimate, s = DENOISED.clone().requires_grad_(), SALIENCY.clone().requires_grad_()
    saliency_focus(estimate, CLEAN, s).sum().backward()
    assert estimate.grad.abs().max() > 0 and s.grad is None
