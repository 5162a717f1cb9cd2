"""A node: run one from its node.toml, or mix inside a training loop of your own.

    Node("node.toml").run()                              # blocking, until it is stopped

    with Node("node.toml", external=True) as node:       # your loop trains, the node mixes
        for step, batch in enumerate(batches):
            train(model, batch)
            if step % 20 == 19:
                report = node.mix(model, steps=20)
        node.finish()                                    # the loop is done: the models come together
        node.wait(timeout=600)                           # until that is over; a block that ends sooner cuts it short
        node.load(model)                                 # the released model

Not here: what runs inside (driver), what a node is made of (build). Importing this loads neither torch nor aiohttp.
"""

from __future__ import annotations

import asyncio
import math
import operator
import signal
import threading
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as TookTooLong
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self, SupportsFloat

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
    why: str = ""
    """where there was no exchange: why not, as far as this node knows"""

    def __str__(self) -> str:
        met = f"{self.exchanges} exchanges" + (f" with {', '.join(self.peers)}" if self.peers else "")
        waiting = f", {self.waiting} steps wait" if self.waiting else ""
        return f"{self.stage}: {met}, {self.steps} steps handed in{waiting}" + (f" ({self.why})" if self.why else "")


@dataclass(slots=True)
class _Share:
    """A displacement of the user's loop that the node's model does not have yet."""

    vector: np.ndarray[Any, Any]
    steps: int
    number: int = 0
    """among those given to the core, from 1"""


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
        record: bool = False,
    ) -> None:
        from gossipfl.config import load_node

        self.config = load_node(Path(config)) if isinstance(config, str | Path) else config
        if record:
            noted = self.config.node.model_copy(update={"record": True})
            self.config = self.config.model_copy(update={"node": noted})
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
        self._numbers = 0
        self._counted: dict[str, int] = {}
        self._finishing = False
        """is the loop done? Then the release is ordered once all that was handed in is taken"""
        self._ordered = False
        self._over = threading.Event()

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
        finally:
            self._over.set()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._driver is not None and self._loop is not None:
            with suppress(RuntimeError):  # the loop has ended already
                self._loop.call_soon_threadsafe(self._driver.stop)
        assert self._thread is not None
        self._thread.join()
        if error is None:
            self._ended.result()

    def finish(self) -> None:
        """The loop is done: the node goes on to the release, where models come together, as soon as it has taken all steps
        that were handed in. Returns at once; `wait` waits for the end. A block that ends sooner stops the node, which goes on
        with the release when it is started again.

        **Raises**: Misuse on a node that trains by itself: it finishes by itself.
        """
        self._must_be_external("finish")
        self._ask(self._finish)

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until the release is over, at most `timeout` seconds; is it? True also once the node has stopped.

        **Raises**: Misuse where that would be for ever: before `finish` on a node with a loop of its own, and without `timeout`
        on one that only observes; what stopped the node.
        """
        if timeout is None and not self._up().peer.settings.trains:
            raise Misuse("wait() on a node that only observes: no release ends it; give a timeout, or call run() instead")
        if self.external and not self._finishing and self.status().get("stage") in ("statistics", "training", "paused"):
            raise Misuse("wait() before finish(): nothing would end it; call finish() when the loop is done")
        self._ask(lambda driver: self._look(driver))
        over = self._over.wait(timeout)
        if self._ended.done():
            self._ended.result()
        return over

    def status(self) -> dict[str, Any]:
        """What `/status` says; empty once the node has stopped."""
        from gossipfl.node.status import status_of

        return self._ask(status_of) or {}

    # ---- mixing --------------------------------------------------------------------------------------------------

    def mix(self, model: nn.Module, *, steps: int = 0, gradient: float = 0.0) -> MixReport:
        """Hand in what the loop has changed since the last call, and load what mixing has made of it all.

        The first call only loads: every member begins at the study's x^0, or where this node was stopped. `steps` are the
        optimiser steps since the last call (0: the study's local_steps), `gradient` their mean gradient norm (0: as the
        displacement implies for plain SGD at the study's rate). Thread-safe. Never waits for the network, and never fails
        because a neighbour is absent: what was not mixed yet is carried along; `why` in the report says so.

        **Raises**: Misuse if the module is not the task's, or holds a value that is not finite, for steps that are no whole
        number and a gradient that is none, below 0 both, on a node that trains by itself (`external` not said), and after
        `finish`; GossipError if the node has failed.
        """
        self._must_be_external("mix")
        steps, gradient = _whole(steps), _norm(gradient)
        if self._finishing:
            raise Misuse("mix() after finish(): nothing is taken any more; wait() for the release, then load() its model")
        return self._mix(model, steps, gradient, hands_in=True)

    def load(self, model: nn.Module) -> MixReport:
        """Put the node's newest model into the module and hand in nothing: what the loop changed since `mix` is lost.

        **Raises**: Misuse if the module is not the task's; GossipError if the node has failed.
        """
        return self._mix(model, 0, 0.0, hands_in=False)

    def _mix(self, model: nn.Module, steps: int, gradient: float, hands_in: bool) -> MixReport:
        from gossipfl.learning import parameters

        with self._lock:
            driver = self._up()
            layout = self._layout(model, driver)
            vector = parameters.read(layout, model)
            taken = self._ask(lambda driver: self._exchange(driver, vector, steps, gradient, hands_in))
            if taken is None:
                return MixReport(0, (), 0, "stopped", self._waiting(), False, "the node has stopped")
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
        if not hasattr(model, "named_parameters"):
            raise Misuse(f"not a torch module but {type(model).__name__}: use task.model() of {study.task!r}")
        layout = Layout.of(model, getattr(task, "shared", None))
        if layout.digest != driver.parts.settings.layout:
            raise Misuse(f"this module is not that of the study's task {study.task!r}: its tensors differ; use task.model()")
        return layout

    def _exchange(self, driver: Driver, vector: Any, steps: int, gradient: float, hands_in: bool) -> tuple[Any, MixReport]:
        """On the node's own thread, between two decisions of the core: its model and what it lacks are of one moment."""
        import numpy as np

        self._note_taken(driver)
        given, taken = self._given, 0
        first = given is None
        is_over = driver.peer.stage not in ("statistics", "training")
        if hands_in and given is not None and not is_over:
            moved = np.subtract(vector, given)
            if not np.isfinite(moved).all():
                raise Misuse("the model holds values that are not finite; nothing was handed in: lower the learning rate")
            taken = steps or driver.peer.settings.local_steps
            self._keep(_Share(moved, taken))
            self._hand_in(driver, gradient)
        newest = np.array(driver.store.files.array(driver.peer.current["model"], driver.parts.bench.dtype))
        for share in (self._flying, self._kept):
            if share is not None:
                newest += share.vector
        counts = {peer: link.exchanges for peer, link in driver.peer.links.items()}
        new = {} if first else {peer: n - self._counted.get(peer, 0) for peer, n in counts.items()}
        self._counted = counts
        met = tuple(sorted(peer for peer, n in new.items() if n))
        why = "" if met else _why_none(driver, first, hands_in and is_over)
        return newest, MixReport(sum(new.values()), met, taken, driver.peer.stage, self._waiting(), True, why)

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
        self._numbers += 1
        share.number = self._numbers
        self._flying = share
        driver.post(ev.Operator("mix", name, share.steps, gradient), pinned=name)

    def _note_taken(self, driver: Driver) -> None:
        """Is what was handed in part of the core's model now? The core says so in the moment in which it becomes that, whatever
        else has ended or failed, and whether or not all that it commanded then is carried out."""
        if self._flying is not None and driver.peer.taken >= self._flying.number:
            self._flying = None

    def _after(self, event: ev.Event) -> None:
        """Called after each event of the core: does it lack what was handed in still? Is the study over?"""
        if self._driver is None:
            return
        self._note_taken(self._driver)
        self._hand_in(self._driver, 0.0)
        if self._finishing:
            self._finish(self._driver)
        self._look(self._driver)

    def _finish(self, driver: Driver) -> None:
        """Order the release, once: a core in it takes no steps any more, so all that was handed in must be in its model."""
        from gossipfl.protocol import events as ev

        self._finishing = True
        if not self._ordered and driver.peer.stage == "training" and not self._waiting():
            self._ordered = True
            driver.post(ev.Operator("finish"))

    def _look(self, driver: Driver) -> None:
        if driver.peer.stage == "finished":
            self._over.set()

    def _must_be_external(self, verb: str) -> None:
        if not self.external:
            raise Misuse(f"{verb}() on a node that trains by itself: make it with Node(..., external=True)")

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
        """`do` on the node's own thread; None once the node has stopped. The core decides nothing meanwhile, but what it
        decided last may still be on its way: a commit is waited for."""
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


def _whole(steps: object) -> int:
    try:
        number = operator.index(steps)  # type: ignore[arg-type]
    except TypeError:
        number = -1
    if not 0 <= number < 2**53:
        raise Misuse(f"steps = {steps!r}: say how many optimiser steps were made since the last call, or 0 for the study's")
    return number


def _norm(gradient: float) -> float:
    if not (isinstance(gradient, SupportsFloat) and 0 <= float(gradient) < math.inf):
        raise Misuse(f"gradient = {gradient!r}: say the steps' mean gradient norm, or 0 where it is not known")
    return float(gradient)


def _why_none(driver: Driver, first: bool, is_over: bool) -> str:
    """Why there was no exchange between two calls of `mix`, for a person."""
    from gossipfl.node.status import unready

    if is_over:
        return f"the study is over at this node (stage {driver.peer.stage}): what the loop changed was not taken"
    if reasons := unready(driver):
        return "; ".join(reasons)
    if first:
        return "the first call only loads"
    if driver.peer.stage == "statistics":
        return "the statistics stage is not over: some members have not taken part yet"
    return "none was finished between the two calls; neighbours are connected"
