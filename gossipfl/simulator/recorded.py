"""A simulated world on file: one recording a node and life, as a deployed node writes them; faults and violations as marks.

`gossipfl replay` runs any of them again without the world, and cuts one down to its first mark. Not here: the format
(gossipfl.recording).
"""

from __future__ import annotations

from contextlib import suppress
from io import FileIO
from pathlib import Path
from typing import Final

from gossipfl import __version__
from gossipfl.protocol import events as ev
from gossipfl.recording import SUFFIX, MarkKind, Recorder, Shape, new_file
from gossipfl.simulator.network import Node, Observer, World

VIOLATIONS: Final = frozenset({"exception", "violation"})
"""What `struck` tells that is no fault of the world but of what runs in it."""


class Recorded(Observer):
    """Writes into a folder that it makes; `close` when the world is done."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files: dict[str, FileIO] = {}
        self.recorders: dict[str, Recorder] = {}

    def booted(self, world: World, node: Node) -> None:
        self.over(node.name)
        file = self.files[node.name] = new_file(self.folder / f"{node.name}-{node.boots:04d}{SUFFIX}")
        bench = node.spec.bench
        shape = Shape(bench.n_parameters, bench.n_moments, bench.dtype)
        recorder = self.recorders[node.name] = Recorder(file.write, node.peer.settings, shape, __version__)
        node.peer.settings = recorder.settings

    def fed(self, world: World, node: Node, event: ev.Event, commands: list[ev.Command]) -> None:
        self.recorders[node.name].fed(event, world.now(), commands)
        if any(isinstance(command, ev.Stopped) for command in commands):
            self.recorders[node.name].end(node.peer)

    def struck(self, world: World, kind: str, names: tuple[str, ...], detail: str) -> None:
        """Into the recordings of the nodes that it is about; of all where it names none."""
        sort: MarkKind = "violation" if kind in VIOLATIONS else "fault"
        for name in names or tuple(self.recorders):
            if name in self.recorders:
                self.recorders[name].mark(world.now(), sort, f"{kind} {detail}".rstrip())

    def over(self, name: str) -> None:
        with suppress(KeyError):
            self.files.pop(name).close()

    def close(self) -> None:
        for name in list(self.files):
            self.over(name)
