"""docs/benchmarks.md: the committed results of the standard suite as a page. Every figure is a result file's.

`gossipfl bench document RESULTS --out docs/benchmarks.md` makes it anew, between its two marks: what people write stands around
them. A test holds page and results together.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from gossipfl.amounts import figure, size
from gossipfl.errors import ConfigError, Fault
from gossipfl.learning.evaluation import label
from gossipfl.simulator import results as writing
from gossipfl.simulator.bench import folder as folders
from gossipfl.simulator.bench.verdict import DEFAULT

KEPT: Final = (folders.SUMMARY, "manifest.json")
"""Of a benchmark's folder, what is committed: lines of runs and pages are large, and the same command makes them."""

BEGIN: Final = "<!-- made by gossipfl bench document; do not edit between this line and the next such -->\n"
END: Final = "<!-- end of what gossipfl bench document has made -->\n"

_METHOD: Final = re.compile(r"[a-z0-9+:.-]+[:,] ")
"""How a sentence on one method begins."""

TITLE: Final = "# Benchmarks\n\n"

HEAD: Final = """## The standard suite

Made from `{folder}` by `gossipfl bench document {folder} --out docs/benchmarks.md`. The suite is
`gossipfl bench --suite standard`; each section names the command and the commit that made it. On {platform},
Python {python}, {packages}.

Every method has the same rows, graph, budget of rounds, absence, seeds and schedule; a task's defaults were chosen on
validation parts (`gossipfl/simulator/bench/recipe.py`). *Share*: the worst node's metric over centralized, which is the same
model trained to convergence on all rows with the same regularisation; its interval is the corrected resampled t of Nadeau and
Bengio over the splits. *To 99 %*: until the worst node is at 99 % of centralized for good, the median over splits. Seconds are
modelled, under networks that were fixed before the runs:

{networks}

What one command measures, and how to ask for more: `gossipfl bench --help`; the parts: `docs/bench.md`.
"""


def inserted(text: str, page: str) -> str:
    """`page` with `text` between its marks; where it has none, at its end."""
    before, begin, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    if not begin:
        before = page or TITLE
    return before + BEGIN + "\n" + text + "\n" + END + after


def between(page: str) -> str:
    """What stands between the marks."""
    return page.partition(BEGIN + "\n")[2].partition("\n" + END)[0]


def document(results: Path) -> str:
    """The results, as text. **Raises**: ConfigError for a folder without results."""
    made = sorted(path for path in results.glob("*") if (path / folders.SUMMARY).is_file())
    if not made:
        remedy = "name the folder above those that `gossipfl bench` has written, such as simulations/results"
        raise ConfigError(Fault(str(results), None, "no benchmark's folder lies in it", remedy))
    found = {path.name: folders.summary(path) for path in made}
    manifests = [json.loads((results / name / "manifest.json").read_text("utf-8")) for name in found]
    newest = max(manifests, key=lambda one: str(one["began"]))
    networks: Mapping[str, str] = next(iter(found.values()))["networks"]
    head = HEAD.format(
        folder="/".join(results.resolve().parts[-2:]),
        platform=newest["platform"],
        python=newest["python"],
        packages=", ".join(
            f"{name} {version}" for name, version in newest["packages"].items() if name in ("torch", "numpy")
        ),
        networks="\n".join(f"* {name}: {says}" for name, says in networks.items()),
    )
    sections = zip(found.items(), manifests, strict=True)
    return head + "".join(_section(name, one, manifest) for (name, one), manifest in sections)


