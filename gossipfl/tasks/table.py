"""table: any hospital's CSV or Parquet file as a task, without a line of Python.

The study's schema says what is wanted; the `[data]` table of node.toml maps the site's own columns, codes, units and
sentinel values to it. A file that does not fit is answered by one ConfigError with every fault; nothing is guessed.
"""

from __future__ import annotations

import csv
import hashlib
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, Final

import numpy as np

from gossipfl.errors import ConfigError, Fault
from gossipfl.tasks.classifier import Classifier
from gossipfl.tasks.normalisation import FACTORS, Range
from gossipfl.tasks.schema import Feature, Schema
from gossipfl.tasks.task import LARGEST, Data, Floats, Indices, Key, settings

LEAST_ROWS: Final = 20
"""Below, neither a hold-out nor ten values a feature can be had."""

MISSING: Final = ("", "NA", "N/A", "NaN", "nan", "null", "NULL")
"""Cells that are always missing; a site adds its own, for instance "-9"."""

NUMBER: Final = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?", re.ASCII)
"""Exactly the numbers a spreadsheet exports; Python's float() also takes "inf", "nan" and "1_000"."""

BOOLEAN: Final = {"0": 0.0, "0.0": 0.0, "false": 0.0, "no": 0.0, "1": 1.0, "1.0": 1.0, "true": 1.0, "yes": 1.0}


def _is_text_map(value: Any) -> bool:
    return all(isinstance(item, str) for item in value.values())


def _is_texts(value: Any) -> bool:
    return all(isinstance(item, str) for item in value)


def _is_code_map(value: Any) -> bool:
    return all(isinstance(item, Mapping) and _is_text_map(item) for item in value.values())


def _is_scale_map(value: Any) -> bool:
    return all(
        isinstance(item, int | float) and not isinstance(item, bool) and math.isfinite(item) and item != 0
        for item in value.values()
    )


KEYS: Final = {
    "file": Key("", str, bool, 'file = "rows.csv" or "rows.parquet"'),
    "columns": Key({}, Mapping, _is_text_map, 'columns = {age = "AGE_Y"}: the study\'s name, then the site\'s'),
    "codes": Key({}, Mapping, _is_code_map, 'codes = {sex = {"1" = "m", "2" = "f"}}: the site\'s, then the study\'s'),
    "scale": Key({}, Mapping, _is_scale_map, "scale = {glucose = 0.0555}: times this, a value is in the study's unit"),
    "missing": Key([], (list, tuple), _is_texts, 'missing = ["-9", "unknown"]: missing in every column'),
    "missing_in": Key({}, Mapping, lambda v: all(isinstance(i, list | tuple) and _is_texts(i) for i in v.values()),
                      'missing_in = {cholesterol = ["0"]}: missing in this column'),
    "id": Key("", str, says='id = "PATIENT": the column that names the patient, whose rows no split parts'),
    "delimiter": Key(",", str, lambda v: len(v) == 1 and v not in '"\r\n', 'delimiter = ";": one character, no quote'),
    "drop_unlabelled": Key(False, bool, says="drop_unlabelled = true leaves out rows without a label"),
    "allow_constant": Key([], (list, tuple), _is_texts, 'allow_constant = ["smoker"]: these may have one value here'),
}  # fmt: skip


class TableTask(Classifier):
    """A classifier over a study's schema; logistic regression or an MLP, as the schema says."""

    schema: Schema

    def __init__(self, schema: Schema | Mapping[str, Any], l2: float = 0.01) -> None:
        known = schema if isinstance(schema, Schema) else Schema.of(schema)
        super().__init__("table", known.columns, known.classes, known.hidden, l2=l2)
        object.__setattr__(self, "schema", known)

    @property
    def ranges(self) -> tuple[Range, ...]:
        """What each encoded column may hold: what is no number is 0 or 1."""
        return tuple(
            feature.range if feature.type == "number" else (0.0, 1.0)
            for feature in self.schema.features
            for _ in feature.columns
        )

    def data(self, source: Mapping[str, Any]) -> Data:
        """The site's rows, encoded as the schema says.

        **Raises**: ConfigError with a table of what, where and how to fix.
        """
        return read(self.schema, source)

    def features_of(self, source: Mapping[str, Any]) -> Data:
        """The rows of a file without its label: what `predict` takes. Labels are all 0, and few rows are enough."""
        return read(self.schema, source, labelled=False)


