"""`gossipfl demo`: five hospitals, five processes, one model, in one command. What is printed; simulator.demo does the rest."""

from __future__ import annotations

import math
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from gossipfl.simulator.demo import Federation, Hospital
    from gossipfl.simulator.results import Result
    from gossipfl.tasks import Data, Site, Task

EPILOG: Final = "Example: [bold]gossipfl demo --kill --seed 1[/bold]; no network, no files needed, below two minutes."

LINE_S: Final = 3.0
"""Between two lines of progress where there is no terminal."""


def demo(
    nodes: Annotated[int | None, typer.Option("--nodes", min=2, max=16, help="Hospitals; 5, or what the task has.")] = None,
    task: Annotated[str, typer.Option("--task", help="breast-cancer, digits, heart, or module:attribute.")] = "breast-cancer",
    data_dir: Annotated[
        Path | None, typer.Option("--data-dir", help="Folder that holds uci-heart/ and the like.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of who gets which patients, and of the first model.")] = 0,
    kill: Annotated[bool, typer.Option("--kill", help="SIGKILL one hospital half-way and start it again.")] = False,
    out: Annotated[Path | None, typer.Option("--out", help="Run folder; runs/demo-... by default.")] = None,
    json_: Annotated[bool, typer.Option("--json", help="Print the summary as one JSON object.")] = False,
) -> None:
    """Hospitals, each its own process with its own rows, train one model together; compare it with what else there is."""
    from gossipfl import tasks
    from gossipfl.cli import output
    from gossipfl.simulator import demo as federations
    from gossipfl.simulator import report, results

    began = time.time()
    if task == "table":
        raise typer.BadParameter(
            "the demo needs rows that it may deal out, and a table's lie at hospitals: try --task heart, or docs/deploy.md "
            "for two sites with tables of their own"
        )
    loaded = tasks.load(task)
    count = nodes or int(getattr(loaded, "demo_nodes", 5))
    stamp = time.strftime("%Y%m%d-%H%M%S", time.localtime(began))
    sites, test, sources = _sites(loaded, count, seed, data_dir)
    folder = results.fresh(out or Path("runs") / f"demo-{task.replace(':', '-')}-seed{seed}-{stamp}")
    _sizes(sites, len(test), loaded, task, seed, json_)
    federation = federations.found(folder, task, loaded, sites, sources, seed)
    victim = sites[seed % count].name if kill else None
    results.write_json(folder / "manifest.json", results.manifest(seed, _command(), began))
    results.write_json(folder / "config.json", _resolved(federation, task, count, seed, data_dir, victim, sources))
    with _ended_by_signal():
        try:
            federation.start()
            stages = _watch(federation, victim)
            federation.end()
        finally:
            federation.abandon()
    result = _judged(loaded, sites, test, federation, task, seed, stages, time.time() - began, began)
    page = folder / "report.html"
    summary = results.summary(result, page)
    results.write_json(folder / "summary.json", summary)
    results.write_curves(folder / "metrics.jsonl", result.sites)
    page.write_text(report.page(result, results.manifest(seed, _command(), began)), encoding="utf-8")
    if json_:
        output.emit(results.finite(summary))
    else:
        _closing(result, page)


def _command() -> list[str]:
    """What was typed, as it can be typed again."""
    return ["gossipfl", *sys.argv[1:]]


def _sites(task: Task, count: int, seed: int, data_dir: Path | None) -> tuple[list[Site], Data, list[dict[str, Any]]]:
    from gossipfl.errors import ConfigError, Misuse

    own: Any = task
    if not hasattr(own, "demo_sites") or not hasattr(own, "demo_sources"):
        raise ConfigError(f"the task {task.name!r} has no demo_sites and demo_sources; gossipfl.tasks.task says what they do")
    try:
        sites, test = own.demo_sites(count, seed, data_dir)
        return sites, test, own.demo_sources(count, seed, data_dir)
    except Misuse as error:
        raise typer.BadParameter(str(error)) from None


def _labels(site: Site, task: Task) -> dict[str, int]:
    """Rows of each class, by the name that people give it."""
    import numpy as np

    kinds, counts = np.unique(site.train.y, return_counts=True)
    names = getattr(task, "class_names", ())
    return {
        names[int(kind)] if int(kind) < len(names) else f"class {kind:g}": int(n)
        for kind, n in zip(kinds.tolist(), counts, strict=True)
    }


