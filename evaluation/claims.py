"""Claims about a suite's figures. Whether one holds follows from its interval, never from the mean alone."""

from dataclasses import dataclass
from typing import Protocol

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
    """A row's metric lies above another row's, in pairs over the shared seeds: the interval's lower end is above 0.

    share: of the other row's values that is to be exceeded; the claim's value is the difference to that share.
    """

    id: str
    text: str
    row: str
    over: str
    metric: str
    needed: int = 256
    share: float = 1.0

    def judge(self, table: Table) -> dict:
        ours, reference = (table.get(row, {}).get(self.metric, {}) for row in (self.row, self.over))
        asked = {seed: self.share * value for seed, value in reference.items()}
        return _verdict(self.id, self.text, paired_difference(ours, asked), self.needed, None)


class Comparison(Protocol):
    def judge(self, table: Table) -> dict: ...


@dataclass(frozen=True)
class EachAbove:
    """Every one of these comparisons holds. Value and interval are those of the one nearest to failing, or failing."""

    id: str
    text: str
    parts: tuple[Comparison, ...]

    def judge(self, table: Table) -> dict:
        found = [part.judge(table) for part in self.parts]
        told = [one for one in found if one["ci95"] is not None]
        if len(told) < len(found):
            return {"id": self.id, "text": self.text, "value": None, "ci95": None, "holds": None}
        weakest = min(told, key=_distance)
        verdicts = [one["holds"] for one in found]
        holds = None if None in verdicts else all(verdicts)
        failing = "; ".join(one["text"] for one in found if one["holds"] is False)
        text = f"{self.text} ({f'not: {failing}' if failing else 'weakest: ' + weakest['text']})"
        return {**weakest, "id": self.id, "text": text, "holds": holds}


def _distance(claim: dict) -> float:
    """The lower end's distance above 0, in widths of the interval."""
    low, high = claim["ci95"]
    return low / max(high - low, 1e-12)


Claim = Floor | Above | EachAbove


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
