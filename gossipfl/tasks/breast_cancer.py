"""breast-cancer: 569 real patients that ship with scikit-learn; the embedded default. Needs no network and no file.

**Source**: Wolberg, Street, Mangasarian, "Breast Cancer Wisconsin (Diagnostic)", UCI (1995).
**Differs**: label 1 is malignant, as a clinician reads a risk; scikit-learn codes malignant 0.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache

from gossipfl.tasks.classifier import Bundled
from gossipfl.tasks.task import Data

_MEASURES = [
    *("radius", "texture", "perimeter", "area", "smoothness"),
    *("compactness", "concavity", "concave points", "symmetry", "fractal dimension"),
]
FEATURES = tuple(
    [f"mean {m}" for m in _MEASURES] + [f"{m} error" for m in _MEASURES] + [f"worst {m}" for m in _MEASURES]
)


@dataclass(frozen=True, eq=False)
class BreastCancer(Bundled):
    """Malignant or benign, by logistic regression on 30 measures of the cell nuclei."""

    name: str = "breast-cancer"
    columns: tuple[str, ...] = field(default=FEATURES)
    l2: float = 0.01
    class_names = ("benign", "malignant")

    def everything(self) -> Data:
        return _rows()


@cache
def _rows() -> Data:
    from sklearn.datasets import load_breast_cancer

    x, y = load_breast_cancer(return_X_y=True)
    return Data(x, 1 - y, names=FEATURES)
