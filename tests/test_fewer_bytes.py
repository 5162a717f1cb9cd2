"""The ladder of bytes to 99 %: FedAvg has no fewer trials, a rung is reached for good or not, the document says what came out."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "simulations"))

import fewer_bytes as script  # noqa: E402


def found(
    rung: int, shares: list[float], kilobytes: float = 1.0, nodes: int = 16, method: str = "fedavg"
) -> script.Found:
    setting = script.Setting(nodes, method, rung, rung, 5, 0.95, 0.1)
    return script.Found(
        "test", list(range(len(shares))), setting, shares, [1000 * kilobytes] * len(shares), [2.0] * len(shares)
    )


@pytest.mark.parametrize(
    ("means", "at"),
    [([0.5, 0.99, 1.0], 1), ([0.99, 0.98, 0.991], 2), ([1.0, 1.0], 0), ([1.0, 0.98], None), ([0.9 * 1.1, 0.99], 0)],
)
def test_a_rung_is_reached_from_where_none_above_misses_the_goal(means: list[float], at: int | None) -> None:
    ladder = [found(rung, [mean, mean]) for rung, mean in enumerate(means)]
    assert script.reached(ladder) is (None if at is None else ladder[at])


def test_with_an_error_to_spare_a_rung_needs_more_than_the_goal() -> None:
    ladder = [found(1, [0.98, 1.0]), found(2, [0.995, 0.997])]
    assert script.reached(ladder) is ladder[0] and script.reached(ladder, errors=1.0) is ladder[1]


def test_the_best_mean_is_chosen_then_the_better_least_split_then_the_first() -> None:
    low, wide, narrow = found(1, [0.9, 0.9]), found(1, [0.97, 1.0]), found(1, [0.98, 0.99])
    assert script.best([low, wide, narrow]) is narrow and script.best([wide, found(1, [0.97, 1.0])]) is wide


def test_where_fedavg_is_not_there_it_takes_more_than_its_highest_rung() -> None:
    ours, theirs, most = found(1, [1.0, 1.0], 10.0), found(2, [1.0, 1.0], 105.0), found(9, [0.9, 0.9], 200.0)
    assert script.ratio(ours, theirs, most) == "10.5 times" and script.ratio(ours, None, most) == "more than 20.0 times"
    assert script.ratio(None, theirs, most) == "the ledger is not there"
    assert script.ratio(ours, theirs, most, envelopes=True) == "8.9 times"


def test_fedavg_has_no_fewer_trials_and_a_longer_ladder() -> None:
    for rung in script.LEDGER_RUNGS:
        ours, theirs = (script.trials(method, rung) for method in ("ledger", "fedavg"))
        assert len(set(ours)) <= len(set(theirs))
    assert set(script.LEDGER_RUNGS) < set(script.RUNGS) and max(script.RUNGS) > max(script.LEDGER_RUNGS)


def test_what_is_measured_is_measured_on_splits_that_chose_nothing() -> None:
    assert not {seed for seeds in script.TESTS.values() for seed in seeds} & set(script.VALIDATION)


def test_what_is_known_is_not_measured_again(tmp_path: Path) -> None:
    path, one = tmp_path / "known.jsonl", found(89, [0.98, 1.0])
    path.write_text(json.dumps(script.asdict(one)) + "\n", "utf-8")
    known = script.Known(path)
    known.measure(one.setting, "test", [0, 1])
    assert known.get(one.setting, "test", [0, 1]) == one and path.read_text("utf-8").count("\n") == 1


def test_the_document_says_what_the_results_say() -> None:
    known, page = script.Known(script.RESULTS), (ROOT / "docs/benchmarks.md").read_text("utf-8")
    for line in (*script.table(known, script.TUNED), *script.verdict(known, script.TUNED)):
        assert line in page


def test_splits_put_together_are_the_splits_of_both() -> None:
    both = script.together(found(1, [0.9, 1.0]), found(1, [0.8]))
    assert both.shares == [0.9, 1.0, 0.8] and len(both.sent) == len(both.messages) == 3
