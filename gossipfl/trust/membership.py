"""Who belongs to a federation and what is trained how: the federation file, frozen and checked.

One door for everybody who asks "is this a member, how heavy, whom may it talk to". A later charter that k of n sign
replaces the file behind this door. Not here: keys and signatures (gossipfl.trust.identity), graphs (gossipfl.topology),
and whether a certificate is still valid now (the caller has the clock).
"""

from __future__ import annotations

import base64
import binascii
import difflib
import hashlib
import json
import math
import re
import statistics
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, ConfigDict, Field, JsonValue, field_validator, model_validator

from gossipfl import defaults, topology
from gossipfl.documents import Many, Strict, from_json, read_text
from gossipfl.errors import ConfigError, Fault, GossipError, Misuse, Refused
from gossipfl.protocol.messages import CERTIFICATE_MAX
from gossipfl.trust.identity import MEMBER_ID, Certificate

OBSERVER_MASS: Final = 0.01
"""An observer follows the others and hardly moves them: its mass beside a mean of 1."""

TURN: Final = 0.25
"""Over a sparse codec's share: by how much more its release takes, since each number waits for its turn. Measured: from models
that have nothing in common to a hundredth of their distance in 26 rounds, 43 at a share of .25, 85 at .1, 155 at .05."""

MEMBERS_MAX: Final = 10_000
"""Above it the file and every node's table would no longer be small."""

LINE_PREFIX: Final = "gossipfl-member:v1:"


def valid_member_id(text: str) -> str:
    """The text, if it can be a member's id; else a ValueError that says what can."""
    if not MEMBER_ID.fullmatch(text):
        raise ValueError("not a member id -- use 1 to 32 of a-z, 0-9 and -, not beginning with -")
    return text


def _hex32(text: str) -> str:
    if not re.fullmatch(r"[0-9a-f]{64}", text):
        raise ValueError("not 32 bytes in hexadecimal -- use 64 of 0-9 and a-f")
    return text


def _codec(text: str) -> str:
    if text in CODECS or SPARSE.fullmatch(text):
        return text
    near = difflib.get_close_matches(text, CODECS, 1)
    known = f"use {', '.join(CODECS)}, or a share such as topk:0.1 or sign:0.1, no 0 at its end"
    raise ValueError(f"no codec -- did you mean {near[0]!r}?" if near else f"no codec -- {known}")


CODECS: Final = ("f64", "f32", "bf16", "int8", "int4")
"""Those that send every number; learning.compression has them all, which this room does not import."""

SPARSE: Final = re.compile(r"(?:topk|sign):(0\.\d{0,5}[1-9])", re.ASCII)
"""Those that send a share of the numbers."""

CodecName = Annotated[str, AfterValidator(_codec)]
MemberId = Annotated[str, AfterValidator(valid_member_id)]
Hex32 = Annotated[str, AfterValidator(_hex32)]
Positive = Annotated[float, Field(gt=0, le=1e9)]
Share = Annotated[float, Field(ge=0, le=1)]
Whole = Annotated[int, Field(ge=1, le=10**9)]


