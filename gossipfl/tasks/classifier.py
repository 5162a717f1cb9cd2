"""A linear or small MLP classifier on a table of numbers: what four of the five built-in tasks are. No data here."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gossipfl.learning import evaluation
from gossipfl.tasks import partition
from gossipfl.tasks.task import Data, Floats, Key, Site, Vector, settings

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor, nn


@dataclass(frozen=True, eq=False)
class Classifier:
    """Logistic regression (no `hidden`) or an MLP; two classes have one logit and are judged by AUC, more by accuracy.

    **Shapes**: x (B, width) -> logits (B, 1) for two classes, (B, classes) for more.
    """

    name: str
    columns: tuple[str, ...]
    classes: int = 2
    hidden: tuple[int, ...] = ()
    standardise: bool = True
    l2: float = 0.0

    @property
    def features(self) -> tuple[str, ...]:
        return self.columns if self.standardise else ()

    @property
    def metric(self) -> str:
        return "auc" if self.classes == 2 else "accuracy"

    def model(self) -> nn.Module:
        from torch import nn

        widths = [len(self.columns), *self.hidden]
        body: list[nn.Module] = []
        for below, above in pairwise(widths):
            body += [nn.Linear(below, above), nn.ReLU()]
        return nn.Sequential(*body, nn.Linear(widths[-1], 1 if self.classes == 2 else self.classes))

    def loss(self, module: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        from torch.nn import functional

        logits: Tensor = module(x)
        if self.classes == 2:
            return functional.binary_cross_entropy_with_logits(logits.squeeze(-1), y.to(logits.dtype))
        return functional.cross_entropy(logits, y.long())

    def scores(self, module: nn.Module, x: Tensor) -> Floats:
        """Probabilities. **Shapes**: (n,) of class 1 for two classes, (n, classes) for more."""
        logits = module(x).detach().double()
        chances = logits.squeeze(-1).sigmoid() if self.classes == 2 else logits.softmax(-1)
        return np.asarray(chances.cpu().numpy(), dtype=np.float64)

    def score(self, y: Vector, scores: Floats) -> float:
        """The task's metric alone: `metrics` takes four times as long."""
        return evaluation.auc(y, scores) if self.classes == 2 else evaluation.accuracy(y, scores)

    def metrics(self, y: Vector, scores: Floats) -> dict[str, float]:
        return evaluation.binary(y, scores) if self.classes == 2 else evaluation.multiclass(y, scores)


SPLIT_KEYS: dict[str, Key] = {
    "sites": Key(1, int, lambda n: n >= 1, "sites: into how many the rows are parted, 1 or more"),
    "site": Key(0, int, lambda n: n >= 0, "site: which of them, counted from 0"),
    "seed": Key(0, int, lambda n: n >= 0, "seed: a number, 0 or more"),
    "part": Key("train", str, lambda p: p in ("train", "test"), 'part: "train" or "test"'),
}
"""`[data]` of a task whose rows ship with scikit-learn: which share of them plays this hospital."""

TEST_SHARE = 0.3
"""Held out, the same patients for every site and method: 171 of 569 leave AUC a standard error of about .005."""


@dataclass(frozen=True, eq=False)
class Bundled(Classifier):
    """A classifier on one bundled data set, parted among make-believe hospitals: sizes 1 to 8, Dirichlet labels."""

    alpha: float = 0.3
    """concentration of the labels; .3 leaves most sites with one class in the clear majority"""
    ratio: float = 8.0
    """largest site over smallest"""

    def everything(self) -> Data:
        """All rows."""
        raise NotImplementedError

    def demo_sites(self, n: int, seed: int, data_dir: str | Path | None = None) -> tuple[list[Site], Data]:
        """`n` sites with skewed sizes and labels, and the held-out patients that all are judged by.

        **Randomness**: PCG64 of `seed`; the same sites on any machine.
        """
        rng = np.random.Generator(np.random.PCG64(seed))
        data = self.everything()
        train, test = partition.stratified(data.y, TEST_SHARE, rng)
        sizes = partition.skewed_sizes(len(train), n, self.ratio)
        least = 2 if self.classes == 2 else 0
        parts = partition.dirichlet(data.y[train], sizes, self.alpha, rng, least=least)
        held_out = data.rows(test)
        sites = [Site(f"hospital-{i + 1}", data.rows(train[part]), held_out) for i, part in enumerate(parts)]
        return sites, held_out

    def demo_sources(self, n: int, seed: int, data_dir: str | Path | None = None) -> list[dict[str, Any]]:
        """The `[data]` tables with which `n` nodes read what `demo_sites` gives."""
        return [{"site": site, "sites": n, "seed": seed} for site in range(n)]

    def judged_by(self, source: Mapping[str, Any]) -> Data:
        """The held-out patients, the same for every site."""
        return self.data({**source, "part": "test"})

    def data(self, source: Mapping[str, Any]) -> Data:
        """The rows of `site` out of `sites`: the same as demo_sites gives."""
        chosen = settings(source, {**SPLIT_KEYS, "site": Key(0, int, *_below(source.get("sites", 1)))})
        sites, test = self.demo_sites(chosen["sites"], chosen["seed"])
        return test if chosen["part"] == "test" else sites[chosen["site"]].train


def _below(sites: Any) -> tuple[Any, str]:
    limit = sites if isinstance(sites, int) else 1
    return (lambda site: 0 <= site < limit), f"site: which of the {limit} sites, counted from 0"
