"""Does the deployed network reach what its simulation says? The heart study by four real processes, and its simulated twins.

    python simulations/heart_twin.py --data-dir DIR [--twins 10] [--seed 0]

The twins are `simulations/heart-twin.toml` in the event simulator, one a seed: the deployed code on virtual clocks. They give the
95 % interval in which one more such run lies (mean +- t s sqrt(1 + 1/n)). The real run is `gossipfl demo --task heart --nodes 4`:
four operating-system processes with keys, sockets and disks. Exits with 1 where it ends outside of the interval.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from scipy import stats

from gossipfl.simulator import play
from gossipfl.simulator import scenario as scenarios

SCENARIO = Path(__file__).with_name("heart-twin.toml")
MEASURES = ("worst", "mean")

Quality = dict[str, float]
"""measure -> AUC over the four nodes"""


def of(values: Sequence[float]) -> Quality:
    return {"worst": min(values), "mean": math.fsum(values) / len(values)}


def simulated(seeds: Iterable[int], data_dir: Path | None) -> list[Quality]:
    """Of each twin."""
    found = []
    for seed in seeds:
        read = scenarios.load(SCENARIO, seed=seed)
        made = play.prepare(read, "events", data_dir)
        run = play.play(play.Stage(read.scenario, made, lambda progress: None, []), "events")
        found.append(of(list(run.of(run.metric).values())))
    return found


def deployed(seed: int, data_dir: Path | None) -> Quality:
    """Of four processes."""
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable,
            "-m",
            "gossipfl",
            "demo",
            "--task",
            "heart",
            "--nodes",
            "4",
            "--seed",
            str(seed),
            "--json",
        ]
        command += ["--out", f"{folder}/run", *(["--data-dir", str(data_dir)] if data_dir else [])]
        ended = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    return of([site["gossip"] for site in json.loads(ended.stdout)["sites"]])


def interval(values: Sequence[float], level: float = 0.95) -> tuple[float, float]:
    """Where one more value lies, if it comes from where these come from."""
    n = len(values)
    half = float(stats.t.ppf((1 + level) / 2, n - 1)) * float(np.std(values, ddof=1)) * math.sqrt(1 + 1 / n)
    middle = float(np.mean(values))
    return middle - half, middle + half


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, help="folder that holds uci-heart/; or GOSSIPFL_DATA")
    parser.add_argument("--twins", type=int, default=10, help="simulated runs; 3 or more")
    parser.add_argument("--seed", type=int, default=0, help="of the real run")
    asked = parser.parse_args()
    twins = simulated(range(asked.twins), asked.data_dir)
    real = deployed(asked.seed, asked.data_dir)
    agrees = True
    for measure in MEASURES:
        low, high = interval([one[measure] for one in twins])
        inside = low <= real[measure] <= high
        agrees &= inside
        says = "within" if inside else "OUTSIDE"
        print(
            f"{measure} node: four processes AUC {real[measure]:.4f}, {says} {low:.4f} to {high:.4f} of {len(twins)} twins"
        )
    return 0 if agrees else 1


if __name__ == "__main__":
    sys.exit(main())
