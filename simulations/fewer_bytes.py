"""How many bytes a node sends until the worst node is at 99 % of centralized: the ledger, compressed, beside FedAvg in float32.

    python simulations/fewer_bytes.py                     the settings below, test parts of seeds 0 to 4
    python simulations/fewer_bytes.py --tune              every setting tried, validation parts of seeds 10 to 19
    python simulations/fewer_bytes.py --json FILE         the figures as JSON, too

digits among 16 nodes, labels of Dirichlet(.1), 30 % absent each round, an MLP of 2,410 numbers. The ledger sends signs of the
tenth of the numbers that changed most while it trains, and int4 in the release, where models only mix. Bytes are those of models,
as in every table of the benchmark; a message has some 600 to 1,000 more (`messages` tells how many there are). *Mean*: from when
on the mean over splits of the worst node's share of centralized is at .99; *each*: the same of each split, none where it does
not come there or does not stay.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import Any, Final

import numpy as np

from gossipfl import simulate
from gossipfl.simulator import baselines
from gossipfl.simulator.bench.question import Ask, Question
from gossipfl.tasks import Site
from gossipfl.tasks.split import tuning
from gossipfl.tasks.task import Data

NODES: Final = 16
GOAL: Final = 0.99
EVERY: Final = 5
"""rounds between two looks"""
RESOLVED: Final = 1e-9
"""A share is a quotient of two counts of images: .99 itself is reached."""


@dataclass(frozen=True)
class Setting:
    """What is chosen of a method, on validation parts; the rest is the recipe's."""

    method: str
    rounds: int
    steps: int
    momentum: float
    eta: float
    exchanges: int = 1
    theta: float = 0.0
    compression: str = "none"
    release_compression: str = ""
    release: int = 0

    def __str__(self) -> str:
        said = f"{self.method}, {self.rounds} rounds of {self.steps} steps, momentum {self.momentum}, eta {self.eta}"
        if not self.exchanges or self.compression == "none":
            return said
        return (
            f"{said}, {self.exchanges} exchanges, theta {self.theta}, {self.compression}, then {self.release} rounds of "
            f"{self.release_compression}"
        )


def ledger(
    rounds: int, steps: int, exchanges: int, share: str, theta: float, release: int, momentum: float = 0.95
) -> Setting:
    return Setting("ledger", rounds, steps, momentum, 0.05, exchanges, theta, f"sign:{share}", "int4", release)


CHOSEN: Final = (
    ledger(100, 10, 4, "0.1", 1.0, 5),
    Setting("fedavg", 100, 7, 0.95, 0.1),
)
"""Of those tried the one with which the mean over splits is at .99 for the fewest bytes."""

RATES: Final = ((0.98, 0.05), (0.95, 0.1))

TRIED: Final = (
    *(ledger(100, 10, 4, share, 0.7, 5) for share in ("0.1", "0.07", "0.05")),
    *(ledger(100, steps, 4, "0.1", theta, 5) for steps, theta in ((5, 0.7), (10, 0.55), (10, 1.0), (7, 0.7))),
    *(ledger(rounds, 10, 4, "0.1", 0.7, 5) for rounds in (75, 125)),
    *(ledger(150, steps, 3, share, 0.55, 7) for steps, share in product((5, 10), ("0.1", "0.05"))),
    *(ledger(100, 10, 3, share, 0.55, 7) for share in ("0.07", "0.1")),
    ledger(125, 10, 4, "0.1", 1.0, 5),
    *(Setting("fedavg", rounds, steps, momentum, eta) for rounds, steps, (momentum, eta) in
      (*product((75, 100), (5, 7, 10), RATES), *product((125,), (5, 7), RATES))),
)  # fmt: skip
"""As many of each method."""


@dataclass(frozen=True)
class Course:
    """One split: the worst node's share of centralized, and what a node has sent until then."""

    rounds: list[int]
    share: list[float]
    sent: list[float]
    """bytes a node"""
    messages: float
    """a node, in all"""


