"""The page of the bar says what its results file says."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_the_table_of_the_bar_is_that_of_its_results():
    rows = json.loads((ROOT / "simulations/results/bar.json").read_text("utf-8"))
    table = runpy.run_path(str(ROOT / "simulations/bar.py"))["page"](rows)
    assert table in (ROOT / "docs/benchmarks.md").read_text("utf-8")


def test_a_split_of_the_bar_has_the_worst_node_beside_centralized_and_fedavg():
    bar = runpy.run_path(str(ROOT / "simulations/bar.py"))
    for topology in (None, "random-matching"):
        goal = bar["Goal"]("breast-cancer", 12, 0.9, topology)
        row = bar["split"](goal, 0, None)
        assert row["low"] <= row["difference"] <= row["high"] and 0.9 < row["share"] < 1.1
        assert row["worst"] <= row["median_share"] * row["centralized"]
        assert "centralized" in bar["told"](row)
