"""scenario.toml: one file is one question to a simulated federation; every fault at once, with file, line and suggestion.

Models and checks only: who plays it is simulator.play, whether what was expected holds simulator.expect.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    ValidationInfo,
    create_model,
    field_validator,
    model_validator,
)  # fmt: skip

from gossipfl import tasks, topology
from gossipfl.documents import Lines as Places
from gossipfl.documents import Many, Strict, read_text, toml_lines, toml_tree, validated
from gossipfl.errors import ConfigError, Fault
from gossipfl.simulator import federation as fed
from gossipfl.simulator.faults import (
    CLASSES,
    COUNTED,
    HOSTILE_KINDS,
    PRESETS,
    SHAPES,
    SHARES,
    STRIKES,
    Faults,
    Strike,
    fault_of_value,
)
from gossipfl.simulator.lines import Line, Lines
from gossipfl.simulator.vectorized.faults import COUNTS
from gossipfl.simulator.vectorized.faults import Faults as RoundFaults
from gossipfl.trust.identity import CERTIFICATE_DAYS
from gossipfl.trust.membership import MemberId, Positive, Share, Study, Topology

if TYPE_CHECKING:
    from gossipfl.simulator.federation import Federation
    from gossipfl.topology import Graph

HOURS_MAX: Final = 24.0 * (CERTIFICATE_DAYS - 1)
"""Virtual hours: nobody renews certificates in a simulation, and they end."""

NODES_MAX: Final = 10_000_000
EVENT_NODES_MAX: Final = 1000
"""Above it a day of events takes hours; rounds take seconds."""

QUIET: Final = 0.75
"""Share of the time after which nothing new goes wrong by chance, where the file does not say: the end can be judged."""

LEARNING: Final = 0.6
"""Share of the time over which the local rounds are spread, where the study does not say how long one takes."""

Hours = Annotated[float, Field(gt=0, le=HOURS_MAX)]
Seconds = Annotated[float, Field(ge=0, le=3600 * HOURS_MAX)]


class Nodes(Strict):
    """[nodes]: how many there are, what rows they have, how fast they are."""

    count: Annotated[int, Field(ge=2, le=NODES_MAX)] = 5
    """How many; the event engine plays up to 1000."""
    partition: Literal["task", "iid", "dirichlet"] = "task"
    """task: the sites that the task has for demos; iid, dirichlet: its rows dealt anew."""
    alpha: Positive = 0.3
    """Of dirichlet: small is one class at a site, large is all alike."""
    ratio: Annotated[float, Field(ge=1, le=1e6)] = 8.0
    """Rows of the largest site over those of the smallest, where they are dealt anew."""
    speeds: dict[MemberId, Positive] = Field(default_factory=dict)
    """Of nodes that compute slower or faster than the others (1)."""
    step_s: Annotated[float, Field(gt=0, le=3600)] = 0.01
    """Virtual seconds of one local step at speed 1."""
    observers: Many[MemberId] = ()
    """Nodes without rows, which only follow."""
    dial_only: Many[MemberId] = ()
    """Nodes that nobody can dial."""

    @model_validator(mode="after")
    def _somebody_trains(self) -> Nodes:
        if len(set(self.observers)) >= self.count:
            raise ValueError(f"observers names all {self.count} nodes -- leave one at least that has rows")
        return self


class TopologySection(Topology):
    """[topology]: the federation's own rule, or a graph of gossipfl.topology."""

    graph: Annotated[str, Field(max_length=4096)] = ""
    """A generator ("small-world:k=4,p=0.2") or a file (.graphml, .edges) beside the scenario; instead of a rule."""


class Between(Strict):
    """[[lines.between]]: what the line between two nodes is like."""

    nodes: Annotated[Many[MemberId], Field(min_length=2, max_length=2)]
    latency_s: Seconds | None = None
    jitter: Share | None = None
    bandwidth_bytes_s: Annotated[float, Field(ge=0, le=1e12)] | None = None
    refuse: Share | None = None

    @field_validator("nodes")
    @classmethod
    def _two(cls, nodes: tuple[str, ...]) -> tuple[str, ...]:
        if nodes[0] == nodes[1]:
            raise ValueError("twice the same node -- a line is between two")
        return nodes


