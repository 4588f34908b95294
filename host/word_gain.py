"""What words tell a model of each place of a picture: how much worse it knows the noise there without them."""

import comfy.sd
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from .attention_pass import clean_forwards, draw_noises
from .pictures import encode_picture
from .saliency import on_picture, require_numbers
from .tokens import encode_text, tokens_without

# Where the model still asks the text what is there, and the picture is still to be seen.
TIMESTEPS = (350.0, 500.0, 650.0)
DRAWS = 2


def word_gain(
    model: ModelPatcher,
    clip: comfy.sd.CLIP,
    vae: comfy.sd.VAE,
    image: Tensor,
    prompt: str,
    concept: str,
    seed: int = 0,
) -> Tensor:
    """The squared error of the noise without the concept's words less that with them, (1, H, W).

    image: (1, H, W, 3). concept: words of the prompt. Attention tells where words are read, which between two things
    of a picture is not always where they are meant. Raises as concept_positions.
    """
    latent = encode_picture(vae, image)
    noises = draw_noises(seed, latent, DRAWS * len(TIMESTEPS))
    without, told = (
        _errors(model, conditioning, latent, noises)
        for conditioning in (
            clip.encode_from_tokens_scheduled(tokens_without(clip, prompt, concept)),
            encode_text(clip, prompt),
        )
    )
    return on_picture(require_numbers(without - told), *image.shape[1:3], vae.spacial_compression_encode())


def _errors(model: ModelPatcher, conditioning: list, latent: Tensor, noises: list[Tensor]) -> Tensor:
    """(1, h, w), the mean over channels, timesteps and draws."""
    with clean_forwards(model, conditioning, latent) as forward:
        errors = [
            (forward(TIMESTEPS[number % len(TIMESTEPS)], noise).cpu() - noise).square().mean(1)
            for number, noise in enumerate(noises)
        ]
    return torch.stack(errors).mean(0)
