"""Every error that gossipfl raises, and whose fault each one is.

`ConfigError` is the operator's, `Misuse` our caller's, `Refused` a peer's. Nothing here is an HTTP status or a log
record; foreign exceptions (nacl, aiohttp, sqlite3, OSError) are translated into these at the border of their room.
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from enum import IntEnum
from typing import Final


class Exit(IntEnum):
    """Exit codes of every command (those above 2 as in sysexits.h)."""

    OK = 0
    FAILED = 1
    USAGE = 2
    UNREACHABLE = 69
    STATE = 73
    PERMISSION = 77
    CONFIG = 78


_WORDS = (
    "auth not-member membership-old layout stats recipient replay gap base codec size malformed nonfinite implausible "
    "numeric quota slow paused disk"
)
REASONS: Final = frozenset(_WORDS.split())
"""The stable one-word reasons of a refusal: metric label and log key."""


def printable(text: str, keep: str = "") -> str:
    """The text as one line that cannot steer a terminal or hide in a file: control and format characters, all but those in
    `keep`, are written out.

    >>> printable("bell\\x07, then\\nred \\x1b[31m")
    'bell\\\\x07, then\\\\nred \\\\x1b[31m'
    """
    if text.isprintable():
        return text
    return "".join(
        one if one in keep or unicodedata.category(one) not in _STEER else one.encode("unicode_escape").decode()
        for one in text
    )


_STEER: Final = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})


class GossipError(Exception):
    """The root. `str(error)` is for a person: it names cause and remedy."""

    exit_code: Exit = Exit.FAILED


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing wrong in a file of the operator's: where, what, and how to fix it."""

    file: str
    line: int | None
    what: str
    remedy: str = ""
    path: tuple[str | int, ...] = ()
    """Of one that was found in a tree without a file: where in it (`gossipfl.documents.located`)."""

    def __str__(self) -> str:
        where = self.file if self.line is None else f"{self.file}:{self.line}"
        return f"{where}: {self.what}" + (f" -- {self.remedy}" if self.remedy else "")


class ConfigError(GossipError):
    """The operator's: a file, key, folder or environment is not as it must be. Holds every fault at once."""

    exit_code = Exit.CONFIG

    def __init__(self, *faults: Fault | str, exit_code: Exit = Exit.CONFIG) -> None:
        self.faults = faults
        self.exit_code = exit_code
        super().__init__("\n".join(str(fault) for fault in faults))


class Misuse(GossipError):
    """Our caller's: a function was called with what it does not take."""


class Refused(GossipError):
    """A peer's: what it sent is not accepted. `reason` is one stable word of `REASONS`, `detail` cause and remedy."""

    def __init__(self, reason: str, detail: str) -> None:
        if reason not in REASONS:
            raise Misuse(f"unknown refusal reason {reason!r}; use one of {sorted(REASONS)}")
        self.reason = reason
        self.detail = detail
        super().__init__(f"{reason}: {detail}")
