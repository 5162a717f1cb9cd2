"""Renewing a certificate: the counter goes up, the identity stays, the keys change only when asked."""

from __future__ import annotations

from pathlib import Path

import pytest

from gossipfl.cli import main
from gossipfl.config import load_node
from gossipfl.trust.identity import Certificate


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    return int(ended.value.code or 0)


def certificate(folder: Path) -> Certificate:
    return Certificate(load_node(folder / "node.toml").certificate.read_bytes())


@pytest.mark.parametrize("new_keys", [False, True])
def test_a_renewed_certificate_follows_the_old_one(tmp_path: Path, new_keys: bool) -> None:
    assert run("init", "north", "--out", str(tmp_path), "--address", "ws://127.0.0.1:8470", "--days", "3") == 0
    old = certificate(tmp_path)
    assert run("renew", str(tmp_path / "node.toml"), *(["--new-keys"] if new_keys else [])) == 0
    new = certificate(tmp_path)
    assert (new.counter, new.identity, new.addresses) == (old.counter + 1, old.identity, old.addresses)
    assert new.not_after > old.not_after
    assert (new.noise != old.noise) is new_keys
    assert (new.signing != old.signing) is new_keys


def test_without_the_identity_key_nothing_is_renewed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("init", "north", "--out", str(tmp_path))
    before = certificate(tmp_path)
    load_node(tmp_path / "node.toml").identity_key.unlink()
    assert run("renew", str(tmp_path / "node.toml")) == 78
    assert "identity.key" in capsys.readouterr().err
    assert certificate(tmp_path) == before
