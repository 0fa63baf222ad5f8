"""The gateway's settings: defaults, contradictions, flags."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from cloud_gateway import config
from cloud_gateway.config import PREFIX, GatewaySettings, from_flags, load_settings, sources
from cloud_gateway.config_cli import as_toml
from protocol.errors import InputError
from protocol.settings import documented, schema
from protocol.settings_fields import Leaf, tree_of
from protocol.settings_layers import flat
from protocol.sockets import parse_endpoint

ROOT = Path(__file__).parents[2]
GATEWAY = ROOT / "cloud_gateway"


def refusal(**settings: object) -> str:
    with pytest.raises(InputError) as caught:
        load_settings(env={}, overrides={key.replace("__", "."): value for key, value in settings.items()})
    return str(caught.value)


def test_the_defaults_listen_on_this_machine_only_and_give_nothing_dangerous() -> None:
    settings = load_settings(env={}).settings
    assert parse_endpoint(settings.zmq.bind).is_loopback
    assert settings.http.bind.startswith("127.")
    assert settings.grpc.bind.startswith("127.")
    assert not (settings.zmq.insecure)
    assert not (settings.http.insecure)
    assert not (settings.access.admin)
    assert not (settings.cache.enabled)


def test_every_section_is_a_table_of_the_schema() -> None:
    sections = set(tree_of(GatewaySettings).children)
    assert set(schema(GatewaySettings)["$defs"]["GatewaySettings"]["properties"]) == sections


def test_what_a_person_may_want_to_turn_without_a_restart_is_reloadable() -> None:
    reloadable = {key for key, leaf in documented(GatewaySettings) if leaf.reloadable}
    assert {"limits.pending_requests", "limits.credit_mib", "logs.level", "models.policy", "models.poll_s",
            "scheduling.efficiency_delay_ms", "cache.size_mib"} <= reloadable  # fmt: skip
    assert not {"zmq.bind", "http.tls_key", "access.keys_dir", "scheduling.workers"} & reloadable


@pytest.mark.parametrize(
    ("settings", "fact"),
    [
        ({"http__tls_key": "k"}, "http.tls_key is set without http.tls_certificate (command line); TLS needs both"),
        ({"grpc__tls_certificate": "c"}, "grpc.tls_certificate is set without grpc.tls_key"),
        ({"http__client_ca": "c"}, "http.client_ca is set but http has no certificate of its own"),
        ({"models__policy": "specific"}, "models.policy is specific but models.versions names none"),
        ({"models__mode": "watch"}, "models.mode is watch but there is no models.repository"),
        ({"engines__order": "onnxruntime-cpu,onnxruntime-cpu"}, "engines.order names onnxruntime-cpu twice"),
        ({"engines__retry_s": 9.0, "engines__longest_retry_s": 1.0}, "engines.retry_s is more than"),
        ({"access__admin": True}, "access.admin is set but access.keys_dir is not"),
        ({"zmq__bind": "127.0.0.1:7447"}, "give tcp://HOST:PORT"),
        ({"http__bind": "tcp://127.0.0.1:80"}, "give HOST:PORT"),
        ({"tracing__endpoint": "collector"}, "give http://HOST:PORT/v1/traces"),
    ],
)
def test_values_that_contradict_each_other_are_refused(settings: dict[str, object], fact: str) -> None:
    assert fact in refusal(**settings)


def test_addresses_of_both_families_and_every_interface_are_taken() -> None:
    for bind in ("tcp://*:7447", "tcp://[::1]:7447", "tcp://gateway.example:0"):
        load_settings(env={}, overrides={"zmq.bind": bind})
    for bind in ("0.0.0.0:80", "[::]:80", "gateway.example:0"):
        load_settings(env={}, overrides={"http.bind": bind})


def test_the_file_and_the_folder_of_secrets_may_be_named_by_the_environment(tmp_path: Path) -> None:
    (tmp_path / "cache.redis_url").write_text("redis://:rosebud@localhost:1/0\n")
    (tmp_path / "gateway.toml").write_text("cache.enabled = true")
    env = {f"{PREFIX}_CONFIG": str(tmp_path / "gateway.toml"), f"{PREFIX}_SECRETS_DIR": str(tmp_path)}
    found = sources(file=None, env=env, secrets_dir=None)
    assert found.paths == [tmp_path / "gateway.toml", tmp_path]
    assert sources(file=Path("a"), env={}, secrets_dir=None).paths == [Path("a")]
    cache = load_settings(env=env).settings.cache
    assert cache.enabled
    assert cache.redis_url is not None
    assert cache.redis_url.reveal() == "redis://:rosebud@localhost:1/0"


def test_flags_of_serve_become_overrides_only_where_they_were_given() -> None:
    assert from_flags() == {}
    flags = from_flags(
        bundles=[Path("a"), Path("b")], bind="tcp://127.0.0.1:0", insecure=False, threads=2, max_batch_size=8,
        drain_s=2.0, http="off", grpc="127.0.0.1:0", repository=Path("models"), log_level="debug",
    )  # fmt: skip
    settings = load_settings(env={}, overrides=flags).settings
    assert settings.models.bundles == (Path("a"), Path("b"))
    assert settings.models.repository == Path("models")
    assert (settings.zmq.bind, settings.zmq.insecure) == ("tcp://127.0.0.1:0", False)
    assert (settings.scheduling.threads, settings.scheduling.max_batch_size) == (2, 8)
    assert (settings.drain.grace_s, settings.logs.level) == (2.0, "debug")
    assert not settings.http.enabled
    assert (settings.grpc.enabled, settings.grpc.bind) == (True, "127.0.0.1:0")


def test_what_is_shown_loads_again_as_it_was(tmp_path: Path) -> None:
    overrides: dict[str, object] = {
        "models.override.digits.threads": "3", 'models.override."resnet.v2".threads': "2",
        "cache.redis_url": "redis://secret", "http.tls_key": "/a b/\"k\".pem",
        "http.tls_certificate": "/c", "scheduling.workers": "4", "models.versions": "1,2",
    }  # fmt: skip
    loaded = load_settings(env={}, overrides=overrides)
    file = tmp_path / "shown.toml"
    for origins in (None, loaded):
        file.write_text(as_toml(flat(loaded.settings), origins))
        again = load_settings(file=file, env={"ISTHMUS_GATEWAY__CACHE__REDIS_URL": "redis://secret"})
        assert again.settings == loaded.settings
        assert "secret" not in file.read_text()


def test_every_field_is_read_by_somebody() -> None:
    read: set[str] = set()
    for source in GATEWAY.rglob("*.py"):
        if source.name != "config.py":
            nodes = ast.walk(ast.parse(source.read_text("utf-8")))
            read |= {node.attr for node in nodes if isinstance(node, ast.Attribute)}
    assert [key for key, _ in documented(GatewaySettings) if key.rpartition(".")[2] not in read] == []


def test_every_setting_is_read_by_somebody() -> None:
    package = Path(config.__file__).parent
    readers = [file for file in package.rglob("*.py") if file.name not in ("config.py", "config_cli.py")]
    read = {
        node.attr
        for file in readers
        for node in ast.walk(ast.parse(file.read_text("utf-8")))
        if isinstance(node, ast.Attribute)
    }
    assert [key for key, _ in documented(GatewaySettings) if key.rpartition(".")[2] not in read] == []


def test_no_section_hides_a_leaf_of_its_own_name() -> None:
    assert all(isinstance(leaf, Leaf) for _, leaf in documented(GatewaySettings))
