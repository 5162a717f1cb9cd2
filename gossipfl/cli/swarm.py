"""`gossipfl swarm`: many simulated bad days, each out of a seed, with checkers throughout. What is printed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any, Final

import typer

EPILOG: Final = "Example: [bold]gossipfl swarm --seeds 100 --hours 0.25[/bold]; run again, it goes on where it stopped."


def swarm(
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="How many seeds.")] = 100,
    hours: Annotated[float, typer.Option("--hours", min=0.01, help="Virtual hours of chaos, before all heals.")] = 2.0,
    nodes: Annotated[str, typer.Option("--nodes", help="Nodes of each world: a number, or a span such as 4-16.")] = "4-16",
    first_seed: Annotated[int, typer.Option("--first-seed", min=0, help="The first seed.")] = 0,
    without: Annotated[str, typer.Option("--without", help="Classes of faults to leave out, with commas.")] = "",
    until: Annotated[float | None, typer.Option("--until", help="Watch so many virtual seconds, without healing.")] = None,
    processes: Annotated[int, typer.Option("--processes", min=0, help="Processes; 0: one a core.")] = 0,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="File that gets one JSON line a seed: swarm.jsonl; of a single seed only where it is named."),
    ] = None,
    each_end: Annotated[
        bool, typer.Option("--each-end", help="Compute at each end what both compute alike: slower, and the same histories.")
    ] = False,
    no_shrink: Annotated[bool, typer.Option("--no-shrink", help="Do not look for a smaller world that fails, too.")] = False,
    record: Annotated[
        Path | None, typer.Option("--record", help="Of one seed: a new folder for each node's recording (`gossipfl replay`).")
    ] = None,
    json_: Annotated[bool, typer.Option("--json", help="Print the summary as one JSON object.")] = False,
) -> None:
    """Draw a world and its faults from each seed, run it, and say which laws held."""
    from gossipfl.cli import output
    from gossipfl.errors import Exit
    from gossipfl.simulator import pool
    from gossipfl.simulator import swarm as many

    off = tuple(sorted({name.strip() for name in without.split(",") if name.strip()}))
    _known(off)
    plan = many.Plan(first_seed, seeds, hours, _span(nodes), off, until, once=not each_end)
    wanted = range(first_seed, first_seed + seeds)
    alone = seeds == 1
    if record is not None and not alone:
        raise typer.BadParameter("--record is of one seed: name it with --first-seed N --seeds 1")
    path = Path("swarm.jsonl") if out is None and not alone else out
    if path is not None:
        pool.open_for_more(path)
    before = {} if alone or path is None else {seed: line for seed, line in many.done(path, plan).items() if seed in wanted}
    lines = [before[seed] for seed in sorted(before)]
    left = [seed for seed in wanted if seed not in before]
    if before:
        this = many.code()
        other = sum(line.get("code") != this for line in lines)
        made = f", {other} of them run by other code than this: for this code name a new --out" if other else ""
        output.say(f"{len(before)} of {seeds} seeds are in {path} already{made}")
    for line in filter(many.failed, lines):
        output.say(_tell(line))
    whole = False
    with _progress(seeds, len(before), json_) as step, suppress(KeyboardInterrupt):
        for line in many.run(plan, left, processes or pool.cores(), record):
            if path is not None:
                pool.append(path, line)
            lines.append(line)
            step(line)
        whole = True
    if not whole:
        output.say(f"interrupted after {len(lines)} of {seeds} seeds" + ("" if alone else "; the same command goes on from here"))
        if not lines:
            raise typer.Exit(output.INTERRUPTED)
    if whole and not no_shrink:
        for line in [line for line in lines if line["violations"] and line["seed"] in left][:3]:
            _shrink(line)
    summary = many.summary(sorted(lines, key=lambda line: int(line["seed"])))
    if json_:
        output.emit(summary | ({"seed": lines[0]} if alone else {}))
    else:
        rows = [(name, *counts.values()) for name, counts in summary["invariants"].items()]
        output.table("", ("law", "held", "violated", "unknown"), rows)
        print(
            f"{summary['seeds']} seeds, {summary['virtual_hours']:.1f} virtual hours, {summary['exchanges']} exchanges, "
            f"{sum(summary['faults'].values())} faults, {summary['cpu_s']:.0f} s of CPU: {len(summary['failed'])} failed"
        )
    if not whole:
        raise typer.Exit(output.INTERRUPTED)
    if summary["failed"]:
        raise typer.Exit(int(Exit.FAILED))


def _span(text: str) -> tuple[int, int]:
    low, _, high = text.partition("-")
    try:
        span = int(low), int(high or low)
    except ValueError:
        span = (0, 0)
    if not 2 <= span[0] <= span[1] <= 64:
        raise typer.BadParameter(f"--nodes {text!r}: write a number or a span such as 4-16, from 2 to 64")
    return span


def _known(names: tuple[str, ...]) -> None:
    from gossipfl.simulator.faults import CLASSES

    if unknown := sorted(set(names) - set(CLASSES)):
        raise typer.BadParameter(f"--without {', '.join(unknown)}: no such class of faults; choose from {', '.join(CLASSES)}")


def _tell(line: dict[str, Any]) -> str:
    """One seed that failed: each law, where first, and how to see it again."""
    said = [f"seed {line['seed']}: {line['command']}"]
    for name, first in line["violations"].items():
        where = f"{first['at_s']:.3f} s" + (f", {first['node']}" if first["node"] else "") + f", {first['event']}"
        said.append(f"  {name} violated at {where}: {first['detail']}")
    said += [f"  {name} unknown: {error}" for name, error in line["errors"].items()]
    return "\n".join(said)


def _shrink(line: dict[str, Any]) -> None:
    from gossipfl.cli import output
    from gossipfl.simulator import shrink, trial

    drawn = trial.draw(line["seed"], line["hours"], (line["nodes"], line["nodes"]), line["without"], line["until_s"])
    output.say(f"seed {line['seed']}: looking for a smaller world that fails, too")
    try:
        least = shrink.shrink(trial.run(drawn), say=lambda text: output.say(f"  {text}"))
    except KeyboardInterrupt:
        return
    output.say(_tell(least.line()))


@contextmanager
def _progress(total: int, done: int, quiet: bool) -> Iterator[Callable[[dict[str, Any]], None]]:
    """How far it is; failures are printed as they come."""
    from gossipfl.cli import output
    from gossipfl.simulator.swarm import failed

    bad = 0
    with output.counted("seeds", total, done, quiet=quiet) as counter:

        def tell(line: dict[str, Any]) -> None:
            nonlocal bad
            if failed(line):
                bad += 1
                counter.say(_tell(line))
            counter.step(f"{bad} failed")

        yield tell
