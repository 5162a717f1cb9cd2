"""Combining models of a round: disjoint pairs in place, any edges through one displacement, sparse products.

The arithmetic is that of gossipfl.learning.mixing and .correction, on many exchanges at once, a chunk at a time so that
temporaries stay in cache. Every combination is a displacement d_i = sum_j (theta_ij / m_i) (y_j - y_i): the mass-weighted
sum of models does not change, and booking -kappa d_i as correction keeps the mass-weighted sum of F at zero.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import torch

from gossipfl.errors import Misuse
from gossipfl.learning import correction, mixing
from gossipfl.learning.blocks import Vector, row_norms
from gossipfl.simulator.vectorized.draws import Integers
from gossipfl.simulator.vectorized.meetings import Floats, Links, Mask, Meetings
from gossipfl.simulator.vectorized.replicas import Replicas
from gossipfl.simulator.vectorized.state import Blocks, State

CHUNK_BYTES: Final = 2 * 2**20
"""Of the models that a chunk of exchanges reads: with its temporaries it fits a second-level cache and part of the third."""

NOBODY: Final = np.empty(0, dtype=np.int64)

Distort = Callable[[str, Integers, Vector], tuple[Integers, Vector]]
"""(tensor, nodes, what they would send) -> changed in place: what hostile nodes send instead. Comes back: their places, and
the rows that they hold themselves"""

Mapper = Callable[[Callable[[Any], None], list[Any]], None]
"""runs a function on every item, perhaps in threads"""


@dataclass(frozen=True)
class Terms:
    """On which terms a round's exchanges are made; see learning.correction. kappa 0 books nothing."""

    kappa: float = 0.0
    leak: float = 0.0
    cap: float = 0.0
    """links together may hold this many times what the gradients can explain, 0: no cap"""
    tau: Floats | None = None
    """(N,) the largest difference that each node takes in; None: any"""

    @property
    def needs_flows(self) -> bool:
        """Must every link remember its own flow."""
        return self.kappa > 0 and (self.leak > 0 or self.cap > 0)


@dataclass
class Late:
    """Halves on their way: displacements that are applied when their round has come."""

    due: int
    steps: list[tuple[str, str, Integers, Vector]]
    """(model or F, tensor, nodes, displacement)"""
    is_once: bool = False
    """does no node stand twice among those of a displacement"""


@dataclass(frozen=True)
class Ends:
    """Both ends of E exchanges: of the lower nodes first. **Shapes**: nodes (2 E,), skipped (s,), later (l,)."""

    nodes: Integers
    skipped: Integers
    """nodes whose halves are not applied now"""
    places: Integers
    """of the skipped ones, among all"""
    later: Integers
    """nodes whose halves are applied after a delay"""
    pairs: Integers
    """the exchange of each of these"""
    lower: int
    """how many of these are lower ends: they come first"""

    @classmethod
    def of(cls, met: Meetings) -> Ends:
        nodes, places, later = np.concatenate([met.lo, met.hi]), NOBODY, NOBODY
        if met.at_lo is not None or met.at_hi is not None:
            applied = (np.ones(len(met), dtype=bool) if half is None else half for half in (met.at_lo, met.at_hi))
            there = np.concatenate(list(applied))
            if met.late is not None:
                late = np.concatenate([met.late, met.late])
                later = np.flatnonzero(late & there)
                there = there > late
            places = np.flatnonzero(~there)
        elif met.late is not None:
            late = np.flatnonzero(met.late)
            places = later = np.concatenate([late, late + len(met)])
        pairs = later - len(met) * (later >= len(met))
        return cls(nodes, nodes[places], places, nodes[later], pairs, int(np.searchsorted(later, len(met))))


