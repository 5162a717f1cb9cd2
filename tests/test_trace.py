"""The digest of a history is the same whatever the interpreter's hash seed, the number of threads and the CPU's instructions."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from gossipfl.protocol import events as ev
from gossipfl.protocol import messages as ms
from gossipfl.simulator.faults import Faults
from gossipfl.simulator.trace import Digests

HERE = Path(__file__).parent
GOLDEN = HERE / "golden" / "trace_digest.txt"

PROGRAM = """
from test_trace import history
digests = history(11)
print(digests.trace, digests.lines)
"""


def history(seed: int, once: bool = False, **changed: float) -> Digests:
    """Five nodes, a quarter of an hour of everything that may go wrong, and what follows."""
    from test_world import ALONE, small_world

    from gossipfl.simulator.network import World

    chosen = {key: value for some in ALONE.values() for key, value in some.items()} | changed
    made, _ = small_world("abcde", Faults(**chosen, until_hours=0.1))
    digests = Digests()
    specs = {name: node.spec for name, node in made.nodes.items()}
    World(specs, seed, made.faults, observers=[digests], once=once).run(500)
    return digests


@pytest.mark.parametrize(
    "environment",
    [
        {"PYTHONHASHSEED": "1", "OMP_NUM_THREADS": "1", "ATEN_CPU_CAPABILITY": "default", "OPENBLAS_CORETYPE": "Prescott"},
        {"PYTHONHASHSEED": "2", "OMP_NUM_THREADS": "2", "ATEN_CPU_CAPABILITY": "avx2", "NPY_DISABLE_CPU_FEATURES": "AVX512F",
         "OPENBLAS_CORETYPE": "Haswell"},
    ],
    ids=["one thread, default, kernels of an old CPU", "two threads, avx2"],
)
def test_the_trace_digest_is_the_golden_one_on_any_machine(environment: dict[str, str]) -> None:
    path = os.pathsep.join([str(HERE), str(HERE.parent)])
    known = {key: value for key, value in os.environ.items() if key != "NPY_DISABLE_CPU_FEATURES"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PROGRAM],
        env=known | environment | {"PYTHONPATH": path}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == GOLDEN.read_text().split()


def test_what_both_ends_compute_alike_may_be_computed_once_and_the_history_is_the_same() -> None:
    each, once = history(11), history(11, once=True)
    assert (once.trace, once.content, once.lines) == (each.trace, each.content, each.lines)


def test_another_seed_is_another_history_and_content_says_more_than_trace() -> None:
    one, other = history(1), history(2)
    assert len({one.trace, other.trace, one.content}) == 3
    assert one.lines > 1000


def test_a_liar_s_manifest_that_is_none_is_told_as_refused() -> None:
    digests, node = Digests(), SimpleNamespace(ends={})
    said = digests.said(node, ev.Received(1, ms.Propose(b"no manifest", b"")))  # type: ignore[arg-type]
    assert said == ("Received/Propose", "", 0, 0, "malformed")
