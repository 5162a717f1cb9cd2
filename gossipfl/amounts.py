"""Bytes, seconds and figures as people read them, wherever they are written for people. Nothing is parsed or measured here."""

from __future__ import annotations

import math


def size(count: float | None) -> str:
    """Bytes in the largest unit that fits; "-" where there are none to tell.

    >>> [size(count) for count in (124, 1008.0, 3818.0, 10_268, 9.5e6, None)]
    ['124 bytes', '1008 bytes', '3.73 KiB', '10 KiB', '9.06 MiB', '-']
    """
    if count is None:
        return "-"
    for unit in ("bytes", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "bytes" or count >= 100 else f"{count:.3g} {unit}"
        count /= 1024
    return f"{count:.3g} GiB"


def duration(seconds: float) -> str:
    """How long, in the largest unit that fits.

    >>> [duration(s) for s in (9.4, 250, 9000, 200_000)]
    ['9 s', '4 min', '2.5 h', '2.3 days']
    """
    if seconds < 120:
        return f"{max(0.0, seconds):.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 172_800 else f"{seconds / 86_400:.1f} days"


def figure(value: float | None, places: int = 4, *, signed: bool = False) -> str:
    """A figure with so many places; what is rounded to zero has no sign, and "-" stands where there is none.

    >>> figure(0.79481), figure(-0.00002), figure(0.01, signed=True), figure(-0.00002, signed=True), figure(math.nan)
    ('0.7948', '0.0000', '+0.0100', '0.0000', '-')
    """
    if value is None or math.isnan(value):
        return "-"
    text = f"{value:+.{places}f}" if signed else f"{value:.{places}f}"
    return text if any(digit in text for digit in "123456789") else f"{0:.{places}f}"
