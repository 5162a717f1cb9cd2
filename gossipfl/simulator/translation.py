"""A scenario's faults in time, said in rounds: who is away, slow, late or cut off in which; and what has no meaning there.

A round is a moment, `round_s` virtual seconds after the one before: whoever is down, or cut off, at that moment misses it, and
what is over before the next moment has no effect. Every fault is either translated or named in a note; none is passed over.
Not here: what the engine makes of it (simulator.vectorized.outages).
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final
from zlib import crc32

import numpy as np

from gossipfl.simulator.faults import CLASSES
from gossipfl.simulator.run import Happening
from gossipfl.simulator.scenario import QUIET, round_seconds
from gossipfl.simulator.vectorized.meetings import Floats, Links
from gossipfl.simulator.vectorized.outages import Outages

if TYPE_CHECKING:
    from gossipfl.simulator.faults import Faults
    from gossipfl.simulator.scenario import At, Scenario

STORM_S: Final = 60.0
"""Of a restart storm, as the event engine has it."""

TOLD: Final = 2000
"""Faults by chance that are kept one by one, with name and time; beyond it they are counted."""

MEANINGLESS: Final = {
    "cut": "an exchange that is cut is made again before the next round",
    "refused": "a dial that is refused is tried again before the next round",
    "refuse": "a dial that is refused is tried again before the next round",
    "half-open": "a dead connection is noticed before the next round",
    "clock": "rounds have no clocks",
    "clock-jump": "rounds have no clocks",
    "io-error": "rounds have no disks",
    "bit-rot": "rounds have no disks",
    "duplicate": "rounds have no messages",
    "hostile": "the protocol refuses such lies, and rounds have none; [rounds] sign_flip and noise are attacks on "
    "the mixing itself",
}
"""Faults that no round can show, and why."""

AS_HALVES: Final = "a partition of shape ring is played as one of halves"
NO_TAIL: Final = "straggler_tail is left out: a straggler is straggler_factor times slower in every round"

AWAY: Final = {"crash": "down_s", "pause": "pause_s", "disk-full": "disk_full_s", "restart-storm": ""}
"""Classes by chance at single nodes, and the option with their mean length."""

CLOSED: Final = {"stall": "stall_s", "drip": "drip_s", "one-way": "one_way_s"}
"""Classes by chance at single links."""


@dataclass
class Translated:
    """What goes wrong in rounds, who is to be shown where, and what has to be said."""

    outages: Outages
    happenings: list[Happening]
    counts: Counter[str]
    """how often each kind hit a round"""
    notes: list[str]
    missing: frozenset[str]
    """kinds that were asked for and have no meaning in rounds"""


@dataclass
class Translator:
    """Collects spans. `links` None: everybody may meet everybody."""

    names: Sequence[str]
    round_s: float
    rounds: int
    seed: int
    links: Links | None = None
    away: list[tuple[int, int, int]] = field(default_factory=list)
    cut: list[tuple[int, int, int, int]] = field(default_factory=list)
    apart: list[tuple[int, int, np.ndarray]] = field(default_factory=list)
    slow: list[tuple[int, int, int, float]] = field(default_factory=list)
    happenings: list[Happening] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    short: Counter[str] = field(default_factory=Counter)
    """kinds that were over before the next round began"""
    missing: set[str] = field(default_factory=set)
    simplified: set[str] = field(default_factory=set)
    """sentences: what is played more plainly than the event engine does"""

    def __post_init__(self) -> None:
        self.joins, self.leaves = np.zeros(len(self.names), np.int64), np.full(len(self.names), np.inf)
        self.places = {name: place for place, name in enumerate(self.names)}

    # ---- moments ----------------------------------------------------------------------------------------------------

    @property
    def end_s(self) -> float:
        return self.rounds * self.round_s

    def span(self, begin_s: float, end_s: float) -> tuple[int, int]:
        """The rounds that begin within it."""
        return math.ceil(begin_s / self.round_s - 1e-9), math.ceil(min(end_s, self.end_s) / self.round_s - 1e-9)

    def happened(self, kind: str, begin_s: float, end_s: float, nodes: Sequence[int], planned: int | None = None) -> bool:
        """Tell of it, if it touches a round."""
        first, last = self.span(begin_s, end_s)
        if first >= last and kind != "leave":
            self.short[kind] += 1
            return False
        self.counts[kind] += 1
        if planned is not None or len(self.happenings) < TOLD:
            concerned = tuple(self.names[node] for node in nodes)
            self.happenings.append(Happening(kind, begin_s, min(end_s, self.end_s), concerned, planned=planned))
        return True

    def goes(self, kind: str, node: int, begin_s: float, end_s: float) -> None:
        """One node is away."""
        if self.happened(kind, begin_s, end_s, [node]):
            self.away.append((node, *self.span(begin_s, end_s)))

    def generator(self, kind: str) -> np.random.Generator:
        """A stream for each class, so that one switched off shifts no other."""
        return np.random.Generator(np.random.PCG64([self.seed, crc32(kind.encode())]))

    # ---- by chance --------------------------------------------------------------------------------------------------

    def chance(self, faults: Faults) -> None:
        """Everything of [faults]."""
        until_s = min(self.end_s, faults.until_hours * 3600)
        on = [kind for kind in CLASSES if not faults.are_off(kind)]
        self.missing.update(kind for kind in on if kind in MEANINGLESS)
        if "straggler" in on and faults.straggler_tail:
            self.simplified.add(NO_TAIL)
        if "partition" in on and faults.partition_shape in ("ring", "any"):
            self.simplified.add(AS_HALVES)
        for kind, option in AWAY.items():
            if kind in on:
                length = getattr(faults, option) if option else STORM_S
                for node, begin_s, end_s in self._spans(kind, getattr(faults, CLASSES[kind][0]), length, until_s):
                    self.goes(kind, node, begin_s, end_s)
        for kind, option in CLOSED.items():
            if kind in on:
                self._close(kind, getattr(faults, CLASSES[kind][0]), getattr(faults, option), until_s)
        if "blackout" in on:
            self._blackout(faults, until_s)
        if "partition" in on:
            self._part(faults, until_s)
        if "churn" in on:
            self._churn(faults, until_s)
        for kind, share, hours, rounds in (
            ("late", faults.late_share, faults.late_hours, self.joins),
            ("leave", faults.leave_share, faults.leave_hours, self.leaves),
        ):
            if kind in on:
                self._once(kind, share, hours * 3600, rounds)

    def _spans(self, kind: str, per_hour: float, mean_s: float, until_s: float) -> Iterator[tuple[int, float, float]]:
        """(node, begin, end) of a Poisson process at each node, with exponential lengths, healed at `until_s`."""
        rng, nodes = self.generator(kind), len(self.names)
        often = rng.poisson(per_hour * until_s / 3600, nodes)
        who = np.repeat(np.arange(nodes), often)
        begins, lengths = rng.uniform(0, until_s, len(who)), rng.exponential(mean_s, len(who))
        for node, begin_s, length in zip(who.tolist(), begins.tolist(), lengths.tolist(), strict=True):
            yield node, begin_s, min(begin_s + length, until_s)

    def _close(self, kind: str, per_hour: float, mean_s: float, until_s: float) -> None:
        """A link of a node is closed: which, at random."""
        rng = self.generator(f"{kind} to")
        starts, neighbour = (None, None) if self.links is None else self.links.neighbours()[:2]
        for node, begin_s, end_s in self._spans(kind, per_hour, mean_s, until_s):
            drawn = float(rng.random())
            if starts is None or neighbour is None:
                other = (node + 1 + int(drawn * (len(self.names) - 1))) % len(self.names)
            elif (degree := int(starts[node + 1] - starts[node])) > 0:
                other = int(neighbour[starts[node] + int(drawn * degree)])
            else:
                continue
            if self.happened(kind, begin_s, end_s, [node, other]):
                self.cut.append((node, other, *self.span(begin_s, end_s)))

    def _blackout(self, faults: Faults, until_s: float) -> None:
        rng = self.generator("blackout")
        for begin_s in np.sort(rng.uniform(0, until_s, rng.poisson(faults.blackout_per_hour * until_s / 3600))).tolist():
            lengths = rng.exponential(faults.down_s, len(self.names)).tolist()
            if self.happened("blackout", begin_s, begin_s + max(lengths), range(len(self.names))):
                self.away += [(node, *self.span(begin_s, begin_s + length)) for node, length in enumerate(lengths)]

    def _part(self, faults: Faults, until_s: float) -> None:
        rng, at = self.generator("partition"), 0.0
        while (at := at + float(rng.exponential(3600 / faults.partition_per_hour))) < until_s:
            end_s = min(at + float(rng.exponential(faults.partition_s)), until_s)
            alone = faults.partition_shape == "isolated" or (faults.partition_shape == "any" and rng.random() < 0.5)
            order = rng.permutation(len(self.names))
            self.separate("partition", order[: 1 if alone else len(order) // 2].tolist(), at, end_s)
            at = end_s

    def _churn(self, faults: Faults, until_s: float) -> None:
        traced: dict[str, list[tuple[float, float]]] = {}
        for name, begin, end in faults.sessions:
            traced.setdefault(name, []).append((begin * 3600, end * 3600))
        for name, ups in traced.items():
            at = 0.0
            for begin_s, end_s in [*sorted(ups), (math.inf, math.inf)]:
                if begin_s > at:
                    self.goes("churn", self.places[name], at, min(begin_s, self.end_s))
                at = max(at, end_s)
        rng = self.generator("churn")
        for node, name in enumerate(self.names if faults.on_hours else ()):
            at = float(rng.exponential(faults.on_hours)) * 3600
            while at < until_s:
                end_s = min(at + float(rng.exponential(faults.off_hours)) * 3600, until_s)
                if name not in traced:
                    self.goes("churn", node, at, end_s)
                at = end_s + float(rng.exponential(faults.on_hours)) * 3600

    def _once(self, kind: str, share: float, within_s: float, rounds: Floats | np.ndarray) -> None:
        """A share of the nodes comes late, or leaves, at a time of its own."""
        rng = self.generator(kind)
        chosen, times = rng.random(len(self.names)) < share, rng.uniform(0, within_s, len(self.names))
        for node in np.flatnonzero(chosen).tolist():
            at = self.span(times[node], self.end_s)[0]
            if at < self.rounds:
                rounds[node] = max(at, 1)
                self.happened(kind, float(times[node]) if kind == "leave" else 0.0, float(times[node]), [node])

    # ---- at stated times ---------------------------------------------------------------------------------------------

    def planned(self, number: int, one: At, steps: float, message_bytes: int) -> None:
        """One [[at]]. `steps`: local steps that a node manages in a round's time, over those of a round."""
        nodes = [self.places[name] for name in one.nodes] or list(range(len(self.names)))
        begin_s, end_s = one.hour * 3600, one.hour * 3600 + one.seconds
        kind = one.kind
        if kind in MEANINGLESS:
            self.missing.add(kind)
        elif kind == "leave":
            if self.happened(kind, begin_s, begin_s, nodes, number):
                self.leaves[nodes] = np.minimum(self.leaves[nodes], max(1, self.span(begin_s, self.end_s)[0]))
        elif kind == "straggler":
            if self.happened(kind, begin_s, end_s, nodes, number):
                share = min(1.0, steps / float(one.value or 20.0))
                self.slow += [(node, *self.span(begin_s, end_s), share) for node in nodes]
        elif kind == "partition":
            if one.value == "ring" and not one.nodes:
                self.simplified.add(AS_HALVES)
            chosen = nodes if one.nodes else nodes[: 1 if one.value == "isolated" else len(nodes) // 2]
            self.separate(kind, chosen, begin_s, end_s, number)
        elif kind in CLOSED:
            if kind == "drip" and message_bytes / float(one.value or 200.0) < self.round_s:
                self.short[kind] += 1
            elif self.happened(kind, begin_s, end_s, nodes, number):
                group = np.zeros(len(self.names), np.int64)
                group[nodes] = 1 + np.arange(len(nodes))
                self.apart.append((*self.span(begin_s, end_s), group))
        else:
            end_s = begin_s + STORM_S if kind == "restart-storm" else end_s
            if self.happened(kind, begin_s, end_s, nodes, number):
                self.away += [(node, *self.span(begin_s, end_s)) for node in nodes]

    def separate(self, kind: str, nodes: Sequence[int], begin_s: float, end_s: float, planned: int | None = None) -> None:
        """These and the others do not reach each other."""
        if self.happened(kind, begin_s, end_s, nodes, planned):
            group = np.zeros(len(self.names), np.int64)
            group[list(nodes)] = 1
            self.apart.append((*self.span(begin_s, end_s), group))

    # ---- all of it --------------------------------------------------------------------------------------------------

    def done(self, pace: Floats) -> Translated:
        outages = Outages.none(
            len(self.names),
            away=np.array(self.away, np.int64).reshape(-1, 3),
            cut=np.array(self.cut, np.int64).reshape(-1, 4),
            apart=tuple(self.apart),
            slow=np.array([one[:3] for one in self.slow], np.int64).reshape(-1, 3),
            slow_share=np.array([one[3] for one in self.slow], np.float64),
            joins=self.joins,
            leaves=self.leaves,
            pace=pace,
        )
        notes = []
        if self.missing:
            reasons: dict[str, list[str]] = {}
            for kind in sorted(self.missing):
                reasons.setdefault(MEANINGLESS[kind], []).append(kind)
            said = "; ".join(f"{', '.join(kinds)}: {reason}" for reason, kinds in reasons.items())
            notes.append(f"left out, without a meaning in rounds: {said}")
        if self.short:
            said = ", ".join(f"{count} {kind}" for kind, count in sorted(self.short.items()))
            notes.append(f"between two rounds ({self.round_s:g} s), or after the last, hence without effect: {said}")
        notes += sorted(self.simplified)
        return Translated(
            outages, sorted(self.happenings, key=lambda one: one.begin_s), self.counts, notes, frozenset(self.missing)
        )


def translate(
    scenario: Scenario, names: Sequence[str], rounds: int, links: Links | None, message_bytes: int
) -> Translated:
    """All faults of a scenario as the engine of rounds takes them. `names`: of the nodes, in their order."""
    study: dict[str, Any] = scenario.changes_of_study()
    round_s = round_seconds(scenario)
    faults, nodes = scenario.options_of_faults(), scenario.nodes
    made = Translator(names, round_s, rounds, scenario.seed, links)
    if scenario.faults.until_hours is None:  # the end of the rounds may come long before that of the hours
        quiet = QUIET * rounds * round_s / 3600
        faults = dataclasses.replace(faults, until_hours=min(faults.until_hours, quiet))
    made.chance(faults)
    in_time = round_s / (nodes.step_s * study.get("local_steps", 10))
    for number, one in enumerate(scenario.at):
        made.planned(number, one, in_time * nodes.speeds.get(one.nodes[0], 1.0) if one.nodes else in_time, message_bytes)
    pace = np.array([nodes.speeds.get(name, 1.0) for name in names]) * in_time
    if faults.straggler_share:
        slow = made.generator("straggler").random(len(names)) < faults.straggler_share
        pace = np.where(slow, pace / faults.straggler_factor, pace)
        if slow.any():
            for node in np.flatnonzero(slow).tolist():
                made.happened("straggler", 0.0, made.end_s, [node])
    translated = made.done(np.minimum(pace, 1.0))
    if faults.straggler_share or nodes.speeds:
        late = int((pace < 1).sum())
        who = f"{late} nodes are too slow" if late else "nobody is too slow"
        translated.notes.append(f"{who} for all local steps within a round of {round_s:g} s")
    return translated
