"""The claim that something cheaper costs next to nothing."""

from dataclasses import dataclass

from .bootstrap import paired_difference
from .records import Table


@dataclass(frozen=True)
class NotBelow:
    """A row's metric lies at most `margin` below another row's, in pairs over the shared seeds: the lower end of the
    difference's interval does.
    """

    id: str
    text: str
    row: str
    than: str
    metric: str
    margin: float
    needed: int

    def judge(self, table: Table) -> dict:
        ours, reference = (table.get(row, {}).get(self.metric, {}) for row in (self.row, self.than))
        interval = paired_difference(ours, reference)
        claim = {"id": self.id, "text": self.text, "value": None, "ci95": None, "holds": None}
        if interval is None:
            return claim
        claim["value"] = interval.mean
        if interval.low is not None:
            claim["ci95"] = [interval.low, interval.high]
            claim["holds"] = interval.low >= -self.margin if interval.n >= self.needed else None
        return claim
