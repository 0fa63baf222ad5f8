"""Which requests are traced: those whose caller asked for it, on either wire. Pure.

Over ZeroMQ the header has a trace id and a sampled bit; over HTTP and gRPC the W3C's `traceparent` says the same and
names the caller's span. What is malformed is not traced: it is no reason to refuse a request.
"""

from __future__ import annotations

import re
from typing import NamedTuple

# https://www.w3.org/TR/trace-context/: version, trace id, parent id, flags; later versions may append more.
_TRACEPARENT = re.compile(
    r"(?P<version>[0-9a-f]{2})-(?P<trace>[0-9a-f]{32})-(?P<span>[0-9a-f]{16})-(?P<flags>[0-9a-f]{2})(?P<more>-.*)?"
)
_SAMPLED = 1
_LONGEST = 512


class Trace(NamedTuple):
    """A sampled request's place in its trace; `parent` is 0 where the caller has no span of its own."""

    trace_id: int
    parent: int = 0


def from_wire(trace: bytes, sampled: bool) -> Trace | None:
    """None unless the bit is set and there is an id of up to 16 bytes, which may not be all zeros."""
    if not sampled:
        return None
    number = int.from_bytes(trace[:16], "big")
    return Trace(number) if number else None


def from_traceparent(text: str | None) -> Trace | None:
    """None unless it is well-formed and its sampled flag is set."""
    if not text or len(text) > _LONGEST:
        return None
    found = _TRACEPARENT.fullmatch(text.strip())
    if found is None or found["version"] == "ff" or (found["version"] == "00" and found["more"]):
        return None
    trace, span = int(found["trace"], 16), int(found["span"], 16)
    if not trace or not span or not int(found["flags"], 16) & _SAMPLED:
        return None
    return Trace(trace, span)
