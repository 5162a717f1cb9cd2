"""Three ways to take the same local steps, and which one to take: the fastest of those that give the loop's numbers.

One step is timed on one block, and what it made is compared with the loop's. The report says what was found.
"""

from __future__ import annotations

import time
import warnings
from dataclasses import dataclass, field, replace
from typing import Final, Literal, Protocol

import numpy as np
import torch
from torch import nn

from gossipfl.errors import Misuse
from gossipfl.learning.parameters import Layout
from gossipfl.learning.training import Plan
from gossipfl.simulator.vectorized.batched import Batched
from gossipfl.simulator.vectorized.dense import Dense, layers_of
from gossipfl.simulator.vectorized.draws import Named
from gossipfl.simulator.vectorized.looped import Looped
from gossipfl.simulator.vectorized.rows import Rows
from gossipfl.simulator.vectorized.state import State
from gossipfl.simulator.vectorized.stepping import Work
from gossipfl.tasks.task import Task, Vector

Choice = Literal["auto", "loop", "vmap", "matmul"]

CHOICES: Final[dict[str, Choice]] = {Looped.name: "loop", Batched.name: "vmap", Dense.name: "matmul"}

WORTH_S: Final = 10.0
"""Of work by the loop below which vmap, whose first call costs one to two CPU seconds, is not even tried."""

UNLIKELY: Final = (nn.modules.conv._ConvNd, nn.LSTM)
UNLIKELY_S: Final = 200.0
"""The same for what vmap has always been slower at (convolutions by a third, LSTMs, which it has no batching rule for, by half):
one or two CPU seconds of trying must be lost in the whole."""

CLOSE: Final = {torch.float32: 2e-3, torch.float64: 1e-7}
"""A way is right when its step differs from the loop's by at most this share of what the loop moved."""

RANDOM: Final = (nn.Dropout, nn.AlphaDropout, nn.modules.dropout._DropoutNd)


class Way(Protocol):
    """How local steps are taken. `train` writes the state of `work.nodes` only; blocks may run in threads if it says so."""

    @property
    def name(self) -> str: ...

    @property
    def is_threaded(self) -> bool: ...

    def train(self, state: State, work: Work) -> None: ...


@dataclass
class Model:
    """What a task gives the engine. `module` None: a task with a trainer of its own, which only the loop can run."""

    task: Task
    layout: Layout
    x0: Vector
    module: nn.Module | None
    local: tuple[str, ...] = ()
    """what each node keeps for itself"""
    is_random: bool = False
    """does a step draw random numbers of torch's"""

    @classmethod
    def of(cls, task: Task, layout: Layout, x0: Vector) -> Model:
        """**Randomness**: none; the module is run once on nothing."""
        if hasattr(task, "trainer"):
            return cls(task, layout, x0, None)
        module = task.model()
        if layout.dtype == "float64":
            module = module.double()
        shared = {entry.name for entry, _ in layout.placed()}
        trained = [n for n, p in module.named_parameters() if p.requires_grad and n not in shared]
        counters = [n for n, b in module.named_buffers() if n.endswith("num_batches_tracked") and n not in shared]
        moving = [
            n for n, b in module.named_buffers() if n.endswith(("running_mean", "running_var")) and n not in shared
        ]
        is_random = any(
            (isinstance(part, RANDOM) and part.p > 0) or float(getattr(part, "dropout", 0) or 0) > 0
            for part in module.modules()
            if not isinstance(getattr(part, "dropout", 0), nn.Module)
        )
        return cls(task, layout, x0, module, tuple(trained + moving + counters), is_random)

    def state(self, nodes: int, own: slice | None = None) -> State:
        return State.start(self.layout, self.x0, nodes, self.module, self.local, own)

    def trained(self) -> list[str]:
        return [] if self.module is None else [n for n, p in self.module.named_parameters() if p.requires_grad]


@dataclass
class Choosing:
    """The way that was taken, and what a reader of the report wants to know of why."""

    way: Way
    lines: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    """a node and step, by name of the way"""


def prepare(state: State, model: Model, plan: Plan) -> None:
    """Buffers that this plan needs."""
    state.need_buffers(model.trained(), 2 if plan.optimizer == "adam" else int(plan.momentum > 0))


