"""The page that a demo leaves: one self-contained file, no script, no network; pictures are SVG drawn here.

Everything shown comes from `results.Result`. Not here: numbers of its own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any, Final

from gossipfl.learning.evaluation import label
from gossipfl.simulator.pictures import COLOURS, Axes, power, rendered, steps, ticks
from gossipfl.simulator.results import LOWER_IS_BETTER, Result, mean, table, worst

LOCAL: Final = "#b36b00"
GOSSIP: Final = "#0072b2"
WHOLE: Final = "#333333"

POINTS: Final = 1500
"""Dots in a picture; more make the file large and show nothing more."""


def page(result: Result, manifest: Mapping[str, Any]) -> str:
    """The HTML text."""
    from markupsafe import Markup

    header, rows = table(result)
    return rendered(
        "report.html",
        result=result,
        manifest=manifest,
        name=label(result.metric),
        share=result.share(),
        local=result.of("local", result.metric),
        gossip=result.of("gossip", result.metric),
        mean=mean,
        worst=lambda values: worst(values, result.metric),
        header=header,
        rows=rows,
        bars=Markup(bars(result)),
        curves=Markup(curves(result, result.metric, value_range(result))),
        losses=Markup(
            curves(result, "log_loss", loss_range(result)) if "log_loss" in result.centralized else ""
        ),
        apart=Markup(apart(result)),
        started_below=started_below(result),
    )


# ---- pictures --------------------------------------------------------------------------------------------------------


def value_range(result: Result) -> tuple[float, float]:
    """From a little below the worst local model to a little above the best of all."""
    values = [*result.of("local", result.metric), *result.of("gossip", result.metric), result.centralized[result.metric]]
    known = [value for value in values if math.isfinite(value)]
    low, high = min(known), max(known)
    room = max((high - low) * 0.15, 1e-3)
    top = high + room if result.metric in LOWER_IS_BETTER or high > 1 else min(1.0, high + room)
    return low - room, top


def bars(result: Result) -> str:
    """Per hospital: alone beside in the federation; a line for centralized."""
    metric, count = result.metric, len(result.sites)
    axes = Axes((0, count), value_range(result), 260)
    parts = axes.frame([], ticks(*axes.y), "")
    for at, site in enumerate(result.sites):
        for value, place, colour in ((site.local, 0.18, LOCAL), (site.gossip, 0.51, GOSSIP)):
            if math.isfinite(shown := value.get(metric, math.nan)):
                parts.append(_bar(axes, at + place, shown, colour))
        x, floor = axes.at(at + 0.5, axes.y[0])
        text = f"{site.name}" if count <= 8 else str(at + 1)
        parts.append(f'<text class="tick" x="{x:.1f}" y="{floor + 16:.1f}" text-anchor="middle">{escape(text)}</text>')
        rows = f"{site.rows} rows" if count <= 8 else str(site.rows)
        parts.append(f'<text class="faint" x="{x:.1f}" y="{floor + 30:.1f}" text-anchor="middle">{rows}</text>')
    whole = result.centralized[metric]
    parts.append(axes.line([(0, whole), (count, whole)], WHOLE, "6 4"))
    return axes.picture(parts, f"{label(metric)} of each hospital alone and in the federation")


def _bar(axes: Axes, x: float, value: float, colour: str) -> str:
    left, top = axes.at(x, value)
    right, floor = axes.at(x + 0.31, axes.y[0])
    height = max(0.0, floor - top)
    inside = height > 20
    place = f'x="{(left + right) / 2:.1f}" y="{top + 14 if inside else top - 4:.1f}" text-anchor="middle"'
    text = f'<text class="{"within" if inside else "value"}" {place}>{value:.4f}</text>'
    return f'<rect x="{left:.1f}" y="{top:.1f}" width="{right - left:.1f}" height="{height:.1f}" fill="{colour}"/>{text}'


def curves(result: Result, metric: str, limits: tuple[float, float]) -> str:
    """A metric over local rounds, one line a hospital; empty where nobody measured it."""
    lines = [_curve(site.curve, metric) for site in result.sites]
    if not any(lines):
        return ""
    end = max(x for line in lines for x, _ in line)
    axes = Axes((0, end or 1.0), limits, 260)
    parts = axes.frame(steps(0, end or 1.0), ticks(*axes.y), "local rounds")
    whole = result.centralized[metric]
    parts.append(axes.line([(0, whole), (end, whole)], WHOLE, "6 4"))
    parts += [axes.line(line, COLOURS[at % len(COLOURS)]) for at, line in enumerate(lines) if line]
    if result.killed:
        place, top = axes.at(float(result.killed["local_round"]), axes.y[1])
        _, floor = axes.at(0, axes.y[0])
        parts.append(f'<line class="kill" x1="{place:.1f}" x2="{place:.1f}" y1="{top:.1f}" y2="{floor:.1f}"/>')
        said = f"{escape(result.killed['site'])} killed and restarted"
        parts.append(f'<text class="killed" x="{place + 5:.1f}" y="{(top + floor) / 2:.1f}">{said}</text>')
    return axes.picture(parts, f"{label(metric)} over local rounds")


def loss_range(result: Result) -> tuple[float, float]:
    """What the losses are once the first steep fall is over."""
    values = [y for site in result.sites for _, y in _curve(site.curve, "log_loss")[1:]]
    values.append(result.centralized.get("log_loss", math.nan))
    known = [value for value in values if math.isfinite(value)] or [0.0, 1.0]
    room = 0.06 * (max(known) - min(known)) or 0.1
    return max(0.0, min(known) - room), max(known) + room


def _curve(rows: Sequence[Mapping[str, Any]], metric: str) -> list[tuple[float, float]]:
    found = [(row.get("local_round"), (row.get("metrics") or {}).get(metric)) for row in rows]
    return [(float(x), float(y)) for x, y in found if x is not None and y is not None]


def started_below(result: Result) -> float | None:
    """The first value of the first hospital, where it lies below the picture."""
    line = _curve(result.sites[0].curve, result.metric)
    return line[0][1] if line and line[0][1] < value_range(result)[0] else None


def apart(result: Result) -> str:
    """Distance of the two models at every exchange, over seconds, on a logarithmic axis."""
    known = [(at, math.log10(distance)) for at, distance in result.distances if distance > 0]
    if not known:
        return ""
    known = known[:: max(1, len(known) // POINTS)]
    low, high = math.floor(min(y for _, y in known)), math.ceil(max(y for _, y in known))
    axes = Axes((math.floor(known[0][0]), math.ceil(known[-1][0])), (low, max(high, low + 1)), 240)
    powers = range(low, high + 1, max(1, (high - low) // 6))
    parts = axes.frame(steps(*axes.x, 8), [(float(n), power(n)) for n in powers], "seconds since the start")
    for point in known:
        x, y = axes.at(*point)
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="1.6" fill="{GOSSIP}" fill-opacity="0.45"/>')
    return axes.picture(parts, "distance of two models when they meet")
