"""Linear models and MLPs of many nodes by batched matrix products, with the backward pass written out. Nothing else.

numpy's matmul, one small GEMM a node into an array that is used again, is up to three times faster here than torch.bmm.
Cross-entropy and binary cross-entropy on logits are written out, on logits whose classes come first in memory and rows last:
a softmax along what lies last costs up to twenty times as much. For any other loss that is a mean over rows, torch
differentiates the loss alone.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from gossipfl.learning.training import Loss
from gossipfl.simulator.vectorized.draws import Integers
from gossipfl.simulator.vectorized.rows import Batch, Rows
from gossipfl.simulator.vectorized.state import Blocks, State
from gossipfl.simulator.vectorized.stepping import Chunk, Work

GATHER_STEPS: Final = 0.6
"""What copying the rows of a node costs, in steps over these rows."""


@dataclass(frozen=True)
class Activation:
    """An elementwise function in place, and the factor on a gradient from its output."""

    forward: Callable[[Tensor], Tensor]
    backward: Callable[[Tensor, Tensor], Tensor]


def _relu_back(gradient: Tensor, output: Tensor) -> Tensor:
    back: Tensor = torch.ops.aten.threshold_backward(gradient, output, 0)  # one pass
    return back


def _tanh_back(gradient: Tensor, output: Tensor) -> Tensor:
    return gradient.mul_(1 - output * output)


def _sigmoid_back(gradient: Tensor, output: Tensor) -> Tensor:
    return gradient.mul_(output * (1 - output))


ACTIVATIONS: dict[type[nn.Module], Activation] = {
    nn.ReLU: Activation(torch.relu_, _relu_back),
    nn.Tanh: Activation(torch.tanh_, _tanh_back),
    nn.Sigmoid: Activation(torch.sigmoid_, _sigmoid_back),
    nn.Identity: Activation(lambda x: x, lambda gradient, output: gradient),
}


@dataclass(frozen=True)
class Layer:
    weight: str
    bias: str | None
    activation: Activation | None


def layers_of(module: nn.Module) -> list[Layer] | str:
    """The layers of a linear model or an MLP; else, why it is none."""
    parts: list[tuple[str, nn.Module]] = []

    def walk(prefix: str, part: nn.Module) -> None:
        if type(part) is nn.Sequential:
            for name, inner in part.named_children():
                walk(f"{prefix}{name}.", inner)
        else:
            parts.append((prefix, part))

    walk("", module)
    layers: list[Layer] = []
    for prefix, part in parts:
        if type(part) is nn.Linear:
            layers.append(Layer(f"{prefix}weight", f"{prefix}bias" if part.bias is not None else None, None))
        elif type(part) in ACTIVATIONS and layers and layers[-1].activation is None:
            layers[-1] = Layer(layers[-1].weight, layers[-1].bias, ACTIVATIONS[type(part)])
        else:
            return f"{type(part).__name__} is neither a linear layer nor one of the known activations after one"
    tensors = dict(module.named_parameters())
    if len(tensors) != sum(2 if layer.bias else 1 for layer in layers) or not layers:
        return "its parameters are not those of its layers"
    return layers if all(tensor.requires_grad for tensor in tensors.values()) else "some of its layers are frozen"


class Given(nn.Module):
    """Stands in for the model in a task's loss: says what the model would have said."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, x: Tensor) -> Tensor:
        return self.logits


Slope = Callable[[Tensor, Batch], Tensor]
"""(logits (n, C, B), batch) -> the loss's gradient by them, alike; may overwrite the logits"""


def _scaled(gradient: Tensor, batch: Batch) -> Tensor:
    return gradient.mul_(1 / batch.y.shape[1]) if batch.weight is None else gradient.mul_(batch.weight.unsqueeze(1))


def _cross_entropy(logits: Tensor, batch: Batch) -> Tensor:
    by_class = logits.transpose(0, 1)  # as they lie: a softmax over what lies first is ten times as fast
    classes = torch.arange(len(by_class), dtype=batch.y.dtype).view(-1, 1, 1)
    chances = torch.softmax(by_class, 0)
    return _scaled(chances.sub_((batch.y == classes).to(chances.dtype)).transpose(0, 1), batch)


