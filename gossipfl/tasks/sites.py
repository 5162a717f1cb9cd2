"""What is at each site, counted, so that a site with one class or a few rows is named and not forgotten. No model.

Nothing here leaves a site out: such a site trains, mixes and is judged like any other; people are told which they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from gossipfl.tasks.normalisation import MINIMUM
from gossipfl.tasks.task import Data, Site, Task

NAMED: Final = 5
"""Sites that a sentence names before it counts the rest."""


@dataclass(frozen=True)
class SiteFacts:
    """One site: its rows and patients, and how many rows have each label."""

    name: str
    rows: int
    patients: int
    labels: dict[int, int]
    holdout_rows: int
    holdout_labels: dict[int, int]

    @property
    def one_class(self) -> bool:
        """Its training rows have one label only: its own model says the same of everybody."""
        return len(self.labels) == 1

    @property
    def few(self) -> bool:
        """Too few rows to add to the federation's normalisation; it uses what the others found."""
        return self.rows < MINIMUM

    @property
    def undefined(self) -> bool:
        """Its own hold-out has no rows, or one label only: no AUC of its own, though its rows are in the pooled one."""
        return len(self.holdout_labels) < 2


def facts(sites: Sequence[Site]) -> list[SiteFacts]:
    """One a site, in their order."""
    return [
        SiteFacts(
            site.name, len(site.train), len(set(site.train.ids)), _labels(site.train), len(site.holdout), _labels(site.holdout)
        )
        for site in sites
    ]


def sentences(task: Task, sites: Sequence[Site]) -> list[str]:
    """What a person should know of these sites before any figure: sizes, then who is small, has one class, or has no AUC."""
    counted = facts(sites)
    if not counted:
        return []
    sizes = np.array([one.rows for one in counted])
    middle = np.median(sizes)
    said = [f"{len(counted)} sites, {sizes.sum()} training rows: {sizes.min()} to {sizes.max()} a site, median {middle:g}"]
    few = [one.name for one in counted if one.few]
    if few and task.standardise:
        said.append(f"fewer than {MINIMUM} rows, so that the normalisation is the others': {_some(few)}")
    if getattr(task, "classes", 0) < 2:
        return said
    names: Sequence[str] = getattr(task, "class_names", ())
    for label in sorted({label for one in counted for label in one.labels}):
        alone = [one.name for one in counted if one.one_class and label in one.labels]
        if alone:
            called = names[label] if label < len(names) else f"class {label}"
            said.append(f"only {called} among its training rows: {_some(alone)}")
    undefined = [one.name for one in counted if one.undefined]
    if undefined:
        said.append(f"no AUC of its own, with one class or no row held out: {_some(undefined)}")
    return said


def _labels(data: Data) -> dict[int, int]:
    labels, counts = np.unique(data.y, return_counts=True)
    return {int(label): int(count) for label, count in zip(labels, counts, strict=True)}


def _some(names: Sequence[str]) -> str:
    first = ", ".join(names[:NAMED])
    return f"{len(names)} ({first}{', ..' if len(names) > NAMED else ''})"
