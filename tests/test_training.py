"""Local steps: against closed forms and torch's own optimisers; the correction; what outlives a phase."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
import pytest
import torch
from torch import nn

from gossipfl.errors import Misuse
from gossipfl.learning.parameters import Layout, read
from gossipfl.learning.training import Plan, Trainer


def squares(module: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return ((module(x) - y) ** 2).mean()


def net(seed: int = 0, *extra: nn.Module) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), *extra, nn.Linear(4, 1)).double()


def rows(n: int = 20) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(0)
    return torch.tensor(rng.standard_normal((n, 3))), torch.tensor(rng.standard_normal((n, 1)))


def trainer(module: nn.Module, n: int = 20) -> tuple[Trainer, np.ndarray]:
    layout = Layout.of(module, dtype="float64")
    return Trainer(module, layout, squares, *rows(n)), read(layout, module)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(seed))


def penalised(parameters: Iterable[torch.Tensor]) -> list[dict[str, object]]:
    """torch's groups for a penalty on matrices only: intercepts are never drawn to zero."""
    weights = list(parameters)
    return [
        {"params": [weight for weight in weights if weight.ndim > 1], "weight_decay": 0.3},
        {"params": [weight for weight in weights if weight.ndim <= 1]},
    ]


OPTIMIZERS = {
    "sgd": (Plan(7, 0.05), lambda p: torch.optim.SGD(p, 0.05)),
    "sgd-l2": (Plan(7, 0.05, l2=0.3), lambda p: torch.optim.SGD(penalised(p), 0.05)),
    "momentum": (Plan(7, 0.05, momentum=0.9), lambda p: torch.optim.SGD(p, 0.05, momentum=0.9)),
    "adam": (Plan(7, 0.05, optimizer="adam"), lambda p: torch.optim.Adam(p, 0.05)),
    "adam-l2": (Plan(7, 0.05, optimizer="adam", l2=0.3), lambda p: torch.optim.Adam(penalised(p), 0.05)),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_full_batch_steps_are_those_of_torch_over_two_phases(name):
    plan, make = OPTIMIZERS[name]
    learner, vector = trainer(net())
    for _ in range(2):
        vector = learner.train(vector, None, plan, rng()).vector
    oracle = net()
    optimizer = make(oracle.parameters())
    for _ in range(14):
        optimizer.zero_grad()
        squares(oracle, *rows()).backward()
        optimizer.step()
    np.testing.assert_allclose(vector, read(learner.layout, oracle), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("plan", [plan for plan, _ in OPTIMIZERS.values()], ids=OPTIMIZERS)
def test_correction_displaces_by_eta_after_the_optimiser(plan):
    one = Plan(1, plan.eta, optimizer=plan.optimizer, momentum=plan.momentum, l2=plan.l2)
    (plain, vector), (corrected, _) = trainer(net()), trainer(net())
    correction = np.random.default_rng(1).standard_normal(vector.size)
    difference = corrected.train(vector, correction, one, rng()).vector - plain.train(vector, None, one, rng()).vector
    np.testing.assert_allclose(difference, -plan.eta * correction, atol=1e-14)


@pytest.mark.parametrize("momentum", [0.0, 0.8])
def test_a_correction_of_minus_the_direction_is_a_point_of_rest(momentum):
    learner, vector = trainer(net())
    still = Plan(1, 1e-12, momentum=momentum)
    for _ in range(150):  # the buffer reaches gradient / (1 - momentum)
        moved = learner.train(vector, None, still, rng())
    gradient = (vector - moved.vector) / 1e-12
    rest = learner.train(vector, -gradient, Plan(20, 0.01, momentum=momentum), rng()).vector
    np.testing.assert_allclose(rest, vector, atol=1e-3)


def test_gradient_is_the_mean_norm_of_what_eta_multiplies():
    learner, vector = trainer(net())
    outcome = learner.train(vector, np.full(vector.size, 9.0), Plan(1, 0.5), rng())
    moved = (vector - outcome.vector) / 0.5 - 9.0
    assert outcome.gradient == pytest.approx(np.linalg.norm(moved))
    assert outcome.steps == 1 and outcome.loss > 0


def test_proximal_term_pulls_towards_the_start_of_the_phase():
    far = [trainer(net())[0].train(trainer(net())[1], None, Plan(200, 0.05, proximal=p), rng()) for p in (0, 1, 10)]
    distances = [np.linalg.norm(outcome.vector - trainer(net())[1]) for outcome in far]
    assert distances[0] > distances[1] > distances[2]


def test_minibatches_see_every_row_once_in_a_pass_and_follow_only_the_generator():
    seen: list[list[float]] = []

    def spy(module: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        seen.append(x[:, 0].tolist())
        return squares(module, x, y)

    results = []
    for torch_seed, seed in ((1, 5), (2, 5), (1, 6)):
        module = net()
        layout = Layout.of(module, dtype="float64")
        vector = read(layout, module)
        torch.manual_seed(torch_seed)
        learner = Trainer(module, layout, spy, *rows(18))
        results.append(learner.train(vector, None, Plan(6, 0.1, batch_size=6), rng(seed)).vector.tobytes())
    assert results[0] == results[1] != results[2]
    for start in (0, 3):
        assert sorted(value for batch in seen[start : start + 3] for value in batch) == sorted(
            rows(18)[0][:, 0].tolist()
        )


def test_the_short_rest_of_a_pass_is_left_out_and_a_small_site_uses_all_it_has():
    sizes: list[int] = []

    def spy(module: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        sizes.append(len(x))
        return squares(module, x, y)

    for n, batch in ((20, 6), (4, 6)):
        module = net()
        layout = Layout.of(module, dtype="float64")
        Trainer(module, layout, spy, *rows(n)).train(read(layout, module), None, Plan(5, 0.1, batch), rng())
    assert sizes == [6] * 5 + [4] * 5


def test_dropout_follows_the_generator_and_leaves_the_global_one_alone():
    results = []
    for torch_seed in (1, 2):
        learner, vector = trainer(net(0, nn.Dropout(0.5)))
        torch.manual_seed(torch_seed)
        before = torch.get_rng_state()
        results.append(learner.train(vector, None, Plan(3, 0.1), rng(4)).vector.tobytes())
        assert torch.equal(torch.get_rng_state(), before)
    assert results[0] == results[1]


def test_moments_are_read_back_and_correction_covers_parameters_only():
    learner, vector = trainer(net(0, nn.BatchNorm1d(4)))
    layout = learner.layout
    assert layout.n_moments == 8
    outcome = learner.train(vector, np.zeros(layout.n_parameters), Plan(2, 0.1, batch_size=5), rng())
    assert (outcome.vector[layout.n_parameters :] != vector[layout.n_parameters :]).any()
    with pytest.raises(Misuse, match="correction"):
        learner.train(vector, np.zeros(layout.size), Plan(1, 0.1), rng())


def test_a_personal_head_learns_and_stays_with_its_trainer():
    module = net()
    layout = Layout.of(module, shared=lambda name: name.startswith("0."), dtype="float64")
    learner = Trainer(module, layout, squares, *rows())
    head = module[2].weight.detach().clone()
    outcome = learner.train(read(layout, module), np.zeros(layout.size), Plan(3, 0.1), rng())
    assert outcome.vector.shape == (16,) and not torch.equal(head, module[2].weight)


def test_divergence_is_told_not_raised_and_does_not_poison_the_buffers():
    learner, vector = trainer(net())
    fine = learner.train(vector, None, Plan(3, 0.1, momentum=0.9), rng()).vector
    wild = learner.train(vector * 1e300, None, Plan(3, 1e300, momentum=0.9), rng())
    assert not (math.isfinite(wild.gradient) and math.isfinite(wild.loss))
    assert np.array_equal(learner.train(vector, None, Plan(3, 0.1, momentum=0.9), rng()).vector, fine)


def test_training_learns():
    learner, vector = trainer(net())
    losses = [(o := learner.train(vector, None, Plan(50, 0.1), rng())).loss]
    for _ in range(5):
        o = learner.train(o.vector, None, Plan(50, 0.1), rng())
        losses.append(o.loss)
    assert losses == sorted(losses, reverse=True) and losses[-1] < 0.7 * losses[0]


@pytest.mark.parametrize(
    "make",
    [
        lambda: Plan(0, 0.1),
        lambda: Plan(1, 0.0),
        lambda: Plan(1, math.nan),
        lambda: Plan(1, 0.1, batch_size=0),
        lambda: Plan(1, 0.1, optimizer="lion"),
        lambda: Plan(1, 0.1, momentum=1.0),
        lambda: Plan(1, 0.1, optimizer="adam", momentum=0.9),
        lambda: Plan(1, 0.1, l2=-1.0),
        lambda: Plan(1, 0.1, proximal=math.nan),
        lambda: Trainer(net(), Layout.of(net()), squares, rows(3)[0], rows(4)[1]),
        lambda: Trainer(net(), Layout.of(net()), squares, rows(0)[0], rows(0)[1]),
        lambda: Trainer(net(), Layout.of(net(), shared=lambda name: False), squares, *rows()),
    ],
)
def test_what_is_no_training_is_misuse(make):
    with pytest.raises(Misuse):
        make()
