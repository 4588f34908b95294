"""A host SAMPLER that keeps a picture's background outside a mask."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import comfy.model_management
import comfy.samplers
import torch
from torch import Tensor

from ..guidance.background import blend, fixed, inverted, mask_cells, renoised
from ..guidance.noise import CandidateNoise
from ..guidance.samplers import sample
from ..guidance.trajectory import Trajectory
from .level_masks import by_level
from .models import model_id, prediction_kind, require_added_noise

BACKGROUNDS = ("inverted", "renoised", "fixed", "none")

HostModel = Callable[..., Tensor]


def background_sampler(
    background: str,
    latent: Tensor,
    mask: Tensor,
    trajectory: Trajectory | None = None,
    sampler: comfy.samplers.KSAMPLER | None = None,
    method: str = "ddim",
    eta: float = 0.0,
    repeats: int = 1,
    candidates: Sequence[int] | None = None,
    level_offset: int = 0,
    progressive: int = 0,
) -> comfy.samplers.KSAMPLER:
    """The sampler that puts the background back after each step, at the level of the new latent.

    latent: (1 or B, C, h, w), the clean picture as VAE.encode returns it. mask: (1 or B, H, W) in pixels, 1 =
    generate, on the latent as level_masks.by_level says; where the sampled latent carries a mask too, the smaller value
    of both counts. method: the loop, one of guidance.samplers.SAMPLERS; eta is ddim's. sampler: any other KSAMPLER
    instead, which then sees the background at the model's input, as with the host's own mask. candidates: the host's
    batch_index, so that a candidate's noise does not depend on its batch. level_offset: 1 repeats the off-by-one of
    Blended Diffusion's code, for comparison. progressive: stages in which the mask shrinks from a larger one to itself,
    see progressive_masks; 0 is off. Raises ValueError for what does not fit together.
    """
    if not torch.isfinite(latent).all():
        raise ValueError(
            "The background's latent holds values that are not numbers. Check the picture, "
            "or run the VAE in higher precision (--fp32-vae or --bf16-vae)."
        )
    if background == "inverted":
        if trajectory is None:
            raise ValueError("The inverted background needs a trajectory. Connect Invert Image, or choose renoised.")
        _same_size(trajectory, latent)
    if sampler is not None:
        if not isinstance(sampler, comfy.samplers.KSAMPLER):
            raise ValueError("This sampler has no steps that Inlay can reach. Connect one from KSamplerSelect.")
        if repeats > 1:
            raise ValueError("Repeats need ddim, ddpm or euler. Disconnect `sampler`, or set repeats to 1.")
    cells, shares = (mask_cells(mask, *latent.shape[-2:], cover) for cover in ("any", "share"))
    plan = _Plan(
        *(background, latent, cells, shares, trajectory, sampler),
        *(method, eta, repeats, candidates, level_offset, progressive),
    )
    return comfy.samplers.KSAMPLER(plan.run, inpaint_options=sampler.inpaint_options if sampler is not None else {})


def _same_size(trajectory: Trajectory, latent: Tensor) -> None:
    trajectory.check(*latent.shape[-2:], trajectory.model_id, trajectory.prediction)


@dataclass(frozen=True)
class _Plan:
    background: str
    latent: Tensor
    cells: Tensor
    shares: Tensor
    trajectory: Trajectory | None
    sampler: comfy.samplers.KSAMPLER | None
    method: str
    eta: float
    repeats: int
    candidates: Sequence[int] | None
    level_offset: int
    progressive: int

    @torch.no_grad()
    def run(
        self, model: HostModel, x: Tensor, sigmas: Tensor, extra_args: dict, callback: Callable | None, disable: bool
    ) -> Tensor:
        """The host's sampler function: model(x, sigma, **extra_args) returns x0."""
        run = (sigmas, extra_args, callback, disable)
        if self.background == "none":
            return self._steps(model, x, *run)
        mask = _fit_rows(self.cells.to(x), x, "mask")
        if extra_args.get("denoise_mask") is not None:
            mask = torch.minimum(mask, extra_args["denoise_mask"])
        extra_args = by_level(extra_args, sigmas, _fit_rows(self.shares.to(x), x, "mask"), self.progressive)
        if self.background == "fixed" and self.level_offset == 0:
            return self._with_host_mask(model, x, mask, sigmas, extra_args, callback, disable)
        kept = self._kept(model, x, mask, sigmas, extra_args)
        run = (sigmas, {**extra_args, "denoise_mask": None}, callback, disable)
        if self.sampler is None:
            return self._steps(model, x, *run, keep=kept.after_step)
        return kept.after_step(self._steps(_AtInput(model, kept), x, *run), len(sigmas) - 1)

    def _with_host_mask(
        self, model: HostModel, x: Tensor, mask: Tensor, sigmas: Tensor, extra_args: dict, *run: object
    ) -> Tensor:
        model.latent_image = self._clean(model, x)
        model.noise = self._one_noise(model, x, extra_args)
        return self._steps(model, x, sigmas, {**extra_args, "denoise_mask": mask}, *run)

    def _steps(
        self,
        model: HostModel,
        x: Tensor,
        sigmas: Tensor,
        extra_args: dict,
        callback: Callable | None,
        disable: bool,
        keep: Callable[[Tensor, int], Tensor] = lambda x, index: x,
    ) -> Tensor:
        if self.sampler is not None:
            steps, options = self.sampler.sampler_function, self.sampler.extra_options
            own = sigmas.clone()  # UniPC writes into them
            return steps(model, x, own, extra_args=extra_args, callback=callback, disable=disable, **options)
        if self.method == "ddpm" or self.eta > 0 or self.repeats > 1:
            require_added_noise(model.inner_model.model_patcher)
        rows = x.new_ones(len(x))

        def on_step(index: int, x: Tensor, denoised: Tensor) -> None:
            comfy.model_management.throw_exception_if_processing_interrupted()
            # Hosts before 0.30 pass no callback where the caller gave none.
            if callback is not None:
                sigma = {"sigma": sigmas[index], "sigma_hat": sigmas[index]}
                callback({"i": index, "x": x, "denoised": denoised, **sigma})

        return sample(
            lambda x, sigma: model(x, sigma * rows, **extra_args),
            x,
            sigmas.tolist(),
            keep,
            self._noise(x, extra_args),
            name=self.method,
            eta=self.eta,
            repeats=self.repeats,
            on_step=on_step,
        )

    def _kept(self, model: HostModel, x: Tensor, mask: Tensor, sigmas: Tensor, extra_args: dict) -> "_Kept":
        patcher = model.inner_model.model_patcher
        prediction = prediction_kind(patcher)
        if self.background == "inverted":
            self.trajectory.check(*x.shape[-2:], model_id(patcher), prediction)
            clean, at = _fit_rows(self.trajectory.clean.to(x), x, "trajectory"), inverted(self.trajectory, x)
        else:
            clean = self._clean(model, x).expand_as(x)
            if self.background == "fixed":
                at = fixed(clean, self._one_noise(model, x, extra_args))
            else:
                at = renoised(clean, self._noise(x, extra_args))
        shape_mask = extra_args["model_options"]["denoise_mask_function"]
        return _Kept(at, clean, mask, model.inner_model, sigmas, shape_mask, self.level_offset)

    def _one_noise(self, model: HostModel, x: Tensor, extra_args: Mapping) -> Tensor:
        # A sampler started without noise has none to put outside: the host would show the model a clean background.
        return model.noise if model.noise.any() else self._noise(x, extra_args).draw(x, "fixed", 0)

    def _clean(self, model: HostModel, x: Tensor) -> Tensor:
        return _fit_rows(model.inner_model.inner_model.process_latent_in(self.latent.to(x)), x, "background")

    def _noise(self, x: Tensor, extra_args: Mapping) -> CandidateNoise:
        given = self.candidates is not None and len(self.candidates) == len(x)
        return CandidateNoise(extra_args.get("seed") or 0, self.candidates if given else range(len(x)))


