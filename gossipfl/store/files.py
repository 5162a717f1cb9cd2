"""Blobs by name: volatile when made, durable on demand, removed when nobody needs them.

A blob is named by its content, or by what it was computed from; then a sum of its content stands in the name of its file
(`name-sum`, in hexadecimal), so that what changed on the disk is noticed either way.
Not here: what a blob means, and which ones are needed (the core says so in each Commit). A volatile blob lives in
memory when small and in a temporary file when large, so that making it durable copies nothing: fsync, rename, fsync of
the folder. Only gossipfl.store.Store calls `make_durable` and `remove_except`, one at a time; all else may be called
from any thread.
"""

from __future__ import annotations

import errno
import os
import threading
import weakref
from collections import deque
from collections.abc import Iterable, Sequence
from collections.abc import Set as AbstractSet
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from typing import Any, Final, cast

import numpy as np
import numpy.typing as npt

from gossipfl.digest import CHUNK, Buffer, Tree, chunk_count, leaf
from gossipfl.errors import Misuse
from gossipfl.store.disk import Disk, Write
from gossipfl.store.errors import GONE, Damaged, Gone, Missing, StateError, border, explain
from gossipfl.store.incoming import Incoming
from gossipfl.sums import sum_of

RAM_BYTES: Final = 1 << 20
"""From this size on a volatile blob is a temporary file: hundreds may be held, and memory is bounded."""

PARALLEL_BYTES: Final = 4 << 20
"""From this size on a blob is hashed in threads (hashlib releases the GIL): a quarter of a second becomes an eighth."""

HASHERS: Final = min(4, os.cpu_count() or 1)

KEPT_BYTES: Final = 64 * 1024
"""Below this size a durable blob stays in memory, too: opening its file costs more than using it, and what it holds is what was
written, or was checked when it was read."""

PARTIALS: Final = 256
"""Unfinished payloads kept for resumption: one for each connection that there may be."""

SUM: Final = 16
"""Bytes of a sum that stand in the name of a file."""

TEMPORARY: Final = ".tmp"


@dataclass(slots=True)
class _Blob:
    size: int
    buffer: memoryview | None = None
    path: str | None = None
    durable: bool = False
    sound: bool | None = True
    """does the content have the name? None: a file of an earlier process, not yet looked at"""
    tree: Tree | None = None
    computed: bool = False
    """is its name that of what it was computed from, and not that of its content?"""
    summed: bytes = b""
    """the sum of its content, where it was computed; taken by the time that it is durable"""
    lent: bool = False
    """has it been sent to somebody?"""


