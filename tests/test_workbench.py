"""What one exchange of a large model may cost, counted: hashes, lengths of dot products, memory. No time is measured."""

from __future__ import annotations

import platform
import resource
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from gossipfl import digest, loops, workbench
from gossipfl.digest import chunk_count
from gossipfl.learning.training import Outcome
from gossipfl.protocol import events as ev
from gossipfl.store import Store, disk
from gossipfl.store.disk import RealDisk
from gossipfl.store.files import Files
from gossipfl.workbench import Bench, Workbench

P = 2_000_003
"""Parameters: 8 MB, 131 chunks, nine pieces; the last of each is short."""

SPINS = 10_000
"""Elements of a dot product above which OpenBLAS takes threads of its own, which wait by spinning."""


class Site:
    """The hands of one node, and its vectors."""

    def __init__(self, folder: Path, model: np.ndarray, reference: np.ndarray) -> None:
        self.folder, self.model_array = folder, model
        self.files = Files(RealDisk(folder))
        self.hands = Workbench(Bench(P, 0, "float32", lambda _: pytest.fail("no training"), lambda *_: None, (1,)), self.files)
        self.model, self.reference = (self.files.put(vector, pinned=True) for vector in (model, reference))

    def mix(self, incoming: bytes, lower: bool, **more: Any) -> ev.Mixed:
        job = ev.Mix(
            job=2, space="model", lower=lower, incoming=incoming, reference_in=self.reference, reference_out=self.reference,
            model=self.model, flow=b"", correction=b"", codec="f32", seed=b"", mass=1.0, mass_peer=1.0, gamma=1.0, kappa=0.0,
            tau=1e9, leak=1.0, cap_norm=1e9, **more,
        )  # fmt: skip
        found = self.hands.carry_out(job)
        assert isinstance(found, ev.Mixed), found
        return found


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Site, Site]:
    drawn = np.random.default_rng(0).standard_normal((2, P), np.float32)
    zeros = np.zeros(P, np.float32)
    return Site(tmp_path / "a", drawn[0], zeros), Site(tmp_path / "b", drawn[1], zeros)


def exchange(a: Site, b: Site, between: Callable[[str], object] = lambda stage: None) -> tuple[ev.Mixed, ev.Mixed]:
    encoded = a.hands.carry_out(ev.Encode(job=1, space="model", model=a.model, reference=a.reference, codec="f32", seed=b""))
    assert isinstance(encoded, ev.Encoded)
    between("encoded")
    b.files.put(a.files.read(encoded.root), pinned=True)
    between("sent")
    answered = b.mix(encoded.root, lower=False)
    between("answered")
    a.files.put(b.files.read(answered.payload), pinned=True)
    between("sent back")
    mixed = a.mix(answered.payload, lower=True, payload=encoded.root, q=answered.q, clip=answered.clip, cap=answered.cap)
    between("mixed")
    return answered, mixed


