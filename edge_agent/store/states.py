"""What a ticket can be, and what a full store does. Nothing else: commands start without numpy and SQLite."""

from __future__ import annotations

import enum


class State(enum.StrEnum):
    WAITING = "waiting"
    ANSWERED = "answered"
    EXPIRED = "expired"
    REFUSED = "refused"


class Full(enum.StrEnum):
    """What happens to a new request when the store is full."""

    REFUSE = "refuse"  # it is not taken; what was promised to others is kept
    DROP_OLDEST = "drop-oldest"  # the oldest waiting one of the least priority makes room, if none is more important
