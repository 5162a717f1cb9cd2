"""A simulated world on file: one recording a node and life, as a deployed node writes them; faults and violations as marks.

`gossipfl replay` runs any of them again without the world, and cuts one down to its first violation. Not here: the format
(gossipfl.recording), the laws that may be violated.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from io import FileIO
from pathlib import Path

from gossipfl import __version__
from gossipfl.protocol import events as ev
from gossipfl.recorder import Recorder
from gossipfl.recording import SUFFIX, MarkKind, Shape, new_file
from gossipfl.simulator.network import Node, Observer, World


class Recorded(Observer):
    """Writes into a folder that it makes; `close` when the world is done.

    `violated` says what is known so far, as (node, text); asked after each command. Name whoever watches for
    violations before this one among the world's observers."""

    def __init__(self, folder: Path, violated: Callable[[], Sequence[tuple[str, str]]] = tuple) -> None:
        self.folder, self.violated = folder, violated
        self.noted: set[tuple[str, str]] = set()
        self.files: dict[str, FileIO] = {}
        self.recorders: dict[str, Recorder] = {}

    def booted(self, world: World, node: Node) -> None:
        self.over(node.name)
        file = self.files[node.name] = new_file(self.folder / f"{node.name}-{node.boots:04d}{SUFFIX}")
        bench = node.spec.bench
        shape = Shape(bench.n_parameters, bench.n_moments, bench.dtype)
        recorder = self.recorders[node.name] = Recorder(file.write, node.peer.settings, shape, __version__)
        recorder.listen(node.peer)

    def fed(self, world: World, node: Node, event: ev.Event, commands: list[ev.Command]) -> None:
        if any(isinstance(command, ev.Stopped) for command in commands):
            self.recorders[node.name].end(node.peer)
        self.look(world)

    def did(self, world: World, node: Node, command: ev.Command) -> None:
        self.look(world)

    def struck(self, world: World, kind: str, names: tuple[str, ...], detail: str) -> None:
        """Into the recordings of the nodes that it is about; of all where it names none."""
        sort: MarkKind = "violation" if kind == "exception" else "fault"
        for name in names or tuple(self.recorders):
            if name in self.recorders:
                self.recorders[name].mark(world.now(), sort, f"{kind} {detail}".rstrip())

    def look(self, world: World) -> None:
        """What has come to be violated stands in the recording of the node that shows it; of all where none does alone."""
        for name, text in self.violated():
            if (name, text) in self.noted:
                continue
            self.noted.add((name, text))
            for recorder in [self.recorders[name]] if name in self.recorders else self.recorders.values():
                recorder.mark(world.now(), "violation", text)

    def over(self, name: str) -> None:
        with suppress(KeyError):
            self.files.pop(name).close()

    def close(self) -> None:
        """All files."""
        for name in list(self.files):
            self.over(name)