class LinesSection(Strict):
    """[lines]: what every line is like, and [[lines.between]] those that differ."""

    latency_s: Seconds = Line.latency_s
    """Mean seconds one way."""
    jitter: Share = Line.jitter
    """Share by which it varies at most."""
    bandwidth_bytes_s: Annotated[float, Field(ge=0, le=1e12)] = Line.bandwidth_bytes_s
    """Bytes a second from one node to another; 0: no bound."""
    refuse: Share = Line.refuse
    """Share of dials that are refused."""
    between: Many[Between] = ()

    def lines(self, graph: Graph | None = None, names: Sequence[str] = ()) -> Lines:
        """All lines; those of a graph's file have its latencies and bandwidths, what the scenario says goes before."""
        usual = Line(self.latency_s, self.jitter, self.bandwidth_bytes_s, self.refuse)
        found: dict[tuple[str, str], Line] = {}
        for at, (one, other) in enumerate(graph.edges.tolist() if graph is not None else ()):
            known = {}
            if graph is not None and graph.latency_ms is not None and math.isfinite(graph.latency_ms[at]):
                known["latency_s"] = float(graph.latency_ms[at]) / 1000
            if graph is not None and graph.bandwidth_mbit_s is not None and math.isfinite(graph.bandwidth_mbit_s[at]):
                known["bandwidth_bytes_s"] = float(graph.bandwidth_mbit_s[at]) * 1e6 / 8
            if known:
                found[names[one], names[other]] = dataclasses.replace(usual, **known)
        for said in self.between:
            pair = said.nodes[0], said.nodes[1]
            before = found.pop((pair[1], pair[0]), found.get(pair, usual))
            found[pair] = dataclasses.replace(before, **said.model_dump(exclude_none=True, exclude={"nodes"}))
        return Lines(usual, found)


def _session(value: object) -> object:
    if isinstance(value, list) and len(value) == 3 and isinstance(value[0], str):
        return (value[0], *(float(one) if isinstance(one, int) else one for one in value[1:]))
    raise ValueError('no up time -- write ["hospital-1", from hour, to hour]')


def _in_order(session: tuple[str, float, float]) -> tuple[str, float, float]:
    name, begin, end = session
    if not 0 <= begin < end:
        raise ValueError(f"{name} is up from hour {begin:g} to {end:g} -- the first must be 0 or more, the second later")
    return session


def _of_trace(tree: dict[str, Any], folder: Path) -> None:
    """The up times of a trace file that `faults.sessions` names: a line each, "node,from hour,to hour".

    **Raises**: ConfigError with the trace's file and line."""
    faults = tree.get("faults")
    if not isinstance(faults, dict) or not isinstance(faults.get("sessions"), str):
        return
    path, found, wrong = folder / faults["sessions"], [], []
    for number, line in enumerate(read_text(path).splitlines(), 1):
        parts = [part.strip() for part in line.partition("#")[0].split(",")]
        if parts == [""]:
            continue
        try:
            name, begin, end = parts
            found.append(list(_in_order((name, float(begin), float(end)))))
        except ValueError as error:
            what, _, remedy = str(error).partition(" -- ")
            what, remedy = (what, remedy) if remedy else (f"{line.strip()[:60]!r} is no up time", "write node,from hour,to hour")
            wrong.append(Fault(str(path), number, what, remedy))
    if wrong:
        raise ConfigError(*wrong)
    faults["sessions"] = found


_KINDS: Final[dict[str, Any]] = {
    "survival": Share | None,
    "partition_shape": Literal[(*SHAPES, "any")],
    "hostile_kinds": Annotated[Many[Literal[HOSTILE_KINDS]], Field(min_length=1)],  # type: ignore[valid-type]
    "sessions": Many[Annotated[tuple[MemberId, float, float], BeforeValidator(_session), AfterValidator(_in_order)]],
    "until_hours": Hours | None,
}


def _of_faults() -> dict[str, Any]:
    """Name -> (type, default) of every field of Faults, so that a new one is known here at once."""
    plain = {True: Share, False: Annotated[float, Field(ge=0, le=1e9)]}
    return {
        one.name: (_KINDS.get(one.name, plain[one.name in SHARES]), None if one.name == "until_hours" else one.default)
        for one in dataclasses.fields(Faults)
    }


