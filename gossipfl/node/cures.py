"""What to do about a neighbour that is not reached, by what was said of it. Words only: no sockets, no state.

The texts are those of this program, of aiohttp, OpenSSL and the operating system; where none fits, the remedy is general.
"""

from __future__ import annotations

import re
from typing import Final

_CURES: Final = tuple(
    (re.compile(pattern, re.IGNORECASE), cure)
    for pattern, cure in (
        (
            r"WRONG_VERSION_NUMBER|RECORD_LAYER_FAILURE|HTTP_REQUEST",
            "no TLS is spoken at that port: its address should begin with http:// (change advertise there, then `gossipfl "
            "renew`), or a TLS proxy belongs in front of it (docs/deploy.md)",
        ),
        (
            r"CERTIFICATE_VERIFY_FAILED",
            "its TLS certificate is not one that this machine trusts: set SSL_CERT_FILE to the authority's certificate",
        ),
        (
            r"membership-old",
            "the two nodes hold different federation files: compare `gossipfl federation show`; the older one takes the newer",
        ),
        (
            r"\bauth\b|not-member|no session|a word after our first message",
            "compare psk.key (its sha256 by telephone) and federation.json on both sides; are both clocks right? the log of "
            "the other node says more",
        ),
        (r"\bstats\b", "the two have other normalisation statistics: were all sites in the statistics stage of this study?"),
        (r"layout", "run the same version of gossipfl and of the study's task at both sites"),
        (
            r"Invalid response status|\b[34]\d\d, message|redirects",
            "something else answers there, or an HTTP proxy in between drops the upgrade: check the address; through a proxy "
            "it must be https://",
        ),
        (
            r"Name or service|nodename|Temporary failure in name|getaddrinfo|DNS",
            "this machine cannot find that name: check the address with the other site, and this machine's DNS",
        ),
        (
            r"refused|Errno 111|Connect call failed",
            "nothing listens there: is that node up, and does its [node] listen fit its address? `gossipfl doctor` there says",
        ),
        (
            r"unreachable|no route|Errno 113|Errno 101",
            "no way to that network from here: ask who runs the firewall, or let that site dial this one",
        ),
        (
            r"no answer|timed? ?out|TimeoutError",
            "a firewall may drop it: ask for outbound access to that host and port, or let that site dial this one",
        ),
        (r"must dial|has no address", "only it can dial: is that node up, and can it reach this node's address?"),
    )
)

GENERAL: Final = "is that node up, and does a firewall let this machine reach it? else wait for it to dial"


def cure(why: str) -> str:
    """What to do about it.

    >>> cure("https://a:8470: [SSL: WRONG_VERSION_NUMBER] wrong version number").split(":")[0]
    'no TLS is spoken at that port'
    """
    return next((text for pattern, text in _CURES if pattern.search(why)), GENERAL)
