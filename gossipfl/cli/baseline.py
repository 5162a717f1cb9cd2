"""`gossipfl train-local` and `node report`: what a site has alone, and beside it what the federation gives it.

Both are judged by the site's own hold-out, which neither has seen; nothing leaves the machine. Not here: training (learning,
tasks.fitting), where a model comes from (cli.model).
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

if TYPE_CHECKING:
    from gossipfl.config import DataSection
    from gossipfl.released import Released
    from gossipfl.simulator.baselines import Fitted
    from gossipfl.tasks import Site, Task

TOML = Annotated[Path, typer.Argument(metavar="NODE.TOML", help="The node's file.", readable=False)]
JSON = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]

LOCAL_EPILOG: Final = (
    "Example: [bold]gossipfl train-local node.toml --against model.safetensors[/bold]  "
    "-- both judged by the same hold-out, which neither has seen."
)
REPORT_EPILOG: Final = (
    "Example: [bold]gossipfl node report node.toml[/bold]  -- the node may run or not; the site's own model is trained anew."
)

LOCAL: Final = "local only"
FEDERATED: Final = "federated"


def train_local(
    file: TOML = Path("node.toml"),
    against: Annotated[
        Path | None, typer.Option("--against", help="A model file to judge by the same hold-out.", readable=False)
    ] = None,
    task: Annotated[
        str | None, typer.Option("--task", help="Names the code of the other model's task, if not built in.")
    ] = None,
    json_: JSON = False,
) -> None:
    """Train on this site's own rows alone, and judge by its own hold-out: the baseline that a federation must beat."""
    from gossipfl import released

    other = {} if against is None else {against.name: released.read(against, task)}
    _compare(file, other, json_)


def report(file: TOML = Path("node.toml"), json_: JSON = False) -> None:
    """Local only and federated side by side, on this site's own hold-out: is taking part worth it here?"""
    from gossipfl.cli import output
    from gossipfl.cli.model import of_node
    from gossipfl.config import load_node
    from gossipfl.trust.membership import Membership

    config = load_node(file)
    found = of_node(config, Membership.load(config.node.federation))
    if found.facts["stage"] != "finished":
        output.say(f"The study is in its stage {found.facts['stage']} here: the federated model is the one of now.")
    _compare(file, {FEDERATED: found}, json_)


def _compare(file: Path, others: dict[str, Released], json_: bool) -> None:
    """Train alone, judge all, print them side by side."""
    from gossipfl import tasks
    from gossipfl.cli import output
    from gossipfl.config import load_node, naming
    from gossipfl.errors import ConfigError
    from gossipfl.learning.evaluation import figures
    from gossipfl.simulator import baselines
    from gossipfl.tasks.split import site_of
    from gossipfl.trust.membership import Membership

    config = load_node(file)
    study = Membership.load(config.node.federation).study
    loaded = tasks.load(study.task, study.task_options)
    _has_data(config.data, file)
    with naming(file):
        site = site_of(loaded, config.node.id, config.data.source(), study.holdout_key_bytes, study.holdout)
    if not len(site.train) or not len(site.holdout):
        raise ConfigError(
            f"{file}: {len(site.train)} rows to train on and {len(site.holdout)} held out; both are needed -- name more "
            f"rows, and an id column that tells patients apart"
        )
    alone = baselines.fit(loaded, site.train, study.l2, study.seed)
    methods = {LOCAL: alone.metrics(site.holdout)} | {name: one.metrics(site.holdout) for name, one in others.items()}
    gains = {name: gain for name, one in others.items() if (gain := _gain(loaded, site, alone, one))}
    if json_:
        told = {"node": config.node.id, "task": study.task, "train_rows": len(site.train)}
        told |= {"holdout_rows": len(site.holdout), "metric": loaded.metric, "methods": _finite(methods)}
        output.emit(told | ({"auc_gain": gains} if gains else {}))
        return
    said = {name: figures(found) for name, found in methods.items()}
    title = f"{config.node.id}: trained on {len(site.train)} rows, judged by the {len(site.holdout)} that this site holds out"
    rows = [(label, *(found.get(label, "-") for found in said.values())) for label in said[LOCAL]]
    output.table(title, ("", *said), rows)
    for name, (more, low, high) in gains.items():
        print(f"AUC of {name} less {LOCAL}: {more:+.4f} ({low:+.3f} to {high:+.3f}); {_verdict(low, high)}")


def _gain(task: Task, site: Site, alone: Fitted, other: Released) -> tuple[float, float, float] | None:
    """Difference of the two AUCs on the same rows, with its interval; None where that is not defined."""
    from gossipfl.learning.evaluation import auc_gain
    from gossipfl.tasks import fitting

    if task.metric != "auc" or hasattr(task, "judge"):
        return None
    mine = fitting.predict(task, alone.layout, alone.vector, alone.normaliser, site.holdout.x)
    found = auc_gain(site.holdout.y, mine, other.scores(site.holdout.x))
    return found if all(map(math.isfinite, found)) else None


def _verdict(low: float, high: float) -> str:
    if low > 0:
        return "better than chance explains"
    return "worse than chance explains" if high < 0 else "these few rows cannot tell the two apart"


def _finite(methods: dict[str, dict[str, float]]) -> dict[str, Any]:
    """JSON has no NaN."""
    return {
        method: {name: value if math.isfinite(value) else None for name, value in found.items()}
        for method, found in methods.items()
    }


def _has_data(data: DataSection, file: Path) -> None:
    from gossipfl.errors import ConfigError, Fault

    if data.is_empty:
        raise ConfigError(Fault(str(file), None, "[data] is empty", 'name the rows, for instance file = "rows.csv"'))