if TYPE_CHECKING:

    class FaultsSection(Strict):
        """[faults]: the fields of Faults, beside a preset that they change."""

        preset: str = ""
        until_hours: float | None = None

else:
    FaultsSection = create_model(
        "FaultsSection",
        __base__=Strict,
        preset=(Literal[("", *PRESETS)], ""),
        **_of_faults(),
    )


class At(Strict):
    """[[at]]: one fault at a stated time."""

    hour: Annotated[float, Field(ge=0, le=HOURS_MAX)]
    """Virtual hours from the beginning."""
    kind: Literal[tuple(STRIKES)]  # type: ignore[valid-type]
    """Which fault."""
    nodes: Many[MemberId] = ()
    """Names; none: all."""
    seconds: Seconds = 60.0
    """How long, where it lasts."""
    value: float | str | None = None
    """What else the kind needs."""
    says: Annotated[str, Field(max_length=500)] = ""
    """What happens, in the words of whom it concerns; for the report."""

    @model_validator(mode="after")
    def _valued(self) -> At:
        if wrong := fault_of_value(self.kind, self.value):
            raise ValueError(" -- ".join(wrong))
        return self

    def strike(self) -> Strike:
        return Strike(self.hour * 3600, self.kind, self.nodes, self.seconds, self.value)


ENGINES: Final = ("events", "vectorized")
"""In play.ENGINES, by name."""


def _of_rounds() -> dict[str, Any]:
    """Name -> (type, default) of every field of the engine of rounds' Faults."""
    kinds: dict[str, Any] = {
        "slow_sites": Many[Annotated[int, Field(ge=0)]],
        "delay_rounds": Annotated[int, Field(ge=1, le=10**6)],
        "slow_times": Annotated[int, Field(ge=1, le=10**6)],
    }
    plain = {True: Annotated[float, Field(ge=0, le=1e6)], False: Share}
    return {
        one.name: (kinds.get(one.name, plain[one.name in COUNTS]), one.default) for one in dataclasses.fields(RoundFaults)
    }


class RoundsBase(Strict):
    """[rounds]: what is meant for the engine of rounds only."""

    count: Annotated[int, Field(ge=1, le=10**7)] | None = None
    """Rounds of training; none: the study's local rounds."""
    release: Annotated[int, Field(ge=0, le=10**6)] | None = None
    """Rounds after them in which nobody trains; none: the study's release exchanges, else as many as the graph needs."""
    method: Annotated[str, Field(max_length=60)] = "study"
    """What a round does: study is what is deployed, with the constants of [study]; others are in docs/simulate-rounds.md."""
    mode: Literal["rounds", "ticks"] = "rounds"
    """ticks: single nodes wake at random instead."""
    exchanges: Annotated[int, Field(ge=1, le=1000)] | None = None
    """So many a round with others, one after the other; none: as many as the study's nodes begin and answer, and one where the
    method is another."""
    compression: Annotated[str, Field(max_length=40)] | None = None
    """As study.codec, and topk:0.1 and the like; none: the study's codec."""
    bootstrap: Annotated[int, Field(ge=1, le=10**6)] | None = None
    """So many rows a node, drawn with replacement from all: more nodes than rows could be dealt to."""
    masses: Literal["rows", "equal"] = "rows"
    """What a node counts for in the mean."""
    training: Literal["auto", "loop", "vmap", "matmul"] = "auto"
    """How local steps are taken."""
    evaluate_every: Annotated[int, Field(ge=1, le=10**6)] | None = None
    """Rounds between two evaluations; none: forty times in all."""


if TYPE_CHECKING:

    class RoundsSection(RoundsBase):
        """[rounds], and the fields of the engine's Faults."""

else:
    RoundsSection = create_model("RoundsSection", __base__=RoundsBase, **_of_rounds())


