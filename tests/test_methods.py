"""Methods on quadratics: where each comes to rest is known in closed form, and that is where it comes to rest.

Node i holds f_i(x) = a_i (x - b_i)^2 / 2, coordinate by coordinate; K_i local steps of rate eta leave r_i = (1 - eta a_i)^K_i
of its distance from b_i.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from gossipfl import simulate
from gossipfl.errors import Misuse
from gossipfl.learning.compression import payload_size
from gossipfl.learning.parameters import Layout
from gossipfl.learning.training import Plan
from gossipfl.simulator import baselines
from gossipfl.simulator.vectorized.faults import Faults, Weather
from gossipfl.simulator.vectorized.meetings import Links, Meetings, every_edge, matching, metropolis
from gossipfl.simulator.vectorized.methods import METHODS, Method, method_of
from gossipfl.simulator.vectorized.mixing import Mixer, Terms
from gossipfl.simulator.vectorized.posts import contraction
from gossipfl.simulator.vectorized.push import Push, edges_of
from gossipfl.simulator.vectorized.replicas import Replicas
from gossipfl.simulator.vectorized.state import State
from gossipfl.tasks import load
from gossipfl.tasks.toy import Toy
from gossipfl.topology import graph, schedule

NODES, ETA, SEED = 8, 0.1, 2
SPREAD = "random-regular:5"
"""Sparse, and D2 can take it."""
SLOW = {"stragglers": 0.5, "slowness": 0.3}
"""Half of the nodes take a third of the steps."""


def quadratics(nodes: int = NODES) -> tuple[np.ndarray, np.ndarray]:
    """(a, b), each (N, d)."""
    sites, _ = Toy().demo_sites(nodes, SEED)
    halves = [np.split(site.train.x, 2, axis=1) for site in sites]
    a = np.stack([one.mean(axis=0) for one, _ in halves])
    return a, np.stack([(one * two).mean(axis=0) for one, two in halves]) / a


def steps_of(faults: dict, steps: int, rounds: int) -> np.ndarray:
    return Weather(Faults.of(faults), NODES, rounds, SEED).steps(steps)


def ran(method, rounds: int, steps: int = 5, faults=None, **more):
    settings = {"topology": "complete", "eta_schedule": "constant", "masses": "equal", "evaluate_every": 0, "seed": SEED}
    settings |= {"nodes": NODES, "rounds": rounds, "method": method, "plan": Plan(steps, ETA), "faults": faults, **more}
    return simulate("toy", **settings)


def weighted(share: np.ndarray) -> np.ndarray:
    """The minimum of the objective in which node i and coordinate k count share[i, k] beside a."""
    _, b = quadratics()
    return (share * b).sum(axis=0) / share.sum(axis=0)


def apart(run, target: np.ndarray) -> float:
    return float(np.abs(run.state.vectors() - target).max())


# ---- with a server -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("faults", [{}, SLOW])
def test_fedavg_rests_where_its_local_steps_say_not_at_the_optimum(faults):
    a, _ = quadratics()
    moved = 1 - (1 - ETA * a) ** steps_of(faults, 5, 200)[:, None]
    run = ran("fedavg", 200, faults=faults)
    assert apart(run, weighted(moved)) < 1e-12
    assert apart(run, weighted(a)) > 0.05


def test_fedavg_with_one_step_each_is_gradient_descent():
    a, _ = quadratics()
    masses = np.arange(1.0, 9.0)
    assert apart(ran("fedavg", 800, steps=1, masses=list(masses)), weighted(masses[:, None] * a)) < 1e-9
    assert apart(ran("fedavg-uniform", 800, steps=1, masses=list(masses)), weighted(a)) < 1e-9


def test_fednova_takes_the_bias_of_unequal_steps_away_to_first_order_only():
    """At rest sum_i r_i' (b_i - z) = 0 with r_i' = moved_i / K_i: the optimum as eta -> 0, and only then."""
    a, _ = quadratics()
    steps = steps_of(SLOW, 5, 150)[:, None]
    run = ran("fednova", 150, faults=SLOW)
    assert apart(run, weighted((1 - (1 - ETA * a) ** steps) / steps)) < 1e-11
    nova, plain = apart(run, weighted(a)), apart(ran("fedavg", 150, faults=SLOW), weighted(a))
    assert 0.01 < nova < plain / 3
    finer = ran("fednova", 600, faults=SLOW, plan=Plan(5, ETA / 4))
    assert apart(finer, weighted(a)) < nova / 3


def test_fednova_knows_how_far_proximal_steps_go():
    a, _ = quadratics()
    steps, shrunk, mu = steps_of(SLOW, 5, 200)[:, None], 1 - ETA * (quadratics()[0] + 0.5), 0.5
    moved = ETA * a * (1 - shrunk**steps) / (1 - shrunk)
    run = ran(Method("own", combine="server", post="fednova", proximal=mu), 200, faults=SLOW)
    assert apart(run, weighted(moved / ((1 - (1 - ETA * mu) ** steps) / (ETA * mu)))) < 1e-10
    with pytest.raises(Misuse, match="momentum"):
        simulate("breast-cancer", nodes=4, rounds=1, method="fednova", plan=Plan(2, 0.1, momentum=0.9))


def test_scaffold_is_exact_with_unequal_steps_masses_and_who_is_away():
    a, _ = quadratics()
    masses = np.arange(1.0, 9.0)
    run = ran("scaffold", 500, faults={**SLOW, "dropout": 0.3, "lost": 0.1}, masses=list(masses))
    assert apart(run, weighted(masses[:, None] * a)) < 1e-10
    assert run.bytes == 2 * run.exchanges * 64


def test_fedadam_is_the_published_recursion_on_the_mean_displacement():
    a, b = quadratics()
    z, u, v = np.zeros(8), np.zeros(8), np.full(8, 1e-6)
    for _ in range(30):
        moved = ((1 - ETA * a) ** 5 * (z - b) + b - z).mean(axis=0)
        u, v = 0.9 * u + 0.1 * moved, 0.99 * v + 0.01 * moved**2
        z = z + 0.03 * u / (np.sqrt(v) + 1e-3)
    assert apart(ran("fedadam", 30), z) < 1e-12


def test_who_is_away_takes_the_servers_model_before_it_trains_again():
    run = ran("fedavg", 3, faults={"dropout": 0.6})
    a, b = quadratics()
    weather, model = Weather(Faults(dropout=0.6), NODES, 3, SEED), np.zeros(8)
    for at in range(3):
        there = weather.present(at)
        model = (b + (1 - ETA * a) ** 5 * (model - b))[there].mean(axis=0)
    assert apart(run, model) < 1e-12


def test_a_server_asks_its_share_of_those_who_are_there_and_counts_its_line_both_ways():
    run = ran(Method("fedavg", combine="server", participation=0.25), 6, faults=SLOW)
    assert [record.present for record in run.records] == [2] * 6
    size = 8 * 8
    assert {record.bytes for record in run.records} == {2 * size} and run.server_bytes == 2 * run.bytes
    assert run.sent is not None and run.stepped is not None
    assert ((run.sent > 0) == (run.stepped > 0)).all() and run.sent.sum() == run.bytes
    held = run.stepped > 0
    assert (run.stepped[held] == np.broadcast_to(steps_of(SLOW, 5, 6), held.shape)[held]).all()
    assert run.steps == run.stepped.sum()


# ---- without -------------------------------------------------------------------------------------------------------------


def test_d_psgd_rests_where_mixing_and_gradients_balance():
    """x = W (x - eta a (x - b)), so (I - W + eta W A) x = eta W A b, a linear system a coordinate."""
    a, b = quadratics()
    links = Links.of(graph("ring", NODES).edges, NODES)
    mixing = np.eye(NODES) - laplacian(links, metropolis(links, np.ones(NODES)) / 2)
    run = ran("d-psgd", 800, steps=1, topology="ring")
    for k in range(8):
        pull = ETA * mixing @ np.diag(a[:, k])
        rest = np.linalg.solve(np.eye(NODES) - mixing + pull, pull @ b[:, k])
        np.testing.assert_allclose(run.state.vectors()[:, k], rest, atol=1e-10)


def laplacian(links: Links, theta: np.ndarray) -> np.ndarray:
    matrix = np.zeros((links.nodes, links.nodes))
    for lo, hi, weight in zip(links.lo, links.hi, theta, strict=True):
        matrix[[lo, hi], [hi, lo]] -= weight
        matrix[[lo, hi], [lo, hi]] += weight
    return matrix


@pytest.mark.parametrize(("method", "lazy"), [("d2", 1.0), ("d2-lazy", 0.5)])
def test_d2_is_the_published_recursion_and_reaches_the_optimum(method, lazy):
    """x' = W (2 x - x_before - eta (grad - grad_before))."""
    a, b = quadratics()
    links = Links.of(graph(SPREAD, NODES, SEED).edges, NODES)
    mixing = np.eye(NODES) - lazy * laplacian(links, metropolis(links, np.ones(NODES)) / 2)
    before = np.zeros((NODES, 8))
    now = mixing @ (before - ETA * a * (before - b))
    for _ in range(19):
        now, before = mixing @ (2 * now - before - ETA * a * (now - before)), now
    np.testing.assert_allclose(ran(method, 20, steps=1, topology=SPREAD).state.vectors(), now, atol=1e-12)
    assert apart(ran(method, 600, steps=1, topology=SPREAD, faults={"dropout": 0.3}), weighted(a)) < 1e-9


