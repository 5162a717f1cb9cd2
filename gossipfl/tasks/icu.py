"""icu: death in hospital after intensive care, at the 186 hospitals of the eICU demo.

The files are never shipped with gossipfl; each is checked by its sha256 before a row is read.

**Source**: Johnson, Pollard, Badawi, Raffa, "eICU Collaborative Research Database Demo" (PhysioNet, 2021), ODbL 1.0.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Final

import numpy as np

from gossipfl.tasks.hospitals import Hospitals, Table
from gossipfl.tasks.published import Published
from gossipfl.tasks.task import Data

FILES: Final = Published(
    "eicu-demo",
    {
        "patient.csv.gz": "d9d1abc23d62150cdc15a0d452c9aa0231acb88e9598c0331639df792e6cc314",
        "apacheapsvar.csv.gz": "1d5740df51e09f8879214cee793d2e56b8cd9b34ec8a7216ad21fd8ef3b7413c",
        "apachepredvar.csv.gz": "c8811f98c639589af6535ec943ef3d6368acdf89b912823091172afcbdacf280",
        "apachepatientresult.csv.gz": "c2ece3c52c67669e78a874f0d106dff33932f6366b9a7795cfa63fbcb5da1792",
    },
    "physionet.org/content/eicu-crd-demo",
    "ODbL 1.0",
)

SOURCES: Final = ("Emergency Department", "Floor", "Operating Room", "Direct Admit")
PHYSIOLOGY: Final = {
    "intubated": "intubated", "vent": "ventilated", "dialysis": "dialysis", "meds": "sedated, coma scale not assessable",
    "eyes": "coma scale, eyes", "motor": "coma scale, motor", "verbal": "coma scale, verbal",
    "urine": "urine", "wbc": "white cells", "temperature": "temperature", "respiratoryrate": "respiratory rate",
    "sodium": "sodium", "heartrate": "heart rate", "meanbp": "mean blood pressure", "ph": "arterial pH",
    "hematocrit": "haematocrit", "creatinine": "creatinine", "albumin": "albumin", "pao2": "PaO2", "pco2": "PaCO2",
    "bun": "urea nitrogen", "glucose": "glucose", "bilirubin": "bilirubin", "fio2": "FiO2",
}  # fmt: skip
"""mL/24 h, 10^9/L, deg C, /min, mmol/L, /min, mmHg, -, %, mg/dL, g/dL, mmHg, mmHg, mg/dL, mg/dL, mg/dL, %."""
HISTORY: Final = {
    "hepaticfailure": "hepatic failure", "lymphoma": "lymphoma", "metastaticcancer": "metastatic cancer",
    "leukemia": "leukaemia", "immunosuppression": "immunosuppression", "cirrhosis": "cirrhosis", "diabetes": "diabetes",
    "electivesurgery": "elective surgery",
}  # fmt: skip

FEATURES: Final = (
    "age", "female", "not the first unit of this stay", "log(1 + hours in hospital before)",
    *PHYSIOLOGY.values(), *HISTORY.values(), *(f"from: {source}" for source in SOURCES), "no blood gas", "no albumin",
)  # fmt: skip
"""Known 24 hours after admission to the unit, when the prediction is made: demography and the way in are known at admission,
history is asked then, and physiology is APACHE's worst value of the first 24 hours (with those of patients who died or left
within them: as APACHE's own). No diagnosis, and nothing of later: no length of stay, days on a ventilator, discharge."""

OLDEST: Final = 90.0
"""What "> 89" is taken as."""

MISSING: Final = ("", "-1")


@dataclass(frozen=True, eq=False)
class Icu(Hospitals):
    """186 hospitals with 8 to 40 stays of known outcome each, by logistic regression on 42 columns.

    A patient may have several stays, at several hospitals too (19 have): all are on one side. A stay that APACHE does not
    score (a step-down unit) has no physiology: it counts as the mean, here as everywhere.

    `published`: APACHE IVa's risk of death in hospital, for stays that it scores (1,683 of 2,492). It was fitted to other,
    far more patients, and knows the diagnosis.
    **Source**: column predictedhospitalmortality, version IVa, of the data set; Zimmerman et al., "APACHE IV" (2006).
    """

    name: str = "icu"
    columns: tuple[str, ...] = field(default=FEATURES)
    l2: float = 0.025
    class_names = ("alive", "died")
    files: ClassVar[Published] = FILES
    published_model: ClassVar[str] = "APACHE IVa"
    all_sites: ClassVar[int] = 186

    def everything(self, folder: Path) -> Table:
        stay = "patientunitstayid"
        physiology = {row[stay]: row for row in FILES.rows(folder, "apacheapsvar.csv.gz")}
        history = {row[stay]: row for row in FILES.rows(folder, "apachepredvar.csv.gz")}
        scored = {
            row[stay]: _number(row["predictedhospitalmortality"])
            for row in FILES.rows(folder, "apachepatientresult.csv.gz")
            if row["apacheversion"] == "IVa"
        }
        rows = FILES.rows(folder, "patient.csv.gz")
        known = [row for row in rows if row["hospitaldischargestatus"] in ("Alive", "Expired")]
        x = np.array([_features(row, physiology.get(row[stay], {}), history.get(row[stay], {})) for row in known])
        y = np.array([row["hospitaldischargestatus"] == "Expired" for row in known]).astype(np.int64)
        published = np.array([scored.get(row[stay], math.nan) for row in known])
        left_out = {"outcome unknown": len(rows) - len(known)}
        data = Data(x, y, tuple(row["uniquepid"] for row in known), FEATURES)
        return Table(data, tuple(row["hospitalid"] for row in known), published, left_out)


def _features(row: Mapping[str, str], physiology: Mapping[str, str], history: Mapping[str, str]) -> list[float]:
    measured = {column: _number(physiology.get(column, "")) for column in PHYSIOLOGY}
    asked = [_number(history.get(column, "")) for column in HISTORY]
    if history:
        asked[-1] = float(history["electivesurgery"] == "1")  # left empty where there was no surgery
    sex = {"Male": 0.0, "Female": 1.0}.get(row["gender"], math.nan)
    before = max(0.0, -float(row["hospitaladmitoffset"])) / 60
    return [
        OLDEST if row["age"] == "> 89" else _number(row["age"]), sex, float(row["unitvisitnumber"] != "1"), math.log1p(before),
        *measured.values(), *asked, *(float(row["unitadmitsource"] == source) for source in SOURCES),
        float(math.isnan(measured["ph"])), float(math.isnan(measured["albumin"])),
    ]  # fmt: skip


def _number(cell: str) -> float:
    return math.nan if cell in MISSING else float(cell)