def read(schema: Schema, source: Mapping[str, Any], *, labelled: bool = True) -> Data:
    """The rows of `source["file"]`; see `TableTask.data`.

    **Raises**: ConfigError: wrong settings, an unreadable file, or any of: missing column, text in a number, value out
    of range, unknown category, one class only, constant column, fewer than 20 rows.
    """
    chosen = settings(source, KEYS)
    sheet = _open(Path(chosen["file"]), chosen["delimiter"])
    reader = _Reader(schema, chosen, sheet)
    reader.names()
    if labelled:
        reader.no_leak()
        reader.patients()
    wanted = (*schema.features, schema.label) if labelled else schema.features
    columns = {feature.name: reader.column(feature) for feature in wanted if reader.has(feature)}
    if labelled:
        reader.whole(columns)
    if reader.faults:
        raise ConfigError(*reader.faults)
    x = np.concatenate([feature.encode(columns[feature.name]) for feature in schema.features], axis=1)
    y = columns[schema.label.name] if labelled else np.zeros(len(x))
    data = Data(x, np.nan_to_num(y).astype(np.int64), reader.identities(), schema.columns)
    return data.rows(np.flatnonzero(~np.isnan(y)))


# ---- files to cells ------------------------------------------------------------------------------------------------


@dataclass
class _Sheet:
    """A file as text cells. `lines[k]` is where row k stands in it."""

    file: str
    header: list[str]
    rows: list[list[str]]
    lines: list[int]


def _open(path: Path, delimiter: str) -> _Sheet:
    sheet = _open_parquet(path) if path.suffix.lower() in (".parquet", ".pq") else _open_csv(path, delimiter)
    doubled = [name for name, times in Counter(sheet.header).items() if times > 1]
    if doubled:
        raise ConfigError(
            Fault(sheet.file, 1, f"the column {doubled[0]!r} occurs twice", "give every column its own name")
        )
    return sheet


def _open_csv(path: Path, delimiter: str) -> _Sheet:
    header: list[str] = []
    rows: list[list[str]] = []
    lines: list[int] = []
    uneven: list[int] = []
    reader: Any = None
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.reader(stream, delimiter=delimiter, strict=True)
            for line, cells in _numbered(reader):
                if not header:
                    header = [cell.strip() for cell in cells]
                elif len(cells) != len(header):
                    uneven.append(line)
                else:
                    rows.append([cell.strip() for cell in cells])
                    lines.append(line)
    except OSError as error:
        remedy = "check the path in [data] file, and that this user may read it"
        raise ConfigError(Fault(str(path), None, f"cannot be read: {error.strerror}", remedy)) from error
    except UnicodeDecodeError as error:
        raise ConfigError(
            Fault(str(path), None, f"is no UTF-8 CSV file: {error}", "export it again as CSV UTF-8")
        ) from error
    except csv.Error as error:
        remedy = "look for a quote there that opens a cell and is not closed, or export it again as CSV UTF-8"
        raise ConfigError(Fault(str(path), reader.line_num, f"is no CSV file: {error}", remedy)) from error
    if uneven:
        what = f"{len(uneven)} rows do not have the header's {len(header)} cells"
        remedy = 'check the delimiter ([data] delimiter = ";") and quote cells that hold it'
        raise ConfigError(Fault(str(path), uneven[0], what, remedy))
    if not header:
        raise ConfigError(Fault(str(path), None, "is empty", "the first line names the columns"))
    other = next((sign for sign in ";\t|," if sign != delimiter and sign in header[0]), "") if len(header) == 1 else ""
    if other:
        said = {"\t": "\\t"}.get(other, other)
        what = f"the first line is one column, and holds {said!r}: the cells are parted by that"
        raise ConfigError(Fault(str(path), 1, what, f'write delimiter = "{said}" under [data]'))
    return _Sheet(str(path), header, rows, lines)


def _numbered(reader: Any) -> Iterator[tuple[int, list[str]]]:
    for cells in reader:
        if cells:
            yield reader.line_num, cells


