"""Laws of the demo: its page and figures, and one real run with a kill, read as a program would read it."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gossipfl import released, tasks
from gossipfl.simulator import report, results
from gossipfl.simulator.results import Result, SiteResult

ROOT = Path(__file__).parents[1]


def site(name: str, local: float, gossip: float) -> SiteResult:
    curve = [{"local_round": k, "wall": float(k), "metrics": {"auc": gossip - 0.1 / (k + 1)}} for k in range(5)]
    return SiteResult(name, 30, {"0": 20, "1": 10}, {"auc": local}, {"auc": gossip}, 12, 4096, 1, curve)


def result(*sites: SiteResult, **changed: Any) -> Result:
    plain: dict[str, Any] = {
        "task": "a task",
        "seed": 0,
        "metric": "auc",
        "test_rows": 50,
        "centralized": {"auc": 0.95},
        "sites": sites or (site("a", 0.8, 0.94), site("b", 0.9, 0.95)),
        "consensus": 0.01,
        "distances": [(1.0, 0.5), (2.0, 0.01), (3.0, 0.0)],
        "seconds": 12.0,
        "killed": None,
        "stages": {"training": 3.0},
    }
    return Result(**(plain | changed))


MANIFEST = {"began": "2026-01-01T00:00:00Z", "command": ["gossipfl", "demo"], "seed": 0, "python": "3", "platform": "p",
            "packages": {"torch": "2"}}  # fmt: skip


# ---- figures and page ------------------------------------------------------------------------------------------------


def test_one_model_everywhere_is_consensus_and_masses_weigh_the_mean() -> None:
    x = np.array([1.0, -2.0], dtype=np.float32)
    assert results.consensus([x, x, x], [1.0, 2.0, 3.0]) == 0
    assert results.consensus([np.array([0.0]), np.array([1.0])], [1.0, 3.0]) == pytest.approx(math.sqrt(3 / 16) / 0.75)


def test_worst_is_the_least_auc_and_the_largest_loss() -> None:
    assert (results.worst([0.8, 0.9], "auc"), results.worst([0.8, 0.9], "loss")) == (0.8, 0.9)
    assert result().share() == pytest.approx(0.94 / 0.95)


def test_the_summary_has_every_figure_that_is_promised_and_is_json() -> None:
    told = results.summary(result(), Path("report.html"))
    promised = {"task", "seed", "nodes", "metric", "centralized", "exchanges", "bytes", "seconds", "report"}
    assert promised <= set(told)
    assert told["local_only"] == {"mean": pytest.approx(0.85), "worst": 0.8}
    assert told["gossip"] == {"mean": pytest.approx(0.945), "worst": 0.94}
    assert (told["exchanges"], told["bytes"]) == (12, 8192), "both sides count an exchange; each counts its own bytes"
    json.dumps(told, allow_nan=False)


@pytest.mark.parametrize("metric", ["auc", "accuracy", "loss"])
def test_the_page_is_self_contained_whatever_is_measured(metric: str) -> None:
    sites = [SiteResult(name, 9, {"0": 9}, {metric: 0.5}, {metric: 0.6}, 3, 10, 2) for name in ("a", "b")]
    killed = {"site": "a", "local_round": 3, "at_seconds": 1.0}
    page = report.page(result(*sites, metric=metric, centralized={metric: 0.7}, distances=[], killed=killed), MANIFEST)
    self_contained(page)
    assert "was killed with SIGKILL" in page


def test_a_page_believes_no_name() -> None:
    page = report.page(result(site("<script>alert(1)</script>", 0.8, 0.9), task='"><img src=x>'), MANIFEST)
    assert "<script>" not in page and "<img" not in page


def self_contained(page: str) -> None:
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', page)
    assert policy and "default-src 'none'" in policy[1] and "unsafe" not in policy[1]
    assert not re.search(r"<(script|link|img|iframe)|https?://|@import|url\((?!#)|\sstyle=|\son\w+=", page)
    assert "nan" not in re.sub(r"<style>.*?</style>", "", page, flags=re.S).lower().split()


# ---- a whole run -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path, str]:
    """The demo with three hospitals, one of them killed; 20 s on two free cores."""
    folder = tmp_path_factory.mktemp("demo") / "run"
    command = [sys.executable, "-m", "gossipfl", "demo", "--nodes", "3", "--kill", "--json", "--out", str(folder)]
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path}, timeout=200)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stderr}"
    return json.loads(done.stdout), folder, done.stderr


def test_the_demo_reaches_centralized_quality_at_its_worst_node_with_a_kill(ran: Any) -> None:
    summary, _, _ = ran
    assert summary["centralized"] >= 0.985
    assert summary["gossip"]["worst"] >= 0.99 * summary["centralized"]
    assert summary["local_only"]["worst"] < summary["gossip"]["worst"], "else the demo shows nothing"
    assert summary["killed"]["site"] == "hospital-1"
    assert [one["starts"] for one in summary["sites"]] == [2, 1, 1]


def test_the_run_folder_holds_all_that_repeats_and_explains_the_run(ran: Any) -> None:
    summary, folder, _ = ran
    assert json.loads((folder / "summary.json").read_text()) == summary
    assert json.loads((folder / "config.json").read_text())["study"]["local_steps"] == 10
    manifest = json.loads((folder / "manifest.json").read_text())
    assert {"seed", "command", "packages"} <= set(manifest)
    assert {json.loads(line)["site"] for line in (folder / "metrics.jsonl").read_text().splitlines()} == {
        "hospital-1", "hospital-2", "hospital-3"
    }  # fmt: skip
    self_contained((folder / "report.html").read_text())


def test_the_models_left_behind_give_the_figures_of_the_table(ran: Any) -> None:
    summary, folder, _ = ran
    _, test = tasks.load("breast-cancer").demo_sites(3, 0)
    for one in summary["sites"]:
        model = released.read(folder / "models" / f"{one['name']}.safetensors")
        assert model.metrics(test)["auc"] == one["gossip"]
        assert model.facts["stage"] == "finished"


def test_without_a_terminal_progress_is_plain_lines_on_stderr(ran: Any) -> None:
    _, _, told = ran
    assert "hospital-3: " in told and "\x1b" not in told
    assert "training" in told and "finished" in told and "killed" in told


def test_no_process_outlives_the_demo(ran: Any) -> None:
    _, folder, _ = ran
    left = [path for path in Path("/proc").glob("[0-9]*/cmdline") if str(folder).encode() in _read(path)]
    assert not left


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""
