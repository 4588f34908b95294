"""Single forwards of a model at a clean picture noised to some timestep, to see what it attends to."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import comfy.model_management
import comfy.samplers
import torch
from comfy.model_patcher import ModelPatcher, create_model_options_clone
from comfy.sampler_helpers import cleanup_models, convert_cond, prepare_model_patcher, prepare_sampling
from torch import Tensor

# What would confine the conditioning to a part of the picture or of the run.
_CONFINING = ("area", "mask", "start_percent", "end_percent", "default")

Forward = Callable[[float, Tensor], Tensor]


@contextmanager
def clean_forwards(model: ModelPatcher, conditioning: list, latent: Tensor) -> Iterator[Forward]:
    """Yields forward(t, noise): the noise that the model sees in the latent noised to timestep t (0 to 999).

    latent, noise and what is returned: (1, C, h, w), the latent as VAE.encode returns it. Only the first entry of the
    CONDITIONING is used, for the whole picture and every timestep. The host's state is as before afterwards, also after
    an error.
    """
    text, extra = conditioning[0]
    extra = {key: value for key, value in extra.items() if key not in _CONFINING}
    conds = {"positive": convert_cond([[text, extra]])}
    options = create_model_options_clone(model.model_options)
    comfy.samplers.preprocess_conds_hooks(conds)
    prepare_model_patcher(model, conds, options)
    comfy.samplers.filter_registered_hooks_on_conds(conds, options)
    with torch.no_grad():
        inner, conds, loaded = prepare_sampling(model, latent.shape, conds, options)
        try:
            model.pre_run()
            device = model.load_device
            comfy.samplers.cast_to_load_options(options, device=device, dtype=model.model_dtype())
            clean = inner.process_latent_in(latent.to(device, torch.float32))
            conds = comfy.samplers.process_conds(inner, clean, conds, device, clean, None, 0)
            sampling = inner.model_sampling

            def forward(t: float, noise: Tensor) -> Tensor:
                comfy.model_management.throw_exception_if_processing_interrupted()
                sigma = sampling.sigma(torch.tensor([float(t)])).to(device, torch.float32)
                # Other packs' patches read the schedule and the host's guider, absent here, would set it.
                options["transformer_options"]["sample_sigmas"] = torch.cat([sigma, torch.zeros_like(sigma)])
                noised = sampling.noise_scaling(sigma, noise.to(device, torch.float32), clean)
                (x0,) = comfy.samplers.calc_cond_batch(inner, [conds["positive"]], noised, sigma, options)
                return (noised - x0) / sigma

            yield forward
        finally:
            model.cleanup()
            cleanup_models(conds, loaded)


def draw_noises(seed: int, like: Tensor, count: int) -> list[Tensor]:
    """`count` noises of a latent's shape from the CPU's generator: the same on every device, alone or in a batch."""
    generator = torch.Generator("cpu").manual_seed(seed)
    return [torch.randn(like.shape, generator=generator) for _ in range(count)]


def parse_timesteps(text: str) -> list[float]:
    """`500, 300, 100` as numbers. Raises ValueError outside 0 to 999 and for an empty or unreadable list."""
    try:
        steps = [float(part) for part in text.replace(",", " ").split()]
    except ValueError:
        steps = []
    if not steps or not all(0 <= step <= 999 for step in steps):
        raise ValueError(f'The timesteps "{text}" are no list of numbers from 0 to 999. Write them like 500, 300, 100.')
    return steps
