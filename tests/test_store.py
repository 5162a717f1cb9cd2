"""Laws of the store: what a commit promises holds after a crash at any point, and what changed on disk is noticed.

Real processes that are really killed are in test_store_kill.py.
"""

from __future__ import annotations

import gc
import os
import random
import resource
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gossipfl import digest
from gossipfl.errors import ConfigError, Exit, Misuse
from gossipfl.store import Crash, Damaged, Missing, ModelledDisk, ModelledRows, SqliteRows, StateError, Store, disk
from gossipfl.store.disk import RealDisk
from gossipfl.store.files import PARTIALS, RAM_BYTES, SUM, Files
from gossipfl.sums import sum_of

LARGE = RAM_BYTES + 12_345


@dataclass(frozen=True)
class Said:
    kind: str
    fields: dict[str, Any] = field(default_factory=dict)


def content(seed: int, size: int) -> bytes:
    return random.Random(seed).randbytes(size)


def files_on(place: str, tmp_path: Path) -> Files:
    return Files(ModelledDisk()) if place == "modelled" else Files(RealDisk(tmp_path))


@pytest.fixture(params=["real", "modelled"])
def files(request: pytest.FixtureRequest, tmp_path: Path) -> Files:
    return files_on(request.param, tmp_path)


@pytest.fixture(params=["real", "modelled"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    with Store.modelled() if request.param == "modelled" else Store.open(tmp_path / "state") as opened:
        yield opened


# ---- blobs ---------------------------------------------------------------------------------------------------------

SIZES = [0, 1, digest.CHUNK, digest.CHUNK + 1, RAM_BYTES - 1, RAM_BYTES, LARGE]


@pytest.mark.parametrize("size", SIZES)
def test_what_is_put_is_read_under_the_name_of_its_content(files: Files, size: int) -> None:
    blob = content(size, size)
    name = files.put(blob)
    assert name == digest.name_of(blob)
    assert files.read(name) == blob and files.size(name) == size and files.has(name)
    assert files.read(name).readonly
    assert files.tree(name).root == name
    assert not files.is_durable(name)


@pytest.mark.parametrize("size", SIZES)
def test_a_scratch_becomes_the_blob_that_was_written_into_it(files: Files, size: int) -> None:
    blob = content(size, size)
    scratch = files.scratch(size)
    scratch[:] = blob
    name = files.adopt(scratch)
    assert name == digest.name_of(blob) and files.read(name) == blob and files.read(name).readonly


def adopted(files: Files, name: bytes, blob: bytes, summed: bool = True) -> None:
    """`blob` stands under a name that is not that of its content."""
    scratch = files.scratch(len(blob))
    scratch[:] = blob
    files.adopt_as(name, scratch, sum_of(blob) if summed else b"")


def test_a_payload_announced_by_a_name_that_is_not_of_its_content_has_to_come(files: Files) -> None:
    """A peer knows the names of replicas: one of them is no proof that the payload is here."""
    adopted(files, b"n" * 32, content(400, 1))
    assert not files.incoming(b"n" * 32, 400).done


@pytest.mark.parametrize("summed", [True, False])
@pytest.mark.parametrize("size", SIZES)
def test_a_blob_under_the_name_of_what_made_it_is_durable_like_any_other(files: Files, size: int, summed: bool) -> None:
    name, blob = b"n" * 32, content(size, size)
    adopted(files, name, blob, summed)
    adopted(files, name, blob, summed)
    assert files.has(name) and files.read(name) == blob and files.read(name).readonly
    assert files.due_sum(name) == b"" and not files.unsound([name]), "what is in memory is as it was made"
    assert not Files(files.disk).has(name)
    again = Files(files.disk)
    adopted(again, name, blob, summed)
    again.make_durable([name])
    assert list(again.disk.list()) == [f"{name.hex()}-{sum_of(blob)[:SUM].hex()}"]
    third = Files(files.disk)
    assert third.is_durable(name) and third.missing([name]) == frozenset() and third.read(name) == blob
    third.remove_except(frozenset())
    third.close()
    assert third.disk.list() == {}


@pytest.mark.parametrize("size", SIZES)
def test_a_durable_blob_is_there_after_a_restart_and_a_volatile_one_is_not(files: Files, size: int) -> None:
    kept, lost = files.put(content(1, size) + b"k"), files.put(content(2, size) + b"l")
    files.make_durable([kept, b""])
    assert files.is_durable(kept) and not files.is_durable(lost)
    again = Files(files.disk)
    assert again.read(kept) == content(1, size) + b"k"
    assert not again.has(lost)
    assert list(again.disk.list()) == [kept.hex()]
    with pytest.raises(Missing):
        again.read(lost)


@pytest.mark.parametrize("size", SIZES)
def test_what_was_hashed_when_it_was_made_is_not_hashed_again_for_its_paths(files: Files, size: int) -> None:
    name = files.put(content(3, size))
    made = files.tree(name)
    files.make_durable([name])
    assert files.tree(name) is made


def test_a_vector_goes_in_and_comes_out_unchanged_and_cannot_be_written_to(files: Files) -> None:
    vector = np.arange(500_000, dtype=np.float32).reshape(2, -1)
    found = files.array(files.put(vector), "float32")
    np.testing.assert_array_equal(found, vector.ravel())
    with pytest.raises(ValueError, match="read-only"):
        found[0] = 1
    with pytest.raises(Misuse):
        files.put(vector[:, ::2])
    with pytest.raises(Misuse):
        files.array(files.put(b"abc"), "float32")


def test_computing_into_a_scratch_copies_nothing(tmp_path: Path) -> None:
    files = Files(RealDisk(tmp_path))
    scratch = files.scratch(LARGE * 4)
    vector = np.frombuffer(scratch, np.float32)
    vector[:] = 1.5
    name = files.adopt(scratch)
    assert np.shares_memory(files.array(name, np.float32), vector)
    inode = next(tmp_path.iterdir()).stat().st_ino
    files.make_durable([name])
    assert (tmp_path / name.hex()).stat().st_ino == inode
    np.testing.assert_array_equal(files.array(name, np.float32), vector)


def test_a_scratch_that_is_dropped_leaves_no_file(files: Files) -> None:
    scratch = files.scratch(LARGE)
    array = np.frombuffer(scratch, np.uint8)
    files.discard(files.scratch(LARGE))
    files.remove_except(frozenset())
    assert len(files.disk.list()) == 1
    del scratch
    gc.collect()
    files.remove_except(frozenset())
    assert files.disk.list() == {}
    assert not array.any(), "memory that is still used stays valid"


def test_space_is_used_again_when_nobody_sees_it_and_given_back_at_the_end(tmp_path: Path) -> None:
    files = Files(RealDisk(tmp_path))

    def made(seed: int) -> bytes:
        scratch = files.scratch(2 * RAM_BYTES)
        scratch[:] = content(seed, 2 * RAM_BYTES)
        name = files.adopt(scratch)
        files.make_durable([name])
        return name

    seen, unseen = made(1), made(2)
    view, inodes = files.read(seen), {each.stat().st_ino for each in tmp_path.iterdir()}
    files.remove_except(frozenset())
    assert not files.has(seen) and not files.has(unseen)
    again, another = made(3), made(4)
    assert len(inodes & {each.stat().st_ino for each in tmp_path.iterdir()}) == 1, "that of the unseen one"
    assert view == content(1, 2 * RAM_BYTES), "a view that is held never changes"
    assert files.read(again) == content(3, 2 * RAM_BYTES) and files.read(another) == content(4, 2 * RAM_BYTES)
    fresh = Files(RealDisk(tmp_path))
    assert fresh.read(again) == content(3, 2 * RAM_BYTES), "what is durable is found under its name"
    files.remove_except({again})
    files.close()
    assert sorted(each.name for each in tmp_path.iterdir()) == [again.hex()]


def test_what_was_synced_is_written_and_what_nobody_will_sync_is_made_of_what_nobody_has_synced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk, "SYNCED_S", -1.0)  # on any file system
    files, size, inodes = Files(RealDisk(tmp_path)), 2 * RAM_BYTES, set()
    for passing in (True, False, True):
        scratch = files.scratch(size, passing=passing)
        assert files.writer(scratch) is None, "no page of a new file is protected"
        scratch[:] = content(len(inodes), size)
        name = files.adopt(scratch)
        if not passing:
            files.make_durable([name])
        inodes |= {each.stat().st_ino for each in tmp_path.iterdir()}
        del scratch
    files.remove_except(frozenset())
    first, second, lasting = files.scratch(size, passing=True), files.scratch(size, passing=True), files.scratch(size)
    assert {each.stat().st_ino for each in tmp_path.iterdir()} == inodes
    assert files.writer(first) is files.writer(second) is None
    write = files.writer(lasting)
    assert write is not None
    expected = content(9, size)
    for at in (RAM_BYTES, 0):
        write(at, expected[at : at + RAM_BYTES])
    assert lasting == expected, "what is written is seen at once"
    name = files.adopt(lasting)
    files.make_durable([name])
    assert Files(RealDisk(tmp_path)).read(name) == expected


def test_what_goes_wrong_in_a_sync_that_was_begun_early_is_heard_by_who_relies_on_it(tmp_path: Path) -> None:
    files = Files(RealDisk(tmp_path))
    sound, gone = files.scratch(LARGE), files.scratch(LARGE)
    sound[:], gone[:] = content(1, LARGE), content(2, LARGE)
    files.settle(sound)
    next(tmp_path.glob("*1.tmp")).unlink()
    files.settle(gone)
    kept, lost = files.adopt(sound), files.adopt(gone)
    with pytest.raises(StateError, match="make a blob durable"):
        files.make_durable([lost])
    assert not files.is_durable(lost)
    files.make_durable([kept])
    assert Files(RealDisk(tmp_path)).read(kept) == content(1, LARGE)
    files.settle(files.scratch(LARGE))  # dropped while its sync is under way
    files.remove_except({kept})
    files.close()
    assert [each.name for each in tmp_path.iterdir()] == [kept.hex()]


def test_the_same_content_is_kept_once(files: Files) -> None:
    blob = content(3, LARGE)
    name = files.put(blob)
    scratch = files.scratch(LARGE)
    scratch[:] = blob
    assert files.put(blob) == files.adopt(scratch) == name
    assert len(files.disk.list()) == 1


def test_only_what_is_live_or_pinned_stays(files: Files) -> None:
    live, pinned, born, dead = (files.put(content(n, n * 1000), pinned=n == 3) for n in (1, 2, 3, 4))
    gone = files.put(content(5, LARGE))
    files.make_durable([live, dead])
    files.pin([pinned, pinned])
    view = files.read(gone)
    files.remove_except({live})
    assert files.names() == {live, pinned, born}
    assert view == content(5, LARGE), "a view outlives its blob"
    files.unpin([pinned, born])
    files.remove_except({live})
    assert files.names() == {live, pinned}
    files.unpin([pinned])
    files.remove_except({live})
    assert files.names() == {live} and list(files.disk.list()) == [live.hex()]
    with pytest.raises(Misuse):
        files.unpin([pinned])


def test_what_a_job_put_pinned_is_not_removed_by_a_commit_in_another_thread(store: Store) -> None:
    def job(start: int) -> int:
        for number in range(start, start + 50):
            blob = content(number % 60, LARGE if number % 10 == 0 else 2000)
            name = store.files.put(blob, pinned=True)
            assert store.files.read(name) == blob
            store.files.unpin([name])
        return start

    with ThreadPoolExecutor(2) as pool:
        jobs = [pool.submit(job, 0), pool.submit(job, 25)]
        while not all(each.done() for each in jobs):
            kept = store.files.put(b"kept")
            store.commit([], [kept], [], 0, frozenset())
        assert [each.result() for each in jobs] == [0, 25]
    store.files.remove_except(frozenset())
    assert store.files.disk.list() == {}


@pytest.mark.parametrize("size", [1, 100, LARGE])
def test_a_flipped_bit_in_a_file_is_noticed_at_the_first_read_and_repaired_by_putting_it_again(size: int) -> None:
    disk = ModelledDisk()
    blob = content(6, size)
    files = Files(disk)
    name = files.put(blob)
    files.make_durable([name])
    for bit in {0, size * 4, size * 8 - 1}:
        disk.flip(name.hex(), bit)
        again = Files(disk)
        with pytest.raises(Damaged, match="new epoch"):
            again.read(name)
        assert again.missing([name, b""]) == {name} and not again.has(name) and not again.is_durable(name)
        assert again.put(blob) == name and again.missing([name]) == frozenset()
        again.make_durable([name])
        assert Files(disk).read(name) == blob


@pytest.mark.parametrize("size", [1, 100, LARGE])
def test_a_flipped_bit_under_a_name_that_is_not_the_contents_is_noticed_and_repaired_alike(size: int) -> None:
    disk, name, blob = ModelledDisk(), b"n" * 32, content(6, size)
    files = Files(disk)
    adopted(files, name, blob)
    files.make_durable([name])
    (file,) = disk.list()
    for bit in {*range(min(size * 8, 800)), size * 4, size * 8 - 1}:
        disk.flip(file, bit)
        again = Files(disk)
        with pytest.raises(Damaged, match="new epoch"):
            again.read(name)
        assert again.missing([name]) == {name} and not again.is_durable(name)
        adopted(again, name, blob)
        again.make_durable([name])
        assert list(disk.list()) == [file] and Files(disk).read(name) == blob


@pytest.mark.parametrize("damage", ["flipped", "gone"])
def test_what_is_made_again_takes_the_place_of_a_file_that_was_damaged_while_it_was_here(damage: str) -> None:
    """gossipfl swarm --first-seed 1953 --seeds 1 --hours 24 --nodes 13: a replica was made that stood on the disk already under
    its name, where a bit had flipped meanwhile; the sound one was let go."""
    disk, name, blob = ModelledDisk(), b"n" * 32, content(7, 100)
    files = Files(disk, kept_bytes=0)
    adopted(files, name, blob)
    root = files.put(blob)
    files.make_durable([name, root])
    assert files.read(name) == files.read(root) == blob
    for file in disk.list():
        disk.flip(file, 5) if damage == "flipped" else disk.unlink(file)
    assert files.put(blob) == root
    adopted(files, name, blob)
    files.make_durable([name, root])
    assert Files(disk).missing([name, root]) == frozenset()


@pytest.mark.parametrize("damage", ["cut", "longer", "gone"])
def test_a_file_of_the_wrong_length_or_none_is_noticed(tmp_path: Path, damage: str) -> None:
    files = Files(RealDisk(tmp_path))
    name = files.put(content(7, LARGE))
    files.make_durable([name])
    path = tmp_path / name.hex()
    again = Files(RealDisk(tmp_path))
    if damage == "gone":
        path.unlink()
    else:
        os.truncate(path, LARGE + (1 if damage == "longer" else -1))
    assert again.missing([name]) == {name}
    assert not again.has(name)


def test_files_that_are_not_ours_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "README").write_text("mine")
    (tmp_path / "00000000.tmp").write_text("left by a crash")
    strange = ["README", "ab" * 32 + "-", "ab" * 32 + "-00", "ab" * 32 + "-" + "AB" * SUM, "ab" * 31 + "-" + "00" * SUM]
    for name in strange[1:]:
        (tmp_path / name).write_text("no name of ours")
    files = Files(RealDisk(tmp_path))
    files.remove_except(frozenset())
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(strange) and not files.names()


