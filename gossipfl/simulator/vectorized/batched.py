"""Any torch module of many nodes through torch.func.vmap. Not the step that follows the gradient.

Where nodes have different numbers of rows in a step, the loss is taken row by row and weighted, which is the same for a
loss that is a mean over rows; a module whose rows see each other (batch norm) gets nodes of one size at a time instead.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from gossipfl.learning.parameters import MEAN, SPREAD
from gossipfl.learning.training import Loss
from gossipfl.simulator.vectorized.replay import Function, Replay
from gossipfl.simulator.vectorized.rows import Rows, places
from gossipfl.simulator.vectorized.state import Blocks, State
from gossipfl.simulator.vectorized.stepping import Chunk, Work


class Judged(nn.Module):
    """A module whose output is its loss: what functional_call can take as one."""

    def __init__(self, module: nn.Module, loss: Loss) -> None:
        super().__init__()
        self.module, self.loss = module, loss

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.loss(self.module, x, y)


class Batched:
    """Local steps of any module that vmap handles, `Way` of gossipfl.simulator.vectorized.ways."""

    name = "torch.func.vmap"

    def __init__(self, module: nn.Module, loss: Loss, rows: Rows, state: State, is_random: bool) -> None:
        self.rows, self.is_threaded = rows, not is_random
        self.is_random = is_random
        self._pristine = Judged(module, loss).train()
        self._own = threading.local()
        parameters = dict(module.named_parameters())
        self.trained = [name for name, parameter in parameters.items() if parameter.requires_grad]
        held = {*state.shared, *state.personal}
        self.buffers = [name for name, _ in module.named_buffers() if name in held]
        self.fixed = {
            f"module.{name}": tensor.detach()
            for name, tensor in (*parameters.items(), *module.named_buffers())
            if name not in held
        }
        self.rows_see_each_other = any(name.endswith((MEAN, SPREAD)) for name in self.buffers) or any(
            isinstance(part, nn.modules.batchnorm._NormBase) for part in module.modules()
        )
        self.whole = Replay(self._of(vmap(grad(self._loss), randomness="different")))
        self.by_row = Replay(self._of(vmap(grad(self._weighted), randomness="different")))

    @property
    def why_not_replayed(self) -> str:
        return self.whole.why or self.by_row.why

    def _of(self, gradient: Any) -> Function:
        """A gradient of (weights, buffers, ..) as a function of one list of tensors."""

        def flat(tensors: Sequence[Tensor]) -> list[Tensor]:
            rest = iter(tensors)
            weights, buffers = ({name: next(rest) for name in names} for names in (self.trained, self.buffers))
            found = gradient(weights, buffers, *rest)
            return [found[name].detach() for name in self.trained]

        return flat

    @property
    def judged(self) -> Judged:
        """This thread's module: functional_call puts tensors into it for the time of the call."""
        judged: Judged | None = getattr(self._own, "judged", None)
        if judged is None:
            judged = self._own.judged = copy.deepcopy(self._pristine)
        return judged

    def _loss(self, weights: Blocks, buffers: Blocks, x: Tensor, y: Tensor) -> Tensor:
        held = {f"module.{name}": value for name, value in (*weights.items(), *buffers.items())}
        return functional_call(self.judged, {**held, **self.fixed}, (x, y))  # type: ignore[no-any-return]

    def _weighted(self, weights: Blocks, buffers: Blocks, x: Tensor, y: Tensor, weight: Tensor) -> Tensor:
        def one(x: Tensor, y: Tensor) -> Tensor:
            return self._loss(weights, buffers, x.unsqueeze(0), y.unsqueeze(0))

        losses: Tensor = vmap(one, randomness="different")(x, y)
        return (losses * weight).sum()

    def train(self, state: State, work: Work) -> None:
        if not self.rows_see_each_other:
            self._train(state, work)
            return
        nodes, sizes = places(work.nodes), self.rows.sizes(work.plan.batch_size)
        for size in np.unique(sizes[nodes]):
            of = sizes[nodes] == size
            part = work.nodes if of.all() else nodes[of]
            self._train(state, Work(part, work.steps[of], work.plan, work.draws, work.round, work.is_measured))

    def _train(self, state: State, work: Work) -> None:
        batches = self.rows.batches(work.nodes, work.plan.batch_size, work.draws, work.round)
        chunk = Chunk(state, work, batches, self.trained, self.buffers)
        spreads = [name for name in self.buffers if name.endswith(SPREAD) and name in state.shared]
        pairs = [(chunk.buffers[name], chunk.buffers[name.removesuffix(SPREAD) + MEAN]) for name in spreads]
        for spread, mean in pairs:  # E[x^2] of the state -> variance of the module
            spread.sub_(mean * mean).clamp_(min=0)
        chunk.run(self._gradients)
        for spread, mean in pairs:
            spread.add_(mean * mean)
        chunk.close()

    def _gradients(self, chunk: Chunk, h: int, n: int) -> list[Tensor]:
        batch = chunk.batches.step(h, n)
        held = [*(weight[:n] for weight in chunk.weights), *(buffer[:n] for buffer in chunk.buffers.values())]
        if batch.weight is None:
            return _own(self.whole([*held, batch.x, batch.y]))
        return _own(self.by_row([*held, batch.x, batch.y, batch.weight]))


def _own(gradients: list[Tensor]) -> list[Tensor]:
    """Gradients that may be changed in place: those of a sum's two parts are one tensor, that of a plain sum one number."""
    taken: set[int] = set()
    made = []
    for one in gradients:
        memory = one.untyped_storage()
        made.append(one.clone() if memory.data_ptr() in taken or memory.nbytes() < one.nbytes else one)
        taken.add(memory.data_ptr())
    return made
