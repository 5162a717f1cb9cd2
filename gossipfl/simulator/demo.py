"""A federation of real nodes on this machine: made, started as OS processes, watched, one killed, ended, gathered.

Nothing is simulated but the wide area: keys, certificates, node.toml, sockets and disks are those of a deployment, and a
hospital's process reads its own rows only. Not here: what is printed (cli.demo), the page (simulator.report).
"""

from __future__ import annotations

import base64
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from gossipfl import config, digest
from gossipfl.errors import Exit, GossipError, Misuse
from gossipfl.simulator.federation import study_of
from gossipfl.tasks import Site, Task, fitting
from gossipfl.trust import identity, membership

POLL_S: Final = 0.25
"""Between two looks at every node: a person reads no faster."""

ASK_S: Final = 2.0
"""For an answer of a node's admin listener; on two cores a node may be busy training."""

DOWN_S: Final = 1.0
"""Between SIGKILL and the new start of the hospital that is killed."""

DRAIN_S: Final = 30.0
"""For a node to end after SIGTERM; its own limit is below."""

LIMIT_S: Final = 600.0
"""For the whole course: five times what two cores need, then something hangs and the logs say what."""

PACE_S: Final = 0.06
"""Between two turns of a node: a person can follow, and a hospital that was killed comes back while the others still learn."""

def study(spec: str, task: Task, seed: int, nodes: int, options: dict[str, Any] | None = None) -> membership.Study:
    """What `gossipfl federation create` would make, with a hurry: short local rounds, and peers may ask as often as they like."""
    return study_of(
        spec,
        task,
        seed,
        options,
        nodes,
        name=f"demo of {spec}",
        exchange_patience_s=2.0,
        local_round_s=PACE_S,
        inbound_per_minute=10_000,
        resets_per_day=100,
    )


@dataclass
class Hospital:
    """One node's process, and what was last heard of it."""

    name: str
    folder: Path
    admin: str
    rows: int
    process: subprocess.Popen[bytes] | None = None
    status: dict[str, Any] = field(default_factory=dict)
    starts: int = 0
    killed_at: int | None = None
    """local round at which it was killed"""
    killed_s: float = 0.0

    @property
    def toml(self) -> Path:
        return self.folder / "node.toml"

    @property
    def state(self) -> Path:
        return self.folder / "state"

    @property
    def log(self) -> Path:
        return self.folder / "node.log"

    @property
    def stage(self) -> str:
        if self.process is None:
            return "killed"
        return str(self.status.get("stage", "starting"))

    @property
    def local_round(self) -> int:
        return int(self.status.get("local_round", 0))

    def start(self) -> None:
        """Start the node as an operator would; what it says goes to node.log."""
        environment = dict(os.environ, OMP_NUM_THREADS="1", PYTHONUNBUFFERED="1")
        environment.pop("GOSSIPFL_PASSPHRASE_FILE", None)
        with self.log.open("ab") as log:
            command = [sys.executable, "-m", "gossipfl", "node", "run", str(self.toml)]
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, start_new_session=True
            )
        self.starts += 1

    def ask(self) -> None:
        """What it says of itself now; the last answer stays where none comes. **Raises**: GossipError if it has died."""
        if self.process is None:
            return
        if (code := self.process.poll()) is not None:
            raise GossipError(f"the node of {self.name} ended with exit code {code}; {self.log} ends with:\n{self.tail()}")
        try:
            with _opener().open(f"http://{self.admin}/status", timeout=ASK_S) as answer:
                self.status = json.loads(answer.read())
        except (OSError, ValueError):
            return

    def tail(self, lines: int = 12) -> str:
        text = self.log.read_text("utf-8", "replace") if self.log.exists() else ""
        return "\n".join("    " + line[:400] for line in text.splitlines()[-lines:])

    def kill(self) -> None:
        """SIGKILL: no warning, no clean-up."""
        assert self.process is not None
        self.killed_at = self.local_round
        self.process.kill()
        self.process.wait()
        self.process = None

    def curve(self) -> list[dict[str, Any]]:
        """Its own evaluations, oldest first: state/metrics.jsonl; a line that a kill has cut is left out."""
        path = self.state / "metrics.jsonl"
        rows = []
        for line in path.read_text("utf-8", "replace").splitlines() if path.exists() else []:
            try:
                rows.append(json.loads(line))
            except ValueError:
                continue
        return rows


def _opener() -> urllib.request.OpenerDirector:
    """Loopback is never asked through a proxy of the environment."""
    return urllib.request.build_opener(urllib.request.ProxyHandler({}))


# ---- making ----------------------------------------------------------------------------------------------------------


@dataclass
class Federation:
    """The hospitals of one demo."""

    membership: membership.Membership
    hospitals: list[Hospital]

    def start(self) -> None:
        for hospital in self.hospitals:
            hospital.start()

    def end(self) -> None:
        """SIGTERM to all, and wait: each drains and puts its model on disk. **Raises**: GossipError if one did not."""
        running = [hospital for hospital in self.hospitals if hospital.process is not None]
        for hospital in running:
            assert hospital.process is not None
            hospital.process.send_signal(signal.SIGTERM)
        late = time.monotonic() + DRAIN_S
        for hospital in running:
            assert hospital.process is not None
            try:
                code = hospital.process.wait(max(0.1, late - time.monotonic()))
            except subprocess.TimeoutExpired:
                raise GossipError(f"{hospital.name} did not end within {DRAIN_S:g} s:\n{hospital.tail()}") from None
            if code:
                raise GossipError(f"{hospital.name} ended with exit code {code}:\n{hospital.tail()}")

    def abandon(self) -> None:
        """Leave no process behind, whatever happened."""
        for hospital in self.hospitals:
            if hospital.process is not None and hospital.process.poll() is None:
                hospital.process.kill()
                hospital.process.wait()


