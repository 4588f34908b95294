"""Two ways to do the same, side by side in one process: time and peak memory."""

import ctypes
import gc
import platform
import statistics
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

PAIRS = 5
_LOOK_EVERY = 0.002

Job = Callable[[], object]


@dataclass(frozen=True)
class Comparison:
    """One row of a bench. Seconds are medians; ratio is the median of the pairs' ratios, ours / reference."""

    name: str
    ours_s: float
    reference_s: float
    ratio: float
    peak_bytes: int
    reference_peak_bytes: int
    note: str = ""

    def row(self) -> dict[str, object]:
        rounded = {key: round(getattr(self, key), 5) for key in ("ours_s", "reference_s", "ratio")}
        return {**vars(self), **rounded}


def compare(
    name: str, ours: Job, reference: Job, *, pairs: int = PAIRS, warm_up: int = 1, note: str = ""
) -> Comparison:
    """Runs both in turns, `pairs` times each, after warm-up; who goes first alternates.

    Raises ValueError for fewer than PAIRS pairs.
    """
    if pairs < PAIRS:
        raise ValueError(f"A comparison needs at least {PAIRS} pairs.")
    for _ in range(warm_up):
        ours()
        reference()
    times: list[tuple[float, float]] = []
    for pair in range(pairs):
        if pair % 2:
            theirs = _seconds(reference)
            times.append((_seconds(ours), theirs))
        else:
            own = _seconds(ours)
            times.append((own, _seconds(reference)))
    return Comparison(
        name,
        statistics.median(own for own, _ in times),
        statistics.median(theirs for _, theirs in times),
        statistics.median(own / theirs for own, theirs in times),
        peak_memory(ours),
        peak_memory(reference),
        note,
    )


def _seconds(job: Job) -> float:
    _finish()
    began = time.perf_counter()
    job()
    _finish()
    return time.perf_counter() - began


def _finish() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def peak_memory(job: Job) -> int:
    """Bytes at the job's peak above those before it: CUDA's own count, else of the process's resident memory."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        job()
        _finish()
        return torch.cuda.max_memory_allocated() - before
    _return_free_memory()
    with _Watch() as watch:
        job()
    return watch.growth


def _return_free_memory() -> None:
    """glibc keeps what was freed, so that a second run would seem to need nothing."""
    if sys.platform == "linux" and platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


class _Watch:
    """Looks at the resident memory from a thread while the block runs."""

    def __init__(self) -> None:
        import psutil

        self._process = psutil.Process()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> "_Watch":
        self._before = self._peak = self._process.memory_info().rss
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()
        self._peak = max(self._peak, self._process.memory_info().rss)

    def _look(self) -> None:
        while not self._done.wait(_LOOK_EVERY):
            self._peak = max(self._peak, self._process.memory_info().rss)

    @property
    def growth(self) -> int:
        return self._peak - self._before
