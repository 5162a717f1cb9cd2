"""Small federations for tests: real keys, real certificates, real membership; the toy task on the simulated network."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from gossipfl.digest import name_of
from gossipfl.learning import compression
from gossipfl.learning.parameters import Layout
from gossipfl.learning.training import Plan
from gossipfl.protocol.core import Settings
from gossipfl.simulator.network import WALL_START_NS, Spec
from gossipfl.tasks.toy import Toy
from gossipfl.trust.identity import Certificate, Identity, NodeKeys
from gossipfl.trust.membership import Member, Membership, Study, Topology, create
from gossipfl.workbench import Bench

DAY = 86_400
PSK = hashlib.sha256(b"a psk for tests").digest()


def keys_of(name: str, counter: int = 0) -> NodeKeys:
    return NodeKeys(hashlib.sha512(f"{name}/{counter}".encode()).digest())


def certificate_of(name: str, counter: int = 0, addresses: tuple[str, ...] = ("ws://127.0.0.1:1",)) -> Certificate:
    identity = Identity(hashlib.sha256(f"identity of {name}".encode()).digest())
    start = WALL_START_NS // 10**9 - 3600
    return identity.certify(
        name, keys_of(name, counter), addresses, counter=counter, not_before=start, not_after=start + 20 * DAY
    )


def member(name: str, count: int = 10, role: str = "trainer") -> Member:
    import base64

    certificate = certificate_of(name)
    return Member(
        id=name,
        identity=certificate.identity.hex(),
        certificate=base64.b64encode(certificate.encoded).decode(),
        role=role,
        count=count,
    )


def federation(counts: Mapping[str, int], topology: Topology | None = None, x0: Any = None, **study: Any) -> Membership:
    x0 = np.zeros(8) if x0 is None else x0
    return create(
        federation=hashlib.sha256(b"a federation for tests").digest(),
        members=[member(name, count) for name, count in counts.items()],
        study=Study(**({"task": "toy", "holdout_key": "00" * 32} | study)),
        layout=Layout.flat(x0.size, str(x0.dtype)).digest,
        x0=name_of(x0.data),
        topology=topology,
    )


def settings(members: Membership, me: str, random: Any, **changed: Any) -> Settings:
    """The settings that a deployed node of this study would have, a few changed."""
    study = members.study
    size = changed.pop("size", 8)
    width = changed.pop("width", 8)
    plain: dict[str, Any] = {
        "me": me,
        "members": members,
        "certificate": certificate_of(me),
        "certificates": tuple(certificate_of(name) for name in members.active),
        "sign": keys_of(me).sign,
        "random": random,
        "layout": members.layout_digest,
        "codec": "f64" if width == 8 else "f32",
        "model_size": compression.payload_size("f64" if width == 8 else "f32", size, 0, width),
        "statistics_size": 0,
        "eta": lambda local_round: study.eta,
        "local_rounds": study.local_rounds,
        "local_steps": study.local_steps,
        "ledger": study.correction == "ledger",
        "theta": study.theta,
        "gamma": study.gamma,
        "leak": study.leak,
        "cap": study.cap,
        "clip": study.clip,
        "release_exchanges": members.release_exchanges,
        "tolerance": study.statistics_tolerance,
        "inbound_per_minute": 6000,
        "resets_per_day": study.resets_per_day,
        "patience_ns": 5_000_000_000,
        "turn_ns": 50_000_000,
        "checkpoint_ns": 30_000_000_000,
        "dialable": frozenset(members.active),
    }
    return Settings(**(plain | changed))


def toy_specs(
    members: Membership,
    learner: Callable[[str], Any],
    begin: Callable[[str], Any] = lambda name: np.zeros(8),
    speed: Callable[[str], float] = lambda name: 1.0,
    **changed: Any,
) -> dict[str, Spec]:
    """One spec per active member, each beginning from its own vector; x^0 is zeros."""
    specs = {}
    for name in members.active:
        vector = begin(name)
        bench = Bench(
            n_parameters=vector.size,
            n_moments=0,
            dtype=str(vector.dtype),
            learner=lambda statistics, name=name: learner(name),
            plan=lambda steps, eta: Plan(steps=steps, eta=eta),
            seed=(1,),
        )
        more = {key: value(name) if callable(value) and key != "eta" else value for key, value in changed.items()}
        specs[name] = Spec(
            settings=lambda random, name=name, more=more, vector=vector: settings(
                members, name, random, size=vector.size, width=vector.itemsize, **more
            ),
            bench=bench,
            keys=keys_of(name),
            certificate=certificate_of(name),
            psk=PSK,
            x0=np.zeros_like(vector),
            begin=vector,
            speed=speed(name),
        )
    return specs


def quadratics(names: tuple[str, ...], seed: int = 0) -> tuple[dict[str, Any], Callable[[Mapping[str, float]], Any]]:
    """A toy learner per name, and the optimum for given masses."""
    task = Toy()
    trainers = {
        name: task.trainer(task.layout(), task.data({"site": site, "seed": seed, "rows": 5}).x, np.zeros(5))
        for site, name in enumerate(names)
    }

    def optimum(mass: Mapping[str, float]) -> Any:
        total = sum(mass[name] * trainers[name].a for name in names)
        return sum(mass[name] * trainers[name].ab for name in names) / total

    return trainers, optimum
