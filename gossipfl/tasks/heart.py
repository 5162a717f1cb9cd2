"""heart: four real hospitals (Cleveland, Budapest, Zurich and Basel, Long Beach); their files lie in a data directory.

The files are never shipped with gossipfl; each is checked by its sha256 before a row is read.

**Source**: Janosi, Steinbrunn, Pfisterer, Detrano, "Heart Disease", UCI Machine Learning Repository (1988), CC BY 4.0.
The split is that of Fed-Heart-Disease in Ogier du Terrail et al., "FLamby" (2022).
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Final

import numpy as np

from gossipfl.errors import ConfigError, Fault, Misuse
from gossipfl.tasks.classifier import Classifier
from gossipfl.tasks.task import Data, Key, Site, data_folder, pooled, settings

SHA256: Final = {
    "cleveland": "a74b7efa387bc9d108d7d0115d831fe9b414b29ae7124f331b622b4efa0427c8",
    "hungarian": "d1ad108f785768cd3d7e82dc522e6f5a61eea93cccfb3a46ee8076f73fc3d796",
    "switzerland": "834a405ccf5b66ab4056bb77794adc8df0b7125186454c0a1d002d33c6c3b314",
    "va": "e7c93d8d0d2acdadfa4c5e8de768e2191e7f618b952e29623f1f0d5949ff6b8f",
}
HOSPITALS: Final = tuple(SHA256)
FEATURES: Final = (
    "age", "sex", "resting blood pressure", "cholesterol", "fasting blood sugar above 120", "maximum heart rate",
    "exercise angina", "ST depression", "chest pain=2", "chest pain=3", "chest pain=4",
    "resting ecg=1", "resting ecg=2",
)  # fmt: skip
SPLIT_SEED: Final = 43
"""FLamby's; another would not compare with published figures."""

SOURCE_KEYS: Final = {
    "hospital": Key("cleveland", str, lambda h: h in SHA256, f"hospital: one of {', '.join(SHA256)}"),
    "data_dir": Key(None, (str, type(None)), says="data_dir: the folder that holds uci-heart/"),
    "part": Key(
        "train", str, lambda p: p in ("train", "test", "pooled-test"), 'part: "train", "test" or "pooled-test"'
    ),
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
    class_names = ("no disease", "disease")

    def demo_sites(self, n: int, seed: int, data_dir: str | Path | None = None) -> tuple[list[Site], Data]:
        """The four hospitals, each with its own hold-out, and the four hold-outs pooled. There is nothing random in it.

        **Raises**: ConfigError where the files are absent or differ; Misuse for any `n` but 4.
        """
        if n != len(HOSPITALS):
            raise Misuse(f"heart has {len(HOSPITALS)} hospitals, not {n}: run it with --nodes {len(HOSPITALS)}")
        folder = _folder(data_dir)
        sites = [Site(name, *_split(folder, name)) for name in HOSPITALS]
        return sites, pooled([site.holdout for site in sites])

    demo_nodes = len(HOSPITALS)

    def demo_sources(self, n: int, seed: int, data_dir: str | Path | None = None) -> list[dict[str, Any]]:
        """The `[data]` tables with which four nodes read what `demo_sites` gives."""
        folder = str(_folder(data_dir).parent.resolve())
        return [{"hospital": name, "data_dir": folder} for name in HOSPITALS]

    def judged_by(self, source: Mapping[str, Any]) -> Data:
        """The test rows of all four hospitals: the files are public, and lie in one folder."""
        return self.data({**source, "part": "pooled-test"})

    def data(self, source: Mapping[str, Any]) -> Data:
        """The training rows, own test rows, or all hospitals' test rows, of one hospital."""
        chosen = settings(source, SOURCE_KEYS)
        folder = _folder(chosen["data_dir"])
        if chosen["part"] == "pooled-test":
            return pooled([_split(folder, name)[1] for name in HOSPITALS])
        return _split(folder, chosen["hospital"])[chosen["part"] == "test"]


def _folder(data_dir: str | Path | None) -> Path:
    return data_folder(data_dir, os.environ.get("GOSSIPFL_DATA"), "uci-heart")


@cache
def _split(folder: Path, name: str) -> tuple[Data, Data]:
    from sklearn.model_selection import train_test_split

    data = _rows(folder / f"processed.{name}.data", name)
    _, counts = np.unique(data.y, return_counts=True)
    strata = data.y if len(counts) > 1 and counts.min() > 2 else None
    train, test = train_test_split(np.arange(len(data)), train_size=0.66, random_state=SPLIT_SEED, stratify=strata)
    return data.rows(train), data.rows(test)


def _rows(path: Path, name: str) -> Data:
    try:
        content = path.read_bytes()
    except OSError as error:
        remedy = "fetch it from the UCI repository"
        raise ConfigError(Fault(str(path), None, f"cannot be read: {error.strerror}", remedy)) from error
    if hashlib.sha256(content).hexdigest() != SHA256[name]:
        remedy = f"fetch the original again; its sha256 is {SHA256[name]}"
        raise ConfigError(Fault(str(path), None, "is not the published file", remedy))
    cells = [line.split(",") for line in content.decode("ascii").split()]
    kept = [(number, row[:10] + row[13:]) for number, row in enumerate(cells, 1) if "?" not in row[:10] + row[13:]]
    table = np.array([[float(cell) for cell in row] for _, row in kept])
    pain, ecg = table[:, 2], table[:, 6]
    plain = table[:, [0, 1, 3, 4, 5, 7, 8, 9]]
    coded = [pain == 2, pain == 3, pain == 4, ecg == 1, ecg == 2]
    x = np.column_stack([plain, *coded])  # (n, 13)
    return Data(x, (table[:, 10] > 0).astype(np.int64), tuple(f"{name}-{number}" for number, _ in kept), FEATURES)
