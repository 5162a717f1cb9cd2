"""How many bytes a node sends until the worst node is at 99 % of centralized: the ledger, compressed, beside FedAvg in float32.

    python simulations/fewer_bytes.py --tune --results new.jsonl   every trial of each rung, on validation parts
    python simulations/fewer_bytes.py --results new.jsonl          the chosen ones, on test parts, and what comes out
    python simulations/fewer_bytes.py                              what the committed results say; nothing is run

digits with labels of Dirichlet(.1), 30 % absent each round, an MLP of 2,410 numbers, among 16 nodes. Measured so that
being chosen flatters nobody:

* A ladder of budgets, each 4/3 of the one below. FedAvg's is in rounds; at the same rung the ledger has a tenth of its bytes.
* FedAvg has six trials at each rung; that with the best mean share on validation parts (16 nodes, seeds 10 to 19) is chosen; of
  equal ones that with the better least split, then the first. The ledger has one setting for all rungs, from them, too.
* What is chosen is run at every rung on test parts of seeds 30 to 39, never used for choosing nor looked at before. Beside stand
  those of 20 to 29, on which a first ladder was read, and of 0 to 4, looked at before. A method's bytes are those of the lowest
  rung from which on the mean over splits of the worst node's share is at .99. FedAvg's ladder goes two rungs further up: where it
  is not there, it takes more than the last. `--nodes 100` measures the same settings among more nodes, neither method tuned anew.
* *Promised* is the lowest rung from which on the validation mean is at .99 with one standard error to spare: what a user would
  take, who has no test rows.

The ledger sends signs of the largest changes, of more of them in the release, where models only mix. Bytes are those of
models, sent by a node, as in every table of the benchmark; a message has some 1,000 more at most, which are counted beside. All
splits part the same 1,797 images, so they are not independent of each other, nor are other seeds' validation rows.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import Final

import numpy as np

from gossipfl import simulate
from gossipfl.learning.compression import payload_size
from gossipfl.simulator import baselines
from gossipfl.simulator.bench.question import Ask, Question
from gossipfl.tasks import Site
from gossipfl.tasks.split import tuning
from gossipfl.tasks.task import Data

GOAL: Final = 0.99
RESOLVED: Final = 1e-9
"""A share is a quotient of two counts of images: .99 itself is reached."""

PARAMETERS: Final = 2410
ABSENT: Final = 0.3
ENVELOPE: Final = 1000
"""Bytes of a message beside its model, at most."""

RUNGS: Final = (89, 119, 158, 211, 281, 375)
"""Rounds of FedAvg."""

LEDGER_RUNGS: Final = RUNGS[:-2]
TENTH: Final = 0.1

SERVED: Final = 0.62
"""Share of the nodes that is in a matching of these graphs with 30 % absent, rounded up: a tenth is not to be exceeded."""

TUNED: Final = 16
"""Nodes"""

VALIDATION: Final = range(10, 20)
FRESH: Final = range(30, 40)
FIRST: Final = range(20, 30)
"""Of the first ladder, whose trials for the ledger were others: FedAvg's figures here were known when the last were chosen."""

SEEN: Final = range(5)
TESTS: Final = {"seeds 30 to 39": FRESH, "seeds 20 to 29": FIRST, "seeds 0 to 4": SEEN}

RESULTS: Final = Path(__file__).parent / "results" / "fewer-bytes.jsonl"


@dataclass(frozen=True)
class Setting:
    """One run but for its seed. What is not named is the recipe's."""

    nodes: int
    method: str
    rung: int
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
        said = f"{self.rounds} rounds of {self.steps} steps, momentum {self.momentum:g}, eta {self.eta:g}"
        if self.method != "ledger":
            return said
        return (
            f"{said}, {self.exchanges} exchanges, theta {self.theta:g}, {self.compression}, then {self.release} rounds of "
            f"{self.release_compression}"
        )


# ---- the ladder ------------------------------------------------------------------------------------------------------

