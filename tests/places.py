"""Deployed nodes in a folder for tests: init, federation create and node.toml as an operator would, on free loopback ports."""

from __future__ import annotations

import base64
import contextlib
import json
import secrets
import socket
import time
import urllib.request
from pathlib import Path
from typing import Any

from gossipfl import config
from gossipfl.cli.federation import first_model
from gossipfl.trust import membership
from gossipfl.trust.identity import Certificate, Identity, NodeKeys, save_key


def free_ports(number: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(number)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def certify(identity: Identity, keys: NodeKeys, name: str, port: int, counter: int = 1) -> Certificate:
    start = int(time.time()) - 3600
    addresses = (f"http://127.0.0.1:{port}",) if port else ()
    return identity.certify(name, keys, addresses, counter=counter, not_before=start, not_after=start + 20 * 86_400)


def deploy(
    folder: Path, names: list[str], task: str, data: dict[str, str], counts: dict[str, int] | None = None,
    dial_only: frozenset[str] = frozenset(), rule: str = "auto", limits: str = "", options: dict[str, Any] | None = None,
    **study: Any,
) -> dict[str, Path]:  # fmt: skip
    """Each node's node.toml. `data` is the [data] section of each."""
    ports = dict(zip(names, free_ports(len(names)), strict=True))
    made: dict[str, membership.Member] = {}
    for name in names:
        port = 0 if name in dial_only else ports[name]
        keys_folder = folder / name / "keys"
        keys_folder.mkdir(parents=True)
        identity, keys = Identity(secrets.token_bytes(32)), NodeKeys(secrets.token_bytes(64))
        certificate = certify(identity, keys, name, port)
        save_key(keys_folder / config.IDENTITY_KEY, identity.seed, None, "identity")
        save_key(keys_folder / config.NODE_KEY, keys.secret, None, "node")
        (keys_folder / config.CERTIFICATE).write_bytes(certificate.encoded)
        made[name] = membership.Member(
            id=name, identity=identity.public.hex(), count=(counts or {}).get(name, 0),
            certificate=base64.b64encode(certificate.encoded).decode(),
        )  # fmt: skip
        listen = f"127.0.0.1:{port}" if port else ""
        (folder / name / "node.toml").write_text(
            f'[node]\nid = "{name}"\nfederation = "../federation.json"\nlisten = "{listen}"\nadmin = "127.0.0.1:0"\n'
            f"[data]\n{data[name]}\n[limits]\n{limits}\n"
        )
    plan = membership.Study(task=task, holdout_key="11" * 32, task_options=options or {}, **study)
    first = first_model(plan)
    psk = secrets.token_bytes(32)
    for name in names:
        save_key(folder / name / "keys" / config.PSK, psk, None, "psk")
    document = membership.create(
        federation=secrets.token_bytes(32), members=list(made.values()), study=plan, layout=first.layout, x0=first.x0,
        topology=membership.Topology(rule=rule),
    )  # fmt: skip
    (folder / "federation.json").write_text(document.dump())
    return {name: folder / name / "node.toml" for name in names}


def breast_cancer(names: list[str], seed: int = 0) -> dict[str, str]:
    return {name: f"site = {at}\nsites = {len(names)}\nseed = {seed}" for at, name in enumerate(names)}


def ask(toml: Path, path: str, body: dict[str, Any] | None = None) -> Any:
    """The admin listener's answer: JSON, or bytes of /model."""
    known = json.loads((toml.parent / "state" / "admin.json").read_text())
    request = urllib.request.Request(
        f"http://{known['address']}{path}",
        data=None if body is None else json.dumps(body).encode(),
        headers={"Authorization": f"Bearer {known['token']}"},
    )
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=5) as answer:
        content = answer.read()
        return content if path == "/model" else json.loads(content)
