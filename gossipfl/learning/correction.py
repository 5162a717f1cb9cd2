"""The ledger: what has flowed over a link serves a second time as correction of drift. Not the exchange itself.

A node whose data differ keeps being pulled back by its neighbours. The sum of those pulls is the difference between
its gradient and everybody's; fed back as F_i it makes the weighted optimum a point of rest:

    Phi_ij <- Phi_ij + kappa q   (+ at the lower id, - at the higher)         F_i = -(1 / m_i) sum_j Phi_ij

At rest all q vanish (consensus) and each node has grad f_i + F_i = 0; sum_i m_i F_i = 0 by antisymmetry, hence
sum_i m_i grad f_i = 0. When a link ends or begins a new epoch both sides drop its Phi and the sum stays zero.

Flows and F cover the parameters only, shape (P,): batch-norm moments are mixed but never corrected. `None` stands for
a flow or correction of zeros.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from gossipfl.errors import Misuse
from gossipfl.learning.blocks import Number, Scalars, Vector, factor, norm, require_alike, room_for, slices
from gossipfl.learning.mixing import FINITE, all_positive, all_within, least_share

Schedule = Literal["cosine", "constant", "linear-tail"]

TAIL_START: Final = 0.7
"""linear-tail: share of the rounds at full rate (label-skewed nets did best with a long plateau)"""


def kappa(theta: float, gamma: float, eta: float, h_ref: float) -> float:
    """Flow booked per unit of q.

    kappa = theta / (gamma eta H_ref), H_ref: expected local steps between two exchanges of a node

    With it the flow booked in an exchange moves the node, until the next one, by theta / gamma times what the exchange
    moved it. theta scales only the correction, gamma only the mixing (1 for disjoint pairs, 1/2 where exchanges
    overlap). Default theta 1/4; 1 can diverge.

    >>> kappa(0.25, 0.5, 0.1, 10)
    0.5
    """
    if not (theta >= 0 and gamma > 0 and eta > 0 and h_ref > 0):
        raise Misuse(f"kappa(theta={theta}, gamma={gamma}, eta={eta}, h_ref={h_ref}): all but theta must be above 0")
    return theta / (gamma * eta * h_ref)


def book_piece(flow: Vector | None, q: Vector, gain: Any, keep: Any, lower: bool, out: Vector | None = None) -> Vector:
    """keep Phi +- gain q of a piece that fits a cache, and nothing asked: the vectors are alike, the factors of their dtype."""
    booked: Vector = np.multiply(q, gain if lower else -gain, out=out if flow is None else None)
    if flow is not None:
        booked = np.add(np.multiply(flow, keep, out=out), booked, out=out)
    return booked


def book(
    flow: Vector | None,
    q: Vector,
    kappa: Scalars,
    leak: Scalars,
    cap: Scalars,
    lower: bool,
    out: Vector | None = None,
) -> Vector:
    """The flow of a link after an exchange.

    Phi' = (leak Phi +- kappa q) cap, + at the lower id, - at the higher; leak is the factor on the old flow, 1 for none

    Shapes: flow, q, result: (P,), or equal slices. `out` may be `flow` or q.
    Laws: Phi_ij = -Phi_ji bit for bit but for the sign of zeros; with cap = 1, scaling the result by cap gives
    the same bits.
    Raises: `Misuse` on vectors not alike, leak or cap outside [0, 1], kappa negative or not finite.
    """
    _require_factors(kappa, leak, cap)
    require_alike(q, q if flow is None else flow)
    booked, gain, keep, share = room_for(q, out), factor(kappa, q), factor(leak, q), factor(cap, q)
    with np.errstate(over="ignore", invalid="ignore"):
        for piece in slices(q.shape[-1]):
            before, value = None if flow is None else flow[..., piece], booked[..., piece]
            np.multiply(book_piece(before, q[..., piece], gain, keep, lower, value), share, out=value)
    return booked


def since_last(idle: Vector, came: NDArray[np.bool_], out: Vector | None = None) -> tuple[Vector, Vector]:
    """(n, idle'): how many exchanges of a link the difference of each coordinate has gathered in, and what is kept of that.

    n = idle + 1; idle' = 0 where the coordinate came in this exchange, from either end, else n

    Under a sparse codec the flow is booked of q / n: kappa is made for a difference that H_ref steps have brought about, and
    what comes after n exchanges has n times as many behind it. Laws: n = 1 everywhere where everything comes each time.
    """
    n = np.add(idle, idle.dtype.type(1))
    kept = room_for(idle, out)
    np.multiply(n, ~came, out=kept)
    return n, kept


def booked_norm(flow: Vector | None, q: Vector, kappa: float, leak: float, lower: bool) -> float:
    """The norm that `book` with cap = 1 would give: what `cap_factor` wants, without a vector of its size."""
    _require_factors(kappa, leak, 1.0)
    require_alike(q, q if flow is None else flow)
    gain, keep = factor(kappa, q), factor(leak, q)
    return norm(
        book_piece(None if flow is None else flow[piece], q[piece], gain, keep, lower) for piece in slices(q.size)
    )


def factors(kappa: float, leak: float, mass: float, like: Vector) -> tuple[Any, Any, Any]:
    """(gain, keep, divisor) of `book_piece` and `advance_piece`. **Raises**: `Misuse` as `book` and `advance`."""
    _require_factors(kappa, leak, 1.0)
    _require_mass(mass)
    return factor(kappa, like), factor(leak, like), factor(mass, like)


def _require_mass(mass: Scalars) -> None:
    if not all_positive(mass):
        raise Misuse(f"mass is {mass}; masses are finite and above 0")


def _require_factors(kappa: Scalars, leak: Scalars, cap: Scalars) -> None:
    if not (all_within(kappa, 0, FINITE) and all_within(leak, 0, 1) and all_within(cap, 0, 1)):
        raise Misuse(f"book(kappa={kappa}, leak={leak}, cap={cap}): kappa >= 0 and finite, leak and cap in [0, 1]")


def cap_norm(degree: Number, mass: Number, gradient: Number, mass_peer: Number, gradient_peer: Number) -> Number:
    """The largest norm of one link's flow that the two gradients can explain.

    (2 / degree) min(m_i G_i, m_j G_j), G: moving average of the own gradient norm (training.Outcome.gradient)

    sum_j Phi_ij = -m_i F_i and F_i tends to -grad f_i: the links of a node together get twice what they need.
    Differs: the masses are in, so that the bound has the unit of Phi whatever unit the masses have.
    """
    if np.any(np.less(degree, 1)):
        raise Misuse(f"degree is {degree}; a node with an exchange has at least one neighbour")
    mine, theirs = mass * gradient, mass_peer * gradient_peer
    return 2.0 / degree * (np.minimum(mine, theirs) if isinstance(mine, np.ndarray) else min(mine, theirs))


def cap_factor(norm: Number, cap_norm: Scalars) -> Number:
    """The factor in [0, 1] that brings a flow of length `norm` down to `cap_norm`, which may be infinite."""
    if not (all_within(norm, 0, FINITE) and all_within(cap_norm, 0, math.inf)):
        raise Misuse(f"cap_factor(norm={norm}, cap_norm={cap_norm}): the flow must be finite, the cap not negative")
    return least_share(norm, cap_norm)


def from_flows(flows: Sequence[Vector], mass: float, out: Vector | None = None) -> Vector:
    """A node's correction from the flows of all its links, in the given order.

    F_i = -(1 / m_i) sum_j Phi_ij, summed in float64 and rounded once

    Shapes: flows: K x (P,); result (P,). `out` must be none of the flows.
    Raises: `Misuse` without any flow (no correction: None) or a mass that is not positive.
    """
    if not flows:
        raise Misuse("from_flows needs at least one flow; a node without flows has no correction (None)")
    _require_mass(mass)
    require_alike(*flows)
    correction = room_for(flows[0], out)
    for piece in slices(correction.size):
        total = flows[0][piece].astype(np.float64)
        for flow in flows[1:]:
            np.add(total, flow[piece], out=total)
        correction[piece] = np.divide(total, -mass, out=total)
    return correction


def advance(
    correction: Vector | None, before: Vector | None, after: Vector, mass: Scalars, out: Vector | None = None
) -> Vector:
    """The running correction when one link's flow goes from `before` to `after`.

    F' = F + (before - after) / m

    Equal to `from_flows` of the new flows but for rounding, at the cost of one link instead of all; a node recomputes F
    from its flows at every start. `out` may be `correction`.
    """
    _require_mass(mass)
    require_alike(after, *(vector for vector in (correction, before) if vector is not None))
    advanced, divisor = room_for(after, out), factor(mass, after)
    for piece in slices(after.shape[-1]):
        ran, old = (None if one is None else one[..., piece] for one in (correction, before))
        advance_piece(ran, old, after[..., piece], divisor, advanced[..., piece])
    return advanced


def advance_piece(
    correction: Vector | None, before: Vector | None, after: Vector, divisor: Any, out: Vector
) -> None:
    """`advance` of a piece that fits a cache, and nothing asked: the vectors are alike, `divisor` is of their dtype."""
    step = np.negative(after) if before is None else np.subtract(before, after)
    np.divide(step, divisor, out=out if correction is None else step)
    if correction is not None:
        np.add(correction, step, out=out)


def schedule(name: str, eta: float, round: int, rounds: int, floor: float = 0.02) -> float:
    """The learning rate of local round `round` (0, 1, ...) of `rounds`: eta first, floor * eta at the last and after.

    cosine: eta (floor + (1 - floor) (1 + cos(pi t)) / 2), t = round / (rounds - 1)
    linear-tail: eta for 70 % of the rounds, then a straight line to floor * eta
    constant: eta

    Source: Loshchilov, Hutter, "SGDR: stochastic gradient descent with warm restarts" (2017), without restarts.

    >>> [f"{schedule('linear-tail', 1.0, r, 11):.2f}" for r in (0, 7, 10)]
    ['1.00', '1.00', '0.02']
    """
    if not (rounds >= 1 and round >= 0 and eta > 0 and 0 < floor <= 1):
        raise Misuse(f"schedule(eta={eta}, round={round}, rounds={rounds}, floor={floor}): out of range")
    t = 1.0 if rounds == 1 and round else min(1.0, round / max(1, rounds - 1))
    if name == "constant":
        return eta
    if name == "cosine":
        return eta * (floor + (1 - floor) * (1 + math.cos(math.pi * t)) / 2)
    if name == "linear-tail":
        return eta * (1 - (1 - floor) * max(0.0, (t - TAIL_START) / (1 - TAIL_START)))
    raise Misuse(f"unknown schedule {name!r}; use cosine, constant or linear-tail")
