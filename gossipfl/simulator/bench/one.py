"""One run: a method on one seed's rows in, one line of plain numbers out. Nothing is averaged over seeds here.

A line is JSON: what a metric does not define, or a model that has diverged does not have, is null, and the number of
diverged nodes stands beside it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from gossipfl.errors import Misuse
from gossipfl.learning import comparing, evaluation
from gossipfl.learning.evaluation import Floats
from gossipfl.simulator import baselines
from gossipfl.simulator.baselines import Fitted
from gossipfl.simulator.bench.network import NETWORKS, Batch, Work, passed
from gossipfl.simulator.bench.question import VERSION, Ask, Dealt, Question, compression, release_compression
from gossipfl.simulator.bench.recipe import Recipe
from gossipfl.simulator.results import LOWER_IS_BETTER, finite
from gossipfl.simulator.vectorized.faults import Faults, Weather
from gossipfl.simulator.vectorized.judging import ALL, sample
from gossipfl.simulator.vectorized.meetings import Meetings
from gossipfl.simulator.vectorized.run import Run
from gossipfl.simulator.vectorized.simulate import simulate
from gossipfl.tasks import Site, Task
from gossipfl.tasks.fitting import layout_of, predict, start
from gossipfl.tasks.normalisation import Normaliser, own_normaliser
from gossipfl.tasks.task import Data, pooled

Line = dict[str, Any]

POINTS: Final = 50
"""Evaluations on the way: the budget is cut into so many parts, and rounds to a goal are known to one of them."""

DRAWS: Final = 500
"""Of patients with replacement: the ends of a 95 % interval are then known to about a tenth of its width."""

WILD: Final = 10.0
"""A model whose log loss is more than so many times that of the untrained model x^0 counts as diverged, finite or not. A model
of one skewed site early in a run has two to four times as much."""

PAIRED: Final[Mapping[str, Callable[[NDArray[Any], Floats], float]]] = {
    "auc": evaluation.auc,
    "accuracy": evaluation.accuracy,
}
"""Metrics of labels and scores, for which patients can be drawn anew."""


def run(question: Question, ask: Ask, data_dir: str | None = None) -> Line:
    """The line of one run.

    **Raises**: ConfigError for data files that are absent or altered; Misuse for a method that this graph would make diverge.
    """
    cpu = time.process_time()
    task = question.rows.loaded()
    sites, test = question.rows.federation(ask.seed, data_dir)
    whole = _centralized(question.rows, ask.seed, data_dir)
    head = {
        "key": question.key(ask),
        "version": VERSION,
        "task": question.task,
        **asdict(ask),
        "metric": task.metric,
        "nodes": len(sites),
        "train_rows": sum(len(site.train) for site in sites),
        "test_rows": len(test),
        "centralized": whole.metrics(test)[task.metric],
    }
    jury = Jury(task, sites, test, whole)
    if ask.method == "centralized":
        found = jury.verdict([whole]) | {"published": _published(question, task, ask.seed, data_dir, whole, test)}
    elif ask.method == "local":
        found = jury.verdict(_alone(task, sites))
    else:
        cpu = time.process_time()
        recipe = question.recipe(ask)
        heard = Heard(_largest(sites) if ask.is_slow else None, is_lower_better=task.metric in LOWER_IS_BETTER)
        made = simulated(question, ask, recipe, task, sites, test, heard=heard)
        spent = time.process_time() - cpu
        found = jury.verdict(_models(task, made, sites), is_judged_by_loss=True)
        found |= _course(made, heard, _durations(question, ask, made, recipe, sites, heard))
        return _line(head | found | {"cpu_s": spent})
    return _line(head | found | {"cpu_s": time.process_time() - cpu})


def attempt(question: Question, data_dir: str | None, ask: Ask) -> Line:
    """`run`; of a method that is refused, which and why, as {"refused": ..}."""
    try:
        return run(question, ask, data_dir)
    except Misuse as error:
        return {"key": question.key(ask), "method": ask.method, "refused": str(error)}


def _line(found: Mapping[str, Any]) -> Line:
    made: Line = finite(found)
    return made


def _alone(task: Task, sites: Sequence[Site]) -> list[Fitted]:
    """Each site's own model; of more than a thousand sites those that a method's models are judged of, too. Its penalty weighs as
    much in all as in the pooled objective, n l2_i = N l2: per row so much more as it has fewer rows. With the same l2 per row a
    small site's model would be over-fitted, and federation flattered."""
    rows, l2 = sum(len(site.train) for site in sites), float(getattr(task, "l2", 0.0))
    alone = [sites[at] for at in sample(len(sites), ALL).tolist()]
    return [baselines.fit(task, site.train, l2 * rows / len(site.train)) for site in alone]


def _largest(sites: Sequence[Site]) -> int:
    """The site with most rows: the one that is slow."""
    return int(np.argmax([len(site.train) for site in sites]))


