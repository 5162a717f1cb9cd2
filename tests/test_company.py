"""Laws of what a node says unasked: who is missing and why, one line an exchange, and a last line on a terminal only."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pty
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from test_node import driver_of, running, town, until

from gossipfl.node.company import HANDSHAKES, Company
from gossipfl.node.logs import Log, progress
from gossipfl.protocol.events import Instant, Note
from gossipfl.protocol.neighbours import Neighbour

SECOND = 10**9
REFUSED = "http://b:8470: Cannot connect to host b:8470 ssl:default [Connect call failed ('b', 8470)]"


class Ear:
    """Keeps what is said."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, dict[str, Any]]] = []

    def say(self, kind: str, **fields: Any) -> None:
        self.heard.append((kind, fields))


def at(seconds: float) -> Instant:
    return Instant(int(seconds * SECOND), int(seconds * SECOND))


def watched(*states: tuple[float, str, str]) -> list[tuple[str, dict[str, Any]]]:
    """What is said of neighbour b, that was in these states from these seconds on, looked at every half second."""
    ear, b = Ear(), Neighbour("b")
    company = Company(ear, 0)
    todo = list(states)
    end = int(2 * todo[-1][0])
    for half in range(end + 1):
        while todo and todo[0][0] <= half / 2:
            second, state, why = todo.pop(0)
            b.is_now(state, int(second * SECOND), why)
        company.look([b], frozenset({"b"}), at(half / 2))
    return ear.heard


def test_the_first_failure_is_said_at_once_with_cause_and_remedy() -> None:
    ((kind, fields),) = watched((1, "unreachable", REFUSED), (2, "unreachable", REFUSED))
    assert kind == "unreachable" and fields["peer"] == "b"
    assert fields["cause"] == REFUSED and "nothing listens there" in fields["remedy"]


def test_the_same_failure_is_said_less_and_less_and_never_twice_a_minute() -> None:
    states = [(float(s), "unreachable" if s % 2 else "dialling", REFUSED if s % 2 else "") for s in range(1, 3600)]
    assert 4 <= len(watched(*states)) <= 7
    changing = [(float(s), "unreachable", f"{REFUSED} {s}") for s in range(1, 600)]
    assert len(watched(*changing)) <= 10


def test_who_is_there_is_said_once_and_again_after_it_was_missing() -> None:
    said = watched(
        (0, "unreachable", REFUSED), (5, "connected", ""), (600, "silent", "the session has reached its age"),
        (601, "connected", ""), (700, "silent", "the other side closed"), (720, "connected", ""), (721, "connected", ""),
    )  # fmt: skip
    assert [kind for kind, _ in said] == ["unreachable", "connected", "unreachable", "connected"]
    assert "the other side closed" in said[2][1]["cause"]


def test_who_rests_is_not_said_to_be_lost() -> None:
    said = watched((0, "connected", ""), (40, "resting", "at rest"), (300, "dialling", ""), (301, "connected", ""))
    assert [kind for kind, _ in said] == ["connected"]


def test_who_can_only_dial_and_does_not_is_said_to_be_missing() -> None:
    ear, b = Ear(), Neighbour("b")
    company = Company(ear, 0)
    for second in range(40):
        company.look([b], frozenset(), at(second))
    ((kind, fields),) = ear.heard
    assert kind == "unreachable" and "must dial" in fields["cause"]


def test_T15_a_flood_of_failed_handshakes_fills_no_log() -> None:
    ear = Ear()
    company = Company(ear, 0)
    for number in range(1000):
        company.turned_away("10.0.0.9", "", "connection lost: ", at(number / 100))
    assert HANDSHAKES <= len(ear.heard) <= HANDSHAKES + 2
    company.turned_away("10.0.0.9", "b", "the other side closed", at(100))
    assert sum(fields.get("unsaid_before", 0) for _, fields in ear.heard) + len(ear.heard) == 1001
    assert "psk.key" in ear.heard[-1][1]["remedy"]


