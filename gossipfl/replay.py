"""A recording run again: the core over its own past, event by event, each command list compared with the recorded one.

The injected capabilities are played from the recording: random draws and answers about members as they were given, each
signature only if it is one of this member's over the very bytes that the core wants signed now. No clock, no disk, no
network. Not here: the bytes of a recording (gossipfl.recording), what a person is shown (cli.replay).
"""

from __future__ import annotations

import hashlib
from collections import Counter, deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, Protocol

from gossipfl.errors import Refused
from gossipfl.protocol import events as ev
from gossipfl.protocol.core import Settings
from gossipfl.protocol.events import Instant
from gossipfl.protocol.peer import Peer
from gossipfl.recording import ROWS, Asked, Changed, End, Entry, Fed, Life, Mark, digest_of, outline, state_of
from gossipfl.trust.identity import Certificate, verify

ABSENT: Final = "(none)"

LATEST: Final = 64
"""Commits back from the end of a life at which the next one may begin: a crash takes one, a power cut a few."""

MARKS: Final = 1000
"""Marks of a kind that are kept; the rest are like the first."""

JOBS: Final = (ev.Train, ev.Absorb, ev.Encode, ev.Mix, ev.Undo, ev.GiveBack, ev.Correct, ev.Estimate, ev.Prepare)


class Astray(Exception):
    """The core asks for what it did not ask for when it was recorded."""


class Prompted:
    """The capabilities of a node's settings, as the recording says that they answered."""

    def __init__(self, life: Life) -> None:
        values = dict(life.settings)
        self.version, self.digest, self.federation_id = values.pop("members")
        self.known: dict[tuple[str, Any], Any] = {}
        self.coming: deque[Asked] = deque()
        self.certificate = Certificate.decode(values.pop("certificate"))
        certificates = tuple(Certificate.decode(each) for each in values.pop("certificates"))
        dialable = frozenset(values.pop("dialable"))
        self.settings = Settings(
            members=self, certificate=self.certificate, certificates=certificates, sign=self.sign, random=self,
            eta=self.eta, dialable=dialable, **values,
        )  # fmt: skip

    def prompt(self, asked: Iterable[Asked]) -> None:
        """What the next event's questions will be answered with."""
        self.coming.clear()
        for kind, answer in asked:
            if kind in ("random", "sign"):
                self.coming.append((kind, answer))
            else:
                self.known[kind, answer[0]] = answer[1]

    def next(self, kind: str) -> Any:
        if not self.coming:
            raise Astray(f"the core asks once more than recorded ({kind})")
        recorded, answer = self.coming.popleft()
        if recorded != kind:
            raise Astray(f"the core asks for {kind} where it asked for {recorded}")
        return answer

    def once(self, kind: str, key: Any) -> Any:
        try:
            return self.known[kind, key]
        except KeyError:
            raise Astray(f"the core asks for the {kind} of {key!r}, which it did not") from None

    def random(self) -> float:
        return float(self.next("random"))

    def sign(self, kind: str, payload: bytes) -> bytes:
        signature = bytes(self.next("sign"))
        try:
            verify(kind, payload, signature, self.certificate.signing)
        except Refused:
            raise Astray(f"the core signs another {kind} than the recorded one") from None
        return signature

    def admits(self, certificate: Certificate) -> str:
        member, reason, detail = self.once("admits", certificate.digest)
        if reason:
            raise Refused(reason, detail)
        return str(member)

    def eta(self, local_round: int) -> float:
        return float(self.once("eta", local_round))

    def neighbours(self, member: str) -> tuple[str, ...]:
        return tuple(self.once("neighbours", member))

    def mass(self, member: str) -> float:
        return float(self.once("mass", member))

    def has_left(self, member: str) -> bool:
        return bool(self.once("left", member))


@dataclass(frozen=True, slots=True)
class Difference:
    """Where the run of now parts from the recorded one: the first place, both sides."""

    event: int
    """counted from 1"""
    now: Instant
    what: str
    """the event, in brief"""
    where: str
    """of its commands: number and field"""
    recorded: str
    replayed: str


@dataclass(frozen=True, slots=True)
class Noted:
    """A mark, and where it stands."""

    entry: int
    event: int
    mark: Mark


