"""InstantSwap's loop as its authors' code has it, to time Swap Concept against: the same net, noise and texts.

Two forwards of two rows a gradient, attention probabilities held as a whole, and each update by autograd and SGD. Each
of them can be had our way alone, and where `outside` is raw the negative's rows, which say what the prompt's say, left
out.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..attention.boxes import Box
from ..attention.concept_region import cell_mask
from ..guidance.distillation import LEARNING_RATE, SCALE, draw_timesteps
from ..guidance.noise import CandidateNoise
from ..host.attention_capture import OVERRIDE
from ..host.branches import Forward, inside_sampling
from ..host.concept_region_patch import concept_region
from ..host.pictures import decode_picture, encode_picture
from ..host.swap_settings import SwapSettings, SwapTexts
from ..host.tokens import encode_text


@dataclass(frozen=True)
class OurWay:
    """What is done as Swap Concept does it."""

    one_forward: bool = False
    fused_attention: bool = False
    closed_form: bool = False
    no_negative: bool = False


def official_swap(
    model: Any,
    clip: Any,
    vae: Any,
    image: Tensor,
    box: Box,
    texts: SwapTexts,
    settings: SwapSettings,
    ours: OurWay = OurWay(),  # noqa: B008
) -> Tensor:
    """The picture (1, H, W, 3) after the swap, nothing pasted. settings: iterations, skip, guidance, seed, t_min, t_max
    and outside count.
    """
    height, width = image.shape[1:3]
    latent = encode_picture(vae, image)
    grid = tuple(latent.shape[-2:])
    cells = cell_mask([box], (height, width), grid, grid, (0, 0, *grid))[:, None].float()
    timesteps = draw_timesteps(settings.iterations, settings.t_min, settings.t_max, "random", settings.seed)
    sigmas = model.get_model_object("model_sampling").sigma(timesteps[:: settings.skip].float()).cpu()
    if not ours.fused_attention:
        model = model.clone()
        model.model_options["transformer_options"][OVERRIDE] = _materialised
    noise, result = CandidateNoise(settings.seed, [0]), []
    # At 1 the host asks for the prompt alone.
    guidance = 1.0 if ours.no_negative and settings.outside == "raw" else settings.guidance

    def branch(wanted: Sequence[str], body) -> None:
        prompts = [encode_text(clip, getattr(texts, name)) for name in wanted]
        phrases = [encode_text(clip, getattr(texts, f"{name}_concept"))[0][0] for name in wanted]
        patched = concept_region(model, phrases, [box], (height, width), settings.outside)
        negative = encode_text(clip, texts.negative)
        inside_sampling(patched, prompts, negative, latent, sigmas, guidance, settings.seed, body)

    def descend(forwards: Sequence[Forward], clean: Tensor) -> None:
        z, inside = clean.clone().requires_grad_(), cells.to(clean)
        optimizer = torch.optim.SGD([z], lr=LEARNING_RATE)
        for iteration in range(settings.iterations):
            if iteration % settings.skip == 0:
                drawn, sigma = noise.draw(clean, "swap", iteration), sigmas[iteration // settings.skip].to(clean)
                with torch.no_grad():
                    if ours.one_forward:
                        source, target = forwards[0].noises([clean, z], drawn, sigma)
                    else:
                        (source,), (target,) = (
                            forward.noises([at], drawn, sigma) for forward, at in zip(forwards, (clean, z), strict=True)
                        )
                    g = (target - source) * inside
                    if ours.closed_form:
                        z -= LEARNING_RATE * SCALE * min(settings.skip, settings.iterations - iteration) * g
            if not ours.closed_form:
                with torch.enable_grad():
                    loss = SCALE * (z * g).sum()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        result.append(z.detach())

    if ours.one_forward:
        branch(["source", "target"], lambda both, clean, _: descend([both], clean))
    else:
        branch(
            ["source"],
            lambda source, clean, _: branch(["target"], lambda target, *_: descend([source, target], clean)),
        )
    return decode_picture(vae, model.model.process_latent_out(result[0]).to(latent), height, width)


def _materialised(function: Any, q: Tensor, k: Tensor, v: Tensor, heads: int, *args: Any, **kwargs: Any) -> Tensor:
    """softmax(q k^T / sqrt(d)) v with all its probabilities in memory at once. q, k, v: (B, N, heads * d)."""
    q, k, v = (one.unflatten(-1, (heads, -1)).transpose(1, 2) for one in (q, k, v))
    probabilities = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1)
    return (probabilities @ v).transpose(1, 2).flatten(2)
