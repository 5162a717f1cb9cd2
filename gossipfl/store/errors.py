"""What can be wrong with the state on disk, and the border at which OSError becomes one of these. No I/O of its own."""

from __future__ import annotations

import errno
from typing import Final

from gossipfl.errors import Exit, GossipError


class StateError(GossipError):
    """The state cannot be read or written: the node stops (exit 73), and what was committed before stays as it was."""

    exit_code = Exit.STATE


class Damaged(StateError):
    """What is on disk is not what was written there."""


class Gone(Damaged):
    """A file that this process has seen in the folder is not there any more."""


class Missing(StateError):
    """No blob has this name."""


AFRESH: Final = (
    "check the disk; then move the state folder away and start the node again: it begins with an empty state, and "
    "every link begins a new epoch. Do not put an older copy of the folder in its place"
)
"""The one safe remedy for damaged rows: a node that silently went back would answer for what it has forgotten."""

NO_MODEL: Final = f"this node's own model is gone from the folder blobs of its state, or damaged -- {AFRESH}"

ROTTED: Final = (
    "a file of this node's own no longer holds what was written: it has changed on the disk while the node ran; check the disk. "
    "The next start checks every file, and goes on without what is damaged"
)

GONE: Final = (
    "somebody has removed it while the node ran: keep other programs away from the state folder, and start the node again; it "
    "goes on without what is missing, and says what that is"
)

_REMEDIES: Final = {
    errno.ENOENT: GONE,
    errno.ENOSPC: "the disk is full: free some space, then start the node again; nothing was half-written",
    errno.EDQUOT: "the disk quota is used up: raise it or free some space, then start the node again",
    errno.EFBIG: "the largest file size allowed is reached: raise the limit (ulimit -f), then start the node again",
    errno.EROFS: "the file system is read-only: mount it writable, then start the node again",
    errno.EACCES: "no permission: give the state folder to the user that runs the node",
    errno.EPERM: "no permission: give the state folder to the user that runs the node",
    errno.EMFILE: "too many open files: raise the limit (ulimit -n), then start the node again",
    errno.EIO: "the disk reports an error: check it (dmesg, smartctl), then start the node again",
}


def explain(doing: str, error: OSError) -> str:
    """Cause and remedy of an OSError, in one line."""
    remedy = _REMEDIES.get(error.errno or 0, "check the disk and the folder's permissions, then start the node again")
    return f"cannot {doing}: {error.strerror or error} -- {remedy}"


class border:
    """Nothing but StateError leaves this block for what the operating system refuses."""

    __slots__ = ("doing",)

    def __init__(self, doing: str) -> None:
        self.doing = doing

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, at: object) -> None:
        if isinstance(error, OSError):
            raise StateError(explain(self.doing, error)) from error