def test_d2_refuses_a_graph_whose_eigenvalue_it_cannot_take_and_says_the_way_out():
    with pytest.raises(Misuse, match=r"least is -0\.333; take d2-lazy"):
        ran("d2", 1, steps=1, topology="ring")
    assert apart(ran("d2-lazy", 800, steps=1, topology="ring"), weighted(quadratics()[0])) < 1e-9


def test_k_gt_is_the_published_recursion_and_exact_with_unequal_steps_and_who_is_away():
    a, b = quadratics()
    links = Links.of(graph("ring", NODES).edges, NODES)
    mixing = np.eye(NODES) - laplacian(links, metropolis(links, np.ones(NODES)) / 2)
    x, c = np.zeros((NODES, 8)), np.zeros((NODES, 8))
    for _ in range(10):
        y = x
        for _ in range(5):
            y = y - ETA * (a * (y - b) + c)
        z = (x - y) / (5 * ETA)
        c, x = c - z + mixing @ z, mixing @ (x - 5 * ETA * z)
    np.testing.assert_allclose(ran("k-gt", 10, topology="ring").state.vectors(), x, atol=1e-12)
    masses = np.arange(1.0, 9.0)
    run = ran("k-gt", 1500, faults={**SLOW, "dropout": 0.3, "lost": 0.1}, topology="ring", masses=list(masses),
              plan=Plan(4, 0.05))  # fmt: skip
    assert apart(run, weighted(masses[:, None] * a)) < 1e-6
    assert np.abs(masses @ run.state.correction["x"].numpy()).max() < 1e-10


