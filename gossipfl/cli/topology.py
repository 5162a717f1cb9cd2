"""`gossipfl topology`: make, show and list graphs and schedules, and say how fast they mix. Writes a file only in `make`
and for a drawing."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

if TYPE_CHECKING:
    from gossipfl.topology.graphs import Graph
    from gossipfl.topology.spec import Spec

FOLDER: Final = Path("topologies")
LARGE: Final = 200_000
"""Nodes up to which the speed is worked out: above, eigenvalues take minutes."""

SPEC = Annotated[str, typer.Argument(metavar="SPEC|FILE", help="As random-regular:6, base:1, or a .graphml/.edges file.")]
NODES = Annotated[int | None, typer.Argument(metavar="[N]", help="Nodes, where the spec or file does not say.")]
SEED = Annotated[int, typer.Option("--seed", help="One seed is one graph, on any machine.")]
WEIGHTS = Annotated[str, typer.Option("--weights", help="metropolis, mass-metropolis, lazy or uniform.")]
RINGS = Annotated[int, typer.Option("--add-rings", help="Random cycles through all nodes to add.", min=0, max=100)]
DRAWN = Annotated[Path | None, typer.Option("--svg", help="Draw it into this file.")]
BOTH = Annotated[bool, typer.Option("--both-ways", help="Read a directed file as if every edge went both ways.")]
JSON = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


def app() -> typer.Typer:
    """The group of verbs."""
    group = typer.Typer(
        help="Make, show and list topologies: who may talk to whom, and how fast that mixes.",
        epilog="Example: [bold]gossipfl topology show random-regular:6 416[/bold]",
        no_args_is_help=True,
        rich_markup_mode="rich",
    )
    group.command("make", epilog=MAKE)(make)
    group.command("show", epilog="Example: [bold]gossipfl topology show torus:8x8 --svg torus.svg[/bold]")(show)
    group.command("list", epilog="Example: [bold]gossipfl topology list --json[/bold]")(list_)
    return group


MAKE: Final = "Example: [bold]gossipfl topology make random-regular:6 416 --seed 1 --out hospitals.graphml[/bold]"


def make(
    spec: SPEC,
    n: NODES = None,
    out: Annotated[Path, typer.Option("--out", help="The file: .graphml or .edges.")] = Path("topology.graphml"),
    seed: SEED = 0,
    add_rings: RINGS = 0,
    weights: WEIGHTS = "mass-metropolis",
    both_ways: BOTH = False,
    anyway: Annotated[bool, typer.Option("--anyway", help="Also if it mixes too slowly to train on.")] = False,
    drawing: DRAWN = None,
    json_: JSON = False,
) -> None:
    """Write a topology file; one that mixes too slowly to train on is refused (exit 78) unless --anyway."""
    from gossipfl.cli import output
    from gossipfl.errors import ConfigError, Fault
    from gossipfl.topology import files, parse

    found = parse(spec)
    graph = _graph(found, n, seed, add_rings, both_ways)
    told = _told(graph, weights)
    if told["warning"] and not anyway:
        what, _, remedy = told["warning"].partition(" -- ")
        raise ConfigError(Fault(graph.name, None, what, f"{remedy}; or --anyway"))
    output.absent(out, *([drawing] if drawing else []))
    output.write(out, files.dumped(graph, out.suffix))
    _draw(graph, drawing, told)
    output.say(f"Made {out}: {graph.n} nodes, {len(graph.edges)} links.")
    _shown(told, json_)


def show(
    spec: SPEC,
    n: NODES = None,
    seed: SEED = 0,
    add_rings: RINGS = 0,
    weights: WEIGHTS = "mass-metropolis",
    both_ways: BOTH = False,
    drawing: DRAWN = None,
    json_: JSON = False,
) -> None:
    """Say size, degree, diameter, gap and the rounds to a thousandth of the disagreement; warn if that is too slow."""
    from gossipfl.cli import output
    from gossipfl.topology import parse

    found = parse(spec)
    if found.changes:
        if drawing is not None:
            output.say("A schedule has other edges in other rounds: no drawing.")
        _shown(_schedule_told(found, n, seed), json_)
        return
    graph = _graph(found, n, seed, add_rings, both_ways)
    told = _told(graph, weights)
    if drawing is not None:
        output.absent(drawing)
    _draw(graph, drawing, told)
    _shown(told, json_)


def list_(
    folder: Annotated[Path, typer.Option("--folder", help="Where topology files are.")] = FOLDER, json_: JSON = False
) -> None:
    """List what a spec may be, and the files of a folder."""
    from gossipfl.cli import output
    from gossipfl.topology import kinds, load
    from gossipfl.topology.spec import FILES

    known = [{"spec": one.usage, "schedule": one.changes, "is": one.says} for one in kinds()]
    paths = sorted(path for path in folder.iterdir() if path.suffix in FILES) if folder.is_dir() else []
    read = [(path, load(path)) for path in paths]
    there = [{"file": str(path), "nodes": g.n, "links": len(g.edges), "source": g.source} for path, g in read]
    if json_:
        output.emit({"specs": known, "files": there})
        return
    rows = [(one["spec"], "schedule" if one["schedule"] else "graph", one["is"]) for one in known]
    output.table("", ("spec", "kind", "what it is"), rows)
    if there:
        print()
        output.table("Files", ("file", "nodes", "links", "source"), [tuple(one.values()) for one in there])


def _graph(spec: Spec, n: int | None, seed: int, add_rings: int, both_ways: bool) -> Graph:
    from gossipfl.errors import ConfigError, Fault
    from gossipfl.topology import files
    from gossipfl.topology import graph as graph_of
    from gossipfl.topology.graphs import require_connected
    from gossipfl.topology.spectrum import with_random_rings

    if spec.file is None or not both_ways:
        made = graph_of(spec, n, seed, whole=not add_rings)
    else:
        made = files.load(spec.file, both_ways=True)
        if n not in (None, made.n):
            raise ConfigError(Fault(str(spec.file), None, f"{made.n} nodes, not {n}", "leave the number out"))
        require_connected(made)
    return with_random_rings(made, add_rings, seed) if add_rings else made


def _told(graph: Graph, rule: str) -> dict[str, Any]:
    """The figures of a graph as plain values."""
    from gossipfl.topology import conductances, spectrum

    degrees = graph.degrees
    hops, exact = graph.diameter()
    told: dict[str, Any] = {
        "name": graph.name, "source": graph.source, "nodes": graph.n, "links": len(graph.edges),
        "degree": [int(degrees.min()), round(float(degrees.mean()), 3), int(degrees.max())],
        "diameter": hops, "diameter_exact": exact,
    }  # fmt: skip
    if graph.n > LARGE:
        return {**told, "warning": None}
    found = spectrum.of(graph, conductances(graph, rule))
    told |= {
        "weights": rule, "gap": found.gap, "second_eigenvalue": found.second, "lowest_eigenvalue": found.lowest,
        "rounds_to_1e-3": found.rounds(), "eigenvalues_exact": found.exact, "method": found.method,
        "lambda2": spectrum.lambda2(graph)[0], "warning": spectrum.slow(graph),
    }  # fmt: skip
    return told


def _schedule_told(spec: Spec, n: int | None, seed: int) -> dict[str, Any]:
    import math

    from gossipfl.topology import schedule
    from gossipfl.topology.schedules import contraction

    made = schedule(spec, n, seed)
    sizes = [len(made.round(t).edges) for t in range(min(made.period or 10, 100))]
    left = contraction(made)
    rounds = made.exact_after or (math.ceil(math.log(1e-3) / math.log(left)) if 0 < left < 1 else None)
    return {
        "name": str(spec), "nodes": made.n, "period": made.period, "exact_after": made.exact_after,
        "directed": made.round(0).directed, "links_a_round": round(sum(sizes) / len(sizes), 3),
        "contraction_measured": left, "rounds_to_1e-3": rounds, "warning": None,
    }  # fmt: skip


def _draw(graph: Graph, drawing: Path | None, told: dict[str, Any]) -> None:
    if drawing is None:
        return
    from gossipfl.cli import output
    from gossipfl.topology.drawing import svg

    rounds = told.get("rounds_to_1e-3")
    said = f", {rounds:,} rounds to 1e-3" if rounds else ""
    output.write(drawing, svg(graph, f"{graph.name}: {graph.n} nodes, {len(graph.edges)} links{said}"))


_LINES: Final = {
    "nodes": "nodes", "links": "links", "degree": "degree (least, mean, most)", "diameter": "diameter, hops",
    "weights": "weights", "gap": "spectral gap of W", "lowest_eigenvalue": "lowest eigenvalue of W",
    "lambda2": "lambda2 of the Laplacian", "rounds_to_1e-3": "rounds to 1e-3", "method": "eigenvalues by",
    "period": "period, rounds", "exact_after": "exact mean after, rounds", "links_a_round": "links a round",
    "contraction_measured": "disagreement left by a round, measured", "source": "source",
}  # fmt: skip


def _shown(told: dict[str, Any], json_: bool) -> None:
    from gossipfl.cli import output

    if json_:
        output.emit(told)
    else:
        rows = [(_LINES[key], _cell(key, told)) for key in _LINES if told.get(key) is not None]
        output.table(told["name"], ("", ""), rows)
    if told["warning"]:
        output.say(f"{told['name']} {told['warning']}")


def _cell(key: str, told: dict[str, Any]) -> str:
    value = told[key]
    if key == "diameter" and not told["diameter_exact"]:
        return f"at least {value}"
    if key == "rounds_to_1e-3" and not told.get("eigenvalues_exact", True):
        return f"at least {value:,}"
    if key == "gap" and not told["eigenvalues_exact"]:
        return f"at most {value:.4g}"
    if isinstance(value, list):
        return ", ".join(f"{one:g}" for one in value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}" if isinstance(value, float) else str(value)
