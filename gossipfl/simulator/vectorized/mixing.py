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

Distort = Callable[[str, Integers, Vector], None]
"""(tensor, nodes, what they would send) -> changed in place: what hostile nodes send instead"""

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


@dataclass(frozen=True)
class End:
    """One end of some exchanges. **Shapes**: nodes (E,); now and later: places among them."""

    nodes: Integers
    sign: int
    """+ at the lower node, - at the higher"""
    skipped: Integers | None
    """which halves are not applied now; None: all are"""
    later: Integers | None
    """which of these are after a delay"""


@dataclass
class Mixer:
    """**Shapes**: masses (N,)."""

    state: State
    masses: Floats
    links: Links | None = None
    flows: dict[str, Vector] = field(default_factory=dict)
    """(E, size) of each parameter's tensor, + at the lower node; kept only where leak, cap or leaving needs it"""
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

    def keep_flows(self) -> None:
        """One flow a link from now on. **Raises**: Misuse without a graph whose links could have one."""
        if self.links is None:
            raise Misuse("leak and cap need one flow a link; give a static graph, or set leak = 0 and cap = 0")
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
        late = Late(due, [])
        size = max(1, CHUNK_BYTES // (2 * self.state.layout.size * np.dtype(self.state.layout.dtype).itemsize))
        for start in range(0, len(meetings), size):
            self._chunk(
                meetings.only(np.arange(start, min(start + size, len(meetings)))), terms, targets, distort, late
            )
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
        state = self.state
        m_lo, m_hi = self._masses(met)
        is_own = distort is None and self.replicas is None and met.is_disjoint
        pairs, nodes = {}, np.concatenate([met.lo, met.hi])
        for name in state.shared:
            rows = self._taken(state.flat(state.shared, name), nodes, name, 0)
            if distort is not None:
                distort(name, nodes, rows)
            pairs[name] = rows[: len(met)], rows[len(met) :]
        counts = {}
        if self.replicas is not None:
            both = self.masses[met.lo], self.masses[met.hi]
            counts = self.replicas.pass_through(pairs, met, *both, books=terms.kappa > 0)
        share = mixing.flow_share(met.gamma, m_lo, m_hi, self._clip(pairs, terms, met))
        ends = self._ends(met)
        flows: dict[str, tuple[Vector | None, Vector]] = {}
        for name, (y_lo, y_hi) in pairs.items():
            q = mixing.carry(y_lo, y_hi, share, out=self._room(y_lo, name, 2))
            for end, held, mass in zip(ends, (y_lo, y_hi), (m_lo, m_hi), strict=True):
                step = self._over(q, mass, self._room(q, name, 3))
                self._add(targets[name], "shared", name, end, step, late, held if is_own else None, met.is_disjoint)
            if terms.kappa and name in state.correction:
                before = self.flows[name][met.edge] if self.flows and met.edge is not None else None
                kept = 1.0 - terms.leak if before is not None else 1.0
                if name in counts:
                    np.divide(q, counts[name], out=q)
                flows[name] = before, correction.book(before, q, terms.kappa, kept, 1.0, True, out=q)
        if flows:
            self._book(flows, terms, met, (m_lo, m_hi), ends, late)

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

    @staticmethod
    def _ends(met: Meetings) -> tuple[End, End]:
        """The lower nodes and the higher, with what of each is applied later or never."""
        later = met.late if met.late is not None and met.late.any() else None
        made = []
        for nodes, sign, there in ((met.lo, 1, met.at_lo), (met.hi, -1, met.at_hi)):
            skipped, waiting = None if there is None else ~there, later
            if later is not None:
                skipped = later if skipped is None else skipped | later
                waiting = later if there is None else later & there
            parts = (None if mask is None else np.flatnonzero(mask) for mask in (skipped, waiting))
            made.append(End(nodes, sign, *parts))
        return made[0], made[1]

    def _clip(self, pairs: dict[str, tuple[Vector, Vector]], terms: Terms, met: Meetings) -> Floats | float:
        if terms.tau is None:
            return 1.0
        squares = sum(np.square(row_norms(y_hi - y_lo)) for y_lo, y_hi in pairs.values())
        share: Floats = mixing.clip_factor(
            np.sqrt(np.asarray(squares)), np.minimum(terms.tau[met.lo], terms.tau[met.hi])
        )
        return share

    def _book(self, flows: dict[str, tuple[Vector | None, Vector]], terms: Terms, met: Meetings,
              masses: tuple[Floats | float, Floats | float], ends: tuple[End, End], late: Late) -> None:  # fmt: skip
        """Cap the new flow of each link, keep it, and move F at both ends."""
        if terms.cap and self.flows and self.links is not None:
            squares = sum(np.square(row_norms(after)) for _, after in flows.values())
            length, gradient = np.sqrt(np.asarray(squares)), self.state.gradient
            degree = np.maximum(self.links.degree[met.lo], self.links.degree[met.hi]).astype(np.float64)
            m_lo, m_hi = self.masses[met.lo], self.masses[met.hi]
            most = correction.cap_norm(degree, m_lo, gradient[met.lo], m_hi, gradient[met.hi]) * (terms.cap / 2)
            share = correction.cap_factor(length, np.where(most > 0, most, np.inf))
            for _, after in flows.values():
                np.multiply(after, _column(share, after), out=after)
        for name, (before, after) in flows.items():
            gained = after  # F' = F + (before - after) / m at the lower node: see correction.advance
            if before is not None:
                assert met.edge is not None
                self.flows[name][met.edge] = after
                gained = np.subtract(after, before, out=before)
            for end, mass in zip(ends, masses, strict=True):
                step = self._over(gained, mass, self._room(after, name, 3))
                back = End(end.nodes, -end.sign, end.skipped, end.later)
                self._add(self.state.correction[name], "correction", name, back, step, late, None, met.is_disjoint)

    def _add(self, target: torch.Tensor, group: str, name: str, end: End, step: Vector, late: Late, held: Vector | None,
             is_once: bool) -> None:  # fmt: skip
        """Move one end by `step` times its sign, but for halves that are lost or late.

        `held`: the rows before, where they are at hand; `is_once`: no node twice among all."""
        nodes = end.nodes
        if end.later is not None and len(end.later):
            waiting = step[end.later]
            late.steps.append((group, name, nodes[end.later], waiting if end.sign > 0 else -waiting))
        if end.skipped is not None and len(end.skipped):
            kept, step = step, self._room(step, name, 5)
            np.copyto(step, kept)
            step[end.skipped] = 0
        if not is_once:
            add_rows(target, nodes, step, end.sign)
            return
        rows = target.view(len(target), -1).numpy()
        if held is None:
            held = self._taken(rows, nodes, name, 4)
        rows[nodes] = (np.add if end.sign > 0 else np.subtract)(held, step, out=held)

    def arrive(self, round: int) -> None:
        """Apply the halves that are due: displacements, so that being late is exact."""
        for late in [one for one in self.pending if one.due <= round]:
            for group, name, nodes, step in late.steps:
                add_rows(getattr(self.state, group)[name], nodes, step)
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


def _column(numbers: Floats | float, like: Vector) -> Vector:
    return np.asarray(numbers, like.dtype).reshape(-1, 1)


def add_rows(target: torch.Tensor, nodes: Integers, step: Vector, sign: int = 1) -> None:
    """target[nodes] += sign * step; a node may stand there twice."""
    signed = step if sign > 0 else np.negative(step)  # alpha = -1 leaves index_add's fast path
    target.view(len(target), -1).index_add_(0, torch.from_numpy(nodes), torch.from_numpy(signed))


__all__ = ["Distort", "Mapper", "Mask", "Mixer", "Terms"]
