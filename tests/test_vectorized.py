"""All nodes at once: the same numbers as node by node with the deployed functions, whatever the way, threads and blocks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from gossipfl import simulate
from gossipfl.errors import Misuse
from gossipfl.learning import correction, mixing
from gossipfl.learning.parameters import Layout, initial
from gossipfl.learning.training import Plan
from gossipfl.simulator.vectorized import dense, faults, meetings, ways
from gossipfl.simulator.vectorized import simulate as door
from gossipfl.simulator.vectorized.batched import Batched
from gossipfl.simulator.vectorized.dense import Dense, layers_of
from gossipfl.simulator.vectorized.draws import Named, orders, stream
from gossipfl.simulator.vectorized.faults import Faults, Weather
from gossipfl.simulator.vectorized.looped import Looped
from gossipfl.simulator.vectorized.meetings import Links, Meetings
from gossipfl.simulator.vectorized.methods import Method
from gossipfl.simulator.vectorized.mixing import Mixer, Terms
from gossipfl.simulator.vectorized.outages import Outages
from gossipfl.simulator.vectorized.rows import Rows
from gossipfl.simulator.vectorized.state import State
from gossipfl.simulator.vectorized.stepping import Work
from gossipfl.tasks.digits import Digits
from gossipfl.tasks.toy import Toy

WAYS = ("loop", "matmul", "vmap")
CLOSE = {"float64": 1e-9, "float32": 1e-5}


class Net:
    """A task on any module; rows of four numbers, or of what `shape` says."""

    name, features, standardise, metric = "net", (), False, "loss"

    def __init__(self, make, loss=None):
        self.model, self._loss = make, loss or (lambda out, y: nn.functional.cross_entropy(out, y))

    def loss(self, module, x, y):
        return self._loss(module(x), y)

    def data(self, source):
        raise NotImplementedError


def mlp(act: type[nn.Module] = nn.ReLU) -> nn.Module:
    return nn.Sequential(nn.Linear(4, 6), act(), nn.Linear(6, 3))


def rows_of(counts: list[int], shape: tuple[int, ...] = (4,), dtype: str = "float64") -> Rows:
    rng = np.random.default_rng(0)
    made = [(rng.standard_normal((n, *shape)), rng.integers(3, size=n)) for n in counts]
    return Rows.of([(torch.tensor(x).to(getattr(torch, dtype)), torch.tensor(y)) for x, y in made])


def model_of(task: Net, dtype: str = "float64") -> ways.Model:
    torch.manual_seed(0)
    module = task.model().to(getattr(torch, dtype))
    layout = Layout.of(module, getattr(task, "shared", None), dtype=dtype)
    return ways.Model.of(task, layout, initial(layout, module, 1))


def way_of(kind: str, model: ways.Model, rows: Rows) -> ways.Way:
    scratch = model.state(1)
    if kind == "loop":
        return Looped(model.task, model.module, model.task.loss, model.layout, rows, 100, is_random=False)
    if kind == "matmul":
        layers = layers_of(model.module)
        assert not isinstance(layers, str), layers
        return Dense(layers, model.task.loss, rows, scratch)
    return Batched(model.module, model.task.loss, rows, scratch, model.is_random)


def trained(kind: str, model: ways.Model, rows: Rows, plan: Plan, rounds: int = 2) -> State:
    """Two phases with F, nodes in two blocks out of order, some of them slow."""
    nodes, state, rng = rows.nodes, model.state(rows.nodes), np.random.default_rng(3)
    way = way_of(kind, model, rows)
    ways.prepare(state, model, plan)
    state.need_correction()
    for block in state.correction.values():
        block.copy_(torch.tensor(rng.standard_normal(block.shape) * 0.1))
    order = np.roll(np.arange(nodes)[::-1], 2)
    steps = np.sort(np.arange(nodes) % 3)[::-1] + plan.steps - 2
    for at in range(rounds):
        for part in (slice(0, nodes // 2), slice(nodes // 2, nodes)):
            way.train(state, Work(order[part], steps[part], plan, Named(7), at, True))
    return state


PLANS = {
    "all rows": Plan(4, 0.1),
    "batches, l2": Plan(5, 0.1, batch_size=5, l2=0.01),
    "momentum, proximal": Plan(5, 0.1, batch_size=9, momentum=0.9, proximal=0.1),
    "adam": Plan(4, 0.05, batch_size=4, optimizer="adam", l2=0.01),
}


# ---- local steps -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
@pytest.mark.parametrize("dtype", CLOSE)
def test_the_three_ways_are_the_same_steps(plan, dtype):
    model, rows = model_of(Net(mlp), dtype), rows_of([6, 13, 5, 9, 6, 30, 4], dtype=dtype)
    loop, matmul, vmap = (trained(kind, model, rows, plan) for kind in WAYS)
    for other in (matmul, vmap):
        np.testing.assert_allclose(other.vectors(), loop.vectors(), atol=CLOSE[dtype], rtol=0)
        np.testing.assert_allclose(other.gradient, loop.gradient, rtol=CLOSE[dtype] * 10)
    assert np.abs(loop.vectors() - model.x0).max() > 0.05


@pytest.mark.parametrize("act", [nn.Tanh, nn.Sigmoid])
@pytest.mark.parametrize("name", ["squares", "binary", "weighted cross-entropy"])
def test_batched_matmul_takes_other_activations_and_any_loss_that_is_a_mean(act, name):
    losses = {
        "squares": lambda out, y: ((out[:, 0] - y) ** 2).mean(),
        "binary": lambda out, y: nn.functional.binary_cross_entropy_with_logits(out[:, 0], (y > 0).to(out.dtype)),
        "weighted cross-entropy": lambda out, y: (
            nn.functional.cross_entropy(out, y, reduction="none") * (1 + y)
        ).mean(),
    }
    model, rows = model_of(Net(lambda: mlp(act), losses[name])), rows_of([6, 13, 5, 9])
    loop, matmul = (trained(kind, model, rows, Plan(3, 0.1)) for kind in ("loop", "matmul"))
    np.testing.assert_allclose(matmul.vectors(), loop.vectors(), atol=1e-9)


class Split(nn.Module):
    """A shared body, a personal head (never mixed), and batch norm between."""

    def __init__(self):
        super().__init__()
        self.body, self.norm, self.head = nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 3)

    def forward(self, x):
        return self.head(torch.relu(self.norm(self.body(x))))


def test_batch_norm_and_personal_parameters_through_vmap_are_those_of_the_loop():
    task = Net(Split)
    task.shared = lambda name: not name.startswith("head")
    model, rows = model_of(task), rows_of([6, 13, 6, 9, 13])
    assert set(model.local) == {"head.weight", "head.bias", "norm.num_batches_tracked"}
    loop, vmap = (trained(kind, model, rows, Plan(3, 0.1, batch_size=6)) for kind in ("loop", "vmap"))
    np.testing.assert_allclose(vmap.vectors(), loop.vectors(), atol=1e-9)
    for name, block in loop.personal.items():
        np.testing.assert_allclose(vmap.personal[name], block, atol=1e-9)
    assert loop.shared["norm.running_mean"].abs().max() > 0.01
    assert (loop.personal["norm.num_batches_tracked"] > 0).all()


class Sum(nn.Module):
    """One layer's weight in two parts, whose gradients are one and the same, and one that only its sum is asked of."""

    def __init__(self):
        super().__init__()
        self.plain, self.other, self.apart = (nn.Parameter(torch.ones(3, 4) * size) for size in (0.1, -0.2, 0.3))

    def forward(self, x):
        return x @ (self.plain + self.other).T, self.apart.sum()


