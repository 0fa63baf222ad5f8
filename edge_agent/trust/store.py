"""Whom a device believes about bundles, and what it must not forget: files in one folder, each replaced whole.

    KEYS/bundle.pub          public keys of who signs bundles: the current one and, while it is being replaced, the next
    KEYS/remembered.json     the least counter by model name, which only ever rises; bundles that may run below it; the
                             newest list of revocations

    policy        where bundle.pub is there        where it is not
    auto          signatures are required          a bundle named on this device is taken unsigned, one received refused
    required      required                         every bundle is refused
    unsigned      unsigned bundles are taken       taken

A bundle may run below the least counter if it has proven itself here (an operator, or a revocation, went back to it)
or if somebody on this device asked for it by name. That is remembered by its digest, for the last few: it lets in no
other old bundle, and nothing old that merely comes over the air.

A list of revocations is checked when it is taken, and believed from then on whatever becomes of the key that signed it.
If what is remembered cannot be read no bundle is used: beginning anew would let old and revoked ones in again.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import msgspec

from protocol import keys, signers
from protocol.bundle import HexDigest
from protocol.documents import decode_document
from protocol.errors import InputError
from protocol.signers import VerifyKey
from protocol.signing import Counter, Revocations, Statement, Trust

SCHEMA_VERSION = 1
MOST_KEYS = 2
MOST_EXCUSED = 4  # what runs, what is proven, what was before, and one that an operator asks for
Policy = Literal["auto", "required", "unsigned"]


class Remembered(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`floors` is the least counter by model name; `excused` are bundles that it does not bind, the newest last."""

    floors: dict[str, Counter] = {}
    excused: tuple[HexDigest, ...] = ()
    revocations: Revocations | None = None
    schema_version: int = SCHEMA_VERSION


class TrustStore:
    """Constructing reads nothing. Safe for several threads and processes at once; every change is on the disk when the
    call returns.
    """

    def __init__(self, folder: Path, *, policy: Policy = "auto", threshold: int = 1) -> None:
        """`threshold` is how many of the keys must have signed."""
        self.folder = folder
        self.policy = policy
        self._threshold = threshold
        self._keys = folder / "bundle.pub"
        self._remembered = folder / "remembered.json"

    def known(self) -> tuple[VerifyKey, ...]:
        """The keys that are believed, the current one first; none where none was given. Raises InputError."""
        return signers.read_verify_keys(self._keys) if keys.is_there(self._keys) else ()

    def trust(self, *, received: bool = False, kept: bool = False) -> Trust:
        """What bundles are checked with now. `received` ones came over the air; `kept` ones are on this device already,
        or somebody here asked for them by name. Raises InputError.
        """
        known, remembered = self.known(), self.remembered()
        return Trust(
            known,
            self._threshold if known else 1,
            allow_unsigned=self.policy == "unsigned" or (self.policy == "auto" and not known and not received),
            floors=remembered.floors,
            revocations=remembered.revocations,
            excused=frozenset(remembered.excused if kept else ()),
        )

    def describe(self) -> str:
        """One sentence for people: what happens to signed and unsigned bundles here. Raises InputError."""
        known = self.known()
        if known:
            by = " or ".join(f"{key.name} ({key.key_id[:16]})" for key in known)
            also = ", and unsigned ones are taken too" if self.policy == "unsigned" else ""
            return f"bundles must be signed by {by}{also}"
        if self.policy == "required":
            return f"no bundle can be used: signatures are required and {self._keys} is not there"
        if self.policy == "unsigned":
            return "bundles are taken unsigned, as the settings say"
        return (
            f"{self._keys} is not there: bundles named on this device are taken unsigned, none is taken over the air; "
            "`edge-agent keys trust` says who signs them"
        )

    def remembered(self) -> Remembered:
        """Raises InputError if it cannot be read."""
        if not keys.is_there(self._remembered):
            return Remembered()
        try:
            data = self._remembered.read_bytes()
        except OSError as error:
            fact = f"{self._remembered} cannot be read ({error.strerror})"
            raise InputError(fact, "mend its permissions, or restore it") from error
        remedy = "restore it; or remove it, and old and revoked bundles are taken once more"
        name = str(self._remembered)
        return decode_document(data, Remembered, version=SCHEMA_VERSION, name=name, error=InputError, remedy=remedy)

    # ---- changes ----------------------------------------------------------------------------------------------------

    def accept(self, statement: Statement) -> None:
        """This bundle has proven itself: older ones of its model are not taken again, but it may be gone back to.
        Raises InputError.

        Not before it is confirmed: what is on trial must leave the way back open.
        """
        with self._locked():
            before = self.remembered()
            counter = max(statement.counter, before.floors.get(statement.model, 0))
            after = _excusing(before, statement.manifest_sha256)
            self._write(msgspec.structs.replace(after, floors={**before.floors, statement.model: counter}))

    def excuse(self, digest: str) -> None:
        """Somebody on this device wants this bundle, whatever its number. Raises InputError."""
        with self._locked():
            self._write(_excusing(self.remembered(), digest))

    def take_revocations(self, data: bytes) -> Revocations:
        """Check a signed list and keep it. Raises UntrustedError if it is not to be believed, or older than ours."""
        with self._locked():
            found = self.trust().read_revocations(data)
            self._write(msgspec.structs.replace(self.remembered(), revocations=found))
        return found

    def believe(self, known: tuple[VerifyKey, ...]) -> None:
        """Believe these keys, the current one first, and no others. Raises InputError."""
        if not 1 <= len(known) <= MOST_KEYS:
            raise InputError(f"{len(known)} keys instead of a current one and perhaps the next", "give one or two")
        with self._locked():
            signers.write_verify_keys(self._keys, known)

    def _write(self, remembered: Remembered) -> None:
        data = msgspec.json.format(msgspec.json.encode(remembered, order="sorted"), indent=1) + b"\n"
        keys.write_private(self._remembered, data, overwrite=True)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            handle = os.open(self.folder / ".trust.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise InputError(f"{self.folder} cannot be changed ({error.strerror})", "run it as its owner") from error
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)


def _excusing(remembered: Remembered, digest: str) -> Remembered:
    others = [known for known in remembered.excused if known != digest]
    return msgspec.structs.replace(remembered, excused=(*others, digest)[-MOST_EXCUSED:])
