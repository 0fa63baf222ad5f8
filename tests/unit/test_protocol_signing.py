"""Signatures of bundles: every state of a signature under every trust, and no byte that could change unnoticed."""

from __future__ import annotations

import itertools
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from protocol import dsse, signers, signing
from protocol.bundle import MANIFEST, MANIFEST_DIGEST, SIGNATURE, Bundle, FileEntry, encode_manifest, sha256
from protocol.errors import BundleError, InputError, UntrustedError
from protocol.signers import SigningKey
from protocol.signing import Revocations, Statement, Trust
from tests.manifests import manifest

CURRENT, NEXT, STRANGER = (SigningKey.of(bytes([n]) * 32, name) for n, name in enumerate(("current", "next", "other")))
FILE = "full.onnx"
CONTENT = b"a model"
COUNTER = 7


def bundle_in(folder: Path, *, notes: tuple[str, ...] = ()) -> str:
    """A bundle of one file, unsigned. Its digest."""
    folder.mkdir()
    (folder / FILE).write_bytes(CONTENT)
    listed = {FILE: FileEntry(sha256(CONTENT), len(CONTENT))}
    raw = encode_manifest(msgspec.structs.replace(manifest(notes=notes), files=listed))
    (folder / MANIFEST).write_bytes(raw)
    (folder / MANIFEST_DIGEST).write_text(f"{sha256(raw)}  {MANIFEST}\n")
    return sha256(raw)


def statement_of(folder: Path, *, counter: int = COUNTER) -> Statement:
    model = Bundle.open(folder).manifest.model
    digest = sha256((folder / MANIFEST).read_bytes())
    return Statement(digest, model.name, model.digest, counter, CURRENT.public.key_id, "2026-11-21T12:00:00+00:00")


def sign(folder: Path, *keys: SigningKey, counter: int = COUNTER) -> None:
    (folder / SIGNATURE).write_bytes(signing.sign_statement(statement_of(folder, counter=counter), keys))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    bundle_in(tmp_path / "bundle")
    sign(tmp_path / "bundle", CURRENT)
    return tmp_path / "bundle"


TRUST = Trust(keys=(CURRENT.public,))


# ---- the matrix ------------------------------------------------------------------------------------------------------


def _spoilt(folder: Path) -> None:
    """The right key id beside a signature that it has not made."""
    sign(folder, CURRENT)
    envelope = dsse.decode((folder / SIGNATURE).read_bytes(), name="it")
    bad = msgspec.structs.replace(envelope.signatures[0], sig=bytes(64))
    (folder / SIGNATURE).write_bytes(dsse.encode(msgspec.structs.replace(envelope, signatures=(bad,))))


def _of_another(folder: Path) -> None:
    other = folder.with_name("other")
    bundle_in(other, notes=("another build",))
    sign(other, CURRENT, NEXT)
    shutil.copyfile(other / SIGNATURE, folder / SIGNATURE)


def _of_a_list(folder: Path) -> None:
    (folder / SIGNATURE).write_bytes(signing.sign_revocations(Revocations(1), [CURRENT, NEXT]))


STATES: dict[str, Callable[[Path], object]] = {
    "unsigned": lambda folder: None,
    "current": lambda folder: sign(folder, CURRENT),
    "next": lambda folder: sign(folder, NEXT),
    "both": lambda folder: sign(folder, CURRENT, NEXT),
    "stranger": lambda folder: sign(folder, STRANGER),
    "stranger and current": lambda folder: sign(folder, STRANGER, CURRENT),
    "spoilt": _spoilt,
    "of another bundle": _of_another,
    "of a list": _of_a_list,
    "no envelope": lambda folder: (folder / SIGNATURE).write_bytes(b"{}"),
    "older": lambda folder: sign(folder, CURRENT, NEXT, counter=COUNTER - 1),
}
KEYS = {
    "none": (), "current": (CURRENT,), "both": (CURRENT, NEXT), "stranger": (STRANGER,),
}  # fmt: skip
NAMED = {"current": {CURRENT}, "next": {NEXT}, "both": {CURRENT, NEXT}, "stranger": {STRANGER},
         "stranger and current": {STRANGER, CURRENT}, "spoilt": {CURRENT}, "of another bundle": {CURRENT, NEXT},
         "older": {CURRENT, NEXT}}  # fmt: skip


def expected(state: str, known: str, threshold: int, allow_unsigned: bool) -> str:
    """The answer, by a rule of its own: "signed", "unsigned" or "refused"."""
    unsigned = "unsigned" if allow_unsigned else "refused"
    if state == "unsigned":
        return unsigned
    if state in ("of a list", "no envelope"):
        return "refused"
    believed = NAMED[state] & set(KEYS[known])
    if state == "spoilt" and believed:
        return "refused"
    if len(believed) < threshold:
        return unsigned
    return "refused" if state in ("of another bundle", "older") else "signed"