# ---- payloads under way --------------------------------------------------------------------------------------------


def chunks(blob: bytes) -> list[bytes]:
    return [blob[start : start + digest.CHUNK] for start in range(0, len(blob), digest.CHUNK)]


@pytest.mark.parametrize("size", [0, 1, digest.CHUNK, digest.CHUNK + 1, LARGE])
def test_a_payload_is_complete_when_its_last_chunk_is_here(files: Files, size: int) -> None:
    blob = content(size, size)
    incoming = files.incoming(digest.name_of(blob), size)
    for index, chunk in enumerate(chunks(blob)):
        assert incoming.next_chunk == index
        with pytest.raises(Misuse):
            incoming.finish()
        incoming.write(index, chunk)
    assert incoming.finish() == incoming.finish() == digest.name_of(blob)
    assert files.read(incoming.root) == blob
    again = files.incoming(incoming.root, size)
    assert again.done and again.finish(pinned=True) == incoming.root


@pytest.mark.parametrize("damage", ["flipped", "gone"])
def test_a_payload_that_was_here_and_has_been_damaged_since_has_to_come_again(damage: str) -> None:
    disk, blob = ModelledDisk(), content(9, 100)
    files = Files(disk, kept_bytes=0)
    root = files.put(blob)
    files.make_durable([root])
    assert files.incoming(root, 100).done
    files.abandon(root)
    disk.flip(root.hex(), 5) if damage == "flipped" else disk.unlink(root.hex())
    incoming = files.incoming(root, 100)
    assert not incoming.done
    incoming.write(0, blob)
    files.make_durable([incoming.finish()])
    assert Files(disk).read(root) == blob


