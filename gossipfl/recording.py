"""A node's run on file: every event that its core was given and what the core asked for meanwhile. The format, and a reader.

A run is its list of (now, event); together with what the injected capabilities answered (random draws, signatures, eta,
the membership) it repeats to the bit. Kept are control messages whole and tensors as names; never keys, never rows of data.
The layout of the bytes is in docs/recording.md. Not here: listening to a core (gossipfl.recorder), running one over a
recording (gossipfl.replay).
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from io import FileIO
from itertools import islice
from pathlib import Path
from typing import Any, Final, Literal, TypeVar

import msgspec

from gossipfl.errors import ConfigError, Exit, Fault, GossipError
from gossipfl.protocol import events as ev
from gossipfl.protocol import messages as ms
from gossipfl.protocol.events import Instant
from gossipfl.protocol.peer import Peer
from gossipfl.trust.identity import Certificate

MAGIC: Final = b"gossipfl recording 1\n"
"""The first line of every recording; the number is the format's version."""

SUFFIX: Final = ".recording"

TAG: Final = 16
"""Bytes of the chained hash after each frame."""

FRAME_MAX: Final = 64 << 20
"""Bytes of a frame that a reader takes: thousands of links fit the first event."""

ROWS: Final = frozenset({"link", "certificate", "course"})
"""Durable rows that the core reads. The others (federation file, fingerprint of the data) are not recorded."""

EVENTS: Final = {
    kind.__name__: kind
    for kind in (ev.Started, ev.Opened, ev.DialFailed, ev.Received, ev.BulkReceived, ev.Closed, ev.Alarm, ev.Stopping,
                 ev.Operator, ev.Trained, ev.Absorbed, ev.Encoded, ev.Mixed, ev.Undone, ev.Corrected, ev.Estimated,
                 ev.Prepared, ev.Failed)
}  # fmt: skip

encoder: Final = msgspec.msgpack.Encoder(order="deterministic", enc_hook=lambda value: value.item())
_T = TypeVar("_T")
MarkKind = Literal["fault", "violation"]


class Damaged(GossipError):
    """A recording whose bytes are not those that were written."""

    exit_code = Exit.CONFIG


@dataclass(frozen=True, slots=True)
class Shape:
    """Of the model: what recomputing a job needs beside the tensors."""

    n_parameters: int
    n_moments: int
    dtype: str


Asked = tuple[str, Any]
"""One answer of a capability: (random, draw) | (sign, signature), each time it is asked; (eta | neighbours | mass | left |
admits, [of what, answer]) when the recorder does not remember having written it."""


@dataclass(frozen=True, slots=True)
class Fed:
    """One event, in the order in which the core was asked."""

    now: Instant
    event: ev.Event
    asked: tuple[Asked, ...]
    digest: bytes
    """of the command list, see `digest_of`"""
    outlines: tuple[Any, ...]
    """of each command, see `outline`"""
    raised: str = ""
    """the error that came instead of commands"""


@dataclass(frozen=True, slots=True)
class Mark:
    """What an observer had to say at this point."""

    now: Instant
    kind: MarkKind
    """fault (it was enacted) | violation (of an invariant)"""
    text: str


@dataclass(frozen=True, slots=True)
class Changed:
    """Somebody changed the core from outside: its plain settings, and when it begins its next turn. Only tests do."""

    settings: dict[str, Any]
    turn_next: int


@dataclass(frozen=True, slots=True)
class End:
    """The node stopped well."""

    events: int
    state: bytes
    """see `state_of`"""


@dataclass(frozen=True, slots=True)
class Life:
    """The first frame: who ran, and what its settings said."""

    node: str
    software: str
    shape: Shape
    settings: dict[str, Any]


Entry = Fed | Mark | Changed | End


# ---- commands: their digest and their outline ------------------------------------------------------------------------


def digest_of(commands: Sequence[ev.Command]) -> bytes:
    """SHA-256 of the command list, every field of every command in it."""
    return hashlib.sha256(encoder.encode([(type(command).__name__, command) for command in commands])).digest()


