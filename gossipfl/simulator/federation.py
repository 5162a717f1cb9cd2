"""A federation out of a seed: rows dealt to sites, keys, certificates, membership, and the Specs of a World.

The same seed gives the same bytes, keys too: good for a simulation and for nothing else. What a node is told comes from
gossipfl.recipe, as for a deployed one. Not here: the clock, the lines and the faults (simulator.network), scenario files.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np

from gossipfl import defaults, tasks
from gossipfl.digest import name_of
from gossipfl.errors import ConfigError, Misuse
from gossipfl.protocol.core import Settings
from gossipfl.recipe import (
    Work,
    bench_of,
    normaliser_of,
    settings_of,
    statistics_of,
    study_defaults,
    trainer_of,
    work_of,
)
from gossipfl.simulator.network import WALL_START_NS, Spec
from gossipfl.tasks import fitting, partition
from gossipfl.trust.identity import CERTIFICATE_DAYS, DAY, Certificate, Identity, NodeKeys
from gossipfl.trust.membership import Member, Membership, Study, Topology, create, rounded

if TYPE_CHECKING:
    from gossipfl.protocol.neighbours import Random
    from gossipfl.tasks import Data, Site, Task
    from gossipfl.topology import Graph

ROUNDS_OF_THE_TOY: Final = 60
"""It has settled by then."""

TEST_SHARE: Final = 0.3
"""Of rows that come without test rows of their own."""

CHECKPOINT_S: Final = 30.0
"""As node.toml has it by default."""

CLOCK_SLACK_S: Final = 3600
"""A certificate begins so much before the world does: clocks may be slow."""


# ---- rows ------------------------------------------------------------------------------------------------------------


def sites_of(
    task: Task,
    nodes: int,
    seed: int,
    *,
    how: str = "task",
    alpha: float = 0.3,
    ratio: float = 8.0,
    source: Mapping[str, Any] | None = None,
    data_dir: Path | None = None,
) -> tuple[list[Site], Data]:
    """`nodes` sites with their training rows, and the test rows that all are judged by.

    `how`: "task", the sites that the task itself has for demos; else all its rows are dealt anew: "iid", or "dirichlet"
    with label skew `alpha`; the largest site has `ratio` times the rows of the smallest. `source` is a `[data]` table, for
    a task that has no sites for demos.

    **Raises**: ConfigError with the remedy.
    """
    own: Any = task
    try:
        if how == "task":
            if not hasattr(own, "demo_sites"):
                raise ConfigError(
                    f'the task {task.name!r} has no sites for demos; write partition = "iid" and a table [data]'
                )
            sites, test = own.demo_sites(nodes, seed, data_dir)
            return _named(list(sites)), test
        train, test = _all_rows(task, source, seed, data_dir)
        rng = np.random.Generator(np.random.PCG64([seed, 1]))
        sizes = partition.skewed_sizes(len(train), nodes, ratio)
        if how == "iid":
            parts = partition.iid(len(train), sizes, rng)
        else:
            least = 2 if getattr(task, "classes", 0) == 2 else 0
            parts = partition.dirichlet(train.y, sizes, alpha, rng, least=least)
    except Misuse as error:
        raise ConfigError(f"the rows of {task.name!r} cannot be dealt to {nodes} nodes: {error}") from None
    return _named([tasks.Site(f"hospital-{at + 1}", train.rows(part), test) for at, part in enumerate(parts)]), test


def _all_rows(task: Task, source: Mapping[str, Any] | None, seed: int, data_dir: Path | None) -> tuple[Data, Data]:
    own: Any = task
    if source is None and hasattr(own, "demo_sites"):
        every = getattr(own, "all_sites", getattr(own, "demo_nodes", 5))
        sites, test = own.demo_sites(int(every), seed, data_dir)
        return tasks.pooled([site.train for site in sites]), test
    if source is None:
        raise ConfigError(f"the task {task.name!r} has no rows of its own: name a file in a table [data]")
    rows = task.data(source)
    rng = np.random.Generator(np.random.PCG64([seed, 2]))
    train, test = partition.stratified(rows.y, TEST_SHARE, rng)
    return rows.rows(train), rows.rows(test)


def _named(sites: Sequence[Site]) -> list[Site]:
    """Numbers as wide as the largest, so that the order of ids is that of the sites."""
    if not all(site.name == f"hospital-{at}" for at, site in enumerate(sites, 1)):
        return list(sites)
    wide = len(str(len(sites)))
    return [replace(site, name=f"hospital-{at:0{wide}}") for at, site in enumerate(sites, 1)]


def rounds_of(spec: str, task: Task) -> int:
    """Local rounds of a simulated study of this task: those of a deployed one, by its model; the toy has fewer."""
    return ROUNDS_OF_THE_TOY if spec == "toy" else defaults.rounds(fitting.is_net(task))


def study_of(
    spec: str, task: Task, seed: int, options: Mapping[str, Any] | None = None, nodes: int = 0, **changed: Any
) -> Study:
    """The study that `gossipfl federation create` would make for so many members, with keys out of the seed, so many local
    rounds as simulations have, and a few fields changed."""
    fields: dict[str, Any] = {
        "name": f"simulation of {spec}"[:100],
        "task": spec,
        "task_options": dict(options or {}),
        "seed": seed,
        "holdout_key": hashlib.sha256(f"gossipfl demo {seed}".encode()).hexdigest(),
        "local_rounds": rounds_of(spec, task),
        "codec": "f64" if fitting.layout_of(task).dtype == "float64" else "f32",
    }
    given = fields | changed
    return Study(**(study_defaults(task, given, nodes) | given))


# ---- who -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Keyring:
    """Every key of a federation, made from a text: who knows it has them all."""

    seed: str

    def node(self, name: str, counter: int = 0) -> NodeKeys:
        return NodeKeys(hashlib.sha512(f"{self.seed}{name}/{counter}".encode()).digest())

    def identity(self, name: str) -> Identity:
        return Identity(hashlib.sha256(f"{self.seed}identity of {name}".encode()).digest())

    @property
    def psk(self) -> bytes:
        return hashlib.sha256(f"{self.seed}psk".encode()).digest()

    @property
    def federation(self) -> bytes:
        return hashlib.sha256(f"{self.seed}federation".encode()).digest()

    def certificate(
        self,
        name: str,
        counter: int = 0,
        addresses: Sequence[str] = ("ws://127.0.0.1:1",),
        days: int = CERTIFICATE_DAYS,
    ) -> Certificate:
        """Valid from an hour before the world begins."""
        start = WALL_START_NS // 10**9 - CLOCK_SLACK_S
        return self.identity(name).certify(
            name, self.node(name, counter), addresses, counter=counter, not_before=start, not_after=start + days * DAY
        )

    def member(
        self,
        name: str,
        count: int,
        role: Literal["trainer", "observer"] = "trainer",
        addresses: Sequence[str] = ("ws://127.0.0.1:1",),
        days: int = CERTIFICATE_DAYS,
    ) -> Member:
        certificate = self.certificate(name, addresses=addresses, days=days)
        return Member(
            id=name,
            identity=certificate.identity.hex(),
            certificate=base64.b64encode(certificate.encoded).decode(),
            role=role,
            count=count,
        )


# ---- the federation --------------------------------------------------------------------------------------------------


class Wired(Membership):
    """A membership whose graph is none of the rules': for simulations."""

    edges: dict[str, tuple[str, ...]]

    @property
    def wanted_graph(self) -> dict[str, tuple[str, ...]]:
        return self.edges


