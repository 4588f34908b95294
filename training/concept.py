"""The loop of textual inversion: a few vectors, AdamW, accumulated gradients, and a state that can be resumed."""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b

import torch
from torch import Tensor

logger = logging.getLogger("inlay")

# A power of two: it keeps half precision from rounding small gradients to 0 and cancels without a trace.
LOSS_SCALE = 1024.0
BETAS = (0.9, 0.999)
WEIGHT_DECAY = 1e-2
SYMMETRY_NOISE = 1e-3
# Steps in a row that may come to nothing.
PATIENCE = 3

Vectors = dict[str, Tensor]
Texts = Sequence[Tensor]


@dataclass(frozen=True)
class Draw:
    """One training example. picture: its index. flip: mirrored. timestep: of the schedule. noise: (1, C, h, w)."""

    picture: int
    flip: bool
    timestep: int
    noise: Tensor


def draw_example(
    seed: int, step: int, part: int, parts: int, pictures: int, timesteps: int, shape: Sequence[int], flips: bool
) -> Draw:
    """The example of one accumulation part of one step: the same on every device, and whether resumed or not.

    Each of a step's parts has its own stretch of the schedule: together they are uniform, with less noise in their
    mean than timesteps drawn one by one.
    """
    key = blake2b(f"{seed} concept {step} {part}".encode(), digest_size=8).digest()
    generator = torch.Generator("cpu").manual_seed(int.from_bytes(key, "big"))

    def below(end: int) -> int:
        return int(torch.randint(end, (), generator=generator))

    first, end = (timesteps * edge // parts for edge in (part, part + 1))
    picture, flip, timestep = below(pictures), below(2) == 1, first + below(max(1, end - first))
    return Draw(picture, flip and flips, timestep, torch.randn(1, *shape, generator=generator))


def initial_vectors(table: Tensor, tokens: int, word: Tensor | None, generator: torch.Generator) -> Tensor:
    """(tokens, C) fp32 to start from.

    table: (V, C), the encoder's embeddings. word: (k, C), the vectors of an initial word, spread over the tokens, with
    a little noise where they repeat; None draws from the table's mean and deviation.
    """
    noise = torch.randn(tokens, table.shape[1], generator=generator)
    if word is None:
        table = table.float().cpu()
        return table.mean(0) + noise * table.std(0)
    spread = word.float().cpu()[torch.arange(tokens) * len(word) // tokens]
    return spread + SYMMETRY_NOISE * noise if len(word) < tokens else spread


@dataclass(frozen=True)
class ConceptSettings:
    """objective: of OBJECTIVES. template: the text it is learned in, {} for the concept, one line or one a picture.
    weight: lambda, of the objective's own term. snr_cap, norm: of saliency_focus. mask_source: of MASK_SOURCES, where
    no masks are given; auto is the attention to the border. threshold: gamma, 0 for what suits each picture (auto) or 1
    (the other sources). precision: of the UNet. at_once: examples in one forward, 0 for as many of a step's as fit.
    preview_every: steps, 0 for none. resolution: of the longer side in pixels, to which larger pictures are scaled
    down, 0 for any size. map_average: what a map leaves of the running average before it, 0 for maps of their own.
    """

    objective: str = "saliency focus"
    tokens: int = 6
    init_word: str = ""
    template: str = "{}"
    steps: int = 200
    learning_rate: float = 5e-4
    accumulation: int = 4
    at_once: int = 0
    scale_lr: bool = False
    weight: float = 1.0
    snr_cap: float = 5.0
    norm: bool = False
    mask_source: str = "auto"
    layer: str = "auto"
    threshold: float = 0.0
    flips: bool = True
    seed: int = 0
    precision: str = "auto"
    checkpointing: bool = False
    preview_every: int = 25
    resume: bool = True
    resolution: int = 512
    map_average: float = 0.0


class _NotFinite(ValueError):
    pass


class ConceptTraining:
    """Trains vectors {encoder: (n, C)} in place, in fp32. Everything that the next step depends on is in `state()`.

    losses: one a step, NaN for a step that was left out.
    """

    def __init__(
        self,
        vectors: Mapping[str, Tensor],
        learning_rate: float,
        accumulation: int,
        advice: str = "Lower the learning rate, or train in fp32 or bf16.",
    ) -> None:
        """advice: against values that are not finite. Raises ValueError for a learning rate that is not above 0."""
        if not learning_rate > 0:
            raise ValueError("The learning rate is 0, so nothing would be learned. Set it above 0, for example 0.0005.")
        self.vectors: Vectors = {key: value.detach().float().clone().requires_grad_() for key, value in vectors.items()}
        self.accumulation, self.advice = accumulation, advice
        self.losses: list[float] = []
        self.optimizer = torch.optim.AdamW(
            self.vectors.values(), lr=learning_rate, betas=BETAS, weight_decay=WEIGHT_DECAY
        )

    @property
    def done(self) -> int:
        return len(self.losses)

    def step(
        self, encode: Callable[[Vectors], Texts], loss: Callable[[Texts, range], Tensor], at_once: int = 1
    ) -> float:
        """One update; returns its loss, NaN where the loss or the gradient is not finite and the vectors stay.

        encode: the vectors to the text encoder's outputs, once a step. loss(texts, parts): the losses, (n,), of n of
        the `accumulation` parts, at most `at_once`. Each graph ends at the texts, so that the text encoder is run, and
        gone back through, once for all of them. Raises ValueError for the third step in a row that comes to nothing,
        and is then where it was before them.
        """
        try:
            value = self._update(encode, loss, at_once)
        except _NotFinite as error:
            last = self.losses[1 - PATIENCE :]
            if len(last) == PATIENCE - 1 and all(map(math.isnan, last)):
                del self.losses[1 - PATIENCE :]
                raise
            logger.warning("%s The step is left out.", error)
            value = math.nan
        self.losses.append(value)
        return value

    @property
    def learned(self) -> bool:
        return not all(map(math.isnan, self.losses))

    def require_learned(self) -> None:
        """Raises ValueError where every step has come to nothing."""
        if not self.learned:
            raise ValueError(f"The loss was not a number in any step. {self.advice}")

    def _update(
        self, encode: Callable[[Vectors], Texts], loss: Callable[[Texts, range], Tensor], at_once: int
    ) -> float:
        texts = [text for text in encode(self.vectors) if text is not None]
        leaves = [text.detach().requires_grad_() for text in texts]
        total = 0.0
        parts = range(self.accumulation)
        for first in parts[::at_once]:
            value = loss(leaves, parts[first : first + at_once]).sum() / self.accumulation
            self._require_finite(value, "loss")
            (value * LOSS_SCALE).backward()
            total += float(value.detach())
        used = [(text, leaf.grad) for text, leaf in zip(texts, leaves, strict=True) if leaf.grad is not None]
        self.optimizer.zero_grad()
        torch.autograd.backward([text for text, _ in used], [gradient for _, gradient in used])
        for vector in self.vectors.values():
            vector.grad /= LOSS_SCALE
            self._require_finite(vector.grad, "gradient")
        self.optimizer.step()
        return total

    def state(self) -> dict[str, Tensor]:
        """All tensors of a checkpoint, on the CPU."""
        state = {"losses": torch.tensor(self.losses, dtype=torch.float64)}
        for key, vector in self.vectors.items():
            state[f"vectors.{key}"] = vector
            for name, value in self.optimizer.state[vector].items():
                state[f"optimizer.{key}.{name}"] = value
        return {key: value.detach().cpu().clone() for key, value in state.items()}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        self.losses = state["losses"].tolist()
        for key, vector in self.vectors.items():
            vector.data.copy_(state[f"vectors.{key}"])
            start = f"optimizer.{key}."
            self.optimizer.state[vector] = {
                # AdamW keeps its count on the CPU.
                name[len(start) :]: value.clone() if value.ndim == 0 else value.to(vector.device, copy=True)
                for name, value in state.items()
                if name.startswith(start)
            }

    def _require_finite(self, value: Tensor, what: str) -> None:
        if not torch.isfinite(value).all():
            raise _NotFinite(f"The {what} is not a number in step {self.done + 1}. {self.advice}")