def state_of(peer: Peer) -> bytes:
    """SHA-256 of what a core holds: every link, the models, the correction, the stage and its counters."""
    links = [peer.links[name] for name in sorted(peer.links)]
    course = [peer.current, peer.correction, peer.stage, peer.local_round, peer.released, peer.gradient, peer.frozen]
    return hashlib.sha256(encoder.encode([links, course])).digest()


def outline(value: Any) -> Any:
    """A value in brief, for people who look for a difference: names by their first eight bytes, longer bytes by a hash."""
    if isinstance(value, bytes):
        return value if len(value) <= 8 else value[:8] if len(value) == 32 else _hash(value, 8)
    if isinstance(value, str):
        return value if len(value) <= 80 else value[:60] + "…" + _hash(value.encode(), 8).hex()
    if isinstance(value, frozenset):
        return [len(value), _hash(b"".join(sorted(value)), 8)]
    if isinstance(value, list | tuple):
        return [outline(one) for one in value]
    if isinstance(value, dict):
        return {key: outline(one) for key, one in value.items()}
    if hasattr(value, "__struct_fields__"):
        return [type(value).__name__, *(outline(getattr(value, name)) for name in value.__struct_fields__)]
    if hasattr(value, "__dataclass_fields__"):
        return [type(value).__name__, *(outline(getattr(value, name)) for name in value.__dataclass_fields__)]
    return value


def _hash(data: bytes, size: int, key: bytes = b"") -> bytes:
    return hashlib.blake2b(data, digest_size=size, key=key).digest()


# ---- events as plain values ------------------------------------------------------------------------------------------


def event_out(event: ev.Event) -> list[Any]:
    """The event as msgpack values: its class, then its fields in order."""
    if isinstance(event, ev.Started):
        rows = sorted((kind, key, value) for (kind, key), value in event.rows.items() if kind in ROWS)
        named = [getattr(event, part.name) for part in fields(event)[1:-1]]
        return ["Started", rows, *named, sorted(event.missing)]
    values = [getattr(event, name) for name in event.__dataclass_fields__]
    return [type(event).__name__, *(_out(value) for value in values)]


def _out(value: Any) -> Any:
    if isinstance(value, Certificate):
        return value.encoded
    return ms.encode(value) if isinstance(value, msgspec.Struct) else value  # type: ignore[arg-type]


def event_in(values: list[Any]) -> ev.Event:
    """The event that `event_out` wrote. Raises whatever: the caller knows where it stood."""
    name, *held = values
    if name == "Started":
        held[0] = {(kind, key): value for kind, key, value in held[0]}
        held[-1] = frozenset(held[-1])
    elif name == "Opened":
        held[-1] = Certificate.decode(held[-1])
    elif name == "Received":
        held[-1] = ms.decode(held[-1])
    elif name == "Estimated":
        held[1] = tuple(held[1])
        held[2] = None if held[2] is None else ms.decode_normalisation(held[2])
    made: ev.Event = EVENTS[name](*held)
    return made


# ---- writing ---------------------------------------------------------------------------------------------------------


class Frames:
    """Frames one after the other, each bound to those before it."""

    def __init__(self, write: Callable[[bytes], object]) -> None:
        self.write = write
        self.tag = _hash(MAGIC, TAG)
        self.size = len(MAGIC)
        write(MAGIC)

    def add(self, body: Any) -> None:
        raw = body if isinstance(body, bytes) else encoder.encode(body)
        self.tag = _hash(raw, TAG, self.tag)
        length = len(raw)
        self.write(length.to_bytes(4, "big") + (length ^ 0xFFFFFFFF).to_bytes(4, "big") + raw + self.tag)
        self.size += 8 + length + TAG


