"""Members that lie: over valid sessions, signed with their real keys, beside an honest core that goes on.

Each lie is one that a member could tell and that nobody but a member can. Not here: when (trouble.py), who is believed (the
peers under test).
"""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING, Final

import msgspec
import numpy as np

from gossipfl.digest import CHUNK, Tree, chunk_count
from gossipfl.errors import Refused
from gossipfl.protocol import messages as ms
from gossipfl.protocol.limits import PLAIN_MAX

if TYPE_CHECKING:
    from gossipfl.simulator.lines import End
    from gossipfl.simulator.network import Node

LIES_KEPT: Final = 32
"""Payloads that a liar holds ready at a time."""

HUGE: Final = 2**40
"""Bytes that an oversized payload claims to have."""


def lie(node: Node, rng: Random, kind: str) -> str | None:
    """Tell a lie of this kind over one of the node's sessions; to whom, or None where there is no session."""
    ends = [end for _, end in sorted(node.ends.items()) if end.session.up and end.peer in node.peer.by_peer]
    if not ends:
        return None
    end = ends[rng.getrandbits(32) % len(ends)]
    told = LIES[kind](node, end, rng)
    return end.peer if told else None


def serve(end: End, root: bytes) -> None:
    """The payload of a lie, as an honest node would send it."""
    payload = end.node.lies[root]
    tree = Tree.of(payload)
    for index in range(chunk_count(len(payload))):
        end.write(end.session.seal_chunk(root, index, tree.path(index), payload[index * CHUNK : (index + 1) * CHUNK]))


def offer(node: Node, payload: bytes) -> bytes:
    root = Tree.of(payload).root
    node.lies[root] = payload
    while len(node.lies) > LIES_KEPT:
        del node.lies[next(iter(node.lies))]
    return root


def manifest(node: Node, end: End, payload: bytes) -> ms.Manifest:
    """What the core would propose next on this link, of another payload."""
    core = node.peer
    link = core.link(end.peer)
    space = "statistics" if core.stage == "statistics" else "model"
    k = max(link.high, link.done) + 1
    root = offer(node, payload)
    return core.manifest(end.peer, link, k, "propose", space, root, len(payload), **core.scalars(space))


def signed(node: Node, said: ms.Manifest) -> ms.Propose:
    raw = ms.encode(said)
    return ms.Propose(raw, node.spec.keys.sign("manifest", raw))


def say(end: End, message: ms.Message) -> bool:
    end.write(end.session.send(message))
    return True


def vector(node: Node, rng: Random, values: tuple[float, ...]) -> bytes:
    """A payload of the size that the study implies, of these float64 values by turns."""
    core = node.peer
    size = core.size("statistics" if core.stage == "statistics" else "model")
    filled = np.resize(np.array(values), size // 8 + 1).tobytes()
    return filled[:size]


# ---- the kinds -----------------------------------------------------------------------------------------------------


def malformed(node: Node, end: End, rng: Random) -> bool:
    """Bytes that are no message, or one cut short, under the session's own key."""
    whole = b"\0" + ms.encode(signed(node, manifest(node, end, vector(node, rng, (0.0,)))))
    plain = (b"\0" + rng.randbytes(40), whole[:-7], whole + b"\0", b"\7" + rng.randbytes(9))[rng.getrandbits(2)]
    end.write(end.session._seal(plain))
    return True


def oversized(node: Node, end: End, rng: Random) -> bool:
    """A payload that claims to be enormous, or the longest record that there can be."""
    if rng.getrandbits(1):
        end.write(end.session._seal(b"\0" + bytes(PLAIN_MAX - 1)))
        return True
    said = manifest(node, end, vector(node, rng, (0.0,)))
    return say(end, signed(node, msgspec.structs.replace(said, size=HUGE)))


def nonfinite(node: Node, end: End, rng: Random) -> bool:
    """A proposal in order, of a payload with NaN or infinity in it; or a mass that is no number."""
    value = (float("nan"), float("inf"), -float("inf"), 1e308)[rng.getrandbits(2)]
    said = manifest(node, end, vector(node, rng, (1.0, value, -1.0)))
    if rng.getrandbits(2) == 0:
        said = msgspec.structs.replace(said, mass=float("nan"))
    return say(end, signed(node, said))


def stale(node: Node, end: End, rng: Random) -> bool:
    """A proposal under a number, or against a reference, that is long done."""
    link = node.peer.link(end.peer)
    said = manifest(node, end, vector(node, rng, (0.5,)))
    if rng.getrandbits(1):
        said = msgspec.structs.replace(said, k=max(1, link.done), prev=max(0, link.done - 1))
    else:
        said = msgspec.structs.replace(said, reference=rng.randbytes(32))
    return say(end, signed(node, said))


def replayed(node: Node, end: End, rng: Random) -> bool:
    """The very proposal or reply of the last exchange again."""
    link = node.peer.link(end.peer)
    if link.answered is not None and rng.getrandbits(1):
        last = link.answered
        return say(end, ms.Reply(last.manifest, last.signature, last.receipt, last.receipt_signature))
    return end.said is not None and say(end, end.said)


def wrong_recipient(node: Node, end: End, rng: Random) -> bool:
    """What was signed for another member, or a manifest that another member signed for this one."""
    links = [link for peer, link in sorted(node.peer.links.items()) if peer != end.peer and link.answered is not None]
    if links and rng.getrandbits(1):
        last = links[rng.getrandbits(32) % len(links)].answered
        assert last is not None
        return say(end, ms.Reply(last.manifest, last.signature, last.receipt, last.receipt_signature))
    others = [peer for peer in node.peer.settings.members.neighbours(node.name) if peer != end.peer]
    if not others:
        return False
    said = manifest(node, end, vector(node, rng, (0.25,)))
    return say(end, signed(node, msgspec.structs.replace(said, recipient=others[rng.getrandbits(32) % len(others)])))


def equivocating(node: Node, end: End, rng: Random) -> bool:
    """Two different proposals under one number."""
    for sign in (1.0, -1.0):
        say(end, signed(node, manifest(node, end, vector(node, rng, (sign * rng.random(), sign)))))
    return True


def refusing(node: Node, end: End, rng: Random) -> bool:
    """The next proposal that comes over this link is refused for good, and not answered."""
    node.denies.add(end.peer)
    return True


def deny(end: End, proposal: ms.Propose) -> None:
    end.node.denies.discard(end.peer)
    try:
        k = ms.decode_manifest(proposal.manifest).k
    except Refused as refusal:  # of another liar
        end.shut(str(refusal))
    else:
        say(end, ms.Refusal(k, "stats", "no statistics are good enough"))


LIES: Final = {
    "malformed": malformed,
    "oversized": oversized,
    "nonfinite": nonfinite,
    "stale": stale,
    "replayed": replayed,
    "wrong-recipient": wrong_recipient,
    "equivocating": equivocating,
    "refusing": refusing,
}
