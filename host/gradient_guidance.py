"""Guidance of any sampler by a loss on the estimate of the clean latent: a MODEL patch, one UNet forward a step."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import comfy.model_management
import torch
from comfy.ldm.pixart.pixartms import PixArtMS
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from torch import Tensor, nn

from ..guidance.normalised import finite_samples, normalised_move
from .activations import backward_factor
from .backward_room import make_room
from .gradients import control_models, gradient_phase, ordinary, plain_attention, static_patcher
from .models import prediction_kind

# A power of two: it keeps half precision from rounding small gradients to 0 and cancels without a trace.
_LOSS_SCALE = 1024.0
# Of what the host reserves for a plain step, where nothing is kept of the UNet.
_FAST_FACTOR = 3

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
RawMove = Callable[[Tensor, Tensor, float], Tensor]


@dataclass(frozen=True)
class Guidance:
    """What to guide by.

    name: for messages, and to tell one patch from another. loss: (denoised, x, sigma (B,)) in the sampler's space to
    (B,), called with autograd on. raw_move: (gradient, sigma, strength) to the estimate's move, None for a
    strength normalised per sample. mode: `exact` differentiates through the UNet, `fast` takes its noise as
    constant. patchers: the loss's own models, loaded together with the UNet. gradient_steps: moves a step of the
    sampler, each by the loss at the estimate as the one before left it, all through one forward of the UNet.
    """

    name: str
    loss: Loss
    strength: float
    raw_move: RawMove | None
    mode: str
    start_percent: float
    end_percent: float
    patchers: Sequence[ModelPatcher]
    gradient_steps: int = 1


def guide(model: ModelPatcher, guidance: Guidance) -> ModelPatcher:
    """A clone of the model that follows the guidance in every sampler. Strength 0 leaves the clone without a patch.

    On the way up, from a picture to its noise, there is no guidance: an inversion is to find the picture's own path.
    Several guidances on one model add up and share its forward. Raises ValueError for models without
    variance-preserving noise, and for `exact` where the attention has no gradient.
    """
    prediction_kind(model)
    if guidance.start_percent >= guidance.end_percent:
        raise ValueError(f"{guidance.name}: start_percent has to be less than end_percent.")
    if guidance.strength == 0:
        return model.clone()
    if guidance.mode == "exact":
        _require_backward(model, guidance)
    guided = static_patcher(model) if guidance.mode == "exact" else model.clone()
    key = f"inlay.{guidance.name}.{len(guided.additional_models)}"
    guided.set_additional_models(key, list(guidance.patchers))

    def predict(executor, x, timestep, model_options=None, seed=None):
        model_options = model_options or {}
        sampling = executor.class_obj.inner_model.model_sampling
        if _climbs(model_options) or not _active(sampling, timestep, guidance):
            return executor(x, timestep, model_options, seed)
        comfy.model_management.throw_exception_if_processing_interrupted()
        step = _exact if guidance.mode == "exact" else _fast
        return step(executor, x, timestep, model_options, seed, guidance)

    exact = guidance.mode == "exact"
    make_room(guided, backward_factor() if exact else _FAST_FACTOR, whole=exact)
    guided.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, key, predict)
    return guided


def _require_backward(model: ModelPatcher, guidance: Guidance) -> None:
    # PixArt's blocks call the host's attention without the options in which plain_attention puts PyTorch's.
    pixart = isinstance(model.get_model_object("diffusion_model"), PixArtMS)
    if pixart and comfy.model_management.sage_attention_enabled():
        raise ValueError(
            f"{guidance.name}: sage attention gives no gradient through PixArt. Set mode to fast, or start ComfyUI "
            "without --use-sage-attention."
        )


def _active(sampling: Any, timestep: Tensor, guidance: Guidance) -> bool:
    sigma = float(timestep.flatten()[0])
    first, last = (float(sampling.percent_to_sigma(it)) for it in (guidance.start_percent, guidance.end_percent))
    return last <= sigma <= first


def _climbs(model_options: dict) -> bool:
    levels = model_options.get("transformer_options", {}).get("sample_sigmas")
    return levels is not None and len(levels) > 1 and bool(levels[-1] > levels[0])


def _exact(executor, x: Tensor, timestep: Tensor, model_options: dict, seed: int | None, guidance: Guidance) -> Tensor:
    guider = executor.class_obj
    # Of a guider of two models.
    if getattr(guider, "uncond_inner", None) not in (None, guider.inner_model):
        raise ValueError(
            f"{guidance.name}: the guider paints with two models, and the gradient goes through one. Set mode to fast."
        )
    shared = x.requires_grad
    nets = [guider.inner_model, *control_models(guider.conds), *_nets(guidance)]
    with gradient_phase(*nets):
        guider.conds = ordinary(guider.conds)
        # Inside another guidance's gradient the input is already a leaf of its graph.
        leaf = x if shared else x.detach().clone().requires_grad_()
        sigma = timestep.detach().clone()
        try:
            denoised = executor(leaf, sigma, plain_attention(model_options), seed)
        except RuntimeError as error:
            if "Inference tensors cannot be saved" not in str(error):
                raise
            raise ValueError(_no_gradient(guidance)) from error
        if not denoised.requires_grad:
            raise ValueError(_no_gradient(guidance))
        return _moved(guidance, denoised, leaf, denoised if shared else denoised.detach(), sigma, keep_graph=shared)


def _fast(executor, x: Tensor, timestep: Tensor, model_options: dict, seed: int | None, guidance: Guidance) -> Tensor:
    denoised = executor(x, timestep, model_options, seed)
    with gradient_phase(*_nets(guidance)):
        leaf = x.detach().clone().requires_grad_()
        sigma = timestep.detach().clone()
        noise = leaf.detach() - denoised.detach()
        return _moved(guidance, leaf - noise, leaf, denoised, sigma, keep_graph=False)


def _nets(guidance: Guidance) -> list[nn.Module]:
    return [patcher.model for patcher in guidance.patchers]


def _gradient(guidance: Guidance, denoised: Tensor, leaf: Tensor, sigma: Tensor, retain: bool) -> Tensor:
    """dL/dx, fp32; 0 for samples where it is not finite."""
    loss = guidance.loss(denoised, leaf, sigma).sum() * _LOSS_SCALE
    (gradient,) = torch.autograd.grad(loss, leaf, retain_graph=retain)
    gradient, kept = finite_samples(gradient.float() / _LOSS_SCALE)
    if not kept.all():
        logging.warning(
            f"{guidance.name}: the gradient of {int((~kept).sum())} of {len(kept)} pictures is not finite at sigma "
            f"{float(sigma[0]):.4g}. They are not guided in this step."
        )
    return gradient


def _moved(
    guidance: Guidance, estimate: Tensor, leaf: Tensor, denoised: Tensor, sigma: Tensor, keep_graph: bool
) -> Tensor:
    """The guided estimate. Within another guidance's graph the move counts as a constant.

    estimate: the function of leaf to differentiate. denoised: what is moved, the same values.
    """
    total = None
    for step in range(guidance.gradient_steps):
        retain = keep_graph or step + 1 < guidance.gradient_steps
        here = estimate if total is None else estimate + total
        gradient = _gradient(guidance, here, leaf, sigma, retain)
        if guidance.raw_move is None:
            move = normalised_move(leaf.detach(), denoised.detach(), gradient, guidance.strength)
        else:
            move = guidance.raw_move(gradient, sigma, guidance.strength)
        total = move if total is None else total + move
    return denoised + total.to(denoised.dtype)


def _no_gradient(guidance: Guidance) -> str:
    return (
        f"{guidance.name}: another node on this model lets no gradient through the UNet. "
        "Set mode to fast, or remove that node."
    )
