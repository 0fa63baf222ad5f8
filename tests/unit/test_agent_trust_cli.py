"""`edge-agent keys` as the owner of a device types it: its own key, and whose bundles it takes."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from edge_agent.trust.cli import keys_app
from edge_agent.trust.store import TrustStore
from protocol import keys, signers, signing
from protocol.errors import InputError, IsthmusError, UntrustedError
from protocol.signers import SigningKey
from protocol.signing import Revocations

CURRENT, NEXT = (SigningKey.of(bytes([n]) * 32, name) for n, name in enumerate(("current", "next")))


def typed(*words: object) -> str:
    """What is printed. Raises what it is refused with."""
    result = CliRunner().invoke(keys_app, [str(word) for word in words])
    if isinstance(result.exception, IsthmusError):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.stdout


def read(*words: object) -> Any:
    return json.loads(typed(*words, "--json"))


def test_the_devices_key_is_made_once_and_only_its_public_half_is_shown(tmp_path: Path) -> None:
    folder = tmp_path / "keys"
    line = typed("show", "--keys", folder, "--name", "camera-7")
    assert keys.parse_public(line).name == "camera-7"
    assert typed("show", "--keys", folder) == line
    pair = keys.read_pair(folder / "agent.key")
    assert pair.secret.hex() not in line
    assert stat.S_IMODE((folder / "agent.key").stat().st_mode) == 0o600
    assert read("show", "--keys", folder)["fingerprint"] == pair.public.fingerprint


def test_a_key_that_others_may_read_is_refused(tmp_path: Path) -> None:
    typed("show", "--keys", tmp_path)
    (tmp_path / "agent.key").chmod(0o644)
    with pytest.raises(InputError, match="open to others"):
        typed("show", "--keys", tmp_path)


def test_whose_bundles_are_taken_is_said_before_and_after(tmp_path: Path) -> None:
    for key in (CURRENT, NEXT):
        signers.write_verify_keys(tmp_path / f"{key.public.name}.pub", (key.public,))
    state = ("--state-dir", tmp_path / "state")
    assert "none is taken over the air" in typed("trusted", *state)
    said = typed("trust", tmp_path / "current.pub", tmp_path / "next.pub", *state)
    assert "must be signed by current" in said
    assert "or next" in said
    assert [key["key_id"] for key in read("trusted", *state)["keys"]] == [CURRENT.public.key_id, NEXT.public.key_id]
    with pytest.raises(InputError, match="cannot be read"):
        typed("trust", tmp_path / "missing.pub", *state)
    assert len(TrustStore(tmp_path / "state" / "keys").known()) == 2


def test_a_list_of_revocations_is_taken_by_hand_too(tmp_path: Path) -> None:
    signers.write_verify_keys(tmp_path / "current.pub", (CURRENT.public,))
    typed("trust", tmp_path / "current.pub", "--state-dir", tmp_path)
    path = tmp_path / "revocations.json"
    path.write_bytes(signing.sign_revocations(Revocations(3, {"0" * 64: "wrong labels"}), [CURRENT]))
    assert "list 3, 1 bundles and 0 keys" in typed("revocations", path, "--state-dir", tmp_path)
    path.write_bytes(signing.sign_revocations(Revocations(2), [CURRENT]))
    with pytest.raises(UntrustedError, match="list number 2 and number 3 is known"):
        typed("revocations", path, "--state-dir", tmp_path)
    with pytest.raises(InputError, match="cannot be read"):
        typed("revocations", tmp_path / "missing", "--state-dir", tmp_path)


def test_keys_that_lie_elsewhere_are_named_alike_in_every_command(tmp_path: Path) -> None:
    elsewhere, state = ("--keys", tmp_path / "secrets"), ("--state-dir", tmp_path / "state")
    signers.write_verify_keys(tmp_path / "current.pub", (CURRENT.public,))
    assert "must be signed by current" in typed("trust", tmp_path / "current.pub", *elsewhere, *state)
    assert "must be signed by current" in typed("trusted", *elsewhere)
    assert not (tmp_path / "state").exists()
    assert typed("show", *state) == typed("show", "--keys", tmp_path / "state" / "keys")
