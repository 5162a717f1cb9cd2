"""One simulation in two processes is the simulation in one, to rounding; and it goes on when one of them was killed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch.distributed
from sharded import CASES, KEPT, run

from gossipfl.errors import Misuse
from gossipfl.simulator import play, scenario
from gossipfl.simulator.run import as_json
from gossipfl.simulator.vectorized.methods import METHODS, method_of
from gossipfl.simulator.vectorized.shards import Shard

IS_THERE = torch.distributed.is_available() and torch.distributed.is_gloo_available()
pytestmark = pytest.mark.skipif(not IS_THERE, reason="this build of torch has no torch.distributed with gloo")
HERE = Path(__file__).parent


def torchrun(*command: str) -> subprocess.CompletedProcess[str]:
    """Two processes on this machine, over loopback."""
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    return subprocess.run([*start, *command], env=environment, capture_output=True, text=True, timeout=300, check=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Left by two processes, of which one was killed and which were started again."""
    made = tmp_path_factory.mktemp("two")
    killed = torchrun(str(HERE / "sharded.py"), str(made), "DIE")
    assert killed.returncode != 0 and not list(made.glob("*.npz"))
    assert len(list(made.glob("kept*-of-2"))) == 2 * len(KEPT)
    again = torchrun(str(HERE / "sharded.py"), str(made))
    assert again.returncode == 0, again.stderr
    return made


@pytest.mark.parametrize("name", [*CASES, *KEPT])
def test_two_processes_come_to_the_models_of_one(folder: Path, name: str) -> None:
    alone, two = run(None, **{**CASES, **KEPT}[name]), np.load(folder / f"{name}.npz")
    models = alone.state.vectors()
    np.testing.assert_allclose(two["models"], models, rtol=0, atol=1e-5 * np.abs(models).max())
    nan = float("nan")
    ours, theirs = alone.rows(), eval(str(two["rows"]), {"nan": nan, "inf": float("inf")})
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        assert [one[key] for key in ("present", "exchanges", "bytes", "steps")] == [
            other[key] for key in ("present", "exchanges", "bytes", "steps")
        ]
        assert one["consensus"] == pytest.approx(other["consensus"], rel=1e-3, abs=1e-6, nan_ok=True)
    assert str(two["held"]) == str(alone.verdicts)


class Lone:
    rank, size, here = 0, 4, 4


def test_rows_are_shared_out_evenly_and_an_exchange_is_made_wherever_an_end_lives() -> None:
    from gossipfl.simulator.vectorized.meetings import Meetings

    shard = Shard(Lone(), 10)  # type: ignore[arg-type]
    assert shard.bounds.tolist() == [0, 2, 5, 7, 10]
    mine = shard.mine(Meetings(np.array([0, 1, 4]), np.array([1, 8, 9])))
    assert (mine.lo.tolist(), mine.hi.tolist()) == ([0, 1], [1, 8])
    assert mine.at_lo is not None and mine.at_hi is not None
    assert (mine.at_lo.tolist(), mine.at_hi.tolist()) == ([True, True], [True, False])


def test_every_kind_of_method_is_among_those_that_two_processes_run() -> None:
    seen = [method_of(case["method"]) for case in CASES.values()]
    for method in METHODS.values():
        assert any((one.combine, one.post) == (method.combine, method.post) for one in seen) or method.combine == "none"


def test_fewer_nodes_than_processes_are_refused() -> None:
    with pytest.raises(Misuse, match="as many nodes as processes"):
        Shard(Lone(), 3)  # type: ignore[arg-type]


def test_torchrun_plays_a_scenario_as_one_process_does(tmp_path: Path) -> None:
    path = tmp_path / "scenario.toml"
    path.write_text(
        'question = "?"\ntask = "breast-cancer"\nengine = "vectorized"\n[nodes]\ncount = 6\n[study]\nlocal_rounds = 8\n'
        "[rounds]\nrelease = 2\ndropout = 0.2\n"
    )
    done = torchrun("-m", "gossipfl", "simulate", str(path), "--json", "--out", str(tmp_path / "two"))
    assert done.returncode == 0, done.stderr
    assert "in 2 processes" in done.stderr and not list((tmp_path / "two").glob("checkpoint*"))
    read = scenario.load(path)
    alone = as_json(play.play(play.Stage(read.scenario, play.prepare(read, "vectorized")), "vectorized"))
    two = json.loads(done.stdout)
    assert two["quality"]["nodes"] == pytest.approx(alone["quality"]["nodes"], rel=1e-5)
    assert two["consensus_distance"] == pytest.approx(alone["consensus_distance"], rel=1e-3)
    for key in ("exchanges", "bytes_sent", "faults", "invariants", "rounds", "events"):
        assert two[key] == alone[key], key