def test_an_exchange_hashes_each_payload_once_where_it_is_made_and_nothing_else(
    pair: tuple[Site, Site], monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed, seen, leaf = [], {}, digest.leaf
    monkeypatch.setattr(digest, "leaf", lambda chunk: hashed.append(len(chunk)) or leaf(chunk))
    exchange(*pair, lambda stage: seen.update({stage: sum(hashed)}) or hashed.clear())
    assert [seen[stage] for stage in ("encoded", "answered", "mixed")] == [4 * P, 4 * P, 0]
    assert chunk_count(4 * P) == 131


def test_no_dot_product_of_an_exchange_is_long_enough_for_openblas_to_take_threads(
    pair: tuple[Site, Site], monkeypatch: pytest.MonkeyPatch
) -> None:
    longest = []

    def noted(product: Callable[..., Any]) -> Callable[..., Any]:
        return lambda x, y, **more: longest.append(x.shape[-1]) or product(x, y, **more)

    monkeypatch.setattr(np, "dot", noted(np.dot))
    monkeypatch.setattr(np, "vecdot", noted(np.vecdot))
    exchange(*pair)
    assert 0 < max(longest) <= SPINS


def test_an_exchange_needs_no_memory_of_the_size_of_a_model(pair: tuple[Site, Site], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workbench, "THREADS", 1)
    exchange(*pair)  # what is made once: weights of sums, the watched coordinates
    tracemalloc.start()
    try:
        exchange(*pair)
        assert tracemalloc.get_traced_memory()[1] < 4 * P
    finally:
        tracemalloc.stop()


def test_an_exchange_in_files_that_were_synced_leaves_the_same_on_disk(
    pair: tuple[Site, Site], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fresh = exchange(*pair)
    monkeypatch.setattr(disk, "SYNCED_S", -1.0)  # on any file system
    again = tuple(Site(tmp_path / f"{name} again", pair[at].model_array, np.zeros(P, np.float32)) for at, name in enumerate("ab"))
    for site in again:
        made = [site.files.adopt(site.files.scratch(4 * P), leaves=[bytes([n]) * 32]) for n in range(6)]
        site.files.make_durable(made)
        site.files.remove_except(frozenset())
        scratch = site.files.scratch(4 * P)
        assert site.files.writer(scratch) is not None
        site.files.discard(scratch)
    for site, found, once in zip(again, exchange(*again)[::-1], fresh[::-1], strict=True):
        assert found == once
        site.files.make_durable([found.model, found.own, found.theirs])
        on_disk = Files(RealDisk(site.folder))
        assert not on_disk.missing([found.model, found.own, found.theirs]), "each is checked against its sum"


def test_an_exchange_by_compiled_loops_is_the_same_to_the_last_bit(
    pair: tuple[Site, Site], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("numba", reason="numba is not installed; it comes with gossipfl[fast]")
    by_numpy, asked, fast = exchange(*pair), [], loops.compiled()
    assert fast is not None
    monkeypatch.setattr(loops, "LARGE", 0)
    monkeypatch.setattr(loops, "compiled", lambda: asked.append(1) or fast)
    again = tuple(Site(tmp_path / f"{name} again", pair[at].model_array, np.zeros(P, np.float32)) for at, name in enumerate("ab"))
    looped = exchange(*again)
    assert looped == by_numpy and len(asked) > 4 * 8, "names, digests and norms; nearly every piece of every walk"
    for site, other, one in zip(pair, again, by_numpy[::-1], strict=True):
        made = {one.model, one.own, one.theirs, one.payload} - {b""}
        assert all(site.files.read(name) == other.files.read(name) for name in made)
        other.files.make_durable(made)
        assert not Files(RealDisk(other.folder)).missing(made), "each is checked against its sum"


def test_where_one_end_has_a_compiler_and_the_other_has_not_both_compute_the_same(
    pair: tuple[Site, Site], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("numba", reason="numba is not installed; it comes with gossipfl[fast]")
    large = loops.LARGE

    def change(stage: str) -> None:
        monkeypatch.setattr(loops, "LARGE", 0 if stage == "sent" else large)

    answered, mixed = exchange(*pair, change)
    assert (answered.q, answered.own, answered.theirs) == (mixed.q, mixed.theirs, mixed.own)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc gives the temporaries back before it was told")
def test_temporaries_that_come_again_fault_on_no_page_again() -> None:
    workbench.keep_what_is_freed()

    def faults() -> int:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        pieces = [np.ones(workbench.PIECE, np.uint8) for _ in range(8)]
        del pieces
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    faults()
    assert sum(faults() for _ in range(10)) < workbench.PIECE // resource.getpagesize()


def test_both_ends_of_a_large_exchange_compute_the_same_and_meet(pair: tuple[Site, Site]) -> None:
    answered, mixed = exchange(*pair)
    assert (answered.q, answered.own, answered.theirs) == (mixed.q, mixed.theirs, mixed.own)
    a, b = (site.files.array(found.model, np.float32) for site, found in zip(pair, (mixed, answered), strict=True))
    np.testing.assert_allclose(a, b, atol=1e-6)


@pytest.mark.parametrize(("dtype", "codec"), [("float32", "f32"), ("float64", "f64"), ("float32", "int8"), ("float64", "bf16")])
@pytest.mark.parametrize("moments", [0, 5])
def test_a_vector_of_one_piece_becomes_what_one_of_many_becomes(
    dtype: str, codec: str, moments: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = two_exchanges(dtype, codec, moments)
    monkeypatch.setattr(workbench, "PIECE", digest.CHUNK)
    pieces = two_exchanges(dtype, codec, moments)
    for one, other in zip(whole, pieces, strict=True):
        assert one[1] == other[1], "names and contents, to the last bit"
        assert one[0] == pytest.approx(other[0], rel=1e-6), "norms, which are added up piece by piece"


def two_exchanges(dtype: str, codec: str, moments: int) -> list[tuple[list[float], dict[str, Any]]]:
    """What is made at both ends, with flows and corrections, and a displacement absorbed between: (norms, all else). What is
    durable is read from the disk each time, and checked."""
    size = 20_000
    drawn = np.random.default_rng(3).standard_normal((3, size + moments)).astype(dtype)
    files = [Store.modelled(kept_bytes=0).files for _ in range(2)]
    bench = Bench(size, moments, dtype, lambda _: pytest.fail("no training"), lambda *_: None, (1,))
    hands = [Workbench(bench, one) for one in files]
    models = [store.put(vector) for store, vector in zip(files, drawn[:2], strict=True)]
    out, into = ([store.put(np.zeros_like(drawn[0])) for store in files] for _ in range(2))
    flows, drifts, made = [b"", b""], [b"", b""], []

    def done(end: int, job: ev.Job) -> Any:
        found = hands[end].carry_out(job)
        said = msgspec.structs.asdict(found)
        norms = [said.pop("distance", 0.0)]
        names = [name for name in ev.names(found) if files[end].has(name)]
        files[end].make_durable(names)
        held = {name.hex(): bytes(files[end].read(name)) for name in names}
        made.append((norms, {**said, **held}))
        return found

    def mixing(end: int, incoming: bytes, **more: Any) -> Any:
        files[end].put(files[1 - end].read(incoming), pinned=True)
        found = done(end, ev.Mix(
            job=2, space="model", lower=end == 0, incoming=incoming, reference_in=into[end], reference_out=out[end],
            model=models[end], flow=flows[end], correction=drifts[end], codec=codec, seed=b"", mass=2.0, mass_peer=2.0, gamma=0.5,
            kappa=0.3, tau=1e9, leak=0.9, cap_norm=1e9, peer="other", **more,
        ))  # fmt: skip
        models[end], flows[end], drifts[end] = found.model, found.flow, found.correction
        out[end], into[end] = found.own, found.theirs
        return found

    for _ in range(2):
        sent = done(0, ev.Encode(job=1, space="model", model=models[0], reference=out[0], codec=codec, seed=b""))
        answer = mixing(1, sent.root)
        mixing(0, answer.payload, payload=sent.root, q=answer.q, clip=answer.clip, cap=answer.cap)
        models[1] = done(1, ev.Absorb(job=3, model=models[1], displacement=files[1].put(drawn[2]))).model
    made += [([one.straightness["other"].length], {}) for one in hands]
    return made


class Still:
    """A learner that stays where it is, and tells what it was given to draw from."""

    def __init__(self) -> None:
        self.given: list[Any] = []

    def train(self, vector: np.ndarray, correction: np.ndarray | None, plan: Any, rng: Any) -> Outcome:
        self.given.append(rng)
        return Outcome(vector, 1, 0.0, 0.0)


class Drawless(Still):
    draws = False


def test_a_learner_that_says_it_draws_nothing_is_given_no_generator_and_any_other_its_own() -> None:
    drawn = []
    for learner in (Still(), Still(), Drawless()):
        files = Store.modelled().files
        hands = Workbench(Bench(3, 0, "float64", lambda _, it=learner: it, lambda *_: None, (7, 2)), files)
        trained = hands.carry_out(ev.Train(job=1, model=files.put(np.ones(3)), correction=b"", local_round=5, steps=1, eta=0.1))
        assert isinstance(trained, ev.Trained)
        drawn += [None if rng is None else rng.integers(2**63) for rng in learner.given]
    assert drawn == [*[np.random.Generator(np.random.PCG64([7, 2, 5])).integers(2**63)] * 2, None]
