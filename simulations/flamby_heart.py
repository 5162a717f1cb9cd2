"""FLamby's heart table reproduced, and why its federated models look worse than its pooled one.

    python simulations/flamby_heart.py --data-dir DIR

Fed-Heart-Disease as published: each centre normalised by its own mean and spread, a linear model from a random start, batches of
four; pooled: 50 epochs of Adam at .001; FedAvg: 15 rounds of 100 steps of SGD at .001; accuracy at .5 on the 254 pooled test
rows, seeds 42 to 46. Then the same FedAvg with the federation's common normalisation and ten times the rate.

**Source**: Ogier du Terrail et al., "FLamby" (2022), Fed-Heart-Disease, its configuration of batch size, rates and rounds.
**Differs**: batches are this package's permutations, so that single seeds differ and their mean and spread compare; the start
has the intercept at 0, and one logit with the loss on it stands for a sigmoid in the model.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from gossipfl.learning.training import Plan
from gossipfl.simulator.vectorized.simulate import simulate
from gossipfl.tasks import Site, load
from gossipfl.tasks.fitting import evaluate
from gossipfl.tasks.heart import PUBLISHED
from gossipfl.tasks.normalisation import Normaliser, own_normaliser
from gossipfl.tasks.task import Data, pooled

SEEDS = range(42, 47)
BATCH = 4
RATE = 0.001
EPOCHS = 50
UPDATES = 100
ROUNDS = 15
"""486 rows in batches of 4 are 121 steps an epoch; 50 epochs over 4 centres, 100 steps a round."""


@dataclass(frozen=True)
class Figures:
    """One a seed."""

    accuracy: np.ndarray
    auc: np.ndarray

    def __str__(self) -> str:
        return f"accuracy {self.accuracy.mean():.3f} +- {self.accuracy.std():.3f}, AUC {self.auc.mean():.3f}"


def normalised(data: Data, by: Data) -> Data:
    return Data(own_normaliser(by).apply(data.x), data.y, data.ids, data.names)


def centres(data_dir: str | None, *, is_common: bool) -> tuple[list[Site], Data]:
    """The four centres, normalised by their own training rows or by all, and their test rows pooled, normalised by all."""
    raw, test = load("heart").demo_sites(4, 0, data_dir)
    everybody = pooled([site.train for site in raw])
    judged = normalised(test, everybody)
    return [
        Site(site.name, normalised(site.train, everybody if is_common else site.train), judged) for site in raw
    ], judged


def trained(
    sites: list[Site], test: Data, plan: Plan, rounds: int, method: str, seeds: Iterable[int] = SEEDS
) -> Figures:
    task = load("heart", {"standardise": False, "l2": 0.0})
    found = []
    for seed in seeds:
        run = simulate(
            task, nodes=len(sites), sites=sites, test=test, plan=plan, rounds=rounds, method=method, eta_schedule="constant",
            masses=[len(site.train) for site in sites], seed=seed, evaluate_every=0, threads=1,
        )  # fmt: skip
        found.append(evaluate(task, run.state.layout, run.state.vector(0), Normaliser.none(), test))
    return Figures(*(np.array([one[name] for one in found]) for name in ("accuracy", "auc")))


def pooled_model(data_dir: str | None, seeds: Iterable[int] = SEEDS) -> Figures:
    """As published."""
    sites, test = centres(data_dir, is_common=True)
    everybody = pooled([site.train for site in sites])
    plan = Plan(len(everybody) // BATCH, RATE, BATCH, "adam")
    return trained([Site("pooled", everybody, test)], test, plan, EPOCHS, "local", seeds)


def fedavg(data_dir: str | None, *, rate: float = RATE, is_common: bool = False) -> Figures:
    """As published, or with another rate and the common normalisation."""
    sites, test = centres(data_dir, is_common=is_common)
    return trained(sites, test, Plan(UPDATES, rate, BATCH), ROUNDS, "fedavg")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", help="folder that holds uci-heart/; or GOSSIPFL_DATA")
    folder = parser.parse_args().data_dir
    for name, found in (("pooled", pooled_model(folder)), ("FedAvg", fedavg(folder))):
        middle, spread = PUBLISHED[name]
        print(f"{name:<8} published {middle:.3f} +- {spread:.3f}; here {found}")
    print(f"FedAvg, ten times the rate: {fedavg(folder, rate=10 * RATE)}")
    print(f"FedAvg, common normalisation: {fedavg(folder, is_common=True)}")
    print(f"FedAvg, both: {fedavg(folder, rate=10 * RATE, is_common=True)}")
