"""Steps of a loop of one's own: each is in the model exactly once, whatever fails or is on its way meanwhile."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from places import deploy
from test_node import driver_of, running, town

from gossipfl import tasks
from gossipfl.errors import Misuse
from gossipfl.node import Node
from gossipfl.node.driver import PAUSED, Driver
from gossipfl.protocol import events as ev
from gossipfl.trust.membership import Membership, with_members


class Loop:
    """A loop of one's own at the node `a` of two; nobody else is there."""

    def __init__(self, folder: Path) -> None:
        data = {"a": "site = 0\nsites = 2", "b": "site = 1\nsites = 2"}
        self.node = Node(deploy(folder, ["a", "b"], "digits", data, local_round_s=0.01)["a"], external=True)
        self.module = tasks.load("digits").model()

    def hands_in(self, change: float) -> None:
        import torch

        with torch.no_grad():
            for weight in self.module.parameters():
                weight += change
        self.node.mix(self.module, steps=1, gradient=1.0)

    def value(self) -> float:
        """Of the node's newest model, in a module of its own."""
        module = tasks.load("digits").model()
        self.node.load(module)
        return next(module.parameters()).flatten()[0].item()

    def do(self, what: Callable[[Driver], Any]) -> Any:
        return self.node._ask(what)


def wait_for(holds: Callable[[], Any]) -> None:
    end = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_what_fails_of_a_peer_s_takes_no_step_of_the_loop_s_away(tmp_path: Path) -> None:
    loop = Loop(tmp_path)
    with loop.node as node:
        node.mix(loop.module)
        began = loop.value()
        loop.do(lambda driver: driver.post(ev.Operator("pause")))
        loop.hands_in(1.0)
        loop.do(lambda driver: driver.after(ev.Failed(10**6, "nonfinite", "a peer's half")))
        loop.hands_in(2.0)
        assert node._waiting() == 2 and loop.value() == pytest.approx(began + 3.0)
        node.finish()
        loop.do(lambda driver: driver.post(ev.Operator("resume")))
        wait_for(lambda: node.status()["stage"] == "release")
        assert node.status()["steps"] == 2 and loop.value() == pytest.approx(began + 3.0)


def test_a_step_whose_own_absorption_fails_is_waited_for_no_longer(tmp_path: Path) -> None:
    loop = Loop(tmp_path)
    with loop.node as node:
        node.mix(loop.module)

        def fails(driver: Driver) -> None:
            does = driver.bench.carry_out

            def carry_out(job: ev.Job) -> ev.Event:
                return ev.Failed(job.job, "disk", "the file is gone") if isinstance(job, ev.Absorb) else does(job)

            driver.bench.carry_out = carry_out  # type: ignore[method-assign]

        loop.do(fails)
        loop.hands_in(1.0)
        wait_for(lambda: not node._waiting() and node.status()["stage"] == "paused")


def test_a_step_is_counted_once_while_the_commit_that_holds_it_is_on_its_way(tmp_path: Path) -> None:
    loop = Loop(tmp_path)
    seen: list[tuple[int, float]] = []

    def watch(driver: Driver) -> None:
        commit = driver.store.commit

        def watched(*arguments: Any) -> Any:
            if not seen:  # the first is carried out in a thread, as that of a slow disk; a later one may not be
                seen.append((driver.peer.local_round, loop.value()))
            return commit(*arguments)

        driver.store.commit, driver._commit_s, driver.peer.checkpoint_at = watched, 9.0, 0  # type: ignore[method-assign]

    with loop.node as node:
        node.mix(loop.module)
        began = loop.value()
        loop.do(watch)
        loop.hands_in(1.0)
        wait_for(lambda: seen)
    assert seen[0] == (1, pytest.approx(began + 1.0))


def test_wait_without_end_is_refused_where_nothing_would_end_it(tmp_path: Path) -> None:
    config = town(tmp_path)["a"]
    old = Membership.load(tmp_path / "federation.json")
    (tmp_path / "federation.json").write_text(
        with_members(old, old.member("a").model_copy(update={"role": "observer", "count": 0})).dump()
    )
    with Node(config) as node:
        with pytest.raises(Misuse, match="only observes"):
            node.wait()
        assert not node.wait(0.01)


async def test_a_pause_is_on_disk_when_the_order_is_answered(tmp_path: Path) -> None:
    driver = driver_of(town(tmp_path)["a"])
    async with running(driver):
        await driver.order("pause")
        assert driver.store.load().get(PAUSED) == b"1" and driver.held
        await driver.order("resume")
        assert PAUSED not in driver.store.load() and not driver.held
