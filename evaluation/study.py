"""One run of one suite."""

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from ..demo.weights import PARTS
from .claims import Claim
from .records import Measured, Records
from .sheet import save_tile

# Of CLIP only its text tower, among the parts that a suite depends on.
TEXTS = "texts"
# Rows of the contact sheet.
SHOWN = 12


@dataclass
class Study:
    """The seeds to measure, where measurements go, and the pictures to show.

    seeds: consecutive. shown: how many of them appear in the contact sheet, one row each. full: of the published size,
    for suites that measure less of each seed in a short run. tuning: on the seeds for choosing options.
    """

    name: str
    seeds: Sequence[int]
    records: Records
    folder: Path
    shown: int = SHOWN
    full: bool = False
    tuning: bool = False
    _began: float = field(default_factory=time.monotonic)

    def measure(self, unit: str, size: int, of_seeds: Callable[[list[int]], list[Measured]]) -> None:
        """Measures the seeds in groups of `size`; a group that is on record is not measured again."""
        groups = [list(self.seeds[first : first + size]) for first in range(0, len(self.seeds), size)]
        for group in groups:
            if self.records.has(unit, group):
                continue
            began = time.monotonic()
            measured = of_seeds(group)
            self.records.add(unit, group, time.monotonic() - began, measured)
            done = group[-1] - self.seeds[0] + 1
            print(
                f"  {time.monotonic() - self._began:6.0f} s  {self.name}, {unit}: {done}/{len(self.seeds)} seeds",
                file=sys.stderr,
                flush=True,
            )

    def show(self, seed: int, column: str, label: str, picture: Tensor) -> None:
        """A picture (H, W, 3) for the contact sheet, if this seed is one of those shown."""
        row = seed - self.seeds[0]
        if row < self.shown:
            save_tile(self.folder / "tiles", row, column, label, picture)


@dataclass(frozen=True)
class Suite:
    """seeds: of the default size, which ends within about 15 minutes on two CPU cores; full_seeds: as published.

    contrasts: pairs of rows whose paired differences the report shows. columns: titles of the contact sheet. parts: the
    weights that its figures depend on; it measures anew when one of them changes.
    """

    name: str
    seeds: int
    full_seeds: int
    run: Callable[[Study], None]
    claims: tuple[Claim, ...]
    contrasts: tuple[tuple[str, str], ...] = ()
    columns: tuple[str, ...] = ()
    parts: tuple[str, ...] = PARTS
