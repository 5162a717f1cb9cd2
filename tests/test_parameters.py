"""Modules and vectors: round trips, sections, digests, and an x^0 that is the same everywhere."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from gossipfl.errors import Misuse
from gossipfl.learning.parameters import Entry, Layout, initial, read, write


class Net(nn.Module):
    """Every kind of tensor: weights, norm with moments, integer and fixed buffers, a frozen and a tied parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(4, 3)
        self.norm = nn.BatchNorm1d(3)
        self.head = nn.Linear(3, 2)
        self.tied = self.head
        self.frozen = nn.Parameter(torch.full((2,), 5.0), requires_grad=False)
        self.register_buffer("grid", torch.linspace(0, 1, 5))
        self.scalar = nn.Parameter(torch.tensor(0.3))


def sections(layout: Layout) -> dict[str, set[str]]:
    return {s: {e.name for e in layout.entries if e.section == s} for s in ("parameters", "moments", "local")}


def test_each_tensor_is_in_the_section_that_it_belongs_to():
    found = sections(Layout.of(Net()))
    assert found["parameters"] == {
        *("body.weight", "body.bias", "norm.weight", "norm.bias", "head.weight", "head.bias", "scalar")
    }
    assert found["moments"] == {"norm.running_mean", "norm.running_var"}
    assert found["local"] == {"frozen", "grid", "norm.num_batches_tracked"}


def test_what_is_not_shared_is_local_moments_too():
    found = sections(Layout.of(Net(), shared=lambda name: not name.startswith(("norm.", "head."))))
    assert found["parameters"] == {"body.weight", "body.bias", "scalar"}
    assert found["moments"] == set()


def test_counts_add_up():
    layout = Layout.of(Net())
    assert (layout.n_parameters, layout.n_moments, layout.size) == (12 + 3 + 3 + 3 + 6 + 2 + 1, 6, 36)
    places = [place for _, place in layout.placed()]
    assert [place.start for place in places] == [0, *(place.stop for place in places[:-1])]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_writing_then_reading_gives_the_vector_back(dtype):
    module = Net()
    layout = Layout.of(module, dtype=dtype)
    vector = np.random.default_rng(0).standard_normal(layout.size).astype(np.float32).astype(dtype)
    vector[-3:] = vector[-6:-3] ** 2 + 0.5  # E[x^2] above mean^2
    vector.flags.writeable = False
    write(layout, vector, module)
    assert np.array_equal(read(layout, module)[: layout.n_parameters], vector[: layout.n_parameters])
    np.testing.assert_allclose(read(layout, module), vector, rtol=1e-6)
    out = np.empty(layout.size, dtype)
    assert read(layout, module, out=out) is out


def test_averaged_moments_are_those_of_the_pooled_rows():
    rng = np.random.default_rng(1)
    x = torch.tensor(rng.normal(3, 2, (60, 3)), dtype=torch.float32)
    vectors, masses = [], [20, 40]
    for rows in (x[:20], x[20:] + 5):
        norm = nn.BatchNorm1d(3, momentum=1.0)
        layout = Layout.of(norm)
        norm(rows)
        norm.running_var.mul_((len(rows) - 1) / len(rows))  # torch keeps the unbiased one
        vectors.append(read(layout, norm).astype(np.float64))
    mixed = sum(m * v for m, v in zip(masses, vectors, strict=True)) / 60
    write(layout, mixed.astype(np.float32), norm)
    pooled = torch.cat([x[:20], x[20:] + 5])
    np.testing.assert_allclose(norm.running_mean, pooled.mean(0), rtol=1e-4)
    np.testing.assert_allclose(norm.running_var, pooled.var(0, unbiased=False), rtol=1e-4)


def test_second_moment_below_the_squared_mean_becomes_variance_zero():
    norm = nn.BatchNorm1d(2, affine=False)
    layout = Layout.of(norm)
    write(layout, np.array([3, 3, 8.999, 9.5], np.float32), norm)
    assert norm.running_var.tolist() == [0.0, 0.5]