def test_gradients_that_are_one_tensor_move_each_parameter_by_its_own_correction():
    net = Net(Sum, lambda out, y: nn.functional.cross_entropy(out[0], y) + out[1])
    model, rows = model_of(net), rows_of([6, 8, 6])
    loop, vmap = (trained(kind, model, rows, Plan(3, 0.1, l2=0.1)) for kind in ("loop", "vmap"))
    np.testing.assert_allclose(vmap.vectors(), loop.vectors(), atol=1e-9)


def test_convolutions_go_through_vmap_as_through_the_loop():
    make = lambda: nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3))
    model, rows = model_of(Net(make)), rows_of([6, 8, 6], (1, 4, 4))
    loop, vmap = (trained(kind, model, rows, Plan(3, 0.1, batch_size=5)) for kind in ("loop", "vmap"))
    np.testing.assert_allclose(vmap.vectors(), loop.vectors(), atol=1e-9)


class Branching(nn.Module):
    """What it does depends on its rows: vmap cannot follow."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        return self.head(x if bool(x.sum() > 0) else -x)


def test_what_no_other_way_can_take_falls_back_and_says_so_in_one_line():
    model, rows = model_of(Net(Branching), "float32"), rows_of([5] * 6, dtype="float32")
    found = ways.choose(model, rows, Plan(1, 0.1), 6, 1e9)
    assert found.way.name == "per-node loop"
    assert len(found.lines) == 2 and all("\n" not in line and len(line) < 250 for line in found.lines), found.lines
    with pytest.raises(Misuse, match="matmul"):
        ways.choose(model, rows, Plan(1, 0.1), 6, 1e9, "matmul")


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm, self.head = nn.LSTM(2, 3, batch_first=True), nn.Linear(3, 3)

    def forward(self, x):
        return self.head(self.lstm(x)[0][:, -1])


def test_recurrent_nets_are_taken_by_whichever_way_is_right_and_faster():
    model, rows = model_of(Net(Recurrent)), rows_of([5] * 6, (4, 2))
    found = ways.choose(model, rows, Plan(1, 0.1), 6, 1e9)
    assert found.way.name in ("per-node loop", "torch.func.vmap") and found.lines


class Gated(nn.Module):
    """Three groups of parameters: a body that is frozen, gates that all share, a head of one's own."""

    def __init__(self):
        super().__init__()
        self.body, self.gate, self.head = nn.Linear(2, 4), nn.GRUCell(4, 5), nn.Linear(5, 3)
        self.body.requires_grad_(False)

    def forward(self, x):
        held = torch.zeros(len(x), 5, dtype=x.dtype)
        for step in self.body(x).unbind(1):
            held = self.gate(step, held)
        return self.head(held)