def _sizes(sites: list[Site], test_rows: int, loaded: Task, task: str, seed: int, json_: bool) -> None:
    """Who has how much: first of all, so that what follows can be understood."""
    from gossipfl.cli import output
    from gossipfl.tasks.sites import sentences

    held = f"{test_rows} held-out patients judge all"
    title = f"gossipfl demo: {task}, seed {seed}, {len(sites)} hospitals; {held}"
    rows = []
    for site in sites:
        labels = ", ".join(f"{n} {kind}" for kind, n in _labels(site, loaded).items())
        rows.append((site.name, len(site.train), labels))
    if json_:
        output.say(title)
        for row in rows:
            output.say(f"  {row[0]}: {row[1]} rows ({row[2]})")
    else:
        output.table(title, ("hospital", "training rows", "labels"), rows)
    for sentence in sentences(loaded, sites)[1:]:
        output.say(sentence)


def _resolved(
    federation: Federation, task: str, nodes: int, seed: int, data_dir: Path | None, victim: str | None, sources: Any
) -> dict[str, Any]:
    """Every setting, the defaults too."""
    study = federation.membership.study.model_dump(mode="json")
    asked = {"task": task, "nodes": nodes, "seed": seed, "data_dir": data_dir and str(data_dir), "kill": victim}
    masses = {member.id: member.mass for member in federation.membership.members}
    more = {"masses": masses, "release_exchanges": federation.membership.release_exchanges}
    return {**asked, "study": study, **more, "data": sources}


