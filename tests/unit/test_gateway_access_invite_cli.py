"""`cloud-gateway keys invite` as an operator types it: what it prints once, keeps, refuses and withdraws."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from cloud_gateway.access import invitations as inviting
from cloud_gateway.access.audit import AuditLog
from cloud_gateway.access.folder import KeyFolder
from cloud_gateway.access.invite_cli import keys_app
from protocol import invitation
from protocol.errors import InputError, IsthmusError


class Operator:
    def __init__(self, path: Path) -> None:
        self.folder = KeyFolder(path)
        self.types("init")

    def types(self, *words: str) -> Result:
        """Raises what it is refused with."""
        result = CliRunner().invoke(keys_app, [*words, "--keys", str(self.folder.path)])
        if isinstance(result.exception, IsthmusError):
            raise result.exception
        assert result.exit_code == 0, result.output
        return result

    def json(self, *words: str) -> Any:
        return json.loads(self.types(*words, "--json").stdout)


@pytest.fixture
def operator(tmp_path: Path) -> Operator:
    return Operator(tmp_path / "keys")


def test_a_token_is_printed_once_pins_the_server_and_is_kept_as_a_digest(operator: Operator) -> None:
    printed = operator.types("invite", "camera-7")
    token = invitation.parse_token(printed.stdout)
    assert token.server == operator.folder.server_keys().current.public.data
    assert "edge-agent enroll" in printed.stderr
    kept = b"".join(path.read_bytes() for path in operator.folder.path.iterdir())
    assert token.secret.hex().encode() not in kept
    known = operator.folder.invitations()
    verdict = inviting.judge(
        known, operator.folder.roster(), id_=token.id, secret=token.secret, key=bytes(32), utc=time.time()
    )
    assert verdict == inviting.Welcome("camera-7", again=False)
    records = list(AuditLog(operator.folder.audit_log).records())
    assert (records[-1].action, records[-1].outcome) == ("keys.invite", "done")
    assert token.secret.hex() not in str(records)


def test_an_invitation_ends_when_it_was_said(operator: Operator) -> None:
    made = operator.json("invite", "camera-7", "--expires", "12h")
    assert abs(made["expires"] - time.time() - 12 * 3600) < 60
    assert inviting.guests_until(operator.folder.invitations(), utc=time.time()) == made["expires"]
    with pytest.raises(InputError, match="is past"):
        operator.types("invite", "camera-8", "--expires", "2020-01-01")


def test_whoever_is_invited_is_listed_and_can_be_taken_back(operator: Operator) -> None:
    operator.types("invite", "camera-7")
    assert [i["name"] for i in operator.json("list")["invited"]] == ["camera-7"]
    assert "camera-7" in operator.types("list").stdout
    with pytest.raises(InputError, match="camera-7 was invited already"):
        operator.types("invite", "camera-7")
    operator.types("revoke", "camera-7")
    assert operator.json("list")["invited"] == []
    operator.types("invite", "camera-7")


def test_a_name_that_is_taken_or_cannot_be_one_is_not_invited(operator: Operator, tmp_path: Path) -> None:
    operator.types("add", "camera-7", "-o", str(tmp_path / "for-camera-7"))
    with pytest.raises(InputError, match="the name camera-7 is taken"):
        operator.types("invite", "camera-7")
    with pytest.raises(InputError, match="cannot be a name"):
        operator.types("invite", "../camera")
