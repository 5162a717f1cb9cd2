"""A failing seed made smaller: shorter, fewer kinds of faults, fewer nodes, as long as the same law breaks.

Each step is tried by running it. Not here: what a trial is (trial.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable

from gossipfl.simulator.trial import Outcome, Trial, classes_on, draw, run

FEWEST: int = 3
"""Nodes: below there is no third who matters."""


def shrink(
    failed: Outcome, *, tries: int = 30, say: Callable[[str], None] = lambda text: None, runs: Callable[[Trial], Outcome] = run
) -> Outcome:
    """The smallest failing trial that was found within so many runs; the given one where none is smaller.

    Laws: the result breaks one of the laws that the given one breaks.
    """
    law = min(failed.violations, key=lambda name: failed.violations[name].at_s, default="")
    if not law:
        return failed
    best, left = failed, tries

    def attempt(trial: Trial, what: str) -> bool:
        nonlocal best, left
        if left <= 0:
            return False
        left -= 1
        outcome = runs(trial)
        if law not in outcome.violations:
            return False
        best = outcome
        say(f"{what}: {law} still breaks, at {outcome.violations[law].at_s:.0f} s")
        return True

    shorter(best, law, attempt)
    for name in classes_on(best.trial):
        trial = best.trial
        attempt(again(trial, without=(*trial.without, name), until_s=None), f"without {name}")
    for nodes in range(FEWEST, best.trial.nodes):
        if attempt(again(best.trial, nodes=nodes, until_s=None), f"{nodes} nodes"):
            break
    shorter(best, law, attempt)
    return best


def shorter(best: Outcome, law: str, attempt: Callable[[Trial, str], bool]) -> None:
    """Stop right after the violation: nothing of the history before it changes."""
    trial, at_s = best.trial, math.ceil(best.violations[law].at_s)
    if trial.until_s is None and at_s < trial.hours * 3600 and best.violations[law].event != "end":
        attempt(again(trial, until_s=float(at_s)), f"only {at_s} s")


def again(trial: Trial, *, nodes: int | None = None, without: tuple[str, ...] | None = None, until_s: float | None) -> Trial:
    """The same seed with less of it."""
    count = trial.nodes if nodes is None else nodes
    off = trial.without if without is None else tuple(dict.fromkeys(without))
    return draw(trial.seed, trial.hours, (count, count), off, until_s)
