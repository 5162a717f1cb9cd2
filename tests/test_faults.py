"""The options of what may go wrong: documented, off by default, drawn, and each enacted by the world."""

from __future__ import annotations

import ast
import itertools
import random
from dataclasses import fields
from pathlib import Path

import pytest

from gossipfl.errors import Misuse
from gossipfl.simulator import faults as module
from gossipfl.simulator.faults import CLASSES, DRAWN, PRESETS, STRIKES, Faults, Strike


def test_every_option_says_in_one_sentence_what_it_is() -> None:
    tree = ast.parse(Path(module.__file__).read_text())
    body = next(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "Faults").body
    said = {
        one.target.id: after.value.value
        for one, after in itertools.pairwise(body)
        if isinstance(one, ast.AnnAssign) and isinstance(one.target, ast.Name)
        and isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
    }  # fmt: skip
    assert sorted(said) == sorted(one.name for one in fields(Faults))
    assert not [name for name, text in said.items() if not text.endswith(".") or "\n" in text or ". " in text]


def test_every_option_belongs_to_one_class_and_every_class_is_off_by_default() -> None:
    grouped = [name for names in CLASSES.values() for name in names]
    assert sorted([*grouped, "until_hours"]) == sorted(one.name for one in fields(Faults))
    assert all(Faults().are_off(name) for name in CLASSES)
    assert set(DRAWN) == set(CLASSES)


def test_a_class_is_switched_off_without_touching_the_others() -> None:
    for preset in PRESETS:
        whole = Faults.preset(preset)
        for name in CLASSES:
            less = whole.without(name)
            assert less.are_off(name)
            assert all(less.are_off(other) == whole.are_off(other) for other in CLASSES if other != name)


def test_drawn_faults_leave_each_class_off_in_a_third_and_one_class_shifts_no_other() -> None:
    drawn = [Faults.draw(random.Random(seed)) for seed in range(600)]
    for name in CLASSES:
        assert 140 < sum(one.are_off(name) for one in drawn) < 260, name
    assert Faults.draw(random.Random(7)) == drawn[7]


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"cut_per_hour": -1.0}, "cut_per_hour"),
        ({"refused_dials": 1.5}, "share"),
        ({"partition_shape": "thirds"}, "halves"),
        ({"hostile_kinds": ("rude",)}, "malformed"),
        ({"sessions": (("a", 2.0, 1.0),)}, "later"),
        ({"hostile_kinds": ()}, "empty"),
        ({"survival": 2.0}, "share"),
    ],
)
def test_an_impossible_option_is_named_with_what_is_possible(wrong: dict[str, object], says: str) -> None:
    with pytest.raises(Misuse, match=says):
        Faults(**wrong)  # type: ignore[arg-type]


def test_a_strike_names_a_kind_that_there_is() -> None:
    assert all(Strike(0, kind, value=60 if kind == "clock-jump" else None).kind == kind for kind in STRIKES)
    with pytest.raises(Misuse, match="cut"):
        Strike(0, "meteor")
