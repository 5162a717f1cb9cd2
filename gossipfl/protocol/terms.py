"""On which terms an exchange is made: scalars, manifests, and what must hold of a manifest that comes.

Everything here is arithmetic and comparison on the state of core.py; nothing is sent, stored or changed.
"""

from __future__ import annotations

import math
from typing import Any

from gossipfl.errors import Refused
from gossipfl.protocol import messages as ms
from gossipfl.protocol.core import Conn, Core
from gossipfl.protocol.link import Link, References


class Terms(Core):
    """What both ends of an exchange must agree on."""

    def reference(self, link: Link, space: str) -> References:
        agreed = link.references(space)
        return agreed if agreed.own else References(self.base[space], self.base[space])

    def codec(self, space: str) -> str:
        return self.settings.codec if space == "model" else "f64"

    def size(self, space: str) -> int:
        return self.settings.model_size if space == "model" else self.settings.statistics_size

    def mass(self, member: str, space: str) -> float:
        return self.settings.members.mass(member) if space == "model" else 1.0

    def gamma(self, space: str) -> float:
        return self.settings.gamma if space == "model" else 1.0

    def seed(self, epoch: int, k: int, sender: str, recipient: str) -> bytes:
        """What seeds a payload's rounding: public, and never the same twice."""
        return f"{epoch}/{k}/{sender}/{recipient}".encode() + self.settings.members.federation_id

    def books_flow(self) -> bool:
        return self.settings.ledger and self.stage == "training" and self.trained

    def kappa(self, space: str) -> float:
        """theta / (gamma eta H), whatever the exchanges of a local round: their sum is what moved (ADR 31)."""
        if space != "model" or not self.books_flow():
            return 0.0
        eta = self.settings.eta(self.local_round)
        return self.settings.theta / (self.settings.gamma * eta * self.settings.local_steps)

    def tau(self, space: str) -> float:
        """clip * eta * H * G, anchored to the own training; infinite before there was any.

        eta falls no lower here than half-way through the study: a clip that shrinks with the rate to its end would hold
        back the release, whose purpose is to bring the models together."""
        if space != "model" or not self.settings.clip or not self.gradient:
            return math.inf
        rate = self.settings.eta(min(self.local_round, self.settings.local_rounds // 2))
        return self.settings.clip * rate * self.settings.local_steps * self.gradient

    def scalars(self, space: str) -> dict[str, float]:
        """What this node would say in a proposal of now."""
        gradient = self.gradient if space == "model" else 0.0
        return {"kappa": self.kappa(space), "tau": self.tau(space), "gradient": gradient}

    def manifest(
        self, peer: str, link: Link, k: int, role: str, space: str, root: bytes, size: int, **said: Any
    ) -> ms.Manifest:
        """What is said of this payload, with the scalars that are `said` and, in a reply, what was found."""
        return ms.Manifest(
            federation=self.settings.members.federation_id,
            membership=self.settings.members.version,
            certificate=self.settings.certificate.digest,
            sender=self.me,
            recipient=peer,
            epoch=link.epoch,
            k=k,
            prev=link.done,
            role=role,
            space=space,
            stage=self.stage,
            codec=self.codec(space),
            reference=self.reference(link, space).own,
            size=size,
            root=root,
            statistics=self.normalisation if space == "model" else b"",
            mass=self.mass(self.me, space),
            gamma=self.gamma(space),
            **said,
        )

    def cap_norm(self, kappa: float, mine: float, theirs: float, peer: str) -> float:
        """(cap / degree) * min(m_i G_i, m_j G_j): no link holds more flow than training explains."""
        if not kappa or not self.settings.cap or not (mine and theirs):
            return math.inf
        members = self.settings.members
        degree = max(len(members.neighbours(self.me)), len(members.neighbours(peer)))
        return self.settings.cap / degree * min(members.mass(self.me) * mine, members.mass(peer) * theirs)

    def receipt(self, manifest: ms.Manifest, of: bytes) -> bytes:
        return ms.encode(
            ms.Receipt(manifest.federation, self.me, manifest.sender, manifest.epoch, manifest.k, of, manifest.root)
        )

    def check_addresses(self, conn: Conn, manifest: ms.Manifest) -> None:
        if (manifest.sender, manifest.recipient, manifest.federation) != (
            conn.peer,
            self.me,
            self.settings.members.federation_id,
        ):
            raise Refused(
                "recipient", f"a manifest from {manifest.sender} to {manifest.recipient} came from {conn.peer}"
            )

    def check_manifest(
        self, conn: Conn, link: Link, manifest: ms.Manifest, role: str, space: str, version: int, mass: float,
        proposal: ms.Manifest | None = None,
    ) -> None:  # fmt: skip
        """Everything that must hold of a manifest of either role, before a byte of its payload is asked for.

        `proposal`: what a reply answers. It binds, also where a newer federation file has changed the study since: the peer
        may have applied its half already."""
        codec, size, gamma = self.codec(space), self.size(space), self.gamma(space)
        if proposal is not None:
            codec, size, gamma = proposal.codec, proposal.size, proposal.gamma
        self.check_addresses(conn, manifest)
        if manifest.role != role or manifest.space != space:
            raise Refused("malformed", f"a {manifest.role} about {manifest.space} where a {role} about {space} belongs")
        if manifest.membership != version:
            raise Refused("membership-old", "signed under another version of the federation file; reconnect")
        if manifest.codec != codec:
            raise Refused("codec", f"codec {manifest.codec!r}; the study says {codec!r}")
        if manifest.size != size or not manifest.size:
            raise Refused("size", f"payload of {manifest.size} bytes; layout and codec imply {size}")
        if manifest.reference != self.reference(link, space).theirs:
            raise Refused("base", "the delta is against a reference that this node does not hold; reconnect to settle")
        if manifest.mass != mass or manifest.gamma != gamma:
            raise Refused("implausible", "mass or gamma is not what federation file and study say")

    def verify(self, conn: Conn, kind: str, certificate: bytes, payload: bytes, signature: bytes) -> None:
        known = self.certificates.get(conn.peer, {}).get(certificate)
        if known is None:
            raise Refused("auth", f"signed under a certificate of {conn.peer} that this node has never seen; reconnect")
        self.settings.verify(kind, payload, signature, known.signing)

    def verify_any(self, conn: Conn, kind: str, payload: bytes, signature: bytes) -> None:
        """Verify under any certificate of this peer's, the newest first: a receipt names none."""
        known = self.certificates.get(conn.peer, {})
        for held in sorted(known.values(), key=lambda each: -each.counter):
            try:
                self.settings.verify(kind, payload, signature, held.signing)
            except Refused:
                continue
            return
        raise Refused("auth", f"a {kind} that no certificate of {conn.peer} has signed")
