"""One pairwise exchange as arithmetic: how far two models move towards each other. Not who meets whom, nor when.

What both sides must compute alike (q) is numpy, one ufunc at a time, in the orientation lower member id -> higher
member id on both sides; the sign comes last. Scalars are reduced to one Python float first and cast to the vector's
dtype once. torch's fused updates (add(alpha=), addcmul, lerp) differ between CPUs and are not used here. Simulators pass
many exchanges at once, rows (..., P) with one number a row: the same formulas, element by element.
"""

from __future__ import annotations

import math
import sys
from typing import Any, Final

import numpy as np

from gossipfl.errors import Misuse
from gossipfl.learning.blocks import (
    Number,
    Scalars,
    Vector,
    difference_norm,
    factor,
    norm,
    require_alike,
    room_for,
    slices,
)

__all__ = [
    "apply", "apply_piece", "carry", "carry_piece", "clip_factor", "clip_threshold", "difference_norm", "flow_share", "flow_step",
    "mu", "norm", "predict",
]  # fmt: skip

FINITE: Final = sys.float_info.max
TINIEST: Final = math.ulp(0.0)
"""The smallest number above 0."""


def mu(m_lo: Number, m_hi: Number) -> Number:
    """The reduced mass of a pair.

    mu = m_lo m_hi / (m_lo + m_hi)

    Laws: with gamma = 1 both ends of an unclipped exchange land on the pair's mass-weighted mean.
    Raises: `Misuse` for a mass that is not finite and positive.

    >>> mu(1.0, 3.0)
    0.75
    """
    for mass in (m_lo, m_hi):
        if not all_positive(mass):
            raise Misuse(f"a mass is {mass}; masses are finite and above 0 (they come from the membership)")
    return m_lo * m_hi / (m_lo + m_hi)


def all_positive(numbers: Scalars) -> bool:
    """Is every number finite and above 0."""
    if isinstance(numbers, np.ndarray):
        return bool((np.isfinite(numbers) & (numbers > 0)).all())
    return 0 < numbers < math.inf


def all_within(numbers: Scalars, least: float, most: float) -> bool:
    """Is every number at least the one and at most the other. NaN is not."""
    if isinstance(numbers, np.ndarray):
        return bool(((numbers >= least) & (numbers <= most)).all())
    return least <= numbers <= most


def clip_threshold(eta: float, steps: float, gradient: Number) -> Number:
    """tau of one side: the largest difference that its own training could explain.

    tau_i = 2 eta H G_i; the exchange uses the smaller of both sides'. Anchored to the own training step, because a
    median of recent displacements feeds back on itself: one hostile node of eight then moved everybody.
    """
    return 2.0 * eta * steps * gradient


def clip_factor(norm: Number, tau: Scalars) -> Number:
    """The factor in (0, 1] that brings a difference of length `norm` down to `tau`; tau may be infinite.

    min(1, tau / norm). Raises: `Misuse` when norm is not finite (checks.check comes before) or tau not positive.

    >>> clip_factor(4.0, 1.0), clip_factor(0.0, 1.0)
    (0.25, 1.0)
    """
    if not (all_within(norm, 0, FINITE) and all_within(tau, TINIEST, math.inf)):
        raise Misuse(f"clip_factor(norm={norm}, tau={tau}): check the vectors first; tau must be above 0")
    return least_share(norm, tau)


def least_share(norm: Number, bound: Scalars) -> Number:
    """min(1, bound / norm), and 1 where both are 0."""
    if isinstance(norm, np.ndarray):
        return np.divide(bound, norm, out=np.ones(norm.shape), where=np.asarray(norm > bound))
    return 1.0 if norm <= float(bound) else float(bound) / norm


def flow_step(
    y_lo: Vector,
    y_hi: Vector,
    gamma: Scalars,
    m_lo: Number,
    m_hi: Number,
    clip: Scalars,
    out: Vector | None = None,
) -> Vector:
    """What flows over the link from the higher to the lower member id, the same bits on both sides.

    q = (gamma mu clip) (y_hi - y_lo)

    Shapes: y_lo, y_hi, q: (P + M,), or equal slices of them. `out` may be y_lo or y_hi.
    Laws: equal models give zeros; each element depends on its own two inputs only (slices give the same bits).
    Raises: `Misuse` on vectors that are not alike, or a factor that is not finite.
    """
    return carry(y_lo, y_hi, flow_share(gamma, m_lo, m_hi, clip), out)


