"""Why an answer was degraded, in few words: a label must be bounded, the sentences that people read are not. Pure.

gateway_busy, gateway_draining, ...   a gateway said so, by the code of its refusal
link                                  there was no gateway to speak with
silence                               there was one, and it did not answer in time
no_time                               the way there and back would have taken longer than was left
not_held                              the gateway does not hold what the placement needs
device                                a head, or its encoding, failed on the device
other                                 none of these sentences
"""

from __future__ import annotations

import functools
import re

from protocol.messages import RejectCode

_CODES = {code: f"gateway_{code.lower()}" for code in RejectCode}
_CODE = re.compile(rf"\bgateway(?: \S+)? ({'|'.join(RejectCode)}):")
_DRAINING = "gateway_draining"
# The first that is found decides; they come in the order of the ladder's, the uplink's and the connection's sentences.
_PHRASES = (
    ("is draining", _DRAINING),
    ("did not answer in time", "silence"),
    ("does not answer", "silence"),
    ("has fallen silent", "silence"),
    ("no time left", "no_time"),
    ("s to travel and", "no_time"),
    ("does not hold", "not_held"),
    ("no gateway", "link"),
    ("the link to the gateway", "link"),
    ("nobody listens", "link"),
    ("did not welcome", "link"),
    ("hangs up", "link"),
    ("does not let us in", "link"),
    ("does not know us", "link"),
    ("speaks another version", "link"),
    ("speaks versions", "link"),
    ("resolve", "link"),
)
# A placement's own failure is told with its id in front; see `Ladder.preparation_failed`.
_PLACEMENT = re.compile(r"(full-cloud|cut|edge-only)[^\s:]*: ")
OTHER = "other"
CAUSES = frozenset(_CODES.values()) | {cause for _, cause in _PHRASES} | {"device", OTHER}


@functools.lru_cache(maxsize=256)
def cause(sentence: str) -> str:
    """One of `CAUSES` for a sentence of `Answer.degraded`. About 0.1 us for one that was seen before."""
    found = _CODE.search(sentence)
    if found is not None:
        return _CODES[RejectCode(found[1])]
    for phrase, name in _PHRASES:
        if phrase in sentence:
            return name
    return "device" if _PLACEMENT.match(sentence) else OTHER


def causes(sentences: tuple[str, ...]) -> tuple[str, ...]:
    """Each cause once, in the order of the sentences."""
    return tuple(dict.fromkeys(map(cause, sentences))) if sentences else ()