def test_quasi_global_momentum_is_the_published_recursion_and_faster_than_none():
    a, b = quadratics()
    links = Links.of(graph("ring", NODES).edges, NODES)
    mixing = np.eye(NODES) - laplacian(links, metropolis(links, np.ones(NODES)) / 2)
    x, m = np.zeros((NODES, 8)), np.zeros((NODES, 8))
    for _ in range(12):
        after = mixing @ (x - ETA * (a * (x - b) + 0.9 * m))
        m, x = 0.9 * m + 0.1 * (x - after) / ETA, after
    np.testing.assert_allclose(ran("qgm", 12, steps=1, topology="ring").state.vectors(), x, atol=1e-12)
    rest = weighted(a)
    slow, fast = (ran(name, 25, steps=1, topology="complete", plan=Plan(1, 0.02)) for name in ("d-psgd", "qgm"))
    assert apart(fast, rest) < apart(slow, rest) / 1.5


def test_noloco_without_momentum_and_full_pull_is_gossip_and_its_default_settles():
    same = Method("own", post="noloco", momentum=0.0, outer_step=1.0, pull=1.0)
    one, other = ran(same, 8, topology="ring"), ran("gossip", 8, topology="ring")
    np.testing.assert_allclose(one.state.vectors(), other.state.vectors(), atol=1e-12)
    assert one.bytes == 2 * other.bytes
    method = METHODS["noloco"]
    assert method.pull == method.outer_step == 0.7 and method.momentum == 0.5  # as in its authors' program
    settled = ran("noloco", 300, plan=Plan(1, 0.02))
    assert apart(settled, weighted(quadratics()[0])) < 0.5 and METHODS["noloco"].is_experimental


def mass_of(push: Push) -> tuple[np.ndarray, float]:
    return push.sums["x"].sum(axis=0) + push.owed["x"].sum(axis=0), push.weight.sum() + push.weight_owed.sum()


