"""What can go wrong in a simulated federation: one object of options, presets, classes, and single faults at stated times.

Values only. How a fault is enacted stands in network.py and the files beside it. Everything is off by default; each field is
one sentence with its unit. "Per node-hour" is the mean of a Poisson stream at each node, in virtual time.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from random import Random
from typing import Any, Final

from gossipfl.errors import Misuse

SHAPES: Final = ("halves", "isolated", "ring")
"""Partitions: two halves; one node alone; a ring in which each node reaches only its two neighbours by name."""

STORMS_MAX: Final = 1000
"""Crashes of one storm at most."""

HOSTILE_KINDS: Final = (
    "malformed", "oversized", "nonfinite", "stale", "replayed", "wrong-recipient", "equivocating", "refusing",
)  # fmt: skip
"""What a hostile member says over a valid session, with its real keys."""


@dataclass(frozen=True)
class Faults:
    """What goes wrong, and how often; all off by default."""

    cut_per_hour: float = 0.0
    """Connections cut per node-hour, in the middle of whatever they carry."""
    refused_dials: float = 0.0
    """Share of dials that are refused."""
    stall_per_hour: float = 0.0
    """Connections per node-hour that carry nothing in either direction for `stall_s`, then go on."""
    stall_s: float = 20.0
    """Mean seconds of a stall (exponential)."""
    half_open_per_hour: float = 0.0
    """Connections per node-hour that die without either end being told: nothing arrives any more."""
    drip_per_hour: float = 0.0
    """Connections per node-hour that carry no more than `drip_bytes_s` for `drip_s`."""
    drip_bytes_s: float = 200.0
    """Bytes a second of a dripping connection."""
    drip_s: float = 120.0
    """Mean seconds that a connection drips (exponential)."""
    one_way_per_hour: float = 0.0
    """Ways from a node to one other per node-hour over which nothing passes for `one_way_s`, while the way back is open."""
    one_way_s: float = 120.0
    """Mean seconds that a way is closed (exponential)."""
    partition_per_hour: float = 0.0
    """Partitions of the whole network per hour; one at a time."""
    partition_s: float = 360.0
    """Mean seconds until a partition heals (exponential)."""
    partition_shape: str = "halves"
    """Shape of partitions: halves, isolated (one node alone), ring, or any (drawn for each)."""
    crash_per_hour: float = 0.0
    """Crashes per node-hour: the process and what the disk had not yet synced are gone, half of them amid a commit."""
    down_s: float = 30.0
    """Mean seconds that a crashed node stays down (exponential)."""
    survival: float | None = None
    """Share of unsynced writes that survive a crash, 0 to 1; None draws 0 to 1 anew for each crash."""
    restart_storm_per_hour: float = 0.0
    """Storms per node-hour: the node crashes five times within a minute, each time soon after it has started."""
    blackout_per_hour: float = 0.0
    """Blackouts per hour: every node crashes at once and each stays down for its own `down_s`."""
    pause_per_hour: float = 0.0
    """Pauses of a whole process per node-hour: it reads, writes and computes nothing, and then goes on where it was."""
    pause_s: float = 20.0
    """Mean seconds of a pause (exponential)."""
    straggler_share: float = 0.0
    """Share of nodes whose computing takes `straggler_factor` times as long."""
    straggler_factor: float = 20.0
    """Times as long that a straggler computes."""
    straggler_tail: float = 0.0
    """Share of a straggler's jobs that take twice as long again, and of those again: a Pareto tail; 0 for none, 0.5 is heavy."""
    on_hours: float = 0.0
    """Mean hours that a node stays up before it goes off (exponential); 0 is always."""
    off_hours: float = 1.0
    """Mean hours that a node stays off before it comes back (exponential)."""
    sessions: tuple[tuple[str, float, float], ...] = ()
    """Up times read from a trace, each (node, from hour, to hour): a node that is named is up in these only, to the end."""
    late_share: float = 0.0
    """Share of nodes that join late, at a time uniform over `late_hours`."""
    late_hours: float = 1.0
    """Hours within which late nodes join."""
    leave_share: float = 0.0
    """Share of nodes whose operators order them to leave, at a time uniform over `leave_hours`."""
    leave_hours: float = 1.0
    """Hours within which leavers leave."""
    clock_skew_s: float = 0.0
    """Most seconds by which the wall clock of a node is off, either way (uniform)."""
    clock_drift_ppm: float = 0.0
    """Most parts in a million by which the clocks of a node run fast or slow (uniform)."""
    clock_jump_per_hour: float = 0.0
    """Jumps of the wall clock per node-hour."""
    clock_jump_s: float = 60.0
    """Most seconds of a jump, either way (uniform)."""
    disk_full_per_hour: float = 0.0
    """Times per node-hour that the disk is full for `disk_full_s`: the node stops as it would (exit 73) and is started again."""
    disk_full_s: float = 60.0
    """Mean seconds until there is space again (exponential)."""
    io_error_per_hour: float = 0.0
    """Writes or syncs per node-hour that the disk answers with an I/O error."""
    bit_rot_per_hour: float = 0.0
    """Bits per node-hour that flip in a stored tensor or row, at rest; found when it is next read."""
    duplicate_per_hour: float = 0.0
    """Control messages per node-hour that are said a second time, as after a retry."""
    hostile_share: float = 0.0
    """Share of nodes that lie over valid sessions, with their real keys."""
    hostile_per_hour: float = 20.0
    """Lies per hour of a hostile node."""
    hostile_kinds: tuple[str, ...] = HOSTILE_KINDS
    """What hostile nodes do: malformed, oversized, nonfinite, stale, replayed, wrong-recipient, equivocating, refusing."""
    until_hours: float = math.inf
    """Hours after which nothing new goes wrong and what is wrong heals."""

    def __post_init__(self) -> None:
        for one in fields(self):
            value = getattr(self, one.name)
            if one.name in ("partition_shape", "hostile_kinds", "sessions", "survival"):
                continue
            if not isinstance(value, int | float) or math.isnan(value) or value < 0:
                raise Misuse(f"faults.{one.name} = {value!r}; it must be a number, 0 or more")
            if one.name in SHARES and value > 1:
                raise Misuse(f"faults.{one.name} = {value:g}; it is a share, from 0 to 1")
        if self.survival is not None and not 0 <= self.survival <= 1:
            raise Misuse(f"faults.survival = {self.survival!r}; it is a share, from 0 to 1")
        if self.partition_shape not in (*SHAPES, "any"):
            raise Misuse(f"faults.partition_shape = {self.partition_shape!r}; choose {', '.join(SHAPES)} or any")
        if not self.hostile_kinds:
            raise Misuse(f"faults.hostile_kinds is empty; choose from {', '.join(HOSTILE_KINDS)}")
        unknown = sorted(set(self.hostile_kinds) - set(HOSTILE_KINDS))
        if unknown:
            raise Misuse(f"faults.hostile_kinds names {', '.join(unknown)}; choose from {', '.join(HOSTILE_KINDS)}")
        for name, begin, end in self.sessions:
            if not 0 <= begin < end:
                raise Misuse(f"faults.sessions: {name} is up from hour {begin:g} to {end:g}; the second must be later")

    def are_off(self, name: str) -> bool:
        """Is this class (a key of CLASSES) off?"""
        switch = CLASSES[name][0]
        return not getattr(self, switch) and not (name == "churn" and self.sessions) and not (
            name == "clock" and (self.clock_drift_ppm or self.clock_jump_per_hour)
        )  # fmt: skip

    def without(self, *classes: str) -> Faults:
        """The same with these classes (keys of CLASSES) off."""
        default = Faults()
        return replace(self, **{one: getattr(default, one) for name in classes for one in CLASSES[name]})

    @classmethod
    def preset(cls, name: str) -> Faults:
        """An environment: lan, wan, hospital-vpn, hostile."""
        if name not in PRESETS:
            raise Misuse(f"no preset of faults is called {name!r}; choose {', '.join(PRESETS)}")
        return PRESETS[name]

    @classmethod
    def draw(cls, rng: Random) -> Faults:
        """One bad day, drawn: every class is off with probability a third. The seed of the swarm.

        Randomness: a fixed number of draws for every class, so that one class does not shift the next."""
        chosen: dict[str, Any] = {}
        for name, spans in DRAWN.items():
            off = rng.random() < 1 / 3
            drawn = {key: _spread(rng, low, high) for key, (low, high) in spans.items()}
            if not off:
                chosen |= drawn
            assert set(drawn) <= set(CLASSES[name])
        survival = (None, 0.0, 1.0)[int(rng.random() * 3)]
        return cls(partition_shape="any", survival=survival, **chosen)


