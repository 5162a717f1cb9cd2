"""`gossipfl init`: an institution's keys, certificate and node.toml, and the line that the others need. No network."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final

import typer

SLOW_CLOCK_S: Final = 3600
"""A certificate is valid from an hour ago: a peer whose clock is slow accepts it, too."""

EPILOG: Final = (
    "Example: [bold]gossipfl init st-marys --address http://gossip.st-marys.example:8470 --count 1200 "
    "> st-marys.line[/bold]  "
    "-- then send the line to whoever runs `gossipfl federation create`; nothing in it is secret."
)


def init(
    member: Annotated[
        str, typer.Argument(metavar="ID", help="Your member id: a-z, 0-9 and -, at most 32; yours for ever.")
    ],
    out: Annotated[Path, typer.Option("--out", help="Folder for node.toml and keys/.")] = Path("."),
    address: Annotated[
        list[str] | None, typer.Option("--address", help="URL under which others reach you; none: you only dial.")
    ] = None,
    listen: Annotated[
        str | None, typer.Option("--listen", help="host:port to listen on; by default the first address's port.")
    ] = None,
    count: Annotated[int, typer.Option("--count", min=0, max=10**9, help="Your training rows; is rounded.")] = 0,
    observer: Annotated[bool, typer.Option("--observer", help="No data: only follow the model.")] = False,
    days: Annotated[int, typer.Option("--days", min=1, max=30, help="Days for which the certificate is valid.")] = 30,
    passphrase_file: Annotated[
        Path | None, typer.Option("--passphrase-file", help="Encrypt the key files with its line.", readable=False)
    ] = None,
    json_: Annotated[bool, typer.Option("--json", help="Print one JSON object, the line in it.")] = False,
) -> None:
    """Make keys, a certificate and a commented node.toml; print the line that the other members need."""
    import secrets
    import time

    from gossipfl import config
    from gossipfl.cli import addresses as reach
    from gossipfl.cli import output
    from gossipfl.trust import identity, membership

    try:
        membership.valid_member_id(member)
        addresses = tuple(config.valid_address(one) for one in address or [])
        listening = reach.listen_for(addresses) if listen is None else config.valid_listen(listen)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    if len(addresses) > identity.ADDRESSES_MAX:
        raise typer.BadParameter(f"{len(addresses)} addresses; at most {identity.ADDRESSES_MAX} fit a certificate")

    toml, keys = out / "node.toml", out / "keys"
    files = [keys / name for name in (config.IDENTITY_KEY, config.NODE_KEY, config.CERTIFICATE)]
    output.absent(toml, *files)
    secret = output.passphrase(passphrase_file, new=True)
    output.folder(out, 0o755)
    output.folder(keys, 0o700)

    me, node = identity.Identity(secrets.token_bytes(32)), identity.NodeKeys(secrets.token_bytes(64))
    start = int(time.time()) - SLOW_CLOCK_S
    certificate = me.certify(
        member, node, addresses=addresses, counter=1, not_before=start, not_after=start + days * identity.DAY
    )
    identity.save_key(files[0], me.seed, secret, "identity")
    identity.save_key(files[1], node.secret, secret, "node")
    output.write(files[2], certificate.encoded)
    output.write(toml, config.template(member, addresses=addresses, listen=listening))
    output.say(f"Made {toml} and {', '.join(str(file) for file in files)}.")
    output.say(_reached(addresses, listening))
    output.say("The key files are " + ("encrypted." if secret else "NOT encrypted: no passphrase was given."))
    line = membership.member_line(certificate.encoded, role="observer" if observer else "trainer", count=count)
    if json_:
        made = {"id": member, "line": line, "node_toml": str(toml), "keys": str(keys), "encrypted": bool(secret)}
        output.emit(made | {"listen": listening, "addresses": list(addresses), "certificate_until": start + days * identity.DAY})
        return
    output.say("Send this line to whoever makes the federation file; nothing in it is secret:")
    print(line)


def _reached(addresses: tuple[str, ...], listening: str) -> str:
    if not listening:
        return "The node will only dial: no --address was given."
    if any(one.startswith(("https:", "wss:")) for one in addresses):
        return f"The node will listen on {listening}, without TLS: https and wss need a proxy in front (docs/deploy.md)."
    return f"The node will listen on {listening}."