@dataclass
class Replayed:
    """What a replay found."""

    life: Life
    entries: int = 0
    events: int = 0
    commands: int = 0
    exchanges: int = 0
    """done in this life"""
    began: Instant | None = None
    ended: Instant | None = None
    kinds: Counter[str] = field(default_factory=Counter)
    faults: list[Noted] = field(default_factory=list)
    violations: list[Noted] = field(default_factory=list)
    difference: Difference | None = None
    finished: bool = False
    """did the node stop well?"""
    rows: dict[tuple[str, str], bytes] = field(default_factory=dict)
    """the core's durable rows, as the replayed commits leave them"""
    began_with: bytes = b""
    """`digest_of_rows` that the node found on its disk"""
    states: deque[bytes] = field(default_factory=lambda: deque(maxlen=LATEST))
    """the same, after each of the latest commits"""
    status: dict[str, Any] = field(default_factory=dict)
    """what the replayed core says of itself"""
    recomputed: int = 0
    """jobs whose tensors were at hand and gave the recorded names again"""
    absent: int = 0
    """jobs whose tensors were not"""


class Hands(Protocol):
    """What carries jobs out again (gossipfl.recompute)."""

    def carry_out(self, job: ev.Job) -> ev.Event | None:
        """None where a tensor is not at hand."""
        ...

    def forget(self, live: frozenset[bytes]) -> None:
        """Nobody asks for any other name any more."""
        ...


class Replay:
    """One life, run again."""

    def __init__(self, life: Life, hands: Hands | None = None) -> None:
        self.prompted = Prompted(life)
        self.peer = Peer(self.prompted.settings)
        self.found = Replayed(life)
        self.hands = hands
        self.jobs: dict[int, ev.Job] = {}
        self.links_before = 0

    def take(self, entry: Entry) -> Difference | None:
        """The next entry of the recording; the difference, if there is one. Nothing may follow that."""
        found = self.found
        found.entries += 1
        if isinstance(entry, Mark):
            kept = found.violations if entry.kind == "violation" else found.faults
            if len(kept) < MARKS:
                kept.append(Noted(found.entries, found.events, entry))
        elif isinstance(entry, Changed):
            self.peer.settings = replace(self.peer.settings, **entry.settings)
            self.peer.turn_next = entry.turn_next
        elif isinstance(entry, End):
            found.finished = True
            if (mine := state_of(self.peer)) != entry.state and found.ended is not None:
                sides = (entry.state[:8].hex(), mine[:8].hex())
                found.difference = Difference(found.events, found.ended, "the end", "digest of the state", *sides)
        else:
            self.fed(entry)
        return found.difference

    def fed(self, entry: Fed) -> None:
        found = self.found
        found.events += 1
        found.kinds[type(entry.event).__name__] += 1
        found.began, found.ended = found.began or entry.now, entry.now
        self.again(entry)
        if found.difference is not None:
            return
        self.prompted.prompt(entry.asked)
        try:
            commands = self.peer.handle(entry.event, entry.now)
        except Astray as error:
            self.differs(entry, "what it asked for", ", ".join(kind for kind, _ in entry.asked) or ABSENT, str(error))
            return
        except Exception as error:
            said = f"{type(error).__name__}: {error}"[:1000]
            if said != entry.raised:
                self.differs(entry, "an error", entry.raised or ABSENT, said)
            return
        self.compare(entry, commands)
        if found.difference is None:
            self.carried(entry, commands)

    def compare(self, entry: Fed, commands: list[ev.Command]) -> None:
        if entry.raised:
            self.differs(entry, "an error", entry.raised, "commands")
        elif self.prompted.coming:
            rest = ", ".join(kind for kind, _ in self.prompted.coming)
            self.differs(entry, "what it asked for", rest, ABSENT)
        elif digest_of(commands) != entry.digest:
            outlines = [plain(outline(command)) for command in commands]
            self.differs(entry, *first_difference(list(map(plain, entry.outlines)), outlines))

    def carried(self, entry: Fed, commands: list[ev.Command]) -> None:
        found = self.found
        found.commands += len(commands)
        if isinstance(entry.event, ev.Started):
            found.rows = dict(entry.event.rows)
            found.began_with = digest_of_rows(found.rows)
            self.links_before = sum(link.exchanges for link in self.peer.links.values())
        for command in commands:
            if isinstance(command, ev.Commit):
                for kind, key, value in command.rows:
                    if value is None:
                        found.rows.pop((kind, key), None)
                    else:
                        found.rows[kind, key] = value
                found.states.append(digest_of_rows(found.rows))
                if self.hands is not None:
                    self.hands.forget(command.live)
            elif isinstance(command, JOBS):
                self.jobs[command.job] = command
        found.exchanges = sum(link.exchanges for link in self.peer.links.values()) - self.links_before

    def again(self, entry: Fed) -> None:
        """The job that this event ends, carried out again where its tensors are at hand."""
        job = self.jobs.pop(getattr(entry.event, "job", 0), None)
        if job is None or self.hands is None or isinstance(job, ev.Train | ev.Prepare | ev.Estimate):
            return
        event = self.hands.carry_out(job)
        if event is None:
            self.found.absent += 1
        elif event == entry.event:
            self.found.recomputed += 1
        else:
            _, recorded, replayed = first_difference([plain(outline(entry.event))], [plain(outline(event))])
            self.differs(entry, f"job {job.job} ({type(job).__name__})", recorded, replayed)

    def differs(self, entry: Fed, where: str, recorded: str, replayed: str) -> None:
        self.found.difference = Difference(self.found.events, entry.now, brief(entry.event), where, recorded, replayed)