@dataclass
class Heard:
    """What a run tells on its way: who met whom, and the worst of all nodes but the slow one."""

    slow: int | None = None
    batches: list[Batch] = field(default_factory=list)
    others: dict[int, float] = field(default_factory=dict)
    """round -> metric; of a run with a slow site"""
    is_lower_better: bool = False

    def met(self, round: int, met: Meetings) -> None:
        self.batches.append(Batch(round, met.lo, met.hi, met.sender))

    def judged(self, round: int, scores: Mapping[int, float]) -> None:
        if self.slow is not None:
            values = [score for node, score in scores.items() if node != self.slow]
            worst = max if self.is_lower_better else min
            self.others[round] = math.nan if np.isnan(values).any() else worst(values)


@lru_cache(4)
def _centralized(rows: Dealt, seed: int, data_dir: str | None) -> baselines.Fitted:
    """The pooled model of this seed; every run of the seed is compared with it, so it is kept."""
    return baselines.centralized(rows.loaded(), rows.federation(seed, data_dir)[0])


def _published(
    question: Question, task: Any, seed: int, data_dir: str | None, whole: Fitted, test: Data
) -> Line | None:
    """The published model of this data set beside the pooled one, on the test rows that it scores; None where there is none."""
    own = getattr(task, "published", None)
    if own is None:
        return None
    risks = own(question.nodes, seed, data_dir)
    known = ~np.isnan(risks)
    ours = predict(task, whole.layout, whole.vector, whole.normaliser, test.x)[known]
    gain, low, high = evaluation.auc_gain(test.y[known], risks[known], ours)
    return {
        "model": task.published_model,
        "rows": int(known.sum()),
        "auc": evaluation.auc(test.y[known], risks[known]),
        "centralized": evaluation.auc(test.y[known], ours),
        "gain": gain,
        "low": low,
        "high": high,
    }


