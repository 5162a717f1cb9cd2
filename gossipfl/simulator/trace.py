"""Two digests of a history: of what happened, the same on any machine, and of what was computed, the same on machines alike.

The trace takes (time in ns, node, kind, peer, k, size, reason) of all that cores were told and told to do, and no tensor: on
the toy task it is the same anywhere. The content adds the names of tensors, so it holds for one CPU capability and one set
of versions.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
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
    """Two SHA-256 over lines of text, one for each event, command and fault, in order.

    `content`: is the second one wanted?"""

    def __init__(self, content: bool = True) -> None:
        self._trace = hashlib.sha256()
        self._content = hashlib.sha256() if content else None
        self.lines = 0

    @property
    def trace(self) -> str:
        """trace_digest, in hex."""
        return self._trace.hexdigest()

    @property
    def content(self) -> str:
        """content_digest, in hex; empty where it was not wanted."""
        return self._content.hexdigest() if self._content else ""

    def fed(self, world: World, node: Node, event: ev.Event, commands: list[ev.Command]) -> None:
        for one in (event, *commands):
            if type(one) not in SILENT:
                kind, peer, k, size, reason = self.said(node, one)
                self.line(f"{world.mono}|{node.name}|{kind}|{peer}|{k}|{size}|{reason}", one)

    def struck(self, world: World, kind: str, names: tuple[str, ...], detail: str) -> None:
        self.line(f"{world.mono}|{','.join(names)}|fault/{kind}||0|0|{detail}")

    def line(self, text: str, one: ev.Event | ev.Command | None = None) -> None:
        self.lines += 1
        self._trace.update(f"{text}\n".encode())
        if self._content:
            names = () if one is None else names_of(one)
            self._content.update("|".join((text, *names)).encode() + b"\n")

    def said(self, node: Node, one: Any) -> tuple[str, str, int, int, str]:
        """(kind, peer, k, size, reason)."""
        if isinstance(one, ev.Commit):
            facts = (f"{fact.kind}:{fact.fields.get('peer', '')}:{fact.fields.get('k', '')}" for fact in one.facts)
            return "Commit", "", 0, 0, ",".join(facts)
        if isinstance(one, ev.Note):
            held = one.fields
            return f"Note/{one.kind}", held.get("peer", ""), held.get("k", 0), 0, held.get("reason", "")
        kind: Any = type(one)
        form = _form_of(kind)
        end = node.ends.get(one.conn) if form.conn else None
        peer = (form.peer and one.peer) or (end.peer if end else "")
        if form.message:
            return self.told(one.message, form.kind, peer)
        return form.kind, peer, 0, one.size if form.size else 0, getattr(one, form.reason) if form.reason else ""

    def told(self, message: ms.Message, kind: str, peer: str) -> tuple[str, str, int, int, str]:
        """The same of a message that comes or goes."""
        kind = f"{kind}/{type(message).__name__}"
        if isinstance(message, ms.Propose | ms.Reply):
            try:
                manifest = ms.decode_manifest(message.manifest)
            except Refused as refusal:  # a liar's
                return kind, peer, 0, 0, refusal.reason
            return kind, peer, manifest.k, manifest.size, ""
        if isinstance(message, ms.Refusal):
            return kind, peer, message.k, 0, message.reason
        return kind, peer, message.k if isinstance(message, ms.Aborted) else 0, 0, ""


@dataclass(frozen=True)
class Form:
    """What an event or command of one kind has to say."""

    kind: str
    message: bool
    conn: bool
    peer: bool
    size: bool
    reason: str
    """the field that says why, or what was ordered; empty where there is none"""


@cache
def _form_of(kind: Any) -> Form:
    parts = kind.__struct_fields__
    has = {part: part in parts for part in ("message", "conn", "peer", "size")}
    return Form(kind.__name__, **has, reason=next((part for part in ("reason", "why", "order") if part in parts), ""))


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
