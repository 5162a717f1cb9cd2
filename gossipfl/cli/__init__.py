"""The commands. One file a verb (or a group of verbs), registered in one line of `application`; nothing else here.

To add a verb: write `gossipfl/cli/<verb>.py` and add its line to `application`. The file's top may import only what is
light (typer, errors, gossipfl.cli.output); everything else is imported inside the function, so that `--help` stays
below half a second and loads no torch; tests/test_cli.py says so for every verb. Errors are raised, not printed: `main`
turns a `GossipError` into a message on stderr and its exit code. Results go to stdout, what is said to a person to
stderr.
"""

from __future__ import annotations

import errno
import os
import sys
from typing import Annotated, Final, NoReturn

import typer

from gossipfl.errors import Exit, GossipError, printable

EXIT_CODES = "Exit codes: 0 done, 1 failed, 2 usage, 69 peers unreachable, 73 state or port, 77 keys, 78 configuration."


NO_ROOM: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What a full disk says to who prints into a file of it."""


def application() -> typer.Typer:
    """All commands, assembled."""
    from gossipfl.cli import (
        baseline,
        bench,
        demo,
        doctor,
        federation,
        init,
        model,
        node,
        renew,
        replay,
        simulate,
        swarm,
        topology,
    )

    app = typer.Typer(
        name="gossipfl",
        help="Hospitals learn together: encrypted, signed, exactly-once gossip of models, with no coordinator.",
        epilog=EXIT_CODES,
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode="rich",
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_gossipfl)
    app.command("init", epilog=init.EPILOG)(init.init)
    app.command("renew", epilog=renew.EPILOG)(renew.renew)
    app.add_typer(federation.app(), name="federation")
    app.add_typer(node.app(), name="node")
    app.command("predict", epilog=model.PREDICT_EPILOG)(model.predict)
    app.command("train-local", epilog=baseline.LOCAL_EPILOG)(baseline.train_local)
    app.command("doctor", epilog=doctor.EPILOG)(doctor.doctor)
    app.command("replay", epilog=replay.EPILOG)(replay.replay)
    app.command("demo", epilog=demo.EPILOG)(demo.demo)
    app.command("simulate", epilog=simulate.EPILOG)(simulate.simulate)
    app.command("bench", epilog=bench.EPILOG)(bench.bench)
    app.command("swarm", epilog=swarm.EPILOG)(swarm.swarm)
    app.add_typer(topology.app(), name="topology")
    return app


def _gossipfl(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.", callback=_version)] = False,
) -> None:
    pass


def _version(on: bool) -> None:
    if on:
        from gossipfl import __version__

        print(__version__)
        raise typer.Exit


def main(arguments: list[str] | None = None) -> NoReturn:
    """The entry point: runs one command and exits with its code."""
    try:
        try:
            application()(arguments, prog_name="gossipfl")
        finally:
            sys.stdout.flush()
    except GossipError as error:
        print(f"gossipfl: {printable(str(error), keep=chr(10))}", file=sys.stderr)
        sys.exit(int(error.exit_code))
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(int(Exit.FAILED))
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        print(f"gossipfl: the output cannot be written: {error.strerror} -- free some space, then ask again", file=sys.stderr)
        os._exit(int(Exit.STATE))  # what is still in the buffer of stdout would be tried once more, and speak of itself
    sys.exit(int(Exit.OK))
