"""`gossipfl simulate SCENARIO`: one question to a simulated federation. What is printed; gossipfl.simulator does the rest."""

from __future__ import annotations

import json
import math
import shlex
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from gossipfl.amounts import size

if TYPE_CHECKING:
    from collections.abc import Callable

    from gossipfl.simulator.expect import Judged
    from gossipfl.simulator.federation import Federation
    from gossipfl.simulator.play import Progress
    from gossipfl.simulator.rounds import Crowd
    from gossipfl.simulator.run import Run
    from gossipfl.simulator.scenario import Read, Scenario
    from gossipfl.simulator.vectorized.shards import Together

EPILOG: Final = (
    "Example: [bold]gossipfl simulate simulations/partition.toml --set at.0.seconds=7200 --seed 3[/bold]; "
    "exits with 1 where what the file expects does not hold."
)

CHECKPOINT: Final = "checkpoint.safetensors"
"""In a run folder: there is something to go on with."""

LISTED: Final = 60
"""Nodes up to which each is a row of the closing table."""

SPREAD: Final = ("worst", "p5", "median", "mean")

LINE_S: Final = 2.0
"""Between two lines of progress where there is no terminal."""


def simulate(
    scenario: Annotated[
        Path, typer.Argument(help="A scenario.toml; simulations/ has some, docs/simulate.md every key.", readable=False)
    ],
    seed: Annotated[int | None, typer.Option("--seed", min=0, help="Instead of the file's.")] = None,
    hours: Annotated[float | None, typer.Option("--hours", help="Virtual hours, instead of the file's.")] = None,
    nodes: Annotated[int | None, typer.Option("--nodes", min=2, help="How many, instead of the file's.")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Any other key: --set faults.cut_per_hour=2; may be repeated.")
    ] = None,
    data_dir: Annotated[
        Path | None, typer.Option("--data-dir", help="Folder that holds uci-heart/ and the like.")
    ] = None,
    engine: Annotated[
        str | None,
        typer.Option("--engine", help="events: the very code that is deployed; vectorized: all nodes at once, in rounds."),
    ] = None,
    record: Annotated[bool, typer.Option("--record", help="Also record every node, for `gossipfl replay`.")] = False,
    processes: Annotated[int, typer.Option("--processes", min=0, help="Of a \\[sweep]; 0: one a core.")] = 0,
    out: Annotated[Path | None, typer.Option("--out", help="Run folder; runs/simulate-... by default.")] = None,
    json_: Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")] = False,
) -> None:
    """Play one scenario: real nodes' code on simulated clocks, lines and disks, or all nodes at once in rounds; say whether
    it held."""
    from gossipfl.simulator import play
    from gossipfl.simulator import scenario as scenarios
    from gossipfl.simulator.vectorized import shards

    if engine is not None and engine not in play.ENGINES:
        raise typer.BadParameter(f"no engine is called {engine!r}; there is {', '.join(play.ENGINES)}", param_hint="--engine")
    began = time.time()
    read = scenarios.load(scenario, set_ or (), seed=seed, hours=hours, nodes__count=nodes, engine=engine)
    asked = read.scenario
    if asked.sweep:
        from gossipfl.cli.sweep import sweep
        from gossipfl.simulator import sweep as sweeps

        if shards.is_shared():
            raise typer.BadParameter("a [sweep] has processes of its own (--processes); leave torchrun out")
        if record:
            raise typer.BadParameter("--record is of one run, and this scenario is a [sweep]")
        given = {"seed": seed, "hours": hours, "nodes__count": nodes, "engine": engine}
        many = sweeps.asked(scenario, set_ or (), data_dir, **given)
        sweep(many, asked.question, read.text, out, processes, json_)
        return
    with shards.together() as group:
        _play(read, group, data_dir, out, record, json_, began)


