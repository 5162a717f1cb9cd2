"""What a scenario expects, asked of what was: one verdict a line, with the figure that decided it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from gossipfl.simulator.results import share_of, worst
from gossipfl.simulator.run import Happening, Life, Run

if TYPE_CHECKING:
    from gossipfl.simulator.scenario import Expect


NOBODY: Final = "no honest node stayed to the end"
"""Of whom nothing can be said, and nothing has held."""


@dataclass(frozen=True)
class Judged:
    """One expectation: what was asked, what was found."""

    asked: str
    found: str
    holds: bool


def judge(expect: Expect, run: Run) -> list[Judged]:
    """Every expectation that the file states, in its order."""
    return list(_judge(expect, run))


def _judge(expect: Expect, run: Run) -> Iterator[Judged]:
    stay = [life for life in run.honest if not life.left]
    if expect.finished:
        late = [
            f"{life.name} ({life.stage}, local round {life.local_rounds})" for life in stay if life.stage != "finished"
        ]
        last = max((life.finished_at() for life in stay), default=math.inf)
        found = f"not finished: {', '.join(late)}" if late else f"the last after {run.when(last)}" if stay else NOBODY
        yield Judged("every node finishes the study", found, bool(stay) and not late)
    if expect.consensus_below is not None:
        d = run.consensus_distance
        yield Judged(f"consensus distance below {expect.consensus_below:g}", f"{d:.2g}", d < expect.consensus_below)
    if expect.quality_share is not None:
        yield _quality(expect.quality_share, run)
    if expect.exchanged_within_s is not None:
        yield _recovered(expect.exchanged_within_s, run, stay)
    if expect.others_wait_at_most_s is not None:
        yield _others(expect.others_wait_at_most_s, run)
    if expect.returns_within_s is not None:
        yield _returned(expect.returns_within_s, run)
    if expect.kib_per_node_hour is not None:
        most = max(run.lives, key=lambda life: life.sent)
        rate = most.sent / 1024 / (run.virtual_seconds / 3600)
        asked = f"no node sends more than {expect.kib_per_node_hour:g} KiB an hour"
        yield Judged(asked, f"{most.name}: {rate:.0f}", rate <= expect.kib_per_node_hour)
    if expect.exchanges is not None:
        made = {life.name: len(life.exchanges) for life in stay}
        yield _each(f"{expect.exchanges} exchanges a node", made, expect.exchanges)
    if expect.local_rounds is not None:
        made = {life.name: life.local_rounds for life in stay if life.role == "trainer"}
        yield _each(f"{expect.local_rounds} local rounds a node", made, expect.local_rounds)
    for kind, least in expect.happened.items():
        if kind in run.meaningless:
            continue
        often = run.faults.get(kind, 0)
        yield Judged(f"{kind} happens at least {times(least)}", times(often), often >= least)
    if expect.nothing_violated and set(run.invariants) - run.unseen:
        watched = {name: verdict for name, verdict in run.invariants.items() if name not in run.unseen}
        bad = [name for name, verdict in watched.items() if verdict != "held"]
        words = [f"{name}: {run.first_violations.get(name, run.invariants[name])}" for name in bad]
        found = "; ".join(words) or f"{len(watched)} watched {'in every round judged' if run.round_s else 'after every event'}"
        yield Judged("no law is violated", found, not bad)


def _each(asked: str, made: Mapping[str, int], least: int) -> Judged:
    few = min(made, key=lambda name: made[name], default="")
    return Judged(asked, f"{few} made {made[few]}" if few else NOBODY, bool(few) and made[few] >= least)


def _quality(least: float, run: Run) -> Judged:
    values = run.of(run.metric)
    asked = f"worst node at {100 * least:g} % of centralized ({run.metric})"
    known = [value for value in values.values() if math.isfinite(value)]
    missing = [life.name for life in run.honest if life.name not in values and not life.left]
    if missing or not known:
        return Judged(asked, f"no model of {', '.join(missing) or 'anybody'} that could be judged", False)
    share = share_of(worst(known, run.metric), run.centralized[run.metric], run.metric)
    return Judged(asked, f"{100 * share:.2f} %", share >= least)


def _recovered(within_s: float, run: Run, stay: list[Life]) -> Judged:
    asked = f"exchanges again within {run.lasts(within_s)} after the last fault"
    if run.healed_s + within_s > run.virtual_seconds:
        return Judged(asked, f"the last fault ended at {run.when(run.healed_s)}: too late to judge; raise hours", False)
    first = {life.name: wait(life, run.healed_s) for life in stay if life.finished_at() > run.healed_s}
    slow = max(first, key=lambda name: first[name], default="")
    if not stay:
        return Judged(asked, NOBODY, False)
    if not slow:
        return Judged(asked, f"all had finished before it was over, at {run.when(run.healed_s)}", True)
    return Judged(asked, f"the last, {slow}, after {run.lasts(first[slow])}", first[slow] <= within_s)


def _others(most_s: float, run: Run) -> Judged:
    longest, who = 0.0, ""
    for happening in run.planned():
        for life in others(run, happening):
            found = longest_wait(life, happening, run.virtual_seconds)
            if found > longest:
                longest, who = found, life.name
    asked = f"nobody else waits more than {run.lasts(most_s)} for an exchange"
    if not run.planned():
        return Judged(asked, "no fault of [[at]] has happened", False)
    return Judged(asked, f"{who or 'nobody'}: {run.lasts(longest)}", longest <= most_s)


def _returned(within_s: float, run: Run) -> Judged:
    asked = f"who was struck exchanges again within {run.lasts(within_s)}"
    slowest, who, judged = 0.0, "", 0
    for happening in run.planned():
        for name in happening.nodes:
            life = run.life(name)
            if happening.kind in ("leave", "hostile") or life.hostile or life.finished_at() <= happening.end_s:
                continue
            judged += 1
            found = wait(life, happening.end_s)
            if found > slowest:
                slowest, who = found, name
    if not judged:
        return Judged(asked, "no fault of [[at]] has struck a node that was not finished", False)
    return Judged(asked, f"{who}: {run.lasts(slowest)}", slowest <= within_s)


# ---- measures, which the telling uses, too ---------------------------------------------------------------------------


def others(run: Run, happening: Happening) -> list[Life]:
    """The honest nodes that a fault does not concern; nobody, where it concerns all."""
    concerned = set(happening.nodes)
    if not concerned:
        return []
    return [life for life in run.honest if life.name not in concerned]


def wait(life: Life, since_s: float) -> float:
    """Seconds until its next exchange; infinity if none came."""
    return next((at - since_s for at in life.exchanges if at >= since_s), math.inf)


def longest_wait(life: Life, happening: Happening, end_s: float) -> float:
    """The longest time without an exchange that reaches into the fault, while it was up and not finished."""
    longest = 0.0
    for begin, end in life.gaps(end_s):
        own = any(span.begin_s < end and span.end_s > begin for span in life.spans)
        if begin < happening.end_s and end > happening.begin_s and not own:
            longest = max(longest, end - begin)
    return longest


def times(count: int) -> str:
    """How often.

    >>> times(1), times(7)
    ('once', '7 times')
    """
    return "once" if count == 1 else f"{count} times"
