"""The page of a sweep: one figure and one table, self-contained. It shows what a `Grid` holds, nothing of its own."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any, Final

from gossipfl.amounts import size
from gossipfl.learning.evaluation import label
from gossipfl.simulator.pictures import COLOURS, WIDTH, Axes, rendered, steps, ticks
from gossipfl.simulator.sweep import Grid, Row

LINES: Final = len(COLOURS)
"""Lines that can be told apart by colour; of more combinations the first so many are drawn, and that is said."""

Point = tuple[float, Row]


def page(found: Grid, manifest: Mapping[str, Any], notes: Sequence[str] = ()) -> str:
    """The HTML text."""
    from markupsafe import Markup

    across, lines = drawn(found)
    return rendered(
        "grid.html",
        grid=found,
        name=label(found.metric) if found.metric else "quality",
        across=across,
        lines=[(name, COLOURS[at]) for at, name in enumerate(list(lines)[:LINES])],
        hidden=max(0, len(lines) - LINES),
        figure=Markup(figure(found)),
        header=[name for name, _ in found.axes],
        cells=[cells(row) for row in found.rows],
        manifest=manifest,
        notes=notes,
    )


def cells(row: Row) -> list[str]:
    """Of a row of the table: what the settings came to."""
    if not row.runs:
        return ["–"] * 5 + [row.error or "not run yet"]
    one = row.figures
    share = one["share"]
    between = f"{100 * share.low:.2f} to {100 * share.high:.2f}" if math.isfinite(share.low) else "–"
    return [
        f"{100 * share.mean:.2f}",
        between,
        f"{one['worst'].mean:.4f}",
        f"{one['consensus'].mean:.2g}",
        size(one["bytes_per_node"].mean),
        row.said(),
    ]


def drawn(found: Grid) -> tuple[str, dict[str, list[Point]]]:
    """What runs across, and the lines: name -> (place, row). The first setting of numbers runs across, else the first one."""
    axes = list(found.axes)
    if not axes:
        return "", {"": [(0.0, row) for row in found.rows]}
    numeric = [name for name, values in axes if len(values) > 1 and all(isinstance(one, int | float) for one in values)]
    across = next(iter(numeric), axes[0][0])
    values = list(dict(axes)[across])
    lines: dict[str, list[Point]] = {}
    for row in found.rows:
        others = ", ".join(f"{value}" for name, value in row.settings.items() if name != across)
        at = float(row.settings[across]) if across in numeric else float(values.index(row.settings[across]))
        lines.setdefault(others, []).append((at, row))
    return across, {name: sorted(points, key=lambda point: point[0]) for name, points in lines.items()}


def figure(found: Grid) -> str:
    """Worst node over centralized by what runs across, a line for each combination of the rest, with 95 % intervals."""
    across, lines = drawn(found)
    shown = list(lines.items())[:LINES]
    points = [(at, row.figures["share"]) for _, some in shown for at, row in some if row.runs]
    known = [y for _, one in points for y in (one.mean, one.low, one.high) if math.isfinite(y)]
    if not known:
        return ""
    xs = sorted({at for _, some in shown for at, _ in some})
    room = max((max(known) - min(known)) * 0.08, 5e-3)
    wide = (xs[-1] - xs[0]) * 0.04 or 0.5
    axes = Axes((xs[0] - wide, xs[-1] + wide), (min(known) - room, max(known) + room), 300)
    values = list(dict(found.axes).get(across, ()))
    is_numeric = all(isinstance(one, int | float) for one in values)
    places = steps(xs[0], xs[-1], 8) if is_numeric and len(xs) > 6 else xs if is_numeric else []
    parts = axes.frame(places, [(y, f"{100 * float(y):.4g} %") for y, _ in ticks(*axes.y)], across)
    for at, value in enumerate([] if is_numeric else values):
        place, floor = axes.at(float(at), axes.y[0])
        parts.append(f'<text class="tick" x="{place:.1f}" y="{floor + 17:.1f}" text-anchor="middle">{escape(str(value))}</text>')
    for number, (_, some) in enumerate(shown):
        aside = (number - (len(shown) - 1) / 2) * wide / 6
        parts += _line(axes, [(at + aside, row) for at, row in some if row.runs], COLOURS[number])
    return axes.picture(parts, f"worst node over centralized by {across}")


def _line(axes: Axes, some: Sequence[Point], colour: str) -> list[str]:
    known = [(at, row.figures["share"]) for at, row in some if math.isfinite(row.figures["share"].mean)]
    parts = [axes.line([(at, one.mean) for at, one in known], colour)] if len(known) > 1 else []
    for at, one in known:
        x, y = axes.at(at, one.mean)
        parts.append(f'<circle cx="{min(x, WIDTH):.1f}" cy="{y:.1f}" r="3.5" fill="{colour}"/>')
        if math.isfinite(one.low):
            low, high = axes.at(at, one.low)[1], axes.at(at, one.high)[1]
            parts.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{low:.1f}" y2="{high:.1f}" stroke="{colour}" stroke-width="1.5"/>')
    return parts
