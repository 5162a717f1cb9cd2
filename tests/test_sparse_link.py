"""A study whose exchanges are sparse, from end to end: the real core and hands, watched by all laws; files; what doctor says."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from gossipfl.digest import expected_name, name_of, replica_name
from gossipfl.learning import compression, correction, mixing
from gossipfl.learning.sparse import SPAN
from gossipfl.protocol import events as ev
from gossipfl.simulator.faults import Faults
from gossipfl.simulator.federation import found
from gossipfl.simulator.network import World
from gossipfl.simulator.trial import LAWS, Watching, truth_of
from gossipfl.store import Store
from gossipfl.workbench import Bench, Workbench

CODEC = "topk:0.25"


@pytest.mark.parametrize("rule", ["ledger", "none"])
def test_every_law_holds_over_a_study_with_cuts_and_crashes_whose_exchanges_are_sparse(rule: str) -> None:
    federation = found("toy", 5, 1, options={"dimension": 24}, study={"codec": CODEC, "local_rounds": 40, "local_steps": 5,
                       "eta": 0.05, "release_exchanges": 5, "correction": rule})  # fmt: skip
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


def test_a_release_is_longer_where_each_number_waits_for_its_turn() -> None:
    plain, tenth, short = (
        found("toy", 6, 1, study={"codec": codec, "local_rounds": rounds, "exchanges": 1}).membership.release_exchanges
        for codec, rounds in (("f64", 4000), ("topk:0.1", 4000), ("topk:0.1", 40))
    )
    assert tenth == math.ceil(3.5 * plain) and short == 20


def test_a_name_says_also_what_the_reference_was_made_of() -> None:
    own, other, root = (name_of(text) for text in (b"own", b"other", b"root"))
    one = expected_name(own, other, 0.5, 1.0, 2.0)
    given = (other, own, 0.5, 1.0, 2.0), (own, other, 0.5, 2.0, 1.0), (own, own, 0.5, 1.0, 2.0)
    others = {expected_name(*one) for one in given}
    assert one not in others and len(others) == 3
    assert replica_name(one, root, "model", CODEC) != replica_name(own, root, "model", CODEC)


@pytest.mark.parametrize(
    ("codec", "says"),
    [("topk:0.10", "no 0 at its end"), ("topk:2", "use f64"), ("sign:.1", "sign:0.1"), ("f23", "mean 'f32'")],
)
def test_a_study_takes_one_spelling_of_a_codec(codec: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        found("toy", 3, 0, study={"codec": codec})


@pytest.mark.parametrize("codec", [CODEC, "sign:0.25"])
def test_both_ends_of_a_large_exchange_in_pieces_agree_with_the_plain_functions(codec: str) -> None:
    """Encode, answer, mix, twice: vectors of several spans, with moments, by hands that know each other's payloads only."""
    p, moments, gamma, masses = 5 * SPAN + 77, 9, 0.5, {"a": 1.0, "b": 3.0}
    rng = np.random.default_rng(0)
    size = p + moments
    models = {name: rng.standard_normal(size).astype(np.float32) for name in "ab"}
    zero = np.zeros(size, np.float32)
    hands = {name: Workbench(Bench(p, moments, "float32", _never, _never, (1,)), Store.modelled().files) for name in "ab"}
    names = {name: {"own": hands[name].tensors.put(zero), "theirs": hands[name].tensors.put(zero)} for name in "ab"}
    flows, drifts, replicas = dict.fromkeys("ab", b""), dict.fromkeys("ab", b""), [zero, zero]
    idle, phi = np.zeros(p, np.float32), np.zeros(p, np.float32)
    common = {"codec": codec, "seed": b"", "gamma": gamma, "kappa": 0.5, "tau": math.inf, "leak": 0.9, "cap_norm": math.inf}

    def mix(name: str, other: str, model: bytes, incoming: bytes, **known: Any) -> ev.Mixed:
        agreed = names[name]
        done = hands[name].carry_out(ev.Mix(2, "model", name == "a", incoming, agreed["theirs"], agreed["own"], model,
                                            flows[name], drifts[name], mass=masses[name], mass_peer=masses[other], **common,
                                            **known))  # fmt: skip
        assert isinstance(done, ev.Mixed), done
        names[name] = {"own": done.own, "theirs": done.theirs}
        flows[name], drifts[name] = done.flow, done.correction
        models[name] = hands[name].tensors.array(done.model, np.float32).copy()
        return done

    for turn in range(2):
        before = {name: model.copy() for name, model in models.items()}
        held = {name: hands[name].tensors.put(models[name]) for name in "ab"}
        sent = hands["a"].carry_out(ev.Encode(1, "model", held["a"], names["a"]["own"], codec, b"", names["a"]["theirs"], True,
                                              masses["a"], masses["b"], gamma))  # fmt: skip
        assert isinstance(sent, ev.Encoded) and sent.size == compression.payload_size(codec, p, moments, 4)
        payload = hands["a"].tensors.read(sent.root)
        answer = mix("b", "a", held["b"], hands["b"].tensors.put(payload))
        back = hands["a"].tensors.put(hands["b"].tensors.read(answer.payload))
        done = mix("a", "b", held["a"], back, payload=sent.root, clip=answer.clip, cap=answer.cap, q=answer.q)
        assert done.q == answer.q and (done.own, done.theirs) == (answer.theirs, answer.own)

        expected = mixing.predict(replicas[0], replicas[1], gamma, 1.0, 3.0)
        raw = payload, hands["b"].tensors.read(answer.payload)
        replicas = [compression.decode(codec, one, ref, n_parameters=p) for one, ref in zip(raw, expected, strict=True)]
        q = mixing.flow_step(replicas[0], replicas[1], gamma, 1.0, 3.0, 1.0)
        for name, lower in (("a", True), ("b", False)):
            assert (models[name] == mixing.apply(before[name], q, masses[name], lower)).all()
        came = (replicas[0] != expected[0]) | (replicas[1] != expected[1])
        n, idle = correction.since_last(idle, came[:p])
        phi = correction.book(phi, q[:p] / n, 0.5, 0.9, 1.0, True)
        for name, sign in (("a", 1), ("b", -1)):
            flow = hands[name].tensors.array(flows[name], np.float32)
            assert (flow[:p] == sign * phi).all() and (flow[p:] == sign * idle).all()
            drift = hands[name].tensors.array(drifts[name], np.float32)
            np.testing.assert_allclose(drift, -sign * phi / masses[name], atol=1e-6)
            renewed = hands[name].carry_out(ev.Correct(3, (flows[name],), masses[name]))
            assert isinstance(renewed, ev.Corrected)
            np.testing.assert_allclose(hands[name].tensors.array(renewed.correction, np.float32), drift, atol=1e-6)
        assert 0.25 < float(came[:p].mean()) < 0.5 and float(idle.max()) == turn + 1


