"""Real processes that commit and are really killed: what was acknowledged is there, and all that is there is whole.

The inside of SQLite and of the file system is tested here only as far as a kill of the process goes; loss of power is
modelled in test_store.py.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from gossipfl.store import Store

KILLS = int(os.environ.get("GOSSIPFL_KILLS", "20"))
"""20 take some seconds; a night's run takes thousands."""

BLOB = 1_200_000
"""bytes: large enough for a temporary file"""


class Note(NamedTuple):
    kind: str
    fields: dict[str, int]


def blob(number: int, size: int) -> bytes:
    return random.Random(number).randbytes(32) * (size // 32)


def write_for_ever(folder: Path) -> None:
    """Commits number after number, and says each when it is done."""
    with Store.open(folder) as store:
        number = int.from_bytes(store.load().get(("count", "now"), b""))
        while True:
            number += 1
            scratch = store.files.scratch(BLOB)
            scratch[:] = blob(number, BLOB)
            names = [store.files.adopt(scratch), store.files.put(blob(-number, 3200))]
            rows = [("names", "now", b"".join(names)), ("count", "now", number.to_bytes(8))]
            store.commit(rows, names, [Note("done", {"n": number})], number, frozenset(names))
            print(number, flush=True)


def killed_writer(folder: Path, rng: random.Random) -> int:
    """The last number that a writer said before it was killed at some point of its work."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    command = [sys.executable, __file__, str(folder)]
    writer = subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, text=True)
    assert writer.stdout is not None
    try:
        for _ in range(rng.randrange(1, 8)):
            assert writer.stdout.readline(), "the writer ended by itself"
        with suppress(subprocess.TimeoutExpired):
            writer.wait(timeout=rng.uniform(0, 0.02))
    finally:
        writer.send_signal(signal.SIGKILL)
        said = writer.stdout.read()
        writer.wait()
        writer.stdout.close()
    return int(said.split()[-1]) if said.split() else 0


def test_what_was_committed_survives_a_kill_at_any_moment(tmp_path: Path) -> None:
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}; more: GOSSIPFL_KILLS=1000 pytest {__file__}")
    rng, before = random.Random(seed), 0
    for _ in range(KILLS):
        said = killed_writer(tmp_path / "state", rng)
        with Store.open(tmp_path / "state") as store:
            rows = store.load()
            count, names = int.from_bytes(rows["count", "now"]), rows["names", "now"]
            assert count >= max(said, before + 1)
            assert store.files.missing([names[:32], names[32:]]) == frozenset()
            assert store.files.read(names[:32]) == blob(count, BLOB)
            assert store.facts()[-1].fields == {"n": count} and len(store.facts()) == count
            assert not list((tmp_path / "state" / "blobs").glob("*.tmp"))
        before = count


if __name__ == "__main__":
    write_for_ever(Path(sys.argv[1]))
