"""A study whose exchanges are sparse, from end to end: the real core and hands, watched by all laws; files; what doctor says."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gossipfl.digest import expected_name, name_of, replica_name
from gossipfl.learning import compression
from gossipfl.simulator.faults import Faults
from gossipfl.simulator.federation import found
from gossipfl.simulator.network import World
from gossipfl.simulator.trial import LAWS, Watching, truth_of

CODEC = "topk:0.25"


@pytest.mark.parametrize("correction", ["ledger", "none"])
def test_every_law_holds_over_a_study_with_cuts_and_crashes_whose_exchanges_are_sparse(correction: str) -> None:
    federation = found("toy", 5, 1, options={"dimension": 24}, study={"codec": CODEC, "local_rounds": 40, "local_steps": 5,
                       "eta": 0.05, "release_exchanges": 5, "correction": correction})  # fmt: skip
    specs = federation.specs(change=lambda told: replace(told, checkpoint_ns=20 * 10**9, turn_ns=10**9))
    watch = Watching(truth_of(federation, specs), LAWS)
    world = World(specs, 1, Faults(cut_per_hour=240, crash_per_hour=30, down_s=5, until_hours=0.05), observers=(watch,))
    world.run(7200, until=lambda: all(one.boots and one.peer.stage == "finished" for one in world.nodes.values()))
    world.run(60)
    watch.over(True)
    assert not [(one.name, one.first, one.error) for one in watch.checkers if one.first or one.error]
    assert world.counts["crash"] > 0 and world.counts["cut"] > 3
    size = compression.payload_size(CODEC, 24, 0, 8)
    for node in world.nodes.values():
        for link in node.peer.links.values():
            assert link.sent % size == 0 and link.received % size == 0 and link.exchanges > 10


def test_a_name_says_also_what_the_reference_was_made_of() -> None:
    own, other, root = (name_of(text) for text in (b"own", b"other", b"root"))
    one = expected_name(own, other, 0.5, 1.0, 2.0)
    given = (other, own, 0.5, 1.0, 2.0), (own, other, 0.5, 2.0, 1.0), (own, own, 0.5, 1.0, 2.0)
    others = {expected_name(*one) for one in given}
    assert one not in others and len(others) == 3
    assert replica_name(one, root, "model", CODEC) != replica_name(own, root, "model", CODEC)


@pytest.mark.parametrize(("codec", "says"), [("topk:0.10", "no 0 at its end"), ("topk:2", "use f64"), ("f23", "mean 'f32'")])
def test_a_study_takes_one_spelling_of_a_codec(codec: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        found("toy", 3, 0, study={"codec": codec})
