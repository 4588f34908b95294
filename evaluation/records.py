"""What was measured, one line of JSON for each finished group of seeds, so that a long run resumes where it stopped."""

import gzip
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
        """{row: {metric: {seed: value}}} of these seeds, units in the order of their first measurement, then seeds."""
        wanted, table = set(seeds), {}
        units = list(dict.fromkeys(unit for unit, _ in self._lines))
        # Whatever was measured when: intervals draw from the seeds in their order.
        for _, line in sorted(self._lines.items(), key=lambda it: (units.index(it[0][0]), it[0][1])):
            for row, seed, values in line["measured"]:
                for metric, value in values.items() if seed in wanted else ():
                    column = table.setdefault(row, {}).setdefault(metric, {})
                    if value is not None:
                        column[seed] = value
        return table


def keep_measured(path: Path, kept: Path, drawn: Sequence[int]) -> int:
    """Packs a run's measurements, for a machine that goes on with them; returns of how many groups of seeds.

    drawn: the seeds of the contact sheet, whose pictures are not kept: they are to be measured again.
    """
    fingerprint, *lines = _readable_lines(path)
    lines = [line for line in lines if not set(line["seeds"]) & set(drawn)]
    text = "".join(json.dumps(line) + "\n" for line in (fingerprint, *lines))
    kept.parent.mkdir(parents=True, exist_ok=True)
    # No time of writing in it: the same measurements give the same file.
    kept.write_bytes(gzip.compress(text.encode(), mtime=0))
    return len(lines)


def take_up(kept: Path, path: Path) -> None:
    """Begins a run that has measured nothing yet with what keep_measured has left, if anything."""
    if kept.exists() and not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(gzip.decompress(kept.read_bytes()))


def _readable_lines(path: Path) -> Iterator[dict]:
    """A line cut off by a stop in the middle of writing it, and what follows, does not count."""
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            yield json.loads(line)
        except json.JSONDecodeError:
            return
