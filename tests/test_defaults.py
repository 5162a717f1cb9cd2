"""Laws of what a study is trained by where nobody says otherwise: one definition for the benchmark, the file and the node."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_cli import run
from test_world import Watch
from worlds import federation, quadratics, toy_specs

from gossipfl import defaults
from gossipfl.learning.correction import kappa
from gossipfl.protocol import events as ev
from gossipfl.recipe import study_defaults
from gossipfl.simulator.bench.recipe import recipe
from gossipfl.simulator.federation import study_of
from gossipfl.simulator.network import SECOND, World
from gossipfl.tasks import load
from gossipfl.topology import graph
from gossipfl.trust.membership import Study, masses

SKELETON = {"task": "toy", "holdout_key": "00" * 32}


@pytest.mark.parametrize("task", ["breast-cancer", "digits"])
@pytest.mark.parametrize("rounds", [50, 100, 300])
def test_a_deployed_study_is_trained_as_the_benchmark_trains(task: str, rounds: int) -> None:
    loaded, dense = load(task), graph("complete", 12)
    study = Study(**(SKELETON | study_defaults(loaded, {"local_rounds": rounds}, 12)))
    bench = recipe(loaded, "ledger", rounds, dense)
    plan = bench.plan
    assert (study.local_steps, study.eta) == (plan.steps, plan.eta)
    assert (study.momentum, plan.momentum) == ((0.95, 0.98) if task == "digits" else (0.0, 0.0))
    assert (study.batch_size, study.l2, study.heaviest) == (plan.batch_size, plan.l2, bench.heaviest)
    assert study.exchanges == defaults.begun(bench.exchanges)
    assert study.theta == defaults.theta(2 * study.exchanges)
    assert bench.method.theta == defaults.theta(bench.exchanges, whole=task == "digits")


def test_what_is_said_of_a_study_goes_before_its_defaults_and_decides_what_follows() -> None:
    task = load("digits")
    found = study_defaults(task, {"local_rounds": 50, "exchanges": 1, "eta": 0.3}, 4)
    assert not {"local_rounds", "exchanges", "eta"} & set(found)
    assert found["local_steps"] == 20 and found["theta"] == defaults.theta(2)


def test_the_same_difference_flows_the_same_whatever_share_of_it_an_exchange_moves() -> None:
    moved = {gamma: gamma * kappa(0.4, gamma, 0.1, 10) for gamma in (0.25, 0.5, 1.0)}
    assert len(set(moved.values())) == 1


@pytest.mark.parametrize("members", [3, 5, 30, 31, 80, 100, 1000])
def test_no_site_weighs_more_than_about_a_tenth_of_many_or_three_medians_of_few(members: int) -> None:
    most = defaults.heaviest(members)
    heavy = masses([10] * (members - 1) + [10**6], most)
    assert max(heavy) / sum(heavy) <= max(1 / 10, 3 / (members + 2)) + 1e-9
    assert 3 <= most <= 10


def test_the_demo_and_the_simulator_have_the_study_that_create_would_make(capsys: Any) -> None:
    made = study_of("digits", load("digits"), 3, None, 5)
    assert run("federation", "study", "--task", "digits", "--members", "5") == 0
    text = capsys.readouterr().out
    for name in ("exchanges", "theta", "heaviest", "momentum", "cap", "leak", "clip", "gamma", "eta", "local_steps"):
        assert f"\n{name} = {getattr(made, name)}\n" in text


def test_the_printed_study_says_what_each_constant_does_and_reads_back_the_same(tmp_path: Path, capsys: Any) -> None:
    run("federation", "study", "--task", "digits", "--members", "50")
    first = capsys.readouterr().out
    (tmp_path / "study.toml").write_text(first)
    run("federation", "study", "--study", tmp_path / "study.toml", "--members", "50")
    assert capsys.readouterr().out == first
    blocks = first.split("\n\n")[1:]
    assert len(blocks) == len(Study.model_fields) - 1
    assert all(block.startswith("# ") and len(block.splitlines()) > 1 for block in blocks)


class Turns(Watch):
    """Beside it: with whom each node began exchanges, by the local round that they followed."""

    def __init__(self) -> None:
        super().__init__()
        self.begun: dict[tuple[str, int], list[str]] = defaultdict(list)

    def did(self, world: World, node: Any, command: ev.Command) -> None:
        super().did(world, node, command)
        if isinstance(command, ev.Encode) and node.peer.stage == "training" and node.peer.turn == "exchanging":
            self.begun[node.name, node.peer.local_round].append(node.peer.turn_peer)


def played(exchanges: int, release_exchanges: int = 60) -> tuple[Turns, dict[str, Any]]:
    members = federation(
        dict.fromkeys("abcde", 10), local_rounds=12, release_exchanges=release_exchanges, exchanges=exchanges, eta=0.05,
        leak=0.0, cap=0.0, clip=0.0,
    )  # fmt: skip
    trainers, _ = quadratics(members.active)
    watch = Turns()
    world = World(toy_specs(members, lambda name: trainers[name], turn_ns=SECOND), 7, observers=[watch])
    world.run(120)
    assert all(node.peer.stage == "finished" for node in world.nodes.values())
    return watch, {name: world.model(name) for name in world.nodes}


class OwnNet:
    """A net that no table of names has."""

    def __getattr__(self, name: str) -> Any:
        return getattr(load("digits"), name)


@pytest.mark.parametrize("task", [load("breast-cancer"), load("digits"), OwnNet()])
def test_a_simulated_study_has_the_rounds_of_a_deployed_one_by_its_model_not_its_name(task: Any) -> None:
    simulated = study_of("own:task", task, 0)
    assert simulated.local_rounds == study_defaults(task, {}, 5)["local_rounds"] == (100 if task.name == "breast-cancer" else 300)


@pytest.mark.parametrize("exchanges", [1, 3])
def test_a_node_begins_as_many_exchanges_a_round_as_the_study_says_each_with_another_neighbour(exchanges: int) -> None:
    watch, _ = played(exchanges)
    rounds = [peers for (_, number), peers in watch.begun.items() if 0 < number < 12]
    assert all(len(set(peers)) == len(peers) <= exchanges for peers in rounds)
    assert np.mean([len(peers) for peers in rounds]) > 0.9 * exchanges


def test_more_exchanges_a_round_bring_the_models_nearer_to_each_other_before_the_release() -> None:
    def apart(models: dict[str, Any]) -> float:
        every = np.array(list(models.values()))
        return float(np.abs(every - every.mean(0)).max())

    assert apart(played(3, 1)[1]) < apart(played(1, 1)[1]) / 2
