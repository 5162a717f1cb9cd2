"""Local steps node by node with the deployed trainer: the reference, and the fastest way for convolutions and LSTMs."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
from torch import Tensor, nn

from gossipfl.learning.parameters import Layout
from gossipfl.learning.training import Loss, Trainer
from gossipfl.simulator.vectorized.draws import Integers
from gossipfl.simulator.vectorized.rows import Rows, places
from gossipfl.simulator.vectorized.state import State
from gossipfl.simulator.vectorized.stepping import Work, running
from gossipfl.tasks.fitting import Trainer as Trains
from gossipfl.tasks.fitting import trainer as trainer_of
from gossipfl.tasks.task import Task


class Looped:
    """`Way` of gossipfl.simulator.vectorized.ways. One module serves the nodes of a block, so blocks may run in threads.

    What a node keeps for itself (personal parameters, counters of batch norm) is put into the module before its phase
    and taken out after it; its optimiser buffers stay in its trainer.
    """

    name = "per-node loop"

    def __init__(self, task: Task, module: nn.Module | None, loss: Loss, layout: Layout, rows: Rows, block: int, *,
                 is_random: bool) -> None:  # fmt: skip
        self.task, self.module, self.loss, self.layout, self.rows, self.block = task, module, loss, layout, rows, block
        self.is_threaded = not is_random
        self.modules: dict[int, nn.Module] = {}
        self.trainers: dict[int, Trains] = {}
        self.own: dict[int, dict[str, Tensor]] = {}

    def _trainer(self, node: int) -> Trains:
        if node not in self.trainers:
            x, y = self.rows.site(node)
            if self.module is None:
                self.trainers[node] = trainer_of(self.task, self.layout, x.numpy(), y.numpy())
            else:
                block = node // self.block
                if block not in self.modules:
                    module = copy.deepcopy(self.module)
                    self.modules[block] = module
                    self.own[block] = {**dict(module.named_parameters()), **dict(module.named_buffers())}
                self.trainers[node] = Trainer(self.modules[block], self.layout, self.loss, x, y)
        return self.trainers[node]

    def train(self, state: State, work: Work) -> None:
        nodes = places(work.nodes)
        found = np.zeros(len(nodes))
        plans = {steps: replace(work.plan, steps=steps) for steps in set(work.steps.tolist())}
        shared = [(state.flat(state.shared, entry.name), place) for entry, place in state.layout.placed()]
        counts = self.rows.counts[nodes]
        every = work.draws.each(nodes, counts, work.round, passes(work, counts))
        for at, (node, draws) in enumerate(zip(nodes.tolist(), every, strict=True)):
            trainer, own = self._trainer(node), self.own.get(node // self.block, {})
            for name, block in state.personal.items():
                own[name].detach().copy_(block[node])
            plan = plans[int(work.steps[at])]
            vector = np.concatenate([rows[node] for rows, _ in shared])
            outcome = trainer.train(vector, state.corrections(node), plan, draws)
            for rows, place in shared:
                rows[node] = outcome.vector[place]
            for name, block in state.personal.items():
                block[node] = own[name].detach()
            found[at] = outcome.gradient
        state.gradient[nodes] = running(state.gradient[nodes], found)

    def collect(self, state: State) -> None:
        """Copy the trainers' buffers into the state, for a checkpoint."""
        for node, trainer in self.trainers.items():
            if isinstance(trainer, Trainer):
                count, kinds = trainer.memory
                state.count[node] = count
                for held, tensors in zip((state.first, state.second), kinds, strict=True):
                    for name, tensor in zip(trainer.names, tensors, strict=False):
                        held[name][node] = tensor

    def restore(self, state: State, optimizer: str) -> None:
        """Give every trainer its buffers from the state."""
        for node in range(state.nodes):
            trainer = self._trainer(node)
            if isinstance(trainer, Trainer):
                kinds = [[held[name][node].clone() for name in trainer.names if name in held]
                         for held in (state.first, state.second)]  # fmt: skip
                trainer.remember(optimizer, int(state.count[node]), kinds[0], kinds[1])


def passes(work: Work, counts: Integers) -> int:
    """How often a node of these shuffles its rows at most."""
    size = work.plan.batch_size
    if size is None:
        return 0
    steps = int(work.steps.max(initial=0))
    return max((-(-steps // (rows // size)) for rows in set(counts.tolist()) if rows > size), default=0)
