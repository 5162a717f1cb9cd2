"""When a node's model is evaluated on the site's own hold-out, and what came out: kept, logged, and a row of a file.

Not here: the metrics (learning.evaluation), the threads (driver).
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from gossipfl.node.driver import Driver

SITTING_S: Final = 2.0
"""Seconds between two evaluations of a model that changes by mixing only."""

EVALUATIONS: Final = 30
"""Evaluations over the local rounds of a study: enough for a curve."""

KEPT: Final = 1000
"""The newest that `/history` shows; the file has all."""


class Evaluations:
    """Those of one node."""

    def __init__(self, driver: Driver) -> None:
        self.driver = driver
        self.history: list[dict[str, Any]] = []
        self._judged: tuple[str, int, bytes] = ("", -1, b"")
        self._judged_ns = 0
        self._judging = False

    def look(self) -> None:
        """Evaluate the model on the hold-out in the learning thread, when enough has changed."""
        driver = self.driver
        peer, judge = driver.peer, driver.parts.judge
        if self._judging or judge is None or not peer.prepared or not driver.running.is_set():
            return
        stage, local_round, model = self._judged
        every = max(1, peer.settings.local_rounds // EVALUATIONS)
        now = time.monotonic_ns()
        rested = now - self._judged_ns > max(SITTING_S * 1e9, (now - driver.began_ns) / 1000)
        due = peer.stage != stage or peer.local_round >= local_round + every or (rested and peer.stage != "training")
        if due and peer.current["model"] != model:
            self._judging = True
            self._judged = (peer.stage, peer.local_round, peer.current["model"])
            vector = driver.store.files.array(peer.current["model"], driver.parts.bench.dtype)
            driver.group.create_task(self._evaluate(judge, peer.frozen, vector))

    async def _evaluate(self, judge: Callable[[bytes, Any], dict[str, float]], frozen: bytes, vector: Any) -> None:
        driver = self.driver
        stage, local_round, _ = self._judged
        metrics = await driver.learning(judge, frozen, vector)
        exchanges = sum(link.exchanges for link in driver.peer.links.values())
        row = {"wall": time.time(), "stage": stage, "local_round": local_round, "exchanges": exchanges, "metrics": metrics}
        self.history.append(row)
        shown = {name: round(value, 6) for name, value in metrics.items()}
        driver.log.say("evaluation", stage=stage, local_round=local_round, **shown)
        del self.history[:-KEPT]
        await driver.writing(_append, driver.parts.config.node.state / "metrics.jsonl", row)
        self._judged_ns = time.monotonic_ns()
        self._judging = False


def _append(path: Path, row: dict[str, Any]) -> None:
    from gossipfl.store.errors import border

    with border(f"write {path}"), path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")
