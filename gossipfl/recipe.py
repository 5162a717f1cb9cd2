"""What a member's core and hands are told: Settings and Bench from the federation file, the task and the member's own rows.

Node and simulator both come here, so that what is simulated is what is deployed. Not here: where keys, rows and randomness
come from (gossipfl.node.build reads files, gossipfl.simulator.federation derives all from a seed).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from gossipfl import defaults, tasks
from gossipfl.errors import ConfigError
from gossipfl.learning import compression, correction
from gossipfl.protocol import messages as ms
from gossipfl.protocol.core import Settings
from gossipfl.tasks import fitting, normalisation
from gossipfl.workbench import Bench, statistics_reader

if TYPE_CHECKING:
    from gossipfl.learning.parameters import Layout
    from gossipfl.learning.training import Plan
    from gossipfl.protocol.neighbours import Random
    from gossipfl.tasks import Data, Site, Task
    from gossipfl.trust.identity import Certificate
    from gossipfl.trust.membership import Membership, Study

SECOND: Final = 1_000_000_000

TURN_NS: Final = 5_000_000
"""Least time between two turns, where the study asks for none: a node that finds nobody must not spin."""

CANDIDATE_MAX: Final = 60_000
"""Bytes of a normalisation in messages.Candidate: three numbers of nine bytes for each feature, and every member's id; about
2,200 features among few members."""

SCHEDULES: Final = {"tail": "linear-tail"}


@dataclass(frozen=True)
class Work:
    """What a member learns with: the task and its rows, the same at every node of the study but for the rows."""

    task: Task
    layout: Layout
    site: Site | None
    """None where the node has no data: an observer, or a loop of the user's own"""
    start: Any
    """x^0"""

    @property
    def normalised(self) -> bool:
        return bool(self.task.standardise and self.task.features)


def work_of(study: Study, task: Task, site: Site | None) -> Work:
    """Layout and x^0 as this machine makes them."""
    layout = fitting.layout_of(task)
    return Work(task, layout, site, fitting.start(task, layout, study.seed))


def study_defaults(task: Task, given: Mapping[str, Any], members: int) -> dict[str, Any]:
    """The fields of a study that follow from the task, its local rounds and the number of members (0: not known, few), where
    `given` does not say otherwise: what gossipfl.defaults says of them."""
    is_net = fitting.is_net(task)
    rounds = int(given.get("local_rounds", defaults.rounds(is_net)))
    optimizer = str(given.get("optimizer", getattr(task, "optimizer", "sgd")))
    local = defaults.training(is_net, rounds, optimizer, momentum=defaults.MOMENTUM_OF_NODES)
    begun = int(given.get("exchanges", defaults.begun(defaults.exchanges(is_net, rounds))))
    found = {
        **asdict(local),
        "local_rounds": rounds,
        "optimizer": optimizer,
        "l2": float(getattr(task, "l2", 0.0)),
        "exchanges": begun,
        "theta": defaults.theta(2 * begun),
        "heaviest": defaults.heaviest(members),
    }
    return {name: value for name, value in found.items() if name not in given}


def _empty(task: Task) -> Data:
    width = len(task.features)
    return tasks.Data(np.empty((0, width)), np.empty(0))


def must_fit(task: Task, membership: Membership) -> None:
    """The statistics of so many features, with the names of so many members, go into one message. **Raises**: ConfigError."""
    if not (task.standardise and task.features):
        return
    zeros = (0.0,) * len(task.features)
    longest = max(membership.active, key=len)
    size = len(ms.encode(ms.Normalisation(membership.federation_id, longest, membership.active, zeros, zeros, zeros)))
    if size > CANDIDATE_MAX:
        most = len(task.features) - math.ceil((size - CANDIDATE_MAX) / 27)
        raise ConfigError(
            f"the task has {len(task.features)} features: their statistics take {size:,} bytes, and a message holds "
            f"{CANDIDATE_MAX:,} -- at most {most} features with {len(membership.active)} members; leave some out, or let a task "
            f"of your own normalise by constants and set standardise = False"
        )


def statistics_of(work: Work, membership: Membership, me: str) -> Any:
    """A member's statistics vector. Every member of the document has a coordinate, so that who leaves shifts nobody."""
    if not work.normalised:
        return np.zeros(1)
    must_fit(work.task, membership)
    data = work.site.train if work.site else _empty(work.task)
    ids = [member.id for member in membership.members]
    return normalisation.statistics_vector(ids.index(me), len(ids), data, membership.study.minimum_count)