def _open_parquet(path: Path) -> _Sheet:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        remedy = 'pip install "gossipfl[parquet]", or export the file as CSV'
        raise ConfigError(Fault(str(path), None, "reading Parquet needs pyarrow", remedy)) from error
    try:
        table = parquet.read_table(path)
    except (OSError, ArrowException) as error:
        raise ConfigError(
            Fault(str(path), None, f"cannot be read as Parquet: {error}", "check path and file")
        ) from error
    columns = [[_cell(value) for value in column.to_pylist()] for column in table.columns]
    rows = [list(cells) for cells in zip(*columns, strict=True)]
    return _Sheet(str(path), list(table.column_names), rows, list(range(1, len(rows) + 1)))


def _cell(value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    return str(int(value)) if isinstance(value, bool) else str(value).strip()


# ---- cells to numbers ----------------------------------------------------------------------------------------------


@dataclass
class _Reader:
    """One file being read against one schema; collects every fault."""

    schema: Schema
    chosen: dict[str, Any]
    sheet: _Sheet
    faults: list[Fault] = field(default_factory=list)

    def fault(self, row: int | None, what: str, remedy: str) -> None:
        line = None if row is None else self.sheet.lines[row]
        self.faults.append(Fault(self.sheet.file, line, what, remedy))

    def names(self) -> None:
        """Every name that the settings mention exists in the schema, and the id column in the file."""
        known = {feature.name for feature in self.schema.features} | {self.schema.label.name}
        for key in ("columns", "codes", "scale", "missing_in", "allow_constant"):
            for name in self.chosen[key]:
                if name not in known:
                    self.fault(
                        None,
                        f"[data] {key} names {name!r}, which the study does not have",
                        f"it has {', '.join(sorted(known))}",
                    )
        for feature in (*self.schema.features, self.schema.label):
            if feature.name in self.chosen["scale"] and feature.type != "number":
                what = f"[data] scale names {feature.name!r}, which is a {feature.type}: only a number has a scale"
                self.fault(None, what, f"map its codes: codes = {{{feature.name} = ...}}")
        if self.chosen["id"] and self.chosen["id"] not in self.sheet.header:
            self.fault(
                None, f"the id column {self.chosen['id']!r} is missing", f"the file has {_few(self.sheet.header)}"
            )

    def no_leak(self) -> None:
        """No feature reads the label's column, and no two read one column as the same: each would pass every later check."""
        label, seen = self.column_name(self.schema.label), dict[str, Feature]()
        for feature in self.schema.features:
            name = self.column_name(feature)
            other = self.schema.label if name == label else seen.setdefault(name, feature)
            coded = feature.name in self.chosen["codes"] or other.name in self.chosen["codes"]
            if other is self.schema.label or (other is not feature and not coded):
                what = f"the column {name!r} is read for both {other.name!r} and {feature.name!r}"
                self.fault(None, what, "name each one's own: columns = {" + feature.name + ' = "..."} under [data]')

    def column_name(self, feature: Feature) -> str:
        return str(self.chosen["columns"].get(feature.name, feature.name))

    def patients(self) -> None:
        """An id column that names (nearly) one patient only leaves nobody to hold out, or nobody to train on."""
        if self.chosen["id"] not in self.sheet.header or len(self.sheet.rows) < LEAST_ROWS:
            return
        found = Counter(self.identities())
        one, times = found.most_common(1)[0]
        if 2 * times > len(self.sheet.rows):
            what = f"id column {self.chosen['id']!r}: {times} of {len(self.sheet.rows)} rows are of one patient, {one[:40]!r}"
            remedy = "name the column that tells patients apart, or leave id out: then each row is a patient"
            self.fault(None, what, remedy)

    def has(self, feature: Feature) -> bool:
        name = self.column_name(feature)
        if name not in self.sheet.header:
            near = [one for one in self.sheet.header if one.casefold() == name.casefold()]
            meant = near[0] if len(near) == 1 else "..."
            remedy = f'map it: columns = {{{feature.name} = "{meant}"}}; the file has {_few(self.sheet.header)}'
            self.fault(None, f"the column {name!r} is missing", remedy)
            return False
        return True

    def column(self, feature: Feature) -> Floats:
        """(n,) numbers, 0/1 or category indices; NaN where missing, and where a fault has been noted."""
        place = self.sheet.header.index(self.column_name(feature))
        gaps = {*MISSING, *self.chosen["missing"], *self.chosen["missing_in"].get(feature.name, ())}
        numbers = {_number(gap) for gap in gaps} if feature.type == "number" else set()  # -9 is also -9.0
        codes = self.chosen["codes"].get(feature.name, {})
        meaning = _meaning(feature)
        values = np.full(len(self.sheet.rows), np.nan)
        strange: list[int] = []
        for row, cells in enumerate(self.sheet.rows):
            cell = codes.get(cells[place], cells[place])
            if cells[place] in gaps or cell in gaps:
                continue
            value = meaning(cell)
            if value is None:
                strange.append(row)
            elif value not in numbers:
                values[row] = value
        if strange:
            self._strange(feature, strange, place)
        if feature.type == "number":
            with np.errstate(over="ignore"):
                values *= self.chosen["scale"].get(feature.name, 1.0)
            self._too_large(feature, values)
        self._outside(feature, values)
        return values

    def _strange(self, feature: Feature, rows: list[int], place: int) -> None:
        cells = Counter(self.sheet.rows[row][place] for row in rows)
        seen = ", ".join(repr(cell[:40]) for cell, _ in cells.most_common(3))
        name = self.column_name(feature)
        if feature.type == "number":
            hint = "decimal commas? export with points; or " if any("," in cell for cell in cells) else ""
            self.fault(rows[0], f"column {name!r}: {len(rows)} rows hold no number: {seen}",
                       f"{hint}correct them, or list them in [data] missing")  # fmt: skip
            return
        wanted = feature.categories if feature.type == "category" else ("0", "1")
        hint = "coded 1/2? " if set(cells) <= {"2", "2.0"} and feature.type == "boolean" else ""
        what = f"column {name!r}: {len(rows)} rows hold an unknown category: {seen}"
        pairs = ", ".join(f'"{cell[:40]}" = "{_guess(cell, wanted)}"' for cell, _ in cells.most_common(4))
        unsure = " (replace ... by the right one)" if '"..."' in pairs else ""
        remedy = f"{hint}map them: codes = {{{feature.name} = {{{pairs}}}}}{unsure}; known: {_few(list(wanted))}"
        self.fault(rows[0], what, remedy)

    def _too_large(self, feature: Feature, values: Floats) -> None:
        rows = np.flatnonzero(np.abs(values) > LARGEST)
        if len(rows):
            what = f"column {self.column_name(feature)!r}: {len(rows)} values beyond {LARGEST:g}: {values[rows[0]]:g}"
            self.fault(int(rows[0]), what, "correct them, list them in [data] missing, or correct scale")
            values[rows] = np.nan

    def _outside(self, feature: Feature, values: Floats) -> None:
        if feature.range is None:
            return
        low, high = feature.range
        rows = np.flatnonzero((values < low) | (values > high))
        if len(rows):
            unit = f" {feature.unit}" if feature.unit else ""
            seen = ", ".join(f"{values[row]:g}" for row in rows[:3])
            what = f"column {self.column_name(feature)!r}: {len(rows)} values out of {low:g} to {high:g}{unit}: {seen}"
            remedy = _scale_hint(feature, values) or "correct them, or list sentinel values in [data] missing"
            self.fault(int(rows[0]), what, remedy)

    def whole(self, columns: dict[str, Floats]) -> None:
        """Faults of the file as a whole: too few rows, no label, one class, constant columns."""
        if not self.sheet.rows:
            self.fault(None, "holds a header and no rows", f"at least {LEAST_ROWS} are needed to train")
            return
        label = self.schema.label
        if label.name in columns:
            self._labels(columns[label.name])
        for feature in self.schema.features:
            values = columns.get(feature.name)
            if values is None or feature.name in self.chosen["allow_constant"] or self._faulty(feature):
                continue
            kinds = np.unique(values[~np.isnan(values)])
            if len(kinds) < 2:
                what = "has no value at all" if not len(kinds) else f"is constant ({_shown(feature, float(kinds[0]))})"
                remedy = f'check the column map; if it is so here, allow_constant = ["{feature.name}"]'
                self.fault(None, f"column {self.column_name(feature)!r} {what} in {len(values)} rows", remedy)

    def _faulty(self, feature: Feature) -> bool:
        return any(fault.what.startswith(f"column {self.column_name(feature)!r}:") for fault in self.faults)

    def _labels(self, values: Floats) -> None:
        name = self.column_name(self.schema.label)
        if self._faulty(self.schema.label):
            return
        unlabelled: Indices = np.flatnonzero(np.isnan(values))
        known = values[~np.isnan(values)]
        if len(unlabelled) and not self.chosen["drop_unlabelled"]:
            what = f"label {name!r}: {len(unlabelled)} rows have none"
            self.fault(int(unlabelled[0]), what, "complete them, or set drop_unlabelled = true")
        if len(known) < LEAST_ROWS:
            self.fault(None, f"{len(known)} rows with a label", f"at least {LEAST_ROWS} are needed to train")
        kinds = np.unique(known)
        if len(kinds) == 1:
            shown = _shown(self.schema.label, float(kinds[0]))
            self.fault(
                None, f"label {name!r}: one class only ({shown})", "check the column and its codes; a site needs both"
            )

    def identities(self) -> tuple[str, ...]:
        """The id column; without one, or where it is empty, a hash of the row's cells, so that order does not matter to the
        hold-out."""
        place = self.sheet.header.index(self.chosen["id"]) if self.chosen["id"] else -1
        return tuple(
            (place >= 0 and cells[place]) or hashlib.blake2b("\0".join(cells).encode(), digest_size=16).hexdigest()
            for cells in self.sheet.rows
        )


YES: Final = frozenset(("ja", "oui", "si", "sí", "sim", "tak", "y", "t", "j", "wahr", "vrai", "verdadero", "positive", "+"))
NO: Final = frozenset(("nein", "non", "não", "nie", "n", "f", "falsch", "faux", "falso", "negative", "-"))
"""Words by which people write 1 and 0 of a boolean: proposed, never assumed."""


def _guess(cell: str, wanted: tuple[str, ...]) -> str:
    """The category that a cell may mean, for a remedy that a person reads; "..." where nothing fits."""
    word = cell.strip().lower()
    if wanted == ("0", "1"):
        return "1" if word in YES else "0" if word in NO else "..."
    alike = [one for one in wanted if one.lower() == word] or [one for one in wanted if word and one.lower()[0] == word[0]]
    return alike[0] if len(alike) == 1 else "..."


def _meaning(feature: Feature) -> Callable[[str], float | None]:
    """What a cell means as a number; None where it means nothing."""
    if feature.type == "number":
        return _number
    if feature.type == "boolean":
        return lambda cell: BOOLEAN.get(cell.lower())
    places = {category: float(place) for place, category in enumerate(feature.categories)}
    return places.get


def _number(cell: str) -> float | None:
    value = float(cell) if NUMBER.fullmatch(cell) else math.nan
    return value if math.isfinite(value) else None


def _shown(feature: Feature, value: float) -> str:
    return feature.categories[int(value)] if feature.type == "category" else f"{value:g}"


def _scale_hint(feature: Feature, values: Floats) -> str:
    """The factor of this very analyte, if it brings a middle value that is outside of the range into it; else whom to ask.

    Never another analyte's factor, though it fit the range: a wrong scale would pass every later check."""
    assert feature.range is not None
    low, high = feature.range
    middle = median(values[~np.isnan(values)].tolist())
    if low <= middle <= high:
        return ""
    for factor, analyte in FACTORS.items():
        for scale in (factor, 1 / factor):
            if analyte.split(",")[0] in feature.name.lower() and low <= middle * scale <= high:
                return f"another unit? ({analyte}) then scale = {{{feature.name} = {scale:.6g}}}"
    unit = f" to {feature.unit}" if feature.unit else ""
    return f"another unit? ask the laboratory for the factor{unit}, then scale = {{{feature.name} = FACTOR}} under [data]"


def _few(names: list[str]) -> str:
    return ", ".join(names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "")
