"""Laws of addresses: what others dial and what the node listens on fit, or the operator is told; why nobody was reached."""

from __future__ import annotations

import asyncio
import doctest
import ssl
from pathlib import Path
from types import ModuleType

import aiohttp
import pytest

from gossipfl import cli, config
from gossipfl.cli import addresses, node, output
from gossipfl.learning import evaluation
from gossipfl.node import cures
from gossipfl.node.cures import GENERAL, cure


def made(folder: Path, *arguments: str) -> config.NodeConfig:
    with pytest.raises(SystemExit) as caught:
        cli.main(["init", "ward", "--out", str(folder / "ward"), *arguments])
    assert not caught.value.code
    return config.load_node(folder / "ward" / "node.toml")


@pytest.mark.parametrize(
    "address, listen",
    [
        ("http://fl.ward.example:8480", ("0.0.0.0", 8480)),
        ("ws://fl.ward.example", ("0.0.0.0", 80)),
        ("https://fl.ward.example", ("127.0.0.1", 8470)),
    ],
)
def test_init_listens_where_its_address_says_and_doctor_has_nothing_to_say(
    tmp_path: Path, address: str, listen: tuple[str, int]
) -> None:
    ward = made(tmp_path, "--address", address)
    assert ward.node.listen_address == listen and ward.node.advertise == (address,)
    said = [one.found for one in addresses.findings(ward, [address])]
    assert said == [] or (address.startswith("https") and "TLS" in said[0])


def test_listen_is_taken_as_given(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ward = made(tmp_path, "--address", "http://fl.ward.example:8480", "--listen", "10.0.0.7:9000")
    assert ward.node.listen_address == ("10.0.0.7", 9000)
    assert "listen on 10.0.0.7:9000" in capsys.readouterr().err
    (odd,) = addresses.findings(ward, ward.node.advertise)
    assert odd.result == "warn" and "8480" in odd.found and "9000" in odd.found and '10.0.0.7:8480"' in odd.fix


@pytest.mark.parametrize(
    "listen, certified, says",
    [
        ("0.0.0.0:8470", ["https://fl.ward.example"], "a proxy in front"),
        ("127.0.0.1:8480", ["http://fl.ward.example:8480"], "no other machine reaches"),
        ("", ["http://fl.ward.example:8480"], "others are told to dial"),
    ],
)
def test_what_cannot_be_reached_is_a_warning(tmp_path: Path, listen: str, certified: list[str], says: str) -> None:
    ward = made(tmp_path, "--address", certified[0], "--listen", listen)
    (odd,) = addresses.findings(ward, certified)
    assert odd.result == "warn" and says in odd.found and odd.fix


def test_addresses_that_the_certificate_does_not_name_yet_need_a_renewal(tmp_path: Path) -> None:
    ward = made(tmp_path, "--address", "http://fl.ward.example:8480")
    odd, _ = addresses.findings(ward, ["http://old.ward.example:8470"])
    assert "renew" in odd.fix


async def test_tls_to_a_port_without_tls_gets_its_hint() -> None:
    """With the very words of this machine's OpenSSL and aiohttp."""

    async def plain(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(100)
        writer.write(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(plain, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server, aiohttp.ClientSession() as http:
        with pytest.raises((aiohttp.ClientError, ssl.SSLError, OSError)) as caught:
            await http.ws_connect(f"wss://127.0.0.1:{port}/")
    assert "http://" in cure(f"wss://127.0.0.1:{port}: {caught.value}")


async def test_a_port_where_nobody_listens_gets_its_hint() -> None:
    server = await asyncio.start_server(lambda reader, writer: writer.close(), "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    server.close()
    await server.wait_closed()
    async with aiohttp.ClientSession() as http:
        with pytest.raises(aiohttp.ClientError) as caught:
            await http.ws_connect(f"ws://127.0.0.1:{port}/")
    assert "nothing listens there" in cure(str(caught.value))


@pytest.mark.parametrize(
    "why, says",
    [
        ("no answer within 10 s", "firewall"),
        ("b refuses: membership-old: a holds federation version 1, b 2", "federation show"),
        ("http://b:8470: no session (the other side closed); is it b, with this psk and federation?", "psk.key"),
        ("b refuses: stats: the normalisation of a is not that of b", "statistics stage"),
        ("Cannot connect to host b.example:8470 ssl:default [Name or service not known]", "name"),
        ("400, message='Invalid response status', url='http://b/'", "proxy"),
        ("Cannot connect to host 127.0.0.1:40717 [Connect call failed ('127.0.0.1', 40717)]", "nothing listens there"),
        ("something new", GENERAL),
    ],
)
def test_every_cause_has_its_remedy(why: str, says: str) -> None:
    assert says in cure(why)


@pytest.mark.parametrize("module", [addresses, cures, evaluation, node, output], ids=lambda module: module.__name__)
def test_the_docstrings_print_what_they_say(module: ModuleType) -> None:
    assert doctest.testmod(module).failed == 0
