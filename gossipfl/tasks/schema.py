"""The study's feature schema: names, types, categories, units, ranges and the label. The same at every site.

The study owns it; node.toml only maps a site's own columns and codes to it (table.py). Neither files nor torch here.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from gossipfl.errors import ConfigError, Fault, Misuse
from gossipfl.tasks.task import Floats

TYPES: Final = ("number", "boolean", "category")
MODELS: Final = ("logistic", "mlp")
MAX_FEATURES: Final = 1000
"""Columns after encoding; the statistics of more would not fit one candidate message of 60,000 bytes."""


@dataclass(frozen=True)
class Feature:
    """One column as the study means it."""

    name: str
    type: str = "number"
    categories: tuple[str, ...] = ()
    unit: str = ""
    range: tuple[float, float] | None = None
    """values outside are refused; inclusive"""

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns it becomes: itself; for two categories one, of the second; for more, one each."""
        if self.type != "category":
            return (self.name,)
        chosen = self.categories[1:] if len(self.categories) == 2 else self.categories
        return tuple(f"{self.name}={category}" for category in chosen)

    def encode(self, values: Floats) -> Floats:
        """(n,) of numbers, 0/1 or category indices, NaN where missing -> (n, columns); a missing one is NaN in all."""
        if self.type != "category":
            return values[:, None]
        first = 1 if len(self.categories) == 2 else 0
        hot = (values[:, None] == np.arange(first, len(self.categories))).astype(np.float64)
        hot[np.isnan(values)] = np.nan
        return np.asarray(hot)


