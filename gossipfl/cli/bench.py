"""`gossipfl bench`: methods side by side on one dataset. What is asked and printed; gossipfl.simulator.bench does the rest."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from gossipfl.amounts import figure, size

if TYPE_CHECKING:
    from gossipfl.simulator.bench.question import Question
    from gossipfl.simulator.bench.summary import Reached, Row, Summary

EPILOG: Final = (
    "Example: [bold]gossipfl bench stroke --methods ledger,gossip,fedavg,centralized,local --topology random-regular:6 "
    "--dropout 0.3 --seeds 5 --data-dir DIR[/bold]; run again, it goes on where it stopped."
)

METHODS: Final = "centralized,local,fedavg,fedprox,gossip,ledger"
DROPOUT: Final = 0.3
SEEDS: Final = 5


def bench(
    dataset: Annotated[
        str | None,
        typer.Argument(
            help="stroke, icu, heart, breast-cancer, digits, ..; or: compare A B, document [SUITE] RESULTS."
        ),
    ] = None,
    folders: Annotated[list[Path] | None, typer.Argument(help="After compare or document: results folders.")] = None,
    methods: Annotated[
        str, typer.Option("--methods", help="With commas; centralized and local are the references.")
    ] = METHODS,
    suite: Annotated[str | None, typer.Option("--suite", help="Instead of a dataset: standard or full.")] = None,
    topology: Annotated[
        str | None, typer.Option("--topology", help="See `gossipfl topology list`; the dataset's own.")
    ] = None,
    nodes: Annotated[int | None, typer.Option("--nodes", min=2, help="Sites; the dataset's own number.")] = None,
    rounds: Annotated[int | None, typer.Option("--rounds", min=1, help="Budget; the dataset's own.")] = None,
    dropout: Annotated[float, typer.Option("--dropout", min=0.0, max=0.95, help="Share absent in each round.")] = DROPOUT,
    stragglers: Annotated[
        float, typer.Option("--stragglers", min=0.0, max=1.0, help="Share of sites that manage half of a round's local steps.")
    ] = 0.0,
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="Splits, 0 to N-1.")] = SEEDS,
    alpha: Annotated[
        float | None, typer.Option("--alpha", min=0.001, help="Label skew of digits and breast-cancer: Dirichlet's.")
    ] = None,
    tune: Annotated[
        bool, typer.Option("--tune", help="First choose rate, steps and own knob on validation rows.")
    ] = False,
    trials: Annotated[int, typer.Option("--trials", min=1, help="Of --tune, for every method and split.")] = 12,
    data_dir: Annotated[
        Path | None, typer.Option("--data-dir", help="Folder that holds ist/, eicu-demo/, uci-heart/.")
    ] = None,
    processes: Annotated[int, typer.Option("--processes", min=0, help="Processes; 0: one a core.")] = 0,
    out: Annotated[Path | None, typer.Option("--out", help="Results folder; runs/bench-DATASET by default.")] = None,
    json_: Annotated[bool, typer.Option("--json", help="Print one JSON object with one object a method.")] = False,
) -> None:
    """Compare methods on the same rows, graph, budget, absence and seeds, with centralized and each site alone beside them."""
    from gossipfl.cli import output
    from gossipfl.errors import Exit
    from gossipfl.simulator.bench.question import Question, known
    from gossipfl.simulator.bench.suite import SUITES

    where = None if data_dir is None else str(data_dir)
    if dataset == "compare":
        _compare(folders or [], json_)
        return
    if dataset == "document":
        _document(folders or [], out)
        return
    if folders:
        raise typer.BadParameter(f"{folders[0]}: only compare and document take more than a dataset")
    if suite is not None and dataset is not None:
        raise typer.BadParameter(f"{dataset} and --suite {suite}: name either a dataset or a suite")
    if suite is not None:
        known("suite", suite, SUITES)
        given = {
            "--methods": methods != METHODS, "--topology": topology, "--nodes": nodes, "--rounds": rounds,
            "--dropout": dropout != DROPOUT, "--stragglers": stragglers, "--seeds": seeds != SEEDS, "--alpha": alpha,
        }  # fmt: skip
        if changed := [name for name, value in given.items() if value]:
            raise typer.BadParameter(f"a suite has settings of its own; leave out {', '.join(changed)}, or name a dataset")
        top = out or Path("runs") / f"bench-{suite}"
        asked = [(top / name.replace(" ", "-"), question) for name, question in SUITES[suite]()]
    elif dataset is None:
        raise typer.BadParameter("name a dataset, such as breast-cancer, or a --suite")
    else:
        one = Question.of(
            dataset, [name.strip() for name in methods.split(",") if name.strip()], nodes=nodes, topology=topology,
            rounds=rounds, dropout=dropout, stragglers=stragglers, seeds=seeds,
            options=None if alpha is None else {"alpha": alpha},
        )  # fmt: skip
        asked = [(out or Path("runs") / f"bench-{dataset.replace(':', '-')}", one)]
    if tune:
        asked = [
            (folder, _tuned(question, folder, where, processes, trials, quiet=json_)) for folder, question in asked
        ]
    done = [_answered(question, folder, where, processes, quiet=json_) for folder, question in asked]
    if json_:
        objects = [{**result, "folder": str(folder)} for (folder, _), result in zip(asked, done, strict=True)]
        output.emit(objects if suite else objects[0])
    if any(result["refused"] for result in done):
        raise typer.Exit(int(Exit.FAILED))


def _answered(asked: Question, folder: Path, data_dir: str | None, processes: int, *, quiet: bool) -> dict[str, Any]:
    """Runs what is not there yet, writes the folder, prints what came out unless `quiet`. **Returns**: the folder's summary."""
    from functools import partial

    from gossipfl.cli import output
    from gossipfl.errors import Misuse
    from gossipfl.simulator import pool, results
    from gossipfl.simulator.bench import folder as folders
    from gossipfl.simulator.bench import one
    from gossipfl.simulator.bench.summary import summarise
    from gossipfl.tasks.sites import sentences

    began = time.time()
    output.say(str(asked))
    sites, _ = asked.rows.federation(
        asked.seeds[0], data_dir
    )  # what is wrong with the data ends it here, not in every run
    notes = sentences(asked.rows.loaded(), sites)
    output.say("\n".join(notes))
    there = folders.lines(folders.made(folder))
    if old := folders.older(there):
        output.say(f"{old} runs in {folder / folders.RUNS} are another version's, whose figures differ: they are begun anew")
    wanted = {asked.key(ask): ask for ask in asked.runs()}
    left = [ask for key, ask in wanted.items() if key not in there]
    if len(left) < len(wanted):
        output.say(f"{len(wanted) - len(left)} of {len(wanted)} runs are in {folder / folders.RUNS} already")
    refused: dict[str, str] = {}
    commit = _commit()
    with output.counted("runs", len(wanted), len(wanted) - len(left), quiet=quiet) as counter:
        for line in pool.run(partial(one.attempt, asked, data_dir), left, processes or pool.cores()):
            if "refused" in line:
                refused[line["method"]] = line["refused"]
            else:
                line["commit"] = commit
                pool.append(folder / folders.RUNS, line)
                there[line["key"]] = line
            counter.step(str(wanted[line["key"]]))
    lines = [there[key] for key in wanted if key in there]
    if not lines:
        raise Misuse("; ".join(f"{method}: {why}" for method, why in refused.items()))
    found = summarise(lines, asked.methods, refused, notes)
    manifest = results.manifest(asked.seeds[0], ["gossipfl", *sys.argv[1:]], began) | {"commit": commit}
    folders.write(folder, asked, found, lines, manifest)
    if not quiet:
        _closing(found)
        print(f"report: {folder / folders.PAGE}")
    return dict(results.finite(folders.as_json(asked, found)))