class Study(Strict):
    """One training effort: the same constants at every member."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    name: Annotated[str, Field(min_length=1, max_length=100)] = "study"
    """What people call it."""
    task: Annotated[str, Field(min_length=1, max_length=200)]
    """A built-in task's short name, or `module:attribute`; from the operator's file only, never from a peer."""
    task_options: dict[str, JsonValue] = Field(default_factory=dict)
    """What the task is made with, e.g. the schema of a table."""
    seed: Annotated[int, Field(ge=0, lt=2**53)] = 0
    """Of x^0, which everybody makes alike."""
    holdout: Annotated[float, Field(gt=0, le=0.9)] = 0.25
    """Share of each site's rows that is never trained on."""
    holdout_key: Hex32
    """Key of the hash of row ids that picks them."""
    local_rounds: Whole = 60
    """Local rounds of training before the release."""
    local_steps: Whole = 10
    """H: optimiser steps in a local round."""
    exchanges: Annotated[int, Field(ge=1, le=1000)] = 1
    """Exchanges that a node begins after each local round, one after the other; it answers about as many."""
    batch_size: Whole | None = None
    """Rows in a step; none: all local rows."""
    optimizer: Literal["sgd", "adam"] = "sgd"
    """What turns a gradient into a step."""
    eta: Positive = 0.1
    """Learning rate at the start."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Of SGD."""
    proximal: Annotated[float, Field(ge=0, le=1e6)] = 0.0
    """FedProx's pull towards the model that the local round began with."""
    l2: Annotated[float, Field(ge=0, le=1e6)] = 1e-3
    """Weight of half the squared norm of the parameters in the loss."""
    schedule: Literal["cosine", "constant", "tail"] = "cosine"
    """How eta falls over the local rounds: cosine to 2 %, not at all, or constant for 70 % and then linear to 2 %."""
    correction: Literal["ledger", "none"] = "ledger"
    """Whether the flow over links corrects drift."""
    theta: Share = defaults.theta(2)
    """Strength of the correction: 1 can diverge."""
    heaviest: Annotated[float, Field(ge=1, le=1e9)] = defaults.HEAVIEST
    """Medians of the declared counts that one site may weigh at most."""
    gamma: Annotated[float, Field(gt=0, le=1)] = defaults.GAMMA
    """Share of the difference that an exchange moves: 1/2 because exchanges of a node overlap."""
    leak: Share = defaults.LEAK
    """Share of a link's flow that is forgotten at each exchange."""
    cap: Annotated[float, Field(ge=0, le=1e9)] = defaults.CAP
    """Largest norm of a link's flow, in gradient norms over the degree; 0: none."""
    clip: Annotated[float, Field(ge=0, le=1e9)] = defaults.CLIP
    """Largest norm of a difference let through, in eta * H * gradient norm; 0: none."""
    codec: CodecName = "f32"
    """How a delta is written: f64, f32, bf16, int8, or topk:0.1, the tenth of the numbers that changed most."""
    release_exchanges: Annotated[int, Field(ge=0, le=10**6)] | None = None
    """Mixing-only exchanges at the end; none: as many as the topology needs."""
    statistics_tolerance: Annotated[float, Field(gt=0, le=0.1)] = 1e-12
    """Largest relative difference at which a node's statistics count as settled."""
    minimum_count: Annotated[int, Field(ge=2, le=10**6)] = 10
    """Fewest non-missing values from which a site adds a feature's sums: below, sums are nearly rows."""
    exchange_patience_s: Annotated[float, Field(ge=0, le=86_400)] = 5.0
    """Seconds that a local round waits for its exchange before the next begins."""
    local_round_s: Annotated[float, Field(ge=0, le=86_400)] = 0.0
    """Least seconds between the beginnings of two local rounds."""
    inbound_per_minute: Annotated[int, Field(ge=1, le=10**6)] = 60
    """Exchanges that one neighbour may begin with me in a minute."""
    resets_per_day: Annotated[int, Field(ge=0, le=1000)] = 3
    """Full models that one neighbour may ask for in a day, after the link's first."""

    @property
    def holdout_key_bytes(self) -> bytes:
        return bytes.fromhex(self.holdout_key)


class Member(Strict):
    """One institution's node."""

    id: MemberId
    identity: Hex32
    """Ed25519 public identity key."""
    certificate: Annotated[str, Field(max_length=2 * CERTIFICATE_MAX)]
    """Base64 of the operational certificate's signed bytes, the newest at the time of writing."""
    role: Literal["trainer", "observer"] = "trainer"
    """A trainer has data; an observer only follows."""
    count: Annotated[int, Field(ge=0, le=10**9)] = 0
    """Training rows, declared and rounded; 0: not declared."""
    mass: Annotated[float, Field(gt=0, le=1e6)] = 1.0
    """Weight in every mix; the trainers' mean is 1."""
    status: Literal["active", "left"] = "active"
    """Only this word says that somebody left, never a timeout."""

    @model_validator(mode="after")
    def _certified(self) -> Member:
        certificate = self.certificate_read
        if certificate.member != self.id:
            raise ValueError(f"the certificate of {self.id!r} is that of {certificate.member!r} -- copy its own line")
        if certificate.identity.hex() != self.identity:
            raise ValueError(f"the certificate of {self.id!r} is under another identity key -- copy its own line")
        return self

    @property
    def certificate_bytes(self) -> bytes:
        return _unbase64(self.certificate)

    @cached_property
    def certificate_read(self) -> Certificate:
        """The certificate, its signature verified; its dates are not looked at here."""
        try:
            return Certificate.decode(self.certificate_bytes)
        except GossipError as error:
            raise ValueError(f"the certificate is not valid: {error} -- ask the member for a new line") from None

    @property
    def identity_bytes(self) -> bytes:
        return bytes.fromhex(self.identity)

    @property
    def is_active(self) -> bool:
        return self.status == "active"


