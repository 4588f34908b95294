"""The metrics against scikit-image and torchmetrics, and the region's algebra."""

import math

import pytest
import torch
from inlay.guidance import metrics
from inlay.host.feature_nets import LPIPSNet, build_features


def pair(batch=2, height=40, width=52, seed=0):
    generator = torch.Generator().manual_seed(seed)
    a = torch.rand(batch, 3, height, width, generator=generator)
    return a, (a + 0.2 * torch.randn(a.shape, generator=generator)).clamp(0, 1)


def half(height=40, width=52):
    mask = torch.zeros(1, height, width)
    mask[:, :, : width // 2] = 1
    return mask


def test_psnr_ssim_and_mse_are_scikit_images():
    from skimage import metrics as oracle

    a, b = pair()
    for one, other, *ours in zip(a, b, metrics.psnr(a, b), metrics.ssim(a, b), metrics.mse(a, b), strict=True):
        one, other = one.movedim(0, -1).numpy(), other.movedim(0, -1).numpy()
        options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
        want = (
            oracle.peak_signal_noise_ratio(one, other, data_range=1),
            oracle.structural_similarity(one, other, data_range=1, channel_axis=-1, **options),
            oracle.mean_squared_error(one, other),
        )
        assert [float(value) for value in ours] == pytest.approx(want, rel=1e-4)


def test_ssim_is_torchmetrics():
    from torchmetrics.functional.image import structural_similarity_index_measure

    a, b = pair(3)
    _, full = structural_similarity_index_measure(a, b, data_range=1.0, reduction="none", return_full_image=True)
    # Its mean has the windows at the rim too, filled by reflection.
    want = full[..., 5:-5, 5:-5].mean((1, 2, 3))
    torch.testing.assert_close(metrics.ssim(a, b), want, atol=1e-5, rtol=0)


def test_equal_pictures():
    a, _ = pair()
    assert (metrics.mse(a, a) == 0).all() and metrics.psnr(a, a).isinf().all()
    torch.testing.assert_close(metrics.ssim(a, a), torch.ones(2))


def test_a_region_sees_nothing_of_the_other_side():
    a, b = pair()
    mask = half()
    spoiled = torch.where(mask[:, None] > 0, b, torch.rand_like(b))
    for metric in (metrics.mse, metrics.psnr, metrics.ssim):
        torch.testing.assert_close(metric(a, b, mask), metric(a, spoiled, mask))
        assert not torch.allclose(metric(a, b, 1 - mask), metric(a, spoiled, 1 - mask))
    inside, outside = metrics.mse(a, b, mask), metrics.mse(a, b, 1 - mask)
    torch.testing.assert_close((inside + outside) / 2, metrics.mse(a, b))


def test_the_ssim_of_a_region_takes_its_share_of_each_window():
    """Against the moments of every window, pixel by pixel."""
    a, b = pair(1, 17, 16)
    share = torch.rand(1, 17, 16, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    share[:, :, :5] = 0
    line = torch.exp(-(torch.arange(-5, 6, dtype=torch.float64) ** 2) / (2 * 1.5**2))
    total = weights = 0.0
    for y in range(5, 12):
        for x in range(5, 11):
            at = slice(y - 5, y + 6), slice(x - 5, x + 6)
            window = torch.outer(line, line) * share[0][at]
            one, other = a[0][(..., *at)].double(), b[0][(..., *at)].double()
            mean_1, mean_2 = ((values * window).sum((1, 2)) / window.sum() for values in (one, other))
            apart_1, apart_2 = one - mean_1.view(3, 1, 1), other - mean_2.view(3, 1, 1)
            of_1, of_2, both = (
                (values * window).sum((1, 2)) / window.sum() for values in (apart_1**2, apart_2**2, apart_1 * apart_2)
            )
            value = (2 * mean_1 * mean_2 + 1e-4) * (2 * both + 9e-4)
            value = value / ((mean_1**2 + mean_2**2 + 1e-4) * (of_1 + of_2 + 9e-4))
            total, weights = total + share[0, y, x] * value.mean(), weights + share[0, y, x]
    torch.testing.assert_close(metrics.ssim(a, b, share)[0].double(), total / weights, atol=1e-6, rtol=0)


def test_the_ssim_of_a_region():
    a, b = pair()
    weight = torch.ones(1, 40, 52)
    torch.testing.assert_close(metrics.ssim(a, b, weight), metrics.ssim(a, b))
    kept = torch.where(half()[:, None] > 0, b, a)
    assert (metrics.ssim(a, kept, 1 - half()) == 1).all() and (metrics.ssim(a, kept, half()) < 0.95).all()
    rim = torch.zeros(1, 40, 52)
    rim[:, 0] = 1
    assert metrics.ssim(a, b, rim).isnan().all()


@pytest.fixture(scope="module", params=["alex", "vgg"])
def nets(request):
    """Ours and torchmetrics' LPIPS, the shipped linear weights, one random backbone."""
    from torchmetrics.functional.image.lpips import _LPIPS

    torch.manual_seed(0)
    oracle = _LPIPS(pretrained=True, net=request.param, pnet_rand=True)
    kind = {"alex": "alexnet", "vgg": "vgg16"}[request.param]
    state = oracle.net.state_dict()
    features = build_features(kind, {key.split(".", 1)[1]: value for key, value in state.items()})
    return oracle, LPIPSNet(kind, features, [lin.model[-1].weight.flatten() for lin in oracle.lins])


def test_lpips_is_torchmetrics(nets):
    oracle, ours = nets
    a, b = pair(2, 64, 72)
    want = oracle(a, b, normalize=True).flatten()
    assert (want > 1e-6).all()
    torch.testing.assert_close(metrics.lpips(ours.stages, list(ours.linear), a, b), want, rtol=1e-4, atol=1e-8)
    torch.testing.assert_close(
        metrics.lpips(ours.stages, list(ours.linear), a, b, torch.ones(1, 64, 72)), want, rtol=1e-4, atol=1e-8
    )


def test_the_lpips_of_a_region_does_not_leak(nets):
    _, ours = nets
    a, b = pair(1, 64, 72)
    mask = half(64, 72)
    spoiled = torch.where(mask[:, None] > 0, b, torch.rand_like(b))
    values = [metrics.lpips(ours.stages, list(ours.linear), a, it, mask) for it in (b, spoiled)]
    torch.testing.assert_close(*values)
    assert (metrics.lpips(ours.stages, list(ours.linear), a, a, mask) == 0).all()


def test_frechet_is_torchmetrics():
    from torchmetrics.image.fid import _compute_fid

    generator = torch.Generator().manual_seed(1)
    a = torch.randn(200, 16, generator=generator, dtype=torch.float64)
    b = torch.randn(150, 16, generator=generator, dtype=torch.float64) @ torch.randn(
        16, 16, generator=generator, dtype=torch.float64
    )
    want = _compute_fid(a.mean(0), torch.cov(a.T), b.mean(0), torch.cov(b.T))
    assert metrics.frechet(a, b) == pytest.approx(float(want), rel=1e-9)
    assert metrics.frechet(a, a) == pytest.approx(0, abs=1e-8)


def test_bad_input_says_so():
    a, b = pair()
    with pytest.raises(ValueError, match="needs at least 17 on each side"):
        metrics.frechet(torch.rand(16, 16), torch.rand(100, 16))
    with pytest.raises(ValueError, match="11 x 11"):
        metrics.ssim(a[..., :10], b[..., :10])
    with pytest.raises(ValueError, match="needs a mask"):
        metrics.region_weight(None, "inside")
    with pytest.raises(ValueError, match="nothing outside the mask"):
        metrics.region_weight(torch.ones(1, 4, 4), "outside")
    assert metrics.region_weight(None, "whole") is None
    assert math.isfinite(float(metrics.mse(a, b, metrics.region_weight(half(), "outside")).sum()))