FEDAVG: Final = ((5, 0.95, 0.1), (3, 0.95, 0.1), (10, 0.95, 0.1), (10, 0.98, 0.05), (5, 0.9, 0.2), (10, 0.0, 0.3))
"""Local steps, momentum, eta."""

LEDGER: Final = ((10, 0.95, 0.05, 4, 0.85, "sign:0.1", 8),)
"""Local steps, momentum, eta, exchanges a round, theta, codec, rounds of release: one for all rungs, which at 60 kB beat theta .7
and 1 on validation parts."""

RELEASE: Final = "sign:0.3"
"""In eight rounds it brings the models as near as int4 in five, for 56 % of its bytes (100 rounds, seeds 10 to 19: .9911)."""


def trials(method: str, rung: int) -> list[Setting]:
    """How the budget of a rung may be spent."""
    if method == "fedavg":
        return [Setting(TUNED, method, rung, rung, *rest) for rest in FEDAVG]
    return [
        Setting(TUNED, method, rung, rounds(rung, e, codec, last), steps, momentum, eta, e, theta, codec, RELEASE, last)
        for steps, momentum, eta, e, theta, codec, last in LEDGER
    ]


def rounds(rung: int, exchanges: int, codec: str, release: int) -> int:
    """Of the ledger, for a tenth of what FedAvg's client sends in `rung` rounds."""
    budget = TENTH * rung * (1 - ABSENT) * _size("f32")
    a_round = SERVED * exchanges
    return release + max(1, round((budget - release * a_round * _size(RELEASE)) / (a_round * _size(codec))))


def rungs(method: str) -> Sequence[int]:
    return RUNGS if method == "fedavg" else LEDGER_RUNGS


@lru_cache
def _size(codec: str) -> int:
    return payload_size(codec, PARAMETERS, 0, 4)


# ---- runs ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Found:
    """One setting on some splits, at the end of its rounds."""

    part: str
    """validation or test"""
    seeds: list[int]
    setting: Setting
    shares: list[float]
    """the worst node's accuracy over centralized's, of each seed"""
    sent: list[float]
    """bytes of models a node"""
    messages: list[float]
    """a node"""

    @property
    def mean(self) -> float:
        return float(np.mean(self.shares))

    @property
    def error(self) -> float:
        """Standard error of the mean, were splits independent."""
        return float(np.std(self.shares, ddof=1) / len(self.shares) ** 0.5)

    @property
    def kilobytes(self) -> float:
        return float(np.mean(self.sent)) / 1000

    @property
    def with_envelopes(self) -> float:
        return self.kilobytes + ENVELOPE * float(np.mean(self.messages)) / 1000

    def line(self) -> str:
        where = f"{self.setting.nodes} nodes, {self.setting.method}, rung {self.setting.rung}, {self.part}"
        least = min(self.shares)
        return (
            f"{where}: {self.mean:.4f} +- {self.error:.4f} (least {least:.4f}), {self.kilobytes:.1f} kB; {self.setting}"
        )


def measured(setting: Setting, seeds: Sequence[int], part: str) -> Found:
    """**Randomness**: that of each seed."""
    ends = [_end(setting, seed, *parts(setting.nodes, seed, part)) for seed in seeds]
    shares, sent, messages = (list(one) for one in zip(*ends, strict=True))
    return Found(part, list(seeds), setting, shares, sent, messages)


def _end(setting: Setting, seed: int, sites: Sequence[Site], judged: Data, best: float) -> tuple[float, float, float]:
    """(share, bytes of models a node, messages a node) of one run."""
    question = _asked(setting.nodes, setting.method, setting.rounds)
    given = question.recipe(Ask(setting.method, seed))
    plan = replace(given.plan, steps=setting.steps, momentum=setting.momentum, eta=setting.eta)
    method = replace(given.method, theta=setting.theta) if setting.theta else given.method
    chosen = replace(given, plan=plan, method=method, release=setting.release, exchanges=setting.exchanges)
    run = simulate(
        question.rows.loaded(), nodes=setting.nodes, sites=sites, test=judged, topology=question.meeting(seed),
        rounds=setting.rounds, faults={"dropout": ABSENT}, seed=seed, threads=1, evaluate_every=setting.rounds,
        compression=setting.compression, release_compression=setting.release_compression, **chosen.keywords(),
    )  # fmt: skip
    ends = 1 if setting.method == "fedavg" else 2
    messages = ends * sum(record.exchanges for record in run.records) / run.nodes
    return run.records[-1].worst / best, sum(record.bytes for record in run.records) / run.nodes, messages