def test_a_recurrent_net_with_groups_that_are_frozen_shared_and_personal_is_the_loops_in_vmap():
    task = Net(Gated)
    task.shared = lambda name: name.startswith("gate")
    model, rows = model_of(task), rows_of([6, 9, 6, 13], (4, 2))
    plan = Plan(3, 0.1, batch_size=6, l2=0.01, momentum=0.5)
    loop, vmap = (trained(kind, model, rows, plan) for kind in ("loop", "vmap"))
    assert set(loop.shared) == {f"gate.{name}" for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")}
    assert set(loop.personal) == {"head.weight", "head.bias"}
    np.testing.assert_allclose(vmap.vectors(), loop.vectors(), atol=1e-9)
    for name, block in loop.personal.items():
        np.testing.assert_allclose(vmap.personal[name], block, atol=1e-9)
        assert (block[0] - block[1]).abs().max() > 1e-3


class Dropping(Digits):
    def model(self):
        return nn.Sequential(nn.Linear(64, 12), nn.ReLU(), nn.Dropout(0.5), nn.Linear(12, 10))


def test_dropout_draws_for_each_node_and_in_the_loop_whatever_the_block():
    settings = {"nodes": 4, "rounds": 2, "topology": "ring", "seed": 1, "evaluate_every": 0, "plan": Plan(3, 0.1, batch_size=8)}
    loop, other = (simulate(Dropping(), training="loop", block=block, **settings).state.vectors() for block in (1, 3))
    assert loop.tobytes() == other.tobytes()
    vmap, again = (simulate(Dropping(), training="vmap", **settings).state.vectors() for _ in range(2))
    assert vmap.tobytes() == again.tobytes()
    assert np.abs(vmap - loop).max() > 1e-3 < np.abs(vmap - simulate(Dropping(), training="vmap", **settings | {"seed": 2})
                                                     .state.vectors()).max()  # fmt: skip


def test_who_has_the_same_rows_drops_other_units():
    model, rows = model_of(Net(lambda: nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 3)))), rows_of([6, 6])
    rows.index[6:] = rows.index[:6]
    state = model.state(2)
    way_of("vmap", model, rows).train(state, Work(slice(0, 2), np.array([1, 1]), Plan(1, 0.1), Named(0), 0, False))
    assert np.abs(np.diff(state.vectors(), axis=0)).max() > 1e-3


def test_a_loss_that_is_no_mean_over_rows_is_found_out_and_left_to_the_loop():
    model = model_of(Net(mlp, lambda out, y: nn.functional.cross_entropy(out, y, reduction="sum")))
    found = ways.choose(model, rows_of([5, 6, 7]), Plan(1, 0.01), 3, 1.0, "auto")
    assert found.way.name == "per-node loop" and any("differs from the loop" in line for line in found.lines)