def _play(
    read: Read, group: Together | None, data_dir: Path | None, out: Path | None, record: bool, json_: bool, began: float
) -> None:
    """One run, and what it leaves; of several processes the first one speaks and writes."""
    from gossipfl.cli import output
    from gossipfl.recorder import RECORDINGS
    from gossipfl.simulator import expect, play, results, story
    from gossipfl.simulator import run as runs
    from gossipfl.simulator.recorded import Recorded

    asked = read.scenario
    made = play.prepare(read, asked.engine, data_dir)
    if group is not None and group.rank:
        play.play(play.Stage(asked, made, folder=group.agree(None), group=group), asked.engine)
        return
    config = results.finite(_resolved(asked, made))
    folder, goes_on = _folder(out, Path(read.file).stem, asked.seed, began, config, 1 if group is None else group.size)
    manifest = results.manifest(asked.seed, ["gossipfl", *sys.argv[1:]], began)
    results.write_json(folder / "manifest.json", manifest)
    results.write_json(folder / "config.json", config)
    (folder / "scenario.toml").write_text(read.text, encoding="utf-8")
    shared = f", in {group.size} processes" if group else ""
    output.say(f"{asked.question}\n{_size(asked, made)}{shared}" + ("; going on where it was interrupted" if goes_on else ""))
    seen = Recorded(folder / RECORDINGS) if record else None
    if group is not None:
        group.agree(folder)
    with _shown() as tell:
        stage = play.Stage(asked, made, tell, [seen] if seen else [], folder, group=group)
        run = play.play(stage, asked.engine)
    if seen:
        seen.close()
    judged = expect.judge(asked.expect, run) if run.is_whole else []
    page = folder / "report.html"
    result = runs.as_json(run) | {"expectations": [vars(one) for one in judged], "report": str(page)}
    results.write_json(folder / "summary.json", result)
    results.write_lines(folder / "metrics.jsonl", (vars(sample) for sample in run.samples))
    results.write_lines(folder / "happenings.jsonl", (vars(one) for one in run.happenings))
    page.write_text(story.page(run, asked, judged, manifest), encoding="utf-8")
    if json_:
        output.emit(results.finite(result))
    else:
        _closing(read, run, judged, page, time.time() - began)
    if not run.is_whole:
        if any(folder.glob(f"{CHECKPOINT}*")):
            output.say(f"interrupted; the same command with --out {shlex.quote(str(folder))} goes on from here")
        else:
            output.say("interrupted; figures and report are as far as it came")
        raise typer.Exit(output.INTERRUPTED)
    for kept in folder.glob(f"{CHECKPOINT}*"):
        kept.unlink()
    if not all(one.holds for one in judged):
        raise typer.Exit(1)


