"""What holds and what does not, in sentences made from the numbers alone: no method has a sentence of its own.

A difference whose interval has 0 in it is called no difference that can be told, whoever it favours.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from gossipfl.amounts import figure, size
from gossipfl.learning.comparing import Interval
from gossipfl.learning.evaluation import label
from gossipfl.simulator.bench.network import NETWORKS
from gossipfl.simulator.bench.summary import GOAL, SLOW, Row, Summary

MARGIN: Final = 0.01
"""A worst node whose interval lies above centralized less this is called as good, for most purposes of a hospital."""


ENOUGH: Final = 3
"""Splits: two may differ by the same by chance, and have an interval without width."""

DEFAULT: Final = "ledger"
"""What a federation runs that has chosen nothing else."""


@dataclass(frozen=True)
class Said:
    """One sentence; `holds` None where the numbers do not decide."""

    holds: bool | None
    text: str


def verdict(found: Summary) -> list[Said]:
    """Sentences on every method without a server, the default first, then on what went wrong."""
    rows = sorted(
        (row for row in found.rows if not row.is_reference and not row.has_server),
        key=lambda row: row.method != DEFAULT,
    )
    said = [one for row in rows for one in _of(row, found)]
    said += [
        Said(
            False,
            f"{row.method} diverged in {row.diverged} of {row.runs} splits: it has no mean, and no figure here is its.",
        )
        for row in found.rows
        if row.diverged
    ]
    said += [
        Said(False, f"{row.method} diverged in {row.diverged_slow} of {row.runs} splits with a slow site: it has no time there.")
        for row in found.rows
        if row.diverged_slow
    ]
    return said + [Said(False, f"{name} was not run{_parts(name, found)}: {why}") for name, why in found.refused.items()]


def _parts(name: str, found: Summary) -> str:
    """In how many splits a method was not run, where it was in others: a graph that is drawn anew may suit it in some."""
    row, all_ = found.row(name), len(found.seeds)
    return "" if row is None else f" in {all_ - row.runs} of {all_} splits, and its figures are of the others"


def _of(row: Row, found: Summary) -> list[Said]:
    if row.diverged:
        return []
    said = [_quality(row), _goal(row)]
    fedavg = found.row("fedavg")
    if fedavg is not None and not fedavg.diverged:
        said += [_beside(row), *_bytes(row, fedavg), *_time(row, fedavg)]
    if row.sites:
        said += _sites(row)
    return said


def _quality(row: Row) -> Said:
    metric = label(row.metric)
    share, gain = row.share, row.difference
    text = f"{row.method}: the worst node has {share.middle:.2%} of centralized"
    if math.isnan(share.low):
        return Said(None, text + "; one split has no interval.")
    text += f" ({share.low:.2%} to {share.high:.2%}; {metric} {figure(gain.middle, signed=True)}, {_span(gain)})"
    low, high = (gain.low, gain.high) if row.sign > 0 else (-gain.high, -gain.low)
    if row.runs < ENOUGH:
        return Said(None, text + f"; fewer than {ENOUGH} splits decide nothing.")
    if low > -MARGIN:
        return Said(True, text + f": less than {MARGIN:g} below it.")
    if high < -MARGIN:
        return Said(False, text + f": more than {MARGIN:g} below it.")
    return Said(None, text + f": {MARGIN:g} below it is not ruled out.")


def _goal(row: Row) -> Said:
    goal = row.worst_reached
    if goal.rounds is None:
        came = f"in {goal.splits} of {row.runs} splits" if goal.splits else "in no split"
        return Said(False, f"{row.method}: the worst node comes to {GOAL:.0%} of centralized, and stays there, {came}.")
    sent = size(goal.bytes_per_node)
    when = f"at {GOAL:.0%} of centralized from round {goal.rounds:g} on"
    return Said(True, f"{row.method}: the worst node is {when}; a node has sent {sent} by then.")


def _beside(row: Row) -> Said:
    gain = row.against_fedavg
    text = f"{row.method}: its worst node less FedAvg's, same absence, is {figure(gain.middle, signed=True)}"
    if math.isnan(gain.low):
        return Said(None, text + "; one split has no interval.")
    text += f" ({_span(gain)}): "
    if row.runs < ENOUGH:
        return Said(None, text + f"fewer than {ENOUGH} splits decide nothing.")
    low, high = (gain.low, gain.high) if row.sign > 0 else (-gain.high, -gain.low)
    if low > 0:
        return Said(True, text + "better than FedAvg.")
    if high < 0:
        return Said(False, text + "worse than FedAvg.")
    return Said(None, text + "no difference can be told.")


def _bytes(row: Row, fedavg: Row) -> list[Said]:
    mine, theirs = row.worst_reached.bytes_per_node, fedavg.worst_reached.bytes_per_node
    if not mine or not theirs:  # not reached, or reached before anybody has sent anything
        return []
    return [Said(mine <= theirs, f"{row.method}: a node sends {_times(mine, theirs)} with FedAvg to {GOAL:.0%}.")]


def _time(row: Row, fedavg: Row) -> list[Said]:
    said = []
    for network in NETWORKS:
        mine, theirs = (one.worst_reached.seconds.get(network.name) for one in (row, fedavg))
        if mine is None and theirs is None:
            continue
        if mine is None or theirs is None:
            first = "FedAvg" if mine is None else row.method
            text = f"only {first} comes to {GOAL:.0%} in every split"
            said.append(Said(mine is not None, f"{row.method}, modelled time, {network.name}: {text}."))
            continue
        text = f"{_span_of(mine)} to {GOAL:.0%}, FedAvg {_span_of(theirs)}"
        said.append(Said(mine <= theirs, f"{row.method}, modelled time, {network.name}: {text}."))
    mine, theirs = row.others_seconds, fedavg.others_seconds
    if mine is not None and theirs is not None:
        text = f"{_span_of(mine)} to {GOAL:.0%}, FedAvg, where all wait, {_span_of(theirs)}"
        said.append(Said(mine <= theirs, f"{row.method}, modelled time, {SLOW}, all but that site: {text}."))
    return said


def _sites(row: Row) -> list[Said]:
    of, better, own_of, own_better = (row.sites[name] for name in ("of", "better", "own_of", "own_better"))
    more = f"on all held-out rows the federated model is better than the hospital's own at {better:.0f} of {of:.0f} hospitals"
    said = [Said(better > 0.5 * of, f"{row.method}: {more} (mean over splits).")]
    if own_of:
        lower = f"on a hospital's own few held-out rows it has the lower log loss at {own_better:.0f} of {own_of:.0f}"
        means = f"mean over hospitals {row.sites['own_loss']:.3f}, the hospitals' own models {row.sites['own_loss_alone']:.3f}"
        said.append(Said(own_better > 0.5 * own_of, f"{row.method}: {lower}; {means}."))
    return said


def _span(given: Interval) -> str:
    return f"{figure(given.low, signed=True)} to {figure(given.high, signed=True)}"


def _times(mine: float, theirs: float) -> str:
    return f"{theirs / mine:.1f} times fewer bytes than" if mine <= theirs else f"{mine / theirs:.1f} times as many bytes as"


def _span_of(seconds: float) -> str:
    return f"{seconds:.2g} s" if seconds < 100 else f"{seconds:.0f} s"


def sentences(said: Sequence[Said]) -> list[str]:
    """As lines of plain text, each with its sign: + holds, - falls short, ? where the numbers do not decide."""
    return [f"{ {True: '+', False: '-', None: '?'}[one.holds] } {one.text}" for one in said]
