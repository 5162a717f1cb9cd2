"""What every command does alike with terminal and files: tables, JSON, passphrases, files that are never overwritten.

Not here: what a command means. Light at import; rich is loaded when a table is drawn.
"""

from __future__ import annotations

import getpass
import json
import os
import secrets
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from gossipfl.amounts import duration
from gossipfl.errors import ConfigError, Exit, Fault, printable

LINE_S: Final = 5.0
"""Between two lines of progress where there is no terminal."""

INTERRUPTED: Final = 130
"""Exit code after Ctrl-C, as shells say it."""

PASSPHRASE_VARIABLE: Final = "GOSSIPFL_PASSPHRASE_FILE"


def say(text: str) -> None:
    """A sentence for a person, on stderr, so that stdout holds results only."""
    print(printable(text, keep="\n"), file=sys.stderr)


def emit(result: object) -> None:
    """A result as one JSON object on stdout."""
    print(_escaped(json.dumps(result, indent=2, ensure_ascii=False, allow_nan=False)))


def _escaped(text: str) -> str:
    """JSON leaves as they stand DEL and what steers a terminal beyond ASCII; here all of it is escaped, in JSON's own way."""
    return "".join(json.dumps(one)[1:-1] if one != "\n" and printable(one) != one else one for one in text)


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """A table on stdout: drawn on a terminal, columns of plain text elsewhere."""
    title = "\n".join(map(printable, title.split("\n")))
    cells = [[_cell(one) for one in row] for row in rows]
    if not sys.stdout.isatty():
        lines = [list(columns), *cells]
        widths = [max(len(line[n]) for line in lines) for n in range(len(columns))]
        plain = ("  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)) for line in lines)
        print("\n".join([title] * bool(title) + [line.rstrip() for line in plain]))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    drawn = Table(title=title or None, title_justify="left", box=None, pad_edge=False)
    for column in columns:
        drawn.add_column(column, overflow="fold")
    for row in cells:
        drawn.add_row(*(Text(cell) for cell in row))
    Console(highlight=False).print(drawn)


def _cell(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else printable(str(value))


@dataclass(frozen=True)
class Counter:
    """Progress of many runs. `step(text)`: one more is done; `say(text)`: a line that stays."""

    step: Callable[[str], None]
    say: Callable[[str], None]


@contextmanager
def counted(what: str, total: int, done: int = 0, *, quiet: bool = False) -> Iterator[Counter]:
    """On stderr: a bar with the time left on a terminal, a line now and then elsewhere; `quiet`: only what is said."""
    if sys.stderr.isatty() and not quiet:
        with _bar(what, total, done) as counter:
            yield counter
        return
    first = last = time.monotonic()
    now = done

    def step(text: str) -> None:
        nonlocal now, first, last
        now += 1
        since = now - done - 1
        if not since:  # the first has what comes once: starting processes, loading libraries
            first = time.monotonic()
        if not quiet and (time.monotonic() - last > LINE_S or now == total):
            last = time.monotonic()
            is_known = since >= max(1, (total - done) // 10) and now < total  # runs differ: a tenth of them say something
            left = f", {duration((last - first) / since * (total - now))} left" if is_known else ""
            print(f"{now} of {total} {what}{left}" + (f" ({text})" if text else ""), file=sys.stderr, flush=True)

    yield Counter(step, lambda text: print(text, file=sys.stderr, flush=True))


@contextmanager
def _bar(what: str, total: int, done: int) -> Iterator[Counter]:
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(),
        TextColumn("{task.description}"),
    )  # fmt: skip
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=total, completed=done)
        yield Counter(
            lambda text: bar.update(task, advance=1, description=escape(text)),
            lambda text: bar.console.print(text, markup=False, highlight=False),
        )


def passphrase(file: Path | None, *, new: bool = False) -> str | None:
    """The passphrase of key files: from `file`, else from the file that GOSSIPFL_PASSPHRASE_FILE names, else asked for
    on a terminal, else None (keys not encrypted). Never from the command line: others could read it there.

    **Raises**: ConfigError (exit 77): file absent, unreadable or empty, or the two new entries differ.
    """
    named = os.environ.get(PASSPHRASE_VARIABLE)
    source = file or (Path(named) if named else None)
    if source is not None:
        return _passphrase_in(source)
    if not sys.stdin.isatty():
        return None
    text = getpass.getpass("Passphrase of the key files (empty: none): ", sys.stderr)
    if new and text and getpass.getpass("The same again: ", sys.stderr) != text:
        raise ConfigError("the two passphrases differ; run the command again", exit_code=Exit.PERMISSION)
    return text or None


def _passphrase_in(source: Path) -> str:
    try:
        if (mode := source.stat().st_mode & 0o777) & 0o077:
            say(f"{source} holds a passphrase and has mode {mode:04o}: others may read it -- chmod 600 {source}")
        text = source.read_text(encoding="utf-8").rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        fault = Fault(str(source), None, f"passphrase file not readable: {error}", "name a UTF-8 file of one line")
        raise ConfigError(fault, exit_code=Exit.PERMISSION) from None
    if not text:
        fault = Fault(str(source), None, "passphrase file is empty", "write the passphrase into it, or name no file")
        raise ConfigError(fault, exit_code=Exit.PERMISSION)
    return text


def absent(*paths: Path) -> None:
    """Refuses if one of the files is there: what holds keys or names a federation is never overwritten."""
    remedy = "choose another --out, or remove it if nobody needs it"
    there = [Fault(str(path), None, "exists already", remedy) for path in paths if path.exists()]
    if there:
        raise ConfigError(*there, exit_code=Exit.STATE)


def folder(path: Path, mode: int) -> None:
    """Makes a folder, its parents too. Raises ConfigError (exit 73)."""
    try:
        path.mkdir(mode=mode, parents=True, exist_ok=True)
    except OSError as error:
        fault = Fault(str(path), None, f"cannot be made: {error.strerror}", "choose a writable place with --out")
        raise ConfigError(fault, exit_code=Exit.STATE) from None


def write(path: Path, text: str | bytes, *, mode: int = 0o644) -> None:
    """Puts a file in place at once: a reader sees the old or the new one. Raises ConfigError (exit 73)."""
    content = text.encode() if isinstance(text, str) else text
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with os.fdopen(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except OSError as error:
        beside.unlink(missing_ok=True)
        fault = Fault(str(path), None, f"cannot be written: {error.strerror}", "free space or choose another --out")
        raise ConfigError(fault, exit_code=Exit.STATE) from None
