"""The list of planted faults still fits the code, and the quickest of them are noticed by the law that must."""

from __future__ import annotations

import mutants
import pytest

from gossipfl.simulator import trial

QUICK = ("reply-before-disk", "retry-with-new-bytes")


def test_every_planted_fault_still_applies_and_names_a_law_that_there_is() -> None:
    laws = {law.name for law in trial.LAWS} | {"same-again"}
    for one in mutants.MUTANTS:
        text = (mutants.ROOT / "gossipfl" / one.file).read_text(encoding="utf-8")
        assert text.count(one.old) == 1, f"{one.name}: its text is not in {one.file} once; write it anew"
        assert one.law in laws
    names = [one.name for one in mutants.MUTANTS]
    assert len(set(names)) == len(names) >= 25


@pytest.mark.parametrize("name", QUICK)
def test_the_quickest_planted_faults_are_noticed(name: str) -> None:
    planted = next(one for one in mutants.MUTANTS if one.name == name)
    assert mutants.found(planted, range(4))["seed"] is not None
