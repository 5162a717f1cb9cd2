"""The page of a benchmark: one self-contained file for a reader in a hospital; pictures are SVG, and every figure is a summary's.

Not here: figures of its own, and the sentences (verdict.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any, Final

import numpy as np

from gossipfl.amounts import figure, size
from gossipfl.learning.evaluation import label
from gossipfl.simulator.bench.network import NETWORKS, OVERHEAD
from gossipfl.simulator.bench.one import Line
from gossipfl.simulator.bench.question import Question
from gossipfl.simulator.bench.summary import GOAL, SLOW, Row, Summary
from gossipfl.simulator.bench.verdict import DEFAULT, verdict
from gossipfl.simulator.pictures import COLOURS, TOP, Axes, rendered, ticks
from gossipfl.simulator.results import share_of

WHOLE: Final = "#333333"
ALONE: Final = "#b36b00"
NAMES: Final = 110
"""Pixels for the names of methods."""

SHOWN: Final = 1500
"""Hospitals that are drawn as dots; above it every second, third, .. one."""

LOW: Final = 0.9
"""Curves are drawn from this share of centralized on: what is below has learned nothing that a hospital wants."""

DIGIT: Final = 6.8
"""Width of a digit of an axis, in 12 px."""

DASHES: Final = ("", "7 3", "2 3")
"""Methods of a second and third handful of colours."""

Point = Callable[[Line, Mapping[str, Any]], float | None]


def page(asked: Question, found: Summary, lines: Sequence[Line], manifest: Mapping[str, Any]) -> str:
    """The HTML text."""
    from markupsafe import Markup

    plain = [line for line in lines if not line["is_slow"]]
    methods = [row.method for row in found.rows if not row.is_reference and not row.diverged]  # else it has no curve, either
    looks = {name: (COLOURS[at % len(COLOURS)], DASHES[at // len(COLOURS) % 3]) for at, name in enumerate(methods)}

    def over_time(network: str, node: str) -> Markup:
        there = _lines_in(network, lines)
        return Markup(_curves(there, looks, _seconds(network), "modelled seconds", found, node))

    timed = [
        (network, [("", over_time(network.name, "worst"))]
         + [("all hospitals but the slow one", over_time(SLOW, "others"))] * (network.name == SLOW))
        for network in NETWORKS
    ]  # fmt: skip
    serverless = [row for row in found.rows if not row.is_reference and not row.has_server]
    default = next((row for row in serverless if row.method == DEFAULT), serverless[0] if serverless else None)
    return rendered(
        "bench.html",
        asked=asked,
        found=found,
        manifest=manifest,
        default=default,
        fedavg=found.row("fedavg"),
        name=label(found.metric),
        goal=GOAL,
        looks=looks,
        said=verdict(found),
        shares=Markup(_shares(found, looks)),
        rounds=Markup(_curves(plain, looks, lambda line, point: point["round"], "rounds", found)),
        sent=Markup(
            _curves(plain, looks, lambda line, point: point["bytes_per_node"], "bytes that a node has sent", found)
        ),
        timed=timed,
        dots=Markup(_dots(default.method if default and not default.diverged else "", plain)),
        dotted=plain[0]["seed"],
        overhead=OVERHEAD,
        size=size,
        figure=figure,
        span=_span,
        median=lambda name: float(np.median([one[name] for one in found.published])),
    )


def _span(low: float, high: float, places: int = 4) -> str:
    return "-" if math.isnan(low) else f"{figure(low, places, signed=True)} to {figure(high, places, signed=True)}"


# ---- pictures --------------------------------------------------------------------------------------------------------


def _lines_in(network: str, lines: Sequence[Line]) -> list[Line]:
    """Lines whose curves have seconds under this network: with a slow site, those of the runs that had one."""
    return [line for line in lines if line.get("curve") and network in line["curve"][0]["seconds"]]


def _seconds(network: str) -> Point:
    return lambda line, point: point["seconds"].get(network)


def _curves(
    lines: Sequence[Line],
    looks: Mapping[str, tuple[str, str]],
    across: Point,
    below: str,
    found: Summary,
    node: str = "worst",
) -> str:
    """The worst node's share of centralized, mean over splits, over the logarithm of something; dashed: 1 and the goal."""
    drawn = {name: _curve([line for line in lines if line["method"] == name], across, node) for name in looks}
    known = [x for points in drawn.values() for x, y in points if math.isfinite(y) and y >= LOW]
    if not known:
        return ""
    left, right = math.log10(min(known)), math.log10(max(known))
    top = max([1.0, *(y for points in drawn.values() for _, y in points if math.isfinite(y))])
    axes = Axes((left, right if right > left else left + 1), (LOW, top + 0.003), 250)
    parts = axes.frame([], [(y, f"{y:.0%}") for y in np.arange(LOW, top + 1e-9, 0.02)], below)
    parts += _decades(axes)
    for level, dash in ((1.0, "6 4"), (GOAL, "1 3")):
        parts.append(axes.line([(axes.x[0], level), (axes.x[1], level)], WHOLE, dash))
    for name, points in drawn.items():
        shown = [(math.log10(x), y) for x, y in points if math.isfinite(y)]
        if shown:
            parts.append(axes.line(shown, *looks[name]))
    return axes.picture(parts, f"worst node over centralized, over {below}")


