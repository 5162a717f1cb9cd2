"""`gossipfl renew`: a new certificate for the node, signed by the identity key, before the old one ends. No network."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final

import typer

EPILOG: Final = (
    "Example: [bold]gossipfl renew node.toml && systemctl restart gossipfl[/bold]  "
    "-- the others need nothing: the new certificate comes with the next session."
)


def renew(
    config: Annotated[Path, typer.Argument(metavar="NODE_TOML", readable=False)] = Path("node.toml"),
    days: Annotated[int, typer.Option("--days", min=1, max=30, help="Days for which it is valid.")] = 30,
    new_keys: Annotated[
        bool, typer.Option("--new-keys", help="Make new node keys, too: after a theft of the old ones.")
    ] = False,
    passphrase_file: Annotated[
        Path | None, typer.Option("--passphrase-file", help="Holds the passphrase of the key files.", readable=False)
    ] = None,
) -> None:
    """Sign a new certificate (counter + 1) with the addresses of node.toml; restart the node to use it."""
    import secrets
    import time

    from gossipfl.cli import output
    from gossipfl.cli.init import SLOW_CLOCK_S
    from gossipfl.config import load_node
    from gossipfl.errors import ConfigError, Exit, Fault, Refused
    from gossipfl.trust import identity

    settings = load_node(config)
    secret = output.passphrase(passphrase_file)
    me = identity.Identity(identity.load_key(settings.identity_key, secret, "identity"))
    try:
        old = identity.Certificate(settings.certificate.read_bytes())
    except (OSError, Refused) as error:
        fault = Fault(str(settings.certificate), None, f"no certificate to renew: {error}", "restore it from a backup")
        raise ConfigError(fault, exit_code=Exit.PERMISSION) from None
    if old.identity != me.public:
        fault = Fault(str(settings.identity_key), None, "is not the key that signed the certificate", "restore it")
        raise ConfigError(fault, exit_code=Exit.PERMISSION)
    if new_keys:
        node = identity.NodeKeys(secrets.token_bytes(64))
        identity.save_key(settings.node_key, node.secret, secret, "node", replace=True)
    else:
        node = identity.NodeKeys(identity.load_key(settings.node_key, secret, "node"))
    start = int(time.time()) - SLOW_CLOCK_S
    made = me.certify(
        old.member,
        node,
        addresses=settings.node.advertise,
        counter=old.counter + 1,
        not_before=start,
        not_after=start + days * identity.DAY,
    )
    output.write(settings.certificate, made.encoded)
    until = time.strftime("%Y-%m-%d", time.localtime(made.not_after))
    output.say(f"Certificate {made.counter} of {made.member} is valid until {until}; restart the node to use it.")
