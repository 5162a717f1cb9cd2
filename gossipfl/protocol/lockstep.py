"""Lockstep: in which round who exchanges with whom, from the federation's id and the round alone; who is early waits.

A round is one local round of everybody and then at most one exchange a node: a matching of the topology. It depends on no
clock and no draw, so that two runs of one federation do the same. Not here: when a node trains and asks (peer.py).
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Set as AbstractSet
from functools import cached_property
from typing import Final

from gossipfl.errors import Misuse, Refused
from gossipfl.protocol.core import Members
from gossipfl.protocol.exchange import Exchanges

PAIRS_MAX: Final = 10_000_000
"""Pairs of neighbours that a schedule ranks over all its rounds: a million rounds of five members, some 20 s."""


class Schedule:
    """The matchings of one federation, and one member's place in them."""

    def __init__(self, members: Members, me: str, dialable: AbstractSet[str]) -> None:
        self.me, self.dialable, self.federation = me, dialable, members.federation_id
        graph, waiting = {me: members.neighbours(me)}, [me]
        while waiting:
            for peer in graph[waiting.pop()]:
                if peer not in graph:
                    graph[peer] = members.neighbours(peer)
                    waiting.append(peer)
        self.edges = sorted({(min(a, b), max(a, b)) for a in graph for b in graph[a]})
        self.rounds_max = PAIRS_MAX // max(1, len(self.edges))
        self.partners: list[str] = []
        self.sums: list[int] = []
        """of each round: how many of the rounds up to it are with its partner"""
        self.counts: Counter[str] = Counter()

    def rank(self, number: int, edge: tuple[str, str]) -> bytes:
        return hashlib.sha256(f"gossipfl/lockstep/{number}/{edge[0]}/{edge[1]}/".encode() + self.federation).digest()

    def partner(self, number: int) -> str:
        """With whom this member exchanges in that round; empty for nobody."""
        self.up_to(number)
        return self.partners[number]

    def due(self, number: int) -> int:
        """How many exchanges with the partner of that round are done once the round is."""
        self.up_to(number)
        return self.sums[number]

    def matching(self, number: int) -> dict[str, str]:
        """Everybody's partner in that round: pairs in the order of their hashes, who is taken already sits out."""
        taken: dict[str, str] = {}
        for a, b in sorted(self.edges, key=lambda edge: self.rank(number, edge)):
            if a not in taken and b not in taken:
                taken[a], taken[b] = b, a
        return taken

    def up_to(self, number: int) -> None:
        if number >= self.rounds_max:
            raise Misuse(f"round {number} of a lockstep of at most {self.rounds_max} rounds; leave lockstep out")
        for at in range(len(self.partners), number + 1):
            peer = self.matching(at).get(self.me, "")
            self.counts[peer] += 1
            self.partners.append(peer)
            self.sums.append(self.counts[peer])

    def begins(self, number: int) -> bool:
        """Is it this member that proposes? By the hash, unless the other can only dial."""
        peer = self.partner(number)
        edge = min(self.me, peer), max(self.me, peer)
        first, second = edge if self.rank(number, edge)[0] % 2 else edge[::-1]
        if second not in self.dialable:
            first, second = second, first
        return first == self.me


class InStep(Exchanges):
    """What a node in lockstep owes, and what it holds until its round comes."""

    @cached_property
    def schedule(self) -> Schedule:
        return Schedule(self.settings.members, self.me, self.settings.dialable)

    def round_owed(self) -> int | None:
        """The round whose exchange this node has still to do before anything else; None where there is none.

        One after each local round; in the release, without training, as many more as the study says. The links count
        exchanges durably, so that this survives a restart."""
        more = self.settings.release_exchanges if self.stage == "release" else 0
        for number in range(max(0, self.local_round - 1), self.local_round + more):
            peer = self.schedule.partner(number)
            if peer and self.link(peer).exchanges < self.schedule.due(number):
                return number
        return None

    def asked_next(self) -> str:
        """Whom this node has to ask now; empty where nobody, or where it is the other who asks."""
        number = self.round_owed()
        return "" if number is None or not self.schedule.begins(number) else self.schedule.partner(number)

    def is_time(self, peer: str) -> bool:
        """Has the round come whose exchange this peer begins?"""
        number = self.round_owed() if self.settings.lockstep else None
        return not self.settings.lockstep or (number is not None and self.schedule.partner(number) == peer)

    def take_early(self) -> None:
        """A proposal that came before its round, now that the round has."""
        for conn in list(self.conns.values()):
            if conn.early is not None and self.is_time(conn.peer):
                message, conn.early = conn.early, None
                try:
                    self.proposed(conn, message)
                except Refused as refusal:
                    self.refuse(conn, refusal)
