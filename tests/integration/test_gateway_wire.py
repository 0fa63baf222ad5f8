"""What the gateway does with single messages, good and bad, over a real socket."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import numpy.typing as npt
import pytest

from cloud_gateway.gateway import Gateway
from protocol import codecs, wire
from protocol import messages as m
from protocol.bundle import Bundle
from protocol.errors import InputError, NetworkError
from tests.gateways import gateway_of
from tests.wire_client import WireClient, placement

Array = npt.NDArray[Any]


@pytest.fixture
def entry(toy_bundle: Path) -> Any:
    return placement(Bundle.open(toy_bundle), "full-cloud")


def _outputs(result: m.Message, parts: list[bytes]) -> dict[str, Array]:
    assert isinstance(result, m.Result), result
    buffers = wire.join_parts(result.tensors, parts)
    return {h.name: codecs.decode(h, b) for h, b in zip(result.tensors, buffers, strict=True)}


def test_a_welcome_lists_every_segment_and_the_model(toy_gateway: Gateway, toy_bundle: Path) -> None:
    manifest = Bundle.open(toy_bundle).manifest
    with WireClient(str(toy_gateway.endpoint)) as client:
        welcome = client.greet()
    assert set(welcome.segments) == {bytes.fromhex(p.segment) for p in manifest.placements if p.segment}
    assert welcome.models == (bytes.fromhex(manifest.model.digest),)
    assert welcome.credit_requests > 0
    assert welcome.credit_nbytes > 0


def test_a_request_is_answered_with_outputs_timings_and_provenance(
    toy_gateway: Gateway, toy_bundle: Path, entry: Any, toy_samples: Array, toy_reference: Array
) -> None:
    with WireClient(str(toy_gateway.endpoint)) as client:
        client.greet()
        client.send(*client.infer(entry, {"x": toy_samples[:1]}, 1))
        result, parts = client.receive_all()
    np.testing.assert_allclose(_outputs(result, parts)["logits"], toy_reference[:1], atol=1e-5)
    assert isinstance(result, m.Result)
    assert result.checksum == wire.checksum(parts)
    assert result.bundle == Bundle.open(toy_bundle).digest
    assert result.engine.startswith("onnxruntime-")
    assert result.timings.batch_size == 1
    assert result.timings.residence_us >= result.timings.compute_us > 0


def test_an_agent_that_was_not_greeted_is_told_so_and_nothing_runs(
    toy_gateway: Gateway, entry: Any, toy_samples: Array
) -> None:
    with WireClient(str(toy_gateway.endpoint)) as client:
        client.send(*client.infer(entry, {"x": toy_samples[:1]}, 1))
        reply = client.receive()
    assert isinstance(reply, m.NeedHello)
    assert reply.request == m.RequestId(client.boot, 1)
    assert toy_gateway.stats().get("results", 0) == 0


def test_the_same_request_twice_runs_once_and_is_answered_twice(
    toy_gateway: Gateway, entry: Any, toy_samples: Array
) -> None:
    with WireClient(str(toy_gateway.endpoint)) as client:
        client.greet()
        client.send(*client.infer(entry, {"x": toy_samples[:1]}, 1, attempt=1))
        first = client.receive()
        client.send(*client.infer(entry, {"x": toy_samples[:1]}, 1, attempt=2))
        second = client.receive()
    assert isinstance(first, m.Result)
    assert isinstance(second, m.Result)
    assert (first.attempt, second.attempt) == (1, 2)
    assert first.checksum == second.checksum
    assert toy_gateway.stats()["results"] == 1
    assert toy_gateway.stats()["duplicates_answered"] == 1


def test_an_unknown_segment_is_refused_by_name(toy_gateway: Gateway, entry: Any, toy_samples: Array) -> None:
    with WireClient(str(toy_gateway.endpoint)) as client:
        client.greet()
        infer, payload = client.infer(entry, {"x": toy_samples[:1]}, 1)
        client.send(_but(infer, segment=bytes(32)), payload)
        reply = client.receive()
    assert isinstance(reply, m.Reject)
    assert reply.code is m.RejectCode.UNKNOWN_SEGMENT


def test_a_request_that_cannot_finish_in_time_is_refused_with_the_slack_that_is_left(
    toy_gateway: Gateway, entry: Any, toy_samples: Array
) -> None:
    with WireClient(str(toy_gateway.endpoint)) as client:
        client.greet()
        client.send(*client.infer(entry, {"x": toy_samples[:1]}, 1, budget_us=1))
        reply = client.receive()
    assert isinstance(reply, m.Reject)
    assert reply.code is m.RejectCode.DEADLINE
    assert reply.slack_us <= 1
    assert toy_gateway.stats()["rejected_DEADLINE"] == 1


@pytest.mark.parametrize("damage", ["shape", "dtype", "name", "checksum", "parts", "none", "many"])
def test_tensors_that_do_not_fit_are_refused_in_words_and_the_next_request_is_served(
    toy_gateway: Gateway, entry: Any, toy_samples: Array, damage: str
) -> None:
    x = toy_samples[:1]
    with WireClient(str(toy_gateway.endpoint)) as client:
        client.greet()
        infer, payload = client.infer(entry, {"x": x}, 1)
        header = infer.tensors[0]
        if damage == "shape":
            infer = _but(infer, tensors=(_but(header, shape=(1, 3, 16, 17)),))
        elif damage == "dtype":
            infer = _but(infer, tensors=(_but(header, dtype="uint8"),))
        elif damage == "name":
            infer = _but(infer, tensors=(_but(header, name="y"),))
        elif damage == "checksum":
            infer = _but(infer, checksum=infer.checksum ^ 1)
        elif damage == "parts":
            payload = (*payload, b"more")
        elif damage == "none":
            infer, payload = _but(infer, tensors=()), ()
        else:
            infer, payload = _but(infer, tensors=(header, header)), payload * 2
        client.send(infer, payload)
        reply = client.receive()
        assert isinstance(reply, m.Reject), reply
        assert reply.code is m.RejectCode.BAD_REQUEST
        assert len(reply.reason) > 10
        client.send(*client.infer(entry, {"x": x}, 2))
        assert isinstance(client.receive(), m.Result)


def test_garbage_is_counted_and_dropped_and_the_loop_survives(
    toy_gateway: Gateway, entry: Any, toy_samples: Array
) -> None:
    garbage = [
        b"",
        b"\x01",
        b"GET / HTTP/1.1\r\n\r\n"[:1] + b"\x63",
        bytes((1, 4)) + b"\xff" * 100,
        bytes((1, 4)) + b"\x91" * 65_000,
        bytes((1, 99)) + msgpack.packb([]),
        bytes((1, 2)) + msgpack.packb([]),
        bytes((1, 1)) + msgpack.packb({"boot": "x"}),
    ]
    with WireClient(str(toy_gateway.endpoint)) as client:
        for header in garbage[1:]:
            if header[:1] == b"\x01":
                client.send_frames([header])
        client.greet()
        client.send(*client.infer(entry, {"x": toy_samples[:1]}, 1))
        assert isinstance(client.receive(), m.Result)
    assert toy_gateway.stats()["wire_errors"] == sum(g[:1] == b"\x01" for g in garbage)


def test_a_foreign_version_is_told_ours(toy_gateway: Gateway) -> None:
    with WireClient(str(toy_gateway.endpoint)) as client:
        client.send_frames([bytes((9, 1)) + msgpack.packb(["a future hello"])])
        reply = client.receive()
    assert reply == m.VersionMismatch(wire.VERSION, wire.VERSION)
    assert toy_gateway.stats()["foreign_versions"] == 1


def test_a_ping_is_answered_by_the_application(toy_gateway: Gateway) -> None:
    with WireClient(str(toy_gateway.endpoint)) as client:
        client.greet()
        client.send(m.Ping(7, bytes(1000)))
        reply = client.receive()
    assert isinstance(reply, m.Pong)
    assert reply.number == 7


def test_a_full_gateway_answers_busy(toy_bundle: Path, entry: Any, toy_samples: Array) -> None:
    gateway = gateway_of(toy_bundle, settings={"limits.pending_requests": 1})
    with gateway, WireClient(str(gateway.endpoint)) as client:
        client.greet()
        with gateway.desk.paused():  # the first is not done before the second comes
            for sequence in (1, 2):
                client.send(*client.infer(entry, {"x": toy_samples[:1]}, sequence))
            reply = client.receive()
        assert isinstance(client.receive(), m.Result)
    assert isinstance(reply, m.Reject)
    assert reply.code is m.RejectCode.BUSY
    assert reply.retry_after_us > 0
    assert reply.slack_us > 4_000_000
    assert reply.credit is not None
    assert reply.credit > 0


def test_more_than_its_credit_is_refused_to_an_agent(toy_bundle: Path, entry: Any, toy_samples: Array) -> None:
    gateway = gateway_of(toy_bundle, settings={"limits.credit_requests": 1})
    with gateway, WireClient(str(gateway.endpoint)) as client:
        client.greet()
        with gateway.desk.paused():  # the first is not done before the second comes
            for sequence in (1, 2):
                client.send(*client.infer(entry, {"x": toy_samples[:1]}, sequence))
            reply = client.receive()
        assert isinstance(client.receive(), m.Result)
    assert isinstance(reply, m.Reject)
    assert reply.code is m.RejectCode.BUSY
    assert "credit" in reply.reason
    assert (reply.request.sequence, reply.credit) == (2, 0)


def test_nobody_gets_or_cancels_anothers_request(toy_gateway: Gateway, entry: Any, toy_samples: Array) -> None:
    with (
        WireClient(str(toy_gateway.endpoint)) as owner,
        WireClient(str(toy_gateway.endpoint), boot=b"stranger") as thief,
    ):
        owner.greet()
        thief.greet()
        infer, payload = owner.infer(entry, {"x": toy_samples[:1]}, 1)
        thief.send(infer, payload)
        thief.send(m.Cancel(infer.request))
        owner.send(infer, payload)
        assert isinstance(owner.receive(), m.Result)
        assert thief.silent()
    assert toy_gateway.stats()["wire_errors"] == 2


def test_shutdown_finishes_what_is_held_refuses_what_comes_and_says_so(
    toy_bundle: Path, entry: Any, toy_samples: Array
) -> None:
    gateway = gateway_of(toy_bundle, settings={"drain.grace_s": 3.0, "limits.credit_requests": 64})
    gateway.start()
    with WireClient(str(gateway.endpoint)) as client:
        client.greet()
        for sequence in range(50):
            client.send(*client.infer(entry, {"x": toy_samples[:1]}, sequence))
        closing = threading.Thread(target=gateway.close)
        ended = {_sequence(client.receive())}
        closing.start()  # in the middle of it
        drained = False
        while not client.silent(0.5):
            message = client.receive()
            drained = drained or isinstance(message, m.Drain)
            if isinstance(message, m.Result | m.Reject):
                ended.add(_sequence(message))
        closing.join(timeout=10)
    stats = gateway.stats()
    assert drained
    assert len(ended) == stats["requests"] == stats["results"] + stats.get("rejected_DRAINING", 0)


def _sequence(message: m.Message) -> int:
    assert isinstance(message, m.Result) or (isinstance(message, m.Reject) and message.code is m.RejectCode.DRAINING), (
        message
    )
    return message.request.sequence


def test_a_port_in_use_is_refused_in_one_sentence(toy_gateway: Gateway, toy_bundle: Path) -> None:
    second = gateway_of(toy_bundle, bind=str(toy_gateway.endpoint))
    with pytest.raises(NetworkError, match="already in use"):
        second.start()


def test_listening_off_this_machine_needs_a_word(toy_bundle: Path) -> None:
    with pytest.raises(InputError, match="--insecure"):
        gateway_of(toy_bundle, bind="tcp://0.0.0.0:0")


def _but(struct: Any, **changes: Any) -> Any:
    return type(struct)(**{f: changes.get(f, getattr(struct, f)) for f in struct.__struct_fields__})


def test_a_bug_in_an_engine_thread_answers_what_is_pending_and_ends_the_gateway(
    toy_bundle: Path, entry: Any, toy_samples: Array, monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway = gateway_of(toy_bundle)
    gateway.start()
    for lane in gateway.catalogue.lanes.values():
        monkeypatch.setattr(lane.engine, "infer", _bug)
    with WireClient(str(gateway.endpoint)) as client:
        client.greet()
        client.send(*client.infer(entry, {"x": toy_samples[:1]}, 1))
        reply = client.receive()
    assert isinstance(reply, m.Reject)
    assert reply.code is m.RejectCode.INTERNAL
    assert gateway.stopped.wait(20)
    assert isinstance(gateway.fatal, ZeroDivisionError)


def _bug(_tensors: object) -> None:
    raise ZeroDivisionError("a bug")
