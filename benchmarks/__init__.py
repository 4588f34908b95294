"""The `bench` command: Inlay beside plain ComfyUI in one process, as ratios."""

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Sequence
from importlib import import_module

from ..evaluation.machine import describe_machine
from .timing import Comparison

# Each module has `run() -> Iterable[Comparison]`.
MODULES = ("arg", "blend", "concept", "demo", "style", "subject", "swap")


def main(argv: Sequence[str]) -> int:
    """[NAME]: prints each row as it is measured and, as the last line, the report in JSON; without a name, all."""
    parser = argparse.ArgumentParser("dev.py bench", description=__doc__)
    parser.add_argument("name", nargs="?", help=f"one of {', '.join(MODULES)}; all of them if left out")
    name = parser.parse_args(argv).name
    if name is not None and name not in MODULES:
        print(f"dev.py bench: There is no bench {name!r}: choose one of {', '.join(MODULES)}.", file=sys.stderr)
        return 1
    try:
        reports = [_bench(one, import_module(f".{one}", __package__).run) for one in ([name] if name else MODULES)]
    except ValueError as error:
        print(f"dev.py bench: {error}", file=sys.stderr)
        return 1
    print(json.dumps(reports[0] if name else {"bench": "all", "reports": reports}, allow_nan=False))
    return 0


def _bench(name: str, run: Callable[[], Iterable[Comparison]]) -> dict:
    rows = []
    for comparison in run():
        print(
            f"{comparison.name}: {comparison.ours_s:.4g} s against {comparison.reference_s:.4g} s, "
            f"ratio {comparison.ratio:.3f}; peak {comparison.peak_bytes / 1e6:.0f} MB against "
            f"{comparison.reference_peak_bytes / 1e6:.0f} MB. {comparison.note}",
            flush=True,
        )
        rows.append(comparison.row())
    return {"bench": name, "machine": describe_machine(), "rows": rows}
