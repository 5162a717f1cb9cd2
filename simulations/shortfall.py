"""Where the worst node falls short of centralized on digits: the mean model, or its distance from it? On validation parts only.

    python simulations/shortfall.py [--rounds 50,100,300] [--seeds 10,11,12,13,14] [--theta .75] [--momentum .95] [--eta .05]

For each budget: the share of centralized of the mass-weighted mean model and of the worst node, the objective of the mean model
on the training rows beside centralized's, and how far the models are apart. `--floor` trains centralized from five other starts
instead: what differs then is the noise of a share. A seed's validation part is a fifth of its training rows, and no test row is
read. Settings that are not named are the recipe's (gossipfl.simulator.bench.recipe).
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from gossipfl import simulate
from gossipfl.learning import evaluation, parameters
from gossipfl.simulator import baselines
from gossipfl.simulator.baselines import Fitted
from gossipfl.simulator.bench.question import Ask, Question
from gossipfl.simulator.bench.recipe import Recipe
from gossipfl.tasks import Site, Task
from gossipfl.tasks.fitting import predict
from gossipfl.tasks.normalisation import Normaliser
from gossipfl.tasks.split import tuning
from gossipfl.tasks.task import Data, Vector, pooled

STARTS = range(1, 6)


@dataclass(frozen=True)
class Parts:
    """One split: what the mean model lacks, and what the worst node lacks beside."""

    mean: float
    worst: float
    objective: float
    least: float
    """centralized's objective"""
    apart: float
    """root mean square distance from the mean model, over its length"""


def right(model: Fitted, data: Data) -> Any:
    """Which rows the model names rightly."""
    return predict(model.task, model.layout, model.vector, model.normaliser, data.x).argmax(axis=1) == data.y


def objective(model: Fitted, rows: Data) -> float:
    """The loss on these rows with its penalty: what local steps and L-BFGS both bring down."""
    task: Any = model.task
    module = task.model()
    parameters.write(model.layout, model.vector, module)
    with torch.no_grad():
        loss = task.loss(module, torch.from_numpy(model.normaliser.apply(rows.x)), torch.tensor(rows.y))
        penalty = sum(float(weight.square().sum()) for weight in module.parameters() if weight.ndim > 1)
    return float(loss) + task.l2 / 2 * penalty


def parts(question: Question, seed: int, given: Recipe) -> Parts:
    task, sites, validation = _rows(question, seed)
    run = simulate(
        task, nodes=len(sites), sites=sites, test=validation, topology=question.meeting(seed), rounds=question.rounds,
        faults={"dropout": question.dropout}, seed=seed, threads=1, evaluate_every=0, **given.keywords(),
    )  # fmt: skip
    counts = np.array([len(site.train) for site in sites], dtype=np.float64)
    masses = np.minimum(counts, given.heaviest * np.median(counts))
    masses /= masses.sum()
    models = run.state.vectors()
    middle = masses @ models.astype(np.float64)
    spread = masses @ np.square(models - middle).sum(axis=1)

    def fitted(vector: Vector) -> Fitted:
        return Fitted(task, run.state.layout, np.asarray(vector, np.float32), Normaliser.none())

    whole, rows = baselines.centralized(task, sites), pooled([site.train for site in sites])
    best = evaluation.accuracy(validation.y, predict(task, whole.layout, whole.vector, whole.normaliser, validation.x))
    shares = [float(right(fitted(one), validation).mean()) / best for one in (middle, *models)]
    return Parts(
        shares[0], min(shares[1:]), objective(fitted(middle), rows), objective(whole, rows),
        float(np.sqrt(spread / np.square(middle).sum())),
    )  # fmt: skip


def floor(question: Question, seed: int) -> tuple[list[float], list[int]]:
    """Centralized from other starts: its shares of centralized, and how many rows one of the two names rightly and one not."""
    task, sites, validation = _rows(question, seed)
    first = right(baselines.centralized(task, sites), validation)
    others = [right(baselines.centralized(task, sites, seed=start), validation) for start in STARTS]
    return [float(one.mean() / first.mean()) for one in others], [int((one != first).sum()) for one in others]


def _rows(question: Question, seed: int) -> tuple[Task, Sequence[Site], Data]:
    sites, validation = tuning(question.rows.federation(seed, None)[0], seed)
    return question.rows.loaded(), sites, validation


def told(found: Sequence[Parts]) -> str:
    mean, worst, objective_, least, apart = (
        [getattr(one, name) for one in found] for name in ("mean", "worst", "objective", "least", "apart")
    )
    return (
        f"worst node {np.mean(worst):.4f} (least {min(worst):.4f}), mean model {np.mean(mean):.4f}: "
        f"{1 - np.mean(mean):.4f} lacks the mean model, {np.mean(mean) - np.mean(worst):.4f} the worst node beside; "
        f"objective {np.mean(objective_):.4f} (centralized {np.mean(least):.4f}), apart {np.mean(apart):.0e}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", default="50,100,300", help="budgets, with commas between")
    parser.add_argument(
        "--seeds", default="10,11,12,13,14", help="splits; those of the bar, 0 to 4, are better left alone"
    )
    parser.add_argument("--method", default="ledger")
    parser.add_argument("--topology", help="else the bar's")
    parser.add_argument("--floor", action="store_true", help="centralized against itself, from other starts")
    for name in ("theta", "momentum", "eta"):
        parser.add_argument(f"--{name}", type=float, help="instead of the recipe's")
    asked = parser.parse_args()
    seeds = list(map(int, asked.seeds.split(",")))
    if asked.floor:
        question = Question.of("digits", ("ledger",), seeds=seeds)
        shares, apart = zip(*(floor(question, seed) for seed in seeds), strict=True)
        print(
            f"centralized from {len(STARTS)} other starts, {len(seeds)} splits: share {np.mean(shares):.4f} +- "
            f"{np.std(shares):.4f}, least {np.min(shares):.4f}; {np.mean(apart):.1f} rows are right by one of the two only"
        )
        return
    for rounds in map(int, asked.rounds.split(",")):
        question = Question.of("digits", (asked.method,), rounds=rounds, topology=asked.topology, seeds=seeds)
        found = []
        for seed in seeds:
            given = question.recipe(Ask(asked.method, seed))
            plan = {name: value for name in ("momentum", "eta") if (value := getattr(asked, name)) is not None}
            own = {} if asked.theta is None else {"theta": asked.theta}
            changed = replace(given, plan=replace(given.plan, **plan), method=replace(given.method, **own))
            found.append(parts(question, seed, changed))
        print(f"{rounds} rounds: {told(found)}", flush=True)


if __name__ == "__main__":
    main()
