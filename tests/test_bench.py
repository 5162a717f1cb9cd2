"""`gossipfl bench`: what is asked, one run, the summary over splits, going on where it stopped, and the command."""

from __future__ import annotations

import csv
import json
import math
import re
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gossipfl import cli
from gossipfl.cli.bench import _closing
from gossipfl.errors import ConfigError, Exit, Misuse
from gossipfl.learning.comparing import corrected_t
from gossipfl.learning.evaluation import auc_interval
from gossipfl.simulator import pool, results
from gossipfl.simulator.bench import folder as folders
from gossipfl.simulator.bench import one, tune
from gossipfl.simulator.bench.compare import compare
from gossipfl.simulator.bench.document import between, document, inserted, keep
from gossipfl.simulator.bench.network import NETWORKS, Batch, Network, Work, passed
from gossipfl.simulator.bench.page import _decades, page
from gossipfl.simulator.bench.question import Ask, Question
from gossipfl.simulator.bench.recipe import changed, recipe
from gossipfl.simulator.bench.summary import summarise
from gossipfl.simulator.bench.verdict import sentences, verdict
from gossipfl.simulator.pictures import Axes
from gossipfl.simulator.vectorized.faults import Faults, Weather
from gossipfl.simulator.vectorized.methods import Method
from gossipfl.tasks import load
from gossipfl.tasks.fitting import predict
from gossipfl.topology import graph

ROOT = Path(__file__).parents[1]


def asked(*methods: str, **settings: Any) -> Question:
    return Question.of(
        "breast-cancer", methods, **{"nodes": 6, "topology": "ring", "rounds": 10, "seeds": 2, **settings}
    )


def made_line(method: str, seed: int, worst: float | None, whole: float = 0.9, **more: Any) -> dict[str, Any]:
    """A line as `one.run` makes it, of given figures."""
    score = dict.fromkeys(("worst", "low", "median", "mean", "best"), worst)
    return {
        "key": f"{method} {seed}", "task": "t", "method": method, "seed": seed, "is_slow": False, "metric": "auc", "nodes": 2,
        "train_rows": 70, "test_rows": 30, "centralized": whole, "diverged": 0 if worst is not None else 1, "score": score,
        "brier": 0.1, "calibration": 0.0, "log_loss": 0.3, "against_centralized": None, "cpu_s": 1.0, "curve": [],
        "sites": {"score": [], "own_log_loss": []}, **more,
    }  # fmt: skip


# ---- what is asked ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("task", "method", "topology", "named"),
    [
        ("storke", "gossip", None, ("'stroke'", "breast-cancer", "icu")),
        ("stroke", "fedavgg", None, ("'fedavg'", "ledger", "centralized")),
        ("stroke", "gossip", "random-regullar:6", ("'random-regular'", "small-world", "ring")),
    ],
)
def test_an_unknown_name_is_answered_with_the_nearest_and_the_list(
    task: str, method: str, topology: str | None, named: tuple[str, ...]
) -> None:
    with pytest.raises(ConfigError) as refused:
        Question.of(task, [method], topology=topology)
    assert all(name in str(refused.value) for name in named)


def test_numbers_that_do_not_fit_are_refused_before_a_run() -> None:
    for wrong in ({"dropout": 1.0}, {"seeds": 0}, {"nodes": 1}):
        with pytest.raises(Misuse):
            asked("gossip", **wrong)
    with pytest.raises(ConfigError, match="whole number"):
        asked("gossip", nodes=5, topology="random-regular:3")


def test_no_method_and_an_unknown_compression_are_refused_before_a_run() -> None:
    with pytest.raises(ConfigError, match="such as ledger"):
        asked()
    with pytest.raises(ConfigError, match=r"unknown compression 'int9' -- use none, .*topk"):
        asked("gossip+int9")


@pytest.mark.parametrize("method", ["centralized+int8", "local+topk:0.1"])
def test_a_reference_sends_nothing_that_could_be_compressed(method: str) -> None:
    with pytest.raises(ConfigError, match="a reference sends nothing"):
        Question.of("breast-cancer", [method, "ledger"])


def test_a_run_has_another_key_where_its_result_may_differ_and_only_there() -> None:
    one_run = Ask("gossip", 0)
    base = asked("gossip").key(one_run)
    assert base == asked("ledger", "gossip", seeds=4).key(one_run)
    others = [asked("gossip", rounds=11), asked("gossip", dropout=0.2), asked("gossip", topology="complete")]
    keys = {base, *(other.key(one_run) for other in others), asked("gossip").key(Ask("gossip", 1))}
    assert len(keys | {asked("gossip").key(Ask("gossip", 0, is_slow=True))}) == 6
    alone = Ask("local", 0)
    assert asked("local").key(alone) == asked("local", rounds=11).key(alone)


def test_every_method_gets_the_same_plan_and_a_change_is_of_plan_or_method() -> None:
    task = load("breast-cancer")
    assert recipe(task, "fedavg", 50).plan == recipe(task, "ledger", 50).plan
    tried = changed(recipe(task, "ledger", 50), eta=0.5, theta=0.1)
    assert (tried.plan.eta, tried.method.theta) == (0.5, 0.1)