def _tuned(asked: Question, folder: Path, data_dir: str | None, processes: int, count: int, *, quiet: bool) -> Question:
    """The question with the settings that the validation rows chose; says which."""
    from dataclasses import replace
    from functools import partial

    from gossipfl.cli import output
    from gossipfl.simulator import pool
    from gossipfl.simulator.bench import folder as folders
    from gossipfl.simulator.bench import tune

    output.say(f"{asked}: {count} trials for every method and split, judged by validation rows; no test row is touched")
    there = folders.lines(folders.made(folder), folders.TRIALS)
    wanted = {tune.key(asked, trial): trial for trial in tune.trials(asked, count)}
    left = [trial for key, trial in wanted.items() if key not in there]
    with output.counted("trials", len(wanted), len(wanted) - len(left), quiet=quiet) as counter:
        for line in pool.run(partial(tune.attempt, asked, data_dir), left, processes or pool.cores()):
            pool.append(folder / folders.TRIALS, line)
            there[line["key"]] = line
            counter.step(str(wanted[line["key"]]))
    changes = tune.chosen([there[key] for key in wanted])
    if not quiet:
        print()
        output.table("chosen on validation rows, split by split", ("method", "settings"), tune.told(asked, changes))
        print()
    return replace(asked, changes=changes)


