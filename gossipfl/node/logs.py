"""What a node says: one JSON object a line, or one readable line. Facts only: never tensors, keys, rows (T30)."""

from __future__ import annotations

import json
import sys
import time
from typing import Any, Final, Literal, TextIO

from gossipfl.protocol.events import Note

QUIET: Final = frozenset({"egress", "ingress", "receipt", "evaluation"})
"""Kinds that come many times a minute: in the record on disk and in JSON, not on a terminal."""


CONTROLS: Final = dict.fromkeys((*range(32), *range(127, 160)), " ")
"""A peer's words reach a terminal through here: they must not move its cursor."""


class Log:
    """Writes to one stream, line by line."""

    def __init__(self, node: str, form: Literal["auto", "json", "text"] = "auto", stream: TextIO | None = None) -> None:
        self.node = node
        self.stream = stream or sys.stderr
        self.json = form == "json" or (form == "auto" and not self.stream.isatty())

    def fact(self, note: Note) -> None:
        if self.json or note.kind not in QUIET:
            self.say(note.kind, **note.fields)

    def say(self, kind: str, **fields: Any) -> None:
        wall = time.time()
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(wall)) + f".{int(wall * 1000) % 1000:03d}Z"
        if self.json:
            line = json.dumps({"time": stamp, "node": self.node, "kind": kind, **fields}, default=str, ensure_ascii=False)
        else:
            said = " ".join(f"{name}={value}" for name, value in fields.items() if value != "")
            line = f"{stamp[11:19]} {self.node} {kind} {said}".rstrip()
        try:
            print(line.translate(CONTROLS), file=self.stream, flush=True)
        except (OSError, ValueError):
            self.stream = _nowhere()


def _nowhere() -> TextIO:
    import os

    return open(os.devnull, "w")
