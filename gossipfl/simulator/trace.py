"""Two digests of a history: of what happened, the same on any machine, and of what was computed, the same on machines alike.

The trace takes (time in ns, node, kind, peer, k, size, reason) of all that cores were told and told to do, and no tensor: on
the toy task it is the same anywhere. The content adds the names of tensors, so it holds for one CPU capability and one set
of versions.
"""

from __future__ import annotations

import hashlib
from functools import cache
from typing import TYPE_CHECKING, Any, get_type_hints

from gossipfl.errors import Refused
from gossipfl.protocol import events as ev
from gossipfl.protocol import messages as ms
from gossipfl.simulator.network import Observer

if TYPE_CHECKING:
    from gossipfl.simulator.network import Node, World

SILENT = (ev.Wake, ev.Alarm)
"""When a core wants to be woken says nothing that its deeds do not."""


class Digests(Observer):
    """Two SHA-256 over lines of text, one for each event, command and fault, in order."""

    def __init__(self) -> None:
        self._trace, self._content = hashlib.sha256(), hashlib.sha256()
        self.lines = 0

    @property
    def trace(self) -> str:
        """trace_digest, in hex."""
        return self._trace.hexdigest()

    @property
    def content(self) -> str:
        """content_digest, in hex."""
        return self._content.hexdigest()

    def fed(self, world: World, node: Node, event: ev.Event, commands: list[ev.Command]) -> None:
        for one in (event, *commands):
            if not isinstance(one, SILENT):
                self.line((world.mono, node.name, *self.said(node, one)), names_of(one))

    def struck(self, world: World, kind: str, names: tuple[str, ...], detail: str) -> None:
        self.line((world.mono, ",".join(names), "fault/" + kind, "", 0, 0, detail))

    def line(self, said: tuple[Any, ...], names: tuple[str, ...] = ()) -> None:
        self.lines += 1
        text = "|".join(map(str, said)).encode()
        self._trace.update(text + b"\n")
        self._content.update(text + b"".join(b"|" + name.encode() for name in names) + b"\n")

    def said(self, node: Node, one: ev.Event | ev.Command) -> tuple[Any, ...]:
        """(kind, peer, k, size, reason)."""
        message = getattr(one, "message", None)
        conn = getattr(one, "conn", None)
        end = node.ends.get(conn) if conn is not None else None
        peer = getattr(one, "peer", "") or (end.peer if end else "")
        kind, k, size = type(one).__name__, 0, getattr(one, "size", 0)
        reason = getattr(one, "reason", "") or getattr(one, "why", "") or getattr(one, "order", "")
        if message is not None:
            kind += "/" + type(message).__name__
            reason = getattr(message, "reason", "")
            if isinstance(message, ms.Propose | ms.Reply):
                try:
                    manifest = ms.decode_manifest(message.manifest)
                    k, size = manifest.k, manifest.size
                except Refused as refusal:  # a liar's
                    reason = refusal.reason
            elif isinstance(message, ms.Refusal | ms.Aborted):
                k = message.k
        elif isinstance(one, ev.Commit):
            reason = ",".join(f"{fact.kind}:{fact.fields.get('peer', '')}:{fact.fields.get('k', '')}" for fact in one.facts)
        elif isinstance(one, ev.Note):
            kind, peer = f"Note/{one.kind}", one.fields.get("peer", "")
            k, reason = one.fields.get("k", 0), one.fields.get("reason", "")
        return kind, peer, k, size, reason


def names_of(one: ev.Event | ev.Command) -> tuple[str, ...]:
    """The names of all tensors in it."""
    if isinstance(one, ev.Commit):
        return tuple(name.hex() for name in one.keep)
    kind: Any = type(one)
    found = [getattr(one, part) for part in _bytes_of(kind)]
    return tuple(name.hex() for name in found if len(name) == 32)


@cache
def _bytes_of(kind: type) -> tuple[str, ...]:
    """The fields of an event or command that are bytes."""
    return tuple(part for part, declared in get_type_hints(kind).items() if declared is bytes)
