"""`cloud-gateway config` as a person types it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cloud_gateway.config_cli import app
from tests.bundles import bundle_in

runner = CliRunner()


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ISTHMUS_GATEWAY__LIMITS__PENDING_MIB", "5")
    path = tmp_path / "gateway.toml"
    path.write_text("[logs]\nlevel = 'debug'\n[cache]\nredis_url = 'redis://rosebud'\n")
    return path


def test_check_accepts_with_0(file: Path) -> None:
    done = runner.invoke(app, ["check", str(file), "--set", "drain.grace_s=3"])
    assert (done.exit_code, done.stderr) == (0, "")
    assert done.stdout.startswith("ok: 4 of ")
    assert json.loads(runner.invoke(app, ["check", str(file), "--json"]).stdout)["ok"] is True


def test_check_refuses_with_3_and_names_everything_that_is_wrong(file: Path) -> None:
    file.write_text("[logs]\nlevl = 'debug'\n[limits]\npending_requests = 0\n")
    done = runner.invoke(app, ["check", str(file)])
    assert (done.exit_code, done.stdout) == (3, "")
    assert done.stderr.splitlines() == [
        f"error: logs.levl is unknown ({file}:2); did you mean logs.level?",
        f"error: limits.pending_requests is 0 ({file}:4); give a whole number from 1 to 1000000",
    ]
    report = json.loads(runner.invoke(app, ["check", str(file), "--json"]).stdout)
    assert report["ok"] is False
    assert [problem["key"] for problem in report["problems"]] == ["logs.levl", "limits.pending_requests"]


def test_check_names_what_is_offered_and_lies_nowhere(file: Path, tmp_path: Path) -> None:
    bundle_in(tmp_path / "models" / "sorter" / "1", {"full.onnx": b"x"}, model="digits v2")
    bundle_in(tmp_path / "beside", {"full.onnx": b"x"}, model="faces")
    text = f"[models]\nrepository = '{tmp_path / 'models'}'\nbundles = ['{tmp_path / 'beside'}']\n[updates]\n"
    file.write_text(text + "offer = ['sorter', 'digits v2', 'faces', '*']\n")
    assert "note" not in runner.invoke(app, ["check", str(file)]).stdout
    file.write_text(text + "offer = ['sorter', 'digitz', 'other']\n")
    done = runner.invoke(app, ["check", str(file)])
    assert done.exit_code == 0, "whoever has not copied the bundle yet may do so later"
    said = (
        "updates.offer names 'digitz', 'other', of which no bundle lies where models are served from; "
        "what there is: digits v2, faces, sorter"
    )
    assert done.stdout.splitlines()[1:] == [f"note: {said}"]
    assert json.loads(runner.invoke(app, ["check", str(file), "--json"]).stdout)["remarks"] == [said]
    file.write_text(f"[models]\nrepository = '{tmp_path / 'on-another-machine'}'\n[updates]\noffer = ['x']\n")
    assert "note" not in runner.invoke(app, ["check", str(file)]).stdout


def test_check_refuses_a_file_that_is_not_there_with_3(tmp_path: Path) -> None:
    done = runner.invoke(app, ["check", str(tmp_path / "no.toml")])
    assert done.exit_code == 3
    assert "cannot be read" in done.stderr
    assert runner.invoke(app, ["check", str(tmp_path / "no.toml"), "--json"]).exit_code == 3


def test_show_says_every_value_and_its_origin_but_no_secret(file: Path) -> None:
    shown = runner.invoke(app, ["show", str(file), "--origin"]).stdout
    assert f'level = "debug"  # {file}:2' in shown
    assert "pending_mib = 5  # ISTHMUS_GATEWAY__LIMITS__PENDING_MIB" in shown
    assert "pending_requests = 1024  # default" in shown
    assert "rosebud" not in shown
    document = json.loads(runner.invoke(app, ["show", str(file), "--origin", "--json", "--given"]).stdout)
    assert document == {
        "limits.pending_mib": {"value": 5, "layer": "environment", "where": "ISTHMUS_GATEWAY__LIMITS__PENDING_MIB"},
        "cache.redis_url": {"value": "***", "layer": "file", "where": f"{file}:4"},
        "logs.level": {"value": "debug", "layer": "file", "where": f"{file}:2"},
    }


def test_the_schema_is_json_or_a_table() -> None:
    document = json.loads(runner.invoke(app, ["schema"]).stdout)
    assert "GatewaySettings" in document["$defs"]
    assert "| `pending_requests` * | `1024` |" in runner.invoke(app, ["schema", "--markdown"]).stdout