def replay(life: Life, entries: Iterable[Entry], hands: Hands | None = None, until: int | None = None) -> Replayed:
    """Run the core over a recording, up to the first difference or the given number of events."""
    run = Replay(life, hands)
    for entry in entries:
        if run.take(entry) or run.found.events == until:
            break
    run.found.status = run.peer.status() if run.peer.running else {}
    return run.found


def digest_of_rows(rows: Mapping[tuple[str, str], bytes]) -> bytes:
    """SHA-256 of the rows that the core reads."""
    whole = hashlib.sha256()
    for (kind, key), value in sorted(rows.items()):
        if kind in ROWS:
            whole.update(f"{kind}/{key}/{len(value)}/".encode() + value)
    return whole.digest()


def behind(life: Replayed, rows: bytes) -> int | None:
    """How many commits of a life are missing on a disk whose rows have this digest; None: they are none of its states."""
    states = [life.began_with, *life.states] if len(life.states) < LATEST else list(life.states)
    return next((lost for lost, state in enumerate(reversed(states)) if state == rows), None)


# ---- for people ------------------------------------------------------------------------------------------------------


def plain(value: Any) -> Any:
    """An outline as lists, text and numbers: bytes in hexadecimal, so that both sides compare and print alike."""
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    if isinstance(value, dict):
        return {key: plain(one) for key, one in value.items()}
    return value.item() if hasattr(value, "item") else value


def brief(event: ev.Event) -> str:
    """One line of an event."""
    name, *values = plain(outline(event))
    if isinstance(event, ev.Started):
        return f"Started with {len(event.rows)} rows"
    if isinstance(event, ev.Received):
        return f"Received {type(event.message).__name__} on connection {event.conn}"
    return " ".join([name, *(str(value) for value in values if value != "")])[:160]


def first_difference(recorded: list[Any], replayed: list[Any]) -> tuple[str, str, str]:
    """(where, recorded, replayed) of the first command that differs, down to its field."""
    for number, (mine, theirs) in enumerate(zip(recorded, replayed, strict=False), 1):
        if mine != theirs:
            return _within(f"command {number} ({mine[0]})", mine, theirs)
    if len(recorded) != len(replayed):
        at = min(len(recorded), len(replayed))
        sides = (str(side[at]) if len(side) > at else ABSENT for side in (recorded, replayed))
        return (f"command {at + 1}", *sides)  # type: ignore[return-value]
    return "a part that the outline does not show", ABSENT, ABSENT


def _within(where: str, recorded: Any, replayed: Any) -> tuple[str, str, str]:
    if isinstance(recorded, list) and isinstance(replayed, list) and len(recorded) == len(replayed):
        same_kind = not recorded or recorded[0] == replayed[0] or not isinstance(recorded[0], str)
        for at, (mine, theirs) in enumerate(zip(recorded, replayed, strict=True)):
            if mine != theirs and same_kind:
                return _within(f"{where} / {at}", mine, theirs)
    if isinstance(recorded, dict) and isinstance(replayed, dict) and recorded.keys() == replayed.keys():
        for key, mine in recorded.items():
            if mine != replayed[key]:
                return _within(f"{where} / {key}", mine, replayed[key])
    return where, str(recorded), str(replayed)