def test_digest_is_of_what_is_shared_and_of_nothing_else():
    base = Layout.of(Net())
    personal = Layout((*base.entries, Entry("extra", "int64", (9,), "local")))
    assert personal.digest == base.digest and len(base.digest) == 32
    others = [
        Layout.of(Net(), dtype="float64"),
        Layout.of(Net(), shared=lambda name: name != "scalar"),
        Layout((Entry("x", "float32", (4,), "parameters"),)),
        Layout((Entry("x", "float32", (2, 2), "parameters"),)),
        Layout((Entry("y", "float32", (4,), "parameters"),)),
    ]
    assert len({layout.digest for layout in (base, *others)}) == 6


def test_digest_is_stable_over_versions():
    assert Layout.flat(3, "float64").digest.hex() == "17d1407031ac7657085dfd5158d947d5acf08ef2522bedc9972fae62f94d6b04"


def test_initial_is_bounded_spread_and_keeps_constant_zeros_and_ones():
    module = Net()
    layout = Layout.of(module)
    vector = initial(layout, module, 5)
    parts = {entry.name: vector[place] for entry, place in layout.placed()}
    assert np.abs(parts["body.weight"]).max() < 1 / math.sqrt(4)
    assert np.unique(parts["body.weight"]).size == 12
    assert not parts["body.bias"].any() and parts["scalar"] == 0
    assert (parts["norm.weight"] == 1).all() and not parts["norm.bias"].any()
    assert not parts["norm.running_mean"].any() and (parts["norm.running_var"] == 1).all()


def test_initial_depends_on_the_seed_and_on_no_random_state_of_the_process():
    layouts = []
    for torch_seed in (1, 2):
        torch.manual_seed(torch_seed)
        module = Net()
        layouts.append(initial(Layout.of(module), module, 9).tobytes())
    assert layouts[0] == layouts[1] != initial(Layout.of(module), module, 10).tobytes()


def test_initial_is_uniform_with_the_deviation_of_torch_linear():
    module = nn.Linear(400, 300)
    layout = Layout.of(module)
    weights = initial(layout, module, 0)[: 400 * 300]
    assert abs(weights.mean()) < 3e-4
    assert weights.std() == pytest.approx(1 / math.sqrt(3 * 400), rel=0.01)


def test_initial_keeps_a_head_that_the_task_zeroed():
    module = nn.Linear(3, 2)
    nn.init.zeros_(module.weight)
    assert not initial(Layout.of(module), module, 1).any()


def test_empty_and_scalar_shapes_have_a_place():
    module = nn.ParameterDict({"a": nn.Parameter(torch.zeros(0, 3)), "b": nn.Parameter(torch.tensor(2.0))})
    layout = Layout.of(module)
    assert read(layout, module).tolist() == [2.0]
    assert initial(layout, module, 0).tolist() == [0.0]


@pytest.mark.parametrize(
    "make",
    [
        lambda: Layout((Entry("x", "float32", (1,), "parameters"),) * 2),
        lambda: Layout((Entry("a", "int64", (1,), "local"), Entry("x", "float32", (1,), "parameters"))),
        lambda: Layout((), "float16"),
        lambda: Layout((Entry("n.running_mean", "float32", (3,), "moments"),)),
        lambda: Entry("x", "float32", (-1,), "parameters"),
        lambda: Entry("x", "bfloat16", (1,), "parameters"),
        lambda: Entry("x", "float32", (1,), "public"),
        lambda: Layout.of(nn.Linear(2, 2).half()),
    ],
)
def test_a_layout_that_means_nothing_cannot_exist(make):
    with pytest.raises(Misuse):
        make()


def test_another_module_or_vector_is_misuse():
    layout = Layout.of(nn.Linear(2, 2))
    with pytest.raises(Misuse, match="same task"):
        read(layout, nn.Linear(2, 3))
    for wrong in (np.zeros(5, np.float32), np.zeros(6)):
        with pytest.raises(Misuse):
            write(layout, wrong, nn.Linear(2, 2))
