"""digits: 1,797 images of 8 x 8 pixels in ten classes that ship with scikit-learn; the task that is not convex.

**Source**: Alpaydin, Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository (1998).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache

from gossipfl.tasks.classifier import Bundled
from gossipfl.tasks.task import Data

PIXELS = tuple(f"pixel {row},{column}" for row in range(8) for column in range(8))


@dataclass(frozen=True, eq=False)
class Digits(Bundled):
    """Ten digits, by an MLP with one hidden layer; pixels have one known scale, so nothing is standardised."""

    name: str = "digits"
    columns: tuple[str, ...] = field(default=PIXELS)
    classes: int = 10
    hidden: tuple[int, ...] = (32,)
    standardise: bool = False
    l2: float = 0.001

    def everything(self) -> Data:
        return _rows()


@cache
def _rows() -> Data:
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    return Data(x / 16.0, y, names=PIXELS)