def choose(model: Model, rows: Rows, plan: Plan, block: int, work: float, wanted: Choice = "auto") -> Choosing:
    """`work`: node-steps of the whole run. **Raises**: Misuse where a wanted way cannot take this model."""
    loop = Looped(model.task, model.module, model.task.loss, model.layout, rows, block, is_random=model.is_random)
    chosen = Choosing(loop)
    try:
        return _weighed(chosen, loop, model, rows, plan, block, work, wanted)
    finally:
        loop.trainers.clear()  # with what the probe left in their buffers


def _weighed(
    chosen: Choosing, loop: Looped, model: Model, rows: Rows, plan: Plan, block: int, work: float, wanted: Choice
) -> Choosing:
    if model.module is None or wanted == "loop":
        return chosen
    probe, some = replace(plan, steps=1), min(block, rows.nodes)
    few = min(3, some)
    torch.manual_seed(0)
    expected = _stepped(loop, model, few, probe)
    chosen.seconds[loop.name] = _timed(loop, model, few, probe)
    estimate = chosen.seconds[loop.name] * work
    scratch = model.state(1)
    layers = layers_of(model.module)
    if wanted in ("auto", "matmul"):
        if isinstance(layers, str):
            chosen.lines.append(f"no batched matmul: {layers}")
        else:
            _consider(chosen, Dense(layers, model.task.loss, rows, scratch), model, some, probe, expected, wanted)
    if wanted == "vmap" or (wanted == "auto" and chosen.way is loop):
        unlikely = next((part for part in model.module.modules() if isinstance(part, UNLIKELY)), None)
        if wanted == "auto" and estimate < (WORTH_S if unlikely is None else UNLIKELY_S):
            why = "" if unlikely is None else f", and at {type(unlikely).__name__} vmap is seldom faster"
            chosen.lines.append(f"vmap not tried: the loop needs about {estimate:.1f} s in all{why}")
        else:
            way = Batched(model.module, model.task.loss, rows, scratch, model.is_random)
            _consider(chosen, way, model, some, probe, expected, wanted)
    if wanted != "auto" and chosen.way is loop:
        raise Misuse(f"training={wanted!r} cannot take this model: {'; '.join(chosen.lines)}; use training='auto'")
    return chosen


def _consider(
    chosen: Choosing, way: Way, model: Model, some: int, probe: Plan, expected: State, wanted: Choice
) -> None:
    """Take the way if it gives the loop's numbers, and does so faster; else say in one line why not."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = _stepped(way, model, some, probe)
            seconds = _timed(way, model, some, probe)
    except Exception as error:  # whatever torch raises where it has no batching rule
        first = str(error).strip().splitlines() or [""]
        chosen.lines.append(
            f"no {way.name}: {type(error).__name__}: {first[0][:160]}; falling back to the per-node loop"
        )
        return
    few = expected.nodes
    start = model.state(1)
    for name, block in expected.shared.items():
        moved = (block - start.shared[name]).abs().max().item()
        apart = (block - found.shared[name][:few]).abs().max().item()
        if not model.is_random and not apart <= CLOSE[block.dtype] * (moved + 1e-3):
            chosen.lines.append(f"no {way.name}: its step of {name} differs from the loop's by {apart:.2g}")
            return
    chosen.seconds[way.name] = seconds
    if isinstance(way, Batched) and way.why_not_replayed:
        chosen.lines.append(f"{way.name} works every step out anew, which is slower for small models: {way.why_not_replayed}")
    if wanted != "auto" or seconds < chosen.seconds["per-node loop"]:
        chosen.way = way
    else:
        chosen.lines.append(f"no {way.name}: {seconds * 1e6:.0f} us a node and step, the loop "
                            f"{chosen.seconds['per-node loop'] * 1e6:.0f}")  # fmt: skip


def _job(nodes: int, probe: Plan) -> Work:
    return Work(slice(0, nodes), np.ones(nodes, dtype=np.int64), probe, Named(0), 0, False)


def _stepped(way: Way, model: Model, nodes: int, probe: Plan) -> State:
    state = model.state(nodes)
    prepare(state, model, probe)
    way.train(state, _job(nodes, probe))
    return state


def _timed(way: Way, model: Model, nodes: int, probe: Plan) -> float:
    """CPU seconds a node and step, the least of three."""
    state = model.state(nodes)
    prepare(state, model, probe)
    best = float("inf")
    for _ in range(3):
        began = time.process_time()
        way.train(state, _job(nodes, probe))
        best = min(best, (time.process_time() - began) / nodes)
    return best
