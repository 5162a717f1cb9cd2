"""What the benchmarks share: a task of any size that only mixes, a node process that takes orders, and how it is measured.

    python tests/bench.py NODE.TOML SEED MODE      the node process; the benchmarks start it, nobody else does

It is the deployed node (build, Driver, store, sessions over a loopback socket). One line in on stdin, one line of JSON out
on stdout. `MODE` is `asks` (it begins exchanges, while let), `answers` (it never does) or `ledger` (as `asks`, and each
exchange comes after a local round that was handed in, with the drift correction booked).
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import os
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from places import deploy

from gossipfl.config import load_node
from gossipfl.errors import Misuse
from gossipfl.learning.parameters import Layout
from gossipfl.node.build import build
from gossipfl.node.driver import Driver
from gossipfl.protocol import events as ev
from gossipfl.protocol import messages as ms
from gossipfl.protocol.core import Settings
from gossipfl.tasks import Data

HERE = Path(__file__).parent
ENDLESS = 10**6
PATIENCE_S = 30.0


@dataclass(frozen=True)
class Wide:
    """`size` float32 parameters that nobody trains: only what mixing costs is measured."""

    size: int = 1000
    name: str = "wide"
    standardise: bool = False
    metric: str = "loss"
    features: tuple[str, ...] = ()

    def model(self) -> Any:
        raise Misuse("wide is never trained")

    def loss(self, module: Any, x: Any, y: Any) -> Any:
        raise Misuse("wide is never trained")

    def layout(self) -> Layout:
        return Layout.flat(self.size, "float32")

    def initial(self, seed: int) -> np.ndarray:
        return np.zeros(self.size, np.float32)

    def data(self, source: Mapping[str, Any]) -> Data:
        raise Misuse("wide has no data")


# ---- the node process ------------------------------------------------------------------------------------------------


def settings_of(mode: str, settings: Settings) -> Settings:
    """No pause between turns, no limits that a benchmark would meet; a small clip, because there is no gradient."""
    return dataclasses.replace(
        settings, trains=mode != "asks", external=mode != "asks", ledger=mode == "ledger", clip=0.0, cap=0.0, turn_ns=1,
        inbound_per_minute=1e9, resets_per_day=0, patience_ns=int(PATIENCE_S * 1e9), checkpoint_ns=3600 * 10**9,
    )  # fmt: skip


class Worker:
    """The node in this process, and what the benchmark wants to know of it."""

    def __init__(self, toml: Path, seed: int, mode: str) -> None:
        config = load_node(toml)
        size = load_size(toml)
        begin = np.random.Generator(np.random.PCG64(seed)).standard_normal(size, np.float32)
        self.driver = Driver(build(config, external=True, begin=begin, change=lambda one: settings_of(mode, one)))
        del begin
        self.toml, self.mode = toml, mode
        self.commit_cpu = 0.0
        self.wanted = 0
        self.mixed = self.confirmed = 0
        """exchanges applied and committed here; those whose last message has come to the side that answered"""
        self.ended = 0.0
        """when the last of either was"""
        self.driver.after = self.after
        self.driver.store.commit = self.timed(self.driver.store.commit)  # type: ignore[method-assign]

    def timed(self, commit: Callable[..., None]) -> Callable[..., None]:
        def run(*arguments: Any) -> None:
            began = time.thread_time()
            commit(*arguments)
            self.commit_cpu += time.thread_time() - began

        return run

    def after(self, event: ev.Event) -> None:
        mixed = isinstance(event, ev.Mixed)
        confirmed = isinstance(event, ev.Received) and isinstance(event.message, ms.Done)
        self.mixed += mixed
        self.confirmed += confirmed
        if mixed or confirmed:
            self.ended = time.monotonic()
        if mixed and self.wanted:
            self.wanted -= 1
            self.next()

    def next(self) -> None:
        """Let the node begin one exchange, and no more."""
        if not self.wanted:
            return
        if self.mode == "ledger":
            files = self.driver.store.files
            room = files.scratch(4 * load_size(self.toml))
            np.frombuffer(room, np.float32).fill(1e-3)
            name = files.adopt(room, pinned=True)
            self.driver.post(ev.Operator("mix", name, 1, 1.0), pinned=name)
        else:
            self.driver.post(ev.Operator("resume"))
            self.driver.post(ev.Operator("pause"))

    def order(self, line: str) -> None:
        if line.startswith("go"):
            self.wanted = int(line.split()[1])
            self.next()
        print(json.dumps({"at": time.monotonic(), "cpu": time.process_time(), "commit_cpu": self.commit_cpu,
                          "exchanges": sum(link.exchanges for link in self.driver.peer.links.values()),
                          "mixed": self.mixed, "confirmed": self.confirmed, "ended": self.ended,
                          "refusals": self.driver.peer.counts}), flush=True)  # fmt: skip

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self.driver.stop)
        reader = asyncio.StreamReader()
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)

        async def listen() -> None:
            await self.driver.running.wait()
            while line := (await reader.readline()).decode():
                self.order(line)
            self.driver.stop()  # the benchmark has ended, however it did

        listening = asyncio.ensure_future(listen())
        if self.mode == "asks":
            self.driver.post(ev.Operator("pause"))
        await self.driver.run()
        listening.cancel()


def load_size(toml: Path) -> int:
    study = json.loads((toml.parent.parent / "federation.json").read_text())["study"]
    return int(study["task_options"]["size"])


# ---- the benchmark's side --------------------------------------------------------------------------------------------


class Process:
    """One node process."""

    def __init__(self, toml: Path, seed: int, mode: str, env: dict[str, str] | None = None) -> None:
        self.toml = toml
        self.log = (toml.parent / "log").open("ab")
        self.child = subprocess.Popen(
            [sys.executable, str(HERE / "bench.py"), str(toml), str(seed), mode], stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, stderr=self.log, env={**os.environ, **(env or {})},
        )  # fmt: skip

    def ask(self, order: str = "say") -> dict[str, Any]:
        assert self.child.stdin is not None and self.child.stdout is not None
        self.child.stdin.write(order.encode() + b"\n")
        self.child.stdin.flush()
        line = self.child.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.toml} ended:\n" + (self.toml.parent / "log").read_text()[-3000:])
        answer: dict[str, Any] = json.loads(line)
        return answer

    def until(self, holds: Callable[[dict[str, Any]], bool], every_s: float = 0.05) -> dict[str, Any]:
        end = time.monotonic() + PATIENCE_S
        while not holds(answer := self.ask()):
            if time.monotonic() > end:
                raise RuntimeError(f"{self.toml}: not within {PATIENCE_S:g} s; it says {answer}")
            time.sleep(every_s)
        return answer

    @property
    def anonymous_kib(self) -> int:
        return status_kib(self.child.pid, "RssAnon")

    def end(self) -> None:
        self.child.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.child.wait(20)
        self.child.kill()
        self.log.close()


def status_kib(pid: int, field: str) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1])
    raise RuntimeError(f"/proc/{pid}/status has no {field}; these figures need Linux")


class Peak(threading.Thread):
    """The largest anonymous memory of some processes, looked at every few milliseconds."""

    def __init__(self, pids: list[int]) -> None:
        super().__init__(daemon=True)
        self.pids, self.over = pids, threading.Event()
        self.most = dict.fromkeys(pids, 0)

    def run(self) -> None:
        while not self.over.wait(0.005):
            for pid in self.pids:
                self.most[pid] = max(self.most[pid], status_kib(pid, "RssAnon"))

    def __enter__(self) -> Peak:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.join()


class Pair:
    """Two nodes on loopback: `a` begins exchanges when told, `b` answers."""

    def __init__(self, folder: Path, size: int, codec: str = "f32", mode: str = "asks") -> None:
        """gamma is small so that the models stay apart: equal ones would send one payload twice, which costs nothing."""
        folder.mkdir(parents=True, exist_ok=True)
        tomls = deploy(
            folder, ["a", "b"], "bench:Wide", {"a": "", "b": ""}, options={"size": size}, gamma=0.01, codec=codec,
            correction="ledger" if mode == "ledger" else "none", local_rounds=ENDLESS,
        )  # fmt: skip
        answers = "ledger" if mode == "ledger" else "answers"
        self.mode = mode
        self.b = Process(tomls["b"], 2, answers)
        self.b.ask()
        self.a = Process(tomls["a"], 1, mode)
        self.a.ask()

    def meet(self) -> None:
        """The first exchange dials, and moves a whole model against zeros: it is not measured."""
        if self.mode == "ledger":
            self.b.ask("go 1")
            self.a.until(lambda said: said["confirmed"] > 0)  # sooner the link is busy, and a round would pass it by
        self.exchange()

    def exchange(self, times: int = 1) -> dict[str, float]:
        """Seconds, CPU seconds of both and of their commits, for so many exchanges one after the other."""
        before = [one.ask() for one in (self.a, self.b)]
        began = self.a.ask(f"go {times}")["at"]
        self.a.until(lambda said: said["mixed"] >= before[0]["mixed"] + times)
        self.b.until(lambda said: said["confirmed"] >= before[1]["confirmed"] + times)
        after = [one.ask() for one in (self.a, self.b)]
        ended = max(said["ended"] for said in after)
        spent = {key: sum(x[key] - y[key] for x, y in zip(after, before, strict=True)) for key in ("cpu", "commit_cpu")}
        return {"seconds": ended - began, **spent}

    def end(self) -> None:
        self.a.end()
        self.b.end()

    def __enter__(self) -> Pair:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()


def median(rows: list[dict[str, float]]) -> dict[str, float]:
    return {key: statistics.median(row[key] for row in rows) for key in rows[0]}


def machine() -> Iterator[str]:
    """What a figure is worth nothing without."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "?")
    python, kernel = sys.version.split()[0], os.uname().release
    yield f"machine: {os.cpu_count()} CPUs ({model}), Linux {kernel}, Python {python}, numpy {np.__version__}"
    yield f"load before: {' '.join(f'{one:.2f}' for one in os.getloadavg())}"


if __name__ == "__main__":
    asyncio.run(Worker(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]).run())