@pytest.mark.parametrize("topology", ["ring", "one-peer-exponential", "base:2"])
def test_push_sum_reaches_the_exact_weighted_mean_though_half_of_all_is_lost_and_a_third_away(topology):
    masses, rng = np.arange(1.0, 9.0), np.random.default_rng(0)
    state = State.start(Layout.flat(3, "float64"), np.zeros(3), NODES, None, ())
    state.shared["x"].copy_(torch.tensor(rng.standard_normal((NODES, 3))))
    target = masses @ state.vectors() / masses.sum()
    links = Links.of(graph(topology, NODES).edges, NODES) if topology == "ring" else None
    push = Push(state, masses, edges_of(links, schedule(topology, NODES), NODES))
    whole = mass_of(push)
    for at in range(1500):
        push.round(at, rng.random(NODES) < 0.7, 0.5, SEED)
    np.testing.assert_allclose(state.vectors(), np.broadcast_to(target, (NODES, 3)), atol=1e-10)
    for one, other in zip(mass_of(push), whole, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-12)
    assert push.weight.min() > 1e-6  # naive weights lose a share of themselves each round: 10^-100 by now


def test_push_sum_trains_towards_the_weighted_optimum_and_needs_links_that_stay():
    masses, a = np.arange(1.0, 9.0), quadratics()[0]
    run = ran("push-sum", 1200, steps=1, topology="ring", masses=list(masses), faults={"lost": 0.2}, plan=Plan(1, 0.05),
              eta_schedule="cosine")  # fmt: skip
    assert apart(run, weighted(masses[:, None] * a)) < 0.05
    with pytest.raises(Misuse, match="links that stay"):
        ran("push-sum", 1, topology="epidemic-oracle:2")


def test_an_unstable_outer_momentum_is_refused_with_how_fast_it_would_diverge_and_does_diverge():
    with pytest.raises(Misuse, match=r"momentum 0\.9 and pull 1\.0 each outer step multiplies .* by 1\.21"):
        ran(Method("own", post="noloco", momentum=0.9, pull=1.0), 3)
    rng = np.random.default_rng(0)
    for alpha, pull in ((0.5, 0.5), (0.9, 1.0)):
        x, v = rng.standard_normal((2000, 4)), np.zeros((2000, 4))
        spreads = []
        for _ in range(40):
            pairs = rng.permutation(2000).reshape(2, 1000)
            v = alpha * v
            for one, other in (pairs, pairs[::-1]):
                v[one] -= pull * (x[one] - x[other]) / 2
            x = x + v
            spreads.append(np.square(x - x.mean(axis=0)).sum())
        left = (spreads[39] / spreads[19]) ** (1 / 20)
        assert left == pytest.approx(contraction(alpha, pull), rel=0.05)


def test_a_correction_on_a_directed_schedule_is_refused_for_what_it_would_break():
    for method in ("ledger", "k-gt"):
        with pytest.raises(Misuse, match="directed; take push-sum"):
            ran(method, 1, topology="one-peer-exponential")


@pytest.mark.parametrize("method", ["epidemic", "epidemic-local"])
def test_epidemic_learning_draws_its_neighbours_anew_and_needs_no_graph(method):
    run = ran(Method("own", combine="edges", neighbours=2, is_local=METHODS[method].is_local), 40, topology="ring")
    assert run.sent is not None and (run.sent == 2 * 64).all()
    b = quadratics()[1]
    assert b.min() < run.state.vectors().min() and run.state.vectors().max() < b.max()


def test_local_steps_alone_end_at_ones_own_optimum_and_cost_no_byte():
    run = ran("local", 60)
    assert apart(run, quadratics()[1]) < 1e-4 and run.bytes == 0 and run.steps == 60 * 5 * NODES


def test_ad_psgd_wakes_one_node_after_the_other():
    run = ran("ad-psgd", 5, topology="ring")
    assert run.sent is not None and run.sent.sum() == run.exchanges * 2 * 64
    assert run.stepped is not None and run.stepped.sum() == run.exchanges * 5


