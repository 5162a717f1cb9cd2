"""A graph as an SVG picture: self-contained, no script, colours for latency where it is known. Not here: tables."""

from __future__ import annotations

import math
from html import escape
from typing import Final

import numpy as np

from gossipfl.errors import Misuse
from gossipfl.topology.graphs import Floats, Graph

EDGES_DRAWN: Final = 20_000
"""Edges of a picture at most: beyond, it is a grey disc of several MB."""

SIDE: Final = 640
MARGIN: Final = 40
BEND: Final = 60
FAST, MIDDLE, SLOW = "#0072b2", "#b36b00", "#a00000"


def svg(graph: Graph, caption: str = "") -> str:
    """The picture; nodes at their places, else by a spring layout (networkx, up to 500 nodes) or on a circle.

    **Raises**: Misuse above 20,000 edges.
    """
    if len(graph.edges) > EDGES_DRAWN:
        raise Misuse(f"{len(graph.edges):,} edges -- a picture shows at most {EDGES_DRAWN:,}: draw a smaller one")
    at = _fitted(_places(graph))
    opacity = max(0.12, min(0.8, 6 / math.sqrt(len(graph.edges) + 1)))
    colours, legend = _colours(graph)
    ends = at[graph.edges].reshape(-1, 4).tolist()
    drawn = [
        f'<path d="{_line(*one)}" stroke="{colour}" fill="none"/>' for one, colour in zip(ends, colours, strict=True)
    ]
    radius = max(1.2, min(7.0, 60 / math.sqrt(graph.n)))
    dots = [
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}"><title>{escape(graph.label(node))}</title></circle>'
        for node, (x, y) in enumerate(at.tolist())
    ]
    named = at.tolist() if graph.n <= 40 else []
    names = [
        f'<text x="{x:.1f}" y="{y - radius - 3:.1f}" text-anchor="middle">{escape(graph.label(node))}</text>'
        for node, (x, y) in enumerate(named)
    ]
    below = [escape(one) for one in (caption, legend) if one]
    lines = [f'<text x="{MARGIN}" y="{SIDE + 16 + 16 * at}" class="said">{one}</text>' for at, one in enumerate(below)]
    height = SIDE + 16 * len(below) + 8
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {SIDE} {height}" width="{SIDE}" height="{height}" role="img">',
            f"<title>{escape(graph.name)}, {graph.n} nodes, {len(graph.edges)} links</title>",
            "<style>text{font:11px sans-serif;fill:#222}.said{font-size:12px}</style>",
            f'<rect width="{SIDE}" height="{height}" fill="#fff"/>',
            f'<g stroke-width="1.1" stroke-opacity="{opacity:.2f}">',
            *drawn,
            '</g><g fill="#222">',
            *dots,
            "</g>",
            *names,
            *lines,
            "</svg>",
            "",
        ]
    )


def _line(x: float, y: float, u: float, v: float) -> str:
    """Straight, but for a long level or upright one, which would hide behind what is between: the joined borders of a
    torus."""
    start, end = f"M{x:.1f} {y:.1f}", f"{u:.1f} {v:.1f}"
    if abs(y - v) < 0.5 and abs(x - u) > SIDE / 2:
        return f"{start}Q{(x + u) / 2:.1f} {y - BEND:.1f} {end}"
    if abs(x - u) < 0.5 and abs(y - v) > SIDE / 2:
        return f"{start}Q{x - BEND:.1f} {(y + v) / 2:.1f} {end}"
    return f"{start}L{end}"


def _places(graph: Graph) -> Floats:
    if graph.places is not None:
        return graph.places
    if graph.n > 500:
        from gossipfl.topology.generate import circle

        return circle(graph.n)
    import networkx as nx

    found = nx.spring_layout(graph.to_networkx(), seed=1, iterations=100)
    return np.array([found[node] for node in range(graph.n)], np.float64)


def _fitted(places: Floats) -> Floats:
    """Into the square, the same scale both ways."""
    low, high = places.min(axis=0), places.max(axis=0)
    span = float((high - low).max()) or 1.0
    room = SIDE - 2 * MARGIN
    return np.asarray(MARGIN + room * ((places - low) / span + (1 - (high - low) / span) / 2), np.float64)


def _colours(graph: Graph) -> tuple[list[str], str]:
    """A colour an edge, and what they mean."""
    known = graph.latency_ms
    if known is None or bool(np.isnan(known).all()):
        return [FAST] * len(graph.edges), ""
    first, second = np.nanquantile(known, [1 / 3, 2 / 3]).tolist()
    if first == second:
        return [FAST if not ms > first else SLOW for ms in known.tolist()], f"latency: blue up to {first:.3g} ms, red above"
    colours = [FAST if not ms > first else MIDDLE if ms <= second else SLOW for ms in known.tolist()]
    return colours, f"latency: blue up to {first:.3g} ms, brown up to {second:.3g}, red above"
