"""Listens at the one door of a core and writes what it hears to a recording (gossipfl.recording).

Used by a deployed node and by the observer of a simulated world alike. It never stops a node, and holds one frame.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, Final, TypeVar

from gossipfl.errors import Refused
from gossipfl.protocol import events as ev
from gossipfl.protocol.core import Members, Settings
from gossipfl.protocol.events import Instant
from gossipfl.protocol.peer import Peer
from gossipfl.recording import (
    CAPABILITIES,
    SUFFIX,
    Asked,
    Frames,
    MarkKind,
    Shape,
    digest_of,
    event_out,
    new_file,
    outline,
    state_of,
)
from gossipfl.store.disk import write_all
from gossipfl.trust.identity import Certificate

RECORDINGS: Final = "recordings"
"""The folder in a node's state folder."""

KEPT: Final = 1024
"""Answers of each kind that are remembered, so as not to be written again: a node asks for the same few."""

_T = TypeVar("_T")


class Listening:
    """The four capabilities of a node's settings, with an ear at each: what they answer is noted for the next frame."""

    def __init__(self, settings: Settings) -> None:
        self.heard: list[Asked] = []
        self.known: dict[tuple[str, Any], Any] = {}
        self.inner = settings
        self.version, self.digest = settings.members.version, settings.members.digest
        self.federation_id = settings.members.federation_id
        self.settings = replace(settings, members=self, random=self, sign=self.sign, eta=self.eta)

    def random(self) -> float:
        return self.note("random", self.inner.random.random())

    def sign(self, kind: str, payload: bytes) -> bytes:
        return self.note("sign", self.inner.sign(kind, payload))

    def admits(self, certificate: Certificate) -> str:
        member, reason, detail = self.once("admits", certificate.digest, lambda _: self.admitted(certificate))
        if reason:
            raise Refused(reason, detail)
        return member

    def admitted(self, certificate: Certificate) -> tuple[str, str, str]:
        try:
            return self.inner.members.admits(certificate), "", ""
        except Refused as refusal:
            return "", refusal.reason, refusal.detail

    def eta(self, local_round: int) -> float:
        return self.once("eta", local_round, self.inner.eta)

    def neighbours(self, member: str) -> tuple[str, ...]:
        return self.once("neighbours", member, self.inner.members.neighbours)

    def mass(self, member: str) -> float:
        return self.once("mass", member, self.inner.members.mass)

    def has_left(self, member: str) -> bool:
        return self.once("left", member, self.inner.members.has_left)

    def note(self, kind: str, answer: _T) -> _T:
        self.heard.append((kind, answer))
        return answer

    def once(self, kind: str, key: Any, ask: Callable[[Any], _T]) -> _T:
        """The answer to a question that has one answer for ever; noted when it is not remembered."""
        found: _T | None = self.known.get((kind, key))
        if found is None:
            found = ask(key)
            if len(self.known) >= KEPT:
                self.known.pop(next(iter(self.known)))
            self.known[kind, key] = found
            self.heard.append((kind, [key, found]))
        return found

    def taken(self) -> list[Asked]:
        heard, self.heard = self.heard, []
        return heard


class Recorder:
    """Writes one life of one node. It holds nothing but the frame that it writes, and never stops the node: where writing
    fails or the limit is reached it stops recording, and `failure` says why."""

    def __init__(
        self, write: Callable[[bytes], object], settings: Settings, shape: Shape, software: str, limit: int = 1 << 62
    ) -> None:
        self.listening = Listening(settings)
        self.settings = self.listening.settings
        self.limit, self.events = limit, 0
        self.failure = ""
        self.path: Path | None = None
        self._write = write
        self._frames: Frames | None = None
        self._put(["life", settings.me, software, [shape.n_parameters, shape.n_moments, shape.dtype], _plain(settings)])

    @classmethod
    def create(cls, folder: Path, settings: Settings, shape: Shape, software: str, limit: int) -> Recorder:
        """Into a new file of this folder, mode 0600, named by the time. Raises ConfigError (exit 73)."""
        stamp = time.strftime("%Y%m%dT%H%M%S", time.gmtime()) + f".{time.time_ns() // 1000 % 10**6:06d}Z"
        path = folder / f"{settings.me}-{stamp}{SUFFIX}"
        file = new_file(path)
        recorder = cls(lambda data: write_all(file.fileno(), data), settings, shape, software, limit)
        recorder.path = path
        return recorder

    def listen(self, peer: Peer) -> None:
        """From now on all that this core is given passes through here: on file before any command is carried out. Before its
        first event."""
        peer.settings, handle = self.settings, peer.handle

        def listening(event: ev.Event, now: Instant) -> list[ev.Command]:
            if peer.settings is not self.settings:
                self.settings = peer.settings
                self._put(["changed", _values(peer.settings), peer.turn_next])
            try:
                commands = handle(event, now)
            except BaseException as error:
                self.raised(event, now, error)
                raise
            self.fed(event, now, commands)
            return commands

        peer.handle = listening  # type: ignore[method-assign]  # the core has one door, and this stands before it

    def fed(self, event: ev.Event, now: Instant, commands: Sequence[ev.Command]) -> None:
        """The core was given this event and answered with these commands."""
        asked = self.listening.taken()
        if self.failure:
            return
        outlines = [outline(command) for command in commands]
        self.events += 1
        self._put(["fed", now.mono_ns, now.wall_ns, event_out(event), asked, digest_of(commands), outlines, ""])

    def raised(self, event: ev.Event, now: Instant, error: BaseException) -> None:
        """The core died of this event."""
        said = f"{type(error).__name__}: {error}"[:1000]
        self.events += 1
        self._put(["fed", now.mono_ns, now.wall_ns, event_out(event), self.listening.taken(), b"", [], said])

    def mark(self, now: Instant, kind: MarkKind, text: str) -> None:
        """What an observer had to say."""
        self._put(["mark", now.mono_ns, now.wall_ns, kind, text[:1000]])

    def end(self, peer: Peer) -> None:
        """The node has stopped well."""
        self._put(["end", self.events, state_of(peer)])

    def _put(self, body: Any) -> None:
        if self.failure:
            return
        if self._frames is not None and self._frames.size >= self.limit:
            self.failure = f"the recording has reached its limit of {self.limit >> 20} MiB and ends there"
            return
        try:
            self._frames = self._frames or Frames(self._write)
            self._frames.add(body)
        except OSError as error:
            self.failure = f"the recording ends here, it cannot be written: {error.strerror}"


def _values(settings: Settings) -> dict[str, Any]:
    return {part.name: getattr(settings, part.name) for part in fields(settings) if part.name not in CAPABILITIES}


def _plain(settings: Settings) -> dict[str, Any]:
    """The settings that are values, and the names and papers of the others."""
    members: Members = settings.members
    return _values(settings) | {
        "certificate": settings.certificate.encoded,
        "certificates": [certificate.encoded for certificate in settings.certificates],
        "dialable": sorted(settings.dialable),
        "members": [members.version, members.digest, members.federation_id],
    }