def test_one_draw_of_a_node_is_the_same_alone_and_among_all():
    counts = np.array([7, 3, 9, 1])
    start = stream(5, "batches", 2, 0)
    together = orders(start, np.arange(4), counts)
    for node, count in enumerate(counts):
        assert sorted(together[node, :count]) == list(range(count))
        assert Named(5).of(node, 2).permutation(int(count)).tolist() == together[node, :count].tolist()
    places = orders(start, np.arange(4000), np.full(4000, 5))
    assert np.abs(np.bincount(places[:, 0], minlength=5) / 4000 - 0.2).max() < 0.03


# ---- exchanges -------------------------------------------------------------------------------------------------------

LINKS = Links.of(np.array([(0, 1), (1, 2), (2, 3), (3, 4), (4, 5), (0, 5), (1, 4)]), 6)
MASSES = np.array([1.0, 2.0, 0.5, 1.0, 3.0, 1.5])


def some_state(dtype: str = "float32", size: int = 5) -> State:
    state = State.start(Layout.flat(size, dtype), np.zeros(size, dtype), 6, None, ())
    state.shared["x"].copy_(torch.tensor(np.random.default_rng(0).standard_normal((6, size))))
    state.gradient[:] = [0.5, 0.1, 0.3, 0.2, 0.4, 0.6]
    return state


def test_rounds_of_the_ledger_are_the_deployed_functions_node_by_node():
    state = some_state()
    mixer = Mixer(state, MASSES, LINKS)
    mixer.keep_flows()
    terms = Terms(kappa=0.8, leak=0.02, cap=2.0, tau=np.array([0.4, 2.0, 1.0, 9.0, 0.7, 9.0]))
    models, flows = [state.vector(i) for i in range(6)], {}
    corrections: list = [None] * 6
    for at, edges in enumerate(([0, 4, 6], [1, 2, 5], [3], [0, 4, 6])):
        mixer.exchange(Meetings(LINKS.lo[edges], LINKS.hi[edges], 1.0, np.array(edges)), terms)
        for edge in edges:
            lo, hi = int(LINKS.lo[edge]), int(LINKS.hi[edge])
            distance = float(np.sqrt(np.square((models[hi] - models[lo]).astype(np.float64)).sum()))
            clip = mixing.clip_factor(distance, float(min(terms.tau[lo], terms.tau[hi])))
            q = mixing.flow_step(models[lo], models[hi], 1.0, float(MASSES[lo]), float(MASSES[hi]), clip)
            models[lo] = mixing.apply(models[lo], q, float(MASSES[lo]), True)
            models[hi] = mixing.apply(models[hi], q, float(MASSES[hi]), False)
            most = correction.cap_norm(
                max(LINKS.degree[lo], LINKS.degree[hi]), MASSES[lo], state.gradient[lo], MASSES[hi], state.gradient[hi]
            )
            for me, lower in ((lo, True), (hi, False)):
                before = flows.get((me, edge))
                length = correction.booked_norm(before, q, 0.8, 0.98, lower)
                after = correction.book(before, q, 0.8, 0.98, correction.cap_factor(length, float(most)), lower)
                corrections[me] = correction.advance(corrections[me], before, after, float(MASSES[me]))
                flows[me, edge] = after
        np.testing.assert_allclose(state.vectors(), np.stack(models), rtol=3e-7, atol=1e-7, err_msg=f"round {at}")
        held = np.stack([np.zeros(5) if one is None else one for one in corrections])
        np.testing.assert_allclose(state.correction["x"], held, rtol=1e-6, atol=1e-7)
    assert np.abs(MASSES @ state.correction["x"].numpy()).max() < 1e-6


def test_one_round_without_clip_and_cap_is_theirs_bit_for_bit():
    state = some_state()
    mixer = Mixer(state, MASSES, LINKS)
    before = state.vectors()
    mixer.exchange(Meetings(LINKS.lo[[0, 4, 6]], LINKS.hi[[0, 4, 6]]), Terms(kappa=0.8))
    for edge in (0, 4, 6):
        lo, hi = int(LINKS.lo[edge]), int(LINKS.hi[edge])
        q = mixing.flow_step(before[lo], before[hi], 1.0, float(MASSES[lo]), float(MASSES[hi]), 1.0)
        for me, lower in ((lo, True), (hi, False)):
            assert state.vector(me).tobytes() == mixing.apply(before[me], q, float(MASSES[me]), lower).tobytes()
            booked = correction.book(None, q, 0.8, 1.0, 1.0, lower)
            moved = correction.advance(None, None, booked, float(MASSES[me]))
            np.testing.assert_array_equal(state.corrections(me), moved)


