"""docs/deploy.md, typed: its blocks in their order, in two empty folders, real processes, loopback for the address.

A block is ```sh SITE (typed there), ```sh run SITE (left running), ```sh SITE until WORD (again until its output has the
word), or ```toml SITE (its tables replace those of node.toml). Blocks without a site are not run.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"^```(sh|toml) ((?:run )?)(north|south)((?: until \w+)?)\n(.*?)^```", re.MULTILINE | re.DOTALL)
PATIENCE_S = 60


def free_port() -> int:
    with socket.socket() as there:
        there.bind(("127.0.0.1", 0))
        return int(there.getsockname()[1])


class Sites:
    """Two folders, a `gossipfl` on the PATH, and ports of this machine in place of the document's."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port, self.admin = free_port(), {"north": free_port(), "south": free_port()}
        self.running: list[subprocess.Popen[bytes]] = []
        tools = folder / "bin"
        for path in (tools, folder / "north", folder / "south"):
            path.mkdir()
        command = tools / "gossipfl"
        command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -P -m gossipfl "$@"\n')
        command.chmod(0o755)
        self.environment = os.environ | {
            "PATH": f"{tools}:{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
        }

    def here(self, text: str) -> str:
        text = re.sub(r"scp (\S+) north\.example\.org:study/(\S*)", r"cp -p \1 ../north/\2", text)
        text = re.sub(r"scp north\.example\.org:study/(\S+) (\S+)", r"cp -p ../north/\1 \2", text)
        assert "scp" not in text, "south's firewall lets nobody in: it fetches"
        return text.replace("north.example.org:8470", f"127.0.0.1:{self.port}")

    def run(self, site: str, text: str) -> subprocess.CompletedProcess[str]:
        command = ["bash", "-euc", self.here(text)]
        where = self.folder / site
        return subprocess.run(command, cwd=where, env=self.environment, capture_output=True, text=True, timeout=120)

    def type(self, site: str, text: str) -> None:
        done = self.run(site, text)
        assert done.returncode == 0, f"{site}$ {text}\n{done.stdout}\n{done.stderr}"

    def start(self, site: str, text: str) -> None:
        with (self.folder / site / "run.log").open("wb") as log:
            command = ["bash", "-euc", "exec " + text.strip()]
            self.running.append(subprocess.Popen(command, cwd=self.folder / site, env=self.environment, stderr=log))

    def until(self, site: str, text: str, word: str) -> None:
        end = time.monotonic() + PATIENCE_S
        while word not in (said := self.run(site, text).stdout):
            log = (self.folder / site / "run.log").read_text()[-2000:]
            assert time.monotonic() < end, f"{site}: never {word}\n{said}\n{log}"
            assert all(each.poll() is None for each in self.running), f"a node ended\n{log}"
            time.sleep(0.5)

    def configure(self, site: str, text: str) -> None:
        """The tables of `text` in place of those of node.toml; ports as this machine has them free."""
        path = self.folder / site / "node.toml"
        table = re.match(r"\[\w+\]", text)
        assert table
        before, found, rest = path.read_text().partition(table[0] + "\n")
        assert found
        after = re.search(r"^\[\w+\]", rest, re.MULTILINE)
        whole = before + text + "\n" + (rest[after.start() :] if after else "")
        whole = whole.replace('"0.0.0.0:8470"', f'"127.0.0.1:{self.port}"')
        whole = re.sub(r'^# admin = "127.0.0.1:8471"', f'admin = "127.0.0.1:{self.admin[site]}"', whole, flags=re.MULTILINE)
        path.write_text(whole)

    def close(self) -> None:
        for each in self.running:
            each.kill()
            each.wait()


@pytest.fixture
def sites(tmp_path: Path) -> Iterator[Sites]:
    made = Sites(tmp_path)
    yield made
    made.close()


@pytest.mark.skipif(shutil.which("bash") is None, reason="the document is typed into bash, which is not here")
def test_the_walk_of_the_document_ends_with_one_model_at_both_sites(sites: Sites) -> None:
    blocks = BLOCK.findall((ROOT / "docs" / "deploy.md").read_text())
    assert len(blocks) >= 14
    for language, run, site, until, text in blocks:
        if language == "toml":
            sites.configure(site, text)
        elif run:
            sites.start(site, text)
        elif until:
            sites.until(site, text, until.split()[-1])
        else:
            sites.type(site, text)
    assert [each.wait(30) for each in sites.running] == [0, 0]
    north, south = (load_file(sites.folder / site / "model.safetensors") for site in ("north", "south"))
    assert north.keys() == south.keys()
    assert max(float(np.abs(north[name] - south[name]).max()) for name in north) < 0.05
    rows = (sites.folder / "south" / "risks.csv").read_text().splitlines()
    assert len(rows) == 251
    seen = json.loads((sites.folder / "south" / "state" / "normalisation.json").read_text())
    assert [row["warning"] for row in seen] == [""] * 4


def test_the_document_s_own_task_is_found_by_its_path_and_trains(sites: Sites) -> None:
    text = (ROOT / "docs" / "deploy.md").read_text()
    blocks = BLOCK.findall(text)
    for at in (0, 2):
        sites.type("north", blocks[at][4])
    sites.type("north", "gossipfl init south --out ../south > south.line")
    configured = next(text for language, _, site, _, text in blocks if language == "toml" and site == "north")
    sites.configure("north", configured)
    found = re.search(r"^## A model of your own\n.*?```python\n(.*?)```.*?```sh\n(.*?)```", text, re.MULTILINE | re.DOTALL)
    assert found
    (sites.folder / "north" / "risk.py").write_text(found[1])
    create, local, run = found[2].strip().splitlines()
    assert run.endswith("node run node.toml")
    done = sites.run("north", create.replace("PYTHONPATH=. ", ""))
    assert done.returncode == 78 and "PYTHONPATH=." in done.stderr
    sites.type("north", create.replace("PYTHONPATH=.", f"PYTHONPATH=.:{ROOT}"))
    sites.type("north", "cp own/federation.json . && " + local.replace("PYTHONPATH=.", f"PYTHONPATH=.:{ROOT}"))
