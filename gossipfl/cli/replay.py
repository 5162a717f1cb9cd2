"""`gossipfl replay`: run recorded nodes again, say where they part from the record, cut a recording down to that place."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

if TYPE_CHECKING:
    from gossipfl.recording import Recording
    from gossipfl.replay import Replayed
    from gossipfl.store import Store

EPILOG: Final = "Example: [bold]gossipfl replay state/recordings/*.recording --state state[/bold]"

Files = Annotated[list[Path], typer.Argument(metavar="FILE...", help="Recordings, or folders of them.")]


def replay(
    files: Files,
    state: Annotated[
        Path | None, typer.Option("--state", help="A stopped node's state folder: compare with its disk, redo its jobs.")
    ] = None,
    until: Annotated[int | None, typer.Option("--until", min=1, help="Only the first N events.")] = None,
    cut: Annotated[
        Path | None,
        typer.Option("--cut", metavar="OUT", help="Write what leads up to --until, or to the first difference or violation."),
    ] = None,
    scenario: Annotated[
        Path | None,
        typer.Option("--scenario", metavar="OUT", help="Write what was measured as a scenario for `gossipfl simulate`."),
    ] = None,
    list_: Annotated[bool, typer.Option("--list", help="Print every event with the kinds of its commands.")] = False,
    json_: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Run the core over recordings: it must give the same commands again. Exits 1 where it does not."""
    from gossipfl.cli import output
    from gossipfl.errors import Exit, Misuse
    from gossipfl.recording import Recording

    if list_ and json_:
        raise Misuse("--list is for people, --json for programs; give one of them")
    recordings = [Recording(path) for path in found(files)]
    if cut is not None and len(recordings) != 1:
        raise Misuse(f"--cut takes one recording, these are {len(recordings)}; name the file")
    with ExitStack() as stack:
        store = None if state is None else stack.enter_context(opened(state))
        lives = [(recording, run(recording, store, until, list_)) for recording in recordings]
        rows = told(lives, store)
    if cut is not None:
        cut_down(*lives[0], until, cut)
    alike = all(life.difference is None for _, life in lives)
    if scenario is not None and alike:
        measured(lives, scenario)
    elif scenario is not None:
        output.say(f"{scenario}: not written: the replay differs, so what it says was measured may never have been")
    same = alike and not any("OTHER" in text for text in rows.values())
    if json_:
        output.emit({"same": same, "recordings": [as_json(*each, rows) for each in lives]})
    else:
        for each in lives:
            show(*each, rows)
        output.say("the same commands and the same state" if same else "NOT the same: see above")
    if not same:
        raise typer.Exit(int(Exit.FAILED))


def found(files: list[Path]) -> list[Path]:
    """The recordings named, and those in folders named, in the order of their names: lives of a node in order of time."""
    from gossipfl.errors import ConfigError, Fault
    from gossipfl.recording import SUFFIX

    paths = [
        path
        for file in files
        for path in (sorted(file.glob(f"*{SUFFIX}")) if file.is_dir() else [file])
    ]  # fmt: skip
    if not paths:
        fault = Fault(str(files[0]), None, f"holds no *{SUFFIX}", "name a recording, or a folder of recordings")
        raise ConfigError(fault)
    return paths


@contextmanager
def opened(folder: Path) -> Iterator[Store]:
    from gossipfl.errors import ConfigError, Exit, Fault
    from gossipfl.store import Store

    if not (folder / "format").exists():
        fault = Fault(str(folder), None, "is no state folder", "name a stopped node's [node] state, or a copy of one")
        raise ConfigError(fault, exit_code=Exit.STATE)
    with Store.looking(folder) as store:
        yield store


def run(recording: Recording, store: Store | None, until: int | None, list_: bool) -> Replayed:
    from gossipfl.replay import replay

    hands = None
    if store is not None:
        from gossipfl.recompute import Recompute

        hands = Recompute(store.files, recording.life.shape)
    entries = listed(recording) if list_ else iter(recording)
    return replay(recording.life, entries, hands, until)


def listed(recording: Recording) -> Iterator[Any]:
    """The entries, each printed as it passes."""
    from gossipfl.errors import printable
    from gossipfl.recording import Fed
    from gossipfl.replay import brief

    number, began = 0, None
    for entry in recording:
        if isinstance(entry, Fed):
            number += 1
            began = entry.now.mono_ns if began is None else began
            kinds = " ".join(str(outline[0]) for outline in entry.outlines) or entry.raised
            print(printable(f"{number:6d} {(entry.now.mono_ns - began) / 1e9:12.6f} s  {brief(entry.event)}  ->  {kinds}"))
        yield entry


