"""The honest exchange rate of two nodes, without and with a flood of connections from the same address.

    python tests/bench_flood.py [--seconds 60] [--connections 1000] [--again 1.0]

A quarter of the connections says nothing; a quarter drips an HTTP request, a byte a second; a quarter is upgraded to
WebSocket and then says nothing; a quarter is upgraded and drips a frame. What is closed comes again after `--again`
seconds. All come from 127.0.0.1, as the honest nodes do, to the listener of the node that answers. The honest nodes
exchange a model of 1,000 parameters without pause, which is the harshest case: every cycle that the flood takes counts.
It prints figures and judges nothing.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench import ENDLESS, Pair, machine

from gossipfl.config import load_node

REQUEST = (
    b"GET /gossipfl/v1/ws HTTP/1.1\r\nHost: node\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: gossipfl.v1\r\n\r\n"
)
FRAME = b"\x82\xfe\x01\x00" + bytes(260)
"""A masked binary frame of 256 bytes."""


class Flood:
    """So many connections at once, for ever."""

    def __init__(self, port: int, again_s: float) -> None:
        self.port, self.again_s = port, again_s
        self.made = self.held = self.upgraded = 0

    async def one(self, kind: int) -> None:
        self.made += 1
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        self.held += 1
        try:
            if kind == 1:
                await self.drip(reader, writer, REQUEST)
            if kind >= 2:
                writer.write(REQUEST)
                if (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 101"):
                    self.upgraded += 1
            if kind == 3:
                await self.drip(reader, writer, FRAME)
            await reader.read()
        finally:
            self.held -= 1
            writer.transport.abort()

    async def drip(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, content: bytes) -> None:
        for at in range(len(content)):
            writer.write(content[at : at + 1])
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(reader.read(1), 1.0)
                return

    async def slot(self, kind: int) -> None:
        while True:
            with contextlib.suppress(OSError, EOFError, asyncio.LimitOverrunError):
                await self.one(kind)
            await asyncio.sleep(self.again_s)

    async def run(self, connections: int) -> None:
        slots = [asyncio.create_task(self.slot(number % 4)) for number in range(connections)]
        samples = []
        with contextlib.suppress(asyncio.CancelledError):
            while sys.stdin not in await readable():
                samples.append(self.held)
                await asyncio.sleep(0.1)
        for slot in slots:
            slot.cancel()
        spent = resource.getrusage(resource.RUSAGE_SELF)
        print(json.dumps({"made": self.made, "upgraded": self.upgraded, "held": sum(samples) / max(1, len(samples)),
                          "cpu": spent.ru_utime + spent.ru_stime}))  # fmt: skip


async def readable() -> list[object]:
    import select

    return select.select([sys.stdin], [], [], 0)[0]


def rate(pair: Pair, seconds: float) -> tuple[float, float]:
    """(exchanges a second, CPU share of the node that answers) over so many seconds."""
    before, began = pair.b.ask(), time.monotonic()
    time.sleep(seconds)
    after, took = pair.b.ask(), time.monotonic() - began
    return (after["exchanges"] - before["exchanges"]) / took, (after["cpu"] - before["cpu"]) / took


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--connections", type=int, default=1000)
    parser.add_argument("--again", type=float, default=1.0)
    parser.add_argument("--flood", type=int, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    if chosen.flood:
        asyncio.run(Flood(chosen.flood, chosen.again).run(chosen.connections))
        return
    print(*machine(), sep="\n")
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder, Pair(Path(folder), 1000) as pair:
        address = load_node(pair.b.toml).node.listen_address
        assert address is not None
        pair.meet()
        pair.a.ask(f"go {ENDLESS}")
        rate(pair, 2)
        calm, calm_cpu = rate(pair, chosen.seconds)
        command = [sys.executable, __file__, "--flood", str(address[1]), "--again", str(chosen.again),
                   "--connections", str(chosen.connections)]  # fmt: skip
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=os.environ) as flood:
            time.sleep(2)
            stormy, stormy_cpu = rate(pair, chosen.seconds)
            said = json.loads(flood.communicate(b"end\n", timeout=30)[0])
        again, _ = rate(pair, chosen.seconds / 2)
        refusals = pair.b.ask()["refusals"]
    over = chosen.seconds + 2
    kept = stormy / ((calm + again) / 2)
    print(f"{chosen.connections} connections that say nothing or drip, from the honest address, {chosen.seconds:g} s:")
    print(f"  exchanges a second: {calm:.1f} before, {stormy:.1f} during, {again:.1f} after: {kept:.0%} of that without")
    print(f"  CPU of the node flooded: {calm_cpu:.0%} before, {stormy_cpu:.0%} during; of the flood {said['cpu'] / over:.0%}")
    print(f"  the flood made {said['made'] / over:.0f} connections a second and had {said['held']:.0f} open at a time;")
    print(f"  {said['upgraded']} were upgraded; refusals between the honest nodes: {refusals or 'none'}")
    print(next(reversed(list(machine()))).replace("before", "after"))


if __name__ == "__main__":
    main()
