"""TorchServe: a handler with an entry point of its own, without torch in the way. Raw bytes in, raw bytes out."""

from __future__ import annotations

import functools

import numpy as np
from tail import Tail, tensor


@functools.cache
def _tail() -> Tail:
    return Tail()


def handle(data: list[dict[str, bytes]] | None, context: object) -> list[bytes] | None:
    """TorchServe calls this once with None to initialise, then with every batch."""
    tail = _tail()
    if data is None:
        return None
    return [row.tobytes() for row in tail.run(np.stack([tensor(part["body"]) for part in data]))]
