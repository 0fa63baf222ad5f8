"""Large payloads in chunks over a slow link: the urgent passes, what breaks off begins anew, the wrong is refused."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import pytest

from benchmarks.link import LinkEmulator
from cloud_gateway.gateway import Gateway
from edge_agent.agent import Agent, AgentConfig
from edge_agent.outcomes import Answer, Refusal
from protocol import messages as m
from protocol import wire
from protocol.bundle import Bundle, PlacementEntry
from protocol.control.flights import RefusalCode
from tests.gateways import gateway_of
from tests.waiting import until
from tests.wire_client import WireClient, placement

Array = npt.NDArray[Any]
ROWS = 64  # of the toy model's input: 196,608 bytes, 1.6 s on 1 Mbit/s
LONG_S = 60.0
CHUNK = 16_384


@pytest.fixture
def slow_link(toy_gateway: Gateway) -> Iterator[LinkEmulator]:
    endpoint = toy_gateway.endpoint
    with LinkEmulator((endpoint.host, endpoint.port), uplink_mbit_per_s=1, downlink_mbit_per_s=4, rtt_ms=20) as link:
        yield link


@pytest.fixture
def agent(toy_bundle: Path, slow_link: LinkEmulator) -> Iterator[Agent]:
    config = AgentConfig(bundle=toy_bundle, gateway=slow_link.endpoint, placements=("full-cloud",))
    with Agent(config) as agent:
        assert agent.wait_ready(20)
        yield agent


def many(samples: Array) -> Array:
    return np.concatenate([samples] * (ROWS // len(samples)))


def counter(agent: Agent, name: str) -> int:
    return agent.look(10.0).counters.get(name, 0)


def test_a_large_request_crosses_in_chunks_and_an_urgent_one_passes_it(
    agent: Agent, toy_gateway: Gateway, toy_samples: Array, toy_reference: Array
) -> None:
    ended: list[str] = []
    large = agent.submit({"x": many(toy_samples)}, deadline_s=LONG_S)
    large.add_done_callback(lambda _: ended.append("large"))
    until(lambda: counter(agent, "chunks") > 2, "no chunk was sent")
    urgent = agent.submit({"x": toy_samples[:1]}, deadline_s=LONG_S, priority=0)
    urgent.add_done_callback(lambda _: ended.append("urgent"))
    outcomes = [urgent.result(timeout=LONG_S), large.result(timeout=LONG_S)]
    until(lambda: len(ended) == 2)
    assert ended == ["urgent", "large"]
    for outcome, rows in zip(outcomes, (1, ROWS), strict=True):
        assert isinstance(outcome, Answer), outcome
        wanted = np.concatenate([toy_reference] * (ROWS // len(toy_reference)))[:rows]
        np.testing.assert_allclose(outcome.outputs["logits"], wanted, atol=1e-4)
    assert isinstance(outcomes[1], Answer)
    assert outcomes[1].up_nbytes > 100_000
    assert toy_gateway.stats()["uploads"] == 1


def test_whatever_breaks_the_link_in_the_middle_the_request_is_sent_anew_and_answered_once(
    agent: Agent, slow_link: LinkEmulator, toy_gateway: Gateway, toy_samples: Array
) -> None:
    large = agent.submit({"x": many(toy_samples)}, deadline_s=LONG_S)
    until(lambda: toy_gateway.stats().get("chunks", 0) > 5, "nothing arrives")
    slow_link.reset_all()
    outcome = large.result(timeout=LONG_S)
    assert isinstance(outcome, Answer), outcome
    assert outcome.attempts >= 2
    stats = toy_gateway.stats()
    assert (stats["results"], stats["uploads"], stats["uploads_broken"]) == (1, 1, 1)


def test_nothing_more_is_sent_of_what_nobody_waits_for(agent: Agent, toy_gateway: Gateway, toy_samples: Array) -> None:
    large = agent.submit({"x": many(toy_samples)}, deadline_s=LONG_S)
    until(lambda: toy_gateway.stats().get("chunks", 0) > 2, "nothing arrives")
    large.cancel()
    until(lambda: toy_gateway.stats().get("cancelled", 0) == 1, "the gateway is not told")
    small = agent.submit({"x": toy_samples[:1]}, deadline_s=LONG_S).result(timeout=LONG_S)
    assert isinstance(small, Answer), "and the link is free"
    assert toy_gateway.stats().get("uploads", 0) == 0


def test_what_is_late_is_broken_off_and_its_gateway_told(
    agent: Agent, slow_link: LinkEmulator, toy_gateway: Gateway, toy_samples: Array
) -> None:
    late = agent.submit({"x": many(toy_samples)}, deadline_s=4.0)
    until(lambda: toy_gateway.stats().get("chunks", 0) > 2, "nothing arrives")
    slow_link.set_rate(0.05, side="up")
    outcome = late.result(timeout=LONG_S)
    assert isinstance(outcome, Refusal)
    assert outcome.code is RefusalCode.DEADLINE
    slow_link.set_rate(1.0, side="up")
    until(lambda: toy_gateway.stats().get("cancelled", 0) + toy_gateway.stats().get("uploads_abandoned", 0) >= 1)
    assert toy_gateway.stats().get("results", 0) == 0


# ---- a gateway that is spoken to by hand ----------------------------------------------------------------------------


@pytest.fixture
def entry(toy_bundle: Path) -> PlacementEntry:
    return placement(Bundle.open(toy_bundle), "full-cloud")


@pytest.fixture
def client(toy_gateway: Gateway) -> Iterator[WireClient]:
    with WireClient(str(toy_gateway.endpoint)) as client:
        assert client.greet().chunk_nbytes == wire.PART_NBYTES
        yield client


class Upload:
    """One request of `rows` rows in pieces, sent as told."""

    def __init__(
        self, client: WireClient, entry: PlacementEntry, samples: Array, sequence: int = 1, *, attempt: int = 1
    ) -> None:
        self.client = client
        infer, payload = client.infer(entry, {"x": samples}, sequence, attempt=attempt)
        self.infer = msgspec.structs.replace(infer, chunk_nbytes=CHUNK)
        self.pieces = wire.split(payload, CHUNK)

    def announce(self) -> None:
        self.client.send(self.infer)

    def send(self, number: int, part: wire.Buffer | None = None) -> None:
        chunk = m.Chunk(self.infer.request, self.infer.attempt, number, 5_000_000)
        self.client.send(chunk, (self.pieces[number] if part is None else part,))

    def acknowledged(self) -> int:
        credit = self.client.receive()
        assert isinstance(credit, m.Credit), credit
        assert (credit.request, credit.attempt) == (self.infer.request, self.infer.attempt)
        return credit.chunks

    def finish(self, first: int = 0) -> m.Result:
        for number in range(first, len(self.pieces)):
            self.send(number)
            assert self.acknowledged() == number + 1
        result = self.client.receive()
        assert isinstance(result, m.Result), result
        return result


def refused(client: WireClient) -> tuple[m.RejectCode, str]:
    reject = client.receive()
    assert isinstance(reject, m.Reject), reject
    return reject.code, reject.reason


def test_between_two_chunks_anything_else_is_answered(
    client: WireClient, entry: PlacementEntry, toy_samples: Array
) -> None:
    upload = Upload(client, entry, toy_samples)
    upload.announce()
    upload.send(0)
    assert upload.acknowledged() == 1
    client.send(m.Ping(7))
    assert isinstance(client.receive(), m.Pong)
    client.send(*client.infer(entry, {"x": toy_samples[:1]}, 2))
    other = client.receive()
    assert isinstance(other, m.Result)
    assert other.request.sequence == 2
    assert upload.finish(1).attempt == 1


@pytest.mark.parametrize("wrong", ["skipped", "repeated", "short", "beyond", "unannounced", "checksum"])
def test_a_wrong_chunk_is_refused_in_one_sentence_and_harms_nobody_else(
    client: WireClient, toy_gateway: Gateway, entry: PlacementEntry, toy_samples: Array, wrong: str
) -> None:
    other = Upload(client, entry, toy_samples[:24], 2)
    other.announce()
    other.send(0)
    assert other.acknowledged() == 1
    upload = Upload(client, entry, toy_samples)
    if wrong == "checksum":
        upload.infer = msgspec.structs.replace(upload.infer, checksum=upload.infer.checksum ^ 1)
    if wrong != "unannounced":
        upload.announce()
        upload.send(0)
        assert upload.acknowledged() == 1
    match wrong:
        case "skipped":
            upload.send(2)
        case "repeated" | "unannounced":
            upload.send(0)
        case "short":
            upload.send(1, upload.pieces[1][:-1])
        case "beyond":
            upload.send(1, bytes(CHUNK + 1))
        case "checksum":
            for number in range(1, len(upload.pieces)):
                upload.send(number)
                assert upload.acknowledged() == number + 1
    code, reason = refused(client)
    assert code is m.RejectCode.BAD_REQUEST
    assert "chunk" in reason or "announced" in reason or "checksum" in reason
    other.finish(1)
    again = Upload(client, entry, toy_samples, attempt=2)
    again.announce()
    again.finish()
    assert toy_gateway.stats()["results"] == 2


@pytest.mark.parametrize("wrong", ["segment", "tensors", "with parts", "tiny", "nothing follows"])
def test_what_its_header_can_be_refused_for_is_refused_before_the_payload_is_sent(
    client: WireClient, entry: PlacementEntry, toy_samples: Array, wrong: str
) -> None:
    upload = Upload(client, entry, toy_samples[:8])
    changes: dict[str, dict[str, Any]] = {
        "segment": {"segment": bytes(32)},
        "tensors": {"tensors": upload.infer.tensors * 2},
        "tiny": {"chunk_nbytes": 100},
        "nothing follows": {"tensors": ()},
    }
    change = changes.get(wrong, {})
    infer = msgspec.structs.replace(upload.infer, **change)
    client.send(infer, tuple(upload.pieces[:1]) if wrong == "with parts" else ())
    code, _ = refused(client)
    assert code is (m.RejectCode.UNKNOWN_SEGMENT if wrong == "segment" else m.RejectCode.BAD_REQUEST)
    upload.send(0)  # on its way already
    client.send(m.Ping(1))
    assert isinstance(client.receive(), m.Pong), "it is said once"


def test_a_repeated_announcement_is_attached_or_answered_without_a_payload(
    client: WireClient, toy_gateway: Gateway, entry: PlacementEntry, toy_samples: Array
) -> None:
    with toy_gateway.desk.paused():
        first = Upload(client, entry, toy_samples)
        first.announce()
        for number in range(len(first.pieces)):
            first.send(number)
            assert first.acknowledged() == number + 1
        again = Upload(client, entry, toy_samples, attempt=2)
        again.announce()
        again.send(0)  # before it can know
        again.send(1)
        assert again.acknowledged() == len(again.pieces), "all of it is there"
    result = client.receive()
    assert isinstance(result, m.Result)
    assert result.attempt == 2
    Upload(client, entry, toy_samples, attempt=3).announce()
    stored = client.receive()
    assert isinstance(stored, m.Result)
    assert stored.attempt == 3
    assert toy_gateway.stats()["results"] == 1


def test_more_than_its_credit_cannot_be_announced_and_cancelling_gives_it_back(
    toy_bundle: Path, entry: PlacementEntry, toy_samples: Array
) -> None:
    settings: dict[str, object] = {"limits.credit_requests": 2}
    with gateway_of(toy_bundle, settings=settings) as gateway, WireClient(str(gateway.endpoint)) as client:
        assert client.greet().credit_requests == 2
        uploads = [Upload(client, entry, toy_samples[:8], sequence) for sequence in (1, 2, 3)]
        for upload in uploads:
            upload.announce()
        assert refused(client)[0] is m.RejectCode.BUSY
        client.send(m.Cancel(uploads[0].infer.request))
        assert refused(client)[0] is m.RejectCode.CANCELLED
        uploads[2].announce()
        uploads[2].finish()


def test_a_gateway_that_ends_tells_at_once_those_whose_payload_is_on_its_way(
    toy_bundle: Path, entry: PlacementEntry, toy_samples: Array
) -> None:
    with gateway_of(toy_bundle) as gateway, WireClient(str(gateway.endpoint)) as client:
        client.greet()
        upload = Upload(client, entry, toy_samples)
        upload.announce()
        upload.send(0)
        assert upload.acknowledged() == 1
        with gateway.desk.paused():
            client.send(*client.infer(entry, {"x": toy_samples[:1]}, 2))  # what is held keeps it here
            until(lambda: gateway.stats()["requests"] == 2, "the request is held")
            ending = threading.Thread(target=gateway.close)
            ending.start()
            assert isinstance(client.receive(), m.Drain)
            assert refused(client)[0] is m.RejectCode.DRAINING
            Upload(client, entry, toy_samples, 3).announce()
            assert refused(client)[0] is m.RejectCode.DRAINING
        assert isinstance(client.receive(), m.Result)
        ending.join()


def test_chunks_pass_through_a_front_that_is_a_process_of_its_own(
    toy_bundle: Path, entry: PlacementEntry, toy_samples: Array
) -> None:
    settings: dict[str, object] = {"zmq.front": "process"}
    with gateway_of(toy_bundle, settings=settings) as gateway, WireClient(str(gateway.endpoint)) as client:
        client.greet()
        upload = Upload(client, entry, toy_samples)
        upload.announce()
        upload.finish()


def test_any_chunks_from_anybody_cost_the_gateway_no_valid_request(
    client: WireClient, toy_gateway: Gateway, entry: PlacementEntry, toy_samples: Array
) -> None:
    chance = random.Random(5)
    uploads = [Upload(client, entry, toy_samples, sequence) for sequence in range(10, 14)]
    for _ in range(400):
        upload = chance.choice(uploads)
        match chance.randrange(4):
            case 0:
                upload.infer = msgspec.structs.replace(upload.infer, attempt=upload.infer.attempt + chance.randrange(2))
                upload.announce()
            case 1:
                upload.client.send(m.Cancel(upload.infer.request))
            case 2:
                upload.send(chance.randrange(8), bytes(chance.choice([0, 1, CHUNK - 1, CHUNK, CHUNK + 1])))
            case _:
                frames = wire.pack(m.Chunk(upload.infer.request, chance.randrange(3), chance.randrange(9), 10**6))
                client.send_frames([*frames, *[b"x"] * chance.choice([0, 2, 7])])
    valid = Upload(client, entry, toy_samples, 99)
    valid.announce()
    for number in range(len(valid.pieces)):
        valid.send(number)
    answer = client.receive()
    while not isinstance(answer, m.Result):
        answer = client.receive()
    assert answer.request.sequence == 99
    assert toy_gateway.stats()["results"] == 1, "nothing is executed that is not what was announced"
