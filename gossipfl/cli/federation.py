"""`gossipfl federation`: make, change, show and check the file that says who belongs. No network, no node.

What `check` finds is a list of plain values (`findings`), so that `doctor` can say the same.
"""

from __future__ import annotations

import json
import textwrap
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

import typer

from gossipfl.amounts import size

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gossipfl.trust.membership import Member, Membership, Study

FILE: Final = "federation.json"
SOON_S: Final = 5 * 86_400
"""A certificate that ends within five days is worth a warning: a long weekend passes quicker than one thinks."""

FilePath = Annotated[Path, typer.Argument(metavar="FEDERATION", help="The federation file.", readable=False)]
JSON = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


def app() -> typer.Typer:
    """The group of verbs."""
    group = typer.Typer(
        help="Make, change, show and check the federation file: who belongs, and what is trained how.",
        epilog="Example: [bold]gossipfl federation create --task breast-cancer --out fed a.line b.line c.line[/bold]",
        no_args_is_help=True,
        rich_markup_mode="rich",
    )
    group.command("create", epilog=CREATE)(create)
    group.command("study", epilog=STUDY)(study)
    group.command("add", epilog="Example: [bold]gossipfl federation add fed/federation.json d.line[/bold]")(add)
    group.command("leave", epilog="Example: [bold]gossipfl federation leave fed/federation.json b[/bold]")(leave)
    group.command("show", epilog="Example: [bold]gossipfl federation show fed/federation.json --json[/bold]")(show)
    group.command("check", epilog="Example: [bold]gossipfl federation check fed/federation.json[/bold]")(check)
    return group


CREATE: Final = (
    "Example: [bold]gossipfl federation create --task breast-cancer --out fed a.line b.line c.line[/bold]  "
    "-- then every member gets federation.json by any way, and psk.key by a secret one."
)


STUDY: Final = (
    "Example: [bold]gossipfl federation study --task breast-cancer --members 5 > study.toml[/bold]  "
    "-- change what you will, and give it to [bold]federation create --study study.toml[/bold]."
)


def create(
    members: Annotated[
        list[str], typer.Argument(metavar="LINE|FILE...", help="Lines of `gossipfl init`, or files of them.")
    ],
    task: Annotated[
        str, typer.Option("--task", help="breast-cancer, digits, heart, table, toy, or module:attribute.")
    ] = "",
    study: Annotated[Path | None, typer.Option("--study", help="TOML file of the study's constants.", readable=False)] = None,
    option: Annotated[
        list[str] | None, typer.Option("--option", help="key=value for the task; the value may be JSON.")
    ] = None,
    rule: Annotated[str, typer.Option("--topology", help="auto, complete, regular or ring.")] = "auto",
    degree: Annotated[int, typer.Option("--degree", help="Neighbours each, for the rule regular; even.")] = 6,
    out: Annotated[Path, typer.Option("--out", help="Folder for federation.json and psk.key.")] = Path("."),
    json_: JSON = False,
) -> None:
    """Make federation.json and the secret psk.key from the lines of all members."""
    import secrets

    from gossipfl import tasks
    from gossipfl.cli import output
    from gossipfl.config import PSK
    from gossipfl.documents import validated
    from gossipfl.recipe import must_fit
    from gossipfl.trust import identity, membership

    output.absent(out / FILE, out / PSK)
    asked = _asked(task, study, option or [])
    given = _members(members)
    plan = _whole(asked, sum(one.role == "trainer" for one in given))
    topology = validated(membership.Topology, {"rule": rule, "degree": degree}, "--topology", {})
    first = first_model(plan)
    made = membership.create(
        federation=secrets.token_bytes(32),
        members=given,
        study=plan,
        layout=first.layout,
        x0=first.x0,
        topology=topology,
    )
    must_fit(tasks.load(plan.task, plan.task_options), made)
    output.folder(out, 0o755)
    identity.save_key(out / PSK, secrets.token_bytes(32), None, "psk")
    output.write(out / FILE, made.dump())
    output.say(f"Made {out / FILE} (for every member) and {out / PSK} (secret: send it by another, safe way).")
    _shown(made, json_)
    for one in findings(made, int(time.time())):
        if one.result == "fail":
            output.say(f"This federation cannot work yet: {one.check}: {one.found} -- {one.fix}")