def _compare(paths: list[Path], json_: bool) -> None:
    """Two results folders, method by method."""
    from dataclasses import asdict

    from gossipfl.cli import output
    from gossipfl.simulator import results
    from gossipfl.simulator.bench.compare import compare

    if len(paths) != 2:
        raise typer.BadParameter("compare takes two results folders: gossipfl bench compare A B")
    found = compare(*paths)
    if json_:
        output.emit(results.finite(asdict(found)))
        return
    for name, (one, other) in found.asked.items():
        output.say(f"asked differently, {name}: {one} and {other}")
    rows = [
        (change.method, figure(change.before), figure(change.after),
         *(figure(value, signed=True) for value in (change.gain.middle, change.gain.low, change.gain.high)),
         *(_or_dash(value) for value in change.rounds), *(size(value) for value in change.bytes_per_node),
         ", ".join(f"{name}: DIVERGED in {count}" for name, count in zip("AB", change.diverged, strict=True) if count))
        for change in found.changes
    ]  # fmt: skip
    header = ("method", "share A", "share B", "B - A", "from", "to", "rounds A", "rounds B", "bytes A", "bytes B", "")
    output.table(
        "worst node over centralized, with the 95 % interval of the difference; rounds and bytes to 99 %", header, rows
    )
    for name, methods in zip("AB", found.only, strict=True):
        if methods:
            print(f"only in {name}: {', '.join(methods)}")


def _document(paths: list[Path], out: Path | None) -> None:
    """A page of all results below a folder; of a suite's run, first what is to be kept of it."""
    from gossipfl.cli import output
    from gossipfl.simulator.bench.document import document, inserted, keep

    if len(paths) not in (1, 2):
        raise typer.BadParameter(
            "document takes a folder of results, and before it, if new, the suite's: document [SUITE] RESULTS"
        )
    if len(paths) == 2:
        keep(*paths)
    text = document(paths[-1])
    if out is None:
        print(text, end="")
    else:
        output.write(out, inserted(text, out.read_text("utf-8") if out.exists() else ""))


def _or_dash(value: float | None) -> str:
    return "-" if value is None else f"{value:g}"


