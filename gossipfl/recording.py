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
from dataclasses import MISSING, dataclass, fields
from io import FileIO
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeVar, get_type_hints

import msgspec

from gossipfl.errors import ConfigError, Exit, Fault, GossipError, printable
from gossipfl.protocol import events as ev
from gossipfl.protocol import messages as ms
from gossipfl.protocol.core import Settings
from gossipfl.protocol.events import Instant
from gossipfl.protocol.peer import Peer
from gossipfl.trust.identity import MEMBER_ID, Certificate

MAGIC: Final = b"gossipfl recording 1\n"
"""The first line of every recording; the number is the format's version."""

SUFFIX: Final = ".recording"

TAG: Final = 16
"""Bytes of the chained hash after each frame."""

FED: Final = b"\xa3fed"
"""How the body of an event begins, after the byte that says how many parts it has."""

FRAME_MAX: Final = 64 << 20
"""Bytes of a frame that a reader takes: thousands of links fit the first event."""

ROWS: Final = frozenset({"link", "certificate", "course"})
"""Durable rows that the core reads. The others (federation file, fingerprint of the data) are not recorded."""

EVENTS: Final = {
    kind.__name__: kind
    for kind in (ev.Started, ev.Opened, ev.DialFailed, ev.Received, ev.BulkReceived, ev.Closed, ev.Alarm, ev.Stopping,
                 ev.Operator, ev.Trained, ev.Absorbed, ev.Encoded, ev.Mixed, ev.Undone, ev.GivenBack, ev.Corrected, ev.Estimated,
                 ev.Prepared, ev.Failed)
}  # fmt: skip

CAPABILITIES: Final = frozenset({"members", "sign", "random", "eta", "certificate", "certificates", "dialable", "verify"})
"""Settings that are recorded by what they answer, or not as they stand."""

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
        named = [getattr(event, name) for name in event.__struct_fields__[1:-1]]
        return ["Started", rows, *named, sorted(event.missing)]
    values = [getattr(event, name) for name in event.__struct_fields__]
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


# ---- what stands in a frame, by its type: a recording comes from elsewhere ---------------------------------------------

MemberName = Annotated[str, msgspec.Meta(pattern=rf"\A{MEMBER_ID.pattern}\Z")]
"""Names of a recording are shown to people and written into a scenario: they are member ids and nothing else."""

Size = Annotated[int, msgspec.Meta(ge=0, le=1 << 40)]

ANSWERS: Final[dict[str, Any]] = {
    "random": float, "sign": bytes, "eta": tuple[int, float], "neighbours": tuple[MemberName, tuple[MemberName, ...]],
    "mass": tuple[MemberName, float], "left": tuple[MemberName, bool], "admits": tuple[bytes, tuple[str, str, str]],
}  # fmt: skip
"""What each capability answers; see `Asked`."""

DEEP: Final = 16
"""Lists in lists of an outline; commands hold some five."""


def _types_of(kind: type) -> dict[str, Any]:
    return {name: hint for name, hint in get_type_hints(kind).items() if name not in CAPABILITIES}


_CHANGED: Final = _types_of(Settings)
_NEEDED: Final = [part.name for part in fields(Settings) if part.default is MISSING and part.name not in CAPABILITIES]
_TOLD: Final = msgspec.defstruct(
    "settings",
    [
        *((name, _CHANGED[name]) for name in _NEEDED),
        ("members", tuple[int, bytes, bytes]), ("certificate", bytes), ("certificates", list[bytes]),
        ("dialable", list[MemberName]),
        *((name, hint | msgspec.UnsetType, msgspec.UNSET) for name, hint in _CHANGED.items() if name not in _NEEDED),
    ],
    forbid_unknown_fields=True,
)  # fmt: skip
_EVENT_TYPES: Final = {name: get_type_hints(kind) for name, kind in EVENTS.items()}
_DECODED: Final = frozenset({("Opened", "certificate"), ("Received", "message"), ("Estimated", "normalisation")})
"""Fields of events that have a decoder of their own, as strict."""


