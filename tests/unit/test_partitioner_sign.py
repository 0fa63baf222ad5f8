"""Signing and taking back: the same bytes every time, nothing vouched for that does not hold, no key replaced."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest
from typer.testing import CliRunner, Result

from partitioner.cli import app
from partitioner.planning import sign as signatures
from protocol import signers, signing
from protocol.bundle import MANIFEST, MANIFEST_DIGEST, SIGNATURE, Bundle, FileEntry, encode_manifest, sha256
from protocol.errors import BundleError, InputError, UntrustedError
from protocol.signers import SigningKey
from protocol.signing import Trust
from tests.manifests import manifest

FIRST, SECOND, STRANGER = (SigningKey.of(bytes([n]) * 32, name) for n, name in enumerate(("first", "second", "other")))
BUILT = 1_795_262_400  # 2026-11-21T12:00:00 UTC, as the manifest says


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "bundle"
    path.mkdir()
    (path / "full.onnx").write_bytes(b"a model")
    listed = {"full.onnx": FileEntry(sha256(b"a model"), 7)}
    raw = encode_manifest(msgspec.structs.replace(manifest(), files=listed))
    (path / MANIFEST).write_bytes(raw)
    (path / MANIFEST_DIGEST).write_text(f"{sha256(raw)}  {MANIFEST}\n")
    return path


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments])


def test_a_bundle_is_signed_with_the_same_bytes_every_time_and_numbered_by_when_it_was_built(folder: Path) -> None:
    signed = signatures.sign(folder, FIRST)
    once = (folder / SIGNATURE).read_bytes()
    assert signed.statement.counter == BUILT
    assert signatures.sign(folder, FIRST) == signed
    (folder / SIGNATURE).unlink()
    signatures.sign(folder, FIRST)
    assert (folder / SIGNATURE).read_bytes() == once
    assert Trust((FIRST.public,)).check(folder) == signed.statement


def test_a_second_key_signs_the_same_statement(folder: Path) -> None:
    first = signatures.sign(folder, FIRST, 3)
    second = signatures.sign(folder, SECOND)
    assert second.statement == first.statement
    assert set(second.signers) == {FIRST.public.key_id, SECOND.public.key_id}
    assert Trust((FIRST.public, SECOND.public), threshold=2).check(folder) == first.statement


def test_another_number_is_another_statement_that_the_other_key_has_not_signed(folder: Path) -> None:
    signatures.sign(folder, FIRST, 3)
    assert signatures.sign(folder, SECOND, 4).signers == (SECOND.public.key_id,)


def test_a_changed_bundle_is_not_vouched_for(folder: Path) -> None:
    (folder / "full.onnx").write_bytes(b"a modem")
    with pytest.raises(BundleError, match="does not match its digest"):
        signatures.sign(folder, FIRST)
    assert not (folder / SIGNATURE).exists()


def test_the_state_of_a_signature_is_told_with_and_without_a_key(folder: Path) -> None:
    assert not signatures.state_of(folder, ()).signed
    with pytest.raises(UntrustedError, match="is not signed"):
        signatures.state_of(folder, (FIRST.public,))
    signatures.sign(folder, FIRST, 3)
    unchecked = signatures.state_of(folder, ())
    assert (unchecked.signed, unchecked.checked, unchecked.counter) == (True, False, 3)
    assert "not checked" in unchecked.sentence
    checked = signatures.state_of(folder, (FIRST.public,))
    assert checked.checked
    assert "number 3 of toy, signed by first; it holds" in checked.sentence
    with pytest.raises(UntrustedError, match="none of the 1 keys"):
        signatures.state_of(folder, (STRANGER.public,))


def test_a_list_of_revocations_grows_and_its_number_rises(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "revocations.json"
    digest = Bundle.open(folder).digest
    first = signatures.revoke(path, FIRST, bundles=[str(folder)], reason="labels were swapped")
    assert (first.number, first.bundles) == (1, {digest: "labels were swapped"})
    second = signatures.revoke(path, FIRST, bundles=["0" * 64], signers=[STRANGER.public])
    assert second.number == 2
    assert second.bundles == {digest: "labels were swapped", "0" * 64: ""}
    assert second.keys == {STRANGER.public.key_id: ""}
    with pytest.raises(UntrustedError, match="none of the 1 keys"):
        signatures.revoke(path, SECOND, bundles=["1" * 64])
    third = signatures.revoke(path, SECOND, bundles=["1" * 64], known=(FIRST.public,))
    assert third.number == 3
    assert Trust((SECOND.public,)).read_revocations(path.read_bytes()) == third


def test_nothing_and_no_bundle_cannot_be_revoked(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nothing is to be revoked"):
        signatures.revoke(tmp_path / "list", FIRST)
    with pytest.raises(BundleError, match="there is no bundle"):
        signatures.revoke(tmp_path / "list", FIRST, bundles=["no-such-bundle"])
    assert not (tmp_path / "list").exists()


def test_the_commands_make_a_key_once_sign_verify_and_revoke(folder: Path, tmp_path: Path) -> None:
    made = run("keys", "new", tmp_path / "keys", "--name", "release", "--json")
    assert made.exit_code == 0
    key, public = tmp_path / "keys" / "release.key", tmp_path / "keys" / "release.pub"
    assert json.loads(made.stdout)["key_id"] == signers.read_key(key).public.key_id
    before = key.read_bytes()
    again = run("keys", "new", tmp_path / "keys", "--name", "release")
    assert again.exit_code == 3
    assert key.read_bytes() == before
    assert public.read_text() == run("keys", "show", key).stdout

    signed = run("sign", folder, "--key", key, "--counter", 9, "--json")
    assert signed.exit_code == 0
    assert json.loads(signed.stdout)["statement"]["counter"] == 9
    assert "signed as number 9 of toy" in run("sign", folder, "--key", key).stdout

    strangers = tmp_path / "other.pub"
    signers.write_verify_keys(strangers, (STRANGER.public,))
    refused = run("verify", folder, "--trust", strangers)
    assert refused.exit_code == 4
    assert "none of the 1 keys" in refused.stderr

    revoked = run("revoke", folder, "-o", tmp_path / "list.json", "--key", key, "--reason", "wrong labels", "--json")
    assert json.loads(revoked.stdout)["number"] == 1
    assert signing.look((folder / SIGNATURE).read_bytes(), name="it")[0].counter == 9


def test_a_key_that_others_may_read_signs_nothing(folder: Path, tmp_path: Path) -> None:
    signers.write_key(tmp_path / "a.key", FIRST)
    (tmp_path / "a.key").chmod(0o644)
    refused = run("sign", folder, "--key", tmp_path / "a.key")
    assert refused.exit_code == 3
    assert "open to others" in refused.stderr
    assert not (folder / SIGNATURE).exists()
