"""Public-key operations of a world, each computed once although both ends of every session are in this process.

What one end has computed the other one is told instead of computing it again, where mathematics leaves no other answer:
X25519 of (a, B) is that of (b, A), and an Ed25519 signature that was made here with a key is one of that key. All else is
computed: keys, signatures, all records, and every agreement and signature that is not known here, so that what was forged,
altered or said again by a fault takes the real check. The same bytes and the same refusals, in less time. No node can do
this, so it says nothing of a node's speed; a world does it only where it is asked to (`World(once=True)`).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from gossipfl.protocol.core import Settings
from gossipfl.protocol.noise import Pair, agree
from gossipfl.trust.identity import verify

KEPT: Final = 4096
"""Of each kind; the oldest makes room. What is asked for at all is asked for within an exchange or two."""


class Once:
    """What the nodes of one world have computed."""

    def __init__(self) -> None:
        self.agreed: dict[tuple[bytes, bytes], bytes] = {}
        """(public key of who computed it, public key of the other) -> what they agree on, until the other has asked"""
        self.signed: dict[bytes, tuple[str, bytes, bytes]] = {}
        """signature -> (kind, payload, public key), which it is therefore known to be valid for"""
        self.told = 0
        """operations that were not computed a second time"""

    def agree(self, own: Pair, other: bytes) -> bytes:
        """`noise.agree`."""
        known = self.agreed.pop((other, own.public), None)
        if known is not None:
            self.told += 1
            return known
        shared = agree(own, other)
        if len(self.agreed) >= KEPT:
            del self.agreed[next(iter(self.agreed))]
        self.agreed[own.public, other] = shared
        return shared

    def verify(self, kind: str, payload: bytes, signature: bytes, public: bytes) -> None:
        """`identity.verify`."""
        if self.signed.get(signature) == (kind, payload, public):
            self.told += 1
        else:
            verify(kind, payload, signature, public)

    def listen(self, settings: Settings) -> Settings:
        """The settings of a node whose signatures are known here from now on, and who is told those of the others."""
        own, public = settings.sign, settings.certificate.signing

        def sign(kind: str, payload: bytes) -> bytes:
            signature = own(kind, payload)
            if len(self.signed) >= KEPT:
                del self.signed[next(iter(self.signed))]
            self.signed[signature] = kind, payload, public
            return signature

        return replace(settings, sign=sign, verify=self.verify)
