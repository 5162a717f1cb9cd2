"""The bar: how near to centralized does the worst hospital come, with default settings, no server, and 30 % absent each round?

    GOSSIPFL_DATA=.. python simulations/bar.py [stroke icu heart digits] [--seeds 0,1,2,3,4] [--json bar.json]

Every split is printed, FedAvg with the same participation beside it. Test rows judge and choose nothing. The settings are
those of gossipfl.simulator.bench.recipe; `gossipfl bench` has other methods, other graphs and curves.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from gossipfl import simulate
from gossipfl.learning import comparing, evaluation
from gossipfl.simulator import baselines
from gossipfl.simulator.baselines import Fitted
from gossipfl.simulator.bench.question import Ask, Dealt, Question
from gossipfl.tasks.fitting import predict
from gossipfl.tasks.normalisation import Normaliser, own_normaliser
from gossipfl.tasks.task import pooled

METRICS = {"auc": evaluation.auc, "accuracy": evaluation.accuracy}
DRAWS = 500
"""Of patients with replacement, as in `gossipfl bench`."""

MARGIN = -0.01
"""The lower bound of the worst node's difference from centralized stays above it."""


@dataclass(frozen=True)
class Goal:
    """A row of the bar: a task, so many rounds, and the share of centralized that the worst node must reach."""

    task: str
    rounds: int
    share: float
    topology: str | None = None

    def __str__(self) -> str:
        return f"{self.task}, {self.rounds} rounds" + (f", {self.topology}" if self.topology else "")


GOALS = (
    Goal("stroke", 400, 0.995),
    Goal("stroke", 100, 0.995),
    Goal("stroke", 50, 0.99),
    Goal("icu", 400, 0.995),
    Goal("icu", 100, 0.99),
    Goal("icu", 50, 0.99),
    Goal("heart", 50, 0.99),
    Goal("digits", 300, 0.99),
    Goal("digits", 100, 0.98),
    Goal("digits", 50, 0.96),
    Goal("digits", 50, 0.97, "random-matching"),
)
"""Of issue and stretch: stroke and icu at 50 rounds are the stretch."""


@lru_cache(1)
def rows_of(rows: Dealt, seed: int, data_dir: str | None) -> tuple[Any, Any, Fitted]:
    """Sites, test rows and the centralized model of a split; kept for its next budget."""
    sites, test = rows.federation(seed, data_dir)
    return sites, test, baselines.centralized(rows.loaded(), sites)


def models(question: Question, method: str, seed: int, data_dir: str | None) -> tuple[list[Fitted], float]:
    """Every node's model after the rounds (a server's only once), and the bytes that a node sent."""
    task = question.rows.loaded()
    sites, test, _ = rows_of(question.rows, seed, data_dir)
    made = simulate(
        task, nodes=len(sites), sites=sites, test=test, topology=question.meeting(seed), rounds=question.rounds,
        faults={"dropout": question.dropout}, seed=seed, threads=1, evaluate_every=0,
        **question.recipe(Ask(method, seed)).keywords(),
    )  # fmt: skip
    normaliser = own_normaliser(pooled([site.train for site in sites])) if task.standardise else Normaliser.none()
    count = 1 if method == "fedavg" else made.nodes
    found = [Fitted(task, made.state.layout, made.state.vector(node), normaliser) for node in range(count)]
    return found, made.bytes / made.nodes


def split(goal: Goal, seed: int, data_dir: str | None) -> dict[str, Any]:
    """One split of one goal: the worst node beside centralized and beside FedAvg."""
    question = Question.of(goal.task, ("ledger", "fedavg"), rounds=goal.rounds, topology=goal.topology, seeds=(seed,))
    sites, test, central = rows_of(question.rows, seed, data_dir)
    task = question.rows.loaded()
    metric = METRICS[task.metric]

    def scores(model: Fitted) -> Any:
        return predict(task, model.layout, model.vector, model.normaliser, test.x)

    began = time.process_time()
    nodes, sent = models(question, "ledger", seed, data_dir)
    spent = time.process_time() - began
    (served,), sent_served = models(question, "fedavg", seed, data_dir)
    every = [scores(node) for node in nodes]
    values = np.array([metric(test.y, one) for one in every])
    worst = every[int(values.argmin())]
    whole, fedavg = scores(central), scores(served)
    gap = comparing.bootstrap(test.y, worst, whole, metric, patients=test.ids, draws=DRAWS)
    gain = comparing.bootstrap(test.y, worst, fedavg, metric, patients=test.ids, draws=DRAWS)
    best = metric(test.y, whole)
    return {
        "task": goal.task, "rounds": goal.rounds, "topology": question.topology, "goal": goal.share, "seed": seed,
        "metric": task.metric, "centralized": best, "worst": float(values.min()), "share": float(values.min()) / best,
        "median_share": float(np.median(values)) / best, "fedavg_share": metric(test.y, fedavg) / best,
        "difference": gap.middle, "low": gap.low, "high": gap.high,
        "over_fedavg": gain.middle, "over_fedavg_low": gain.low, "over_fedavg_high": gain.high,
        "bytes_a_node": sent, "fedavg_bytes_a_node": sent_served, "cpu_s": spent,
        "rows": [sum(len(site.train) for site in sites), len(test)],
    }  # fmt: skip


