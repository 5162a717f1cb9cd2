"""What a peer may make this node hold, read or wait for: one table of numbers, each with its reason. No code.

Those of records, handshakes and sessions are enforced by gossipfl.protocol.session and .noise, those of connections and
bodies by the driver. What the specification fixes stands first, then what is tuning.
"""

from typing import Final

from gossipfl import digest
from gossipfl.protocol import messages

# ---- fixed by the protocol: both sides must agree

RECORD_MAX: Final = 65_535
"""Bytes of one record, handshake message or WebSocket message: Noise's own limit."""

PLAIN_MAX: Final = RECORD_MAX - 16
"""Bytes in a record before sealing: the tag takes 16."""

HANDSHAKE_MAX: Final = 1024
"""Bytes of a handshake message: keys, tags and one certificate; a stranger can make us read no more than this."""

SESSION_S: Final = 600
"""Seconds: a stolen session key reads no more than this; a new handshake costs less than a millisecond."""

SESSION_RECORDS_MAX: Final = 2**20
"""Records in each direction of one session: 60 GiB, and far below what ChaCha20-Poly1305 bears."""

CHUNK_MAX: Final = digest.CHUNK
"""Bytes of a chunk: with its path and framing it fits one record."""

CONTROL_MAX: Final = messages.CONTROL_MAX
"""Bytes of a control message: it fits one record."""

PATH_MAX: Final = 32
"""Hashes in a chunk's path: an index has 32 bits, so a tree has at most 32 levels above its leaves."""

# ---- tuning: a node may choose others and still speak the protocol

HANDSHAKE_S: Final = 10
"""Seconds until a handshake must be over: several round trips round the world."""

PENDING_HANDSHAKES_MAX: Final = 16
"""Handshakes under way; when full a random one is closed, so that a flood cannot keep a member out."""

CONNECTIONS_MAX: Final = 256
"""Connections in all: files and memory of one process."""

ADDRESS_CONNECTIONS_MAX: Final = 8
"""Connections of one address outside `trusted_proxies`: a hospital behind one gateway needs a few, a flood many."""

SLOTS_PER_MEMBER: Final = 1
"""Connections kept for each known member, whatever strangers do."""

IDLE_S: Final = 60
"""Seconds without a record; honest peers ping at half of it."""

RATE_BYTES_S: Final = 4096
"""Bytes a second that a transfer must move: slower it holds a link for ever."""

RATE_WINDOW_S: Final = 30
"""Seconds over which that is measured: a short stall is no attack."""

INBOUND_PER_MINUTE: Final = 60
"""Exchanges that one link may begin in a minute, where the study says nothing else."""

INCOMING_MAX: Final = 16
"""Payloads that one session may be awaiting: an exchange awaits one; the rest are left over from broken off ones."""

DIALS_PER_HOUR: Final = 128
"""Dials of one neighbour that a node makes in an hour in vain: a wait of at least 30 s between two once `back_off` has
doubled seven times, and those seven."""

DIALS_PER_EXCHANGE: Final = 8
"""So many more for each exchange with it in that hour: an exchange makes the waits short again, and they double seven times."""

CERTIFICATE_BODY_MAX: Final = 1024
"""Bytes of the answer to GET /gossipfl/v1/certificate: one certificate fits a handshake message, so it fits this."""