@dataclass(frozen=True)
class Found:
    """One setting on all splits."""

    setting: Setting
    courses: list[Course]

    @property
    def shares(self) -> Any:
        """**Shapes**: (splits, looks)."""
        return np.array([course.share for course in self.courses])

    @property
    def sent(self) -> Any:
        return np.array([course.sent for course in self.courses])

    def mean(self) -> float | None:
        """Bytes from which on the mean over splits is at the goal."""
        at = first(self.shares.mean(axis=0))
        return None if at is None else float(self.sent[:, at].mean())

    def each(self) -> list[float | None]:
        there = [first(shares) for shares in self.shares]
        return [None if at is None else float(sent[at]) for at, sent in zip(there, self.sent, strict=True)]

    def line(self) -> str:
        mean, each, last = self.mean(), self.each(), self.shares[:, -1]
        reached = sorted(round(one / 1000) for one in each if one is not None)
        return (
            f"{self.setting}: worst node {last.mean():.4f} (least {last.min():.4f}), {self.sent[:, -1].mean() / 1000:.1f} kB and "
            f"{np.mean([course.messages for course in self.courses]):.0f} messages in all; mean at {GOAL} from "
            f"{'-' if mean is None else f'{mean / 1000:.1f} kB'} on; each: {len(reached)} of {len(each)}, {reached} kB"
        )


def first(shares: Any) -> int | None:
    """The look from which on all are at the goal."""
    below = np.flatnonzero(shares < GOAL - RESOLVED)
    at = 0 if not len(below) else int(below[-1]) + 1
    return at if at < len(shares) else None


def course(seed: int, setting: Setting, sites: Sequence[Site], judged: Data, best: float) -> Course:
    question = asked(setting.method, setting.rounds, seed)
    given = question.recipe(Ask(setting.method, seed))
    plan = replace(given.plan, steps=setting.steps, momentum=setting.momentum, eta=setting.eta)
    method = replace(given.method, theta=setting.theta) if setting.theta else given.method
    chosen = replace(given, plan=plan, method=method, release=setting.release, exchanges=setting.exchanges)
    run = simulate(
        question.rows.loaded(), nodes=len(sites), sites=sites, test=judged, topology=question.meeting(seed),
        rounds=setting.rounds, faults={"dropout": question.dropout}, seed=seed, threads=1, evaluate_every=EVERY,
        compression=setting.compression, release_compression=setting.release_compression, **chosen.keywords(),
    )  # fmt: skip
    seen = [record for record in run.records if not np.isnan(record.worst)]
    total = np.cumsum([record.bytes for record in run.records]) / run.nodes
    ends = 1 if setting.method == "fedavg" else 2
    return Course(
        [record.round + 1 for record in seen],
        [record.worst / best for record in seen],
        [float(total[record.round]) for record in seen],
        ends * sum(record.exchanges for record in run.records) / run.nodes,
    )


@lru_cache(maxsize=16)
def parts(seed: int, validation: bool) -> tuple[Sequence[Site], Data, float]:
    """Sites, the rows that judge, and centralized's accuracy on them."""
    dealt = asked("ledger", 100, seed).rows
    sites, judged = dealt.federation(seed, None)
    if validation:
        sites, judged = tuning(sites, seed)
    return sites, judged, baselines.centralized(dealt.loaded(), sites).metrics(judged)["accuracy"]


def asked(method: str, rounds: int, seed: int) -> Question:
    return Question.of("digits", (method,), nodes=NODES, rounds=rounds, seeds=[seed])


def measured(setting: Setting, seeds: Sequence[int], *, validation: bool) -> Found:
    """**Randomness**: that of each seed."""
    return Found(setting, [course(seed, setting, *parts(seed, validation)) for seed in seeds])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tune", action="store_true", help="every setting tried, on validation parts")
    parser.add_argument("--seeds", help="splits, with commas between; else 0 to 4, with --tune 10 to 19")
    parser.add_argument("--json", type=Path, help="a file for the figures")
    said = parser.parse_args()
    usual = "10,11,12,13,14,15,16,17,18,19" if said.tune else "0,1,2,3,4"
    seeds = list(map(int, (said.seeds or usual).split(",")))
    settings = list(dict.fromkeys((*CHOSEN, *TRIED) if said.tune else CHOSEN))
    found: list[Found] = []
    for setting in settings:
        found.append(measured(setting, seeds, validation=said.tune))
        print(found[-1].line(), flush=True)
    if not said.tune:
        ours, theirs = (one.mean() for one in found[:2])
        if ours and theirs:
            print(
                f"FedAvg sends {theirs / ours:.1f} times as many bytes a node until the mean over splits is at {GOAL}"
            )
    if said.json:
        lines = [
            {**asdict(one), "mean_bytes": one.mean(), "each_bytes": one.each(), "text": one.line()} for one in found
        ]
        said.json.write_text(json.dumps({"seeds": seeds, "tuned": said.tune, "found": lines}, indent=1) + "\n")


if __name__ == "__main__":
    main()