def _spread(rng: Random, low: float, high: float) -> float:
    """About evenly on a logarithmic scale: an octave, then a place in it. No power, so that it is the same anywhere."""
    octaves = max(1, int(high / low).bit_length())
    octave = int(rng.random() * octaves)
    return min(high, low * (1 << octave) * (1 + rng.random()))


SHARES: Final = frozenset({"refused_dials", "straggler_share", "straggler_tail", "late_share", "leave_share", "hostile_share"})

CLASSES: Final[dict[str, tuple[str, ...]]] = {
    "cut": ("cut_per_hour",),
    "refused": ("refused_dials",),
    "stall": ("stall_per_hour", "stall_s"),
    "half-open": ("half_open_per_hour",),
    "drip": ("drip_per_hour", "drip_bytes_s", "drip_s"),
    "one-way": ("one_way_per_hour", "one_way_s"),
    "partition": ("partition_per_hour", "partition_s", "partition_shape"),
    "crash": ("crash_per_hour", "down_s", "survival"),
    "restart-storm": ("restart_storm_per_hour",),
    "blackout": ("blackout_per_hour",),
    "pause": ("pause_per_hour", "pause_s"),
    "straggler": ("straggler_share", "straggler_factor", "straggler_tail"),
    "churn": ("on_hours", "off_hours", "sessions"),
    "late": ("late_share", "late_hours"),
    "leave": ("leave_share", "leave_hours"),
    "clock": ("clock_skew_s", "clock_drift_ppm", "clock_jump_per_hour", "clock_jump_s"),
    "disk-full": ("disk_full_per_hour", "disk_full_s"),
    "io-error": ("io_error_per_hour",),
    "bit-rot": ("bit_rot_per_hour",),
    "duplicate": ("duplicate_per_hour",),
    "hostile": ("hostile_share", "hostile_per_hour", "hostile_kinds"),
}
"""Which options belong together; the first of each switches the class on, and its default is off."""

