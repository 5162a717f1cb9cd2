"""Choosing a method's settings on the validation part: learning rate, local steps, its own knob; as many trials for every method.

Each seed's settings are chosen by that seed's validation rows, a part of its training rows (tasks.split.tuning), and its test
rows are never touched: what is chosen once for all seeds would have seen other seeds' test rows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np

from gossipfl.errors import Misuse
from gossipfl.learning.comparing import LOWER_IS_BETTER
from gossipfl.simulator.bench.one import Line, simulated
from gossipfl.simulator.bench.question import REFERENCES, Ask, Question
from gossipfl.simulator.bench.recipe import Recipe, changed
from gossipfl.simulator.vectorized.methods import Method
from gossipfl.tasks.split import tuning

TRIALS: Final = 12

ETA: Final = (0.1, 0.3, 1.0, 3.0, 10.0)
STEPS: Final = (0.5, 1.0, 2.0, 4.0)
KNOB: Final = (0.25, 0.5, 1.0, 2.0, 4.0)
"""Factors on the recipe's setting, one of each drawn for a trial; of a momentum, on what it lacks to 1."""


@dataclass(frozen=True)
class Trial:
    """One method on one seed's validation part with other settings than the recipe's; number 0 has the recipe's."""

    ask: Ask
    number: int
    changes: tuple[tuple[str, float], ...] = ()

    def __str__(self) -> str:
        return f"{self.ask}, trial {self.number}"


def trials(question: Question, count: int = TRIALS) -> list[Trial]:
    """The same number for every method and seed; trial number n has the same factors for all of them.

    **Randomness**: PCG64 of the trial's number.
    """
    if count < 1:
        raise Misuse(f"{count} trials: give 1 or more")
    asks = [ask for ask in question.runs() if ask.method not in REFERENCES and not ask.is_slow]
    return [Trial(ask, n, _changes(question.recipe(ask), n)) for ask in asks for n in range(count)]


def _changes(given: Recipe, number: int) -> tuple[tuple[str, float], ...]:
    if not number:
        return ()
    rng = np.random.Generator(np.random.PCG64(number))
    eta, steps, own = (float(rng.choice(factors)) for factors in (ETA, STEPS, KNOB))
    found: dict[str, float] = {"eta": given.plan.eta * eta, "steps": max(1, round(given.plan.steps * steps))}
    if (name := knob(given.method)) is not None:
        value = getattr(given.method, name)
        found[name] = max(0.0, 1 - (1 - value) * own) if name == "momentum" else value * own
    return tuple(found.items())


def knob(method: Method) -> str | None:
    """The setting that a method has beside everybody's plan; None where there is none. d2's theta is what d2 is: no knob."""
    if method.theta and method.least_eigenvalue <= -1:
        return "theta"
    if method.proximal:
        return "proximal"
    if method.post == "fedadam":
        return "server_eta"
    return "momentum" if method.momentum else None


def attempt(question: Question, data_dir: str | None, trial: Trial) -> Line:
    """The worst node's metric on the validation rows, as a line; null where a model diverged or the engine refuses."""
    task = question.rows.loaded()
    sites, validation = tuning(question.rows.federation(trial.ask.seed, data_dir)[0], trial.ask.seed)
    given = changed(question.recipe(trial.ask), **dict(trial.changes))
    try:
        made = simulated(question, trial.ask, given, task, sites, validation, is_watched=False)
        score = made.last.worst
    except Misuse:
        score = math.nan
    return {
        "key": key(question, trial),
        **asdict(trial.ask),
        "number": trial.number,
        "changes": dict(trial.changes),
        "metric": task.metric,
        "score": score if math.isfinite(score) else None,
    }


def key(question: Question, trial: Trial) -> str:
    return f"{question.key(trial.ask)} {trial.number}"


def chosen(lines: Sequence[Line]) -> dict[Ask, Mapping[str, float]]:
    """The best trial of each method and seed; of equals, the first. Where all diverged, the recipe's settings stay."""
    best: dict[Ask, Line] = {}
    for line in sorted(lines, key=lambda line: int(line["number"])):
        ask, score = Ask(line["method"], line["seed"]), line["score"]
        if score is not None and (ask not in best or _is_better(line["metric"], score, best[ask]["score"])):
            best[ask] = line
    return {ask: line["changes"] for ask, line in best.items() if line["changes"]}


def _is_better(metric: str, one: float, other: float) -> bool:
    return one < other if metric in LOWER_IS_BETTER else one > other


def told(question: Question, changes: Mapping[Ask, Mapping[str, float]]) -> list[list[Any]]:
    """Rows of a table: for each method, what each seed chose, or that the recipe stays."""
    rows = []
    for method in question.methods:
        if method in REFERENCES:
            continue
        said = []
        for seed in question.seeds:
            of = changes.get(Ask(method, seed))
            said.append("as it is" if of is None else ", ".join(f"{name} {value:.3g}" for name, value in of.items()))
        rows.append(
            [method, "; ".join(f"seed {seed}: {text}" for seed, text in zip(question.seeds, said, strict=True))]
        )
    return rows
