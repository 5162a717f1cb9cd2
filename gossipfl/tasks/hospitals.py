"""A task whose sites are the real hospitals of one public table: who has which rows, and which of them judge. No files.

`stroke` and `icu` are this with a table each. Patients are parted inside each hospital by a hash (tasks.split.by_patient).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, Final

import numpy as np
from numpy.typing import NDArray

from gossipfl.errors import ConfigError, Fault, Misuse
from gossipfl.tasks.classifier import Classifier
from gossipfl.tasks.published import Published
from gossipfl.tasks.split import by_patient
from gossipfl.tasks.task import Data, Floats, Key, Site, pooled, settings

TEST_SHARE: Final = 0.3
"""Of each hospital's patients."""

PART: Final = 'part: "train", "test" or "pooled-test"'


@dataclass(frozen=True, eq=False)
class Table:
    """All rows of a public data set that have an outcome. **Shapes**: hospital n names, published (n,)."""

    data: Data
    hospital: tuple[str, ...]
    published: Floats
    """the risk that a published model gave each row; NaN where it gave none"""
    left_out: Mapping[str, int]
    """rows that are not in it, by reason"""

    def of_hospitals(self, least: int) -> Table:
        """The rows of hospitals with at least `least` of them, ordered by hospital; the others are counted, not forgotten."""
        rows = Counter(self.hospital)
        names = np.array(self.hospital)
        kept = np.array([rows[name] >= least for name in self.hospital], dtype=bool)
        chosen = np.flatnonzero(kept)
        chosen = chosen[np.argsort([int(name) for name in names[chosen]], kind="stable")]
        few = sum(count < least for count in rows.values())
        reason = f"at {few} hospitals with fewer than {least} patients"
        left_out = {**self.left_out, **({reason: int((~kept).sum())} if few else {})}
        return Table(self.data.rows(chosen), tuple(names[chosen].tolist()), self.published[chosen], left_out)


@dataclass(frozen=True, eq=False)
class Hospitals(Classifier):
    """Logistic regression over real hospitals, named hospital-N by their number in the data set.

    **Randomness**: none; the seed names one of as many partings into training and test patients as one likes, of which
    0 to 4 are the benchmark's.
    """

    least: int = 1
    """hospitals with fewer rows are left out, and counted in `left_out`"""
    files: ClassVar[Published]
    published_model: ClassVar[str] = ""
    """whose risks `published` are"""
    all_sites: ClassVar[int] = 0

    def everything(self, folder: Path) -> Table:
        """All rows with an outcome, read from `folder`."""
        raise NotImplementedError

    def left_out(self, data_dir: str | Path | None = None) -> dict[str, int]:
        """Rows of the data set that no site has, by reason."""
        return dict(_table(self, self.files.at(data_dir)).left_out)

    def demo_sites(self, n: int, seed: int, data_dir: str | Path | None = None) -> tuple[list[Site], Data]:
        """The `n` hospitals with most rows, each with its own hold-out, and these hold-outs pooled. Whatever `n`, a hospital's
        rows are the same.

        **Raises**: ConfigError where the files are absent or differ; Misuse where there are fewer hospitals than `n`.
        """
        folder = self.files.at(data_dir)
        sites = [_site(self, folder, name, seed) for name in self._largest(folder, n)]
        return sites, pooled([site.holdout for site in sites])

    def published(self, n: int, seed: int, data_dir: str | Path | None = None) -> Floats:
        """The published model's risks of demo_sites' pooled test rows, in their order; NaN where it gave none."""
        folder = self.files.at(data_dir)
        table, rows, test = _table(self, folder), _where(self, folder), _test(self, folder, seed)
        held_out = [rows[name][test[rows[name]]] for name in self._largest(folder, n)]
        return table.published[np.concatenate(held_out)]

    def demo_sources(self, n: int, seed: int, data_dir: str | Path | None = None) -> list[dict[str, Any]]:
        """The `[data]` tables with which `n` nodes read what `demo_sites` gives."""
        folder = self.files.at(data_dir)
        said = {"sites": n, "seed": seed, "data_dir": str(folder.parent.resolve())}
        return [{"hospital": name, **said} for name in self._largest(folder, n)]

    def judged_by(self, source: Mapping[str, Any]) -> Data:
        """The test rows of all hospitals of the federation: the files are public, and lie in one folder."""
        return self.data({**source, "part": "pooled-test"})

    def data(self, source: Mapping[str, Any]) -> Data:
        """One hospital's training rows, its test rows, or the test rows of the `sites` largest."""
        chosen = settings(source, _KEYS)
        folder = self.files.at(chosen["data_dir"])
        if chosen["part"] == "pooled-test":
            return self.demo_sites(chosen["sites"] or self.all_sites, chosen["seed"], chosen["data_dir"])[1]
        if chosen["hospital"] not in _where(self, folder):
            largest = self._largest(folder, 1)[0]
            has = f"hospital: the number of one of {len(_where(self, folder))} hospitals, as text, for instance {largest!r}"
            raise ConfigError(Fault("[data]", None, f"hospital = {chosen['hospital']!r}", has))
        site = _site(self, folder, chosen["hospital"], chosen["seed"])
        return site.holdout if chosen["part"] == "test" else site.train

    def _largest(self, folder: Path, n: int) -> list[str]:
        where = _where(self, folder)
        if not 1 <= n <= len(where):
            raise Misuse(f"{self.name} has {len(where)} hospitals, not {n}: run it with --nodes {len(where)} or fewer")
        chosen = set(sorted(where, key=lambda name: -len(where[name]))[:n])
        return [name for name in where if name in chosen]


