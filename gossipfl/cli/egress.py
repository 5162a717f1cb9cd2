"""What will leave this site, said beforehand: to whom, what, how many bytes, and what never. Used by `doctor --egress`.

The numbers are upper estimates from the study's constants; what has left is in the node's own record, fact by fact.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

from gossipfl.errors import Misuse

if TYPE_CHECKING:
    from gossipfl.config import NodeConfig
    from gossipfl.recipe import Work
    from gossipfl.trust.membership import Membership

DAY_S: Final = 86_400

CONTROL: Final = 1_500
"""Bytes of signed messages that one side of an exchange writes beside the payload, measured at about this on the wire."""

NEVER: Final = (
    "rows, labels, or any value of a row",
    "row ids, and who is held out",
    "metrics on the hold-out, logs, file and column names of this site",
    "private keys, passphrases, and the psk",
    "anything to anybody who is not in the federation file: no telemetry, no update check",
)


def egress(config: NodeConfig, membership: Membership, work: Work) -> dict[str, Any]:
    """To whom what goes, and how much of it, as JSON values."""
    import numpy as np

    from gossipfl.learning import compression

    study, layout = membership.study, work.layout
    size = compression.payload_size(study.codec, layout.n_parameters, layout.n_moments, np.dtype(layout.dtype).itemsize)
    exchanges = _a_round(membership, config.node.id) * study.local_rounds + membership.release_exchanges
    features = len(work.task.features) if work.normalised else 0
    sums = 8 * (len(membership.members) + 3 * features)
    before = 2 * _until_settled(membership) if features else 0
    whole = exchanges * (size + CONTROL) + before * (sums + CONTROL)
    least = study.minimum_count
    told = (
        f"count, sum, sum of squares of each of {features} features with {least} or more values; who gets them first reads this "
        f"site's own, whoever later gets them the mixed ones"
    )
    return {
        "to": [
            {"peer": peer, "addresses": list(membership.member(peer).certificate_read.addresses)}
            for peer in membership.neighbours(config.node.id)
        ],
        "what": [
            f"model updates: {layout.size:,} numbers, {size:,} bytes as {study.codec}, after training and mixing; encrypted, "
            "signed, to one neighbour at a time",
            *([f"statistics, {sums:,} bytes in each of about {before} exchanges before training: {told}"] if features else []),
            "of each exchange: member id, stage, counters, mass, rate, norms of gradients and differences, signatures",
            "this node's certificate, to whoever can reach its address; its IP address",
        ],
        "bytes_per_exchange": size + CONTROL,
        "exchanges_per_study": exchanges + before,
        "bytes_per_study": whole,
        "bytes_per_day_at_most": _day(config, membership, whole, size),
        "never": list(NEVER),
        "caution": "a model can tell of the rows that it saw; a neighbour reads the model that it gets",
    }


def _a_round(membership: Membership, me: str) -> int:
    """Exchanges in a round: those that a node begins, and its share of those that each neighbour begins among its own."""
    asked = math.fsum(1 / len(membership.neighbours(peer)) for peer in membership.neighbours(me))
    return math.ceil(membership.study.exchanges * (1 + asked) - 1e-9)


def _day(config: NodeConfig, membership: Membership, whole: int, size: int) -> int:
    """The study's bytes, unless its pace or this node's bandwidth cap spread them over days."""
    study = membership.study
    a_round = _a_round(membership, config.node.id)
    paced = a_round * math.ceil(DAY_S / study.local_round_s) * (size + CONTROL) if study.local_round_s else whole
    capped = config.limits.bandwidth_kib_s * 1024 * DAY_S or whole
    return min(whole, paced, capped)


def _until_settled(membership: Membership) -> int:
    """Statistics exchanges that a node begins until its vector is the mean within the study's tolerance."""
    from gossipfl import topology

    try:
        per_hundredth = topology.release_exchanges(membership.graph, 1.0)
    except Misuse:  # not connected: the other checks say so
        return 0
    return math.ceil(per_hundredth * math.log(membership.study.statistics_tolerance) / math.log(topology.RESIDUE))


def as_text(going: dict[str, Any]) -> str:
    """The same for a person."""
    to = [f"  {one['peer']}  {' '.join(one['addresses']) or '(it dials)'}" for one in going["to"]]
    lines = ["Goes to", *to, "What goes", *(f"  {one}" for one in going["what"]), "How much, estimated"]
    lines.append(f"  {going['bytes_per_exchange']:,} bytes an exchange, about {going['exchanges_per_study']:,} exchanges a study")
    lines.append(f"  {going['bytes_per_study']:,} bytes a study, at most {going['bytes_per_day_at_most']:,} bytes a day")
    lines += ["What never goes", *(f"  {one}" for one in going["never"]), f"Mind: {going['caution']}."]
    return "\n".join(lines)
