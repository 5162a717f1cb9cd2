"""Which rows are held out: a hash of the patient's id decides, for ever. No randomness, no state.

A deployed site's (`split`): the local baseline and the federated model are judged by the same patients, after a restart
and when rows were added. The key is the study's: nobody outside can tell from an id on which side its patient is.
A public data set's (`by_patient`): a fixed share inside each hospital, another for each seed; `tuning` parts what is left
for training once more, so that no hyper-parameter is chosen on test rows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gossipfl.errors import Misuse
from gossipfl.tasks.task import Data, Site, Task, pooled

SHARE = 0.25
"""Held out by default: of 100 patients 25 judge, enough for an AUC within about .1."""

VALIDATION_SHARE = 0.2
"""Of a benchmark's training rows: what hyper-parameters are chosen by."""


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


def by_patient(places: Sequence[str], ids: Sequence[str], share: float, name: str) -> NDArray[np.bool_]:
    """Is each row held out: `share` of the patients of each place, rounded, but never all; `name` draws another such parting.

    All rows of a patient are on one side, also where a patient was at two places: the first row's place counts. Patients are
    ranked by a hash, so that more places, or another order of them, change nothing at a place.

    **Shapes**: places and ids n strings -> (n,).
    """
    at: dict[str, list[str]] = {}
    home: dict[str, str] = {}
    for place, patient in zip(places, ids, strict=True):
        home.setdefault(patient, place)
    for patient, place in home.items():
        at.setdefault(place, []).append(patient)
    apart: set[str] = set()
    for patients in at.values():
        ranked = sorted(patients, key=lambda patient: (_rank(name, patient), patient))
        apart.update(ranked[: min(int(share * len(ranked) + 0.5), len(ranked) - 1)])
    return np.array([patient in apart for patient in ids], dtype=bool)


def tuning(sites: Sequence[Site], seed: int, share: float = VALIDATION_SHARE) -> tuple[list[Site], Data]:
    """The same sites for choosing hyper-parameters: trained on a part of their training rows and judged by the rest of them,
    their own and pooled. The test rows are not in it. A site with one patient has nothing to spare, and judges none.
    """
    places = [site.name for site in sites for _ in range(len(site.train))]
    apart = by_patient(places, [one for site in sites for one in site.train.ids], share, f"validation {seed}")
    parts = np.split(apart, np.cumsum([len(site.train) for site in sites])[:-1])
    inner = [
        Site(site.name, site.train.rows(np.flatnonzero(~part)), site.train.rows(np.flatnonzero(part)))
        for site, part in zip(sites, parts, strict=True)
    ]
    return inner, pooled([site.holdout for site in inner])


def _rank(name: str, patient: str) -> bytes:
    return hashlib.blake2b(f"{name}\0{patient}".encode(), person=b"gossipfl-parting", digest_size=8).digest()
