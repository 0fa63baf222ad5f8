"""The agent's settings: defaults, contradictions, flags."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest

from edge_agent.config import PREFIX, AgentSettings, from_flags, load_settings, sources
from protocol.errors import InputError
from protocol.settings import documented, schema
from protocol.settings_cli import as_toml
from protocol.settings_layers import flat
from protocol.sockets import parse_endpoint

ROOT = Path(__file__).parents[2]
AGENT = ROOT / "edge_agent"


def refusal(**settings: object) -> str:
    with pytest.raises(InputError) as caught:
        load_settings(env={}, overrides={key.replace("__", "."): value for key, value in settings.items()})
    return str(caught.value)


def test_the_defaults_listen_on_this_machine_only_and_write_to_one_folder() -> None:
    settings = load_settings(env={}).settings
    assert parse_endpoint(settings.http.bind).is_loopback
    assert parse_endpoint(settings.grpc.bind).is_loopback
    assert not settings.http.insecure
    assert not settings.gateways.insecure
    paths = [value for value in flat(settings).values() if isinstance(value, Path)]
    assert paths == [Path("/var/lib/isthmus")]


def test_the_schema_is_json_and_knows_the_state_directory() -> None:
    fields = json.loads(json.dumps(schema(AgentSettings)))["$defs"]["AgentSettings"]["properties"]
    assert fields["state_dir"]["default"] == "/var/lib/isthmus"


def test_a_port_that_cannot_be_is_named_by_its_key() -> None:
    assert "http.bind 127.0.0.1:99999 names no port" in refusal(http__bind="127.0.0.1:99999")
    assert "grpc.bind 127.0.0.1:65536 names no port" in refusal(grpc__bind="127.0.0.1:65536")


def test_every_field_is_read_by_somebody() -> None:
    read: set[str] = set()
    for source in AGENT.rglob("*.py"):
        if source.name != "config.py":
            nodes = ast.walk(ast.parse(source.read_text("utf-8")))
            read |= {node.attr for node in nodes if isinstance(node, ast.Attribute)}
    unread = [key for key, _ in documented(AgentSettings) if key.rpartition(".")[2] not in read]
    assert not unread


@pytest.mark.parametrize(
    ("settings", "fact"),
    [
        ({"http__tls_key": "k"}, "http.tls_key is set without http.tls_certificate (command line); TLS needs both"),
        ({"http__client_ca": "c"}, "http.client_ca is set but http has no certificate of its own"),
        ({"http__bind": "0.0.0.0:7490"}, "would let any machine use this device (command line); set http.client_ca"),
        ({"http__bind": "device.example:7490"}, "would let any machine use this device"),
        ({"grpc__bind": "0.0.0.0:7491"}, "is not on this machine"),
        ({"http__bind": "tcp://127.0.0.1:80"}, "give HOST:PORT or off"),
        ({"gateways__endpoints": "gateway:7447"}, "each tcp://HOST:PORT or srv://NAME"),
        ({"health__every_s": "0.5", "health__timeout_s": "60"}, "a hang would be noticed late"),
        ({"device__providers": "cpu,cpu"}, "names one of them twice (command line); name each at most once"),
        ({"device__providers": []}, "device.providers names nothing"),
        ({"planner__objective": "speed"}, "is not NAME=WEIGHT"),
        ({"htp__bind": "off"}, "htp.bind is unknown (command line); did you mean http.bind?"),
    ],
)
def test_values_that_cannot_be_meant_are_refused(settings: dict[str, object], fact: str) -> None:
    assert fact in refusal(**settings)


def test_flags_of_run_become_overrides_only_where_they_were_given() -> None:
    assert from_flags() == {}
    flags = from_flags(
        bundle=Path("b"), gateways=["tcp://a:1", "tcp://[::1]:2"], state_dir=Path("s"), http="off",
        socket=Path("x.sock"), grpc="127.0.0.1:0", deadline_ms=50.0, threads=2, slowdown=3.0, placements="a,b",
        fault_file=Path("f"), keys=Path("k"), server_key="p", insecure=True, wait_s=0.0,
    )  # fmt: skip
    settings = load_settings(env={}, overrides=flags).settings
    assert settings.gateways.endpoints == ("tcp://a:1", "tcp://[::1]:2")
    assert settings.bundle.placements == ("a", "b")
    assert (settings.http.bind, settings.grpc.enabled, settings.state_dir) == ("off", True, Path("s"))


def test_file_environment_secrets_and_flags_are_layers(tmp_path: Path) -> None:
    file = tmp_path / "agent.toml"
    file.write_text('state_dir = "state"\n[requests]\ndeadline_ms = 10.0\nmost_pending = 2\n[device]\nthreads = 2\n')
    (tmp_path / "key").write_text("isthmus-curve-public x\n")
    env = {
        f"{PREFIX}_CONFIG": str(file),
        f"{PREFIX}__REQUESTS__MOST_PENDING": "3",
        f"{PREFIX}__KEYS__SERVER_KEY_FILE": str(tmp_path / "key"),
    }
    assert sources(file=None, env=env, secrets_dir=None).file == file
    loaded = load_settings(env=env, overrides={"device.threads": "4"})
    settings = loaded.settings
    assert (settings.requests.deadline_ms, settings.requests.most_pending, settings.device.threads) == (10.0, 3, 4)
    assert settings.keys.server_key == "isthmus-curve-public x"
    assert settings.state_dir == tmp_path / "state"
    assert str(loaded.origins["state_dir"]) == f"{file}:1"


def test_what_is_shown_loads_again_as_it_was(tmp_path: Path) -> None:
    loaded = load_settings(env={}, overrides={"gateways.endpoints": "tcp://a:1,srv://b", "state_dir": "/s"})
    file = tmp_path / "shown.toml"
    for origins in (None, loaded):
        file.write_text(as_toml(flat(loaded.settings), origins))
        assert load_settings(file=file, env={}).settings == loaded.settings
