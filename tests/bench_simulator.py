"""Federation-hours a CPU second of the event simulator: prints figures, judges nothing.

    python tests/bench_simulator.py [--watched] [--profile] [--hours 2] [--nodes 16 50 100 200] [--pace 300 600] [--runs 5]

Two lines a size and pace: every operation computed by every node, as deployed ones do, by which the goals of docs/performance.md
are judged; and what both ends of a session compute alike computed once (`World(once=True)`, as in the swarm). Who begins an
exchange in each pace answers about one, too: "an exchange each five minutes" is the pace of 600 s where it counts those that a
node takes part in, and that of 300 s where it counts those that it begins.
`--watched`: with both digests and all laws of `gossipfl simulate`; without it nobody looks on.
"""

from __future__ import annotations

import argparse
import cProfile
import itertools
import pstats
import statistics
import time
from dataclasses import replace
from types import SimpleNamespace
from typing import Final

import numpy as np
from worlds import federation, quadratics, toy_specs

from gossipfl.simulator.network import Observer, Pace, World
from gossipfl.simulator.play import WATCHED
from gossipfl.simulator.trace import Digests
from gossipfl.simulator.trial import Watching, truth_of

CODEC: Final = "f64"
"""Of `worlds.toy_specs`, whatever the federation file says."""

HOW: Final = {False: "all computed at each end", True: "what both ends compute alike computed once"}


def world_of(nodes: int, pace_s: float, watched: bool = False, seed: int = 1, once: bool = False) -> World:
    """So many nodes in a ring with chords, one exchange begun by each in `pace_s`, a tiny model, training for ever."""
    names = [f"site-{number:03d}" for number in range(nodes)]
    members = federation(dict.fromkeys(names, 10), local_rounds=10**6, eta=0.05)
    trainers, _ = quadratics(members.active)
    specs = toy_specs(
        members, lambda name: trainers[name], begin=lambda name: np.zeros(8), turn_ns=int(pace_s * 1e9), patience_ns=10**10
    )
    observers: list[Observer] = []
    if watched:
        truth = truth_of(SimpleNamespace(membership=members), specs)  # type: ignore[arg-type]
        observers = [Watching(replace(truth, codec=CODEC), WATCHED), Digests()]
    return World(specs, seed, pace=Pace(step_s=0.01), observers=observers, once=once)


def measure(nodes: int, hours: float, pace_s: float, watched: bool = False, once: bool = False) -> tuple[float, World]:
    world = world_of(nodes, pace_s, watched, once=once)
    world.run(60)
    before = time.process_time()
    world.run(hours * 3600)
    return time.process_time() - before, world


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nodes", type=int, nargs="*", default=[16])
    parser.add_argument("--hours", type=float, default=2.0)
    parser.add_argument(
        "--pace", type=float, nargs="*", default=[300.0, 600.0], help="seconds between two exchanges that a node begins"
    )
    parser.add_argument("--runs", type=int, default=1, help="of each line, alternating; the median is printed")
    parser.add_argument("--watched", action="store_true", help="with digests and laws, as gossipfl simulate")
    parser.add_argument("--profile", action="store_true")
    chosen = parser.parse_args()
    for nodes, pace in itertools.product(chosen.nodes, chosen.pace):
        taken: dict[bool, list[float]] = {False: [], True: []}
        for _, once in itertools.product(range(chosen.runs), taken):
            profile = cProfile.Profile()
            if chosen.profile:
                profile.enable()
            seconds, world = measure(nodes, chosen.hours, pace, chosen.watched, once)
            profile.disable()
            taken[once].append(seconds)
            if chosen.profile:
                pstats.Stats(profile).sort_stats("tottime").print_stats(45)
        exchanges = world.counts["exchange"]
        print(
            f"{nodes} nodes, {chosen.hours:g} h, each begins an exchange in {pace:g} s and takes part in one in "
            f"{chosen.hours * 3600 * nodes / 2 / max(1, exchanges):.0f} s: {exchanges} exchanges, {world.counts['dial']} dials, "
            f"{world.events} events"
        )
        for once, seconds in ((once, statistics.median(found)) for once, found in taken.items()):
            print(
                f"    {HOW[once]}: {seconds:.3f} CPU s, {chosen.hours / seconds:.2f} federation-hours a CPU second, "
                f"{1e3 * seconds / max(1, exchanges):.2f} ms an exchange"
            )


if __name__ == "__main__":
    main()
