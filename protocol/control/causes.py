"""Why a request cannot be done, or was not done, as planned: a cause for programs and a sentence for people. Pure.

Causes are few and stay the same: they label metrics and events, and travel with an answer. Sentences hold names and
figures that differ each time. Whoever finds something in the way says both at once, so nobody reads sentences.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass

from protocol.messages import RejectCode


class Cause(enum.StrEnum):
    LINK = "link"  # there was no gateway to speak with
    SILENCE = "silence"  # there was one, and it did not answer in time
    NO_TIME = "no_time"  # the way there and back would have taken longer than was left
    NOT_HELD = "not_held"  # the gateway does not hold what the placement needs
    DEVICE = "device"  # a head, or its encoding, failed on the device
    # A gateway said so, by the code of its refusal.
    GATEWAY_BUSY = "gateway_busy"
    GATEWAY_DEADLINE = "gateway_deadline"
    GATEWAY_UNKNOWN_SEGMENT = "gateway_unknown_segment"
    GATEWAY_UNKNOWN_REFERENCE = "gateway_unknown_reference"
    GATEWAY_BAD_REQUEST = "gateway_bad_request"
    GATEWAY_TOO_LARGE = "gateway_too_large"
    GATEWAY_FORBIDDEN = "gateway_forbidden"
    GATEWAY_DRAINING = "gateway_draining"
    GATEWAY_CANCELLED = "gateway_cancelled"
    GATEWAY_INTERNAL = "gateway_internal"
    OTHER = "other"  # one that another release of ours has told, in a stored answer or over the local API

    @classmethod
    def _missing_(cls, value: object) -> Cause:
        return cls.OTHER


_OF_CODE = {code: Cause[f"GATEWAY_{code.name}"] for code in RejectCode}


@dataclass(frozen=True, slots=True)
class Why:
    """One reason."""

    cause: Cause
    sentence: str

    @classmethod
    def lost(cls, sentence: str) -> Why:
        """There is no gateway to speak with, or no longer."""
        return cls(Cause.LINK, sentence)

    @classmethod
    def refused(cls, code: RejectCode, reason: str) -> Why:
        """A gateway said no."""
        return cls(_OF_CODE[code], f"gateway {code}: {reason}")

    def about(self, placement: str) -> Why:
        """The same, with the placement named in front unless it is named already."""
        return self if placement in self.sentence else Why(self.cause, f"{placement}: {self.sentence}")


def sentences(whys: Iterable[Why]) -> tuple[str, ...]:
    """Each sentence once, in order."""
    return tuple(dict.fromkeys(why.sentence for why in whys))


def causes(whys: Iterable[Why]) -> tuple[Cause, ...]:
    """Each cause once, in order."""
    return tuple(dict.fromkeys(why.cause for why in whys))
