"""A node that only mixes, begun from a vector of its own: what tests of exactly-once run as a process and kill.

    python tests/mixer.py NODE.TOML SEED
"""

from __future__ import annotations

import asyncio
import dataclasses
import signal
import sys
from pathlib import Path

import numpy as np

from gossipfl.config import load_node
from gossipfl.node.build import build
from gossipfl.node.driver import Driver
from gossipfl.protocol.core import Settings

DIMENSION = 8


def vector(seed: int) -> np.ndarray:
    return np.random.Generator(np.random.PCG64(seed)).normal(size=DIMENSION)


def only_mixing(settings: Settings) -> Settings:
    """No training, no clip; pauses short enough for a test."""
    return dataclasses.replace(
        settings, trains=False, ledger=False, clip=0.0, inbound_per_minute=60_000, resets_per_day=0,
        turn_ns=20_000_000, patience_ns=500_000_000,
    )  # fmt: skip


async def main(toml: Path, seed: int) -> None:
    driver = Driver(build(load_node(toml), begin=vector(seed), change=only_mixing))
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, driver.stop)
    await driver.run()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), int(sys.argv[2])))