@contextmanager
def _ended_by_signal() -> Iterator[None]:
    """SIGTERM ends the demo as Ctrl-C does: no hospital's process outlives it."""

    def end(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


# ---- live ------------------------------------------------------------------------------------------------------------


def _watch(federation: Federation, victim: str | None) -> dict[str, float]:
    """Show the hospitals until all have finished; seconds at which the last of them entered each stage."""
    from gossipfl.simulator.demo import watch

    stages: dict[str, float] = {}
    entered: dict[str, str] = {}

    def note(seconds: float) -> None:
        for hospital in federation.hospitals:
            if hospital.stage != entered.get(hospital.name):
                entered[hospital.name] = hospital.stage
                stages[hospital.stage] = seconds

    if sys.stderr.isatty():
        from rich.console import Console
        from rich.live import Live

        with Live(console=Console(stderr=True), refresh_per_second=8, transient=True) as live:
            for seconds in watch(federation, victim):
                note(seconds)
                live.update(_drawn(federation, seconds))
        return stages
    last, said = -LINE_S, ""
    for seconds in watch(federation, victim):
        note(seconds)
        now = " ".join(hospital.stage for hospital in federation.hospitals)
        if seconds - last >= LINE_S or now != said:
            last, said = seconds, now
            print(f"{seconds:5.1f} s  " + "  ".join(map(_line, federation.hospitals)), file=sys.stderr, flush=True)
    return stages


def _metric(hospital: Hospital) -> str:
    metrics = (hospital.status.get("evaluation") or {}).get("metrics", {})
    value = metrics.get("auc", metrics.get("accuracy", metrics.get("loss")))
    return "-" if value is None else f"{value:.4f}"


def _line(hospital: Hospital) -> str:
    return (
        f"{hospital.name} {hospital.stage} {hospital.local_round}r {hospital.status.get('exchanges', 0)}x "
        f"{_metric(hospital)}"
    )


def _drawn(federation: Federation, seconds: float) -> Table:
    from rich.progress_bar import ProgressBar
    from rich.table import Table

    drawn = Table(title=f"{seconds:.0f} s", title_justify="left", box=None, pad_edge=False)
    judged = "AUC" if _has_auc(federation) else "metric"
    for column in ("hospital", "rows", "stage", "", "local rounds", "exchanges", "KiB sent", judged):
        drawn.add_column(column, justify="left" if column in ("hospital", "stage", "") else "right", no_wrap=True)
    rounds = federation.membership.study.local_rounds
    for hospital in federation.hospitals:
        sent = hospital.status.get("bytes_sent", 0) / 1024
        style = {"killed": "yellow", "finished": "green", "training": "cyan", "release": "cyan"}.get(hospital.stage, "")
        said = "killed, restarts" if hospital.stage == "killed" else hospital.stage
        stage = f"[{style}]{said}[/]" if style else said
        bar = ProgressBar(
            total=rounds, completed=hospital.local_round, width=12, complete_style="cyan", finished_style="green"
        )
        again = " (restarted)" if hospital.starts > 1 and hospital.stage != "killed" else ""
        drawn.add_row(
            hospital.name, str(hospital.rows), stage + again, bar, f"{hospital.local_round}/{rounds}",
            str(hospital.status.get("exchanges", 0)), f"{sent:.0f}", _metric(hospital),
        )  # fmt: skip
    return drawn


def _has_auc(federation: Federation) -> bool:
    return any("auc" in ((h.status.get("evaluation") or {}).get("metrics", {})) for h in federation.hospitals)


# ---- the end ---------------------------------------------------------------------------------------------------------


def _judged(
    task: Task, sites: list[Site], test: Data, federation: Federation, spec: str, seed: int,
    stages: dict[str, float], seconds: float, began: float,
) -> Result:  # fmt: skip
    """Every method on the same held-out patients; the nodes' models come out of their state folders, and are kept."""
    from gossipfl import released
    from gossipfl.simulator import baselines, results

    membership = federation.membership
    l2 = membership.study.l2
    whole = baselines.centralized(task, sites, l2, seed)
    alone = baselines.local_only(task, sites, l2, seed)
    models = [released.from_state(hospital.state, membership, hospital.name) for hospital in federation.hospitals]
    folder = federation.hospitals[0].folder.parents[1] / "models"
    folder.mkdir()
    for hospital, model in zip(federation.hospitals, models, strict=True):
        released.save(model, folder / f"{hospital.name}.safetensors")
    facts = {"task": spec, "seed": seed, "gossipfl": models[0].facts["gossipfl"]}
    for name, fitted in [("centralized", whole), *((f"local-only-{s.name}", a) for s, a in zip(sites, alone, strict=True))]:
        kept = released.Released(spec, {}, task, fitted.layout, fitted.vector, fitted.normaliser, {**facts, "method": name})
        released.save(kept, folder / f"{name}.safetensors")
    rows = [
        results.SiteResult(
            name=site.name,
            rows=len(site.train),
            labels=_labels(site, task),
            local=fitted.metrics(test),
            gossip=model.metrics(test),
            exchanges=int(hospital.status.get("exchanges", 0)),
            bytes_sent=int(hospital.status.get("bytes_sent", 0)),
            starts=hospital.starts,
            curve=hospital.curve(),
        )
        for site, fitted, hospital, model in zip(sites, alone, federation.hospitals, models, strict=True)
    ]
    killed = next((hospital for hospital in federation.hospitals if hospital.killed_at is not None), None)
    return results.Result(
        task=spec,
        seed=seed,
        metric=task.metric,
        test_rows=len(test),
        centralized=whole.metrics(test),
        sites=rows,
        consensus=results.consensus([model.vector for model in models], [membership.mass(site.name) for site in sites]),
        distances=_distances(federation, began),
        seconds=seconds,
        killed=_said_of(killed) if killed else None,
        stages=stages,
    )


def _said_of(killed: Hospital) -> dict[str, Any]:
    return {"site": killed.name, "local_round": killed.killed_at, "at_seconds": round(killed.killed_s, 1)}


def _distances(federation: Federation, began: float) -> list[tuple[float, float]]:
    """How far apart two models were when they met, at every exchange, from the nodes' own records."""
    from gossipfl.store import Store

    found = []
    for hospital in federation.hospitals:
        with Store.open(hospital.state) as store:
            for fact in store.facts():
                if fact.kind == "ingress" and fact.fields.get("space") == "model":
                    found.append((fact.wall_ns / 1e9 - began, float(fact.fields["distance"])))
    return sorted(pair for pair in found if math.isfinite(pair[1]))


def _closing(result: Result, page: Path) -> None:
    from gossipfl.cli import output
    from gossipfl.simulator import results

    header, rows = results.table(result)
    print()
    output.table("On the same held-out patients", header, rows)
    print()
    share = f"{100 * result.share():.2f} % of centralized"
    print(f"worst node: {share}; consensus distance {result.consensus:.2g} (0: all nodes have one model)")
    each = result.bytes_sent / len(result.sites) / 1024
    print(f"{result.exchanges} exchanges, {each:.0f} KiB sent a node, {result.seconds:.1f} s")
    if result.killed:
        where = f"local round {result.killed['local_round']} ({result.killed['at_seconds']} s)"
        print(f"{result.killed['site']} was killed in {where}, as --kill asks, and restarted: it went on where it was")
    print(f"report: {page}")
