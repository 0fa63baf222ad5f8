"""What an operator hands to a device so that it may become known once: a token of one line. Pure.

    isthmus-invite_ID_SECRET_SERVER_CHECK       16, 64, 64 and 8 hex digits

The id is looked up, the 256 random bits are compared by their digest, SERVER is the gateway's public key: so the device
knows whom it talks to before it shows the secret. CHECK finds what was lost while the line was copied.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from typing import NamedTuple

from protocol.errors import InputError

ID_NBYTES = 8
SECRET_NBYTES = 32
_TOKEN = re.compile(r"isthmus-invite_([0-9a-f]{16})_([0-9a-f]{64})_([0-9a-f]{64})_([0-9a-f]{8})")


class Token(NamedTuple):
    """`server` is the public key of the gateway that has invited, 32 bytes. Its repr does not show the secret."""

    id: bytes
    secret: bytes
    server: bytes

    def text(self) -> str:
        body = "_".join((self.id.hex(), self.secret.hex(), self.server.hex()))
        return f"isthmus-invite_{body}_{_check(body)}"

    def __repr__(self) -> str:
        return f"Token(id={self.id.hex()})"


def make_token(randomness: bytes, server: bytes) -> Token:
    """A token from ID_NBYTES + SECRET_NBYTES random bytes."""
    if len(randomness) != ID_NBYTES + SECRET_NBYTES:
        raise ValueError(f"{len(randomness)} random bytes instead of {ID_NBYTES + SECRET_NBYTES}")
    return Token(randomness[:ID_NBYTES], randomness[ID_NBYTES:], server)


def parse_token(text: str) -> Token:
    """Raises InputError, without repeating the text, for what is no token, or not all of one."""
    found = _TOKEN.fullmatch(text.strip())
    if found is None or not hmac.compare_digest(_check("_".join(found.group(1, 2, 3))), found[4]):
        raise InputError(
            "the token is damaged: it is not what `cloud-gateway keys invite` has printed", "copy the whole line again"
        )
    return Token(*(bytes.fromhex(part) for part in found.group(1, 2, 3)))


def digest_of(id_: bytes, secret: bytes) -> str:
    """What a gateway keeps of a token."""
    return hashlib.blake2b(secret, digest_size=32, salt=id_, person=b"isthmus-invite").hexdigest()


def _check(body: str) -> str:
    return hashlib.sha256(body.encode()).hexdigest()[:8]