def test_scarce_rounds_get_more_exchanges_and_a_release_as_long_as_the_graph_asks_for() -> None:
    task, ring, dense = load("breast-cancer"), graph("ring", 64), graph("complete", 64)
    short, long = (recipe(task, "ledger", rounds, dense) for rounds in (50, 400))
    assert (short.exchanges, long.exchanges) == (6, 1) and short.method.theta > long.method.theta == 0.25
    assert 0 < long.release < recipe(task, "ledger", 400, ring).release == 40
    assert recipe(task, "fedavg", 50).exchanges == 1 and recipe(task, "fedavg", 50).release == 0
    own = Method("own", theta=0.1)
    assert recipe(task, own, 50, dense).method == own


def test_a_net_keeps_its_rate_and_takes_minibatches_where_a_linear_model_takes_all_rows() -> None:
    net, linear = recipe(load("digits"), "ledger", 300), recipe(load("icu"), "ledger", 300)
    assert (net.eta_schedule, net.plan.batch_size) == ("linear-tail", 32)
    assert (linear.eta_schedule, linear.plan.batch_size) == ("cosine", None)


# ---- one run ---------------------------------------------------------------------------------------------------------


def test_centralized_is_itself_and_a_site_alone_has_no_rounds() -> None:
    question = asked("centralized", "local")
    whole, alone = (one.run(question, Ask(method, 0)) for method in question.methods)
    assert whole["score"]["worst"] == whole["centralized"] == whole["score"]["mean"]
    assert whole["against_centralized"] == {"difference": 0.0, "low": 0.0, "high": 0.0}
    assert len(alone["sites"]["score"]) == 6 and "rounds" not in alone
    assert alone["score"]["worst"] == min(alone["sites"]["score"])


def test_who_has_no_held_out_rows_of_its_own_has_no_figure_of_them() -> None:
    question = asked("local", "gossip", seeds=1)  # one test set judges all
    lines = [one.run(question, Ask(method, 0)) for method in question.methods]
    assert [line["sites"]["own_log_loss"] for line in lines] == [[None] * 6] * 2
    said = sentences(verdict(summarise(lines, question.methods)))
    assert any("on all held-out rows" in line for line in said) and not any("own few" in line for line in said)


def test_a_run_is_the_same_again_and_its_curve_ends_where_it_is_judged() -> None:
    question = asked("gossip")
    first, second = (one.run(question, Ask("gossip", 0)) for _ in range(2))
    assert first | {"cpu_s": 0} == second | {"cpu_s": 0}
    last = first["curve"][-1]
    assert last["round"] == 10 and math.isclose(last["worst"], first["score"]["worst"])
    assert last["bytes_per_node"] == first["bytes_per_node"]


def test_a_model_that_runs_away_is_counted_as_diverged_and_has_no_figure() -> None:
    wild = replace(asked("gossip"), changes={Ask("gossip", 0): {"eta": 1e4}})
    line = one.run(wild, Ask("gossip", 0))
    assert line["diverged"] > 0 and line["score"]["mean"] is None
    row = summarise([line, made_line("gossip", 1, 0.9)], ["gossip"]).rows[0]
    assert row.diverged == 1 and math.isnan(row.score["mean"]) and math.isnan(row.share.middle)


# ---- time ------------------------------------------------------------------------------------------------------------