@pytest.mark.parametrize("state", STATES)
def test_every_state_of_a_signature_is_answered_as_it_should_under_every_trust(tmp_path: Path, state: str) -> None:
    folder = tmp_path / "bundle"
    bundle_in(folder)
    STATES[state](folder)
    wrong = []
    for known, threshold, allow in itertools.product(KEYS, (1, 2), (False, True)):
        if threshold > max(len(KEYS[known]), 1):
            continue
        keys = tuple(key.public for key in KEYS[known])
        trust = Trust(keys, threshold, allow, floors={"toy": COUNTER})
        try:
            found = "unsigned" if trust.check(folder) is None else "signed"
        except UntrustedError:
            found = "refused"
        if found != (want := expected(state, known, threshold, allow)):
            wrong.append(f"{known} keys, threshold {threshold}, allow_unsigned {allow}: {found} instead of {want}")
    assert not wrong


def test_a_threshold_that_nothing_could_meet_is_refused() -> None:
    with pytest.raises(InputError, match="2 signatures are wanted and 1 keys are known"):
        Trust(keys=(CURRENT.public, CURRENT.public), threshold=2)


def test_one_key_counts_once_however_often_it_has_signed(folder: Path) -> None:
    envelope = dsse.decode((folder / SIGNATURE).read_bytes(), name="it")
    twice = msgspec.structs.replace(envelope, signatures=envelope.signatures * 2)
    (folder / SIGNATURE).write_bytes(dsse.encode(twice))
    with pytest.raises(UntrustedError, match="has 1 signatures of keys that are believed here, and 2 are wanted"):
        Trust((CURRENT.public, NEXT.public), threshold=2).check(folder)


# ---- opening ---------------------------------------------------------------------------------------------------------


def test_a_signed_bundle_opens_and_says_what_was_signed(folder: Path) -> None:
    opened = Bundle.open(folder, trust=TRUST)
    assert opened.statement == statement_of(folder)
    assert opened.statement == TRUST.check(folder)
    assert Bundle.open(folder).statement is None


def test_every_changed_byte_of_a_signed_bundle_is_found(folder: Path) -> None:
    kept = {path.name: path.read_bytes() for path in folder.iterdir()}
    unnoticed = []
    for name, data in kept.items():
        # The digest file is read up to its first word, and of the manifest every hundredth byte is enough.
        positions = range(64) if name == MANIFEST_DIGEST else range(0, len(data), 100 if name == MANIFEST else 1)
        for at, flip in itertools.product(positions, (0x01, 0x20)):
            changed = bytearray(data)
            changed[at] ^= flip
            (folder / name).write_bytes(changed)
            try:
                Bundle.open(folder, trust=TRUST).verify()
            except BundleError:
                continue
            unnoticed.append(f"{name}:{at} ^ {flip:#x}")
        (folder / name).write_bytes(data)
    assert not unnoticed
    assert Bundle.open(folder, trust=TRUST).verify() == 1


def test_the_manifest_is_not_parsed_before_its_signature_holds(folder: Path) -> None:
    raw = b"\xff{ no JSON at all"
    (folder / MANIFEST).write_bytes(raw)
    (folder / MANIFEST_DIGEST).write_text(f"{sha256(raw)}  {MANIFEST}\n")
    with pytest.raises(UntrustedError, match="is not the one that was signed"):
        Bundle.open(folder, trust=TRUST)


def test_a_statement_about_another_model_than_the_manifests_is_refused(folder: Path) -> None:
    claimed = msgspec.structs.replace(statement_of(folder), model="other")
    (folder / SIGNATURE).write_bytes(signing.sign_statement(claimed, [CURRENT]))
    with pytest.raises(UntrustedError, match="about the model 'other'"):
        Bundle.open(folder, trust=TRUST)


@pytest.mark.parametrize("kind", ["link", "pipe", "folder", "large"])
def test_a_signature_that_is_no_plain_small_file_is_refused(folder: Path, kind: str) -> None:
    path = folder / SIGNATURE
    path.rename(folder.with_name("elsewhere"))
    match kind:
        case "link":
            path.symlink_to(folder.with_name("elsewhere"))
        case "pipe":
            os.mkfifo(path)
        case "folder":
            path.mkdir()
        case _:
            path.write_bytes(bytes(dsse.MOST_NBYTES + 1))
    with pytest.raises(BundleError):
        Trust((CURRENT.public,), allow_unsigned=True).check(folder)


def test_an_older_bundle_is_refused_and_an_equal_one_is_not(folder: Path) -> None:
    assert replace(TRUST, floors={"toy": COUNTER}).check(folder) is not None
    assert replace(TRUST, floors={"other": COUNTER + 1}).check(folder) is not None
    with pytest.raises(UntrustedError, match="number 7 of toy, and number 8 was in use here before"):
        replace(TRUST, floors={"toy": COUNTER + 1}).check(folder)


# ---- revocations -----------------------------------------------------------------------------------------------------


def test_a_revoked_bundle_is_refused_signed_or_not_with_the_reason(folder: Path) -> None:
    digest = sha256((folder / MANIFEST).read_bytes())
    revoked = Trust((CURRENT.public,), 1, True, {}, Revocations(1, {digest: "labels were swapped"}))
    with pytest.raises(UntrustedError, match="was revoked: labels were swapped"):
        revoked.check(folder)
    (folder / SIGNATURE).unlink()
    with pytest.raises(UntrustedError, match="was revoked"):
        revoked.check(folder)


