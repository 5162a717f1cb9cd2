"""The page that a simulation leaves: what was asked, whether it held, what happened to whom, and pictures over virtual time.

Everything shown comes from a `Run` and its scenario, whichever engine played it. Not here: figures of its own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any, Final

from gossipfl.amounts import size
from gossipfl.learning.evaluation import label
from gossipfl.simulator import tell
from gossipfl.simulator.expect import Judged
from gossipfl.simulator.pictures import COLOURS, LEFT, Axes, power, rendered, steps, ticks
from gossipfl.simulator.results import mean, share_of, worst
from gossipfl.simulator.run import Life, Run

if TYPE_CHECKING:
    from gossipfl.simulator.scenario import Scenario

UP: Final = "#dbe9f4"
EXCHANGE: Final = "#0072b2"
STATES: Final = {"down": "#b3261e", "apart": "#e69f00", "paused": "#cc79a7", "not yet": "#ffffff", "left": "#ffffff"}
WHOLE: Final = "#333333"

NAMES: Final = 104
"""Pixels for the names of nodes."""

NAMED: Final = 48
"""Nodes up to which each has a name and a row of full height in the timeline."""

SPREAD: Final = {"median": "#0072b2", "mean": "#009e73", "p5": "#e69f00", "worst": "#d55e00"}
"""Of curves over nodes, where they have none of their own."""

SOME: Final = 24
"""Nodes of a timeline that shows only some."""

ALIKE: Final = 1e-12
"""A distance below this is what rounding leaves of none: all have one model."""

LISTED: Final = 200
"""Rows of the table of faults; all are in happenings.jsonl."""

MANY: Final = 12
"""Nodes above which curves have one colour."""


def page(run: Run, scenario: Scenario, judged: Sequence[Judged], manifest: Mapping[str, Any]) -> str:
    """The HTML text."""
    from markupsafe import Markup

    values = [value for value in run.of(run.metric).values() if math.isfinite(value)]
    whole = run.centralized.get(run.metric, math.nan)
    low = worst(values, run.metric) if values else math.nan
    kinds = [kind for kind in STATES if any(span.state == kind for life in run.lives for span in life.spans)]
    return rendered(
        "story.html",
        run=run,
        scenario=scenario,
        judged=judged,
        held=all(one.holds for one in judged),
        manifest=manifest,
        name=label(run.metric),
        share=share_of(low, whole, run.metric),
        low=low,
        average=mean(values) if values else math.nan,
        whole=whole,
        told=tell.told(run, scenario.at),
        outcome=tell.outcome(run),
        states=[(kind, STATES[kind]) for kind in kinds],
        up=UP,
        exchange=EXCHANGE,
        many=len(run.lives) > MANY,
        listed=len(listed(run)),
        spread=SPREAD if any(one.spread for one in run.samples) else {},
        timeline=Markup(timeline(run)),
        quality=Markup(quality(run)),
        apart=Markup(apart(run)),
        moved=Markup(moved(run)),
        chance=chance(run),
        stages=stages(run),
        hidden=max(0, sum(one.planned is None for one in run.happenings) - LISTED),
        length=run.lasts,
        down=down,
        size=size,
    )


def stages(run: Run) -> str:
    """Until when the nodes agreed on a normalisation, and when they trained."""
    ends = {
        name: [at for life in run.honest for at, stage in life.stages if stage == name]
        for name in ("training", "release")
    }
    said = (
        [f"statistics until {run.when(max(ends['training']))}"] if ends["training"] and max(ends["training"]) > 10 else []
    )
    if ends["release"]:
        said.append(f"training until {run.when(max(ends['release']))}")
    return ", ".join(said)


def down(life: Life) -> float:
    return math.fsum(span.end_s - span.begin_s for span in life.spans if span.state == "down")


def chance(run: Run) -> list[tuple[str, str]]:
    """(when, what) of what happened by chance, without what is a matter of seconds and in the thousands."""
    found = [one for one in run.happenings if one.planned is None and one.kind != "refused"]
    return [(run.when(one.begin_s), tell.in_words(run, one)) for one in found[:LISTED]]


# ---- pictures --------------------------------------------------------------------------------------------------------


def hours(axes: Axes, run: Run) -> list[str]:
    """Numbered dashed lines where the faults of [[at]] begin."""
    parts = []
    for number, one in enumerate(run.planned(), 1):
        place, top = axes.at(one.begin_s / run.per_unit, axes.y[1])
        _, floor = axes.at(0, axes.y[0])
        parts.append(f'<line class="kill" x1="{place:.1f}" x2="{place:.1f}" y1="{top:.1f}" y2="{floor:.1f}"/>')
        parts.append(f'<text class="killed" x="{place:.1f}" y="{top - 3:.1f}" text-anchor="middle">{number}</text>')
    return parts


def timeline(run: Run) -> str:
    """One row a node: light where it was up, coloured where not, a dark tick for every exchange."""
    lives = listed(run)
    count = len(lives)
    row = 22 if count <= NAMED else max(3, 1000 // count)
    bar = max(2, row - 8) if count <= NAMED else row
    left = NAMES if count <= NAMED else LEFT
    axes = Axes((0, run.virtual_seconds / run.per_unit), (0, count), 54 + row * count, left)
    parts = axes.frame(steps(*axes.x, 8), [], run.unit)
    for at, life in enumerate(lives):
        _, middle = axes.at(0, count - at - 0.5)
        top = middle - bar / 2
        parts.append(_box(axes, *axes.x, top, bar, UP))
        for span in life.spans:
            within = span.begin_s / run.per_unit, span.end_s / run.per_unit
            parts.append(_box(axes, *within, top, bar, STATES[span.state], f"{span.state} "
                              f"{run.when(span.begin_s)} to {run.when(span.end_s)}", 1.2))  # fmt: skip
        places = sorted({round(2 * axes.at(second / run.per_unit, 0)[0]) / 2 for second in life.exchanges})
        marks = "".join(f"M{x:g} {top + bar * 0.25:.1f}v{bar * 0.5:.1f}" for x in places)
        if marks:
            parts.append(f'<path d="{marks}" stroke="{EXCHANGE}" stroke-width="0.7" fill="none"/>')
        if count <= NAMED:
            shown = life.name if len(life.name) <= 15 else life.name[:14] + "…"
            hostile = " killed" if life.hostile else " tick"
            place = f'x="{left - 8}" y="{middle + 4:.1f}" text-anchor="end"'
            parts.append(f'<text class="{hostile.strip()}" {place}>{escape(shown)}</text>')
    return axes.picture([*parts, *hours(axes, run)], f"what every node did over {run.unit}")


def listed(run: Run) -> Sequence[Life]:
    """The nodes of the timeline: all, but of rounds with many of them so many that each has a name, evenly over all."""
    if not run.round_s or len(run.lives) <= NAMED:
        return run.lives
    return [run.lives[at * len(run.lives) // SOME] for at in range(SOME)]


def _box(axes: Axes, begin: float, end: float, top: float, height: float, colour: str, title: str = "",
         least: float = 0.0) -> str:  # fmt: skip
    left, right = axes.at(begin, 0)[0], axes.at(end, 0)[0]
    said = f"<title>{escape(title)}</title>" if title else ""
    size = f'width="{max(least, right - left):.1f}" height="{height:g}"'
    return f'<rect x="{left:.1f}" y="{top:.1f}" {size} fill="{colour}">{said}</rect>'


def quality(run: Run) -> str:
    """The task's metric of every honest node over virtual hours; dashed: centralized."""
    lines = {
        life.name: [(one.at_s / run.per_unit, one.quality[life.name]) for one in run.samples if _known(one.quality, life.name)]
        for life in run.honest
    }
    whole = run.centralized.get(run.metric, math.nan)
    later = [y for line in lines.values() for _, y in line[len(line) // 20 :]] + [whole]
    spread = {name: [(one.at_s / run.per_unit, one.spread[name]) for one in run.samples if _known(one.spread, name)]
              for name in SPREAD}  # fmt: skip
    later += [y for line in spread.values() for _, y in line[len(line) // 20 :]]
    known = [y for y in later if math.isfinite(y)]
    if not known:
        return ""
    room = max((max(known) - min(known)) * 0.08, 1e-3)
    axes = Axes((0, run.virtual_seconds / run.per_unit), (min(known) - room, max(known) + room), 260)
    parts = axes.frame(steps(*axes.x, 8), ticks(*axes.y), run.unit)
    parts.append(axes.line([(0, whole), (axes.x[1], whole)], WHOLE, "6 4"))
    for at, line in enumerate(lines.values()):
        if line:
            parts.append(axes.line(line, COLOURS[at % len(COLOURS)] if len(lines) <= MANY else EXCHANGE))
    parts += [axes.line(line, SPREAD[name]) for name, line in spread.items() if line]
    return axes.picture([*parts, *hours(axes, run)], f"{label(run.metric)} over {run.unit}")


def _known(values: Mapping[str, float], name: str) -> bool:
    return math.isfinite(values.get(name, math.nan))


def apart(run: Run) -> str:
    """Consensus distance over virtual hours, on a logarithmic axis."""
    known = [(one.at_s / run.per_unit, math.log10(one.consensus)) for one in run.samples if one.consensus > ALIKE]
    if not known:
        return ""
    low, high = math.floor(min(y for _, y in known)), math.ceil(max(y for _, y in known))
    axes = Axes((0, run.virtual_seconds / run.per_unit), (low, max(high, low + 1)), 220)
    powers = range(low, max(high, low + 1) + 1, max(1, (high - low) // 6))
    parts = axes.frame(steps(*axes.x, 8), [(float(n), power(n)) for n in powers], run.unit)
    parts.append(axes.line(known, EXCHANGE))
    return axes.picture([*parts, *hours(axes, run)], f"consensus distance over {run.unit}")


def moved(run: Run) -> str:
    """KiB that all nodes together sent in an hour, over virtual hours."""
    rates = []
    sent, since = 0, 0.0
    for one in run.samples:
        rates.append((one.at_s / run.per_unit, (one.sent - sent) / 1024 / ((one.at_s - since) / run.per_unit)))
        sent, since = one.sent, one.at_s
    top = max((y for _, y in rates), default=0.0)
    if not top:
        return ""
    axes = Axes((0, run.virtual_seconds / run.per_unit), (0, top * 1.08), 180)
    parts = axes.frame(steps(*axes.x, 8), [(y, f"{y:,.0f}") for y in steps(0, top, 4)], run.unit)
    stairs: list[tuple[float, float]] = []
    before = 0.0
    for x, y in rates:
        stairs += [(before, y), (x, y)]
        before = x
    parts.append(axes.line(stairs, EXCHANGE))
    return axes.picture([*parts, *hours(axes, run)], f"KiB {run.a_unit}, all nodes together")