def test_a_payload_goes_on_where_the_last_session_stopped_and_two_may_bring_it_at_once(files: Files) -> None:
    blob = content(8, LARGE)
    root, parts = digest.name_of(blob), chunks(blob)
    first = files.incoming(root, LARGE)
    first.write(0, parts[0])
    first.write(1, parts[1])
    files.remove_except(frozenset())
    second = files.incoming(root, LARGE)
    assert second.next_chunk == 2
    first.write(0, parts[0])
    for index in range(2, len(parts)):
        second.write(index, parts[index])
    assert first.finish() == second.finish() == root and files.read(root) == blob


@pytest.mark.parametrize(("index", "size"), [(1, digest.CHUNK), (-1, digest.CHUNK), (0, 1), (0, digest.CHUNK + 1)])
def test_a_gap_or_a_wrong_length_of_a_chunk_is_our_fault(files: Files, index: int, size: int) -> None:
    with pytest.raises(Misuse):
        files.incoming(b"r" * 32, 3 * digest.CHUNK).write(index, bytes(size))


def test_unfinished_payloads_are_bounded_and_the_one_that_rested_longest_makes_room(files: Files) -> None:
    begun = [files.incoming(number.to_bytes(32), digest.CHUNK) for number in range(PARTIALS)]
    assert files.incoming(begun[0].root, digest.CHUNK) is begun[0]
    files.incoming(b"x" * 32, LARGE)
    begun[0].write(0, bytes(digest.CHUNK))
    with pytest.raises(Missing, match="abandoned"):
        begun[1].write(0, bytes(digest.CHUNK))
    files.abandon(b"x" * 32)
    assert files.disk.list() == {}