def study(
    task: Annotated[str, typer.Option("--task", help="As for `federation create`.")] = "",
    members: Annotated[int, typer.Option("--members", min=2, help="How many will have data.")] = 5,
    file: Annotated[Path | None, typer.Option("--study", help="TOML file of constants that are decided.", readable=False)] = None,
    option: Annotated[
        list[str] | None, typer.Option("--option", help="key=value for the task; the value may be JSON.")
    ] = None,
    json_: JSON = False,
) -> None:
    """Print every constant of a study as `federation create` would choose it, each with what it does: a file for --study."""
    from gossipfl.cli import output

    made = _whole(_asked(task, file, option or []), members)
    if json_:
        output.emit(made.model_dump(mode="json", exclude={"holdout_key"}))
        return
    print(f"# A study of {members} members for `gossipfl federation create --study`: what is left out is chosen like this.")
    for name, field in type(made).model_fields.items():
        if name == "holdout_key":  # drawn by `create`
            continue
        value = getattr(made, name)
        print(*("", *(f"# {line}" for line in textwrap.wrap(" ".join((field.description or "").split()), 100))), sep="\n")
        print(f"# {name} = (none)" if value is None else f"{name} = {_toml(value)}")


def _toml(value: Any) -> str:
    """A value as TOML writes it: as JSON does, but for tables and for what is none, which is left out."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)} = {_toml(one)}" for key, one in value.items() if one is not None) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return json.dumps(value)


def add(
    file: FilePath,
    members: Annotated[
        list[str], typer.Argument(metavar="LINE|FILE...", help="Lines of `gossipfl init`, new or renewed.")
    ],
    json_: JSON = False,
) -> None:
    """Add members, or renew the lines of known ones; the version grows by one."""
    from gossipfl.trust import membership

    _changed(file, membership.with_members(membership.Membership.load(file), *_members(members)), json_)


def leave(
    file: FilePath,
    member: Annotated[str, typer.Argument(metavar="ID", help="Who leaves, for good: the id never comes back.")],
    same_psk: Annotated[bool, typer.Option("--same-psk", help="Make no new psk: who left never had this one.")] = False,
    json_: JSON = False,
) -> None:
    """Say that a member has left; the version grows by one, and the others get a new psk. No timeout ever says so: only this."""
    import secrets

    from gossipfl.cli import output
    from gossipfl.trust import identity, membership

    changed = membership.without(membership.Membership.load(file), member)
    psk = file.with_name(f"psk-v{changed.version}.key")
    if not same_psk:
        output.absent(psk)
        identity.save_key(psk, secrets.token_bytes(32), None, "psk")
    _changed(file, changed, json_)
    if not same_psk:
        output.say(
            f"Made {psk} (secret), which {member} must not get: send it to {', '.join(changed.active)}, each by a safe way. "
            f"Each stops its node, puts it in place of keys/psk.key and the new federation file in place of the old, and starts "
            f"again; nodes with the old psk and nodes with the new one do not talk."
        )


def show(file: FilePath, json_: JSON = False) -> None:
    """Print who belongs, how heavy, with which neighbours, and what is trained."""
    from gossipfl.trust.membership import Membership

    _shown(Membership.load(file), json_)


def check(file: FilePath, json_: JSON = False) -> None:
    """Check certificates, topology, counts, disk need and the first model; exit 78 if something must be mended."""
    from gossipfl.cli import output
    from gossipfl.errors import Exit
    from gossipfl.trust.membership import Membership

    membership = Membership.load(file)
    found = [*findings(membership, int(time.time())), *model_findings(membership)]
    if json_:
        output.emit({"file": str(file), "findings": [asdict(one) for one in found]})
    else:
        rows = [(one.check, one.result, one.found, one.fix) for one in found]
        output.table("", ("check", "result", "found", "how to fix"), rows)
    if any(one.result == "fail" for one in found):
        raise typer.Exit(int(Exit.CONFIG))


# ---- what check finds ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Finding:
    """One row of `check`."""

    check: str
    result: Literal["ok", "warn", "fail", "info"]
    found: str
    fix: str = ""


def findings(membership: Membership, wall_s: int) -> Iterator[Finding]:
    """What can be said of the document alone, at a wall clock."""
    yield from _certificates(membership, wall_s)
    yield from _reachable(membership)
    yield from _topology(membership)
    undeclared = [m.id for m in membership.members if m.is_active and m.role == "trainer" and m.count == 0]
    if undeclared:
        yield Finding("counts", "warn", f"not declared: {', '.join(undeclared)}", "init --count; now as the median")
    trainers = [m.id for m in membership.members if m.is_active and m.role == "trainer"]
    if len(trainers) < 2:
        yield Finding("trainers", "fail", f"{len(trainers)} with data", "add members that train")


def _certificates(membership: Membership, wall_s: int) -> Iterator[Finding]:
    fine = 0
    for member in membership.members:
        if not member.is_active:
            continue
        left_s = member.certificate_read.not_after - wall_s
        if left_s <= 0:
            what = f"{member.id}: ended {-left_s // 86_400} days ago"
            yield Finding("certificate", "warn", what, "peers fetch newer ones; else `gossipfl renew` there")
        elif member.certificate_read.not_before > wall_s:
            yield Finding("certificate", "fail", f"{member.id}: not valid yet", "correct this clock or theirs")
        elif left_s < SOON_S:
            yield Finding(
                "certificate", "warn", f"{member.id}: ends in {left_s // 3600} hours", "`gossipfl renew`"
            )
        else:
            fine += 1
    yield Finding("certificate", "ok", f"{fine} of {len(membership.active)} valid for days")


def _reachable(membership: Membership) -> Iterator[Finding]:
    wanted, dials = membership.wanted_graph, membership.dial_only
    pairs = [(a, b) for a in sorted(dials) for b in wanted[a] if a < b and b in dials]
    if not pairs:
        yield Finding("reachable", "ok", "every link has a side that can be dialled")
        return
    some = ", ".join(f"{a}-{b}" for a, b in pairs[:5]) + (" ..." if len(pairs) > 5 else "")
    alone = [a for a in sorted(dials) if not membership.neighbours(a)]
    fix = "fine if the topology is; else give one of each pair an address (init --address)"
    yield Finding("reachable", "warn", f"not neighbours, since both can only dial: {some}", fix)
    if alone:
        yield Finding("reachable", "fail", f"nobody to talk to: {', '.join(alone)}", "give a neighbour an address")


def _topology(membership: Membership) -> Iterator[Finding]:
    from gossipfl import topology

    graph = membership.graph
    warning = topology.warn(graph)
    if warning:
        yield Finding("topology", "fail", warning, "set topology.rule and degree, and raise the version")
    else:
        what = f"{len(graph)} members, up to {topology.degree_of(graph)} neighbours"
        speed = f"lambda2/(2d) = {topology.speed(graph):.3f}"
        yield Finding("topology", "ok", f"{what}, {speed}, {membership.release_exchanges} exchanges before the release")


def model_findings(membership: Membership) -> Iterator[Finding]:
    """Whether this machine makes the same first model, and how much disk each member needs. Loads the task."""
    from gossipfl.errors import GossipError

    try:
        first = first_model(membership.study)
    except GossipError as error:
        yield Finding("model", "warn", f"not checked: {error}", "install what the task needs")
        return
    same = (first.layout, first.x0) == (membership.layout_digest, membership.x0_name)
    if same:
        yield Finding("model", "ok", f"layout and x0 as in the file; {first.size:,} bytes")
    else:
        yield Finding("model", "fail", "layout or x0 differ here", "use the gossipfl and the task that made the file")
    for member in membership.active:
        links = len(membership.neighbours(member))
        need = links * 3 * first.size
        yield Finding("disk", "info", f"{member}: {links} neighbours x 3 x model = {size(need)}", "")


# ---- making ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class First:
    """What a study begins with, by name."""

    layout: bytes
    x0: bytes
    size: int
    """Bytes of a model."""


def first_model(study: Study) -> First:
    """Layout and x^0 of a study. Raises ConfigError if the task cannot be loaded, or makes no model."""
    from gossipfl import digest, tasks
    from gossipfl.errors import ConfigError, Fault, Misuse
    from gossipfl.tasks import fitting

    task = tasks.load(study.task, study.task_options)
    try:
        layout = fitting.layout_of(task)
        vector = fitting.start(task, layout, study.seed)
    except Misuse as error:
        fault = Fault("task", None, f"{study.task!r} makes no model: {error}", "correct the task or its [task_options]")
        raise ConfigError(fault) from None
    return First(layout.digest, digest.name_of(vector.tobytes()), vector.nbytes)


def _asked(task: str, file: Path | None, options: list[str]) -> Study:
    """What a TOML file and the command line say of a study; the command line wins."""
    import secrets

    from gossipfl import tasks
    from gossipfl.documents import located, read_text, toml_lines, toml_tree, validated
    from gossipfl.errors import ConfigError, Fault
    from gossipfl.trust.membership import Study

    text = read_text(file) if file else ""
    tree, lines = (toml_tree(text, str(file)), toml_lines(text)) if file else ({}, {})
    tree["task"] = task or tree.get("task", "")
    if not tree["task"]:
        raise typer.BadParameter("name the task with --task, or in the study file")
    tree.setdefault("holdout_key", secrets.token_hex(32))
    said = tree.get("task_options", {})
    tree["task_options"] = said | dict(_option(one) for one in options) if isinstance(said, dict) else said
    faults: list[Fault | str] = []
    study = None
    try:
        study = validated(Study, tree, str(file or "--option"), lines)
    except ConfigError as error:
        faults += error.faults
    if isinstance(tree["task"], str) and isinstance(said, dict):  # else that is among the faults
        try:
            tasks.load(tree["task"], tree["task_options"])
        except ConfigError as error:
            faults += located(error, str(file), lines, IN_STUDY) if file and not task else error.faults
    if study is None or faults:
        raise ConfigError(*sorted(faults, key=lambda one: (isinstance(one, Fault) and one.line) or 0))
    return study


IN_STUDY: Final[dict[str, tuple[str | int, ...]]] = {"task": (), "schema": ("task_options", "schema")}
"""Where in a study lies what a task finds wrong there."""


def _whole(asked: Study, members: int) -> Study:
    """The same with everything that it leaves out as gossipfl.defaults says it for this task and so many members."""
    from gossipfl import tasks
    from gossipfl.recipe import study_defaults

    given = {name: getattr(asked, name) for name in asked.model_fields_set}
    return asked.model_copy(update=study_defaults(tasks.load(asked.task, asked.task_options), given, members))


def _option(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise typer.BadParameter(f"--option {text!r}: write key=value")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def _members(given: list[str]) -> list[Member]:
    """The members of lines, or of files that hold one line each or more."""
    from gossipfl.documents import read_text
    from gossipfl.errors import ConfigError, Fault
    from gossipfl.trust.membership import LINE_PREFIX, read_member_line

    lines: list[tuple[str, str]] = []
    for one in given:
        if one.startswith(LINE_PREFIX):
            lines.append((one, f"line {len(lines) + 1}"))
        else:
            text = read_text(Path(one)).splitlines()
            lines += [(line, f"{one}:{number}") for number, line in enumerate(text, 1) if line.strip()]
    faults: list[Fault | str] = []
    members = []
    for line, source in lines:
        try:
            members.append(read_member_line(line, source))
        except ConfigError as error:
            faults += error.faults
    if faults or not members:
        raise ConfigError(*(faults or ["no member line in what was given; `gossipfl init` prints one"]))
    return members


def _changed(file: Path, new: Membership, json_: bool) -> None:
    from gossipfl.cli import output

    output.write(file, new.dump())
    output.say(f"{file} is now version {new.version}. Send it to every member: different versions do not mix.")
    _shown(new, json_)


def _shown(membership: Membership, json_: bool) -> None:
    from gossipfl.cli import output

    members = [
        {
            "id": member.id,
            "role": member.role,
            "status": member.status,
            "count": member.count,
            "mass": member.mass,
            "addresses": list(member.certificate_read.addresses),
            "certificate_until": member.certificate_read.not_after,
            "neighbours": list(membership.neighbours(member.id)),
        }
        for member in membership.members
    ]
    if json_:
        summary = {"federation": membership.federation, "version": membership.version}
        summary |= {"digest": membership.digest.hex()}
        summary |= {"layout": membership.layout, "x0": membership.x0}
        constants = membership.study.model_dump(mode="json", exclude={"holdout_key"})
        output.emit(summary | {"study": constants, "members": members})
        return
    study = membership.study
    title = f"{study.name}: {study.task}, version {membership.version}, digest {membership.digest.hex()[:16]}"
    rows = [
        (m.id, m.role, m.status, m.count or "?", m.mass, len(membership.neighbours(m.id)), _reached(m))
        for m in membership.members
    ]
    output.table(title, ("id", "role", "status", "rows", "mass", "neighbours", "reached at"), rows)


def _reached(member: Member) -> str:
    return " ".join(member.certificate_read.addresses) or "it dials"