def test_the_sparse_product_is_the_same_round_as_the_exchanges_over_every_edge():
    one, other = some_state("float64"), some_state("float64")
    met = meetings.every_edge(LINKS, meetings.metropolis(LINKS, MASSES), np.array([True] * 5 + [False]))
    Mixer(one, MASSES, LINKS).exchange(met, Terms(kappa=0.3))
    Mixer(other, MASSES, LINKS).product(met, Terms(kappa=0.3), lambda do, items: [do(item) for item in items], 4)
    np.testing.assert_allclose(one.vectors(), other.vectors(), atol=1e-14)
    np.testing.assert_allclose(one.correction["x"], other.correction["x"], atol=1e-14)
    assert (one.vector(5) == some_state("float64").vector(5)).all()


def test_the_weighted_mean_stays_and_F_sums_to_zero_also_when_halves_come_late_and_nodes_leave():
    state = some_state("float64")
    mixer, mean = Mixer(state, MASSES, LINKS), MASSES @ state.vectors()
    mixer.keep_flows()
    rng = np.random.default_rng(1)
    for at in range(6):
        mixer.arrive(at)
        met = meetings.matching(LINKS, np.ones(6, dtype=bool), 3, at)
        mixer.exchange(replace(met, late=rng.random(len(met)) < 0.4), Terms(kappa=0.5, leak=0.1), due=at + 2)
    mixer.arrive(99)
    np.testing.assert_allclose(MASSES @ state.vectors(), mean, atol=1e-12)
    assert np.abs(MASSES @ state.correction["x"].numpy()).max() < 1e-12 < np.abs(state.correction["x"].numpy()).max()
    mixer.leave(np.array([False] * 5 + [True]))
    assert np.abs(MASSES[:5] @ state.correction["x"].numpy()[:5]).max() < 1e-12


def test_a_matching_is_maximal_among_those_present_and_another_one_each_round():
    graph = LINKS
    rng, seen = np.random.default_rng(2), set()
    for at in range(30):
        present = rng.random(6) < 0.8
        met = meetings.matching(graph, present, 0, at)
        ends = np.concatenate([met.lo, met.hi])
        assert len(set(ends.tolist())) == len(ends) and present[ends].all()
        free = present.copy()
        free[ends] = False
        assert not (free[graph.lo] & free[graph.hi]).any()
        seen.add(tuple(met.edge.tolist()))
    assert len(seen) > 8


def test_two_exchanges_of_a_round_are_two_matchings_and_masses_stop_at_what_was_said():
    links = Links.of(np.array([(a, b) for a in range(12) for b in range(a)]), 12)
    first, second = (meetings.matching(links, np.ones(12, bool), 0, 0, turn) for turn in (0, 1))
    assert len(first) == len(second) == 6 and set(first.edge) != set(second.edge)
    runs = [simulate("breast-cancer", nodes=12, rounds=4, heaviest=heaviest, seed=1) for heaviest in (1.0, 100.0)]
    assert runs[0].state.vectors().tobytes() != runs[1].state.vectors().tobytes()


def test_ticks_in_batches_are_one_tick_after_the_other():
    batches = list(meetings.ticks(LINKS, np.ones(6, dtype=bool), 4, 0))
    assert sum(len(awake) for awake, _ in batches) == 6
    where: dict[int, list[int]] = {}
    for number, (awake, met) in enumerate(batches):
        ends = np.concatenate([met.lo, met.hi])
        assert len(set(ends.tolist())) == len(ends)
        assert all(node in (lo, hi) for node, lo, hi in zip(awake, met.lo, met.hi, strict=True))
        for end in ends.tolist():
            where.setdefault(end, []).append(number)
    # every tick is in the first batch after the last tick before it that shares a node
    assert all(numbers == sorted(set(numbers)) for numbers in where.values())
    assert {number for numbers in where.values() for number in numbers} == set(range(len(batches)))


# ---- whole runs ------------------------------------------------------------------------------------------------------

ADVERSE = {"dropout": 0.3, "lost": 0.2, "stragglers": 0.4, "delayed": 0.1}


