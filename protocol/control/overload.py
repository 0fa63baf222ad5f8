"""When requests queue on the device: which one is not worth beginning. Pure."""

from __future__ import annotations


def too_late(deadline: float, usual_s: float, *, others: int, now: float) -> bool:
    """Whether to leave a request alone that usually takes `usual_s` on the device, while `others` wait behind it.

    The last one in the queue is tried even so: the device may be faster this time, and nobody waits for it.
    """
    return now >= deadline or (now + usual_s >= deadline and others > 0)
