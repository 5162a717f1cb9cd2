"""Enacts faults on a world: draws when each happens, does it, and heals it again.

Each class draws from streams of its own at each node, a fixed number of draws for each fault whatever the state of the world,
so that switching one class off shifts no other. Not here: what the options are (faults.py), lies (hostile.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from random import Random
from typing import TYPE_CHECKING, Final

from gossipfl.protocol import events as ev
from gossipfl.simulator import hostile
from gossipfl.simulator.clock import HOUR, SECOND, exponential
from gossipfl.simulator.faults import HOSTILE_KINDS, SHAPES, Faults, Strike

if TYPE_CHECKING:
    from gossipfl.protocol.messages import Propose
    from gossipfl.simulator.lines import End, Way
    from gossipfl.simulator.network import Node, World

STORM: Final = 5
"""Crashes of a restart storm."""

STORM_S: Final = 12
"""Seconds between two of them."""

COMMIT_STEPS: Final = 24
"""About as many steps has a commit: a crash amid one comes at one of them."""

STOPPED_S: Final = 10
"""Whoever was being stopped when all healed is down after this, and is started."""

AGAIN_S: Final = 5.0
"""Mean seconds of a lie's wait for a session to tell it over."""


class Trouble:
    """All that goes wrong in one world."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.ends: dict[int, Callable[[], None]] = {}
        """what heals each fault that lasts"""
        self.number = 0
        self.partitions = 0
        self.saving: dict[str, tuple[int | None, float | None]] = {}
        """node that crashes at a coming step of its disk -> for how long, and what survives, where it was said"""
        self.hostile: tuple[str, ...] = ()
        self.healed = False

    # ---- when ------------------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Draw what holds from the start, and when each fault happens for the first time."""
        faults = self.world.faults
        if faults.until_hours * HOUR < 2**62:
            self.world.at(int(faults.until_hours * HOUR), self.heal)
        for node in self.world.nodes.values():
            self.poisson("cut", faults.cut_per_hour, self.cut_one, node)
            self.poisson("stall", faults.stall_per_hour, self.stall_one, node)
            self.poisson("half-open", faults.half_open_per_hour, self.half_open_one, node)
            self.poisson("drip", faults.drip_per_hour, self.drip_one, node)
            self.poisson("one-way", faults.one_way_per_hour, self.one_way_one, node)
            self.poisson("crash", faults.crash_per_hour, self.crash_one, node)
            self.poisson("restart-storm", faults.restart_storm_per_hour, self.storm_one, node)
            self.poisson("pause", faults.pause_per_hour, self.pause_one, node)
            self.poisson("clock-jump", faults.clock_jump_per_hour, self.jump_one, node)
            self.poisson("disk-full", faults.disk_full_per_hour, self.disk_full_one, node)
            self.poisson("io-error", faults.io_error_per_hour, self.io_error_one, node)
            self.poisson("bit-rot", faults.bit_rot_per_hour, self.bit_rot_one, node)
            self.poisson("duplicate", faults.duplicate_per_hour, self.duplicate_one, node)
            self.set_clock(node)
            self.churn(node)
        self.poisson("partition", faults.partition_per_hour, self.partition_one)
        self.poisson("blackout", faults.blackout_per_hour, self.blackout_one)
        for node in self.chosen("straggler", faults.straggler_share):
            node.slow, node.tail = faults.straggler_factor, faults.straggler_tail
            self.struck("straggler", node.name)
        for node in self.chosen("late", faults.late_share):
            node.gone = True
            wait = int(self.stream("late", node).random() * faults.late_hours * HOUR)
            self.struck("late", node.name)
            self.lasts("late", wait, partial(self.join, node), node.name)
        for node in self.chosen("leave", faults.leave_share):
            self.world.at(int(self.stream("leave", node).random() * faults.leave_hours * HOUR), partial(self.leave, node))
        liars = self.chosen("hostile", faults.hostile_share)
        self.hostile = tuple(node.name for node in liars)
        for node in liars:
            self.poisson("hostile", faults.hostile_per_hour, self.lie_one, node)

    def stream(self, kind: str, node: Node | None = None) -> Random:
        return self.world.stream("fault/" + kind, node.name if node else "")

    def poisson(self, kind: str, per_hour: float, happen: Callable[..., None], *node: Node) -> None:
        """A Poisson stream of one fault, at one node or of the whole world, until trouble ends."""
        if per_hour <= 0:
            return
        rng = self.stream(kind, *node)

        def strike() -> None:
            if not self.healed:
                happen(*node, rng)
                again()

        def again() -> None:
            self.world.at(self.world.mono + int(exponential(rng) * HOUR / per_hour), strike)

        again()

    def chosen(self, kind: str, share: float) -> list[Node]:
        """This share of the nodes, rounded up, by name."""
        nodes = self.world.nodes
        ranked = sorted(nodes, key=lambda name: self.world.stream("choice/" + kind, name).getrandbits(64))
        return [nodes[name] for name in sorted(ranked[: -int(-share * len(nodes) // 1)])]

    def lasts(self, kind: str, delay_ns: int, undo: Callable[[], None], *names: str) -> None:
        """Undo it after this long, or when all heals."""
        self.number += 1
        number = self.number

        def end() -> None:
            if self.ends.pop(number, None):
                undo()
                self.world.struck(kind + "-end", *names)

        self.ends[number] = end
        self.world.at(self.world.mono + delay_ns, end)

    def struck(self, kind: str, *names: str, detail: str = "") -> None:
        self.world.struck(kind, *names, detail=detail)

    def heal(self) -> None:
        """All faults off, and what is wrong made right."""
        world = self.world
        self.healed, world.faults = True, Faults()
        for end in list(self.ends.values()):
            end()
        for node in world.nodes.values():
            node.slow, node.tail, node.lies, node.denies, node.powered = 1.0, 0.0, {}, set(), True
            node.store.files.disk.crash_at = None  # type: ignore[attr-defined]
            node.store.files.disk.errors = 0  # type: ignore[attr-defined]
            node.set_clock(0)
            node.wall_off = world.mono - node.now().mono_ns
            world.at(world.mono, node.begin_afresh if node.store.rows.damaged else node.boot)  # type: ignore[attr-defined]
            world.at(world.mono + STOPPED_S * SECOND, node.boot)  # an order to stop may still be under way

    # ---- strikes ---------------------------------------------------------------------------------------------------

    def strike(self, strike: Strike) -> None:
        """One stated fault, now."""
        nodes = [self.world.nodes[name] for name in strike.nodes or tuple(self.world.nodes)]
        span, kind, value = int(strike.seconds * SECOND), strike.kind, strike.value
        number = float(value) if isinstance(value, int | float) else None
        if kind == "partition":
            self.partition(self.groups_of(strike), span, str(value or "halves"))
            return
        for node in nodes:
            rng = self.stream("strike/" + kind, node)
            if kind in ("cut", "stall", "half-open", "drip"):
                for end in list(node.ends.values()):
                    if not end.closed:
                        self.on_connection(kind, end, span, number)
            elif kind == "refuse":
                self.refuse(node, span)
            elif kind == "one-way":
                self.close_ways([(node.name, other) for other in self.world.nodes if other != node.name], "one-way", span)
            elif kind in ("crash", "crash-saving"):
                self.crash(node, span, number, amid=rng.getrandbits(16) if kind == "crash-saving" else None)
            elif kind == "restart-storm":
                self.storm(node, int(number or STORM))
            elif kind == "pause":
                self.pause(node, span)
            elif kind == "straggler":
                self.slow(node, span, number or 20.0)
            elif kind == "leave":
                self.leave(node)
            elif kind == "clock-jump":
                self.jump(node, number or 0.0)
            elif kind == "disk-full":
                self.disk_full(node, span)
            elif kind == "io-error":
                self.io_error(node)
            elif kind == "bit-rot":
                self.bit_rot(node, rng, value == "row")
            elif kind == "duplicate":
                for end in list(node.ends.values()):
                    self.duplicate(end)
            else:
                self.lies(node, rng, span, (str(value),) if value else HOSTILE_KINDS)

    # ---- connections -----------------------------------------------------------------------------------------------

    def pick(self, node: Node, drawn: int) -> End | None:
        """One of the node's connections; none where it has none."""
        ends = sorted(node.ends)
        return node.ends[ends[drawn % len(ends)]] if ends else None

    def on_connection(self, kind: str, end: End | None, span: int = 0, value: float | None = None) -> None:
        if end is None:
            return
        both = (end, end.other)
        self.struck(kind, end.node.name, end.other.node.name)
        if kind == "cut":
            self.world.sever(end, "cut")
        elif kind == "half-open":
            for one in both:
                one.dead = True
        elif kind == "stall":
            for one in both:
                one.stalls += 1
            self.lasts(kind, span, partial(self.unstall, both), end.node.name, end.other.node.name)
        else:
            for one in both:
                one.drip = value or 200.0
            self.lasts(kind, span, partial(self.undrip, both), end.node.name, end.other.node.name)

    @staticmethod
    def unstall(both: Iterable[End]) -> None:
        for one in both:
            one.stalls -= 1
            one.flow()

    @staticmethod
    def undrip(both: Iterable[End]) -> None:
        for one in both:
            one.drip = 0.0

    def cut_one(self, node: Node, rng: Random) -> None:
        self.on_connection("cut", self.pick(node, rng.getrandbits(32)))

    def stall_one(self, node: Node, rng: Random) -> None:
        span = int(exponential(rng) * self.world.faults.stall_s * SECOND)
        self.on_connection("stall", self.pick(node, rng.getrandbits(32)), span)

    def half_open_one(self, node: Node, rng: Random) -> None:
        self.on_connection("half-open", self.pick(node, rng.getrandbits(32)))

    def drip_one(self, node: Node, rng: Random) -> None:
        span, faults = int(exponential(rng) * self.world.faults.drip_s * SECOND), self.world.faults
        self.on_connection("drip", self.pick(node, rng.getrandbits(32)), span, faults.drip_bytes_s)

    def duplicate_one(self, node: Node, rng: Random) -> None:
        drawn = rng.getrandbits(32)
        said = sorted(number for number, end in node.ends.items() if end.said is not None)
        if said:
            self.duplicate(node.ends[said[drawn % len(said)]])

    def duplicate(self, end: End) -> None:
        if end.said is not None and not end.closed and end.session.up and end.node.alive and not end.node.paused:
            self.struck("duplicate", end.node.name, end.other.node.name, detail=type(end.said).__name__)
            end.write(end.session.send(end.said))

    def refuses(self, way: Way, callee: Node) -> bool:
        """Is this dial refused, though the other process runs?"""
        share = self.world.faults.refused_dials
        refused = callee.refusing > 0
        if way.line.refuse:
            refused |= self.world.stream("refuse", f"{way.sender}>{way.receiver}").random() < way.line.refuse
        if share:
            refused |= self.world.stream("fault/refused", f"{way.sender}>{way.receiver}").random() < share
        if refused:
            self.struck("refused", way.sender, way.receiver)
        return refused

    def refuse(self, node: Node, span: int) -> None:
        def again() -> None:
            node.refusing -= 1

        node.refusing += 1
        self.lasts("refused", span, again, node.name)

    # ---- ways ------------------------------------------------------------------------------------------------------

    def close_ways(self, pairs: list[tuple[str, str]], kind: str, span: int, detail: str = "") -> None:
        """Nothing passes from the first of each pair to the second for this long."""
        ways = [self.world.way(*pair) for pair in pairs]
        for way in ways:
            way.walls += 1
        names = tuple(sorted({name for pair in pairs for name in pair}))
        self.struck(kind, *names, detail=detail)

        def open_again() -> None:
            for way in ways:
                way.walls -= 1
            for end in list(self.world.waiting):
                end.flow()
            if kind == "partition":
                self.partitions -= 1

        self.lasts(kind, span, open_again, *names)

    def one_way_one(self, node: Node, rng: Random) -> None:
        span, drawn = int(exponential(rng) * self.world.faults.one_way_s * SECOND), rng.getrandbits(32)
        others = [name for name in self.world.nodes if name != node.name]
        if others:
            self.close_ways([(node.name, others[drawn % len(others)])], "one-way", span)

    def partition(self, groups: list[list[str]], span: int, detail: str) -> None:
        """Nothing passes between nodes that stand in no group together."""
        names = list(self.world.nodes)
        together = {(a, b) for group in groups for a in group for b in group}
        self.partitions += 1
        self.close_ways([(a, b) for a in names for b in names if (a, b) not in together], "partition", span, detail)

    def shape(self, shape: str, order: list[str], first: int) -> list[list[str]]:
        """Groups within which nodes reach each other; `order` is by chance, `first` chooses who is alone."""
        names = list(self.world.nodes)
        if shape == "halves":
            return [order[: len(order) // 2], order[len(order) // 2 :]]
        if shape == "isolated":
            alone = names[first % len(names)]
            return [[alone], [name for name in names if name != alone]]
        return [[a, b] for a, b in zip(names, names[1:] + names[:1], strict=True)]

    def groups_of(self, strike: Strike) -> list[list[str]]:
        names = list(self.world.nodes)
        if strike.nodes:
            return [list(strike.nodes), [name for name in names if name not in strike.nodes]]
        return self.shape(str(strike.value or "halves"), names, 0)

    def partition_one(self, rng: Random) -> None:
        faults = self.world.faults
        span, first = int(exponential(rng) * faults.partition_s * SECOND), rng.getrandbits(32)
        shape = SHAPES[rng.getrandbits(32) % len(SHAPES)] if faults.partition_shape == "any" else faults.partition_shape
        keys = {name: rng.getrandbits(32) for name in self.world.nodes}
        if not self.partitions and len(keys) > 1:
            self.partition(self.shape(shape, sorted(keys, key=lambda name: (keys[name], name)), first), span, shape)

    # ---- processes -------------------------------------------------------------------------------------------------

    def crash(
        self, node: Node, span: int | None = None, survival: float | None = None, *,
        amid: int | None = None, power: bool = False, kind: str = "crash",
    ) -> None:  # fmt: skip
        """Down for this long (None: drawn). `amid`: not now but at one of the next steps that the disk does."""
        if not node.alive or node.paused:
            return
        rng, faults = self.stream("down", node), self.world.faults
        if amid is not None:
            disk = node.store.files.disk
            disk.crash_at = disk.steps + amid % COMMIT_STEPS  # type: ignore[attr-defined]
            self.saving[node.name] = span, survival
            return
        drawn, down = rng.random(), int(exponential(rng) * faults.down_s * SECOND)
        if survival is None:
            survival = drawn if faults.survival is None else faults.survival
        self.struck(kind, node.name, detail=f"{survival:.3f}")
        node.crash(survival, power)
        self.off(kind, node, down if span is None else span)

    def crash_saving(self, node: Node) -> None:
        """The step of its disk has come at which it was to crash."""
        self.crash(node, *self.saving.get(node.name, ()), power=True)

    def off(self, kind: str, node: Node, span: int) -> None:
        self.lasts(kind, span, lambda: self.world.at(self.world.mono, node.boot), node.name)

    def crash_one(self, node: Node, rng: Random) -> None:
        amid, chance = rng.getrandbits(16), rng.getrandbits(2)
        self.crash(node, amid=amid if chance > 1 else None, power=chance == 0)

    def storm(self, node: Node, times: int) -> None:
        """Crashes soon after each start, the last of which is the end of it."""
        self.struck("restart-storm", node.name)
        for number in range(times):
            when = self.world.mono + number * STORM_S * SECOND
            self.world.at(when, lambda: None if self.healed else self.crash(node, STORM_S * SECOND // 4))

    def storm_one(self, node: Node, rng: Random) -> None:
        if node.alive:
            self.storm(node, STORM)

    def blackout_one(self, rng: Random) -> None:
        self.struck("blackout", *self.world.nodes)
        for node in self.world.nodes.values():
            self.crash(node, power=True)

    def pause(self, node: Node, span: int) -> None:
        if not node.alive:
            return
        boots = node.boots

        def resume() -> None:
            if node.boots == boots and node.alive:
                node.paused -= 1
                if not node.paused:
                    node.resume()

        node.paused += 1
        self.struck("pause", node.name)
        self.lasts("pause", span, resume, node.name)

    def pause_one(self, node: Node, rng: Random) -> None:
        self.pause(node, int(exponential(rng) * self.world.faults.pause_s * SECOND))

    def slow(self, node: Node, span: int, factor: float) -> None:
        def fast() -> None:
            node.slow /= factor

        node.slow *= factor
        self.struck("straggler", node.name, detail=f"{factor:g}")
        self.lasts("straggler", span, fast, node.name)

    def join(self, node: Node) -> None:
        node.gone = False
        self.world.at(self.world.mono, node.boot)

    def leave(self, node: Node) -> None:
        if self.healed or not node.alive:
            return
        self.struck("leave", node.name)
        node.feed(ev.Operator("leave"))

    def churn(self, node: Node) -> None:
        """On and off, by spans drawn or by those of a trace."""
        world, faults = self.world, self.world.faults
        mine = sorted((begin, end) for name, begin, end in faults.sessions if name == node.name)
        if mine:
            self.follow(node, mine)
        if faults.on_hours <= 0 or mine:
            return
        rng = self.stream("churn", node)

        def go_off() -> None:
            if not self.healed:
                span, pulled = int(exponential(rng) * faults.off_hours * HOUR), bool(rng.getrandbits(1))
                self.switch_off(node, span, pulled)
                stay(span)

        def stay(span: int) -> None:
            world.at(world.mono + span + int(exponential(rng) * faults.on_hours * HOUR), go_off)

        stay(0)

    def follow(self, node: Node, ups: list[tuple[float, float]]) -> None:
        """Up within these hours and at no other time, also once all else has healed: a trace is no chance."""
        world, last = self.world, 0.0
        for begin, end in ups:
            if begin > last:
                self.rest(node, last)
                world.at(int(begin * HOUR), partial(self.rise, node))
                world.at(int(begin * HOUR) + STOPPED_S * SECOND, node.boot)  # it may have been stopping still
            last = max(last, end)
        self.rest(node, last)

    def rest(self, node: Node, hour: float) -> None:
        """Its trace has it off from this hour on, and nothing starts it."""

        def off() -> None:
            node.rests = True
            self.struck("churn", node.name)
            if node.alive:
                node.feed(ev.Stopping())

        if hour > 0:
            self.world.at(int(hour * HOUR), off)
        else:
            off()

    def rise(self, node: Node) -> None:
        node.rests = False
        self.world.struck("churn-end", node.name)
        node.boot()

    def switch_off(self, node: Node, span: int, pulled: bool) -> None:
        """By its plug, or by an order that lets it put all on disk."""
        if self.healed or not node.alive or node.paused:
            return
        if pulled:
            self.crash(node, span, power=True, kind="churn")
        else:
            self.struck("churn", node.name)
            self.off("churn", node, span)
            node.feed(ev.Stopping())

    # ---- clocks ----------------------------------------------------------------------------------------------------

    def set_clock(self, node: Node) -> None:
        faults, rng = self.world.faults, self.stream("clock", node)
        ppm, skew = (int((2 * rng.random() - 1) * most) for most in (faults.clock_drift_ppm, faults.clock_skew_s * SECOND))
        if ppm:
            node.set_clock(ppm)
            self.struck("clock-drift", node.name, detail=f"{ppm} ppm")
        if skew:
            node.wall_off += skew
            self.struck("clock-skew", node.name, detail=f"{skew / SECOND:.3f} s")

    def jump(self, node: Node, seconds: float) -> None:
        node.wall_off += int(seconds * SECOND)
        self.struck("clock-jump", node.name, detail=f"{seconds:.3f} s")

    def jump_one(self, node: Node, rng: Random) -> None:
        self.jump(node, (2 * rng.random() - 1) * self.world.faults.clock_jump_s)

    # ---- disks -----------------------------------------------------------------------------------------------------

    def disk_full(self, node: Node, span: int) -> None:
        def full(now: bool) -> None:
            node.store.files.disk.full = now  # type: ignore[attr-defined]

        full(True)
        self.struck("disk-full", node.name)
        self.lasts("disk-full", span, partial(full, False), node.name)

    def disk_full_one(self, node: Node, rng: Random) -> None:
        self.disk_full(node, int(exponential(rng) * self.world.faults.disk_full_s * SECOND))

    def io_error(self, node: Node) -> None:
        node.store.files.disk.errors += 1  # type: ignore[attr-defined]
        self.struck("io-error", node.name)

    def io_error_one(self, node: Node, rng: Random) -> None:
        self.io_error(node)

    def bit_rot_one(self, node: Node, rng: Random) -> None:
        self.bit_rot(node, Random(rng.getrandbits(64)), row=rng.getrandbits(3) == 0)

    def bit_rot(self, node: Node, rng: Random, row: bool) -> None:
        """One bit at rest; a process that has the content in memory finds it at its next start."""
        disk = node.store.files.disk
        sizes = {name: size for name, size in sorted(disk.list().items()) if size}
        rotten = node.store.rows.damaged  # type: ignore[attr-defined]
        if row and not rotten and node.store.rows.load():
            node.store.rows.damaged = True  # type: ignore[attr-defined]
            self.struck("bit-rot", node.name, detail="row")
        elif sizes and not row:
            name = list(sizes)[rng.getrandbits(32) % len(sizes)]
            disk.flip(name, rng.getrandbits(48) % (8 * sizes[name]))  # type: ignore[attr-defined]
            self.struck("bit-rot", node.name, detail=name)

    # ---- lies ------------------------------------------------------------------------------------------------------

    def lie_one(self, node: Node, rng: Random) -> None:
        kinds = self.world.faults.hostile_kinds
        self.lie(node, Random(rng.getrandbits(64)), kinds[rng.getrandbits(32) % len(kinds)])

    def lie(self, node: Node, rng: Random, kind: str) -> None:
        told = hostile.lie(node, rng, kind) if node.alive and not node.paused else None
        if told is not None:
            self.struck("hostile", node.name, told, detail=kind)

    def lies(self, node: Node, rng: Random, span: int, kinds: tuple[str, ...]) -> None:
        """A lie every few seconds for so long."""
        end = self.world.mono + span
        if node.name not in self.hostile:
            self.hostile = tuple(sorted({*self.hostile, node.name}))

        def tell() -> None:
            if not self.healed and self.world.mono <= end:
                self.lie(node, Random(rng.getrandbits(64)), kinds[rng.getrandbits(32) % len(kinds)])
                self.world.at(self.world.mono + int(exponential(rng) * AGAIN_S * SECOND), tell)

        tell()

    def serve_lie(self, end: End, root: bytes) -> None:
        hostile.serve(end, root)

    def deny(self, end: End, proposal: Propose) -> None:
        hostile.deny(end, proposal)