def _commit() -> str | None:
    """The commit of the checkout that gossipfl is installed from; None where it is not one."""
    import subprocess

    import gossipfl

    command = ["git", "-C", str(Path(gossipfl.__file__).parent), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip() or None
    except (OSError, subprocess.SubprocessError):
        return None


# ---- the end ---------------------------------------------------------------------------------------------------------


WORDS: Final = (
    "worst node, 5 %, median, mean: of the nodes' models at the end, each on the test rows of all; of a hundred, five are worse "
    "than 5 %",
    "share: worst node over centralized, mean over splits; its interval, and 'over splits', by the corrected resampled t",
    "over patients: paired bootstrap, from the lowest to the highest end of the splits' intervals; DeLong: the worst node's AUC "
    "and its interval over patients",
    "calibration: observed less predicted mean risk; apart: distance of the nodes' models from their mean at the end, over its "
    "length, 0 for one model",
    "-: not so far in every split; or nothing of the kind, as the references have no rounds",
)
"""Under the tables: what their columns mean."""


def _closing(found: Summary) -> None:
    from gossipfl.cli import output
    from gossipfl.learning.evaluation import label
    from gossipfl.simulator.bench.network import NETWORKS
    from gossipfl.simulator.bench.summary import SLOW
    from gossipfl.simulator.bench.verdict import sentences, verdict

    name = label(found.metric)
    splits = f"{len(found.seeds)} splits" if len(found.seeds) > 1 else "one split"
    print()
    print(f"{name} on {found.test_rows:,} test rows, {splits}; intervals are 95 %")
    output.table(
        "", ("method", "worst node", "5 %", "median", "mean", "share", "from", "to", ""),
        [_quality(row, len(found.seeds)) for row in found.rows],
    )  # fmt: skip
    print()
    single = (f"DeLong, split {found.seeds[0]}",) if found.metric == "auc" else ()
    output.table(
        "worst node less centralized",
        ("method", name, "over splits", "over patients", *single),
        [_difference(row, bool(single)) for row in found.rows if row.method != "centralized"],
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
        names = [network.name for network in NETWORKS]
        print("modelled seconds until the worst node is at 99 % of centralized")
        output.table(
            "",
            ("method", *names, f"{SLOW}, all but it"),
            [
                [row.method, *map(_time, (*map(row.worst_reached.seconds.get, names), row.others_seconds))]
                for row in timed
            ],
        )
        print(*(f"  {network.name}: {network}" for network in NETWORKS), sep="\n")
        print()
    print(*WORDS, sep="\n")
    print()
    print("what holds (+), falls short (-), is open (?)")
    print(*sentences(verdict(found)), sep="\n")
    print()


def _time(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def _quality(row: Row, splits: int) -> list[str]:
    score = [figure(row.score[name]) for name in ("worst", "low", "median", "mean")]
    notes = [f"DIVERGED in {row.diverged} of {row.runs}"] if row.diverged else []
    notes += [f"only {row.runs} of {splits} splits"] if row.runs < splits else []
    notes += ["experimental"] if row.is_experimental else []
    share = row.share
    return [row.method, *score, *(figure(value) for value in (share.middle, share.low, share.high)), ", ".join(notes)]


def _difference(row: Row, has_auc: bool) -> list[str]:
    gain, single = row.difference, row.delong[0]
    cells = [row.method, figure(gain.middle, signed=True), _span(gain.low, gain.high), _span(*row.over_patients)]
    if has_auc:
        cells.append("-" if single is None else f"{figure(single['auc'])}, {figure(single['low'])} to {figure(single['high'])}")
    return cells


def _span(low: float, high: float) -> str:
    return "-" if low != low else f"{figure(low, signed=True)} to {figure(high, signed=True)}"


def _cost(row: Row) -> list[str]:
    goal = row.worst_reached
    reference = row.is_reference
    return [
        row.method,
        "-" if reference else _rounds(goal, row.runs),
        "-" if reference else size(goal.bytes_per_node),
        "-" if reference else size(row.bytes_per_node),
        figure(row.brier),
        figure(row.calibration),
        "-" if reference or row.diverged else f"{row.consensus:.1g}",
        f"{row.cpu_s:.1f}",
    ]


def _rounds(goal: Reached, runs: int) -> str:
    if goal.rounds is not None:
        return f"{goal.rounds:g}"
    return f"only {goal.splits} of {runs} splits" if goal.splits else "not reached"
