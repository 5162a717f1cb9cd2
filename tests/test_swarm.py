"""Laws of the net itself: a hundred bad days hold, checkers import nothing that they check, a failing seed shrinks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_imports import imports

from gossipfl.simulator import shrink, swarm, trial
from gossipfl.simulator.conservation import Account, ExactlyOnce
from gossipfl.simulator.invariants import Checker, Watch
from gossipfl.simulator.witness import Fellow, Truth

SIMULATOR = Path(trial.__file__).parent
CHECKERS = ("witness", "invariants", "laws", "conservation", "recovery")
SHORT = 0.02
"""Hours of chaos."""


@pytest.mark.parametrize("off, held", [((1e-6, 0.0), True), ((0.0, 1e-3), False), ((1e6, 0.0), False)])
def test_a_sum_is_judged_by_the_size_of_its_own_coordinate(off: tuple[float, float], held: bool) -> None:
    """Sums of squares are 1e9 and more where a feature is (icu), and their rounding is no half of an exchange."""
    begin = np.array([1e9, 1.0])
    fellows = {name: Fellow(1.0, b"", (), np.zeros(1), begin) for name in "ab"}
    law = ExactlyOnce(Truth(b"", b"", "f64", fellows, 0.5, 0.0, "float64", {"model": 1}, 60))
    for name in "ab":
        stood = begin + (off if name == "a" else 0.0)
        law.accounts[name] = Account({"statistics": stood}, {}, {"statistics": np.zeros(2)})
    law.balance({}, "statistics")
    assert (law.verdict == "held") == held


@pytest.mark.parametrize("name", CHECKERS)
def test_a_checker_imports_nothing_that_it_checks(name: str) -> None:
    ours = {one.split(".")[2] for one in imports(SIMULATOR / f"{name}.py") if one.startswith("gossipfl.simulator.")}
    others = [one for one in imports(SIMULATOR / f"{name}.py") if one.startswith("gossipfl") and ".simulator." not in one]
    assert not others
    assert ours <= set(CHECKERS)


@pytest.mark.parametrize("tens", range(10))
def test_a_hundred_short_bad_days_break_no_law(tens: int) -> None:
    for seed in range(10 * tens, 10 * tens + 10):
        outcome = trial.run(trial.draw(seed, SHORT, (3, 6)), twice=seed == 10 * tens)
        assert outcome.ok, json.dumps(outcome.line(), indent=1)


class Grumbler(Checker):
    name = "grumbler"
    law = "No cut before the hundredth second."

    def struck(self, kind: str, names: Any, detail: str) -> None:
        if kind == "cut" and self.now_s > 100:
            self.broken(names[0], "cut")


class Stumbler(Checker):
    name = "stumbler"
    law = "Fails by itself."

    def sent(self, life: Any, peer: str, kind: str, message: Any) -> None:
        raise ZeroDivisionError


def test_a_checker_that_fails_says_unknown_and_the_others_go_on() -> None:
    outcome = trial.run(trial.draw(3, SHORT, (3, 4), until_s=30), (*trial.LAWS, Stumbler), twice=False)
    assert outcome.verdicts.pop("stumbler") == "unknown"
    assert "ZeroDivisionError" in outcome.errors["stumbler"]
    assert set(outcome.verdicts.values()) == {"held"}


def test_a_failing_seed_shrinks_to_the_kind_of_fault_that_matters() -> None:
    def runs(one: trial.Trial) -> trial.Outcome:
        return trial.run(one, (Grumbler,), twice=False)

    drawn = next(one for seed in range(50) if (one := trial.draw(seed, 0.05, (3, 5))).faults.cut_per_hour > 100)
    failed = runs(drawn)
    assert "grumbler" in failed.violations
    least = shrink.shrink(failed, runs=runs)
    assert "grumbler" in least.violations
    assert trial.classes_on(least.trial) == ["cut"]
    assert least.trial.nodes == 3
    assert least.virtual_s < failed.virtual_s
    assert "--without" in least.trial.command()


def test_a_swarm_resumes_where_it_stopped(tmp_path: Path) -> None:
    path, plan = tmp_path / "swarm.jsonl", swarm.Plan(0, 3, SHORT, (3, 4), until_s=5.0)
    for line in swarm.run(plan, [0, 1], 1):
        swarm.append(path, line)
    path.write_bytes(path.read_bytes() + b'{"seed": 2, "cut off')
    held = swarm.done(path, plan)
    assert sorted(held) == [0, 1]
    assert not swarm.done(path, swarm.Plan(0, 3, SHORT, (3, 5), until_s=5.0))
    assert swarm.summary(list(held.values()))["failed"] == []


def test_fewer_nodes_or_fewer_faults_shift_no_other_property_of_a_seed() -> None:
    whole = trial.draw(7, 2.0)
    less = trial.draw(7, 2.0, (4, 4), ("cut", "crash"))
    for name in ("kind", "turn_s", "checkpoint_s", "latency_s", "leak", "dimension"):
        assert getattr(whole, name) == getattr(less, name)
    assert whole.faults.without("cut", "crash") == less.faults


def test_every_law_has_a_name_and_one_sentence() -> None:
    names = [law.name for law in trial.LAWS]
    assert len(set(names)) == len(names)
    assert all(law.law.endswith(".") for law in trial.LAWS)
    watch = Watch(Truth(b"", b"", "f64", {}, 0.5, 0.0, "float64", {"model": 1}, 60), trial.LAWS)
    assert watch.verdicts() == dict.fromkeys(names, "held")
