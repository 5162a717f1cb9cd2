"""`gossipfl node`: run a node, ask it how it is, and give it orders through its admin listener on loopback."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from gossipfl.amounts import duration, size
from gossipfl.cli import baseline, model

TOML = Annotated[Path, typer.Argument(metavar="NODE.TOML", help="The node's file.", readable=False)]
JSON = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
Passphrase = Annotated[
    Path | None, typer.Option("--passphrase-file", help="File with the passphrase of the keys.", readable=False)
]

ANSWER_S: Final = 5.0


def app() -> typer.Typer:
    """The group of verbs."""
    group = typer.Typer(
        help="Run a node, ask how it is, give it orders.",
        epilog="Example: [bold]gossipfl node run node.toml[/bold]",
        no_args_is_help=True,
        rich_markup_mode="rich",
    )
    group.command("run", epilog="Example: [bold]gossipfl node run node.toml[/bold]; SIGTERM or Ctrl-C stops it well")(run)
    group.command("status", epilog="Example: [bold]gossipfl node status node.toml --json[/bold]")(status)
    group.command("model", epilog=model.MODEL_EPILOG)(model.model)
    group.command("report", epilog=baseline.REPORT_EPILOG)(baseline.report)
    for order, text in ORDERS.items():
        group.command(order, help=text, epilog=f"Example: [bold]gossipfl node {order} node.toml[/bold]")(_verb(order))
    return group


ORDERS: Final = {
    "pause": "Train and exchange no more until `resume`; the node stays up and ends what is under way.",
    "resume": "Go on after `pause`.",
    "leave": "Train no more, mix until the models have come together, then stop. The federation file must say so, too.",
    "stop": "End what is under way, write everything to disk, stop; the same as SIGTERM.",
}


def run(
    file: TOML = Path("node.toml"),
    accept_new_data: Annotated[
        bool, typer.Option("--accept-new-data", help="The rows may differ from those at the last start.")
    ] = False,
    passphrase_file: Passphrase = None,
    record: Annotated[
        bool, typer.Option("--record", help="Keep all that the core heard in state/recordings, for `gossipfl replay`.")
    ] = False,
) -> None:
    """Run the node until it is stopped. Logs go to stderr."""
    from gossipfl.cli import output
    from gossipfl.config import load_node, naming

    config = load_node(file)
    passphrase = output.passphrase(passphrase_file) if _is_encrypted(config.node_key) else None

    from gossipfl.node import Node

    with naming(file):
        Node(config, passphrase=lambda: passphrase, accept_new_data=accept_new_data, record=record).run()
    _leave_threads_behind()
    if threading.active_count() > 1:  # a local round that outlasts the drain; nothing waits for its result
        sys.stderr.flush()
        os._exit(0)


def _is_encrypted(path: Path) -> bool:
    """Is a passphrase needed at all? What is wrong with the file is said when it is loaded."""
    try:
        return b" argon2id" in path.read_bytes()[:200]
    except OSError:
        return False


def status(file: TOML = Path("node.toml"), json_: JSON = False) -> None:
    """How is the node: stage, progress, and each peer's state."""
    from gossipfl.cli import output
    from gossipfl.learning.evaluation import figures

    found = ask(file, "/status")
    if json_:
        output.emit(found)
        return
    judged = figures((found.get("evaluation") or {}).get("metrics", {}))
    done = f"local round {found['local_round']} of {found['local_rounds']}, {found['exchanges']} exchanges"
    title = f"{found['node']}: {found['stage']}, {done}, up {duration(found['uptime_s'])}"
    if judged:
        title += "\non this site's hold-out: " + ", ".join(f"{name} {figure}" for name, figure in judged.items())
    now = time.time()
    rows = [
        (name, peer["state"], _since(peer["since_unix"], now), peer["exchanges"],
         size(peer["sent_bytes"]), size(peer["received_bytes"]),
         "yes" if peer["in_doubt"] else "no", peer["epoch"], peer["why"])
        for name, peer in found["peers"].items()
    ]  # fmt: skip
    output.table(title, ("peer", "state", "for", "exchanges", "sent", "received", "in doubt", "epoch", "why"), rows)


def _since(unix: float, now: float) -> str:
    """How long; nothing for a peer that was never seen, whose time is 0.

    >>> _since(1_000, 1_090), _since(0, 1_090)
    ('90 s', '')
    """
    return duration(now - unix) if unix else ""


def _verb(order: str) -> Any:
    def give(file: TOML = Path("node.toml")) -> None:
        from gossipfl.cli import output

        ask(file, "/order", {"order": order})
        output.say(f"{order}: the node has been told")

    return give


def ask(file: Path, path: str, body: dict[str, Any] | None = None) -> Any:
    """One question to the admin listener of the node that `file` describes.

    **Raises**: ConfigError with exit code 69 where no node answers, 77 where this user may not.
    """
    import http.client
    import urllib.error
    import urllib.request

    from gossipfl.config import load_node
    from gossipfl.errors import ConfigError, Exit, Fault

    config = load_node(file)
    access = config.node.state / "admin.json"
    try:
        known = json.loads(access.read_text(encoding="utf-8"))
        address, token, process = known["address"], known["token"], int(known["pid"])
    except PermissionError:
        raise ConfigError(
            Fault(str(access), None, "not readable by this user", "run as the user of the node"), exit_code=Exit.PERMISSION
        ) from None
    except (KeyError, TypeError, ValueError):
        what = "does not hold what the node wrote there: a full disk, or another hand"
        fault = Fault(str(access), None, what, f"stop the node by SIGTERM and start it: gossipfl node run {file}")
        raise ConfigError(fault, exit_code=Exit.UNREACHABLE) from None
    except OSError:
        raise ConfigError(
            Fault(str(file), None, "the node does not run" + _left(config.node.state), f"start it: gossipfl node run {file}"),
            exit_code=Exit.UNREACHABLE,
        ) from None
    request = urllib.request.Request(
        f"http://{address}{path}",
        data=None if body is None else json.dumps(body).encode(),
        headers={"Authorization": f"Bearer {token}", "Content-Type": "application/json"},
    )
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=ANSWER_S) as answer:
            return json.load(answer)
    except (urllib.error.URLError, http.client.HTTPException, OSError, ValueError) as error:
        if _lives(process):
            what = f"the node does not answer at {address}: {error}"
            fault = Fault(str(file), None, what, f"process {process} is there; is the machine overloaded? try again")
        else:
            what = f"the node does not run: process {process} has ended without a word, by a kill or a power cut"
            fault = Fault(str(file), None, what, f"start it: gossipfl node run {file}; it goes on where it was")
        raise ConfigError(fault, exit_code=Exit.UNREACHABLE) from None


def _left(state: Path) -> str:
    """What a stopped node left behind, if anything."""
    return "; its state is kept" if (state / "format").exists() else " and never has: its state folder is empty"


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _leave_threads_behind() -> None:
    """End the process though a training step still runs in a thread, which nothing can interrupt: all is on disk."""
    import os
    import sys
    import threading

    for thread in threading.enumerate():
        if thread is not threading.current_thread() and not thread.daemon:
            thread.join(timeout=0.5)
            if thread.is_alive():
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(0)