DRAWN: Final[dict[str, dict[str, tuple[float, float]]]] = {
    "cut": {"cut_per_hour": (0.2, 60.0)},
    "refused": {"refused_dials": (0.02, 0.4)},
    "stall": {"stall_per_hour": (0.1, 10.0), "stall_s": (2.0, 120.0)},
    "half-open": {"half_open_per_hour": (0.1, 6.0)},
    "drip": {"drip_per_hour": (0.1, 6.0), "drip_bytes_s": (20.0, 8000.0), "drip_s": (20.0, 600.0)},
    "one-way": {"one_way_per_hour": (0.05, 3.0), "one_way_s": (10.0, 600.0)},
    "partition": {"partition_per_hour": (0.05, 2.0), "partition_s": (30.0, 3600.0)},
    "crash": {"crash_per_hour": (0.05, 6.0), "down_s": (1.0, 600.0)},
    "restart-storm": {"restart_storm_per_hour": (0.02, 0.5)},
    "blackout": {"blackout_per_hour": (0.02, 0.3)},
    "pause": {"pause_per_hour": (0.1, 6.0), "pause_s": (1.0, 300.0)},
    "straggler": {"straggler_share": (0.1, 0.5), "straggler_factor": (2.0, 50.0), "straggler_tail": (0.05, 0.6)},
    "churn": {"on_hours": (0.5, 12.0), "off_hours": (0.05, 2.0)},
    "late": {"late_share": (0.1, 0.5), "late_hours": (0.1, 2.0)},
    "leave": {"leave_share": (0.05, 0.25), "leave_hours": (0.5, 6.0)},
    "clock": {
        "clock_skew_s": (0.1, 900.0), "clock_drift_ppm": (1.0, 200.0),
        "clock_jump_per_hour": (0.02, 1.0), "clock_jump_s": (0.1, 900.0),
    },
    "disk-full": {"disk_full_per_hour": (0.02, 1.0), "disk_full_s": (5.0, 300.0)},
    "io-error": {"io_error_per_hour": (0.02, 1.0)},
    "bit-rot": {"bit_rot_per_hour": (0.02, 0.5)},
    "duplicate": {"duplicate_per_hour": (0.5, 30.0)},
    "hostile": {"hostile_share": (0.06, 0.3), "hostile_per_hour": (1.0, 60.0)},
}  # fmt: skip
"""From which spans `Faults.draw` takes each option, evenly on a logarithmic scale."""

PRESETS: Final[dict[str, Faults]] = {
    "lan": Faults(cut_per_hour=0.05, crash_per_hour=0.01, pause_per_hour=0.05, pause_s=2),
    "wan": Faults(
        cut_per_hour=1, refused_dials=0.02, stall_per_hour=0.5, half_open_per_hour=0.1, drip_per_hour=0.1,
        partition_per_hour=0.02, partition_shape="any", crash_per_hour=0.02, clock_skew_s=2, clock_drift_ppm=20,
    ),
    "hospital-vpn": Faults(
        cut_per_hour=2, refused_dials=0.05, stall_per_hour=1, half_open_per_hour=1, drip_per_hour=0.5, one_way_per_hour=0.05,
        partition_per_hour=0.1, partition_shape="isolated", crash_per_hour=0.02, down_s=600, pause_per_hour=0.1,
        straggler_share=0.2, on_hours=20, off_hours=4, late_share=0.1, clock_skew_s=120, clock_drift_ppm=50,
        clock_jump_per_hour=0.01, disk_full_per_hour=0.005, disk_full_s=1800, io_error_per_hour=0.001, duplicate_per_hour=0.5,
    ),
    "hostile": Faults(
        cut_per_hour=10, refused_dials=0.1, stall_per_hour=2, half_open_per_hour=2, one_way_per_hour=0.5, crash_per_hour=0.5,
        clock_jump_per_hour=0.1, duplicate_per_hour=10, hostile_share=0.25, hostile_per_hour=60,
    ),
}  # fmt: skip

