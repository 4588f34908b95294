"""The training of a concept inside the host's own sampling, where the model is loaded with all packs' patches."""

import logging
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import comfy.model_management
import comfy.samplers
import comfy.utils
import torch
from PIL import Image
from torch import Tensor
from tqdm.auto import tqdm

from ..training.concept import ConceptSettings, ConceptTraining, Texts, Vectors
from ..training.objectives import Estimate, objective_loss
from .activations import backward_factor
from .attention_capture import watch_attention
from .concept_examples import Examples, draw_step
from .concept_material import Material
from .concept_preview import as_preview, draw_panel, draw_sample
from .concept_saliency import ConceptSaliency
from .contrast import with_backward
from .decoders import full_decoder
from .gradients import differentiable_layers, gradient_phase, ordinary, plain_attention
from .models import prediction_kind, trained_levels
from .out_of_memory import is_out_of_memory
from .precision import set_precision
from .recompute import recompute_blocks
from .together import examples_together

logger = logging.getLogger("inlay")

# Told the number of steps done, and the vectors, which the next step changes.
AfterStep = Callable[[int, Vectors], None]


class ConceptLoop:
    """Runs the steps and keeps what a checkpoint needs."""

    def __init__(
        self,
        material: Material,
        settings: ConceptSettings,
        training: ConceptTraining,
        after_step: AfterStep | None = None,
    ) -> None:
        self.material, self.settings, self.training, self.after_step = material, settings, training, after_step
        self.prediction = prediction_kind(material.model)
        self.saliency = ConceptSaliency(material, settings.map_average)

    def run(self, sampled: bool = True) -> Tensor:
        """Trains up to the job's steps and returns a latent as VAE.decode takes it: a sample, or a reference."""
        material, settings = self.material, self.settings
        model = with_backward(material.model)
        set_precision(model, settings.precision)
        if settings.checkpointing:
            recompute_blocks(model)
        shown = material.pixels is not None or settings.preview_every
        # Loaded beside the UNet: the VAE's own decode could unload it between two steps.
        self.decoder = full_decoder(material.vae, model.model.latent_format) if shown else None
        helpers = [material.text.patcher] + ([] if self.decoder is None else [self.decoder.patcher])
        model.set_additional_models("inlay_concept", helpers)
        latent = material.latents[0, :1]
        decoded = 0 if material.pixels is None else self.decoder.row_bytes(latent.shape[1:])
        wanted = settings.accumulation
        self.at_once = settings.at_once or examples_together(material.model, latent, wanted, decoded)
        if material.layers:
            model = watch_attention(model, material.layers, self.saliency.see, "self", rows=None)
        guider = comfy.samplers.CFGGuider(model)
        guider.inner_set_conds({"positive": material.conditioning})

        def visit(denoiser, x, sigmas, extra_args, callback, disable):
            nets = [denoiser.inner_model.inner_model, *(helper.model for helper in helpers)]
            with gradient_phase(*nets), differentiable_layers(material.text.patcher.model):
                self._train(denoiser.inner_model, extra_args["model_options"])
                return self._sample() if sampled else self.clean[0, :1]

        # The host reserves memory for as many rows as it is given, and knows of no decoder.
        each = 1 + math.ceil(decoded / model.model.memory_required([backward_factor(), *latent.shape[1:]]))
        rows = latent.expand(min(self.at_once, wanted) * each, -1, -1, -1)
        schedule = model.get_model_object("model_sampling").sigma_max.reshape(1).cpu().float()
        schedule = torch.cat([schedule, torch.zeros(1)])
        sampler = comfy.samplers.KSAMPLER(visit)
        return guider.sample(torch.zeros_like(rows), rows, sampler, schedule, disable_pbar=True, seed=settings.seed)

    def panel(self, sample: Tensor | None = None) -> Tensor:
        """The first picture, the same under its mask, and a sample, if any."""
        return draw_panel(self.material.images[:1], self.saliency.used()[:1], sample)

    def state(self) -> dict[str, Tensor]:
        return {**self.training.state(), **self.saliency.state()}

    def load_state(self, state: dict[str, Tensor]) -> None:
        self.training.load_state(state)
        self.saliency.load_state(state)

    def _train(self, guider: Any, model_options: dict) -> None:
        material, settings, training = self.material, self.settings, self.training
        self.network = guider.inner_model
        self.sampling = self.network.model_sampling
        self.device = guider.model_patcher.load_device
        self.options = plain_attention(ordinary(model_options))
        self.cond = ordinary(guider.conds["positive"][0])
        self.clean = self.network.process_latent_in(material.latents.to(self.device))
        bar = comfy.utils.ProgressBar(settings.steps)
        with tqdm(total=settings.steps, initial=training.done, desc="Train Concept") as shown:
            while training.done < settings.steps:
                loss = self._step()
                if math.isfinite(loss):
                    self.saliency.end()
                if self.after_step is not None:
                    self.after_step(training.done, training.vectors)
                shown.update()
                shown.set_postfix(loss=f"{loss:.4f}")
                due = settings.preview_every and training.done % settings.preview_every == 0
                bar.update_absolute(training.done, settings.steps, self._live_preview() if due else None)
        training.require_learned()

    def _step(self) -> float:
        """A step of the training, with half as many pictures at once whenever memory does not hold them."""
        text, levels = self.material.text, trained_levels(self.sampling)
        _, pictures, *shape = self.clean.shape
        examples = draw_step(self.settings, self.training.done, text, pictures, levels, shape)

        def encode(vectors: Vectors) -> Texts:
            return text.encode(vectors, examples.lines)

        while True:
            self.saliency.begin()
            try:
                return self.training.step(encode, partial(self._loss, examples), self.at_once)
            except Exception as error:
                if self.at_once == 1 or not is_out_of_memory(error):
                    raise
            # Out of the handler, whose error holds on to the graph.
            self.at_once = min(self.at_once, self.settings.accumulation) // 2 or 1
            logger.warning("Out of memory. Going on with %d noised pictures at once.", self.at_once)
            comfy.model_management.soft_empty_cache()

    def _loss(self, examples: Examples, texts: Texts, parts: range) -> Tensor:
        """(n,): of these parts of the step, in one forward."""
        comfy.model_management.throw_exception_if_processing_interrupted()
        settings = self.settings
        draws, told = examples.of(parts)
        views, chosen = [int(draw.flip) for draw in draws], [draw.picture for draw in draws]
        clean = self.clean[views, chosen]
        timesteps = torch.tensor([float(draw.timestep) for draw in draws])
        sigma = self.sampling.sigma(timesteps).to(self.device, torch.float32)
        noise = torch.cat([draw.noise for draw in draws]).to(self.device)
        noised = self.sampling.noise_scaling(sigma.view(-1, 1, 1, 1), noise, clean)
        denoised = self._denoise([text[told] for text in texts], noised, sigma)
        if not denoised.requires_grad:
            raise ValueError("A patch on the model lets no gradient through it. Remove that patch to learn a concept.")
        return objective_loss(
            self.material.objective,
            Estimate(denoised, clean, sigma, self.prediction),
            settings.weight,
            lambda: self.saliency.of(views, chosen).to(self.device),
            lambda latent: (self.decoder(latent).to(latent), self.material.pixels[views, chosen].to(latent)),
            settings.snr_cap,
            settings.norm,
        )

    def _denoise(self, texts: Texts, noised: Tensor, sigma: Tensor) -> Tensor:
        """The model's clean latent (B, C, h, w), fp32. texts: the conditioning, and a pooled output if any."""
        self.saliency.seen.clear()
        cond = {**self.cond, "cross_attn": texts[0]}
        if len(texts) > 1:
            cond["pooled_output"] = texts[1]
        conds = comfy.samplers.encode_model_conds(
            self.network.extra_conds, [cond], noised, self.device, "positive", latent_image=self.clean[0, :1]
        )
        # Other packs' patches read the schedule.
        self.options["transformer_options"]["sample_sigmas"] = torch.cat([sigma[:1], torch.zeros_like(sigma[:1])])
        return comfy.samplers.calc_cond_batch(self.network, [conds], noised, sigma, self.options)[0]

    @torch.no_grad()
    def _sample(self) -> Tensor:
        """A picture of the concept, in the sampler's space."""
        self.saliency.seen.clear()
        given, empty = (
            [text for text in self.material.text.encode(vectors, [0]) if text is not None]
            for vectors in (self.training.vectors, None)
        )
        noise = torch.randn(self.clean[0, :1].shape, generator=torch.Generator().manual_seed(self.settings.seed))
        return draw_sample(self._denoise, given, empty, noise.to(self.device), self.sampling)

    @torch.no_grad()
    def _live_preview(self) -> tuple[str, Image.Image, int]:
        """The job's panel with a sample, or without where there is no memory for one."""
        sample = None
        try:
            sample = (self.decoder(self._sample()).movedim(1, -1).cpu() + 1) / 2
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            logger.warning("Out of memory for the live preview's sample. It is left out.")
        return as_preview(self.panel(sample))