# ---- compressed -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("codec", ["bf16", "int8", "int4", "topk:0.25", "sign:0.25"])
@pytest.mark.parametrize("method", ["ledger", "ledger-edges"])
def test_compressed_exchanges_keep_the_sum_and_bring_models_together(codec, method):
    """Nobody trains: from different models to their weighted mean, though an eighth of the coordinates is sent at a time."""
    masses = np.arange(1.0, 9.0)
    spread = ran("local", 20).state.vectors()
    engine = begun(Method("own", combine=METHODS[method].combine), codec, masses, spread)
    before = masses @ spread
    for at in range(400):
        engine.exchange(engine_meetings(engine, METHODS[method].combine, at), Terms())
    np.testing.assert_allclose(masses @ engine.state.vectors(), before, rtol=1e-9)
    assert np.abs(engine.state.vectors() - before / masses.sum()).max() < 1e-6 * np.abs(spread).max()


def begun(method: Method, codec: str, masses: np.ndarray, models: np.ndarray) -> Mixer:
    state = State.start(Layout.flat(8, "float64"), np.zeros(8), NODES, None, ())
    links = Links.of(graph(SPREAD, NODES, SEED).edges, NODES)
    mixer = Mixer(state, masses, links, replicas=Replicas(codec, state, links))
    state.shared["x"].copy_(torch.tensor(models))
    return mixer


def engine_meetings(mixer: Mixer, combine: str, at: int) -> Meetings:
    assert mixer.links is not None
    everybody = np.ones(NODES, dtype=bool)
    if combine == "edges":
        return every_edge(mixer.links, metropolis(mixer.links, mixer.masses), everybody)
    return matching(mixer.links, everybody, SEED, at)


@pytest.mark.parametrize("codec", ["int8", "int4", "topk:0.25", "sign:0.25"])
def test_the_ledger_reaches_the_optimum_through_a_codec_and_counts_its_bytes(codec):
    masses, a = np.arange(1.0, 9.0), quadratics()[0]
    run = ran("ledger", 900, topology=SPREAD, faults={"dropout": 0.3, "lost": 0.1}, masses=list(masses), compression=codec)
    assert apart(run, weighted(masses[:, None] * a)) < 1e-4  # with topk:0.25 after 3,000 rounds 2e-15
    assert run.bytes == 2 * run.exchanges * payload_size(codec, 8, 0, 8)


def test_models_that_only_mix_may_be_written_in_more_bits_and_come_nearer_for_it():
    settings = {"topology": SPREAD, "faults": {"dropout": 0.3}, "masses": list(np.arange(1.0, 9.0)), "release": 40}
    alike, finer = (
        ran("ledger", 100, compression="sign:0.25", release_compression=codec, **settings) for codec in ("", "int8")
    )
    before, after = (sum(record.exchanges for record in finer.records[part]) for part in (slice(60), slice(60, None)))
    assert finer.bytes == 2 * (before * payload_size("sign:0.25", 8, 0, 8) + after * payload_size("int8", 8, 0, 8))
    spread = [np.ptp(run.state.vectors(), axis=0).max() for run in (alike, finer)]
    assert spread[1] < spread[0] / 10
    sums = [np.arange(1.0, 9.0) @ run.state.vectors() for run in (alike, finer)]
    np.testing.assert_allclose(*sums, rtol=1e-9)


@pytest.mark.parametrize(
    ("method", "settings", "says"),
    [("ledger", {"release_compression": "int8"}, "give `compression`"), ("fedavg", {"compression": "int8", "release_compression":
      "int4"}, "without a server"), ("ledger", {"compression": "int8", "release_compression": "none"}, "use a codec")],
)  # fmt: skip
def test_a_codec_of_the_release_is_refused_where_no_link_remembers_what_came_before(method, settings, says):
    with pytest.raises(Misuse, match=says):
        ran(method, 3, release=1, **settings)


@pytest.mark.parametrize(("exchanges", "momentum", "is_told"), [(1, 0.95, True), (6, 0.95, False), (1, 0.9, False)])
def test_it_is_told_where_a_long_momentum_may_run_away_for_little_is_sent(exchanges, momentum, is_told):
    run = simulate("breast-cancer", nodes=NODES, topology=SPREAD, rounds=1, compression="topk:0.05", exchanges=exchanges,
                   plan=Plan(2, 0.01, momentum=momentum), evaluate_every=0)  # fmt: skip
    assert any("may run away" in note for note in run.notes) == is_told


