"""Runs in processes: every item once, lines kept over a stop, a process that dies is said, Ctrl-C waits for nobody, and
nobody outlives whom it works for."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from gossipfl.errors import ConfigError
from gossipfl.simulator import pool


def square(item: int) -> dict[str, Any]:
    return {"item": item, "square": item * item, "threads": os.environ.get("OMP_NUM_THREADS"), "process": os.getpid()}


def die(item: int) -> dict[str, Any]:
    if item == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return square(item)


def stand_still(item: int) -> dict[str, Any]:
    if item:
        time.sleep(3600)
    return square(item)


def _item(line: dict[str, Any]) -> int | None:
    return int(line["item"]) if line["square"] >= 0 else None


def test_every_item_is_done_once_in_other_processes_of_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    found = list(pool.run(square, range(7), 2))
    assert sorted(line["item"] for line in found) == list(range(7))
    assert {line["threads"] for line in found} == {"1"}
    assert os.getpid() not in {line["process"] for line in found}
    assert "OMP_NUM_THREADS" not in os.environ


def test_one_process_is_this_one_and_keeps_the_order() -> None:
    assert [(line["item"], line["process"]) for line in pool.run(square, [3, 1], 1)] == [(3, os.getpid()), (1, os.getpid())]


def test_lines_survive_a_stop_and_a_cut_off_line_is_made_again(tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    for line in pool.run(square, [0, 1], 1):
        pool.append(path, line)
    path.write_bytes(path.read_bytes() + b'{"item": 2, "squ')
    assert sorted(pool.kept(path, _item, what="squares")) == [0, 1]
    pool.append(path, square(2))
    assert sorted(pool.kept(path, _item, what="squares")) == [0, 1, 2]


def test_a_file_of_something_else_is_refused_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    path.write_text('{"item": 0, "square": 0}\n{"another": 1}\n')
    with pytest.raises(ConfigError, match=r"runs.jsonl:2.*not a line of squares.*another --out"):
        pool.kept(path, _item, what="squares")


def test_a_process_that_is_killed_is_told_with_a_remedy() -> None:
    with pytest.raises(ConfigError, match=r"killed, perhaps for want of memory.*fewer --processes"):
        list(pool.run(die, range(4), 2))


def test_who_stops_reading_does_not_wait_for_runs_under_way() -> None:
    lines = pool.run(stand_still, [0, 1, 2], 2)
    assert next(lines)["item"] == 0
    lines.close()


def test_workers_end_with_a_parent_that_was_killed() -> None:
    read = "lines = pool.run(test_pool.stand_still, [0, 1, 2], 2); print(next(lines)['item'], flush=True); next(lines)"
    command = [sys.executable, "-c", f"import test_pool; from gossipfl.simulator import pool; {read}"]
    with subprocess.Popen(command, cwd=Path(__file__).parent, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"0\n"
        parent.kill()
        assert parent.communicate(timeout=60) == (b"", None)  # its end comes when the last process that holds it is gone