_KEYS: Final = {
    "hospital": Key("", str, says="hospital: its number in the data set, as text"),
    "sites": Key(0, int, lambda n: n >= 0, "sites: of how many hospitals, the largest; 0: of all"),
    "seed": Key(0, int, lambda n: n >= 0, "seed: which parting into training and test patients, 0 or more"),
    "data_dir": Key(None, (str, type(None)), says="data_dir: the folder that holds the data set's"),
    "part": Key("train", str, lambda p: p in ("train", "test", "pooled-test"), PART),
}


# Kept by what decides them, the class, the smallest hospital and the folder: tasks are made anew for each run.


def _table(task: Hospitals, folder: Path) -> Table:
    return _read(_kind(task), task.least, folder)


def _where(task: Hospitals, folder: Path) -> dict[str, NDArray[np.int64]]:
    """The rows of each hospital, in the order of their numbers."""
    return _rows(_kind(task), task.least, folder)


def _test(task: Hospitals, folder: Path, seed: int) -> NDArray[np.bool_]:
    return _parted(_kind(task), task.least, folder, seed)


def _kind(task: Hospitals) -> Any:
    return type(task)


@lru_cache(8)
def _read(kind: Any, least: int, folder: Path) -> Table:
    task: Hospitals = kind()
    return task.everything(folder).of_hospitals(least)


@lru_cache(8)
def _rows(kind: Any, least: int, folder: Path) -> dict[str, NDArray[np.int64]]:
    at: dict[str, list[int]] = {}
    for row, name in enumerate(_read(kind, least, folder).hospital):
        at.setdefault(name, []).append(row)
    return {name: np.array(rows, dtype=np.int64) for name, rows in at.items()}


@lru_cache(16)
def _parted(kind: Any, least: int, folder: Path, seed: int) -> NDArray[np.bool_]:
    table = _read(kind, least, folder)
    return by_patient(table.hospital, table.data.ids, TEST_SHARE, f"test {seed}")


def _site(task: Hospitals, folder: Path, name: str, seed: int) -> Site:
    table, rows, test = _table(task, folder), _where(task, folder)[name], _test(task, folder, seed)
    return Site(f"hospital-{name}", table.data.rows(rows[~test[rows]]), table.data.rows(rows[test[rows]]))
