"""Several texts' noise estimates from one batched forward, inside the host's own sampling with all packs' patches."""

from collections.abc import Callable, Sequence

import comfy.model_management
import comfy.samplers
import torch
from comfy.cli_args import args
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ..guidance.distillation import noise_estimate
from .concept_region_patch import stack_contexts
from .gradients import plain_attention


class Forward:
    """The model at several latents of the same noise level, one per text. Alive while `inside_sampling` runs."""

    def __init__(self, denoiser: Callable, extra_args: dict) -> None:
        self.denoiser, self.options = denoiser, extra_args["model_options"]
        self._extra_args = extra_args
        self.guider = denoiser.inner_model
        self.network = self.guider.inner_model

    def noises(self, latents: Sequence[Tensor], noise: Tensor, sigma: Tensor) -> tuple[Tensor, ...]:
        """The guided noise of each text at its latent (B, C, h, w), all noised alike. sigma: a scalar."""
        noised = torch.cat([latent + sigma * noise for latent in latents])
        denoised = self.denoiser(noised, sigma.repeat(len(noised)), **self._extra_args)
        return noise_estimate(noised, denoised, sigma).chunk(len(latents))


def inside_sampling(
    model: ModelPatcher,
    texts: Sequence[list],
    negative: list,
    latent: Tensor,
    sigmas: Tensor,
    guidance: float,
    seed: int,
    body: Callable[[Forward, Tensor, Tensor], None],
) -> None:
    """Runs body(forward, clean, sigmas) with the model loaded and prepared as for a sampler, and cleans up after it.

    texts: a CONDITIONING per branch. latent: (B, C, h, w) as VAE.encode returns it; clean is the same in the sampler's
    space, on the model's device. sigmas: (n,), the levels that body is going to visit.
    """
    pictures = len(latent)
    guider = comfy.samplers.CFGGuider(_with_fused_attention(model))
    guider.set_conds(stack_texts(texts, pictures), negative)
    guider.set_cfg(guidance)

    def visit(denoiser, x, levels, extra_args, callback, disable):
        body(Forward(denoiser, extra_args), x[:pictures], levels[:-1])
        return x

    rows = latent.float().repeat(len(texts), 1, 1, 1)
    schedule = torch.cat([sigmas.float().cpu(), torch.zeros(1)])
    guider.sample(torch.zeros_like(rows), rows, comfy.samplers.KSAMPLER(visit), schedule, disable_pbar=True, seed=seed)


def _with_fused_attention(model: ModelPatcher) -> ModelPatcher:
    """PyTorch's attention, which is the faster one on a CPU, where the host takes its own unless told otherwise."""
    told = args.use_quad_cross_attention or args.use_split_cross_attention
    if told or not comfy.model_management.is_device_cpu(model.load_device):
        return model
    fused = model.clone()
    fused.model_options = plain_attention(fused.model_options)
    return fused


def stack_texts(texts: Sequence[list], pictures: int) -> list:
    """One CONDITIONING whose batch holds each text `pictures` times in turn, the pooled outputs of SDXL too.

    Raises ValueError for texts that cannot share one forward.
    """
    if any(len(text) != 1 or _besides(text) != _besides(texts[0]) for text in texts):
        raise ValueError(
            "The texts carry hooks or schedules, which the branches of one forward cannot each have. "
            "Disconnect the nodes that put them on the CLIP."
        )
    stacked = []
    for entries in zip(*texts, strict=True):
        extra = dict(entries[0][1])
        for key, value in extra.items():
            if isinstance(value, Tensor):
                extra[key] = torch.cat([other[key].repeat_interleave(pictures, 0) for _, other in entries])
        context = stack_contexts([context.repeat_interleave(pictures, 0) for context, _ in entries])
        stacked.append([context, extra])
    return stacked


def _besides(text: list) -> set[str]:
    """What kinds of things an entry says besides its tensors."""
    return {key for key, value in text[0][1].items() if not (value is None or isinstance(value, Tensor))}


def require_same_family(model: ModelPatcher, other: ModelPatcher) -> None:
    """Raises ValueError where one text encoder and one latent cannot serve both models."""
    for one, another in zip(_family(model), _family(other), strict=True):
        if one != another:
            raise ValueError(
                f"The source model and the target model are of different families ({one} and {another}). "
                "Use two models of one family, such as a base model and the same with a LoRA."
            )


def _family(model: ModelPatcher) -> tuple[str, ...]:
    config = model.model.model_config.unet_config
    return (
        type(model.model).__name__,
        f"latents of {type(model.model.latent_format).__name__}",
        f"{config.get('in_channels')} input channels",
        f"texts {config.get('context_dim')} wide",
        f"pooled texts {config.get('adm_in_channels')} wide",
    )