def _section(name: str, found: Mapping[str, Any], manifest: Mapping[str, Any]) -> str:
    metric, rows = label(found["metric"]), found["methods"]
    lines = [
        "",
        f"### {name}",
        "",
        f"{found['question']}; {found['train_rows']:,} training and {found['test_rows']:,} test rows. "
        f"At split {found['seeds'][0]}: {'; '.join(found['sites'])}. " + _made_by(found, manifest),
        "",
        f"| method | worst {metric} | 5 % | median | mean | share | 95 % interval | splits | Brier | calibration |",
        "|---|---|---|---|---|---|---|---|---|---|",
        *(_quality(row) for row in rows),
        "",
        "| method | rounds to 99 % | sent by a node to 99 % | in all | "
        + " | ".join(found["networks"])
        + " | slow site, all but it | apart | CPU s |",
        "|---|---|---|---|" + "---|" * len(found["networks"]) + "---|---|---|",
        *(_cost(row, found["networks"]) for row in rows if row["method"] not in ("centralized", "local")),
        "",
        *(
            f"* {line[2:]}" if line[0] == "+" else f"* **{_word(line[0])}** {line[2:]}"
            for line in _shown(found["said"])
        ),
    ]
    for one in found["published"][:1]:
        aucs = [
            sum(split[key] for split in found["published"]) / len(found["published"]) for key in ("auc", "centralized")
        ]
        lines.append(
            f"* {one['model']}, published, on the rows that it scores: AUC {aucs[0]:.4f}; centralized there {aucs[1]:.4f}."
        )
    return "\n".join(lines) + "\n"


def _made_by(found: Mapping[str, Any], manifest: Mapping[str, Any]) -> str:
    runs, summary = ", ".join(found["commits"]) or "unknown", manifest["commit"] or "unknown"
    return f"`{' '.join(manifest['command'])}`: runs of commit {runs}, summary of {summary}."


def _shown(said: list[str]) -> list[str]:
    """What is said of the default, and of what went wrong; the summary has the same of every method."""
    return [line for line in said if line[2:].startswith((f"{DEFAULT}:", f"{DEFAULT},")) or not _METHOD.match(line[2:])]


def _word(sign: str) -> str:
    return {"-": "Falls short:", "?": "Open:"}[sign]


def _quality(row: Mapping[str, Any]) -> str:
    if row["diverged"]:
        return f"| {row['method']} | DIVERGED in {row['diverged']} of {row['runs']} splits | | | | | | | | |"
    score, share = row["score"], row["share"]
    values = [figure(score[name]) for name in ("worst", "low", "median", "mean")]
    splits = ", ".join(figure(value, 3) for value in row["splits"])
    interval = f"{figure(share['low'])} to {figure(share['high'])}"
    cells = [
        row["method"],
        *values,
        figure(share["middle"]),
        interval,
        splits,
        figure(row["brier"]),
        figure(row["calibration"]),
    ]
    return f"| {' | '.join(cells)} |"


def _cost(row: Mapping[str, Any], networks: Mapping[str, str]) -> str:
    goal = row["worst_reached"]
    rounds = (
        f"{goal['rounds']:g}" if goal["rounds"] is not None else f"{goal['splits']} of {row['runs']} splits come there"
    )
    seconds = [goal["seconds"].get(name) for name in networks]
    cells = [
        row["method"], rounds, size(goal["bytes_per_node"]), size(row["bytes_per_node"]),
        *("-" if value is None else f"{value:.3g}" for value in [*seconds, row.get("others_seconds")]),
        "-" if row["consensus"] is None else f"{row['consensus']:.1g}", f"{row['cpu_s']:.1f}",
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |"


def _without_folder(command: list[str]) -> list[str]:
    """The command with DIR for the folder of one's data."""
    before = ["", *command[:-1]]
    return ["DIR" if last == "--data-dir" else word for last, word in zip(before, command, strict=True)]


def keep(suite: Path, results: Path) -> list[Path]:
    """What is committed of a finished suite, copied into `results`. **Returns**: the files."""
    made = []
    for path in sorted(suite.glob("*")):
        if (path / folders.SUMMARY).is_file():
            (results / path.name).mkdir(parents=True, exist_ok=True)
            for name in KEPT:
                kept = json.loads((path / name).read_text("utf-8"))
                if "platform" in kept:  # the system is enough: which kernel, host and folder is nobody's business
                    kept["platform"] = kept["platform"].partition("-")[0]
                    kept["command"] = _without_folder(kept["command"])
                writing.write_json(results / path.name / name, kept)
                made.append(results / path.name / name)
    return made