# ---- rows ----------------------------------------------------------------------------------------------------------


def test_rows_are_set_replaced_and_deleted_and_facts_are_numbered(store: Store) -> None:
    store.commit([("link", "a", b"1"), ("link", "b", b"")], [], [Said("begun", {"tau": float("inf")})], 7, frozenset())
    store.commit([("link", "a", None), ("link", "b", b"2"), ("peer", "a", b"3")], [], [], 8, frozenset())
    store.commit([("link", "none", None)], [], [Said("done"), Said("done", {"k": [1, "x", None]})], 9, frozenset())
    assert store.load() == {("link", "b"): b"2", ("peer", "a"): b"3"}
    assert [(r.seq, r.wall_ns, r.kind) for r in store.facts()] == [(1, 7, "begun"), (2, 9, "done"), (3, 9, "done")]
    assert store.facts(2)[0].fields == {"k": [1, "x", None]} and store.facts(3) == []
    assert [record.seq for record in store.facts(1, 1)] == [2]


def test_fields_that_json_cannot_say_and_rows_that_are_no_bytes_change_nothing(store: Store) -> None:
    with pytest.raises(Misuse, match="JSON"):
        store.commit([("a", "b", b"c")], [], [Said("bad", {"key": b"secret"})], 0, frozenset())
    with pytest.raises(Misuse):
        store.commit([("a", "b", "text")], [], [], 0, frozenset())  # type: ignore[list-item]
    assert store.load() == {} and store.facts() == []


