"""A node: run one from its node.toml, or mix inside a training loop of your own.

    Node("node.toml").run()                              # blocking, until it is stopped

    with Node("node.toml", external=True) as node:       # your loop trains, the node mixes
        for step, batch in enumerate(batches):
            train(model, batch)
            if step % 20 == 19:
                report = node.mix(model, steps=20)
        node.finish()

Not here: what runs inside (driver), what a node is made of (build). Importing this loads neither torch nor aiohttp.
"""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as TookTooLong
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

from gossipfl.errors import GossipError, Misuse

if TYPE_CHECKING:
    import numpy as np
    from torch import nn

    from gossipfl.config import NodeConfig
    from gossipfl.node.driver import Driver
    from gossipfl.protocol import events as ev

ANSWER_S: Final = 10.0
"""Seconds for the node's own thread to answer; it answers in milliseconds unless the machine is overloaded."""


@dataclass(frozen=True, slots=True)
class MixReport:
    """What one call of `mix` did."""

    exchanges: int
    """done since the last call, whoever began them"""
    peers: tuple[str, ...]
    """with whom"""
    steps: int
    """local steps that were handed in, or that wait for the node to take them"""
    stage: str
    waiting: int
    """local steps handed in that are not in the node's model yet: its disk or an exchange is still busy"""
    loaded: bool
    """was the newest mixed model put into the module? Not once the node has stopped"""


@dataclass(slots=True)
class _Share:
    """A displacement of the user's loop that the node's model does not have yet."""

    vector: np.ndarray[Any, Any]
    steps: int


