"""Claims about a suite's figures. Whether one holds follows from its interval, never from the mean alone."""

from dataclasses import dataclass

from .bootstrap import Interval, bootstrap_mean, paired_difference
from .records import Table


@dataclass(frozen=True)
class Floor:
    """Every one of these rows and metrics reaches the floor: its interval's lower end does.

    The claim's value is that of the worst of them. goal: reported in the text as reached or not, in the same way.
    needed: the seeds that each metric needs for a verdict.
    """

    id: str
    text: str
    rows: tuple[str, ...]
    metrics: tuple[str, ...]
    floor: float
    goal: float | None = None
    needed: int = 128

    def judge(self, table: Table) -> dict:
        found = [_mean_of(table, row, metric) for row in self.rows for metric in self.metrics]
        if any(interval is None for interval in found):
            return _verdict(self.id, self.text, None, self.needed, self.floor)
        worst = min(found, key=lambda interval: interval.mean if interval.low is None else interval.low)
        fewest = min(interval.n for interval in found)
        text = self.text
        if self.goal is not None:
            reached = worst.low is not None and fewest >= self.needed and worst.low >= self.goal
            text += f" (goal {self.goal:g}: {'reached' if reached else 'not reached'})"
        return _verdict(self.id, text, worst, self.needed, self.floor, fewest)


@dataclass(frozen=True)
class Above:
    """A row's metric lies above another row's, in pairs over the shared seeds: the interval's lower end is above 0."""

    id: str
    text: str
    row: str
    over: str
    metric: str
    needed: int = 256

    def judge(self, table: Table) -> dict:
        ours, reference = (table.get(row, {}).get(self.metric, {}) for row in (self.row, self.over))
        return _verdict(self.id, self.text, paired_difference(ours, reference), self.needed, None)


Claim = Floor | Above


def _mean_of(table: Table, row: str, metric: str) -> Interval | None:
    values = table.get(row, {}).get(metric)
    return bootstrap_mean(list(values.values())) if values else None


def _verdict(
    id: str, text: str, interval: Interval | None, needed: int, floor: float | None, n: int | None = None
) -> dict:
    """floor: to be reached by the lower end; None: 0, to be exceeded."""
    claim = {"id": id, "text": text, "value": None, "ci95": None, "holds": None}
    if interval is None:
        return claim
    claim["value"] = interval.mean
    if interval.low is None:
        return claim
    claim["ci95"] = [interval.low, interval.high]
    if (interval.n if n is None else n) >= needed:
        claim["holds"] = interval.low > 0 if floor is None else interval.low >= floor
    return claim