@dataclass(frozen=True)
class _Kept:
    """A background by level, and where it goes."""

    at: Callable[[float], Tensor]
    clean: Tensor
    mask: Tensor
    guider: comfy.samplers.CFGGuider
    sigmas: Tensor
    shape_mask: Callable[..., Tensor]
    level_offset: int

    def mask_at(self, sigma: Tensor) -> Tensor:
        """The mask at a level, as other packs' functions (differential diffusion) shape it too."""
        rows = sigma.expand(len(self.clean))
        return self.shape_mask(rows, self.mask, extra_options={"model": self.guider, "sigmas": self.sigmas})

    def after_step(self, x: Tensor, index: int) -> Tensor:
        """The background in a latent of level sigmas[index]."""
        level = float(self.sigmas[index])
        if level == 0:
            # Such functions are defined where the model is asked, never at the end.
            return blend(x, self.clean, self.mask_at(self.sigmas[index - 1]))
        outside = self.at(float(self.sigmas[max(index - self.level_offset, 0)]))
        return blend(x, outside, self.mask_at(self.sigmas[index]))


class _AtInput:
    """The host's model with the background in its input, and the clean background in the x0 it returns."""

    def __init__(self, model: HostModel, kept: _Kept) -> None:
        self._model, self._kept = model, kept

    def __call__(self, x: Tensor, sigma: Tensor, **extra_args: object) -> Tensor:
        mask = self._kept.mask_at(sigma.flatten()[0])
        denoised = self._model(blend(x, self._kept.at(float(sigma.flatten()[0])), mask), sigma, **extra_args)
        return blend(denoised, self._kept.clean, mask)

    def __getattr__(self, name: str) -> object:
        return getattr(self._model, name)


def _fit_rows(rows: Tensor, x: Tensor, what: str) -> Tensor:
    """Raises ValueError unless the rows are one, or as many as x has, of x's size."""
    if rows.shape[-2:] != x.shape[-2:]:
        raise ValueError(
            f"The {what} belongs to a latent of {rows.shape[-1]} x {rows.shape[-2]}, but the sampler works on "
            f"{x.shape[-1]} x {x.shape[-2]}. Connect the same latent to both."
        )
    if len(rows) not in (1, len(x)):
        raise ValueError(
            f"The {what} has {len(rows)} pictures and the sampler {len(x)}. Give one for all, or one for each."
        )
    return rows
