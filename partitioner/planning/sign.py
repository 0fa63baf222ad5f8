"""A finished bundle gets a signature, or is taken back. The same bundle, key and number give the same bytes.

The bundle's own hashes are checked before it is signed: nobody should vouch for a damaged copy. Its number (`counter`)
is, unless one is given, the moment at which it was built, so that later builds replace earlier ones.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from protocol import signing
from protocol.bundle import MANIFEST, SIGNATURE, Bundle, read_regular, sha256
from protocol.dsse import MOST_NBYTES
from protocol.errors import InputError, UntrustedError
from protocol.outputs import write_output
from protocol.signers import SigningKey, VerifyKey
from protocol.signing import Revocations, Statement, Trust

_HEX = frozenset("0123456789abcdef")


class Signed(msgspec.Struct, frozen=True):
    """What was signed, and the ids of all keys whose signatures the bundle bears now."""

    bundle: str
    statement: Statement
    signers: tuple[str, ...]


class SignatureState(msgspec.Struct, frozen=True):
    """What is known about a bundle's signature. `checked`: it holds, and enough of the keys given have made it."""

    signed: bool
    checked: bool
    counter: int | None = None
    signers: tuple[str, ...] = ()
    sentence: str = "not signed: anybody can have changed it"


def sign(folder: Path, key: SigningKey, counter: int | None = None) -> Signed:
    """Sign the bundle in `folder`. A statement about it that is there already, with this number, is signed too.

    Raises BundleError for a bundle that does not hold and InputError when the signature cannot be written.
    """
    opened = Bundle.open(folder)
    opened.verify()
    data, existing = None, _existing(folder)
    if existing is not None:
        statement, others = existing
        fits = statement.manifest_sha256 == opened.digest and counter in (None, statement.counter)
        if fits and others != (key.public.key_id,):
            data = signing.add_signature(_envelope(folder), key, name=str(folder / SIGNATURE))
        if fits and counter is None:
            counter = statement.counter
    if data is None:
        data = signing.sign_statement(_statement(opened, key, counter), [key])
    write_output(folder / SIGNATURE, data)
    return Signed(str(folder), *signing.look(data, name=str(folder / SIGNATURE)))


def state_of(folder: Path, known: tuple[VerifyKey, ...]) -> SignatureState:
    """What people want to know. With `known` keys a signature that none of them has made is an UntrustedError."""
    existing = _existing(folder)
    if known:
        Trust(known).check(folder)
    if existing is None:
        return SignatureState(signed=False, checked=False)
    statement, by = existing
    if statement.manifest_sha256 != sha256(read_regular(folder, MANIFEST)):
        raise UntrustedError(f"{folder / SIGNATURE} was made for another manifest", "sign the bundle anew")
    names = {key.key_id: key.name for key in known}
    shown = ", ".join(names.get(key_id, key_id[:16]) for key_id in by)
    also = "it holds" if known else "not checked: name the keys that you believe with --trust FILE.pub"
    sentence = f"number {statement.counter} of {statement.model}, signed by {shown}; {also}"
    return SignatureState(signed=True, checked=bool(known), counter=statement.counter, signers=by, sentence=sentence)


def revoke(
    path: Path,
    key: SigningKey,
    *,
    bundles: Sequence[str] = (),
    signers: Sequence[VerifyKey] = (),
    reason: str = "",
    known: tuple[VerifyKey, ...] = (),
) -> Revocations:
    """Add to the list at `path`, or begin it; its number rises by one. `bundles` are folders or digests.

    Raises InputError for what is neither, and UntrustedError for a list that none of our keys has signed.
    """
    if not bundles and not signers:
        raise InputError("nothing is to be revoked", "name a bundle, its digest, or a --signer")
    before = Revocations(0)
    if os.path.lexists(path):
        data = read_regular(path.parent, path.name, most_nbytes=MOST_NBYTES)
        before = Trust((key.public, *known)).read_revocations(data, name=str(path))
    after = Revocations(
        before.number + 1,
        {**before.bundles, **{_digest_of(text): reason for text in bundles}},
        {**before.keys, **{signer.key_id: reason for signer in signers}},
    )
    if max(len(after.bundles), len(after.keys)) > signing.MOST_REVOKED:
        raise InputError(f"{path} would hold more than {signing.MOST_REVOKED} entries", "replace the signing key")
    write_output(path, signing.sign_revocations(after, [key]))
    return after


def _statement(opened: Bundle, key: SigningKey, counter: int | None) -> Statement:
    model, created = opened.manifest.model, opened.manifest.conditions.created_utc
    number = _moment(created) if counter is None else counter
    return Statement(opened.digest, model.name, model.digest, number, key.public.key_id, created)


def _moment(created_utc: str) -> int:
    """Seconds since 1970. Raises InputError for what is no moment."""
    try:
        found = datetime.fromisoformat(created_utc)
    except ValueError:
        fact = f"the bundle does not say when it was built ({created_utc[:80]!r})"
        raise InputError(fact, "number it with --counter") from None
    return max(int((found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()), 0)


def _existing(folder: Path) -> tuple[Statement, tuple[str, ...]] | None:
    if not os.path.lexists(folder / SIGNATURE):
        return None
    return signing.look(_envelope(folder), name=str(folder / SIGNATURE))


def _envelope(folder: Path) -> bytes:
    return read_regular(folder, SIGNATURE, most_nbytes=MOST_NBYTES)


def _digest_of(text: str) -> str:
    if len(text) == 64 and set(text) <= _HEX:
        return text
    return Bundle.open(text).digest
