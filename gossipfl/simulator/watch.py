"""The historian of a World: an observer that writes down who was up, who exchanged, what went wrong; and how good models are.

It sees what any observer sees, and changes nothing. Laws are checked elsewhere (simulator.invariants).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import msgspec
import numpy as np

from gossipfl.protocol import events as ev
from gossipfl.protocol.peer import Course
from gossipfl.recipe import decoded
from gossipfl.simulator.network import SECOND, Observer
from gossipfl.simulator.results import consensus
from gossipfl.simulator.run import Happening, Life, Sample, Span, State
from gossipfl.simulator.trouble import STORM, STORM_S
from gossipfl.store.errors import StateError
from gossipfl.tasks import fitting

if TYPE_CHECKING:
    from gossipfl.simulator.faults import Strike
    from gossipfl.simulator.federation import Federation
    from gossipfl.simulator.network import Node, World
    from gossipfl.store import Store

HAPPENINGS_MAX: Final = 20_000
"""Written down; more are only counted."""

STATES: Final[Mapping[str, State]] = {"partition": "apart", "pause": "paused"}
"""Faults that put whom they name into a state; a crash is seen by itself."""

LASTING: Final = frozenset(
    {"refuse", "stall", "drip", "one-way", "partition", "pause", "straggler", "disk-full", "hostile", "crash"}
)
"""Strikes that last as long as they say."""

BY_CHANCE: Final = LASTING | {"churn", "late"}
"""What of that which happens by chance lasts until it is told to be over, or to the end."""

LATE_S: Final = 10.0
"""Who starts later was not there from the beginning."""

AIMED: Final = frozenset({"cut", "stall", "half-open", "drip", "duplicate", "crash-saving"})
"""Strikes at connections, of which soon after an exchange none is open, and at commits: without one they strike nothing."""

DOWN: Final[Mapping[str, float]] = {
    "crash": 1.0, "crash-saving": 3600.0, "restart-storm": 60.0, "blackout": 1.0, "disk-full": 3600.0, "io-error": 3600.0,
    "bit-rot": 3600.0, "state-lost": 1.0, "churn": 1.0,
}  # fmt: skip
"""Faults of which a process may die, within so many seconds; they are over when it runs again."""


class Historian(Observer):
    """Lives, happenings and samples of one run."""

    def __init__(self, made: Federation, strikes: Sequence[Strike], until_s: float = math.inf) -> None:
        self.made = made
        self.until_s = until_s
        """when all heals"""
        rows = {site.name: len(site.train) for site in made.sites}
        member = made.membership.member
        self.lives = {
            name: Life(name, rows.get(name, 0), member(name).role, up=False) for name in made.membership.active
        }
        self.happenings: list[Happening] = []
        self.samples: list[Sample] = []
        self.strikes = strikes
        self.hits: set[int] = set()
        """those that have struck somebody"""
        self.down: dict[str, float] = {}
        self.open: dict[tuple[str, tuple[str, ...]], list[Happening]] = {}
        self.exchanges = 0

    # ---- hooks ---------------------------------------------------------------------------------------------------

    def booted(self, world: World, node: Node) -> None:
        life, now = self.lives[node.name], world.mono / SECOND
        if not life.boots and now > LATE_S:
            life.spans.append(Span(0.0, now, "not yet"))
        if (since := self.down.pop(node.name, None)) is not None:
            life.spans.append(Span(since, now, "down"))
            self.over(node.name, now)
        life.boots += 1

    def crashed(self, world: World, node: Node, before: Store, after: Store) -> None:
        self.down.setdefault(node.name, world.mono / SECOND)

    def did(self, world: World, node: Node, command: ev.Command) -> None:
        if isinstance(command, ev.Commit):
            for fact in command.facts:
                self.noted(world, node, fact)
        elif isinstance(command, ev.Note):
            self.noted(world, node, command)

    def noted(self, world: World, node: Node, fact: ev.Note) -> None:
        life, now = self.lives[node.name], world.mono / SECOND
        if fact.kind == "ingress":
            life.exchanges.append(now)
            self.exchanges += fact.fields["role"] == "reply"
        elif fact.kind in ("start", "stage") and life.stage != fact.fields["stage"]:
            life.stages.append((now, fact.fields["stage"]))
        elif fact.kind == "statistics":
            life.stages.append((now, "training"))

    def wire(self, world: World, sender: str, receiver: str, size: int) -> None:
        self.lives[sender].sent += size
        self.lives[receiver].received += size

    def struck(self, world: World, kind: str, names: tuple[str, ...], detail: str) -> None:
        now = world.mono / SECOND
        base = kind.removesuffix("-end")
        if base != kind:
            begun = self.open.get((base, names)) or self.open.get((base, names[:1])) or []
            if begun:
                self.close(begun.pop(0), now)
            return
        if self.is_planned(base, names, now):
            return
        concerned = alone(world, names) or names if base == "partition" else names
        happening = Happening(base, now, now, concerned, detail)
        if len(self.happenings) < HAPPENINGS_MAX:
            self.happenings.append(happening)
            self.open.setdefault((base, names), []).append(happening)

    # ---- bookkeeping ---------------------------------------------------------------------------------------------

    def is_planned(self, kind: str, names: tuple[str, ...], now: float) -> bool:
        """Is this (a part of) a strike of the scenario: of its kind, at its time, at one of its nodes?"""
        mine = {
            number
            for number, strike in enumerate(self.strikes)
            if kind in (strike.kind, "crash" if strike.kind in DOWN else strike.kind)
            and -1e-3 <= now - strike.at_s <= DOWN.get(strike.kind, 0.0) + 1e-3
            and (not strike.nodes or not set(names).isdisjoint(strike.nodes))
        }
        self.hits |= mine
        return bool(mine)

    def close(self, happening: Happening, now: float) -> None:
        happening.end_s = now
        if (state := STATES.get(happening.kind)) is not None:
            for name in happening.nodes:
                self.lives[name].spans.append(Span(happening.begin_s, now, state))

    def over(self, name: str, now: float) -> None:
        """A node is up again: what brought it down is over."""
        for happening in reversed(self.happenings):
            if now - happening.begin_s > 24 * 3600:
                break
            if happening.kind in DOWN and name in happening.nodes and happening.end_s == happening.begin_s:
                happening.end_s = now

    def planned(self, end: float) -> list[Happening]:
        """Every strike of the scenario, with when it was over."""
        found = []
        for number, strike in enumerate(self.strikes):
            begin, downs = strike.at_s, []
            until = min(end, begin + strike.seconds) if strike.kind in LASTING else begin
            shape = str(strike.value or "halves") if strike.kind == "partition" and not strike.nodes else ""
            names = strike.nodes or tuple(self.lives)[: 1 if shape == "isolated" else None]
            for life in (self.lives[name] for name in names):
                downs += self.downs(life, strike)
            until = max([until, *(one.end_s for one in downs)])
            if strike.kind == "crash-saving":
                begin = min((one.begin_s for one in downs), default=begin)
            detail = f"{strike.value:g} s" if strike.kind == "clock-jump" else shape or str(strike.value or "")
            missed = strike.kind in AIMED and number not in self.hits
            happening = Happening(strike.kind, begin, until, names, detail, number, missed)
            if begin < end:
                self.close(happening, until)
                found.append(happening)
        return found

    @staticmethod
    def downs(life: Life, strike: Strike) -> list[Span]:
        """The times that a node was down because of a strike: of a storm each, else the first after it."""
        storm = strike.kind == "restart-storm"
        within = STORM_S * (float(strike.value or STORM) + 0.5) if storm else DOWN.get(strike.kind, -1.0)
        found = [one for one in life.spans if one.state == "down" and -1e-3 <= one.begin_s - strike.at_s <= within]
        return found if storm else found[:1]

    def finish(self, world: World) -> None:
        """The last spans, and what the nodes say of themselves."""
        end = world.mono / SECOND
        for happenings in self.open.values():
            for happening in happenings:
                if happening.kind in BY_CHANCE:
                    self.close(happening, min(end, self.until_s) if happening.kind == "straggler" else end)
        for name, node in world.nodes.items():
            life = self.lives[name]
            life.up, life.hostile = node.alive, name in world.trouble.hostile
            life.local_rounds = node.peer.local_round if node.boots else 0
            if name in self.down:
                life.spans.append(Span(self.down[name], end, "left" if node.gone else "down"))
            elif not node.boots:
                life.spans.append(Span(0.0, end, "not yet"))
        self.happenings = sorted([*self.happenings, *self.planned(end)], key=lambda one: one.begin_s)

    # ---- quality -------------------------------------------------------------------------------------------------

    def sample(self, world: World) -> Sample:
        """How good every node's model is now."""
        honest = [name for name, node in world.nodes.items() if node.boots and name not in world.trouble.hostile]
        models = {name: self.model(world, name) for name in honest}
        known = {name: found for name, found in models.items() if found is not None}
        metric = self.made.task.metric
        quality = {name: self.judged(vector, frozen).get(metric, math.nan) for name, (vector, frozen) in known.items()}
        here = [name for name in known if not self.lives[name].left]
        masses = [self.made.membership.mass(name) for name in here]
        apart = consensus([known[name][0] for name in here], masses) if here else math.nan
        sent = sum(life.sent for life in self.lives.values())
        found = Sample(world.mono / SECOND, quality, apart, self.exchanges, sent)
        self.samples.append(found)
        return found

    def judged(self, vector: Any, frozen: bytes) -> dict[str, float]:
        """Every metric on the common test rows; none before the statistics are frozen."""
        task = self.made.task
        if task.standardise and task.features and not frozen:
            return {}
        return fitting.evaluate(task, fitting.layout_of(task), vector, decoded(frozen), self.made.test)

    @staticmethod
    def model(world: World, name: str) -> tuple[Any, bytes] | None:
        """(model, encoded statistics): of a running node as its core names it, of another as its disk has it; None where it
        is not started or its disk does not read."""
        node = world.nodes[name]
        try:
            if node.alive:
                return np.array(world.model(name)), node.peer.frozen
            row = node.store.load().get(("course", name))
            if row is None:
                return None
            course = msgspec.msgpack.decode(row, type=Course)
            return np.array(node.store.files.array(course.model, node.spec.bench.dtype)), course.normalisation
        except StateError:
            return None


def alone(world: World, names: Sequence[str]) -> tuple[str, ...]:
    """Of a partition's nodes the one that reaches none of the others; none where it is no partition of one node."""
    cut = [name for name in names if all(world.way(name, other).walls for other in names if other != name)]
    return tuple(cut) if len(cut) == 1 else ()
