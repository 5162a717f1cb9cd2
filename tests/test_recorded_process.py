"""Real node processes that record, one of them killed and started again: each life replays to the same commands and state."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from places import deploy
from test_node_process import started, status, until

from gossipfl.simulator import scenario as scenarios
from gossipfl.trust.identity import load_key


def replayed(*arguments: str) -> tuple[int, dict[str, Any]]:
    command = [sys.executable, "-m", "gossipfl", "replay", *arguments, "--json"]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=60)
    return shown.returncode, json.loads(shown.stdout or "{}")


def test_a_recorded_run_with_a_kill_replays_to_the_same_state(tmp_path: Path) -> None:
    names = ["a", "b"]
    data = {"a": "site = 0", "b": "site = 1"}
    more = {"local_rounds": 10**6, "codec": "f64", "inbound_per_minute": 60_000, "local_round_s": 0.02}
    tomls = deploy(tmp_path, names, "toy", data, **more)
    for toml in tomls.values():
        toml.write_text(toml.read_text().replace("[node]\n", "[node]\nrecord = true\n"))
    with started(*tomls.values()) as processes:
        until(lambda: status(tomls["a"]).get("exchanges", 0) > 20, "exchanges")
        processes[0].kill()
        processes[0].wait()
        before = status(tomls["b"])["exchanges"]
        with started(tomls["a"]) as again:
            until(lambda: status(tomls["b"]).get("exchanges", 0) > before + 20, "exchanges after the restart")
            said = {name: status(toml) for name, toml in tomls.items()}
            for process in (*again, processes[1]):
                process.terminate()
            assert [process.wait(30) for process in (*again, processes[1])] == [0, 0]
    lives = {name: sorted((tmp_path / name / "state" / "recordings").iterdir()) for name in names}
    assert [len(lives[name]) for name in names] == [2, 1]
    for name in names:
        folder = str(tmp_path / name / "state")
        code, result = replayed(*map(str, lives[name]), "--state", folder)
        assert code == 0 and result["same"], result
        first, last = result["recordings"][0], result["recordings"][-1]
        assert last["end"] == "stopped well" and last["rows"] == "the state folder holds what this life left"
        assert sum(life["exchanges"] for life in result["recordings"]) >= said[name]["exchanges"] - 1
        if name == "a":
            assert first["end"] != "stopped well" and first["rows"].startswith("the next life holds what this life left")
    out = tmp_path / "measured.toml"
    code, _ = replayed(*(str(path) for name in names for path in lives[name]), "--scenario", str(out))
    measured = scenarios.load(out).scenario
    assert code == 0 and measured.nodes.count == 2
    assert 0 < measured.lines.latency_s < 0.5 and any(name == "hospital-1" for name, *_ in measured.faults.sessions)
    secret = load_key(tmp_path / "a" / "keys" / "node.key", None, "node")
    content = b"".join(path.read_bytes() for path in lives["a"])
    assert secret[:32] not in content and secret[32:] not in content