class Files:
    """The blobs of one folder.

    A file found at the start is checked against its name or sum when it is first read; a damaged one is as good as absent, and
    is replaced when its content is put again. Temporary files found at the start are removed. A large file is read from the
    disk as often as the system likes: who uses it checks it again (`due_sum`, `unsound`; ADR 29).
    """

    def __init__(self, disk: Disk, *, ram_bytes: int = RAM_BYTES, kept_bytes: int = KEPT_BYTES) -> None:
        self.disk = disk
        self.kept_bytes = kept_bytes
        self._ram_bytes = ram_bytes
        self._lock = threading.RLock()
        self._hashers = ThreadPoolExecutor(HASHERS, "gossipfl-hash")
        self._blobs: dict[bytes, _Blob] = {}
        self._pins: dict[bytes, int] = {}
        self._partials: dict[bytes, Incoming] = {}
        self._scratch: dict[int, tuple[str, weakref.finalize[Any, Any]]] = {}
        self._dropped: deque[str] = deque()
        self._numbers = count()
        with border("read the state folder"):
            for file, size in sorted(disk.list().items()):
                if file.endswith(TEMPORARY):
                    disk.unlink(file)
                elif (known := _name(file)) is not None:
                    name, summed = known
                    self._blobs[name] = _Blob(size, path=file, durable=True, sound=None, computed=bool(summed), summed=summed)

    # ---- making blobs ----------------------------------------------------------------------------------------------

    def put(self, blob: Buffer | npt.NDArray[Any], *, pinned: bool = False) -> bytes:
        """The name of this content, which is now here; volatile. Copied once, or not at all if it is here already.

        `pinned` pins the name in the same step (see `pin`): a job must, because a commit may run before its end event
        is handled.

        Raises: Misuse for memory that is not contiguous; StateError if there is no space.
        """
        view = _bytes_of(blob)
        tree = self._tree_of(view)
        if self.take(tree.root, pinned):
            return tree.root
        if len(view) < self._ram_bytes:
            fresh = _Blob(len(view), buffer=memoryview(bytes(view)), tree=tree)
        else:
            fresh = _Blob(len(view), path=self._write_temporary(view), tree=tree)
        return self._admit(tree.root, fresh, pinned)

    def scratch(self, size: int, *, passing: bool = False) -> memoryview:
        """`size` writable bytes of any content to compute into; for `adopt`. If the view is dropped instead, so is its file.
        `passing`: it will hardly be made durable."""
        if size < self._ram_bytes:
            return memoryview(bytearray(size))
        path = self._temporary()
        try:
            with border("reserve space for a blob"):
                view = self.disk.create(path, size, passing=passing)
        except StateError:
            self._unlink(path)
            raise
        self._scratch[id(view)] = (path, weakref.finalize(view, self._drop, id(view), path))
        return view

    def writer(self, scratch: memoryview) -> Write | None:
        """What writes into this scratch, from any thread, where that costs less than computing in it; None where it does not."""
        path, _ = self._scratch.get(id(scratch), (None, None))
        write = None if path is None else self.disk.writer(path)
        if write is None:
            return None

        def write_bordered(at: int, content: Buffer) -> None:
            with border("write a blob"):
                write(at, content)

        return write_bordered

    def settle(self, scratch: memoryview) -> None:
        """Nobody writes into it any more: the disk may begin with what makes it durable."""
        path, _ = self._scratch.get(id(scratch), (None, None))
        if path is not None:
            self.disk.begin_fsync(path)

    def adopt(self, scratch: memoryview, *, pinned: bool = False, leaves: Sequence[bytes] | None = None) -> bytes:
        """The name of what was written into this scratch, without a copy. Nobody may write into it afterwards.

        `leaves` are the hashes of its chunks, of a caller who has taken them while it wrote: then it is not read again.
        """
        tree = self._tree_of(scratch) if leaves is None else Tree(leaves)
        path = self._release(scratch)
        return self._admit(tree.root, _Blob(len(scratch), scratch.toreadonly(), path, tree=tree), pinned)

    def adopt_as(self, name: bytes, scratch: memoryview, summed: bytes, *, pinned: bool = False) -> None:
        """What was written into this scratch is here under this name, which says what it was computed from.

        `summed` is its sum (see gossipfl.sums); where it is empty, it is taken when the blob is made durable: not all that is
        computed ever is. A blob that is here already under this name stays: it is the same."""
        path = self._release(scratch)
        self._admit(name, _Blob(len(scratch), scratch.toreadonly(), path, computed=True, summed=summed[:SUM]), pinned)

    def discard(self, scratch: memoryview) -> None:
        """Give a scratch back at once, unadopted."""
        path = self._release(scratch)
        if path is not None:
            self._unlink(path)

    def incoming(self, root: bytes, size: int) -> Incoming:
        """A payload under way: the one begun earlier in this process if there is one, else a new one.

        Bound: at most `PARTIALS`; the one that rested longest makes room.

        Raises: StateError if there is no space for all of it.
        """
        with self._lock:
            partial = self._partials.pop(root, None)
            if partial is not None and partial.size != size:
                partial.drop()
                partial = None
            if partial is None:
                here = self._blobs.get(root)
                known = here is not None and here.size == size and not here.computed and self.take(root, False)
                partial = Incoming(self, root, size, None if known else self.scratch(size, passing=True))
            if not partial.done:
                while len(self._partials) >= PARTIALS:
                    self._partials.pop(next(iter(self._partials))).drop()
                self._partials[root] = partial
            return partial

    def abandon(self, root: bytes) -> None:
        """Forget the unfinished payload of this name, if there is one."""
        with self._lock:
            partial = self._partials.pop(root, None)
        if partial is not None:
            partial.drop()

    def complete(self, partial: Incoming, buffer: memoryview, pinned: bool) -> None:
        """For Incoming.finish: what all chunks were written into becomes the blob."""
        with self._lock:
            if self._partials.get(partial.root) is partial:
                del self._partials[partial.root]
        path = self._release(buffer)
        self._admit(partial.root, _Blob(partial.size, buffer.toreadonly(), path), pinned)

    # ---- reading ---------------------------------------------------------------------------------------------------

    def has(self, name: bytes) -> bool:
        """Is it here? A file of an earlier process that nobody has read yet counts."""
        with self._lock:
            blob = self._blobs.get(name)
            return blob is not None and blob.sound is not False

    def is_durable(self, name: bytes) -> bool:
        with self._lock:
            blob = self._blobs.get(name)
            return blob is not None and blob.durable and blob.sound is not False

    def read(self, name: bytes) -> memoryview:
        """The content, read-only, mapped if large; it stays valid as long as the view is held, removed or not.

        Raises: Missing; Damaged if the content no longer has this name.
        """
        blob = self._blobs.get(name)
        if blob is not None and blob.sound and (view := blob.buffer) is not None:  # in memory: no file that may get its name
            return view
        with self._lock:
            blob = self._blobs.get(name)
            if blob is None:
                raise Missing(f"no blob {name.hex()} in the store; its link begins a new epoch")
            view = self._view(name, blob)
        if blob.sound is None:
            self._verify(name, blob, view)
        return view

    def array(self, name: bytes, dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        """The content as a read-only vector, without a copy."""
        view = self.read(name)
        try:
            return np.frombuffer(view, dtype)
        except ValueError as wrong:
            raise Misuse(f"blob {name.hex()} has {len(view)} bytes, which is no whole number of {np.dtype(dtype)}") from wrong

    def size(self, name: bytes) -> int:
        """Bytes. Raises: Missing."""
        with self._lock:
            blob = self._blobs.get(name)
        if blob is None:
            raise Missing(f"no blob {name.hex()} in the store")
        return blob.size

    def due_sum(self, name: bytes) -> bytes:
        """The first bytes of the sum that this content must have while it is used; empty where it is in memory and cannot
        have changed, or stands under the name of its content, which is then checked at once.

        Raises: Damaged."""
        blob = self._blobs.get(name)
        if blob is None or blob.buffer is not None:
            return b""
        if blob.summed:
            return blob.summed
        self._doubt(name)
        self.read(name)
        return b""

    def unsound(self, names: Iterable[bytes]) -> frozenset[bytes]:
        """Those of `names` whose file no longer holds what was written: each is read and checked anew, now."""
        found = set()
        for name in sorted(set(names) - {b""}):
            self._doubt(name)
            try:
                self.read(name)
            except Damaged:
                found.add(name)
            except Missing:
                continue
        return frozenset(found)

    def lend(self, name: bytes) -> bool:
        """Note that it is sent. True where it was before: who asks again may have been sent a chunk that did not prove, so look
        at each before it is sent (`Tree.holds`)."""
        with self._lock:
            blob = self._blobs.get(name)
            before = blob is not None and blob.lent
            if blob is not None:
                blob.lent = True
            return before

    def tree(self, name: bytes) -> Tree:
        """The hash tree of what is named by its content, for the paths of chunks; computed once where it was not made here, and
        kept. It is 1 part in 400 of the blob. Raises: Missing; Damaged."""
        with self._lock:
            blob = self._blobs.get(name)
        if blob is None or blob.tree is None:
            tree = self._tree_of(self.read(name))
            with self._lock:
                if (blob := self._blobs.get(name)) is not None:
                    blob.tree = tree
                    if tree.root != name:
                        blob.sound = False
                        self._view(name, blob)
            return tree
        return blob.tree

    def missing(self, names: Iterable[bytes]) -> frozenset[bytes]:
        """Those of `names` that are absent or damaged: each is read and checked. The empty name stands for no file."""
        gone = set()
        for name in sorted(set(names) - {b""}):
            try:
                self.read(name)
            except (Missing, Damaged):
                gone.add(name)
        return frozenset(gone)

    def names(self) -> frozenset[bytes]:
        """All that is here."""
        with self._lock:
            return frozenset(name for name, blob in self._blobs.items() if blob.sound is not False)

    # ---- keeping and removing --------------------------------------------------------------------------------------

    def pin(self, names: Iterable[bytes]) -> None:
        """In use by a job: not removed before as many `unpin`. A name need not be here yet."""
        with self._lock:
            for name in filter(None, names):
                self._pin(name)

    def unpin(self, names: Iterable[bytes]) -> None:
        with self._lock:
            for name in filter(None, names):
                held = self._pins.pop(name, 0) - 1
                if held < 0:
                    raise Misuse(f"blob {name.hex()} is unpinned more often than pinned")
                if held:
                    self._pins[name] = held

    def make_durable(self, names: Iterable[bytes]) -> None:
        """They survive a loss of power from now on: content fsynced, renamed, one fsync of the folder for all.

        Raises: Missing; Damaged; StateError (no space, for one): then none of them is lost, and none counts as durable.
        """
        todo: dict[bytes, _Blob] = {}
        with self._lock:
            for name in sorted(set(names) - {b""}):
                blob = self._blobs.get(name)
                if blob is None:
                    raise Missing(f"no blob {name.hex()} in the store, so it cannot be made durable")
                if not blob.durable or blob.sound is False:
                    self._view(name, blob)
                    todo[name] = blob
        if not todo:
            return
        with border("make a blob durable"):
            for blob in todo.values():
                if blob.path is None and blob.buffer is not None:
                    blob.path = self._write_temporary(blob.buffer)
                if blob.path is not None:
                    self.disk.fsync(blob.path)
            with self._lock:  # a reader must not find the old path gone
                for name, blob in todo.items():
                    self._give_its_name(name, blob)
            self.disk.fsync_dir()
        with self._lock:
            for blob in todo.values():
                blob.durable = True
                if blob.size >= self.kept_bytes:
                    # From here on it is mapped on demand: a mapping holds a file descriptor, of which there are few.
                    blob.buffer = None

    def remove_except(self, *live: AbstractSet[bytes]) -> None:
        """Remove every blob, volatile or durable, that is in none of `live` and not pinned. Unfinished payloads stay."""
        with self._lock:
            dead = sorted(set(self._blobs).difference(*live, self._pins))
            paths = [self._blobs.pop(name).path for name in dead]
        self._sweep()
        self._unlink(*filter(None, paths))

    def close(self) -> None:
        """Remove what is volatile. Views that are held stay valid."""
        with self._lock:
            for partial in self._partials.values():
                partial.drop()
            self._partials.clear()
            self._pins.clear()
        self.remove_except({name for name, blob in self._blobs.items() if blob.durable})
        self._hashers.shutdown()
        with border("remove files that are no longer needed"):
            self.disk.close()

    # ---- inside ----------------------------------------------------------------------------------------------------

    def _tree_of(self, view: memoryview) -> Tree:
        """Tree.of, in threads where the blob is large."""
        if len(view) < PARALLEL_BYTES or HASHERS < 2:
            return Tree.of(view)
        total = chunk_count(len(view))
        share = -(-total // HASHERS)

        def leaves(first: int) -> list[bytes]:
            last = min(first + share, total)
            return [leaf(view[index * CHUNK : (index + 1) * CHUNK]) for index in range(first, last)]

        parts = self._hashers.map(leaves, range(0, total, share))
        return Tree([one for part in parts for one in part])

    def take(self, name: bytes, pinned: bool) -> bool:
        """Is this content here and sound? Then it is pinned if so wished. Its file is checked now, also where it was sound
        before: the caller will let go of a copy that surely is."""
        self._doubt(name)
        with suppress(Missing, Damaged):
            if self.has(name):
                self.read(name)
        with self._lock:
            here = self.has(name)
            if here and pinned:
                self._pin(name)
            return here

    def _admit(self, name: bytes, fresh: _Blob, pinned: bool) -> bytes:
        with self._lock:
            here = name in self._blobs and self.take(name, pinned)
            if not here:
                self._blobs[name] = fresh
                if pinned:
                    self._pins[name] = self._pins.get(name, 0) + 1
        if here and fresh.path is not None:
            self._unlink(fresh.path)
        return name

    def _pin(self, name: bytes) -> None:
        self._pins[name] = self._pins.get(name, 0) + 1

    def _view(self, name: bytes, blob: _Blob) -> memoryview:
        if blob.sound is False:
            raise Damaged(f"blob {name.hex()} is damaged; check the disk; its link begins a new epoch")
        if blob.buffer is not None:
            return blob.buffer
        assert blob.path is not None
        try:
            return self.disk.read(blob.path)
        except FileNotFoundError as error:
            blob.sound = False
            raise Gone(f"the file {blob.path} of the state folder is gone: {GONE}") from error
        except OSError as error:
            if error.errno != errno.EIO:
                raise StateError(explain(f"read blob {name.hex()}", error)) from error
            blob.sound = False
            raise Damaged(explain(f"read blob {name.hex()}", error)) from error

    def _verify(self, name: bytes, blob: _Blob, view: memoryview) -> None:
        blob.sound = sum_of(view)[:SUM] == blob.summed if blob.summed else self._tree_of(view).root == name
        if not blob.sound:
            self._view(name, blob)
        elif blob.size < self.kept_bytes:
            blob.buffer = view

    def _doubt(self, name: bytes) -> None:
        """Whoever reads it next checks it, where its bytes come from the disk."""
        with self._lock:
            blob = self._blobs.get(name)
            if blob is not None and blob.buffer is None and blob.sound:
                blob.sound = None

    def _give_its_name(self, name: bytes, blob: _Blob) -> None:
        if blob.computed and not blob.summed:
            blob.summed = sum_of(self._view(name, blob))[:SUM]
        file = f"{name.hex()}-{blob.summed.hex()}" if blob.summed else name.hex()
        if blob.path is not None and blob.path != file:
            self.disk.rename(blob.path, file)
            blob.path = file

    def _temporary(self) -> str:
        return f"{next(self._numbers):08d}{TEMPORARY}"

    def _write_temporary(self, content: memoryview) -> str:
        path = self._temporary()
        try:
            self.disk.write(path, content)
        except OSError as error:
            self._unlink(path)
            raise StateError(explain("write a blob", error)) from error
        return path

    def _release(self, scratch: memoryview) -> str | None:
        if not self._scratch:  # all is in memory
            return None
        path, finalizer = self._scratch.pop(id(scratch), (None, None))
        if finalizer is not None:
            finalizer.detach()
        return path

    def _drop(self, key: int, path: str) -> None:
        """Runs when the garbage collector likes: notes only, `_sweep` removes."""
        self._scratch.pop(key, None)
        self._dropped.append(path)

    def _sweep(self) -> None:
        while self._dropped:
            self._unlink(self._dropped.popleft())

    def _unlink(self, *paths: str) -> None:
        with border("remove a file that is no longer needed"):
            for path in paths:
                with suppress(FileNotFoundError):
                    self.disk.unlink(path)


def _name(file: str) -> tuple[bytes, bytes] | None:
    """The name and the sum, if there is one, that this file's name spells; None for a file that is not ours, which is left
    alone."""
    spelt, dash, sum_ = file.partition("-")
    with suppress(ValueError):
        name, summed = bytes.fromhex(spelt), bytes.fromhex(sum_)
        if len(name) == 32 and name.hex() == spelt and len(summed) == (SUM if dash else 0) and summed.hex() == sum_:
            return name, summed
    return None


def _bytes_of(blob: Buffer | npt.NDArray[Any]) -> memoryview:
    view = memoryview(cast(Buffer, blob))
    if not view.c_contiguous:
        raise Misuse("a blob must be contiguous memory; use numpy.ascontiguousarray")
    return view.cast("B") if view.nbytes else memoryview(b"")
