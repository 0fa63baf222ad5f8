"""What an operator asks of a daemon that has the shelf: one small file, taken and removed by the daemon's next look."""

from __future__ import annotations

import contextlib
import json
from typing import Literal, NamedTuple, get_args

from edge_agent.bundles.shelf import WISH, Shelf

MOST_NBYTES = 4096
Act = Literal["install", "fetch", "roll back", "check", "prune"]


class Wish(NamedTuple):
    """`bundle` is the digest of what is to be installed (it lies in `incoming`), or fetched."""

    act: Act
    bundle: str = ""
    reason: str = ""


def make_wish(shelf: Shelf, wish: Wish) -> None:
    """Leave it for the daemon. Raises OSError."""
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
