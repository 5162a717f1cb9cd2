"""Writes the topology files of this folder: `python topologies/make.py`. Every figure is made by the rule stated here.

No latency or bandwidth in these files was measured: they are round figures for experiments, and each file says so.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from gossipfl import topology
from gossipfl.topology import files
from gossipfl.topology.draws import Draws
from gossipfl.topology.graphs import Graph

HERE = Path(__file__).parent


def hospitals() -> Graph:
    """64 hospitals in 8 regions: 2 ms and 1000 Mbit/s within a region, 12 ms and 200 Mbit/s between two."""
    made = topology.graph("clustered:regions=8,inside=4,long=2", 64, seed=1)
    region = np.arange(64) // 8
    across = region[made.edges[:, 0]] != region[made.edges[:, 1]]
    said = (
        "made by topologies/make.py: gossipfl's clustered:8,4,2 with 64 nodes, seed 1; by rule 2 ms and 1000 Mbit/s "
        "within a region, 12 ms and 200 Mbit/s between regions; nothing was measured"
    )
    names = [f"region{one}-{node % 8}" for node, one in enumerate(region.tolist())]
    return made.with_links(names, np.where(across, 12.0, 2.0), np.where(across, 200.0, 1000.0), said)


def research_network() -> Graph:
    """A sketch of a national research network: 12 cities on a random map, linked near and in a ring; 3 sites a city."""
    cities, sites = 12, 36
    places = Draws(1, "cities").uniform(2 * cities).reshape(cities, 2) * 800.0  # km
    order = np.argsort(np.arctan2(*(places - places.mean(axis=0)).T[::-1])).tolist()
    links = {tuple(sorted((order[at], order[at - 1]))) for at in range(cities)}
    for city in range(cities):
        near = np.argsort(((places - places[city]) ** 2).sum(axis=1), kind="stable")[1:3].tolist()
        links |= {tuple(sorted((city, other))) for other in near}
    access = [(site % cities, cities + site) for site in range(sites)]
    turn = 2 * np.pi * (np.arange(sites) // cities) / 3
    around = places[np.arange(sites) % cities] + 30 * np.stack([np.cos(turn), np.sin(turn)], axis=1)
    everywhere = np.round(np.concatenate([places, around]), 1)
    made = Graph.of(cities + sites, [*sorted(links), *access], "research-network", everywhere)
    km = np.sqrt(((everywhere[made.edges[:, 0]] - everywhere[made.edges[:, 1]]) ** 2).sum(axis=1))
    backbone = made.edges[:, 1] < cities
    latency = np.where(backbone, np.round(0.5 + km * 1.4 / 200, 2), 1.0)
    said = (
        "made by topologies/make.py: no real network; 12 cities at random on 800 km x 800 km, a ring around their middle and "
        "links to the two nearest, 3 sites a city; by rule latency 0.5 ms + 1.4 times the distance at 200 km/ms on the "
        "backbone and 1 ms to a site, 10000 and 1000 Mbit/s; nothing was measured"
    )
    names = [f"city{n}" for n in range(cities)] + [f"site{n}" for n in range(sites)]
    return made.with_links(names, latency, np.where(backbone, 10000.0, 1000.0), said)


def plain(spec: str, n: int, seed: int = 0) -> Graph:
    """A graph by its spec, no figures of links."""
    return topology.graph(spec, n, seed)


FILES = {
    "hospitals-64.graphml": hospitals,
    "research-network-48.graphml": research_network,
    "ring-16.edges": lambda: plain("ring", 16),
    "random-regular-415-6.edges": lambda: plain("random-regular:6", 415, 1),
}

if __name__ == "__main__":
    for name, make in FILES.items():
        (HERE / name).write_text(files.dumped(make(), Path(name).suffix), encoding="utf-8")
