"""The rounds of one run, one after the other: evaluated, recorded, kept on disk, ended by the last one or by Ctrl-C.

Not here: what a round is (engine.py), what is asked for (simulate.py).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from gossipfl.errors import Misuse
from gossipfl.learning import compression as codecs
from gossipfl.learning.correction import schedule
from gossipfl.simulator.patience import patience
from gossipfl.simulator.vectorized import checkpoint as disk
from gossipfl.simulator.vectorized.draws import Integers
from gossipfl.simulator.vectorized.engine import Engine
from gossipfl.simulator.vectorized.judging import ALL, Judge, sample
from gossipfl.simulator.vectorized.run import Record, Run
from gossipfl.simulator.vectorized.watching import Watching

Progress = Callable[[Record], None]


@dataclass
class Course:
    """How a run is gone through."""

    engine: Engine
    run: Run
    judge: Judge
    every: int
    """rounds between two evaluations; 0: none"""
    identity: str
    """the settings, as the checkpoint has them"""
    path: Path | None = None
    kept_every: int = 50
    watching: Watching | None = None
    progress: Progress | None = None
    _wall: float = 0.0
    _cpu: float = 0.0
    def go(self) -> None:
        """The rounds that are left. Ctrl-C ends them after the round that is going on; pressed again, at once."""
        engine, run = self.engine, self.run
        self._wall, self._cpu = time.monotonic() - run.seconds, time.process_time() - run.cpu_seconds
        whole = True
        with engine.running(), patience() as asked:
            try:
                while engine.done < run.rounds and not self._is_over(asked.is_set()):
                    whole = False
                    self._round()
                    whole = True
                    if self.path is not None and (engine.done % self.kept_every == 0 or engine.done == run.rounds):
                        self._keep()
                    if self.progress is not None:
                        self.progress(run.records[-1])
            except KeyboardInterrupt:
                pass
        if engine.done < run.rounds or not whole:
            run.notes.append(f"interrupted after {run.done} rounds")
            if whole:
                self._end_early()
        elif self.every and not run.scores:  # a checkpoint of the last round: nothing was left to do
            self._judged(run.rounds - 1, ALL)
        self._clock()
        run.moved = 0 if engine.shard is None else engine.shard.moved
        if self.watching is not None:
            run.verdicts, run.violations = self.watching.verdicts(), dict(self.watching.first)

    def _is_over(self, is_asked: bool) -> bool:
        """Did anybody press Ctrl-C: several processes must stop after the same round."""
        shard = self.engine.shard
        return is_asked if shard is None else bool(shard.group.total(np.array([float(is_asked)]))[0])

    def _round(self) -> None:
        engine, run, at, exchanges = self.engine, self.run, self.engine.done, self.engine.exchanges
        is_last = at + 1 == run.rounds
        is_judged = self.every > 0 and ((at + 1) % self.every == 0 or is_last)
        engine.watching = self.watching if is_judged else None
        present = self._gone_on(at)
        found = self._judged(at, ALL if is_last else run.evaluated) if is_judged else {}
        plan, train = engine.settings.plan, max(1, run.rounds - engine.settings.release)
        eta = schedule(engine.settings.decay, plan.eta, at, train) if at < train else 0.0
        layout, message = engine.state.layout, message_bytes(engine, at)
        sent, steps = message * int(engine.sent.sum()), int(engine.stepped.sum())
        down = layout.size * np.dtype(layout.dtype).itemsize * int(engine.sent.sum())  # the model comes as it is
        served = sent + down if engine.server is not None else 0
        run.records.append(Record(at, eta, present, engine.exchanges - exchanges, sent, served, steps, **found))
        if run.sent is not None and run.stepped is not None:
            run.sent[at], run.stepped[at] = message * engine.sent, engine.stepped

    def _gone_on(self, at: int) -> int:
        """One round more. **Raises**: Misuse for models that have diverged, where the method cannot mix such."""
        try:
            return self.engine.round()
        except Misuse as error:
            shared = self.engine.state.shared.values()
            if all(bool(block.isfinite().all()) for block in shared):
                raise
            remedy = "take a smaller eta, fewer local steps, or a weaker correction (theta)"
            raise Misuse(f"round {at + 1}: models are no longer finite, training has diverged; {remedy}") from error

    def _judged(self, at: int, count: int) -> dict[str, float]:
        """The figures of a record, over `count` of the members."""
        members = self.engine.weather.members(at)
        nodes = np.flatnonzero(members)
        if not len(nodes):
            return {}
        judged = nodes[sample(len(nodes), count)]
        scores = self._scores(judged)
        self.run.scores = dict(zip(judged.tolist(), scores, strict=True))
        if self.engine.listener is not None:
            self.engine.listener.judged(at, self.run.scores)
        return self.judge.summary(scores) | {"consensus": self.judge.consensus(self.engine.state, members, self.engine.shard)}

    def _scores(self, judged: Integers) -> list[float]:
        """Each process judges its own."""
        shard = self.engine.shard
        if shard is None:
            return self.judge.scores(self.engine.state, judged)
        mine, found = shard.holds(judged), np.zeros(len(judged))
        found[mine] = self.judge.scores(self.engine.state, judged[mine])
        return [float(one) for one in shard.group.total(found)]

    def _end_early(self) -> None:
        """Keep what there is, to go on from, and judge it: a partial result has figures, too."""
        run = self.run
        if self.path is not None:
            self._keep()
        if self.every and run.records:
            figures: dict[str, Any] = self._judged(self.engine.done - 1, ALL)
            run.records[-1] = replace(run.records[-1], **figures)

    def _keep(self) -> None:
        self._clock()
        if self.path is not None:
            if self.engine.shard is not None:
                self.engine.shard.group.wait()  # nobody is more than one checkpoint ahead: each keeps two
            disk.save(self.path, self.engine, self.run, self.identity)

    def _clock(self) -> None:
        self.run.seconds, self.run.cpu_seconds = time.monotonic() - self._wall, time.process_time() - self._cpu


def message_bytes(engine: Engine, round: int) -> int:
    """Bytes of one model on its way in this round."""
    layout, codec = engine.state.layout, engine.settings.codec_at(round)
    itemsize = np.dtype(layout.dtype).itemsize
    if codec == "none":
        return layout.size * itemsize
    return codecs.payload_size(codec, layout.n_parameters, layout.n_moments, itemsize)