def wired(plain: Membership, graph: Graph) -> Wired:
    """The same members on this graph: its nodes are they, in the order of ids."""
    edges: dict[str, list[str]] = {name: [] for name in plain.active}
    for one, other in graph.edges.tolist():
        edges[plain.active[one]].append(plain.active[other])
        edges[plain.active[other]].append(plain.active[one])
    fields = {name: getattr(plain, name) for name in Membership.model_fields}
    return Wired(**fields, edges={name: tuple(sorted(found)) for name, found in edges.items()})


@dataclass(frozen=True, eq=False)
class Federation:
    """Members, their rows and their keys."""

    seed: int
    task: Task
    membership: Membership
    works: Mapping[str, Work]
    test: Data
    """what every model is judged by"""
    keyring: Keyring
    graph: Graph | None = None
    """what the membership's graph was made of, where it is none of the rules'"""

    @cached_property
    def sites(self) -> list[Site]:
        return [work.site for work in self.works.values() if work.site is not None]

    def spec(self, name: str, *, speed: float = 1.0, change: Callable[[Settings], Settings] = lambda one: one) -> Spec:
        """One node before it is started."""
        work, keys = self.works[name], self.keyring.node(name)
        certificate = self.membership.member(name).certificate_read

        def settings(random: Random) -> Settings:
            told: dict[str, Any] = {"sign": keys.sign, "certificate": certificate, "random": random}
            return change(settings_of(self.membership, name, work, checkpoint_s=CHECKPOINT_S, **told))

        draws = hashlib.sha256(f"{self.keyring.seed}draws of {name}".encode()).digest()[:16]
        return Spec(
            settings=settings,
            bench=bench_of(self.membership, name, work, partial(_learner, work), tuple(draws)),
            keys=keys,
            certificate=certificate,
            psk=self.keyring.psk,
            x0=work.start,
            statistics=statistics_of(work, self.membership, name),
            speed=speed,
        )

    def specs(
        self, speeds: Mapping[str, float] | None = None, change: Callable[[Settings], Settings] = lambda one: one
    ) -> dict[str, Spec]:
        """What a World is made of. `speeds`: of nodes that are not as fast as the others (1)."""
        return {
            name: self.spec(name, speed=(speeds or {}).get(name, 1.0), change=change) for name in self.membership.active
        }