def work(combine: str, steps: list[list[int]], sent: list[list[int]], *met: Batch, message: int = 1000, **more: Any) -> Work:
    counts = [np.array(given, dtype=np.int64) for given in (steps, sent)]
    rows = np.full(len(steps[0]), 10, dtype=np.int64)
    return Work(combine, *counts, message, message // 4, rows, len(rows) - 1, met=met, **more)


def pair(at: int, *pairs: tuple[int, int], sender: list[int] | None = None) -> Batch:
    lo, hi = np.array(pairs, dtype=np.int64).T
    return Batch(at, lo, hi, None if sender is None else np.array(sender))


LINE = Network("test", "for a sum by hand", 0.01, 8, 8, 1e6)
"""A millisecond a thousand bytes."""
STEP = 6 * 250 * 10 / 1e6
"""A local step."""
EXCHANGE = 3 * 0.01 + 0.002


def test_an_exchange_lasts_three_crossings_and_its_bytes_and_who_has_no_partner_does_not_wait() -> None:
    once = work("pairs", [[2, 2, 2], [0, 0, 1]], [[1000, 1000, 0], [0, 0, 0]], pair(0, (0, 1)))
    assert passed(LINE, once).tolist() == pytest.approx([2 * STEP + EXCHANGE] * 2)  # the third: 3 STEP, and that is less
    alone = work("pairs", [[2, 2, 9], [0, 0, 9]], [[1000, 1000, 0], [0, 0, 0]], pair(0, (0, 1)))
    assert passed(LINE, alone)[1] == pytest.approx(18 * STEP)


def test_a_delay_reaches_only_those_who_meet_it_one_after_the_other() -> None:
    steps, nothing = [[9, 0, 0, 0], [0] * 4, [0] * 4], [[0] * 4] * 3
    late = work("pairs", steps, nothing, pair(0, (0, 1), (2, 3)), pair(1, (2, 3)), pair(2, (1, 2)))
    until = passed(LINE, late)
    assert until[0] == until[1] == pytest.approx(9 * STEP + EXCHANGE) and until[2] == pytest.approx(until[0] + EXCHANGE)
    early = work("pairs", steps, nothing, pair(2, (2, 3)))
    assert passed(LINE, early)[2] == pytest.approx(9 * STEP)  # nobody met the late one: it still ends last


def test_over_all_edges_at_once_the_crossings_overlap_and_the_lines_do_not() -> None:
    star = work("edges", [[0, 0, 5]], [[2000, 1000, 1000]], pair(0, (0, 1), (0, 2)))
    assert passed(LINE, star)[0] == pytest.approx(5 * STEP + 0.03 + 0.002)  # the late leaf is later than the centre's two lines
    even = work("edges", [[0, 0, 0]], [[2000, 1000, 1000]], pair(0, (0, 1), (0, 2)))
    assert passed(LINE, even)[0] == pytest.approx(0.03 + 2 * 0.002)


def test_who_only_sends_waits_for_nobody() -> None:
    one_way = work("edges", [[0, 9]], [[1000, 0]], pair(0, (0, 1), sender=[0]))
    assert passed(LINE, one_way)[0] == pytest.approx(9 * STEP)
    back = work("edges", [[0, 9], [0, 0]], [[0, 1000]] * 2, pair(0, (0, 1), sender=[1]), pair(1, (0, 1), sender=[0]))
    assert passed(LINE, back)[1] == pytest.approx(9 * STEP + 2 * EXCHANGE)


def test_a_round_through_a_server_waits_for_its_line_where_that_is_the_narrowest() -> None:
    lasted = passed(LINE, work("server", [[2, 2]], [[1000, 1000]]))
    assert lasted[0] == pytest.approx(2 * 0.01 + 2 * 2 * 0.002 + 2 * STEP)
    wide = passed(replace(LINE, server_mbit_s=1000), work("server", [[2, 2], [2, 0]], [[1000, 1000], [1000, 0]]))
    assert wide.tolist() == pytest.approx([2 * 0.01 + 2 * 0.002 + 2 * STEP, 2 * (2 * 0.01 + 2 * 0.002 + 2 * STEP)])


def test_what_a_server_sends_is_not_compressed_and_lasts_as_long_as_it_is() -> None:
    small = work("server", [[0, 0]], [[10, 10]], message=10, down=100.0)
    assert passed(LINE, small)[0] == pytest.approx(2 * 0.01 + 2 * (0.00101 + 0.002))
    question = asked("fedavg", "fedavg+topk:0.01", rounds=2, seeds=1)
    plain, packed = (one.run(question, Ask(name, 0))["curve"][-1]["seconds"]["narrow server"] for name in question.methods)
    uploads = 2 * 6 * 124 * 8 / 10e6  # of two rounds, six sites, models of 124 bytes: no more can be saved
    assert 0 < plain - packed < uploads


def test_a_slow_site_is_waited_for_by_a_server_and_else_only_by_whom_it_meets() -> None:
    slow = replace(LINE, slow_times=20, server_mbit_s=1000)
    once = passed(replace(slow, slow_times=1), work("server", [[2, 2]], [[1000, 1000]]))[0]
    assert passed(slow, work("server", [[2, 2]], [[1000, 1000]]))[0] == pytest.approx(20 * once)
    assert passed(slow, work("server", [[2, 0]], [[1000, 0]]))[0] == pytest.approx(once)
    away = work("pairs", [[0] * 3] * 30, [[0] * 3] * 30, *(pair(at, (0, 1)) for at in range(29)), pair(29, (1, 2)))
    until = passed(slow, away)
    assert until[28] == pytest.approx(29 * EXCHANGE)
    assert until[29] == pytest.approx(30 * EXCHANGE)  # its exchange had 20 times as long, beside its partner's others
    at_once = work("pairs", [[0] * 3] * 2, [[0] * 3] * 2, pair(0, (1, 2)), pair(1, (0, 1)))
    assert passed(slow, at_once).tolist() == pytest.approx([20 * EXCHANGE, 21 * EXCHANGE])


def test_a_straggler_takes_fewer_steps_in_the_same_time() -> None:
    even = work("pairs", [[10, 10]], [[0, 0]], pair(0, (0, 1)))
    half = work("pairs", [[10, 5]], [[0, 0]], pair(0, (0, 1)), pace=np.array([1.0, 2.0]))
    assert passed(LINE, half)[0] == pytest.approx(passed(LINE, even)[0])
    slower = work("pairs", [[0, 5]], [[0, 0]], pair(0, (0, 1)), pace=np.array([1.0, 2.0]))
    assert passed(LINE, slower)[0] == pytest.approx(10 * STEP + EXCHANGE)


@pytest.mark.parametrize("method", ["gossip", "d-psgd", "push-sum", "epidemic", "epidemic-local", "ad-psgd", "fedavg"])
def test_modelled_time_goes_on_with_every_point_of_a_curve(method: str) -> None:
    question = asked(method, seeds=1, nodes=9, rounds=5, topology="random-regular:4", stragglers=0.3)
    took = [point["seconds"]["usual"] for point in one.run(question, Ask(method, 0))["curve"]]
    assert took[0] > 0 and (np.diff(took) >= 0).all() and took[-1] > took[0]


def test_stragglers_manage_half_of_the_steps_and_are_another_question() -> None:
    question = asked("gossip", stragglers=0.5)
    assert "50% stragglers" in str(question) and question.key(Ask("gossip", 0)) != asked("gossip").key(Ask("gossip", 0))
    sites, test = question.rows.federation(0, None)
    ask = Ask("gossip", 0)
    made = one.simulated(question, ask, question.recipe(ask), question.rows.loaded(), sites, test)
    assert made.stepped is not None
    most, full = made.stepped.max(axis=0), question.recipe(ask).plan.steps
    assert set(most.tolist()) == {full, full // 2}
    with pytest.raises(Misuse, match="stragglers"):
        asked("gossip", stragglers=1.5)


def test_a_compression_is_a_part_of_the_methods_name() -> None:
    plain, small = (one.run(asked(name), Ask(name, 0)) for name in ("gossip", "gossip+int8"))
    assert 0 < small["bytes_per_node"] < plain["bytes_per_node"] and small["exchanges"] == plain["exchanges"]


def test_a_slow_site_takes_part_in_every_twentieth_round() -> None:
    weather = Weather(Faults(slow_sites=(1,), slow_times=20), 3, 40, 0)
    there = np.array([weather.present(at) for at in range(40)])
    assert np.flatnonzero(there[:, 1]).tolist() == [19, 39] and there[:, [0, 2]].all()


def test_a_slow_site_that_is_absent_when_it_is_due_takes_part_in_the_next_round_in_which_it_is_there() -> None:
    weather, plain = (Weather(Faults(dropout=0.5, slow_sites=slow, slow_times=5), 4, 200, 0) for slow in ((2,), ()))
    there, free = (np.array([each.present(at) for at in range(200)]) for each in (weather, plain))
    rounds, due = [], 4
    for at in range(200):
        if at >= due and free[at, 2]:
            rounds, due = [*rounds, at], at + 5
    assert np.flatnonzero(there[:, 2]).tolist() == rounds and (there[:, [0, 1, 3]] == free[:, [0, 1, 3]]).all()


def test_a_slow_site_exchanges_in_every_fifth_turn_and_trains_once_for_each_round_of_its_own() -> None:
    weather = Weather(Faults(slow_sites=(1,), slow_times=5), 3, 12, 0, turns=2)
    turns = [(at, turn) for at in range(12) for turn in range(2) if weather.meets(at, turn)[1]]
    assert turns == [(2, 0), (4, 1), (7, 0), (9, 1)]
    assert [at for at in range(12) if weather.trains(at)[1]] == [2, 7]
    assert [at for at in range(12) if weather.present(at)[1]] == [2, 4, 7, 9]
    assert all(weather.meets(at, 0)[[0, 2]].all() and weather.trains(at)[[0, 2]].all() for at in range(12))


def test_the_worst_but_the_slow_site_has_its_own_time() -> None:
    question = asked("fedavg", "gossip", rounds=40, seeds=1)
    lines = [one.run(question, ask) for ask in question.runs()]
    slow = next(line for line in lines if line["is_slow"])
    assert all(point["others"] >= point["worst"] for point in slow["curve"]) and "others" not in lines[0]["curve"][0]
    fedavg, gossip = summarise(lines, question.methods).rows
    assert fedavg.others_seconds == fedavg.worst_reached.seconds["slow site"]
    assert gossip.others_seconds is not None and gossip.others_seconds <= (gossip.worst_reached.seconds["slow site"] or math.inf)


def test_alone_a_site_has_the_penalty_of_the_pooled_objective() -> None:
    task = load("breast-cancer")
    sites, _ = task.demo_sites(6, 0)
    rows = sum(len(site.train) for site in sites)
    for model, site in zip(one._alone(task, sites), sites, strict=True):
        own = one.baselines.fit(task, site.train, task.l2 * rows / len(site.train))
        assert model.vector.tobytes() == own.vector.tobytes()


def test_alone_of_many_sites_as_many_are_fitted_as_of_a_method_are_judged() -> None:
    task = load("toy")
    sites = [replace(site, train=site.train.rows([0])) for site in task.demo_sites(3, 0)[0]]
    assert len(one._alone(task, sites)) == 3
    assert len(one._alone(task, sites * 400)) == 1000


def test_without_waiting_a_run_has_seconds_of_a_slow_site_in_a_run_of_its_own() -> None:
    question = asked("fedavg", "gossip")
    assert [ask.method for ask in question.runs() if ask.is_slow] == ["gossip", "gossip"]
    named = {ask: set(one.run(question, ask)["curve"][-1]["seconds"]) for ask in question.runs() if not ask.seed}
    everywhere = {network.name for network in NETWORKS}
    assert named[Ask("fedavg", 0)] == everywhere
    assert named[Ask("gossip", 0, True)] == {"slow site"} == everywhere - named[Ask("gossip", 0)]


# ---- over splits -----------------------------------------------------------------------------------------------------


def test_the_interval_over_splits_is_the_corrected_t_of_the_shares() -> None:
    worst = [0.88, 0.89, 0.9]
    found = summarise([made_line("gossip", seed, value) for seed, value in enumerate(worst)], ["gossip"])
    assert found.rows[0].share == corrected_t([value / 0.9 for value in worst], 70, 30)


def test_the_goal_is_reached_where_the_curve_stays_above_it() -> None:
    def curve(*values: float) -> list[dict[str, Any]]:
        return [
            {"round": at + 1, "bytes_per_node": 10.0 * at, "worst": value, "mean": value}
            for at, value in enumerate(values)
        ]

    early = made_line("gossip", 0, 0.9, curve=curve(0.5, 0.9, 0.5, 0.895, 0.9))
    late = made_line("gossip", 1, 0.9, curve=curve(0.5, 0.5, 0.5, 0.5, 0.9))
    never = made_line("gossip", 2, 0.9, curve=curve(0.9, 0.9, 0.9, 0.9, 0.5))
    both = summarise([early, late], ["gossip"]).rows[0].worst_reached
    assert (both.rounds, both.splits) == (4.5, 2)
    some = summarise([early, never], ["gossip"]).rows[0].worst_reached
    assert (some.rounds, some.splits) == (None, 1)
    wild = summarise([early, made_line("gossip", 1, None, curve=curve(0.9, 0.9))], ["gossip"]).rows[0].worst_reached
    assert (wild.rounds, wild.splits) == (None, 1)


def test_over_patients_reaches_from_the_lowest_end_to_the_highest_of_all_splits() -> None:
    ends = [{"difference": 0.0, "low": -0.02, "high": 0.01}, {"difference": 0.0, "low": -0.01, "high": 0.03}]
    lines = [made_line("gossip", seed, 0.9, against_centralized=one) for seed, one in enumerate(ends)]
    assert summarise(lines, ["gossip"]).rows[0].over_patients == (-0.02, 0.03)
    lines[1]["against_centralized"] = None
    assert np.isnan(summarise(lines, ["gossip"]).rows[0].over_patients).all()


def test_the_worst_nodes_auc_has_the_interval_of_delong() -> None:
    question = asked("centralized")
    line = one.run(question, Ask("centralized", 0))
    task, (sites, test) = question.rows.loaded(), question.rows.federation(0, None)
    whole = one.baselines.centralized(task, sites)
    risks = predict(task, whole.layout, whole.vector, whole.normaliser, test.x)
    low, high = auc_interval(test.y, risks)
    assert line["delong"] == {"auc": line["score"]["worst"], "low": low, "high": high}


def test_a_method_without_a_line_for_every_seed_is_named() -> None:
    lines = [made_line("gossip", 0, 0.9), made_line("gossip", 1, 0.9), made_line("ledger", 0, 0.9)]
    assert summarise(lines, ["gossip", "ledger", "fedavg"]).missing == ["ledger", "fedavg"]


def test_a_metric_alone_is_the_one_among_all_metrics() -> None:
    for name in ("breast-cancer", "digits"):
        task = load(name)
        _, test = task.demo_sites(4, 0)
        rng = np.random.default_rng(0)
        scores = rng.uniform(size=len(test)) if name == "breast-cancer" else rng.dirichlet(np.ones(10), len(test))
        assert task.score(test.y, scores) == task.metrics(test.y, scores)[task.metric]


# ---- what is said ----------------------------------------------------------------------------------------------------


def told(gossip: list[float], fedavg: list[float]) -> list[str]:
    lines = [made_line("gossip", seed, value) for seed, value in enumerate(gossip)]
    lines += [made_line("fedavg", seed, value) for seed, value in enumerate(fedavg)]
    return sentences(verdict(summarise(lines, ["fedavg", "gossip"])))


def test_a_difference_is_called_one_only_where_its_interval_is_on_one_side_of_0() -> None:
    base = [0.89, 0.9, 0.91, 0.9, 0.88]
    noise = [0.01, -0.01, 0.0, 0.01, -0.01]
    better = told([one + 0.01 + 0.1 * n for one, n in zip(base, noise, strict=True)], base)
    assert any(line.startswith("+") and line.endswith("better than FedAvg.") for line in better)
    worse = told([one - 0.01 + 0.1 * n for one, n in zip(base, noise, strict=True)], base)
    assert any(line.startswith("-") and line.endswith("worse than FedAvg.") for line in worse)
    alike = told([one + n for one, n in zip(base, noise, strict=True)], base)
    assert any(line.startswith("?") and line.endswith("no difference can be told.") for line in alike)


def test_a_margin_that_is_not_ruled_out_is_open_and_two_splits_decide_nothing() -> None:
    def first(*worst: float) -> str:
        return told(list(worst), [0.9] * len(worst))[0]

    assert first(0.899, 0.9, 0.9).startswith("+") and first(0.85, 0.851, 0.852).startswith("-")
    assert first(0.86, 0.9, 0.93).startswith("?") and first(0.9, 0.9).startswith("?")


def test_what_diverged_or_was_refused_is_named_and_has_no_other_sentence() -> None:
    lines = [made_line("gossip", 0, 0.9), made_line("gossip", 1, None)]
    said = sentences(verdict(summarise(lines, ["gossip"], {"d2": "its graph has an eigenvalue of -.5"})))
    assert len(said) == 2 and "diverged in 1 of 2" in said[0] and "eigenvalue" in said[1]


def test_what_is_refused_in_some_splits_is_said_with_how_many_as_the_table_has_the_others() -> None:
    lines = [made_line("gossip", seed, 0.9) for seed in range(3)] + [made_line("d2", 0, 0.9)]
    found = summarise(lines, ["gossip", "d2"], {"d2": "an eigenvalue of -.5"})
    said = "- d2 was not run in 2 of 3 splits, and its figures are of the others: an eigenvalue of -.5"
    assert sentences(verdict(found))[-1] == said


def test_an_experimental_method_is_marked_wherever_its_figures_stand(capsys: pytest.CaptureFixture[str]) -> None:
    lines = [made_line(method, 0, 0.9, bytes_per_node=1.0, consensus=0.1) for method in ("noloco", "gossip")]
    found = summarise(lines, ["noloco", "gossip"])
    assert [row.as_json()["is_experimental"] for row in found.rows] == [True, False]
    text = page(asked("noloco", "gossip", seeds=1), found, lines, results.manifest(0, ["t"], 0.0) | {"commit": None})
    assert text.count("(experimental)") == 1
    _closing(found)
    marked = [line for line in capsys.readouterr().out.splitlines() if line.endswith("experimental")]
    assert len(marked) == 1 and marked[0].startswith("noloco")


def test_the_page_says_what_tuning_chose() -> None:
    lines = [made_line("gossip", 0, 0.9, bytes_per_node=1.0, consensus=0.1)]
    tuned = replace(asked("gossip", seeds=1), changes={Ask("gossip", 0): {"eta": 0.25, "steps": 20}})
    text = page(tuned, summarise(lines, ["gossip"]), lines, results.manifest(0, ["t"], 0.0) | {"commit": None})
    assert "gossip, seed 0: eta 0.25, steps 20." in text and "chosen on validation rows" in text


def test_what_diverges_only_with_a_slow_site_is_named_and_keeps_its_other_figures() -> None:
    lines = [made_line("gossip", seed, 0.9) for seed in range(2)]
    lines += [made_line("gossip", seed, worst, is_slow=True) for seed, worst in enumerate((0.9, None))]
    found = summarise(lines, ["gossip"])
    row = found.row("gossip")
    assert row is not None and (row.diverged, row.diverged_slow) == (0, 1) and row.share.middle == 1.0
    assert sentences(verdict(found))[-1] == "- gossip diverged in 1 of 2 splits with a slow site: it has no time there."


def test_a_finite_model_that_ran_away_is_averaged_into_no_figure_and_drawn_in_no_curve(tmp_path: Path) -> None:
    curve = [
        {"round": at, "bytes_per_node": 9.0 * at, "worst": 0.9, "mean": 0.9, "seconds": {"usual": 1.0 * at}} for at in (1, 2)
    ]
    sites = {"score": [0.9, None], "own_log_loss": []}
    more: dict[str, Any] = {"curve": curve, "bytes_per_node": 18.0, "consensus": 0.1, "sites": sites}
    lines = [made_line("gossip", seed, worst, **more) for seed, worst in enumerate((0.9, None))]
    lines += [made_line("local", seed, 0.6, sites={"score": [0.6, 0.6], "own_log_loss": []}) for seed in range(2)]
    found = summarise(lines, ["local", "gossip"])
    row = found.row("gossip")
    assert row is not None and row.diverged == 1 and not row.sites
    assert all(np.isnan([row.brier, row.calibration, row.log_loss, row.consensus]))
    text = page(asked("gossip", seeds=2), found, lines, results.manifest(0, ["t"], 0.0) | {"commit": None})
    assert "gossip diverged in 1 of 2 splits" in text and "<polyline" not in text and ">nan" not in text


def test_bytes_are_compared_in_a_sentence_and_none_is_made_of_nothing_sent() -> None:
    def said(mine: float) -> list[str]:
        sent = {"fedavg": 8.0, "gossip": mine}
        lines = [
            made_line(method, 0, 0.9, curve=[{"round": 1, "bytes_per_node": sent[method], "worst": 0.9, "mean": 0.9}])
            for method in ("fedavg", "gossip")
        ]
        return [line[2:] for line in sentences(verdict(summarise(lines, ["fedavg", "gossip"]))) if "with FedAvg to" in line]

    assert said(2.0) == ["gossip: a node sends 4.0 times fewer bytes than with FedAvg to 99%."]
    assert said(16.0) == ["gossip: a node sends 2.0 times as many bytes as with FedAvg to 99%."]
    assert said(0.0) == []


def test_sites_that_gain_are_counted_where_both_models_have_a_figure() -> None:
    federated = made_line("gossip", 0, 0.9, sites={"score": [0.8, 0.9, 0.7], "own_log_loss": [0.5, None, 0.4]})
    alone = made_line("local", 0, 0.5, sites={"score": [0.9, 0.5, 0.6], "own_log_loss": [0.6, 0.1, 0.3]})
    row = summarise([federated, alone], ["local", "gossip"]).row("gossip")
    assert row is not None and [row.sites[name] for name in ("of", "better", "own_of", "own_better")] == [3, 2, 2, 1]
    assert row.sites["own_loss"] == pytest.approx(0.45) == row.sites["own_loss_alone"]


# ---- choosing settings, comparing folders ----------------------------------------------------------------------------


def test_every_method_has_as_many_trials_the_first_of_them_the_recipe_itself() -> None:
    question = asked("local", "fedavg", "ledger", "fedprox", seeds=2)
    made = tune.trials(question, 4)
    assert Counter(trial.ask.method for trial in made) == {"fedavg": 8, "ledger": 8, "fedprox": 8}
    first = [dict(trial.changes) for trial in made if trial.number == 0]
    third = {trial.ask.method: dict(trial.changes) for trial in made if trial.number == 2}
    assert first == [{}] * 6
    assert {(of["eta"], of["steps"]) for of in third.values()} == {(third["fedavg"]["eta"], third["fedavg"]["steps"])}
    assert set(third["ledger"]) - set(third["fedavg"]) == {"theta"} and "proximal" in third["fedprox"]


def test_a_trial_sees_no_test_row(monkeypatch: pytest.MonkeyPatch) -> None:
    question = asked("gossip", seeds=1)
    sites, test = question.rows.federation(0, None)
    seen: list[Any] = []

    def watched(*arguments: Any, **settings: Any) -> Any:
        seen.append(arguments[4:6])
        return one.simulated(*arguments, **settings)

    monkeypatch.setattr(tune, "simulated", watched)
    line = tune.attempt(question, None, tune.trials(question, 1)[0])
    ((trained, judged),) = seen
    rows = {row.tobytes() for site in trained for row in site.train.x} | {row.tobytes() for row in judged.x}
    assert not rows & {row.tobytes() for row in test.x} and len(rows) == len(
        {r.tobytes() for s in sites for r in s.train.x}
    )
    assert 0.5 < line["score"] <= 1


def test_the_best_trial_of_a_split_is_chosen_the_first_of_equals_and_no_diverged_one() -> None:
    def line(seed: int, number: int, score: float | None) -> dict[str, Any]:
        return {
            "method": "gossip",
            "seed": seed,
            "number": number,
            "score": score,
            "metric": "auc",
            "changes": {"eta": number},
        }

    found = tune.chosen([line(0, 1, 0.8), line(0, 2, 0.9), line(0, 3, 0.9), line(0, 4, None), line(1, 1, None)])
    assert found == {Ask("gossip", 0): {"eta": 2}}


def test_two_folders_are_compared_over_the_same_splits(tmp_path: Path) -> None:
    question = asked("gossip", seeds=3)
    for name, gain in (("a", 0.0), ("b", 0.009)):
        lines = [made_line("gossip", seed, 0.88 + 0.001 * seed + gain) for seed in range(3)]
        (tmp_path / name).mkdir()
        found = summarise(lines, ["gossip"])
        folders.write(tmp_path / name, question, found, lines, results.manifest(0, ["test"], 0.0) | {"commit": None})
    made = compare(tmp_path / "a", tmp_path / "b")
    assert made.changes[0].gain.middle == pytest.approx(0.01) and made.changes[0].gain.low == pytest.approx(0.01)
    assert not made.asked and made.only == ([], [])
    with pytest.raises(ConfigError, match="no summary of a benchmark"):
        compare(tmp_path / "a", tmp_path)


def test_an_unfinished_benchmark_is_compared_split_by_split(tmp_path: Path) -> None:
    for name, there in (("a", (0, 1, 2)), ("b", (0, 2))):
        lines = [made_line("fedavg", seed, 0.9) for seed in range(3)]
        lines += [made_line("gossip", seed, 0.8 + 0.05 * seed) for seed in there]
        (tmp_path / name).mkdir()
        found = summarise(lines, ["fedavg", "gossip"])
        folders.write(tmp_path / name, asked("gossip", seeds=3), found, lines, results.manifest(0, ["t"], 0.0) | {"commit": None})
    gossip = compare(tmp_path / "a", tmp_path / "b").changes[1]
    assert gossip.method == "gossip" and gossip.gain.middle == 0.0


def test_a_comparison_names_what_diverged_and_a_folder_that_is_no_benchmark_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, worst in (("a", 0.9), ("b", None)):
        lines = [made_line("gossip", 0, 0.9), made_line("gossip", 1, worst)]
        (tmp_path / name).mkdir()
        found = summarise(lines, ["gossip"])
        folders.write(tmp_path / name, asked("gossip", seeds=2), found, lines, results.manifest(0, ["t"], 0.0) | {"commit": None})
    assert typed("compare", str(tmp_path / "a"), str(tmp_path / "b")) == Exit.OK
    assert "B: DIVERGED in 1" in capsys.readouterr().out
    (tmp_path / "b" / folders.SUMMARY).write_text('{"methods": []}')
    assert typed("compare", str(tmp_path / "a"), str(tmp_path / "b")) == Exit.CONFIG
    assert "it lacks metric, task" in capsys.readouterr().err
    assert typed("document", str(tmp_path / "nowhere")) == Exit.CONFIG == typed("document", str(tmp_path / "a"))
    assert "no benchmark's folder lies in it" in capsys.readouterr().err


def test_a_method_that_diverged_has_its_row_in_the_document(tmp_path: Path) -> None:
    lines = [made_line("gossip", seed, None, consensus=None, bytes_per_node=1.0) for seed in range(2)]
    (tmp_path / "x").mkdir()
    found = summarise(lines, ["gossip"])
    folders.write(tmp_path / "x", asked("gossip"), found, lines, results.manifest(0, ["t"], 0.0) | {"commit": None})
    text = document(tmp_path)
    assert "| gossip | DIVERGED in 2 of 2 splits |" in text and "| gossip | 0 of 2 splits come there | - |" in text


@pytest.mark.parametrize("span", [(4.4, 7.1), (5.0, 7.0), (0.3, 2.2), (2.0, 9.0), (-2.0, 0.4), (6.1, 6.4)])
def test_numbers_below_a_logarithmic_axis_never_run_into_one_another(span: tuple[float, float]) -> None:
    found = re.findall(r'x="([\d.]+)" y="[\d.]+" text-anchor="(\w+)">([^<]+)<', "".join(_decades(Axes(span, (0.9, 1.0), 250))))
    assert found
    ends = sorted((float(x) - 6.8 * len(text) / (1 if anchor == "end" else 2), len(text)) for x, anchor, text in found)
    for (left, count), (right, _) in pairwise(ends):
        assert left + 6.8 * count < right


def test_the_page_of_benchmarks_says_what_the_committed_results_say() -> None:
    results = ROOT / "simulations" / "results"
    page = (ROOT / "docs" / "benchmarks.md").read_text("utf-8")
    command = "gossipfl bench document simulations/results --out docs/benchmarks.md"
    assert between(page) == document(results), f"run: {command}"
    assert inserted(between(page), page) == page
    assert sum(path.stat().st_size for path in results.rglob("*") if path.is_file()) < 1_000_000


def test_what_is_kept_of_a_suite_names_no_folder_of_data(tmp_path: Path) -> None:
    lines = [made_line("gossip", seed, 0.9, consensus=0.0, bytes_per_node=1.0) for seed in range(2)]
    (tmp_path / "suite" / "x").mkdir(parents=True)
    made = results.manifest(0, ["gossipfl", "bench", "x", "--data-dir", "/home/me/rows", "--seeds", "2"], 0.0) | {"commit": None}
    folders.write(tmp_path / "suite" / "x", asked("gossip"), summarise(lines, ["gossip"]), lines, made)
    keep(tmp_path / "suite", tmp_path / "kept")
    kept = json.loads((tmp_path / "kept" / "x" / "manifest.json").read_text())
    assert kept["command"][2:] == ["x", "--data-dir", "DIR", "--seeds", "2"] and "-" not in kept["platform"]


def test_what_people_write_around_the_marks_stays() -> None:
    page = inserted("one", "# By hand\n")
    assert between(page) == "one" and page.startswith("# By hand\n")
    again = inserted("two", page + "after\n")
    assert between(again) == "two" and again.startswith("# By hand\n") and again.endswith("after\n")


# ---- the folder and the command --------------------------------------------------------------------------------------


def test_a_line_that_was_cut_off_is_taken_away_and_a_strange_file_is_refused(tmp_path: Path) -> None:
    pool.append(tmp_path / folders.RUNS, made_line("gossip", 0, 0.9))
    with (tmp_path / folders.RUNS).open("a") as file:
        file.write('{"key": "cut')
    assert list(folders.lines(tmp_path)) == ["gossip 0"]
    assert (tmp_path / folders.RUNS).read_bytes().endswith(b"}\n")
    (tmp_path / folders.RUNS).write_text("round,loss\n")
    with pytest.raises(ConfigError, match="not a line of a benchmark"):
        folders.lines(tmp_path)


def typed(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        cli.main(["bench", *arguments])
    return int(ended.value.code or 0)


def test_the_command_prints_an_object_a_method_and_goes_on_where_it_stopped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "b"
    command = [
        "breast-cancer",
        "--nodes",
        "6",
        "--topology",
        "ring",
        "--rounds",
        "6",
        "--processes",
        "1",
        "--seeds",
        "2",
        "--out",
        str(out),
    ]
    assert typed(*command, "--methods", "centralized,gossip", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert [one["method"] for one in found["methods"]] == ["centralized", "gossip"]
    assert typed(*command, "--methods", "centralized,fedavg,gossip") == 0
    said = capsys.readouterr()
    assert "6 of 8 runs" in said.err and "fedavg" in said.out
    assert len((out / folders.RUNS).read_text().splitlines()) == 8
    with (out / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["method"] for row in rows} == {"centralized", "fedavg", "gossip"}
    written = (out / folders.PAGE).read_text()
    assert not any(outside in written for outside in ("<script", "src=", "href=", "://"))
    assert written.count('<svg viewBox="0 0 760') == 8 and "worst over centralized" in written
    assert np.isfinite([float(row["value"]) for row in rows if row["measure"] == "auc"]).all()


def test_runs_of_another_version_are_not_used_and_the_command_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["toy", "--nodes", "4", "--topology", "complete", "--rounds", "2", "--seeds", "1", "--methods", "gossip"]
    command += ["--processes", "1"]
    assert typed(*command, "--out", str(tmp_path)) == 0
    file = tmp_path / folders.RUNS
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    file.write_text("".join(json.dumps(line | {"version": 1, "key": f"old {line['key']}"}) + "\n" for line in lines))
    capsys.readouterr()
    assert typed(*command, "--out", str(tmp_path)) == 0
    assert "2 runs in" in (said := capsys.readouterr().err) and "another version's" in said
    assert len(file.read_text().splitlines()) == 4


def test_data_that_are_not_there_are_named_with_their_sum_source_and_licence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("GOSSIPFL_DATA", raising=False)
    for more in ([], ["--data-dir", str(tmp_path)]):
        assert typed("heart", "--out", str(tmp_path / "out"), *more) == Exit.CONFIG
        said = capsys.readouterr().err
        assert all(part in said for part in ("processed.va.data", "sha256 e7c93d8d", "UCI", "CC BY 4.0"))


def test_a_number_of_sites_that_the_data_do_not_have_ends_it_before_a_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert typed("breast-cancer", "--nodes", "399", "--topology", "ring", "--out", str(tmp_path / "out")) == Exit.CONFIG
    said = capsys.readouterr().err
    assert "398 rows in 399 sites" in said and "leave --nodes out" in said and not (tmp_path / "out" / folders.RUNS).exists()


def test_a_wrong_name_ends_with_the_code_of_a_configuration(capsys: pytest.CaptureFixture[str]) -> None:
    assert typed("storke") == Exit.CONFIG
    assert "did you mean 'stroke'" in capsys.readouterr().err


@pytest.mark.parametrize("wrong", [("--suite", "standard"), ("--alpha", "-1")])
def test_a_suite_beside_a_dataset_and_a_negative_skew_are_refused_as_usage(
    wrong: tuple[str, ...], tmp_path: Path
) -> None:
    assert typed("breast-cancer", *wrong, "--out", str(tmp_path)) == Exit.USAGE


def test_a_suite_has_its_own_settings_and_drops_none_that_is_given(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert typed("--suite", "standard", "--rounds", "5", "--seeds", "1", "--out", str(tmp_path)) == Exit.USAGE
    said = capsys.readouterr().err
    assert "--rounds" in said and "--seeds" in said and not list(tmp_path.iterdir())