def _binary(logits: Tensor, batch: Batch) -> Tensor:
    return _scaled(torch.sigmoid_(logits).sub_(batch.y.unsqueeze(1)), batch)


def _differentiated(loss: Loss) -> Slope:
    """Any mean over rows: of all nodes' rows as one batch, each node's share scaled back to a mean of its own."""

    def slope(logits: Tensor, batch: Batch) -> Tensor:
        n, _, rows = logits.shape
        flat = logits.transpose(1, 2).reshape(n * rows, -1).requires_grad_()
        value = loss(Given(flat), batch.x.reshape(n * rows, *batch.x.shape[2:]), batch.y.reshape(-1))
        gradient = torch.autograd.grad(value, flat)[0].view(n, rows, -1).transpose(1, 2)
        factor = torch.full((n, 1, rows), float(n)) if batch.weight is None else (batch.weight * n * rows).unsqueeze(1)
        return (gradient * factor.to(gradient.dtype)).contiguous()

    return slope


def slope_of(loss: Loss, rows: Rows, outputs: int, dtype: torch.dtype) -> Slope:
    """The written-out slope where the loss is one of the two, found by comparing numbers; else torch's."""
    x, y = rows.site(0)
    logits = torch.linspace(-2, 2, len(y) * outputs, dtype=dtype).view(len(y), outputs)
    known: tuple[tuple[Slope, Any], ...] = (
        (_cross_entropy, lambda: functional.cross_entropy(logits, y.long())),
        (_binary, lambda: functional.binary_cross_entropy_with_logits(logits.squeeze(-1), y.to(dtype))),
    )
    for slope, oracle in known:
        try:
            if outputs > 1 or slope is _binary:
                expected = float(oracle())
                if abs(float(loss(Given(logits), x, y)) - expected) <= 1e-6 * (1 + abs(expected)):
                    return slope
        except (RuntimeError, IndexError, ValueError):
            continue
    return _differentiated(loss)


