"""What was measured, one line of JSON for each finished group of seeds, so that a long run resumes where it stopped."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

Table = dict[str, dict[str, dict[int, float]]]


@dataclass(frozen=True)
class Measured:
    """The values of one row of the report for one seed. A value of None does not exist for that seed."""

    row: str
    seed: int
    values: dict[str, float | None]


class Records:
    """Measurements by unit (a part of a suite) and group of seeds, kept in a file.

    fingerprint: names what the measurements depend on; a file with another one is started afresh.
    """

    def __init__(self, path: Path, fingerprint: str) -> None:
        self.path = path
        self._lines: dict[tuple[str, int], dict] = {}
        lines = list(_readable_lines(path)) if path.exists() else []
        if lines and lines[0] == {"fingerprint": fingerprint}:
            self._lines = {(line["unit"], line["seeds"][0]): line for line in lines[1:]}
        path.parent.mkdir(parents=True, exist_ok=True)
        self._write_afresh(fingerprint)

    def _write_afresh(self, fingerprint: str) -> None:
        text = "\n".join(json.dumps(line) for line in ({"fingerprint": fingerprint}, *self._lines.values()))
        partial = self.path.with_suffix(".partial")
        partial.write_text(text + "\n", encoding="utf-8")
        partial.replace(self.path)

    def has(self, unit: str, seeds: Sequence[int]) -> bool:
        line = self._lines.get((unit, seeds[0]))
        return line is not None and line["seeds"] == list(seeds)

    def add(self, unit: str, seeds: Sequence[int], seconds: float, measured: Sequence[Measured]) -> None:
        line = {
            "unit": unit,
            "seeds": list(seeds),
            "seconds": round(seconds, 3),
            "measured": [[one.row, one.seed, one.values] for one in measured],
        }
        self._lines[unit, seeds[0]] = line
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    @property
    def seconds(self) -> float:
        """What all groups took together, also those of earlier runs."""
        return sum(line["seconds"] for line in self._lines.values())

    def table(self, seeds: Sequence[int]) -> Table:
        """{row: {metric: {seed: value}}} of these seeds, rows and metrics in the order of their first measurement."""
        wanted, table = set(seeds), {}
        for line in self._lines.values():
            for row, seed, values in line["measured"]:
                for metric, value in values.items() if seed in wanted else ():
                    column = table.setdefault(row, {}).setdefault(metric, {})
                    if value is not None:
                        column[seed] = value
        return table


def _readable_lines(path: Path) -> Iterator[dict]:
    """A line cut off by a stop in the middle of writing it, and what follows, does not count."""
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            yield json.loads(line)
        except json.JSONDecodeError:
            return
