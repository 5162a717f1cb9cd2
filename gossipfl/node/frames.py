"""WebSocket frames (RFC 6455): messages to bytes, and the bytes that arrive to messages. No socket, no upgrade, no extensions.

A record's frame is read where the kernel has put it and opened from there, without a copy. What a peer sends is parsed
strictly: anything but the frames that this node's peers may send is `Refused`.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from gossipfl.errors import Refused

CONTINUATION: Final = 0x0
BINARY: Final = 0x2
CLOSE: Final = 0x8
PING: Final = 0x9
PONG: Final = 0xA

FINAL: Final = 0x80
MASKED: Final = 0x80
NO_MASK: Final = bytes(4)
"""The mask of our own frames. Masks keep a script in a browser from choosing the bytes that a proxy sees; ours are sealed."""

SHORT_MAX: Final = 125
"""Bytes of a control frame, and of a frame whose length fits its second byte."""

SIZE_2, SIZE_8 = 126, 127
"""What stands in the place of a length that follows in two bytes, or in eight."""

LEAST_BYTES: Final = 4096
"""Room of a connection on which little comes: a flood of them must not cost memory."""

MOST_BYTES: Final = 256 * 1024
"""Room of one on which models come: four records, still in the second-level cache when they are opened. Half of it costs more."""

GROWTH: Final = 4

BETWEEN_MAX: Final = 1000
"""Frames without a record in them, pings and fragments, before the next record: more only cost time."""


def header(opcode: int, size: int, masked: bool) -> bytes:
    """What goes before `size` bytes in one frame, at most 65,535. With NO_MASK they go as they are."""
    mask, flag = (NO_MASK, MASKED) if masked else (b"", 0)
    if size <= SHORT_MAX:
        return bytes((FINAL | opcode, flag | size)) + mask
    return bytes((FINAL | opcode, flag | SIZE_2)) + size.to_bytes(2, "big") + mask


class Inbox:
    """The bytes of one direction, filled from outside, and the messages in them.

    `masked`: are the frames of the other side, as those of a client must be. `limit`: bytes of a message, below 65,536.
    Bound: MOST_BYTES and one message in fragments, whatever the other side sends.
    """

    def __init__(self, masked: bool, limit: int) -> None:
        self._masked, self._limit = MASKED if masked else 0, limit
        self._view = memoryview(bytearray(LEAST_BYTES))
        self._start = self._end = 0
        """what has come and is not read yet"""
        self._parts: bytearray | None = None
        """of a message in fragments"""
        self._between = 0
        """frames since the last record"""

    @property
    def is_full(self) -> bool:
        return self._end - self._start == MOST_BYTES

    def room(self) -> memoryview:
        """Where the next bytes go. What `next` has returned is overwritten."""
        view, rest = self._view, self._end - self._start
        if rest > len(view) // 2 and len(view) < MOST_BYTES:
            self._view = memoryview(bytearray(min(MOST_BYTES, GROWTH * len(view))))
        if self._view is not view or (self._start and len(view) - self._end < len(view) // 2):
            self._view[:rest] = view[self._start : self._end]
            self._start, self._end = 0, rest
        return self._view[self._end :]

    def took(self, size: int) -> None:
        """So many bytes have come into the room."""
        self._end += size

    def next(self) -> tuple[int, memoryview] | None:
        """(BINARY, CLOSE, PING or PONG, content), the content to be used before the next call of anything here; None if it
        has not come whole. Raises: Refused."""
        while (frame := self._frame()) is not None:
            first, content = frame
            if first == FINAL | BINARY and self._parts is None:
                self._between = 0
                return BINARY, content
            self._between += 1
            if self._between > BETWEEN_MAX:
                raise Refused("quota", f"{self._between} WebSocket frames without a record; the peer is faulty or hostile")
            opcode = first & ~FINAL
            if opcode in (CLOSE, PING, PONG) and first & FINAL:
                return opcode, content
            if opcode != (BINARY if self._parts is None else CONTINUATION):
                raise Refused("malformed", f"a WebSocket frame of kind {first:#04x}; only binary messages are spoken here")
            self._parts = self._parts or bytearray()
            self._parts += content
            if first & FINAL:
                whole, self._parts, self._between = self._parts, None, 0
                return BINARY, memoryview(whole)
        return None

    def _frame(self) -> tuple[int, memoryview] | None:
        """(first byte, content without its mask) of the next whole frame."""
        view, at, came = self._view, self._start, self._end - self._start
        if came < 2:
            return None
        first, size = view[at], view[at + 1]
        if size & MASKED != self._masked:
            raise Refused("malformed", "a WebSocket frame of a server is masked, or one of a client is not")
        size &= ~MASKED
        head = 2 + (4 if self._masked else 0)
        if size > SHORT_MAX:
            head += 2
            if size == SIZE_8 or first & CLOSE:
                raise Refused("size", f"a WebSocket frame longer than any record; {self._limit} bytes are accepted")
            if came < 4:
                return None
            size = view[at + 2] << 8 | view[at + 3]
        held = 0 if self._parts is None or first & CLOSE else len(self._parts)
        if size + held > self._limit:
            raise Refused("size", f"a message of more than {self._limit} bytes; the peer runs another version")
        if came < head + size:
            return None
        self._start = at + head + size
        content = view[at + head : self._start]
        if self._masked and (mask := view[at + head - 4 : at + head]) != NO_MASK:
            unmask(content, mask)
        return first, content


def unmask(content: memoryview, mask: memoryview | bytes) -> None:
    """In place: each byte exclusive-or the mask's, over and over."""
    values = np.frombuffer(content, np.uint8)
    whole = len(values) // 4 * 4
    words = values[:whole].view("<u4")
    np.bitwise_xor(words, np.frombuffer(mask, "<u4"), out=words)
    rest = values[whole:]
    np.bitwise_xor(rest, np.frombuffer(mask, np.uint8)[: len(rest)], out=rest)
