"""The `evaluate` command: a quality suite on the demo world, with intervals, claims and a contact sheet."""

import argparse
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from ..demo.training.pictures import SEEDS
from ..demo.weights import WeightsError, file_hash, tower_hash, weights_path
from .machine import describe_machine
from .records import Records, keep_measured, take_up
from .report import as_text, build_report, to_line, write_report
from .sheet import compose_sheet
from .study import SHOWN, TEXTS, Study, Suite
from .suites import MODULES, load_suite

ROOT = Path(__file__).resolve().parents[1]
REPORTS = Path(__file__).resolve().parent / "reports"
# Full runs that take longer than one sitting: what they have measured so far.
UNFINISHED = Path(__file__).resolve().parent / "unfinished"


def main(argv: Sequence[str]) -> int:
    """SUITE [--seeds N] [--full] [--keep] [--out DIR]: prints a table and, as the last line, the report in JSON."""
    parser = argparse.ArgumentParser("dev.py evaluate", description=__doc__)
    parser.add_argument("suite", help=f"one of {', '.join(MODULES)}, or all")
    parser.add_argument("--seeds", type=int, help="how many seeds instead of the suite's own number")
    parser.add_argument("--full", action="store_true", help="the published size; resumes, ends in evaluation/reports")
    parser.add_argument(
        "--keep", action="store_true", help="of a full run that was stopped: pack it, to go on elsewhere"
    )
    parser.add_argument("--out", type=Path, default=ROOT / "out" / "evaluate", help="folder of what is measured")
    parser.add_argument("--tuning", action="store_true", help="the seeds for choosing options, never for reports")
    options = parser.parse_args(argv)
    names = list(MODULES) if options.suite == "all" else [options.suite]
    try:
        for problem in _problems(options, names):
            raise ValueError(problem)
        if options.keep:
            return _keep(names, options.out)
        reports = [_evaluate(load_suite(name), options) for name in names]
    except (WeightsError, ValueError, OSError) as error:
        print(f"dev.py evaluate: {error}", file=sys.stderr)
        return 1
    print(to_line(reports[0] if len(reports) == 1 else {"suite": "all", "reports": reports}))
    return 0


def _problems(options: argparse.Namespace, names: Sequence[str]) -> list[str]:
    found = [
        f"There is no suite {name!r}: choose one of {', '.join([*MODULES, 'all'])}."
        for name in names
        if name not in MODULES
    ]
    if options.seeds is not None and options.seeds < 2:
        found.append("--seeds must be at least 2: an interval needs more than one seed.")
    if options.tuning and options.full:
        found.append("--full reports held-out seeds: leave out --tuning.")
    if options.keep and not options.full:
        found.append("--keep is for full runs: add --full.")
    return found


def _keep(names: Sequence[str], out: Path) -> int:
    for name in names:
        path, first = out / name / "full" / "measured.jsonl", SEEDS["held-out"]
        if not path.exists():
            raise ValueError(f"There is no full run of {name} in {out}.")
        kept = UNFINISHED / f"{name}.jsonl.gz"
        groups = keep_measured(path, kept, range(first, first + SHOWN))
        print(f"{_shown(kept)}: {groups} groups of seeds. evaluate {name} --full goes on with them.", file=sys.stderr)
    return 0


def _evaluate(suite: Suite, options: argparse.Namespace) -> dict:
    count = options.seeds or (suite.full_seeds if options.full else suite.seeds)
    first = SEEDS["tuning" if options.tuning else "held-out"]
    folder = options.out / suite.name / ("full" if options.full else "tuning" if options.tuning else "short")
    if options.full:
        take_up(UNFINISHED / f"{suite.name}.jsonl.gz", folder / "measured.jsonl")
    else:
        shutil.rmtree(folder, ignore_errors=True)
    seeds = range(first, first + count)
    records = Records(folder / "measured.jsonl", fingerprint(suite))
    study = Study(suite.name, seeds, records, folder, full=options.full, tuning=options.tuning)
    print(f"{suite.name}: {count} seeds", file=sys.stderr, flush=True)
    suite.run(study)
    report_path, sheet_path = folder / "report.json", folder / "sheet.jpg"
    if options.full:
        report_path, sheet_path = REPORTS / f"{suite.name}.json", REPORTS / f"{suite.name}.jpg"
    sheet_path.parent.mkdir(parents=True, exist_ok=True)
    compose_sheet(folder / "tiles", suite.columns, min(study.shown, count)).save(sheet_path, quality=88)
    report = build_report(
        suite.name,
        seeds,
        describe_machine(),
        study.records.seconds,
        study.records.table(seeds),
        suite.claims,
        suite.contrasts,
        [_shown(report_path), _shown(sheet_path)],
    )
    write_report(report, report_path)
    print(as_text(report), flush=True)
    return report


def fingerprint(suite: Suite) -> str:
    """What measurements depend on beside the code: the weights that the suite reads."""
    return " ".join([suite.name, *(_weights_hash(part)[:12] for part in suite.parts)])


def _weights_hash(part: str) -> str:
    if part == TEXTS:
        return tower_hash("text")
    return file_hash(weights_path(part)) if weights_path(part).exists() else ""


def _shown(path: Path) -> str:
    """Relative to the checkout, or as given where it lies elsewhere."""
    return os.path.relpath(path, ROOT) if path.resolve().is_relative_to(ROOT) else str(path)
