"""What an operator asks of a daemon that has the shelf: one small file, taken and removed by the daemon's next look."""

from __future__ import annotations

import contextlib
import json
import time
from typing import Literal, NamedTuple, get_args

from edge_agent.bundles.shelf import WISH, Shelf
from protocol.errors import BundleError

MOST_NBYTES = 4096
WAIT_S = 5.0  # several looks of a daemon that is not busy
Act = Literal["install", "fetch", "roll back", "check", "prune"]


class Wish(NamedTuple):
    """`bundle` is the digest of what is to be installed (it lies in `incoming`), or fetched."""

    act: Act
    bundle: str = ""
    reason: str = ""


def make_wish(shelf: Shelf, wish: Wish, *, wait_s: float = WAIT_S) -> None:
    """Leave it for the daemon, after the one before was taken.

    Raises OSError, and BundleError where the daemon has not taken that within `wait_s`.
    """
    deadline = time.monotonic() + wait_s
    with shelf.wishing():
        while wish_waits(shelf):
            if time.monotonic() >= deadline:
                raise BundleError("the daemon has not taken yet what it was told before", "say it again in a while")
            time.sleep(0.05)
        shelf.disk.write(shelf.root / WISH, json.dumps(wish._asdict()).encode())


def wish_waits(shelf: Shelf) -> bool:
    """Whether somebody wants something."""
    return (shelf.root / WISH).exists()


def take_wish(shelf: Shelf) -> Wish | None:
    """The wish that waits, which is gone then; what is none is thrown away."""
    path = shelf.root / WISH
    if not path.exists():
        return None
    found = None
    with contextlib.suppress(OSError, ValueError, TypeError, AttributeError):
        said = json.loads(path.read_bytes()[:MOST_NBYTES])
        wish = Wish(**{name: str(value) for name, value in said.items()})  # type: ignore[arg-type]
        if wish.act in get_args(Act) and (wish.act not in ("install", "fetch") or _is_digest(wish.bundle)):
            found = wish
    with contextlib.suppress(OSError):
        shelf.disk.remove(path)
    return found


def _is_digest(text: str) -> bool:
    return len(text) == 64 and all(c in "0123456789abcdef" for c in text)