def test_a_commit_of_a_name_that_is_not_here_changes_nothing(store: Store) -> None:
    name = store.files.put(b"here")
    with pytest.raises(Missing):
        store.commit([("a", "b", b"c")], [name, b"?" * 32], [], 0, {name})
    assert store.load() == {} and store.files.has(name)


@pytest.mark.parametrize("file", ["rows.sqlite", "rows.sqlite-wal"])
@pytest.mark.parametrize("back", [True, False])
def test_nothing_is_committed_into_a_file_that_was_removed_or_replaced_under_a_running_node(
    tmp_path: Path, file: str, back: bool
) -> None:
    """SQLite goes on with what it holds open, and the next process would find none of it."""
    store = Store.open(tmp_path / "s")
    store.commit([("a", "b", b"1")], [], [], 0, frozenset())
    store.commit([("a", "b", b"2")], [], [], 0, frozenset())
    os.rename(tmp_path / "s" / file, tmp_path / "moved")
    if not back:
        (tmp_path / "s" / file).write_bytes((tmp_path / "moved").read_bytes())
    for _ in range(2):
        with pytest.raises(StateError, match="has been removed or replaced while the node ran"):
            store.commit([("a", "b", b"3")], [], [], 0, frozenset())
    if back:
        os.rename(tmp_path / "moved", tmp_path / "s" / file)
    store.close()
    with Store.open(tmp_path / "s") as again:
        assert again.load() == {("a", "b"): b"2"}