def optimum(task: Toy, nodes: int, seed: int, members=slice(None)) -> np.ndarray:
    """Weighted by mass, in closed form."""
    sites, _ = task.demo_sites(nodes, seed)
    counts = np.array([len(site.train) for site in sites])
    masses = np.minimum(counts, 3 * np.median(counts))
    halves = [np.split(site.train.x, 2, axis=1) for site in sites]
    a, b = (
        np.stack([part.mean(axis=0) for part in parts]) for parts in zip(*((a, a * b) for a, b in halves), strict=True)
    )
    return (masses[members] @ b[members]) / (masses[members] @ a[members])


def error(run, target: np.ndarray) -> float:
    return float(np.abs(run.state.vectors() - target).max())


def test_the_ledger_reaches_the_weighted_optimum_under_idle_nodes_drops_and_unequal_steps_where_gossip_misses():
    settings = {
        "nodes": 8,
        "topology": "complete",
        "rounds": 500,
        "faults": ADVERSE,
        "eta_schedule": "constant",
        "evaluate_every": 0,
    }
    plan, target = Plan(5, 0.1), optimum(Toy(), 8, 2)
    ledger = simulate("toy", method="ledger", plan=plan, seed=2, **settings)
    gossip = simulate("toy", method="gossip", plan=plan, seed=2, **settings)
    assert error(ledger, target) < 1e-9, error(ledger, target)
    assert error(gossip, target) > 0.1


def test_the_survivors_reach_their_own_optimum_when_a_node_has_left_for_good():
    run = simulate("toy", nodes=8, topology="complete", rounds=700, faults={"leave": 0.3}, plan=Plan(5, 0.1),
                   eta_schedule="constant", seed=5, evaluate_every=0)  # fmt: skip
    stay = Weather(Faults(leave=0.3), 8, 700, 5).members(699)
    assert 4 <= stay.sum() < 8
    target = optimum(Toy(), 8, 5, np.flatnonzero(stay))
    assert np.abs(run.state.vectors()[stay] - target).max() < 1e-8


def test_half_applied_exchanges_move_the_weighted_mean_and_lost_ones_do_not():
    def drift(faults):
        state = some_state("float64")
        weather, mixer = Weather(Faults.of(faults), 6, 10, 0), Mixer(state, MASSES, LINKS)
        before = MASSES @ state.vectors()
        for at in range(5):
            mixer.exchange(weather.strike(meetings.matching(LINKS, np.ones(6, dtype=bool), 0, at), at), Terms())
        return np.abs(MASSES @ state.vectors() - before).max()

    assert drift({"lost": 0.5}) < 1e-12
    assert drift({"half": 0.5}) > 1e-3


def test_nobody_who_is_hostile_moves_the_sum_of_models_but_all_who_meet_them_suffer():
    settings = {"nodes": 12, "rounds": 40, "seed": 0, "method": "gossip", "evaluate_every": 0, "bootstrap": 20}
    honest = simulate("breast-cancer", **settings).state.vectors()
    for struck_by in ({"sign_flip": 0.2}, {"noise": 0.2, "noise_scale": 3.0}):
        struck = simulate("breast-cancer", faults=struck_by, **settings).state.vectors()
        assert np.abs(struck - honest).max() > 0.1


@pytest.mark.parametrize("ahead", [1, 100, 2**14])
def test_a_liar_and_whom_it_meets_move_by_what_it_said_each_from_its_own_model(monkeypatch, ahead):
    state, met = some_state("float64"), meetings.matching(LINKS, np.ones(6, dtype=bool), 0, 0)
    start = state.vectors()
    weather = Weather(Faults(sign_flip=0.4, noise=0.4, noise_scale=2.0), 6, 10, 1)
    assert weather.flips.any() and weather.noisy.any() and not weather.hostile.all()
    told = {name: state.flat(state.shared, name).copy() for name in state.shared}
    for name, rows in told.items():
        weather.distort(3)(name, np.arange(6), rows)
    said = np.concatenate(list(told.values()), axis=1)
    np.testing.assert_array_equal(said[weather.flips], -start[weather.flips])
    np.testing.assert_array_equal(said[~weather.hostile], start[~weather.hostile])
    monkeypatch.setattr(faults, "AHEAD", ahead)
    Mixer(state, MASSES, LINKS).exchange(met, Terms(), distort=Weather(weather.faults, 6, 10, 1).distort(3))
    for lo, hi in zip(met.lo, met.hi, strict=True):
        q = mixing.flow_step(said[lo], said[hi], 1.0, MASSES[lo], MASSES[hi], 1.0)
        start[lo], start[hi] = start[lo] + q / MASSES[lo], start[hi] - q / MASSES[hi]
    np.testing.assert_allclose(state.vectors(), start, atol=1e-12)


