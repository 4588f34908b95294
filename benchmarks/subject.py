"""A step of our LoRA trainer beside one of the host's Train LoRA node: same net, rank, batch, resolution and dtype.

Text mode on SD1.5's full width with random weights: on CUDA 64 x 64 latents (512 x 512 pixels) in bf16, on a CPU 16 x
16 in fp32 with fewer blocks. Only steps are timed, from the start of a forward to that of the next; setting up is not.
"""

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from ..host.lora_training import TARGETS, TrainableLora, count_parameters
from ..host.stock_training import train_as_the_host
from ..host.subject_data import SubjectData
from ..host.subject_loop import SubjectLoop
from ..host.subject_telling import Condition
from ..host.subject_views import Views
from ..tests.full_size import conditioning, sd15
from ..training.subject import SubjectTraining
from ..training.subject_settings import SubjectSettings
from .timing import PAIRS, Comparison, peak_memory

TEXT_WIDTH = 768
RANK = 16
RATE = 1e-4


@dataclass(frozen=True)
class Scale:
    """side: of the latents. depth: as in full_size. steps: of a run."""

    side: int
    depth: int | None
    dtype: torch.dtype
    steps: int

    @property
    def precision(self) -> str:
        return "bf16" if self.dtype == torch.bfloat16 else "fp32"


def scale_here() -> Scale:
    return Scale(64, None, torch.bfloat16, 10) if torch.cuda.is_available() else Scale(16, 1, torch.float32, 4)


def run(scale: Scale | None = None) -> Iterator[Comparison]:
    scale = scale or scale_here()
    model = build(scale)
    captions = [conditioning(TEXT_WIDTH, seed=seed)[0] for seed in (1, 2)]
    latents = torch.randn(2, 4, scale.side, scale.side, generator=torch.Generator().manual_seed(3))
    shape = f"SD1.5 width, {scale.side} x {scale.side} latents, rank {RANK}, {scale.precision}"
    count = count_parameters(TrainableLora(model, "attention", RANK, RANK, 0.0, 0).parameters)

    def ours(batch: int, checkpointing: bool = False, targets: str = "attention") -> Callable:
        return partial(train_ours, latents[:batch], captions[:batch], scale, batch, checkpointing, targets)

    def theirs(batch: int, checkpointing: bool = False, bypass: bool = False) -> Callable:
        def train(watched) -> None:
            rows = latents[:batch]
            train_as_the_host(
                watched, rows, captions[:batch], scale.steps, batch, RANK, RATE, scale.precision, checkpointing, bypass
            )

        return train

    note = (
        f"ours adapts the attention's layers, {count:,} parameters, beside them; the host every layer, in its weights; "
        f"one picture a step; {shape}"
    )
    yield compare_steps("lora-step", model, ours(1), theirs(1), note)
    wide = f"ours adapts {len(TARGETS['attention and feed-forward'])} layers a block, the host every layer; {shape}"
    yield compare_steps(
        "lora-step, also feed-forward", model, ours(1, targets="attention and feed-forward"), theirs(1), wide
    )
    beside = f"the host's bypass mode too computes beside the layers, so that the rest is due to fewer layers; {shape}"
    yield compare_steps("lora-step, host's bypass", model, ours(1), theirs(1, bypass=True), beside)
    saved = f"both compute the blocks again in backward; {shape}"
    yield compare_steps("lora-step, checkpointing", model, ours(1, True), theirs(1, True), saved)
    mixed = f"two pictures a step with a caption each: the host runs every caption on every picture; {shape}"
    yield compare_steps("lora-step, two captions", model, ours(2), theirs(2), mixed)


def build(scale: Scale):
    """The net, which the host's trainer can have a second time."""
    model = sd15(depth=scale.depth, dtype=scale.dtype)
    model.cached_patcher_init = (lambda disable_dynamic=False: sd15(depth=scale.depth, dtype=scale.dtype), ())
    return model


def train_ours(
    latents: Tensor, captions: list, scale: Scale, batch: int, checkpointing: bool, targets: str, model
) -> list[float]:
    settings = SubjectSettings(
        mode="text", preset="custom", rank=RANK, steps=scale.steps, learning_rate=RATE, batch=batch,
        condition_dropout=0.0, precision=scale.precision, checkpointing=checkpointing, preview_every=0,
    )  # fmt: skip
    count = len(latents)
    with torch.inference_mode(False):
        lora = TrainableLora(model, targets, RANK, RANK, 0.0, 0)
        lora.to(model.load_device)
        training = SubjectTraining(lora.parameters, RATE, 1)
    views = Views(latents, {}, None, torch.zeros(count, 8, 8, 3, dtype=torch.uint8))
    texts = torch.cat([text for text, _ in captions])
    data = SubjectData(views, Condition(texts, texts[:1]), torch.arange(count))
    SubjectLoop(model, lora, training, settings, [torch.arange(count)]).run(data, scale.steps)
    return training.losses


def compare_steps(name: str, model, ours: Callable, reference: Callable, note: str) -> Comparison:
    """Seconds a step in alternating runs. ours, reference: train the given clone of the model."""
    step_seconds(model, ours), step_seconds(model, reference)
    times = []
    for pair in range(PAIRS):
        order = (reference, ours) if pair % 2 else (ours, reference)
        taken = [step_seconds(model, train) for train in order]
        times.append(taken[::-1] if pair % 2 else taken)
    return Comparison(
        name,
        statistics.median(own for own, _ in times),
        statistics.median(theirs for _, theirs in times),
        statistics.median(own / theirs for own, theirs in times),
        peak_memory(lambda: ours(model.clone())),
        peak_memory(lambda: reference(model.clone())),
        note,
    )


def step_seconds(model, train: Callable) -> float:
    """The median time between the starts of two forwards, the first of a run left out."""
    starts: list[float] = []

    def stamp(apply: Callable, given: dict) -> Tensor:
        # Not of the forward by which ours tells beforehand how long it takes.
        if torch.is_grad_enabled():
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            starts.append(time.perf_counter())
        return apply(given["input"], given["timestep"], **given["c"])

    watched = model.clone()
    watched.set_model_unet_function_wrapper(stamp)
    train(watched)
    between = [later - sooner for sooner, later in zip(starts[1:], starts[2:], strict=False)]
    return statistics.median(between or [starts[-1] - starts[0]])
