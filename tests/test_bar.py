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