def test_who_is_there_does_not_depend_on_how_many_rounds_are_drawn_at_once(monkeypatch):
    settings = Faults(dropout=0.3, up_rounds=4.0, down_rounds=2.0, leave=0.3, join=0.3), 20, 30, 5

    def course():
        weather = Weather(*settings)
        return [weather.present(at).tolist() for at in range(30)]

    found = course()
    for ahead in (1, 70):
        monkeypatch.setattr(faults, "AHEAD", ahead)
        assert course() == found
    assert 0.1 < np.mean(found) < 0.6


def test_who_is_absent_stays_as_it_was_also_where_all_are_computed_and_the_absent_put_back(monkeypatch):
    def run(share):
        monkeypatch.setattr(dense, "GATHER_STEPS", share)
        return simulate("breast-cancer", nodes=12, rounds=8, seed=2, bootstrap=16, plan=Plan(1, 0.1), dtype="float64",
                        training="matmul", faults={"dropout": 0.2}, evaluate_every=0).state.vectors()  # fmt: skip

    found, resting = [], dense.Dense._resting
    monkeypatch.setattr(dense.Dense, "_resting", lambda *said: found.append(resting(*said)) or found[-1])
    copied = run(0.0)
    assert not any(map(len, found))
    put_back = run(1.0)
    assert any(map(len, found))
    np.testing.assert_allclose(put_back, copied, atol=1e-12)


@pytest.mark.parametrize("method", ["gossip", "ledger", "d-psgd", "ledger-edges", "fedavg", "fedprox"])
def test_every_method_is_the_same_in_every_way_with_any_threads_and_blocks(method):
    settings = {"nodes": 8, "topology": "random-regular:4", "rounds": 5, "faults": {"dropout": 0.3, "stragglers": 0.3}, "seed": 3,
                    "method": method, "plan": Plan(4, 0.1, batch_size=16), "dtype": "float64", "evaluate_every": 0}  # fmt: skip
    reference = simulate("breast-cancer", training="loop", threads=1, **settings).state.vectors()
    for other in ({"training": "matmul", "threads": 2, "block": 3}, {"training": "vmap", "threads": 2, "block": 2}):
        np.testing.assert_allclose(simulate("breast-cancer", **other, **settings).state.vectors(), reference, atol=1e-9)


def test_one_seed_is_one_run_and_another_seed_another():
    runs = [simulate("digits", nodes=6, rounds=4, faults={"dropout": 0.2}, seed=seed) for seed in (1, 1, 2)]
    assert runs[0].state.vectors().tobytes() == runs[1].state.vectors().tobytes()
    assert str(runs[0].rows()) == str(runs[1].rows()) != str(runs[2].rows())


@pytest.mark.parametrize("training", ["matmul", "loop"])
def test_an_interrupted_run_goes_on_from_its_checkpoint_as_if_nothing_had_happened(tmp_path, training):
    settings = {
        "nodes": 6, "topology": "ring", "rounds": 12, "seed": 1, "training": training, "bootstrap": 12, "evaluate_every": 5,
        "method": Method("own", theta=0.25, leak=0.02, cap=2.0, clip=2.0), "plan": Plan(2, 0.1, momentum=0.5),
        "faults": {"up_rounds": 4, "down_rounds": 2, "delayed": 0.4, "delay_rounds": 3},
    }  # fmt: skip
    whole = simulate("breast-cancer", **settings)

    def stop(record):
        if record.round == 6:
            raise KeyboardInterrupt

    file = tmp_path / "run.safetensors"
    partial = simulate("breast-cancer", checkpoint=file, progress=stop, **settings)
    assert partial.done == 7 and not partial.is_whole and "interrupted" in str(partial)
    assert partial.last.round == 6 and len(partial.scores) == 6  # judged where it was stopped
    resumed = simulate("breast-cancer", checkpoint=file, **settings)
    assert resumed.is_whole and str(resumed.rows()) == str(whole.rows())
    assert resumed.state.vectors().tobytes() == whole.state.vectors().tobytes()
    with pytest.raises(Misuse, match="other settings"):
        simulate("breast-cancer", checkpoint=file, **{**settings, "seed": 2})
    with pytest.raises(Misuse, match="other settings"):
        simulate("breast-cancer", checkpoint=file, masses="equal", **settings)


