"""heart: four real hospitals (Cleveland, Budapest, Zurich and Basel, Long Beach); their files lie in a data directory.

The files are never shipped with gossipfl; each is checked by its sha256 before a row is read.

**Source**: Janosi, Steinbrunn, Pfisterer, Detrano, "Heart Disease", UCI Machine Learning Repository (1988), CC BY 4.0.
Split and columns are those of Fed-Heart-Disease in Ogier du Terrail et al., "FLamby" (2022); `heart-920` has every row.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, Final

import numpy as np

from gossipfl.errors import ConfigError, Fault, Misuse
from gossipfl.tasks.classifier import Classifier
from gossipfl.tasks.published import Published
from gossipfl.tasks.task import Data, Key, Site, pooled, settings

SHA256: Final = {
    "cleveland": "a74b7efa387bc9d108d7d0115d831fe9b414b29ae7124f331b622b4efa0427c8",
    "hungarian": "d1ad108f785768cd3d7e82dc522e6f5a61eea93cccfb3a46ee8076f73fc3d796",
    "switzerland": "834a405ccf5b66ab4056bb77794adc8df0b7125186454c0a1d002d33c6c3b314",
    "va": "e7c93d8d0d2acdadfa4c5e8de768e2191e7f618b952e29623f1f0d5949ff6b8f",
}
HOSPITALS: Final = tuple(SHA256)
FILES: Final = Published(
    "uci-heart",
    {f"processed.{name}.data": digest for name, digest in SHA256.items()},
    "the UCI Machine Learning Repository, data set 45 (heart disease)",
    "CC BY 4.0",
)
FEATURES: Final = (
    "age", "sex", "resting blood pressure", "cholesterol", "fasting blood sugar above 120", "maximum heart rate",
    "exercise angina", "ST depression", "chest pain=2", "chest pain=3", "chest pain=4",
    "resting ecg=1", "resting ecg=2",
)  # fmt: skip
"""Years, 1 is male, mmHg, mg/dL, mg/dL, /min, -, mm; else 0 or 1. Known before the angiography that settles the label."""

SPLIT_SEED: Final = 43
"""FLamby's; another would not compare with published figures."""

PUBLISHED: Final = {
    "pooled": (0.795, 0.003), "FedAvg": (0.748, 0.027), "FedProx": (0.748, None), "SCAFFOLD": (0.748, None),
    "FedAdam": (0.779, None), "cyclic": (0.785, None), "best local": (0.784, None), "worst local": (0.483, None),
}  # fmt: skip
"""Accuracy at .5 on the 254 pooled test rows of `heart`, mean and standard deviation over training seeds 42 to 46, where
the spread is known here. **Source**: Ogier du Terrail et al., "FLamby" (2022), Fed-Heart-Disease."""

SOURCE_KEYS: Final = {
    "hospital": Key("cleveland", str, lambda h: h in SHA256, f"hospital: one of {', '.join(SHA256)}"),
    "data_dir": Key(None, (str, type(None)), says="data_dir: the folder that holds uci-heart/"),
    "part": Key(
        "train", str, lambda p: p in ("train", "test", "pooled-test"), 'part: "train", "test" or "pooled-test"'
    ),
    "seed": Key(0, int, lambda n: n >= 0, "seed: which parting into training and test patients, where it is not fixed"),
}