def test_a_revoked_key_vouches_for_nothing(folder: Path) -> None:
    revocations = Revocations(1, keys={CURRENT.public.key_id: "laptop stolen"})
    trust = Trust((CURRENT.public, NEXT.public), revocations=revocations)
    with pytest.raises(UntrustedError, match="none of the 1 keys"):
        trust.check(folder)
    sign(folder, CURRENT, NEXT)
    assert trust.check(folder) is not None


def test_a_list_of_revocations_is_believed_only_from_known_keys_and_never_an_older_one() -> None:
    trust = Trust((CURRENT.public,))
    first, second = Revocations(1, {"0" * 64: "a"}), Revocations(2, {"0" * 64: "a", "1" * 64: "b"})
    assert trust.read_revocations(signing.sign_revocations(first, [CURRENT])) == first
    now = replace(trust, revocations=second)
    assert now.read_revocations(signing.sign_revocations(second, [CURRENT])) == second
    for older in (first, msgspec.structs.replace(second, bundles={})):
        with pytest.raises(UntrustedError, match="is known here"):
            now.read_revocations(signing.sign_revocations(older, [CURRENT]))
    permissive = replace(trust, allow_unsigned=True)
    with pytest.raises(UntrustedError, match="none of the 1 keys"):
        permissive.read_revocations(signing.sign_revocations(first, [STRANGER]))


def test_a_statement_is_no_list_of_revocations(folder: Path) -> None:
    with pytest.raises(UntrustedError, match="is about"):
        TRUST.read_revocations((folder / SIGNATURE).read_bytes())


# ---- keys and bytes --------------------------------------------------------------------------------------------------


def test_the_same_statement_and_keys_give_the_same_bytes_in_any_order(folder: Path) -> None:
    said = statement_of(folder)
    both = signing.sign_statement(said, [CURRENT, NEXT])
    assert both == signing.sign_statement(said, [NEXT, CURRENT])
    one = signing.sign_statement(said, [CURRENT])
    assert signing.add_signature(one, NEXT, name="it") == both
    assert signing.add_signature(both, NEXT, name="it") == both
    assert signing.look(both, name="it") == (said, tuple(sorted(k.public.key_id for k in (CURRENT, NEXT))))


def test_signatures_are_those_of_the_standard() -> None:
    # RFC 8032, section 7.1, test 2.
    secret = bytes.fromhex("4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb")
    key = SigningKey.of(secret, "rfc")
    assert key.public.data.hex() == "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c"
    made = key.sign(bytes.fromhex("72"))
    assert made.hex().startswith("92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da")
    assert key.public.verifies(made, b"\x72")
    assert not key.public.verifies(made, b"\x73")
    assert not key.public.verifies(made[:-1], b"\x72")


def test_a_signing_key_is_read_as_it_was_written_and_for_its_owner_alone(tmp_path: Path) -> None:
    key, path = signers.make_key("release"), tmp_path / "release.key"
    signers.write_key(path, key)
    assert signers.read_key(path) == key
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert key.secret.hex() not in repr(key)
    with pytest.raises(InputError, match="is there already"):
        signers.write_key(path, signers.make_key("release"))
    path.chmod(0o644)
    with pytest.raises(InputError, match="open to others"):
        signers.read_key(path)


def test_public_keys_are_read_as_they_were_written_each_once(tmp_path: Path) -> None:
    path = tmp_path / "bundle.pub"
    signers.write_verify_keys(path, (CURRENT.public, NEXT.public, CURRENT.public))
    assert signers.read_verify_keys(path) == (CURRENT.public, NEXT.public)
    assert signers.given_verify_keys(str(path)) == (CURRENT.public, NEXT.public)
    assert signers.given_verify_keys(NEXT.public.line()) == (NEXT.public,)


@pytest.mark.parametrize(
    "line",
    ["", "isthmus-signing-public", "isthmus-signing-public 00 a", f"isthmus-curve-public {'0' * 64} a",
     f"isthmus-signing-secret {'1' * 64} a", f"isthmus-signing-public {'0' * 64} ../a"],
)  # fmt: skip
def test_what_is_no_public_key_is_refused_without_repeating_a_secret(tmp_path: Path, line: str) -> None:
    path = tmp_path / "bundle.pub"
    path.write_text(line + "\n")
    with pytest.raises(InputError) as refused:
        signers.read_verify_keys(path)
    assert "1" * 64 not in str(refused.value)


def test_the_library_is_loaded_only_when_a_signature_is_made_or_checked() -> None:
    code = "import protocol.signing, protocol.bundle, sys; print('cryptography' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "False"


def test_a_file_that_holds_no_keys_is_named(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("call the plumber\n")
    with pytest.raises(InputError, match=r"notes\.txt: 'call the plumber' is no public key of a signer"):
        signers.read_verify_keys(tmp_path / "notes.txt")