@pytest.mark.parametrize("lower", [True, False])
def test_a_flow_that_was_booked_under_another_codec_goes_on_with_counts_of_0(lower: bool) -> None:
    """A new version of the federation file may change the codec; both ends then hold flows without counts."""
    p, rng = 50, np.random.default_rng(0)
    hands = Workbench(Bench(p, 0, "float32", _never, _never, (1,)), Store.modelled().files)
    zeros, before = np.zeros(p, np.float32), rng.standard_normal(p).astype(np.float32)
    base, model = hands.tensors.put(zeros), hands.tensors.put(rng.standard_normal(p).astype(np.float32))
    came = compression.encode("topk:0.1", rng.standard_normal(p).astype(np.float32), zeros, n_parameters=p)
    done = hands.carry_out(ev.Mix(1, "model", lower, hands.tensors.put(came), base, base, model, hands.tensors.put(before), b"",
                                  "topk:0.1", b"", 1.0, 1.0, 0.5, 0.5, math.inf, 0.9, math.inf))  # fmt: skip
    assert isinstance(done, ev.Mixed), done
    own, theirs = (hands.tensors.array(name, np.float32) for name in (done.own, done.theirs))
    lo, hi = (own, theirs) if lower else (theirs, own)
    flow = hands.tensors.array(done.flow, np.float32)
    assert (flow[:p] == correction.book(before, mixing.flow_step(lo, hi, 0.5, 1.0, 1.0, 1.0), 0.5, 0.9, 1.0, lower)).all()
    assert (np.abs(flow[p:]) == ((own == 0) & (theirs == 0))).all() and 40 <= np.abs(flow[p:]).sum() <= 45


@pytest.mark.parametrize(("before", "after", "changed"), [("f64", CODEC, {}), (CODEC, "f64", {}),
                                                           ("f64", CODEC, {"gamma": 0.4, "leak": 0.1})])  # fmt: skip
def test_an_exchange_in_doubt_is_ended_as_it_was_proposed_where_the_study_has_changed_since(before, after, changed) -> None:
    """The peer has applied its half already: a codec or gamma of today's would leave the link in doubt for ever."""
    federation = found("toy", 2, 1, options={"dimension": 24}, study={"codec": before, "local_rounds": 12, "local_steps": 2})
    world = World(federation.specs(change=lambda told: replace(told, turn_ns=10**9)), 1, Faults())
    one, two = world.nodes.values()

    def links() -> tuple[Any, Any]:
        return next(iter(one.peer.links.values())), next(iter(two.peer.links.values()))

    for _ in range(5000):
        world.run(0.003)
        if one.boots and two.boots and one.peer.links and two.peer.links and {end.done for end in links()} == {3, 4}:
            break
    assert [end.pending.k for end in links() if end.pending] == [4]
    study = federation.membership.study.model_copy(update={"codec": after, **changed})
    newer: Any = federation.membership.model_copy(update={"version": 2, "study": study})
    size = compression.payload_size(after, 24, 0, 8)
    for node in (one, two):
        node.crash(1.0)
        node.spec = replace(node.spec, settings=lambda random, was=node.spec.settings: replace(
            was(random), members=newer, codec=after, model_size=size, **changed))  # fmt: skip
        node.boot()
    world.run(600, until=lambda: all(node.boots and node.peer.stage == "finished" for node in (one, two)))
    world.run(10)
    here, there = links()
    assert here.done == there.done > 6 and (here.epoch, there.epoch) == (0, 0) and not (here.pending or there.pending)
    assert (here.model.own, here.model.theirs) == (there.model.theirs, there.model.own)
    flows = [node.store.files.array(link.flow, "float64") for node, link in ((one, here), (two, there))]
    assert (flows[0] == -flows[1]).all() and len(flows[0]) == (48 if after == CODEC else 24)


def _never(*_: object) -> Any:
    raise AssertionError("nothing is trained here")
