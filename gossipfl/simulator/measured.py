"""What recordings say of a real federation, as a scenario: lines, speeds, outages, cuts and refusals as they were measured.

Read from what was recorded, nothing is run again. Not here: the format of a recording (gossipfl.recording), what a scenario
means (simulator.scenario).
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from statistics import median, quantiles
from typing import Any, Final

from pydantic import ValidationError

from gossipfl.errors import ConfigError, printable
from gossipfl.protocol import events as ev
from gossipfl.protocol import messages as ms
from gossipfl.recording import Entry, Fed, Life
from gossipfl.simulator.scenario import StudySection
from gossipfl.trust.membership import valid_member_id

SECOND: Final = 1_000_000_000

KEPT: Final = 10_000
"""Samples of a kind and pair: enough for a median."""

FEW: Final = 3
"""Fewer samples than this say nothing."""

BULK_MIN: Final = 65_536
"""Bytes from which a transfer tells the bandwidth and not the latency."""

NOTICED_S: Final = 5.0
"""So long before its end a node may be gone for its peers already: a connection lost then is its outage, no cut."""

CUTS: Final = ("connection lost", "slow", "cut")
"""How a cause of a closed connection begins that was nobody's wish. "the other side closed" may have been one."""


@dataclass
class Measured:
    """Of one federation, from any number of recordings of its nodes."""

    members: set[str] = field(default_factory=set)
    edges: set[tuple[str, str]] = field(default_factory=set)
    round_trips: dict[tuple[str, str], list[float]] = field(default_factory=lambda: defaultdict(list))
    rates: dict[tuple[str, str], list[float]] = field(default_factory=lambda: defaultdict(list))
    steps: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    ups: dict[str, list[tuple[float, float]]] = field(default_factory=lambda: defaultdict(list))
    """of each recorded node: (from, to) in wall seconds"""
    lost: list[tuple[str, str, float]] = field(default_factory=list)
    """(node, peer, wall second) of connections that broke"""
    failed: list[tuple[str, str, float]] = field(default_factory=list)
    """the same of dials"""
    dials: int = 0
    study: dict[str, Any] = field(default_factory=dict)

    # ---- reading -----------------------------------------------------------------------------------------------------

    def take(self, life: Life, entries: Iterable[Entry]) -> None:
        """One recording."""
        me, told = life.node, life.settings
        self.members.add(_member(me))
        pace = {
            "local_rounds": told["local_rounds"], "local_steps": told["local_steps"], "exchanges": told["exchanges"],
            "local_round_s": round(told["turn_ns"] / SECOND, 6), "exchange_patience_s": round(told["patience_ns"] / SECOND, 6),
            "release_exchanges": told["release_exchanges"], "correction": "ledger" if told["ledger"] else "none",
        }  # fmt: skip
        try:
            self.study = StudySection(**pace).model_dump(include=set(pace))
        except ValidationError as error:
            what = "; ".join(f"{part['loc'][-1]}: {part['msg']}" for part in error.errors(include_input=False, include_url=False))
            raise ConfigError(f"the recording of {me} says what no study has: {what}; measure another recording") from None
        peers: dict[int, str] = {}
        waiting: dict[Any, tuple[int, int]] = {}
        first = last = 0.0
        for entry in entries:
            if isinstance(entry, Fed):
                first, last = first or entry.now.wall_ns / SECOND, entry.now.wall_ns / SECOND
                self.heard(me, entry, peers, waiting)
                self.asked(entry, waiting)
        self.ups[me].append((first, last))

    def heard(self, me: str, entry: Fed, peers: dict[int, str], waiting: dict[Any, tuple[int, int]]) -> None:
        event, mono, wall = entry.event, entry.now.mono_ns, entry.now.wall_ns / SECOND
        for kind, answer in entry.asked:
            if kind == "neighbours":
                self.members |= {_member(name) for name in (answer[0], *answer[1])}
                self.edges |= {(min(answer[0], peer), max(answer[0], peer)) for peer in answer[1]}
        if isinstance(event, ev.Opened):
            peers[event.conn] = event.peer
        elif isinstance(event, ev.Closed):
            peer = peers.pop(event.conn, "")
            if event.why.startswith(CUTS):
                self.lost.append((me, peer, wall))
        elif isinstance(event, ev.DialFailed):
            self.failed.append((me, event.peer, wall))
        elif isinstance(event, ev.Received) and isinstance(event.message, ms.Fetch):
            since, _ = waiting.pop(("propose", event.conn), (0, 0))
            if since and event.conn in peers:
                _keep(self.round_trips[me, peers[event.conn]], (mono - since) / SECOND)
        elif isinstance(event, ev.BulkReceived):
            since, size = waiting.pop(("bulk", event.conn), (0, 0))
            if since and size >= BULK_MIN and event.conn in peers and mono > since:
                _keep(self.rates[me, peers[event.conn]], size / ((mono - since) / SECOND))
        elif isinstance(event, ev.Trained):
            since, steps = waiting.pop(("train", event.job), (0, 0))
            if since and steps:
                _keep(self.steps[me], (mono - since) / SECOND / steps)

    def asked(self, entry: Fed, waiting: dict[Any, tuple[int, int]]) -> None:
        """What the commands began, from their outlines."""
        mono = entry.now.mono_ns
        for name, *values in entry.outlines:
            match name, values:
                case "Send", [int(conn), ["Propose", *_]]:
                    waiting["propose", conn] = mono, 0
                case "ReceiveBulk", [int(conn), _, int(size)]:
                    waiting["bulk", conn] = mono, size
                case "Train", [int(job), _, _, _, int(steps), *_]:
                    waiting["train", job] = mono, steps
                case "Dial", _:
                    self.dials += 1

    # ---- what follows ------------------------------------------------------------------------------------------------

    def was_up(self, name: str, wall: float) -> bool:
        """True of who is not recorded, too: nothing is known of it."""
        return name not in self.ups or any(begin <= wall <= end - NOTICED_S for begin, end in self.ups[name])

    def lines(self) -> dict[tuple[str, str], tuple[float, float, float, int]]:
        """Pair -> (latency, jitter, bandwidth, samples); both directions in one."""
        found = {}
        for a, b in sorted(self.edges):
            trips = sorted(self.round_trips.get((a, b), []) + self.round_trips.get((b, a), []))
            rates = self.rates.get((a, b), []) + self.rates.get((b, a), [])
            if len(trips) >= FEW:
                deciles = quantiles(trips, n=10, method="inclusive")
                latency = median(trips) / 2
                jitter = min(1.0, (deciles[8] - deciles[0]) / max(2 * median(trips), 1e-9))
                found[a, b] = latency, jitter, median(rates) if len(rates) >= FEW else 0.0, len(trips)
        return found

    def text(self, source: str) -> str:
        """The scenario.toml. **Raises**: ConfigError where the recordings hold too little."""
        members, lines = sorted(self.members), self.lines()
        if len(members) < 2 or not self.ups:
            raise ConfigError("the recordings name fewer than two members; record a federation in which exchanges happen")
        wide = len(str(len(members)))
        names = {member: f"hospital-{at:0{wide}}" for at, member in enumerate(members, 1)}
        begin = min(start for lives in self.ups.values() for start, _ in lives)
        end = max(stop for lives in self.ups.values() for _, stop in lives)
        hours = min(max((end - begin) / 3600, 0.05), 600.0)
        up_hours = sum(stop - start for lives in self.ups.values() for start, stop in lives) / 3600
        speeds = {member: median(self.steps[member]) for member in members if len(self.steps.get(member, ())) >= FEW}
        step = median(speeds.values()) if speeds else 0.01
        said = [
            f"# Measured from {printable(source)}: {up_hours:.2f} node-hours of {len(self.ups)} of {len(members)} nodes.",
            *(f"# {names[member]} is {printable(member)}" for member in members),
            'question = "What does this federation do, as it was measured?"',
            'task = "toy"  # the recordings do not say the task; name yours, and its [data]',
            f"hours = {hours:.4f}",
            "",
            "[nodes]",
            f"count = {len(members)}",
            f"step_s = {max(step, 1e-6):.6g}  # median of {sum(len(self.steps[one]) for one in speeds)} local rounds",
        ]
        slow = {names[member]: step / own for member, own in speeds.items() if not 0.9 < step / own < 1.1}
        if slow:
            said.append("speeds = { " + ", ".join(f"{name} = {speed:.3g}" for name, speed in slow.items()) + " }")
        said += ["", "[topology]", 'rule = "complete"', *self._missing(members, names)]
        usual = _usual([one[:3] for one in lines.values()])
        said += ["", "[lines]", f"latency_s = {usual[0]:.6g}", f"jitter = {usual[1]:.3g}", f"bandwidth_bytes_s = {usual[2]:.0f}"]
        said += ["", "[study]", *(f"{key} = {_toml(value)}" for key, value in self.study.items())]
        said += ["", "[faults]", *self._faults(names, begin, end, up_hours)]
        for (a, b), (latency, jitter, rate, count) in lines.items():
            said += ["", f"[[lines.between]]  # {count} exchanges", f'nodes = ["{names[a]}", "{names[b]}"]',
                     f"latency_s = {latency:.6g}", f"jitter = {jitter:.3g}", f"bandwidth_bytes_s = {rate:.0f}"]  # fmt: skip
        return "\n".join(said) + "\n"

    def _missing(self, members: Sequence[str], names: dict[str, str]) -> list[str]:
        """Pairs that are no neighbours: a rule cannot say so, a graph file can."""
        known = [member for member in members if member in self.ups]
        apart = [
            (a, b) for a in known for b in members
            if a != b and (min(a, b), max(a, b)) not in self.edges and not (b in known and b < a)
        ]  # fmt: skip
        if not apart:
            return []
        pairs = ", ".join(f"{names[a]}/{names[b]}" for a, b in apart[:20])
        return [f"# Not neighbours here: {pairs}{' and more' if len(apart) > 20 else ''}; give a graph of your own for that."]

    def _faults(self, names: dict[str, str], begin: float, end: float, up_hours: float) -> list[str]:
        cuts = [one for one in self.lost if self.was_up(one[1], one[2])]
        refused = [one for one in self.failed if self.was_up(one[1], one[2])]
        rate = len(cuts) / 2 / up_hours if up_hours else 0.0  # each is seen at two ends
        said = [
            f"cut_per_hour = {rate:.4g}  # {len(cuts)} ends of connections broke while both were up",
            f"refused_dials = {min(1.0, len(refused) / self.dials) if self.dials else 0.0:.4g}  # of {self.dials}",
        ]
        sessions = []
        for name, lives in sorted(self.ups.items()):
            merged = [(start, stop) for start, stop in sorted(lives) if stop > start]
            whole = len(merged) == 1 and merged[0][0] - begin < 60 and end - merged[0][1] < 60
            if not whole:
                sessions += [(names[name], (start - begin) / 3600, (stop - begin) / 3600) for start, stop in merged]
        if sessions:
            rows = ",\n".join(f'    ["{name}", {start:.6f}, {stop:.6f}]' for name, start, stop in sessions)
            said.append(f"sessions = [\n{rows},\n]")
        return said


def _keep(samples: list[float], value: float) -> None:
    if len(samples) < KEPT and math.isfinite(value):
        samples.append(value)


def _usual(lines: Sequence[tuple[float, float, float]]) -> tuple[float, float, float]:
    """What lines are like of which nothing is known."""
    if not lines:
        return 0.02, 0.5, 0.0
    latency, jitter, rate = (median(column) for column in zip(*lines, strict=True))
    return latency, jitter, rate


def _member(text: Any) -> str:
    """**Raises**: ConfigError for what can be no member's id: it is written into a file that others run."""
    try:
        return valid_member_id(text)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"a recording names {str(text)[:40]!r}, which is {error}; measure another recording") from None


def _toml(value: str | float) -> str:
    """As TOML writes it: JSON's strings are TOML's, but for DEL, which `printable` has written out."""
    return json.dumps(printable(value) if isinstance(value, str) else value, ensure_ascii=False)
