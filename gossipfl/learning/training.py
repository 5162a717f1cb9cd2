"""Local steps on one site's rows: SGD or Adam, proximal term, drift correction. No exchange, no evaluation, no files.

    y <- y - eta (opt(grad f(y) + l2 y + proximal (y - x)) + F)      l2 on matrices only: an intercept is no complexity

The correction F is a displacement after the optimiser, never inside its buffers: then a node's correction between two
exchanges is theta times what an exchange moved it (see correction.kappa), whatever momentum or preconditioner does.
For plain SGD that is the gradient plus F. Tried: before Adam's preconditioner F is worse than none, the units differ.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
import torch
from torch import Tensor, nn

from gossipfl.errors import Misuse
from gossipfl.learning.blocks import Vector
from gossipfl.learning.parameters import Layout, read, write

Loss = Callable[[Any, Tensor, Tensor], Tensor]
"""(module, x, y) -> the mean loss of a batch, a scalar"""

BETA1: Final = 0.9
BETA2: Final = 0.999
EPSILON: Final = 1e-8
"""Adam's constants as published."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What one local phase does. batch_size None: all rows in every step."""

    steps: int
    eta: float
    batch_size: int | None = None
    optimizer: Literal["sgd", "adam"] = "sgd"
    momentum: float = 0.0
    proximal: float = 0.0
    l2: float = 0.0

    def __post_init__(self) -> None:
        faults = [
            text
            for text, wrong in {
                "steps must be 1 or more": self.steps < 1,
                "eta must be finite and above 0": not (math.isfinite(self.eta) and self.eta > 0),
                "batch_size must be 1 or more, or None": self.batch_size is not None and self.batch_size < 1,
                "optimizer must be sgd or adam": self.optimizer not in ("sgd", "adam"),
                "momentum must lie in [0, 1)": not 0 <= self.momentum < 1,
                "momentum is for sgd; adam has its own": self.optimizer == "adam" and self.momentum != 0,
                "proximal must not be negative": not self.proximal >= 0,
                "l2 must not be negative": not self.l2 >= 0,
            }.items()
            if wrong
        ]
        if faults:
            raise Misuse(f"{self}: {'; '.join(faults)}")


@dataclass(frozen=True, slots=True)
class Outcome:
    """The trained vector and what the ledger wants to know of the way there."""

    vector: Vector
    steps: int
    gradient: float
    """mean over the steps of the norm of what eta multiplies, without F; for plain SGD the raw gradient"""
    loss: float
    """mean over the steps of the batch loss before the step"""


