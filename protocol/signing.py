"""Who vouches for a bundle, and whom we believe. A signature is checked before a byte of the manifest is parsed.

    BUNDLE/signature.json      a DSSE envelope around a Statement: this manifest, of this model, is number `counter`
    revocations.json           a DSSE envelope around Revocations: these bundles and keys hold no longer

The manifest hashes every file but the signature, and the statement hashes the manifest: so nothing in the folder can be
changed. Several keys may sign one statement, and a Trust may want more than one of them.

    trust = Trust(keys=(current, next), floors={"digits": 7})
    trust.check(folder)                      -> Statement         UntrustedError if it must not be used
    Bundle.open(folder, trust=trust)         the same, on the very bytes that are parsed then

    what the folder holds                        keys known               allow_unsigned      answer
    no signature                                 any                      no                  refused
                                                 any                      yes                 None, taken unsigned
    signatures of enough known keys              those                    any                 Statement
    signatures of none, or too few, of them      any                      no                  refused
                                                 any                      yes                 None, taken unsigned
    a known key's signature that does not hold   that                     any                 refused
    an envelope that is none                     any                      any                 refused
    a counter below the model's floor            those                    any                 refused, unless excused
    a bundle that was revoked                    any                      any                 refused
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

import msgspec

from protocol import dsse
from protocol.bundle import MANIFEST, SIGNATURE, HexDigest, ModelInfo, read_regular, sha256
from protocol.documents import decode_document
from protocol.dsse import Envelope, Signature
from protocol.errors import InputError, UntrustedError
from protocol.signers import SigningKey, VerifyKey

SCHEMA_VERSION = 1
BUNDLE_TYPE = "application/vnd.isthmus.bundle+json"
REVOCATIONS_TYPE = "application/vnd.isthmus.revocations+json"
MOST_REVOKED = 1000
_ADD_KEY = "if that is right let this machine believe its signer's public key, else get it from whoever made it"
Counter = Annotated[int, msgspec.Meta(ge=0, le=2**53)]
Text = Annotated[str, msgspec.Meta(max_length=500)]


class Statement(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is signed about a bundle. Of two bundles of one model the newer has the higher `counter`.

    `signer` is the id of the key that made the statement (others may have signed it too) and `created_utc` is for
    people: nothing is decided by them.
    """

    manifest_sha256: HexDigest  # of the bytes of manifest.json: the bundle's digest
    model: Text
    model_digest: HexDigest
    counter: Counter
    signer: HexDigest
    created_utc: Text
    schema_version: int = SCHEMA_VERSION

    def require_describes(self, model: ModelInfo) -> None:
        """Raises UntrustedError unless the manifest that was signed says the same of its model."""
        if (self.model, self.model_digest) != (model.name, model.digest):
            raise UntrustedError(
                f"the signature is about the model {self.model!r} but the manifest about {model.name!r}",
                "sign the bundle anew with `partitioner sign`",
            )


