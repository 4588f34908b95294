"""The loop that teaches a network a subject: what each step draws, its loss, accumulation, and a resumable state."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from math import isfinite

import torch
from torch import Tensor, nn

# A power of two: it keeps half precision from rounding small gradients to 0 and cancels without a trace.
LOSS_SCALE = 1024.0
BETAS = (0.9, 0.999)
WEIGHT_DECAY = 1e-2


@dataclass(frozen=True)
class Draw:
    """One batch. rows: (B,) of the data set. timesteps: (B,) of the schedule. noise: (B, C, h, w). silent: (B,) bool,
    whose condition is left out. seed: for what else is drawn on the way.
    """

    rows: Tensor
    timesteps: Tensor
    noise: Tensor
    silent: Tensor
    seed: int


def draw_batch(
    seed: int,
    step: int,
    part: int,
    groups: Sequence[Tensor],
    batch: int,
    timesteps: int,
    shape: Sequence[int],
    silence: float,
) -> Draw:
    """The batch of one accumulation part of one step: the same on every device, and whether resumed or not.

    groups: of each, `batch` rows are drawn; the subject's rows, and those of its class for prior preservation.
    """
    own, generator = _drawn_from(seed, step, part)
    rows = _rows(groups, batch, generator)
    levels = torch.randint(timesteps, (len(rows),), generator=generator)
    noise = torch.randn(len(rows), *shape, generator=generator)
    return Draw(rows, levels, noise, torch.rand(len(rows), generator=generator) < silence, own)


def draw_rows(seed: int, step: int, part: int, groups: Sequence[Tensor], batch: int) -> Tensor:
    """The rows alone of `draw_batch`, to know ahead which of a large data set are needed."""
    return _rows(groups, batch, _drawn_from(seed, step, part)[1])


def _drawn_from(seed: int, step: int, part: int) -> tuple[int, torch.Generator]:
    key = blake2b(f"{seed} subject {step} {part}".encode(), digest_size=7).digest()
    own = int.from_bytes(key, "big")
    return own, torch.Generator("cpu").manual_seed(own)


def _rows(groups: Sequence[Tensor], batch: int, generator: torch.Generator) -> Tensor:
    return torch.cat([group[torch.randint(len(group), (batch,), generator=generator)] for group in groups])


def noise_losses(
    denoised: Tensor, clean: Tensor, sigma: Tensor, prediction: str, weights: Tensor | None = None
) -> Tensor:
    """Per row (B,), the mean squared error of what the network predicts, all noise levels alike (eq. 6).

    denoised, clean: (B, C, h, w) estimate and truth in the sampler's space; sigma: (B,). With eps = (x - x0) / sigma
    the noise's error is that of x0 by sigma, and v's is sqrt(1 + sigma^2) times it. weights: (B, 1, h, w), the loss
    is then their weighted mean.
    """
    errors = ((denoised - clean).float() / sigma.view(-1, 1, 1, 1)).square()
    if weights is None:
        losses = errors.mean((1, 2, 3))
    else:
        losses = (errors.mean(1, keepdim=True) * weights).sum((1, 2, 3)) / weights.sum((1, 2, 3))
    return losses * (1 + sigma**2) if prediction == "v" else losses


def batch_loss(losses: Tensor, batch: int, prior_weight: float) -> Tensor:
    """The subject's rows come first; those of its class, if any, count `prior_weight` (DreamBooth, eq. 2)."""
    own = losses[:batch].mean()
    return own if len(losses) == batch else own + prior_weight * losses[batch:].mean()


class NotANumber(ValueError):
    """A loss or a gradient is none. The parameters are those of the step before."""


class SubjectTraining:
    """AdamW on named parameters. Everything that the next step depends on is in `state()`, while `whole`."""

    def __init__(self, parameters: Mapping[str, nn.Parameter], learning_rate: float, accumulation: int) -> None:
        """Raises ValueError for a learning rate that is not above 0."""
        if not learning_rate > 0:
            raise ValueError("The learning rate is 0, so nothing would be learned. Set it above 0, for example 0.0001.")
        self.parameters = dict(parameters)
        self.accumulation = accumulation
        self.losses: list[float] = []
        self.whole = True
        self.optimizer = torch.optim.AdamW(
            self.parameters.values(), lr=learning_rate, betas=BETAS, weight_decay=WEIGHT_DECAY
        )

    @property
    def done(self) -> int:
        return len(self.losses)

    def step(self, loss: Callable[[int], Tensor]) -> float:
        """One update; returns its loss. loss(part): the scalar of one of the `accumulation` parts.

        Raises NotANumber where the loss or a gradient is not finite.
        """
        self.optimizer.zero_grad()
        total = 0.0
        for part in range(self.accumulation):
            value = loss(part) / self.accumulation
            total += float(value.detach())
            self._require(isfinite(total), "loss")
            (value * LOSS_SCALE).backward()
        gradients = [one.grad for one in self.parameters.values() if one.grad is not None]
        for gradient in gradients:
            gradient /= LOSS_SCALE
        # Asked once of all, because each answer waits for the device.
        self._require(isfinite(float(torch.stack([one.abs().amax() for one in gradients]).amax())), "gradient")
        # What stops it between two parameters leaves no state to go on from.
        self.whole = False
        self.optimizer.step()
        self.losses.append(total)
        self.whole = True
        return total

    def state(self) -> dict[str, Tensor]:
        """All tensors of a checkpoint, on the CPU."""
        state = {"losses": torch.tensor(self.losses, dtype=torch.float64)}
        for name, parameter in self.parameters.items():
            state[f"weights.{name}"] = parameter
            for key, value in self.optimizer.state[parameter].items():
                state[f"optimizer.{key}.{name}"] = value
        return {key: value.detach().cpu().clone() for key, value in state.items()}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        self.losses = state["losses"].tolist()
        for name, parameter in self.parameters.items():
            parameter.data.copy_(state[f"weights.{name}"])
            found = {key: state.get(f"optimizer.{key}.{name}") for key in ("step", "exp_avg", "exp_avg_sq")}
            self.optimizer.state[parameter] = {
                # AdamW keeps its count on the CPU.
                key: value.clone() if value.ndim == 0 else value.to(parameter.device, copy=True)
                for key, value in found.items()
                if value is not None
            }

    def _require(self, finite: bool, what: str) -> None:
        if not finite:
            raise NotANumber(
                f"The {what} is not a number in step {self.done + 1}. "
                "Lower the learning rate, or train in fp32 or bf16."
            )