class Expect(Strict):
    """[expect]: what must hold at the end; a simulation whose expectations do not hold exits with 1."""

    finished: bool = False
    """Every honest node that has not left ends the study."""
    consensus_below: Positive | None = None
    """Distance of the honest nodes' models from their mean, relative to its length, is below this."""
    quality_share: Positive | None = None
    """The worst honest node reaches at least this share of centralized, in the task's own metric."""
    exchanged_within_s: Seconds | None = None
    """After the last fault has healed, every honest node that is up makes an exchange within so many seconds."""
    others_wait_at_most_s: Seconds | None = None
    """While faults of [[at]] last, no node that they do not concern goes longer without an exchange."""
    returns_within_s: Seconds | None = None
    """A node that a fault of [[at]] concerned makes an exchange within so many seconds after it."""
    kib_per_node_hour: Positive | None = None
    """No node sends more than so many KiB an hour, on average, with everything."""
    exchanges: Annotated[int, Field(ge=1)] | None = None
    """Every honest node makes at least so many."""
    local_rounds: Annotated[int, Field(ge=1)] | None = None
    """Every honest trainer makes at least so many."""
    happened: dict[str, Annotated[int, Field(ge=0)]] = Field(default_factory=dict)
    """Kind of fault = how often it must have happened at least: what did not happen proves nothing."""
    nothing_violated: bool = True
    """Every law that was watched has held."""

    @field_validator("happened")
    @classmethod
    def _can_happen(cls, happened: dict[str, int]) -> dict[str, int]:
        for kind in sorted(set(happened) - COUNTED):
            near = difflib.get_close_matches(kind, COUNTED, 1)
            raise ValueError(f"nothing that happens is called {kind!r} -- " + (
                f"did you mean {near[0]!r}?" if near else f"choose from {', '.join(sorted(COUNTED))}"
            ))  # fmt: skip
        return happened


_NOT_HERE: Final = {
    "task": "it stands at the top of the file, before the first table",
    "seed": "it stands at the top of the file, before the first table",
    "name": "a scenario has a question instead",
    "holdout_key": "a simulation's rows are held out by its partition",
    "holdout": "a simulation's rows are held out by its partition",
}


class StudySection(Study):
    """[study]: the fields of the federation file's study; those that stay away are chosen for the task and the time."""

    model_config = ConfigDict(validate_default=False)

    task: Annotated[str, Field(max_length=200)] = "toy"
    holdout_key: Annotated[str, Field(max_length=64)] = "00" * 32

    @field_validator(*_NOT_HERE, mode="before")
    @classmethod
    def _elsewhere(cls, value: object, info: ValidationInfo) -> object:
        raise ValueError(f"does not belong into [study] -- {_NOT_HERE[str(info.field_name)]}")


class Scenario(Strict):
    """A whole scenario.toml."""

    question: Annotated[str, Field(min_length=1, max_length=500)]
    """What is asked, for people."""
    task: Annotated[str, Field(min_length=1, max_length=200)] = "toy"
    """A built-in task's short name, or module:attribute."""
    seed: Annotated[int, Field(ge=0, lt=2**53)] = 0
    """Of everything that is drawn."""
    engine: Literal[ENGINES] = "events"  # type: ignore[valid-type]
    """Who plays it where the command line does not say."""
    hours: Hours = 24.0
    """Virtual hours; nodes that have finished their study answer the others until then."""
    source: Annotated[str, Field(max_length=500)] = ""
    """Where the story comes from."""
    story: Annotated[str, Field(max_length=4000)] = ""
    """What happened there, in plain words; for the report."""
    nodes: Nodes = Nodes()
    data: dict[str, JsonValue] | None = None
    """[data] of a task of one's own: its rows, which are dealt to the nodes."""
    topology: TopologySection = TopologySection()
    lines: LinesSection = LinesSection()
    study: StudySection = StudySection()
    faults: FaultsSection = FaultsSection()
    rounds: RoundsSection = RoundsSection()
    at: Many[At] = ()
    expect: Expect = Expect()
    sweep: dict[str, JsonValue] = Field(default_factory=dict)
    """[sweep]: settings, each with the list of its values; every combination is run."""

    @model_validator(mode="after")
    def _in_reach(self) -> Scenario:
        if self.engine == "events" and self.nodes.count > EVENT_NODES_MAX:
            raise ValueError(
                f"{self.nodes.count:,} nodes, and the event engine plays up to {EVENT_NODES_MAX:,} -- write "
                'engine = "vectorized" at the top of the file'
            )
        return self

    def options_of_faults(self) -> Faults:
        """The preset with the fields that the file changes; nothing new goes wrong by chance in the last quarter."""
        given = self.faults.model_dump(exclude_unset=True, exclude={"preset"})
        base = PRESETS[self.faults.preset] if self.faults.preset else Faults()
        until = given.pop("until_hours", None) or base.until_hours
        changed = dataclasses.replace(base, **given)
        if until == math.inf and not all(changed.are_off(name) for name in CLASSES):
            until = max([QUIET * self.hours, *(one.hour + one.seconds / 3600 for one in self.at)])
        return dataclasses.replace(changed, until_hours=until)

    def rounds_of_task(self) -> int:
        """Local rounds where the file says none. **Raises**: ConfigError for a task that cannot be loaded."""
        return fed.rounds_of(self.task, tasks.load(self.task, self.study.model_dump().get("task_options") or {}))

    def changes_of_study(self) -> dict[str, Any]:
        """What the study has otherwise than the recipe: what the file gives, and rounds spread over the time."""
        given = self.study.model_dump(exclude_unset=True)
        if "local_round_s" not in given:
            rounds = given.get("local_rounds") or self.rounds_of_task()
            given["local_round_s"] = LEARNING * self.hours * 3600 / rounds
        return given


