"""From measurements to the report: rows with intervals, claims, a table to read and a line of JSON."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from .bootstrap import Interval, bootstrap_mean, paired_difference
from .claims import Claim
from .records import Table

DIGITS = 4


def summarise(table: Table, contrasts: Iterable[tuple[str, str]] = ()) -> list[dict]:
    """One row for each of the table's, and one for each contrast (a, b) with the paired differences a - b.

    A metric that some of the row's seeds have no value for carries its own n.
    """
    rows = []
    for name, metrics in table.items():
        n = len({seed for column in metrics.values() for seed in column})
        columns = {metric: bootstrap_mean(list(column.values())) for metric, column in metrics.items() if column}
        rows.append(_row(name, n, columns))
    for a, b in contrasts:
        metrics = [metric for metric in table.get(a, {}) if metric in table.get(b, {})]
        found = {metric: paired_difference(table[a][metric], table[b][metric]) for metric in metrics}
        columns = {metric: interval for metric, interval in found.items() if interval is not None}
        if columns:
            rows.append(_row(f"{a} - {b}", max(interval.n for interval in columns.values()), columns))
    return rows


def _row(name: str, n: int, columns: Mapping[str, Interval]) -> dict:
    row: dict = {"name": name, "n": n}
    for metric, interval in columns.items():
        row[metric] = {"mean": _short(interval.mean), "ci95": _ends(interval.low, interval.high)}
        if interval.n != n:
            row[metric]["n"] = interval.n
    return row


def build_report(
    suite: str,
    seeds: Sequence[int],
    machine: Mapping[str, object],
    seconds: float,
    table: Table,
    claims: Iterable[Claim],
    contrasts: Iterable[tuple[str, str]],
    files: Iterable[str],
) -> dict:
    """The contract's report.json."""
    judged = [claim.judge(table) for claim in claims]
    for claim in judged:
        claim["value"] = _short(claim["value"])
        claim["ci95"] = None if claim["ci95"] is None else _ends(*claim["ci95"])
    return {
        "suite": suite,
        "seeds": len(seeds),
        "machine": dict(machine),
        "seconds": round(seconds, 1),
        "rows": summarise(table, contrasts),
        "claims": judged,
        "files": list(files),
    }


def _short(value: float | None) -> float | None:
    return None if value is None else round(value, DIGITS)


def _ends(low: float | None, high: float | None) -> list[float] | None:
    return None if low is None or high is None else [_short(low), _short(high)]


def to_line(report: Mapping[str, object]) -> str:
    """Strict JSON in one line."""
    return json.dumps(report, allow_nan=False)


def write_report(report: Mapping[str, object], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(report, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    partial.replace(path)


def as_text(report: Mapping) -> str:
    """The rows with their intervals and the claims, for people."""
    width = max((len(row["name"]) for row in report["rows"]), default=4)
    lines = []
    metrics: tuple[str, ...] = ()
    for row in report["rows"]:
        own = tuple(key for key in row if key not in ("name", "n"))
        if own != metrics:
            metrics = own
            lines += ["", f"{'':{width}} {'n':>5} " + " ".join(f"{metric:>22}" for metric in metrics)]
        cells = " ".join(f"{_cell(row[metric]):>22}" for metric in metrics)
        lines.append(f"{row['name']:{width}} {row['n']:>5} {cells}")
    lines.append("")
    for claim in report["claims"]:
        word = {True: "holds", False: "does not hold", None: "open"}[claim["holds"]]
        lines.append(f"{claim['id']}: {word}, {_cell({'mean': claim['value'], **claim})}. {claim['text']}")
    return "\n".join(lines)


def _cell(cell: Mapping) -> str:
    if cell["mean"] is None:
        return "not measured"
    value = f"{cell['mean']:.3g}"
    return value if cell["ci95"] is None else f"{value} [{cell['ci95'][0]:.3g}, {cell['ci95'][1]:.3g}]"
