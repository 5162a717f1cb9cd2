"""What goes wrong in rounds, as masks and index tensors: who is there, how many steps it takes, what becomes of an exchange.

All off by default. Each draw has a stream of its own, named by seed, fault, round and node: switching one fault off shifts
no other. Not here: faults of a network in time (the event simulator has those).
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from dataclasses import dataclass, fields, replace
from typing import Any, Final

import numpy as np

from gossipfl.errors import Misuse
from gossipfl.learning.blocks import Vector
from gossipfl.simulator.vectorized.draws import Bits, Integers, ahead, bits, chance, stream, uniform
from gossipfl.simulator.vectorized.meetings import Mask, Meetings
from gossipfl.simulator.vectorized.outages import Outages

COUNTS: Final = ("up_rounds", "down_rounds", "slow_sites", "slow_times", "delay_rounds", "noise_scale")
"""Faults that are no share of anything."""

AHEAD: Final = 2**14
"""So many numbers are drawn at once, for several rounds: a thousand cost less than the calls that draw them."""


@dataclass(frozen=True)
class Faults:
    """Shares lie in [0, 1]; all are chances of independent draws unless said otherwise."""

    dropout: float = 0.0
    """share of nodes that are absent in a round: they neither train nor exchange"""
    up_rounds: float = 0.0
    """mean rounds that a node stays up, geometric; 0: sessions are off"""
    down_rounds: float = 0.0
    """mean rounds that it stays down after that"""
    leave: float = 0.0
    """share of nodes that leave for good, each in a round of its own, evenly over the middle half of the run"""
    join: float = 0.0
    """share of nodes that come late, each in a round of its own, evenly over the first half of the run"""
    lost: float = 0.0
    """share of exchanges that never happen"""
    half: float = 0.0
    """share of exchanges of which only one end, either, applies its half: what exactly-once prevents"""
    stragglers: float = 0.0
    """share of nodes that are slow, the same all along"""
    slowness: float = 0.5
    """share of the local steps that a slow node manages, at least one"""
    slow_sites: tuple[int, ...] = ()
    """nodes that need many rounds of the others for one of theirs: they train in every `slow_times`-th round only and exchange
    in every `slow_times`-th turn (of one exchange a round: in that round), and where they are absent then, in the next one"""
    slow_times: int = 20
    """how many rounds of the others that is"""
    delayed: float = 0.0
    """share of exchanges whose halves are applied later"""
    delay_rounds: int = 1
    """how many rounds later"""
    sign_flip: float = 0.0
    """share of nodes that send their model times -1, the same all along"""
    noise: float = 0.0
    """share of nodes that send their model with noise added, the same all along"""
    noise_scale: float = 1.0
    """standard deviation of that noise"""

    def __post_init__(self) -> None:
        shares = {field.name for field in fields(self)} - set(COUNTS)
        wrong = [f"{name} = {getattr(self, name)} must lie in [0, 1]" for name in sorted(shares)
                 if not 0 <= getattr(self, name) <= 1]  # fmt: skip
        if (self.up_rounds or self.down_rounds) and not (self.up_rounds >= 1 and self.down_rounds >= 1):
            wrong.append("up_rounds and down_rounds are both 1 or more, or both 0")
        if self.delay_rounds < 1 or self.slow_times < 1 or not self.noise_scale >= 0:
            wrong.append("delay_rounds and slow_times must be 1 or more, noise_scale at least 0")
        if self.leave + self.join > 1 or self.sign_flip + self.noise > 1:
            wrong.append("leave + join, and sign_flip + noise, must not exceed 1: no node is both")
        if wrong:
            raise Misuse("Faults: " + "; ".join(wrong))

    @classmethod
    def of(cls, given: Faults | dict[str, Any] | None) -> Faults:
        """**Raises**: Misuse for a name that no fault has."""
        if given is None or isinstance(given, Faults):
            return given or cls()
        known = [field.name for field in fields(cls)]
        if unknown := sorted(set(given) - set(known)):
            raise Misuse(f"unknown faults {unknown}; there are {', '.join(known)}")
        return cls(**given)


class Weather:
    """The faults of one run, round by round. `up` is all that a checkpoint needs of it."""

    def __init__(
        self, faults: Faults, nodes: int, rounds: int, seed: int, outages: Outages | None = None, turns: int = 1
    ) -> None:
        self.faults, self.nodes, self.rounds, self.seed, self.turns = faults, np.arange(nodes), rounds, seed, turns
        self.outages = outages
        self.up: Mask = np.ones(nodes, dtype=bool)
        course = self._drawn("course")
        late = course < faults.join
        gone = course >= 1 - faults.leave
        self.joins = np.where(late, 1 + self._drawn("join") * rounds / 2, 0).astype(np.int64)
        """(N,) first round of each"""
        self.leaves = np.where(gone, rounds / 4 + self._drawn("leave") * rounds / 2, np.inf)
        """(N,) the round in which each is there no more"""
        if outages is not None:
            self.joins = np.maximum(self.joins, outages.joins)
            self.leaves = np.minimum(self.leaves, outages.leaves)
        self.some_leave = bool(np.isfinite(self.leaves).any())
        moves = np.concatenate([self.joins, np.ceil(self.leaves[np.isfinite(self.leaves)])])
        self.moves: list[int] = np.unique(moves).astype(np.int64).tolist()
        """rounds before which somebody joins or leaves"""
        self._members: tuple[int, Mask] = (-1, self.up)
        self._ahead: dict[str, tuple[range, Any]] = {}
        """what was drawn for some rounds at once, by purpose"""
        self.slow_turns = self._slow_turns() if faults.slow_sites else None
        """when slow sites exchange, and when they train"""
        self.is_slow: Mask = self._drawn("straggler") < faults.stragglers
        attack = self._drawn("attack")
        self.flips: Mask = attack < faults.sign_flip
        self.noisy: Mask = attack >= 1 - faults.noise
        self.hostile: Mask = self.flips | self.noisy
        self._liars = np.flatnonzero(self.noisy)
        self._rank = np.cumsum(self.noisy) - 1
        """(N,) the place of each noisy node among these"""

    def _drawn(self, purpose: str, round: int = 0) -> np.ndarray:
        return uniform(stream(self.seed, purpose, round), self.nodes)

    def _chances(self, purpose: str, round: int, *shares: float) -> tuple[Mask, ...]:
        """(N,) whose number of this round lies below each share; drawn for some rounds at once."""
        rounds, drawn = self._ahead.get(purpose, (range(0), ()))
        if round not in rounds:
            span = max(1, AHEAD // len(self.nodes))
            rounds = range(round - round % span, round - round % span + span)
            numbers = ahead(self.seed, purpose, rounds, self.nodes)[..., 0]
            drawn = tuple(chance(numbers, share) for share in shares)
            self._ahead[purpose] = rounds, drawn
        return tuple(mask[round - rounds.start] for mask in drawn)

    def members(self, round: int) -> Mask:
        """(N,) who has joined and not left: the same array until that changes."""
        era = bisect_right(self.moves, round)
        if era != self._members[0]:
            self._members = era, (self.joins <= round) & (round < self.leaves)
        return self._members[1]

    def changes(self, round: int) -> bool:
        """Does anybody join or leave before this round."""
        return bisect_left(self.moves, round) < bisect_right(self.moves, round)

    def present(self, round: int) -> Mask:
        """(N,) who takes part in this round. Sessions go on by one round with each call."""
        faults, here = self.faults, self.members(round)
        if self.slow_turns is not None:
            here = here & (self.slow_turns[0][round].any(axis=0) | ~np.isin(self.nodes, faults.slow_sites))
        if self.outages is not None:
            here = here & self.outages.here(round)
        if faults.up_rounds:
            ends, begins = self._chances("session", round, 1 / faults.up_rounds, 1 / faults.down_rounds)
            self.up = self.up ^ np.where(self.up, ends, begins)
            here = here & self.up
        return here & ~self._chances("dropout", round, faults.dropout)[0] if faults.dropout else here

    def _slow_turns(self) -> tuple[Mask, Mask]:
        """(T, exchanges, N) which turns of a round have which slow site, (T, N) in which rounds it trains: before the first of
        each `exchanges` turns of its own. Absence is that of the round in which it is due: those before are one of its own."""
        slow, faults, turns = np.array(self.faults.slow_sites, dtype=np.int64), self.faults, self.turns
        meets = np.zeros((self.rounds, turns, len(self.nodes)), dtype=bool)
        trains = np.zeros((self.rounds, len(self.nodes)), dtype=bool)
        due, done = np.full(len(slow), faults.slow_times - 1), np.zeros(len(slow), dtype=np.int64)
        for round in range(self.rounds):
            here = self._drawn("dropout", round)[slow] >= faults.dropout
            for turn in range(turns):
                now = here & (round * turns + turn >= due)
                meets[round, turn, slow[now]] = True
                trains[round, slow[now & (done % turns == 0)]] = True
                done += now
                due = np.where(now, round * turns + turn + faults.slow_times, due)
        return meets, trains

    def trains(self, round: int) -> Mask:
        """(N,) who trains, if it takes part: a slow site need not in each of the rounds in which it exchanges."""
        if self.slow_turns is None:
            return np.ones(len(self.nodes), dtype=bool)
        return np.asarray(self.slow_turns[1][round] | ~np.isin(self.nodes, self.faults.slow_sites))

    def meets(self, round: int, turn: int) -> Mask:
        """(N,) who exchanges in this turn of a round, if it takes part."""
        if self.slow_turns is None:
            return np.ones(len(self.nodes), dtype=bool)
        return np.asarray(self.slow_turns[0][round, turn] | ~np.isin(self.nodes, self.faults.slow_sites))

    def steps(self, steps: int, round: int = 0) -> Integers:
        """(N,) local steps of each in a round."""
        known = np.where(self.is_slow, max(1, int(steps * self.faults.slowness)), steps)
        if self.outages is None:
            return known
        return np.minimum(known, np.maximum(1, (steps * self.outages.share(round)).astype(np.int64)))

    def strike(self, met: Meetings, round: int, batch: int = 0) -> Meetings:
        """What becomes of these exchanges. **Randomness**: streams of the faults, named after the lower node."""
        faults = self.faults
        if self.outages is not None:
            met = self.outages.reach(met, round)
        if not (faults.lost or faults.half or faults.delayed):
            return met
        pairs = met.lo * len(self.nodes) + met.hi
        lost, half, side, late = bits(stream(self.seed, "exchange", round, batch), pairs, 4).T
        at_lo, at_hi = met.at_lo, met.at_hi
        if faults.half:
            is_whole, is_low = ~chance(half, faults.half), chance(side, 0.5)
            at_lo, at_hi = _and(at_lo, is_whole | ~is_low), _and(at_hi, is_whole | is_low)
        struck = replace(met, at_lo=at_lo, at_hi=at_hi, late=chance(late, faults.delayed) if faults.delayed else None)
        return struck.only(np.flatnonzero(~chance(lost, faults.lost))) if faults.lost else struck

    def loses(self, nodes: Integers, round: int) -> Mask:
        """Whose message to a server is lost. **Shapes**: (n,)."""
        drawn = uniform(stream(self.seed, "upload", round), nodes)
        return np.asarray(drawn < self.faults.lost)

    def distort(self, round: int) -> Any:
        """What hostile nodes do to the models that they send; None where all are honest.

        Noise is uniform with the given standard deviation: integer bits and one exact scaling, alike on every machine.
        """
        if not self.hostile.any():
            return None

        found: dict[str, Any] = {}

        def sent(name: str, nodes: Integers, rows: Vector) -> tuple[Integers, Vector]:
            if found.get("nodes") is not nodes:  # once for all tensors of a model
                flipped, noisy = np.flatnonzero(self.flips[nodes]), np.flatnonzero(self.noisy[nodes])
                found.update(nodes=nodes, places=np.concatenate([flipped, noisy]), flipped=len(flipped), noisy=nodes[noisy])
            places, flipped = found["places"], found["flipped"]
            own = rows.take(places, axis=0)
            told = np.negative(own)
            if flipped < len(places):
                np.add(own[flipped:], self._noise(name, round, found["noisy"], rows), out=told[flipped:])
            rows[places] = told
            return places, own

        return sent

    def _noise(self, name: str, round: int, nodes: Integers, like: Vector) -> Vector:
        """Of these noisy nodes. **Shapes**: nodes (n,), like (.., size) -> (n, size)."""
        size, purpose = like.shape[1], f"noise {name}"
        span = AHEAD // (len(self._liars) * size)
        if not span:
            return self._scaled(bits(stream(self.seed, purpose, round), nodes, size), like)
        rounds, held = self._ahead.get(purpose, (range(0), None))
        if round not in rounds:
            rounds = range(round - round % span, round - round % span + span)
            held = self._scaled(ahead(self.seed, purpose, rounds, self._liars, size), like)
            self._ahead[purpose] = rounds, held
        return np.asarray(held[round - rounds.start, self._rank[nodes]])

    def _scaled(self, drawn: Bits, like: Vector) -> Vector:
        unit = ((drawn >> np.uint64(11)).astype(np.float64) * 2.0**-53 - 0.5) * 12**0.5
        return np.asarray((unit * self.faults.noise_scale).astype(like.dtype))


def _and(one: Mask | None, other: Mask) -> Mask:
    return other if one is None else one & other
