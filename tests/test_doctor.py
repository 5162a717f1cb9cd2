"""Laws of `gossipfl doctor`: what is wrong is found before the node runs, with the exit code and a remedy."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import places
import pytest
from worlds import KEYRING

from gossipfl import cli, config
from gossipfl.cli import doctor
from gossipfl.cli.egress import egress
from gossipfl.digest import name_of
from gossipfl.errors import Exit
from gossipfl.recipe import Work
from gossipfl.tasks.toy import Toy
from gossipfl.trust.membership import Membership, Study, create, with_members

ROOT = Path(__file__).parents[1]


@pytest.fixture
def tomls(tmp_path: Path) -> dict[str, Path]:
    return places.deploy(tmp_path, ["a", "b"], "breast-cancer", places.breast_cancer(["a", "b"]), {"a": 44, "b": 350})


@pytest.fixture
def examined(capsys: pytest.CaptureFixture[str]) -> Any:
    def examine(toml: Path, *more: str) -> tuple[int, dict[str, Any], list[dict[str, str]]]:
        with pytest.raises(SystemExit) as caught:
            cli.main(["doctor", str(toml), "--json", *more])
        said = json.loads(capsys.readouterr().out)
        assert said["exit_code"] == int(caught.value.code or 0)
        failed = [one for one in said["findings"] if one["result"] == "fail"]
        assert bool(failed) != said["ok"]
        assert all(one["fix"] for one in failed), f"each fault has a remedy: {failed}"
        return said["exit_code"], said, failed

    return examine


def test_a_sound_node_passes_every_check_and_nothing_is_changed(tomls: dict[str, Path], examined: Any) -> None:
    before = sorted(tomls["a"].parent.rglob("*"))
    code, said, _ = examined(tomls["a"], "--offline")
    assert code == Exit.OK
    checks = {one["check"] for one in said["findings"]}
    assert {"config", "federation", "keys", "certificate", "model", "data", "disk", "ports", "training step"} <= checks
    assert sorted(tomls["a"].parent.rglob("*")) == before


def test_peers_that_do_not_answer_exit_69(tomls: dict[str, Path], examined: Any) -> None:
    code, _, failed = examined(tomls["a"])
    assert code == Exit.UNREACHABLE
    assert [one["check"] for one in failed] == ["peer"] and failed[0]["found"].startswith("b: ")


def test_a_peer_that_runs_shakes_hands_and_is_not_disturbed(tomls: dict[str, Path], examined: Any) -> None:
    with running(tomls["b"]):
        code, said, _ = examined(tomls["a"])
        assert code == Exit.OK
        assert any(one["check"] == "peer" and "it is b" in one["found"] for one in said["findings"])
        assert any("does not tell whether they hold version 1" in one["found"] for one in said["findings"])
        assert places.ask(tomls["b"], "/status")["peers"]["a"]["state"] != "connected"
        _, said, _ = examined(tomls["b"], "--offline")
        assert any("runs already" in one["found"] for one in said["findings"])


def test_another_psk_is_found_before_the_node_runs(tomls: dict[str, Path], examined: Any) -> None:
    from gossipfl.trust.identity import save_key

    save_key(config.load_node(tomls["a"]).psk_key, b"\7" * 32, None, "psk", True)
    with running(tomls["b"]):
        code, _, failed = examined(tomls["a"])
    assert code == Exit.UNREACHABLE and "psk" in failed[0]["fix"]


def test_a_key_that_others_can_read_exits_77(tomls: dict[str, Path], examined: Any) -> None:
    config.load_node(tomls["a"]).node_key.chmod(0o644)
    code, _, failed = examined(tomls["a"], "--offline")
    assert code == Exit.PERMISSION and failed[0]["check"] == "keys"


def test_a_misspelt_config_exits_78_with_its_line(tomls: dict[str, Path], examined: Any) -> None:
    tomls["a"].write_text(tomls["a"].read_text() + "thread = 3\n")
    code, _, failed = examined(tomls["a"], "--offline")
    assert code == Exit.CONFIG
    assert "node.toml:" in failed[0]["found"] and "threads" in failed[0]["fix"]


def test_what_a_task_finds_wrong_in_data_has_its_line_in_node_toml(
    tomls: dict[str, Path], examined: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    text = tomls["a"].read_text().replace("sites = 2", 'sites = 2\ndelimiter = ";"')
    tomls["a"].write_text(text)
    line = text[: text.index("delimiter")].count("\n") + 1
    code, _, (failed,) = examined(tomls["a"], "--offline")
    assert code == Exit.CONFIG and f"node.toml:{line}: [data]: the key 'delimiter' is for tables" in failed["found"]
    for verb in (["node", "run"], ["train-local"]):
        with pytest.raises(SystemExit) as ended:
            cli.main([*verb, str(tomls["a"])])
        assert ended.value.code == Exit.CONFIG and f"node.toml:{line}: [data]: " in capsys.readouterr().err


def test_rows_that_are_not_there_exit_78_and_the_rest_is_still_checked(tomls: dict[str, Path], examined: Any) -> None:
    tomls["a"].write_text(tomls["a"].read_text().replace("site = 0", "site = 7"))
    code, said, failed = examined(tomls["a"], "--offline")
    assert code == Exit.CONFIG and failed[0]["check"] == "data"
    assert any(one["check"] == "ports" and one["result"] == "ok" for one in said["findings"])


def test_rows_that_changed_since_the_study_began_exit_78(tomls: dict[str, Path], examined: Any) -> None:
    from gossipfl.node.build import build

    build(config.load_node(tomls["a"])).store.close()
    (tomls["a"].parent / "state" / "normalisation.json").write_text('[{"feat')
    code, said, _ = examined(tomls["a"], "--offline")
    assert code == Exit.OK and any("anew at its next start" in one["fix"] for one in said["findings"])
    tomls["a"].write_text(tomls["a"].read_text().replace("seed = 0", "seed = 1"))
    code, _, failed = examined(tomls["a"], "--offline")
    assert code == Exit.CONFIG and "not those that this study began with" in failed[0]["found"]
    assert "--accept-new-data" in failed[0]["fix"]


def test_a_federation_file_that_the_node_would_refuse_exits_78(tomls: dict[str, Path], examined: Any) -> None:
    from gossipfl.node.build import build

    file = config.load_node(tomls["a"]).node.federation
    old = Membership.load(file)
    file.write_text(with_members(old, old.member("b")).dump())
    build(config.load_node(tomls["a"])).store.close()
    assert examined(tomls["a"], "--offline")[0] == Exit.OK
    file.write_text(old.dump())
    code, _, (failed,) = examined(tomls["a"], "--offline")
    assert code == Exit.CONFIG and failed["check"] == "state" and "used version 2 already" in failed["found"]


def test_a_file_of_somebody_else_is_a_matter_of_permission_and_not_of_the_check() -> None:
    def state(patient: doctor.Patient) -> Any:
        raise PermissionError(13, "Permission denied", "state/format")
        yield

    patient = doctor.Patient(Path("node.toml"), None)
    patient.examine(state)
    (found,) = patient.found
    assert patient.exit_code == Exit.PERMISSION and found.result == "fail"
    assert found.found == "state/format is not readable by this user" and found.fix


def test_a_disk_without_room_for_the_record_exits_73(
    tomls: dict[str, Path], examined: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 300 * 2**20}))
    code, _, failed = examined(tomls["a"], "--offline")
    assert code == Exit.STATE and "300 MiB free" in failed[0]["found"]


def test_a_port_in_use_exits_73(tomls: dict[str, Path], examined: Any) -> None:
    host, port = config.load_node(tomls["a"]).node.listen_address or ("", 0)
    with socket.create_server((host, port)):
        code, _, failed = examined(tomls["a"], "--offline")
    assert code == Exit.STATE and str(port) in failed[0]["found"]


def test_egress_names_every_receiver_and_what_never_goes(tomls: dict[str, Path], examined: Any) -> None:
    _, said, _ = examined(tomls["a"], "--offline", "--egress")
    going = said["egress"]
    assert [one["peer"] for one in going["to"]] == ["b"]
    assert going["bytes_per_exchange"] > 4 * 31
    assert any("rows" in one for one in going["never"])
    (sums,) = [one for one in going["what"] if one.startswith("statistics")]
    assert "who gets them first reads this site's own" in sums and "once" not in sums, "as docs/threat-model.md says"


def test_who_alone_can_be_dialled_is_asked_by_all_and_its_egress_counts_them(tomls: dict[str, Path]) -> None:
    """It began two exchanges a round and answered eight, where two had been foretold."""
    x0, layout = np.zeros(8), Toy(8).layout()
    members = create(
        federation=bytes(32),
        members=[KEYRING.member(name, 10, addresses=("ws://127.0.0.1:1",) if name == "a" else ()) for name in "abcde"],
        study=Study(task="toy", holdout_key="00" * 32, local_rounds=10, exchanges=2, release_exchanges=4),
        layout=layout.digest,
        x0=name_of(x0.data),
    )
    going = {name: egress(config.load_node(tomls[name]), members, Work(Toy(8), layout, None, x0)) for name in "ab"}
    assert going["a"]["exchanges_per_study"] == 2 * (1 + 4) * 10 + 4
    assert going["b"]["exchanges_per_study"] == 3 * 10 + 4


@contextmanager
def running(toml: Path) -> Iterator[None]:
    """A real node, up."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    command = [sys.executable, "-m", "gossipfl", "node", "run", str(toml)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, env={**os.environ, "PYTHONPATH": path}) as node:
        try:
            assert node.stderr is not None
            for line in node.stderr:
                if b'"started"' in line:
                    break
            else:
                raise AssertionError(f"{' '.join(command)} ended at once")
            yield
        finally:
            node.terminate()
            node.communicate(timeout=30)