def found(folder: Path, spec: str, task: Task, sites: Sequence[Site], sources: Sequence[dict[str, Any]], seed: int,
          options: dict[str, Any] | None = None) -> Federation:  # fmt: skip
    """Everything that `gossipfl init` and `federation create` make, for all sites, in `folder`.

    **Secrets**: keys and psk come from the operating system, not from the seed.
    """
    ports = _free_ports(2 * len(sites))
    psk = secrets.token_bytes(32)
    members, hospitals = [], []
    for at, (site, source) in enumerate(zip(sites, sources, strict=True)):
        place = folder / "hospitals" / site.name
        listen, admin = (f"127.0.0.1:{port}" for port in ports[2 * at : 2 * at + 2])
        members.append(_institution(place, site, f"ws://{listen}", psk))
        (place / "node.toml").write_text(_toml(site.name, listen, admin, source), encoding="utf-8")
        hospitals.append(Hospital(site.name, place, admin, len(site.train)))
    layout = fitting.layout_of(task)
    plan = study(spec, task, seed, len(sites), options)
    made = membership.create(
        federation=secrets.token_bytes(32),
        members=members,
        study=plan,
        layout=layout.digest,
        x0=digest.name_of(fitting.start(task, layout, plan.seed).tobytes()),
    )
    (folder / "hospitals" / "federation.json").write_text(made.dump(), encoding="utf-8")
    return Federation(made, hospitals)


def _institution(place: Path, site: Site, address: str, psk: bytes) -> membership.Member:
    """Keys and certificate of one hospital, and the line that it would send to the others."""
    keys = place / "keys"
    keys.mkdir(parents=True, mode=0o700)
    me, node = identity.Identity(secrets.token_bytes(32)), identity.NodeKeys(secrets.token_bytes(64))
    start = int(time.time()) - 3600
    certificate = me.certify(site.name, node, (address,), counter=1, not_before=start, not_after=start + identity.DAY)
    identity.save_key(keys / config.IDENTITY_KEY, me.seed, None, "identity")
    identity.save_key(keys / config.NODE_KEY, node.secret, None, "node")
    identity.save_key(keys / config.PSK, psk, None, "psk")
    (keys / config.CERTIFICATE).write_bytes(certificate.encoded)
    return membership.Member(
        id=site.name,
        identity=certificate.identity.hex(),
        certificate=base64.b64encode(certificate.encoded).decode(),
        count=membership.rounded(len(site.train)),
    )


def _toml(name: str, listen: str, admin: str, source: dict[str, Any]) -> str:
    """A node.toml; JSON's texts, numbers and truth values are TOML's, too."""
    lines = [
        "[node]",
        f'id = "{name}"',
        'federation = "../federation.json"',
        f'listen = "{listen}"',
        f'admin = "{admin}"',
        'log = "json"',
        "",
        "[data]",
        *(f"{key} = {json.dumps(value)}" for key, value in source.items()),
        "",
        "[limits]",
        "threads = 1",
        "checkpoint_s = 1",
    ]
    return "\n".join(lines) + "\n"


def _free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now. Another program may take one before a node does: then that node says so."""
    held = []
    try:
        for _ in range(count):
            held.append(socket.socket())
            held[-1].bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in held]
    finally:
        for one in held:
            one.close()


# ---- watching --------------------------------------------------------------------------------------------------------


def watch(federation: Federation, victim: str | None = None) -> Iterator[float]:
    """Seconds since the start, a few times a second, until every hospital has finished; then ends.

    `victim` is killed half-way through its local rounds and started again `DOWN_S` later.

    **Raises**: GossipError when a node dies that was not to, or when it takes longer than `LIMIT_S`.
    """
    by_name = {hospital.name: hospital for hospital in federation.hospitals}
    if victim is not None and victim not in by_name:
        raise Misuse(f"{victim!r} is no hospital of this demo")
    began = time.monotonic()
    while True:
        passed = time.monotonic() - began
        for hospital in federation.hospitals:
            hospital.ask()
        if victim is not None:
            _strike(by_name[victim], federation.membership.study.local_rounds, passed)
        yield passed
        if all(hospital.stage == "finished" for hospital in federation.hospitals):
            return
        if passed > LIMIT_S:
            slow = next(hospital for hospital in federation.hospitals if hospital.stage != "finished")
            raise GossipError(
                f"not finished after {LIMIT_S:g} s; {slow.name} is in the stage {slow.stage!r}, and {slow.log} ends "
                f"with:\n{slow.tail()}",
                Exit.FAILED,
            )
        time.sleep(POLL_S)


def _strike(hospital: Hospital, local_rounds: int, passed: float) -> None:
    if hospital.killed_at is None and hospital.local_round >= local_rounds // 2:
        hospital.kill()
        hospital.killed_s = passed
    elif hospital.process is None and passed - hospital.killed_s >= DOWN_S:
        hospital.start()
