"""The closed-form loop against the authors' autograd SGD, in float64 with a model whose noise is known exactly."""

import pytest
import torch
from inlay.guidance.contrastive import patch_nce
from inlay.guidance.distillation import LEARNING_RATE, METHODS, SCALE, distil, draw_timesteps, noise_estimate

GUIDANCE = 7.5
SPREAD = 0.4
MEANS = {"source": 0.3, "target": -0.8, "": 0.1}
BOX = torch.zeros(1, 1, 6, 7, dtype=torch.float64)
BOX[..., 1:4, 2:6] = 1


@pytest.fixture
def clean():
    return torch.randn(2, 4, 6, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def noise_at(i):
    return torch.randn(2, 4, 6, 7, generator=torch.Generator().manual_seed(100 + i), dtype=torch.float64)


def alphas(t):
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    return (1 - betas).cumprod(0)[t]


def reference(clean, timesteps, skip, source, masked, momentum, learning_rate):
    """The loop as published: z-space, eps of Gaussian data, SGD on 2000 * sum(z * g) / 64^2."""

    def eps(z_t, abar, text):
        mean = (abar.sqrt() * SPREAD**2 * z_t + (1 - abar) * MEANS[text]) / (abar * SPREAD**2 + 1 - abar)
        return (z_t - abar.sqrt() * mean) / (1 - abar).sqrt()

    z = clean.clone().requires_grad_()
    optimiser = torch.optim.SGD([z], lr=learning_rate, momentum=momentum)
    for i, t in enumerate(timesteps.tolist()):
        if i % skip == 0:
            abar, noise = alphas(t), noise_at(i)
            branches = {"target": z.detach(), "source": clean}
            guided = {}
            for text, latent in branches.items():
                z_t = abar.sqrt() * latent + (1 - abar).sqrt() * noise
                empty = eps(z_t, abar, "")
                guided[text] = empty + GUIDANCE * (eps(z_t, abar, text) - empty)
            g = guided["target"] - (guided["source"] if source else noise)
            g = g * BOX if masked else g
        optimiser.zero_grad()
        (2000 * (z * g).sum() / (64 * 64)).backward()
        optimiser.step()
    return z.detach()


def ours(clean, timesteps, skip, source, masked, momentum, learning_rate):
    def denoised(x, sigma, text):
        return (SPREAD**2 * x + sigma**2 * MEANS[text]) / (SPREAD**2 + sigma**2)

    def gradient(z, i):
        abar = alphas(timesteps[i])
        sigma, noise = ((1 - abar) / abar).sqrt(), noise_at(i)

        def estimate(latent, text):
            x = latent + sigma * noise
            empty = denoised(x, sigma, "")
            return noise_estimate(x, empty + GUIDANCE * (denoised(x, sigma, text) - empty), sigma)

        return estimate(z, "target") - (estimate(clean, "source") if source else noise)

    how = len(timesteps), skip, BOX if masked else None, momentum
    return distil(clean, gradient, *how, learning_rate=learning_rate)


@pytest.mark.parametrize(
    ("skip", "source", "masked", "momentum", "learning_rate"),
    [(1, True, False, 0.0, 0.1), (5, True, True, 0.0, 0.1), (4, False, False, 0.0, 0.03), (5, True, True, 0.7, 0.1)],
)
def test_closed_form_is_the_published_loop(clean, skip, source, masked, momentum, learning_rate):
    timesteps = draw_timesteps(23, 100, 899, "random", 3)
    how = clean, timesteps, skip, source, masked, momentum, learning_rate
    want, got = reference(*how), ours(*how)
    assert (got - want).norm() < 1e-12 * want.norm()
    assert (want - clean).norm() > 0.05 * clean.norm()


def test_the_update_constant_is_the_papers():
    assert LEARNING_RATE * SCALE == pytest.approx(0.0488, abs=5e-5)


def test_anchors_are_every_skip_iterations_and_progress_is_told(clean):
    anchors, done = [], []

    def gradient(z, i):
        anchors.append(i)
        return torch.ones_like(z)

    z = distil(clean, gradient, 13, 5, on_anchor=lambda count, _: done.append(count))
    assert (anchors, done) == ([0, 5, 10], [5, 10, 13])
    assert torch.allclose(clean - z, torch.full_like(z, 13 * LEARNING_RATE * SCALE))


def test_outside_stays_the_very_same(clean):
    z = distil(clean, lambda z, i: torch.randn_like(z), 10, 3, BOX)
    outside = (BOX == 0).expand_as(z)
    assert torch.equal(z[outside], clean[outside])
    assert not (z[~outside] == clean[~outside]).any()


def test_values_that_are_not_numbers_end_the_loop(clean):
    with pytest.raises(ValueError, match=r"update 3 of 4"):
        distil(clean, lambda z, i: z * (float("nan") if i == 2 else 1), 4)


def test_timesteps():
    draws = draw_timesteps(20000, 100, 899, "random", 1)
    assert (draws.min(), draws.max()) == (100, 899) and (draws.diff() <= 0).all()
    unsorted = draw_timesteps(20000, 100, 899, "unsorted", 1)
    assert not (unsorted.diff() <= 0).all() and torch.equal(unsorted.sort(descending=True).values, draws)
    assert draw_timesteps(5, 100, 900, "ladder", 0).tolist() == [900, 700, 500, 300, 100]
    assert draw_timesteps(1, 50, 948, "ladder", 0).tolist() == [948]
    with pytest.raises(ValueError, match="no range"):
        draw_timesteps(5, 600, 500, "ladder", 0)


def test_only_instantswap_has_the_box_and_the_phrase():
    assert [name for name, method in METHODS.items() if method.masked or method.regions] == ["instantswap"]
    assert not METHODS["sds"].source and METHODS["cds"].contrast


def nce_by_hand(target, source, chosen, temperature):
    """Loops over places, as InfoNCE is written."""
    total = 0.0
    for picture in range(len(target)):
        queries = [target[picture, i] / target[picture, i].norm() for i in chosen]
        keys = [source[picture, i] / source[picture, i].norm() for i in chosen]
        for i, query in enumerate(queries):
            scores = torch.stack([query @ key / temperature for key in keys])
            others = torch.cat([scores[:i], scores[i + 1 :], torch.tensor([-10 / temperature], dtype=scores.dtype)])
            total -= (scores[i] - torch.cat([scores[i : i + 1], others]).logsumexp(0)).item()
    return total / (len(target) * len(chosen))


def test_patch_nce_by_hand():
    generator = torch.Generator().manual_seed(5)
    target, source = torch.randn(2, 2, 24, 8, generator=generator)
    chosen = torch.randperm(24, generator=torch.Generator().manual_seed(9))[:10].tolist()
    got = patch_nce(target, source, 4, 6, torch.Generator().manual_seed(9), patches=10, pools=(1,))
    assert got.item() == pytest.approx(nce_by_hand(target.double(), source.double(), chosen, 0.07), rel=1e-5)


def test_patch_nce_pools_and_pulls_towards_the_source():
    source = torch.randn(1, 24, 8, generator=torch.Generator().manual_seed(5))
    target = source.flip(1).clone().requires_grad_()
    loss = patch_nce(target, source, 4, 6, torch.Generator().manual_seed(0))
    (slope,) = torch.autograd.grad(loss, target)
    with torch.no_grad():
        assert patch_nce(target - 0.1 * slope, source, 4, 6, torch.Generator().manual_seed(0)) < loss
        assert patch_nce(source, source, 4, 6, torch.Generator().manual_seed(0)) < 0.2 * loss
