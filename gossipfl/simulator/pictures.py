"""SVG drawn by hand, and the page around it: self-contained, no script, no network. What is drawn is the reports' business."""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from typing import Any, Final

COLOURS: Final = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#7f7f7f", "#000000")
"""Okabe and Ito's, which colour-blind readers can tell apart."""

WIDTH: Final = 760
LEFT: Final = 56
RIGHT: Final = 16
TOP: Final = 14
BOTTOM: Final = 40
"""Margins around a picture's inside, for numbers and words."""


def rendered(template: str, **values: Any) -> str:
    """The HTML text of a template beside this file, within the frame (page.html) and style that all pages have."""
    import jinja2
    from markupsafe import Markup

    source = files("gossipfl.simulator")
    style = source.joinpath("report.css").read_text("utf-8")
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(lambda name: source.joinpath(name).read_text("utf-8")),
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    return environment.get_template(template).render(style=Markup(style), style_digest=digest, colours=COLOURS, **values)


@dataclass(frozen=True)
class Axes:
    """A rectangle of the picture, and what its edges mean."""

    x: tuple[float, float]
    y: tuple[float, float]
    height: int
    left: int = LEFT

    def at(self, x: float, y: float) -> tuple[float, float]:
        inner_x, inner_y = WIDTH - self.left - RIGHT, self.height - TOP - BOTTOM
        across = (x - self.x[0]) / ((self.x[1] - self.x[0]) or 1.0)
        up = (y - self.y[0]) / ((self.y[1] - self.y[0]) or 1.0)
        return self.left + across * inner_x, TOP + (1 - up) * inner_y

    @property
    def inside(self) -> str:
        """Name of the clip path; pictures of one shape have one."""
        return f"inside-{self.left}-{self.height}"

    def frame(self, xs: Sequence[float], ys: Sequence[tuple[float, str]], below: str) -> list[str]:
        """Grid lines, their numbers, and what the horizontal axis is."""
        parts = []
        for y, text in ys:
            _, place = self.at(self.x[0], y)
            parts.append(f'<line class="grid" x1="{self.left}" x2="{WIDTH - RIGHT}" y1="{place:.1f}" y2="{place:.1f}"/>')
            parts.append(f'<text class="tick" x="{self.left - 6}" y="{place + 4:.1f}" text-anchor="end">{escape(text)}</text>')
        for x in xs:
            place, floor = self.at(x, self.y[0])
            parts.append(f'<text class="tick" x="{place:.1f}" y="{floor + 17:.1f}" text-anchor="middle">{x:g}</text>')
        middle = (self.left + WIDTH - RIGHT) / 2
        parts.append(f'<text class="tick" x="{middle}" y="{self.height - 5}" text-anchor="middle">{escape(below)}</text>')
        return parts

    def line(self, points: Sequence[tuple[float, float]], colour: str, dash: str = "") -> str:
        """Joined points; what is outside of the rectangle is cut off by the clip path."""
        drawn = " ".join(f"{x:.1f},{y:.1f}" for x, y in (self.at(*point) for point in points))
        dashed = f' stroke-dasharray="{dash}"' if dash else ""
        look = f'fill="none" stroke="{colour}" stroke-width="2"{dashed} clip-path="url(#{self.inside})"'
        return f'<polyline points="{drawn}" {look}/>'

    def picture(self, parts: Sequence[str], title: str) -> str:
        inside = f'<clipPath id="{self.inside}"><rect x="{self.left}" y="{TOP}" width="{WIDTH - self.left - RIGHT}" '
        inside += f'height="{self.height - TOP - BOTTOM}"/></clipPath>'
        head = f'<svg viewBox="0 0 {WIDTH} {self.height}" role="img" aria-label="{escape(title)}">'
        return head + f"<defs>{inside}</defs>" + "".join(parts) + "</svg>"


def steps(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers between low and high, about `count` of them.

    >>> steps(0.0, 120.0)
    [0.0, 20.0, 40.0, 60.0, 80.0, 100.0, 120.0]
    """
    raw = (high - low) / count or 1.0
    size = 10 ** math.floor(math.log10(raw))
    unit = next(size * factor for factor in (1, 2, 5, 10) if size * factor >= raw * 0.8)
    first = math.ceil(low / unit - 1e-9)
    return [round(n * unit, 10) for n in range(first, math.floor(high / unit + 1e-9) + 1)]


def ticks(low: float, high: float) -> list[tuple[float, str]]:
    found = steps(low, high)
    places = max(2, -math.floor(math.log10((found[1] - found[0]) if len(found) > 1 else 0.1)))
    return [(value, f"{value:.{places}f}") for value in found]


def power(exponent: int) -> str:
    return f"{10.0**exponent:g}" if exponent >= -3 else f"1e{exponent}"
