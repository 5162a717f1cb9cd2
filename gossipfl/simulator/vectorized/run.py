"""What a simulation leaves behind: a record a round, the models, and how it was done. Nothing is computed here.

`print(run)` is a table; `to_pandas` and `to_polars` give the records as a data frame, where one of them is installed.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from gossipfl.errors import Misuse
from gossipfl.simulator.vectorized.state import State
from gossipfl.simulator.vectorized.watching import Verdict

Counts = NDArray[np.int64]

MOST: Final = 2_000_000
"""Rounds times nodes up to which a run keeps counts of each: 32 MB."""


@dataclass(frozen=True)
class Record:
    """One round. The metric is NaN in rounds in which the nodes were not evaluated."""

    round: int
    eta: float
    present: int
    """nodes that took part"""
    exchanges: int
    """in this round"""
    bytes: int
    """sent by all nodes in this round; what a server sends is not among them"""
    server_bytes: int = 0
    """through a server's line in this round, up and down; 0 where there is none"""
    steps: int = 0
    """local steps of all nodes in this round"""
    consensus: float = math.nan
    """distance of the models from their weighted mean, relative to it; see simulator.results.consensus"""
    worst: float = math.nan
    p5: float = math.nan
    """of a hundred nodes, five are worse"""
    median: float = math.nan
    mean: float = math.nan


@dataclass
class Run:
    """A finished simulation, or what there is of one that was interrupted."""

    task: str
    method: str
    nodes: int
    rounds: int
    """asked for; `done` were made"""
    seed: int
    metric: str
    is_lower_better: bool
    way: str
    """how local steps were taken: per-node loop, torch.func.vmap, batched matmul"""
    notes: list[str]
    """why not another way, and what else a reader should know"""
    block: int
    threads: int
    state: State
    evaluated: int
    """nodes, in an evaluation on the way"""
    records: list[Record] = field(default_factory=list)
    sent: Counts | None = None
    """(rounds, N) bytes that each node sent in each round; None where that would be more than MOST numbers"""
    stepped: Counts | None = None
    """(rounds, N) local steps of each node in each round; 0: it was not there, or nobody trained"""
    scores: dict[int, float] = field(default_factory=dict)
    """node -> its model's metric in the last evaluation"""
    verdicts: dict[str, Verdict] = field(default_factory=dict)
    """law -> what became of it; empty where nobody watched"""
    violations: dict[str, str] = field(default_factory=dict)
    """law -> its first violation, in words"""
    moved: int = 0
    """bytes that this process sent to others that share the run"""
    seconds: float = 0.0
    cpu_seconds: float = 0.0

    @property
    def done(self) -> int:
        return len(self.records)

    def keep_counts(self) -> None:
        """Count bytes and steps for each node from now on, where that is not too much to keep."""
        if self.rounds * self.nodes <= MOST:
            self.sent, self.stepped = (np.zeros((self.rounds, self.nodes), dtype=np.int64) for _ in range(2))

    @property
    def is_whole(self) -> bool:
        return self.done == self.rounds

    @property
    def last(self) -> Record:
        """The newest record with a metric. **Raises**: Misuse where no node was evaluated."""
        for record in reversed(self.records):
            if not math.isnan(record.mean):
                return record
        raise Misuse("no round of this run was evaluated; give evaluate_every, or let it finish")

    @property
    def exchanges(self) -> int:
        return sum(record.exchanges for record in self.records)

    @property
    def bytes(self) -> int:
        return sum(record.bytes for record in self.records)

    @property
    def server_bytes(self) -> int:
        return sum(record.server_bytes for record in self.records)

    @property
    def steps(self) -> int:
        return sum(record.steps for record in self.records)

    def rows(self) -> list[dict[str, Any]]:
        """The records as plain rows."""
        return [asdict(record) for record in self.records]

    def to_pandas(self) -> Any:
        """A pandas.DataFrame, a row a round. **Raises**: Misuse where pandas is not installed."""
        try:
            from pandas import DataFrame
        except ImportError:
            raise _missing("pandas") from None
        return DataFrame(self.rows())

    def to_polars(self) -> Any:
        """A polars.DataFrame, a row a round. **Raises**: Misuse where polars is not installed."""
        try:
            from polars import DataFrame
        except ImportError:
            raise _missing("polars") from None
        return DataFrame(self.rows())

    def __str__(self) -> str:
        ended = "" if self.is_whole else f" (interrupted: {self.rounds - self.done} rounds are missing)"
        lines = [
            f"{self.task}, {self.nodes:,} nodes, {self.method}, {self.done} rounds{ended}, seed {self.seed}",
            f"trained by {self.way}, blocks of {self.block} nodes, {self.threads} thread{'s' * (self.threads > 1)}; "
            f"{self.seconds:.1f} s, {self.cpu_seconds:.1f} s of CPU"
            + (f", {self.cpu_seconds / (self.done * self.nodes) * 1e6:.1f} us a node and round" if self.done else ""),
            *(f"note: {note}" for note in self.notes),
            "",
            f"{'round':>6}  {'present':>8}  {'exchanges':>10}  {'MB sent':>9}  {'consensus':>9}  "
            f"{self.metric + ': worst':>14}  {'5 %':>7}  {'median':>7}  {'mean':>7}",
        ]
        exchanges = sent = 0
        for record in self.records:
            exchanges, sent = exchanges + record.exchanges, sent + record.bytes
            if not math.isnan(record.mean):
                lines.append(
                    f"{record.round + 1:>6}  {record.present:>8,}  {exchanges:>10,}  {sent / 1e6:>9.1f}  "
                    f"{record.consensus:>9.2g}  {record.worst:>14.4f}  {record.p5:>7.4f}  {record.median:>7.4f}  "
                    f"{record.mean:>7.4f}"
                )
        if self.evaluated < self.nodes:
            lines.append(
                f"the metric is that of {self.evaluated} of the nodes, the same in every row; in the last of up to 1,000"
            )
        return "\n".join(lines)


def _missing(library: str) -> Misuse:
    return Misuse(f"{library} is not installed: pip install {library}, or take run.rows(), plain dicts")
