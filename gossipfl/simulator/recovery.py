"""Laws of healing: after the last fault every honest node exchanges again, doubts end, and models come together.

Whoever runs the world says when it has healed (`healed`), when a node has had its time (`due`), and when training was ended
so that only mixing is left (`mixing`). Not here: what may never happen (invariants.py, conservation.py).
"""

from __future__ import annotations

from typing import Final

import numpy as np

from gossipfl.simulator.invariants import Checker
from gossipfl.simulator.witness import Life, Truth, length

AGAIN_S: Final = 420.0
"""Seconds within which a node exchanges again after the last fault: a dead session is noticed after 60 s, a neighbour that
was away is tried again after 60 s, and both may have to happen on both sides, in turn."""


RESETS: Final = 3
"""Times a day that a link may be begun anew."""


class ExchangesAgain(Checker):
    name = "exchanges-again"
    law = f"Within {AGAIN_S:.0f} s after faults stop every honest node with an honest neighbour has exchanged again."

    def __init__(self, truth: Truth) -> None:
        super().__init__(truth)
        self.done: dict[str, int] = {}

    def healed(self, lives: dict[str, Life]) -> None:
        self.done = {name: exchanges(life) for name, life in lives.items()}

    def due(self, lives: dict[str, Life]) -> None:
        for name, life in lives.items():
            if self.lies(name) or is_over(life) or not self.partners(name, lives):
                continue
            if exchanges(life) == self.done.get(name, 0):
                whom = ", ".join(self.partners(name, lives))
                at = life.course.stage if life.course else "-"
                self.broken(name, f"no exchange with {whom} in {AGAIN_S:.0f} s; stage {at}")

    def partners(self, name: str, lives: dict[str, Life]) -> list[str]:
        """Neighbours that must let it in: honest, there, and within their allowance of links begun anew."""
        return [
            peer
            for peer in self.truth.fellows[name].neighbours
            if peer in lives and not self.lies(peer) and not lives[peer].has_left
            and stage(lives[peer]) == stage(lives[name]) and not is_barred(lives[name], lives[peer])
        ]  # fmt: skip


class DoubtsEnd(Checker):
    name = "doubts-end"
    law = "Once all is quiet no exchange between honest nodes that are there is in doubt."

    def over(self, lives: dict[str, Life], quiet: bool) -> None:
        if not quiet:
            return
        for name, life in lives.items():
            for peer, link in life.links.items():
                if peer not in lives or lives[peer].has_left or life.has_left or self.lies(name, peer):
                    continue
                if is_barred(life, lives[peer]):
                    continue
                if link.pending is not None:
                    self.broken(name, f"k {link.pending.k} that it proposed to {peer} is in doubt")
                elif link.answered is not None and link.answered.open:
                    self.broken(name, f"k {link.answered.k} that it answered to {peer} is in doubt")


class StatisticsEnd(Checker):
    name = "statistics-end"
    law = "Where all members are there nodes freeze the same statistics soon after all has healed; in the end nothing is owed."

    def waiting(self, lives: dict[str, Life]) -> list[str]:
        """Those who have not frozen; nobody where somebody has left, lies, or may begin no link anew: it is waited for."""
        if self.truth.caught or any(life.has_left for life in lives.values()):
            return []
        if any(is_barred(life, lives[peer]) for life in lives.values() for peer in life.links):
            return []
        return [name for name, life in lives.items() if life.course and life.course.stage == "statistics"]

    def frozen(self, lives: dict[str, Life]) -> None:
        for name in self.waiting(lives):
            self.broken(name, "has not frozen its statistics")

    def over(self, lives: dict[str, Life], quiet: bool) -> None:
        """What links that are over had brought is given back; every candidate has come round, all have taken the smallest."""
        if quiet:
            self.nothing_owed(lives)
        if not quiet or self.truth.caught or any(life.has_left for life in lives.values()):
            return
        used = {life.course.normalisation for life in lives.values() if life.course} - {b""}
        if len(used) > 1:
            self.broken("", f"{len(used)} different statistics are in use")

    def nothing_owed(self, lives: dict[str, Life]) -> None:
        for name, life in lives.items():
            for peer, link in life.links.items():
                if link.owed and not (self.lies(name) or life.has_left):
                    self.broken(name, f"has not given back what {peer} had brought to its statistics")


class ComesTogether(Checker):
    name = "consensus"
    law = "Once nobody trains, models of those that reach each other come to a quarter of their distance, or within 0.01."

    SHARE = 0.25
    CLOSE = 0.01

    def __init__(self, truth: Truth) -> None:
        super().__init__(truth)
        self.most: list[tuple[list[str], float]] = []
        """(nodes that reach each other, how far apart they may be in the end)"""
        self.reached = False

    def mixing(self, lives: dict[str, Life]) -> None:
        """Where some have finished already, the others cannot move them: then nothing is judged."""
        if not any(is_over(life) for life in lives.values()):
            self.most = [(group, self.SHARE * self.spread(lives, group) + self.CLOSE) for group in self.groups(lives)]

    def groups(self, lives: dict[str, Life]) -> list[list[str]]:
        """Honest nodes that mix models and reach each other over such: what is cut off, or joined by a liar only, is on its
        own."""
        left = {name for name, life in lives.items() if not (self.lies(name) or life.has_left)}
        left -= {name for name in left if (course := lives[name].course) and course.stage == "statistics"}
        found = []
        while left:
            group = [min(left)]
            left.discard(group[0])
            for name in group:
                near = [peer for peer in self.truth.fellows[name].neighbours if peer in left]
                near = [peer for peer in near if not is_barred(lives[name], lives[peer])]
                group += near
                left.difference_update(near)
            found.append(group)
        return found

    def is_near(self, lives: dict[str, Life]) -> bool:
        """Need nobody mix any longer? At once where nothing is judged."""
        self.reached = self.reached or all(self.spread(lives, group) <= most for group, most in self.most)
        return self.reached

    def over(self, lives: dict[str, Life], quiet: bool) -> None:
        if self.is_near(lives):
            return
        for group, most in self.most:
            if (apart := self.spread(lives, group)) > most:
                self.broken("", f"models of {', '.join(group)} are still {apart:.3g} apart, and should have come to {most:.3g}")

    def spread(self, lives: dict[str, Life], group: list[str]) -> float:
        """Largest distance of the model of one of these from the weighted mean of all of them that are still there."""
        there = {name: lives[name].model(self.truth.dtype) for name in group if not lives[name].has_left}
        models = {name: model.astype("float64") for name, model in there.items() if model is not None}
        if not models:
            return 0.0
        total = sum(self.truth.mass(name, "model") for name in models)
        mean = sum(self.truth.mass(name, "model") * model for name, model in models.items()) / total
        return max(length(np.asarray(model - mean)) for model in models.values())


def is_barred(life: Life, other: Life) -> bool:
    """Must the two begin their link anew, or take an exchange back, and has one done so as often as it may within a day?"""
    mine, theirs = life.link(other.name), other.link(life.name)
    aborts = any(link.pending is not None and link.pending.abort for link in (mine, theirs))
    return (aborts or mine.epoch != theirs.epoch) and max(len(mine.resets), len(theirs.resets)) >= RESETS


def exchanges(life: Life) -> int:
    return sum(link.exchanges for link in life.links.values())


def stage(life: Life) -> str:
    return "mixing" if life.course and life.course.stage != "statistics" else "statistics"


def is_over(life: Life) -> bool:
    return life.has_left or (life.course is not None and life.course.stage == "finished")


HEALING_LAWS: Final = (ExchangesAgain, DoubtsEnd, StatisticsEnd, ComesTogether)