def told(row: dict[str, Any]) -> str:
    return (
        f"  seed {row['seed']}  {row['metric']} worst {row['worst']:.4f}, centralized {row['centralized']:.4f}:"
        f" {row['share']:.4f} (median {row['median_share']:.4f}, FedAvg {row['fedavg_share']:.4f})"
        f"  difference {row['difference']:+.4f} [{row['low']:+.4f}, {row['high']:+.4f}]"
        f"  beside FedAvg {row['over_fedavg']:+.4f} [{row['over_fedavg_low']:+.4f}, {row['over_fedavg_high']:+.4f}]"
        f"  {row['cpu_s']:.0f} s"
    )


def closing(goal: Goal, rows: list[dict[str, Any]]) -> str:
    """Reached or not, and both differences over the splits (Nadeau and Bengio)."""
    shares, (train, test) = [row["share"] for row in rows], rows[0]["rows"]
    reached = sum(share >= goal.share for share in shares)
    gap = comparing.corrected_t([row["difference"] for row in rows], train, test)
    gain = comparing.corrected_t([row["over_fedavg"] for row in rows], train, test)
    return (
        f"  {reached} of {len(rows)} splits at {goal.share:.1%} or more: least {min(shares):.4f}, mean {np.mean(shares):.4f};"
        f" difference over splits {gap.middle:+.4f} [{gap.low:+.4f}, {gap.high:+.4f}]"
        f"{'' if gap.low > MARGIN else ' NOT above -.01'};"
        f" beside FedAvg {gain.middle:+.4f} [{gain.low:+.4f}, {gain.high:+.4f}]"
    )


HEAD = (
    "| | goal | worst node over centralized, seeds 0 to 4 | lowest bound, patients | difference over splits | FedAvg over "
    "centralized | beside FedAvg, over splits | kB a node: ours, FedAvg |",
    "|---|---|---|---|---|---|---|---|",
)


def page(rows: list[dict[str, Any]]) -> str:
    """The table of docs/benchmarks.md."""
    goals = {(row["task"], row["rounds"], row["topology"]): row["goal"] for row in rows}
    return "\n".join((*HEAD, *(_line([row for row in rows if _of(row) == goal]) for goal in goals)))


def _of(row: dict[str, Any]) -> tuple[str, int, str]:
    return row["task"], row["rounds"], row["topology"]


def _line(rows: list[dict[str, Any]]) -> str:
    task, rounds, topology = _of(rows[0])
    gap, gain = (
        comparing.corrected_t([row[name] for row in rows], *rows[0]["rows"]) for name in ("difference", "over_fedavg")
    )
    cells = (
        f"{task}, {topology}, {rounds} rounds",
        f"{100 * rows[0]['goal']:g} %",
        " ".join(f"{row['share']:.4f}" for row in rows),
        f"{min(row['low'] for row in rows):+.4f}",
        f"{gap.middle:+.4f} [{gap.low:+.4f}, {gap.high:+.4f}]",
        f"{np.mean([row['fedavg_share'] for row in rows]):.4f}",
        f"{gain.middle:+.4f} [{gain.low:+.4f}, {gain.high:+.4f}]",
        f"{np.mean([row['bytes_a_node'] for row in rows]) / 1000:.0f}, "
        f"{np.mean([row['fedavg_bytes_a_node'] for row in rows]) / 1000:.0f}",
    )
    return f"| {' | '.join(cells)} |"


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="*", help="stroke icu heart digits; all, if none is named")
    parser.add_argument("--seeds", default="0,1,2,3,4", help="splits, with commas between")
    parser.add_argument("--data-dir", help="the folder of the data sets; else GOSSIPFL_DATA names it")
    parser.add_argument("--json", help="a file for all figures")
    parser.add_argument("--page", help="runs nothing: the table of such a file, as docs/benchmarks.md has it")
    asked = parser.parse_args(arguments)
    if asked.page:
        with open(asked.page, encoding="utf-8") as file:
            print(page(json.load(file)))
        return
    seeds, rows = list(map(int, asked.seeds.split(","))), []
    for task in asked.tasks or dict.fromkeys(goal.task for goal in GOALS):
        goals = [goal for goal in GOALS if goal.task == task]
        found: dict[Goal, list[dict[str, Any]]] = {goal: [] for goal in goals}
        for seed in seeds:
            for goal in goals:
                found[goal].append(split(goal, seed, asked.data_dir))
        for goal in goals:
            print(goal, *map(told, found[goal]), closing(goal, found[goal]), sep="\n", flush=True)
            rows += found[goal]
    if asked.json:
        with open(asked.json, "w", encoding="utf-8") as file:
            json.dump(rows, file, indent=1)


if __name__ == "__main__":
    main(sys.argv[1:])