class Node:
    """One node of one member.

    **Raises**: ConfigError for a fault in the files; StateError where the disk fails. Never for a peer's fault or absence.
    """

    def __init__(
        self,
        config: str | Path | NodeConfig,
        *,
        external: bool = False,
        passphrase: Callable[[], str | None] = lambda: None,
        accept_new_data: bool = False,
    ) -> None:
        from gossipfl.config import load_node

        self.config = load_node(Path(config)) if isinstance(config, str | Path) else config
        self.external = external
        self._passphrase = passphrase
        self._accept = accept_new_data
        self._driver: Driver | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._ended: Future[None] = Future()
        self._lock = threading.Lock()
        self._given: np.ndarray[Any, Any] | None = None
        self._flying: _Share | None = None
        self._kept: _Share | None = None
        self._counted: dict[str, int] = {}

    # ---- running -------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Run until stopped: by SIGTERM or SIGINT, `gossipfl node stop`, or because it has left. Drains first."""
        asyncio.run(self._run(signals=threading.current_thread() is threading.main_thread()))

    async def _run(self, signals: bool = False, started: Callable[[], None] = lambda: None) -> None:
        from gossipfl.node.build import build
        from gossipfl.node.driver import Driver

        parts = build(
            self.config, passphrase=self._passphrase, accept_new_data=self._accept, external=self.external
        )
        self._driver = driver = Driver(parts)
        self._loop = loop = asyncio.get_running_loop()
        driver.after = self._after
        if signals:
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.add_signal_handler(number, driver.stop)
        running = asyncio.ensure_future(driver.run())
        waiting = asyncio.ensure_future(driver.running.wait())
        await asyncio.wait({running, waiting}, return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        if not running.done():
            started()
        await running

    def __enter__(self) -> Self:
        if self._thread is not None:
            raise Misuse("this node has been started already; make another Node")
        up: Future[None] = Future()
        self._thread = threading.Thread(target=self._background, args=(up,), name="gossipfl-node", daemon=True)
        self._thread.start()
        up.result()
        return self

    def _background(self, up: Future[None]) -> None:
        try:
            asyncio.run(self._run(started=lambda: up.set_result(None)))
            self._ended.set_result(None)
        except BaseException as error:
            self._ended.set_exception(error)
            if not up.done():
                up.set_exception(error)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._driver is not None and self._loop is not None:
            with suppress(RuntimeError):  # the loop has ended already
                self._loop.call_soon_threadsafe(self._driver.stop)
        assert self._thread is not None
        self._thread.join()
        if error is None:
            self._ended.result()

    def finish(self) -> None:
        """The loop is done: the node goes on to the release, where models come together."""
        self._ask(lambda driver: driver.order("finish"))

    def status(self) -> dict[str, Any]:
        """What `/status` says; empty once the node has stopped."""
        return self._ask(lambda driver: driver.status()) or {}

    # ---- mixing --------------------------------------------------------------------------------------------------

    def mix(self, model: nn.Module, *, steps: int = 0, gradient: float = 0.0) -> MixReport:
        """Hand in what the loop has changed since the last call, and load what mixing has made of it all.

        The first call only loads: every member begins at the study's x^0, or where this node was stopped. `steps` are the
        optimiser steps since the last call (0: the study's local_steps), `gradient` their mean gradient norm (0: as the
        displacement implies for plain SGD at the study's rate). Thread-safe. Never waits for the network, and never fails
        because a neighbour is absent: what was not mixed yet is carried along.

        **Raises**: Misuse if the module is not the task's, or holds a value that is not finite; GossipError if the node
        has failed.
        """
        from gossipfl.learning import parameters

        with self._lock:
            driver = self._up()
            layout = self._layout(model, driver)
            vector = parameters.read(layout, model)
            taken = self._ask(lambda driver: self._exchange(driver, vector, steps, gradient))
            if taken is None:
                return MixReport(0, (), 0, "stopped", self._waiting(), False)
            newest, report = taken
            parameters.write(layout, newest, model)
            self._given = parameters.read(layout, model)
            made: MixReport = report
            return made

    def _layout(self, model: nn.Module, driver: Driver) -> Any:
        from gossipfl import tasks
        from gossipfl.learning.parameters import Layout

        study = driver.parts.membership.study
        task = tasks.load(study.task, study.task_options)
        layout = Layout.of(model, getattr(task, "shared", None))
        if layout.digest != driver.parts.settings.layout:
            raise Misuse(f"this module is not that of the study's task {study.task!r}: its tensors differ; use task.model()")
        return layout

    def _exchange(self, driver: Driver, vector: Any, steps: int, gradient: float) -> tuple[Any, MixReport]:
        """On the node's own thread, between two events: the core's model and what it lacks are of one moment."""
        import numpy as np

        if self._given is not None:
            moved = np.subtract(vector, self._given)
            if not np.isfinite(moved).all():
                raise Misuse("the model holds values that are not finite; nothing was handed in: lower the learning rate")
            self._keep(_Share(moved, steps or driver.peer.settings.local_steps))
            self._hand_in(driver, gradient)
        newest = np.array(driver.store.files.array(driver.peer.current["model"], driver.parts.bench.dtype))
        for share in (self._flying, self._kept):
            if share is not None:
                newest += share.vector
        counts = {peer: link.exchanges for peer, link in driver.peer.links.items()}
        new = {peer: n - self._counted.get(peer, 0) for peer, n in counts.items()} if self._given is not None else {}
        self._counted = counts
        met = tuple(sorted(peer for peer, n in new.items() if n))
        handed = (steps or driver.peer.settings.local_steps) if self._given is not None else 0
        return newest, MixReport(sum(new.values()), met, handed, driver.peer.stage, self._waiting(), True)

    def _keep(self, share: _Share) -> None:
        """Join it to what waits already: however often the loop calls, at most two vectors wait."""
        if self._kept is not None:
            share = _Share(self._kept.vector + share.vector, self._kept.steps + share.steps)
        self._kept = share

    def _hand_in(self, driver: Driver, gradient: float) -> None:
        """Give the core what waits, if it has taken what it was given before. Only training takes displacements."""
        from gossipfl.protocol import events as ev

        if self._flying is not None or self._kept is None or driver.peer.stage not in ("statistics", "training"):
            return
        share, self._kept = self._kept, None
        name = driver.store.files.put(share.vector, pinned=True)
        if not gradient:
            rate = driver.peer.settings.eta(driver.peer.local_round)
            gradient = float((share.vector.astype("f8") ** 2).sum() ** 0.5) / (rate * share.steps)
        self._flying = share
        driver.post(ev.Operator("mix", name, share.steps, gradient), pinned=name)

    def _after(self, event: ev.Event) -> None:
        """Called after each event of the core: is what was handed in part of its model now?"""
        from gossipfl.protocol import events as ev

        if self._flying is None or self._driver is None or not isinstance(event, ev.Absorbed | ev.Failed):
            return
        self._flying = None
        self._hand_in(self._driver, 0.0)

    def _waiting(self) -> int:
        return sum(share.steps for share in (self._flying, self._kept) if share is not None)

    # ---- the node's own thread -----------------------------------------------------------------------------------

    def _up(self) -> Driver:
        if self._driver is None or self._thread is None:
            raise Misuse('use it as `with Node("node.toml", external=True) as node:`')
        if self._ended.done():
            self._ended.result()
        return self._driver

    def _ask(self, do: Callable[[Driver], Any]) -> Any:
        """`do` on the node's own thread, between two events; None once the node has stopped."""
        driver, answer = self._up(), Future[Any]()
        assert self._loop is not None

        def act() -> None:
            try:
                answer.set_result(do(driver))
            except BaseException as error:
                answer.set_exception(error)

        try:
            self._loop.call_soon_threadsafe(act)
        except RuntimeError:
            return None
        try:
            return answer.result(ANSWER_S)
        except TookTooLong:
            if self._ended.done():
                return None
            raise GossipError(f"the node's thread did not answer within {ANSWER_S:g} s; is the machine overloaded?") from None