def flow_share(gamma: Scalars, m_lo: Number, m_hi: Number, clip: Scalars) -> Scalars:
    """gamma mu clip of `flow_step`. Raises: `Misuse` where it is not finite."""
    product: Scalars = gamma * mu(m_lo, m_hi) * clip
    if not (math.isfinite(product) if isinstance(product, float) else np.isfinite(product).all()):
        raise Misuse(f"gamma * mu * clip = {product}; gamma and clip must be finite")
    return product


def carry(y_lo: Vector, y_hi: Vector, share: Scalars, out: Vector | None = None) -> Vector:
    """share (y_hi - y_lo): the second half of `flow_step`, for several tensors of one exchange."""
    require_alike(y_lo, y_hi)
    scale = factor(share, y_lo)
    q = room_for(y_lo, out)
    with np.errstate(over="ignore", invalid="ignore"):
        for piece in slices(q.shape[-1]):
            carry_piece(y_lo[..., piece], y_hi[..., piece], scale, q[..., piece])
    return q


def carry_piece(y_lo: Vector, y_hi: Vector, scale: Any, out: Vector | None = None) -> Vector:
    """`carry` of a piece that fits a cache, and nothing asked: the vectors are alike, and `scale` is of their dtype."""
    q: Vector = np.subtract(y_hi, y_lo, out=out)
    np.multiply(q, scale, out=q)
    return q


def apply(model: Vector, q: Vector, mass: Scalars, lower: bool, out: Vector | None = None) -> Vector:
    """The model after its half of an exchange: + q / mass at the lower id, - q / mass at the higher.

    Shapes: all (P + M,), or equal slices. `out` may be `model` (in place) but not q.
    Laws: the mass-weighted sum of both ends is unchanged but for rounding; halves of several exchanges commute;
    `apply(..., not lower)` takes a half back.
    Raises: `Misuse` on vectors that are not alike or a mass that is not positive.
    """
    require_alike(model, q)
    if not all_positive(mass):
        raise Misuse(f"mass is {mass}; masses are finite and above 0")
    divisor = factor(mass, model)
    moved = room_for(model, out)
    with np.errstate(over="ignore", invalid="ignore"):
        for piece in slices(moved.shape[-1]):
            apply_piece(model[..., piece], q[..., piece], divisor, lower, moved[..., piece])
    return moved


def apply_piece(model: Vector, q: Vector, divisor: Any, lower: bool, out: Vector) -> Vector:
    """`apply` to a piece that fits a cache, and nothing asked: the vectors are alike, and `divisor` is of their dtype."""
    (np.add if lower else np.subtract)(model, np.divide(q, divisor), out=out)
    return out


def predict(
    y_lo: Vector, y_hi: Vector, gamma: Scalars, m_lo: Number, m_hi: Number, piece: slice = slice(None)
) -> tuple[Vector, Vector]:
    """Where both replicas stand after an exchange that nothing clips: the references of the next one under a sparse codec.

    y_lo + q / m_lo, y_hi - q / m_hi, q = (gamma mu) (y_hi - y_lo)

    A coordinate that is not sent keeps its replica. Without this the difference of two stale replicas would move the models
    by the same q at each exchange, beyond each other and back: the cliff of CHOCO's step size. With it the difference shrinks
    by 1 - gamma each time, and what it moves in all is one full exchange.

    Shapes: y_lo, y_hi (..., P); the result is of `piece`. Laws: as `flow_step` and `apply`, element by element.
    Source: Koloskova, Stich, Jaggi, "Decentralized stochastic optimization and gossip algorithms with compressed
    communication" (2019), for agreed replicas. Differs: they move with the exchange; the step needs no tuning.
    """
    lo, hi = y_lo[..., piece], y_hi[..., piece]
    q = flow_step(lo, hi, gamma, m_lo, m_hi, 1.0)
    return apply(lo, q, m_lo, True), apply(hi, q, m_hi, False)
