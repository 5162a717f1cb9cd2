"""Checkers: laws that must hold in every history of a world, watched from outside. They change nothing.

`Watch` is an observer of a World: it decodes what happens (witness.py) and hands it to every checker. A checker that fails
itself says "unknown", never "held". The laws themselves stand in laws.py (one node, one link), conservation.py (what moves)
and recovery.py (healing).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from gossipfl.simulator.witness import SECOND, Life, LinkRow, Truth, digest, paper

Verdict = Literal["held", "violated", "unknown"]

@dataclass(frozen=True)
class Violation:
    at_s: float
    node: str
    event: str
    detail: str


class Checker:
    """One law. A hook that is not overridden is not called."""

    name = ""
    law = ""
    heeds: ClassVar[Mapping[str, Collection[str]]] = {}
    """hook -> the kinds of events, commands or messages for which alone it is called"""

    def __init__(self, truth: Truth) -> None:
        self.truth = truth
        self.first: Violation | None = None
        self.error = ""
        self.violations = 0
        self.now_s = 0.0
        self.event = ""

    @property
    def verdict(self) -> Verdict:
        return "violated" if self.first else "unknown" if self.error else "held"

    def broken(self, node: str, detail: str) -> None:
        self.violations += 1
        if self.first is None:
            self.first = Violation(self.now_s, node, self.event, detail)

    def lies(self, *names: str) -> bool:
        return any(name in self.truth.caught for name in names)

    def booted(self, life: Life) -> None:
        """It has started on what its disk holds."""

    def fed(self, life: Life, kind: str, event: Any) -> None:
        """The core was told."""

    def opened(self, life: Life, peer: str, event: Any) -> None: ...

    def heard(self, life: Life, peer: str, kind: str, message: Any) -> None: ...

    def sent(self, life: Life, peer: str, kind: str, message: Any) -> None: ...

    def committed(self, life: Life, before: dict[str, LinkRow], command: Any) -> None:
        """On disk; `life` has the rows of now, `before` the links that it changed."""

    def commanded(self, life: Life, kind: str, command: Any) -> None:
        """Asked for, not yet carried out."""

    def crashed(self, life: Life, before: Any, after: Any) -> None: ...

    def struck(self, kind: str, names: Sequence[str], detail: str) -> None: ...

    def wire(self, sender: str, receiver: str, size: int) -> None: ...

    def healed(self, lives: dict[str, Life]) -> None:
        """The last fault is over, and everybody is up."""

    def due(self, lives: dict[str, Life]) -> None:
        """Every node has had its time since."""

    def frozen(self, lives: dict[str, Life]) -> None:
        """Every node has had its time to freeze its statistics."""

    def mixing(self, lives: dict[str, Life]) -> None:
        """Nobody trains any more."""

    def over(self, lives: dict[str, Life], quiet: bool) -> None:
        """The run has ended; `quiet`: after healing and rest, nothing may be under way."""


@dataclass(frozen=True)
class Found:
    """A node that is down, and what its disk holds."""

    name: str
    store: Any
    peer: Any


class Watch:
    """The observer that runs checkers."""

    def __init__(self, truth: Truth, checkers: Sequence[Callable[[Truth], Checker]]) -> None:
        self.truth = truth
        self.checkers = [make(truth) for make in checkers]
        self.lives: dict[str, Life] = {}
        self.world: Any = None
        self._asked: dict[tuple[str, str], list[tuple[Checker, Callable[..., None]]]] = {}

    def verdicts(self) -> dict[str, Verdict]:
        return {one.name: one.verdict for one in self.checkers}

    def asked(self, hook: str, event: str) -> list[tuple[Checker, Callable[..., None]]]:
        """Those who heed this hook for this kind of event."""
        found = self._asked.get((hook, event))
        if found is None:
            heeding = [one for one in self.checkers if event in one.heeds.get(hook, (event,))]
            here = [one for one in heeding if getattr(type(one), hook) is not getattr(Checker, hook)]
            found = self._asked[hook, event] = [(one, getattr(one, hook)) for one in here]
        return found

    def call(self, hook: str, event: str, *arguments: Any) -> None:
        asked = self.asked(hook, event)
        if not asked:
            return
        now_s = self.world.mono / SECOND if self.world else 0.0
        for one, ask in asked:
            one.now_s, one.event = now_s, event
            try:
                ask(*arguments)
            except Exception as error:
                one.error = one.error or f"{type(error).__name__} at {one.now_s:.3f} s, {hook} {event}: {error}"

    def life(self, node: Any) -> Life:
        found = self.lives.get(node.name)
        if found is None:
            found = self.lives[node.name] = Life(node.name, node)
        return found

    # ---- what a world tells its observers

    def booted(self, world: Any, node: Any) -> None:
        self.world = world
        life = self.life(node)
        life.node = node
        life.forget()
        life.reopened()
        self.call("booted", "boot", life)

    def fed(self, world: Any, node: Any, event: Any, commands: Sequence[Any]) -> None:
        self.world = world
        life, kind = self.life(node), type(event).__name__
        if kind == "Received":
            peer, message = life.conns.get(event.conn), event.message
            what = type(message).__name__
            if peer is not None and what != "Ping":
                if what == "Propose":
                    life.proposals[digest(message.manifest)] = (message.manifest, message.signature)
                elif what == "Reply":
                    life.replies[paper(message.manifest).answers] = message
                self.call("heard", what, life, peer, what, message)
        elif kind == "Opened":
            life.conns[event.conn] = event.peer
            self.call("opened", kind, life, event.peer, event)
        elif kind == "Closed":
            life.conns.pop(event.conn, None)
        elif kind != "Alarm":
            self.call("fed", kind, life, kind, event)
        life.asked = []
        for command in commands:
            what = type(command).__name__
            if what == "Commit":
                life.asked.append(command)
            if hasattr(command, "job"):
                life.jobs[command.job] = command
            self.call("commanded", what, life, what, command)

    def did(self, world: Any, node: Any, command: Any) -> None:
        self.world = world
        life, kind = self.life(node), type(command).__name__
        if kind == "Send":
            peer, what = life.conns.get(command.conn), type(command.message).__name__
            if peer is not None and what != "Ping":
                self.call("sent", what, life, peer, what, command.message)
        elif kind == "Commit":
            self.commit(life, command)
            if len(life.proposals) + len(life.replies) > 200:
                doubts = {digest(link.pending.manifest) for link in life.links.values() if link.pending}
                life.replies = {name: held for name, held in life.replies.items() if name in doubts}
                life.proposals = dict(list(life.proposals.items())[-100:])

    def commit(self, life: Life, command: Any) -> None:
        """It is on disk."""
        life.asked = [other for other in life.asked if other is not command]
        before, _ = life.take(command.rows)
        self.call("committed", "Commit", life, before, command)

    def stored(self, world: Any, node: Any, job: Any, event: Any) -> None:
        """The hands are ready; the core will be told."""

    def crashed(self, world: Any, node: Any, before: Any, after: Any) -> None:
        self.world = world
        life = self.life(node)
        if life.asked and not after.rows.damaged and after.load() == life.after(life.asked[0]) != life.rows:
            life.node = Found(node.name, after, node.peer)  # the one under way was done, and nobody heard of it
            self.commit(life, life.asked[0])
            life.node = node
        self.call("crashed", "crash", life, before, after)
        life.forget()

    def struck(self, world: Any, kind: str, names: Sequence[str], detail: Any = "") -> None:
        self.world = world
        if kind == "bit-rot" and str(detail) != "row" and names[0] in self.lives:
            self.lives[names[0]].flipped(str(detail))
        if kind == "hostile":
            self.truth.caught.add(names[0])
        elif kind == "state-lost":
            self.lives[names[0]].reread({})
            self.lives[names[0]].rotten.clear()
        self.call("struck", kind, kind, tuple(names), str(detail))

    def wire(self, world: Any, sender: str, receiver: str, size: int) -> None:
        self.world = world
        self.call("wire", "wire", sender, receiver, size)

    def say(self, hook: Literal["healed", "due", "frozen", "mixing"]) -> None:
        """Whoever runs the world says how far it has come."""
        self.call(hook, hook, self.lives)

    def found(self) -> list[tuple[str, str]]:
        """(node, what) of the first violation of each law so far."""
        return [(one.first.node, f"{one.name}: {one.first.detail}") for one in self.checkers if one.first]

    def over(self, quiet: bool) -> None:
        """Ask every checker for the last time."""
        self.call("over", "end", self.lives, quiet)
