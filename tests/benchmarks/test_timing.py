"""Timing of jobs whose cost is known."""

import time

import numpy as np
import pytest
from inlay.benchmarks.timing import compare, peak_memory


def sleeper(seconds, calls, name):
    def job():
        calls.append(name)
        time.sleep(seconds)

    return job


def test_the_ratio_is_of_alternating_pairs():
    calls = []
    found = compare("row", sleeper(0.03, calls, "ours"), sleeper(0.01, calls, "reference"), note="why")
    assert 1.5 < found.ratio < 6 and found.ours_s >= 0.03 and found.reference_s >= 0.01
    # Warm-up, five pairs in which the first takes turns, and one look at the memory of each.
    pairs = [calls[2 + 2 * pair : 4 + 2 * pair] for pair in range(5)]
    assert pairs == [["ours", "reference"], ["reference", "ours"]] * 2 + [["ours", "reference"]]
    assert len(calls) == 14
    row = found.row()
    expected = {"name", "ours_s", "reference_s", "ratio", "peak_bytes", "reference_peak_bytes", "note"}
    assert set(row) == expected and row["note"] == "why"


def test_one_slow_run_does_not_move_the_median():
    slow = iter([0.0] * 3 + [0.2] + [0.0] * 20)
    found = compare("row", lambda: time.sleep(0.01 + next(slow)), lambda: time.sleep(0.01))
    assert found.ratio < 3


def test_fewer_than_five_pairs_are_refused():
    with pytest.raises(ValueError, match="at least 5"):
        compare("row", lambda: None, lambda: None, pairs=4)


def test_peak_memory_is_what_the_job_held_at_once():
    size = 64_000_000

    def twice_in_turn():
        for _ in range(2):
            block = np.ones(size, dtype=np.uint8)
            time.sleep(0.02)
            del block

    for _ in range(2):
        assert 0.8 * size < peak_memory(twice_in_turn) < 1.6 * size
