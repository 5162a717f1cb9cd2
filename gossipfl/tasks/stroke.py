"""stroke: dead or dependent six months after an acute ischaemic stroke, at the hospitals of the International Stroke Trial.

The file is never shipped with gossipfl; it is checked by its sha256 before a row is read.

**Source**: Sandercock, Niewada, Czlonkowska, "The International Stroke Trial database" (Trials, 2011),
doi:10.7488/ds/104, ODC-By 1.0.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Final

import numpy as np

from gossipfl.tasks.hospitals import Hospitals, Table
from gossipfl.tasks.published import Published
from gossipfl.tasks.task import Data, Floats

FILES: Final = Published(
    "ist",
    {"ist_baseline.csv.gz": "379bc8dfe965ab8302038549f89406339df0b4d68a40716ebbb7a09c7a3b3319"},
    "doi:10.7488/ds/104 (as the R package RESIDE has it)",
    "ODC-By 1.0",
)

DEFICITS: Final = ("face", "arm or hand", "leg or foot", "speech", "hemianopia", "visuospatial", "brainstem", "other")
YES_NO: Final = {
    "RSLEEP": "noticed on waking",
    "RATRIAL": "atrial fibrillation",
    "RCT": "CT before randomisation",
    "RVISINF": "infarct visible on CT",
    "RHEP24": "heparin in the 24 h before",
    "RASP3": "aspirin in the 3 days before",
}
SYNDROMES: Final = {"TACS": "total anterior", "LACS": "lacunar", "POCS": "posterior", "OTH": "other syndrome"}
"""Beside PACS, partial anterior, the commonest."""

FEATURES: Final = (
    "hours since onset", "drowsy", "unconscious", "female", "age", *YES_NO.values(), "systolic blood pressure",
    *(f"deficit: {what}{how}" for what in DEFICITS for how in ("", " not assessable")), *SYNDROMES.values(),
)  # fmt: skip
"""In hours, years and mmHg; else 0 or 1. All from the form that was read out on the telephone before a treatment was
allotted, hence known when the prediction is made. Neither treatment nor country is among them."""

UNKNOWN: Final = ("0", "9")


@dataclass(frozen=True, eq=False)
class Stroke(Hospitals):
    """415 hospitals with at least four patients of known outcome, by logistic regression on 32 columns.

    `published`: EXPDD, the risk of death or dependence at six months by the trial's own model, from the baseline form. The
    data set does not say which patients it was fitted to; test rows may be among them.
    **Source**: column EXPDD of the data set; Sandercock, Niewada, Czlonkowska (2011).
    """

    name: str = "stroke"
    columns: tuple[str, ...] = field(default=FEATURES)
    least: int = 4
    l2: float = 0.003
    class_names = ("independent", "dead or dependent")
    files: ClassVar[Published] = FILES
    published_model: ClassVar[str] = "EXPDD, the trial's own risk"
    all_sites: ClassVar[int] = 415

    def everything(self, folder: Path) -> Table:
        rows = FILES.rows(folder, "ist_baseline.csv.gz")
        known = [(number, row) for number, row in enumerate(rows, 1) if row["OCCODE"] not in UNKNOWN]

        def of(column: str, meaning: dict[str, float] | None = None) -> Floats:
            """A column as numbers; what has no meaning is missing."""
            cells = [row[column] for _, row in known]
            if meaning is None:
                return np.array([float(cell) if cell else np.nan for cell in cells])
            return np.array([meaning.get(cell, np.nan) for cell in cells])

        conscious, syndrome = np.array([row["RCONSC"] for _, row in known]), np.array([row["STYPE"] for _, row in known])
        columns = [
            of("RDELAY"), conscious == "D", conscious == "U", of("SEX", {"M": 0.0, "F": 1.0}), of("AGE"),
            *(of(column, {"N": 0.0, "Y": 1.0}) for column in YES_NO), of("RSBP"),
        ]  # fmt: skip
        for number in range(1, len(DEFICITS) + 1):
            columns += [of(f"RDEF{number}", {"N": 0, "Y": 1, "C": 0}), of(f"RDEF{number}", {"N": 0, "Y": 0, "C": 1})]
        columns += [syndrome == code for code in SYNDROMES]
        y = np.array([row["OCCODE"] in "12" for _, row in known]).astype(np.int64)
        data = Data(np.column_stack(columns), y, tuple(f"ist-{number}" for number, _ in known), FEATURES)
        left_out = {"outcome at six months unknown": len(rows) - len(known)}
        return Table(data, tuple(row["HOSPNUM"] for _, row in known), of("EXPDD"), left_out)


@dataclass(frozen=True, eq=False)
class Stroke259(Stroke):
    """The 259 hospitals with at least twenty such patients. Their partings are those of `stroke`."""

    name: str = "stroke-259"
    least: int = 20
    all_sites: ClassVar[int] = 259