def new_file(path: Path) -> FileIO:
    """A file that only this user reads, and that was not there. Raises ConfigError (exit 73)."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        return FileIO(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o600), "w")
    except OSError as error:
        fault = Fault(str(path), None, f"cannot be made: {error.strerror}", "free space, or choose another place")
        raise ConfigError(fault, exit_code=Exit.STATE) from None


# ---- reading ---------------------------------------------------------------------------------------------------------


class Recording:
    """One recording, read front to back as often as one likes; nothing of it is held.

    `torn` says after a whole reading that the last frame was incomplete and is left out: the node was killed or lost power
    while it wrote.

    **Raises**: Damaged where the bytes are not those that were written; ConfigError (exit 78) for what is no recording."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.torn = False
        try:
            bodies = self._bodies()
            self.first = next(bodies, b"")
        except OSError as error:
            raise ConfigError(Fault(str(path), None, f"cannot be read: {error.strerror}", "name a recording")) from None
        self.torn = False
        if not self.first:
            raise Damaged(f"{path}: holds no whole frame; the node was killed as it began, nothing can be replayed")
        self.life = self._decoded(0, self.first, _life)

    def bodies(self) -> Iterator[bytes]:
        """The frames after the first, as they stand."""
        bodies = self._bodies()
        next(bodies)
        return bodies

    def __iter__(self) -> Iterator[Entry]:
        for number, body in enumerate(self.bodies(), 1):
            yield self._decoded(number, body, _entry)

    def _decoded(self, number: int, body: bytes, read: Callable[[Any], _T]) -> _T:
        try:
            return read(msgspec.msgpack.decode(body))
        except Exception as error:
            why = f"{type(error).__name__}: {error}"
            raise Damaged(
                f"{self.path}: frame {number} is whole, and means nothing to this version: {why}; replay it with the "
                f"gossipfl that recorded it"
            ) from None

    def _bodies(self) -> Iterator[bytes]:
        with self.path.open("rb") as file:
            start = file.read(len(MAGIC))
            if start != MAGIC:
                what = "of another version" if start.startswith(MAGIC[:18]) else "no recording of gossipfl"
                remedy = f"name a file that `gossipfl node run --record` wrote (*{SUFFIX})"
                raise ConfigError(Fault(str(self.path), None, what, remedy))
            tag, number, at = _hash(MAGIC, TAG), 0, len(MAGIC)
            while head := file.read(8):
                length = int.from_bytes(head[:4], "big")
                if len(head) < 8 or not any(head):
                    self.torn = self._ends(file, at, number)
                    return
                if length ^ 0xFFFFFFFF != int.from_bytes(head[4:], "big") or length > FRAME_MAX:
                    raise self._damage(number, at)
                body, found = file.read(length), file.read(TAG)
                if len(found) < TAG:
                    self.torn = True
                    return
                tag = _hash(body, TAG, tag)
                if tag != found:
                    raise self._damage(number, at)
                yield body
                number, at = number + 1, file.tell()

    def _ends(self, file: Any, at: int, number: int) -> bool:
        """A frame that was begun, or room that a file system reserved and never filled: then zeros to the end."""
        while rest := file.read(1 << 20):
            if any(rest):
                raise self._damage(number, at)
        return True

    def _damage(self, number: int, at: int) -> Damaged:
        return Damaged(
            f"{self.path}: frame {number}, at byte {at}, is not as it was written; copy the recording again, or cut it "
            f"before: gossipfl replay --until {max(0, number - 1)} --cut OUT"
        )


def _life(values: list[Any]) -> Life:
    what, node, software, shape, settings = values
    assert what == "life"
    return Life(node, software, Shape(*shape), settings)


def _entry(values: list[Any]) -> Entry:
    if values[0] == "fed":
        _, mono, wall, event, asked, digest, outlines, raised = values
        pairs = tuple((kind, answer) for kind, answer in asked)
        return Fed(Instant(mono, wall), event_in(event), pairs, digest, tuple(outlines), raised)
    if values[0] == "mark":
        return Mark(Instant(values[1], values[2]), values[3], values[4])
    if values[0] == "changed":
        return Changed(values[1], values[2])
    assert values[0] == "end"
    return End(values[1], values[2])


def cut(recording: Recording, entries: int, out: Path) -> None:
    """The first `entries` entries as a recording of its own. Raises ConfigError (exit 73): never over another file."""
    with new_file(out) as file:
        frames = Frames(file.write)
        frames.add(recording.first)
        for body in islice(recording.bodies(), entries):
            frames.add(body)
