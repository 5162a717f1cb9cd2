"""The questions that are asked together: the standard suite, and the full one. No run here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from gossipfl.simulator.bench.question import REFERENCES, Question
from gossipfl.simulator.vectorized.methods import METHODS

STANDARD_METHODS: Final = ("centralized", "local", "fedavg", "fedprox", "scaffold", "gossip", "ledger")


def standard() -> list[tuple[str, Question]]:
    """(name, question): five data sets at their own budget, five splits, 30 % absent; within half an hour on two cores."""
    tasks = ("breast-cancer", "heart", "icu", "stroke", "digits")
    return [(task, Question.of(task, STANDARD_METHODS)) for task in tasks]


def full() -> list[tuple[str, Question]]:
    """The standard suite with every method, then at scarcer budgets, other label skews, and the other sites."""
    every = (*REFERENCES, *(name for name in METHODS if name not in REFERENCES))
    usual = [(task, Question.of(task, every)) for task in ("breast-cancer", "heart", "icu", "stroke", "digits")]
    scarce = [
        (f"{task} at {rounds} rounds", Question.of(task, STANDARD_METHODS, rounds=rounds))
        for task, rounds in (
            ("stroke", 100),
            ("stroke", 50),
            ("icu", 100),
            ("icu", 50),
            ("digits", 100),
            ("digits", 50),
        )
    ]
    others = [
        ("stroke with stragglers", Question.of("stroke", (*STANDARD_METHODS, "fednova"), stragglers=0.3)),
        ("stroke-259", Question.of("stroke-259", STANDARD_METHODS)),
        ("heart-920", Question.of("heart-920", STANDARD_METHODS)),
        ("digits alpha .5", Question.of("digits", STANDARD_METHODS, options={"alpha": 0.5})),
        ("digits 16 nodes", Question.of("digits", STANDARD_METHODS, nodes=16, topology="random-regular:4")),
        ("digits 16 nodes alpha .5", Question.of("digits", STANDARD_METHODS, nodes=16, topology="random-regular:4",
                                                 options={"alpha": 0.5})),
    ]  # fmt: skip
    return usual + scarce + others


SUITES: Final[dict[str, Callable[[], list[tuple[str, Question]]]]] = {"standard": standard, "full": full}
