"""The training of a subject inside the host's own sampling, where the model is loaded with all packs' patches."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

import comfy.model_management
import comfy.samplers
import comfy.utils
import numpy
import torch
from comfy.model_patcher import ModelPatcher
from PIL import Image
from torch import Tensor, nn
from tqdm.auto import tqdm

from ..attention.saliency import resize_map
from ..attention.salient_sources import AUTO_THRESHOLD, BORDER, joined_map, layer_map
from ..training.saliency_focus import saliency_focus
from ..training.subject import Draw, SubjectTraining, batch_loss, draw_batch, noise_losses
from ..training.subject_settings import SNR_CAP, SubjectSettings
from .activations import backward_factor
from .attention_capture import Seen, watch_attention
from .backward_room import make_room
from .gradients import gradient_phase, ordinary, plain_attention, static_patcher
from .lora_training import count_parameters
from .models import prediction_kind, trained_levels
from .notice import show_sentence
from .precision import set_precision
from .recompute import bytes_kept, recompute_blocks
from .saliency import BLIND, chosen_layers
from .salient_masks import AUTO_LAYER
from .subject_data import SubjectData

# A step goes forward once and back at about twice that, and forward again where the blocks are recomputed.
STEP_COST, RECOMPUTED_COST = 3, 4
# What backward keeps of a row whose blocks are recomputed, against what the host reserves for a forward.
KEPT_RECOMPUTED = 5
PREVIEW_SIDE = 512


class Trainable(Protocol):
    """What is trained of a UNet. parameters: by the names that a file or checkpoint has for them."""

    parameters: Mapping[str, nn.Parameter]

    def to(self, device: torch.device) -> None: ...

    def attached(self, network: nn.Module, device: torch.device) -> AbstractContextManager[None]: ...

    def tensors(self) -> dict[str, Tensor]: ...


class SubjectLoop:
    """Runs the steps. groups: rows of the data set that are the subject's, and those of its class if there are any."""

    def __init__(
        self,
        model: ModelPatcher,
        trainable: Trainable,
        training: SubjectTraining,
        settings: SubjectSettings,
        groups: list[Tensor],
        after_step: Callable[[], None] = lambda: None,
        remark: str = "",
    ) -> None:
        """remark: said with what the run is going to take."""
        self.model, self.trainable, self.training, self.settings = model, trainable, training, settings
        self.groups, self.after_step, self.remark = groups, after_step, remark
        self.prepared: ModelPatcher | None = None
        self.prediction = prediction_kind(model)
        self.last = groups[0][:1]
        self.data: SubjectData | None = None
        self.seen: list[Tensor] = []
        self.announced = False

    def run(self, data: SubjectData, end: int) -> None:
        """Trains up to step `end` on this part of the data set, on the parameters in place."""
        self.data, self.end = data, end
        # What a cancel before the next draw shows has to be in the data at hand.
        self.last = self.groups[0][:1] if data.rows is None else data.rows[:1]
        self.prepared = self.prepared or self._prepare()
        model, settings, condition = self.prepared, self.settings, data.condition
        if settings.loss != "plain" and not data.views.all_told:
            layers = chosen_layers(model, data.views.latents[:1], AUTO_LAYER[BORDER])
            model = watch_attention(model, layers, self._see, "self", rows=None)
        guider = comfy.samplers.CFGGuider(model)
        extra = {} if condition.empty_pooled is None else {"pooled_output": condition.empty_pooled}
        guider.inner_set_conds({"positive": [[condition.empty, extra]]})

        def visit(denoiser, x, sigmas, extra_args, callback, disable):
            guider, device = denoiser.inner_model, denoiser.inner_model.model_patcher.load_device
            with gradient_phase(guider.inner_model), self.trainable.attached(guider.inner_model, device):
                self._train(guider, extra_args["model_options"], device)
            return x

        rows = settings.batch * len(self.groups)
        blank = torch.zeros_like(data.views.latents[:1]).repeat(rows, 1, 1, 1)
        schedule = model.get_model_object("model_sampling").sigma_max.reshape(1).cpu().float()
        sampler = comfy.samplers.KSAMPLER(visit)
        levels = torch.cat([schedule, torch.zeros(1)])
        guider.sample(blank, blank, sampler, levels, disable_pbar=True, seed=settings.seed)

    def _prepare(self) -> ModelPatcher:
        """Once for all stretches: the host may load the weights anew for such a clone."""
        settings = self.settings
        model = static_patcher(self.model)
        make_room(model, KEPT_RECOMPUTED if settings.checkpointing else backward_factor(), whole=True)
        set_precision(model, settings.precision)
        if settings.checkpointing:
            recompute_blocks(model)
        return model

    def panel(self, rows: Tensor) -> Tensor:
        """IMAGE (n, S, k S, 3) of views as they are trained on. rows: of the data set."""
        return self.shown(self.data.at(rows))

    def shown(self, rows: Tensor) -> Tensor:
        """The same by their places in the data at hand."""
        return self.data.views.shown[rows].float() / 255

    def _train(self, guider: Any, model_options: dict, device: torch.device) -> None:
        settings, training = self.settings, self.training
        self.network, self.device = guider.inner_model, device
        self.sampling = self.network.model_sampling
        self.options = plain_attention(ordinary(model_options))
        self.cond = ordinary(guider.conds["positive"][0])
        if not self.announced:
            self._announce()
        bar = comfy.utils.ProgressBar(settings.steps)
        with tqdm(total=settings.steps, initial=training.done, desc="Train Subject") as shown:
            while training.done < self.end:
                loss = training.step(self._loss)
                shown.update()
                shown.set_postfix(loss=f"{loss:.4f}")
                due = settings.preview_every and training.done % settings.preview_every == 0
                bar.update_absolute(training.done, settings.steps, self._live_preview() if due else None)
                self.after_step()

    def _announce(self) -> None:
        """Says what the run is going to take, after two forwards to see."""
        settings, self.announced = self.settings, True
        draw = self._draw(0)
        # Of one row, before it is known whether all fit. The first forward is slow besides.
        row = Draw(draw.rows[:1], draw.timesteps[:1], draw.noise[:1], draw.silent[:1], draw.seed)
        with self._seeded(draw):
            kept = len(draw.rows) * bytes_kept(lambda: self._denoise(row, *self._noised(row)), self.network)
            with torch.no_grad():
                started = time.perf_counter()
                float(self._denoise(draw, *self._noised(draw)).sum())
        forward = time.perf_counter() - started
        steps = settings.steps - self.training.done
        count = count_parameters(self.training.parameters)
        work = self.network.memory_required([len(draw.rows), *self.data.views.latents.shape[1:]])
        # Weight, gradient and AdamW's two moments of each parameter, in fp32.
        memory = kept + work + self.model.model_size() + 16 * count
        cost = RECOMPUTED_COST if settings.checkpointing else STEP_COST
        minutes = forward * cost * settings.accumulation * steps / 60
        views = min(sum(map(len, self.groups)), settings.steps * settings.accumulation * len(draw.rows))
        show_sentence(
            f"Training {count:,} parameters (a file of {count * 4 / 1e6:.1f} MB) on {views} views "
            f"for {steps} steps: about {memory / 1e9:.1f} GB of memory and {minutes:.1f} minutes. {self.remark}".strip()
        )

    @contextmanager
    def _seeded(self, draw: Draw) -> Iterator[None]:
        """Dropout draws from the common generators."""
        with torch.random.fork_rng([self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(draw.seed)
            yield

    def _loss(self, part: int) -> Tensor:
        comfy.model_management.throw_exception_if_processing_interrupted()
        draw = self._draw(part)
        self.last = draw.rows
        with self._seeded(draw):
            noised, sigma, clean = self._noised(draw)
            denoised = self._denoise(draw, noised, sigma, clean)
        if not denoised.requires_grad:
            raise ValueError("A patch on the model lets no gradient through it. Remove that patch to train a subject.")
        return batch_loss(self._losses(draw, denoised, clean, sigma), self.settings.batch, self.settings.prior_weight)

    def _losses(self, draw: Draw, denoised: Tensor, clean: Tensor, sigma: Tensor) -> Tensor:
        """Of each row, (B,)."""
        settings, subject = self.settings, self.data.views.subject
        cells = None if subject is None else subject[self.data.at(draw.rows)].to(self.device)
        weights = cells.clamp(min=1e-3) if settings.masked_loss and cells is not None else None
        losses = noise_losses(denoised, clean, sigma, self.prediction, weights)
        if settings.loss == "plain":
            return losses
        salient = self._salient(clean, cells, self.data.at(draw.rows))
        return losses + settings.focus_weight * saliency_focus(denoised, clean, salient, sigma, SNR_CAP)

    def _see(self, seen: Seen) -> None:
        self.seen.append(layer_map(BORDER, seen.queries, seen.keys, seen.heads, seen.grid))

    def _salient(self, clean: Tensor, cells: Tensor | None, rows: Tensor) -> Tensor:
        """S (B, 1, h, w): the mask's cells, and in rows without a mask what stands out from the picture's border by
        attention in the forward just made. rows: (B,), places in the data at hand.
        """
        told = self.data.views.told_at(rows)
        if told.all():
            return cells
        if not self.seen:
            raise ValueError(BLIND)
        seen = resize_map(joined_map(BORDER, self.seen), *clean.shape[-2:]) >= AUTO_THRESHOLD
        seen = seen.float()[:, None]
        return seen if cells is None else torch.where(told.view(-1, 1, 1, 1).to(seen.device), cells, seen)

    def _draw(self, part: int) -> Draw:
        settings = self.settings
        return draw_batch(
            settings.seed,
            self.training.done,
            part,
            self.groups,
            settings.batch,
            trained_levels(self.sampling),
            self.data.views.latents.shape[1:],
            settings.condition_dropout,
        )

    def _noised(self, draw: Draw) -> tuple[Tensor, Tensor, Tensor]:
        """x (B, C, h, w), sigma (B,), and the clean latent in the sampler's space."""
        clean = self.network.process_latent_in(self.data.views.latents[self.data.at(draw.rows)].to(self.device))
        sigma = self.sampling.sigma(draw.timesteps.float()).to(self.device, torch.float32)
        return clean + sigma.view(-1, 1, 1, 1) * draw.noise.to(self.device), sigma, clean

    def _denoise(self, draw: Draw, noised: Tensor, sigma: Tensor, clean: Tensor) -> Tensor:
        """The model's clean latent (B, C, h, w), fp32, each row under its own condition."""
        data, rows = self.data, self.data.at(draw.rows)
        which = data.context_of[rows]
        self.seen.clear()
        cond = {**self.cond, "cross_attn": data.condition.told(which, draw.silent)}
        pooled = data.condition.told_pooled(which, draw.silent)
        if pooled is not None:
            cond["pooled_output"] = pooled
        cond |= {name: values[rows] for name, values in data.views.channels.items()}
        conds = comfy.samplers.encode_model_conds(
            self.network.extra_conds, [cond], noised, self.device, "positive", latent_image=clean
        )
        # Other packs' patches read the schedule.
        self.options["transformer_options"]["sample_sigmas"] = torch.cat([sigma[:1], torch.zeros_like(sigma[:1])])
        return comfy.samplers.calc_cond_batch(self.network, [conds], noised, sigma, self.options)[0]

    def _live_preview(self) -> tuple[str, Image.Image, int]:
        values = (self.panel(self.last[:1])[0].clamp(0, 1) * 255).round().numpy().astype(numpy.uint8)
        return "JPEG", Image.fromarray(values), PREVIEW_SIDE
