"""One exchange of a large model through two real nodes, beside raw TCP and gRPC; and the CPU of an exchange of a small one.

    python tests/bench_wire.py [--parameters 25000000] [--runs 5] [--disk FOLDER] [--ledger]

An exchange is a push-pull: a whole model each way, both mixed. The rows alternate, all in one run; medians. `in memory`
has its state folder on /dev/shm, where fsync costs nothing; `on disk` in FOLDER, where every commit is durable. Raw TCP
sends the same bytes from and into reused buffers; gRPC is unary, bytes in the clear, and only there if grpcio is
installed (it is no dependency). It prints figures and judges nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing as mp
import socket
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from bench import Pair, Peak, machine, median

MIB = 1 << 20
SMALL = 10_000
"""Parameters of the 40 kB model."""


# ---- raw TCP ---------------------------------------------------------------------------------------------------------


def _take(link: socket.socket, buffer: memoryview) -> None:
    got = 0
    while got < len(buffer):
        got += link.recv_into(buffer[got : got + MIB])


def _tcp_echo(port: Any, size: int) -> None:
    """Takes `size` bytes, then sends as many."""
    incoming, outgoing = bytearray(size), bytearray(size)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port.value = server.getsockname()[1]
        link, _ = server.accept()
    with contextlib.suppress(OSError, ValueError):
        while link.recv(1, socket.MSG_PEEK):
            _take(link, memoryview(incoming))
            link.sendall(outgoing)


@contextlib.contextmanager
def tcp(size: int) -> Iterator[Callable[[], float]]:
    port = mp.Value("i", 0)
    child = mp.Process(target=_tcp_echo, args=(port, size), daemon=True)
    child.start()
    while not port.value:
        time.sleep(0.01)
    link = socket.create_connection(("127.0.0.1", port.value))
    incoming, outgoing = bytearray(size), bytearray(size)

    def exchange() -> float:
        began = time.monotonic()
        link.sendall(outgoing)
        _take(link, memoryview(incoming))
        return time.monotonic() - began

    try:
        yield exchange
    finally:
        link.close()
        child.kill()


# ---- gRPC ------------------------------------------------------------------------------------------------------------

UNBOUNDED = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]


def _grpc_echo(port: Any, size: int) -> None:
    from concurrent import futures

    import grpc

    answer = bytes(size)
    unary = grpc.unary_unary_rpc_method_handler(lambda request, context: answer)
    server = grpc.server(futures.ThreadPoolExecutor(1), options=UNBOUNDED)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("bench", {"Swap": unary}),))
    port.value = server.add_insecure_port("127.0.0.1:0")
    server.start()
    server.wait_for_termination()


@contextlib.contextmanager
def grpc(size: int) -> Iterator[Callable[[], float] | None]:
    try:
        import grpc as library
    except ImportError:
        yield None
        return
    port = mp.Value("i", 0)
    child = mp.Process(target=_grpc_echo, args=(port, size), daemon=True)
    child.start()
    while not port.value:
        time.sleep(0.01)
    with library.insecure_channel(f"127.0.0.1:{port.value}", options=UNBOUNDED) as channel:
        swap = channel.unary_unary("/bench/Swap")
        blob = bytes(size)

        def exchange() -> float:
            began = time.monotonic()
            assert len(swap(blob, wait_for_ready=True)) == size
            return time.monotonic() - began

        yield exchange
    child.kill()


# ---- figures ---------------------------------------------------------------------------------------------------------


def large(parameters: int, runs: int, disk: Path, mode: str) -> None:
    """Alternating rows, medians, and shares of raw TCP."""
    size = 4 * parameters
    print(f"\none exchange of {parameters:,} float32 parameters ({size / 1e6:.1f} MB each way), median of {runs}, {mode}")
    with contextlib.ExitStack() as stack:
        folders = {
            "node, state in memory": stack.enter_context(tempfile.TemporaryDirectory(dir="/dev/shm")),
            "node, state on disk": stack.enter_context(tempfile.TemporaryDirectory(dir=disk)),
        }
        pairs = {name: stack.enter_context(Pair(Path(folder), parameters, mode=mode)) for name, folder in folders.items()}
        plain = {"raw TCP": stack.enter_context(tcp(size)), "gRPC unary, clear": stack.enter_context(grpc(size))}
        figures: dict[str, list[dict[str, float]]] = {name: [] for name in (*plain, *pairs)}
        nodes = {one.child.pid: one for pair in pairs.values() for one in (pair.a, pair.b)}
        idle = {pid: one.anonymous_kib for pid, one in nodes.items()}
        with Peak(list(nodes)) as peak:
            for run in range(-1, runs):  # the first is a warm-up
                for name, exchange in plain.items():
                    if exchange is not None:
                        seconds = exchange()
                        figures[name] += [{"seconds": seconds}] if run >= 0 else []
                for name, pair in pairs.items():
                    if run < 0:
                        pair.meet()
                    seen = pair.exchange()
                    figures[name] += [seen] if run >= 0 else []
    tcp_s = median(figures["raw TCP"])["seconds"]
    print(f"{'':24}{'exchange ms':>12}{'per way ms':>12}{'range ms':>16}{'of raw TCP':>12}{'CPU ms both':>13}")
    for name, rows in figures.items():
        if not rows:
            print(f"{name:24} not measured: grpcio is not installed")
            continue
        each = [1e3 * row["seconds"] for row in rows]
        cpu = f"{1e3 * median(rows)['cpu']:.0f}" if "cpu" in rows[0] else "-"
        middle = statistics.median(each)
        print(f"{name:24}{middle:12.0f}{middle / 2:12.0f}{min(each):9.0f}-{max(each):.0f}{tcp_s * 1e5 / middle:11.0f}%{cpu:>13}")
    print("anonymous memory of a node, MiB (idle before its first exchange -> peak while exchanging = extra):")
    for name, pair in pairs.items():
        for one, role in ((pair.a, "asks"), (pair.b, "answers")):
            was, most = idle[one.child.pid] / 1024, peak.most[one.child.pid] / 1024
            print(f"  {name}, {role}: {was:.0f} -> {most:.0f} = {most - was:.0f}")


def small(exchanges: int, runs: int, mode: str) -> None:
    """CPU of both ends for each exchange of a 40 kB model on a live session, its commits apart."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder, Pair(Path(folder), SMALL, mode=mode) as pair:
        pair.meet()
        pair.exchange(20)
        rows = [pair.exchange(exchanges) for _ in range(runs)]
    apart = [1e3 * (row["cpu"] - row["commit_cpu"]) / exchanges for row in rows]
    commits = [1e3 * row["commit_cpu"] / exchanges for row in rows]
    wall = [1e3 * row["seconds"] / exchanges for row in rows]
    print(
        f"\n{SMALL:,} parameters (40 kB), {runs} x {exchanges} exchanges one after the other, {mode}: "
        f"CPU of both ends {statistics.median(apart):.2f} ms an exchange without commits "
        f"({min(apart):.2f}-{max(apart):.2f}), commits {statistics.median(commits):.2f} ms, wall {statistics.median(wall):.1f} ms"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parameters", type=int, default=25_000_000)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--disk", type=Path, default=Path(tempfile.gettempdir()), help="a folder on a real disk")
    parser.add_argument("--ledger", action="store_true", help="each exchange after a local round, with the correction")
    parser.add_argument("--small", type=int, default=300, help="exchanges of the small model; 0: none")
    chosen = parser.parse_args()
    mode = "ledger" if chosen.ledger else "asks"
    print(*machine(), sep="\n")
    if chosen.parameters:
        large(chosen.parameters, chosen.runs, chosen.disk, mode)
    if chosen.small:
        small(chosen.small, chosen.runs, mode)
    print(next(reversed(list(machine()))).replace("before", "after"))


if __name__ == "__main__":
    main()