class Topology(Strict):
    """How the graph is made from the active ids."""

    rule: Literal["auto", "complete", "regular", "ring"] = "auto"
    """auto: complete up to 16 members, else regular."""
    degree: Annotated[int, Field(ge=2, le=1000)] = topology.DEGREE
    """Of the rule regular: even."""

    @field_validator("degree")
    @classmethod
    def _even(cls, degree: int) -> int:
        if degree % 2:
            raise ValueError(f"odd -- a union of cycles has an even degree: {degree - 1} or {degree + 1}")
        return degree


class Membership(Strict):
    """One version of who belongs. Two nodes exchange models only under the same one."""

    version: Annotated[int, Field(ge=1, le=2**53)]
    """Higher replaces lower."""
    federation: Hex32
    """Drawn once; the federation's name on the wire."""
    members: Many[Member]
    """In id order; one that left stays, so that its links can end."""
    topology: Topology = Topology()
    study: Study
    layout: Hex32
    """Digest of the model's Layout."""
    x0: Hex32
    """Name of the first model's bytes."""

    @field_validator("members")
    @classmethod
    def _in_order(cls, members: tuple[Member, ...]) -> tuple[Member, ...]:
        ids = [member.id for member in members]
        if not 1 <= len(ids) <= MEMBERS_MAX:
            raise ValueError(f"{len(ids)} members -- from 1 to {MEMBERS_MAX} are possible")
        if repeated := sorted({one for one in ids if ids.count(one) > 1} if len(set(ids)) < len(ids) else ()):
            raise ValueError(f"the id {repeated[0]!r} stands twice -- ids are unique for ever, also after leaving")
        if ids != sorted(ids):
            raise ValueError("not in the order of their ids -- sort them")
        if len({member.identity for member in members}) < len(members):
            raise ValueError("two have the same identity key -- each node needs keys of its own")
        return members

    @classmethod
    def parse(cls, text: str, file: str = "federation.json") -> Membership:
        """The membership that a JSON text is. Raises ConfigError with every fault."""
        return from_json(cls, text, file)

    @classmethod
    def load(cls, path: Path) -> Membership:
        """The membership in a file. Raises ConfigError with every fault, file and line."""
        return cls.parse(read_text(path), str(path))

    def dump(self) -> str:
        """The file's text: indented JSON that `parse` reads back equal."""
        return json.dumps(self.model_dump(mode="json"), indent=2, ensure_ascii=False) + "\n"

    @cached_property
    def digest(self) -> bytes:
        """SHA-256 of the canonical JSON: sorted keys, no white space, every field present, ASCII."""
        tree = self.model_dump(mode="json")
        text = json.dumps(tree, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
        return hashlib.sha256(text.encode("ascii")).digest()

    # ---- members

    @cached_property
    def _by_id(self) -> dict[str, Member]:
        return {member.id: member for member in self.members}

    @cached_property
    def active(self) -> tuple[str, ...]:
        """Ids of the active members, sorted."""
        return tuple(member.id for member in self.members if member.is_active)

    def member(self, member_id: str) -> Member:
        """Raises Misuse for an id that is not in the document, left or not."""
        try:
            return self._by_id[member_id]
        except KeyError:
            raise Misuse(f"{member_id!r} is not in version {self.version} of the membership") from None

    def __contains__(self, member_id: object) -> bool:
        return member_id in self._by_id

    def is_active(self, member_id: str) -> bool:
        """False for strangers, too."""
        return member_id in self._by_id and self._by_id[member_id].is_active

    def has_left(self, member_id: str) -> bool:
        """Does the document say `left`? False for strangers: what is not in it is not known to have left."""
        return member_id in self._by_id and not self._by_id[member_id].is_active

    def mass(self, member_id: str) -> float:
        return self.member(member_id).mass

    @cached_property
    def _positions(self) -> dict[str, int]:
        return {member: at for at, member in enumerate(self.active)}

    def index(self, member_id: str) -> int:
        """Position among the active members in id order: the member's coordinate in the statistics vector."""
        try:
            return self._positions[member_id]
        except KeyError:
            raise Misuse(f"{member_id!r} is not an active member of version {self.version}") from None

    def admits(self, certificate: Certificate) -> str:
        """The id of the active member whose certificate this is.

        **Raises**: Refused("not-member"), a peer's fault: nobody of that id, another identity key, or left.
        """
        member = self._by_id.get(certificate.member)
        if member is None:
            raise Refused(
                "not-member",
                f"{certificate.member!r} is not in version {self.version} of the membership; "
                "add it with `gossipfl federation add`, or install the newer federation file",
            )
        if member.identity_bytes != bytes(certificate.identity):
            raise Refused(
                "not-member",
                f"{certificate.member!r} came with another identity key than the membership names; "
                "if its keys were made anew, a new federation file must say so",
            )
        if not member.is_active:
            raise Refused(
                "not-member",
                f"{certificate.member!r} left in version {self.version} of the membership or before; "
                "to come back it needs a new id and a new federation file",
            )
        return member.id

    # ---- graph

    @cached_property
    def dial_only(self) -> frozenset[str]:
        """Active members whose certificate in this document names no address: nobody can dial them."""
        return frozenset(id for id in self.active if not self.member(id).certificate_read.addresses)

    @cached_property
    def graph(self) -> dict[str, tuple[str, ...]]:
        """Active id -> neighbours, the same at every node: the rule's graph without pairs that can both only dial."""
        return {
            member: tuple(other for other in others if not {member, other} <= self.dial_only)
            for member, others in self.wanted_graph.items()
        }

    @property
    def wanted_graph(self) -> dict[str, tuple[str, ...]]:
        """The rule's graph, as if everybody could be dialled."""
        return topology.by_rule(self.topology.rule, self.active, self.topology.degree, self.federation_id)

    def neighbours(self, member_id: str) -> tuple[str, ...]:
        """Whom a member may talk to, sorted; nobody if it left or is a stranger."""
        return self.graph.get(member_id, ())

    @cached_property
    def release_exchanges(self) -> int:
        """Mixing-only exchanges before the release: the study's number, else what the graph needs, at most a quarter of
        those of the training."""
        if self.study.release_exchanges is not None:
            return self.study.release_exchanges
        needed = topology.release_exchanges(self.graph, self.study.gamma)
        if sparse := SPARSE.fullmatch(self.study.codec):
            needed = math.ceil(needed * (1 + TURN / float(sparse[1])))
        return min(needed, math.ceil(self.study.local_rounds * self.study.exchanges / 2))

    # ---- names

    @cached_property
    def federation_id(self) -> bytes:
        return bytes.fromhex(self.federation)

    @property
    def layout_digest(self) -> bytes:
        return bytes.fromhex(self.layout)

    @property
    def x0_name(self) -> bytes:
        return bytes.fromhex(self.x0)


# ---- making and changing ---------------------------------------------------------------------------------------------


def rounded(count: int) -> int:
    """A count to two significant digits: what a site declares of itself.

    >>> [rounded(n) for n in (7, 99, 101, 1249, 1251)]
    [7, 99, 100, 1200, 1300]
    """
    if count < 100:
        return count
    unit = int(10 ** (len(str(count)) - 2))
    return (count + unit // 2) // unit * unit


def masses(counts: Sequence[int], heaviest: float) -> list[float]:
    """min(n, `heaviest` median n), scaled to a mean of 1; a count of 0 (not declared) counts as the median.

    >>> masses([100, 100, 200, 1000], 3.0)
    [0.47058823529411764, 0.47058823529411764, 0.9411764705882353, 2.1176470588235294]
    >>> masses([0, 0], 3.0)
    [1.0, 1.0]
    """
    declared = [count for count in counts if count > 0]
    median = statistics.median(declared) if declared else 1.0
    heavy = [min(float(count or median), heaviest * median) for count in counts]
    return [mass / (math.fsum(heavy) / len(heavy)) for mass in heavy]


def weighted(members: Sequence[Member], heaviest: float) -> tuple[Member, ...]:
    """The same members in id order, the active ones with masses from their counts, observers with `OBSERVER_MASS`."""
    trainers = [member for member in members if member.is_active and member.role == "trainer"]
    heavy = masses([member.count for member in trainers], heaviest)
    mass_of = dict(zip((member.id for member in trainers), heavy, strict=True))
    ordered = sorted(members, key=lambda member: member.id)
    return tuple(_with_mass(member, mass_of.get(member.id)) for member in ordered)


def _with_mass(member: Member, mass: float | None) -> Member:
    if mass is None:
        mass = member.mass if not member.is_active else OBSERVER_MASS
    return member.model_copy(update={"mass": mass})


def create(
    *,
    federation: bytes,
    members: Sequence[Member],
    study: Study,
    layout: bytes,
    x0: bytes,
    topology: Topology | None = None,
) -> Membership:
    """Version 1. `federation` is 32 random bytes, `layout` and `x0` are digests. Raises ConfigError."""
    return _made(
        version=1,
        federation=federation.hex(),
        members=weighted(members, study.heaviest),
        topology=topology or Topology(),
        study=study,
        layout=layout.hex(),
        x0=x0.hex(),
    )


def with_members(old: Membership, *added: Member) -> Membership:
    """The next version: new members in, or known ones with newer certificate, role and count. Masses anew."""
    merged = old._by_id | {member.id: member for member in added}
    for member in added:
        if old.has_left(member.id):
            raise ConfigError(f"{member.id!r} has left this federation; it comes back under a new id")
        if member.id in old and old.member(member.id).identity != member.identity:
            raise ConfigError(f"{member.id!r} is a member with another identity key; use the line that it gave last")
    return _next(old, members=weighted(list(merged.values()), old.study.heaviest))


def without(old: Membership, member_id: str) -> Membership:
    """The next version, in which a member has left. Raises ConfigError if it is none."""
    if not old.is_active(member_id):
        raise ConfigError(f"{member_id!r} is not an active member; active are {', '.join(old.active)}")
    members = [
        member.model_copy(update={"status": "left"}) if member.id == member_id else member for member in old.members
    ]
    return _next(old, members=weighted(members, old.study.heaviest))


def _next(old: Membership, **changes: Any) -> Membership:
    fields = {name: getattr(old, name) for name in Membership.model_fields}
    return _made(**(fields | {"version": old.version + 1} | changes))


def _made(**fields: Any) -> Membership:
    try:
        return Membership(**fields)
    except ValueError as error:
        first = error.errors()[0]["msg"] if hasattr(error, "errors") else str(error)
        raise ConfigError(first.removeprefix("Value error, ")) from None


def replaces(old: Membership, new: Membership) -> bool:
    """May `new` take the place of `old`? The same federation, a higher version, the same layout and first model, nobody
    forgotten, no identity exchanged, nobody back who left. Settings of the study may change: a lower eta is a remedy."""
    if new.federation != old.federation or new.version <= old.version:
        return False
    if (new.layout, new.x0) != (old.layout, old.x0):
        return False
    return all(
        member.id in new
        and new.member(member.id).identity == member.identity
        and (member.is_active or new.has_left(member.id))
        for member in old.members
    )


# ---- the line that one institution gives to the others --------------------------------------------------------------


def member_line(certificate: bytes, *, role: str = "trainer", count: int = 0) -> str:
    """One line of text with a member's certificate, role and rounded count: nothing secret is in it."""
    tree = {"certificate": base64.b64encode(certificate).decode(), "role": role, "count": rounded(count)}
    return LINE_PREFIX + base64.urlsafe_b64encode(json.dumps(tree, separators=(",", ":")).encode()).decode()


class _Line(Strict):
    certificate: Annotated[str, Field(max_length=2 * CERTIFICATE_MAX)]
    role: Literal["trainer", "observer"]
    count: Annotated[int, Field(ge=0, le=10**9)]


def read_member_line(line: str, source: str = "member line") -> Member:
    """The member that a line describes. Raises ConfigError: not such a line, cut, or its certificate is not valid."""
    text = line.strip()
    if not text.startswith(LINE_PREFIX):
        raise ConfigError(Fault(source, None, f"does not begin with {LINE_PREFIX}", "copy the whole line of `init`"))
    try:
        body = base64.b64decode(text.removeprefix(LINE_PREFIX), altchars=b"-_", validate=True).decode()
    except (binascii.Error, UnicodeDecodeError):
        raise ConfigError(Fault(source, None, "is cut or altered", "copy the whole line of `init`")) from None
    found = from_json(_Line, body, source)
    try:
        certificate = Certificate.decode(_unbase64(found.certificate))
        return Member(
            id=certificate.member,
            identity=certificate.identity.hex(),
            certificate=found.certificate,
            role=found.role,
            count=rounded(found.count),
        )
    except (GossipError, ValueError) as error:
        raise ConfigError(Fault(source, None, f"its certificate is not valid: {error}", "ask for a new line")) from None


def _unbase64(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise ValueError("the certificate is not base64 -- copy the member's line again") from None