@pytest.mark.parametrize("bootstrap", [None, 16])
def test_a_size_that_no_memory_holds_is_refused_with_the_estimate(bootstrap):
    with pytest.raises(Misuse, match=r"10,000,000,000 nodes need about [\d,.]+ GiB"):
        simulate("breast-cancer", nodes=10**10, bootstrap=bootstrap)


def test_the_estimate_knows_the_flows_of_leavers_and_the_second_layout_of_a_linear_models_rows():
    settings = {"nodes": 400, "bootstrap": 16, "rounds": 1, "evaluate_every": 0, "topology": "random-regular:6"}
    settings |= {"plan": Plan(1, 0.1), "training": "matmul"}
    made: list[int] = []

    def noted(nodes: int, needed: int) -> None:
        made.append(needed)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(door, "require_memory", noted)
        stays, goes = simulate("breast-cancer", **settings), simulate("breast-cancer", faults={"leave": 0.1}, **settings)
        late = Outages.none(400, leaves=np.where(np.arange(400) < 3, 5.0, np.inf))
        simulate("breast-cancer", outages=late, **settings)
    _, without, _, chance, _, known = made
    flows = 1200 * stays.state.layout.n_parameters * 4
    assert chance - without == known - without == flows
    rows = 400 * 16 * 30 * 4
    assert without >= goes.state.nbytes + 2 * rows


def test_faults_that_mean_nothing_to_a_method_are_in_the_notes():
    settings = {"nodes": 4, "rounds": 1, "topology": "ring", "evaluate_every": 0, "faults": {"half": 0.1, "delayed": 0.2}}
    for method, said in (("fedavg", ("no effect", "no effect")), ("push-sum", ("no effect", "as lost")), ("gossip", ())):
        run = simulate("breast-cancer", method=method, **settings)
        notes = [note for note in run.notes if note.startswith(("half", "delayed"))]
        assert len(notes) == len(said) and all(part in note for part, note in zip(said, notes, strict=True))


def test_a_bare_torch_module_is_refused_as_no_task():
    with pytest.raises(Misuse, match=r"a Linear is no task: .*gossipfl\.Task"):
        simulate(torch.nn.Linear(3, 1))


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"nodes": 5000}, "bootstrap=16"),
        ({"method": "magic"}, "ledger"),
        ({"faults": {"droput": 0.1}}, "dropout"),
        ({"faults": {"dropout": 2.0}}, r"\[0, 1\]"),
        ({"rounds": 0}, "rounds"),
        ({"mode": "ticks", "method": "d-psgd"}, "pairs"),
        ({"exchanges": 0}, "exchanges"),
        ({"exchanges": 2, "method": "fedavg"}, "one exchange a round"),
        ({"exchanges": 2, "method": "k-gt"}, "one exchange a round"),
    ],
)
def test_what_does_not_fit_together_is_refused_with_a_remedy(settings, says):
    with pytest.raises(Misuse, match=says):
        simulate("breast-cancer", **settings)


def test_a_run_can_be_printed_and_framed():
    run = simulate("breast-cancer", nodes=6, rounds=10, release=3, mode="ticks", seed=0, topology="ring")
    text = str(run)
    assert "6 nodes" in text and "batched matmul" in text and run.last.round == 9
    assert run.last.worst <= run.last.p5 <= run.last.median and run.records[-1].eta == 0
    assert run.bytes == run.exchanges * 2 * 31 * 4
    for library, frame in (("pandas", run.to_pandas), ("polars", run.to_polars)):
        try:
            __import__(library)
        except ImportError:
            with pytest.raises(Misuse, match=f"pip install {library}"):
                frame()
        else:
            assert len(frame()) == 10


def test_who_comes_late_begins_at_the_others_models_and_who_stays_away_stands_still():
    run = simulate("breast-cancer", nodes=10, bootstrap=20, rounds=30, faults={"join": 0.4}, seed=1, evaluate_every=0)
    present = [record.present for record in run.records]
    assert present[0] < 10 and present[-1] == 10 and present == sorted(present)


def test_the_page_runs_as_it_is_printed(capsys):
    page = (Path(__file__).parents[1] / "docs" / "simulate-rounds.md").read_text()
    code = page.split("```python\n")[1].split("```")[0]
    exec(compile(code, "simulate-rounds.md", "exec"), {})
    assert "the worst hospital's AUC: 0.9" in capsys.readouterr().out