@dataclass
class Mixer:
    """**Shapes**: masses (N,)."""

    state: State
    masses: Floats
    links: Links | None = None
    flows: dict[str, Vector] = field(default_factory=dict)
    """(E, size) of each parameter's tensor, + at the lower node; kept only where leak, cap or leaving needs it"""
    ending: Mask | None = None
    """(E,) the links whose flow will be asked for, where nothing leaks and nothing is capped; None: all"""
    pending: list[Late] = field(default_factory=list)
    replicas: Replicas | None = None
    """what links hold of their ends, where models travel compressed"""
    own: slice = field(default_factory=lambda: slice(None))
    """the nodes whose models are here; see vectorized.shards"""
    is_even: bool = field(init=False)
    """is every mass 1"""
    _spare: Blocks = field(default_factory=dict)
    _scratch: threading.local = field(default_factory=threading.local)

    def __post_init__(self) -> None:
        self.is_even = bool((self.masses == 1.0).all())

    def keep_flows(self, of: Mask | None = None) -> None:
        """One flow a link from now on; with `of` (N,), where no terms need all, only of the links of these nodes.

        **Raises**: Misuse without a graph whose links could have one."""
        if self.links is None:
            raise Misuse("leak and cap need one flow a link; give a static graph, or set leak = 0 and cap = 0")
        self.ending = None if of is None else of[self.links.lo] | of[self.links.hi]
        for name in self.state.parameters:
            if name not in self.flows:
                size = self.state.flat(self.state.shared, name).shape[1]
                self.flows[name] = np.zeros((len(self.links), size), self.state.layout.dtype)

    # ---- exchanges --------------------------------------------------------------------------------------------------

    def exchange(self, meetings: Meetings, terms: Terms, *, distort: Distort | None = None, due: int = 0) -> None:
        """Make these exchanges, all of models as they are now. `due`: the round in which the late ones arrive."""
        if not len(meetings):
            return
        if terms.needs_flows and meetings.edge is None:
            raise Misuse(
                "leak and cap need one flow a link; a schedule without a graph has none: set leak = 0 and cap = 0"
            )
        if terms.kappa:
            self.state.need_correction()
        targets = self.state.shared if meetings.is_disjoint else self._cleared()
        late = Late(due, [], meetings.is_disjoint)
        size = max(1, CHUNK_BYTES // (2 * self.state.layout.size * np.dtype(self.state.layout.dtype).itemsize))
        for start in range(0, len(meetings), size):
            part = meetings if size >= len(meetings) else meetings.only(slice(start, start + size))
            self._chunk(part, terms, targets, distort, late)
        if not meetings.is_disjoint:
            for name, block in self.state.shared.items():
                block[self.own].add_(targets[name][self.own])
        if late.steps:
            self.pending.append(late)

    def _cleared(self) -> Blocks:
        for name, block in self.state.shared.items():
            if name not in self._spare:
                self._spare[name] = torch.empty_like(block)
            self._spare[name][self.own].zero_()
        return self._spare

    def _chunk(self, met: Meetings, terms: Terms, targets: Blocks, distort: Distort | None, late: Late) -> None:
        state, masses, ends = self.state, self._masses(met), Ends.of(met)
        rows, honest, pairs = {}, {}, {}
        for name in state.shared:
            rows[name] = self._taken(state.flat(state.shared, name), ends.nodes, name, 0)
            if distort is not None:
                honest[name] = distort(name, ends.nodes, rows[name])
            pairs[name] = rows[name][: len(met)], rows[name][len(met) :]
        counts = {}
        if self.replicas is not None:
            both = self.masses[met.lo], self.masses[met.hi]
            counts = self.replicas.pass_through(pairs, met, *both, books=terms.kappa > 0)
        share = mixing.flow_share(met.gamma, *masses, self._clip(pairs, terms, met))
        carried = {}
        for name, (y_lo, y_hi) in pairs.items():
            q = mixing.carry(y_lo, y_hi, share, out=self._room(y_lo, name, 2))
            for places, own in (honest[name],) if name in honest else ():
                rows[name][places] = own
            held = None if self.replicas is not None else rows[name]
            self._move(targets[name], ("shared", name), ends, q, masses, 1, late, held, met.is_disjoint)
            if terms.kappa and name in state.correction:
                carried[name] = np.divide(q, counts[name], out=q) if name in counts else q
        if carried:
            self._book(carried, terms, met, masses, ends, late)

    def _masses(self, met: Meetings) -> tuple[Any, Any]:
        """Of both ends; plain numbers where all are 1."""
        return (1.0, 1.0) if self.is_even else (self.masses[met.lo], self.masses[met.hi])

    def _taken(self, rows: Vector, nodes: Integers, name: str, slot: int) -> Vector:
        """Rows of some nodes, in an array that is used again."""
        room = self._room(rows, name, slot, len(nodes))
        return rows.take(nodes, axis=0, out=room, mode="clip")

    def _room(self, like: Vector, name: str, slot: int, count: int | None = None) -> Vector:
        """This thread's array for rows of this tensor: fresh ones of this size fault pages every time."""
        held: dict[tuple[str, int], Vector] | None = getattr(self._scratch, "held", None)
        if held is None:
            held = self._scratch.held = {}
        count = len(like) if count is None else count
        room = held.get((name, slot))
        if room is None or len(room) < count:
            room = held[name, slot] = np.empty((count, like.shape[1]), like.dtype)
        return room[:count]

    def _over(self, q: Vector, mass: Floats | float, out: Vector) -> Vector:
        """q / mass; dividing by 1 is left out."""
        return q if self.is_even else np.divide(q, _column(mass, q), out=out)

    def _clip(self, pairs: dict[str, tuple[Vector, Vector]], terms: Terms, met: Meetings) -> Floats | float:
        if terms.tau is None:
            return 1.0
        squares = sum(np.square(row_norms(y_hi - y_lo)) for y_lo, y_hi in pairs.values())
        share: Floats = mixing.clip_factor(
            np.sqrt(np.asarray(squares)), np.minimum(terms.tau[met.lo], terms.tau[met.hi])
        )
        return share

    def _book(self, carried: dict[str, Vector], terms: Terms, met: Meetings, masses: tuple[Any, Any], ends: Ends,
              late: Late) -> None:  # fmt: skip
        """Add what flowed to each link's flow, and move F at both ends by what that gained."""
        if self.flows and met.edge is not None:
            if terms.needs_flows:
                gained = self._leaked(carried, terms, met)
            else:
                asked: Any = slice(None) if self.ending is None else np.flatnonzero(self.ending[met.edge])
                edges, gained = met.edge[asked], _times_kappa(carried, terms)
                for name, flow in gained.items():
                    self.flows[name][edges] += flow[asked]
        else:
            gained = _times_kappa(carried, terms)
        for name, step in gained.items():  # F' = F - gained / m at the lower node: see correction.advance
            target = self.state.correction[name]
            self._move(target, ("correction", name), ends, step, masses, -1, late, None, met.is_disjoint)

    def _leaked(self, carried: dict[str, Vector], terms: Terms, met: Meetings) -> dict[str, Vector]:
        """The new flow of each link, capped and kept; comes back: by how much it grew."""
        assert met.edge is not None and self.links is not None
        before = {name: self.flows[name][met.edge] for name in carried}
        for name, q in carried.items():
            correction.book(before[name], q, terms.kappa, 1.0 - terms.leak, 1.0, True, out=q)
        if terms.cap:
            length = np.sqrt(np.asarray(sum(np.square(row_norms(after)) for after in carried.values())))
            degree = np.maximum(self.links.degree[met.lo], self.links.degree[met.hi]).astype(np.float64)
            m_lo, m_hi, gradient = self.masses[met.lo], self.masses[met.hi], self.state.gradient
            most = correction.cap_norm(degree, m_lo, gradient[met.lo], m_hi, gradient[met.hi]) * (terms.cap / 2)
            share = correction.cap_factor(length, np.where(most > 0, most, np.inf))
            for after in carried.values():
                np.multiply(after, _column(share, after), out=after)
        for name, after in carried.items():
            self.flows[name][met.edge] = after
            np.subtract(after, before[name], out=after)
        return carried

    def _move(self, target: torch.Tensor, what: tuple[str, str], ends: Ends, q: Vector, masses: tuple[Any, Any], sign: int,
              late: Late, held: Vector | None, is_once: bool) -> None:  # fmt: skip
        """Move both ends by q / mass, the lower one along `sign` and the other against it, but for halves that are lost or
        late. `held`: the rows before, where they are at hand; `is_once`: no node twice among all."""
        if len(ends.later):
            late.steps.append((*what, ends.later, self._halves(q[ends.pairs], ends.later, ends.lower, sign)))
        if not is_once:
            step = self._halves(np.concatenate([q, q]), ends.nodes, len(q), sign)
            step[ends.places] = 0
            add_rows(target, ends.nodes, step)
            return
        rows = target.view(len(target), -1).numpy()
        before = rows.take(ends.skipped, axis=0) if len(ends.skipped) else None
        for at, mass in enumerate(masses):
            half = slice(0, len(q)) if at == 0 else slice(len(q), None)
            nodes = ends.nodes[half]
            own = self._taken(rows, nodes, what[1], 4) if held is None else held[half]
            move = np.add if (sign > 0) == (at == 0) else np.subtract
            rows[nodes] = move(own, self._over(q, mass, self._room(q, what[1], 3)), out=own)
        if before is not None:
            rows[ends.skipped] = before

    def _halves(self, step: Vector, nodes: Integers, lower: int, sign: int) -> Vector:
        """The displacements of these nodes, in place of what flowed over their links; the first of them are lower ends."""
        against = step[lower:] if sign > 0 else step[:lower]
        np.negative(against, out=against)
        return step if self.is_even else np.divide(step, _column(self.masses[nodes], step), out=step)

    def arrive(self, round: int) -> None:
        """Apply the halves that are due: displacements, so that being late is exact."""
        for late in [one for one in self.pending if one.due <= round]:
            for group, name, nodes, step in late.steps:
                target = getattr(self.state, group)[name]
                if late.is_once:
                    target.view(len(target), -1).numpy()[nodes] += step
                else:
                    add_rows(target, nodes, step)
        self.pending = [one for one in self.pending if one.due > round]

    # ---- whole rounds as products -----------------------------------------------------------------------------------

    def product(self, meetings: Meetings, terms: Terms, each: Mapper, block: int) -> None:
        """Exchanges over many edges at once, y <- W y, where nothing is clipped, capped, leaking, late or half.

        W = I - diag(1/m) L_theta as scipy CSR in the models' dtype, a block of rows at a time into the other of two
        buffers. F <- F - kappa (W y - y).
        """
        from scipy import sparse

        state, nodes = self.state, self.state.nodes
        lo, hi = meetings.lo, meetings.hi
        theta = meetings.gamma * mixing.mu(self.masses[lo], self.masses[hi])
        off = np.concatenate([theta / self.masses[lo], theta / self.masses[hi]])
        rows, columns = np.concatenate([lo, hi]), np.concatenate([hi, lo])
        own = 1.0 - np.bincount(rows, off, minlength=nodes)
        everybody = np.arange(nodes)
        matrix = sparse.csr_array(
            (
                np.concatenate([off, own]).astype(state.layout.dtype),
                (np.concatenate([rows, everybody]), np.concatenate([columns, everybody])),
            ),
            shape=(nodes, nodes),
        )
        if terms.kappa:
            state.need_correction()
        for name in state.shared:
            if name not in self._spare:
                self._spare[name] = torch.empty_like(state.shared[name])
        ranges = [slice(start, min(start + block, nodes)) for start in range(0, nodes, block)]

        def one(where: slice) -> None:
            part = matrix[where]
            for name in state.shared:
                before, after = state.flat(state.shared, name), state.flat(self._spare, name)
                after[where] = part @ before
                if terms.kappa and name in state.correction:
                    moved = np.subtract(after[where], before[where])
                    state.flat(state.correction, name)[where] -= np.multiply(
                        moved, moved.dtype.type(terms.kappa), out=moved
                    )

        each(one, ranges)
        for name in state.shared:
            state.shared[name], self._spare[name] = self._spare[name], state.shared[name]

    # ---- who comes and goes ------------------------------------------------------------------------------------------

    def leave(self, gone: Mask) -> None:
        """Nodes leave for good: survivors drop the flows with them, so that the sum of m F is zero again, exactly."""
        if not self.flows or self.links is None or not gone.any():
            return
        ending = np.flatnonzero(gone[self.links.lo] | gone[self.links.hi])
        both = (1, self.links.lo[ending]), (-1, self.links.hi[ending])
        for name, held in self.flows.items():
            dropped = held[ending]
            for sign, ends in both:
                step = np.divide(dropped, _column(self.masses[ends], dropped))
                add_rows(self.state.correction[name], ends, step, sign)
            held[ending] = 0
            self.state.flat(self.state.correction, name)[gone] = 0


def _times_kappa(carried: dict[str, Vector], terms: Terms) -> dict[str, Vector]:
    """What is booked of what flowed, in its place."""
    return {name: correction.book(None, q, terms.kappa, 1.0, 1.0, True, out=q) for name, q in carried.items()}


def _column(numbers: Floats | float, like: Vector) -> Vector:
    return np.asarray(numbers, like.dtype).reshape(-1, 1)


def add_rows(target: torch.Tensor, nodes: Integers, step: Vector, sign: int = 1) -> None:
    """target[nodes] += sign * step; a node may stand there twice."""
    signed = step if sign > 0 else np.negative(step)  # alpha = -1 leaves index_add's fast path
    target.view(len(target), -1).index_add_(0, torch.from_numpy(nodes), torch.from_numpy(signed))


__all__ = ["Distort", "Mapper", "Mask", "Mixer", "Terms"]