def simulated(
    question: Question,
    ask: Ask,
    recipe: Recipe,
    task: Task,
    sites: Sequence[Site],
    test: Data,
    *,
    is_watched: bool = True,
    heard: Heard | None = None,
) -> Run:
    """The rounds of one run on these rows. `is_watched`: judged on the way, too."""
    with np.errstate(over="ignore", invalid="ignore"):  # what runs away is found by its judge
        return simulate(
            task,
            nodes=len(sites),
            sites=sites,
            test=test,
            topology=question.meeting(ask.seed),
            rounds=question.rounds,
            faults=_faults(question, ask, sites),
            seed=ask.seed,
            threads=1,
            evaluate_every=max(1, question.rounds // POINTS) if is_watched else question.rounds,
            evaluate_nodes=ALL,
            compression=compression(ask.method),
            release_compression=release_compression(ask.method),
            listener=heard,
            **recipe.keywords(),
        )


def _faults(question: Question, ask: Ask, sites: Sequence[Site]) -> Faults:
    slow = (_largest(sites),) if ask.is_slow else ()
    times = max(network.slow_times for network in NETWORKS)
    return Faults(dropout=question.dropout, stragglers=question.stragglers, slow_sites=slow, slow_times=times)


def _durations(
    question: Question, ask: Ask, made: Run, recipe: Recipe, sites: Sequence[Site], heard: Heard
) -> dict[str, Floats]:
    """By network, the modelled seconds from the start to the end of each round. A slow site is met by who waits for it in the
    plain run, by the others in the run that has one."""
    if made.sent is None or made.stepped is None:
        return {}
    layout, method, plan = made.state.layout, recipe.method, recipe.plan
    ends = 2 if method.combine in ("pairs", "edges") and not method.is_local else 1
    message = int(made.sent.sum()) / max(1, ends * made.exchanges)
    rows = np.array([len(site.train) for site in sites])
    down = (made.server_bytes - made.bytes) / max(1, made.bytes) if method.has_server else 1.0
    weather = Weather(_faults(question, ask, sites), len(sites), question.rounds, ask.seed)
    pace = plan.steps / weather.steps(plan.steps)
    batch = np.minimum(rows, plan.batch_size or int(rows.max()))
    work = Work(
        method.combine, made.stepped, made.sent, message, layout.n_parameters, batch, _largest(sites), down, heard.batches, pace
    )  # fmt: skip
    waits = method.has_server
    shown = [one for one in NETWORKS if waits or (one.slow_times > 1) == ask.is_slow]
    return {network.name: passed(network, work) for network in shown}


def _models(task: Task, made: Run, sites: Sequence[Site]) -> list[Fitted]:
    """Every node's model, up to a thousand of them."""
    normaliser = own_normaliser(pooled([site.train for site in sites])) if task.standardise else Normaliser.none()
    nodes = sample(made.nodes, ALL).tolist()
    return [Fitted(task, made.state.layout, made.state.vector(node), normaliser) for node in nodes]


def _course(made: Run, heard: Heard, durations: Mapping[str, Floats]) -> Line:
    """What the rounds cost, and the metric on the way; of a run with a slow site, the worst of the others, too."""
    curve, exchanges, sent = [], 0, 0
    for record in made.records:
        exchanges, sent = exchanges + record.exchanges, sent + record.bytes
        if not math.isnan(record.mean):
            values = {name: getattr(record, name) for name in ("worst", "p5", "median", "mean", "consensus")}
            took = {name: float(until[record.round]) for name, until in durations.items()}
            if heard.slow is not None:
                values["others"] = heard.others[record.round]
            curve.append({"round": record.round + 1, "bytes_per_node": sent / made.nodes, **values, "seconds": took})
    return {
        "rounds": made.done,
        "way": made.way,
        "exchanges": exchanges,
        "bytes_per_node": sent / made.nodes,
        "server_bytes": made.server_bytes,
        "consensus": made.records[-1].consensus,
        "curve": curve,
    }


@dataclass(frozen=True, eq=False)
class Jury:
    """Judges nodes' models on the pooled test rows, and each on its own site's; compares the worst with the pooled model."""

    task: Task
    sites: Sequence[Site]
    test: Data
    whole: Fitted

    def verdict(self, models: Sequence[Fitted], *, is_judged_by_loss: bool = False) -> Line:
        """Spread over nodes, losses, own rows, the worst node beside centralized. `is_judged_by_loss`: a model far worse than
        the untrained one counts as diverged; a site's own may be so by nature, with one class."""
        scores = [self._scores(model) for model in models]
        metrics = [self._metrics(*pair) for pair in zip(models, scores, strict=True)]
        limit = WILD * self._untrained() if is_judged_by_loss else math.inf
        values = [
            one.get(self.task.metric, math.nan) if one.get("log_loss", 0.0) <= limit else math.nan for one in metrics
        ]
        found = comparing.spread(values, self.task.metric)
        losses = {name: [one.get(name, math.nan) for one in metrics] for name in ("brier", "calibration", "log_loss")}
        return {
            "diverged": int(np.isnan(values).sum()),
            "score": {name: getattr(found, name) for name in ("worst", "low", "median", "mean", "best")},
            **{name: float(np.mean(held)) for name, held in losses.items()},
            "against_centralized": self._paired(values, scores),
            "delong": self._single(values, scores),
            "sites": {
                "name": [site.name for site in self.sites] if len(models) == len(self.sites) else [],
                "rows": [len(site.train) for site in self.sites],
                "score": values,
                "own_log_loss": self._own(scores) if len(models) == len(self.sites) else [],
            },
        }

    def _scores(self, model: Fitted) -> Floats | None:
        """None of a model that is not finite, or of a task that has no scores."""
        if not hasattr(self.task, "metrics") or not np.isfinite(model.vector).all():
            return None
        return predict(self.task, model.layout, model.vector, model.normaliser, self.test.x)

    def _metrics(self, model: Fitted, scores: Floats | None) -> dict[str, float]:
        own: Any = self.task
        if scores is not None:
            return dict(own.metrics(self.test.y, scores))
        return {} if hasattr(own, "metrics") or not np.isfinite(model.vector).all() else model.metrics(self.test)

    def _untrained(self) -> float:
        layout = layout_of(self.task)
        vector = start(self.task, layout, 0)
        return Fitted(self.task, layout, vector, self.whole.normaliser).metrics(self.test).get("log_loss", math.inf)

    def _paired(self, values: Sequence[float], scores: Sequence[Floats | None]) -> Line | None:
        """The worst node's metric less the pooled model's, over patients drawn anew; None where there is nothing to compare."""
        metric, best = PAIRED.get(self.task.metric), self._scores(self.whole)
        if metric is None or best is None or np.isnan(values).any():
            return None
        sign = -1 if self.task.metric in LOWER_IS_BETTER else 1
        worst = scores[int(np.argmin(sign * np.asarray(values)))]
        assert worst is not None
        found = comparing.bootstrap(self.test.y, worst, best, metric, patients=self.test.ids, draws=DRAWS)
        return {"difference": found.middle, "low": found.low, "high": found.high}

    def _single(self, values: Sequence[float], scores: Sequence[Floats | None]) -> Line | None:
        """The worst node's AUC with its interval over patients, by DeLong; None for another metric, or where one diverged."""
        worst = None if self.task.metric != "auc" or np.isnan(values).any() else scores[int(np.argmin(values))]
        if worst is None:
            return None
        low, high = evaluation.auc_interval(self.test.y, worst)
        return {"auc": float(np.min(values)), "low": low, "high": high}

    def _own(self, scores: Sequence[Floats | None]) -> list[float]:
        """The log loss of each site's model on its own held-out rows; NaN where it has none, as where one test set judges all."""
        sizes = [len(site.holdout) for site in self.sites]
        if sum(sizes) != len(self.test):
            return [math.nan] * len(sizes)
        losses = []
        for size, end, one in zip(sizes, np.cumsum(sizes), scores, strict=True):
            rows = slice(end - size, end)
            losses.append(math.nan if one is None else evaluation.log_loss(self.test.y[rows], one[rows]))
        return losses