def test_rows_facts_and_files_are_there_after_a_restart(tmp_path: Path) -> None:
    with Store.open(tmp_path / "s") as store:
        name = store.files.put(content(9, LARGE))
        store.commit([("link", "a", name)], [name], [Said("begun")], 5, {name})
        before = store.facts()
    with Store.open(tmp_path / "s") as store:
        assert store.load() == {("link", "a"): name} and store.facts() == before
        assert store.files.read(name) == content(9, LARGE)
        store.commit([("link", "a", None)], [], [], 6, frozenset())
        assert store.files.names() == frozenset()
    for path in [tmp_path / "s", *(tmp_path / "s").rglob("*")]:
        assert path.stat().st_mode & 0o077 == 0, path


def test_the_log_of_facts_is_bounded_and_its_numbers_go_on(tmp_path: Path) -> None:
    rows = SqliteRows(tmp_path / "rows.sqlite", keep_facts=10)
    for number in range(7):
        rows.apply([], [Said("a", {"n": number}), Said("b")], number)
    rows.close()
    rows = SqliteRows(tmp_path / "rows.sqlite", keep_facts=10)
    assert [record.seq for record in rows.facts()] == list(range(5, 15))
    rows.close()


def sample(folder: Path) -> tuple[dict[tuple[str, str], bytes], list[Any]]:
    rows = SqliteRows(folder / "rows.sqlite")
    for number in range(6):
        changes = [("link", f"peer{number}", content(number, 300)), ("counter", "k", bytes([number]))]
        rows.apply(changes, [Said("exchange", {"k": number, "peer": f"p{number}"})], number)
    everything = rows.load(), rows.facts()
    rows.close()
    return everything


def found_or_refused(folder: Path) -> Any:
    try:
        rows = SqliteRows(folder / "rows.sqlite")
    except Damaged:
        return None
    try:
        return rows.load(), rows.facts()
    except Damaged:
        return None
    finally:
        rows.close()


def test_any_flipped_bit_in_the_rows_is_refused_or_changes_nothing(tmp_path: Path) -> None:
    expected = sample(tmp_path)
    path = tmp_path / "rows.sqlite"
    sound = path.read_bytes()
    used = [at for at in range(len(sound)) if sound[at]]
    rng = random.Random(1)
    refused = 0
    for at in [*range(100), *rng.sample(used, 500), *rng.sample(range(len(sound)), 100)]:
        broken = bytearray(sound)
        broken[at] ^= 1 << rng.randrange(8)
        for left in tmp_path.glob("rows.sqlite-*"):
            left.unlink()
        path.write_bytes(broken)
        found = found_or_refused(tmp_path)
        refused += found is None
        assert found is None or found == expected, f"byte {at}"
    assert refused > 400


def test_any_flipped_bit_in_the_write_ahead_log_is_refused_or_changes_nothing(tmp_path: Path) -> None:
    """SQLite itself would drop the last commits without a word."""
    crashed = tmp_path / "crashed"
    crashed.mkdir()
    rows = SqliteRows(tmp_path / "rows.sqlite")
    for number in range(5):
        rows.apply([("counter", "k", bytes([number]))], [Said("exchange", {"k": number})], number)
    expected = rows.load(), rows.facts()
    sound = {path.name: path.read_bytes() for path in tmp_path.glob("rows.*") if not path.name.endswith("-shm")}
    rows.close()
    rng = random.Random(2)
    refused = 0
    for _ in range(200):
        for left in crashed.iterdir():
            left.unlink()
        for name, data in sound.items():
            (crashed / name).write_bytes(data)
        broken = bytearray(sound["rows.sqlite-wal"])
        broken[rng.randrange(len(broken))] ^= 1 << rng.randrange(8)
        (crashed / "rows.sqlite-wal").write_bytes(broken)
        found = found_or_refused(crashed)
        refused += found is None
        assert found is None or found == expected
    assert refused > 100


