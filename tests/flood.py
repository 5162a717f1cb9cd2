"""How much slower do two honest nodes exchange under 1,000 hostile connections from their own address?

    python tests/flood.py --connections 1000 --seconds 60

Half of them send nothing, half drip; half of each after the upgrade. Whoever is closed comes back after a moment. Prints
both rates; exits 1 below 80 %. Nodes, flood and measurement are processes of their own.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from places import ask, deploy

from gossipfl.config import load_node
from gossipfl.node.client import WEBSOCKET_PATH
from gossipfl.protocol.session import SUBPROTOCOL

LEAST = 0.8
BACK_S = 1.0
"""Seconds after which a closed attacker comes back."""

UPGRADE = (
    f"GET {WEBSOCKET_PATH} HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
    f"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Protocol: {SUBPROTOCOL}\r\n\r\n"
).encode()


async def attack(port: int, number: int) -> None:
    """For ever: connect, perhaps upgrade, perhaps drip, until closed; again."""
    await asyncio.sleep(number % 100 / 100)
    while True:
        with contextlib.suppress(OSError):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(UPGRADE if number % 2 else b"GET / HTTP/1.1\r\nX-Long: ")
            while not reader.at_eof():
                if number % 4 < 2:
                    writer.write(b"x")
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(2):
                        await reader.read(1000)
            writer.close()
        await asyncio.sleep(BACK_S)


async def flood(ports: list[int], connections: int) -> None:
    await asyncio.gather(*(attack(ports[number % len(ports)], number) for number in range(connections)))


def rate(toml: Path, seconds: float) -> float:
    """Exchanges a second over so many seconds."""
    before, start = ask(toml, "/status")["exchanges"], time.monotonic()
    time.sleep(seconds)
    return float((ask(toml, "/status")["exchanges"] - before) / (time.monotonic() - start))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--connections", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--ports", type=int, nargs="*", help="used by the flooding process itself")
    chosen = parser.parse_args()
    if chosen.ports:
        with contextlib.suppress(KeyboardInterrupt):
            asyncio.run(flood(chosen.ports, chosen.connections))
        return 0
    folder = Path(tempfile.mkdtemp(prefix="gossipfl-flood-"))
    tomls = deploy(folder, ["a", "b"], "toy", {"a": "site = 0", "b": "site = 1"}, local_rounds=10**7,
                   inbound_per_minute=60_000, local_round_s=0.1, codec="f64")  # fmt: skip
    nodes = [subprocess.Popen([sys.executable, "-m", "gossipfl", "node", "run", str(toml)], stderr=subprocess.DEVNULL)
             for toml in tomls.values()]  # fmt: skip
    processes = list(nodes)
    try:
        end = time.monotonic() + 60
        while time.monotonic() < end:
            with contextlib.suppress(OSError, ValueError):
                if ask(tomls["a"], "/status")["exchanges"] > 5:
                    break
            time.sleep(0.2)
        quiet = rate(tomls["a"], chosen.seconds / 3)
        ports = [str(load_node(toml).node.listen_address[1]) for toml in tomls.values()]
        processes.append(
            subprocess.Popen([sys.executable, __file__, "--connections", str(chosen.connections), "--ports", *ports])
        )
        time.sleep(2)
        loud = rate(tomls["a"], chosen.seconds)
    finally:
        for process in processes:
            process.kill()
            process.wait()
    print(f"{quiet:.2f} exchanges a second in peace, {loud:.2f} under {chosen.connections} connections: {loud / quiet:.0%}")
    return 0 if loud >= LEAST * quiet else 1


if __name__ == "__main__":
    sys.exit(main())
