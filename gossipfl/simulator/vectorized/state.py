"""All nodes' models as one block a tensor, (N, *shape): logically (N, P + M). No training and no mixing here.

Blocks are contiguous, one for each tensor of the layout: strided views of one flat array leave the batched GEMM path.
The mixed blocks come as (N, size) numpy views as well, on the same memory, for the functions of gossipfl.learning.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from gossipfl.learning.blocks import Vector
from gossipfl.learning.parameters import Layout
from gossipfl.simulator.vectorized.rows import Nodes

Blocks = dict[str, Tensor]


@dataclass
class State:
    """What the nodes hold. Optimiser buffers and F appear when a method or an optimiser first needs them."""

    layout: Layout
    nodes: int
    shared: Blocks
    """parameters, then moments (E[x] and E[x^2]), in the order of the layout"""
    personal: Blocks
    """trained parameters that are never mixed, and buffers that a step changes"""
    correction: Blocks = field(default_factory=dict)
    """F, of the parameters"""
    first: Blocks = field(default_factory=dict)
    second: Blocks = field(default_factory=dict)
    """momentum, or Adam's two"""
    count: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))
    """(N,) Adam's steps"""
    gradient: Vector = field(default_factory=lambda: np.zeros(0))
    """(N,) moving average of the own gradient norm; 0 before there was one"""

    @classmethod
    def start(
        cls, layout: Layout, vector: Vector, nodes: int, module: nn.Module | None, local: tuple[str, ...],
        own: slice | None = None,
    ) -> State:  # fmt: skip
        """Every node at x^0, or only those of `own`; `local` names what each keeps for itself, from the module."""

        def filled(row: Tensor) -> Tensor:
            if own is None:
                return row.expand(nodes, *row.shape).clone(memory_format=torch.contiguous_format)
            block = blank(row.dtype, (nodes, *row.shape))
            block[own] = row
            return block

        shared = {
            entry.name: filled(torch.from_numpy(np.array(vector[place])).view(entry.shape)) for entry, place in layout.placed()
        }
        found = {} if module is None else {**dict(module.named_parameters()), **dict(module.named_buffers())}
        personal = {
            name: filled(found[name].detach()) for name in local
        }
        state = cls(layout, nodes, shared, personal)
        state.count, state.gradient = torch.zeros(nodes, dtype=torch.int64), np.zeros(nodes)
        return state

    @property
    def parameters(self) -> list[str]:
        return [entry.name for entry, _ in self.layout.placed() if entry.section == "parameters"]

    @property
    def moments(self) -> list[str]:
        return [entry.name for entry, _ in self.layout.placed() if entry.section == "moments"]

    def flat(self, blocks: Blocks, name: str) -> Vector:
        """(N, size), the same memory."""
        block = blocks[name]
        view: Vector = block.view(len(block), -1).numpy()
        return view

    def need_correction(self) -> None:
        for name in self.parameters:
            if name not in self.correction:
                self.correction[name] = blank(self.shared[name].dtype, self.shared[name].shape)

    def need_buffers(self, names: list[str], kinds: int) -> None:
        """Zero buffers for these trained tensors; one kind for momentum, two for Adam."""
        for held in (self.first, self.second)[:kinds]:
            for name in names:
                if name not in held:
                    like = self.shared[name] if name in self.shared else self.personal[name]
                    held[name] = blank(like.dtype, like.shape)

    def vector(self, node: int) -> Vector:
        """(P + M,), a copy."""
        return np.concatenate([self.flat(self.shared, name)[node] for name in self.shared])

    def vectors(self) -> Vector:
        """(N, P + M), a copy: for small N and tests."""
        return np.concatenate([self.flat(self.shared, name) for name in self.shared], axis=1)

    def put(self, node: int, vector: Vector) -> None:
        for entry, place in self.layout.placed():
            self.flat(self.shared, entry.name)[node] = vector[place]

    def corrections(self, node: int) -> Vector | None:
        """F of one node, (P,)."""
        if not self.correction:
            return None
        return np.concatenate([self.flat(self.correction, name)[node] for name in self.parameters])

    def mean(self, weights: Vector) -> Blocks:
        """The weighted mean model, in float64. **Shapes**: weights (N,), of sum 1."""
        return {name: torch.from_numpy(weights @ self.flat(self.shared, name)) for name in self.shared}

    def arrays(self) -> Iterator[tuple[str, Tensor]]:
        """Every tensor with a name of its own: what a checkpoint holds."""
        groups = (("shared", self.shared), ("personal", self.personal), ("correction", self.correction))
        for group, blocks in (*groups, ("first", self.first), ("second", self.second)):
            for name, block in blocks.items():
                yield f"{group}/{name}", block
        yield "count", self.count
        yield "gradient", torch.from_numpy(self.gradient)

    @property
    def nbytes(self) -> int:
        return sum(block.nbytes for _, block in self.arrays())


def blank(dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    """Zeros whose pages exist only once they are written."""
    return torch.from_numpy(np.zeros(tuple(shape), np.dtype(str(dtype).removeprefix("torch."))))


def take(block: Tensor, nodes: Nodes) -> Tensor:
    """The rows of some nodes: a view of a range, else a copy that `give` puts back. numpy moves rows in half of torch's time."""
    return block[nodes] if isinstance(nodes, slice) else torch.from_numpy(block.numpy().take(nodes, axis=0))


def give(block: Tensor, nodes: Nodes, value: Tensor) -> None:
    if not isinstance(nodes, slice):
        block.numpy()[nodes] = value.numpy()