def test_rows_that_were_removed_or_changed_by_hand_are_refused(tmp_path: Path) -> None:
    sample(tmp_path)
    sound = (tmp_path / "rows.sqlite").read_bytes()
    for statement in (
        "DELETE FROM rows WHERE kind = 'counter'",
        "UPDATE rows SET value = x'00' WHERE kind = 'counter'",
        "UPDATE rows SET key = 'j' WHERE kind = 'counter'",
        "DELETE FROM facts WHERE seq = 3",
        "DELETE FROM facts WHERE seq = 6",
        "UPDATE facts SET wall_ns = 9 WHERE seq = 3",
        "UPDATE seal SET commits = commits + 1",
        "DELETE FROM seal",
        "DROP TABLE rows",
    ):
        (tmp_path / "rows.sqlite").write_bytes(sound)
        db = sqlite3.connect(tmp_path / "rows.sqlite")
        db.execute(statement)
        db.commit()
        db.close()
        assert found_or_refused(tmp_path) is None, statement


def test_t25_older_rows_put_back_in_place_are_refused(tmp_path: Path) -> None:
    sample(tmp_path)
    older = (tmp_path / "rows.sqlite").read_bytes()
    rows = SqliteRows(tmp_path / "rows.sqlite")
    rows.apply([("counter", "k", b"7")], [], 0)
    rows.close()
    (tmp_path / "rows.sqlite").write_bytes(older)
    with pytest.raises(Damaged, match="commit 6 where commit 7 was done"):
        SqliteRows(tmp_path / "rows.sqlite")
    (tmp_path / "rows.sqlite").unlink()
    with pytest.raises(Damaged, match="all rows are gone"):
        SqliteRows(tmp_path / "rows.sqlite")


# ---- crashes -------------------------------------------------------------------------------------------------------


def work(store: Store, done: Callable[[int], None]) -> None:
    """Four commits: a row names two blobs, the older one of a row goes, one file is made by scratch, one by put."""
    for number in range(4):
        if number % 2:
            first = bytes([number]) * 32
            adopted(store.files, first, content(number, 90))
        else:
            scratch = store.files.scratch(90)
            scratch[:] = content(number, 90)
            first = store.files.adopt(scratch)
        second = store.files.put(content(number + 100, 40 + 60 * (number % 2)))
        rows = [("names", "now", first + second), ("count", "now", bytes([number]))]
        store.commit(rows, [first, second], [Said("done", {"n": number})], number, {first, second})
        done(number)


def test_after_a_crash_at_any_point_every_image_of_the_disk_opens_to_a_whole_commit() -> None:
    images = 0
    for crash_at in range(1000):
        disk, done = ModelledDisk(), [-1]
        rows = ModelledRows(disk)
        disk.crash_at = crash_at
        try:
            work(Store(Files(disk, ram_bytes=64), rows), done.append)
        except Crash:
            pass
        else:
            break
        for image in disk.images():
            images += 1
            again = Store(Files(image, ram_bytes=64), rows.crash(image))
            found = again.load()
            if found:
                count, names = found["count", "now"][0], found["names", "now"]
                assert count in (done[-1], done[-1] + 1)
                assert again.files.missing([names[:32], names[32:]]) == frozenset()
                assert again.facts()[-1].fields == {"n": count}
            else:
                assert done == [-1]
            assert not any(name.endswith(".tmp") for name in image.list())
    assert 30 < crash_at < 999 and images > 500
    work(again, done.append)
    assert done[-1] == 3


@pytest.mark.parametrize("survival", [0.0, 0.5, 1.0])
def test_a_modelled_store_keeps_what_was_committed_whatever_survives(survival: float) -> None:
    rng = random.Random(4)
    store = Store.modelled()
    for number in range(20):
        loose = store.files.put(content(number, LARGE))
        kept = store.files.put(content(number, 500))
        store.commit([("n", "n", kept)], [kept], [], number, {kept, loose})
        store.files.put(content(-number, LARGE))
        store = store.crash(rng, survival)
        assert store.load() == {("n", "n"): kept}
        assert store.files.read(kept) == content(number, 500)