STRIKES: Final[dict[str, str]] = {
    "cut": "every connection of `nodes` is cut",
    "refuse": "dials to `nodes` are refused for `seconds`",
    "stall": "every connection of `nodes` carries nothing for `seconds`",
    "half-open": "every connection of `nodes` dies without anybody being told",
    "drip": "every connection of `nodes` carries `value` bytes a second (default 200) for `seconds`",
    "one-way": "nothing that `nodes` send passes for `seconds`; what is sent to them does",
    "partition": "`nodes` and the others do not reach each other for `seconds`; without nodes in the shape that `value` names",
    "crash": "`nodes` crash and stay down for `seconds`; `value` is the share of unsynced writes that survives",
    "crash-saving": "the same in the middle of their next commit",
    "restart-storm": "`nodes` crash `value` times (default 5) within a minute",
    "pause": "the processes of `nodes` stand still for `seconds`",
    "straggler": "the computing of `nodes` takes `value` times as long (default 20) for `seconds`",
    "leave": "the operators of `nodes` order them to leave",
    "clock-jump": "the wall clocks of `nodes` jump by `value` seconds",
    "disk-full": "the disks of `nodes` are full for `seconds`",
    "io-error": "the next write or sync of `nodes` is answered with an I/O error",
    "bit-rot": "one bit flips in a stored tensor (or a row, where `value` is `row`) of `nodes`",
    "duplicate": "`nodes` say their last control message of every connection again",
    "hostile": "`nodes` lie over valid sessions for `seconds`; `value` names the kind of lie, or none for all",
}
"""Kinds of single faults: what `nodes`, `seconds` and `value` of a Strike mean. Nodes () are all."""


COUNTED: Final = frozenset({*CLASSES, *STRIKES, "clock-skew", "clock-drift", "state-lost", "exit-73", "absent"} - {"clock"})
"""What a run may count, by any engine."""

NO_FAULTS: Final = frozenset({"exchange", "dial", "connection", "retry"})
"""What a world counts beside faults."""


def fault_of_value(kind: str, value: float | str | None) -> tuple[str, str] | None:
    """What is wrong with the `value` of a strike of this kind, and the remedy; None where nothing is."""
    number = math.nan if value is None or isinstance(value, str) else float(value)
    if value is None:
        return ("value is missing", "write by how many seconds the clocks jump") if kind == "clock-jump" else None
    if kind in ("crash", "crash-saving"):
        return None if 0 <= number <= 1 else (f"value = {value!r}", "write the share of unsynced writes that survives, 0 to 1")
    if kind == "restart-storm":
        whole = 1 <= number <= STORMS_MAX and number == int(number)
        return None if whole else (f"value = {value!r}", f"write how often they crash, 1 to {STORMS_MAX}")
    if kind in ("drip", "straggler"):
        what = "bytes a second, above 0" if kind == "drip" else "how many times as long it takes, above 0"
        return None if 0 < number < math.inf else (f"value = {value!r}", f"write {what}")
    if kind == "clock-jump":
        return None if math.isfinite(number) else (f"value = {value!r}", "write by how many seconds the clocks jump")
    words = {"partition": SHAPES, "hostile": HOSTILE_KINDS, "bit-rot": ("row",)}.get(kind, ())
    if value in words:
        return None
    return f"value = {value!r}", f"choose {', '.join(words)}, or leave it out" if words else f"leave it out: a {kind} has none"


@dataclass(frozen=True)
class Strike:
    """One fault at a stated time; see STRIKES."""

    at_s: float
    """Virtual seconds from the beginning."""
    kind: str
    """Which fault: a key of STRIKES."""
    nodes: tuple[str, ...] = ()
    """Names; none for all."""
    seconds: float = 60.0
    """How long it lasts, where it lasts."""
    value: float | str | None = None
    """What else the kind needs; None for its default."""

    def __post_init__(self) -> None:
        if self.kind not in STRIKES:
            raise Misuse(f"no fault is called {self.kind!r}; choose {', '.join(STRIKES)}")
        if not (self.at_s >= 0 and self.seconds >= 0):
            raise Misuse(f"a {self.kind} at {self.at_s} s for {self.seconds} s; neither may be below 0")
        if wrong := fault_of_value(self.kind, self.value):
            raise Misuse(f"a {self.kind}: {wrong[0]}; {wrong[1]}")
