"""A torch module <-> one flat vector, by an agreed Layout. No training, no bytes on a wire, no files.

A Layout has three sections. *parameters*: trained and shared; they go through codec and ledger. *moments*: the running
statistics of batch norm; averaged, never corrected, never compressed. *local*: all else (integer and fixed
buffers, frozen or personal parameters); stays in the module, is never sent. The vector is parameters, then moments.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from gossipfl.errors import Misuse
from gossipfl.learning.blocks import DTYPES, Vector

Section = Literal["parameters", "moments", "local"]

MEAN: Final = "running_mean"
SPREAD: Final = "running_var"
"""What torch's batch and instance norms call their moments. The vector holds E[x] and E[x^2], whose mass-weighted
averages are those of the pooled rows; the average of variances is not."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One tensor of the module: its name there, its own dtype and shape, and the section it belongs to."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    section: Section

    def __post_init__(self) -> None:
        if self.section not in get_args(Section):
            raise Misuse(f"{self.name}: unknown section {self.section!r}; use one of {get_args(Section)}")
        if any(side < 0 for side in self.shape):
            raise Misuse(f"{self.name}: shape {self.shape} has a negative side")
        if self.section != "local" and self.dtype not in DTYPES:
            raise Misuse(f"{self.name} is {self.dtype}; shared tensors are float32 or float64: call module.float()")

    @property
    def size(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class Layout:
    """What the vector of a study means, agreed beforehand: no shapes travel on the wire.

    Laws: read(write(vector)) = vector bit for bit in the parameters, to rounding in the moments.
    """

    entries: tuple[Entry, ...]
    dtype: str = "float32"

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise Misuse(f"layout dtype {self.dtype!r}; use one of {DTYPES}")
        names = [entry.name for entry in self.entries]
        if len(set(names)) != len(names):
            raise Misuse(f"a name occurs twice in the layout: {sorted(n for n in set(names) if names.count(n) > 1)}")
        order = [get_args(Section).index(entry.section) for entry in self.entries]
        if order != sorted(order):
            raise Misuse("layout entries must come as parameters, then moments, then local")
        moments = {entry.name: entry.shape for entry in self.entries if entry.section == "moments"}
        for name, shape in moments.items():
            if moments.get(_partner(name)) != shape:
                raise Misuse(f"{name}: moments come in pairs {MEAN} and {SPREAD} of one shape")

    @classmethod
    def of(cls, module: nn.Module, shared: Callable[[str], bool] | None = None, dtype: str = "float32") -> Layout:
        """The layout of a module. `shared(name)` false keeps a parameter or a moment local (FedBN, personal heads).

        Frozen parameters (requires_grad False) and every buffer but batch norm's moments are local: each site builds
        them from the same task. Tied parameters appear once.
        """
        wanted = shared or (lambda name: True)
        sections: dict[Section, list[Entry]] = {"parameters": [], "moments": [], "local": []}
        for name, parameter in module.named_parameters():
            section: Section = "parameters" if parameter.requires_grad and wanted(name) else "local"
            sections[section].append(_entry(name, parameter, section))
        for name, buffer in module.named_buffers():
            section = "moments" if _is_moment(name, buffer) and wanted(name) else "local"
            sections[section].append(_entry(name, buffer, section))
        return cls(tuple(entry for section in sections.values() for entry in section), dtype)

    @classmethod
    def flat(cls, n: int, dtype: str = "float32") -> Layout:
        """One row of n parameters, for learners that are no torch module."""
        return cls((Entry("x", dtype, (n,), "parameters"),), dtype)

    def _count(self, section: Section) -> int:
        return sum(entry.size for entry in self.entries if entry.section == section)

    @cached_property
    def n_parameters(self) -> int:
        """P"""
        return self._count("parameters")

    @cached_property
    def n_moments(self) -> int:
        """M"""
        return self._count("moments")

    @property
    def size(self) -> int:
        """P + M"""
        return self.n_parameters + self.n_moments

    @cached_property
    def digest(self) -> bytes:
        """SHA-256 of what is shared, as canonical JSON; local entries may differ between sites and are not in it."""
        shared = [
            [entry.section, entry.name, entry.dtype, list(entry.shape)]
            for entry in self.entries
            if entry.section != "local"
        ]
        text = json.dumps(["gossipfl layout 1", self.dtype, shared], separators=(",", ":"), ensure_ascii=True)
        return hashlib.sha256(text.encode("ascii")).digest()

    def placed(self) -> Iterator[tuple[Entry, slice]]:
        """Every shared entry with its place in the vector."""
        start = 0
        for entry in self.entries:
            if entry.section != "local":
                yield entry, slice(start, start + entry.size)
                start += entry.size


def _is_moment(name: str, buffer: Tensor) -> bool:
    return name.rpartition(".")[2] in (MEAN, SPREAD) and buffer.is_floating_point()


def _partner(name: str) -> str:
    """running_mean of a running_var and the other way round."""
    stem, dot, last = name.rpartition(".")
    return stem + dot + (SPREAD if last == MEAN else MEAN)


def _entry(name: str, tensor: Tensor, section: Section) -> Entry:
    return Entry(name, str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape), section)


