"""A federation from a seed: the same bytes each time, any task, every row dealt once, and nodes as they are deployed."""

from __future__ import annotations

import os

import numpy as np
import pytest

from gossipfl import tasks
from gossipfl.errors import ConfigError
from gossipfl.learning.parameters import Layout
from gossipfl.simulator.federation import found, sites_of
from gossipfl.simulator.network import World


def test_one_seed_is_one_federation() -> None:
    first, again, other = (found("toy", 4, seed) for seed in (1, 1, 2))
    assert first.membership.digest == again.membership.digest != other.membership.digest
    assert first.keyring.psk == again.keyring.psk != other.keyring.psk
    assert all((first.specs()[name].statistics == again.specs()[name].statistics).all() for name in first.works)


def test_names_are_in_the_order_of_the_sites_however_many_there_are() -> None:
    made = found("toy", 12, 0)
    assert list(made.membership.active) == [site.name for site in made.sites]
    assert made.membership.active[1] == "hospital-02"


@pytest.mark.parametrize("how", ["iid", "dirichlet"])
def test_every_row_is_dealt_once(how: str) -> None:
    task = tasks.load("breast-cancer")
    whole, _ = sites_of(task, 5, 0)
    sites, test = sites_of(task, 7, 0, how=how, alpha=0.5, ratio=3.0)
    assert sum(len(site.train) for site in sites) == sum(len(site.train) for site in whole)
    rows = np.concatenate([site.train.x for site in sites])
    assert len(np.unique(rows, axis=0)) == len(np.unique(np.concatenate([site.train.x for site in whole]), axis=0))
    assert max(len(site.train) for site in sites) > 2 * min(len(site.train) for site in sites)
    assert all(site.holdout is test for site in sites)


class Mean:
    """A task of a user's own: the mean of one column, with rows from a table [data] and no sites for demos."""

    name, standardise, metric, features = "mean", False, "error", ()

    def model(self) -> object: ...

    def loss(self, module: object, x: object, y: object) -> object: ...

    def layout(self) -> Layout:
        return Layout.flat(1, "float64")

    def initial(self, seed: int) -> np.ndarray:
        return np.zeros(1)

    def trainer(self, layout: Layout, x: np.ndarray, y: np.ndarray) -> object:
        from gossipfl.tasks.toy import ToyTrainer

        return ToyTrainer(np.concatenate([np.ones_like(x), x], axis=1))

    def judge(self, vector: np.ndarray, x: np.ndarray, y: np.ndarray) -> dict[str, float]:
        return {"error": float(abs(vector - x.mean(axis=0)).max())}

    def data(self, source: dict) -> tasks.Data:
        return tasks.Data(np.arange(float(source["rows"]))[:, None], np.zeros(source["rows"]))


def test_a_task_of_ones_own_learns() -> None:
    made = found("test_simulated_federation:Mean", 3, 0, how="iid", source={"rows": 60}, study={"eta": 0.5, "l2": 0.0})
    world = World(made.specs(), 0)
    world.run(7200, until=lambda: all(getattr(node, "peer", None) and node.peer.stage == "finished"
                                      for node in world.nodes.values()))  # fmt: skip
    mass = [made.membership.mass(site.name) for site in made.sites]
    wanted = np.average([site.train.x.mean() for site in made.sites], weights=mass)
    assert max(abs(float(world.model(name)[0]) - wanted) for name in world.nodes) < 0.5


def test_what_cannot_be_dealt_is_said_with_its_remedy() -> None:
    with pytest.raises(ConfigError, match=r"partition = .iid."):
        found("test_simulated_federation:Mean", 3, 0)
    with pytest.raises(ConfigError, match="cannot be dealt to 300 nodes"):
        found("breast-cancer", 300, 0, how="iid")


def test_the_statistics_stage_is_that_of_a_deployed_federation() -> None:
    made = found("breast-cancer", 3, 0, study={"local_rounds": 3})
    world = World(made.specs(), 0)
    world.run(1200, until=lambda: all(getattr(node, "peer", None) and node.peer.stage == "finished"
                                      for node in world.nodes.values()))  # fmt: skip
    assert len({node.peer.normalisation for node in world.nodes.values()}) == 1
    assert {node.peer.stage for node in world.nodes.values()} == {"finished"}


@pytest.mark.skipif(not os.environ.get("GOSSIPFL_DATA"), reason="GOSSIPFL_DATA names no folder with uci-heart/")
def test_the_four_hospitals_of_heart() -> None:
    assert len(found("heart", 4, 0).sites) == 4
