"""`gossipfl doctor`: everything that a node needs, checked before it starts; a table of check, result and how to fix.

It changes nothing, trains one local step on the site's own rows, and shakes hands with each peer; no model is sent. Where
a check needs what an earlier one could not load, it says so. Not here: the checks of a federation file (cli.federation).
"""

from __future__ import annotations

import asyncio
import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from gossipfl.amounts import size
from gossipfl.cli.federation import Finding
from gossipfl.errors import ConfigError, Exit, Fault, GossipError

if TYPE_CHECKING:
    from gossipfl.config import NodeConfig
    from gossipfl.recipe import Work
    from gossipfl.trust.identity import Certificate, NodeKeys
    from gossipfl.trust.membership import Membership

EPILOG: Final = "Example: [bold]gossipfl doctor node.toml --egress[/bold]  -- run it before `gossipfl node run node.toml`."

CLOCK_S: Final = 60.0
"""A clock that is off by more is worth a word: certificates and logs are dated by it."""

DAY_S: Final = 86_400

RECORD: Final = 400 * 2**20
"""Bytes that the record of facts grows to, whatever the model: a million facts of some 400 bytes (gossipfl.store.rows)."""


def doctor(
    file: Annotated[Path, typer.Argument(metavar="NODE.TOML", help="The node's file.", readable=False)] = Path("node.toml"),
    egress: Annotated[bool, typer.Option("--egress", help="Say to whom what will go, how much, and what never.")] = False,
    offline: Annotated[bool, typer.Option("--offline", help="Dial nobody.")] = False,
    passphrase_file: Annotated[
        Path | None, typer.Option("--passphrase-file", help="File with the passphrase of the keys.", readable=False)
    ] = None,
    json_: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Check this node before it runs: files, keys, clock, data, disk, ports, one training step, every peer."""
    from gossipfl.cli import output
    from gossipfl.cli.egress import as_text

    patient = Patient(file, passphrase_file)
    checks = [_config, _federation, _keys, _certificate, _model, _data, _state, _statistics, _disk, _ports, _step]
    for check in checks if offline else [*checks, _peers]:
        patient.examine(check)
    going = patient.going() if egress else None
    if json_:
        said: dict[str, Any] = {"file": str(file), "ok": patient.exit_code is Exit.OK, "exit_code": int(patient.exit_code)}
        output.emit(said | {"findings": [asdict(one) for one in patient.found]} | ({"egress": going} if egress else {}))
    else:
        rows = [(one.check, one.result, one.found, one.fix) for one in patient.found]
        output.table("", ("check", "result", "found", "how to fix"), rows)
        if egress:
            print("\n" + (as_text(going) if going else "egress: not known while the federation file or the task is not"))
    if patient.exit_code is not Exit.OK:
        raise typer.Exit(int(patient.exit_code))


@dataclass
class Patient:
    """One node.toml, and what has been loaded of it so far."""

    file: Path
    passphrase_file: Path | None
    found: list[Finding] = field(default_factory=list)
    exit_code: Exit = Exit.OK
    """that of the first check that failed"""
    config: NodeConfig | None = None
    membership: Membership | None = None
    keys: tuple[NodeKeys, Certificate, bytes] | None = None
    work: Work | None = None
    running: int = 0
    """process that holds the state folder: this very node, up already"""

    def examine(self, check: Callable[[Patient], Iterator[Finding]]) -> None:
        """One check. What it raises is a finding; a check that crashed says so, and never that all is well."""
        name = check.__name__.strip("_")
        try:
            for finding in check(self):
                self.found.append(finding)
                if finding.result == "fail":
                    self.failed(Exit.UNREACHABLE if name == "peers" else Exit.CONFIG)
        except _NotYet as missing:
            self.found.append(Finding(name, "info", f"not checked: {missing}", "mend what failed above"))
        except ConfigError as error:
            self.failed(error.exit_code)
            self.found += [_of_fault(name, fault) for fault in error.faults]
        except GossipError as error:
            self.failed(error.exit_code)
            self.found.append(Finding(name, "fail", str(error), ""))
        except PermissionError as error:
            self.failed(Exit.PERMISSION)
            self.found.append(Finding(name, "fail", f"{error.filename} is not readable by this user", "run as the node's user"))
        except Exception as error:  # a fault in a task's own code, for instance
            self.failed(Exit.FAILED)
            what = f"the check itself failed: {type(error).__name__}: {error}"
            self.found.append(Finding(name, "fail", what, "if this is your task's code, mend it; else report it to us"))

    def failed(self, code: Exit) -> None:
        self.exit_code = self.exit_code or code

    def going(self) -> dict[str, Any] | None:
        """What will leave; None while that is not known."""
        from gossipfl.cli.egress import egress

        if self.config is None or self.membership is None or self.work is None:
            return None
        return egress(self.config, self.membership, self.work)

    def has(self, name: str) -> Any:
        """What an earlier check loaded."""
        value = getattr(self, name)
        if value is None:
            raise _NotYet(f"it needs the {NAMES.get(name, name)}")
        return value


NAMES: Final = {"config": "node.toml", "membership": "federation file", "work": "task and the rows"}


class _NotYet(Exception):
    """A check needs what an earlier one could not load."""


def _of_fault(check: str, fault: Fault | str) -> Finding:
    if isinstance(fault, str):
        what, _, remedy = fault.partition(" -- ")
        return Finding(check, "fail", what, remedy)
    where = fault.file if fault.line is None else f"{fault.file}:{fault.line}"
    return Finding(check, "fail", f"{where}: {fault.what}", fault.remedy)


# ---- files -----------------------------------------------------------------------------------------------------------


def _config(patient: Patient) -> Iterator[Finding]:
    from gossipfl.config import load_node

    patient.config = load_node(patient.file)
    yield Finding("config", "ok", f"{patient.file}: {patient.config.node.id}")


def _federation(patient: Patient) -> Iterator[Finding]:
    from gossipfl.node.build import member_of
    from gossipfl.trust.membership import Membership

    config: NodeConfig = patient.has("config")
    membership = Membership.load(config.node.federation)
    me = member_of(config, membership)
    patient.membership = membership
    role, mass = membership.member(me).role, membership.mass(me)
    document = f"version {membership.version}, digest {membership.digest.hex()[:16]}"
    what = f"{document}, {len(membership.active)} active members; {me} is {role} with mass {mass:.3g}"
    yield Finding("federation", "ok", what)
    neighbours = membership.neighbours(me)
    if neighbours:
        yield Finding("neighbours", "ok", ", ".join(neighbours))
    else:
        yield Finding("neighbours", "fail", "nobody to talk to", "all others only dial, or this is the only member")


def _keys(patient: Patient) -> Iterator[Finding]:
    from gossipfl.cli import output
    from gossipfl.cli.node import _is_encrypted
    from gossipfl.node.build import load_keys

    config: NodeConfig = patient.has("config")
    mode = config.node.keys.stat().st_mode & 0o777 if config.node.keys.is_dir() else 0o700
    if mode & 0o077:
        yield Finding("keys", "warn", f"{config.node.keys} has mode {mode:04o}", f"chmod 700 {config.node.keys}")
    membership: Membership = patient.has("membership")
    sealed = _is_encrypted(config.node_key)
    passphrase = output.passphrase(patient.passphrase_file) if sealed else None
    patient.keys = load_keys(config, membership, passphrase)
    yield Finding("keys", "ok", "node.key and certificate belong together; " + ("encrypted" if sealed else "0600"))
    said = "psk.key is there; whether it is this federation's, only a handshake with a peer shows"
    yield Finding("psk", "info", said, "compare `sha256sum` of it by telephone, or run doctor without --offline")
    if not sealed:
        yield Finding("passphrase", "info", "the keys are not encrypted", "`gossipfl init --passphrase-file` encrypts them")
    if config.identity_key.exists():
        fix = "keep it offline: a node needs it only to renew its certificate"
        yield Finding("identity key", "info", f"{config.identity_key} lies on this machine", fix)


def _certificate(patient: Patient) -> Iterator[Finding]:
    from gossipfl.cli.addresses import findings

    keys = patient.has("keys")
    membership: Membership = patient.has("membership")
    certificate: Certificate = keys[1]
    days = (certificate.not_after - time.time()) / DAY_S
    result, fix = ("ok", "") if days > 5 else ("warn", "`gossipfl renew`")
    yield Finding("certificate", result, f"valid for {days:.1f} more days", fix)  # type: ignore[arg-type]
    odd = [one for one in findings(patient.has("config"), certificate.addresses) if one.result != "info"]
    yield from findings(patient.has("config"), certificate.addresses)
    if not odd:
        yield Finding("addresses", "ok", ", ".join(certificate.addresses) or "no address: this node dials")
    if certificate.digest != membership.member(certificate.member).certificate_read.digest:
        yield Finding("certificate", "info", "newer than the one in the federation file; peers fetch it from this node")


def _model(patient: Patient) -> Iterator[Finding]:
    from gossipfl.cli.federation import model_findings

    membership: Membership = patient.has("membership")
    for finding in model_findings(membership):
        if finding.check != "disk":
            yield Finding(finding.check, "fail" if finding.result == "warn" else finding.result, finding.found, finding.fix)


# ---- data ------------------------------------------------------------------------------------------------------------


def _data(patient: Patient) -> Iterator[Finding]:
    from gossipfl.config import naming
    from gossipfl.node.build import load_work

    config, membership = patient.has("config"), patient.has("membership")
    with naming(patient.file):
        patient.work = work = load_work(config, membership, False)
    if work.site is None:
        yield Finding("data", "info", "an observer has none")
        return
    said = f"{len(work.site.train)} rows to train on, {len(work.site.holdout)} held out"
    if len(work.site.holdout):
        yield Finding("data", "ok", said)
    else:
        fix = "more rows, or an id column that tells patients apart; without a hold-out this site never sees a figure of its own"
        yield Finding("data", "warn", said, fix)
    declared = membership.member(config.node.id).count
    if declared and not 0.5 <= len(work.site.train) / declared <= 2:
        what = f"{declared} rows are declared in the federation file"
        yield Finding("data", "warn", what, "its mass is by that count: ask for a new federation file, or check the file of rows")


def _state(patient: Patient) -> Iterator[Finding]:
    """Can the node go on where it was: with this federation file, and with the rows that the study began with here? A node
    that runs has asked that itself."""
    from gossipfl.node.build import fingerprint, follows
    from gossipfl.store import Store

    config, membership = patient.has("config"), patient.has("membership")
    state = config.node.state
    if not (state / "format").exists() or _holder(state):
        return
    with Store.open(state) as store:
        rows = store.load()
    follows(rows, membership, config.node.federation)
    held = rows.get(("data", "fingerprint"))
    if patient.work is not None and held is not None and held != fingerprint(patient.work.site):
        fix = "restore the file; or, if the change is meant, start once with `gossipfl node run --accept-new-data`"
        yield Finding("data", "fail", "the rows are not those that this study began with here", fix)


def _statistics(patient: Patient) -> Iterator[Finding]:
    """Mean and spread beside the federation's, where the node has got so far."""
    import json

    config: NodeConfig = patient.has("config")
    path = config.node.state / "normalisation.json"
    if not path.exists():
        yield Finding("statistics", "info", "not known yet: they are compared when the statistics stage has ended")
        return
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
        odd = [row for row in rows if row["warning"]]
    except (OSError, ValueError, TypeError, KeyError) as error:
        yield Finding("statistics", "warn", f"{path} cannot be read: {error}", "the node writes it anew at its next start")
        return
    for row in odd:
        what = f"{row['feature']}: mean {row['own_mean']:.4g} here, {row['mean']:.4g} in the federation"
        yield Finding("statistics", "warn", what, row["warning"])
    if not odd:
        yield Finding("statistics", "ok", f"{len(rows)} features: nothing looks like another unit or coding")


def _step(patient: Patient) -> Iterator[Finding]:
    """One local step from x^0, on this site's own normalisation: does the model train here at all?"""
    import numpy as np

    from gossipfl.node.build import trainer
    from gossipfl.recipe import plan_of
    from gossipfl.tasks.normalisation import Normaliser, own_normaliser

    config, work, membership = patient.has("config"), patient.has("work"), patient.has("membership")
    if work.site is None:
        yield Finding("training step", "info", "an observer does not train")
        return
    study = membership.study
    own = own_normaliser(work.site.train) if work.normalised else Normaliser.none()
    learner = trainer(config, work, own)
    plan = plan_of(study, 1, study.eta)
    began = time.perf_counter()
    outcome = learner.train(np.array(work.start), None, plan, np.random.Generator(np.random.PCG64(0)))
    took = (time.perf_counter() - began) * 1000
    if not np.isfinite(outcome.vector).all() or not np.isfinite(outcome.loss):
        fix = "check units in the data, or lower the study's eta"
        yield Finding("training step", "fail", f"diverged: loss {outcome.loss}", fix)
        return
    yield Finding("training step", "ok", f"loss {outcome.loss:.4g}, {took:.0f} ms on {config.limits.device}")


# ---- machine ---------------------------------------------------------------------------------------------------------


def _disk(patient: Patient) -> Iterator[Finding]:
    """Is the state folder ours to write, with room for the replicas of every link? Touches nothing."""

    config: NodeConfig = patient.has("config")
    state = config.node.state
    there = next(folder for folder in (state, *state.parents) if folder.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise ConfigError(
            Fault(str(state), None, f"{there} is not writable by this user", "give it to the user that runs the node"),
            exit_code=Exit.STATE,
        )
    patient.running = _holder(state)
    if patient.running:
        yield Finding("state", "info", f"in use by process {patient.running}: this node runs already")
    from gossipfl.learning import compression

    membership, work = patient.has("membership"), patient.has("work")
    each = 4 if compression.millionths(membership.study.codec) else 3  # two replicas and a flow, with counts if sparse
    need = len(membership.neighbours(config.node.id)) * each * work.start.nbytes
    free = shutil.disk_usage(there).free
    replicas, room = size(need), size(free)
    what = f"{replicas} for the replicas of all links and {size(RECORD)} for the record; {room} free"
    if free < 2 * need + RECORD:
        raise ConfigError(Fault(str(state), None, what, "free some space, or name another folder"), exit_code=Exit.STATE)
    yield Finding("disk", "ok", what)


def _holder(state: Path) -> int:
    """The process that has the state folder locked, 0 for none."""
    import fcntl

    try:
        with (state / "lock").open("rb") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return int(lock.read(20).split()[0] or b"1")
    except (OSError, ValueError, IndexError):
        return 0
    return 0


def _ports(patient: Patient) -> Iterator[Finding]:
    import socket

    from gossipfl.config import joined_address
    from gossipfl.node.server import port_taken

    config: NodeConfig = patient.has("config")
    if patient.running:
        yield Finding("ports", "info", "this node holds them itself")
        return
    wanted = [("admin", config.node.admin_address)]
    if config.node.listen_address is not None:
        wanted.append(("listen", config.node.listen_address))
    for key, (host, port) in wanted:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.socket(family) as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                trial.bind((host, port))
            except OSError as error:
                raise port_taken(key, host, port, error) from None
        yield Finding("ports", "ok", f"{key} {joined_address(host, port)} is free")


# ---- peers -----------------------------------------------------------------------------------------------------------


def _peers(patient: Patient) -> Iterator[Finding]:
    """A whole handshake with every neighbour that can be dialled: keys, psk, federation and certificates agree."""
    from gossipfl.cli.handshake import dial_all
    from gossipfl.node.cures import cure

    config, membership, keys = patient.has("config"), patient.has("membership"), patient.has("keys")
    me = config.node.id
    answers = asyncio.run(dial_all(config, membership, *keys))
    alike = False
    for peer in membership.neighbours(me):
        reached = answers.get(peer)
        addresses = membership.member(peer).certificate_read.addresses
        if config.node.proxy and addresses and not any(one.startswith(("https:", "wss:")) for one in addresses):
            what = f"{peer} has no https address: an HTTP proxy tunnels (CONNECT) only to https and wss"
            yield Finding("proxy", "warn", what, "ask the peer for an https address, or let it dial")
        if reached is None:
            if membership.dial_only >= {peer}:
                yield Finding("peer", "info", f"{peer} has no address: it dials us", "")
            continue
        if reached.why:
            yield Finding("peer", "fail", f"{peer}: {reached.why}", cure(reached.why))
            continue
        yield Finding("peer", "ok", f"{peer} at {reached.address}: handshake done, it is {peer}, with our psk")
        alike = True
        if reached.clock_s is not None and abs(reached.clock_s) > CLOCK_S:
            what = f"{peer}'s clock is {reached.clock_s:+.0f} s from ours"
            yield Finding("clock", "warn", what, "run NTP here, or tell the other side")
    if alike:
        what = f"a handshake does not tell whether they hold version {membership.version} of the federation file, too"
        yield Finding("peers", "info", what, f"compare its digest, {membership.digest.hex()[:16]}; nodes say it when they run")

