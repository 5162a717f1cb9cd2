"""FLamby's published heart table, reproduced by simulations/flamby_heart.py within its spread."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from gossipfl.tasks.heart import PUBLISHED

ROOT = Path(__file__).parents[1]
DATA = os.environ.get("GOSSIPFL_DATA", "")

pytestmark = pytest.mark.skipif(
    not (Path(DATA) / "uci-heart").is_dir() or not DATA, reason="GOSSIPFL_DATA names no folder with uci-heart/"
)


@pytest.fixture(scope="module")
def script() -> Any:
    spec = importlib.util.spec_from_file_location("flamby_heart", ROOT / "simulations" / "flamby_heart.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look a class's module up
    spec.loader.exec_module(module)
    return module


def test_pooled_training_and_fedavg_are_within_the_published_spread(script: Any) -> None:
    for name, found in (("pooled", script.pooled_model(None, script.SEEDS[:2])), ("FedAvg", script.fedavg(None))):
        middle, spread = PUBLISHED[name]
        assert abs(found.accuracy.mean() - middle) <= spread


def test_a_larger_rate_and_one_normalisation_close_the_gap(script: Any) -> None:
    published, mended = script.fedavg(None), script.fedavg(None, rate=10 * script.RATE, is_common=True)
    assert mended.accuracy.mean() > PUBLISHED["pooled"][0] - 0.01 > published.accuracy.mean() + 0.03
    assert mended.auc.mean() > 0.875
