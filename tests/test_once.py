"""What is told instead of computed is what would have been computed, and all else is."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import nacl.bindings as sodium
import pytest
from worlds import federation, keys_of, settings

from gossipfl.errors import Refused
from gossipfl.protocol.noise import Pair, agree
from gossipfl.simulator import swarm
from gossipfl.simulator.once import KEPT, Once
from gossipfl.trust.identity import verify


def pair(number: int) -> Pair:
    private = bytes([number]) * 32
    return Pair(private, sodium.crypto_scalarmult_base(private))


def test_both_ends_agree_on_what_x25519_says_and_only_one_computes_it() -> None:
    once, a, b = Once(), pair(1), pair(2)
    assert once.agree(a, b.public) == once.agree(b, a.public) == agree(b, a.public)
    assert once.told == 1
    assert once.agree(a, pair(3).public) == agree(a, pair(3).public)
    assert once.told == 1, "nobody had computed that one"


def test_who_asks_twice_itself_computes_twice() -> None:
    once, a, b = Once(), pair(1), pair(2)
    assert once.agree(a, b.public) == once.agree(a, b.public)
    assert once.told == 0


def test_a_point_of_small_order_is_refused_by_both_ends() -> None:
    once = Once()
    for _ in range(2):
        with pytest.raises(Refused):
            once.agree(pair(1), bytes(32))


def test_a_signature_made_here_is_known_and_any_other_is_checked() -> None:
    once, members = Once(), federation({"anna": 10, "bert": 10})
    told = once.listen(settings(members, "anna", Random(0)))
    public, other = (keys_of(name).signing.public for name in ("anna", "bert"))
    signature = told.sign("manifest", b"said")
    assert signature == keys_of("anna").sign("manifest", b"said")
    told.verify("manifest", b"said", signature, public)
    assert once.told == 1
    verify("manifest", b"said", signature, public)
    altered = bytes([signature[0] ^ 1]) + signature[1:]
    for wrong in (("manifest", b"sais", signature, public), ("receipt", b"said", signature, public),
                  ("manifest", b"said", signature, other), ("manifest", b"said", altered, public)):  # fmt: skip
        with pytest.raises(Refused):
            told.verify(*wrong)
    told.verify("manifest", b"his", keys_of("bert").sign("manifest", b"his"), other)
    assert once.told == 1, "made elsewhere: the real check"


def test_what_is_remembered_is_bounded() -> None:
    once, members = Once(), federation({"anna": 10, "bert": 10})
    told = once.listen(settings(members, "anna", Random(0)))
    for number in range(KEPT + 1):
        told.sign("manifest", str(number).encode())
    assert len(once.signed) == KEPT
    once.agreed = {(bytes(32), str(number).encode()): b"" for number in range(KEPT)}
    once.agree(pair(1), pair(2).public)
    assert len(once.agreed) == KEPT


def test_a_seed_of_the_swarm_is_one_history_however_it_is_computed() -> None:
    plan = swarm.Plan(3, 1, 0.02, (3, 4))
    once, each = swarm.one(plan, 3), swarm.one(replace(plan, once=False), 3)
    assert {**once, "cpu_s": 0} == {**each, "cpu_s": 0}
    assert once["exchanges"] and not swarm.failed(once)