def _typed_event(event: ev.Event) -> ev.Event:
    name = type(event).__name__
    for part, hint in _EVENT_TYPES[name].items():
        if (name, part) not in _DECODED:
            msgspec.convert(getattr(event, part), hint)
    return event


def _outlines(values: Any) -> tuple[Any, ...]:
    def shallow(value: Any, left: int) -> None:
        if left == 0:
            raise ValueError("an outline is too deep")
        for one in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
            shallow(one, left - 1)

    for value in msgspec.convert(values, list[list[Any]]):
        if not value or not isinstance(value[0], str):
            raise ValueError("an outline names no command")
        shallow(value, DEEP)
    return tuple(values)


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
            why = printable(f"{type(error).__name__}: {error}"[:300])
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
            tag, number, at, events = _hash(MAGIC, TAG), 0, len(MAGIC), 0
            while head := file.read(8):
                length = int.from_bytes(head[:4], "big")
                if len(head) < 8 or not any(head):
                    self.torn = self._ends(file, at, number, events)
                    return
                if length ^ 0xFFFFFFFF != int.from_bytes(head[4:], "big") or length > FRAME_MAX:
                    raise self._damage(number, at, events)
                body, found = file.read(length), file.read(TAG)
                if len(found) < TAG:
                    self.torn = True
                    return
                tag = _hash(body, TAG, tag)
                if tag != found:
                    raise self._damage(number, at, events)
                yield body
                number, at, events = number + 1, file.tell(), events + (body[1:5] == FED)

    def _ends(self, file: Any, at: int, number: int, events: int) -> bool:
        """A frame that was begun, or room that a file system reserved and never filled: then zeros to the end."""
        while rest := file.read(1 << 20):
            if any(rest):
                raise self._damage(number, at, events)
        return True

    def _damage(self, number: int, at: int, events: int) -> Damaged:
        before = f", or cut it before: gossipfl replay {self.path} --until {events} --cut OUT" if events else ""
        return Damaged(
            f"{self.path}: frame {number}, at byte {at}, is not as it was written; copy the recording again{before}"
        )


def _life(values: Any) -> Life:
    what, node, software, shape, settings = values
    convert = msgspec.convert
    convert(what, Literal["life"])
    told: Any = convert(settings, _TOLD)
    if convert(node, MemberName) != told.me:
        raise ValueError("the settings are another node's")
    for each in (told.certificate, *told.certificates):
        Certificate.decode(each)
    p, m, dtype = convert(shape, tuple[Size, Size, Literal["float32", "float64"]])
    return Life(node, convert(software, str), Shape(p, m, dtype), settings)


def _entry(values: Any) -> Entry:
    convert = msgspec.convert
    if values[0] == "fed":
        _, mono, wall, event, asked, digest, outlines, raised = values
        pairs = tuple((kind, convert(answer, ANSWERS[kind])) for kind, answer in asked)
        now = Instant(convert(mono, int), convert(wall, int))
        typed = _typed_event(event_in(event))
        return Fed(now, typed, pairs, convert(digest, bytes), _outlines(outlines), convert(raised, str))
    if values[0] == "mark":
        _, mono, wall, kind, text = values
        return Mark(Instant(convert(mono, int), convert(wall, int)), convert(kind, MarkKind), convert(text, str))
    if values[0] == "changed":
        _, settings, turn_next = values
        for name, value in settings.items():
            convert(value, _CHANGED[name])
        return Changed(settings, convert(turn_next, int))
    what, events, state = values
    convert(what, Literal["end"])
    return End(convert(events, int), convert(state, bytes))


def cut(recording: Recording, entries: int, out: Path) -> None:
    """The first `entries` entries as a recording of its own. Raises ConfigError (exit 73): never over another file."""
    with new_file(out) as file:
        frames = Frames(file.write)
        frames.add(recording.first)
        for body in islice(recording.bodies(), entries):
            frames.add(body)