class Trainer:
    """Trains one module on one site's rows. Holds what outlives a phase: local tensors and optimiser buffers.

    Momentum and Adam buffers stay as they are while the node idles; they are dropped when the optimiser changes and
    when a phase ends in numbers that are not finite. Threads inside torch are the caller's business.
    """

    def __init__(self, module: nn.Module, layout: Layout, loss: Loss, x: Tensor, y: Tensor) -> None:
        if len(x) != len(y) or len(x) == 0:
            raise Misuse(f"{len(x)} rows of x and {len(y)} of y; a site trains on one or more rows")
        self.module, self.layout, self.loss, self.x, self.y = module, layout, loss, x, y
        places = {entry.name: place for entry, place in layout.placed()}
        trained = [(name, tensor) for name, tensor in module.named_parameters() if tensor.requires_grad]
        self._weights = [tensor for _, tensor in trained]
        self._places = [places.get(name) for name, _ in trained]
        """where in the vector; None for a personal parameter, which is trained without F"""
        if all(place is None for place in self._places):
            raise Misuse("the module has no shared trainable parameter; there is nothing to learn together")
        self.names = [name for name, _ in trained]
        """of the trained tensors, in the order of the buffers in `memory`"""
        self._optimizer = ""
        self._first: list[Tensor] = []
        self._second: list[Tensor] = []
        self._count = 0

    def train(self, vector: Vector, correction: Vector | None, plan: Plan, rng: np.random.Generator) -> Outcome:
        """plan.steps local steps from `vector`.

        Shapes: vector (P + M,), correction F (P,), or None for zeros.
        Raises: `Misuse` on vectors that are not of the layout. Never raises on divergence: the outcome then holds
        what came out, and checks.check says so.
        Randomness: of `rng` one integer (torch's CPU generator is seeded with it for the phase, for dropout, and put
        back after), and one permutation of the rows for each pass over them when plan.batch_size is smaller than they.
        """
        write(self.layout, vector, self.module)
        shifts = self._split(correction)
        anchors = [weight.detach().clone() for weight in self._weights] if plan.proximal else []
        self._prepare(plan.optimizer)
        losses, lengths = [], []
        self.module.train()
        with _seeded(rng):
            batches = self._batches(plan.batch_size, rng)
            for _ in range(plan.steps):
                x, y = next(batches)
                loss = self.loss(self.module, x, y)
                gradients = torch.autograd.grad(loss, self._weights, allow_unused=True, materialize_grads=True)
                with torch.no_grad():
                    lengths.append(self._step(list(gradients), anchors, shifts, plan))
                losses.append(loss.detach())
        gradient, mean_loss = float(torch.stack(lengths).mean()), float(torch.stack(losses).mean())
        if not (math.isfinite(gradient) and math.isfinite(mean_loss)):
            self._optimizer = ""
        return Outcome(read(self.layout, self.module), plan.steps, gradient, mean_loss)

    @property
    def memory(self) -> tuple[int, tuple[list[Tensor], list[Tensor]]]:
        """Adam's count, and the buffers of the optimiser, a kind each; empty where it has none."""
        return self._count, (self._first, self._second)

    def remember(self, optimizer: str, count: int, first: list[Tensor], second: list[Tensor]) -> None:
        """Go on from a `memory` of before."""
        self._optimizer, self._count, self._first, self._second = optimizer, count, first, second

    def _split(self, correction: Vector | None) -> list[Tensor | None]:
        """F as one tensor per weight."""
        if correction is None:
            return [None] * len(self._weights)
        if correction.shape != (self.layout.n_parameters,):
            raise Misuse(f"a correction of shape {correction.shape}; this layout needs ({self.layout.n_parameters},)")
        return [
            None if place is None else torch.from_numpy(np.array(correction[place])).to(weight).view_as(weight)
            for weight, place in zip(self._weights, self._places, strict=True)
        ]

    def _prepare(self, optimizer: str) -> None:
        """Fresh buffers when the optimiser is another one than last time."""
        if optimizer != self._optimizer:
            self._optimizer, self._count, self._first, self._second = optimizer, 0, [], []

    def _batches(self, size: int | None, rng: np.random.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches for ever: a new permutation for each pass; the short rest of a pass is left out, because batch norm
        cannot take one row and a small batch would weigh its rows more."""
        rows = len(self.x)
        if size is None or size >= rows:
            while True:
                yield self.x, self.y
        while True:
            order = torch.from_numpy(rng.permutation(rows)).to(self.x.device)
            for start in range(0, rows - size + 1, size):
                batch = order[start : start + size]
                yield self.x[batch], self.y[batch]

    def _step(self, gradients: list[Tensor], anchors: list[Tensor], shifts: list[Tensor | None], plan: Plan) -> Tensor:
        """Move every weight once; the norm of the direction, over the shared weights."""
        for index, weight in enumerate(self._weights):
            if plan.l2 and weight.ndim > 1:
                gradients[index] = gradients[index] + plan.l2 * weight
            if plan.proximal:
                gradients[index] = gradients[index] + plan.proximal * (weight - anchors[index])
        directions = self._adam(gradients) if plan.optimizer == "adam" else self._momentum(gradients, plan.momentum)
        for weight, direction, shift in zip(self._weights, directions, shifts, strict=True):
            weight.sub_(direction if shift is None else direction + shift, alpha=plan.eta)
        shared = [d for d, place in zip(directions, self._places, strict=True) if place is not None]
        length: Tensor = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(d) for d in shared]))
        return length

    def _momentum(self, gradients: list[Tensor], momentum: float) -> list[Tensor]:
        """b <- momentum b + g.

        Source: Polyak, "Some methods of speeding up the convergence of iteration methods" (1964).
        """
        if not momentum:
            return gradients
        if not self._first:
            self._first = [torch.zeros_like(gradient) for gradient in gradients]
        for buffer, gradient in zip(self._first, gradients, strict=True):
            buffer.mul_(momentum).add_(gradient)
        return self._first

    def _adam(self, gradients: list[Tensor]) -> list[Tensor]:
        """The bias-corrected direction. Source: Kingma, Ba, "Adam: a method for stochastic optimization" (2015)."""
        if not self._first:
            self._first = [torch.zeros_like(gradient) for gradient in gradients]
            self._second = [torch.zeros_like(gradient) for gradient in gradients]
        self._count += 1
        first, second = 1 - BETA1**self._count, 1 - BETA2**self._count
        directions = []
        for mean, square, gradient in zip(self._first, self._second, gradients, strict=True):
            mean.mul_(BETA1).add_(gradient, alpha=1 - BETA1)
            square.mul_(BETA2).addcmul_(gradient, gradient, value=1 - BETA2)
            directions.append((mean / first) / ((square / second).sqrt() + EPSILON))
        return directions


@contextmanager
def _seeded(rng: np.random.Generator) -> Iterator[None]:
    """torch's CPU generator seeded from rng inside, as it was outside. (manual_seed would reach for every device.)"""
    generator: torch.Generator = torch.default_generator
    before = generator.get_state()
    generator.manual_seed(int(rng.integers(2**63)))
    try:
        yield
    finally:
        generator.set_state(before)