def _curve(lines: Sequence[Line], across: Point, node: str) -> list[tuple[float, float]]:
    """(x, mean share) at every point that all splits have; NaN where a model had diverged."""
    count = min((len(line["curve"]) for line in lines), default=0)
    points = []
    for at in range(count):
        xs = [across(line, line["curve"][at]) for line in lines]
        points_at = [line["curve"][at] for line in lines]
        values = [point.get(node, point["worst"]) for point in points_at]
        shares = [
            math.nan if value is None else share_of(value, line["centralized"], line["metric"])
            for value, line in zip(values, lines, strict=True)
        ]
        known = [x for x in xs if x]
        if len(known) == len(xs):
            points.append((float(np.mean(known)), float(np.mean(shares))))
    return points


def _decades(axes: Axes) -> list[str]:
    """Numbers below a logarithmic axis: the powers of ten, and 2 and 5 times them where there is room."""
    low, high = axes.x
    parts: list[str] = []
    taken: list[tuple[float, float]] = []
    for factor in (1, 2, 5) if high - low < 2.5 else (1,):
        for power in range(math.floor(low), math.ceil(high) + 1):
            value = factor * 10.0**power
            if not low - 1e-9 <= math.log10(value) <= high + 1e-9:
                continue
            x, floor = axes.at(math.log10(value), axes.y[0])
            text = f"{value:,.0f}" if value >= 1 else f"{value:g}"
            width, is_last = DIGIT * len(text), high - math.log10(value) < 0.02 * (high - low)
            left = x - width if is_last else x - width / 2  # or the picture's edge cuts it
            if any(left < right + DIGIT and start < left + width + DIGIT for start, right in taken):
                continue
            taken.append((left, left + width))
            anchor = "end" if is_last else "middle"
            parts.append(f'<text class="tick" x="{x:.1f}" y="{floor + 17:.1f}" text-anchor="{anchor}">{text}</text>')
    return parts


def _shares(found: Summary, looks: Mapping[str, tuple[str, str]]) -> str:
    """A row a method: the worst node over centralized in each split as dots, their mean and its interval as a line."""
    rows = [row for row in found.rows if not row.is_reference and not row.diverged]
    values = [value for row in rows for value in (*row.splits, row.share.low, row.share.high) if math.isfinite(value)]
    if not values:
        return ""
    low, high = min(values), max([*values, 1.0])
    room = 0.06 * (high - low) or 0.001
    axes = Axes((low - room, high + room), (0, len(rows)), 54 + 30 * len(rows), NAMES)
    parts = axes.frame([], [], "worst node over centralized")
    for value, text in ticks(*axes.x):
        x, floor = axes.at(value, 0)
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{floor:.1f}"/>')
        parts.append(f'<text class="tick" x="{x:.1f}" y="{floor + 17:.1f}" text-anchor="middle">{text}</text>')
    parts.append(axes.line([(1.0, 0), (1.0, len(rows))], WHOLE, "6 4"))
    for at, row in enumerate(rows):
        parts += _share(axes, row, len(rows) - at - 0.5, looks[row.method][0])
    return axes.picture(parts, "worst node over centralized, by method and split")


def _share(axes: Axes, row: Row, height: float, colour: str) -> list[str]:
    parts = []
    _, y = axes.at(row.share.middle, height)
    parts.append(f'<text class="tick" x="{NAMES - 8}" y="{y + 4:.1f}" text-anchor="end">{escape(row.method)}</text>')
    if math.isfinite(row.share.low):
        parts.append(axes.line([(row.share.low, height), (row.share.high, height)], colour))
    for value in row.splits:
        x, _ = axes.at(value, height)
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{colour}" fill-opacity="0.55"/>')
    x, _ = axes.at(row.share.middle, height)
    parts.append(f'<rect x="{x - 1.5:.1f}" y="{y - 8:.1f}" width="3" height="16" fill="{colour}"/>')
    return parts


def _dots(method: str, lines: Sequence[Line]) -> str:
    """Every hospital of the first split: its own model's metric on all test rows, and the federated one's; by the own."""
    by = {line["method"]: line for line in reversed(lines)}
    if method not in by or "local" not in by:
        return ""
    pairs = [
        (own, ours)
        for own, ours in zip(by["local"]["sites"]["score"], by[method]["sites"]["score"], strict=False)
        if own is not None and ours is not None
    ]
    pairs = sorted(pairs)[:: max(1, len(pairs) // SHOWN)]
    if not pairs:
        return ""
    values = [value for pair in pairs for value in pair] + [by[method]["centralized"]]
    room = 0.05 * (max(values) - min(values)) or 0.01
    axes = Axes((0, len(pairs)), (min(values) - room, max(values) + room), 280)
    parts = axes.frame([], ticks(*axes.y), f"{len(pairs)} hospitals, by what their own model reaches")
    whole = by[method]["centralized"]
    parts.append(axes.line([(0, whole), (len(pairs), whole)], WHOLE, "6 4"))
    radius = 4.0 if len(pairs) < 40 else 2.2
    for at, (own, ours) in enumerate(pairs):
        for value, colour in ((own, ALONE), (ours, COLOURS[0])):
            x, y = axes.at(at + 0.5, value)
            parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius}" fill="{colour}" fill-opacity="0.7"/>')
    return axes.picture(parts, "each hospital alone and in the federation")
