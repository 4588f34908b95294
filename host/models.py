"""What a MODEL is, as far as Inlay has to know."""

import hashlib
from typing import Any

import torch
from comfy.model_patcher import ModelPatcher
from comfy.model_sampling import CONST, EDM, EPS, V_PREDICTION, X0, ModelSamplingContinuousEDM
from torch import Tensor

_PROBED_WEIGHTS = 24
_PROBED_VALUES = 16


def prediction_kind(model: ModelPatcher) -> str:
    """`eps` or `v`. Raises ValueError for models without variance-preserving noise, flow matching above all."""
    sampling = model.get_model_object("model_sampling")
    if not isinstance(sampling, EPS) or isinstance(sampling, (EDM, X0)) or sampling.sigma_data != 1:
        raise ValueError(
            f"{type(model.model).__name__} does not predict noise or v (flow matching and EDM models do not). "
            "Use an SD1.x, SD2.x, SDXL or PixArt model."
        )
    return "v" if isinstance(sampling, V_PREDICTION) else "eps"


def require_timesteps(model: ModelPatcher) -> None:
    """Raises ValueError where prediction_kind does, and for models whose noise levels have no numbers."""
    prediction_kind(model)
    if isinstance(model.get_model_object("model_sampling"), ModelSamplingContinuousEDM):
        raise ValueError(
            f"{type(model.model).__name__} has a continuous noise schedule (CosXL, or Model Sampling Continuous EDM or "
            "V), and this needs numbered timesteps. Use an SD1.x, SD2.x or SDXL model as it was trained."
        )


def require_added_noise(model: ModelPatcher) -> None:
    """Raises ValueError for flow matching, whose levels are mixtures: fresh noise on top leads to other levels."""
    if isinstance(model.get_model_object("model_sampling"), CONST):
        raise ValueError(
            f"{type(model.model).__name__} is a flow-matching model, where ddpm, eta and repeats put in wrong noise. "
            "Choose ddim or euler with eta 0 and repeats 1, or connect a sampler of the host."
        )


def trained_levels(sampling: Any) -> int:
    """How many timesteps the model was trained on. A distilled schedule (LCM) keeps few of them as its levels."""
    return getattr(sampling, "num_timesteps", len(sampling.sigmas))


def model_id(model: ModelPatcher) -> str:
    """A fingerprint of the network's shape and of its own weights, 32 hex digits.

    LoRAs, hooks and other patches on the model do not change it, loaded or not; neither does fp16 against fp32.
    """
    weights = model.model_state_dict("diffusion_model.")
    names = sorted(weights)
    digest = hashlib.sha256(type(model.model).__name__.encode())
    for name in names:
        digest.update(f"{name}{tuple(weights[name].shape)}".encode())
    for name in names[:: max(1, len(names) // _PROBED_WEIGHTS)]:
        # A few values, coarse enough to be the same in half precision.
        values = few_values(own_weight(model, name, weights[name]), _PROBED_VALUES)
        digest.update(values.to(torch.bfloat16).float().numpy().tobytes())
    return digest.hexdigest()[:32]


def own_weight(model: ModelPatcher, name: str, weight: Tensor) -> Tensor:
    """The weight as loaded from its file: while a patched model is loaded, the host keeps that aside."""
    if name in model.hook_backup:
        return model.hook_backup[name][0]
    return model.backup[name].weight if name in model.backup else weight


def few_values(weight: Tensor, count: int) -> Tensor:
    """At most `count` of its values, evenly spread, fp16 on the CPU. 0 where a file had none, as to the host."""
    flat = weight.detach().flatten()
    chosen = flat[:: max(1, len(flat) // count)][:count]
    if chosen.is_meta:
        return torch.zeros(len(chosen), dtype=torch.float16)
    return chosen.to("cpu", torch.float16).contiguous()