def settings_of(
    membership: Membership,
    me: str,
    work: Work,
    *,
    sign: Callable[[str, bytes], bytes],
    certificate: Certificate,
    random: Random,
    checkpoint_s: float,
    external: bool = False,
) -> Settings:
    """What the core is told: the study's constants, and this member's place in it."""
    study, layout = membership.study, work.layout
    itemsize = np.dtype(layout.dtype).itemsize
    vector = statistics_of(work, membership, me)
    name = SCHEDULES.get(study.schedule, study.schedule)
    known = {peer: membership.member(peer).certificate_read for peer in membership.active}
    return Settings(
        me=me,
        members=membership,
        certificate=certificate,
        certificates=(*(known[peer] for peer in membership.active), certificate),
        sign=sign,
        random=random,
        layout=layout.digest,
        codec=study.codec,
        model_size=compression.payload_size(study.codec, layout.n_parameters, layout.n_moments, itemsize),
        statistics_size=compression.payload_size("f64", vector.size, 0, 8) if work.normalised else 0,
        eta=lambda local_round: correction.schedule(name, study.eta, local_round, study.local_rounds),
        local_rounds=study.local_rounds,
        local_steps=study.local_steps,
        exchanges=study.exchanges,
        ledger=study.correction == "ledger",
        theta=study.theta,
        gamma=study.gamma,
        leak=study.leak,
        cap=study.cap,
        clip=study.clip,
        release_exchanges=membership.release_exchanges,
        tolerance=study.statistics_tolerance,
        inbound_per_minute=study.inbound_per_minute,
        resets_per_day=study.resets_per_day,
        patience_ns=int(study.exchange_patience_s * SECOND),
        turn_ns=max(TURN_NS, int(study.local_round_s * SECOND)),
        checkpoint_ns=int(checkpoint_s * SECOND),
        trains=membership.member(me).role == "trainer",
        external=external,
        dialable=frozenset(peer for peer in membership.active if known[peer].addresses),
    )


def plan_of(study: Study, steps: int, eta: float) -> Plan:
    """How a local round is trained."""
    from gossipfl.learning.training import Plan

    return Plan(steps, eta, study.batch_size, study.optimizer, study.momentum, study.proximal, study.l2)


def bench_of(
    membership: Membership,
    me: str,
    work: Work,
    learner: Callable[[ms.Normalisation | None], Any],
    seed: tuple[int, ...],
) -> Bench:
    """The hands over a member's rows; `learner` makes what trains, once the statistics are frozen."""
    layout = work.layout
    ids = [member.id for member in membership.members]
    reader = statistics_reader(membership.federation_id, me, ids, membership.active)
    return Bench(
        n_parameters=layout.n_parameters,
        n_moments=layout.n_moments,
        dtype=layout.dtype,
        learner=learner,
        plan=partial(plan_of, membership.study),
        seed=seed,
        estimate=reader if work.normalised else lambda vector: ((), None),
        absurdity=_absurdity(membership, work) if work.normalised else lambda vector: "",
    )


def ranges_of(task: Task) -> tuple[normalisation.Range, ...]:
    """The study's range of each feature, where the task has any."""
    return tuple(getattr(task, "ranges", ()))


def _absurdity(membership: Membership, work: Work) -> Callable[[Any], str]:
    trainers = [membership.member(one) for one in membership.active if membership.member(one).role == "trainer"]
    counts = [trainer.count for trainer in trainers]
    most = float(max(counts)) if counts and all(counts) else math.inf
    names, ranges = work.task.features, ranges_of(work.task)
    return lambda vector: normalisation.absurdity(vector, len(membership.members), names, ranges, most)


def trainer_of(work: Work, normaliser: normalisation.Normaliser) -> Any:
    """What trains on a member's rows, on the CPU."""
    assert work.site is not None
    rows = fitting.prepare(work.task, normaliser, work.site.train)
    return fitting.trainer(work.task, work.layout, rows, work.site.train.y)


def normaliser_of(statistics: ms.Normalisation | None) -> normalisation.Normaliser:
    """The preprocessing that frozen statistics stand for; none where there are none."""
    if statistics is None or not statistics.mean:
        return normalisation.Normaliser.none()
    return normalisation.Normaliser(np.array(statistics.mean), np.array(statistics.spread))


def decoded(frozen: bytes) -> normalisation.Normaliser:
    """The preprocessing that encoded frozen statistics stand for; empty: none."""
    return normaliser_of(ms.decode_normalisation(frozen) if frozen else None)


def judge_of(work: Work) -> Callable[[bytes, Any], dict[str, float]] | None:
    """Metrics of a model, with its encoded frozen statistics, on a member's hold-out; None where it has none."""
    if work.site is None or not len(work.site.holdout):
        return None
    holdout = work.site.holdout

    def judge(frozen: bytes, vector: Any) -> dict[str, float]:
        metrics = fitting.evaluate(work.task, work.layout, vector, decoded(frozen), holdout)
        return {name: float(value) for name, value in metrics.items() if np.isfinite(value)}

    return judge