@lru_cache(maxsize=32)
def parts(nodes: int, seed: int, part: str) -> tuple[Sequence[Site], Data, float]:
    """Sites, the rows that judge, and centralized's accuracy on them."""
    dealt = _asked(nodes, "ledger", 100).rows
    sites, judged = dealt.federation(seed, None)
    if part == "validation":
        sites, judged = tuning(sites, seed)
    return sites, judged, baselines.centralized(dealt.loaded(), sites).metrics(judged)["accuracy"]


def _asked(nodes: int, method: str, rounds: int) -> Question:
    return Question.of("digits", (method,), nodes=nodes, rounds=rounds)


# ---- what is known, and what it says ---------------------------------------------------------------------------------


class Known:
    """Lines of a results file; what is not in it is measured and written at once, so that a stopped run goes on."""

    def __init__(self, path: Path) -> None:
        self.path = path
        lines = path.read_text("utf-8").splitlines() if path.exists() else []
        read = [json.loads(line) for line in lines]
        self.found = [Found(**{**one, "setting": Setting(**one["setting"])}) for one in read]

    def get(self, setting: Setting, part: str, seeds: Sequence[int]) -> Found | None:
        wanted = (part, list(seeds), setting)
        return next((one for one in self.found if (one.part, one.seeds, one.setting) == wanted), None)

    def measure(self, setting: Setting, part: str, seeds: Sequence[int]) -> None:
        if self.get(setting, part, seeds) is None:
            found = measured(setting, seeds, part)
            self.found.append(found)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(found)) + "\n")
            print(found.line(), flush=True)

    def chosen(self, method: str, rung: int, nodes: int = TUNED) -> Setting:
        """By validation parts, where there is a choice. **Raises**: SystemExit where a trial of the rung is not known."""
        tried = trials(method, rung)
        found = [one for one in (self.get(setting, "validation", VALIDATION) for setting in tried) if one is not None]
        if 1 < len(tried) != len(found):
            raise SystemExit(f"{self.path} lacks a trial of {method}, rung {rung}: run --tune first")
        return replace(best(found).setting if len(tried) > 1 else tried[0], nodes=nodes)

    def ladder(self, nodes: int, method: str, part: str, seeds: Sequence[int]) -> list[Found]:
        """What was chosen at each rung, on these splits; empty unless all rungs are known."""
        found = [self.get(self.chosen(method, rung, nodes), part, seeds) for rung in rungs(method)]
        known = [one for one in found if one is not None]
        return known if len(known) == len(found) else []


def best(tried: Sequence[Found]) -> Found:
    return max(tried, key=lambda one: (one.mean, min(one.shares)))


def reached(ladder: Sequence[Found], errors: float = 0.0) -> Found | None:
    """The lowest rung from which on the mean, less so many standard errors, is at the goal."""
    there = None
    for one in reversed(ladder):
        if one.mean - errors * one.error < GOAL - RESOLVED:
            break
        there = one
    return there


def ratio(ours: Found | None, theirs: Found | None, most: Found, envelopes: bool = False) -> str:
    """How many times as many bytes FedAvg's client sends; `most`: its highest rung, where it is not at the goal."""
    if ours is None:
        return "the ledger is not there"

    def kilobytes(one: Found) -> float:
        return one.with_envelopes if envelopes else one.kilobytes

    times = kilobytes(theirs or most) / kilobytes(ours)
    return f"{'' if theirs else 'more than '}{times:.1f} times"


