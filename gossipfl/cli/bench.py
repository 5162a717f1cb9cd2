"""`gossipfl bench`: methods side by side on one dataset. What is asked and printed; gossipfl.simulator.bench does the rest."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

if TYPE_CHECKING:
    from gossipfl.simulator.bench.summary import Reached, Row, Summary

EPILOG: Final = (
    "Example: [bold]gossipfl bench stroke --methods ledger,gossip,fedavg,centralized,local --topology random-regular:6 "
    "--dropout 0.3 --seeds 5 --data-dir DIR[/bold]; run again, it goes on where it stopped."
)

METHODS: Final = "centralized,local,fedavg,fedprox,gossip,ledger"

LINE_S: Final = 5.0
"""Between two lines of progress where there is no terminal."""


def bench(
    dataset: Annotated[str, typer.Argument(help="stroke, icu, heart, breast-cancer, digits, .. or module:attribute.")],
    methods: Annotated[
        str, typer.Option("--methods", help="With commas; centralized and local are the references.")
    ] = METHODS,
    topology: Annotated[
        str | None, typer.Option("--topology", help="As in `gossipfl topology list`; the dataset's own.")
    ] = None,
    nodes: Annotated[int | None, typer.Option("--nodes", min=2, help="Sites; the dataset's own number.")] = None,
    rounds: Annotated[int | None, typer.Option("--rounds", min=1, help="Budget; the dataset's own.")] = None,
    dropout: Annotated[float, typer.Option("--dropout", min=0.0, max=0.95, help="Share absent in each round.")] = 0.3,
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="Splits, 0 to N-1.")] = 5,
    alpha: Annotated[
        float | None, typer.Option("--alpha", help="Label skew of digits and breast-cancer: Dirichlet's.")
    ] = None,
    data_dir: Annotated[
        Path | None, typer.Option("--data-dir", help="Folder that holds ist/, eicu-demo/, uci-heart/.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Results folder; runs/bench-DATASET by default.")] = None,
    json_: Annotated[bool, typer.Option("--json", help="Print one JSON object with one object a method.")] = False,
) -> None:
    """Compare methods on the same rows, graph, budget, absence and seeds, with centralized and each site alone beside them."""
    from gossipfl.cli import output
    from gossipfl.errors import Exit, Misuse
    from gossipfl.simulator import results
    from gossipfl.simulator.bench import folder as folders
    from gossipfl.simulator.bench import one
    from gossipfl.simulator.bench.network import NETWORKS
    from gossipfl.simulator.bench.question import Question
    from gossipfl.simulator.bench.summary import summarise
    from gossipfl.simulator.bench.verdict import sentences, verdict

    began = time.time()
    asked = Question.of(
        dataset, [name.strip() for name in methods.split(",") if name.strip()], nodes=nodes, topology=topology, rounds=rounds,
        dropout=dropout, seeds=seeds, options=None if alpha is None else {"alpha": alpha},
    )  # fmt: skip
    output.say(str(asked))
    folder = folders.made(out or Path("runs") / f"bench-{dataset.replace(':', '-')}")
    there = folders.lines(folder)
    wanted = {asked.key(ask): ask for ask in asked.runs()}
    left = {key: ask for key, ask in wanted.items() if key not in there}
    if len(left) < len(wanted):
        output.say(f"{len(wanted) - len(left)} of {len(wanted)} runs are in {folder / folders.RUNS} already")
    refused: dict[str, str] = {}
    with _progress(len(wanted), len(wanted) - len(left), json_) as step:
        for key, ask in left.items():
            step(0, str(ask))
            try:
                there[key] = one.run(asked, ask, None if data_dir is None else str(data_dir))
                folders.append(folder, there[key])
            except Misuse as error:
                refused[ask.method] = str(error)
            step(1, str(ask))
    lines = [there[key] for key in wanted if key in there]
    if not lines:
        raise Misuse("; ".join(f"{method}: {why}" for method, why in refused.items()))
    found = summarise(lines, asked.methods, refused)
    result = {
        "question": str(asked),
        "metric": found.metric,
        "methods": [row.as_json() for row in found.rows],
        "refused": refused,
        "networks": {network.name: str(network) for network in NETWORKS},
        "said": sentences(verdict(found)),
        "folder": str(folder),
    }
    results.write_json(folder / "manifest.json", results.manifest(asked.seeds[0], ["gossipfl", *sys.argv[1:]], began))
    results.write_json(folder / "summary.json", result)
    (folder / "metrics.csv").write_text(folders.as_csv(folders.tidy(lines)), encoding="utf-8")
    if json_:
        output.emit(results.finite(result))
    else:
        _closing(found)
        print(f"results: {folder}")
    if refused:
        raise typer.Exit(int(Exit.FAILED))


@contextmanager
def _progress(total: int, done: int, quiet: bool) -> Iterator[Callable[[int, str], None]]:
    """A bar with the time left on a terminal, a line now and then elsewhere."""
    if sys.stderr.isatty() and not quiet:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        columns = (
            BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(),
            TextColumn("{task.description}"),
        )  # fmt: skip
        with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task("", total=total, completed=done)
            yield lambda advance, text: bar.update(task, advance=advance, description=text)
        return
    began = last = time.monotonic()
    now = done

    def plain(advance: int, text: str) -> None:
        nonlocal now, last
        now += advance
        if not quiet and advance and (time.monotonic() - last > LINE_S or now == total):
            last = time.monotonic()
            left = (last - began) / (now - done) * (total - now)
            print(f"{now} of {total} runs, {left:.0f} s left ({text})", file=sys.stderr, flush=True)

    yield plain


# ---- the end ---------------------------------------------------------------------------------------------------------


def _closing(found: Summary) -> None:
    from gossipfl.cli import output
    from gossipfl.learning.evaluation import label
    from gossipfl.simulator.bench.network import NETWORKS
    from gossipfl.simulator.bench.verdict import sentences, verdict

    splits = f"{len(found.seeds)} splits" if len(found.seeds) > 1 else "one split"
    print()
    title = f"{label(found.metric)} on {found.test_rows:,} test rows, {splits}; share: worst node over centralized, 95 % interval"
    output.table(
        title, ("method", "worst node", "5 %", "median", "mean", "share", "from", "to", ""), map(_quality, found.rows)
    )
    print()
    output.table(
        "what it took",
        ("method", "rounds to 99 %", "a node sent to 99 %", "in all", "Brier", "calibration", "apart", "CPU s"),
        map(_cost, found.rows),
    )
    print()
    timed = [row for row in found.rows if row.worst_reached.seconds]
    if timed:
        output.table(
            "modelled seconds until the worst node is at 99 % of centralized",
            ("method", *(network.name for network in NETWORKS)),
            [[row.method, *(_seconds(row, network.name) for network in NETWORKS)] for row in timed],
        )
        print(*(f"  {network.name}: {network}" for network in NETWORKS), sep="\n")
        print()
    print(*sentences(verdict(found)), sep="\n")
    print()


def _seconds(row: Row, network: str) -> str:
    value = row.worst_reached.seconds.get(network)
    return "-" if value is None else f"{value:.3g}"


def _quality(row: Row) -> list[str]:
    score = [_figure(row.score[name]) for name in ("worst", "low", "median", "mean")]
    note = f"DIVERGED in {row.diverged} of {row.runs}" if row.diverged else ""
    share = row.share
    return [row.method, *score, *(_figure(value) for value in (share.middle, share.low, share.high)), note]


def _cost(row: Row) -> list[str]:
    from gossipfl.cli.output import amount

    goal = row.worst_reached
    reference = row.is_reference
    return [
        row.method,
        "-" if reference else _rounds(goal, row.runs),
        "-" if reference or goal.bytes_per_node is None else amount(goal.bytes_per_node),
        "-" if reference else amount(row.bytes_per_node),
        _figure(row.brier),
        _figure(row.calibration),
        "-" if reference else f"{row.consensus:.2g}",
        f"{row.cpu_s:.1f}",
    ]


def _rounds(goal: Reached, runs: int) -> str:
    if goal.rounds is not None:
        return f"{goal.rounds:g}"
    return f"only {goal.splits} of {runs} splits" if goal.splits else "not reached"


def _figure(value: Any) -> str:
    return "-" if value is None or value != value else f"{value:.4f}"
