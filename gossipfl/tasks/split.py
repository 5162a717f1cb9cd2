"""Which rows a deployed site holds out: a keyed hash of the patient's id decides, for ever. No randomness, no state.

The local baseline and the federated model are judged by the same patients, after a restart and when rows were added.
The key is the study's: nobody outside can tell from an id on which side its patient is.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from gossipfl.errors import Misuse
from gossipfl.tasks.task import Data, Site, Task

SHARE = 0.25
"""Held out by default: of 100 patients 25 judge, enough for an AUC within about .1."""


def held_out(identity: str, key: bytes, share: float = SHARE) -> bool:
    """Is this patient in the hold-out: blake2b(id, key) / 2^64 < share."""
    value = hashlib.blake2b(identity.encode(), key=key, person=b"gossipfl-holdout", digest_size=8).digest()
    return int.from_bytes(value, "big") < share * 2**64


def split(name: str, data: Data, key: bytes, share: float = SHARE) -> Site:
    """The site with its hold-out set apart; rows that share an id stay together.

    **Raises**: Misuse on a share outside [0, 1) or a key that is empty or longer than 64 bytes.
    """
    if not 0 <= share < 1 or not 1 <= len(key) <= 64:
        raise Misuse(f"split() takes a share in [0, 1) and a key of 1 to 64 bytes; got {share} and {len(key)} bytes")
    apart = np.array([held_out(identity, key, share) for identity in data.ids], dtype=bool)
    return Site(name, data.rows(np.flatnonzero(~apart)), data.rows(np.flatnonzero(apart)))


def site_of(task: Task, name: str, source: Mapping[str, Any], key: bytes, share: float = SHARE) -> Site:
    """The site that a node, its local baseline and `doctor` all mean by the `[data]` table of a node.toml.

    A public data set that comes parted into training and test rows (optional member `judged_by` of a task) keeps its
    own parting; any other site's hold-out is `split`'s.

    **Raises**: ConfigError with every fault of the rows.
    """
    data = task.data(source)
    own = getattr(task, "judged_by", None)
    return split(name, data, key, share) if own is None else Site(name, data, own(source))