def test_uploads_to_a_server_may_be_compressed_and_nothing_is_forgotten():
    a, size = quadratics()[0], payload_size("topk:0.25", 8, 0, 8)
    run = ran("fedavg", 600, steps=1, faults={"dropout": 0.2}, compression="topk:0.25", eta_schedule="cosine")
    assert apart(run, weighted(a)) < 0.05
    assert run.bytes == run.exchanges * size and run.server_bytes == run.exchanges * (size + 64)
    assert apart(ran("fednova", 200, steps=1, compression="int8"), ran("fednova", 200, steps=1).state.vectors()) < 1e-3


@pytest.mark.parametrize("method", ["d-psgd", "qgm"])
def test_methods_over_all_edges_lose_nothing_by_int8(method):
    plain, small = (ran(method, 60, topology=SPREAD, compression=codec) for codec in ("none", "int8"))
    assert apart(small, plain.state.vectors()) < 1e-2 * np.abs(plain.state.vectors()).max() and small.bytes < plain.bytes


@pytest.mark.parametrize("method", ["ledger", "scaffold", "k-gt"])
def test_methods_without_bias_come_to_the_centralized_model_of_the_same_objective(method):
    task = load("breast-cancer")
    sites, test = task.demo_sites(5, 3)
    target = baselines.centralized(task, sites, seed=3).vector
    settings = {"nodes": 5, "sites": sites, "test": test, "rounds": 150, "seed": 3, "masses": [len(site.train) for site in sites]}
    settings |= {"plan": Plan(5, 1.0, l2=task.l2), "eta_schedule": "constant", "evaluate_every": 0, "dtype": "float64"}
    found = simulate(task, method=method, topology="complete", **settings).state.vectors()
    assert np.abs(found - target).max() < 5e-4
    biased = simulate(task, method="fedavg", **settings).state.vectors()
    assert np.abs(biased - target).max() > 0.02


def test_a_compressed_run_goes_on_from_its_checkpoint(tmp_path):
    def stop(record):
        if record.round == 4:
            raise KeyboardInterrupt

    for method in ("ledger", "fedavg"):
        finer = {"release": 2, "release_compression": "int4"} if method == "ledger" else {}
        settings = {"topology": SPREAD, "compression": "topk:0.25", **finer}
        whole, file = ran(method, 9, **settings), tmp_path / f"{method}.safetensors"
        ran(method, 9, checkpoint=file, progress=stop, **settings)
        assert ran(method, 9, checkpoint=file, **settings).state.vectors().tobytes() == whole.state.vectors().tobytes()


@pytest.mark.parametrize(
    ("method", "codec", "says"),
    [("scaffold", "int8", "second vector"), ("k-gt", "int8", "second vector"), ("noloco", "int8", "second vector"),
     ("push-sum", "int8", "running sums"), ("ledger", "zip", "topk:0.1"), ("epidemic", "int8", "links")],
)  # fmt: skip
def test_compression_is_refused_with_the_reason_where_no_link_remembers_what_is_sent(method, codec, says):
    with pytest.raises(Misuse, match=says):
        ran(method, 1, compression=codec)


@pytest.mark.parametrize(("given", "says"), [("fedawg", "did you mean 'fedavg'"), ("centralized", "simulator.baselines")])
def test_an_unknown_method_is_refused_with_the_nearest_and_a_reference_with_where_it_is(given, says):
    with pytest.raises(Misuse, match=says):
        method_of(given)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_says_where_it_comes_from_and_learns_something(name):
    method = METHODS[name]
    topology = SPREAD
    run = ran(method, 30, steps=1 if method.theta == 1 else 5, topology=topology, faults={"dropout": 0.2, "lost": 0.1})
    a, b = quadratics()
    loss = lambda x: float((a * (x - b) ** 2).mean())
    assert method.source and loss(run.state.vectors().mean(axis=0)) < loss(np.zeros(8))


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if method.post != "plain" or name == "push-sum"])
def test_what_a_method_remembers_is_in_its_checkpoint(name, tmp_path):
    def stop(record):
        if record.round == 4:
            raise KeyboardInterrupt

    settings = {"faults": {"dropout": 0.3}, "topology": SPREAD}
    whole, file = ran(name, 9, **settings), tmp_path / "run.safetensors"
    ran(name, 9, checkpoint=file, progress=stop, **settings)
    resumed = ran(name, 9, checkpoint=file, **settings)
    assert resumed.state.vectors().tobytes() == whole.state.vectors().tobytes()
    assert (resumed.sent == whole.sent).all() and (resumed.stepped == whole.stepped).all()
