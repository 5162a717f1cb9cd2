"""A function of many nodes' tensors as the plain tensor operations that it comes to, replayed call after call. No gradients.

torch.func works out anew at every call which operations a gradient of many nodes is made of; for small models that costs more
than the operations. Here they are recorded twice, with few nodes and with a few more: a number that differs between the two
recordings is a multiple of how many nodes there are, and everything else stays as it is. What cannot be told apart so, what
draws random numbers, and what does not give the function's own numbers when first tried, is not replayed.
"""

from __future__ import annotations

import operator
import threading
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.node import map_aggregate

Function = Callable[[Sequence[Tensor]], list[Tensor]]
"""Tensors (n, ..) -> tensors (n, ..); may change the given ones in place"""

SIZES: Final = (5, 7)
"""Nodes of the two recordings: neither is a multiple of the other."""

CALLS: Final = 2
"""The call of one shape that records it: a recording costs as much as some tens of calls, and some shapes come only once."""

CHECKS: Final = 2
"""Calls in which a recording is held against the function."""

MOST: Final = 8
"""Shapes that are recorded; further ones go through the function."""


class Unrecordable(Exception):
    """The function is more than a list of operations whose sizes are multiples of the number of nodes."""


@dataclass
class Known:
    """What there is of one shape."""

    calls: int = 0
    program: Callable[..., list[Tensor]] | None = None
    checks: int = CHECKS
    """that are left"""