def told(lives: list[tuple[Recording, Replayed]], store: Store | None) -> dict[str, str]:
    """File -> how this life's disk fits with what follows: the next life of the same node, or the state folder."""
    from gossipfl.replay import behind, digest_of_rows

    rows = {}
    for at, (recording, life) in enumerate(lives):
        following = next((after for _, after in lives[at + 1 :] if after.life.node == life.life.node), None)
        if following is not None:
            rows[str(recording.path)] = fits(behind(life, following.began_with), "the next life")
        elif store is not None:
            rows[str(recording.path)] = fits(behind(life, digest_of_rows(store.load())), "the state folder")
    return rows


def fits(lost: int | None, where: str) -> str:
    if lost is None:
        return f"{where} holds OTHER rows than this life left"
    return f"{where} holds what this life left" + (f", but for the last {lost} commits" if lost else "")


def cut_down(recording: Recording, life: Replayed, until: int | None, out: Path) -> None:
    from gossipfl.cli import output
    from gossipfl.errors import Misuse
    from gossipfl.recording import cut

    if until is not None or life.difference is not None:
        entries, why = life.entries, f"event {life.events}"
    elif life.violations:
        entries, why = life.violations[0].entry, f"the first violation: {life.violations[0].mark.text}"
    else:
        raise Misuse("nothing to cut down to: the replay is the same throughout, and no violation is noted; give --until N")
    cut(recording, entries, out)
    output.say(f"{out}: the recording up to {why}")


def measured(lives: list[tuple[Recording, Replayed]], out: Path) -> None:
    """What was replayed, as a scenario."""
    from itertools import islice

    from gossipfl.cli import output
    from gossipfl.simulator.measured import Measured

    found = Measured()
    for recording, life in lives:
        found.take(recording.life, islice(recording, life.entries))
    output.absent(out)
    output.write(out, found.text(f"{len(lives)} recordings"))
    output.say(f"{out}: lines, speeds and outages as measured; gossipfl simulate {out}")


# ---- what is shown ---------------------------------------------------------------------------------------------------


def ending(recording: Recording, life: Replayed) -> str:
    if life.finished:
        return "stopped well"
    return "killed while it wrote: the last frame is torn and left out" if recording.torn else "ends without a stop"


def seconds(life: Replayed) -> float:
    return (life.ended.mono_ns - life.began.mono_ns) / 1e9 if life.began and life.ended else 0.0


def as_json(recording: Recording, life: Replayed, rows: dict[str, str]) -> dict[str, Any]:
    """One recording in the result of --json."""
    differs = life.difference
    return {
        "file": str(recording.path),
        "node": life.life.node,
        "software": life.life.software,
        "began_unix": life.began.wall_ns / 1e9 if life.began else None,
        "seconds": seconds(life),
        "events": life.events,
        "commands": life.commands,
        "exchanges": life.exchanges,
        "end": ending(recording, life),
        "torn": recording.torn,
        "rows": rows.get(str(recording.path), ""),
        "jobs": {"recomputed": life.recomputed, "absent": life.absent},
        "faults": [{"event": one.event, "text": one.mark.text} for one in life.faults],
        "violations": [{"event": one.event, "text": one.mark.text} for one in life.violations],
        "difference": None if differs is None else {
            "event": differs.event, "seconds": (differs.now.mono_ns - life.began.mono_ns) / 1e9 if life.began else 0.0,
            "what": differs.what, "where": differs.where, "recorded": differs.recorded, "replayed": differs.replayed,
        },
        "stage": life.status.get("stage", ""),
        "links": {peer: {key: link[key] for key in ("epoch", "exchanges", "in_doubt", "sent_bytes", "received_bytes")}
                  for peer, link in life.status.get("peers", {}).items()},
    }  # fmt: skip


def show(recording: Recording, life: Replayed, rows: dict[str, str]) -> None:
    from gossipfl.cli import output

    one = as_json(recording, life, rows)
    facts = [(key, one[key]) for key in ("node", "software", "seconds", "events", "commands", "exchanges", "end")]
    if one["rows"]:
        facts.append(("disk", one["rows"]))
    if life.recomputed or life.absent:
        facts.append(("jobs", f"{life.recomputed} done again with the same result, {life.absent} whose tensors are gone"))
    if life.faults:
        facts.append(("faults", len(life.faults)))
    facts += [("violation", f"after event {one.event}: {one.mark.text}") for one in life.violations[:5]]
    if one["difference"] is not None:
        facts += [(f"difference: {key}", value) for key, value in one["difference"].items()]
    output.table(str(recording.path), ("", ""), facts)
    links = [(peer, *link.values()) for peer, link in one["links"].items()]
    output.table("", ("link", "epoch", "exchanges", "in doubt", "sent", "received"), links)