class Revocations(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What holds no longer, with the reasons. A list with a higher `number` replaces every earlier one."""

    number: Annotated[int, msgspec.Meta(ge=1, le=2**53)]
    bundles: Annotated[dict[HexDigest, Text], msgspec.Meta(max_length=MOST_REVOKED)] = {}
    keys: Annotated[dict[HexDigest, Text], msgspec.Meta(max_length=MOST_REVOKED)] = {}
    schema_version: int = SCHEMA_VERSION


@dataclass(frozen=True, slots=True)
class Trust:
    """Whom a device, or a person, believes. Raises InputError for a threshold that no bundle could meet.

    `keys` are the current one and, while it is being replaced, the next; `threshold` is how many of them must have
    signed. `floors` is the least counter by model name: what is older is not taken again, but for the bundles whose
    digests are `excused`. A revocation excuses nobody.
    """

    keys: tuple[VerifyKey, ...] = ()
    threshold: int = 1
    allow_unsigned: bool = False
    floors: Mapping[str, int] = field(default_factory=dict)
    revocations: Revocations | None = None
    excused: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        known = len({key.data for key in self.keys})
        if not 1 <= self.threshold <= max(known, 1):
            raise InputError(
                f"{self.threshold} signatures are wanted and {known} keys are known", "lower the threshold, or add keys"
            )

    def check(self, folder: Path) -> Statement | None:
        """The statement that lets the bundle in `folder` be used; None where it is taken unsigned.

        Parses nothing but the signature. Raises UntrustedError if the bundle must not be used and BundleError if it
        cannot be read.
        """
        return self.judge(folder, read_regular(folder, MANIFEST))

    def judge(self, folder: Path, manifest: bytes) -> Statement | None:
        """The same for the bytes of the manifest, as the caller has read them."""
        digest, path = sha256(manifest), folder / SIGNATURE
        if self.revocations is not None and digest in self.revocations.bundles:
            why = self.revocations.bundles[digest]
            raise UntrustedError(f"the bundle {folder} was revoked: {why or 'no reason is given'}", "install another")
        if not os.path.lexists(path):
            if self.allow_unsigned:
                return None
            raise UntrustedError(
                f"the bundle {folder} is not signed",
                "sign it with `partitioner sign`, or allow unsigned bundles by name",
            )
        envelope = dsse.decode(read_regular(folder, SIGNATURE, most_nbytes=dsse.MOST_NBYTES), name=str(path))
        if not self._is_signed(envelope, BUNDLE_TYPE, name=str(path)):
            return None
        statement = _statement(envelope.payload, name=str(path))
        if statement.manifest_sha256 != digest:
            raise UntrustedError(
                f"{folder / MANIFEST} is not the one that was signed: it was changed afterwards, or the signature is "
                "another bundle's",
                "copy the bundle again, or sign it anew with `partitioner sign`",
            )
        floor = self.floors.get(statement.model, 0)
        if statement.counter < floor and digest not in self.excused:
            raise UntrustedError(
                f"the bundle {folder} is number {statement.counter} of {statement.model}, and number {floor} was "
                "in use here before: older ones are not taken again",
                "sign it with a higher --counter, or take it here on purpose with --older",
            )
        return statement

    def read_revocations(self, data: bytes, *, name: str = "revocations.json") -> Revocations:
        """A signed list. Raises UntrustedError if too few known keys have signed it, or if it is older than ours."""
        envelope = dsse.decode(data, name=name)
        if not replace(self, allow_unsigned=False)._is_signed(envelope, REVOCATIONS_TYPE, name=name):
            raise UntrustedError(f"{name} is not signed", "sign it")
        found = decode_document(
            envelope.payload,
            Revocations,
            version=SCHEMA_VERSION,
            name=name,
            error=UntrustedError,
            remedy="make it anew",
        )
        known = self.revocations
        if known is not None and (found.number < known.number or (found.number == known.number and found != known)):
            raise UntrustedError(
                f"{name} is list number {found.number} and number {known.number} is known here",
                "make the next list from the newest with `partitioner revoke`",
            )
        return found

    def _is_signed(self, envelope: Envelope, payload_type: str, *, name: str) -> bool:
        """Whether enough known keys have signed. False: too few, where that is allowed. Raises UntrustedError."""
        if envelope.payload_type != payload_type:
            raise UntrustedError(f"{name} is about {envelope.payload_type!r}, not {payload_type!r}", "copy it again")
        revoked = self.revocations.keys if self.revocations is not None else {}
        known = {key.key_id: key for key in self.keys if key.key_id not in revoked}
        message = dsse.pae(envelope.payload_type, envelope.payload)
        signed = set()
        for signature in envelope.signatures:
            key = known.get(signature.keyid)
            if key is None:
                continue
            if not key.verifies(signature.sig, message):
                raise UntrustedError(
                    f"the signature of {key.name} in {name} does not hold: it was changed or damaged",
                    "copy it again, or sign anew",
                )
            signed.add(signature.keyid)
        if len(signed) >= self.threshold:
            return True
        if self.allow_unsigned:
            return False
        raise UntrustedError(_too_few(name, envelope, len(signed), len(known), self.threshold), _ADD_KEY)


def _too_few(name: str, envelope: Envelope, signed: int, known: int, threshold: int) -> str:
    by = ", ".join(s.keyid[:16] for s in envelope.signatures)
    if not known:
        return f"{name} is signed by {by}, and no key is known here to check it with"
    if not signed:
        return f"{name} is signed by {by}, which is none of the {known} keys that are believed here"
    return f"{name} has {signed} signatures of keys that are believed here, and {threshold} are wanted"


# ---- signing --------------------------------------------------------------------------------------------------------


def sign_statement(statement: Statement, keys: Iterable[SigningKey]) -> bytes:
    """The envelope (signature.json). The same statement and keys give the same bytes."""
    return _sign(msgspec.json.encode(statement, order="deterministic"), BUNDLE_TYPE, keys)


def sign_revocations(revocations: Revocations, keys: Iterable[SigningKey]) -> bytes:
    """The envelope (revocations.json). The same list and keys give the same bytes."""
    return _sign(msgspec.json.encode(revocations, order="deterministic"), REVOCATIONS_TYPE, keys)


def add_signature(data: bytes, key: SigningKey, *, name: str) -> bytes:
    """The envelope with `key`'s signature besides the others, in the order of their key ids. Raises UntrustedError."""
    envelope = dsse.decode(data, name=name)
    mine = _signature(envelope.payload, envelope.payload_type, key)
    others = [s for s in envelope.signatures if s.keyid != mine.keyid]
    return dsse.encode(_sorted(envelope.payload, envelope.payload_type, [*others, mine]))


def look(data: bytes, *, name: str) -> tuple[Statement, tuple[str, ...]]:
    """What an envelope says, and whose key ids it bears: for people, nothing is checked. Raises UntrustedError."""
    envelope = dsse.decode(data, name=name)
    if envelope.payload_type != BUNDLE_TYPE:
        raise UntrustedError(f"{name} is about {envelope.payload_type!r}, not {BUNDLE_TYPE!r}", "copy it again")
    return _statement(envelope.payload, name=name), tuple(s.keyid for s in envelope.signatures)


def _statement(payload: bytes, *, name: str) -> Statement:
    remedy = "sign the bundle anew with `partitioner sign`"
    return decode_document(payload, Statement, version=SCHEMA_VERSION, name=name, error=UntrustedError, remedy=remedy)


def _sign(payload: bytes, payload_type: str, keys: Iterable[SigningKey]) -> bytes:
    made = [_signature(payload, payload_type, key) for key in keys]
    if not made:
        raise InputError("nobody signs", "give at least one key")
    return dsse.encode(_sorted(payload, payload_type, made))


def _signature(payload: bytes, payload_type: str, key: SigningKey) -> Signature:
    return Signature(key.public.key_id, key.sign(dsse.pae(payload_type, payload)))


def _sorted(payload: bytes, payload_type: str, signatures: list[Signature]) -> Envelope:
    return Envelope(payload, payload_type, tuple(sorted(signatures, key=lambda s: s.keyid)))