class Replay:
    """A function and its recordings, one for each shape beside the number of nodes.

    Recording is the main thread's, because torch changes its modules for everybody meanwhile; replaying is anybody's.

    **Laws**: what it returns, and what it leaves in the tensors, is the function's, bit for bit but for the last bits of a
    log-softmax over few classes, if the function depends on nothing but its tensors: one that counts its calls, say, is not
    seen as such.
    """

    def __init__(self, function: Function) -> None:
        self.function = function
        self.known: dict[tuple[Any, ...], Known] = {}
        self.why = ""
        """why nothing is replayed"""

    def __call__(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        known = self.known.setdefault(tuple((tensor.shape[1:], tensor.dtype) for tensor in tensors), Known())
        if known.program is not None and not known.checks:
            return known.program(*tensors)
        if self.why or threading.current_thread() is not threading.main_thread():
            return self.function(tensors)
        known.calls += 1
        if known.program is None:
            if known.calls < CALLS or sum(one.program is not None for one in self.known.values()) >= MOST:
                return self.function(tensors)
            try:
                known.program = recorded(self.function, tensors)
            except Exception as error:  # whatever torch raises where it cannot follow
                first = str(error).strip().splitlines() or [""]
                self.why = f"{type(error).__name__}: {first[0][:160]}"
                return self.function(tensors)
        return self._checked(known, known.program, tensors)

    def _checked(self, known: Known, program: Callable[..., list[Tensor]], tensors: Sequence[Tensor]) -> list[Tensor]:
        """The function's own result, and whether the recording gives the same."""
        copies = [tensor.clone() for tensor in tensors]
        expected = self.function(tensors)
        found = program(*copies)
        pairs = zip([*expected, *tensors], [*found, *copies], strict=True)
        if all(_is_close(one, other) for one, other in pairs):
            known.checks -= 1
        else:
            self.why = "its recorded operations give other numbers"
            known.program = None
        return expected


ROUNDINGS: Final = 16
"""Times the format's precision, of the largest number, by which a recording may differ from the function."""


def _is_close(one: Tensor, other: Tensor) -> bool:
    """Are they the same, to rounding."""
    if one.shape != other.shape or not one.is_floating_point():
        return _is_same(one, other)
    size = float(one.abs().nan_to_num(0.0, 0.0, 0.0).max()) if one.numel() else 0.0
    bound = ROUNDINGS * torch.finfo(one.dtype).eps * size
    return bool(torch.isclose(one, other, rtol=0.0, atol=bound, equal_nan=True).all())


def _is_same(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and bool(((one == other) | ((one != one) & (other != other))).all())


# ---- recording --------------------------------------------------------------------------------------------------------


def recorded(function: Function, tensors: Sequence[Tensor]) -> Callable[..., list[Tensor]]:
    """The operations of a call with tensors of these shapes, and any number of nodes. Changes none of the tensors.

    **Raises**: Unrecordable, or what torch raises.
    """
    few, more = (_graph(function, tensors, nodes) for nodes in SIZES)
    _stretch(few, more)
    few.graph.eliminate_dead_code()
    few.recompile()
    program: Callable[..., list[Tensor]] = few.forward
    return program


def _graph(function: Function, tensors: Sequence[Tensor], nodes: int) -> fx.GraphModule:
    """What the function does with so many nodes."""
    some = torch.arange(nodes) % len(tensors[0])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made: fx.GraphModule = make_fx(lambda *given: function(given))(*(tensor[some] for tensor in tensors))
    operations = [node for node in made.graph.nodes if isinstance(node.target, torch._ops.OpOverload)]
    if any(torch.Tag.nondeterministic_seeded in node.target.tags for node in operations):
        raise Unrecordable("it draws random numbers")
    if not any(node.target._schema.is_mutable for node in operations):
        for node in operations:
            _turn(node)
            _settle(node)
    return made


def _settle(node: fx.Node) -> None:
    """A tensor of one number only needs a shape, and not what it was made like."""
    aten, arguments = torch.ops.aten, node.args
    fills: dict[Any, Any] = {aten.ones_like.default: 1, aten.zeros_like.default: 0}
    if node.target is aten.scalar_tensor.default:
        fills[node.target] = arguments[0]
    elif node.target is aten.full_like.default:
        fills[node.target] = arguments[1]
    if node.target in fills:
        value = node.meta["val"]
        with node.graph.inserting_before(node):
            filled = node.graph.call_function(torch.full, (list(value.shape), fills[node.target]), {"dtype": value.dtype})
        node.replace_all_uses_with(filled)
        node.graph.erase_node(node)


def _log_softmax(x: Tensor, axis: int, to_single: bool) -> Tensor:
    """torch's, along the first axis instead of the last."""
    found: Tensor = torch.ops.aten._log_softmax.default(x.movedim(-1, 0).contiguous(), 0, to_single)
    return found.movedim(0, -1).contiguous()


def _log_softmax_back(gradient: Tensor, output: Tensor, axis: int, dtype: torch.dtype) -> Tensor:
    first, second = (one.movedim(-1, 0).contiguous() for one in (gradient, output))
    found: Tensor = torch.ops.aten._log_softmax_backward_data.default(first, second, 0, dtype)
    return found.movedim(0, -1).contiguous()


TURNED: Final[dict[Any, Callable[..., Tensor]]] = {
    torch.ops.aten._log_softmax.default: _log_softmax,
    torch.ops.aten._log_softmax_backward_data.default: _log_softmax_back,
}

REGISTER_BYTES: Final = 64
"""Along a last axis shorter than a vector register torch's softmax goes number by number, along the first by registers: three to
ten times as fast, and the same but for the last bit of some."""


def _turn(node: fx.Node) -> None:
    """Let a softmax along a short last axis go along the first."""
    if node.target not in TURNED:
        return
    value = node.meta["val"]
    is_last = node.args[len(node.all_input_nodes)] == value.ndim - 1
    if is_last and value.shape[-1] * value.itemsize < REGISTER_BYTES:
        node.target = TURNED[node.target]


def _stretch(few: fx.GraphModule, more: fx.GraphModule) -> None:
    """Put multiples of the number of nodes into `few`, wherever `more` has another number.

    **Raises**: Unrecordable where they differ in anything else."""
    ones, others = list(few.graph.nodes), list(more.graph.nodes)
    if [(node.op, node.name) for node in ones] != [(node.op, node.name) for node in others]:
        raise Unrecordable("its operations depend on the number of nodes")
    inputs = [node for node in ones if node.op == "placeholder"]
    with few.graph.inserting_after(inputs[-1]):
        count = few.graph.call_method("size", (inputs[0], 0))
    multiples: dict[int, fx.Node] = {1: count}

    def multiple(times: int) -> fx.Node:
        if times not in multiples:
            with few.graph.inserting_after(count):
                multiples[times] = few.graph.call_function(operator.mul, (count, times))
        return multiples[times]

    for one, other in zip(ones, others, strict=True):
        if one.op == "get_attr":
            held, wanted = (getattr(made, node.target) for made, node in ((few, one), (more, other)))
            if not (isinstance(held, Tensor) and _is_same(held, wanted)):
                raise Unrecordable("it makes a constant of the number of nodes")
        elif one.target is not other.target and one.op == "call_function":
            raise Unrecordable("its operations depend on the number of nodes")
        elif one.op != "placeholder":
            one.args, one.kwargs = _merged(one.args, other.args, multiple), _merged(one.kwargs, other.kwargs, multiple)


def _merged(few: Any, more: Any, multiple: Callable[[int], fx.Node]) -> Any:
    """The arguments of an operation for any number of nodes."""
    left: list[Any] = []
    map_aggregate(more, lambda leaf: left.append(leaf))
    rest = iter(left)

    def both(one: Any) -> Any:
        other = next(rest, None)
        if isinstance(one, fx.Node) and isinstance(other, fx.Node) and one.name == other.name:
            return one
        if type(one) is int and type(other) is int and one != other:
            times, over = divmod(one, SIZES[0])
            if over or other != times * SIZES[1]:
                raise Unrecordable(f"a size that is {one} with {SIZES[0]} nodes and {other} with {SIZES[1]}")
            return multiple(times)
        if type(one) is not type(other) or one != other:
            raise Unrecordable(f"{one} with {SIZES[0]} nodes, {other} with {SIZES[1]}")
        return one

    merged = map_aggregate(few, both)
    if next(rest, None) is not None:
        raise Unrecordable("arguments of another number")
    return merged
