"""Whether a payload is sent in chunks, of which size, and how many may be on their way. Pure.

What is handed to a socket can neither be overtaken nor taken back: on a link of 1 Mbit/s a message of 1.6 MB keeps a
Ping, a Cancel or an urgent request waiting for 13 s. So where a payload would keep the link busy for longer than
SLOW_TRANSFER_S it goes in chunks that take CHUNK_S each, of which AHEAD wait in front of the link; what else is to be
sent waits for these alone. What the link itself holds on its way (rate times round trip) comes on top, or it would
rest between one acknowledgement and the next chunk.

Three chunks of 30 ms: two leave 60 ms to whoever has to acknowledge one and send the next, on a device that is busy.
Since acknowledgements bound what lies in every buffer on the way, a small SO_SNDBUF gains nothing: an urgent request at
5 Mbit/s waited 74-86 ms with the kernel's own and 84-103 with 16 KB. So it is left alone, and fast links with it.
"""

from __future__ import annotations

from protocol.latency import LinkState
from protocol.wire import MIN_CHUNK_NBYTES, PART_NBYTES

SLOW_TRANSFER_S = 0.25
CHUNK_S = 0.03
AHEAD = 3
STEP_NBYTES = 1024


def chunk_nbytes(nbytes: int, link: LinkState | None, *, most_nbytes: int) -> int:
    """Size of the chunks for a payload of `nbytes`; 0 to send it in one message.

    `most_nbytes` is the largest chunk that the gateway takes, 0 if it takes none. A link that was not measured yet is
    not believed to be slow.
    """
    if link is None or most_nbytes < MIN_CHUNK_NBYTES or nbytes <= MIN_CHUNK_NBYTES:
        return 0
    if nbytes <= link.uplink_bytes_per_s * SLOW_TRANSFER_S:
        return 0
    size = int(link.uplink_bytes_per_s * CHUNK_S) // STEP_NBYTES * STEP_NBYTES
    return min(max(size, MIN_CHUNK_NBYTES), most_nbytes, PART_NBYTES)


def window_nbytes(chunk_nbytes: int, link: LinkState | None) -> float:
    """How many bytes of such chunks may be unacknowledged."""
    on_the_way = 0.0 if link is None else link.uplink_bytes_per_s * link.rtt_s
    return AHEAD * chunk_nbytes + on_the_way
