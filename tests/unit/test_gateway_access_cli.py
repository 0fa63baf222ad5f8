"""`cloud-gateway keys` and `audit` as an operator types them: what they print, refuse and record."""

from __future__ import annotations

import json
import shlex
import stat
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cloud_gateway.access import api_keys
from cloud_gateway.access.audit import AuditLog
from cloud_gateway.access.cli import audit_app
from cloud_gateway.access.folder import KeyFolder
from cloud_gateway.access.invite_cli import keys_app
from cloud_gateway.access.roster import Allowance, Table
from protocol import keys
from protocol.errors import AccessError, InputError, IsthmusError


class Operator:
    """Types commands about one folder of keys."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.folder = KeyFolder(path)

    def types(self, *words: str) -> str:
        """What `keys WORDS` prints. Raises what it is refused with."""
        return _invoked(keys_app, [*words, "--keys", str(self.path)])

    def json(self, *words: str) -> Any:
        return json.loads(self.types(*words, "--json"))

    def verifies(self, *words: str) -> str:
        return _invoked(audit_app, ["verify", str(self.path / "audit.log"), *words])

    def shows(self, *words: str) -> str:
        return _invoked(audit_app, ["show", str(self.path / "audit.log"), *words])


def _invoked(app: Any, words: list[str]) -> str:
    result = CliRunner().invoke(app, words)
    if isinstance(result.exception, IsthmusError):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.fixture
def operator(tmp_path: Path) -> Operator:
    operator = Operator(tmp_path / "keys")
    operator.types("init")
    return operator


def test_a_folder_is_made_for_its_owner_alone(operator: Operator) -> None:
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (operator.path, *operator.path.iterdir())}
    assert modes.pop("keys") == 0o700
    assert modes.pop("server.pub") == 0o644
    assert set(modes) >= {"server.key", "roster.json", "audit.log"}
    assert set(modes.values()) == {0o600}


def test_a_gateways_key_is_not_made_twice(operator: Operator) -> None:
    before = operator.folder.server_keys()
    with pytest.raises(InputError, match="is there already"):
        operator.types("init")
    assert operator.folder.server_keys() == before


def test_an_agent_made_here_gets_all_it_needs(operator: Operator, tmp_path: Path) -> None:
    operator.types("add", "camera-7", "-o", str(tmp_path / "for-camera-7"))
    pair = keys.read_pair(tmp_path / "for-camera-7" / "agent.key")
    assert keys.read_public(tmp_path / "for-camera-7" / "server.pub") == operator.folder.public_keys()
    table = Table.of(operator.folder.roster(), utc=0)
    assert table.agents[pair.public.data].name == pair.name == "camera-7"


@pytest.mark.parametrize("how", ["line", "hex", "file"])
def test_an_agent_may_keep_its_secret_to_itself(operator: Operator, tmp_path: Path, how: str) -> None:
    public = keys.make_pair("camera-7").public
    keys.write_public(tmp_path / "agent.pub", (public,))
    given = {"line": public.line(), "hex": public.data.hex(), "file": str(tmp_path / "agent.pub")}[how]
    operator.types("add", "camera-7", "--key", given)
    assert Table.of(operator.folder.roster(), utc=0).agents[public.data].name == "camera-7"


def test_an_api_key_is_shown_once_and_kept_as_a_digest(operator: Operator) -> None:
    limits = ("--requests-per-s", "5", "--mib-per-s", "1", "--concurrent", "2", "--body-mib", "0.5")
    made = operator.json("add", "shop", "--api", "--role", "metrics", "--role", "infer", "--expires", "30d", *limits)
    assert made["key"][-64:] not in (operator.path / "roster.json").read_text()
    table = Table.of(operator.folder.roster(), utc=0)
    entry = api_keys.find(table, made["key"])
    assert entry is not None
    assert entry.roles == ("infer", "metrics")
    assert entry.expires == entry.added + 30 * 86400
    assert entry.allowance == Allowance(5.0, 2.0**20, 2, 2**19)


def test_who_is_known_is_listed_with_its_state(operator: Operator, tmp_path: Path) -> None:
    operator.types("add", "camera-7", "-o", str(tmp_path / "a"))
    operator.types("add", "shop", "--api")
    operator.types("revoke", "camera-7")
    listed = operator.json("list")
    assert [(k["kind"], k["name"], k["state"], k["roles"]) for k in listed["known"]] == [
        ("agent", "camera-7", "revoked", []),
        ("api", "shop", "valid", ["infer"]),
    ]
    assert listed["server"][0]["fingerprint"] == operator.folder.server_keys().current.public.fingerprint
    assert "shop" in operator.types("list")


def test_the_server_key_is_rotated_in_two_steps(operator: Operator) -> None:
    old = operator.folder.server_keys().current
    operator.types("rotate", "--port", "7500")
    both = operator.folder.server_keys()
    assert both.next is not None
    assert (both.current, both.next_port) == (old, 7500)
    assert operator.folder.public_keys() == (old.public, keys.PublicKey(both.next.public.data, "gateway", 7500))
    with pytest.raises(InputError, match="being rotated already"):
        operator.types("rotate")
    operator.types("rotate", "--finish")
    assert operator.folder.server_keys() == (both.next, None, None)
    assert [key.data for key in operator.folder.public_keys()] == [both.next.public.data]
    with pytest.raises(InputError, match="not being rotated"):
        operator.types("rotate", "--finish")


def test_a_rotation_can_be_given_up(operator: Operator) -> None:
    old = operator.folder.server_keys()
    operator.types("rotate")
    operator.types("rotate", "--undo")
    assert operator.folder.server_keys() == old
    assert operator.folder.public_keys() == (old.current.public,)


@pytest.mark.parametrize(("words", "match"), [
    (("add", "camera-7"), "needs one key"),
    (("add", "camera-7", "--key", "00"), "not a CURVE key"),
    (("add", "-o", "x", "a b"), "cannot be a name"),
    (("add", "shop", "--api", "--role", "root"), "there is no role"),
    (("add", "shop", "--api", "--expires", "soon"), "no moment"),
    (("add", "shop", "--api", "--expires", "1999-01-01"), "is past"),
    (("add", "shop", "--api", "--key", "00"), "are for agents"),
    (("add", "camera-7", "--role", "infer", "-o", "x"), "are for API keys"),
    (("add", "anonymous", "--api"), "without a key"),
    (("revoke", "nobody"), "nobody is called"),
    (("rotate", "--finish", "--undo"), "exclude each other"),
])  # fmt: skip
def test_what_cannot_be_is_refused_and_changes_nothing(
    operator: Operator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], match: str
) -> None:
    monkeypatch.chdir(tmp_path)
    before = operator.folder.roster()
    with pytest.raises(InputError, match=match):
        operator.types(*words)
    assert operator.folder.roster() == before
    assert not (tmp_path / "x").exists()


def test_a_name_that_is_taken_writes_no_key(operator: Operator, tmp_path: Path) -> None:
    operator.types("add", "camera-7", "-o", str(tmp_path / "a"))
    with pytest.raises(InputError, match="is taken"):
        operator.types("add", "camera-7", "-o", str(tmp_path / "b"))
    assert not (tmp_path / "b").exists()


def test_without_a_folder_every_command_names_the_one_that_makes_it(tmp_path: Path) -> None:
    operator = Operator(tmp_path / "keys")
    for words in (("list",), ("revoke", "x"), ("rotate",), ("add", "x", "--api")):
        with pytest.raises(InputError, match="cloud-gateway keys init"):
            operator.types(*words)


def test_every_change_is_on_record_and_so_is_every_failure(operator: Operator) -> None:
    operator.types("add", "shop", "--api")
    with pytest.raises(InputError):
        operator.types("add", "shop", "--api")
    lines = [json.loads(line) for line in operator.shows("--json").splitlines()]
    assert [(r["action"], r["outcome"].split(":")[0]) for r in lines] == [
        ("keys.init", "begun"), ("keys.init", "done"), ("keys.add", "begun"), ("keys.add", "done"),
        ("keys.add", "begun"), ("keys.add", "failed"),
    ]  # fmt: skip
    assert "failed: the name shop is taken" in operator.shows("--last", "1")
    assert operator.verifies().startswith("OK 6 records, 1 to 6, ")


def test_nothing_is_changed_when_it_cannot_be_recorded(operator: Operator) -> None:
    before = operator.folder.roster()
    log = operator.path / "audit.log"
    log.write_bytes(log.read_bytes().replace(b"keys.init", b"keys.exit"))
    with pytest.raises(AccessError) as refused:
        operator.types("add", "shop", "--api")
    assert refused.value.exit_code == 10
    assert operator.folder.roster() == before


def test_a_log_that_was_cut_off_is_found_by_the_hash_that_was_noted(operator: Operator) -> None:
    noted = operator.verifies().split()[-1]
    assert operator.verifies("--expect", noted)
    log = AuditLog(operator.path / "audit.log")
    log.path.write_bytes(log.path.read_bytes().splitlines(keepends=True)[0])
    (operator.path / "audit.log.anchor").unlink()
    operator.verifies()
    with pytest.raises(AccessError, match=noted):
        operator.verifies("--expect", noted)
    with pytest.raises(InputError, match="not a hash"):
        operator.verifies("--expect", "abc")


def test_the_commands_of_the_security_page_do_what_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (Path(__file__).parents[2] / "docs" / "security.md").read_text()
    lines = [line for block in page.split("```console\n")[1:] for line in block.split("```")[0].splitlines()]
    monkeypatch.chdir(tmp_path)
    apps = {"keys": keys_app, "audit": audit_app}
    typed = 0
    for program, app, *words in map(shlex.split, lines):
        if program == "cloud-gateway" and app in apps:
            _invoked(apps[app], words)
            typed += 1
    assert typed == 11
    folder = KeyFolder(tmp_path / "keys")
    states = {entry.name: entry.revoked is None for entry in (*folder.roster().agents, *folder.roster().api_keys)}
    assert states == {"camera-7": False, "shop": True, "ops": True}
    assert folder.server_keys().next is None
