"""`gossipfl simulate` of a scenario with a [sweep]: many runs in processes, gone on with when run again. What is printed."""

from __future__ import annotations

import math
import sys
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import typer

if TYPE_CHECKING:
    from gossipfl.simulator.sweep import Asked, Figure, Grid, Line

RUNS: Final = "runs.jsonl"


def sweep(asked: Asked, question: str, text: str, out: Path | None, processes: int, json_: bool) -> None:
    """Make the runs that are not there yet; leave a folder, print a table. **Raises**: typer.Exit 130 after Ctrl-C."""
    from gossipfl.cli import output
    from gossipfl.simulator import grid as pages
    from gossipfl.simulator import pool, results
    from gossipfl.simulator import sweep as sweeps

    began = time.time()
    folder = out or Path("runs") / f"sweep-{asked.path.stem}"
    output.folder(folder, 0o755)
    (folder / "scenario.toml").write_text(text, encoding="utf-8")
    lines = sweeps.done(folder / RUNS, asked)
    wanted = {asked.key(settings): settings for settings in asked.combinations}
    lines = {key: line for key, line in lines.items() if key in wanted}
    left = [settings for key, settings in wanted.items() if key not in lines]
    there = f"; {len(lines)} are in {folder / RUNS} already" if lines else ""
    output.say(f"{question}\n{len(wanted)} runs: {_axes(asked)}{there}")
    stopped = not _run(asked, left, lines, folder / RUNS, len(wanted), processes or pool.cores(), quiet=json_)
    found = sweeps.grid(asked, question, lines)
    manifest = results.manifest(0, ["gossipfl", *sys.argv[1:]], began)
    notes = sorted({note.removeprefix("note: ") for line in lines.values() for note in line.get("notes", ())})
    result = sweeps.as_json(found) | {"folder": str(folder), "report": str(folder / "report.html")}
    results.write_json(folder / "summary.json", result)
    results.write_json(folder / "manifest.json", manifest)
    results.write_lines(folder / "curves.jsonl", sweeps.curves(asked, lines))
    (folder / "metrics.csv").write_text(sweeps.tidy(asked, lines), encoding="utf-8")
    (folder / "report.html").write_text(pages.page(found, manifest, notes), encoding="utf-8")
    if json_:
        output.emit(results.finite(result))
    elif lines:
        _closing(found, folder)
    if stopped:
        output.say(f"interrupted: {found.runs} of {found.of} runs are there; the same command goes on from here")
        raise typer.Exit(output.INTERRUPTED)
    if any(row.unheld or row.error for row in found.rows):
        raise typer.Exit(1)


def _axes(asked: Asked) -> str:
    return " x ".join(f"{len(values)} of {name}" for name, values in asked.axes)


def _run(asked: Asked, left: list[dict[str, Any]], lines: dict[str, Line], path: Path, total: int, processes: int, *,
         quiet: bool) -> bool:  # fmt: skip
    """Every line as it comes, kept at once. **Returns**: False where somebody pressed Ctrl-C."""
    from gossipfl.cli import output
    from gossipfl.simulator import pool
    from gossipfl.simulator import sweep as sweeps

    with output.counted("runs", total, total - len(left), quiet=quiet) as counter:
        try:
            for line in pool.run(partial(sweeps.one, asked), left, processes):
                pool.append(path, line)
                lines[line["key"]] = line
                if "error" in line:
                    counter.say(f"{sweeps.shown(line['settings'])}: {line['error']}")
                counter.step(sweeps.shown(line["settings"]))
        except KeyboardInterrupt:
            return False
    return True


def _closing(found: Grid, folder: Path) -> None:
    from gossipfl.amounts import size
    from gossipfl.cli import output
    from gossipfl.learning.evaluation import label

    names = [name for name, _ in found.axes]
    rows = []
    for row in found.rows:
        one = row.figures
        sent = one["bytes_per_node"].mean
        figures = [
            _percent(one["share"]), _interval(one["share"]), _number(one["worst"]), _number(one["consensus"]),
            size(sent) if math.isfinite(sent) else "-", _number(one["cpu_s"]),
        ]  # fmt: skip
        rows.append([*(row.settings[name] for name in names), row.runs, *figures, row.said()])
    print()
    worst = f"{label(found.metric) if found.metric else 'quality'}, worst"
    header = (*names, "runs", "worst, % of centralized", "95 %", worst, "apart", "a node sent", "CPU s", "")
    output.table(f"means over {found.seeds} seed{'s' * (found.seeds != 1)}", header, rows)
    print(f"\nreport: {folder / 'report.html'}")


def _percent(one: Figure) -> str:
    return f"{100 * one.mean:.2f}" if math.isfinite(one.mean) else "-"


def _interval(one: Figure) -> str:
    return f"{100 * one.low:.2f} to {100 * one.high:.2f}" if math.isfinite(one.low) else "-"


def _number(one: Figure) -> str:
    return f"{one.mean:.4g}" if math.isfinite(one.mean) else "-"