async def test_a_node_that_reaches_nobody_says_so_and_then_who_came(tmp_path: Path) -> None:
    first, other = (driver_of(config) for config in town(tmp_path).values())
    heard = first.log.stream
    async with running(first):
        await until(lambda: '"unreachable"' in heard.getvalue())
        line = next(json.loads(one) for one in heard.getvalue().splitlines() if '"unreachable"' in one)
        assert line["peer"] == "b" and "nothing listens there" in line["remedy"]
        async with running(other):
            await until(lambda: '"connected"' in heard.getvalue())


async def test_the_dialled_side_says_whose_handshake_failed(tmp_path: Path) -> None:
    configs = town(tmp_path)
    from gossipfl.trust.identity import save_key

    save_key(configs["a"].psk_key, b"\7" * 32, None, "psk", True)
    first, other = (driver_of(config) for config in configs.values())
    heard = other.log.stream
    async with running(other), running(first):
        await until(lambda: '"handshake"' in heard.getvalue())
    line = next(json.loads(one) for one in heard.getvalue().splitlines() if '"handshake"' in one)
    assert line["claimed"] == "a" and "psk.key" in line["remedy"]


# ---- lines -----------------------------------------------------------------------------------------------------------


FACTS = [
    Note("ingress", {"peer": "b", "space": "model", "epoch": 0, "k": 4, "role": "reply", "bytes": 124, "root": "ff"}),
    Note("receipt", {"peer": "b", "k": 4, "signature": "aa"}),
    Note("egress", {"peer": "b", "k": 4, "root": "ff"}),
]


@pytest.mark.parametrize("level, lines", [("info", ["exchange"]), ("debug", ["exchange", "ingress", "receipt", "egress"])])
def test_off_a_terminal_an_exchange_is_one_line_and_the_rest_is_debug(level: str, lines: list[str]) -> None:
    stream = io.StringIO()
    log = Log("a", stream=stream, level=level)
    for fact in FACTS:
        log.fact(fact)
    said = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [one["kind"] for one in said] == lines
    assert said[0]["peer"] == "b" and said[0]["bytes"] == 124 and said[0]["level"] == "info"


@contextlib.contextmanager
def terminal(monkeypatch: pytest.MonkeyPatch, kind: str) -> Iterator[tuple[Any, int]]:
    monkeypatch.setenv("TERM", kind)
    monkeypatch.setenv("COLUMNS", "60")
    master, slave = pty.openpty()
    with os.fdopen(slave, "w") as stream:
        yield stream, master
    os.close(master)


def heard(master: int, end: str) -> str:
    """What a terminal shows, to its end: it comes in pieces."""
    said = ""
    while not said.endswith(end):
        said += os.read(master, 10_000).decode()
    return said


def test_on_a_terminal_the_last_line_is_drawn_again_under_what_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    with terminal(monkeypatch, "xterm") as (stream, master):
        log = Log("a", stream=stream)
        log.show("training  |  local round 3 of 60")
        for fact in FACTS:
            log.fact(fact)
        log.say("connected", peer="b\x1b[2J")
        log.show("x" * 200)
        log.close()
        said = heard(master, "x" * 59 + "\r\n").replace("\r\n", "\n")
    assert "exchange" not in said and "\x1b[2J" not in said
    assert said.startswith("\r\x1b[2Ktraining  |  local round 3 of 60\r\x1b[2K")
    assert "connected  peer: b [2J\ntraining  |  local round 3 of 60" in said
    assert said.endswith("\r\x1b[2K" + "x" * 59 + "\n")


def test_a_terminal_that_cannot_go_back_gets_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    with terminal(monkeypatch, "dumb") as (stream, master):
        log = Log("a", stream=stream)
        log.show("training")
        log.say("connected", peer="b")
        said = heard(master, "b\r\n")
    assert "\x1b" not in said and "training" not in said and "connected" in said


def test_the_last_line_says_stage_rounds_exchanges_neighbours_and_the_own_metric() -> None:
    peers = {"b": {"state": "connected"}, "c": {"state": "unreachable"}}
    status = {"stage": "training", "local_round": 3, "local_rounds": 60, "exchanges": 7, "peers": peers, "metric": "auc"}
    said = progress({**status, "evaluation": {"metrics": {"auc": 0.81234}}})
    assert "1 of 2 neighbours" in said and said.endswith("own AUC 0.8123")
    assert "7 exchanges" in progress({**status, "evaluation": None})
