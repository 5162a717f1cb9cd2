"""`gossipfl node model` and `predict`: the model out of a node, and on new rows.

Not here: what a model file holds (gossipfl.released), what the site has without it (cli.baseline).
"""

from __future__ import annotations

import csv
import io
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

if TYPE_CHECKING:
    from gossipfl.config import NodeConfig
    from gossipfl.released import Released
    from gossipfl.tasks import Data
    from gossipfl.trust.membership import Membership

TOML = Annotated[Path, typer.Argument(metavar="NODE.TOML", help="The node's file.", readable=False)]
JSON = Annotated[bool, typer.Option("--json", help="Print JSON.")]

MODEL_EPILOG: Final = "Example: [bold]gossipfl node model node.toml --out model.safetensors[/bold]"
PREDICT_EPILOG: Final = (
    "Example: [bold]gossipfl predict model.safetensors rows.csv --node node.toml --out risks.csv[/bold]  "
    "-- --node maps this site's columns, codes and sentinel values to the study's."
)
ANSWER_S: Final = 30.0
"""For a running node to hand out its model; a large one takes seconds."""


# ---- node model ------------------------------------------------------------------------------------------------------


def model(
    file: TOML = Path("node.toml"),
    out: Annotated[Path, typer.Option("--out", help="The safetensors file to write.")] = Path("model.safetensors"),
    json_: JSON = False,
) -> None:
    """Write the node's model, with its frozen preprocessing inside; the node may run or not."""
    from gossipfl import released
    from gossipfl.cli import output
    from gossipfl.config import load_node
    from gossipfl.trust.membership import Membership

    config = load_node(file)
    found = of_node(config, Membership.load(config.node.federation))
    released.save(found, out)
    told = {"file": str(out), "task": found.spec, **found.facts}
    if json_:
        output.emit(told)
        return
    stage = found.facts["stage"]
    output.say(f"{out}: {found.layout.size:,} values of {found.spec}, {found.facts['node']}, stage {stage}")
    if stage != "finished":
        output.say("The study has not finished here: this is the model as it is now.")


def of_node(config: NodeConfig, membership: Membership) -> Released:
    """From the running node, else from its state folder."""
    from gossipfl import released
    from gossipfl.errors import ConfigError, Exit

    try:
        return released.from_state(config.node.state, membership, config.node.id)
    except ConfigError as error:
        if error.exit_code is not Exit.STATE or "in use" not in str(error):
            raise
    statistics, vector, stage = _asked(config)
    return released.from_answer(vector, statistics, stage, membership, config.node.id)


def _asked(config: NodeConfig) -> tuple[bytes, bytes, str]:
    """(frozen statistics, the model's bytes, stage), from the node's admin listener."""
    import http.client
    import urllib.request

    from gossipfl.errors import ConfigError, Exit, Fault

    access = config.node.state / "admin.json"
    try:
        known = json.loads(access.read_text(encoding="utf-8"))
        request = urllib.request.Request(
            f"http://{known['address']}/model?whole=1", headers={"Authorization": f"Bearer {known['token']}"}
        )
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(request, timeout=ANSWER_S) as answer:
            body, begin = memoryview(answer.read()), int(answer.headers["X-Statistics"])
            return bytes(body[:begin]), bytes(body[begin:]), str(answer.headers["X-Stage"])
    except (OSError, ValueError, KeyError, TypeError, http.client.HTTPException) as error:
        fault = Fault(str(access), None, f"the node runs, but does not answer: {error}", "try again, or stop the node first")
        raise ConfigError(fault, exit_code=Exit.UNREACHABLE) from None


# ---- predict ---------------------------------------------------------------------------------------------------------


def predict(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="A file of `gossipfl node model`.", readable=False)],
    rows: Annotated[
        Path, typer.Argument(metavar="ROWS", help="CSV or Parquet, one row a case; a label is not needed.", readable=False)
    ],
    out: Annotated[Path | None, typer.Option("--out", help="Write CSV there instead of printing it.")] = None,
    node: Annotated[
        Path | None, typer.Option("--node", help="node.toml whose \\[data] maps this site's columns.", readable=False)
    ] = None,
    task: Annotated[
        str | None, typer.Option("--task", help="Names the code of a task that is not built in; it will be run.")
    ] = None,
    json_: JSON = False,
) -> None:
    """Score rows with a model and the preprocessing that is inside it."""
    from gossipfl import released
    from gossipfl.cli import output

    loaded = released.read(model, task)
    data = _features(loaded, rows, _mapping(node))
    scores = loaded.scores(data.x)
    names = ["score"] if scores.ndim == 1 else [f"class {k}" for k in range(scores.shape[1])]
    table = (scores[:, None] if scores.ndim == 1 else scores).tolist()
    if json_:
        said = [{"id": name, **dict(zip(names, row, strict=True))} for name, row in zip(data.ids, table, strict=True)]
        output.emit({"model": str(model), "task": loaded.spec, "rows": said})
        return
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["id", *names])
    writer.writerows([name, *(f"{value:.6g}" for value in row)] for name, row in zip(data.ids, table, strict=True))
    if out is None:
        sys.stdout.write(text.getvalue())
    else:
        output.write(out, text.getvalue())
        output.say(f"{out}: {len(data)} rows")


def _mapping(node: Path | None) -> dict[str, Any]:
    """What a node.toml says of this site's columns; nothing else of it is used."""
    if node is None:
        return {}
    from gossipfl.config import load_node

    source = load_node(node).data.source()
    wanted = ("columns", "codes", "scale", "missing", "missing_in", "id", "delimiter")
    return {name: source[name] for name in wanted if name in source}


def _features(loaded: Released, rows: Path, mapping: dict[str, Any]) -> Data:
    """The rows as the task takes them. Ids are those of the id column, else row numbers from 1."""
    from gossipfl.errors import ConfigError
    from gossipfl.tasks import Data, table
    from gossipfl.tasks.schema import Feature, Schema

    own: Any = loaded.task
    source = {**mapping, "file": str(rows)}
    if hasattr(own, "features_of"):
        data = own.features_of(source)
    elif loaded.task.features:
        plain = tuple(Feature(name, "number") for name in loaded.task.features)
        data = table.read(Schema(plain, Feature("label", "boolean")), source, labelled=False)
    else:
        raise ConfigError(f"the task {loaded.spec!r} names no columns: predict cannot know what a row of {rows} means")
    ids = data.ids if "id" in mapping else tuple(str(n) for n in range(1, len(data) + 1))
    return Data(data.x, data.y, ids, data.names)