@dataclass(frozen=True)
class Schema:
    """Features, label and model of a study. Make it by `Schema.of`, which reports every fault at once."""

    features: tuple[Feature, ...]
    label: Feature
    model: str = "logistic"
    hidden: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not self.features or self.label.type == "number" or self.model not in MODELS:
            raise Misuse("a Schema has features, a boolean or category label, and a model; use Schema.of")

    @property
    def columns(self) -> tuple[str, ...]:
        """The encoded columns: what the model takes."""
        return tuple(column for feature in self.features for column in feature.columns)

    @property
    def classes(self) -> int:
        return len(self.label.categories) if self.label.type == "category" else 2

    @classmethod
    def of(cls, raw: Mapping[str, Any], where: str = "schema") -> Schema:
        """The schema that a study's table describes.

        **Raises**: ConfigError, the operator's, with every fault.
        """
        reader = _Reader(where)
        reader.unknown(raw, ("features", "label", "model", "hidden"), "")
        listed = raw.get("features")
        features = (
            [reader.feature(item, f"features[{k}]", ("features", k)) for k, item in enumerate(listed)]
            if isinstance(listed, list | tuple)
            else []
        )
        if not features:
            reader.fault(
                "features is empty or no list",
                'list at least one, for instance {name = "age", type = "number"}',
                "features",
            )
        label = reader.feature(raw.get("label"), "label", ("label",))
        model, hidden = raw.get("model", "logistic"), raw.get("hidden", ())
        reader.model(model, hidden)
        if label is not None and label.type == "number":
            reader.fault("label: a number cannot be the label", 'give it type = "boolean" or "category"', "label", "type")
        known = [feature for feature in features if feature is not None]
        reader.names([*known, *([label] if label else [])])
        if reader.faults or label is None:
            raise ConfigError(*reader.faults)
        return cls(tuple(known), label, model, tuple(hidden))

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for a federation file; `Schema.of` reads them back."""
        return {
            "features": [_plain(feature) for feature in self.features],
            "label": _plain(self.label),
            "model": self.model,
            "hidden": list(self.hidden),
        }


def _plain(feature: Feature) -> dict[str, Any]:
    plain: dict[str, Any] = {"name": feature.name, "type": feature.type}
    if feature.categories:
        plain["categories"] = list(feature.categories)
    if feature.unit:
        plain["unit"] = feature.unit
    if feature.range:
        plain["range"] = list(feature.range)
    return plain


@dataclass
class _Reader:
    """Collects faults while a schema is read."""

    where: str
    faults: list[Fault] = field(default_factory=list)

    def fault(self, what: str, remedy: str, *path: str | int) -> None:
        self.faults.append(Fault(self.where, None, what, remedy, path))

    def unknown(self, raw: Mapping[str, Any], keys: tuple[str, ...], place: str, *path: str | int) -> None:
        for key in raw:
            if key not in keys:
                near = difflib.get_close_matches(str(key), keys, 1)
                remedy = f"did you mean {near[0]!r}?" if near else f"it takes {', '.join(keys)}"
                self.fault(f"{place}unknown key {key!r}", remedy, *path, key)

    def feature(self, raw: Any, place: str, path: tuple[str | int, ...]) -> Feature | None:
        before = len(self.faults)
        if not isinstance(raw, Mapping):
            self.fault(f"{place} is no table", 'write {name = "age", type = "number"}', *path)
            return None
        self.unknown(raw, ("name", "type", "categories", "unit", "range"), f"{place}: ", *path)
        name, kind, unit = raw.get("name"), raw.get("type", "number"), raw.get("unit", "")
        if not isinstance(name, str) or not name:
            self.fault(f"{place}: name = {name!r}", "give it a name", *path, "name")
        if kind not in TYPES:
            near = difflib.get_close_matches(str(kind), TYPES, 1)
            remedy = f"did you mean {near[0]!r}?" if near else f"one of {', '.join(TYPES)}"
            self.fault(f"{place}: type = {kind!r}", remedy, *path, "type")
        if not isinstance(unit, str):
            self.fault(f"{place}: unit = {unit!r}", 'write text, for instance "mmol/L"', *path, "unit")
        categories = self._categories(raw.get("categories", ()), kind, place, path)
        bounds = self._range(raw.get("range"), kind, place, path)
        return Feature(str(name), str(kind), categories, str(unit), bounds) if len(self.faults) == before else None

    def _categories(self, raw: Any, kind: Any, place: str, path: tuple[str | int, ...]) -> tuple[str, ...]:
        at = (*path, "categories")
        if not isinstance(raw, list | tuple) or not all(isinstance(item, str) for item in raw):
            self.fault(f"{place}: categories = {raw!r}", 'write a list of texts, for instance ["never", "former"]', *at)
            return ()
        if kind == "category" and (len(raw) < 2 or len(set(raw)) < len(raw)):
            self.fault(f"{place}: categories = {list(raw)!r}", "list two or more, each once", *at)
        if kind != "category" and raw:
            self.fault(f"{place}: a {kind} has no categories", 'remove them, or set type = "category"', *at)
        return tuple(raw)

    def _range(self, raw: Any, kind: Any, place: str, path: tuple[str | int, ...]) -> tuple[float, float] | None:
        if raw is None:
            return None
        numbers = isinstance(raw, list | tuple) and len(raw) == 2 and all(_is_number(item) for item in raw)
        if kind != "number" or not numbers or not raw[0] < raw[1]:
            self.fault(f"{place}: range = {raw!r}", "only a number has one, as [lowest, highest]", *path, "range")
            return None
        return float(raw[0]), float(raw[1])

    def model(self, model: Any, hidden: Any) -> None:
        if model not in MODELS:
            near = difflib.get_close_matches(str(model), MODELS, 1)
            remedy = f"did you mean {near[0]!r}?" if near else f"one of {', '.join(MODELS)}"
            self.fault(f"model = {model!r}", remedy, "model")
        widths = isinstance(hidden, list | tuple) and all(type(width) is int and 1 <= width <= 4096 for width in hidden)
        if not widths or bool(hidden) != (model == "mlp"):
            remedy = "an mlp has widths from 1 to 4096, for instance [16]; logistic has none"
            self.fault(f"hidden = {hidden!r}", remedy, "hidden")

    def names(self, features: list[Feature]) -> None:
        seen: set[str] = set()
        for feature in features:
            if feature.name in seen:
                self.fault(f"{feature.name!r} occurs twice", "give each feature and the label a name of its own", "features")
            seen.add(feature.name)
        columns = sum(len(feature.columns) for feature in features)
        if columns > MAX_FEATURES:
            self.fault(f"{columns} columns after encoding", f"at most {MAX_FEATURES}; merge rare categories", "features")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
