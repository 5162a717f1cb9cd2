"""The figures of bytes to 99 % are those of the results file; from when on a course is at its goal."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parent.parent
SCRIPT = str(ROOT / "simulations/fewer_bytes.py")


@pytest.mark.parametrize(
    ("shares", "at"),
    [([0.5, 0.99, 1.0], 1), ([0.99, 0.98, 0.991], 2), ([1.0, 1.0], 0), ([1.0, 0.98], None), ([0.9 * 1.1, 0.99], 0)],
)
def test_a_goal_is_reached_from_where_it_is_never_missed_again(shares: list[float], at: int | None) -> None:
    assert runpy.run_path(SCRIPT)["first"](np.array(shares)) == at


def test_bytes_are_counted_until_the_mean_over_splits_is_there_and_until_each_split_is() -> None:
    script = runpy.run_path(SCRIPT)
    courses = [script["Course"]([5, 10, 15], shares, [10.0, 20.0, 30.0], 6.0) for shares in ([0.9, 0.98, 1.0], [0.9, 1.0, 0.985])]
    found = script["Found"](script["CHOSEN"][0], courses)
    assert found.mean() == 20.0 and found.each() == [30.0, None]


def test_the_document_says_what_the_results_say() -> None:
    found = json.loads((ROOT / "simulations/results/fewer-bytes.json").read_text("utf-8"))["found"]
    page = (ROOT / "docs/benchmarks.md").read_text("utf-8")
    for one in found:
        assert one["text"] in " ".join(page.split())


def test_as_many_settings_of_each_method_were_tried() -> None:
    tried = [setting.method for setting in dict.fromkeys(runpy.run_path(SCRIPT)["TRIED"])]
    assert tried.count("ledger") == tried.count("fedavg")