def _learner(work: Work, statistics: Any) -> Any:
    if work.site is None or not len(work.site.train):
        return None
    if not hasattr(work.task, "trainer"):
        import torch

        torch.set_num_threads(1)
    return trainer_of(work, normaliser_of(statistics))


def found(
    spec: str,
    nodes: int,
    seed: int,
    *,
    options: Mapping[str, Any] | None = None,
    sites: tuple[list[Site], Data] | None = None,
    topology: Topology | None = None,
    observers: Sequence[str] = (),
    dial_only: Sequence[str] = (),
    study: Mapping[str, Any] | None = None,
    graph: Graph | None = None,
    **rows: Any,
) -> Federation:
    """A federation of `nodes` sites on any task: a built-in's short name, or `module:attribute`.

    `sites` as `sites_of` gives them, which is otherwise called with `rows`. `study`: fields other than `study_of`'s.
    `observers` have no rows; `dial_only` have no address. `graph` instead of the rule of `topology`.

    **Raises**: ConfigError: no such task, rows that cannot be dealt, a study that cannot be.
    """
    task = tasks.load(spec, options)
    dealt, test = sites or sites_of(task, nodes, seed, **rows)
    plan = study_of(spec, task, seed, options, len(dealt), **(study or {}))
    keyring = Keyring(f"simulation {seed}/")
    works, members = {}, []
    blank = work_of(plan, task, None)
    for site in dealt:
        watches = site.name in observers
        works[site.name] = blank if watches else replace(blank, site=site)
        addresses = () if site.name in dial_only else (f"ws://{site.name}.example:8470",)
        members.append(
            keyring.member(site.name, rounded(len(site.train)), "observer" if watches else "trainer", addresses)
        )
    membership = create(
        federation=keyring.federation,
        members=members,
        study=plan,
        layout=blank.layout.digest,
        x0=name_of(np.ascontiguousarray(blank.start).data),
        topology=topology,
    )
    if graph is not None:
        membership = wired(membership, graph)
    return Federation(seed, task, membership, dict(sorted(works.items())), test, keyring, graph)