class Dense:
    """Local steps of an MLP, `Way` of gossipfl.simulator.vectorized.ways."""

    name = "batched matmul"
    is_threaded = True

    def __init__(self, layers: list[Layer], loss: Loss, rows: Rows, state: State) -> None:
        self.layers, self.rows = layers, rows
        self._scratch = threading.local()
        self.trained = [name for layer in layers for name in (layer.weight, layer.bias) if name]
        last = layers[-1].weight
        held = state.shared.get(last, state.personal.get(last))
        assert held is not None
        rows.is_turned = len(layers) == 1
        self.slope = slope_of(loss, rows, held.shape[1], held.dtype)

    def train(self, state: State, work: Work) -> None:
        resting = self._resting(work)
        if not len(resting):
            self._train(state, work)
            return
        first, last = int(work.nodes[0]), int(work.nodes[-1]) + 1  # type: ignore[index]
        held = [(state.shared if name in state.shared else state.personal)[name].numpy() for name in self.trained]
        held += [state.gradient] * work.is_measured
        before = [rows.take(resting, axis=0) for rows in held]
        self._train(state, replace(work, nodes=slice(first, last), steps=np.full(last - first, work.steps[0])))
        for rows, own in zip(held, before, strict=True):
            rows[resting] = own

    def _resting(self, work: Work) -> Integers:
        """The few nodes between the others that do not train, where it costs less to train them too and to put them back
        than to copy the rows of all others."""
        nodes, plan = work.nodes, work.plan
        nobody = np.empty(0, dtype=np.int64)
        has_buffers = plan.momentum > 0 or plan.optimizer == "adam"
        if isinstance(nodes, slice) or has_buffers or plan.batch_size is not None or not self.rows.is_laid_out:
            return nobody
        span = int(nodes[-1] - nodes[0]) + 1
        is_dense = span <= (1 + GATHER_STEPS / int(work.steps[0])) * len(nodes)
        if work.steps[0] != work.steps[-1] or not is_dense or (nodes[1:] <= nodes[:-1]).any():
            return nobody
        rests = np.ones(span, dtype=bool)
        rests[nodes - nodes[0]] = False
        return np.asarray(nodes[0] + np.flatnonzero(rests))

    def _train(self, state: State, work: Work) -> None:
        batches = self.rows.batches(work.nodes, work.plan.batch_size, work.draws, work.round)
        chunk = Chunk(state, work, batches, self.trained, [])
        chunk.run(self._gradients)
        chunk.close()

    def hidden(self, weights: Blocks, x: Tensor) -> list[Tensor]:
        """Outputs of every layer but the last, (n, B, width), of rows (n, B, d)."""
        outputs = []
        for layer in self.layers[:-1]:
            weight = weights[layer.weight]
            x = self._product(
                f"forward {layer.weight}", x, weight.transpose(1, 2), (len(weight), x.shape[-2], weight.shape[1])
            )
            if layer.bias:
                x.add_(weights[layer.bias].unsqueeze(1))
            if layer.activation:
                x = layer.activation.forward(x)
            outputs.append(x)
        return outputs

    def top(self, weights: Blocks, turned: Tensor) -> Tensor:
        """Outputs of the last layer with the rows last, (n, C, B), of what is below it, (n, d, B). In memory C comes first, but
        for a linear model whose rows are not laid out last: that product would take half as long again."""
        layer = self.layers[-1]
        weight = weights[layer.weight]
        n, classes = weight.shape[:2]
        is_first = len(self.layers) > 1 or turned.is_contiguous()
        room = self._room(f"forward {layer.weight}", weight, ((classes, n) if is_first else (n, classes)) + turned.shape[2:])
        out = room.transpose(0, 1) if is_first else room
        np.matmul(weight.numpy(), turned.numpy(), out=out.numpy())
        if layer.bias:
            out.add_(weights[layer.bias].unsqueeze(2))
        return layer.activation.forward(out) if layer.activation else out

    def _product(self, key: str, left: Tensor, right: Tensor, shape: tuple[int, ...]) -> Tensor:
        """left @ right, in this thread's array of that key."""
        out = self._room(key, right, shape)
        np.matmul(left.numpy(), right.numpy(), out=out.numpy())
        return out

    def _room(self, key: str, like: Tensor, shape: tuple[int, ...]) -> Tensor:
        """This thread's array of that key: fresh ones of this size fault pages every time."""
        held: dict[str, Tensor] | None = getattr(self._scratch, "held", None)
        if held is None:
            held = self._scratch.held = {}
        size = math.prod(shape)
        room = held.get(key)
        if room is None or room.numel() < size or room.dtype != like.dtype:
            room = held[key] = torch.empty(size, dtype=like.dtype)
        return room[:size].view(shape)

    def _gradients(self, chunk: Chunk, h: int, n: int) -> list[Tensor]:
        """Backward, layer by layer from the top."""
        batch = chunk.batches.step(h, n)
        weights = {name: weight[:n] for name, weight in zip(chunk.trained, chunk.weights, strict=True)}
        outputs = [batch.x, *self.hidden(weights, batch.x)]
        turned = batch.turned if len(outputs) == 1 and batch.turned is not None else outputs[-1].transpose(1, 2)
        logits, activation = self.top(weights, turned), self.layers[-1].activation
        gradient = self.slope(logits.clone() if activation else logits, batch)
        if activation:
            gradient = activation.backward(gradient.contiguous(), logits)
        gradient, found = gradient.transpose(1, 2), {}  # (n, B, width) from here on
        for at in range(len(self.layers) - 1, -1, -1):
            layer, below = self.layers[at], outputs[at]
            weight = weights[layer.weight]
            found[layer.weight] = self._product(
                f"by {layer.weight}", gradient.transpose(1, 2), below, tuple(weight.shape)
            )
            if layer.bias:
                found[layer.bias] = gradient.sum(1)
            if at:
                gradient = self._product(f"below {layer.weight}", gradient, weight, tuple(below.shape))
                activation = self.layers[at - 1].activation
                if activation:
                    gradient = activation.backward(gradient, below)
        return [found[name] for name in chunk.trained]