@pytest.mark.parametrize("size", [500, LARGE])
def test_a_full_disk_is_an_error_with_a_remedy_and_the_state_stays(size: int) -> None:
    disk = ModelledDisk(capacity=size + 100)
    store = Store.modelled(disk)
    first = store.files.put(content(1, size))
    store.commit([("n", "n", first)], [first], [], 0, {first})
    with pytest.raises(StateError, match="disk is full: free some space") as caught:
        second = store.files.put(content(2, size))
        store.commit([("n", "n", second)], [second], [], 0, {second})
    assert caught.value.exit_code == Exit.STATE
    with pytest.raises(StateError):
        store.files.scratch(LARGE)
    with pytest.raises(StateError):
        store.files.incoming(b"r" * 32, LARGE)
    assert store.load() == {("n", "n"): first} and list(disk.list()) == [first.hex()]
    disk.capacity = None
    assert store.files.put(content(2, size)) == digest.name_of(content(2, size))


# ---- the folder ----------------------------------------------------------------------------------------------------


@contextmanager
def files_no_larger_than(size: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_real_disk_that_takes_no_more_leaves_the_state_as_it_was(tmp_path: Path) -> None:
    with Store.open(tmp_path / "s") as store:
        first = store.files.put(content(1, 500))
        store.commit([("n", "n", first)], [first], [], 0, {first})
        with files_no_larger_than(200_000):
            for attempt in (lambda: store.files.put(content(2, LARGE)), lambda: store.files.scratch(LARGE)):
                with pytest.raises(StateError, match="limit"):
                    attempt()
            with pytest.raises(StateError, match="limit"):
                store.commit([], [store.files.put(content(3, 300_000))], [], 0, {first})
            with pytest.raises(StateError, match="cannot use"):
                store.commit([("big", "row", content(4, 300_000))], [], [Said("x")], 0, {first})
        with pytest.raises(StateError, match="stopped after an earlier failure"):
            store.commit([("n", "n", b"")], [], [], 0, {first})
        assert [path.name for path in (tmp_path / "s" / "blobs").iterdir()] == [first.hex()]
    with Store.open(tmp_path / "s") as store:
        assert store.load() == {("n", "n"): first} and store.files.read(first) == content(1, 500)
        store.commit([("big", "row", content(4, 300_000))], [], [], 0, {first})


def test_a_second_process_is_turned_away_with_the_first_ones_number(tmp_path: Path) -> None:
    program = "import sys, pathlib; from gossipfl.store import Store; Store.open(pathlib.Path(sys.argv[1]))"
    with Store.open(tmp_path / "s"):
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
        command = [sys.executable, "-c", program, str(tmp_path / "s")]
        second = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        assert f"in use by process {os.getpid()}" in second.stderr
        with pytest.raises(ConfigError) as caught:
            Store.open(tmp_path / "s")
        assert caught.value.exit_code == Exit.STATE
    Store.open(tmp_path / "s").close()


def test_a_newer_format_is_refused_and_not_touched(tmp_path: Path) -> None:
    Store.open(tmp_path).close()
    (tmp_path / "format").write_text("gossipfl state 2\n")
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    with pytest.raises(ConfigError, match="format 2; this program reads format 1") as caught:
        Store.open(tmp_path)
    assert caught.value.exit_code == Exit.STATE
    assert {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before
    for text in ("", "gossipfl state 0\n", "gossipfl state 1", "gossipfl state 1\n\n", "nonsense"):
        (tmp_path / "format").write_text(text)
        with pytest.raises(ConfigError):
            Store.open(tmp_path)


def test_a_folder_of_somebody_elses_is_refused_and_not_touched(tmp_path: Path) -> None:
    (tmp_path / "patients.csv").write_text("id")
    with pytest.raises(ConfigError, match=r"holds what is no state of gossipfl \(patients.csv\)"):
        Store.open(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["patients.csv"]
    with pytest.raises(ConfigError, match="this is a file"):
        Store.open(tmp_path / "patients.csv")


def test_an_interrupted_first_start_is_taken_up(tmp_path: Path) -> None:
    for name in ("lock", "format.tmp"):
        (tmp_path / name).write_text("")
    Store.open(tmp_path).close()
    os.unlink(tmp_path / "rows.sqlite")
    Store.open(tmp_path).close()
