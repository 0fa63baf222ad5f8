"""The doctor on bundles and gateways that are real, sound or broken in one way each: one fault, one failure."""

from __future__ import annotations

import shutil
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cloud_gateway.access.folder import KeyFolder
from cloud_gateway.access.roster import AgentEntry, add_agent
from cloud_gateway.gateway import Gateway
from edge_agent.doctor.case import Case
from edge_agent.doctor.examination import examine
from edge_agent.doctor.registry import chosen
from edge_agent.doctor.verdicts import Finding, Status
from protocol import keys
from tests.gateways import gateway_of

MISSED = "planned"  # what heads take here depends on the machine: the verdict may be a warning


def examined(tmp_path: Path, *groups: str, **settings: object) -> dict[str, Finding]:
    overrides = {"state_dir": str(tmp_path / "state")} | {key.replace("__", "."): v for key, v in settings.items()}
    case = Case(overrides=overrides, root=tmp_path)
    try:
        return {finding.id: finding for finding in examine(case, chosen(groups))}
    finally:
        case.close()


def failures(findings: dict[str, Finding]) -> list[str]:
    assert all(f.remedy for f in findings.values() if f.status is Status.FAIL)
    return [id_ for id_, f in findings.items() if f.status is Status.FAIL]


def test_a_sound_bundle_and_the_gateway_that_serves_it_have_no_failure(
    tmp_path: Path, toy_bundle: Path, toy_gateway: Gateway
) -> None:
    findings = examined(
        tmp_path, "bundle", "network", bundle__path=str(toy_bundle), gateways__endpoints=[str(toy_gateway.endpoint)]
    )
    assert failures(findings) == []
    for id_ in ("opens", "hashes", "heads", "fallback", "known_answer"):
        assert findings[f"bundle.{id_}"].status is Status.OK, findings[f"bundle.{id_}"]
    assert "edge-only" in findings["bundle.speed"].fact
    assert MISSED in findings["bundle.speed"].fact
    for id_ in ("resolve", "connect", "handshake", "welcome", "segments"):
        assert findings[f"network.{id_}"].status is Status.OK, findings[f"network.{id_}"]
    assert findings["network.key"].status is Status.SKIP  # no keys are in use
    assert "ms" in findings["network.round_trip"].fact
    assert findings["network.mtu"].status is Status.OK


