"""Many independent runs in processes, a JSON line each in a file; run again, they go on where they stopped.

Not here: what a run is (trial.py, sweep.py, bench), what is printed while they go on (gossipfl.cli.output).
"""

from __future__ import annotations

import gc
import json
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Final, TypeVar

from gossipfl.errors import ConfigError, Exit, Fault

PER_PROCESS: Final = 200
"""Runs that a process makes before a fresh one takes its place: what a library leaks is let go."""

THREADS: Final = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
"""What the libraries of numbers read when they are loaded: with a process a core, more threads than 1 cost and bring nothing."""

Line = dict[str, Any]
Key = TypeVar("Key", bound=Hashable)
Item = TypeVar("Item")


def kept(path: Path, key: Callable[[Line], Key | None], *, what: str) -> dict[Key, Line]:
    """Lines of an earlier run by their key, without those whose key is None. A last line that was cut off is taken off the file.

    `what` names such a file. **Raises**: ConfigError for a file that is none: `key` raised ValueError, KeyError or TypeError.
    """
    if not path.exists():
        return {}
    raw = path.read_bytes()
    whole = raw[: raw.rfind(b"\n") + 1]
    if len(whole) < len(raw):
        with path.open("r+b") as file:
            file.truncate(len(whole))
    found: dict[Key, Line] = {}
    for number, text in enumerate(whole.splitlines(), 1):
        try:
            line = json.loads(text)
            name = key(line)
        except (ValueError, KeyError, TypeError) as error:
            fault = Fault(str(path), number, f"not a line of {what}: {error}", f"name another --out; this file is not {what}")
            raise ConfigError(fault, exit_code=Exit.STATE) from None
        if name is not None:
            found[name] = line
    return found


def append(path: Path, line: Line) -> None:
    """One line more, whole on its way to the disk before the next run is waited for. **Raises**: ConfigError (73)."""
    open_for_more(path, json.dumps(line, sort_keys=True) + "\n")


def open_for_more(path: Path, text: str = "") -> None:
    """Shows, before anything is run for it, that the file can be written; and writes. **Raises**: ConfigError (73)."""
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        fault = Fault(str(path), None, f"cannot be written: {error.strerror}", "make its folder, or choose another --out")
        raise ConfigError(fault, exit_code=Exit.STATE) from None


def run(do: Callable[[Item], Line], items: Sequence[Item], processes: int) -> Iterator[Line]:
    """The line of each item, as they come; with one process, or one item, in this process and in order.

    `do` must be a module's function, or a functools.partial of one: the others import it. When the reader of this iterator
    stops (Ctrl-C), runs that are not done are given up, not waited for.
    **Raises**: ConfigError where a process died; the lines that came before it are whole.
    """
    if processes == 1 or len(items) == 1:
        for item in items:
            yield _one(do, item)
        return
    waiting = iter(items)
    before = set(multiprocessing.active_children())
    context = multiprocessing.get_context("spawn")
    with _single_threaded(), ProcessPoolExecutor(processes, context, _serve, max_tasks_per_child=PER_PROCESS) as pool:
        flying: set[Future[Line]] = set()
        try:
            while True:
                for item in waiting:
                    flying.add(pool.submit(_one, do, item))
                    if len(flying) >= 2 * processes:
                        break
                if not flying:
                    return
                ready, flying = wait(flying, return_when=FIRST_COMPLETED)
                for future in ready:
                    yield future.result()
        except BrokenProcessPool:
            what = "a process of the pool was killed, perhaps for want of memory"
            raise ConfigError(Fault("processes", None, what, "run the same command again, with fewer --processes")) from None
        except BaseException:
            for future in flying:
                future.cancel()
            for process in set(multiprocessing.active_children()) - before:
                process.terminate()
            raise


def _one(do: Callable[[Item], Line], item: Item) -> Line:
    """One run, of which nothing stays: a simulated world is a ring of references, and frozen while it runs (clock.py)."""
    line = do(item)
    gc.collect()
    return line


def _serve() -> None:
    """In a worker: a terminal sends Ctrl-C to all processes, and the parent decides what comes of it. A parent that was killed
    decides nothing any more: nobody would read the lines, and a worker that waits for the next item would wait for ever."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: BaseProcess) -> None:
    parent.join()
    os._exit(Exit.FAILED)


@contextmanager
def _single_threaded() -> Iterator[None]:
    """What is started meanwhile computes in one thread; what the operator has set stays."""
    mine = [name for name in THREADS if name not in os.environ]
    os.environ.update(dict.fromkeys(mine, "1"))
    try:
        yield
    finally:
        for name in mine:
            os.environ.pop(name, None)


def cores() -> int:
    """That this process may use."""
    with suppress(AttributeError):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
