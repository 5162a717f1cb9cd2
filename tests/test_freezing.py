"""Laws of freezing the statistics at one node: when it freezes, what it believes afterwards, whose candidate it takes."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import worlds

from gossipfl.digest import name_of
from gossipfl.protocol import events as ev
from gossipfl.protocol import messages as ms
from gossipfl.protocol.peer import CALM, Peer
from gossipfl.simulator.network import WALL_START_NS

NAMES = ("a", "b", "c", "d")
MEMBERS = worlds.federation(dict.fromkeys(NAMES, 10))
NAME = name_of(b"x")
CONVERGED, UNEVEN = (1.0,) * 4, (1.5, 1.5, 0.5, 0.5)


def says(author: str = "a", mean: float = 2.0) -> ms.Normalisation:
    return ms.Normalisation(MEMBERS.federation_id, author, NAMES, (40.0,), (mean,), (1.0,))


@pytest.fixture
def peer() -> Peer:
    node = Peer(worlds.settings(MEMBERS, "a", random.Random(0), statistics_size=120))
    node.handle(ev.Started({}, NAME, NAME, NAME), ev.Instant(1, WALL_START_NS))
    return node


def reads(node: Peer, presence: tuple[float, ...], said: ms.Normalisation) -> None:
    """One more estimate, as after an exchange of statistics."""
    node.out = []
    node.start(lambda job: ev.Estimate(job, NAME), node.estimated)
    job = next(command.job for command in reversed(node.out) if isinstance(command, ev.Estimate))
    node.handle(ev.Estimated(job, presence, said), ev.Instant(node.now.mono_ns + 1, WALL_START_NS))


def frozen_mean(node: Peer) -> float:
    return ms.decode_normalisation(node.frozen).mean[0]


def test_two_of_four_that_meet_at_the_exact_mean_do_not_freeze_at_once(peer: Peer) -> None:
    reads(peer, CONVERGED, says())
    reads(peer, UNEVEN, says(mean=1.0))
    for _ in range(CALM - 1):
        reads(peer, CONVERGED, says())
        assert peer.stage == "statistics"
    reads(peer, CONVERGED, says())
    assert peer.stage == "training" and frozen_mean(peer) == 2.0


def test_who_is_frozen_does_not_unlearn_from_those_who_still_mix(peer: Peer) -> None:
    for _ in range(CALM):
        reads(peer, CONVERGED, says())
    reads(peer, UNEVEN, says(mean=1.0))
    assert peer.estimate is not None and peer.estimate.mean == (2.0,)


def test_who_is_late_takes_a_candidate_that_is_like_its_own_estimate(peer: Peer) -> None:
    theirs = ms.encode(says("b", 2.00001))
    peer.hear(NAME, ms.Candidate(theirs, NAME, b"s" * 64))
    reads(peer, UNEVEN, says(mean=1.0))
    assert peer.stage == "statistics", "far from its own estimate: not taken"
    reads(peer, (1.00001, 0.99999, 1.0, 1.0), says())
    assert peer.stage == "training" and peer.frozen == theirs


def test_a_restart_believes_what_is_frozen(peer: Peer) -> None:
    for _ in range(CALM):
        reads(peer, CONVERGED, says())
    rows = {(kind, key): value for kind, key, value in peer.state_rows() if value is not None}
    again = Peer(replace(peer.settings))
    again.handle(ev.Started(rows, NAME, NAME, NAME), ev.Instant(1, WALL_START_NS))
    assert again.estimate == ms.decode_normalisation(peer.frozen)
    reads(again, UNEVEN, says(mean=1.0))
    assert again.estimate is not None and again.estimate.mean == (2.0,)