@dataclass(frozen=True, eq=False)
class Heart(Classifier):
    """Is there heart disease, by logistic regression on 13 columns.

    **Differs**: one logit and binary cross-entropy on it, where FLamby has a sigmoid in the model: the same function.
    Cholesterol 0 is a hidden missing value (all of Switzerland); it stays 0, as in the protocol that we compare with.
    """

    name: str = "heart"
    columns: tuple[str, ...] = field(default=FEATURES)
    l2: float = 0.01
    split: str = "flamby"
    """"flamby", the one published split, whatever the seed; "seeded": drawn as there, by another seed each time"""
    class_names = ("no disease", "disease")
    complete: ClassVar[bool] = True
    """are rows with a missing value left out"""

    demo_nodes: ClassVar[int] = len(HOSPITALS)
    all_sites: ClassVar[int] = len(HOSPITALS)

    def __post_init__(self) -> None:
        if self.split not in ("flamby", "seeded"):
            raise ConfigError(Fault("task_options", None, f"split = {self.split!r}", 'write "flamby" or "seeded"'))

    def demo_sites(self, n: int, seed: int, data_dir: str | Path | None = None) -> tuple[list[Site], Data]:
        """The four hospitals, each with its own hold-out, and the four hold-outs pooled.

        **Raises**: ConfigError where the files are absent or differ; Misuse for any `n` but 4.
        """
        if n != len(HOSPITALS):
            raise Misuse(f"heart has {len(HOSPITALS)} hospitals, not {n}: run it with --nodes {len(HOSPITALS)}")
        folder = FILES.at(data_dir)
        sites = [Site(name, *self._parted(folder, name, seed)) for name in HOSPITALS]
        return sites, pooled([site.holdout for site in sites])

    def left_out(self, data_dir: str | Path | None = None) -> dict[str, int]:
        """Rows of the data set that no site has, by reason."""
        folder = FILES.at(data_dir)
        missing = sum(len(_rows(folder, name, False)) - len(_rows(folder, name, self.complete)) for name in HOSPITALS)
        return {"a value missing": missing} if missing else {}

    def demo_sources(self, n: int, seed: int, data_dir: str | Path | None = None) -> list[dict[str, Any]]:
        """The `[data]` tables with which four nodes read what `demo_sites` gives."""
        folder = str(FILES.at(data_dir).parent.resolve())
        seeded = {} if self.split == "flamby" else {"seed": seed}
        return [{"hospital": name, "data_dir": folder, **seeded} for name in HOSPITALS]

    def judged_by(self, source: Mapping[str, Any]) -> Data:
        """The test rows of all four hospitals: the files are public, and lie in one folder."""
        return self.data({**source, "part": "pooled-test"})

    def data(self, source: Mapping[str, Any]) -> Data:
        """The training rows, own test rows, or all hospitals' test rows, of one hospital."""
        chosen = settings(source, SOURCE_KEYS)
        folder = FILES.at(chosen["data_dir"])
        if chosen["part"] == "pooled-test":
            return pooled([self._parted(folder, name, chosen["seed"])[1] for name in HOSPITALS])
        return self._parted(folder, chosen["hospital"], chosen["seed"])[chosen["part"] == "test"]

    def _parted(self, folder: Path, name: str, seed: int) -> tuple[Data, Data]:
        return _split(folder, name, self.complete, SPLIT_SEED if self.split == "flamby" else SPLIT_SEED + seed)


@dataclass(frozen=True, eq=False)
class Heart920(Heart):
    """All 920 rows, on the same columns: a missing value is one, and so are a cholesterol and a blood pressure of 0.

    **Differs** from `heart`: another parting for each seed, as there; 0 to 4 are the benchmark's.
    """

    name: str = "heart-920"
    split: str = "seeded"
    complete: ClassVar[bool] = False


@cache
def _split(folder: Path, name: str, complete: bool, seed: int) -> tuple[Data, Data]:
    from sklearn.model_selection import train_test_split

    data = _rows(folder, name, complete)
    _, counts = np.unique(data.y, return_counts=True)
    strata = data.y if len(counts) > 1 and counts.min() > 2 else None
    train, test = train_test_split(np.arange(len(data)), train_size=0.66, random_state=seed, stratify=strata)
    return data.rows(train), data.rows(test)


@cache
def _rows(folder: Path, name: str, complete: bool) -> Data:
    content = FILES.read(folder, f"processed.{name}.data")
    cells = [line.split(",") for line in content.decode("ascii").split()]
    kept = [(number, row[:10] + row[13:]) for number, row in enumerate(cells, 1)]
    if complete:
        kept = [(number, row) for number, row in kept if "?" not in row]
    table = np.array([[float("nan" if cell == "?" else cell) for cell in row] for _, row in kept])
    if not complete:
        table[:, 3:5] = np.where(table[:, 3:5] == 0, np.nan, table[:, 3:5])
    pain, ecg = table[:, 2], table[:, 6]
    plain = table[:, [0, 1, 3, 4, 5, 7, 8, 9]]
    coded = np.column_stack([pain == 2, pain == 3, pain == 4, ecg == 1, ecg == 2]).astype(np.float64)
    coded[np.isnan(ecg), 3:] = np.nan
    x = np.column_stack([plain, coded])  # (n, 13)
    return Data(x, (table[:, 10] > 0).astype(np.int64), tuple(f"{name}-{number}" for number, _ in kept), FEATURES)