def table(known: Known, nodes: int) -> Iterator[str]:
    """Shares: mean over splits +- its standard error (least split)."""
    tests = " | ".join(f"test, {said}" for said in TESTS)
    yield f"| | kB a node | validation | {tests} |"
    yield "|---|---|---|---|---|---|"
    for method in ("ledger", "fedavg"):
        for rung in rungs(method):
            yield f"| {' | '.join(_cells(known, nodes, method, rung))} |"


def _cells(known: Known, nodes: int, method: str, rung: int) -> list[str]:
    setting = known.chosen(method, rung, nodes)
    parts = [("validation", VALIDATION), *(("test", seeds) for seeds in TESTS.values())]
    found = [known.get(setting, part, seeds) for part, seeds in parts]
    shown = [f"{one.mean:.4f} +- {one.error:.4f} ({min(one.shares):.4f})" if one else "" for one in found]
    sizes = [f"{one.kilobytes:.1f}" for one in found[1:] if one]
    return [f"{method}, {setting.rounds} rounds", *sizes[:1], *shown]


def verdict(known: Known, nodes: int) -> Iterator[str]:
    """What holds, from the numbers."""
    for said, seeds in TESTS.items():
        ours, theirs = (known.ladder(nodes, method, "test", seeds) for method in ("ledger", "fedavg"))
        if ours and theirs:
            yield f"{nodes} nodes, test parts of {said}: {compared(ours, theirs)}"
    both = [[known.ladder(nodes, method, "test", seeds) for seeds in (FIRST, FRESH)] for method in ("ledger", "fedavg")]
    if all(ladder for ladders in both for ladder in ladders):
        ours, theirs = ([together(*pair) for pair in zip(*ladders, strict=True)] for ladders in both)
        yield f"{nodes} nodes, test parts of seeds 20 to 39 together: {compared(ours, theirs)}"
    ours, theirs = (known.ladder(nodes, method, "validation", VALIDATION) for method in ("ledger", "fedavg"))
    if ours and theirs:
        yield f"{nodes} nodes, promised by the validation parts: {compared(ours, theirs, errors=1.0)}"


def together(one: Found, other: Found) -> Found:
    """The same setting on the splits of both."""
    lists = {name: getattr(one, name) + getattr(other, name) for name in ("seeds", "shares", "sent", "messages")}
    return replace(one, **lists)


def compared(ours: Sequence[Found], theirs: Sequence[Found], errors: float = 0.0) -> str:
    """From how many bytes on each ladder is at the goal, and how many times as many are FedAvg's."""
    own, other = reached(ours, errors), reached(theirs, errors)
    plain, enveloped = (ratio(own, other, theirs[-1], envelopes=with_them) for with_them in (False, True))
    return f"the ledger is {_there(own)}, FedAvg {_there(other)}: {plain}; with envelopes {enveloped}"


def _there(one: Found | None) -> str:
    return f"at {GOAL} from {one.kilobytes:.1f} kB on" if one else "nowhere for good"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tune", action="store_true", help="every trial that the results lack, on validation parts")
    parser.add_argument("--results", type=Path, default=RESULTS, help="read, and gone on with where something lacks")
    parser.add_argument("--nodes", default="16", help="to be measured, with commas between: 16, 100")
    parser.add_argument("--methods", default="ledger,fedavg", help="of which runs are made")
    said = parser.parse_args()
    many, methods, known = list(map(int, said.nodes.split(","))), said.methods.split(","), Known(said.results)
    for method, rung in ((way, rung) for way in methods for rung in rungs(way)):
        if said.tune:
            for setting in trials(method, rung):
                known.measure(setting, "validation", VALIDATION)
            continue
        for nodes, seeds in product(many, TESTS.values()):
            known.measure(known.chosen(method, rung, nodes), "test", seeds)
    for nodes in () if said.tune else many:
        print(*table(known, nodes), "", *verdict(known, nodes), sep="\n")


if __name__ == "__main__":
    main()
