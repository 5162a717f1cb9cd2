"""A gradient of many nodes, replayed from its recorded operations, is torch.func's own, to rounding; what cannot be is not."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from gossipfl.simulator.vectorized import replay
from gossipfl.simulator.vectorized.replay import CALLS, CHECKS, Replay

NETS = {
    "linear": lambda: nn.Linear(4, 3),
    "net": lambda: nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)),
    "batch norm": lambda: nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 3)),
    "convolution": lambda: nn.Sequential(nn.Unflatten(1, (1, 2, 2)), nn.Conv2d(1, 2, 2), nn.Flatten(), nn.Linear(2, 3)),
}


class Slopes:
    """The gradients of many nodes' nets on their rows, as the engine asks for them."""

    def __init__(self, net: nn.Module) -> None:
        self.weights, self.buffers = dict(net.named_parameters()), dict(net.named_buffers())

        def loss(weights: dict[str, Tensor], buffers: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
            return nn.functional.cross_entropy(functional_call(net, {**weights, **buffers}, (x,)), y)

        self.gradient = vmap(grad(loss), randomness="different")

    def __call__(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        rest = iter(tensors)
        weights, buffers = ({name: next(rest) for name in names} for names in (self.weights, self.buffers))
        return list(self.gradient(weights, buffers, *rest).values())

    def tensors(self, nodes: int, seed: int, rows: int = 6) -> list[Tensor]:
        drawn = torch.Generator().manual_seed(seed)
        held = [torch.stack([one.detach()] * nodes) for one in (*self.weights.values(), *self.buffers.values())]
        for one in held:
            if one.is_floating_point():
                one += torch.rand(one.shape, generator=drawn) / 10
        x, y = torch.randn((nodes, rows, 4), generator=drawn), torch.randint(3, (nodes, rows), generator=drawn)
        return [*held, x, y]


@pytest.mark.parametrize("net", NETS.values(), ids=NETS)
def test_a_replayed_gradient_is_the_functions_own_for_any_number_of_nodes(net) -> None:
    torch.manual_seed(0)
    slopes = Slopes(net())
    replayed = Replay(slopes)
    for seed in range(CALLS + CHECKS):
        replayed(slopes.tensors(9, seed))
    (known,) = replayed.known.values()
    assert known.program is not None and not known.checks and not replayed.why
    replayed.function = None  # type: ignore[assignment]  # from here on nothing but the recording is there
    for nodes in (1, 5, 7, 12):
        expected, found = slopes.tensors(nodes, 50 + nodes), slopes.tensors(nodes, 50 + nodes)
        for one, other in zip([*slopes(expected), *expected], [*replayed(found), *found], strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-6)


def told(function, tensors: list[Tensor]) -> str:
    """Why it is not replayed, after it gave the function's own results."""
    replayed = Replay(function)
    for _ in range(CALLS + CHECKS + 2):
        replayed([tensor.clone() for tensor in tensors])
    assert all(known.program is None for known in replayed.known.values())
    return replayed.why


def test_what_cannot_be_recorded_goes_through_the_function_and_says_why() -> None:
    torch.manual_seed(0)
    dropping = Slopes(nn.Sequential(nn.Linear(4, 6), nn.Dropout(0.5), nn.Linear(6, 3)))
    assert "random" in told(dropping, dropping.tensors(4, 0))
    some = [torch.arange(12.0).view(4, 3)]
    assert "depend on the number of nodes" in told(lambda held: [held[0] + sum(row.sum() for row in held[0])], some)
    calls: list[None] = []

    def counting(held: Sequence[Tensor]) -> list[Tensor]:
        calls.append(None)
        return [held[0] * (2.0 if len(calls) > 4 else 1.0)]

    assert "other numbers" in told(counting, some)


def test_numbers_that_differ_with_the_nodes_otherwise_than_as_multiples_are_refused() -> None:
    with pytest.raises(replay.Unrecordable, match="with 5 nodes"):
        replay.recorded(lambda held: [held[0].narrow(0, 0, len(held[0]) - 1)], [torch.ones(4, 3)])


def test_nothing_is_recorded_in_another_thread_and_few_shapes_are_in_all() -> None:
    slopes = Slopes(nn.Linear(4, 3))
    replayed = Replay(slopes)
    other = threading.Thread(target=lambda: [replayed(slopes.tensors(4, seed)) for seed in range(6)])
    other.start()
    other.join()
    assert not any(known.program for known in replayed.known.values())
    for rows in range(1, replay.MOST + 4):
        for seed in range(CALLS):
            replayed(slopes.tensors(3, seed, rows))
    assert sum(known.program is not None for known in replayed.known.values()) == replay.MOST
