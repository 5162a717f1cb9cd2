"""What a node says: one JSON object a line, or one readable line; on a terminal a last line that shows how far it is.

Facts only: never tensors, keys, rows (T30). Of an exchange one line is said, where it is applied; what belongs to it (egress,
receipts) stands in the record on disk, and here at the level debug.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Mapping
from typing import Any, Final, Literal, TextIO

from gossipfl.learning.evaluation import label
from gossipfl.protocol.events import Note
from gossipfl.protocol.neighbours import HERE

DEBUG: Final = frozenset({"egress", "receipt"})
"""Kinds that only repeat an exchange which has a line of its own."""

QUIET: Final = frozenset({"exchange", "evaluation", "closed", "start"})
"""Kinds that come many times a minute, or beside another line: JSON lines; on a terminal the last line shows them."""

EXCHANGE: Final = ("peer", "space", "k", "role", "bytes", "distance", "clip")
"""What of an applied exchange its line says; epoch and root stand in the record."""

CONTROLS: Final = dict.fromkeys((*range(32), *range(127, 160)), " ")
"""A peer's words reach a terminal through here: they must not move its cursor."""

ERASE: Final = "\r\x1b[2K"

_json: Final = json.JSONEncoder(default=str, ensure_ascii=False)


class Log:
    """Writes to one stream, line by line."""

    def __init__(
        self, node: str, form: Literal["auto", "json", "text"] = "auto", stream: TextIO | None = None, level: str = "info"
    ) -> None:
        self.node = node
        self.stream = stream or sys.stderr
        terminal = self.stream.isatty()
        self.json = form == "json" or (form == "auto" and not terminal)
        self.terminal = terminal and not self.json
        self.live = self.terminal and os.environ.get("TERM", "dumb") != "dumb"
        """is there a last line that is drawn again?"""
        self.debug = level == "debug"
        self.last = ""

    def fact(self, note: Note) -> None:
        """A fact of the core's record."""
        if note.kind == "ingress":
            self.say("exchange", **{name: note.fields[name] for name in EXCHANGE if name in note.fields})
        if self.debug or note.kind not in DEBUG | {"ingress"}:
            self.say(note.kind, **note.fields)

    def say(self, kind: str, **fields: Any) -> None:
        if self.live and kind in QUIET and not self.debug:
            return
        wall = time.time()
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(wall)) + f".{int(wall * 1000) % 1000:03d}Z"
        if self.json:
            head = {"time": stamp, "level": "debug" if kind in DEBUG else "info", "node": self.node, "kind": kind}
            line = _json.encode({**head, **fields})
        else:
            said = "  ".join(f"{name}: {value}" for name, value in fields.items() if value != "")
            line = f"{time.strftime('%H:%M:%S', time.localtime(wall))} {self.node} {kind}  {said}".rstrip()
        self._write(line.translate(CONTROLS) + "\n")

    def show(self, text: str) -> None:
        """The last line of a terminal, in place of the one before; nothing elsewhere."""
        text = text.translate(CONTROLS)[: max(20, shutil.get_terminal_size().columns - 1)]
        if self.live and text != self.last:
            self.last = text
            self._write("")

    def close(self) -> None:
        """The last line stays, as it is."""
        if self.live and self.last:
            line, self.last = self.last, ""
            self._write(line + "\n")
        self.live = False

    def _write(self, line: str) -> None:
        text = f"{ERASE}{line}{self.last}" if self.live else line
        try:
            self.stream.write(text)
            self.stream.flush()
        except (OSError, ValueError):
            self.stream = open(os.devnull, "w")  # noqa: SIM115 -- for as long as the process lives
            self.live = False


def progress(status: Mapping[str, Any]) -> str:
    """How far a node is, in one line, of what `/status` says."""
    peers = status["peers"].values()
    up = sum(peer["state"] in HERE for peer in peers)
    parts = [
        status["stage"],
        f"local round {status['local_round']} of {status['local_rounds']}",
        f"{status['exchanges']} exchanges",
        f"{up} of {len(peers)} neighbours",
    ]
    metrics, metric = (status["evaluation"] or {}).get("metrics", {}), status["metric"]
    if metric in metrics:
        parts.append(f"own {label(metric)} {metrics[metric]:.4f}")
    return " | ".join(parts)
