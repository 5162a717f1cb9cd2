"""Small federations for tests: real keys, real certificates, real membership; the toy task on the simulated network."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from gossipfl.digest import name_of
from gossipfl.learning import compression
from gossipfl.learning.parameters import Layout
from gossipfl.learning.training import Plan
from gossipfl.protocol.core import Settings
from gossipfl.recipe import Work, settings_of
from gossipfl.simulator.federation import Keyring
from gossipfl.simulator.network import Spec
from gossipfl.tasks.toy import Toy
from gossipfl.trust.membership import Member, Membership, Study, Topology, create
from gossipfl.workbench import Bench

KEYRING = Keyring("")
DAY = 86_400
PSK = hashlib.sha256(b"a psk for tests").digest()
keys_of = KEYRING.node
certificate_of = partial(KEYRING.certificate, days=20)


def member(name: str, count: int = 10, role: str = "trainer") -> Member:
    return KEYRING.member(name, count, role, days=20)


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
    """The settings that a deployed node of this study would have, in a hurry; and a few changed."""
    size, width = changed.pop("size", 8), changed.pop("width", 8)
    task = Toy(size)
    work = Work(task, task.layout(), None, np.zeros(size))
    told: dict[str, Any] = {"sign": keys_of(me).sign, "certificate": certificate_of(me), "random": random}
    codec = changed.pop("codec", "f64" if width == 8 else "f32")
    plain: dict[str, Any] = {
        "layout": members.layout_digest,
        "codec": codec,
        "model_size": compression.payload_size(codec, size, 0, width),
        "eta": lambda local_round: members.study.eta,
        "inbound_per_minute": 6000,
        "turn_ns": 50_000_000,
    }
    return replace(settings_of(members, me, work, checkpoint_s=30.0, **told), **(plain | changed))


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
