"""Virtual time and chance: one heap of what is to happen, and a stream of random bits for every purpose and node.

No wall clock, no thread. Draws are made of raw generator bits by comparisons and exact divisions only, so that one seed is
one history on every machine; switching one purpose off shifts no other.
"""

from __future__ import annotations

import gc
import heapq
from collections.abc import Callable
from random import Random
from typing import Any, Final

SECOND: Final = 1_000_000_000
HOUR: Final = 3600 * SECOND

COLLECTED: Final = 20_000
"""Objects between two looks of the garbage collector while a world runs: next to nothing but ended connections is in a circle."""


class Heap:
    """What is to happen, by instant and then by order of asking. `mono` is now, in ns."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.mono = 0
        self.order = 0
        self.heap: list[tuple[int, int, Callable[..., None], tuple[Any, ...]]] = []
        self.streams: dict[tuple[str, str], Random] = {}

    def at(self, when_ns: int, act: Callable[..., None], *what: Any) -> None:
        """At this instant, or now where it is over: time does not go back."""
        if when_ns < self.mono:
            when_ns = self.mono
        self.order += 1
        heapq.heappush(self.heap, (when_ns, self.order, act, what))

    def run(self, seconds: float, until: Callable[[], bool] = lambda: False) -> None:
        """Up to `seconds` more of virtual time, or until `until` holds (asked once a virtual second)."""
        gc.freeze()  # what is here already, most of it imported, stays: not looked at by every full collection
        before = gc.get_threshold()
        gc.set_threshold(COLLECTED, *before[1:])
        try:
            self._run(self.mono + int(seconds * SECOND), until)
        finally:
            gc.set_threshold(*before)
            gc.unfreeze()

    def _run(self, end: int, until: Callable[[], bool]) -> None:
        ask, heap, pop = self.mono, self.heap, heapq.heappop
        while heap and heap[0][0] <= end:
            self.mono, _, act, what = pop(heap)
            act(*what)
            if self.mono >= ask:
                ask = self.mono + SECOND
                if until():
                    return
        self.mono = end

    def stream(self, purpose: str, name: str = "") -> Random:
        """The random stream of one purpose at one node."""
        found = self.streams.get((purpose, name))
        if found is None:
            found = self.streams[purpose, name] = Random(f"{self.seed}/{purpose}/{name}")
        return found


def exponential(rng: Random) -> float:
    """Exponential with mean 1, without a logarithm.

    A run of falling uniforms of odd length keeps its first as the fraction; each run of even length adds 1.
    **Source**: von Neumann, "Various techniques used in connection with random digits" (1951).
    """
    whole = 0
    while True:
        first = last = rng.getrandbits(53)
        length = 1
        while (drawn := rng.getrandbits(53)) < last:
            last, length = drawn, length + 1
        if length % 2:
            return whole + first / 2**53
        whole += 1


def heavy(rng: Random, share: float) -> int:
    """Twice as much again with probability `share`, and again: a Pareto tail in powers of two. At most 2^10."""
    doublings = 0
    while doublings < 10 and rng.random() < share:
        doublings += 1
    return 1 << doublings