# ---- reading ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Read:
    """A scenario with the places of its keys, so that what only the federation shows can be told with file and line."""

    scenario: Scenario
    file: str
    places: Places
    text: str

    def fault(self, path: tuple[str | int, ...], what: str, remedy: str) -> Fault:
        line = next((self.places[path[:n]] for n in range(len(path), -1, -1) if path[:n] in self.places), None)
        return Fault(self.file, line, what, remedy)


def round_seconds(scenario: Scenario) -> float:
    """Virtual seconds from one round to the next: the study's, else the rounds spread over the time."""
    study = scenario.study.model_dump(exclude_unset=True)
    rounds = scenario.rounds.count or study.get("local_rounds") or scenario.rounds_of_task()
    return float(study.get("local_round_s", 0)) or LEARNING * scenario.hours * 3600 / rounds


Setting = tuple[tuple[str, ...], Any]
"""(keys of the tables on the way, value)"""


def load(path: Path, changes: Sequence[str] = (), over: Sequence[Setting] = (), **given: Any) -> Read:
    """The scenario in a file. `changes` are texts "faults.cut_per_hour=2"; `given` are values at the top, None for none;
    `over` goes before both.

    **Raises**: ConfigError with every fault: file and line, or the change that is wrong.
    """
    text = read_text(path)
    places = toml_lines(text)
    tree = toml_tree(text, str(path))
    _of_trace(tree, path.parent)
    scenario = validated(Scenario, tree, str(path), places)
    named = [_change(one) for one in changes]
    named += [((*name.split("__"),), value) for name, value in given.items() if value is not None]
    named += over
    for keys, value in named:
        _put(tree, keys, value)
    if named:
        _of_trace(tree, path.parent)
        scenario = validated(Scenario, tree, "command line", {})
    read = Read(scenario, str(path), places, text)
    if late := list(_too_late(read)):
        raise ConfigError(*late)
    return read


def _too_late(read: Read) -> Iterator[Fault]:
    hours = read.scenario.hours
    for number, one in enumerate(read.scenario.at):
        if one.hour >= hours:
            what = f"at.{number}.hour = {one.hour:g} is not before the end"
            yield read.fault(("at", number, "hour"), what, f"hours = {hours:g}: raise it, or take an earlier hour")


def _change(text: str) -> Setting:
    name, equals, value = text.partition("=")
    keys = tuple(name.strip().split("."))
    if not equals or not all(re.fullmatch(r"[\w-]+", key) for key in keys):
        raise ConfigError(Fault(f"--set {text}", None, "not a change", "write --set faults.cut_per_hour=2"))
    try:
        return keys, tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return keys, value.strip()


def _put(tree: Any, keys: tuple[str, ...], value: Any) -> None:
    """Set one value, tables made where there are none; a number names an element of a list, counted from 0."""
    for at, key in enumerate(keys):
        place: Any = int(key) if isinstance(tree, list) and key.isdigit() and int(key) < len(tree) else key
        if not isinstance(tree, dict) and not isinstance(place, int):
            many = isinstance(tree, list)
            what = ".".join(keys[:at]) + (f" is a list of {len(tree)}" if many else " is no table")
            remedy = "name an element by its number, counted from 0" if many else "name a key"
            raise ConfigError(Fault(f"--set {'.'.join(keys)}", None, what, remedy))
        if at == len(keys) - 1:
            tree[place] = value
        else:
            tree = tree.setdefault(place, {}) if isinstance(tree, dict) else tree[place]