def test_a_damaged_head_is_found_by_its_hash_and_costs_no_other_check_its_verdict(
    tmp_path: Path, toy_bundle: Path
) -> None:
    copy = tmp_path / "bundle"
    shutil.copytree(toy_bundle, copy)
    head = copy / "edge.onnx"
    data = bytearray(head.read_bytes())
    data[len(data) // 2] ^= 1
    head.write_bytes(data)
    findings = examined(tmp_path, "bundle", bundle__path=str(copy))
    assert failures(findings) == ["bundle.hashes", "bundle.heads"]
    assert "edge.onnx" in findings["bundle.hashes"].fact
    assert findings["bundle.opens"].status is Status.OK
    assert findings["bundle.speed"].fact == "the heads could not be loaded (bundle.heads)"


def test_tails_that_did_not_come_over_the_air_are_no_failure_and_a_head_that_is_gone_is_one(
    tmp_path: Path, toy_bundle: Path
) -> None:
    copy = tmp_path / "bundle"
    shutil.copytree(toy_bundle, copy)
    (copy / "cut-1" / "tail.onnx").unlink()
    findings = examined(tmp_path, "bundle.opens", "bundle.hashes", bundle__path=str(copy))
    assert failures(findings) == []
    assert "1 that only gateways need are not here" in findings["bundle.hashes"].fact
    (copy / "cut-1" / "head.onnx").unlink()
    findings = examined(tmp_path, "bundle.opens", "bundle.hashes", bundle__path=str(copy))
    assert failures(findings) == ["bundle.hashes"]


def test_an_unsigned_bundle_is_a_failure_where_signatures_are_required(tmp_path: Path, toy_bundle: Path) -> None:
    bundle = str(toy_bundle)
    taken = examined(tmp_path, "bundle.opens", "bundle.signature", bundle__path=bundle)
    assert taken["bundle.signature"].status is Status.WARN
    refused = examined(tmp_path, "bundle.opens", "bundle.signature", bundle__path=bundle, bundle__signatures="required")
    assert failures(refused) == ["bundle.signature"]


def test_no_bundle_at_the_place_named_is_one_failure(tmp_path: Path) -> None:
    findings = examined(tmp_path, "bundle", bundle__path=str(tmp_path / "nothing"))
    assert failures(findings) == ["bundle.opens"]


def test_a_gateway_with_another_bundle_is_told(tmp_path: Path, toy_bundle: Path, wide_bundle: Path) -> None:
    with gateway_of(wide_bundle) as gateway:
        findings = examined(
            tmp_path, "network", bundle__path=str(toy_bundle), gateways__endpoints=[str(gateway.endpoint)]
        )
    assert failures(findings) == ["network.segments"]
    assert "holds 0 of " in findings["network.segments"].fact


def test_a_port_where_nobody_listens_is_told_from_one_that_speaks_http(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as reserved:
        port = reserved.getsockname()[1]
    nobody = examined(tmp_path, "network", gateways__endpoints=[f"tcp://127.0.0.1:{port}"])
    assert failures(nobody) == ["network.connect"]
    assert nobody["network.connect"].remedy == "start the gateway there, or check the port"
    assert "network.connect" in nobody["network.welcome"].fact
    with web_server() as url:
        findings = examined(tmp_path, "network", gateways__endpoints=[url])
    assert failures(findings) == ["network.handshake"]
    assert findings["network.connect"].status is Status.OK


def test_a_device_that_the_gateway_does_not_know_is_told_so(tmp_path: Path, toy_bundle: Path) -> None:
    folder = KeyFolder(tmp_path / "gateway")
    folder.make()
    known, unknown = keys.make_pair("known"), keys.make_pair("unknown")
    with folder.locked():
        folder.create("gateway")
        folder.change(lambda roster: add_agent(roster, AgentEntry(name="known", key=known.public.data.hex(), added=1)))
    with gateway_of(toy_bundle, settings={"access.keys_dir": str(tmp_path / "gateway")}) as gateway:
        seen = {}
        for pair in (known, unknown):
            mine = tmp_path / pair.name
            mine.mkdir()
            keys.write_pair(mine / "agent.key", pair)
            keys.write_public(mine / "server.pub", folder.public_keys())
            seen[pair.name] = examined(
                tmp_path,
                "network",
                bundle__path=str(toy_bundle),
                gateways__endpoints=[str(gateway.endpoint)],
                keys__dir=str(mine),
            )
    assert failures(seen["known"]) == []
    assert seen["known"]["network.key"].status is Status.OK
    assert failures(seen["unknown"]) == ["network.key"]
    assert "unknown, revoked or expired" in seen["unknown"]["network.key"].fact


@pytest.mark.parametrize("several", [1, 3])
def test_gateways_are_asked_at_the_same_time_and_each_is_named(
    tmp_path: Path, toy_gateway: Gateway, several: int
) -> None:
    endpoints = [str(toy_gateway.endpoint)] * (several - 1) + ["tcp://nowhere.invalid:7447"]
    findings = examined(tmp_path, "network", gateways__endpoints=endpoints, gateways__insecure=True)
    assert failures(findings) == ["network.resolve"]
    assert "nowhere.invalid" in findings["network.resolve"].fact
    assert findings["network.welcome"].status is (Status.OK if several > 1 else Status.SKIP)


@contextmanager
def web_server() -> Iterator[str]:
    """Answers whatever comes as a web server does."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.05)
        ended = threading.Event()

        def serve() -> None:
            while not ended.is_set():
                try:
                    stream, _ = listener.accept()
                except TimeoutError:
                    continue
                with stream:
                    stream.sendall(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"tcp://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            ended.set()
            thread.join()
