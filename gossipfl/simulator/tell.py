"""A run in plain words: what happened to whom, what the others did meanwhile, and how it went on. For report and terminal."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from gossipfl.simulator.expect import NOBODY, longest_wait, others, wait
from gossipfl.simulator.run import Happening, Run

if TYPE_CHECKING:
    from gossipfl.simulator.scenario import At

WORDS: Final = {
    "cut": "Every connection of {who} was cut.",
    "refuse": "{Who} could not be dialled for {long}.",
    "refused": "A dial of {who} was refused.",
    "stall": "The connections of {who} carried nothing for {long}.",
    "half-open": "The connections of {who} died and nobody was told.",
    "drip": "The connections of {who} became a trickle for {long}.",
    "one-way": "Nothing that {who} sent arrived for {long}; what was sent to them did.",
    "partition": "{Who} and the others could not reach each other for {long}.",
    "crash": "{Who} crashed and was down for {long}.",
    "crash-saving": "{Who} was killed in the middle of saving, and was down for {long}.",
    "restart-storm": "{Who} crashed again and again.",
    "blackout": "The power failed at every node at once.",
    "pause": "The process of {who} stood still for {long}.",
    "straggler": "{Who} computed many times slower for {long}.",
    "churn": "{Who} was off for {long}.",
    "late": "{Who} joined after {long}.",
    "leave": "The operator of {who} ordered it to leave.",
    "clock-jump": "The clock of {who} jumped by {detail}.",
    "clock-skew": "The clock of {who} was wrong by {detail}.",
    "clock-drift": "The clock of {who} ran fast by {detail}.",
    "disk-full": "The disk of {who} was full for {long}.",
    "io-error": "The disk of {who} answered with an error.",
    "bit-rot": "A bit flipped in what {who} had stored.",
    "duplicate": "{Who} said its last message again.",
    "hostile": "{Who} lied over valid sessions.",
    "state-lost": "The operator of {who} moved its state folder away, and it began anew.",
    "exception": "The core of {who} failed: {detail}.",
}

BETWEEN: Final = {
    "cut": "The connection of {a} and {b} was cut.",
    "stall": "The connection of {a} and {b} carried nothing for {long}.",
    "half-open": "The connection of {a} and {b} died and neither was told.",
    "drip": "The connection of {a} and {b} became a trickle for {long}.",
    "one-way": "Of the two ways between {a} and {b} one was closed for {long}.",
    "duplicate": "{a} said its last message to {b} again.",
    "hostile": "{a} lied to {b}: it sent {detail}.",
}
"""What by chance goes wrong between two nodes."""

SHAPES: Final = {
    "halves": "The network fell into two halves, which did not reach each other for {long}.",
    "ring": "Each node reached only its two neighbours by name for {long}.",
}
"""Partitions that leave nobody alone."""

LIES: Final = {
    "malformed": "bytes that are no message",
    "oversized": "something enormous",
    "nonfinite": "values that are no numbers",
    "stale": "what was long done, or leaned on what never was",
    "replayed": "its last message again",
    "wrong-recipient": "what was meant for another",
    "equivocating": "two different proposals under one number",
    "refusing": "nothing but a refusal of the next proposal",
}


@dataclass(frozen=True)
class Told:
    """One fault at a stated time, told."""

    at: str
    what: str
    then: Sequence[str]


def told(run: Run, plan: Sequence[At]) -> list[Told]:
    """Every [[at]] of the scenario that has happened, in the order of time."""
    return [
        Told(run.when(one.begin_s), plan[one.planned or 0].says or in_words(run, one), aftermath(run, one))
        for one in run.planned()
    ]


def in_words(run: Run, one: Happening) -> str:
    said = {"long": run.lasts(one.end_s - one.begin_s), "detail": LIES.get(one.detail, one.detail)}
    if one.kind in BETWEEN and len(one.nodes) == 2 and one.planned is None:
        return BETWEEN[one.kind].format(a=one.nodes[0], b=one.nodes[1], **said)
    if one.kind == "partition" and one.detail in SHAPES:
        return SHAPES[one.detail].format(**said)
    who = joined(one.nodes)
    return WORDS.get(one.kind, one.kind + " at {who}.").format(who=who, Who=who, **said)


def joined(names: Sequence[str]) -> str:
    if not names or len(names) > 6:
        return f"{len(names) or 'no'} nodes"
    return " and ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else names[0]


def aftermath(run: Run, one: Happening) -> list[str]:
    """What the others did while it lasted, and how who was struck went on."""
    if one.missed:
        lacked = "nothing was saved" if one.kind == "crash-saving" else "no connection was open"
        return [f"It struck nothing: {lacked} at that time."]
    said = []
    rest = [life for life in others(run, one) if life.finished_at() > one.begin_s]
    if rest:
        made = sum(one.begin_s <= at <= one.end_s for life in rest for at in life.exchanges)
        waits = {life.name: longest_wait(life, one, run.virtual_seconds) for life in rest}
        slow = max(waits, key=lambda name: waits[name])
        during = f"made their part of {made or 'no'} exchanges while it lasted" if one.end_s > one.begin_s else "went on"
        all_there = len(rest) == len(others(run, one))
        who = f"The other {len(rest)}" if all_there else f"The others that had not finished ({len(rest)})"
        said.append(f"{who} {during}; none of them waited longer than {run.lasts(waits[slow])} for an exchange.")
    struck = [run.life(name) for name in one.nodes]
    back = {life.name: wait(life, one.end_s) for life in struck if one.end_s < life.finished_at() and not life.hostile}
    if back and one.begin_s < one.end_s >= run.virtual_seconds:
        said.append("It was not over at the end.")
    elif back and one.kind != "leave":
        slow = max(back, key=lambda name: back[name])
        if math.isinf(back[slow]):
            said.append(f"{slow} never made an exchange again.")
        elif len(back) == 1:
            said.append(f"{slow} made its next exchange {run.lasts(back[slow])} after it was over.")
        else:
            said.append(f"The last of them to exchange again was {slow}, {run.lasts(back[slow])} after it was over.")
    return said


def outcome(run: Run) -> list[str]:
    """The end, in two or three sentences."""
    if not run.is_whole:
        return [f"Interrupted at {run.when(run.virtual_seconds)}: what follows is as far as it came."]
    stay = [life for life in run.honest if not life.left]
    done = [life for life in stay if life.stage == "finished"]
    if not stay:
        said = [f"{NOBODY[0].upper()}{NOBODY[1:]}."]
    elif len(done) == len(stay):
        last = max(life.finished_at() for life in done)
        when = run.when(last) + ("" if run.round_s else " of virtual time")
        is_all = run.count in (None, len(run.lives))
        nodes = f"{len(done)} {'nodes' if len(run.honest) == len(run.lives) else 'honest nodes'}"
        who = nodes if is_all else f"{nodes} that are listed, of {run.count:,},"
        said = [f"All {who} finished the study, the last at {when}."]
    else:
        late = [f"{life.name} ({life.stage})" for life in stay if life.stage != "finished"]
        said = [f"{len(done)} of {len(stay)} nodes finished the study; not {joined(late)}."]
    if run.invariants:
        bad = [name for name, verdict in run.invariants.items() if verdict == "violated"]
        doubt = [name for name, verdict in run.invariants.items() if verdict == "unknown" and name not in run.unseen]
        if bad:
            said.append(f"Violated: {', '.join(bad)}.")
        elif doubt:
            said.append(f"Nothing was seen to be lost or doubled; not known: {', '.join(doubt)}.")
        elif run.round_s:
            said.append(f"Held, of what rounds can show: {', '.join(sorted(set(run.invariants) - run.unseen)) or 'nothing'}.")
        else:
            said.append("No exchange was lost, doubled or half applied: every law that was watched has held.")
    return said
