"""What a concept is trained for: plain and multi-token textual inversion, DreamArtist's and VCT's terms, Spin's L_s."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from .saliency_focus import saliency_focus


@dataclass(frozen=True)
class Objective:
    """base: whether the model's own loss counts. extra: the term that the weight multiplies, "" for none. tokens: how
    many the method has, None for any number.
    """

    base: bool = True
    extra: str = ""
    tokens: int | None = None


OBJECTIVES = {
    "saliency focus": Objective(extra="focus"),
    "plain": Objective(tokens=1),
    "multi": Objective(),
    "pixel": Objective(extra="pixel"),
    "latent": Objective(extra="latent"),
    "saliency focus alone": Objective(base=False, extra="focus"),
}


@dataclass(frozen=True)
class Estimate:
    """The model's estimate of clean latents (B, C, h, w), the sampler's space, fp32. sigma: (B,)."""

    denoised: Tensor
    clean: Tensor
    sigma: Tensor
    prediction: str = "eps"


def prediction_loss(estimate: Estimate) -> Tensor:
    """(B,): the mean squared error of what the model predicts, eps or v, from the error of its clean latent.

    eps_hat - eps = -d / sigma, v_hat - v = -d sqrt(1 + sigma^2) / sigma, with d = z0_hat - z0.
    """
    square = estimate.sigma.float().square()
    weight = 1 / square if estimate.prediction == "eps" else 1 / square + 1
    return weight * (estimate.denoised.float() - estimate.clean.float()).square().mean((1, 2, 3))


def latent_loss(estimate: Estimate) -> Tensor:
    """(B,): the mean absolute error of the clean latent (VCT)."""
    return (estimate.denoised.float() - estimate.clean.float()).abs().mean((1, 2, 3))


def pixel_loss(decoded: Tensor, picture: Tensor) -> Tensor:
    """(B,): the mean absolute error of the decoded estimate (DreamArtist). Both (B, 3, H, W) in about [-1, 1]."""
    return (decoded.float() - picture.float()).abs().mean((1, 2, 3))


def objective_loss(
    objective: Objective,
    estimate: Estimate,
    weight: float = 1.0,
    saliency: Callable[[], Tensor] | None = None,
    pictures: Callable[[Tensor], tuple[Tensor, Tensor]] | None = None,
    snr_cap: float = 0.0,
    norm: bool = False,
) -> Tensor:
    """(B,) fp32: the model's own loss plus weight times the objective's term, each where the objective has it.

    saliency: gives S, (B, 1, h, w), for the focus. pictures: the estimate to (its decoding, the true picture), for the
    pixel term. Neither is called where it is not needed. snr_cap, norm: as for saliency_focus.
    """
    loss = prediction_loss(estimate) if objective.base else 0.0
    match objective.extra:
        case "focus":
            term = saliency_focus(estimate.denoised, estimate.clean, saliency(), estimate.sigma, snr_cap, norm)
        case "latent":
            term = latent_loss(estimate)
        case "pixel":
            term = pixel_loss(*pictures(estimate.denoised))
        case _:
            return loss
    return loss + weight * term
