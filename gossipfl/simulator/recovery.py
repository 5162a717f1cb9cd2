"""Laws of healing: after the last fault every honest node exchanges again, doubts end, and models come together.

Whoever runs the world says when it has healed (`healed`), when a node has had its time (`due`), and when training was ended
so that only mixing is left (`mixing`). Not here: what may never happen (invariants.py, conservation.py).
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np

from gossipfl.simulator.invariants import Checker
from gossipfl.simulator.witness import Life, Truth, length

AGAIN_S: Final = 420.0
"""Seconds within which a node exchanges again after the last fault: a dead session is noticed after 60 s, a neighbour that
was away is tried again after 60 s, and both may have to happen on both sides, in turn."""


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
            if peer in lives and not self.lies(peer) and not lives[peer].has_left and len(lives[peer].link(name).resets) < 3
            and stage(lives[peer]) == stage(lives[name]) and len(lives[name].link(peer).resets) < 3
        ]  # fmt: skip


class DoubtsEnd(Checker):
    name = "doubts-end"
    law = "Once all is quiet no exchange between honest nodes that are there is in doubt."

    def over(self, lives: dict[str, Life], quiet: bool) -> None:
        if not quiet:
            return
        for name, life in lives.items():
            for peer, link in life.links.items():
                gone = peer not in lives or lives[peer].has_left or life.has_left
                if gone or self.lies(name, peer) or life.scarred or lives[peer].scarred:
                    continue
                if link.pending is not None:
                    self.broken(name, f"k {link.pending.k} that it proposed to {peer} is in doubt")
                elif link.answered is not None and link.answered.open:
                    self.broken(name, f"k {link.answered.k} that it answered to {peer} is in doubt")


class ComesTogether(Checker):
    name = "consensus"
    law = "Once nobody trains, exchanges bring the models to a quarter of their distance, or within 0.01."

    SHARE = 0.25
    CLOSE = 0.01

    def __init__(self, truth: Truth) -> None:
        super().__init__(truth)
        self.most = math.inf
        self.reached = False

    def mixing(self, lives: dict[str, Life]) -> None:
        """Where some have finished already, the others cannot move them: then nothing is judged."""
        if not any(is_over(life) for life in lives.values()):
            self.most = self.SHARE * self.spread(lives) + self.CLOSE

    def is_near(self, lives: dict[str, Life]) -> bool:
        """Need nobody mix any longer? At once where nothing is judged."""
        self.reached = self.reached or self.spread(lives) <= self.most
        return self.reached

    def over(self, lives: dict[str, Life], quiet: bool) -> None:
        if not self.is_near(lives) and self.most < math.inf:
            self.broken("", f"models are still {self.spread(lives):.3g} apart, and should have come to {self.most:.3g}")

    def spread(self, lives: dict[str, Life]) -> float:
        """Largest distance of an honest node's model from the weighted mean of all."""
        there = {name: life.model(self.truth.dtype) for name, life in lives.items() if not self.lies(name) and not life.has_left}
        models = {name: model.astype("float64") for name, model in there.items() if model is not None}
        if not models:
            return 0.0
        total = sum(self.truth.mass(name, "model") for name in models)
        mean = sum(self.truth.mass(name, "model") * model for name, model in models.items()) / total
        return max(length(np.asarray(model - mean)) for model in models.values())


def exchanges(life: Life) -> int:
    return sum(link.exchanges for link in life.links.values())


def stage(life: Life) -> str:
    return "mixing" if life.course and life.course.stage != "statistics" else "statistics"


def is_over(life: Life) -> bool:
    return life.has_left or (life.course is not None and life.course.stage == "finished")


HEALING_LAWS: Final = (ExchangesAgain, DoubtsEnd, ComesTogether)