def _folder(out: Path | None, stem: str, seed: int, began: float, config: Any, processes: int) -> tuple[Path, bool]:
    """The run folder, and whether there is an interrupted run in it to go on with.

    **Raises**: ConfigError: something else is in it.
    """
    from gossipfl.errors import ConfigError, Exit, Fault
    from gossipfl.simulator import results

    if out is not None and any(out.glob(f"{CHECKPOINT}*")):
        try:
            before = json.loads((out / "config.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            before = None
        shared = out / (f"{CHECKPOINT}.0-of-{processes}" if processes > 1 else CHECKPOINT)
        if before != json.loads(json.dumps(config)) or not shared.exists():
            what = "holds an interrupted run of other settings, or of another number of processes"
            raise ConfigError(Fault(str(out), None, what, "choose another --out, or repeat its settings"), exit_code=Exit.STATE)
        return out.resolve(), True
    stamp = time.strftime("%Y%m%d-%H%M%S", time.localtime(began))
    return results.fresh(out or Path("runs") / f"simulate-{stem}-seed{seed}-{stamp}"), False


def _size(scenario: Scenario, made: Federation | Crowd) -> str:
    from gossipfl.simulator.federation import Federation

    rows = sum(len(site.train) for site in made.sites)
    if isinstance(made, Federation):
        return (
            f"{len(made.membership.active)} nodes, {rows} rows of {scenario.task}, {scenario.hours:g} virtual hours, "
            f"seed {scenario.seed}"
        )
    drawn = f", {scenario.rounds.bootstrap} drawn for each" if scenario.rounds.bootstrap else ""
    ends = f", the last {made.release} without training" if made.release else ""
    return f"{len(made.names):,} nodes, {rows} rows of {scenario.task}{drawn}, {made.rounds} rounds{ends}, seed {scenario.seed}"


def _resolved(scenario: Scenario, made: Federation | Crowd) -> dict[str, Any]:
    """Every setting, the defaults too."""
    from gossipfl.simulator.federation import Federation

    said = {**scenario.model_dump(mode="json"), "faults": vars(scenario.options_of_faults())}
    if isinstance(made, Federation):
        members = made.membership
        masses = {member.id: member.mass for member in members.members}
        more = {"masses": masses, "graph": members.graph, "release_exchanges": members.release_exchanges}
        return {**said, "study": members.study.model_dump(mode="json"), **more}
    edges = len(made.graph.edges) if made.graph is not None else None
    return {**said, "study": made.study.model_dump(mode="json"), "edges": edges, "release_exchanges": made.release}


# ---- live ------------------------------------------------------------------------------------------------------------


class _shown:
    """Progress while a run goes on: a few lines that renew themselves on a terminal, one line every two seconds elsewhere."""

    def __init__(self) -> None:
        self.began = self.last = time.monotonic()
        self.live: Any = None

    def __enter__(self) -> Callable[[Progress], None]:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.live import Live

            self.live = Live(console=Console(stderr=True), refresh_per_second=8, transient=True)
            self.live.__enter__()
        return self.tell

    def __exit__(self, *error: object) -> None:
        if self.live is not None:
            self.live.__exit__(None, None, None)

    def tell(self, progress: Progress) -> None:
        now = time.monotonic()
        if self.live is not None:
            self.live.update(_drawn(progress, now - self.began))
        elif now - self.last >= LINE_S or progress.virtual_s >= progress.of_s:
            self.last = now
            print(_line(progress), file=sys.stderr, flush=True)


def _faults(progress: Progress) -> str:
    return ", ".join(f"{n} {kind}" for kind, n in progress.faults.items()) or "none"


def _stages(progress: Progress) -> str:
    return ", ".join(f"{n} {stage}" for stage, n in progress.stages.items())


def _line(progress: Progress) -> str:
    from gossipfl.simulator.run import clock

    if progress.rounds:
        return (
            f"round {progress.round} of {progress.rounds}  {progress.exchanges} exchanges  {_stages(progress)}  "
            f"apart {progress.consensus:.2g}  worst node {progress.quality:.4f}"
        )
    low, high = progress.local_rounds
    rounds = f"{low}" if low == high else f"{low}-{high}"
    return (
        f"{clock(progress.virtual_s)} of {clock(progress.of_s)}  {progress.events} events  {progress.exchanges} exchanges  "
        f"{_stages(progress)}  local round {rounds}  apart {progress.consensus:.2g}  faults: {_faults(progress)}"
    )


def _drawn(progress: Progress, seconds: float) -> Any:
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    from gossipfl.simulator.run import clock

    low, high = progress.local_rounds
    share = progress.virtual_s / progress.of_s
    left = f"{seconds:.0f} s, about {seconds / share - seconds:.0f} s to go" if share > 0.02 else f"{seconds:.0f} s"
    drawn = Table(box=None, pad_edge=False, show_header=False)
    drawn.add_column(style="bold")
    drawn.add_column()
    bar = Table.grid(padding=(0, 1))
    passed = f"{clock(progress.virtual_s)} of {clock(progress.of_s)}"
    if progress.rounds:
        passed = f"{progress.round:,} of {progress.rounds:,}"
    bar.add_row(passed, ProgressBar(progress.of_s, progress.virtual_s, width=24), left)
    drawn.add_row("rounds" if progress.rounds else "virtual time", bar)
    drawn.add_row("nodes", _stages(progress))
    if not progress.rounds:
        drawn.add_row("events", f"{progress.events:,}")
        drawn.add_row("local rounds", f"{low}" if low == high else f"{low} to {high}")
    drawn.add_row("exchanges", f"{progress.exchanges:,}")
    drawn.add_row("apart", f"{progress.consensus:.2g}")
    drawn.add_row("worst node", "-" if progress.quality != progress.quality else f"{progress.quality:.4f}")
    drawn.add_row("faults", Text(_faults(progress)))
    return drawn


# ---- the end ---------------------------------------------------------------------------------------------------------


def _closing(read: Read, run: Run, judged: list[Judged], page: Path, seconds: float) -> None:
    from gossipfl.cli import output
    from gossipfl.simulator import tell
    from gossipfl.simulator.run import clock

    print()
    for one in tell.told(run, read.scenario.at):
        print(f"{one.at}  {one.what}")
        for said in one.then:
            print(f"         {said}")
    print(*tell.outcome(run), sep="\n")
    print()
    if len(run.lives) <= LISTED:
        rows = [
            (life.name, life.rows, "left" if life.left else life.stage,
             life.local_rounds, len(life.exchanges), f"{life.sent / 1024:.0f}", life.boots,
             _shown_value(run, life.name))
            for life in run.lives
        ]  # fmt: skip
        header = ("node", "rows", "stage", "local rounds", "exchanges", "KiB sent", "starts", run.metric)
        output.table("", header, rows)
    else:
        spread = [(f"{one.at_s / run.per_unit:g}", *(f"{one.spread.get(name, math.nan):.4f}" for name in SPREAD),
                   f"{one.consensus:.2g}") for one in run.samples[:: max(1, len(run.samples) // 10)]]  # fmt: skip
        output.table("", (run.unit, f"{run.metric}: worst", "5 %", "median", "mean", "apart"), spread)
    print()
    whole = run.centralized.get(run.metric)
    print(f"centralized: {run.metric} {whole:.4f}; consensus distance {run.consensus_distance:.2g} (0: one model)")
    print(f"faults: {', '.join(f'{n} {kind}' for kind, n in run.faults.items()) or 'none'}")
    print(*run.notes, sep="\n", end="\n" if run.notes else "")
    if run.round_s:
        sent = size(run.sent)
        print(f"{run.exchanges:,} exchanges, {sent} sent, {run.virtual_seconds / run.round_s:g} rounds in {seconds:.1f} s "
              f"({run.cpu_seconds:.1f} s of CPU)")  # fmt: skip
    else:
        took = f"{clock(run.virtual_seconds)} of virtual time in {seconds:.1f} s"
        print(f"{run.exchanges:,} exchanges, {run.events:,} events, {took}" + _digest(run))
    print()
    if judged:
        cells = [("held" if one.holds else "NOT HELD", one.asked, one.found) for one in judged]
        output.table("", ("expected", "", "found"), cells)
    print(f"report: {page}")


def _digest(run: Run) -> str:
    return f"; trace {run.trace_digest[:16]}" if run.trace_digest else ""


def _shown_value(run: Run, name: str) -> str:
    value = run.quality.get(name, {}).get(run.metric)
    return "-" if value is None else f"{value:.4f}"
