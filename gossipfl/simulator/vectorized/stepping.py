"""The local steps of many nodes at once: learning.training's step with a leading axis of nodes. No gradients, no rows.

y <- y - eta (opt(grad f(y) + l2 y + proximal (y - x)) + F). Nodes come in the order of falling numbers of steps, so that
step h concerns the first n of them: a straggler drops out of the batch instead of being computed and thrown away.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gossipfl.learning.training import BETA1, BETA2, EPSILON, Plan
from gossipfl.simulator.vectorized.draws import Draws
from gossipfl.simulator.vectorized.rows import Batches, Nodes, places
from gossipfl.simulator.vectorized.state import State, give, take

Gradients = Callable[["Chunk", int, int], list[Tensor]]
"""(chunk, step, n) -> gradients of the first n nodes, one (n, *shape) a trained tensor"""


@dataclass
class Work:
    """One local phase: who trains, how many steps each, in the order of falling steps. **Shapes**: steps (n,)."""

    nodes: Nodes
    steps: np.ndarray
    plan: Plan
    draws: Draws
    round: int
    is_measured: bool
    """are gradient norms wanted"""


class Chunk:
    """The tensors of some nodes for one phase, views where they are a range; `close` puts back what was copied."""

    def __init__(self, state: State, work: Work, batches: Batches, trained: list[str], buffers: list[str]) -> None:
        self.state, self.work, self.plan, self.batches, self.trained = state, work, work.plan, batches, trained
        self.weights = [take(self._home(name), work.nodes) for name in trained]
        self.shifts = [
            take(state.correction[name], work.nodes) if name in state.correction else None for name in trained
        ]
        self.anchors = [weight.clone() for weight in self.weights] if work.plan.proximal else []
        kinds = 2 if work.plan.optimizer == "adam" else int(work.plan.momentum > 0)
        self.first = [take(state.first[name], work.nodes) for name in trained] if kinds else []
        self.second = [take(state.second[name], work.nodes) for name in trained] if kinds == 2 else []
        self.count = take(state.count, work.nodes) if kinds == 2 else state.count[:0]
        self.buffers = {name: take(self._home(name), work.nodes) for name in buffers}
        self.is_shared = [name in state.shared for name in trained]
        n = len(work.steps)
        self.lengths = torch.zeros(n, dtype=self.weights[0].dtype)
        self.is_measured = work.is_measured or kinds > 0

    def _home(self, name: str) -> Tensor:
        return self.state.shared[name] if name in self.state.shared else self.state.personal[name]

    def run(self, gradients: Gradients) -> None:
        """All steps of all nodes."""
        steps = self.work.steps
        for h in range(int(steps[0])):
            n = int(np.searchsorted(-steps, -h, side="left"))
            self.move(gradients(self, h, n), n)

    def move(self, gradients: list[Tensor], n: int) -> None:
        """Move the first n nodes once."""
        plan = self.plan
        for at, weight in enumerate(self.weights):
            if plan.l2 and weight.ndim > 2:  # vmap's and the products' own arrays: nobody else reads them
                gradients[at].add_(weight[:n], alpha=plan.l2)
            if plan.proximal:
                gradients[at] = gradients[at] + plan.proximal * (weight[:n] - self.anchors[at][:n])
        if plan.optimizer == "adam":
            directions = self._adam(gradients, n)
        elif plan.momentum:
            directions = [buffer[:n] for buffer in self.first]
            for direction, gradient in zip(directions, gradients, strict=True):
                direction.mul_(plan.momentum).add_(gradient)
        else:
            directions = gradients
        if self.is_measured:
            self._measure(directions, n)
        for weight, direction, shift in zip(self.weights, directions, self.shifts, strict=True):
            if shift is not None:
                is_own = directions is gradients and weight.ndim > 2
                direction = direction.add_(shift[:n]) if is_own else direction + shift[:n]
            weight[:n].sub_(direction, alpha=plan.eta)

    def _measure(self, directions: list[Tensor], n: int) -> None:
        shared = [one.reshape(n, -1) for one, mine in zip(directions, self.is_shared, strict=True) if mine]
        squares = torch.stack([torch.linalg.vector_norm(one, dim=1) for one in shared])
        self.lengths[:n] += torch.linalg.vector_norm(squares, dim=0)

    def _adam(self, gradients: list[Tensor], n: int) -> list[Tensor]:
        count = self.count[:n].add_(1)
        first, second = (1 - beta ** count.double() for beta in (BETA1, BETA2))
        directions = []
        for mean, square, gradient in zip(self.first, self.second, gradients, strict=True):
            mean, square = mean[:n], square[:n]
            mean.mul_(BETA1).add_(gradient, alpha=1 - BETA1)
            square.mul_(BETA2).addcmul_(gradient, gradient, value=1 - BETA2)
            shape = (n, *[1] * (mean.ndim - 1))
            roots = (square / second.to(square.dtype).view(shape)).sqrt().add_(EPSILON)
            directions.append((mean / first.to(mean.dtype).view(shape)).div_(roots))
        return directions

    def close(self) -> None:
        """Put back copies; average the norms; drop the buffers of nodes whose numbers are not finite any more."""
        nodes, state = self.work.nodes, self.state
        gradient = (self.lengths.numpy() / self.work.steps).astype(np.float64)
        if self.first:
            lost = torch.from_numpy(~np.isfinite(gradient))
            if lost.any():
                for buffer in (*self.first, *self.second):
                    buffer[lost] = 0
                if self.second:
                    self.count[lost] = 0
        for names, blocks, values in (
            (self.trained, None, self.weights),
            (self.trained, state.first, self.first),
            (self.trained, state.second, self.second),
            (list(self.buffers), None, list(self.buffers.values())),
        ):
            for name, value in zip(names, values, strict=False):
                give(self._home(name) if blocks is None else blocks[name], nodes, value)
        if self.second:
            give(state.count, nodes, self.count)
        if self.is_measured:
            state.gradient[places(nodes)] = running(state.gradient[places(nodes)], gradient)


def running(before: np.ndarray, now: np.ndarray, keep: float = 0.9) -> np.ndarray:
    """The moving average of a node's gradient norm; the first one counts whole."""
    return np.where(before > 0, keep * before + (1 - keep) * now, now)