def _tensors(layout: Layout, module: nn.Module) -> dict[str, Tensor]:
    """The module's tensors by name, proven to be those of the layout."""
    found: dict[str, Tensor] = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    for entry, _ in layout.placed():
        tensor = found.get(entry.name)
        if tensor is None or tuple(tensor.shape) != entry.shape:
            has = "nothing" if tensor is None else f"shape {tuple(tensor.shape)}"
            raise Misuse(f"{entry.name}: the layout says shape {entry.shape}, the module has {has}; same task?")
    return found


def _values(tensor: Tensor) -> NDArray[Any]:
    return tensor.detach().cpu().numpy()


def read(layout: Layout, module: nn.Module, out: Vector | None = None) -> Vector:
    """The module as a vector; variances become E[x^2] = var + mean^2.

    Shapes: (P + M,) of the layout's dtype. Raises: `Misuse` when module and layout differ.
    """
    vector = np.empty(layout.size, layout.dtype) if out is None else out
    _require_vector(layout, vector)
    tensors = _tensors(layout, module)
    for entry, place in layout.placed():
        value = _values(tensors[entry.name])
        if entry.section == "moments" and entry.name.endswith(SPREAD):
            value = value + np.square(_values(tensors[_partner(entry.name)]), dtype=np.float64)
        vector[place] = value.reshape(-1)
    return vector


def write(layout: Layout, vector: Vector, module: nn.Module) -> None:
    """Put a vector into the module (`vector` may be read-only); E[x^2] becomes max(E[x^2] - mean^2, 0).

    Raises: `Misuse` when module, layout and vector differ.
    """
    _require_vector(layout, vector)
    tensors = _tensors(layout, module)
    places = {entry.name: place for entry, place in layout.placed()}
    for entry, place in layout.placed():
        value = vector[place]
        if entry.section == "moments" and entry.name.endswith(SPREAD):
            mean = vector[places[_partner(entry.name)]]
            value = np.maximum(value - np.square(mean, dtype=np.float64), 0)
        _store(value.reshape(entry.shape), tensors[entry.name])


def _store(value: NDArray[Any], tensor: Tensor) -> None:
    target = tensor.detach()
    if target.device.type == "cpu":
        target.numpy()[...] = value
    else:
        target.copy_(torch.from_numpy(np.array(value)))


def _require_vector(layout: Layout, vector: Vector) -> None:
    if vector.shape != (layout.size,) or vector.dtype.name != layout.dtype:
        raise Misuse(f"a vector of {vector.dtype} {vector.shape}; this layout has {layout.dtype} ({layout.size},)")


def initial(layout: Layout, module: nn.Module, seed: int) -> Vector:
    """x^0, the same bits on any machine: every link's first reference.

    Tensors that the module holds at constant 0 or 1 stay so (biases, norms, zero-initialised heads). Others with two
    or more dimensions: uniform in +-1/sqrt(fan_in), fan_in = size / shape[0]. Others: 0.

    Shapes: (P + M,) of the layout's dtype.
    Randomness: 64 raw bits of PCG64(seed) per drawn element, in layout order; the upper 24 become the odd integer
    2 b + 1 - 2^24, exact in float64; scaling by 2^-24 is exact, by the bound one correctly rounded product.
    Differs: torch's own initialisation (torch.randn) draws other numbers on other CPUs.
    """
    tensors, bits = _tensors(layout, module), np.random.PCG64(seed)
    vector = np.zeros(layout.size, layout.dtype)
    for entry, place in layout.placed():
        value = _values(tensors[entry.name])
        if value.size and (value == value.flat[0]).all() and value.flat[0] in (0, 1):
            vector[place] = value.flat[0]
        elif entry.section == "parameters" and len(entry.shape) >= 2:
            fan_in = entry.size // entry.shape[0] if entry.size else 1
            vector[place] = _uniform(bits, entry.size) * (1.0 / math.sqrt(fan_in))
    for entry, place in layout.placed():
        if entry.section == "moments" and entry.name.endswith(SPREAD):  # from var to E[x^2]; 0 and 1 stay exact
            mean = next(where for other, where in layout.placed() if other.name == _partner(entry.name))
            vector[place] += np.square(vector[mean])
    return vector


def _uniform(bits: np.random.PCG64, size: int) -> NDArray[np.float64]:
    """`size` numbers in (-1, 1), symmetric, none of them 0."""
    upper = (bits.random_raw(size) >> np.uint64(40)).astype(np.float64)
    return (2.0 * upper + (1.0 - 2.0**24)) * 2.0**-24