# ---- the federation that it asks about -------------------------------------------------------------------------------


def federation(read: Read, data_dir: Path | None = None) -> Federation:
    """The members, rows and keys of the scenario. **Raises**: ConfigError with file and line."""
    scenario = read.scenario
    nodes = scenario.nodes
    try:
        study = scenario.changes_of_study()
        options = study.pop("task_options", {})
        task = tasks.load(scenario.task, options)
        dealt = fed.sites_of(
            task, nodes.count, scenario.seed, how=nodes.partition, alpha=nodes.alpha, ratio=nodes.ratio,
            source=scenario.data, data_dir=data_dir,
        )  # fmt: skip
        names = {site.name for site in dealt[0]}
        if unknown := list(strangers(read, names)):
            raise ConfigError(*unknown)
        graph = None
        if spec := scenario.topology.graph:
            where = topology.parse(spec, "topology", Path(read.file).parent)
            graph = topology.graph(where, nodes.count, scenario.seed)
        made = fed.found(
            scenario.task, nodes.count, scenario.seed, options=options, sites=dealt, study=study,
            topology=Topology(rule=scenario.topology.rule, degree=scenario.topology.degree),
            observers=nodes.observers, dial_only=nodes.dial_only, graph=graph,
        )  # fmt: skip
    except ConfigError as error:
        raise ConfigError(*(placed(read, fault) for fault in error.faults), exit_code=error.exit_code) from None
    return made


def placed(read: Read, fault: Fault | str) -> Fault:
    """A fault that a deeper room found, at the table that it is about."""
    if isinstance(fault, str):
        return read.fault(("nodes",), fault, "")
    if fault.file.startswith("topology"):
        return read.fault(("topology", "graph"), fault.what, fault.remedy)
    if fault.file in ("task", "[data]", "data_dir"):
        return read.fault((fault.file.strip("[]"),), fault.what, fault.remedy)
    return fault


def strangers(read: Read, names: set[str]) -> list[Fault]:
    """Every name in the file that no node has, and what is said twice."""
    scenario, found = read.scenario, []
    mentioned: list[tuple[tuple[str | int, ...], Sequence[str]]] = [
        (("nodes", "speeds"), tuple(scenario.nodes.speeds)),
        (("nodes", "observers"), scenario.nodes.observers),
        (("nodes", "dial_only"), scenario.nodes.dial_only),
        *((("at", n, "nodes"), one.nodes) for n, one in enumerate(scenario.at)),
        *((("lines", "between", n, "nodes"), one.nodes) for n, one in enumerate(scenario.lines.between)),
        (("faults", "sessions"), tuple(name for name, *_ in getattr(scenario.faults, "sessions", ()))),
    ]
    for path, said in mentioned:
        for name in dict.fromkeys(said):
            if name not in names:
                found.append(read.fault(path, f"{'.'.join(map(str, path))}: no node is called {name!r}", _nodes(names)))
    return [*found, *twice(read)]


def twice(read: Read) -> Iterator[Fault]:
    """What stands twice, of which one would count for nothing; and a partition that leaves nobody on the other side."""
    scenario, pairs = read.scenario, set()
    for number, one in enumerate(scenario.at):
        path = ("at", number, "nodes")
        if len(set(one.nodes)) < len(one.nodes):
            yield read.fault(path, f"at.{number}.nodes names a node twice", "name each once")
        elif one.kind == "partition" and len(one.nodes) == scenario.nodes.count:
            yield read.fault(path, f"at.{number}.nodes names all {len(one.nodes)} nodes", "name those on one side")
    for number, line in enumerate(scenario.lines.between):
        pair = frozenset(line.nodes)
        if pair in pairs:
            what = f"lines.between.{number}.nodes: the line of {' and '.join(sorted(pair))} stands further up already"
            yield read.fault(("lines", "between", number, "nodes"), what, "say all of it there")
        pairs.add(pair)


def _nodes(names: set[str]) -> str:
    ordered = sorted(names)
    return (
        f"they are called {', '.join(ordered)}"
        if len(ordered) < 9
        else f"they are called {ordered[0]} to {ordered[-1]}"
    )
